//! The integration tests: one binary, through the front door. Each test starts real gateways on ports of their own.
#![forbid(unsafe_code)]
#![expect(
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a harness is public to its tests, and fails by panicking"
)]

mod access;
mod accounts;
mod balance;
mod cache;
mod chat;
mod cli;
mod codes;
mod degraded;
mod described;
mod docs_page;
mod documents;
mod edge;
mod faults;
mod floods;
mod goldens;
mod grpc;
mod guides;
mod harness;
mod hostile;
mod inspect;
mod journal;
mod layering;
mod limits;
mod maintenance;
mod mirror;
mod operate;
mod proxying;
mod reload;
mod replicas;
mod resting;
mod routing;
mod sessions;
mod shedding;
mod shipped;
mod shutdown;
mod sockets;
mod split;
mod streams;
mod transcode;
mod transform;
mod tries;
mod typescript;
mod validate;
mod voice;
