//! `protocol: sse`, an upstream's event stream passed on byte by byte, and watched.
//!
//! Bytes pass unchanged and at once. What the gateway adds (heartbeats, and an error event before it ends a stream
//! itself) it adds only where no event is under way. A stream that breaks or meets a limit inside an event is
//! aborted, so that half an event is never mistaken for a whole one; only an upstream's own end is a clean end.
//! Limits go by events: comments of the upstream keep nothing alive. Format: WHATWG HTML, section 9.2.
//!
//! A response that is no event stream (an error, mostly) passes like any other, with the upstream's own deadlines.

use crate::exchange::{End, Exchange};
use crate::sse::{self, HEARTBEAT, IDLE, INTERRUPTED, Position, SHUTTING_DOWN, StreamTimes, TOO_LONG};
use crate::telemetry::OpenStream;
use crate::upstream::UpstreamBody;
use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

/// Whether a response is an event stream that can be read here.
pub(super) fn is_stream(response: &Response<UpstreamBody>) -> bool {
    sse::is_event_stream(response.status(), response.headers()) && !response.body().is_end_stream()
}

type Closing = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

pin_project_lite::pin_project! {
    /// The body of a watched event stream.
    pub(super) struct EventStream {
        // Gone once the stream has ended; with it goes the connection.
        #[pin]
        upstream: Option<UpstreamBody>,
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
        closing: watch::Receiver<bool>,
        closed: Closing,
        must_close: bool,
        // Who waits in `closed`.
        waker: Option<Waker>,
    }
}

impl EventStream {
    /// Watches `body` from `began` (when its request came), counted by `open`; `closing` tells of the gateway's end.
    pub(super) fn new(
        body: UpstreamBody,
        exchange: Arc<Exchange>,
        open: OpenStream,
        times: StreamTimes,
        began: Instant,
        closing: watch::Receiver<bool>,
    ) -> Self {
        let mut word = closing.clone();
        let closed = async move {
            if word.wait_for(|closing| *closing).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
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
            closing,
            closed: Box::pin(closed),
            must_close: false,
            waker: None,
        }
    }

    /// Ends the stream: with an event where none is under way, else with an abort.
    fn end(self: Pin<&mut Self>, end: End, event: &'static str) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut this = self.project();
        // Closes the upstream's connection.
        this.upstream.set(None);
        this.open.ended(end);
        this.exchange.ended(end);
        Poll::Ready(Some(match this.position.is_boundary() {
            true => Ok(Frame::data(Bytes::from_static(event.as_bytes()))),
            false => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "an event stream broke off inside an event"))
            }
        }))
    }

    /// Nothing has come: is it time for something? Wakes the task when it will be.
    fn poll_silence(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.as_mut().project();
        if std::mem::take(this.moved) {
            *this.last_bytes = Instant::now();
            if std::mem::take(&mut this.position.event_ended) {
                *this.last_event = Some(*this.last_bytes);
            }
        }
        // Waiting takes a lock that all streams share: only when there is news, or another task to wake.
        let news = !matches!(this.closing.has_changed(), Ok(false));
        if news || this.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            *this.must_close = *this.must_close || this.closed.as_mut().poll(cx).is_ready();
            *this.waker = Some(cx.waker().clone());
        }
        if *this.must_close && this.position.is_boundary() {
            return self.end(End::Shutdown, SHUTTING_DOWN);
        }
        loop {
            let mut this = self.as_mut().project();
            let max = *this.began + this.times.max;
            let event = match *this.last_event {
                Some(last) => last + this.times.idle,
                None => *this.began + this.times.first_event,
            };
            let due = max.min(event).min(*this.last_bytes + this.times.heartbeat);
            match this.timer.as_mut().as_pin_mut() {
                None => this.timer.set(Some(tokio::time::sleep_until(due))),
                Some(timer) if timer.deadline() > due || timer.is_elapsed() => timer.reset(due),
                Some(_) => {}
            }
            let Some(timer) = this.timer.as_mut().as_pin_mut() else { return Poll::Pending };
            ready!(timer.poll(cx));
            let now = Instant::now();
            if now >= max {
                return self.end(End::StreamLimit, TOO_LONG);
            }
            if now >= event {
                return self.end(End::StreamLimit, IDLE);
            }
            if now >= *this.last_bytes + this.times.heartbeat {
                *this.last_bytes = now;
                if this.position.is_boundary() {
                    return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(HEARTBEAT.as_bytes())))));
                }
            }
        }
    }
}

impl Body for EventStream {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut this = self.as_mut().project();
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
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    this.open.events(this.position.read(data));
                    *this.moved = true;
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
