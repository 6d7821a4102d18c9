//! Shared state within one process: for one replica, for tests, and for the time that Redis is away.
//!
//! Bounded. A limiter's key is kept as a 128-bit hash (keyed at random, so that nobody can make keys collide) with a
//! window of 24 bytes: at most 100 bytes a key with the table's slack. There is room for as many as `LIMITER_KEYS`
//! says; beyond that the stalest go. Windows that are over go with the traffic: a hit now and then sweeps one shard, each once a
//! minute. No lock is held for longer than it takes to go through one of a thousand shards.

use super::logs::Logs;
use super::notes::Notes;
use super::window::Window;
use super::{Decision, Lease, Limit, SharedError, SharedLimits, SharedState};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::broadcast;

const SHARDS: usize = 1024;
/// Each shard is swept once in this time, in milliseconds.
const SWEEP: u64 = 60_000;
/// Messages that a subscriber may be behind before it loses some.
pub(super) const BACKLOG: usize = 1024;
/// Begins the holders of leases that are kept here.
pub(super) const HERE: &str = "here-";

/// Shared state within this process.
pub struct Memory {
    shards: Box<[Mutex<Windows>]>,
    /// Keys in a shard at most.
    most: usize,
    hashers: [RandomState; 2],
    /// When the next shard is swept, and which it is.
    sweep_at: AtomicU64,
    sweep_next: AtomicUsize,
    leases: Mutex<HashMap<String, Vec<(String, u64)>>>,
    logs: Logs,
    notes: Notes,
    channels: Mutex<HashMap<String, broadcast::Sender<String>>>,
}

/// Keys are hashes already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, number: u64) {
        self.0 ^= number;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Hashed([u64; 2]);

impl Hash for Hashed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0[0]);
    }
}

type Windows = HashMap<Hashed, Window, BuildHasherDefault<AsIs>>;

impl Default for Memory {
    fn default() -> Self {
        Memory::new()
    }
}

impl Memory {
    /// With room for the default number of keys of limits.
    pub fn new() -> Self {
        Memory::with_room_for(SharedLimits::default().keys)
    }

    /// With room for about so many keys of limits.
    pub fn with_room_for(keys: usize) -> Self {
        Memory {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            most: keys.div_ceil(SHARDS).max(8),
            hashers: [RandomState::new(), RandomState::new()],
            sweep_at: AtomicU64::new(0),
            sweep_next: AtomicUsize::new(0),
            leases: Mutex::default(),
            logs: Logs::default(),
            notes: Notes::default(),
            channels: Mutex::default(),
        }
    }

    /// Keys of limits that are kept now.
    pub fn keys(&self) -> usize {
        self.shards.iter().map(|shard| locked(shard).len()).sum()
    }

    /// Counts one request; what [`SharedState::hit`] does, without waiting.
    pub fn hit_now(&self, key: &str, limit: Limit, now: SystemTime) -> Decision {
        let now = millis(now);
        let hashed = Hashed([self.hashers[0].hash_one(key), self.hashers[1].hash_one(key)]);
        self.sweep(now);
        let shard = &self.shards[hashed.0[1] as usize % SHARDS];
        let mut windows = locked(shard);
        if let Some(window) = windows.get_mut(&hashed) {
            return window.hit(limit.limit, now);
        }
        make_room(&mut windows, self.most, now);
        let mut window = Window::begin(limit, now);
        let decision = window.hit(limit.limit, now);
        windows.insert(hashed, window);
        decision
    }

    /// Drops what is over in the next shard, if it is time to.
    fn sweep(&self, now: u64) {
        let due = self.sweep_at.load(Ordering::Relaxed);
        let next = now + SWEEP / SHARDS as u64;
        // A clock that was set back must not stop it.
        let is_due = now >= due || due > now + SWEEP;
        if !is_due || self.sweep_at.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_err()
        {
            return;
        }
        let shard = self.sweep_next.fetch_add(1, Ordering::Relaxed) % SHARDS;
        let mut windows = locked(&self.shards[shard]);
        windows.retain(|_, window| !window.is_over(now));
        if windows.len() < windows.capacity() / 4 {
            windows.shrink_to_fit();
        }
    }
}

/// Makes room for one more where a table is about to grow: drops what is over, and where it is full, about a quarter
/// of it, the stalest. Rare enough to cost an insertion next to nothing on average.
fn make_room(windows: &mut Windows, most: usize, now: u64) {
    if windows.len() < most.min(windows.capacity()) {
        return;
    }
    windows.retain(|_, window| !window.is_over(now));
    if windows.len() >= most {
        let mut sample: Vec<u64> = windows.values().take(64).map(Window::start).collect();
        sample.sort_unstable();
        let stale = sample[sample.len() / 4];
        let mut excess = windows.len() / 4 + 1;
        windows.retain(|_, window| {
            let goes = excess > 0 && window.start() <= stale;
            excess -= usize::from(goes);
            !goes
        });
    }
    // Removed entries leave marks for which a table would grow beyond what its entries need: a new one has none.
    let room = (windows.len() * 2).clamp(4, most);
    let mut fresh = Windows::with_capacity_and_hasher(room, BuildHasherDefault::default());
    fresh.extend(windows.drain());
    *windows = fresh;
}

#[async_trait]
impl SharedState for Memory {
    async fn hit(&self, key: &str, limit: Limit, now: SystemTime) -> Result<Decision, SharedError> {
        Ok(self.hit_now(key, limit, now))
    }

