//! How a try at a server ended, as whatever judges servers and upstreams sees it.

use crate::error::Kind;
use std::time::Duration;

/// How a try at a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Its response's head came. A call's status is the one its gRPC status stands for, once that is known.
    Answered {
        /// The status, as HTTP knows it.
        status: u16,
        /// Since the try began.
        took: Duration,
    },
    /// No acceptable answer came, and the server's side is to blame.
    Failed(Kind),
    /// Nobody can say: the caller left, or its own body was at fault.
    Abandoned,
}
