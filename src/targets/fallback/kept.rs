//! A request that can be sent once more: its head is copied, its body kept while it is read, up to a limit.
//!
//! Nothing waits for the lock: the body is read by one task, and sent again when that one is done with it.

use bytes::Bytes;
use http::{Extensions, HeaderMap, Method, Uri, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::BoxBody;
use poem::Request;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

/// What it takes to send a request once more.
pub(super) struct Kept {
    method: Method,
    uri: Uri,
    version: Version,
    headers: HeaderMap,
    extensions: Extensions,
    /// None where there is no body.
    body: Option<Reading>,
}

/// A body while it is read.
#[derive(Clone)]
struct Reading(Arc<Mutex<State>>);

struct State {
    /// Gone once it was taken to be sent again.
    rest: Option<BoxBody<Bytes, io::Error>>,
    /// What was read.
    read: VecDeque<Bytes>,
    /// Bytes that may still be kept.
    room: u64,
    /// Whether more was read than is kept.
    lost: bool,
}

impl Kept {
    /// Keeps a request on its way, with up to `max_body` bytes of its body.
    pub(super) fn of(request: &mut Request, max_body: u64) -> Self {
        let body: BoxBody<Bytes, io::Error> = request.take_body().into();
        let body = (!body.is_end_stream()).then(|| {
            let rest = Some(body);
            let state = State { rest, read: VecDeque::new(), room: max_body, lost: false };
            Reading(Arc::new(Mutex::new(state)))
        });
        if let Some(reading) = &body {
            request.set_body(BoxBody::new(reading.clone()));
        }
        Kept {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            headers: request.headers().clone(),
            extensions: request.extensions().clone(),
            body,
        }
    }

    pub(super) fn method(&self) -> &Method {
        &self.method
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The request once more, if its body is still whole.
    pub(super) fn again(self) -> Option<Request> {
        let body = match self.body {
            None => poem::Body::empty(),
            Some(reading) => {
                let mut state = reading.state();
                if state.lost {
                    return None;
                }
                let again = Again { read: std::mem::take(&mut state.read), rest: state.rest.take()? };
                BoxBody::new(again).into()
            }
        };
        let mut request =
            Request::builder().method(self.method).uri(self.uri).version(self.version).body(body);
        *request.headers_mut() = self.headers;
        *request.extensions_mut() = self.extensions;
        Some(request)
    }
}

impl Reading {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

impl Body for Reading {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut state = self.state();
        let Some(rest) = state.rest.as_mut() else {
            let gone = "the body goes elsewhere by now";
            return Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::BrokenPipe, gone))));
        };
        let polled = Pin::new(rest).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            match frame.data_ref() {
                Some(data) if !state.lost && data.len() as u64 <= state.room => {
                    state.room -= data.len() as u64;
                    state.read.push_back(data.clone());
                }
                // Trailers are not kept either.
                _ => {
                    state.lost = true;
                    state.read = VecDeque::new();
                }
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.state().rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.state().rest.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

/// What was read, then the rest.
struct Again {
    read: VecDeque<Bytes>,
    rest: BoxBody<Bytes, io::Error>,
}

impl Body for Again {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.read.pop_front() {
            Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.rest.size_hint();
        let read: u64 = self.read.iter().map(|data| data.len() as u64).sum();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(read));
        }
        hint.set_lower(hint.lower().saturating_add(read));
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt as _, Full};

    fn request(text: &'static str) -> Request {
        let body = Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {});
        Request::builder().method(Method::PUT).uri_str("/a?b").header("x", "y").body(BoxBody::new(body))
    }

    async fn text(request: &mut Request) -> io::Result<Bytes> {
        let body: BoxBody<Bytes, io::Error> = request.take_body().into();
        Ok(body.collect().await?.to_bytes())
    }

    #[tokio::test]
    async fn what_was_read_is_there_again() {
        let mut first = request("hello");
        let kept = Kept::of(&mut first, 5);
        assert_eq!(text(&mut first).await.unwrap(), "hello");
        let mut second = kept.again().unwrap();
        assert_eq!((second.method(), second.uri().query()), (&Method::PUT, Some("b")));
        assert_eq!(second.header("x"), Some("y"));
        assert_eq!(text(&mut second).await.unwrap(), "hello");
    }

    #[tokio::test]
    async fn a_body_nobody_read_may_be_of_any_size() {
        let mut first = request("hello");
        let mut second = Kept::of(&mut first, 0).again().unwrap();
        assert!(text(&mut first).await.is_err(), "it goes elsewhere");
        assert_eq!(text(&mut second).await.unwrap(), "hello");
    }

    #[tokio::test]
    async fn a_body_that_was_read_and_is_too_large_is_gone() {
        let mut first = request("hello");
        let kept = Kept::of(&mut first, 4);
        text(&mut first).await.unwrap();
        assert!(kept.again().is_none());
    }
}
