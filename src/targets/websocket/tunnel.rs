//! An open WebSocket: both directions in one task, its limits, and how it ends.
//!
//! | what happens | the caller gets | the upstream gets | `end` |
//! |---|---|---|---|
//! | either end says Close | what the other says | what the other says | `complete` |
//! | the caller is gone without a Close | | the same | `client_left` |
//! | the upstream is gone without a Close | 1011 | | `upstream_broke` |
//! | the caller's message is too big, it comes too fast, it is no WebSocket | 1009, 1008, 1002 | 1001 | `stream_limit` |
//! | the upstream's message is too big, it is no WebSocket | 1011 | 1009, 1002 | `upstream_broke` |
//! | the caller is silent in spite of a ping, or takes nothing | 1001 | 1001 | `stream_limit` |
//! | the upstream takes nothing | 1011 | | `upstream_broke` |
//! | the caller's token or key is over | 4401 | 1001 | `reauth` |
//! | a newer connection took its place | 4409 | 1001 | `replaced` |
//! | a reload removed the route | 1012 | 1001 | `route_removed` |
//! | the gateway goes down | 1001 | 1001 | `shutdown` |
//!
//! A Close of the gateway's own comes where the frame under way ends; both ends then have [`GOODBYE`] to answer it. An
//! end that says Close itself is waited for, for [`ANSWER`]; once both have, or one is gone, [`LINGER`] is left.

use super::super::notice::{Leave, Notice};
use super::flow::{End as Socket, Flow, Paces, Step};
use crate::exchange::{End, Exchange};
use crate::telemetry::OpenSocket;
use crate::tokens::TokenError;
use crate::ws::frame::{self, CloseCode, Violation};
use crate::ws::{Pace, SocketLimits};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// How long both ends have to answer a Close of the gateway's own.
const GOODBYE: Duration = Duration::from_secs(1);
/// How long an end has to answer the other's Close.
const ANSWER: Duration = Duration::from_secs(10);
/// How long what is left may take once one end is gone, or both have said Close.
const LINGER: Duration = Duration::from_secs(2);

/// Why the gateway ends a socket, as it is told from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// As it ends every long connection.
    Leave(Leave),
    /// The same caller has connected again.
    Replaced,
    /// A reload removed the route.
    RouteRemoved,
}

/// What a socket is opened with.
pub(super) struct Terms<S> {
    pub(super) limits: SocketLimits,
    /// How long either end may take nothing while there is something for it.
    pub(super) stall: Duration,
    pub(super) notice: Notice<Word>,
    pub(super) open: OpenSocket,
    pub(super) exchange: Arc<Exchange>,
    /// Held until the end, or until another takes it.
    pub(super) seat: Option<S>,
}

/// An open WebSocket; done when both connections are to be closed.
pub(super) struct Tunnel<C, U, S> {
    caller: C,
    upstream: U,
    /// From the caller to the upstream.
    up: Flow,
    /// From the upstream to the caller.
    down: Flow,
    terms: Terms<S>,
    /// Whether the gateway ends it.
    leaving: bool,
    /// How it ended; the first to say so is right.
    end: Option<End>,
    /// When it ends at last.
    until: Option<Instant>,
    /// When something came of the caller.
    heard: Instant,
    /// When the caller was last pinged, or something came of it.
    pinged: Instant,
    /// Whether a ping has gone since something came.
    asked: bool,
    /// Since when an end takes nothing, of each direction.
    stalled: [Option<Instant>; 2],
    /// One for all deadlines; not moved by frames, only set anew when it fires too early or is too late.
    timer: Pin<Box<Sleep>>,
}

impl<C: Socket, U: Socket, S> Tunnel<C, U, S> {
    /// Between these two, from now on.
    pub(super) fn new(caller: C, upstream: U, terms: Terms<S>) -> Self {
        let now = Instant::now();
        let limits = &terms.limits;
        let pace = |rate: Option<u64>| rate.map(|rate| Pace::new(rate, now));
        let paces = Paces { frames: pace(limits.max_rate), bytes: pace(limits.max_bytes_rate) };
        Tunnel {
            up: Flow::new(limits.max_message, paces),
            down: Flow::new(limits.max_message, Paces::default()),
            leaving: false,
            end: None,
            until: None,
            heard: now,
            pinged: now,
            asked: false,
            stalled: [None; 2],
            timer: Box::pin(tokio::time::sleep_until(now + limits.ping)),
            caller,
            upstream,
            terms,
        }
    }

