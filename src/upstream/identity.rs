//! What an upstream is told of a request besides what the caller sent: its id, its place in a trace, who is calling.

use crate::exchange::Exchange;
use http::{HeaderMap, HeaderName, HeaderValue};

/// The request's id.
pub static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Place in a distributed trace (W3C Trace Context).
pub static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static X_USER_ID: HeaderName = HeaderName::from_static("x-user-id");
static X_TENANT_ID: HeaderName = HeaderName::from_static("x-tenant-id");
static X_USER_ROLE: HeaderName = HeaderName::from_static("x-user-role");

/// What the upstream shall believe of this request because the gateway says so. Incoming spellings of these names are
/// gone by now. Who the caller is stands here only where a stage has found it out; what is not fit for a header was
/// refused with its token.
pub fn set_identity(headers: &mut HeaderMap, exchange: &Exchange) {
    let id = exchange.request_id();
    if headers.get(&X_REQUEST_ID).is_none_or(|value| value.as_bytes() != id.as_bytes())
        && let Ok(value) = HeaderValue::from_str(id)
    {
        headers.insert(&X_REQUEST_ID, value);
    }
    if let Some(identity) = exchange.identity() {
        let ours = [
            (&X_USER_ID, &identity.user_id),
            (&X_TENANT_ID, &identity.tenant_id),
            (&X_USER_ROLE, &identity.role),
        ];
        for (name, value) in ours.into_iter().filter(|(_, value)| !value.is_empty()) {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        }
    }
    if let Some(trace) = exchange.trace() {
        headers.insert(&TRACEPARENT, trace.traceparent());
    }
}
