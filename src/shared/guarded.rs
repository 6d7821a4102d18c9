//! What stands between the gateway and a shared state that may go away (SECURITY rule 17).
//!
//! While the backend does not answer, this process decides alone: limits count here, limits that guard credentials
//! with half their number, slots are this process's own. A failure opens the circuit: from then on nobody waits for
//! the backend; a task asks it once a second and closes the circuit when it answers. So a backend that hangs costs
//! each request that was under way one deadline, and later ones nothing. Publishing fails meanwhile: who tells of
//! revocations has the database for that. Event logs and notes fail too: what only this replica knew would be of no
//! use to another.

use super::memory::{HERE, Memory};
use super::{AnyShared, Decision, Lease, Limit, SharedError, SharedState};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};
use tokio::sync::broadcast;

/// How often a backend that went away is asked again.
pub(super) const PROBE: Duration = Duration::from_secs(1);

/// A backend, and what decides while it is away.
pub struct Guarded {
    guard: Arc<Guard>,
}

struct Guard {
    far: AnyShared,
    near: Memory,
    away: AtomicBool,
    probe: Duration,
}

impl Guarded {
    /// Guards a backend, which is taken to be there until it fails; then `near` decides, and it is asked again every
    /// `probe`.
    pub fn new(far: AnyShared, near: Memory, probe: Duration) -> Self {
        Guarded { guard: Arc::new(Guard { far, near, away: AtomicBool::new(false), probe }) }
    }

    /// Whether this process decides alone.
    pub fn is_alone(&self) -> bool {
        self.guard.away.load(Ordering::Relaxed)
    }

    /// What the backend says; an error at once while it is away.
    async fn far<T>(&self, call: impl Future<Output = Result<T, SharedError>>) -> Result<T, SharedError> {
        if self.is_alone() {
            return Err(SharedError::Unavailable(format!("{} is away", self.guard.far.backend())));
        }
        let answer = call.await;
        if let Err(error) = &answer {
            self.guard.lost(error);
        }
        answer
    }
}

impl Guard {
    fn lost(self: &Arc<Self>, error: &SharedError) {
        if self.away.swap(true, Ordering::Relaxed) {
            return;
        }
        let backend = self.far.backend();
        tracing::warn!(backend, %error, "shared state is away: limits are counted by this process alone, those of logins at half");
        tokio::spawn(probe(Arc::downgrade(self), self.probe));
    }
}

/// Closes the circuit when the backend answers again.
async fn probe(guard: Weak<Guard>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(guard) = guard.upgrade() else { return };
        if guard.far.ping().await.is_ok() {
            guard.away.store(false, Ordering::Relaxed);
            tracing::info!(backend = guard.far.backend(), "shared state is back: limits are exact again");
            return;
        }
    }
}

#[async_trait]
impl SharedState for Guarded {
    async fn hit(&self, key: &str, limit: Limit, now: SystemTime) -> Result<Decision, SharedError> {
        match self.far(self.guard.far.hit(key, limit, now)).await {
            Ok(decision) => Ok(decision),
            Err(_) => Ok(self.guard.near.hit_now(key, limit, now)),
        }
    }

    async fn hit_strictly(&self, key: &str, limit: Limit, now: SystemTime) -> Result<Decision, SharedError> {
        match self.far(self.guard.far.hit(key, limit, now)).await {
            Ok(decision) => Ok(decision),
            Err(_) => {
                let half = Limit { limit: (limit.limit / 2).max(1), ..limit };
                Ok(self.guard.near.hit_now(key, half, now))
            }
        }
    }

    async fn acquire(
        &self,
        key: &str,
        slots: u32,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Option<Lease>, SharedError> {
        match self.far(self.guard.far.acquire(key, slots, ttl, now)).await {
            Ok(lease) => Ok(lease),
            Err(_) => self.guard.near.acquire(key, slots, ttl, now).await,
        }
    }

    async fn renew(&self, lease: &Lease, ttl: Duration, now: SystemTime) -> Result<bool, SharedError> {
        match is_near(lease) {
            true => self.guard.near.renew(lease, ttl, now).await,
            false => self.far(self.guard.far.renew(lease, ttl, now)).await,
        }
    }

    async fn release(&self, lease: &Lease) -> Result<(), SharedError> {
        match is_near(lease) {
            true => self.guard.near.release(lease).await,
            false => self.far(self.guard.far.release(lease)).await,
        }
    }

    async fn publish(&self, channel: &str, message: &str) -> Result<(), SharedError> {
        self.far(self.guard.far.publish(channel, message)).await
    }

    fn subscribe(&self, channel: &str) -> broadcast::Receiver<String> {
        self.guard.far.subscribe(channel)
    }

    async fn append_events(
        &self,
        log: &str,
        events: &[(u64, Bytes)],
        ttl: Duration,
    ) -> Result<(), SharedError> {
        self.far(self.guard.far.append_events(log, events, ttl)).await
    }

    async fn read_events(
        &self,
        log: &str,
        after: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Bytes)>, SharedError> {
        self.far(self.guard.far.read_events(log, after, limit)).await
    }

    async fn leave_note(&self, key: &str, note: &[u8], ttl: Duration) -> Result<(), SharedError> {
        self.far(self.guard.far.leave_note(key, note, ttl)).await
    }

    async fn take_note(&self, key: &str) -> Result<Option<Bytes>, SharedError> {
        self.far(self.guard.far.take_note(key)).await
    }

    async fn ping(&self) -> Result<(), SharedError> {
        self.guard.far.ping().await
    }

    fn backend(&self) -> &'static str {
        self.guard.far.backend()
    }

    fn connections(&self) -> u32 {
        self.guard.far.connections()
    }
}

fn is_near(lease: &Lease) -> bool {
    lease.holder.starts_with(HERE)
}
