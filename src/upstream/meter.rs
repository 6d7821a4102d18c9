//! What happened at an upstream, in numbers: the one place where requests and streams are counted.

use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one upstream. Only ever added to, apart from `streams_open`.
        #[derive(Debug, Default)]
        pub struct Meter { $($(#[$doc])* pub $name: AtomicU64,)* }

        /// The counters at one moment.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
        pub struct Figures { $($(#[$doc])* pub $name: u64,)* }

        impl Meter {
            /// The counters now.
            pub fn snapshot(&self) -> Figures {
                Figures { $($name: self.$name.load(Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Requests taken on.
    requests,
    /// Connections opened.
    connects,
    /// Requests that went over a connection used before.
    reused,
    /// Requests sent again because a connection used before had died.
    resent,
    /// No connection could be opened.
    unreachable,
    /// No connection became free in time.
    saturated,
    /// The connection broke before an answer.
    reset,
    /// The answer was not acceptable HTTP.
    bad_responses,
    /// No answer in time.
    timeouts,
    /// The answer broke off, or a deadline cut it.
    broken,
    /// Event streams open now.
    streams_open,
    /// Event streams that ended as the upstream ended them.
    streams_complete,
    /// Event streams whose caller left.
    streams_client_left,
    /// Event streams that the upstream broke off.
    streams_upstream_broke,
    /// Event streams that a limit ended.
    streams_limited,
    /// Event streams ended because the gateway went down.
    streams_shutdown,
}

impl Meter {
    /// Counts one.
    pub(super) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }
}
