//! State that replicas share: counters, leases, word of revocations. In memory where `REDIS_URL` is not set.
//!
//! [`SharedState`] is what stages use. To add a backend: one file, one arm in [`open`]; the contract suite in
//! `tests.rs` then runs over it. Every call has a deadline (Redis 50 ms); time is given by the caller where the
//! backend has none of its own.

use async_trait::async_trait;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Why shared state could not decide.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SharedError {
    /// The backend does not answer in time or cannot be reached.
    #[error("shared state is not available: {0}")]
    Unavailable(String),
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
    /// Until the window is free again.
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

/// State that replicas share.
#[async_trait]
pub trait SharedState: Send + Sync {
    /// Counts one request against a limit: one round trip, exact across replicas, nothing written where rejected.
    async fn hit(&self, key: &str, limit: Limit, now: SystemTime) -> Result<Decision, SharedError>;
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
    /// Whether it answers.
    async fn ping(&self) -> Result<(), SharedError>;
    /// Which it is: `memory` or `redis`.
    fn backend(&self) -> &'static str;
    /// Connections in use, for metrics.
    fn connections(&self) -> u32;
}

/// The shared state behind a URL.
pub type AnyShared = Arc<dyn SharedState>;
