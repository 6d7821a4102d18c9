//! A request's body on its way into a stream.
//!
//! It goes on beside the response, each at its own pace: a server may answer before it has read everything, and a
//! caller may read nothing before it has written everything. Of a request's trailers nothing is passed on: gRPC has
//! none, and they could say what the headers were cleaned of.

use crate::upstream::body::RequestBody;
use ::h2::{Reason, SendStream};
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::Body as _;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

/// Moves one body. Done when it has ended, when the server wants no more of it, or when it was asked to stop, which
/// resets the stream.
pub(super) struct Pump {
    stream: SendStream<Bytes>,
    body: RequestBody,
    /// What was read of the body and has not left.
    piece: Bytes,
    ended: bool,
    stop: Arc<Stop>,
}

/// How to ask a pump to stop.
#[derive(Default)]
pub(super) struct Stop {
    asked: AtomicBool,
    task: AtomicWaker,
}

impl Stop {
    pub(super) fn ask(&self) {
        self.asked.store(true, Ordering::Release);
        self.task.wake();
    }

    fn was_asked(&self, cx: &Context<'_>) -> bool {
        // Before looking, so that no word is lost.
        self.task.register(cx.waker());
        self.asked.load(Ordering::Acquire)
    }
}

impl Pump {
    pub(super) fn new(stream: SendStream<Bytes>, body: RequestBody, stop: Arc<Stop>) -> Self {
        Pump { stream, body, piece: Bytes::new(), ended: false, stop }
    }
}

impl Future for Pump {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if this.stop.was_asked(cx) {
            this.stream.send_reset(Reason::CANCEL);
            return Poll::Ready(());
        }
        if this.stream.poll_reset(cx).is_ready() {
            return Poll::Ready(());
        }
        loop {
            if !this.piece.is_empty() {
                this.stream.reserve_capacity(this.piece.len());
                if this.stream.capacity() == 0
                    && !matches!(ready!(this.stream.poll_capacity(cx)), Some(Ok(_)))
                {
                    return Poll::Ready(());
                }
                let room = this.stream.capacity().min(this.piece.len());
                if room == 0 {
                    continue;
                }
                let data = this.piece.split_to(room);
                let last = this.ended && this.piece.is_empty();
                if this.stream.send_data(data, last).is_err() || last {
                    return Poll::Ready(());
                }
                continue;
            }
            if this.ended {
                let _ = this.stream.send_data(Bytes::new(), true);
                return Poll::Ready(());
            }
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        this.piece = data;
                        this.ended = this.body.is_end_stream();
                    }
                    Err(_trailers) => this.ended = true,
                },
                None => this.ended = true,
                Some(Err(_)) => {
                    // Why is in the body's progress.
                    this.stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(());
                }
            }
        }
    }
}
