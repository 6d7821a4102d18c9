//! One answer, whole, and how long it is good for.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An answer as it came, in one piece.
#[derive(Debug, Clone)]
pub struct Copy {
    /// Its status.
    pub status: StatusCode,
    /// Its headers, without those that belong to a connection or to one exchange only.
    pub headers: HeaderMap,
    /// Its body. Owns its memory: no piece of a larger buffer.
    pub body: Bytes,
    /// Names of the request's headers that it depends on (`Vary`), lower case and in order.
    pub vary: Arc<[HeaderName]>,
    /// Path of the request, for purging. Not its query, which may hold what nobody should read.
    pub path: Box<str>,
    /// The route, `METHOD /pattern`, for purging and figures.
    pub route: Arc<str>,
    /// When it came.
    pub at: Instant,
    /// How old it was then: the time it had spent in caches before this one.
    pub age: Duration,
    /// How long from then on it is fresh.
    pub fresh: Duration,
    /// How long after that it may be given out while a new one is fetched.
    pub stale: Duration,
}

/// What a copy is counted with beside its texts.
const OVERHEAD: usize = 512;

impl Copy {
    /// Takes the body out of whatever buffer it came in.
    pub fn own(body: &[u8]) -> Bytes {
        Bytes::from(Box::<[u8]>::from(body))
    }

    /// Whether it may be given out as it is.
    pub fn is_fresh(&self, now: Instant) -> bool {
        self.since(now) < self.fresh
    }

    /// Whether it may be given out while a new one is fetched.
    pub fn may_be_stale(&self, now: Instant) -> bool {
        self.since(now) < self.fresh + self.stale
    }

    /// How long it has been here.
    pub fn since(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.at)
    }

    /// Its age (RFC 9111, section 4.2.3).
    pub fn age(&self, now: Instant) -> Duration {
        self.age + self.since(now)
    }

    /// Seconds that are left of its freshness; negative when it is stale.
    pub fn left(&self, now: Instant) -> i64 {
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        seconds(self.fresh) - seconds(self.since(now))
    }

    /// Whether a server can be asked if it is still good.
    pub fn has_validator(&self) -> bool {
        self.headers.contains_key(header::ETAG) || self.headers.contains_key(header::LAST_MODIFIED)
    }

    /// Bytes that it is counted with.
    pub fn size(&self) -> usize {
        let headers: usize =
            self.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 64).sum();
        self.body.len() + headers + self.path.len() + OVERHEAD
    }
}

/// An age as `Age` says it: whole seconds.
pub fn age_value(age: Duration) -> HeaderValue {
    HeaderValue::from(age.as_secs())
}
