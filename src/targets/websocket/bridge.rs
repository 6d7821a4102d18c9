//! `bridge: websocket`, an event stream for callers who speak WebSocket only, as mini programs do.
//!
//! What streams is a target here ([`Bridged`]), or an operation of the gateway's own ([`WebSocketBridge::before`]).
//! Each text message is the body of a POST to it, one at a time: another meanwhile is answered `still_running`
//! and not sent. Each event's `data` is a text message; an answer that is no event stream (an error, mostly) is one
//! too. What names an event but is not its data does not pass. The caller's leaving stops the answer under way.
//!
//! The socket is a [`Tunnel`](super::tunnel::Tunnel) like any other, whose upstream is the code here, at the other end of a
//! pipe: its limits, notices and endings are those of a WebSocket, and how long an answer may take stays the business
//! of `stream`. Limits of the chain count the socket, not its messages: for those there is `websocket.max_rate`.

use super::origins::Origins;
use super::{Door, Entered};
use crate::endpoint::Next;
use crate::error::{GatewayError, Kind};
use crate::exchange::Exchange;
use crate::openapi::OperationDoc;
use crate::sse::{Splitter, fields, is_event_stream};
use crate::targets::{Target, TargetCx};
use crate::ws::frame::{self, CloseCode};
use crate::ws::{Decoder, Offer, Said, SocketLimits};
use bytes::Bytes;
use http::header::{
    ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Limited};
use poem::{Endpoint, Request, Response};
use std::hash::Hasher;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex, split};
use tokio::sync::mpsc;

/// What the pipe holds each way.
const PIPE: usize = 16 << 10;
/// Most of an answer that is no event stream.
const MAX_ERROR: usize = 64 << 10;

/// What one message is told apart by, or goes on from: said by a handshake, it would be said of every message.
const OF_ONE_MESSAGE: [HeaderName; 2] =
    [HeaderName::from_static("idempotency-key"), HeaderName::from_static("last-event-id")];

/// A checked `bridge: websocket`: who may open its sockets, and how large they may grow.
#[derive(Debug, Clone)]
pub struct WebSocketBridge {
    pub(super) limits: SocketLimits,
    pub(super) origins: Origins,
}

impl WebSocketBridge {
    /// Builds it before `next`, which is asked once a message and answers with an event stream.
    pub fn before(&self, next: Next, cx: &TargetCx<'_>) -> Next {
        let door = Door::new(self.limits, self.origins.clone(), cx);
        crate::endpoint::sealed(Running { next: Arc::new(next), door })
    }

    /// Says what the handshake is, and within which limits messages pass.
    pub fn document(&self, op: &mut OperationDoc) {
        super::document(&self.limits, true, op);
    }

    /// Whether it bounds the sockets of a caller.
    pub fn counts_callers(&self) -> bool {
        self.limits.per_user.is_some()
    }

    /// Feeds what it takes from other sections of the manifest to the route's identity.
    pub fn identify(&self, state: &mut dyn Hasher) {
        self.origins.identify(state);
    }
}

/// A bridge before a streaming target.
pub(in crate::targets) struct Bridged {
    pub(super) inner: Arc<dyn Target>,
    pub(super) bridge: WebSocketBridge,
}

impl Target for Bridged {
    fn document(&self, op: &mut OperationDoc) {
        // What the service does is told in messages.
        self.bridge.document(op);
    }

    fn build(&self, cx: &TargetCx<'_>) -> Next {
        self.bridge.before(self.inner.build(cx), cx)
    }

    fn streams(&self) -> bool {
        true
    }

    fn longest_stream(&self) -> Option<Duration> {
        Some(Duration::MAX)
    }

    fn is_socket(&self) -> bool {
        true
    }

    fn bridged(&self) -> Option<&dyn Target> {
        Some(&*self.inner)
    }

    fn counts_callers(&self) -> bool {
        self.bridge.counts_callers()
    }

    fn identify(&self, state: &mut dyn Hasher) {
        self.bridge.identify(state);
    }

    fn upstream(&self) -> Option<&str> {
        self.inner.upstream()
    }

    fn describe(&self, path: &str, values: &[&str]) -> String {
        self.inner.describe(path, values)
    }
}

/// A `bridge: websocket` that runs.
struct Running {
    next: Arc<Next>,
    door: Door,
}

impl Endpoint for Running {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let exchange = Exchange::of(&request).clone();
        let version = request.version();
        match self.open(&exchange, &request).await {
            Ok(response) => Ok(response),
            Err(error) => Ok(super::refusal(&exchange, &error, version)),
        }
    }
}

