//! What was verified lately, so that a token's signature is computed once and not with every request.
//!
//! A table of fixed size whose slots are swapped whole: no reader and no writer ever waits, and memory is bounded.
//! Keys are hashes of whole tokens, so nobody can choose a slot without a token that verifies.

use arc_swap::ArcSwapOption;
use std::sync::Arc;
use std::time::SystemTime;

/// Values by 128-bit keys, each until its own end.
pub(crate) struct Cache<T> {
    slots: Box<[ArcSwapOption<Entry<T>>]>,
}

struct Entry<T> {
    key: u128,
    until: SystemTime,
    value: T,
}

impl<T: Clone> Cache<T> {
    /// With room for at least `capacity` values.
    pub(crate) fn new(capacity: usize) -> Self {
        let size = capacity.clamp(2, 1 << 24).next_power_of_two();
        Cache { slots: (0..size).map(|_| ArcSwapOption::const_empty()).collect() }
    }

    /// What is known of a key, unless its time is over.
    pub(crate) fn get(&self, key: u128, now: SystemTime) -> Option<T> {
        self.places(key).into_iter().find_map(|place| {
            let entry = self.slots[place].load();
            let entry = entry.as_ref()?;
            (entry.key == key && now < entry.until).then(|| entry.value.clone())
        })
    }

    /// Remembers; whoever stood there longest to their end gives way last.
    pub(crate) fn put(&self, key: u128, until: SystemTime, now: SystemTime, value: T) {
        let [first, second] = self.places(key);
        let free = |place: usize| {
            let entry = self.slots[place].load();
            entry.as_ref().is_none_or(|entry| entry.key == key || entry.until <= now)
        };
        let place = match (free(first), free(second)) {
            (true, _) => first,
            (false, true) => second,
            // A bit of the key that the index does not use.
            (false, false) if key >> 127 == 0 => first,
            (false, false) => second,
        };
        self.slots[place].store(Some(Arc::new(Entry { key, until, value })));
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        self.slots.iter().for_each(|slot| slot.store(None));
    }

    fn places(&self, key: u128) -> [usize; 2] {
        let first = (key as usize) & (self.slots.len() - 1);
        [first, first ^ 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn values_last_until_their_end() {
        let cache = Cache::new(8);
        cache.put(7, at(10), at(0), "seven");
        assert_eq!(cache.get(7, at(9)), Some("seven"));
        assert_eq!(cache.get(7, at(10)), None);
        assert_eq!(cache.get(7 + 8, at(0)), None, "the same slot, another key");
        cache.clear();
        assert_eq!(cache.get(7, at(9)), None);
    }

    #[test]
    fn memory_is_bounded_and_the_newest_is_there() {
        let cache = Cache::new(4);
        for key in 0..1000u128 {
            cache.put(key, at(10), at(0), key);
            assert_eq!(cache.get(key, at(0)), Some(key));
        }
        assert_eq!(cache.slots.len(), 4);
        assert!((0..1000).filter(|key| cache.get(*key, at(0)).is_some()).count() <= 4);
        cache.put(998, at(20), at(10), 1);
        assert_eq!(cache.get(998, at(11)), Some(1), "what is over gives way");
    }
}
