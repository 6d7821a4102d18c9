//! Event streams (server-sent events; WHATWG HTML, section 9.2): their limits, where an event ends, and what the
//! gateway itself says in one.

mod notice;
mod position;
mod split;
mod times;

pub use notice::{Broken, Notice, Over};
pub use position::Position;
pub use split::{Splitter, fields};
pub use times::StreamTimes;

use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

static X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Keeps a connection alive that has nothing to say.
pub const HEARTBEAT: &str = ": heartbeat\n\n";
/// The upstream broke off.
pub const INTERRUPTED: &str =
    "event: error\ndata: {\"type\":\"error\",\"code\":\"upstream_interrupted\"}\n\n";
/// No event came for too long.
pub const IDLE: &str = "event: error\ndata: {\"type\":\"error\",\"code\":\"stream_idle\"}\n\n";
/// The stream lasted too long.
pub const TOO_LONG: &str = "event: error\ndata: {\"type\":\"error\",\"code\":\"stream_too_long\"}\n\n";
/// The gateway goes down.
pub const SHUTTING_DOWN: &str = "event: error\ndata: {\"type\":\"error\",\"code\":\"shutting_down\"}\n\n";

/// The caller's token has expired: it may come back with another.
pub const TOKEN_EXPIRED: &str = "event: reauth\ndata: {\"type\":\"reauth\",\"code\":\"token_expired\"}\n\n";
/// The caller's token was revoked: it may come back after another login.
pub const TOKEN_REVOKED: &str = "event: reauth\ndata: {\"type\":\"reauth\",\"code\":\"token_revoked\"}\n\n";

/// Whether an event is one that the gateway itself said.
pub fn is_notice(event: &[u8]) -> bool {
    [INTERRUPTED, IDLE, TOO_LONG, SHUTTING_DOWN, TOKEN_EXPIRED, TOKEN_REVOKED]
        .iter()
        .any(|notice| notice.as_bytes() == event)
}

/// Headers that keep everybody on the way from holding the stream back.
pub fn set_headers(headers: &mut HeaderMap) {
    headers.remove(CONTENT_LENGTH);
    headers.insert(&X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    if !headers.contains_key(CACHE_CONTROL) {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    }
}

/// Whether a response's head announces an event stream whose bytes can be read here: not a coded one.
pub fn is_event_stream(status: StatusCode, headers: &HeaderMap) -> bool {
    let essence = headers.get(CONTENT_TYPE).and_then(|value| value.as_bytes().split(|b| *b == b';').next());
    let coded = headers.get(CONTENT_ENCODING).is_some_and(|coding| coding.as_bytes() != b"identity");
    status.is_success()
        && essence.is_some_and(|essence| essence.trim_ascii().eq_ignore_ascii_case(b"text/event-stream"))
        && !coded
}
