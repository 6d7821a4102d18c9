//! The store: two levels of one table. Under a request's key stands its copy; or, if answers there depend on headers, their
//! names, and the copies under the keys of their variants.

use super::{Copy, Key};
use http::{HeaderMap, HeaderName};
use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// How much may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in all, headers and bookkeeping included; 0 keeps nothing.
    pub bytes: u64,
    /// Number of copies.
    pub entries: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { bytes: 64 << 20, entries: 10_000 }
    }
}

/// Copies of answers.
pub struct Copies {
    table: Cache<Key, Slot, Weights, DefaultHashBuilder, Evictions>,
    limits: Limits,
    largest: usize,
    /// Number of purges so far.
    purges: AtomicU64,
    hits: AtomicU64,
    stale: AtomicU64,
    misses: AtomicU64,
    purged: AtomicU64,
    evicted: Arc<AtomicU64>,
}

#[derive(Clone)]
enum Slot {
    /// The answer.
    Whole(Arc<Copy>),
    /// Answers here depend on these headers of the request.
    Varies(Arc<[HeaderName]>),
    /// Answers here cannot be kept, until then.
    Passes(Instant),
}

/// What is known of a request.
#[derive(Debug, Clone)]
pub struct Found {
    /// The key it goes by: that of its variant, if answers here depend on headers.
    pub key: Key,
    /// The copy, fresh or not.
    pub copy: Option<Arc<Copy>>,
    /// Whether there are copies here for other values of headers.
    pub varies: bool,
    /// Whether it was lately found that answers here cannot be kept.
    pub passes: bool,
}

/// A moment between two purges: what was fetched before a purge is not put in behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch(u64);

/// What to forget. Every condition that is set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Purge {
    /// This path, whatever the query.
    pub path: Option<String>,
    /// Paths that begin like this.
    pub prefix: Option<String>,
    /// Copies of this route, `METHOD /pattern`.
    pub route: Option<String>,
    /// Copies whose `Cache-Tag` names this.
    pub tag: Option<String>,
}

/// What the store holds and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// Copies.
    pub entries: u64,
    /// Bytes they take.
    pub bytes: u64,
    /// Bytes they may take.
    pub max_bytes: u64,
    /// Number there may be.
    pub max_entries: u64,
    /// Lookups that found a fresh copy.
    pub hits: u64,
    /// Lookups that found a stale one.
    pub stale: u64,
    /// Lookups that found none.
    pub misses: u64,
    /// Copies that gave way to others.
    pub evictions: u64,
    /// Copies that were purged.
    pub purged: u64,
}

/// Copies weigh their bytes, and at least as much as bounds their number.
#[derive(Clone)]
struct Weights {
    least: u64,
}

impl Weighter<Key, Slot> for Weights {
    fn weight(&self, _: &Key, slot: &Slot) -> u64 {
        let bytes = match slot {
            Slot::Whole(copy) => copy.size(),
            Slot::Varies(..) | Slot::Passes(_) => 0,
        };
        self.least.max(bytes as u64)
    }
}

#[derive(Clone)]
struct Evictions(Arc<AtomicU64>);

impl Lifecycle<Key, Slot> for Evictions {
    type RequestState = Vec<Slot>;

    fn on_evict(&self, gone: &mut Vec<Slot>, _: Key, slot: Slot) {
        if let Slot::Whole(_) = slot {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        // Freed behind the lock.
        gone.push(slot);
    }
}

/// Bytes of one part of the table, at least: a copy must fit into one.
const PART: u64 = 8 << 20;
/// Parts of the table, at most.
const PARTS: u64 = 64;

impl Copies {
    /// An empty store.
    pub fn new(limits: Limits) -> Self {
        let parts = (limits.bytes / PART).clamp(1, PARTS);
        // Rounded down to what the table would round up to.
        let parts = 1 << parts.ilog2();
        let least = (limits.bytes / limits.entries.max(1) as u64).max(1);
        let options = OptionsBuilder::new()
            .shards(parts as usize)
            .estimated_items_capacity(limits.entries)
            .weight_capacity(limits.bytes)
            .build()
            .expect("both capacities are set");
        let evicted = Arc::new(AtomicU64::new(0));
        let lifecycle = Evictions(evicted.clone());
        let table = Cache::with_options(options, Weights { least }, DefaultHashBuilder::default(), lifecycle);
        let largest = usize::try_from(table.shard_capacity()).unwrap_or(usize::MAX);
        Copies {
            table,
            limits,
            largest,
            purges: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            stale: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            purged: AtomicU64::new(0),
            evicted,
        }
    }

    /// Bytes that a copy may have at most to be kept at all, headers included.
    pub fn largest(&self) -> usize {
        self.largest
    }

