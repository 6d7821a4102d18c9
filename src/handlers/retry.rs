//! `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header): a caller's name for one request.

use crate::error::{GatewayError, Kind};
use crate::stores::RetryKey;
use http::HeaderMap;
use sha2::{Digest, Sha256};
use std::time::{Duration, SystemTime};

/// How long a retry is recognised.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);
/// Longest key.
const MAX_KEY: usize = 255;

/// The caller's key for this request, if there is one; `asked` is what makes it this request.
///
/// # Errors
/// 400 for a key that is none: 1 to 255 visible ASCII characters, once.
pub(super) fn retry_key(headers: &HeaderMap, asked: &[&[u8]]) -> Result<Option<RetryKey>, GatewayError> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let Some(key) = keys.next() else { return Ok(None) };
    let key = key.as_bytes();
    let is_key = (1..=MAX_KEY).contains(&key.len()) && key.iter().all(u8::is_ascii_graphic);
    if !is_key || keys.next().is_some() {
        let detail = "Idempotency-Key must be given once and have 1 to 255 visible ASCII characters";
        return Err(GatewayError::new(Kind::BadRequest, detail));
    }
    let mut request = Sha256::new();
    for part in asked {
        request.update((part.len() as u64).to_le_bytes());
        request.update(part);
    }
    Ok(Some(RetryKey {
        key: Sha256::digest(key).into(),
        request: request.finalize().into(),
        expires_at: SystemTime::now() + REMEMBERED,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(values: &[&str], asked: &[&[u8]]) -> Result<Option<RetryKey>, u16> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("idempotency-key", value.parse().unwrap());
        }
        retry_key(&headers, asked).map_err(|error| error.kind.status().as_u16())
    }

    #[test]
    fn a_key_names_one_request() {
        assert!(key(&[], &[]).unwrap().is_none());
        let one = key(&["k"], &[b"ab", b"c"]).unwrap().unwrap();
        let other = key(&["k"], &[b"a", b"bc"]).unwrap().unwrap();
        assert_eq!(one.key, other.key);
        assert_ne!(one.request, other.request);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let long = "k".repeat(256);
        for bad in [&["a b"][..], &[""], &["a", "a"], &["schl\u{fc}ssel"], &[&long]] {
            assert_eq!(key(bad, &[]), Err(400), "{bad:?}");
        }
        assert!(key(&[&"k".repeat(255)], &[]).is_ok());
    }
}
