//! What makes callers different, for stages that count: `by: [ip, user, tenant, route, header.X, query.X, body.X]`.
//!
//! Compiled to a key of bounded length: a readable beginning, then 128 bits of SHA-256 over the values, so that nobody
//! chooses a key's length and no address or name reaches Redis. IPv6 callers count by their /64, mapped IPv4 as
//! IPv4 (SECURITY rule 5). What a request does not carry (no identity, no such header or field) counts by address
//! instead: leaving it out is no way round a limit, and not everybody who leaves it out is one caller.

use crate::copies::KeyMaker;
use crate::diag::{Code, Diagnostic, Diagnostics, did_you_mean};
use crate::error::{GatewayError, Kind};
use crate::exchange::{Exchange, RouteInfo};
use crate::manifest::List;
use bytes::Bytes;
use http::HeaderName;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use http_body_util::combinators::BoxBody;
use poem::Request;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Bytes of a body that are read for `body.X`.
pub(super) const BODY: usize = 64 << 10;

/// The words of `by`.
const WORDS: [&str; 7] = ["ip", "user", "tenant", "route", "header.X", "query.X", "body.X"];

/// What makes callers different, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Callers(Arc<[Trait]>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Trait {
    Ip,
    User,
    Tenant,
    Route,
    Header(HeaderName),
    Query(String),
    /// Names on the way to a field.
    Body(Vec<String>),
}

impl Trait {
    fn parse(text: &str) -> Option<Self> {
        match text.split_once('.') {
            Some(("header", name)) => name.parse().ok().map(Trait::Header),
            Some(("query", name)) if !name.is_empty() => Some(Trait::Query(name.to_owned())),
            Some(("body", path)) => {
                let path: Vec<String> = path.split('.').map(str::to_owned).collect();
                path.iter().all(|name| !name.is_empty()).then_some(Trait::Body(path))
            }
            Some(_) => None,
            None => match text {
                "ip" => Some(Trait::Ip),
                "user" => Some(Trait::User),
                "tenant" => Some(Trait::Tenant),
                "route" => Some(Trait::Route),
                _ => None,
            },
        }
    }
}

impl Callers {
    /// Reads `by`; every word that is none of them is a fault.
    pub(super) fn check(by: &List<String>, out: &mut Diagnostics) -> Option<Self> {
        let mut traits = Vec::with_capacity(by.0.len());
        for word in &by.0 {
            match Trait::parse(word) {
                Some(known) => traits.push(known),
                None => out.push(
                    Diagnostic::error(Code::BAD_VALUE, word.span, "this does not tell callers apart")
                        .maybe_help(did_you_mean(word, WORDS)),
                ),
            }
        }
        (traits.len() == by.0.len()).then(|| Callers(traits.into()))
    }

    /// By address, where nothing is said.
    pub(super) fn or_address(self) -> Self {
        match self.0.is_empty() {
            true => Callers([Trait::Ip].into()),
            false => self,
        }
    }

