//! RFC 9111 as a shared cache: which requests a cache is for, which answers it may keep, and for how long. Pure: time
//! is an argument.

use http::header::{
    AGE, AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, COOKIE, DATE, EXPIRES,
    RANGE, SET_COOKIE, TRANSFER_ENCODING, UPGRADE, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Statuses that are kept: final, and not about one request only. 206 is a part.
const STATUSES: [u16; 8] = [200, 203, 204, 300, 301, 308, 404, 410];

/// What the stage says of times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    /// How long a copy is fresh at most, and where the answer does not say.
    pub(super) ttl: Duration,
    /// How long behind that it may be given out while a new one is fetched.
    pub(super) stale: Duration,
}

/// How long an answer is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lifetime {
    /// Its age when it came.
    pub(super) age: Duration,
    /// How long from then on it is fresh.
    pub(super) fresh: Duration,
    /// How long behind that it may be given out while a new one is fetched.
    pub(super) stale: Duration,
}

/// Why an answer is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unkept {
    /// This once: the next may be.
    Now,
    /// Such answers are not for a shared cache.
    Ever,
}

/// What is said in `Cache-Control`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Directives {
    no_store: bool,
    private: bool,
    no_cache: bool,
    public: bool,
    must_revalidate: bool,
    proxy_revalidate: bool,
    max_age: Option<u64>,
    s_maxage: Option<u64>,
    stale_while_revalidate: Option<u64>,
}

/// The longest time that a directive can say (RFC 9111, section 1.2.2).
const FOREVER: u64 = 1 << 31;

impl Directives {
    fn of(headers: &HeaderMap) -> Self {
        let mut said = Directives::default();
        for value in headers.get_all(CACHE_CONTROL) {
            for directive in members(value.as_bytes()) {
                let (name, argument) = match directive.iter().position(|byte| *byte == b'=') {
                    Some(at) => (directive[..at].trim_ascii(), Some(&directive[at + 1..])),
                    None => (directive, None),
                };
                let seconds = || Some(argument.and_then(seconds).unwrap_or(0));
                let least = |known: Option<u64>| known.into_iter().chain(seconds()).min();
                match name.to_ascii_lowercase().as_slice() {
                    b"no-store" => said.no_store = true,
                    b"private" => said.private = true,
                    b"no-cache" => said.no_cache = true,
                    b"public" => said.public = true,
                    b"must-revalidate" => said.must_revalidate = true,
                    b"proxy-revalidate" => said.proxy_revalidate = true,
                    // Said twice, or not readable: the shorter one (section 4.2.1).
                    b"max-age" => said.max_age = least(said.max_age),
                    b"s-maxage" => said.s_maxage = least(said.s_maxage),
                    b"stale-while-revalidate" => {
                        said.stale_while_revalidate = least(said.stale_while_revalidate);
                    }
                    _ => {}
                }
            }
        }
        said
    }
}

/// Members of a list, quoted strings in one piece.
fn members(mut list: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if list.is_empty() {
            return None;
        }
        let (mut quoted, mut escaped) = (false, false);
        let end = list.iter().position(|byte| {
            let outside = !quoted && *byte == b',';
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                _ => {}
            }
            outside
        });
        let member = &list[..end.unwrap_or(list.len())];
        list = end.map_or(&[], |end| &list[end + 1..]);
        Some(member.trim_ascii())
    })
    .filter(|member| !member.is_empty())
}

/// Seconds as directives write them, also in quotes.
fn seconds(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii();
    let text = text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")).unwrap_or(text);
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // All digits: what does not fit is more than anybody lives.
    Some(std::str::from_utf8(text).ok()?.parse().unwrap_or(FOREVER).min(FOREVER))
}

/// Whether a request is nothing for a cache, and why. `no-cache` and `max-age` of callers are not obeyed: a public edge
/// would let anybody send every request on (they are advisory, section 5.2.1).
pub(super) fn bypasses(method: &Method, headers: &HeaderMap) -> Option<&'static str> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Some("fwd=method");
    }
    let has_body = headers.contains_key(TRANSFER_ENCODING)
        || headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    if has_body || headers.contains_key(UPGRADE) {
        return Some("fwd=bypass");
    }
    // A part is fetched as a part: it is not kept, and nobody waits for the whole.
    (headers.contains_key(RANGE) || Directives::of(headers).no_store).then_some("fwd=request")
}

/// Whether a request carries what makes its answer somebody's own.
pub(super) fn has_credentials(headers: &HeaderMap) -> bool {
    headers.contains_key(AUTHORIZATION) || headers.contains_key(COOKIE)
}

