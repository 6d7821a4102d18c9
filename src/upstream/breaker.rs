//! The circuit breaker: stops sending to what fails, and finds out with one request whether it is well again.
//!
//! Closed, it counts the outcomes of a window; when enough of them failed or were slow it opens, and requests are refused
//! at once. After `open_for` it lets exactly one through (half-open): a good outcome closes it, a bad one opens it for as
//! long again. A probe whose caller leaves decides nothing and gives its place back.
//!
//! Failures are what the server's side did: no connection, a reset, a bad or late answer, 502, 503 and 504. Other
//! answers count as good, also 500: that server works, whatever is wrong with the request. What callers or the gateway's
//! own limits end is not counted. Time is an argument: milliseconds since the upstream began.

use super::outcome::Outcome;
use super::spec::BreakerSpec;
use super::window::{Counts, Window};
use crate::error::Kind;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// How long requests are told to wait while a probe is under way, in milliseconds.
const PROBING: u64 = 1000;

/// Whether it lets requests through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Circuit {
    /// It does.
    Closed,
    /// One at a time, to see whether it should.
    HalfOpen,
    /// It does not.
    Open,
}

/// A breaker.
#[derive(Debug)]
pub(super) struct Breaker {
    spec: BreakerSpec,
    window: Window,
    state: AtomicU64,
    probes: AtomicU64,
    /// Told of every change, with the counts that made it.
    changed: Changed,
}

/// Who is told of changes.
#[derive(Clone)]
pub(super) struct Changed(pub(super) Arc<dyn Fn(Circuit, Counts) + Send + Sync>);

impl std::fmt::Debug for Changed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Changed")
    }
}

/// Two bits of kind and a value in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    /// Until then.
    Open(u64),
    /// While the probe of this number is under way.
    HalfOpen(u64),
}

impl State {
    fn word(self) -> u64 {
        match self {
            State::Closed => 0,
            State::Open(until) => until << 2 | 1,
            State::HalfOpen(probe) => probe << 2 | 2,
        }
    }

    fn of(word: u64) -> Self {
        match word & 3 {
            0 => State::Closed,
            1 => State::Open(word >> 2),
            _ => State::HalfOpen(word >> 2),
        }
    }
}

/// A request that a breaker let through. Dropped without [`tell`](Self::tell), nobody knows how it ended.
#[derive(Debug)]
pub(super) struct Passage {
    breaker: Arc<Breaker>,
    /// The probe that it is.
    probe: Option<u64>,
}

/// It lets nobody through for so many milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused(pub(super) u64);

impl Breaker {
    pub(super) fn new(spec: BreakerSpec, changed: Changed) -> Arc<Self> {
        let window = Window::new(spec.window.as_millis() as u64);
        Arc::new(Breaker { spec, window, state: AtomicU64::new(0), probes: AtomicU64::new(0), changed })
    }

    /// Lets a request through, or says how long none is.
    pub(super) fn admit(self: &Arc<Self>, now: u64) -> Result<Passage, Refused> {
        let word = self.state.load(SeqCst);
        let probe = match State::of(word) {
            State::Closed => None,
            State::Open(until) if now < until => return Err(Refused(until - now)),
            State::Open(_) => {
                let probe = self.probes.fetch_add(1, SeqCst);
                let next = State::HalfOpen(probe).word();
                if self.state.compare_exchange(word, next, SeqCst, SeqCst).is_err() {
                    return Err(Refused(PROBING));
                }
                (self.changed.0)(Circuit::HalfOpen, Counts::default());
                Some(probe)
            }
            State::HalfOpen(_) => return Err(Refused(PROBING)),
        };
        Ok(Passage { breaker: self.clone(), probe })
    }

    /// Whether it lets requests through.
    pub(super) fn circuit(&self) -> Circuit {
        match State::of(self.state.load(SeqCst)) {
            State::Closed => Circuit::Closed,
            State::Open(_) => Circuit::Open,
            State::HalfOpen(_) => Circuit::HalfOpen,
        }
    }

    /// Milliseconds until it lets somebody through, if it does not.
    pub(super) fn opens_in(&self, now: u64) -> Option<u64> {
        match State::of(self.state.load(SeqCst)) {
            State::Open(until) => Some(until.saturating_sub(now)),
            State::Closed | State::HalfOpen(_) => None,
        }
    }

    /// All, failed and slow requests of the window.
    pub(super) fn counts(&self, now: u64) -> Counts {
        self.window.counts(now)
    }

