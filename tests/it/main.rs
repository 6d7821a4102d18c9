//! The integration tests: one binary, through the front door. Each test starts real gateways on ports of their own.
#![forbid(unsafe_code)]

mod access;
mod accounts;
mod cli;
mod goldens;
mod harness;
mod layering;
mod operate;
mod proxying;
mod reload;
mod routing;
mod shipped;
mod shutdown;
mod streams;