    /// The word that needs an identity, if one does.
    pub(super) fn need_identity(&self) -> Option<&'static str> {
        self.0.iter().find_map(|known| match known {
            Trait::User => Some("user"),
            Trait::Tenant => Some("tenant"),
            _ => None,
        })
    }

    /// Whether the body must be read.
    pub(super) fn need_body(&self) -> bool {
        self.0.iter().any(|known| matches!(known, Trait::Body(_)))
    }

    /// Whether a user is told from every other one.
    pub(super) fn tell_users_apart(&self) -> bool {
        self.0.contains(&Trait::User)
    }

    /// The query parameters that count, if only some do.
    pub(super) fn parameters(&self) -> Option<Vec<&str>> {
        let names = self.0.iter().filter_map(|known| match known {
            Trait::Query(name) => Some(name.as_str()),
            _ => None,
        });
        let names: Vec<_> = names.collect();
        (!names.is_empty()).then_some(names)
    }

    /// Tells a copy's key who is calling and with what, but for the query. What a request does not carry is missing, and
    /// no address stands for it: nobody gains anything by leaving it out.
    pub(super) fn tell(&self, mut key: KeyMaker, exchange: &Exchange, request: &Request) -> KeyMaker {
        let caller = exchange.identity();
        for known in self.0.iter() {
            key = match known {
                Trait::Ip => match exchange.client_ip.to_canonical() {
                    IpAddr::V4(address) => key.with(&address.octets()),
                    IpAddr::V6(address) => key.with(&address.octets()),
                },
                // With the role: what somebody may see can change with it.
                Trait::User => key
                    .maybe(caller.map(|caller| caller.tenant_id.as_bytes()))
                    .maybe(caller.map(|caller| caller.user_id.as_bytes()))
                    .maybe(caller.map(|caller| caller.role.as_bytes())),
                Trait::Tenant => key.maybe(caller.map(|caller| caller.tenant_id.as_bytes())),
                Trait::Header(name) => {
                    let values = request.headers().get_all(name);
                    let key = key.with(&(values.iter().count() as u64).to_le_bytes());
                    values.iter().fold(key, |key, value| key.with(value.as_bytes()))
                }
                Trait::Route | Trait::Query(_) | Trait::Body(_) => key,
            };
        }
        key
    }

    /// The words, for people.
    pub(super) fn words(&self) -> String {
        let words = self.0.iter().map(|known| match known {
            Trait::Ip => "ip".to_owned(),
            Trait::User => "user".to_owned(),
            Trait::Tenant => "tenant".to_owned(),
            Trait::Route => "route".to_owned(),
            Trait::Header(name) => format!("header.{name}"),
            Trait::Query(name) => format!("query.{name}"),
            Trait::Body(path) => format!("body.{}", path.join(".")),
        });
        words.collect::<Vec<_>>().join(", ")
    }

    /// Keys of counters that begin with `name` and belong to this `definition` only: changed, it counts anew.
    pub(super) fn keys(&self, name: &str, definition: &str, route: &RouteInfo) -> Keys {
        let mut prefix = format!("{name}:");
        let mut digest = Sha256::new();
        field(&mut digest, definition.as_bytes());
        field(&mut digest, self.words().as_bytes());
        hex(&mut prefix, &digest.finalize()[..8]);
        let host = route.host.as_deref().unwrap_or_default();
        let route = format!("{} {host}{}", route.method, route.template).into();
        Keys { prefix: prefix.into(), route, callers: self.clone() }
    }
}

/// Keys of one counter, prepared for a route.
pub(super) struct Keys {
    prefix: Box<str>,
    route: Box<str>,
    callers: Callers,
}

impl Keys {
    /// The key of a request's caller. `body` is its body as JSON, if that was asked for and is JSON.
    pub(super) fn of(&self, exchange: &Exchange, request: &Request, body: Option<&Value>) -> String {
        if self.callers.0.is_empty() {
            return self.prefix.as_ref().to_owned();
        }
        let mut digest = Sha256::new();
        for known in self.callers.0.iter() {
            let told = match known {
                Trait::Ip => false,
                Trait::Route => tell(&mut digest, b"route", self.route.as_bytes()),
                Trait::User => exchange.identity().is_some_and(|caller| {
                    tell(&mut digest, b"user", caller.tenant_id.as_bytes());
                    tell(&mut digest, b"", caller.user_id.as_bytes())
                }),
                Trait::Tenant => exchange
                    .identity()
                    .is_some_and(|caller| tell(&mut digest, b"tenant", caller.tenant_id.as_bytes())),
                Trait::Header(name) => request
                    .headers()
                    .get(name)
                    .is_some_and(|value| tell(&mut digest, b"header", value.as_bytes())),
                Trait::Query(name) => {
                    let query = request.uri().query().unwrap_or_default();
                    url::form_urlencoded::parse(query.as_bytes())
                        .find(|(known, _)| known == name)
                        .is_some_and(|(_, value)| tell(&mut digest, b"query", value.as_bytes()))
                }
                Trait::Body(path) => match body.and_then(|body| at(body, path)) {
                    None | Some(Value::Null) => false,
                    // `Alice` and `alice ` are one to whoever guesses her password.
                    Some(Value::String(text)) => {
                        tell(&mut digest, b"body", text.trim().to_lowercase().as_bytes())
                    }
                    Some(other) => tell(&mut digest, b"body", other.to_string().as_bytes()),
                },
            };
            if !told {
                tell_address(&mut digest, exchange.client_ip);
            }
        }
        let mut key = String::with_capacity(self.prefix.len() + 33);
        key.push_str(&self.prefix);
        key.push(':');
        hex(&mut key, &digest.finalize()[..16]);
        key
    }
}

