//! `bridge: sse`, a WebSocket upstream for callers who speak plain HTTP only.
//!
//! One request opens one socket. Its body is the first text message (none for an empty body), and each message of the
//! upstream's is an event: text as `data`, binary as `event: binary` in base64. Line ends inside a text are those of
//! events: CR, LF and CRLF all become the next `data:` line. A Close with 1000, 1001 or no code ends the stream with
//! `event: end`, any other with `event: error` and its code. A socket that breaks off, or says what none may, ends like
//! any stream that breaks off.
//!
//! For its caller the route is an event stream: [`EventStream`] watches it. What it never sees is the socket, which is
//! held by a task ([`converse`]) that says Close when nobody reads any more. One event is ahead of the caller, no more.

use super::Asked;
use crate::diag::{Code, Diagnostic, Diagnostics};
use crate::endpoint::{Next, sealed};
use crate::error::{BodyTooLarge, GatewayError, Kind};
use crate::exchange::{End, Exchange};
use crate::manifest::Spanned;
use crate::manifest::model::{Route, WebSocketLimits};
use crate::openapi::{EVENT, EVENT_STREAM, OperationDoc};
use crate::sse::{StreamTimes, set_headers};
use crate::state::Shared;
use crate::targets::notice::Notice;
use crate::targets::proxy::{self, Decl};
use crate::targets::sse::{self, EventStream, Events};
use crate::targets::template::Template;
use crate::targets::{Meets, Target, TargetCx, forward};
use crate::telemetry::StreamMetrics;
use crate::upstream::{Switch, Upstream};
use crate::ws::frame::{self, CloseCode};
use crate::ws::{Decoder, Said, SocketLimits, handshake};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName,
    SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TE,
    TRAILER, TRANSFER_ENCODING,
};
use http::{HeaderMap, HeaderValue, Method};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt as _;
use http_body_util::combinators::BoxBody;
use poem::{Body, Endpoint, Request, Response};
use serde_json::json;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf, split};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// What is read of the socket at once.
const READ: usize = 16 << 10;
/// How long the upstream may take to hear the gateway's Close, and to end.
const FAREWELL: Duration = Duration::from_millis(500);
/// Ends a stream whose upstream was done.
const ENDED: &[u8] = b"event: end\ndata: {}\n\n";

/// A checked `protocol: websocket` with `bridge: sse`.
#[derive(Debug)]
pub(in crate::targets) struct FromSocket {
    upstream: Arc<str>,
    meets: Meets,
    /// URLs of its servers, for people.
    servers: Vec<String>,
    path: Option<Arc<Template>>,
    limits: SocketLimits,
    times: StreamTimes,
}

/// Is it sound? Reports every fault.
pub(in crate::targets) fn check(
    route: &Spanned<Route>,
    params: &[String],
    upstream: Option<Decl<'_>>,
    out: &mut Diagnostics,
) -> Option<FromSocket> {
    let method = route.route.value.split_whitespace().next().unwrap_or_default();
    if !["GET", "POST"].contains(&method) {
        let message = format!("the events of a WebSocket are asked for with GET or POST, not {method}");
        out.push(
            Diagnostic::error(Code::MISPLACED, route.route.span, message)
                .help("write `GET` or `POST` before the path"),
        );
    }
    route.websocket.iter().for_each(|limits| of_callers(limits, out));
    route.stream.iter().for_each(|limits| proxy::for_chats_only(limits, out));
    let limits = SocketLimits::check(route.websocket.as_ref(), out);
    let times = StreamTimes::check(route.stream.as_ref(), out);
    let path = route.path.as_ref().map(|path| Template::check(path, 0, &path.value, params, out));
    let upstream = upstream?;
    Some(FromSocket {
        upstream: upstream.name.into(),
        meets: Meets::of(upstream.decl),
        servers: proxy::servers(&upstream),
        path: match path {
            Some(path) => Some(Arc::new(path?)),
            None => None,
        },
        limits,
        times,
    })
}

