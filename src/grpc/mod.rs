//! gRPC methods for callers that speak JSON: how a request becomes a message and a message an answer.
//!
//! [`Call`] is a route bound to a method, worked out when the manifest is loaded; per request it decodes once and encodes
//! once. [`json`] maps messages, [`frame`] puts them on the wire, [`split`] takes a body of many JSON values apart, and
//! [`status`] says what a failed call means in HTTP. Nothing here sends anything.

mod bind;
mod call;
mod comments;
pub mod frame;
pub mod json;
pub mod schema;
pub mod split;
pub mod status;
#[cfg(test)]
pub(crate) mod testing;
pub mod wire;

pub use call::{Address, At, Call, Problem, Wanted};