/// Fields end where they say, so that two never read as one.
fn field(digest: &mut Sha256, bytes: &[u8]) {
    digest.update((bytes.len() as u64).to_le_bytes());
    digest.update(bytes);
}

fn tell(digest: &mut Sha256, what: &[u8], value: &[u8]) -> bool {
    field(digest, what);
    field(digest, value);
    true
}

fn tell_address(digest: &mut Sha256, address: IpAddr) {
    match address.to_canonical() {
        IpAddr::V4(address) => tell(digest, b"ip", &address.octets()),
        IpAddr::V6(address) => tell(digest, b"ip", &network(address)),
    };
}

/// The /64 of an address: what one customer has at least.
fn network(address: Ipv6Addr) -> [u8; 8] {
    let mut network = [0; 8];
    network.copy_from_slice(&address.octets()[..8]);
    network
}

fn hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
}

fn at<'v>(value: &'v Value, path: &[String]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, name| value.as_object()?.get(name))
}

/// What was found in a body.
pub(super) enum Read {
    /// It is JSON.
    Json(Value),
    /// It is empty or no JSON.
    Other,
    /// It is larger than [`BODY`].
    TooLarge,
}

/// Reads a body as JSON, up to [`BODY`], and puts it back as it came.
///
/// # Errors
/// If it breaks off: with what to tell the caller.
pub(super) async fn read_body(request: &mut Request) -> Result<Read, GatewayError> {
    let mut body: BoxBody<Bytes, io::Error> = request.take_body().into();
    if body.size_hint().lower() > BODY as u64 {
        request.set_body(body);
        return Ok(Read::TooLarge);
    }
    let mut frames = VecDeque::new();
    let mut length = 0;
    while length <= BODY {
        match body.frame().await {
            None => break,
            Some(Ok(frame)) => {
                length += frame.data_ref().map_or(0, Bytes::len);
                frames.push_back(frame);
            }
            Some(Err(error)) => {
                return Err(GatewayError::from_body_error(&error).unwrap_or_else(|| GatewayError {
                    close: true,
                    ..GatewayError::new(Kind::BadRequest, "The request body broke off")
                }));
            }
        }
    }
    let found = match length {
        0 => Read::Other,
        length if length > BODY => Read::TooLarge,
        length => {
            let mut pieces = frames.iter().filter_map(Frame::data_ref);
            let parsed = match (pieces.next(), pieces.next()) {
                (Some(whole), None) => serde_json::from_slice(whole),
                _ => {
                    let mut whole = Vec::with_capacity(length);
                    frames
                        .iter()
                        .filter_map(Frame::data_ref)
                        .for_each(|piece| whole.extend_from_slice(piece));
                    serde_json::from_slice(&whole)
                }
            };
            parsed.map_or(Read::Other, Read::Json)
        }
    };
    request.set_body(restored(frames, body));
    Ok(found)
}

/// A body whose beginning was read already, as it came.
pub(super) fn restored(
    frames: VecDeque<Frame<Bytes>>,
    rest: BoxBody<Bytes, io::Error>,
) -> BoxBody<Bytes, io::Error> {
    BoxBody::new(Restored { frames, rest })
}

/// A body whose beginning was read already.
struct Restored {
    frames: VecDeque<Frame<Bytes>>,
    rest: BoxBody<Bytes, io::Error>,
}

