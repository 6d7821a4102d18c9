//! The opening handshake (RFC 6455, section 4): what a caller must say, and what proves that a server has read it.

use crate::error::{GatewayError, Kind};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use sha1::{Digest as _, Sha1};

/// The one version there is.
pub const VERSION: HeaderValue = HeaderValue::from_static("13");

/// Section 1.3: hashed with the key, so that no server says yes by accident.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Whether a request opens a WebSocket, by section 4.2.1. Its key, if it does.
///
/// # Errors
/// [`Kind::UpgradeRequired`] for a request that does not ask for a WebSocket over HTTP/1.1 or asks for another version;
/// [`Kind::BadRequest`] for one that asks for it badly.
pub fn asked<'r>(
    method: &Method,
    version: Version,
    headers: &'r HeaderMap,
) -> Result<&'r HeaderValue, GatewayError> {
    if *method != Method::GET
        || version != Version::HTTP_11
        || !has_token(headers, &CONNECTION, "upgrade")
        || !has_token(headers, &UPGRADE, "websocket")
    {
        return Err(Kind::UpgradeRequired.into());
    }
    if single(headers, &SEC_WEBSOCKET_VERSION) != Some(&VERSION) {
        return Err(GatewayError::new(Kind::UpgradeRequired, "the version of WebSocket spoken here is 13"));
    }
    let length = headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
    if length || headers.contains_key(TRANSFER_ENCODING) {
        return Err(GatewayError::new(Kind::BadRequest, "a WebSocket begins with a request without body"));
    }
    let key = single(headers, &SEC_WEBSOCKET_KEY);
    let is_key = |key: &&HeaderValue| STANDARD.decode(key.as_bytes()).is_ok_and(|bytes| bytes.len() == 16);
    key.filter(is_key)
        .ok_or_else(|| GatewayError::new(Kind::BadRequest, "Sec-WebSocket-Key must be 16 bytes in base64"))
}

/// A key for a handshake of the gateway's own.
pub fn fresh_key() -> HeaderValue {
    let key = STANDARD.encode(rand::random::<[u8; 16]>());
    HeaderValue::from_str(&key).expect("base64 is made of visible ASCII")
}

/// What `Sec-WebSocket-Accept` must say to a key (section 4.2.2).
pub fn accept(key: &HeaderValue) -> HeaderValue {
    let hash = Sha1::new().chain_update(key.as_bytes()).chain_update(GUID).finalize();
    HeaderValue::from_str(&STANDARD.encode(hash)).expect("base64 is made of visible ASCII")
}

/// Whether a list-valued header has this token, in any case.
pub fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let tokens = headers.get_all(name).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    tokens.map(<[u8]>::trim_ascii).any(|known| known.eq_ignore_ascii_case(token.as_bytes()))
}

/// The value of a header that stands there once.
pub fn single<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(changes: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        for (name, value) in changes {
            match *value {
                "" => drop(headers.remove(*name)),
                value => drop(headers.insert(*name, HeaderValue::from_static(value))),
            }
        }
        headers
    }

    fn kind(changes: &[(&'static str, &'static str)]) -> Option<Kind> {
        asked(&Method::GET, Version::HTTP_11, &headers(changes)).err().map(|error| error.kind)
    }

    #[test]
    fn the_standards_own_example() {
        let headers = headers(&[]);
        let key = asked(&Method::GET, Version::HTTP_11, &headers).unwrap();
        assert_eq!(accept(key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_ne!(fresh_key(), fresh_key());
        assert_eq!(kind(&[("sec-websocket-key", "")]), Some(Kind::BadRequest));
    }

    #[test]
    fn what_is_no_handshake_is_told_apart_from_a_bad_one() {
        for change in [
            ("connection", "keep-alive"),
            ("upgrade", "h2c"),
            ("upgrade", ""),
            ("sec-websocket-version", "8"),
            ("sec-websocket-version", ""),
        ] {
            assert_eq!(kind(&[change]), Some(Kind::UpgradeRequired), "{change:?}");
        }
        for change in [
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ"),
            ("sec-websocket-key", "c2hvcnQ="),
            ("content-length", "3"),
            ("transfer-encoding", "chunked"),
        ] {
            assert_eq!(kind(&[change]), Some(Kind::BadRequest), "{change:?}");
        }
        let good = headers(&[("content-length", "0")]);
        assert!(asked(&Method::GET, Version::HTTP_11, &good).is_ok());
        for (method, version) in [(Method::POST, Version::HTTP_11), (Method::GET, Version::HTTP_2)] {
            assert_eq!(asked(&method, version, &good).unwrap_err().kind, Kind::UpgradeRequired);
        }
        let mut twice = headers(&[]);
        twice.append("sec-websocket-key", HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        assert!(asked(&Method::GET, Version::HTTP_11, &twice).is_err());
    }
}
