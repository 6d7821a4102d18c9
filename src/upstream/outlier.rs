//! Finds servers that their traffic says to be broken or slow, and lets them rest (outlier detection; the words and
//! the rules are Envoy's, but for slowness and the way back).
//!
//! A request only counts what it saw, without a lock. One task looks at the counts and decides: on every tick, and at
//! once when a server failed too often in a row. What counts against a server are tries that got no answer because of
//! it, and 502, 503 and 504; any other answer is one, whatever it says. A caller who left says nothing.
//!
//! *Out*: `consecutive_failures`; `failure_ratio` of the last `interval`; `slow_ratio` of answers over `slow_call`;
//! and answers that take `slow_factor` times as long as those of the others, on average and beyond chance. Never more
//! than `max_ejected` of the servers, and never the last that takes requests.
//!
//! *Back*: after `eject_for`, times the number of ejections, a server is on trial: it takes one request at a time.
//! [`TRIALS`] good ones in a row bring it back; the first failure, or slow answer of one that was slow, sends it away
//! for longer. So what is still broken costs one request, not a second one of everybody's.
//!
//! Time is an argument: milliseconds since the upstream began.

use super::outcome::Outcome;
use super::spec::OutlierSpec;
use super::standing::{DOWN, DRAINED, EJECTED, Standing, TRIAL};
use crate::error::Kind;
use serde::Serialize;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Good answers in a row that end a trial.
const TRIALS: u32 = 3;
/// Parts of the interval; what is older than it is forgotten by the part.
const PARTS: usize = 10;
/// What answers have to be slower by, in milliseconds, to be slower than others' at all.
const NOTICEABLE: f64 = 100.0;
/// How many standard errors are no chance any more.
const BEYOND_CHANCE: f64 = 5.0;
/// Longer answers count as this long, in milliseconds.
const LONGEST: u64 = 600_000;

/// What is known of a server's traffic.
#[derive(Debug)]
pub(super) struct Conduct {
    limits: Limits,
    /// Failures in a row.
    streak: AtomicU32,
    parts: [Part; PARTS],
    trial: Trial,
    /// Of the one task that decides, and of who asks how it is.
    record: Mutex<Record>,
}

/// What a request needs to know of the rules.
#[derive(Debug, Clone, Copy)]
struct Limits {
    part_millis: u64,
    streak: u32,
    slow_millis: u64,
}

/// Counts of a part of the interval.
#[derive(Debug, Default)]
struct Part {
    /// Which part, counted from the beginning of time.
    era: AtomicU64,
    failures: AtomicU32,
    answers: AtomicU32,
    slow: AtomicU32,
    millis: AtomicU64,
    squares: AtomicU64,
}

/// How a trial goes.
#[derive(Debug, Default)]
struct Trial {
    from: AtomicU64,
    slow_millis: AtomicU64,
    good: AtomicU32,
    bad: AtomicU32,
}

/// Its ejections.
#[derive(Debug, Default, Clone, Copy)]
struct Record {
    /// When the current ends.
    until: u64,
    /// How many count, for the length of the next.
    times: u32,
    /// When it last came back, or an ejection was forgiven.
    back: u64,
    why: Option<Reason>,
}

/// Why a server was ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Failures in a row.
    ConsecutiveFailures,
    /// Too large a share of failures.
    FailureRatio,
    /// Answers that take too long.
    Slow,
}

/// What happened to a server.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Event {
    /// It rests for so long.
    Ejected(Reason, Duration),
    /// It may show whether it is well.
    OnTrial,
    /// It is well.
    Back,
}

/// A server as the detector sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member<'a> {
    pub(super) standing: &'a Standing,
    pub(super) conduct: &'a Conduct,
}

/// Counts of the whole interval.
#[derive(Debug, Default, Clone, Copy)]
struct Sums {
    failures: f64,
    answers: f64,
    slow: f64,
    millis: f64,
    squares: f64,
}

impl Reason {
    /// All of them.
    pub const ALL: [Reason; 3] = [Reason::ConsecutiveFailures, Reason::FailureRatio, Reason::Slow];

    /// The word for logs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Reason::ConsecutiveFailures => "consecutive_failures",
            Reason::FailureRatio => "failure_ratio",
            Reason::Slow => "slow",
        }
    }
}

/// Whether it speaks against the server that a try ended so; `None` if that says nothing.
fn verdict(outcome: Outcome) -> Option<bool> {
    match outcome {
        Outcome::Answered { status, .. } => Some(matches!(status, 502..=504)),
        Outcome::Failed(
            Kind::UpstreamUnreachable
            | Kind::UpstreamReset
            | Kind::UpstreamBadResponse
            | Kind::UpstreamTimeout,
        ) => Some(true),
        // Every connection in use is our own limit.
        Outcome::Failed(_) | Outcome::Abandoned => None,
    }
}

