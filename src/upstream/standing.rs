//! Why a server takes no requests, or fewer of them: a few bits, so that a request reads all of it at once.
//!
//! Time is an argument: milliseconds since the upstream began.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

/// It failed its health checks.
pub(super) const DOWN: u8 = 1;
/// Its traffic says that it should rest.
pub(super) const EJECTED: u8 = 2;
/// It was ejected, and takes one request at a time until it has shown that it is well.
pub(super) const TRIAL: u8 = 4;
/// Somebody took it out of service.
pub(super) const DRAINED: u8 = 8;
/// It has come up not long ago and takes less than its share.
pub(super) const WARMING: u8 = 16;

/// What a share is counted in.
pub(super) const WHOLE: u64 = 1000;
/// What a server takes that has come up just now.
const FIRST: u64 = 100;
/// How long a request on trial keeps others away at most, should nobody ever say how it ended.
const TRIAL_PATIENCE: u64 = 10_000;

/// How a server stands.
#[derive(Debug, Default)]
pub(super) struct Standing {
    bits: AtomicU8,
    warming_since: AtomicU64,
    trial_until: AtomicU64,
}

impl Standing {
    /// All bits.
    pub(super) fn bits(&self) -> u8 {
        self.bits.load(Relaxed)
    }

    /// Whether any of these is set.
    pub(super) fn has(&self, bits: u8) -> bool {
        self.bits() & bits != 0
    }

    /// Sets or clears bits; whether that changed anything.
    pub(super) fn set(&self, bits: u8, on: bool) -> bool {
        let before = if on { self.bits.fetch_or(bits, Relaxed) } else { self.bits.fetch_and(!bits, Relaxed) };
        (before & bits != 0) != on
    }

    /// It came up: from now on its share grows.
    pub(super) fn warm(&self, now: u64) {
        self.warming_since.store(now, Relaxed);
        self.set(WARMING, true);
    }

    /// Ends the growing once it is over; whether it was just now.
    pub(super) fn settle(&self, now: u64, slow_start: u64) -> bool {
        self.has(WARMING) && self.share(now, slow_start) == WHOLE && self.set(WARMING, false)
    }

    /// Its part of its weight, of [`WHOLE`]: while it warms, what has passed of `slow_start` milliseconds, and never
    /// less than a tenth (as Envoy has it).
    pub(super) fn share(&self, now: u64, slow_start: u64) -> u64 {
        if !self.has(WARMING) {
            return WHOLE;
        }
        let passed = now.saturating_sub(self.warming_since.load(Relaxed));
        (passed.saturating_mul(WHOLE) / slow_start.max(1)).clamp(FIRST, WHOLE)
    }

    /// Whether nobody is on trial with it.
    pub(super) fn is_free(&self, now: u64) -> bool {
        now >= self.trial_until.load(Relaxed)
    }

    /// Takes the one place that a server on trial has; false if somebody was faster.
    pub(super) fn claim(&self, now: u64) -> bool {
        let until = self.trial_until.load(Relaxed);
        now >= until
            && self.trial_until.compare_exchange(until, now + TRIAL_PATIENCE, Relaxed, Relaxed).is_ok()
    }

    /// Gives that place back.
    pub(super) fn release(&self) {
        self.trial_until.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_grows_from_a_tenth_to_the_whole() {
        let standing = Standing::default();
        assert_eq!(standing.share(0, 30_000), WHOLE, "who was always there has it all");
        standing.warm(1_000);
        let shares = [1_000, 2_000, 16_000, 31_000, 90_000].map(|now| standing.share(now, 30_000));
        assert_eq!(shares, [100, 100, 500, 1000, 1000]);
        assert!(!standing.settle(30_999, 30_000) && standing.settle(31_000, 30_000));
        assert!(!standing.has(WARMING) && !standing.settle(31_001, 30_000));
    }

    #[test]
    fn a_trial_has_one_place() {
        let standing = Standing::default();
        assert!(standing.claim(5) && !standing.claim(6) && !standing.is_free(6));
        standing.release();
        assert!(standing.claim(7));
        assert!(standing.claim(7 + TRIAL_PATIENCE), "nobody ever said how it ended");
    }

    #[test]
    fn bits_say_whether_they_changed() {
        let standing = Standing::default();
        assert!(standing.set(DOWN, true) && !standing.set(DOWN, true));
        assert!(standing.set(DRAINED, true) && standing.set(DOWN, false) && !standing.set(DOWN, false));
        assert_eq!(standing.bits(), DRAINED);
    }
}
