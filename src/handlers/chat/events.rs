//! The body of a chat stream: a turn's events as one reader gets them.

use crate::conversations::Tail;
use crate::exchange::{End, Exchange};
use crate::sse;
use crate::telemetry::OpenStream;
use crate::tokens::TokenError;
use bytes::Bytes;
use futures_util::Stream;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep};

/// Events after which the caller's right to them is looked at, however fast they come.
const LOOK_EVERY: u32 = 64;

/// What tells that the caller's time is over.
type Ended = Pin<Box<dyn Future<Output = TokenError> + Send + Sync>>;

/// A turn's events as one reader gets them: with heartbeats in silence, and an end when the reader's token ends
/// (SECURITY rule 12).
pub(super) struct Events {
    /// Gone when nothing follows; with it goes the reader.
    tail: Option<Tail>,
    exchange: Arc<Exchange>,
    open: OpenStream,
    heartbeat: Duration,
    /// Set anew only when it fires too early: events move `last`, not the timer.
    timer: Pin<Box<Sleep>>,
    /// When something was last sent.
    last: Instant,
    /// Whether something was sent since the clock was last read.
    moved: bool,
    ended: Option<Ended>,
    unlooked: u32,
}

impl Events {
    pub(super) fn new(
        tail: Tail,
        exchange: Arc<Exchange>,
        open: OpenStream,
        heartbeat: Duration,
        ended: Option<impl Future<Output = TokenError> + Send + Sync + 'static>,
    ) -> Self {
        Events {
            tail: Some(tail),
            exchange,
            open,
            heartbeat,
            timer: Box::pin(sleep(heartbeat)),
            last: Instant::now(),
            moved: false,
            ended: ended.map(|ended| Box::pin(ended) as Ended),
            unlooked: 0,
        }
    }

    fn end(&mut self, end: End) {
        self.tail = None;
        self.open.ended(end);
        if end != End::Complete {
            self.exchange.ended(end);
        }
    }

    /// The last event of a reader whose token is over.
    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        self.unlooked = 0;
        let Some(ended) = &mut self.ended else { return Poll::Pending };
        let Poll::Ready(why) = ended.as_mut().poll(cx) else { return Poll::Pending };
        self.end(End::Reauth);
        Poll::Ready(Bytes::from_static(match why {
            TokenError::Expired => sse::TOKEN_EXPIRED.as_bytes(),
            TokenError::Revoked | TokenError::Invalid => sse::TOKEN_REVOKED.as_bytes(),
        }))
    }
}

impl Stream for Events {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.unlooked >= LOOK_EVERY
            && let Poll::Ready(event) = this.poll_ended(cx)
        {
            return Poll::Ready(Some(Ok(event)));
        }
        let Some(tail) = &mut this.tail else { return Poll::Ready(None) };
        match tail.poll_event(cx) {
            Poll::Ready(Ok(event)) => {
                this.unlooked += 1;
                this.moved = true;
                this.open.events(1);
                return Poll::Ready(Some(Ok(event)));
            }
            Poll::Ready(Err(end)) => {
                this.end(end);
                return Poll::Ready(None);
            }
            Poll::Pending => {}
        }
        if let Poll::Ready(event) = this.poll_ended(cx) {
            return Poll::Ready(Some(Ok(event)));
        }
        if std::mem::take(&mut this.moved) {
            this.last = Instant::now();
        }
        loop {
            let due = this.last + this.heartbeat;
            if due <= Instant::now() {
                this.last = Instant::now();
                return Poll::Ready(Some(Ok(Bytes::from_static(sse::HEARTBEAT.as_bytes()))));
            }
            if this.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            this.timer.as_mut().reset(due);
        }
    }
}