impl Conduct {
    pub(super) fn new(spec: &OutlierSpec) -> Self {
        let limits = Limits {
            part_millis: (spec.interval.as_millis() as u64 / PARTS as u64).max(1),
            streak: spec.consecutive_failures,
            slow_millis: spec.slow_call.map_or(u64::MAX, |slow| slow.as_millis() as u64),
        };
        Conduct {
            limits,
            streak: AtomicU32::new(0),
            parts: Default::default(),
            trial: Trial::default(),
            record: Mutex::default(),
        }
    }

    /// Takes note of how a try ended; whether somebody should look at it now.
    pub(super) fn note(&self, standing: &Standing, outcome: Outcome, now: u64) -> bool {
        let failed = verdict(outcome);
        let took = match outcome {
            Outcome::Answered { took, .. } => took.as_millis() as u64,
            _ => 0,
        };
        if standing.has(TRIAL) {
            return self.tried(standing, failed, took, now);
        }
        let Some(failed) = failed else { return false };
        let part = self.part(now);
        if failed {
            part.failures.fetch_add(1, Relaxed);
            return self.streak.fetch_add(1, Relaxed) + 1 == self.limits.streak;
        }
        if self.streak.load(Relaxed) != 0 {
            self.streak.store(0, Relaxed);
        }
        let took_at_most = took.min(LONGEST);
        part.answers.fetch_add(1, Relaxed);
        part.millis.fetch_add(took_at_most, Relaxed);
        part.squares.fetch_add(took_at_most * took_at_most, Relaxed);
        if took > self.limits.slow_millis {
            part.slow.fetch_add(1, Relaxed);
        }
        false
    }

    fn tried(&self, standing: &Standing, failed: Option<bool>, took: u64, now: u64) -> bool {
        let trial = &self.trial;
        // What began before the trial says nothing about it.
        if now.saturating_sub(took) < trial.from.load(Relaxed) {
            return false;
        }
        if let Some(failed) = failed {
            let bad = failed || took > trial.slow_millis.load(Relaxed);
            (if bad { &trial.bad } else { &trial.good }).fetch_add(1, Relaxed);
        }
        standing.release();
        failed.is_some()
    }

    /// The part of the interval that is now.
    fn part(&self, now: u64) -> &Part {
        let era = now / self.limits.part_millis;
        let part = &self.parts[(era % PARTS as u64) as usize];
        let before = part.era.load(Relaxed);
        if before != era && part.era.compare_exchange(before, era, Relaxed, Relaxed).is_ok() {
            // What another thread counts here meanwhile may be lost: one request in thousands.
            part.clear();
        }
        part
    }

    fn sums(&self, now: u64) -> Sums {
        let era = now / self.limits.part_millis;
        let recent =
            |part: &&Part| (era.saturating_sub(PARTS as u64 - 1)..=era).contains(&part.era.load(Relaxed));
        self.parts.iter().filter(recent).fold(Sums::default(), |sums, part| sums.plus(Sums::of(part)))
    }

    fn forget(&self) {
        self.streak.store(0, Relaxed);
        self.parts.iter().for_each(Part::clear);
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why it was last ejected, and how many ejections are held against it.
    pub(super) fn ejections(&self) -> (Option<Reason>, u32) {
        let record = self.record();
        (record.why, record.times)
    }

    /// Milliseconds until its ejection ends, if it is ejected.
    pub(super) fn left(&self, standing: &Standing, now: u64) -> Option<u64> {
        standing.has(EJECTED).then(|| self.record().until.saturating_sub(now))
    }
}

impl Part {
    fn clear(&self) {
        [&self.failures, &self.answers, &self.slow].into_iter().for_each(|count| count.store(0, Relaxed));
        [&self.millis, &self.squares].into_iter().for_each(|sum| sum.store(0, Relaxed));
    }
}

impl Sums {
    fn of(part: &Part) -> Self {
        Sums {
            failures: part.failures.load(Relaxed).into(),
            answers: part.answers.load(Relaxed).into(),
            slow: part.slow.load(Relaxed).into(),
            millis: part.millis.load(Relaxed) as f64,
            squares: part.squares.load(Relaxed) as f64,
        }
    }

    fn plus(self, other: Sums) -> Sums {
        Sums {
            failures: self.failures + other.failures,
            answers: self.answers + other.answers,
            slow: self.slow + other.slow,
            millis: self.millis + other.millis,
            squares: self.squares + other.squares,
        }
    }

    /// How long an answer took on average, and the square of the standard error of that.
    fn mean(&self) -> (f64, f64) {
        let mean = self.millis / self.answers;
        (mean, ((self.squares / self.answers - mean * mean) / self.answers).max(0.0))
    }
}

impl OutlierSpec {
    /// How many of so many may be ejected: the share rounded up, but never all.
    pub(super) fn ceiling(&self, servers: usize) -> usize {
        ((self.max_ejected * servers as f64).ceil() as usize).min(servers.saturating_sub(1))
    }

