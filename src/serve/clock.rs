//! The deadlines of one connection while it is served; `connection` has the table of them.
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

use super::{framing::Phase, io::Vitals, limits::Limits};

/// How long an HTTP/1 connection rests before hyper has to let go of it: so long for each request that it had, up to
/// [`BUSY`]. Taking it up again costs about a microsecond, which is little for a connection that asks seldom; one that
/// asks often is left alone; and of many that come at once and ask once, few hold buffers at the same time.
pub(super) const REST_AFTER: Duration = Duration::from_millis(25);
/// A connection that had so many requests is a busy one.
const BUSY: u64 = 16;

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    Http2,
}

/// The deadline that applies now, recomputed each time the connection was polled; one timer, moved seldom.
pub(super) struct Clock {
    header_timeout: Duration,
    keep_alive_timeout: Duration,
    write_stall: Duration,
    /// What the connection was doing, and since when if that has mattered yet.
    state: (Phase, u64, bool),
    since: Option<Instant>,
    last_call: Option<Instant>,
    may_rest: bool,
    timer: Option<Pin<Box<Sleep>>>,
    armed: bool,
}

/// A deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The connection rests, and nothing needs to be held for it.
    Rest,
    /// The connection rests and may be closed in order.
    Idle,
    /// The peer owes us something and may be dropped.
    Late,
}

impl Clock {
    pub(super) fn new(limits: &Limits, opened: Instant) -> Self {
        Self {
            header_timeout: limits.header_timeout,
            keep_alive_timeout: limits.keep_alive_timeout,
            write_stall: limits.write_stall,
            state: (Phase::Idle, 0, false),
            since: Some(opened),
            last_call: None,
            may_rest: false,
            timer: None,
            armed: false,
        }
    }

    /// Whether somebody wants to know when it rests ([`Verdict::Rest`]).
    pub(super) fn may_rest(&mut self, may: bool) {
        self.may_rest = may;
    }

    /// A peer that was told to go and has nothing to wait for is dropped after a while, whatever it does.
    pub(super) fn last_call(&mut self) {
        self.last_call = Some(Instant::now() + self.write_stall);
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>, vitals: &Vitals, version: Version) -> Poll<Verdict> {
        loop {
            let (at, verdict) = match self.due(vitals, version) {
                Some(due) => due,
                None => return Poll::Pending,
            };
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
            // A timer that goes off too early is moved then; moving it for each request would cost more.
            if !self.armed || at < timer.deadline() {
                timer.as_mut().reset(at);
                self.armed = true;
            }
            ready!(timer.as_mut().poll(cx));
            self.armed = false;
            if let Some(verdict) = verdict.filter(|_| Instant::now() >= at) {
                return Poll::Ready(verdict);
            }
            if verdict.is_none() {
                self.since = None;
            }
        }
    }

    /// When to act and how; without a verdict, when to look again.
    fn due(&mut self, vitals: &Vitals, version: Version) -> Option<(Instant, Option<Verdict>)> {
        let state = (vitals.phase(), vitals.started(), vitals.is_busy());
        let (phase, started, busy) = state;
        // The time for the first head runs from the beginning, not from its first byte.
        let first = started == 0 && !busy;
        if state != self.state {
            self.state = state;
            if !first {
                self.since = None;
            }
        }
        if busy && version == Version::Http1 {
            return None;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        let rest = since + self.keep_alive_timeout;
        if busy {
            // The last HTTP/2 stream ends on a task of its own, which does not wake this one.
            return Some((rest, None));
        }
        if let Some(at) = self.last_call {
            return Some((at, Some(Verdict::Late)));
        }
        match (version, phase) {
            (Version::Http2, _) => Some((rest, Some(Verdict::Idle))),
            (Version::Http1, Phase::Idle) if !first => {
                let light = since + REST_AFTER * started.min(BUSY) as u32;
                let lighter = self.may_rest && light < rest && !vitals.is_held();
                Some(if lighter { (light, Some(Verdict::Rest)) } else { (rest, Some(Verdict::Idle)) })
            }
            (Version::Http1, Phase::Idle | Phase::Head) => {
                Some((since + self.header_timeout, Some(Verdict::Late)))
            }
            (Version::Http1, Phase::Body) => None,
        }
    }
}
