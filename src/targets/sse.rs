//! `protocol: sse`, an upstream's event stream passed on byte by byte, and watched.
//!
//! Bytes pass unchanged and at once. What the gateway adds (heartbeats, and an error event before it ends a stream
//! itself) it adds only where no event is under way. A stream that breaks or meets a limit inside an event is
//! aborted, so that half an event is never mistaken for a whole one; only an upstream's own end is a clean end.
//! Limits go by events: comments of the upstream keep nothing alive. Format: WHATWG HTML, section 9.2.
//!
//! When the caller's token expires or is revoked, the stream says so (`reauth`) where the event under way ends, and
//! ends; one that takes longer than [`LAST_EVENT`] is aborted. When the gateway goes down, its own grace is the bound.
//!
//! A response that is no event stream (an error, mostly) passes like any other, with the upstream's own deadlines.

use super::notice::{Leave, Notice};
use crate::exchange::{End, Exchange};
use crate::openapi::OperationDoc;
use crate::sse::{
    self, HEARTBEAT, IDLE, INTERRUPTED, Position, SHUTTING_DOWN, StreamTimes, TOKEN_EXPIRED, TOKEN_REVOKED,
    TOO_LONG,
};
use crate::telemetry::OpenStream;
use crate::tokens::TokenError;
use crate::upstream::{Primed, UpstreamBody};
use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// Whether a response is an event stream that can be read here.
pub(super) fn is_stream(response: &Response<UpstreamBody>) -> bool {
    sse::is_event_stream(response.status(), response.headers()) && !response.body().is_end_stream()
}

/// How long the event under way may still take when the caller's time is over.
const LAST_EVENT: Duration = Duration::from_secs(1);

/// Says how the gateway itself may end the event streams that a target answers with.
pub(super) fn document(op: &mut OperationDoc) {
    op.notices::<sse::Notice>("StreamNotice");
}

type Out = Poll<Option<io::Result<Frame<Bytes>>>>;

pin_project_lite::pin_project! {
    /// The body of a watched event stream.
    pub(super) struct EventStream<B = UpstreamBody> {
        // Gone once the stream has ended; with it goes the connection.
        #[pin]
        upstream: Option<B>,
        // One for all deadlines; not moved by events, only set anew when it fires too early or is too late.
        #[pin]
        timer: Option<Sleep>,
        open: OpenStream,
        exchange: Arc<Exchange>,
        times: StreamTimes,
        position: Position,
        began: Instant,
        // When the last event had come, once there was one.
        last_event: Option<Instant>,
        // When the caller was last sent something.
        last_bytes: Instant,
        // Whether bytes came since the clock was last read.
        moved: bool,
        notice: Notice,
        leave: Option<Leaving>,
        words: Words,
    }
}

/// Bytes of an event stream on their way.
pub(super) trait Events: Body<Data = Bytes, Error = io::Error> {
    /// Whether a death cannot be told from an end.
    fn close_delimited(&self) -> bool;
}

impl Events for UpstreamBody {
    fn close_delimited(&self) -> bool {
        UpstreamBody::close_delimited(self)
    }
}

impl Events for Primed {
    fn close_delimited(&self) -> bool {
        Primed::close_delimited(self)
    }
}

/// What a stream is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Words {
    /// Server-sent events.
    Events,
    /// JSON values, one a line; pieces are whole lines.
    Lines,
}

impl Words {
    /// An event of the gateway's own.
    fn say(self, event: &'static str) -> Bytes {
        let text = match self {
            Words::Events => event,
            // A blank line is no value.
            Words::Lines if event == HEARTBEAT => "\n",
            Words::Lines => event.split_once("data: ").map_or("\n", |(_, data)| data.trim_end_matches('\n')),
        };
        match self {
            Words::Lines if text != "\n" => Bytes::from(format!("{text}\n")),
            Words::Events | Words::Lines => Bytes::from_static(text.as_bytes()),
        }
    }
}

/// The word that came of the stream's end.
#[derive(Clone, Copy)]
struct Leaving {
    why: Leave,
    /// When it ends even inside an event.
    at_last: Option<Instant>,
}

impl<B: Events> EventStream<B> {
    /// Watches `body` from `began` (when its request came), counted by `open`; `notice` tells when it has to end.
    pub(super) fn new(
        body: B,
        exchange: Arc<Exchange>,
        open: OpenStream,
        times: StreamTimes,
        began: Instant,
        notice: Notice,
    ) -> Self {
        EventStream {
            open,
            upstream: Some(body),
            timer: None,
            exchange,
            times,
            position: Position::default(),
            began,
            last_event: None,
            last_bytes: Instant::now(),
            moved: false,
            notice,
            leave: None,
            words: Words::Events,
        }
    }

    /// Whatever the gateway says itself, in these words.
    pub(super) fn in_words(self, words: Words) -> Self {
        EventStream { words, ..self }
    }

