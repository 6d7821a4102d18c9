//! RUN IT: from a listening socket to a request that has been looked at once.
//!
//! `accept` takes connections in, within `limits`; `tls` and `io` turn them into bytes; `connection` speaks HTTP on
//! them (with `clock` for its deadlines, `framing` for what hyper does not tell, `stream` for the answers); `intake`
//! and `path` are the one view of the request that everything behind it shares; `drain` ends it all.
pub mod accept;
mod clock;
mod connection;
pub mod drain;
mod framing;
pub mod intake;
mod io;
mod limits;
pub mod path;
mod stream;
pub mod tls;
