//! Bodies on their way through, both directions, with their deadlines.
//!
//! A deadline costs next to nothing while bytes flow: no piece moves a timer; only when one fires is the real deadline
//! worked out.

use super::Upstream;
use super::http2::StreamBody;
use super::meter::Meter;
use super::pool::{Conn, Lease};
use super::send::callers_fault;
use crate::error::{GatewayError, grpc};
use crate::exchange::{End, Exchange};
use crate::shed::Pass;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty};
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Instant;

pin_project_lite::pin_project! {
    /// A request's body on its way to the upstream; says how far it is.
    pub(super) struct RequestBody {
        #[pin]
        body: BoxBody<Bytes, io::Error>,
        progress: Option<Arc<Progress>>,
    }
}

/// How far a request's body is. A request without body has none.
#[derive(Debug)]
pub(super) struct Progress {
    base: Instant,
    /// Microseconds from `base` to the last piece.
    last: AtomicU64,
    done: AtomicBool,
    /// Whether the caller, not the upstream, is being waited for.
    starved: AtomicBool,
    failed: OnceLock<io::Error>,
}

impl Progress {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Progress {
            base: Instant::now(),
            last: AtomicU64::new(0),
            done: AtomicBool::new(false),
            starved: AtomicBool::new(false),
            failed: OnceLock::new(),
        })
    }

    fn moved(&self) {
        self.last.store(self.base.elapsed().as_micros() as u64, Ordering::Relaxed);
    }

    /// When its last piece was taken.
    pub(super) fn last(&self) -> Instant {
        self.base + Duration::from_micros(self.last.load(Ordering::Relaxed))
    }

    /// Whether that was the end.
    pub(super) fn done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// Whether the caller sends nothing.
    pub(super) fn starved(&self) -> bool {
        self.starved.load(Ordering::Relaxed)
    }

    /// Why the caller's body could not be read, if it could not.
    pub(super) fn failure(&self) -> Option<&io::Error> {
        self.failed.get()
    }
}

impl RequestBody {
    pub(super) fn new(body: BoxBody<Bytes, io::Error>, progress: Option<Arc<Progress>>) -> Self {
        RequestBody { body, progress }
    }

