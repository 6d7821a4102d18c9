//! Bodies as they pass the door: counted, and not waited for without end.

use super::io::Unread;
use crate::error::BodyTimeout;
use crate::exchange::{End, Exchange};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

pin_project_lite::pin_project! {
    /// A request's body: counts its bytes, and fails when it is silent for too long or drips (SECURITY rule 22), unless
    /// it belongs to a gRPC call.
    pub struct RequestBody {
        #[pin]
        body: Incoming,
        exchange: Arc<Exchange>,
        pace: Pace,
        timer: Option<Pin<Box<Sleep>>>,
        // Keeps the connection with its parser.
        unread: Option<Unread>,
    }
}

/// How slowly a body may come. It may be silent for less than `window`; and over every `window` of the time that
/// somebody waits for it, so many bytes must come as `least` says. A body that ends before its first window is over may
/// drip.
struct Pace {
    window: Duration,
    least: u64,
    /// Bytes in this window.
    came: u64,
    /// Time of this window that was waited before now.
    waited: Duration,
    /// Since when it is being waited in this window.
    since: Option<Instant>,
    /// Since when nothing comes.
    silent: Option<Instant>,
}

impl Pace {
    fn new(window: Duration, bytes_a_second: u64) -> Self {
        let least = (bytes_a_second as f64 * window.as_secs_f64()) as u64;
        Pace { window, least, came: 0, waited: Duration::ZERO, since: None, silent: None }
    }

    /// So many bytes are there. The clock is read only where somebody waited.
    fn came(&mut self, bytes: usize, clock: impl FnOnce() -> Instant) {
        self.came += bytes as u64;
        self.silent = None;
        if let Some(since) = self.since.take() {
            self.waited += clock().saturating_duration_since(since);
        }
    }

    /// Nothing is there now: when to look again if nothing comes.
    fn waits(&mut self, now: Instant) -> Instant {
        let over = *self.since.get_or_insert(now) + self.window.saturating_sub(self.waited);
        over.min(*self.silent.get_or_insert(now) + self.window)
    }

    /// It is time to look: whether it comes fast enough. If it was too slow, it gets another chance.
    fn is_kept(&mut self, now: Instant) -> bool {
        let silence = self.silent.map_or(Duration::ZERO, |since| now - since);
        let waited = self.waited + self.since.map_or(Duration::ZERO, |since| now - since);
        let mut kept = silence < self.window;
        if waited >= self.window {
            kept &= self.came >= self.least;
            (self.came, self.waited, self.since) = (0, Duration::ZERO, Some(now));
        }
        if !kept {
            self.silent = Some(now);
        }
        kept
    }
}

impl RequestBody {
    /// Watches a body; in every `window` in which somebody waits for it at least `bytes_a_second` must come.
    pub(super) fn new(
        body: Incoming,
        unread: Option<Unread>,
        exchange: Arc<Exchange>,
        window: Duration,
        bytes_a_second: u64,
    ) -> Self {
        RequestBody { body, exchange, pace: Pace::new(window, bytes_a_second), timer: None, unread }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.project();
        match this.body.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                this.pace.came(bytes, Instant::now);
                this.exchange.add_bytes_in(bytes as u64);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(io::Error::other(error)))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                // The timer is made when a body is first waited for, and set when a wait begins.
                let begins = this.pace.since.is_none();
                let due = this.pace.waits(Instant::now());
                let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
                if begins {
                    timer.as_mut().reset(due);
                }
                loop {
                    ready!(timer.as_mut().poll(cx));
                    let now = Instant::now();
                    if !this.pace.is_kept(now) && !this.exchange.is_call() {
                        return Poll::Ready(Some(Err(BodyTimeout.into())));
                    }
                    timer.as_mut().reset(this.pace.waits(now));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pin_project_lite::pin_project! {
    /// A response's body: counts its bytes, and holds the exchange until the last of them is gone.
    pub struct ResponseBody {
        #[pin]
        body: BoxBody<Bytes, io::Error>,
        exchange: Option<Arc<Exchange>>,
        // Said when what came before it is on its way.
        failed: Option<io::Error>,
    }
}

impl ResponseBody {
    /// Counts a body for an exchange.
    pub fn new(body: BoxBody<Bytes, io::Error>, exchange: Arc<Exchange>) -> Self {
        // A body that is empty from the start may never be polled.
        if body.is_end_stream() {
            exchange.ended(End::Complete);
        }
        ResponseBody { body, exchange: Some(exchange), failed: None }
    }

    /// A body that is not counted: it ends no exchange.
    pub(super) fn of_nobody(body: BoxBody<Bytes, io::Error>) -> Self {
        ResponseBody { body, exchange: None, failed: None }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut this = self.project();
        if let Some(error) = this.failed.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let polled = ready!(this.body.as_mut().poll_frame(cx));
        if let Some(exchange) = this.exchange.as_ref() {
            match &polled {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        exchange.add_bytes_out(data.len() as u64);
                    }
                    // hyper does not poll again behind a body's last frame.
                    if this.body.is_end_stream() {
                        exchange.ended(End::Complete);
                    }
                }
                Some(Err(_)) => exchange.ended(End::UpstreamBroke),
                None => exchange.ended(End::Complete),
            }
        }
        if let Some(Err(error)) = polled {
            // hyper drops what it has not written when a body fails, the head too. Without the error it writes that first.
            *this.failed = Some(error);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn only_time_that_was_waited_counts() {
        let mut now = Instant::now();
        let mut pace = Pace::new(30 * SECOND, 10);
        for _ in 0..29 {
            pace.waits(now);
            now += SECOND;
            pace.came(10, || now);
            // Nobody asks for more for a while.
            now += 60 * SECOND;
        }
        assert_eq!(pace.waits(now) - now, SECOND);
        now += SECOND;
        assert!(!pace.is_kept(now), "290 of 300");
        for came in [300, 299] {
            pace.waits(now);
            now += 29 * SECOND;
            pace.came(came, || now);
            pace.waits(now);
            now += SECOND;
            assert_eq!(pace.is_kept(now), came == 300);
        }
    }

    #[test]
    fn silence_is_too_slow_whatever_is_allowed() {
        let mut now = Instant::now();
        let mut pace = Pace::new(30 * SECOND, 0);
        for _ in 0..3 {
            pace.waits(now);
            now += 20 * SECOND;
            assert!(pace.is_kept(now) || pace.waits(now) > now);
            pace.came(1, || now);
        }
        let begun = now;
        loop {
            // A window may end within the silence.
            now = pace.waits(now);
            if !pace.is_kept(now) {
                break assert_eq!(now - begun, 30 * SECOND);
            }
            assert!(now - begun < 60 * SECOND, "it may be silent for ever");
        }
    }
}
