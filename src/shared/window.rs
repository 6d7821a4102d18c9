//! The sliding window of two counters: this window's count, and the share of the last one's that still overlaps.
//!
//! A window begins with a key's first request, not with the clock's minute: a burst on a fresh key is counted
//! exactly. Integers only, so that the answer is the same everywhere; `lua/hit.lua` does the same sums in Redis.
//! The approximation is that of Cloudflare's and nginx-like counters: requests of the last window count as if they
//! had come evenly.

use super::{Decision, Limit};
use std::time::Duration;

/// The counters of one key. Times are milliseconds; 24 bytes, because there may be ten million.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    start: u64,
    per: u32,
    current: u32,
    previous: u32,
}

impl Window {
    /// A key's first window.
    pub(super) fn begin(limit: Limit, now: u64) -> Self {
        let per = limit.per.as_millis().clamp(1, u128::from(u32::MAX / 2)) as u32;
        Window { start: now, per, current: 0, previous: 0 }
    }

    /// When it began: what was used lately began lately.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Whether nothing of it counts any more.
    pub(super) fn is_over(&self, now: u64) -> bool {
        now >= self.start + 2 * u64::from(self.per)
    }

    /// The window as it is now.
    fn at(self, now: u64) -> Self {
        let per = u64::from(self.per);
        // A clock that was set back by more than a window makes what is kept worthless.
        if self.is_over(now) || self.start > now + per {
            Window { start: now, current: 0, previous: 0, ..self }
        } else if now >= self.start + per {
            Window { start: self.start + per, current: 0, previous: self.current, ..self }
        } else {
            self
        }
    }

    /// Counts one request if it may pass. A rejected one changes nothing.
    pub(super) fn hit(&mut self, limit: u64, now: u64) -> Decision {
        let window = self.at(now);
        let limit = limit.min(u64::from(u32::MAX));
        let (per, current, previous) =
            (u64::from(window.per), u64::from(window.current), u64::from(window.previous));
        let left = per - now.saturating_sub(window.start);
        // Below 2^61: counts have 32 bits, a window's length 31.
        let used = previous * left + (current + 1) * per;
        if used > limit * per {
            let wait = if current < limit {
                // Until enough of the last window has slid out; `previous` is not 0, or it would have passed.
                left - (limit - 1 - current) * per / previous.max(1)
            } else {
                // Until the next window, and until enough of this one has slid out of that.
                left + per - (limit.saturating_sub(1) * per / current.max(1)).min(per)
            };
            return Decision {
                allowed: false,
                remaining: 0,
                reset_after: Duration::from_millis(left.max(wait)),
                retry_after: Duration::from_millis(wait),
            };
        }
        *self = Window { current: window.current + 1, ..window };
        Decision {
            allowed: true,
            remaining: (limit * per - used) / per,
            reset_after: Duration::from_millis(left),
            retry_after: Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: Limit = Limit { limit: 10, per: Duration::from_millis(1000) };

    fn burst(window: &mut Window, now: u64) -> u64 {
        (0..100).filter(|_| window.hit(LIMIT.limit, now).allowed).count() as u64
    }

    #[test]
    fn a_burst_is_exact_and_slides_out_evenly() {
        let mut window = Window::begin(LIMIT, 5);
        assert_eq!(burst(&mut window, 5), 10);
        assert_eq!(burst(&mut window, 1004), 0, "the window is not over");
        assert_eq!(burst(&mut window, 1005), 0, "all of the last window still counts");
        assert_eq!(burst(&mut window, 1505), 5, "half of it slid out");
        assert_eq!(burst(&mut window, 9999), 10);
    }

    #[test]
    fn a_decision_says_what_is_left_and_when_to_come_back() {
        let mut window = Window::begin(LIMIT, 0);
        let first = window.hit(10, 0);
        assert_eq!((first.remaining, first.reset_after), (9, Duration::from_secs(1)));
        burst(&mut window, 100);
        let rejected = window.hit(10, 400);
        assert!(!rejected.allowed);
        assert_eq!(
            rejected.retry_after,
            Duration::from_millis(700),
            "600 to the next window, and a tenth of it"
        );
        assert!(rejected.reset_after >= rejected.retry_after);
    }

    #[test]
    fn a_clock_that_is_set_back_locks_nobody_out() {
        let mut window = Window::begin(LIMIT, 100_000);
        burst(&mut window, 100_000);
        assert!(!window.hit(10, 99_900).allowed, "a little: it still counts");
        assert!(window.hit(10, 50_000).allowed, "a lot: it counts anew");
    }

    proptest! {
        /// No window of its own holds more than the limit; after the wait it names, a request passes, and not before.
        #[test]
        fn never_more_than_the_limit_and_waits_are_true(
            limit in 1u64..50,
            per in 1u64..5000,
            gaps in prop::collection::vec(0u64..800, 1..400),
        ) {
            let declared = Limit { limit, per: Duration::from_millis(per) };
            let (mut now, mut window) = (7, Window::begin(declared, 7));
            let mut passed: Vec<u64> = Vec::new();
            for gap in gaps {
                now += gap;
                let before = window;
                let decision = window.hit(limit, now);
                if decision.allowed {
                    passed.push(now);
                    let inside = passed.iter().filter(|at| **at >= window.start).count() as u64;
                    prop_assert!(inside <= limit);
                    prop_assert!(decision.remaining < limit);
                } else {
                    prop_assert_eq!(before, window, "a rejected request is not counted");
                    let wait = decision.retry_after.as_millis() as u64;
                    prop_assert!(wait > 0);
                    let mut early = window;
                    prop_assert!(!early.hit(limit, now + wait - 1).allowed);
                    let mut late = window;
                    prop_assert!(late.hit(limit, now + wait).allowed);
                }
            }
        }
    }
}
