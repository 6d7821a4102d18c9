//! The one view of a request: what comes in is admitted in one reading, or refused before anything acts on it.
//!
//! Called once for each request, before routing (SECURITY rules 1 to 3, and the counts of 16). Everything behind the
//! door uses [`Admitted`], never the URI or `Host` again. Nothing is allocated for a request that is spelt normally.
//!
//! hyper refuses some of this itself, with an empty answer: a bad or differing `Content-Length`, a last coding other
//! than `chunked`, `Transfer-Encoding` in HTTP/1.0, heads over the limits of [`accept`](super::accept::Limits); h2
//! resets streams with connection-specific fields. The checks stand here all the same, so that the rule does not
//! depend on the parser of the day. Method overrides (`X-HTTP-Method-Override`) are not looked at, which is the rule.
use std::{
    borrow::Cow,
    net::{Ipv4Addr, Ipv6Addr},
};

use http::{HeaderMap, HeaderValue, Method, Version, header, request::Parts, uri::Authority};

use crate::error::Kind;
use crate::path::{PathFault, normalise_path};

/// Why a request is not admitted, ready to be made into the common error answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What it is called, and its status: 400, 405, 414 or 431.
    pub kind: Kind,
    /// One sentence for the client.
    pub detail: &'static str,
    /// Whether the connection must end with the answer (`Connection: close` on HTTP/1), because it is not certain
    /// where the next request would begin.
    pub close: bool,
}

/// How long and how many. Bytes of a whole head are bounded by the parser.
#[derive(Clone, Copy, Debug)]
pub struct IntakeLimits {
    /// Bytes of path and query together; more is 414.
    pub max_uri_bytes: usize,
    /// Fields in a head, crumbs of one cookie counting once; more is 431.
    pub max_headers: usize,
}

/// A request as everything behind the door sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted<'a> {
    /// The path in its one spelling; `*` for `OPTIONS *` only.
    pub path: Cow<'a, str>,
    /// The host asked for, lower case, without port and trailing dot; empty only in HTTP/1.0 without `Host`.
    pub host: Cow<'a, str>,
}

/// Left in the extensions of a request whose head said how long its body is in two ways. The parser resolves that
/// and removes one of them, so it is seen on the wire or not at all.
#[derive(Clone, Copy, Debug)]
pub(super) struct AmbiguousLength;

impl Default for IntakeLimits {
    fn default() -> Self {
        Self { max_uri_bytes: 8 << 10, max_headers: 100 }
    }
}

impl Refusal {
    const fn bad(kind: Kind, detail: &'static str) -> Self {
        Self { kind, detail, close: false }
    }

    const fn framing(detail: &'static str) -> Self {
        Self { kind: Kind::InvalidFraming, detail, close: true }
    }

    const fn host(detail: &'static str) -> Self {
        Self::bad(Kind::InvalidHost, detail)
    }

    const fn target(detail: &'static str) -> Self {
        Self::bad(Kind::InvalidTarget, detail)
    }
}

impl From<PathFault> for Refusal {
    fn from(fault: PathFault) -> Self {
        Self::bad(Kind::InvalidPath, fault.detail())
    }
}

/// Looks at the head of a request. `tls` is whether the connection is encrypted, which decides the default port that
/// `Host` and `:authority` may leave out.
///
/// # Errors
/// [`Refusal`] for what may not be served, in the order: framing, sizes, method, target, host, path.
pub fn admit<'a>(parts: &'a Parts, tls: bool, limits: &IntakeLimits) -> Result<Admitted<'a>, Refusal> {
    check_framing(parts)?;
    check_sizes(parts, limits)?;
    if matches!(parts.method, Method::TRACE | Method::CONNECT) {
        return Err(Refusal {
            kind: Kind::MethodNotAllowed,
            detail: "TRACE and CONNECT are not served.",
            close: true,
        });
    }
    let host = check_target_and_host(parts, tls)?;
    let path = parts.uri.path();
    let path = if path == "*" && parts.method == Method::OPTIONS {
        Cow::Borrowed(path)
    } else {
        normalise_path(path)?
    };
    Ok(Admitted { path, host })
}

/// RFC 9112 section 6.3, less every liberty it grants.
fn check_framing(parts: &Parts) -> Result<(), Refusal> {
    let headers = &parts.headers;
    let both = "The request has both Content-Length and Transfer-Encoding.";
    if parts.extensions.get::<AmbiguousLength>().is_some() {
        return Err(Refusal::framing(both));
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let length = lengths.next();
    if let Some(length) = length {
        let digits = length.as_bytes();
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) || lengths.any(|other| other != length)
        {
            return Err(Refusal::framing("The request has no single, plain Content-Length."));
        }
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let coding = codings.next();
    if let Some(coding) = coding {
        if length.is_some() {
            return Err(Refusal::framing(both));
        }
        if parts.version != Version::HTTP_11 {
            return Err(Refusal::framing("Transfer-Encoding belongs to HTTP/1.1 only."));
        }
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(Refusal::framing("The only Transfer-Encoding that is understood is `chunked`."));
        }
    }
    let has_body =
        || coding.is_some() || length.is_some_and(|length| length.as_bytes().iter().any(|&d| d != b'0'));
    // Some clients offer h2c with any request and go on in HTTP/1.1 when it is not taken, as it never is here.
    let beyond_h2c = |upgrade: &HeaderValue| !upgrade.as_bytes().eq_ignore_ascii_case(b"h2c");
    if headers.get_all(header::UPGRADE).iter().any(beyond_h2c) && has_body() {
        return Err(Refusal::framing("A request to upgrade the connection may not have a body."));
    }
    Ok(())
}

