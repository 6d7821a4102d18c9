//! RUN IT: from a listening socket to a request that has been looked at once, and the table that answers it.
//!
//! `accept` takes connections in, within `limits`; `tls` and `io` turn them into bytes; `connection` speaks HTTP on
//! them (with `clock` for its deadlines, `framing` for what hyper does not tell, `stream` for the answers); `intake`
//! and [`crate::path`] are the one view of the request that everything behind it shares; `drain` ends it all.
//! [`gateway`] answers callers from the [`live`] table, which [`watch`](mod@watch) keeps up to date; [`admin`] is the
//! operators' own door; `pulse` asks how the stores are, `memory` how much is in use, `sweep` removes rows that are over. [`run`] puts them together.

pub mod accept;
pub mod admin;
mod body;
mod client;
mod clock;
mod connection;
pub mod drain;
mod framing;
pub mod gateway;
pub mod intake;
mod io;
pub mod limits;
pub mod live;
mod memory;
mod pulse;
pub mod run;
mod stream;
mod sweep;
pub mod tls;
pub mod watch;
