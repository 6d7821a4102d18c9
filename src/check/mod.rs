//! wip
pub mod chains;
pub mod order;
pub mod pattern;
