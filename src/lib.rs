//! voicegate: a declarative API gateway.
#![forbid(unsafe_code)]

pub mod accounts;
pub mod check;
pub mod cli;
pub mod compile;
pub mod conversations;
pub mod copies;
pub mod demo;
pub mod diag;
pub mod endpoint;
pub mod error;
pub mod exchange;
pub mod expr;
pub mod grpc;
pub mod handlers;
pub mod identity;
pub mod manifest;
pub mod multipart;
pub mod openapi;
pub mod path;
pub mod protos;
pub mod serve;
pub mod settings;
pub mod shared;
pub mod shed;
pub mod sse;
pub mod stages;
pub mod state;
pub mod stores;
pub mod targets;
pub mod telemetry;
pub mod tokens;
pub mod units;
pub mod upstream;
pub mod ws;