impl Running {
    async fn open(&self, exchange: &Arc<Exchange>, request: &Request) -> Result<Response, GatewayError> {
        let Entered { key, upgrade, seat, replaced } = self.door.enter(exchange, request).await?;
        let knows_ours = Offer::of(request.headers()).knows_ours();
        let mut headers = request.headers().clone();
        for of_a_handshake in [
            SEC_WEBSOCKET_KEY,
            SEC_WEBSOCKET_VERSION,
            SEC_WEBSOCKET_PROTOCOL,
            SEC_WEBSOCKET_EXTENSIONS,
            CONTENT_LENGTH,
        ]
        .iter()
        .chain(&OF_ONE_MESSAGE)
        {
            headers.remove(of_a_handshake);
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        let asker = Asker {
            next: self.next.clone(),
            exchange: exchange.clone(),
            uri: request.uri().clone(),
            headers,
            max: usize::try_from(self.door.limits.max_message).unwrap_or(usize::MAX),
        };
        let (ours, theirs) = duplex(PIPE);
        // The terms hold the exchange: it ends with the socket, not with the code at the pipe's other end.
        let terms = self.door.terms(exchange, seat, replaced);
        tokio::spawn(super::run(upgrade, ours, terms));
        tokio::spawn(async move { drop(converse(theirs, &asker).await) });
        Ok(super::switching(HeaderMap::new(), &key, knows_ours))
    }
}

/// Sends messages to the target.
struct Asker {
    next: Arc<Next>,
    exchange: Arc<Exchange>,
    uri: Uri,
    headers: HeaderMap,
    /// Largest message.
    max: usize,
}

/// Answers what comes, until the pipe breaks or either side says Close.
async fn converse(pipe: DuplexStream, asker: &Asker) -> io::Result<()> {
    let (mut from, mut to) = split(pipe);
    let mut decoder = Decoder::default();
    // One answer is ahead of what the caller takes, no more.
    let (tell, mut told) = mpsc::channel::<String>(1);
    let mut answer: Option<Pin<Box<dyn Future<Output = ()> + Send + '_>>> = None;
    loop {
        let count = tokio::select! {
            biased;
            Some(text) = told.recv() => {
                to.write_all(&frame::text(&text)).await?;
                continue;
            }
            () = async { if let Some(answer) = &mut answer { answer.await } }, if answer.is_some() => {
                answer = None;
                continue;
            }
            count = from.read_buf(decoder.room()) => count?,
        };
        if count == 0 {
            return Ok(());
        }
        loop {
            let refusal = match decoder.next_said() {
                Ok(None) => break,
                Ok(Some(Said::Pong)) => continue,
                Ok(Some(Said::Ping(payload))) => {
                    to.write_all(&frame::pong(&payload)).await?;
                    continue;
                }
                Ok(Some(Said::Close(payload))) => {
                    to.write_all(&frame::answer_close(&payload)).await?;
                    return to.shutdown().await;
                }
                Ok(Some(Said::Text(text))) => {
                    if answer.is_none() {
                        answer = Some(Box::pin(asker.ask(text, tell.clone())));
                    } else {
                        let detail = "an answer is under way: wait for its end";
                        let text = asker.in_words(&GatewayError::new(Kind::StillRunning, detail)).await;
                        to.write_all(&frame::text(&text)).await?;
                    }
                    continue;
                }
                Ok(Some(Said::Binary(_))) => (CloseCode::NOT_READ, "text_only"),
                Err(code) => (code, ""),
            };
            to.write_all(&frame::close(refusal.0, refusal.1, None)).await?;
            return to.shutdown().await;
        }
    }
}

impl Asker {
    /// Asks the target, and hands on what it answers.
    async fn ask(&self, body: String, tell: mpsc::Sender<String>) {
        let exchange = self.exchange.follow_up(Method::POST);
        let mut request = Request::builder().method(Method::POST).uri(self.uri.clone()).body(body);
        *request.headers_mut() = self.headers.clone();
        request.set_data(exchange.clone());
        let mut response = match self.next.call(request).await {
            Ok(response) => response,
            Err(error) => error.into_response(),
        };
        if let Some(note) = exchange.upstream() {
            self.exchange.sent_to(note);
        }
        if let Some(kind) = exchange.degraded() {
            self.exchange.set_degraded(kind);
        }
        let body: BoxBody<Bytes, io::Error> = response.take_body().into();
        if !is_event_stream(response.status(), response.headers()) {
            let whole = Limited::new(body, MAX_ERROR).collect().await.map(|whole| whole.to_bytes());
            let text = whole.ok().and_then(|whole| String::from_utf8(whole.into()).ok());
            let text = match text {
                Some(text) => text,
                None => self.in_words(&Kind::UpstreamBadResponse.into()).await,
            };
            let _ = tell.send(text).await;
            return;
        }
        if self.pass_events(body, &tell).await.is_err() {
            let text = self.in_words(&Kind::UpstreamReset.into()).await;
            let _ = tell.send(text).await;
        }
    }

    async fn pass_events(
        &self,
        mut body: BoxBody<Bytes, io::Error>,
        tell: &mpsc::Sender<String>,
    ) -> io::Result<()> {
        let mut events = Splitter::default();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            events.push(&data);
            while let Some(event) = events.next_event() {
                let lines: Vec<&str> = fields(&event, "data").collect();
                if !lines.is_empty() && tell.send(lines.join("\n")).await.is_err() {
                    return Ok(());
                }
            }
            if events.pending() > self.max {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "an event is larger than a message may be",
                ));
            }
        }
        Ok(())
    }

    /// An error as its body would say it.
    async fn in_words(&self, error: &GatewayError) -> String {
        let mut response = self.exchange.refuse(error);
        response.take_body().into_string().await.unwrap_or_default()
    }
}
