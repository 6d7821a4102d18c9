//! A response's body of which the first event was read already, before anything was said to the caller: until then
//! another upstream can still answer instead.

use super::UpstreamBody;
use crate::error::Kind;
use crate::sse::Position;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::time::{Instant, timeout_at};

/// Most that is held back while the first event is not whole.
const HELD: usize = 64 << 10;

/// A body whose first pieces were read already.
pub struct Primed {
    first: VecDeque<Frame<Bytes>>,
    rest: UpstreamBody,
}

/// What a stream is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pieces {
    /// Server-sent events.
    Events,
    /// Anything: its first piece is its first event.
    Any,
}

impl From<UpstreamBody> for Primed {
    fn from(rest: UpstreamBody) -> Self {
        Primed { first: VecDeque::new(), rest }
    }
}

impl Primed {
    /// Waits for the first event, and keeps it. A stream that ends without one is whole all the same.
    ///
    /// # Errors
    /// [`Kind::UpstreamTimeout`] none came until then; [`Kind::UpstreamReset`] the stream broke before.
    pub async fn wait(mut rest: UpstreamBody, pieces: Pieces, until: Instant) -> Result<Self, Kind> {
        let (mut first, mut held, mut position) = (VecDeque::new(), 0, Position::default());
        loop {
            let frame = match timeout_at(until, rest.frame()).await {
                Err(_) => return Err(Kind::UpstreamTimeout),
                // Then a death cannot be told from an end.
                Ok(None) if rest.close_delimited() => return Err(Kind::UpstreamReset),
                Ok(None) => return Ok(Primed { first, rest }),
                Ok(Some(Err(error))) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(Kind::UpstreamTimeout);
                }
                Ok(Some(Err(_))) => return Err(Kind::UpstreamReset),
                Ok(Some(Ok(frame))) => frame,
            };
            let enough = match frame.data_ref() {
                Some(data) => {
                    held += data.len();
                    pieces == Pieces::Any || position.read(data) > 0 || held > HELD
                }
                None => true,
            };
            first.push_back(frame);
            if enough {
                return Ok(Primed { first, rest });
            }
        }
    }

    /// The trailers, where nothing came before them.
    pub fn trailers(&self) -> Option<&HeaderMap> {
        self.first.front().and_then(Frame::trailers_ref)
    }

    /// Whether only the connection's end tells the body's: then a death cannot be told from an end.
    pub fn close_delimited(&self) -> bool {
        self.rest.close_delimited()
    }
}

impl Body for Primed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.first.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.first.is_empty() { self.rest.size_hint() } else { SizeHint::default() }
    }
}
