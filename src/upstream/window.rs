//! Counts of the last while, in ten slices: a request adds to one word of memory and waits for nobody.
//!
//! Time is an argument: milliseconds since the upstream began.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const SLICES: usize = 10;
/// Bits of one count; three of them and the slice's number fill a word.
const BITS: u32 = 14;
const MOST: u64 = (1 << BITS) - 1;

/// The largest count that is exact. A slice that has more halves all its counts: what is left is their proportion.
pub(super) const EXACT: u32 = MOST as u32;

/// Three counts over a window of time.
#[derive(Debug)]
pub(super) struct Window {
    /// Milliseconds of a slice.
    slice: u64,
    slices: [AtomicU64; SLICES],
}

/// What is counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts(pub(super) [u64; 3]);

impl Window {
    /// Of so many milliseconds.
    pub(super) fn new(millis: u64) -> Self {
        Window { slice: (millis / SLICES as u64).max(1), slices: Default::default() }
    }

    /// Adds to the counts.
    pub(super) fn add(&self, now: u64, counts: Counts) {
        let (slot, number) = self.slot(now);
        // Nobody gives up: a lost race only means that somebody else's count is in.
        let _ = slot.fetch_update(Relaxed, Relaxed, |word| Some(added(word, number, counts)));
    }

    /// Adds to the counts if what they are then allows it; whether it did.
    pub(super) fn add_if(&self, now: u64, counts: Counts, allowed: impl Fn(Counts) -> bool) -> bool {
        let (slot, number) = self.slot(now);
        loop {
            let word = slot.load(Relaxed);
            if !allowed(self.counts(now)) {
                return false;
            }
            if slot.compare_exchange(word, added(word, number, counts), Relaxed, Relaxed).is_ok() {
                return true;
            }
        }
    }

    /// The counts of the window that ends now.
    pub(super) fn counts(&self, now: u64) -> Counts {
        let newest = self.number(now);
        let mut sum = [0; 3];
        for slot in &self.slices {
            let word = slot.load(Relaxed);
            let (number, counts) = read(word);
            // Numbers go round; an age is how far back it is.
            if newest.wrapping_sub(number) & NUMBERS < SLICES as u64 {
                sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
            }
        }
        Counts(sum)
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        self.slices.iter().for_each(|slot| slot.store(0, Relaxed));
    }

    fn slot(&self, now: u64) -> (&AtomicU64, u64) {
        (&self.slices[(now / self.slice) as usize % SLICES], self.number(now))
    }

    fn number(&self, now: u64) -> u64 {
        (now / self.slice) & NUMBERS
    }
}

/// Numbers of slices go round after four million.
const NUMBERS: u64 = (1 << (64 - 3 * BITS)) - 1;

fn read(word: u64) -> (u64, [u64; 3]) {
    (word >> (3 * BITS), [0, 1, 2].map(|index| (word >> (index * BITS)) & MOST))
}

fn added(word: u64, number: u64, add: Counts) -> u64 {
    let (old, counts) = read(word);
    let mut counts = if old == number { counts } else { [0; 3] };
    counts.iter_mut().zip(add.0).for_each(|(count, add)| *count += add);
    while counts.iter().any(|count| *count > MOST) {
        counts.iter_mut().for_each(|count| *count /= 2);
    }
    counts.iter().rev().fold(number, |word, count| (word << BITS) | count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_older_than_the_window_does_not_count() {
        let window = Window::new(1000);
        window.add(0, Counts([1, 1, 0]));
        window.add(950, Counts([1, 0, 0]));
        assert_eq!(window.counts(999), Counts([2, 1, 0]));
        assert_eq!(window.counts(1000), Counts([1, 0, 0]), "slice 0 has gone");
        assert_eq!(window.counts(1899), Counts([1, 0, 0]));
        assert_eq!(window.counts(1900), Counts::default());
    }

    #[test]
    fn a_full_slice_keeps_the_proportion() {
        let window = Window::new(1000);
        for _ in 0..100_000 {
            window.add(5, Counts([2, 1, 0]));
        }
        let Counts([all, some, none]) = window.counts(5);
        assert!(all > u64::from(EXACT) / 4 && none == 0);
        let share = some as f64 / all as f64;
        assert!((share - 0.5).abs() < 0.01, "{share}");
    }

    proptest! {
        /// Against a list of everything that happened.
        #[test]
        fn it_agrees_with_a_list(steps in proptest::collection::vec((0u64..400, 0u64..3), 1..200)) {
            let window = Window::new(1000);
            let mut list = Vec::new();
            let mut now = 0;
            for (wait, kind) in steps {
                now += wait;
                let counts = Counts([1, u64::from(kind == 1), u64::from(kind == 2)]);
                window.add(now, counts);
                list.push((now / 100, counts));
                let newest = now / 100;
                let expected = list.iter().filter(|(slice, _)| newest - slice < 10).fold([0; 3], |sum, (_, counts)| {
                    [0, 1, 2].map(|index| sum[index] + counts.0[index])
                });
                prop_assert_eq!(window.counts(now), Counts(expected));
            }
        }
    }
}
