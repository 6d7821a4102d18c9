//! wip
pub mod decode;
pub mod env;
pub mod node;
pub mod units;
