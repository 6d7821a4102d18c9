//! How fast a caller may send: a token bucket that reads the clock only when it runs dry.

use std::time::Duration;
use tokio::time::Instant;

/// So much a second, and as much at once.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    rate: u64,
    left: u64,
    /// When it was last filled.
    filled: Instant,
}

impl Pace {
    /// Full.
    pub fn new(rate: u64, now: Instant) -> Self {
        Pace { rate, left: rate, filled: now }
    }

    /// Takes so much; whether that was within the pace. `now` is asked only where the rest of the last second does not do.
    pub fn take(&mut self, count: u64, now: impl FnOnce() -> Instant) -> bool {
        if let Some(left) = self.left.checked_sub(count) {
            self.left = left;
            return true;
        }
        let now = now();
        let nanos = now.saturating_duration_since(self.filled).min(Duration::from_secs(1)).as_nanos();
        let earned = (u128::from(self.rate) * nanos / 1_000_000_000) as u64;
        self.filled = now;
        match (self.left + earned).min(self.rate).checked_sub(count) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seconds_worth_at_once_and_then_as_it_is_earned() {
        let begun = Instant::now();
        let at = |millis| move || begun + Duration::from_millis(millis);
        let mut pace = Pace::new(100, begun);
        assert!(pace.take(100, || panic!("the clock is not read")));
        assert!(!pace.take(1, at(0)));
        assert!(pace.take(50, at(500)));
        assert!(!pace.take(51, at(1000)));
        assert!(pace.take(100, at(60_000)), "no more than a second's worth is saved up");
        assert!(!pace.take(1, at(60_000)));
    }

    #[test]
    fn who_keeps_to_the_pace_never_meets_it() {
        let begun = Instant::now();
        let mut pace = Pace::new(50, begun);
        for step in 0..1000u64 {
            assert!(pace.take(1, || begun + Duration::from_millis(step * 20)), "{step}");
        }
    }
}