    async fn acquire(
        &self,
        key: &str,
        slots: u32,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Option<Lease>, SharedError> {
        let now = millis(now);
        let mut leases = locked(&self.leases);
        if leases.len() == leases.capacity() {
            leases.retain(|_, holders| holders.iter().any(|(_, ends)| *ends > now));
        }
        let holders = leases.entry(key.to_owned()).or_default();
        holders.retain(|(_, ends)| *ends > now);
        if holders.len() >= slots as usize {
            return Ok(None);
        }
        let holder = format!("{HERE}{}", uuid::Uuid::new_v4().simple());
        holders.push((holder.clone(), now + ttl.as_millis() as u64));
        Ok(Some(Lease { key: key.to_owned(), holder }))
    }

    async fn renew(&self, lease: &Lease, ttl: Duration, now: SystemTime) -> Result<bool, SharedError> {
        let now = millis(now);
        let mut leases = locked(&self.leases);
        let held = leases.get_mut(&lease.key).and_then(|holders| {
            holders.iter_mut().find(|(holder, ends)| *holder == lease.holder && *ends > now)
        });
        Ok(held.map(|(_, ends)| *ends = now + ttl.as_millis() as u64).is_some())
    }

    async fn release(&self, lease: &Lease) -> Result<(), SharedError> {
        let mut leases = locked(&self.leases);
        if let Some(holders) = leases.get_mut(&lease.key) {
            holders.retain(|(holder, _)| *holder != lease.holder);
            if holders.is_empty() {
                leases.remove(&lease.key);
            }
        }
        Ok(())
    }

    async fn publish(&self, channel: &str, message: &str) -> Result<(), SharedError> {
        if let Some(sender) = locked(&self.channels).get(channel) {
            // Nobody listens: nobody needs it.
            let _ = sender.send(message.to_owned());
        }
        Ok(())
    }

    fn subscribe(&self, channel: &str) -> broadcast::Receiver<String> {
        let mut channels = locked(&self.channels);
        channels.entry(channel.to_owned()).or_insert_with(|| broadcast::Sender::new(BACKLOG)).subscribe()
    }

    async fn append_events(
        &self,
        log: &str,
        events: &[(u64, Bytes)],
        ttl: Duration,
    ) -> Result<(), SharedError> {
        self.logs.append(log, events, ttl, Instant::now());
        Ok(())
    }

    async fn read_events(
        &self,
        log: &str,
        after: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Bytes)>, SharedError> {
        Ok(self.logs.read(log, after, limit, Instant::now()))
    }

    async fn leave_note(&self, key: &str, note: &[u8], ttl: Duration) -> Result<(), SharedError> {
        self.notes.leave(key, note, ttl, Instant::now())
    }

    async fn take_note(&self, key: &str) -> Result<Option<Bytes>, SharedError> {
        Ok(self.notes.take(key, Instant::now()))
    }

    async fn ping(&self) -> Result<(), SharedError> {
        Ok(())
    }

    fn backend(&self) -> &'static str {
        "memory"
    }

    fn connections(&self) -> u32 {
        0
    }
}

/// Nothing panics while it holds one of these, and counters are good at any moment.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit { limit: 2, per: Duration::from_secs(60) };

    fn at(millis: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(millis)
    }

    /// Bytes of the tables, slack included (a power of two of buckets, filled to 7/8, one byte of control each).
    fn bytes(memory: &Memory) -> usize {
        let table = |shard: &Mutex<Windows>| {
            let buckets = (locked(shard).capacity() * 8 / 7).next_power_of_two();
            buckets * (size_of::<(Hashed, Window)>() + 1)
        };
        memory.shards.iter().map(table).sum()
    }

    #[test]
    fn a_flood_of_keys_is_bounded_and_the_stalest_go() {
        let room = 100_000;
        let memory = Memory::with_room_for(room);
        for number in 0..400_000u64 {
            memory.hit_now(&format!("key {number}"), LIMIT, at(1_000_000 + number / 100));
        }
        let keys = memory.keys();
        assert!((room / 2..=room + SHARDS).contains(&keys), "{keys} keys");
        assert!(bytes(&memory) <= 100 * room, "{} bytes for {keys} keys", bytes(&memory));
        // The newest is still known: its second request is its last.
        let newest = "key 399999";
        assert!(memory.hit_now(newest, LIMIT, at(1_004_000)).allowed);
        assert!(!memory.hit_now(newest, LIMIT, at(1_004_000)).allowed);
    }

    #[test]
    fn ten_million_keys_fit_their_budget() {
        // What a table of the full size takes, without filling one.
        let keys = SharedLimits::default().keys;
        let most = keys / SHARDS;
        let buckets = (most * 8 / 7).next_power_of_two();
        assert!(buckets * (size_of::<(Hashed, Window)>() + 1) * SHARDS <= 100 * keys);
    }

    #[test]
    fn what_is_over_goes_with_the_traffic() {
        let memory = Memory::new();
        for number in 0..50_000u64 {
            memory.hit_now(&format!("key {number}"), LIMIT, at(1_000_000));
        }
        let full = bytes(&memory);
        assert_eq!(memory.keys(), 50_000);
        // One caller is enough to clean up after all others.
        for tick in 0..2 * SHARDS as u64 {
            memory.hit_now("one", LIMIT, at(2_000_000 + tick * SWEEP / SHARDS as u64));
        }
        assert_eq!(memory.keys(), 1);
        assert!(bytes(&memory) < full / 10);
    }

    #[test]
    fn threads_never_pass_more_than_the_limit() {
        let memory = Memory::new();
        let limit = Limit { limit: 1000, per: Duration::from_secs(60) };
        let passed: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| (0..1000).filter(|_| memory.hit_now("k", limit, at(5)).allowed).count())
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(passed, 1000);
    }
}
