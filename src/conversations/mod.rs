//! Conversations: sessions and what was said in them.
//!
//! The rules are here, HTTP is in `handlers`, rows are in `stores`. Every operation answers with a
//! [`GatewayError`](crate::error::GatewayError) that may be sent as it is. Everything belongs to an
//! [`Owner`](crate::stores::Owner); what is somebody else's is not found, in the same words as what was never there.

mod export;
mod retry;
mod sessions;

pub use export::Export;
pub use retry::IdempotencyKey;
pub use sessions::{Clock, DEFAULT_TITLE, Listing, Sessions, author_word, owner, status_word, timestamp};
