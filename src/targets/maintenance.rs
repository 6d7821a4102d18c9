//! `maintenance:`, what a route or a version answers while it is switched off.
//!
//! Not a target itself: the table answers in a route's place, before anybody is asked who they are, and behind what
//! only looks on (`access_log`, `cors`, `request_id` …), so that browsers can read the answer and operators see it.

use super::Answer;
use crate::diag::{Code, Diagnostic, Diagnostics};
use crate::manifest::Spanned;
use crate::manifest::model::{Maintenance, Route};
use crate::state::maintenance::{Closed, RETRY, Reply};
use std::sync::Arc;

/// Whether a handler answers whatever is switched off: the gateway's own, by which others see that it is alive.
pub fn stays_up(handler: &str) -> bool {
    handler.starts_with("gateway.") || handler.starts_with("admin.")
}

/// Is it sound? Reports every fault.
pub fn check(decl: &Spanned<Maintenance>, out: &mut Diagnostics) -> Option<Arc<Closed>> {
    let reply = match &decl.respond {
        None => None,
        Some(respond) => {
            let (status, headers, body) = Answer::check_with(respond, 503, out)?.into_parts();
            Some(Reply { status, headers, body })
        }
    };
    let retry_after = decl.retry_after.map_or(RETRY, |after| after.0);
    Some(Arc::new(Closed { reply, retry_after }))
}

/// What answers instead of a route: what it says itself, else what its version says, which was checked before.
pub fn of_route(route: &Route, version: Option<&Arc<Closed>>, out: &mut Diagnostics) -> Option<Arc<Closed>> {
    let handler = route.handler.as_ref().filter(|name| stays_up(&name.value));
    match (&route.maintenance, handler) {
        (Some(own), Some(handler)) => {
            out.push(
                Diagnostic::error(
                    Code::MAINTENANCE,
                    own.span,
                    format!("`{}` answers whatever is switched off", handler.value),
                )
                .help("remove it here; a route that shall not be served is removed"),
            );
            None
        }
        (Some(own), None) => check(own, out),
        (None, Some(_)) => None,
        (None, None) => version.cloned(),
    }
}
