//! The arithmetic of lockouts, the same for every backend: they load a row, ask this, and keep what it says.

use super::rows::{millis, time};
use super::{LockState, folded};
use sha2::{Digest, Sha256};
use std::time::{Duration, SystemTime};

/// Failed logins of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ledger {
    /// When it failed, oldest first; milliseconds since 1970. Never more than the limit.
    failed_at: Vec<i64>,
    /// How long a failure counts.
    window_ms: i64,
    /// End of the lock.
    locked_until: Option<i64>,
}

impl Ledger {
    /// From a row: times are 8 bytes each, little endian.
    pub(super) fn from_row(failed_at: &[u8], window_ms: i64, locked_until: Option<i64>) -> Self {
        let times = failed_at.as_chunks::<8>().0;
        Ledger {
            failed_at: times.iter().map(|time| i64::from_le_bytes(*time)).collect(),
            window_ms,
            locked_until,
        }
    }

    /// The times, as a row keeps them.
    pub(super) fn times(&self) -> Vec<u8> {
        self.failed_at.iter().flat_map(|time| time.to_le_bytes()).collect()
    }

    /// How long a failure counts, in milliseconds.
    pub(super) fn window_ms(&self) -> i64 {
        self.window_ms
    }

    /// End of the lock.
    pub(super) fn locked_until(&self) -> Option<i64> {
        self.locked_until
    }

    /// From when on the row says nothing any more.
    pub(super) fn forget_at(&self) -> i64 {
        // When a lock is over, what led to it is forgotten with it.
        let counts_until =
            self.locked_until.or(self.failed_at.last().map(|last| last.saturating_add(self.window_ms)));
        counts_until.map_or(i64::MIN, |until| until.saturating_add(1))
    }

    /// How the name stands now.
    pub(super) fn state(mut self, now: SystemTime) -> LockState {
        self.settle(millis(now));
        self.standing()
    }

    /// Counts a failure. At `limit` failures within `window` the name is locked for `lock_for`; 0 never locks. While
    /// it is locked nothing is counted, so that nobody can be kept out longer by failing on; when the lock is over,
    /// counting begins anew.
    pub(super) fn fail(
        &mut self,
        limit: u32,
        window: Duration,
        lock_for: Duration,
        now: SystemTime,
    ) -> LockState {
        let now = millis(now);
        self.window_ms = duration_ms(window);
        self.settle(now);
        if self.locked_until.is_some() {
            return self.standing();
        }
        self.failed_at.push(now);
        self.failed_at.sort_unstable();
        // More than the limit are never needed; without one, as many as anyone would look at.
        let keep = if limit == 0 { 100 } else { limit as usize };
        let surplus = self.failed_at.len().saturating_sub(keep);
        self.failed_at.drain(..surplus);
        if limit > 0 && self.failed_at.len() >= limit as usize {
            self.locked_until = Some(now.saturating_add(duration_ms(lock_for)));
        }
        self.standing()
    }

    /// Drops what does not count any more.
    fn settle(&mut self, now: i64) {
        match self.locked_until {
            Some(until) if until <= now => {
                self.locked_until = None;
                self.failed_at.clear();
            }
            // What led to the lock counts as long as it lasts.
            Some(_) => {}
            None => self.failed_at.retain(|time| now.saturating_sub(*time) <= self.window_ms),
        }
    }

    fn standing(&self) -> LockState {
        LockState { failures: self.failed_at.len() as u32, locked_until: self.locked_until.map(time) }
    }
}

/// What a name is counted under: a hash of the tenant and the folded name.
pub(super) fn name_hash(tenant: &str, name: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    // The length keeps ("a", "bc") apart from ("ab", "c").
    hash.update((tenant.len() as u64).to_le_bytes());
    hash.update(tenant);
    hash.update(folded(name));
    hash.finalize().into()
}

fn duration_ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tenants_and_names_do_not_run_together() {
        assert_ne!(name_hash("a", "bc"), name_hash("ab", "c"));
        assert_eq!(name_hash("a", "ÄB"), name_hash("a", "äb"));
    }

    proptest! {
        /// Whatever happens when: locked exactly when `limit` failures fell into one window since the last lock.
        #[test]
        fn agrees_with_a_plain_count(
            steps in prop::collection::vec(0_i64..4_000, 1..60),
            limit in 1_u32..6,
            window in 0_u64..6_000,
            lock_for in 1_u64..6_000,
        ) {
            let mut ledger = Ledger::from_row(&[], 0, None);
            let mut counted: Vec<i64> = Vec::new();
            let mut locked_until = i64::MIN;
            let mut now = 1_700_000_000_000;
            for step in steps {
                now += step;
                if now >= locked_until {
                    if locked_until > i64::MIN {
                        counted.clear();
                        locked_until = i64::MIN;
                    }
                    counted.push(now);
                    if counted.iter().filter(|at| now - **at <= window as i64).count() >= limit as usize {
                        locked_until = now + lock_for as i64;
                    }
                }
                let state = ledger.fail(
                    limit,
                    Duration::from_millis(window),
                    Duration::from_millis(lock_for),
                    time(now),
                );
                prop_assert_eq!(state.locked_until, (locked_until > i64::MIN).then(|| time(locked_until)));
                let kept = Ledger::from_row(&ledger.times(), ledger.window_ms(), ledger.locked_until());
                prop_assert_eq!(&kept, &ledger);
                // Forgetting the row when it says so changes nothing.
                let forgotten = LockState { failures: 0, locked_until: None };
                prop_assert_eq!(kept.clone().state(time(ledger.forget_at())), forgotten);
                // A moment before the failure itself says nothing.
                let just_before = ledger.forget_at() - 2;
                if just_before >= now {
                    prop_assert_ne!(kept.state(time(just_before)), forgotten);
                }
            }
        }
    }
}
