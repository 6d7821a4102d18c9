//! `Idempotency-Key`: a caller's name for one request, so that a retry does not do it twice.
//!
//! After draft-ietf-httpapi-idempotency-key-header: the value is the caller's, opaque, and kept as a hash only. A
//! retry gets what came of the first; the same key with another request is refused with 422.

use crate::error::{FieldFault, GatewayError, Kind};
use crate::stores::{Once, RetryKey};
use http::HeaderMap;
use sha2::{Digest, Sha256};
use std::time::SystemTime;

/// Longest key.
const LONGEST: usize = 255;

/// A caller's name for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdempotencyKey([u8; 32]);

impl IdempotencyKey {
    /// The key that a request carries, if any.
    ///
    /// # Errors
    /// 400 where it is not 1 to 255 visible ASCII characters, or given more than once: going on without it would do
    /// twice what the caller wants once.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, GatewayError> {
        let mut given = headers.get_all("idempotency-key").iter();
        let Some(key) = given.next() else { return Ok(None) };
        let key = key.as_bytes();
        let good = (1..=LONGEST).contains(&key.len()) && key.iter().all(u8::is_ascii_graphic);
        if !good || given.next().is_some() {
            return Err(GatewayError::invalid(vec![FieldFault::new(
                "",
                "idempotency_key",
                "the header `Idempotency-Key` must be one value of 1 to 255 visible ASCII characters",
                "请求头 `Idempotency-Key` 须为 1-255 个可见 ASCII 字符",
            )]));
        }
        Ok(Some(IdempotencyKey(Sha256::digest(key).into())))
    }

    /// As the store keeps it. `request` is all that makes the request what it is.
    pub fn for_request(self, request: &[&str], expires_at: SystemTime) -> RetryKey {
        let mut hash = Sha256::new();
        for part in request {
            // The length keeps ("a", "bc") apart from ("ab", "c").
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        RetryKey { key: self.0, request: hash.finalize().into(), expires_at }
    }

    /// What came of a request that may be a retry.
    ///
    /// # Errors
    /// 422 `idempotency_key_reused`.
    pub fn outcome<T>(once: Once<T>) -> Result<T, GatewayError> {
        match once {
            Once::Done(it) | Once::Before(it) => Ok(it),
            Once::Mismatch => Err(Kind::IdempotencyKeyReused.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn key(values: &[&[u8]]) -> Result<Option<IdempotencyKey>, String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("idempotency-key", HeaderValue::from_bytes(value).unwrap());
        }
        IdempotencyKey::of(&headers).map_err(|error| error.errors[0].code.to_owned())
    }

    #[test]
    fn a_key_is_one_visible_word() {
        assert_eq!(key(&[]), Ok(None));
        assert!(key(&[b"\"8e03978e-40d5\""]).unwrap().is_some());
        assert!(key(&[&[b'~'; 255]]).unwrap().is_some());
        assert_ne!(key(&[b"a"]), key(&[b"b"]));
        for bad in [&[&b""[..]][..], &[&[b'a'; 256]], &[b"a b"], &["ключ".as_bytes()], &[b"a", b"a"]] {
            assert_eq!(key(bad), Err("idempotency_key".to_owned()), "{bad:?}");
        }
    }

    #[test]
    fn requests_do_not_run_together() {
        let key = key(&[b"k"]).unwrap().unwrap();
        let at = SystemTime::UNIX_EPOCH;
        assert_eq!(key.for_request(&["a", "b"], at), key.for_request(&["a", "b"], at));
        assert_ne!(key.for_request(&["a", "bc"], at), key.for_request(&["ab", "c"], at));
    }
}