    /// Ends it: each end gets its Close where the frame under way ends, unless one has passed.
    fn leave(&mut self, end: End, to_caller: (CloseCode, &str), to_upstream: (CloseCode, &str)) {
        self.end.get_or_insert(end);
        self.limit(GOODBYE);
        if !self.leaving {
            self.leaving = true;
            self.down.finish(frame::close(to_caller.0, to_caller.1, None));
            self.up.finish(frame::close(to_upstream.0, to_upstream.1, Some(rand::random())));
        }
    }

    fn told(&mut self, word: Word) {
        let away = (CloseCode::GOING_AWAY, "");
        match word {
            Word::Leave(Leave::Shutdown) => {
                self.leave(End::Shutdown, (CloseCode::GOING_AWAY, "shutting_down"), away);
            }
            Word::Leave(Leave::Reauth(why)) => {
                let reason = match why {
                    TokenError::Expired => "token_expired",
                    TokenError::Revoked | TokenError::Invalid => "token_revoked",
                };
                self.leave(End::Reauth, (CloseCode::REAUTH, reason), away);
            }
            Word::Replaced => {
                // Whoever came does not wait for the goodbye.
                self.terms.seat = None;
                self.leave(End::Replaced, (CloseCode::REPLACED, "replaced"), away);
            }
            Word::RouteRemoved => {
                self.leave(End::RouteRemoved, (CloseCode::RESTART, "route_removed"), away);
            }
        }
    }

    fn upstream_broke(&mut self) {
        let broke = (CloseCode::BROKE, "upstream_broke");
        self.leave(End::UpstreamBroke, broke, (CloseCode::GOING_AWAY, ""));
    }

    /// No longer than this from now on.
    fn limit(&mut self, left: Duration) {
        let until = Instant::now() + left;
        self.until = Some(self.until.map_or(until, |known| known.min(until)));
    }

    /// Moves the caller's bytes. Whether it is over.
    fn drive_up(&mut self, cx: &mut Context<'_>) -> bool {
        let closing = self.up.said_close();
        let away = (CloseCode::GOING_AWAY, "");
        loop {
            match self.up.drive(&mut self.caller, &mut self.upstream, cx) {
                Step::Waits | Step::Done => break,
                Step::Ended => {
                    if !self.said_close() && !self.leaving {
                        self.end.get_or_insert(End::ClientLeft);
                    }
                    self.limit(LINGER);
                }
                Step::ReadBroke => {
                    if !self.said_close() {
                        self.end.get_or_insert(End::ClientLeft);
                    }
                    return true;
                }
                Step::WriteBroke(_) => {
                    // What it said last may still stand to be read.
                    self.up.go_deaf();
                    self.limit(LINGER);
                }
                Step::Violated(Violation::TooBig) => {
                    self.leave(End::StreamLimit, (CloseCode::TOO_BIG, "message_too_big"), away);
                }
                Step::Violated(Violation::BadLength) => {
                    self.leave(End::StreamLimit, (CloseCode::PROTOCOL, "bad_length"), away);
                }
                Step::TooFast => self.leave(End::StreamLimit, (CloseCode::POLICY, "rate_limited"), away),
            }
        }
        if self.up.passed > 0 {
            self.terms.exchange.add_bytes_in(std::mem::take(&mut self.up.passed));
        }
        self.close_passed(closing, self.up.said_close());
        false
    }

    /// Moves the upstream's bytes. Whether it is over.
    fn drive_down(&mut self, cx: &mut Context<'_>) -> bool {
        let closing = self.down.said_close();
        loop {
            match self.down.drive(&mut self.upstream, &mut self.caller, cx) {
                Step::Waits | Step::Done => break,
                Step::Ended | Step::ReadBroke => match self.said_close() || self.up.has_ended() {
                    // Nobody is left to be told, or both know.
                    true => self.limit(LINGER),
                    false => self.upstream_broke(),
                },
                Step::WriteBroke(why) => {
                    if !self.said_close() {
                        let stalled = why == io::ErrorKind::TimedOut;
                        self.end.get_or_insert(if stalled { End::StreamLimit } else { End::ClientLeft });
                    }
                    return true;
                }
                Step::Violated(violation) => {
                    let told = match violation {
                        Violation::TooBig => (CloseCode::TOO_BIG, "message_too_big"),
                        Violation::BadLength => (CloseCode::PROTOCOL, "bad_length"),
                    };
                    self.leave(End::UpstreamBroke, (CloseCode::BROKE, "upstream_broke"), told);
                }
                // The upstream may be as fast as the caller reads.
                Step::TooFast => {}
            }
        }
        if self.down.passed > 0 {
            self.terms.exchange.add_bytes_out(std::mem::take(&mut self.down.passed));
        }
        self.close_passed(closing, self.down.said_close());
        false
    }

