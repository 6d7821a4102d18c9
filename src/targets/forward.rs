//! What passes between a caller and an upstream, and what does not: the header rules, both ways.
//!
//! The order is the defence. First goes everything that claims an identity or comes from a hop (in whatever spelling
//! an upstream might fold into ours), then whatever belongs to the caller's connection, then ours is set
//! ([`set_forwarded`], [`set_identity`]). Headers are changed in place; where nothing has to go, nothing is allocated.

use super::template::{Template, without_secrets};
use crate::error::{GatewayError, Kind};
use crate::exchange::Exchange;
use crate::upstream::{TRACEPARENT, X_REQUEST_ID, set_identity};
use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRAILER,
    TRANSFER_ENCODING,
};
use http::uri::{PathAndQuery, Uri};
use http::{Method, Request};
use http_body::Body as _;
use http_body_util::combinators::BoxBody;
use std::io::{self, Write as _};
use std::net::IpAddr;

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The request as the upstream is to see it. `path` rewrites the path; `trusted` says whether the peer's word on
/// `X-Forwarded-*` counts.
///
/// # Errors
/// [`Kind::InvalidPath`] where the rewritten path is not in normal form.
pub(super) fn request(
    exchange: &Exchange,
    incoming: poem::Request,
    path: Option<&Template>,
    trusted: bool,
) -> Result<Request<BoxBody<Bytes, io::Error>>, GatewayError> {
    let (parts, body) = incoming.into_parts();
    let uri = target(exchange, &parts.uri, path)?;
    let mut headers = parts.headers;
    // HTTP/2 names the host in the request's target.
    let host = headers.get(HOST).cloned().or_else(|| {
        parts.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok())
    });
    clean(&mut headers, trusted);
    // For what is set here: else the map grows several times.
    headers.reserve(SET_HERE);
    set_forwarded(&mut headers, exchange, host, trusted);
    set_identity(&mut headers, exchange);
    let body: BoxBody<Bytes, io::Error> = body.into();
    frame(&mut headers, &parts.method, &body);
    let mut request = Request::new(body);
    *request.method_mut() = parts.method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Takes from a response what belongs to the upstream's connection.
pub(super) fn clean_response(headers: &mut HeaderMap) {
    let gone: Vec<HeaderName> = headers.keys().filter(|name| is_hop_by_hop(name.as_str())).cloned().collect();
    if gone.contains(&CONNECTION) {
        drop_named_by_connection(headers);
    }
    for name in gone {
        headers.remove(name);
    }
}

/// Path and query for the upstream; the incoming ones as they are where that is right.
fn target(exchange: &Exchange, incoming: &Uri, path: Option<&Template>) -> Result<Uri, GatewayError> {
    let rewritten = match path {
        Some(template) => {
            let path = template.render(|index| exchange.param_nth(index));
            Some(path.ok_or_else(|| GatewayError::from(Kind::InvalidPath))?)
        }
        None => None,
    };
    let query = incoming.query();
    let passed = query.map(without_secrets);
    let path = rewritten.as_deref().unwrap_or(&exchange.path);
    if let Some(whole) = incoming.path_and_query()
        && whole.path() == path
        && passed.as_deref() == query
    {
        return Ok(Uri::from(whole.clone()));
    }
    let whole = match passed.as_deref() {
        None | Some("") => PathAndQuery::try_from(path),
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
    };
    whole.map(Uri::from).map_err(|_| Kind::InvalidPath.into())
}

/// Takes from a request whatever claims an identity or belongs to the caller's connection.
fn clean(headers: &mut HeaderMap, trusted: bool) {
    // One look at all of them: most requests have nothing of what is handled below.
    let mut gone: Vec<HeaderName> = Vec::new();
    let (mut connection, mut te, mut trailer, mut cookies) = (false, false, false, false);
    for name in headers.keys() {
        let word = name.as_str();
        if is_ours_to_say(word, trusted) || is_hop_by_hop(word) || word == "expect" {
            connection |= *name == CONNECTION;
            te |= *name == TE;
            gone.push(name.clone());
        }
        trailer |= *name == TRAILER;
        cookies |= *name == COOKIE;
    }
    let trailers = te
        && headers.get(TE).is_some_and(|te| {
            te.as_bytes()
                .split(|b| *b == b',')
                .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
        });
    if connection {
        drop_named_by_connection(headers);
    }
    for name in gone {
        headers.remove(name);
    }
    if trailer {
        announce_trailers(headers, trusted);
    }
    if cookies {
        join_cookies(headers);
    }
    if trailers {
        // RFC 9110, section 10.1.4: TE is of this connection, and `Connection` must say so.
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
}

/// How many headers are set here and by [`set_identity`] at most: for a caller who is known, over TLS, within a trace.
const SET_HERE: usize = 8;

/// Takes from `Trailer` what a header may not say either. Only trailers that are announced here are sent on, so that
/// nobody says behind the body what was deleted before it.
fn announce_trailers(headers: &mut HeaderMap, trusted: bool) {
    let mut kept: Vec<HeaderName> = Vec::new();
    for value in headers.get_all(TRAILER) {
        for name in value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            // A `HeaderName` is lower case, however it was written.
            let Ok(name) = HeaderName::from_bytes(name) else { continue };
            if !is_ours_to_say(name.as_str(), trusted) && !is_hop_by_hop(name.as_str()) && !is_set_here(&name)
            {
                kept.push(name);
            }
        }
    }
    headers.remove(TRAILER);
    let kept = kept.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(", ");
    if let Ok(value) = HeaderValue::from_str(&kept)
        && !kept.is_empty()
    {
        headers.insert(TRAILER, value);
    }
}

