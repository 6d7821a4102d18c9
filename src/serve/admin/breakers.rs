//! The admin API for circuit breakers.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `GET breakers` | | `{breakers: [{upstream, target, state, opens_in_ms, requests, failed, slow}]}` |
//! | `POST breakers/reset` | `{upstream, target?}` | `{closed}`: how many are closed now; 404 if there is none |

use super::accounts::read;
use super::{Answer, json_answer};
use crate::error::{GatewayError, Kind};
use crate::handlers::read_json;
use crate::upstream::Registry;
use http::StatusCode;
use hyper::body::Incoming;
use poem_openapi::Object;
use serde_json::json;

/// Shows them.
pub(super) const LIST: &str = "/admin/api/breakers";
/// Closes them, whatever they counted.
pub(super) const RESET: &str = "/admin/api/breakers/reset";

#[derive(Object)]
struct ResetRequest {
    upstream: String,
    /// `host:port`; without, the upstream's own and those of all its targets.
    target: Option<String>,
}

pub(super) fn list(upstreams: &Registry) -> Answer {
    json_answer(StatusCode::OK, &json!({ "breakers": upstreams.breakers() }))
}

pub(super) async fn reset(upstreams: &Registry, by: &str, body: Incoming) -> Result<Answer, GatewayError> {
    let ResetRequest { upstream, target } = read_json(&read(body).await?, true)?;
    let closed = upstreams.reset_breakers(&upstream, target.as_deref());
    if closed == 0 {
        return Err(GatewayError::new(Kind::NotFound, "no upstream or target of this name has a breaker"));
    }
    tracing::warn!(upstream, target, by, "breakers were closed by the admin API");
    Ok(json_answer(StatusCode::OK, &json!({ "closed": closed })))
}
