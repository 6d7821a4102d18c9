//! voicegate: a declarative API gateway.
#![forbid(unsafe_code)]

pub mod demo;
