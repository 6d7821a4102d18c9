//! One HTTP/1.1 connection to a server, driven by whoever waits for its answer.
//!
//! There is no task behind it and no channel: a request is written and its answer read within the polls of the request that
//! waits (decision 13). At rest it is a socket, with no buffers. What is read lands in a buffer of the thread's and is copied out at
//! its length, so a stream that rests holds nothing either, and nothing is read that nobody asked for.
//!
//! A connection carries one request at a time: [`start`](Http1::start), [`poll_head`](Http1::poll_head), then
//! [`poll_frame`](Http1::poll_frame) to the end. It can carry another if [`is_reusable`](Http1::is_reusable) says so, and still
//! stands if it [`is_quiet`](Http1::is_quiet). Dropping it closes the socket.

mod broken;
mod chunked;
mod early;
mod request;
mod response;
mod socket;

pub(super) use broken::{Broken, Failed, Returned};
pub(super) use early::Early;
pub(super) use socket::Socket;

use super::body::RequestBody;
use bytes::{Bytes, BytesMut};
use chunked::Chunked;
use http::{Method, Request, Response};
use http_body::Frame;
use request::Sending;
use response::Body;
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, ReadBuf};

/// What a thread reads into.
const SCRATCH: usize = 16 << 10;
/// What is read at once of a body that has filled the thread's buffer: it is handed on as it is, not copied.
const WIDE: usize = 64 << 10;

