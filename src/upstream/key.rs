//! What a request is spread by, with `balance: { hash: … }`. Nothing of this is looked at elsewhere.

use super::balance::hash;
use super::spec::{Choice, HashBy};
use super::{SendOptions, Upstream};
use crate::exchange::Exchange;
use http::{HeaderMap, Uri};
use percent_encoding::percent_decode_str;
use std::borrow::Cow;
use std::net::IpAddr;
use url::form_urlencoded;

/// Header that names a conversation.
const X_SESSION_ID: &str = "x-session-id";
/// Parameter of a query, or of a path, that does.
const SESSION_ID: &str = "session_id";

impl Upstream {
    /// What [`SendOptions::session`] takes for a conversation; `None` where that plays no part.
    pub fn session_key(&self, session_id: &str) -> Option<u64> {
        matches!(self.spec.balance(), Choice::Hash(HashBy::Session)).then(|| hash(session_id.as_bytes()))
    }

    /// What a request is spread by, where the upstream hashes; asked once a request, before its first try.
    pub(super) fn key(
        &self,
        exchange: &Exchange,
        uri: &Uri,
        headers: &HeaderMap,
        options: &SendOptions,
    ) -> Option<u64> {
        let Choice::Hash(by) = self.spec.balance() else { return None };
        match by {
            HashBy::Ip => Some(of_address(exchange.client_ip)),
            HashBy::Header(name) => headers.get(name).map(|value| hash(value.as_bytes())),
            HashBy::User => Some(of_caller(exchange)),
            HashBy::Session => options
                .session
                .or_else(|| session(exchange, uri, headers).map(|id| hash(&id)))
                .or_else(|| Some(of_caller(exchange))),
        }
    }
}

/// The conversation that a request names.
fn session<'a>(exchange: &'a Exchange, uri: &'a Uri, headers: &'a HeaderMap) -> Option<Cow<'a, [u8]>> {
    let param = [SESSION_ID, "id"].into_iter().find_map(|name| exchange.param(name));
    if let Some(id) = param.filter(|id| !id.is_empty()) {
        return Some(percent_decode_str(id).into());
    }
    let asked = uri.query().and_then(|query| {
        let mut pairs = form_urlencoded::parse(query.as_bytes());
        pairs.find(|(name, value)| name == SESSION_ID && !value.is_empty()).map(|(_, value)| value)
    });
    match asked {
        Some(Cow::Borrowed(id)) => Some(id.as_bytes().into()),
        Some(Cow::Owned(id)) => Some(id.into_bytes().into()),
        None => headers.get(X_SESSION_ID).map(|id| id.as_bytes().into()),
    }
}

fn of_caller(exchange: &Exchange) -> u64 {
    match exchange.identity().filter(|identity| !identity.user_id.is_empty()) {
        Some(identity) => hash(identity.user_id.as_bytes()),
        None => of_address(exchange.client_ip),
    }
}

fn of_address(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => hash(&ip.octets()),
        IpAddr::V6(ip) => hash(&ip.octets()),
    }
}
