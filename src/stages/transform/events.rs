//! Event streams mapped event by event, as they come.

use super::super::json_body::{NotRead, parse};
use super::mapping::Compiled;
use super::{Common, Kept};
use crate::exchange::Exchange;
use crate::expr::Scope;
use crate::sse::{self, Position};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame};
use http_body_util::combinators::BoxBody;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// The body of an event stream whose events are mapped.
pub(super) struct Mapped {
    body: BoxBody<Bytes, io::Error>,
    events: Events,
}

struct Events {
    mapping: Arc<Compiled>,
    common: Arc<Common>,
    exchange: Arc<Exchange>,
    kept: Kept,
    head: (StatusCode, HeaderMap),
    position: Position,
    /// What has come of the line or event under way.
    held: BytesMut,
}

impl Mapped {
    pub(super) fn new(
        body: BoxBody<Bytes, io::Error>,
        mapping: Arc<Compiled>,
        common: Arc<Common>,
        exchange: Arc<Exchange>,
        kept: Kept,
        head: (StatusCode, HeaderMap),
    ) -> Self {
        let (position, held) = (Position::default(), BytesMut::new());
        Mapped { body, events: Events { mapping, common, exchange, kept, head, position, held } }
    }
}

impl Body for Mapped {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        loop {
            // What is held at the end is no event: readers drop it too (WHATWG HTML, section 9.2.6).
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else {
                return Poll::Ready(None);
            };
            let data = match frame?.into_data() {
                Ok(data) => data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            };
            let passed = self.events.take(&data)?;
            if !passed.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(passed))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

impl Events {
    /// Takes the next bytes; gives what can go on.
    fn take(&mut self, mut data: &[u8]) -> io::Result<Bytes> {
        let mut out = BytesMut::with_capacity(data.len() + self.held.len());
        while !data.is_empty() {
            let (length, ended) = self.position.read_to_boundary(data);
            let (piece, rest) = data.split_at(length);
            data = rest;
            if !self.position.is_boundary() {
                self.held.extend_from_slice(piece);
                let most = self.common.bounds.max_size;
                if self.held.len() as u64 > most.0 {
                    let request_id = self.exchange.request_id();
                    tracing::warn!(request_id, "an event is larger than {most}, so its stream ends");
                    return Err(io::Error::other("an event is too large to be mapped"));
                }
                continue;
            }
            let held = self.held.split();
            let whole = match held.is_empty() {
                true => piece,
                false => {
                    self.held = held;
                    self.held.extend_from_slice(piece);
                    &self.held[..]
                }
            };
            match ended {
                0 => out.extend_from_slice(whole),
                _ => self.map(whole, &mut out),
            }
            self.held.clear();
        }
        Ok(out.freeze())
    }

    /// Maps one event, with the empty line behind it.
    fn map(&self, event: &[u8], out: &mut BytesMut) {
        let text = sse::fields(event, "data").collect::<Vec<_>>().join("\n");
        if sse::is_notice(event) || !text.trim_start().starts_with(['{', '[']) {
            out.extend_from_slice(event);
            return;
        }
        let mut body = match parse(text.as_bytes(), &self.common.bounds) {
            Ok(body) => body,
            Err(NotRead::Malformed { .. }) => {
                out.extend_from_slice(event);
                return;
            }
            Err(why) => {
                if let Some(left_out) = self.common.throttle.pass() {
                    let request_id = self.exchange.request_id();
                    tracing::warn!(request_id, %why, left_out, "an event cannot be mapped and is left out");
                }
                return;
            }
        };
        let (status, headers) = &self.head;
        let scope = Scope {
            exchange: &self.exchange,
            headers: &self.kept.headers,
            query: self.kept.query.as_deref(),
            body: None,
            response: Some((*status, headers)),
        };
        self.mapping.apply(&mut body, &scope, headers, &mut |path, expression, error| {
            self.common.left_out(&self.exchange, path, expression, &error);
        });
        let text = body.to_string();
        let mut told = false;
        for line in lines(event) {
            let content = line.trim_ascii_end();
            let is_data =
                content.strip_prefix(b"data").is_some_and(|rest| rest.first().is_none_or(|b| *b == b':'));
            if !is_data {
                out.extend_from_slice(line);
            } else if !told {
                told = true;
                let end = line.iter().position(|b| matches!(b, b'\n' | b'\r')).unwrap_or(line.len());
                out.extend_from_slice(b"data: ");
                out.extend_from_slice(text.as_bytes());
                out.extend_from_slice(&line[end..]);
            }
        }
    }
}

/// Lines with their ends: LF, CR or CRLF.
fn lines(mut event: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let end = event.iter().position(|b| matches!(b, b'\n' | b'\r'))?;
        let both = event[end..].starts_with(b"\r\n");
        let (line, rest) = event.split_at(end + if both { 2 } else { 1 });
        event = rest;
        Some(line)
    })
}