    /// Decides about all servers that take a share; says what happened to which. Called by one task only.
    pub(super) fn sweep(&self, servers: &[Member<'_>], now: u64) -> Vec<(usize, Event)> {
        let mut events = Vec::new();
        for (index, server) in servers.iter().enumerate() {
            if server.standing.has(EJECTED) && now >= server.conduct.record().until {
                self.begin_trial(servers, index, now);
                events.push((index, Event::OnTrial));
            } else if server.standing.has(TRIAL)
                && let Some(event) = self.judge_trial(server, now)
            {
                events.push((index, event));
            }
        }
        for (index, server) in servers.iter().enumerate() {
            if server.standing.has(EJECTED | TRIAL | DRAINED) {
                continue;
            }
            self.forgive(server.conduct, now);
            let Some(reason) = self.fault(servers, index, now) else { continue };
            let out = servers.iter().filter(|server| server.standing.has(EJECTED | TRIAL)).count();
            let others = servers.iter().enumerate().any(|(other, server)| {
                other != index && !server.standing.has(DOWN | EJECTED | TRIAL | DRAINED)
            });
            if others && out < self.ceiling(servers.len()) {
                events.push((index, self.eject(server, reason, now)));
            }
        }
        events
    }

    fn eject(&self, server: &Member<'_>, reason: Reason, now: u64) -> Event {
        let mut record = server.conduct.record();
        record.times += 1;
        record.why = Some(reason);
        let rest = (self.eject_for * record.times).min(self.max_eject_for.max(self.eject_for));
        record.until = now + rest.as_millis() as u64;
        drop(record);
        server.standing.set(EJECTED, true);
        server.standing.set(TRIAL, false);
        Event::Ejected(reason, rest)
    }

    fn begin_trial(&self, servers: &[Member<'_>], index: usize, now: u64) {
        let Member { standing, conduct } = servers[index];
        let slow = match conduct.record().why {
            Some(Reason::Slow) => {
                let relative =
                    self.slow_factor.zip(self.others(servers, index, now)).map(|(factor, others)| {
                        let (mean, _) = others.mean();
                        (mean * factor).max(mean + NOTICEABLE) as u64
                    });
                relative.unwrap_or(u64::MAX).min(conduct.limits.slow_millis)
            }
            // What comes back from the dead may be slow at first.
            _ => u64::MAX,
        };
        conduct.trial.from.store(now, Relaxed);
        conduct.trial.slow_millis.store(slow, Relaxed);
        conduct.trial.good.store(0, Relaxed);
        conduct.trial.bad.store(0, Relaxed);
        standing.release();
        standing.set(TRIAL, true);
        standing.set(EJECTED, false);
    }

    fn judge_trial(&self, server: &Member<'_>, now: u64) -> Option<Event> {
        let trial = &server.conduct.trial;
        if trial.bad.load(Relaxed) > 0 {
            let why = server.conduct.record().why.unwrap_or(Reason::ConsecutiveFailures);
            return Some(self.eject(server, why, now));
        }
        if trial.good.load(Relaxed) < TRIALS {
            return None;
        }
        server.conduct.forget();
        server.conduct.record().back = now;
        server.standing.set(TRIAL, false);
        Some(Event::Back)
    }

    /// Each time of an ejection's length without another makes up for one.
    fn forgive(&self, conduct: &Conduct, now: u64) {
        let mut record = conduct.record();
        if record.times > 0 && now.saturating_sub(record.back) >= self.eject_for.as_millis() as u64 {
            record.times -= 1;
            record.back = now;
        }
    }

    /// What speaks against a server.
    fn fault(&self, servers: &[Member<'_>], index: usize, now: u64) -> Option<Reason> {
        let conduct = servers[index].conduct;
        if conduct.streak.load(Relaxed) >= self.consecutive_failures {
            return Some(Reason::ConsecutiveFailures);
        }
        let (sums, least) = (conduct.sums(now), f64::from(self.min_requests));
        if sums.failures + sums.answers >= least
            && sums.failures >= self.failure_ratio * (sums.failures + sums.answers)
        {
            return Some(Reason::FailureRatio);
        }
        if sums.answers < least {
            return None;
        }
        let slow = self.slow_call.is_some() && sums.slow >= self.slow_ratio * sums.answers;
        let slower = || {
            let (factor, others) = self.slow_factor.zip(self.others(servers, index, now))?;
            let ((mine, my_error), (theirs, their_error)) = (sums.mean(), others.mean());
            let more = mine - theirs;
            (mine > factor * theirs
                && more >= NOTICEABLE
                && more > BEYOND_CHANCE * (my_error + their_error).sqrt())
            .then_some(())
        };
        (slow || slower().is_some()).then_some(Reason::Slow)
    }

    /// What the others that are in service and have enough to show did together.
    fn others(&self, servers: &[Member<'_>], index: usize, now: u64) -> Option<Sums> {
        let others = servers.iter().enumerate().filter(|(other, server)| {
            *other != index && !server.standing.has(DOWN | EJECTED | TRIAL | DRAINED)
        });
        let sums = others.map(|(_, server)| server.conduct.sums(now));
        sums.filter(|sums| sums.answers >= f64::from(self.min_requests)).reduce(Sums::plus)
    }
}

#[cfg(test)]
mod tests;
