//! What moves a link's bytes, and finds out when nobody is there any more.

use super::{STREAMS, State};
use ::h2::client::Connection;
use ::h2::{Ping, PingPong};
use bytes::Bytes;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep};

/// Between two pings while there are requests. gRPC servers end connections that ping more often than every five
/// minutes (`too_many_pings`); a dead host is found sooner, by the kernel.
const PING_EVERY: Duration = Duration::from_secs(310);
/// Until an answer to one.
const PONG_WITHIN: Duration = Duration::from_secs(20);

/// The task of a link.
pub(super) struct Driver<T> {
    connection: Connection<T, Bytes>,
    state: Arc<State>,
    /// Told when the server has said how many streams it allows.
    ready: Option<oneshot::Sender<()>>,
    pings: Option<PingPong>,
    alarm: Pin<Box<Sleep>>,
    awaited: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    pub(super) fn new(
        mut connection: Connection<T, Bytes>,
        state: Arc<State>,
        ready: oneshot::Sender<()>,
    ) -> Self {
        let pings = connection.ping_pong();
        Driver {
            connection,
            state,
            ready: Some(ready),
            pings,
            alarm: Box::pin(sleep(PING_EVERY)),
            awaited: false,
        }
    }

    /// Ready when a ping had no answer.
    fn poll_pings(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(pings) = &mut self.pings else { return Poll::Pending };
        loop {
            if self.awaited && matches!(pings.poll_pong(cx), Poll::Ready(Ok(_))) {
                self.awaited = false;
                self.alarm.as_mut().reset(Instant::now() + PING_EVERY);
            }
            ready!(self.alarm.as_mut().poll(cx));
            if self.awaited {
                return Poll::Ready(());
            }
            let busy = self.state.taken.load(Ordering::Relaxed) > 0;
            self.awaited = busy && pings.send_ping(Ping::opaque()).is_ok();
            let next = if self.awaited { PONG_WITHIN } else { PING_EVERY };
            self.alarm.as_mut().reset(Instant::now() + next);
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Future for Driver<T> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let polled = Pin::new(&mut self.connection).poll(cx);
        let allowed = self.connection.max_concurrent_send_streams().min(STREAMS);
        self.state.seats.store(allowed, Ordering::Relaxed);
        if allowed > 0
            && let Some(ready) = self.ready.take()
        {
            let _ = ready.send(());
        }
        if let Poll::Ready(ended) = polled {
            // Its requests learn of it themselves.
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection to an upstream ended");
            }
            return Poll::Ready(());
        }
        self.poll_pings(cx)
            .map(|()| tracing::debug!("a connection to an upstream is dead: no answer to a ping"))
    }
}

impl<T> Drop for Driver<T> {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::Relaxed);
    }
}