/// Faults for limits of a socket that callers would have.
fn of_callers(limits: &WebSocketLimits, out: &mut Diagnostics) {
    let times = "its callers have no socket: silence is limited by `stream`";
    let rates = "its callers send one request: limit those with `rate_limit`";
    for (key, span, help) in [
        ("ping", limits.ping.as_ref().map(|it| it.span), times),
        ("idle", limits.idle.as_ref().map(|it| it.span), times),
        ("max_rate", limits.max_rate.as_ref().map(|it| it.span), rates),
        ("max_bytes_rate", limits.max_bytes_rate.as_ref().map(|it| it.span), rates),
        (
            "origins",
            limits.origins.as_ref().map(|it| it.span),
            "pages ask with ordinary requests: put `cors` into the chain",
        ),
        ("per_user", limits.per_user.as_ref().map(|it| it.span), rates),
        ("takeover", limits.takeover.as_ref().map(|it| it.span), "remove it"),
    ] {
        let Some(span) = span else { continue };
        let message = format!("`{key}` does not apply to a route with `bridge: sse`");
        out.push(Diagnostic::error(Code::MISPLACED, span, message).help(help));
    }
}

impl Target for FromSocket {
    fn document(&self, op: &mut OperationDoc) {
        self.meets.document(op);
        let text = json!({ "description": "What the service says.", EVENT: "message" });
        let content = json!({ EVENT_STREAM: { "schema": { "anyOf": [text] } } });
        let about = "Each message of the service's is an event.";
        op.answers("200", json!({ "description": about, "content": content }));
        let binary = json!({
            "type": "string",
            "description": "What the service says in bytes.",
            "contentEncoding": "base64",
        });
        let closed = json!({
            "type": "object",
            "description": "The service closed for a bad reason. Nothing follows.",
            "required": ["type", "code", "close_code", "reason"],
            "properties": {
                "type": { "const": "error" },
                "code": { "const": "upstream_closed" },
                "close_code": { "type": "integer" },
                "reason": { "type": "string" },
            },
        });
        let end = json!({ "type": "object", "description": "The service closed. Nothing follows.", "maxProperties": 0 });
        op.events(&[("binary", binary), ("end", end), ("error", closed)]);
        sse::document(op);
    }

    fn build(&self, cx: &TargetCx<'_>) -> Next {
        let upstream = cx.upstreams.get(&self.upstream).cloned();
        sealed(Running {
            upstream: upstream.expect("the checks saw that this upstream is defined"),
            shared: cx.shared.clone(),
            path: self.path.clone(),
            limits: self.limits,
            times: self.times,
            metrics: cx.shared.telemetry.streams(cx.route),
        })
    }

    fn streams(&self) -> bool {
        true
    }

    fn longest_stream(&self) -> Option<Duration> {
        Some(self.times.max)
    }

    fn upstream(&self) -> Option<&str> {
        Some(&self.upstream)
    }

    fn describe(&self, path: &str, values: &[&str]) -> String {
        proxy::urls(&self.servers, self.path.as_deref(), path, values)
    }
}

/// A `bridge: sse` that runs.
struct Running {
    upstream: Arc<Upstream>,
    shared: Arc<Shared>,
    path: Option<Arc<Template>>,
    limits: SocketLimits,
    times: StreamTimes,
    metrics: Arc<StreamMetrics>,
}

