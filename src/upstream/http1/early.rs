//! Answers that begin before the request is over: the rest of the request must go out also while nobody reads the answer, for
//! a caller may send everything before it reads anything. So these, and only these, get a task.

use super::{Broken, Http1};
use bytes::Bytes;
use http_body::Frame;
use std::future::poll_fn;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Pieces that wait for their reader.
const WAITING: usize = 1;

/// An answer whose request is still being sent. Its connection carries no other. Dropping it closes the socket.
pub(in crate::upstream) struct Early {
    pieces: mpsc::Receiver<Result<Frame<Bytes>, Broken>>,
    driver: AbortHandle,
}

impl Early {
    /// Drives this connection.
    pub(in crate::upstream) fn new(mut http1: Box<Http1>) -> Self {
        let (tell, pieces) = mpsc::channel(WAITING);
        let driver = tokio::spawn(async move {
            loop {
                let room = tell.reserve();
                let mut room = std::pin::pin!(room);
                let mut failed = None;
                // Sends on while there is no room for what comes.
                let permit = poll_fn(|cx| {
                    if failed.is_none()
                        && let Poll::Ready(Err(why)) = http1.poll_rest(cx)
                    {
                        failed = Some(why);
                    }
                    room.as_mut().poll(cx)
                });
                let Ok(permit) = permit.await else { return };
                if let Some(why) = failed {
                    return permit.send(Err(why));
                }
                match poll_fn(|cx| http1.poll_frame(cx)).await {
                    Some(piece) => permit.send(piece),
                    None => return,
                }
            }
        });
        Early { pieces, driver: driver.abort_handle() }
    }

    /// The next piece of the answer.
    pub(in crate::upstream) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.pieces.poll_recv(cx)
    }
}

impl Drop for Early {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Http1 {
    /// Sends on.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.sending.poll(&mut self.socket, cx)
    }
}
