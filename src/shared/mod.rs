//! State that replicas share: counters, leases, logs of events, notes that are taken once, word of revocations. In memory where `REDIS_URL` is not set.
//!
//! [`SharedState`] is what stages use. To add a backend: one file, one arm in [`open`]; the contract suite in
//! `tests.rs` then runs over it. Every call has a deadline (`REDIS_TIMEOUT`); time is given by the caller where the
//! backend has none of its own.

mod guarded;
mod logs;
mod memory;
mod notes;
mod redis;
mod slot;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod window;

pub use guarded::Guarded;
pub use memory::Memory;
pub use redis::Redis;
pub use slot::Slot;

use crate::settings::StoreSettings;
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Why shared state could not decide.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SharedError {
    /// The backend does not answer in time or cannot be reached.
    #[error("shared state is not available: {0}")]
    Unavailable(String),
    /// The URL cannot be used. It is not shown: it may hold a password.
    #[error(
        "REDIS_URL is not a URL such as `redis://host:6379/0`, `rediss://:password@host`, `redis-cluster://host:7000` or several of them, comma-separated"
    )]
    Url,
}

/// A limit: so many in a sliding window (two-counter approximation: the share of the last window that still
/// overlaps, plus this window).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limit {
    /// Requests allowed in a window.
    pub limit: u64,
    /// Length of the window.
    pub per: Duration,
}

/// What a limit says to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Whether it may pass. A rejected request is not counted.
    pub allowed: bool,
    /// Requests left in the window after this one.
    pub remaining: u64,
    /// Until the window that counts now ends; for a rejected request not before [`retry_after`](Self::retry_after).
    pub reset_after: Duration,
    /// Until it is worth trying again; zero where allowed.
    pub retry_after: Duration,
}

/// A slot that was taken: give it back with [`SharedState::release`]; it runs out by itself where its holder died.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// What it is a slot of.
    pub key: String,
    /// Who holds it, unique.
    pub holder: String,
}

/// Events that a log keeps: about 1 MB of a chat's tokens. The oldest go first; Redis keeps up to a hundred more,
/// since it drops them by the block.
pub const MAX_EVENTS: usize = 8192;

/// Notes that wait in memory at most, about 500 bytes each.
pub const MOST_NOTES: usize = 65_536;

/// State that replicas share.
#[async_trait]
pub trait SharedState: Send + Sync {
    /// Counts one request against a limit: one round trip, exact across replicas, nothing written where rejected.
    async fn hit(&self, key: &str, limit: Limit, now: SystemTime) -> Result<Decision, SharedError>;
    /// [`hit`](SharedState::hit) for a limit that guards credentials: while replicas cannot count together, half of
    /// it (at least 1) holds for each (SECURITY rule 17).
    async fn hit_strictly(&self, key: &str, limit: Limit, now: SystemTime) -> Result<Decision, SharedError> {
        self.hit(key, limit, now).await
    }
    /// Takes one of `slots` slots for `ttl`; `None` where all are taken.
    async fn acquire(
        &self,
        key: &str,
        slots: u32,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Option<Lease>, SharedError>;
    /// Keeps a slot for another `ttl`; whether it was still held.
    async fn renew(&self, lease: &Lease, ttl: Duration, now: SystemTime) -> Result<bool, SharedError>;
    /// Gives a slot back.
    async fn release(&self, lease: &Lease) -> Result<(), SharedError>;
    /// Tells every replica something (revocations): at most once, in no order, lost where the backend is away.
    async fn publish(&self, channel: &str, message: &str) -> Result<(), SharedError>;
    /// Hears what is told from now on; reconnects by itself. In memory, what this process tells.
    fn subscribe(&self, channel: &str) -> tokio::sync::broadcast::Receiver<String>;
    /// Appends numbered events to a log, in one round trip, and keeps the log for `ttl` from now. Numbers ascend and
    /// begin at 1; those that are not greater than the log's last are left out, so that an append whose fate is not
    /// known can be repeated. The newest [`MAX_EVENTS`] are kept. A log that is not there begins with this, but for
    /// an append of nothing, which only renews.
    ///
    /// While Redis is away this fails at once: a log that no other replica sees would be of no use.
    async fn append_events(
        &self,
        log: &str,
        events: &[(u64, Bytes)],
        ttl: Duration,
    ) -> Result<(), SharedError>;
    /// Events of a log with a greater number than `after`, ascending, at most `limit` (a few hundred at once come well
    /// within the deadline); none where the log is not known. Never waits for more.
    async fn read_events(
        &self,
        log: &str,
        after: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Bytes)>, SharedError>;
    /// Leaves a note under a key that nobody can guess, to be taken once within `ttl`.
    ///
    /// While Redis is away this fails at once: a note that only this replica had could be taken at no other. In memory
    /// it fails where [`MOST_NOTES`] wait.
    async fn leave_note(&self, key: &str, note: &[u8], ttl: Duration) -> Result<(), SharedError>;
    /// Takes a note: of all who ask, on whatever replica, one has it. `None` where it is not known, was taken, or is
    /// over. Where this fails it may have been taken all the same.
    async fn take_note(&self, key: &str) -> Result<Option<Bytes>, SharedError>;
    /// Whether it answers.
    async fn ping(&self) -> Result<(), SharedError>;
    /// Which it is: `memory` or `redis`.
    fn backend(&self) -> &'static str;
    /// Connections in use, for metrics.
    fn connections(&self) -> u32;
}

/// How much shared state may take: time and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedLimits {
    /// How long a call to Redis may take.
    pub timeout: Duration,
    /// Keys of limits that are kept in memory, about 100 bytes each; at least some thousands.
    pub keys: usize,
}

impl From<&StoreSettings> for SharedLimits {
    fn from(settings: &StoreSettings) -> Self {
        SharedLimits { timeout: settings.redis_timeout.0, keys: settings.limiter_keys }
    }
}

impl Default for SharedLimits {
    /// SECURITY rules 17 and 22.
    fn default() -> Self {
        SharedLimits { timeout: Duration::from_millis(50), keys: 10_000_000 }
    }
}

/// The shared state behind a URL.
pub type AnyShared = Arc<dyn SharedState>;

/// How long [`open`] waits for the first connection, so that the first requests are counted together too.
const FIRST_CONNECTION: Duration = Duration::from_millis(500);

/// The shared state behind a URL: in memory without one; Redis behind a [`Guarded`] for `redis://` and `rediss://`,
/// a Redis Cluster for `redis-cluster://`, `rediss-cluster://` or several comma-separated URLs. A Redis that is away
/// is no error: it is taken in when it comes.
///
/// # Errors
/// [`SharedError::Url`] where the URL is not one.
pub async fn open(url: Option<&str>, limits: &SharedLimits) -> Result<AnyShared, SharedError> {
    let memory = Memory::with_room_for(limits.keys);
    let Some(url) = url else { return Ok(Arc::new(memory)) };
    let redis = Redis::open(url, limits.timeout)?;
    if !redis.connected(FIRST_CONNECTION).await {
        tracing::warn!("Redis is not there yet: it is taken in when it comes");
    }
    Ok(Arc::new(Guarded::new(Arc::new(redis), memory, guarded::PROBE)))
}
