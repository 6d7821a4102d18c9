//! voicegate: a declarative API gateway.
#![forbid(unsafe_code)]

pub mod diag;
pub mod manifest;