    /// The body of a request that has none.
    pub(super) fn empty() -> Self {
        RequestBody { body: BoxBody::new(Empty::new().map_err(|never| match never {})), progress: None }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.project();
        let mut body = this.body;
        let polled = body.as_mut().poll_frame(cx);
        let Some(progress) = this.progress else { return polled };
        progress.starved.store(polled.is_pending(), Ordering::Relaxed);
        match ready!(polled) {
            Some(Ok(frame)) => {
                progress.moved();
                if body.is_end_stream() {
                    progress.done.store(true, Ordering::Release);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                let copy = io::Error::new(error.kind(), "the caller's body broke off");
                let _ = progress.failed.set(error);
                Poll::Ready(Some(Err(copy)))
            }
            None => {
                progress.moved();
                progress.done.store(true, Ordering::Release);
                Poll::Ready(None)
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

/// Where a response's body comes from.
pub(super) enum Source {
    /// The connection that the lease holds.
    Http1(Remaining),
    Http2(StreamBody),
}

/// What is left of a body, known also when its connection is gone.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Remaining {
    done: bool,
    left: Option<u64>,
}

impl Remaining {
    pub(super) fn of(conn: &Conn) -> Self {
        Remaining { done: conn.is_done(), left: conn.left() }
    }
}

impl Source {
    fn poll_frame(
        &mut self,
        lease: &mut Option<Lease>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self {
            Source::Http1(remaining) => {
                let conn = lease.as_mut().and_then(|lease| lease.conn.as_mut());
                let Some(conn) = conn else { return Poll::Ready(None) };
                let polled = ready!(conn.poll_frame(cx));
                *remaining = Remaining::of(conn);
                Poll::Ready(polled.map(|frame| frame.map_err(io::Error::from)))
            }
            Source::Http2(body) => Pin::new(body).poll_frame(cx).map_err(io::Error::other),
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        match self {
            Source::Http1(remaining) => remaining.done,
            Source::Http2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Source::Http1(remaining) => remaining.left.map_or_else(SizeHint::default, SizeHint::with_exact),
            Source::Http2(body) => body.size_hint(),
        }
    }
}

pin_project_lite::pin_project! {
    /// A response's body on its way from the upstream. Its end gives the connection back; dropping it earlier
    /// closes the connection (with HTTP/2: resets the stream) at once. A deadline that passes is an error, which aborts the caller's response.
    pub struct UpstreamBody {
        incoming: Source,
        lease: Option<Lease>,
        upstream: Arc<Upstream>,
        exchange: Arc<Exchange>,
        idle: Option<Duration>,
        until: Option<Instant>,
        // When waiting began; unset while pieces come.
        waiting: Option<Instant>,
        // Of the request's body, where that may still be under way.
        progress: Option<Arc<Progress>>,
        close_delimited: bool,
        // Where the upstream counts what is under way.
        pass: Option<Pass>,
    }
}

impl UpstreamBody {
    pub(super) fn new(
        incoming: Source,
        lease: Lease,
        upstream: Arc<Upstream>,
        exchange: Arc<Exchange>,
        progress: Option<Arc<Progress>>,
        close_delimited: bool,
    ) -> Self {
        let mut body = UpstreamBody {
            lease: Some(lease),
            upstream,
            exchange,
            idle: None,
            until: None,
            waiting: None,
            progress,
            close_delimited,
            pass: None,
            incoming,
        };
        if body.incoming.is_end_stream() {
            give_back(&mut body.lease);
        }
        body
    }

    /// With the right to be under way, which it gives back at its end.
    pub(super) fn holding(mut self, pass: Pass) -> Self {
        self.pass = Some(pass).filter(|_| self.lease.is_some());
        self
    }

    /// Sets the deadlines: between two pieces, and for the last. Before the first piece is asked for.
    pub fn set_limits(&mut self, idle: Option<Duration>, until: Option<Instant>) {
        (self.idle, self.until) = (idle, until);
    }

    /// Why the request's body ended early, if it did: then it is no fault of the upstream's that this one fails.
    pub fn callers_fault(&self) -> Option<GatewayError> {
        self.progress.as_deref().and_then(Progress::failure).map(callers_fault)
    }

    /// Whether only the connection's end tells the body's: then a death cannot be told from an end.
    pub fn close_delimited(&self) -> bool {
        self.close_delimited
    }
}

impl fmt::Debug for UpstreamBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamBody").field("upstream", &self.upstream).finish_non_exhaustive()
    }
}

fn give_back(lease: &mut Option<Lease>) {
    if let Some(lease) = lease.take() {
        lease.finish();
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.project();
        if this.lease.is_none() {
            // Read whole, or failed.
            return Poll::Ready(None);
        }
        let failure = match this.incoming.poll_frame(this.lease, cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if this.waiting.take().is_some() && this.until.is_some_and(|until| Instant::now() >= until) {
                    io::Error::new(io::ErrorKind::TimedOut, "the exchange took too long")
                } else {
                    if let (Some(lease), Some(trailers)) = (this.lease.as_mut(), frame.trailers_ref()) {
                        lease.count(grpc::status_in(trailers).map_or(200, grpc::http_of));
                    }
                    if this.incoming.is_end_stream() {
                        give_back(this.lease);
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
            }
            Poll::Ready(None) => {
                if let Some(lease) = this.lease.as_mut() {
                    lease.count(200);
                }
                give_back(this.lease);
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(error))) => error,
            Poll::Pending => {
                if this.idle.is_none() && this.until.is_none() {
                    return Poll::Pending;
                }
                let since = *this.waiting.get_or_insert_with(Instant::now);
                let idle = this.idle.map(|idle| since + idle);
                let due = match (idle, *this.until) {
                    (Some(idle), Some(until)) => idle.min(until),
                    (Some(due), None) | (None, Some(due)) => due,
                    (None, None) => return Poll::Pending,
                };
                let Some(lease) = this.lease.as_mut() else { return Poll::Ready(None) };
                while due > Instant::now() {
                    ready!(lease.poll_timer(due, cx));
                }
                io::Error::new(io::ErrorKind::TimedOut, "the upstream sent nothing for too long")
            }
        };
        if let Some(why) = this.progress.as_deref().and_then(Progress::failure) {
            // Its stream was reset for that.
            tracing::debug!(error = %why, "a call ended with its request's body");
            *this.lease = None;
            this.exchange.ended(End::ClientLeft);
            return Poll::Ready(Some(Err(failure)));
        }
        if let Some(lease) = this.lease.as_mut() {
            match lease.uncounted.is_some() {
                true => lease.count(502),
                false => this.upstream.broke_off(&lease.server),
            }
        }
        // Closes the connection.
        *this.lease = None;
        this.exchange.ended(End::UpstreamBroke);
        Meter::add(&this.upstream.meter().broken);
        let note = this.exchange.upstream();
        tracing::warn!(
            request_id = this.exchange.request_id(),
            upstream = note.as_ref().map(|note| &*note.upstream),
            target = note.as_ref().map(|note| &*note.target),
            error = %Causes(&failure),
            "an upstream's response broke off"
        );
        Poll::Ready(Some(Err(failure)))
    }

    fn is_end_stream(&self) -> bool {
        self.lease.is_none() && self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// An error with its causes, for logs.
pub(super) struct Causes<'a>(pub(super) &'a dyn std::error::Error);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        Ok(())
    }
}
