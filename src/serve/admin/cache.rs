//! The admin API for answers that are kept in memory.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `GET cache` | | what is kept, and what came of it |
//! | `POST cache/purge` | `{path?, prefix?, route?, tag?}` or `{all: true}` | `{purged}` |
//!
//! A copy goes if all that is said fits it. Paths are without their query, a route is `METHOD /pattern` as in
//! `/admin/api/routes`, a tag is one of the answer's `Cache-Tag`. What is under way when a purge comes is not kept either.
//! Each replica has copies of its own: purge them all.

use super::accounts::read;
use super::{Answer, json_answer};
use crate::copies::{Copies, Purge};
use crate::error::{GatewayError, Kind};
use crate::handlers::read_json;
use http::{Method, StatusCode};
use hyper::body::Incoming;
use poem_openapi::Object;
use serde_json::json;

#[derive(Object)]
struct PurgeRequest {
    path: Option<String>,
    prefix: Option<String>,
    route: Option<String>,
    tag: Option<String>,
    all: Option<bool>,
}

/// What a path under `/admin/api/` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Figures,
    Purge,
}

impl Call {
    /// Reads a whole path.
    pub(super) fn find(path: &str) -> Option<Self> {
        match path.strip_prefix("/admin/api/")? {
            "cache" => Some(Call::Figures),
            "cache/purge" => Some(Call::Purge),
            _ => None,
        }
    }

    /// The methods it answers, where `method` is none of them.
    pub(super) fn refuses(self, method: &Method) -> Option<&'static str> {
        let allow = match self {
            Call::Figures => "GET, HEAD",
            Call::Purge => "POST",
        };
        (!allow.split(", ").any(|allowed| allowed == method.as_str())).then_some(allow)
    }
}

/// What is kept.
pub(super) fn figures(copies: &Copies) -> Answer {
    let figures = copies.figures();
    let body = json!({
        "entries": figures.entries,
        "max_entries": figures.max_entries,
        "bytes": figures.bytes,
        "max_bytes": figures.max_bytes,
        "hits": figures.hits,
        "stale": figures.stale,
        "misses": figures.misses,
        "evictions": figures.evictions,
        "purged": figures.purged,
    });
    json_answer(StatusCode::OK, &body)
}

/// Forgets what the body names; `by` is who asks.
pub(super) async fn purge(copies: &Copies, by: &str, body: Incoming) -> Result<Answer, GatewayError> {
    let PurgeRequest { path, prefix, route, tag, all } = read_json(&read(body).await?, true)?;
    let what = Purge { path, prefix, route, tag };
    if what.is_everything() != (all == Some(true)) {
        return Err(GatewayError::new(
            Kind::BadRequest,
            "say what is to be forgotten by `path`, `prefix`, `route` or `tag`; or `all: true` alone",
        ));
    }
    let purged = copies.purge(&what);
    tracing::info!(by, purged, ?what, "kept answers were purged");
    Ok(json_answer(StatusCode::OK, &json!({ "purged": purged })))
}
