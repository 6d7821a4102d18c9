//! Requests on their way out: the head, then the body as it comes, framed as RFC 9112 section 6 wants it.

use super::{Broken, Returned, Socket};
use crate::upstream::body::RequestBody;
use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HOST,
    HeaderMap, HeaderName, MAX_FORWARDS, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING,
};
use http::{Method, Request};
use http_body::Body as _;
use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// A piece of a body up to this size is copied behind what precedes it, so that one call to the kernel takes both.
const SMALL: usize = 4 << 10;
/// What a connection at rest may keep of its buffer.
const KEPT: usize = 1 << 10;

/// What of a request is still to be sent.
#[derive(Default)]
pub(super) struct Sending {
    method: Method,
    /// The request as it came, until it is out, or answered if it has no body: its headers may hold on to what the
    /// caller's connection has read.
    request: Option<Request<RequestBody>>,
    bodyless: bool,
    framing: Framing,
    /// Bytes to write, and how many of them have been.
    out: Vec<u8>,
    written: usize,
    /// A piece of the body behind them.
    piece: Bytes,
    /// Whether anything has left.
    begun: bool,
    /// Whether a piece of the body was taken, which cannot be given back.
    taken: bool,
    flushed: bool,
    /// How writing failed after something had left. The server may have said why.
    refused: Option<Broken>,
}

/// What frames the rest of the body.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// Nothing is left of it.
    #[default]
    Over,
    /// So many bytes must come yet.
    Length(u64),
    Chunked,
}

impl Sending {
    /// Takes a request, and writes its head into the buffer.
    pub(super) fn start(&mut self, mut request: Request<RequestBody>) {
        self.framing = frame(&mut request);
        self.bodyless = self.framing == Framing::Over;
        self.out.clear();
        self.out.shrink_to(KEPT);
        write_head(&request, &mut self.out);
        (self.written, self.begun, self.taken, self.flushed) = (0, false, false, false);
        self.refused = None;
        self.method.clone_from(request.method());
        self.request = Some(request);
    }

    /// The method of the request.
    pub(super) fn method(&self) -> &Method {
        &self.method
    }

    /// Whether all of it is out.
    pub(super) fn is_done(&self) -> bool {
        self.framing == Framing::Over
            && self.written == self.out.len()
            && self.piece.is_empty()
            && self.flushed
    }

    /// Whether nothing more of it will be sent: all of it is out, or the server takes no more.
    pub(super) fn is_over(&self) -> bool {
        self.is_done() || self.refused.is_some()
    }

    /// What is there of a request that is not answered.
    pub(super) fn give_back(&mut self) -> Returned {
        match self.request.take().map(Box::new) {
            Some(request) if !self.begun && !self.taken => Returned::Unsent(request),
            Some(request) if self.bodyless => Returned::Sent(request),
            _ => Returned::Nothing,
        }
    }

    /// It is answered: nobody will ask for it again.
    pub(super) fn answered(&mut self) {
        if self.bodyless {
            self.request = None;
        }
    }

    /// How writing failed, where the server may still have an answer.
    pub(super) fn refused(&mut self) -> Option<Broken> {
        self.refused.take()
    }

