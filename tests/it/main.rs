//! The integration tests: one binary, through the front door. Each test starts real gateways on ports of their own.
#![forbid(unsafe_code)]
#![expect(
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a harness is public to its tests, and fails by panicking"
)]

mod access;
mod accounts;
mod chat;
mod cli;
mod codes;
mod docs_page;
mod edge;
mod goldens;
mod grpc;
mod guides;
mod harness;
mod hostile;
mod inspect;
mod journal;
mod layering;
mod limits;
mod operate;
mod proxying;
mod reload;
mod replicas;
mod routing;
mod sessions;
mod shipped;
mod shutdown;
mod sockets;
mod streams;
mod transcode;
mod transform;
mod typescript;
mod validate;
mod voice;
