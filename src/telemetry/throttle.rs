//! Keeps a log readable when every request fails: one line a second, with the number of those left out.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Time between two lines.
const PAUSE: Duration = Duration::from_secs(1);

/// Lets one line through a second.
#[derive(Debug)]
pub struct Throttle {
    born: Instant,
    /// Milliseconds after birth at which the next line may be written.
    next: AtomicU64,
    left_out: AtomicU64,
}

impl Default for Throttle {
    fn default() -> Self {
        Throttle { born: Instant::now(), next: AtomicU64::new(0), left_out: AtomicU64::new(0) }
    }
}

impl Throttle {
    /// Whether to write a line now: then the number of lines that were left out since the last.
    pub fn pass(&self) -> Option<u64> {
        self.pass_at(self.born.elapsed())
    }

    fn pass_at(&self, age: Duration) -> Option<u64> {
        let now = age.as_millis() as u64;
        let next = self.next.load(Relaxed);
        let mine = now >= next
            && self.next.compare_exchange(next, now + PAUSE.as_millis() as u64, Relaxed, Relaxed).is_ok();
        if mine {
            return Some(self.left_out.swap(0, Relaxed));
        }
        self.left_out.fetch_add(1, Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_with_a_count() {
        let throttle = Throttle::default();
        let at = |millis| throttle.pass_at(Duration::from_millis(millis));
        assert_eq!(
            [at(0), at(1), at(999), at(1000), at(1001), at(5000)],
            [Some(0), None, None, Some(2), None, Some(1)]
        );
    }
}
