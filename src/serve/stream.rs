//! A response on its way out: counted as in progress until its body is gone, and, in HTTP/2, watched for a peer that
//! takes none of it.
use std::{
    cell::Cell,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use tokio::time::{Instant, Sleep};

use super::io::Exchange;

pin_project_lite::pin_project! {
    /// The body of a response, with the request it answers.
    pub(super) struct Answer<B> {
        #[pin]
        body: B,
        _exchange: Exchange,
    }
}

impl<B> Answer<B> {
    pub(super) fn new(body: B, exchange: Exchange) -> Self {
        Self { body, _exchange: exchange }
    }
}

impl<B: Body<Data = Bytes, Error = io::Error>> Body for Answer<B> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let polled = self.project().body.poll_frame(cx);
        TURN.set(if polled.is_pending() { Turn::Ours } else { Turn::Theirs });
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Who has to move for a stream to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// The body was not asked: as before.
    Unchanged,
    /// The body has nothing yet.
    Ours,
    /// A frame was handed over and has to leave.
    Theirs,
}

thread_local! {
    /// How a body, deep inside hyper's stream, tells the task that polls the stream. Read in the same poll.
    static TURN: Cell<Turn> = const { Cell::new(Turn::Unchanged) };
}

/// Runs each HTTP/2 stream as a task, and ends it when its peer grants no window for too long: the connection goes on
/// answering pings meanwhile, so neither the socket nor the pings show that.
#[derive(Clone, Copy)]
pub(super) struct StreamExecutor {
    pub(super) stall: Duration,
}

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for StreamExecutor {
    fn execute(&self, stream: F) {
        tokio::spawn(Stream { stream, stall: self.stall, stalled: false, timer: None });
    }
}

pin_project_lite::pin_project! {
    struct Stream<F> {
        #[pin]
        stream: F,
        stall: Duration,
        stalled: bool,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl<F: Future> Future for Stream<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        TURN.set(Turn::Unchanged);
        if this.stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        match TURN.get() {
            Turn::Unchanged => {}
            Turn::Ours => *this.stalled = false,
            Turn::Theirs => {
                let stall = *this.stall;
                let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
                timer.as_mut().reset(Instant::now() + stall);
                *this.stalled = true;
            }
        }
        match this.timer {
            // Dropping the stream resets it.
            Some(timer) if *this.stalled => timer.as_mut().poll(cx),
            _ => Poll::Pending,
        }
    }
}