    /// Writes on. Ready when nothing is left, or with what went wrong.
    pub(super) fn poll(&mut self, socket: &mut Socket, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if self.is_over() {
            return Poll::Ready(Ok(()));
        }
        loop {
            let taken = self.take_piece(cx);
            // What is there is written while the body is waited for.
            while self.written < self.out.len() || !self.piece.is_empty() {
                match ready!(self.poll_write(socket, cx)) {
                    Ok(()) => {}
                    Err(error) if self.begun => {
                        self.refused = Some(Broken::Io(error));
                        return Poll::Ready(Ok(()));
                    }
                    Err(error) => return Poll::Ready(Err(Broken::Io(error))),
                }
            }
            if !self.flushed {
                ready!(Pin::new(&mut *socket).poll_flush(cx)).map_err(Broken::Io)?;
                self.flushed = true;
            }
            ready!(taken)?;
            if self.framing == Framing::Over && self.written == self.out.len() {
                if !self.bodyless {
                    self.request = None;
                }
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn poll_write(&mut self, socket: &mut Socket, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = Pin::new(socket);
        let front = &self.out[self.written..];
        let written = match (front.is_empty(), self.piece.is_empty()) {
            (false, false) => {
                ready!(socket.poll_write_vectored(cx, &[IoSlice::new(front), IoSlice::new(&self.piece)]))?
            }
            (true, _) => ready!(socket.poll_write(cx, &self.piece))?,
            (_, true) => ready!(socket.poll_write(cx, front))?,
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.begun = true;
        let of_front = written.min(front.len());
        self.written += of_front;
        if written > of_front {
            let _ = self.piece.split_to(written - of_front);
        }
        Poll::Ready(Ok(()))
    }

    /// Takes the next piece of the body, if the one before is out. Pending while none is there.
    fn take_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let waits = !self.piece.is_empty() || self.written < self.out.len();
        // Behind the head its first piece may go with it.
        if self.framing == Framing::Over || waits && (self.begun || self.taken) {
            return Poll::Ready(Ok(()));
        }
        let Some(request) = &mut self.request else { return Poll::Ready(Ok(())) };
        let frame = ready!(Pin::new(request.body_mut()).poll_frame(cx)).transpose().map_err(Broken::Io)?;
        let over = frame.is_none() || request.body().is_end_stream();
        (self.taken, self.flushed) = (true, false);
        if self.begun {
            self.out.clear();
            self.written = 0;
        }
        match frame.map(|frame| frame.into_data()) {
            Some(Ok(data)) => self.frame_data(data)?,
            Some(Err(frame)) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                return Poll::Ready(self.finish(&trailers));
            }
            None => {}
        }
        match over {
            true => Poll::Ready(self.finish(&HeaderMap::new())),
            false => Poll::Ready(Ok(())),
        }
    }

    fn frame_data(&mut self, data: Bytes) -> Result<(), Broken> {
        if data.is_empty() {
            return Ok(());
        }
        match &mut self.framing {
            Framing::Length(left) => {
                let size = data.len() as u64;
                *left = left
                    .checked_sub(size)
                    .ok_or_else(|| off("the body is longer than its Content-Length"))?;
            }
            Framing::Chunked => {
                let _ = write!(self.out, "{:x}\r\n", data.len());
            }
            Framing::Over => return Ok(()),
        }
        let small = data.len() <= SMALL;
        match small {
            true => self.out.extend_from_slice(&data),
            false => self.piece = data,
        }
        if self.framing == Framing::Chunked {
            match small {
                true => self.out.extend_from_slice(b"\r\n"),
                // Its end goes with it: what is written behind a piece must not go before it.
                false => {
                    let mut whole = Vec::with_capacity(self.piece.len() + 2);
                    whole.extend_from_slice(&self.piece);
                    whole.extend_from_slice(b"\r\n");
                    self.piece = whole.into();
                }
            }
        }
        Ok(())
    }

    /// The body is over.
    fn finish(&mut self, trailers: &HeaderMap) -> Result<(), Broken> {
        let framing = std::mem::take(&mut self.framing);
        match framing {
            Framing::Length(0) | Framing::Over => Ok(()),
            Framing::Length(_) => Err(off("the body is shorter than its Content-Length")),
            Framing::Chunked => {
                let end = if self.piece.is_empty() { &mut self.out } else { &mut Vec::new() };
                end.extend_from_slice(b"0\r\n");
                if let Some(request) = &self.request {
                    write_trailers(request.headers(), trailers, end);
                }
                end.extend_from_slice(b"\r\n");
                if !self.piece.is_empty() {
                    self.piece = [&self.piece[..], &end[..]].concat().into();
                }
                Ok(())
            }
        }
    }
}

fn off(what: &'static str) -> Broken {
    Broken::Io(io::Error::new(io::ErrorKind::InvalidData, what))
}

/// Makes the headers agree with the body that comes, and says how it is framed.
fn frame(request: &mut Request<RequestBody>) -> Framing {
    let (over, exact) = (request.body().is_end_stream(), request.body().size_hint().exact());
    let headers = request.headers_mut();
    if over {
        headers.remove(TRANSFER_ENCODING);
        return Framing::Over;
    }
    let chunked = headers.remove(TRANSFER_ENCODING).is_some();
    let said = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    match exact.or(said).filter(|_| !chunked || exact.is_some()) {
        Some(length) => {
            if said != Some(length) {
                headers.insert(CONTENT_LENGTH, length.into());
            }
            Framing::Length(length)
        }
        None => {
            headers.remove(CONTENT_LENGTH);
            headers.insert(TRANSFER_ENCODING, http::HeaderValue::from_static("chunked"));
            Framing::Chunked
        }
    }
}

fn write_head(request: &Request<RequestBody>, out: &mut Vec<u8>) {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let fields = request.headers();
    let size: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    out.reserve(size + path.len() + 32);
    out.extend_from_slice(request.method().as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(path.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    write_fields(fields.iter(), out);
    out.extend_from_slice(b"\r\n");
}

fn write_fields<'a>(
    fields: impl Iterator<Item = (&'a HeaderName, &'a http::HeaderValue)>,
    out: &mut Vec<u8>,
) {
    for (name, value) in fields {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

/// Writes the trailers that the head announced, and that may be some (RFC 9110, section 6.5.1).
fn write_trailers(head: &HeaderMap, trailers: &HeaderMap, out: &mut Vec<u8>) {
    let announced = |wanted: &HeaderName| {
        head.get_all(TRAILER).iter().any(|value| {
            let mut names = value.as_bytes().split(|byte| *byte == b',');
            names.any(|name| name.trim_ascii().eq_ignore_ascii_case(wanted.as_str().as_bytes()))
        })
    };
    write_fields(trailers.iter().filter(|(name, _)| may_trail(name) && announced(name)), out);
}

fn may_trail(name: &HeaderName) -> bool {
    let never = [
        AUTHORIZATION,
        CACHE_CONTROL,
        CONTENT_ENCODING,
        CONTENT_LENGTH,
        CONTENT_RANGE,
        CONTENT_TYPE,
        HOST,
        MAX_FORWARDS,
        SET_COOKIE,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
    ];
    !never.contains(name)
}
