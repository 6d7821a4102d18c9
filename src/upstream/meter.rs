//! What happens to an upstream's connections, in numbers. Requests, by result and server, and streams are counted in
//! `telemetry`.

use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one upstream. Only ever added to.
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
    /// Connections opened.
    connects,
    /// Requests that went over a connection used before.
    reused,
    /// Requests sent again because a connection used before had died.
    resent,
    /// The answer broke off, or a deadline cut it.
    broken,
}

impl Meter {
    /// Counts one.
    pub(super) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }
}