    /// The copy for a request with these headers, fresh or not.
    pub fn get(&self, key: &Key, request: &HeaderMap, now: Instant) -> Option<Arc<Copy>> {
        self.find(key, request, now).copy
    }

    /// Everything that is known of a request with these headers.
    pub fn find(&self, key: &Key, request: &HeaderMap, now: Instant) -> Found {
        let mut found = Found { key: *key, copy: None, varies: false, passes: false };
        let mut slot = self.table.get(key);
        if let Some(Slot::Varies(names)) = &slot {
            found.key = key.variant(names, request);
            found.varies = true;
            slot = self.table.get(&found.key);
        }
        match slot {
            Some(Slot::Whole(copy)) => found.copy = Some(copy),
            Some(Slot::Passes(until)) => found.passes = now < until,
            Some(Slot::Varies(..)) | None => {}
        }
        let count = match &found.copy {
            Some(copy) if copy.is_fresh(now) => &self.hits,
            Some(_) => &self.stale,
            None => &self.misses,
        };
        count.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// The moment; take it before an answer is fetched.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.purges.load(Ordering::SeqCst))
    }

    /// Keeps the answer to a request with these headers, unless something was purged since it was asked for. Gives it back
    /// as it is kept, and whether it is.
    pub fn put(&self, key: &Key, request: &HeaderMap, copy: Copy, since: Epoch) -> (Arc<Copy>, bool) {
        let copy = Arc::new(copy);
        if copy.size() > self.largest {
            return (copy, false);
        }
        let place = match copy.vary.is_empty() {
            true => *key,
            false => {
                self.table.insert(*key, Slot::Varies(copy.vary.clone()));
                key.variant(&copy.vary, request)
            }
        };
        self.table.insert(place, Slot::Whole(copy.clone()));
        // A purge either came before this look, or finds what was put in.
        if self.epoch() != since {
            self.table.remove(&place);
            return (copy, false);
        }
        (copy, true)
    }

    /// Notes that answers to such requests cannot be kept, so that nobody waits for another's until then. `key` is the one
    /// they go by.
    pub fn pass(&self, key: Key, until: Instant) {
        self.table.insert(key, Slot::Passes(until));
    }

    /// Forgets a copy.
    pub fn forget(&self, key: &Key) {
        self.table.remove(key);
    }

    /// Forgets copies; returns how many.
    pub fn purge(&self, what: &Purge) -> u64 {
        self.purges.fetch_add(1, Ordering::SeqCst);
        let count = AtomicU64::new(0);
        self.table.retain(|_, slot| match slot {
            Slot::Whole(copy) if what.takes(copy) => {
                count.fetch_add(1, Ordering::Relaxed);
                false
            }
            Slot::Whole(_) => true,
            Slot::Varies(_) | Slot::Passes(_) => !what.is_everything(),
        });
        let count = count.into_inner();
        self.purged.fetch_add(count, Ordering::Relaxed);
        count
    }

    /// What it holds and did. Looks at every copy: for operators, not for requests.
    pub fn figures(&self) -> Figures {
        let whole = |slot| match slot {
            Slot::Whole(copy) => Some(copy.size() as u64),
            Slot::Varies(..) | Slot::Passes(_) => None,
        };
        let (mut entries, mut bytes) = (0, 0);
        for size in self.table.iter().filter_map(|(_, slot)| whole(slot)) {
            entries += 1;
            bytes += size;
        }
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Figures {
            entries,
            bytes,
            max_bytes: self.limits.bytes,
            max_entries: self.limits.entries as u64,
            hits: read(&self.hits),
            stale: read(&self.stale),
            misses: read(&self.misses),
            evictions: read(&self.evicted),
            purged: read(&self.purged),
        }
    }
}

/// Names a copy's tags, comma-separated.
const TAGS: &str = "cache-tag";

impl Purge {
    /// Whether it has no condition.
    pub fn is_everything(&self) -> bool {
        *self == Purge::default()
    }

    /// Whether it takes a copy.
    fn takes(&self, copy: &Copy) -> bool {
        let tagged = |tag: &str| {
            copy.headers.get_all(TAGS).iter().any(|value| {
                value.as_bytes().split(|byte| *byte == b',').any(|one| one.trim_ascii() == tag.as_bytes())
            })
        };
        self.path.as_deref().is_none_or(|path| *copy.path == *path)
            && self.prefix.as_deref().is_none_or(|prefix| copy.path.starts_with(prefix))
            && self.route.as_deref().is_none_or(|route| *copy.route == *route)
            && self.tag.as_deref().is_none_or(tagged)
    }
}

impl Default for Copies {
    fn default() -> Self {
        Copies::new(Limits::default())
    }
}

impl std::fmt::Debug for Copies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Copies").field("limits", &self.limits).finish_non_exhaustive()
    }
}
