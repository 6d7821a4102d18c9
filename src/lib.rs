//! voicegate: a declarative API gateway.
pub mod serve;