impl Endpoint for Running {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let exchange = Exchange::of(&request).clone();
        let first = first_message(&mut request, self.limits.max_message).await?;
        let began = Instant::now();
        let trusted = self.shared.settings.trusts(exchange.peer.ip());
        let mut asking = forward::request(&exchange, request, self.path.as_deref(), trusted)?.map(drop);
        *asking.method_mut() = Method::GET;
        without(
            asking.headers_mut(),
            &[ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, TE, TRAILER, TRANSFER_ENCODING],
        );
        let asked = Asked { key: handshake::fresh_key(), protocols: None, extensions: Vec::new() };
        asked.set(asking.headers_mut());
        let switching = self.upstream.switch(&exchange, asking, self.limits.ping);
        let switch = timeout(self.times.first_event, switching)
            .await
            .map_err(|_| GatewayError::from(Kind::UpstreamTimeout))??;
        let (head, socket) = match switch {
            Switch::Switched(head, socket) => (head, socket),
            Switch::Declined(response) => {
                let mut response = response.map(BoxBody::new);
                forward::clean_response(response.headers_mut());
                return Ok(proxy::finished(response));
            }
        };
        asked.check(&head).map_err(|why| self.upstream.misbehaved(&exchange, why))?;
        let (tell, words) = mpsc::channel(1);
        tokio::spawn(converse(socket, first, self.limits.max_message, tell));
        let told = Told { words, exchange: exchange.clone(), over: false };
        let notice = Notice::new(&self.shared, exchange.identity().map(AsRef::as_ref));
        let stream = EventStream::new(told, exchange, self.metrics.open(), self.times, began, notice);
        let mut response = Response::builder().body(Body::from(BoxBody::new(stream)));
        *response.headers_mut() = answering(head.headers);
        Ok(response)
    }
}

fn without(headers: &mut HeaderMap, names: &[HeaderName]) {
    for name in names {
        headers.remove(name);
    }
}

/// Headers of the caller's answer, from the upstream's 101.
fn answering(mut headers: HeaderMap) -> HeaderMap {
    forward::clean_response(&mut headers);
    without(
        &mut headers,
        &[
            CONTENT_ENCODING,
            CONTENT_LENGTH,
            TRAILER,
            TRANSFER_ENCODING,
            SEC_WEBSOCKET_ACCEPT,
            SEC_WEBSOCKET_EXTENSIONS,
            SEC_WEBSOCKET_PROTOCOL,
            SEC_WEBSOCKET_VERSION,
        ],
    );
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    set_headers(&mut headers);
    headers
}

/// A request's body, of `max` bytes at most; none if it is empty.
///
/// # Errors
/// 413, 400 for what is not UTF-8 or breaks off, 415 for what is coded.
async fn first_message(request: &mut Request, max: u64) -> Result<Option<String>, GatewayError> {
    let coded =
        request.headers().get(CONTENT_ENCODING).is_some_and(|coding| coding.as_bytes() != b"identity");
    let mut body: BoxBody<Bytes, io::Error> = request.take_body().into();
    let mut text: Vec<u8> = Vec::new();
    while let Some(piece) = body.frame().await {
        let piece = piece.map_err(|error| {
            GatewayError::from_body_error(&error)
                .unwrap_or_else(|| GatewayError::new(Kind::BadRequest, "the request's body broke off"))
        })?;
        let Ok(data) = piece.into_data() else { continue };
        if (text.len() + data.len()) as u64 > max {
            return Err((&BodyTooLarge { limit: max }).into());
        }
        text.extend_from_slice(&data);
    }
    if text.is_empty() {
        return Ok(None);
    }
    if coded {
        return Err(GatewayError::new(Kind::UnsupportedMediaType, "Send the body without Content-Encoding"));
    }
    let text = String::from_utf8(text)
        .map_err(|_| GatewayError::new(Kind::BadRequest, "the request's body is not UTF-8"))?;
    Ok(Some(text))
}

/// What the socket's task tells the response.
#[derive(Debug, PartialEq, Eq)]
enum Word {
    /// A message, as an event.
    Event(Bytes),
    /// The upstream was done.
    Ended,
    /// The upstream closed with this code and reason.
    Closed(u16, String),
    /// The socket broke off, or what came is no WebSocket.
    Broke(&'static str),
}

/// The response's events, unwatched. Dropping it closes the socket.
struct Told {
    words: mpsc::Receiver<Word>,
    exchange: Arc<Exchange>,
    over: bool,
}

impl Events for Told {
    /// A socket that just ends has broken off.
    fn close_delimited(&self) -> bool {
        false
    }
}

impl HttpBody for Told {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let word = ready!(self.words.poll_recv(cx));
        self.over = !matches!(word, Some(Word::Event(_)));
        let event = match word {
            Some(Word::Event(event)) => event,
            Some(Word::Ended) => Bytes::from_static(ENDED),
            Some(Word::Closed(code, reason)) => {
                self.exchange.ended(End::UpstreamBroke);
                closed(code, &reason)
            }
            broke => {
                let why = if let Some(Word::Broke(why)) = broke { why } else { "its reader is gone" };
                tracing::warn!(
                    request_id = self.exchange.request_id(),
                    error = why,
                    "a bridged socket broke off"
                );
                return Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::UnexpectedEof, why))));
            }
        };
        Poll::Ready(Some(Ok(Frame::data(event))))
    }
}

