//! A request that can be said again, for an upstream with `retry`.
//!
//! Nearly every request is kept there while it is under way, and hardly one of them is ever needed: keeping is cheap, one
//! block of memory, and making a request of it again is not. Without `retry` nothing is kept: what may be sent twice comes back
//! from the connection that failed.

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Uri};
use http_body::Body as _;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use std::io;

/// A request as it goes out.
pub(super) type Outgoing = Request<BoxBody<Bytes, io::Error>>;

/// A request that can be said again.
#[derive(Debug)]
pub(super) struct Kept {
    method: Method,
    uri: Uri,
    headers: Packed,
    body: Bytes,
}

impl Kept {
    /// A request without body; none if it has one.
    pub(super) fn bodyless(request: &Outgoing) -> Option<Kept> {
        request.body().is_end_stream().then(|| Kept {
            method: request.method().clone(),
            uri: request.uri().clone(),
            headers: Packed::of(request.headers()),
            body: Bytes::new(),
        })
    }

    /// A request whose body was read whole.
    pub(super) fn of(parts: &Parts, body: Bytes) -> Kept {
        Kept {
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            headers: Packed::of(&parts.headers),
            body,
        }
    }

    /// The request once more.
    pub(super) fn request(&self) -> Outgoing {
        let body = match self.body.is_empty() {
            true => Empty::new().map_err(|never| match never {}).boxed(),
            false => Full::new(self.body.clone()).map_err(|never| match never {}).boxed(),
        };
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.unpacked();
        request
    }
}

/// Headers in one block: of each the lengths of name and value, a mark, the name, the value.
struct Packed(Vec<u8>);

/// What stands before each name: two lengths of four bytes, and whether the value is sensitive.
const FRONT: usize = 9;

impl Packed {
    fn of(headers: &HeaderMap) -> Packed {
        let size = |(name, value): (&HeaderName, &HeaderValue)| FRONT + name.as_str().len() + value.len();
        let mut block = Vec::with_capacity(headers.iter().map(size).sum());
        for (name, value) in headers {
            let (name, sensitive) = (name.as_str().as_bytes(), value.is_sensitive());
            // Heads are bounded far below.
            block.extend_from_slice(&(name.len() as u32).to_ne_bytes());
            block.extend_from_slice(&(value.len() as u32).to_ne_bytes());
            block.push(u8::from(sensitive));
            block.extend_from_slice(name);
            block.extend_from_slice(value.as_bytes());
        }
        Packed(block)
    }

    fn unpacked(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let mut rest = &self.0[..];
        while let Some((front, after)) = rest.split_at_checked(FRONT) {
            let length = |at: usize| {
                let four = [front[at], front[at + 1], front[at + 2], front[at + 3]];
                u32::from_ne_bytes(four) as usize
            };
            let (name, after) = after.split_at(length(0));
            let (value, after) = after.split_at(length(4));
            rest = after;
            let name = HeaderName::from_bytes(name).expect("it was a header's name");
            let mut value = HeaderValue::from_bytes(value).expect("it was a header's value");
            value.set_sensitive(front[FRONT - 1] != 0);
            headers.append(name, value);
        }
        headers
    }
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.unpacked().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_out_is_what_went_in() {
        let mut headers = HeaderMap::new();
        headers.append("accept", HeaderValue::from_static("a/b"));
        headers.append("x-empty", HeaderValue::from_static(""));
        headers.append("cookie", HeaderValue::from_bytes(b"one=\xff").unwrap());
        headers.append("accept", HeaderValue::from_static("c/d"));
        let mut secret = HeaderValue::from_static("Bearer x");
        secret.set_sensitive(true);
        headers.append("authorization", secret);
        let again = Packed::of(&headers).unpacked();
        assert_eq!(again, headers);
        assert_eq!(again.get_all("accept").iter().collect::<Vec<_>>(), ["a/b", "c/d"]);
        assert!(again["authorization"].is_sensitive() && !again["x-empty"].is_sensitive());
        assert!(Packed::of(&HeaderMap::new()).unpacked().is_empty());
    }

    #[test]
    fn a_request_is_said_again_with_its_body() {
        let (parts, ()) =
            Request::put("http://a/b?c").header("x-a", "1").body(()).expect("a request").into_parts();
        let again = Kept::of(&parts, Bytes::from_static(b"body")).request();
        assert_eq!(
            (again.method(), again.uri().path(), &again.headers()["x-a"]),
            (&Method::PUT, "/b", &HeaderValue::from_static("1"))
        );
        assert_eq!(again.body().size_hint().exact(), Some(4));
        assert!(Kept::bodyless(&again).is_none());
    }
}