    /// Closes it, whatever was counted.
    pub(super) fn reset(&self) {
        self.window.clear();
        if self.state.swap(State::Closed.word(), SeqCst) != State::Closed.word() {
            (self.changed.0)(Circuit::Closed, Counts::default());
        }
    }

    /// Whether an outcome is good; none where it says nothing.
    fn verdict(&self, outcome: Outcome) -> Option<Counts> {
        let (failed, slow) = match outcome {
            Outcome::Answered { status, took } => {
                (matches!(status, 502..=504), self.spec.slow_call.is_some_and(|slow| took > slow))
            }
            // A deadline that passed is slow as well as failed; one of the two is enough.
            Outcome::Failed(kind) => match kind {
                Kind::UpstreamSaturated | Kind::UpstreamUnavailable => return None,
                _ => (true, false),
            },
            Outcome::Abandoned => return None,
        };
        Some(Counts([1, u64::from(failed), u64::from(slow)]))
    }

    /// Whether it lets requests through and has seen most of them end well.
    pub(super) fn is_well(&self, now: u64) -> bool {
        let Counts([all, failed, slow]) = self.window.counts(now);
        let below = |count: u64, ratio: f64| (count as f64) < all as f64 * ratio;
        self.circuit() == Circuit::Closed
            && below(failed, self.spec.failure_ratio)
            && (self.spec.slow_call.is_none() || below(slow, self.spec.slow_ratio))
    }

    /// An answer that was counted as good turned out not to be.
    pub(super) fn broke_off(&self, now: u64) {
        self.note(Counts([0, 1, 0]), now);
    }

    fn note(&self, counts: Counts, now: u64) {
        let word = self.state.load(SeqCst);
        if State::of(word) != State::Closed {
            // It was let through before.
            return;
        }
        self.window.add(now, counts);
        if counts.0[1] == 0 && counts.0[2] == 0 {
            return;
        }
        let sum = self.window.counts(now);
        let Counts([all, failed, slow]) = sum;
        let share = |count: u64| count as f64 / all.max(1) as f64;
        let trips = all >= u64::from(self.spec.min_requests)
            && (share(failed) >= self.spec.failure_ratio && failed > 0
                || self.spec.slow_call.is_some() && share(slow) >= self.spec.slow_ratio && slow > 0);
        if trips && self.open(word, now) {
            (self.changed.0)(Circuit::Open, sum);
        }
    }

    fn open(&self, from: u64, now: u64) -> bool {
        let until = now + self.spec.open_for.as_millis() as u64;
        let opened = self.state.compare_exchange(from, State::Open(until).word(), SeqCst, SeqCst).is_ok();
        if opened {
            self.window.clear();
        }
        opened
    }

    fn probed(&self, probe: u64, counts: Option<Counts>, now: u64) {
        let word = State::HalfOpen(probe).word();
        match counts {
            // Nobody knows: the next may try at once.
            None => {
                let _ = self.state.compare_exchange(word, State::Open(0).word(), SeqCst, SeqCst);
            }
            Some(Counts([_, 0, 0])) => {
                self.window.clear();
                if self.state.compare_exchange(word, State::Closed.word(), SeqCst, SeqCst).is_ok() {
                    (self.changed.0)(Circuit::Closed, Counts::default());
                }
            }
            Some(bad) => {
                if self.open(word, now) {
                    (self.changed.0)(Circuit::Open, bad);
                }
            }
        }
    }
}

impl Passage {
    /// Whether it is the one that finds out.
    pub(super) fn is_probe(&self) -> bool {
        self.probe.is_some()
    }

    /// Whether an outcome speaks against the server.
    pub(super) fn is_bad(&self, outcome: Outcome) -> bool {
        self.breaker.verdict(outcome).is_some_and(|Counts([_, failed, slow])| failed + slow > 0)
    }

    /// Says how it ended.
    pub(super) fn tell(mut self, outcome: Outcome, now: u64) {
        let counts = self.breaker.verdict(outcome);
        match (self.probe.take(), counts) {
            (Some(probe), counts) => self.breaker.probed(probe, counts, now),
            (None, Some(counts)) => self.breaker.note(counts, now),
            (None, None) => {}
        }
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        if let Some(probe) = self.probe.take() {
            self.breaker.probed(probe, None, 0);
        }
    }
}

#[cfg(test)]
mod tests;