/// The last event of a stream whose upstream closed for a bad reason.
fn closed(code: u16, reason: &str) -> Bytes {
    let data = json!({
        "type": "error", "code": "upstream_closed", "close_code": code, "reason": reason,
    });
    Bytes::from(format!("event: error\ndata: {data}\n\n"))
}

/// A text message as an event.
fn text_event(text: &str) -> Bytes {
    let mut event = Vec::with_capacity(text.len() + 16);
    let mut rest = text;
    loop {
        let end = rest.find(['\r', '\n']);
        event.extend_from_slice(b"data: ");
        event.extend_from_slice(&rest.as_bytes()[..end.unwrap_or(rest.len())]);
        event.push(b'\n');
        let Some(end) = end else { break };
        let line_end = if rest[end..].starts_with("\r\n") { 2 } else { 1 };
        rest = &rest[end + line_end..];
    }
    event.push(b'\n');
    event.into()
}

/// A binary message as an event.
fn binary_event(bytes: &[u8]) -> Bytes {
    Bytes::from(format!("event: binary\ndata: {}\n\n", STANDARD.encode(bytes)))
}

/// What a Close says of the stream's end.
fn last_word(payload: &[u8]) -> Word {
    match payload.split_first_chunk::<2>().map(|(code, reason)| (u16::from_be_bytes(*code), reason)) {
        None | Some((1000 | 1001, _)) => Word::Ended,
        Some((code, reason)) => Word::Closed(code, String::from_utf8_lossy(reason).into_owned()),
    }
}

/// Speaks with the upstream until it is done, or nobody listens any more.
async fn converse<S>(socket: S, first: Option<String>, max: u64, tell: mpsc::Sender<Word>)
where
    S: AsyncRead + AsyncWrite,
{
    let (from, to) = split(socket);
    let mut line = Line { from, to, unsent: BytesMut::new(), unflushed: false, deaf: false, pong: None };
    if let Some(first) = first {
        line.queue(&frame::text(&first));
    }
    let mut decoder = Decoder::of_server(max);
    let (close, word) = loop {
        let read = tokio::select! {
            biased;
            () = tell.closed() => break (Some(frame::close(CloseCode::GOING_AWAY, "", None)), None),
            read = line.pass(&mut decoder) => read,
        };
        if !matches!(read, Ok(1..)) {
            break (None, Some(Word::Broke("its connection ended without a Close")));
        }
        match tell_all(&mut decoder, &mut line, &tell).await {
            Ok(()) => {}
            Err((close, word)) => break (Some(close), word),
        }
    };
    let telling = async {
        if let Some(word) = word {
            // Whoever left needs no word.
            let _ = tell.send(word).await;
        }
        // Says that nothing more comes.
        drop(tell);
    };
    tokio::join!(telling, line.part(close));
}

/// Tells everything that has come whole; else what to close with, and the last word.
async fn tell_all<S>(
    decoder: &mut Decoder,
    line: &mut Line<S>,
    tell: &mpsc::Sender<Word>,
) -> Result<(), (Vec<u8>, Option<Word>)> {
    loop {
        let event = match decoder.next_said() {
            Ok(None) => return Ok(()),
            Ok(Some(Said::Pong)) => continue,
            Ok(Some(Said::Ping(payload))) => {
                // Only the latest has to be answered (section 5.5.3): a flood of pings queues nothing.
                line.pong = Some(payload);
                continue;
            }
            Ok(Some(Said::Text(text))) => text_event(&text),
            Ok(Some(Said::Binary(bytes))) => binary_event(&bytes),
            Ok(Some(Said::Close(payload))) => {
                return Err((frame::answer_close(&payload), Some(last_word(&payload))));
            }
            Err(code) => {
                let why = match code {
                    CloseCode::TOO_BIG => "a message is larger than `websocket.max_message`",
                    CloseCode::NOT_TEXT => "a text message is not UTF-8",
                    _ => "what it says is no WebSocket",
                };
                return Err((frame::close(code, "", None), Some(Word::Broke(why))));
            }
        };
        if tell.send(Word::Event(event)).await.is_err() {
            return Err((frame::close(CloseCode::GOING_AWAY, "", None), None));
        }
    }
}

