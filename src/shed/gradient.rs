//! How many requests something takes at a time, found from how long its answers take.
//!
//! The algorithm is the gradient of Envoy's adaptive concurrency and of Netflix's `concurrency-limits`. Answers are
//! gathered in windows. While the median of a window stays near that of an unloaded server (`base`), the limit grows
//! by its square root; as answers take longer, because requests wait for each other, it shrinks in proportion:
//!
//! ```text
//! gradient = base * (1 + TOLERANCE) / median        kept within 0.5 and 1
//! limit    = gradient * limit + sqrt(limit)         kept within min and max
//! ```
//!
//! It settles where `(1 - gradient) * limit = sqrt(limit)`: a little above what is really worked on at a time, so that
//! the server never idles. `base` is the lowest median seen; it is measured anew every `remeasure`, with the limit
//! halved for a moment so that nothing waits, and whenever the limit is at `min`: a server that became slower for good
//! is so believed. A limit that is not half used does not grow. Time and samples are arguments.

use std::time::{Duration, Instant};

/// How much longer than unloaded an answer may take before that counts as waiting.
const TOLERANCE: f64 = 0.25;
/// Answers that a window needs.
const ENOUGH: usize = 10;
/// Answers that are kept of a window; later ones take the place of the earliest.
const KEPT: usize = 256;
/// A window that has not enough after this many times its length is begun anew: what it has is too old.
const STALE: u32 = 20;

/// Between what a limit is found, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GradientSpec {
    /// Lowest limit; it begins here. At least 1.
    pub min: u32,
    /// Highest limit.
    pub max: u32,
    /// Over how long answers are gathered.
    pub window: Duration,
    /// How often the time of an unloaded answer is measured anew.
    pub remeasure: Duration,
}

/// A limit that is being found.
#[derive(Debug)]
pub(super) struct Gradient {
    spec: GradientSpec,
    limit: f64,
    /// Median of an unloaded server, in microseconds; none before the first window.
    base: Option<f64>,
    phase: Phase,
    measured: Instant,
    opened: Instant,
    /// Microseconds, at most [`KEPT`].
    samples: Vec<u32>,
    seen: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// The limit follows the answers.
    Follows,
    /// The limit was lowered; answers to requests let in before are still to come.
    Settles { before: f64 },
    /// The answers of this window tell the base.
    Measures { before: f64 },
}

impl Gradient {
    pub(super) fn new(spec: GradientSpec, now: Instant) -> Self {
        Gradient {
            spec,
            limit: f64::from(spec.min),
            base: None,
            phase: Phase::Follows,
            measured: now,
            opened: now,
            samples: Vec::with_capacity(KEPT),
            seen: 0,
        }
    }

    /// How many may be under way.
    pub(super) fn limit(&self) -> u32 {
        (self.limit as u32).clamp(self.spec.min, self.spec.max)
    }

    /// Takes note of an answer that took so long. `peak` is the most that was under way at a time since the window
    /// began. True where a window ended: then the limit may be another, and `peak` begins anew.
    pub(super) fn sample(&mut self, now: Instant, took: Duration, peak: u32) -> bool {
        let age = now.saturating_duration_since(self.opened);
        if age >= self.spec.window * STALE && self.seen < ENOUGH {
            self.open(now);
        }
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        match self.samples.len() < KEPT {
            true => self.samples.push(micros),
            false => self.samples[self.seen % KEPT] = micros,
        }
        self.seen += 1;
        if age < self.spec.window || self.seen < ENOUGH {
            return false;
        }
        let median = self.median();
        self.close(now, median, peak);
        self.open(now);
        true
    }

    fn open(&mut self, now: Instant) {
        self.opened = now;
        self.samples.clear();
        self.seen = 0;
    }

    fn median(&mut self) -> f64 {
        let middle = self.samples.len() / 2;
        let (_, median, _) = self.samples.select_nth_unstable(middle);
        f64::from((*median).max(1))
    }

