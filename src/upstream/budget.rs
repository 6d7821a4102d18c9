//! How many retries an upstream may be sent: a share of its requests, so that who is down is not kept down.
//!
//! Counted over the last ten seconds: retries are at most the share of the requests, or the floor where that is more, so
//! that little traffic is retried too. Time is an argument: milliseconds since the upstream began.

use super::window::{Counts, Window};

/// Over which is counted, in milliseconds.
const WINDOW: u64 = 10_000;

/// A budget.
#[derive(Debug)]
pub(super) struct Budget {
    share: f64,
    /// Retries that are always allowed within the window.
    floor: u64,
    window: Window,
}

impl Budget {
    /// `share` of the requests, and at least `per_second`.
    pub(super) fn new(share: f64, per_second: u32) -> Self {
        Budget { share, floor: u64::from(per_second) * WINDOW / 1000, window: Window::new(WINDOW) }
    }

    /// Counts a request.
    pub(super) fn request(&self, now: u64) {
        self.window.add(now, Counts([1, 0, 0]));
    }

    /// Takes a retry, if one is left.
    pub(super) fn take(&self, now: u64) -> bool {
        self.window.add_if(now, Counts([0, 1, 0]), |Counts([requests, retries, _])| {
            let allowed = ((requests as f64 * self.share) as u64).max(self.floor);
            retries < allowed
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn retries_are_a_share_of_the_requests() {
        let budget = Budget::new(0.2, 0);
        assert!(!budget.take(0));
        (0..10).for_each(|_| budget.request(0));
        assert!(budget.take(0) && budget.take(5000) && !budget.take(5000));
        assert!(!budget.take(10_000), "what allowed them is forgotten");
    }

    #[test]
    fn little_traffic_may_be_retried_too() {
        let budget = Budget::new(0.2, 1);
        budget.request(0);
        assert_eq!((0..20).filter(|_| budget.take(0)).count(), 10);
        assert!(!budget.take(9_999) && budget.take(10_000));
    }

    #[test]
    fn threads_do_not_overdraw_it() {
        let budget = Budget::new(0.25, 0);
        (0..4000).for_each(|_| budget.request(0));
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..2000).filter(|_| budget.take(0)).count())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 1000);
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_list(steps in proptest::collection::vec((0u64..2000, proptest::bool::ANY), 1..300)) {
            let budget = Budget::new(0.2, 1);
            let (mut requests, mut retries, mut now) = (Vec::new(), Vec::new(), 0u64);
            for (wait, retry) in steps {
                now += wait;
                let recent = |list: &Vec<u64>| list.iter().filter(|at| now / 1000 - *at / 1000 < 10).count();
                if retry {
                    let allowed = (recent(&requests) as f64 * 0.2) as usize;
                    let expected = recent(&retries) < allowed.max(10);
                    prop_assert_eq!(budget.take(now), expected);
                    if expected {
                        retries.push(now);
                    }
                } else {
                    budget.request(now);
                    requests.push(now);
                }
            }
        }
    }
}