/// The gateway's end of a socket.
struct Line<S> {
    from: ReadHalf<S>,
    to: WriteHalf<S>,
    /// Frames, whole but for what was sent of the first.
    unsent: BytesMut,
    unflushed: bool,
    /// Whether the upstream takes no more; it may still have said something.
    deaf: bool,
    /// What the latest ping had in it, while it is not answered.
    pong: Option<Vec<u8>>,
}

impl<S> Line<S> {
    /// Queues a frame, masked as a client's must be (section 5.3).
    fn queue(&mut self, frame: &[u8]) {
        self.unsent.extend_from_slice(&frame::masked(frame, rand::random()));
    }
}

impl<S: AsyncRead + AsyncWrite> Line<S> {
    /// Sends what is to be sent until something has come; how many bytes. May be left at any time.
    async fn pass(&mut self, decoder: &mut Decoder) -> io::Result<usize> {
        decoder.room().reserve(READ);
        loop {
            if self.unsent.is_empty()
                && let Some(payload) = self.pong.take()
            {
                self.queue(&frame::pong(&payload));
            }
            let (to, unsent, unflushed) = (&mut self.to, &mut self.unsent, &mut self.unflushed);
            let sends = !self.deaf && (*unflushed || !unsent.is_empty());
            let sending = async {
                if !unsent.is_empty() {
                    to.write_buf(unsent).await?;
                    *unflushed = true;
                }
                to.flush().await?;
                *unflushed = false;
                io::Result::Ok(())
            };
            tokio::select! {
                read = self.from.read_buf(decoder.room()) => return read,
                sent = sending, if sends => self.deaf = sent.is_err(),
            }
        }
    }

    /// Says a last frame, and waits a little for the upstream's end: a reset could overtake what it has not read.
    async fn part(mut self, close: Option<Vec<u8>>) {
        let Some(close) = close.filter(|_| !self.deaf) else { return };
        self.queue(&close);
        let parting = async {
            self.to.write_all_buf(&mut self.unsent).await?;
            self.to.flush().await?;
            self.to.shutdown().await?;
            let mut rest = BytesMut::with_capacity(READ);
            while self.from.read_buf(&mut rest).await? > 0 {
                rest.clear();
            }
            io::Result::Ok(())
        };
        // It is over either way.
        let _ = timeout(FAREWELL, parting).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_one_event_whatever_its_lines() {
        for (text, event) in [
            ("a", "data: a\n\n"),
            ("", "data: \n\n"),
            ("a\nb", "data: a\ndata: b\n\n"),
            ("a\r\nb\rc\n", "data: a\ndata: b\ndata: c\ndata: \n\n"),
            ("\n\nevent: x", "data: \ndata: \ndata: event: x\n\n"),
        ] {
            assert_eq!(text_event(text), event, "{text:?}");
        }
        assert_eq!(binary_event(&[0xff, 0]), "event: binary\ndata: /wA=\n\n");
    }

    #[test]
    fn a_close_says_how_the_stream_ended() {
        assert_eq!(last_word(&[]), Word::Ended);
        assert_eq!(last_word(&[0x03, 0xe9, b'x']), Word::Ended);
        assert_eq!(last_word(&[0x03, 0xf3, b'x']), Word::Closed(1011, "x".to_owned()));
        assert_eq!(
            closed(1011, "a\nb"),
            "event: error\ndata: {\"type\":\"error\",\"code\":\"upstream_closed\",\"close_code\":1011,\"reason\":\"a\\nb\"}\n\n"
        );
    }
}
