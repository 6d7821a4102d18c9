//! wip
pub mod router;