thread_local! {
    static ROOM: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// One connection.
pub(super) struct Http1 {
    socket: Socket,
    sending: Sending,
    receiving: Receiving,
    /// What was read and is not decoded yet.
    ahead: Bytes,
    /// Whether the last read filled its buffer.
    wide: bool,
    /// Whether both sides leave it open behind this answer.
    keeps: bool,
}

/// Where an answer is.
enum Receiving {
    /// Its head; what came of it so far.
    Head(Vec<u8>),
    /// So many bytes are left.
    Length(u64),
    Chunks(Box<Chunked>),
    UntilClosed,
    /// Nothing is left of it.
    Done,
    /// The protocol was switched: what follows is not HTTP.
    Switched,
}

impl Http1 {
    pub(super) fn new(socket: Socket) -> Self {
        Http1 {
            socket,
            sending: Sending::default(),
            receiving: Receiving::Done,
            ahead: Bytes::new(),
            wide: false,
            keeps: true,
        }
    }

    /// Takes a request; nothing is written before the next poll.
    pub(super) fn start(&mut self, request: Request<RequestBody>) {
        self.sending.start(request);
        self.receiving = Receiving::Head(Vec::new());
        self.wide = false;
        self.keeps = true;
    }

    /// Ready with the answer's head. A server may answer before it has the whole request, see [`is_sent`](Self::is_sent).
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<()>, Failed>> {
        if let Poll::Ready(Err(why)) = self.sending.poll(&mut self.socket, cx) {
            return Poll::Ready(Err(Failed { why, request: self.sending.give_back() }));
        }
        let answer = ready!(self.poll_answer(cx));
        // A server that went away while it was being told something may have said why; else the first failure counts.
        Poll::Ready(answer.map_err(|why| Failed {
            why: self.sending.refused().unwrap_or(why),
            request: self.sending.give_back(),
        }))
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<()>, Broken>> {
        loop {
            let Receiving::Head(held) = &mut self.receiving else {
                return Poll::Ready(Err(Broken::Parse("nothing was asked")));
            };
            let method = self.sending.method();
            let read: Poll<Result<_, Broken>> = ROOM.with_borrow_mut(|room| {
                let mut buf = ReadBuf::new(room);
                ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buf)).map_err(Broken::Io)?;
                Poll::Ready(read_head(held, buf.filled(), method))
            });
            if let Some((head, ahead)) = ready!(read)? {
                self.sending.answered();
                self.ahead = ahead;
                self.receiving = match head.body {
                    Body::None | Body::Length(0) => Receiving::Done,
                    Body::Length(length) => Receiving::Length(length),
                    Body::Chunked => Receiving::Chunks(Box::default()),
                    Body::UntilClosed => Receiving::UntilClosed,
                    Body::Switched => Receiving::Switched,
                };
                self.keeps = head.keeps;
                return Poll::Ready(Ok(head.response));
            }
        }
    }

    /// The next piece of the answer's body, or its trailers; `None` behind the last.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        // Where the answer came first, the rest of the request goes out meanwhile.
        if !self.is_sent()
            && let Poll::Ready(Err(why)) = self.sending.poll(&mut self.socket, cx)
        {
            return Poll::Ready(Some(Err(why)));
        }
        loop {
            if let Some(frame) = self.decode_ahead().transpose() {
                return Poll::Ready(Some(frame));
            }
            if matches!(self.receiving, Receiving::Done | Receiving::Switched) {
                return Poll::Ready(None);
            }
            match ready!(self.poll_piece(cx)) {
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(None) => {}
                Err(why) => return Poll::Ready(Some(Err(why))),
            }
        }
    }

    /// What is left of what was read before.
    fn decode_ahead(&mut self) -> Result<Option<Frame<Bytes>>, Broken> {
        let behind = matches!(&self.receiving, Receiving::Chunks(chunks) if chunks.is_done());
        if self.ahead.is_empty() || behind {
            return Ok(self.take_trailers());
        }
        let data = match &mut self.receiving {
            Receiving::Length(left) => {
                let take = usize::try_from(*left).map_or(self.ahead.len(), |left| left.min(self.ahead.len()));
                *left -= take as u64;
                if *left == 0 {
                    self.receiving = Receiving::Done;
                }
                self.ahead.split_to(take)
            }
            Receiving::UntilClosed => std::mem::take(&mut self.ahead),
            Receiving::Chunks(chunks) => {
                let mut data = BytesMut::new();
                let read = chunks.decode(&self.ahead, &mut data)?;
                self.ahead = self.ahead.slice(read..);
                if data.is_empty() {
                    return Ok(self.take_trailers());
                }
                if chunks.is_over() {
                    self.receiving = Receiving::Done;
                }
                data.freeze()
            }
            // More than was announced: nobody's, and this connection's last.
            Receiving::Head(_) | Receiving::Done | Receiving::Switched => return Ok(None),
        };
        Ok(Some(Frame::data(data)))
    }

    /// The trailers, where the chunks are over.
    fn take_trailers(&mut self) -> Option<Frame<Bytes>> {
        let Receiving::Chunks(chunks) = &mut self.receiving else { return None };
        if !chunks.is_done() {
            return None;
        }
        let trailers = chunks.trailers();
        self.receiving = Receiving::Done;
        trailers.map(Frame::trailers)
    }

    /// Reads once. `None` where it was no whole piece, or is to be found ahead.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, Broken>> {
        let left = match &self.receiving {
            Receiving::Length(left) => usize::try_from(*left).unwrap_or(usize::MAX),
            _ => usize::MAX,
        };
        if self.wide && !matches!(self.receiving, Receiving::Chunks(_)) {
            let mut room = BytesMut::with_capacity(WIDE.min(left));
            let socket = Pin::new(&mut self.socket);
            let read = ready!(tokio_util::io::poll_read_buf(socket, cx, &mut room)).map_err(Broken::Io)?;
            self.wide = read >= SCRATCH;
            if read > 0 {
                self.ahead = room.freeze();
                return Poll::Ready(Ok(None));
            }
            return Poll::Ready(self.end_early().map(|()| None));
        }
        ROOM.with_borrow_mut(|room| {
            let mut buf = ReadBuf::new(room);
            ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buf)).map_err(Broken::Io)?;
            let came = buf.filled();
            if came.is_empty() {
                return Poll::Ready(self.end_early().map(|()| None));
            }
            self.wide = came.len() == SCRATCH;
            if let Receiving::Chunks(chunks) = &mut self.receiving {
                // Decoded as it is read, so that it is copied once.
                let mut data = BytesMut::with_capacity(chunks.expects(came.len()));
                let read = chunks.decode(came, &mut data)?;
                self.ahead = Bytes::copy_from_slice(&came[read..]);
                if chunks.is_over() {
                    self.receiving = Receiving::Done;
                }
                return Poll::Ready(Ok((!data.is_empty()).then(|| Frame::data(data.freeze()))));
            }
            self.ahead = Bytes::copy_from_slice(came);
            Poll::Ready(Ok(None))
        })
    }

    /// The server closed the connection.
    fn end_early(&mut self) -> Result<(), Broken> {
        self.keeps = false;
        match self.receiving {
            Receiving::UntilClosed => {
                self.receiving = Receiving::Done;
                Ok(())
            }
            _ => Err(Broken::Closed("the server closed the connection within its answer")),
        }
    }

    /// Whether nothing of the request is left to be sent.
    pub(super) fn is_sent(&self) -> bool {
        self.sending.is_over()
    }

    /// Whether nothing is left of the answer.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.receiving, Receiving::Done)
    }

    /// Whether only the connection's end tells the answer's.
    pub(super) fn ends_with_connection(&self) -> bool {
        matches!(self.receiving, Receiving::UntilClosed)
    }

    /// How many bytes are left of the answer, where its head told.
    pub(super) fn left(&self) -> Option<u64> {
        match self.receiving {
            Receiving::Length(left) => Some(left),
            Receiving::Done => Some(0),
            _ => None,
        }
    }

    /// Whether it can carry another request.
    pub(super) fn is_reusable(&self) -> bool {
        self.keeps && self.is_done() && self.sending.is_done() && self.ahead.is_empty()
    }

    /// Whether a connection at rest still stands, with nothing said that nobody asked for. Costs no system call while
    /// the kernel has not told of anything.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut byte = [0; 1];
        match &mut self.socket {
            // Not by a poll, which is pending also for a task that has had its turn.
            Socket::Plain(socket) => {
                matches!(socket.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
            }
            Socket::Tls(socket) => {
                let mut cx = Context::from_waker(Waker::noop());
                Pin::new(socket).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending()
            }
        }
    }

    /// What it is when the protocol was switched: the socket, and what was read from it already.
    pub(super) fn into_socket(self) -> (Socket, Bytes) {
        (self.socket, self.ahead)
    }
}

/// Adds to what is held of a head; the head if that is all of it, and what came behind it.
fn read_head(
    held: &mut Vec<u8>,
    came: &[u8],
    method: &Method,
) -> Result<Option<(response::Head, Bytes)>, Broken> {
    if came.is_empty() {
        return Err(Broken::Closed(match held.is_empty() {
            true => "the server closed the connection without an answer",
            false => "the server closed the connection within the head of its answer",
        }));
    }
    if held.is_empty() {
        // Nearly always it comes whole.
        return match response::parse(came, method)? {
            Some((head, length)) => Ok(Some((head, Bytes::copy_from_slice(&came[length..])))),
            None => {
                let from = response::behind_interim(came)?;
                held.extend_from_slice(&came[from..]);
                Ok(None)
            }
        };
    }
    let before = held.len();
    held.extend_from_slice(came);
    if !response::may_end(held, before) {
        return response::bounded(held).map(|()| None);
    }
    match response::parse(held, method)? {
        Some((head, length)) => Ok(Some((head, Bytes::copy_from_slice(&held[length..])))),
        None => {
            let from = response::behind_interim(held)?;
            held.drain(..from);
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests;