    fn close(&mut self, now: Instant, median: f64, peak: u32) {
        match self.phase {
            Phase::Settles { before } => return self.phase = Phase::Measures { before },
            Phase::Measures { before } => {
                (self.base, self.measured, self.limit) = (Some(median), now, before);
                return self.phase = Phase::Follows;
            }
            Phase::Follows => {}
        }
        let (min, max) = (f64::from(self.spec.min), f64::from(self.spec.max));
        if now.saturating_duration_since(self.measured) >= self.spec.remeasure && self.limit > min {
            self.phase = Phase::Settles { before: self.limit };
            self.limit = (self.limit / 2.0).max(min);
            return;
        }
        let base = match self.base {
            Some(base) if self.limit > min => base.min(median),
            // With so few under way nothing waits.
            _ => {
                self.measured = now;
                median
            }
        };
        self.base = Some(base);
        let gradient = (base * (1.0 + TOLERANCE) / median).clamp(0.5, 1.0);
        let wanted = (gradient * self.limit + self.limit.sqrt()).clamp(min, max);
        let used = f64::from(peak) >= self.limit / 2.0;
        if wanted < self.limit || used {
            self.limit = wanted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cmp::Reverse;
    use std::collections::{BinaryHeap, VecDeque};

    const SPEC: GradientSpec = GradientSpec {
        min: 5,
        max: 1000,
        window: Duration::from_millis(100),
        remeasure: Duration::from_secs(10),
    };

    /// A server that works on so many requests at a time, each for so long; the others wait in line.
    struct Server {
        workers: usize,
        service: Duration,
        waiting: VecDeque<Instant>,
        /// When it finishes what it works on, and when that came.
        working: BinaryHeap<Reverse<(Instant, Instant)>>,
    }

    impl Server {
        fn under_way(&self) -> usize {
            self.waiting.len() + self.working.len()
        }

        fn arrive(&mut self, now: Instant) {
            self.waiting.push_back(now);
            self.work(now);
        }

        fn work(&mut self, now: Instant) {
            while self.working.len() < self.workers
                && let Some(came) = self.waiting.pop_front()
            {
                self.working.push(Reverse((now + self.service, came)));
            }
        }

        /// The next that is done by then, and how long it took.
        fn done(&mut self, by: Instant) -> Option<(Instant, Duration)> {
            let Reverse((at, came)) = *self.working.peek()?;
            if at > by {
                return None;
            }
            self.working.pop();
            self.work(at);
            Some((at, at - came))
        }
    }

    struct World {
        server: Server,
        gradient: Gradient,
        now: Instant,
        peak: u32,
        answered: u64,
        shed: u64,
    }

    impl World {
        fn new(workers: usize, service: Duration) -> Self {
            let now = Instant::now();
            let (waiting, working) = Default::default();
            let server = Server { workers, service, waiting, working };
            World { server, gradient: Gradient::new(SPEC, now), now, peak: 0, answered: 0, shed: 0 }
        }

        /// So long with so many requests a second, evenly; every step holds the limit's bounds.
        fn run(&mut self, rate: f64, time: Duration) {
            let gap = Duration::from_secs_f64(1.0 / rate);
            let end = self.now + time;
            while self.now < end {
                self.now += gap;
                while let Some((at, took)) = self.server.done(self.now) {
                    self.answered += 1;
                    if self.gradient.sample(at, took, self.peak) {
                        self.peak = self.server.under_way() as u32;
                    }
                    assert!((SPEC.min..=SPEC.max).contains(&self.gradient.limit()));
                }
                match self.server.under_way() < self.gradient.limit() as usize {
                    true => self.server.arrive(self.now),
                    false => self.shed += 1,
                }
                self.peak = self.peak.max(self.server.under_way() as u32);
            }
        }

        fn capacity(&self) -> f64 {
            self.server.workers as f64 / self.server.service.as_secs_f64()
        }
    }

    #[test]
    fn under_too_much_load_the_limit_comes_near_what_the_server_works_on() {
        let mut world = World::new(50, Duration::from_millis(20));
        world.run(2.0 * world.capacity(), Duration::from_secs(8));
        let limit = world.gradient.limit();
        assert!((50..=90).contains(&limit), "{limit}");
        // Nearly all that the server can do is done, and half of what came was sent away at once.
        let before = (world.answered, world.shed);
        world.run(2.0 * world.capacity(), Duration::from_secs(8));
        let answered = (world.answered - before.0) as f64 / (8.0 * world.capacity());
        assert!(answered > 0.95, "{answered}");
        assert!(world.shed > before.1);
    }

    #[test]
    fn a_server_with_room_loses_nothing() {
        let mut world = World::new(100, Duration::from_millis(20));
        world.run(0.5 * world.capacity(), Duration::from_secs(3));
        let shed = world.shed;
        world.run(0.5 * world.capacity(), Duration::from_secs(30));
        assert_eq!(world.shed, shed, "also while its base is measured anew");
    }

    #[test]
    fn a_server_that_slows_down_is_spared_and_one_that_recovers_is_used_again() {
        let mut world = World::new(60, Duration::from_millis(10));
        world.run(1.5 * world.capacity(), Duration::from_secs(5));
        assert!(world.gradient.limit() >= 50, "{}", world.gradient.limit());
        world.server.workers = 6;
        world.run(1.5 * world.capacity(), Duration::from_secs(15));
        assert!(world.gradient.limit() <= 20, "{}", world.gradient.limit());
        world.server.workers = 60;
        world.run(1.5 * world.capacity(), Duration::from_secs(15));
        assert!(world.gradient.limit() >= 50, "{}", world.gradient.limit());
    }

    #[test]
    fn a_server_that_became_slower_for_good_is_believed() {
        let mut world = World::new(40, Duration::from_millis(10));
        world.run(1.5 * world.capacity(), Duration::from_secs(5));
        world.server.service = Duration::from_millis(60);
        world.run(1.5 * world.capacity(), Duration::from_secs(25));
        assert!((36..=80).contains(&world.gradient.limit()), "{}", world.gradient.limit());
    }

    #[test]
    fn what_is_not_used_does_not_grow() {
        let mut world = World::new(1000, Duration::from_millis(10));
        // Some two under way.
        world.run(200.0, Duration::from_secs(60));
        assert!(world.gradient.limit() <= SPEC.min + 3, "{}", world.gradient.limit());
    }

    #[test]
    fn a_few_old_answers_decide_nothing() {
        let now = Instant::now();
        let mut gradient = Gradient::new(SPEC, now);
        for second in 0..100 {
            let ended = gradient.sample(now + Duration::from_secs(3 * second), Duration::from_millis(5), 100);
            assert!(!ended);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn it_finds_every_capacity(workers in 8usize..150, millis in 3u64..50, over in 1.3f64..4.0) {
            let mut world = World::new(workers, Duration::from_millis(millis));
            world.run(over * world.capacity(), Duration::from_secs(12));
            // The moment of measuring is half of it.
            let limit = f64::from(world.gradient.limit());
            let settled = match world.gradient.phase {
                Phase::Follows => limit,
                Phase::Settles { before } | Phase::Measures { before } => before,
            };
            let workers = workers as f64;
            prop_assert!(settled >= 0.9 * workers && settled <= 2.0 * workers + 10.0, "{settled} for {workers}");
        }

        #[test]
        fn whatever_is_measured_the_bounds_hold(steps in proptest::collection::vec((0u64..400, 0u64..5_000_000, 0u32..2000), 0..400)) {
            let mut now = Instant::now();
            let mut gradient = Gradient::new(SPEC, now);
            for (pause, took, peak) in steps {
                now += Duration::from_millis(pause);
                gradient.sample(now, Duration::from_micros(took), peak);
                prop_assert!((SPEC.min..=SPEC.max).contains(&gradient.limit()));
            }
        }
    }
}
