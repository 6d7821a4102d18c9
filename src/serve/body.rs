//! Bodies as they pass the door: counted, and not waited for without end.

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
    /// A request's body: counts its bytes, and fails when it is silent for too long (SECURITY rule 22), unless it
    /// belongs to a gRPC call.
    pub struct RequestBody {
        #[pin]
        body: Incoming,
        exchange: Arc<Exchange>,
        silence: Duration,
        timer: Option<Pin<Box<Sleep>>>,
        waiting: bool,
    }
}

impl RequestBody {
    /// Watches a body; `silence` is how long nothing may come while somebody waits for it.
    pub(super) fn new(body: Incoming, exchange: Arc<Exchange>, silence: Duration) -> Self {
        RequestBody { body, exchange, silence, timer: None, waiting: false }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.project();
        match this.body.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                *this.waiting = false;
                if let Some(data) = frame.data_ref() {
                    this.exchange.add_bytes_in(data.len() as u64);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(io::Error::other(error)))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                // The timer is made when a body is first waited for, and set when a wait begins.
                let silence = *this.silence;
                let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(silence)));
                if !*this.waiting {
                    *this.waiting = true;
                    timer.as_mut().reset(Instant::now() + silence);
                }
                loop {
                    ready!(timer.as_mut().poll(cx));
                    if !this.exchange.is_call() {
                        return Poll::Ready(Some(Err(BodyTimeout.into())));
                    }
                    timer.as_mut().reset(Instant::now() + silence);
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
    }
}

impl ResponseBody {
    /// Counts a body for an exchange.
    pub fn new(body: BoxBody<Bytes, io::Error>, exchange: Arc<Exchange>) -> Self {
        // A body that is empty from the start may never be polled.
        if body.is_end_stream() {
            exchange.ended(End::Complete);
        }
        ResponseBody { body, exchange: Some(exchange) }
    }

    /// A body that is not counted: it ends no exchange.
    pub(super) fn of_nobody(body: BoxBody<Bytes, io::Error>) -> Self {
        ResponseBody { body, exchange: None }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut this = self.project();
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
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