    /// Ends the stream: with an event where none is under way, else with an abort.
    fn end(self: Pin<&mut Self>, end: End, event: &'static str) -> Out {
        let mut this = self.project();
        // Closes the upstream's connection.
        this.upstream.set(None);
        this.open.ended(end);
        this.exchange.ended(end);
        Poll::Ready(Some(match this.position.is_boundary() {
            true => Ok(Frame::data(this.words.say(event))),
            false => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "an event stream broke off inside an event"))
            }
        }))
    }

    /// Ends the stream if word of that has come, now or before, and no event is under way or took too long.
    fn poll_leave(mut self: Pin<&mut Self>, heard: Option<Leave>) -> Out {
        let this = self.as_mut().project();
        if let Some(why) = heard {
            let at_last = matches!(why, Leave::Reauth(_)).then(|| Instant::now() + LAST_EVENT);
            *this.leave = Some(Leaving { why, at_last });
        }
        match *this.leave {
            Some(Leaving { why, at_last })
                if this.position.is_boundary() || at_last.is_some_and(|end| Instant::now() >= end) =>
            {
                let event = match why {
                    Leave::Shutdown => SHUTTING_DOWN,
                    Leave::Reauth(TokenError::Expired) => TOKEN_EXPIRED,
                    Leave::Reauth(_) => TOKEN_REVOKED,
                };
                self.end(why.end(), event)
            }
            _ => Poll::Pending,
        }
    }

    /// Nothing has come: is it time for something? Wakes the task when it will be.
    fn poll_silence(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Out {
        let this = self.as_mut().project();
        if std::mem::take(this.moved) {
            *this.last_bytes = Instant::now();
            if std::mem::take(&mut this.position.event_ended) {
                *this.last_event = Some(*this.last_bytes);
            }
        }
        let heard = this.notice.listen(cx);
        if let Poll::Ready(out) = self.as_mut().poll_leave(heard) {
            return Poll::Ready(out);
        }
        loop {
            let mut this = self.as_mut().project();
            let max = *this.began + this.times.max;
            let event = match *this.last_event {
                Some(last) => last + this.times.idle,
                None => *this.began + this.times.first_event,
            };
            let at_last = this.leave.and_then(|leave| leave.at_last);
            let due = max.min(event).min(*this.last_bytes + this.times.heartbeat);
            let due = at_last.map_or(due, |at_last| at_last.min(due));
            match this.timer.as_mut().as_pin_mut() {
                None => this.timer.set(Some(tokio::time::sleep_until(due))),
                Some(timer) if timer.deadline() > due || timer.is_elapsed() => timer.reset(due),
                Some(_) => {}
            }
            let Some(timer) = this.timer.as_mut().as_pin_mut() else { return Poll::Pending };
            ready!(timer.poll(cx));
            let now = Instant::now();
            if at_last.is_some_and(|at_last| now >= at_last) {
                return self.poll_leave(None);
            }
            if now >= max {
                return self.end(End::StreamLimit, TOO_LONG);
            }
            if now >= event {
                return self.end(End::StreamLimit, IDLE);
            }
            if now >= *this.last_bytes + this.times.heartbeat {
                *this.last_bytes = now;
                if this.position.is_boundary() {
                    return Poll::Ready(Some(Ok(Frame::data(this.words.say(HEARTBEAT)))));
                }
            }
        }
    }
}

impl<B: Events> Body for EventStream<B> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Out {
        let mut this = self.as_mut().project();
        let heard = this.notice.heard();
        if this.upstream.is_some() && (heard.is_some() || this.leave.is_some()) {
            if let Poll::Ready(out) = self.as_mut().poll_leave(heard) {
                return Poll::Ready(out);
            }
            this = self.as_mut().project();
        }
        // An upstream that never pauses must not outrun its limit.
        if this.timer.as_ref().as_pin_ref().is_some_and(|timer| timer.is_elapsed())
            && this.upstream.is_some()
            && Instant::now() >= *this.began + this.times.max
        {
            return self.end(End::StreamLimit, TOO_LONG);
        }
        let Some(upstream) = this.upstream.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        let close_delimited = upstream.close_delimited();
        match upstream.poll_frame(cx) {
            Poll::Ready(Some(Ok(mut frame))) => {
                if let Some(data) = frame.data_ref() {
                    *this.moved = true;
                    match this.leave {
                        _ if *this.words == Words::Lines => {
                            this.position.event_ended = true;
                            this.open.events(data.iter().filter(|byte| **byte == b'\n').count() as u64);
                        }
                        None => this.open.events(this.position.read(data)),
                        // What comes behind the event under way is nobody's.
                        Some(_) => {
                            let (len, ended) = this.position.read_to_boundary(data);
                            this.open.events(ended);
                            frame = Frame::data(data.slice(..len));
                        }
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) if close_delimited && !this.position.is_boundary() => {
                self.end(End::UpstreamBroke, INTERRUPTED)
            }
            Poll::Ready(None) => {
                this.upstream.set(None);
                this.open.ended(End::Complete);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(_))) => self.end(End::UpstreamBroke, INTERRUPTED),
            Poll::Pending => self.poll_silence(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.upstream.is_none()
    }
}

#[cfg(test)]
mod tests;
