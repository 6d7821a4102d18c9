//! Event logs within one process.
//!
//! Bounded: each log by its number of events, all together by their bytes. Where a shard is full, the logs that end
//! first go. What is over goes with the traffic: whoever appends sweeps its shard now and then. Events are copied,
//! since one of a hundred bytes may be a part of a buffer of thousands.

use super::MAX_EVENTS;
use super::memory::locked;
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Bytes of all logs together, at most.
const ROOM: usize = 256 << 20;
const SHARDS: usize = 32;
/// How often a shard is swept.
const SWEEP: Duration = Duration::from_secs(10);
/// What an event and a log cost besides their bytes.
const PER_EVENT: usize = 64;
const PER_LOG: usize = 256;
/// Longer lives are cut; a clock cannot say every one.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

pub(super) struct Logs {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    /// Bytes of a shard at most.
    room: usize,
}

#[derive(Default)]
struct Shard {
    logs: HashMap<Box<str>, Log>,
    bytes: usize,
    sweep_at: Option<Instant>,
}

struct Log {
    /// By number, ascending.
    events: VecDeque<(u64, Bytes)>,
    bytes: usize,
    /// The greatest number it ever had.
    last: u64,
    ends: Instant,
}

impl Default for Logs {
    fn default() -> Self {
        Logs::with_room_for(ROOM)
    }
}

impl Logs {
    /// With room for about so many bytes.
    fn with_room_for(bytes: usize) -> Self {
        Logs {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            room: bytes / SHARDS,
        }
    }

    pub(super) fn append(&self, name: &str, events: &[(u64, Bytes)], ttl: Duration, now: Instant) {
        let mut shard = locked(self.shard(name));
        shard.sweep(now);
        let Shard { logs, bytes, .. } = &mut *shard;
        let known = logs.get_mut(name).filter(|log| log.ends > now);
        let log = match known {
            Some(log) => log,
            None if events.is_empty() => return,
            None => {
                let fresh = Log::new(name, now);
                *bytes += fresh.bytes;
                // One that is over but was not swept yet.
                *bytes -= logs.remove(name).map_or(0, |old| old.bytes);
                logs.entry(name.into()).or_insert(fresh)
            }
        };
        let before = log.bytes;
        for (number, event) in events {
            log.push(*number, event);
        }
        log.ends = now + ttl.min(LONGEST);
        *bytes = *bytes + log.bytes - before;
        shard.make_room(self.room, name);
    }

    pub(super) fn read(&self, name: &str, after: u64, limit: usize, now: Instant) -> Vec<(u64, Bytes)> {
        let shard = locked(self.shard(name));
        let Some(log) = shard.logs.get(name).filter(|log| log.ends > now) else { return Vec::new() };
        let first = log.events.partition_point(|(number, _)| *number <= after);
        log.events.range(first..).take(limit).cloned().collect()
    }

    fn shard(&self, name: &str) -> &Mutex<Shard> {
        &self.shards[self.hasher.hash_one(name) as usize % SHARDS]
    }
}

impl Log {
    fn new(name: &str, now: Instant) -> Self {
        Log { events: VecDeque::new(), bytes: PER_LOG + name.len(), last: 0, ends: now }
    }

    fn push(&mut self, number: u64, event: &[u8]) {
        if number <= self.last {
            return;
        }
        self.last = number;
        self.bytes += PER_EVENT + event.len();
        self.events.push_back((number, Bytes::copy_from_slice(event)));
        if self.events.len() > MAX_EVENTS {
            self.drop_oldest();
        }
    }

    /// Whether there was one.
    fn drop_oldest(&mut self) -> bool {
        let oldest = self.events.pop_front();
        self.bytes -= oldest.as_ref().map_or(0, |(_, event)| PER_EVENT + event.len());
        oldest.is_some()
    }
}

impl Shard {
    /// Drops what is over, if it is time to.
    fn sweep(&mut self, now: Instant) {
        if self.sweep_at.is_some_and(|at| now < at) {
            return;
        }
        self.sweep_at = Some(now + SWEEP);
        let bytes = &mut self.bytes;
        self.logs.retain(|_, log| {
            let stays = log.ends > now;
            *bytes -= if stays { 0 } else { log.bytes };
            stays
        });
    }