    /// Whether either end has said Close.
    fn said_close(&self) -> bool {
        self.up.said_close() || self.down.said_close()
    }

    /// A Close has passed, if none had before.
    fn close_passed(&mut self, before: bool, now: bool) {
        if before || !now || self.leaving {
            return;
        }
        self.end.get_or_insert(End::Complete);
        let both = self.up.said_close() && self.down.said_close();
        self.limit(if both { LINGER } else { ANSWER });
    }

    fn is_over(&self) -> bool {
        let both_ended = self.up.has_ended() && self.down.has_ended();
        let settled = self.up.is_settled() && self.down.is_settled();
        settled && (self.leaving || both_ended)
    }

    /// Deadlines: what is due is done. Whether it is over; if something was put in, `drove` is unset.
    fn watch(&mut self, cx: &mut Context<'_>, put_in: &mut bool) -> bool {
        let moved =
            [(self.up.is_blocked(), &mut self.up.went), (self.down.is_blocked(), &mut self.down.went)];
        let came = std::mem::take(&mut self.up.came);
        if came || moved[0].0 || moved[1].0 || self.stalled != [None; 2] {
            let now = Instant::now();
            for ((blocked, went), since) in moved.into_iter().zip(&mut self.stalled) {
                *since = match (blocked, std::mem::take(went)) {
                    (false, _) => None,
                    (true, true) => Some(now),
                    (true, false) => Some(since.unwrap_or(now)),
                };
            }
            // Who is not read cannot be heard.
            if came || self.stalled[0].is_some() {
                (self.heard, self.pinged, self.asked) = (now, now, false);
            }
        }
        let SocketLimits { ping, idle, .. } = self.terms.limits;
        loop {
            let quiet = self.leaving || self.said_close() || self.up.has_ended();
            let mut due = self.until;
            let mut sooner = |at: Instant| due = Some(due.map_or(at, |due| due.min(at)));
            self.stalled.iter().flatten().for_each(|since| sooner(*since + self.terms.stall));
            if !quiet {
                sooner(self.pinged + ping);
                if self.asked {
                    sooner(self.heard + idle);
                }
            }
            let Some(due) = due else { return false };
            if self.timer.deadline() > due || self.timer.is_elapsed() {
                self.timer.as_mut().reset(due);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return false;
            }
            let now = Instant::now();
            let too_long =
                |since: Option<Instant>| since.is_some_and(|since| now >= since + self.terms.stall);
            if self.until.is_some_and(|until| now >= until) {
                return true;
            }
            if too_long(self.stalled[1]) {
                self.end.get_or_insert(End::StreamLimit);
                return true;
            }
            if too_long(self.stalled[0]) {
                self.up.go_deaf();
                self.stalled[0] = None;
                self.upstream_broke();
                *put_in = true;
                return false;
            }
            if quiet {
                continue;
            }
            if self.asked && now >= self.heard + idle {
                let away = (CloseCode::GOING_AWAY, "");
                self.leave(End::StreamLimit, (CloseCode::GOING_AWAY, "idle"), away);
                *put_in = true;
                return false;
            }
            if now >= self.pinged + ping {
                self.pinged = now;
                if self.down.put_in(frame::ping()) {
                    self.asked = true;
                    *put_in = true;
                    return false;
                }
            }
        }
    }
}

impl<C: Socket, U: Socket, S: Unpin> Future for Tunnel<C, U, S> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if let Some(word) = this.terms.notice.listen(cx) {
            this.told(word);
        }
        loop {
            let before = this.leaving;
            if this.drive_up(cx) || this.drive_down(cx) {
                return Poll::Ready(());
            }
            // What was put in by the second direction has to go out by the first.
            let mut again = this.leaving != before;
            if this.is_over() || this.watch(cx, &mut again) {
                return Poll::Ready(());
            }
            if !again {
                return Poll::Pending;
            }
        }
    }
}

impl<C, U, S> Drop for Tunnel<C, U, S> {
    fn drop(&mut self) {
        let end = self.end.unwrap_or(End::ClientLeft);
        self.terms.open.ended(end);
        self.terms.exchange.ended(end);
    }
}
