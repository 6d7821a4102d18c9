//! How the database and Redis are, for `/health`: a task asks them every few seconds and keeps the answer, so that
//! whoever asks for health never waits for them. `/livez` does not ask at all.
//!
//! Redis is there only where one is configured. Without either the gateway goes on proxying, so what is away makes it
//! degraded, not dead.

use crate::shared::AnyShared;
use crate::state::{CheckState, HealthSource};
use crate::stores::AnyStore;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// How often they are asked.
pub(super) const EVERY: Duration = Duration::from_secs(2);

/// What was answered last.
pub(super) struct Pulse {
    store: AnyStore,
    shared: AnyShared,
    database: AtomicU8,
    redis: AtomicU8,
    has_redis: bool,
}

const UNKNOWN: u8 = 0;
const HEALTHY: u8 = 1;
const UNHEALTHY: u8 = 2;

impl Pulse {
    pub(super) fn of(store: AnyStore, shared: AnyShared) -> Self {
        let has_redis = shared.backend() == "redis";
        Pulse { store, shared, database: AtomicU8::new(UNKNOWN), redis: AtomicU8::new(UNKNOWN), has_redis }
    }

    /// Asks for ever, so often.
    pub(super) async fn follow(&self, every: Duration) {
        let mut ticks = tokio::time::interval(every);
        // What took long is not made up for.
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.ask().await;
        }
    }

    /// Asks once: a second at most.
    pub(super) async fn ask(&self) {
        let database = async {
            self.database.store(answer(self.store.ping().await.is_ok()), Ordering::Relaxed);
        };
        let redis = async {
            if self.has_redis {
                self.redis.store(answer(self.shared.ping().await.is_ok()), Ordering::Relaxed);
            }
        };
        tokio::join!(database, redis);
    }
}

fn answer(good: bool) -> u8 {
    if good { HEALTHY } else { UNHEALTHY }
}

fn state(answer: &AtomicU8) -> CheckState {
    match answer.load(Ordering::Relaxed) {
        HEALTHY => CheckState::Healthy,
        UNHEALTHY => CheckState::Unhealthy,
        _ => CheckState::Unknown,
    }
}

impl HealthSource for Pulse {
    fn checks(&self) -> Vec<(String, CheckState)> {
        let database = Some(("database".to_owned(), state(&self.database)));
        let redis = self.has_redis.then(|| ("redis".to_owned(), state(&self.redis)));
        database.into_iter().chain(redis).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::testing::Fake;
    use crate::shared::{Memory, SharedLimits};
    use std::sync::Arc;

    #[tokio::test]
    async fn what_is_away_shows_and_what_comes_back_too() {
        let store = Arc::new(Fake::default());
        let pulse = Arc::new(Pulse::of(store.clone(), Arc::new(Memory::default())));
        assert_eq!(pulse.checks(), [("database".to_owned(), CheckState::Unknown)], "not asked yet");
        let asking = pulse.clone();
        tokio::spawn(async move { asking.follow(Duration::from_millis(1)).await });
        for (away, wanted) in
            [(false, CheckState::Healthy), (true, CheckState::Unhealthy), (false, CheckState::Healthy)]
        {
            store.away.store(away, Ordering::Relaxed);
            let told = async {
                while pulse.checks() != [("database".to_owned(), wanted)] {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            assert!(tokio::time::timeout(Duration::from_secs(10), told).await.is_ok(), "{wanted:?}");
        }
    }

    #[tokio::test]
    async fn redis_shows_where_it_is_configured() {
        let limits = SharedLimits::default();
        let away = crate::shared::open(Some("redis://127.0.0.1:1"), &limits).await.unwrap();
        let names: Vec<_> =
            Pulse::of(Arc::new(Fake::default()), away).checks().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["database", "redis"]);
    }
}