impl Body for Restored {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.frames.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let read: u64 = self.frames.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum();
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + read);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + read);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{fed, request};
    use super::*;
    use crate::error::Lang;
    use crate::exchange::Arrival;
    use crate::identity::{Identity, Proof};
    use http::Method;

    fn callers(words: &[&str]) -> Callers {
        Callers(words.iter().map(|word| Trait::parse(word).unwrap()).collect())
    }

    fn keys(words: &[&str]) -> Keys {
        callers(words).keys("p", "5/60", &RouteInfo::unmatched())
    }

    fn from(address: &str) -> Arc<Exchange> {
        Exchange::begin(Arrival {
            peer: ([127, 0, 0, 1], 1).into(),
            client_ip: address.parse().unwrap(),
            secure: false,
            method: Method::GET,
            path: "/".to_owned(),
            lang: Lang::En,
        })
    }

    fn caller(address: &str, user: &str, tenant: &str) -> Arc<Exchange> {
        let exchange = from(address);
        exchange.identified(Arc::new(Identity {
            user_id: user.into(),
            tenant_id: tenant.into(),
            role: "user".into(),
            scopes: Vec::new(),
            channel: None,
            openid: None,
            token_id: None,
            issued_at: None,
            expires_at: None,
            proof: Proof::Token,
        }));
        exchange
    }

    fn plain() -> Request {
        request(Method::GET, &[])
    }

    #[test]
    fn addresses_count_by_what_one_customer_has() {
        let key = |address: &str| keys(&["ip"]).of(&from(address), &plain(), None);
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"), "one /64");
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert!(key("192.0.2.1").starts_with("p:") && !key("192.0.2.1").contains("192"));
    }

    #[test]
    fn users_are_known_by_identity_and_others_by_address() {
        let keys = keys(&["user"]);
        let key = |exchange: &Exchange| keys.of(exchange, &plain(), None);
        assert_eq!(key(&caller("192.0.2.1", "u", "t")), key(&caller("192.0.2.2", "u", "t")));
        assert_ne!(key(&caller("192.0.2.1", "u", "t")), key(&caller("192.0.2.1", "u", "s")));
        assert_ne!(key(&caller("192.0.2.1", "ab", "")), key(&caller("192.0.2.1", "b", "a")));
        assert_ne!(key(&from("192.0.2.1")), key(&from("192.0.2.2")));
    }

    #[test]
    fn requests_are_known_by_what_they_carry() {
        let exchange = from("192.0.2.1");
        let of = |words: &[&str], headers: &[(&str, &str)], body: Value| {
            keys(words).of(&exchange, &request(Method::GET, headers), Some(&body))
        };
        let name = |name: &str| of(&["body.user.name"], &[], serde_json::json!({ "user": { "name": name } }));
        assert_eq!(name("alice"), name(" ALICE"));
        assert_ne!(name("alice"), name("bob"));
        let missing = of(&["body.user.name"], &[], Value::Null);
        assert_ne!(missing, name(""));
        assert_ne!(of(&["header.x-a"], &[("x-a", "1")], Value::Null), of(&["header.x-a"], &[], Value::Null));
        let mut asked = plain();
        *asked.uri_mut() = "/t?b=2&a=%31".parse().unwrap();
        let one = keys(&["query.a"]).of(&exchange, &asked, None);
        *asked.uri_mut() = "/t?a=1".parse().unwrap();
        assert_eq!(one, keys(&["query.a"]).of(&exchange, &asked, None));
    }

    #[test]
    fn a_changed_definition_counts_anew() {
        let route = RouteInfo::unmatched();
        let key = |definition: &str| callers(&["ip"]).keys("p", definition, &route).prefix;
        assert_eq!(key("5/60"), key("5/60"));
        assert_ne!(key("5/60"), key("6/60"));
        assert_ne!(key("5/60"), callers(&["ip", "route"]).keys("p", "5/60", &route).prefix);
    }

    #[tokio::test]
    async fn a_body_is_put_back_as_it_came() {
        for size in [0, 100, BODY, BODY + 1, 5 * BODY] {
            let (feed, body) = fed();
            let text = format!("\"{}\"", "x".repeat(size));
            for piece in text.as_bytes().chunks(10_000) {
                feed.send(Ok(Bytes::copy_from_slice(piece))).unwrap();
            }
            drop(feed);
            let mut request = plain();
            request.set_body(body);
            let read = read_body(&mut request).await.unwrap_or_else(|_| panic!("it is whole"));
            assert_eq!(matches!(read, Read::Json(_)), size + 2 <= BODY, "{size}");
            assert_eq!(matches!(read, Read::TooLarge), size + 2 > BODY, "{size}");
            assert_eq!(request.into_body().into_string().await.unwrap(), text);
        }
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_told() {
        let (feed, body) = fed();
        feed.send(Err(io::ErrorKind::ConnectionReset.into())).unwrap();
        let mut request = plain();
        request.set_body(body);
        let Err(error) = read_body(&mut request).await else { panic!("it broke") };
        assert_eq!(error.kind, Kind::BadRequest);
    }
}