/// Headers that go out with what the gateway says, whoever sent them before.
fn is_set_here(name: &HeaderName) -> bool {
    *name == X_FORWARDED_FOR
        || *name == X_FORWARDED_PROTO
        || *name == X_FORWARDED_HOST
        || *name == X_REQUEST_ID
        || *name == TRACEPARENT
}

/// Removes `Connection` and what it names (RFC 9110, section 7.6.1). What says where the body ends stays.
fn drop_named_by_connection(headers: &mut HeaderMap) {
    let mut names = Vec::new();
    for value in headers.get_all(CONNECTION) {
        for name in value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            let keyword = name.eq_ignore_ascii_case(b"keep-alive") || name.eq_ignore_ascii_case(b"close");
            if !keyword && let Ok(name) = HeaderName::from_bytes(name) {
                names.push(name);
            }
        }
    }
    for name in
        names.into_iter().filter(|name| name != TE && name != CONTENT_LENGTH && name != TRANSFER_ENCODING)
    {
        headers.remove(name);
    }
    headers.remove(CONNECTION);
}

/// Headers of one connection. `Trailer` is not among them: it tells of trailers, which pass.
fn is_hop_by_hop(name: &str) -> bool {
    match name.as_bytes()[0] {
        b'c' => name == "connection",
        b'h' => name == "http2-settings",
        b'k' => name == "keep-alive",
        b'p' => matches!(name, "proxy-connection" | "proxy-authenticate" | "proxy-authorization"),
        b't' => matches!(name, "te" | "transfer-encoding"),
        b'u' => name == "upgrade",
        _ => false,
    }
}

/// Whether only the gateway may say this to an upstream. Names count folded (`X_User.ID` is `x-user-id`), as many a
/// framework folds them.
fn is_ours_to_say(name: &str, trusted: bool) -> bool {
    let name = name.as_bytes();
    match name[0] {
        b'f' => !trusted && name == FORWARDED.as_str().as_bytes(),
        b'x' if name.len() > 5 => {
            if folded_prefix(name, b"x-user") || folded_prefix(name, b"x-tenant") {
                return true;
            }
            let misspelt = name.iter().any(|b| matches!(b, b'_' | b'.'));
            if folded_prefix(name, b"x-forwarded") || folded_prefix(name, b"x-real-ip") {
                return misspelt || !trusted;
            }
            misspelt && folded_prefix(name, b"x-request-id")
        }
        _ => false,
    }
}

/// Whether a name is this word or begins with it and a separator.
fn folded_prefix(name: &[u8], word: &[u8]) -> bool {
    let fold = |byte: &u8| if matches!(byte, b'_' | b'.') { b'-' } else { *byte };
    name.len() >= word.len()
        && name.iter().map(fold).zip(word).all(|(a, b)| a == *b)
        && name.get(word.len()).is_none_or(|byte| fold(byte) == b'-')
}

/// HTTP/2 may cut cookies into several fields; HTTP/1.1 has one (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, whole);
    }
}

/// Sets `X-Forwarded-*`. What a trusted proxy said is kept, and the peer's address appended.
fn set_forwarded(headers: &mut HeaderMap, exchange: &Exchange, host: Option<HeaderValue>, trusted: bool) {
    let hops = append_hop(headers, exchange.peer.ip().to_canonical());
    headers.insert(&X_FORWARDED_FOR, hops);
    if !trusted || !headers.contains_key(&X_FORWARDED_PROTO) {
        let proto = HeaderValue::from_static(if exchange.secure { "https" } else { "http" });
        headers.insert(&X_FORWARDED_PROTO, proto);
    }
    if let Some(host) = host
        && (!trusted || !headers.contains_key(&X_FORWARDED_HOST))
    {
        headers.insert(&X_FORWARDED_HOST, host);
    }
}

/// The hops so far (none are left where the peer is not trusted) and this one.
fn append_hop(headers: &HeaderMap, hop: IpAddr) -> HeaderValue {
    let mut room = [0u8; 48];
    let length = spell(hop, &mut room);
    let hop = &room[..length];
    let mut before = headers.get_all(&X_FORWARDED_FOR).iter();
    let joined = match before.next() {
        None => HeaderValue::from_bytes(hop),
        Some(first) => {
            let mut all = first.as_bytes().to_vec();
            for value in before.map(HeaderValue::as_bytes).chain([hop]) {
                all.extend_from_slice(b", ");
                all.extend_from_slice(value);
            }
            HeaderValue::from_bytes(&all)
        }
    };
    joined.unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

/// Writes an address, and says how long it is: at most 45 characters.
fn spell(address: IpAddr, room: &mut [u8; 48]) -> usize {
    let mut rest = &mut room[..];
    match address {
        // By hand: what formats it otherwise costs as much as the rest of these headers.
        IpAddr::V4(address) => {
            for (index, octet) in address.octets().into_iter().enumerate() {
                let dot: &[u8] = if index > 0 { b"." } else { b"" };
                let _ = rest.write_all(dot);
                let _ = rest.write_all(itoa::Buffer::new().format(octet).as_bytes());
            }
        }
        IpAddr::V6(address) => drop(write!(rest, "{address}")),
    }
    let unused = rest.len();
    room.len() - unused
}

/// Makes the headers agree with the body that will really be sent.
fn frame(headers: &mut HeaderMap, method: &Method, body: &BoxBody<Bytes, io::Error>) {
    if body.is_end_stream() {
        // A length without a body would make the upstream wait, or read the next request as the body.
        if headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0") {
            headers.remove(CONTENT_LENGTH);
        }
    } else if matches!(*method, Method::GET | Method::HEAD)
        && !headers.contains_key(CONTENT_LENGTH)
        && body.size_hint().exact().is_none()
    {
        // hyper takes for granted that these have no body unless a header says so.
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

#[cfg(test)]
mod tests;
