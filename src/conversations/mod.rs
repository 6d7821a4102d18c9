//! Conversations: sessions, what was said in them, and answers on their way.
//!
//! The rules are here, HTTP is in `handlers`, rows are in `stores`. Every operation answers with a [`GatewayError`]
//! that may be sent as it is. Everything belongs to an [`Owner`](crate::stores::Owner); what is somebody else's is not
//! found, in the same words as what was never there.
//!
//! `turns` holds every turn of this process and speaks with the other replicas, `turn` brings one home, `log` keeps
//! its events, `reply` gathers what was said, `tail` is what one reader sees of it.

mod event;
mod export;
mod log;
mod mirror;
mod reply;
mod retry;
mod sessions;
mod tail;
mod turn;
mod turns;

pub use event::ChatEvent;
pub use export::Export;
pub use retry::IdempotencyKey;
pub use sessions::{Clock, DEFAULT_TITLE, Listing, Sessions, author_word, owner, status_word, timestamp};
pub use tail::Tail;
pub use turn::{Answer, TurnLimits};
pub use turns::{Question, Stopped, Turns};

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
