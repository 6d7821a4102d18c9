//! Conversations: questions, their answers, and what becomes of them. Rules without HTTP.
//!
//! `turns` holds every turn of this process and speaks with the other replicas, `turn` brings one home, `log` keeps its events,
//! `reply` gathers what was said, `tail` is what one reader sees of it.

mod log;
mod reply;
mod tail;
mod turn;
mod turns;

pub use tail::Tail;
pub use turn::{Answer, TurnLimits};
pub use turns::{Question, Stopped, TurnSettings, Turns};

use crate::error::{GatewayError, Kind};
use crate::stores::StoreError;

/// A store's failure as the caller is told: 404 where the row is not there or not the caller's, 503 where the store is
/// away, 500 otherwise; the cause is logged, never sent.
fn fault(error: StoreError) -> GatewayError {
    match error {
        StoreError::NotFound => Kind::NotFound.into(),
        StoreError::Unavailable(_) => {
            tracing::warn!(%error, "conversations cannot reach the store");
            Kind::StoreUnavailable.into()
        }
        _ => {
            tracing::error!(%error, "conversations failed at the store");
            Kind::Internal.into()
        }
    }
}