    /// Drops the logs that end first until a quarter is free, where there is too much; of the one that was written last,
    /// its oldest events.
    fn make_room(&mut self, room: usize, written: &str) {
        if self.bytes <= room {
            return;
        }
        let mut others: Vec<(Instant, Box<str>)> = self
            .logs
            .iter()
            .filter(|(name, _)| &***name != written)
            .map(|(name, log)| (log.ends, name.clone()))
            .collect();
        others.sort_unstable();
        for (_, name) in others {
            if self.bytes <= room / 4 * 3 {
                return;
            }
            self.bytes -= self.logs.remove(&name).map_or(0, |log| log.bytes);
        }
        let Some(log) = self.logs.get_mut(written) else { return };
        while log.bytes > room && log.drop_oldest() {}
        self.bytes = log.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn events(numbers: std::ops::Range<u64>, size: usize) -> Vec<(u64, Bytes)> {
        numbers.map(|number| (number, Bytes::from(vec![b'x'; size]))).collect()
    }

    /// What the shards say they hold, which is what their logs hold.
    fn held(logs: &Logs) -> (usize, usize) {
        let mut all = (0, 0);
        for shard in &logs.shards {
            let shard = locked(shard);
            let sum = |log: &Log| log.events.iter().map(|(_, event)| PER_EVENT + event.len()).sum::<usize>();
            let bytes: usize = shard.logs.iter().map(|(name, log)| PER_LOG + name.len() + sum(log)).sum();
            assert_eq!(shard.bytes, bytes);
            all = (all.0 + shard.logs.len(), all.1 + bytes);
        }
        all
    }

    #[test]
    fn memory_is_bounded_and_the_stalest_go() {
        let logs = Logs::with_room_for(SHARDS * 100_000);
        let now = Instant::now();
        for number in 0..20_000u32 {
            let at = now + Duration::from_micros(u64::from(number));
            logs.append(&number.to_string(), &events(1..6, 1000), MINUTE, at);
        }
        let (count, bytes) = held(&logs);
        assert!((SHARDS * 60_000..=SHARDS * 100_000).contains(&bytes), "{bytes} bytes of {count} logs");
        assert_eq!(logs.read("19999", 0, 10, now).len(), 5, "the newest is there");
        assert_eq!(logs.read("0", 0, 10, now), []);
    }

    #[test]
    fn one_log_that_is_too_much_loses_its_beginning() {
        let logs = Logs::with_room_for(SHARDS * 100_000);
        let now = Instant::now();
        for number in 1..1000 {
            logs.append("one", &events(number..number + 1, 1000), MINUTE, now);
        }
        let left = logs.read("one", 0, 1000, now);
        assert!((80..100).contains(&left.len()), "{}", left.len());
        assert_eq!(left.last().unwrap().0, 999);
        assert!(held(&logs).1 <= 100_000);
        logs.append("one", &events(2000..2001, 1_000_000), MINUTE, now);
        assert_eq!(logs.read("one", 0, 1000, now), [], "one event that is too much is not kept either");
        assert!(held(&logs).1 <= 100_000);
    }

    #[test]
    fn what_is_over_goes_with_the_traffic() {
        let logs = Logs::default();
        let now = Instant::now();
        for number in 0..1000 {
            logs.append(&number.to_string(), &events(1..2, 10), MINUTE, now);
        }
        assert_eq!(held(&logs).0, 1000);
        let later = now + MINUTE;
        assert_eq!(logs.read("7", 0, 1, later), []);
        logs.append("7", &events(1..2, 10), MINUTE, later);
        assert_eq!(logs.read("7", 0, 1, later).len(), 1, "it begins anew");
        for number in 1000..2000 {
            logs.append(&number.to_string(), &events(1..2, 10), MINUTE, later);
        }
        assert_eq!(held(&logs).0, 1001);
    }

    #[test]
    fn events_do_not_keep_the_buffer_they_came_in() {
        let logs = Logs::default();
        let now = Instant::now();
        let buffer = Bytes::from(vec![b'x'; 10_000]);
        logs.append("one", &[(1, buffer.slice(5..10))], MINUTE, now);
        assert!(buffer.is_unique());
    }
}