/// Whether an answer may be kept, and for how long. `personal` is set for requests with credentials whose caller the key
/// does not tell apart: then the answer itself must say that it is for everybody (section 3.5).
pub(super) fn lifetime(
    times: Times,
    status: StatusCode,
    headers: &HeaderMap,
    personal: bool,
    now: SystemTime,
) -> Result<Lifetime, Unkept> {
    if status.is_server_error()
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
    {
        return Err(Unkept::Now);
    }
    let said = Directives::of(headers);
    let for_all = said.public || said.s_maxage.is_some() || said.must_revalidate;
    if !STATUSES.contains(&status.as_u16())
        || (said.no_store || said.private || said.no_cache)
        || (personal && !for_all)
        || ONE_CALLERS.iter().any(|name| headers.contains_key(name))
        || headers.contains_key(CONTENT_RANGE)
        || is_stream(headers)
        || varies(headers).is_none()
    {
        return Err(Unkept::Ever);
    }
    let date = time(headers, &DATE);
    let apparent = date.and_then(|date| now.duration_since(date).ok()).unwrap_or_default();
    let told = headers.get(AGE).and_then(|age| seconds(age.as_bytes())).unwrap_or_default();
    let age = apparent.max(Duration::from_secs(told));
    let expires = || {
        // A date that cannot be read has passed (section 5.3).
        let expires = headers.contains_key(EXPIRES).then(|| time(headers, &EXPIRES));
        expires.map(|at| at.and_then(|at| at.duration_since(date.unwrap_or(now)).ok()).unwrap_or_default())
    };
    let own = said.s_maxage.or(said.max_age).map(Duration::from_secs).or_else(expires);
    let fresh = match own {
        Some(own) => own.saturating_sub(age).min(times.ttl),
        None => times.ttl,
    };
    if fresh.is_zero() {
        // Without a time of its own here, it would be asked for each time.
        return Err(Unkept::Ever);
    }
    let never_stale = said.must_revalidate || said.proxy_revalidate || said.s_maxage.is_some();
    let stale = match said.stale_while_revalidate {
        _ if never_stale => Duration::ZERO,
        Some(own) => Duration::from_secs(own).min(times.stale),
        None => times.stale,
    };
    Ok(Lifetime { age, fresh, stale })
}

/// Names that an answer depends on, in order; none if it depends on more than headers (`*`).
pub(super) fn varies(headers: &HeaderMap) -> Option<Arc<[HeaderName]>> {
    let mut names = Vec::new();
    for value in headers.get_all(VARY) {
        for name in members(value.as_bytes()) {
            names.push(HeaderName::from_bytes(name).ok().filter(|name| name != "*")?);
        }
    }
    names.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
    names.dedup();
    Some(names.into())
}

/// Headers of what is one caller's, or better than nothing for once: with any of them, an answer is not kept.
const ONE_CALLERS: [HeaderName; 3] =
    [SET_COOKIE, HeaderName::from_static("x-new-token"), HeaderName::from_static("x-degraded")];

/// Headers of one exchange or one connection, which a copy does not have.
const ONE_EXCHANGES: [&str; 13] = [
    "age",
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "ratelimit",
    "ratelimit-policy",
    "trailer",
    "transfer-encoding",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
];

/// The headers of an answer that a copy keeps.
pub(super) fn kept_headers(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    for name in ONE_EXCHANGES.into_iter().chain(["x-request-id"]) {
        kept.remove(name);
    }
    kept
}

/// The headers of a copy that a server has said is still good: those of its 304 replace the old ones (section 3.2).
pub(super) fn freshened(kept: &HeaderMap, told: &HeaderMap) -> HeaderMap {
    let mut headers = kept.clone();
    let told = kept_headers(told);
    let of_the_body =
        |name: &HeaderName| [&http::header::CONTENT_ENCODING, &CONTENT_TYPE, &CONTENT_RANGE].contains(&name);
    for name in told.keys().filter(|name| !of_the_body(name)) {
        headers.remove(name);
        for value in told.get_all(name) {
            headers.append(name, value.clone());
        }
    }
    headers
}

/// Whether an answer has no end that anybody could wait for.
fn is_stream(headers: &HeaderMap) -> bool {
    super::super::is_event_stream(headers)
        || headers.get(CONTENT_TYPE).is_some_and(|kind| {
            let kind = kind.as_bytes();
            [&b"multipart/x-mixed-replace"[..], b"application/x-ndjson", b"application/grpc"]
                .iter()
                .any(|stream| kind.len() >= stream.len() && kind[..stream.len()].eq_ignore_ascii_case(stream))
        })
}

fn time(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    headers.get(name).and_then(|value: &HeaderValue| httpdate::parse_http_date(value.to_str().ok()?).ok())
}

#[cfg(test)]
mod tests;