fn check_sizes(parts: &Parts, limits: &IntakeLimits) -> Result<(), Refusal> {
    if parts.uri.path_and_query().is_some_and(|target| target.as_str().len() > limits.max_uri_bytes) {
        return Err(Refusal {
            kind: Kind::UriTooLong,
            detail: "The path and query are longer than is served.",
            close: false,
        });
    }
    // HTTP/2 clients send one cookie in crumbs (RFC 9113 section 8.2.3).
    let too_many = |count| count > limits.max_headers;
    let headers = &parts.headers;
    if too_many(headers.len()) && too_many(headers.len() - headers.get_all(header::COOKIE).iter().count()) {
        return Err(Refusal {
            kind: Kind::HeadersTooLarge,
            detail: "The request has more header fields than are served.",
            close: false,
        });
    }
    Ok(())
}

/// RFC 9112 section 3.2 and RFC 9113 section 8.3.1: the form of the target, and whose it is.
fn check_target_and_host(parts: &Parts, tls: bool) -> Result<Cow<'_, str>, Refusal> {
    let uri = &parts.uri;
    let by_header = host_header(&parts.headers)?;
    if uri.path() == "*" && parts.method != Method::OPTIONS {
        return Err(Refusal::target("The target `*` is for OPTIONS only."));
    }
    let Some(authority) = uri.authority() else {
        return match by_header {
            Some(host) => Ok(host.name),
            None if parts.version == Version::HTTP_10 => Ok(Cow::Borrowed("")),
            None => Err(Refusal::host("The request has no Host.")),
        };
    };
    match uri.scheme_str() {
        Some("http" | "https") => {}
        None => return Err(Refusal::target("The target must be a path, not an authority.")),
        Some(_) => return Err(Refusal::target("The target has a scheme other than http and https.")),
    }
    let by_target = parse_host(authority_of(authority)?)?;
    match by_header {
        // HTTP/1 asks for Host beside an absolute target too.
        None if parts.version == Version::HTTP_11 => Err(Refusal::host("The request has no Host.")),
        Some(host) if !host.agrees(&by_target, if tls { 443 } else { 80 }) => {
            Err(Refusal::host("Host and the authority of the target differ."))
        }
        _ => Ok(by_target.name),
    }
}

/// `name [":" port]` of RFC 3986 section 3.2, the name in lower case.
struct Host<'a> {
    name: Cow<'a, str>,
    port: Option<u16>,
}

impl Host<'_> {
    fn agrees(&self, other: &Host<'_>, default_port: u16) -> bool {
        self.name == other.name && self.port.unwrap_or(default_port) == other.port.unwrap_or(default_port)
    }
}

fn host_header(headers: &HeaderMap) -> Result<Option<Host<'_>>, Refusal> {
    let mut values = headers.get_all(header::HOST).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Refusal::host("The request has more than one Host."));
    }
    parse_host(text_of(value)?).map(Some)
}

fn text_of(value: &HeaderValue) -> Result<&str, Refusal> {
    value.to_str().map_err(|_| INVALID_HOST)
}

fn authority_of(authority: &Authority) -> Result<&str, Refusal> {
    let text = authority.as_str();
    if text.contains('@') { Err(Refusal::target("The target may not carry a user name.")) } else { Ok(text) }
}

const INVALID_HOST: Refusal = Refusal::host("Host is not a valid host name with an optional port.");

fn parse_host(text: &str) -> Result<Host<'_>, Refusal> {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let end = rest.find(']').ok_or(INVALID_HOST)?;
            rest[..end].parse::<Ipv6Addr>().map_err(|_| INVALID_HOST)?;
            // Both brackets belong to the name.
            text.split_at(end + 2)
        }
        None => {
            let end = text.find(':').unwrap_or(text.len());
            let (name, port) = text.split_at(end);
            let name = name.strip_suffix('.').unwrap_or(name);
            check_name(name)?;
            (name, port)
        }
    };
    let port = match port.strip_prefix(':') {
        // RFC 3986 lets the port be empty.
        None if port.is_empty() => None,
        Some("") => None,
        Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => {
            Some(digits.parse().map_err(|_| INVALID_HOST)?)
        }
        _ => return Err(INVALID_HOST),
    };
    let name = if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    };
    Ok(Host { name, port })
}

/// DNS names (with the underscore that container networks use) and IPv4 addresses. A name that ends in a number but
/// is no address is refused, as browsers do: some resolvers read `127.1` or `0x7f.1` as an address.
fn check_name(name: &str) -> Result<(), Refusal> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let mut begin = 0;
    for (at, byte) in name.bytes().enumerate() {
        match byte {
            b'.' if (1..=63).contains(&(at - begin)) => begin = at + 1,
            _ if !allowed(byte) => return Err(INVALID_HOST),
            _ => {}
        }
    }
    let last = &name[begin..];
    if name.len() > 253 || !(1..=63).contains(&last.len()) {
        return Err(INVALID_HOST);
    }
    let numeric =
        last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x") || last.starts_with("0X");
    if numeric && name.parse::<Ipv4Addr>().is_err() {
        return Err(INVALID_HOST);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
