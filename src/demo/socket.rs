//! WebSockets of the demo services (RFC 6455): the handshake, and the conversation on one.
//!
//! Frames are tungstenite's, which reads and writes them by its own lights, so that the gateway's own understanding of
//! frames meets another. What a service says is an [`Actor`]'s business: it hears messages and answers with JSON.
//! Sockets are pinged every [`PING`] and closed after [`SILENCE`] without a word, as the original gateway's were.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sha1::{Digest as _, Sha1};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::CancellationToken;

use super::reply::{Body, Refusal};

/// How often a socket is pinged, and its actor asked whether there is something to say.
const PING: Duration = Duration::from_secs(30);
/// How long a socket may be silent, pongs included.
const SILENCE: Duration = Duration::from_secs(60);
/// The longest message, in bytes.
const MAX_MESSAGE: usize = 1024 * 1024;
/// Messages of others that wait for a slow reader; what comes then is lost to it.
pub(super) const BACKLOG: usize = 64;

/// What came from the other end.
pub(super) enum Heard {
    Text(String),
    Binary(Bytes),
}

/// One end of a conversation.
pub(super) trait Actor: Send {
    /// Says something first.
    fn open(&mut self) -> Vec<Value> {
        Vec::new()
    }

    /// Answers a message.
    fn hear(&mut self, heard: Heard) -> Vec<Value>;

    /// Says something unasked, every [`PING`].
    fn tick(&mut self) -> Vec<Value> {
        Vec::new()
    }
}

/// A socket that its connection becomes once the 101 is written.
pub(super) struct Opening {
    upgrade: OnUpgrade,
    actor: Box<dyn Actor>,
    /// What others say to it.
    inbox: mpsc::Receiver<Value>,
}

/// The 101 for a request that asks for a WebSocket (RFC 6455, section 4.2.2), and what its connection becomes. `actor`
/// gets the sender by which others reach it.
pub(super) fn open<B>(
    mut request: Request<B>,
    actor: impl FnOnce(mpsc::Sender<Value>) -> Box<dyn Actor>,
) -> Result<(Response<Body>, Opening), Refusal> {
    let headers = request.headers();
    let says = |name, wanted: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value: &HeaderValue| value.to_str().ok())
            .any(|value| value.split(',').any(|one| one.trim().eq_ignore_ascii_case(wanted)))
    };
    let asked = request.method() == Method::GET && says(CONNECTION, "upgrade") && says(UPGRADE, "websocket");
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|_| asked && says(SEC_WEBSOCKET_VERSION, "13"));
    let Some(key) = key else {
        let message = "this path opens a WebSocket of version 13";
        return Err(Refusal::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", message));
    };
    let digest =
        Sha1::new().chain_update(key).chain_update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11").finalize();
    let accept = HeaderValue::from_str(&STANDARD.encode(digest)).expect("base64 is ASCII");
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    let (sender, inbox) = mpsc::channel(BACKLOG);
    let opening = Opening { upgrade: hyper::upgrade::on(&mut request), actor: actor(sender), inbox };
    Ok((response, opening))
}

impl Opening {
    /// Talks until either end closes; says 1001 once `drain` is cancelled.
    pub(super) async fn talk(self, drain: &CancellationToken) {
        let Ok(upgraded) = self.upgrade.await else { return };
        let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE));
        let stream =
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
        // An error is the other end's leaving: nobody needs it.
        let _ = converse(stream, self.actor, self.inbox, drain).await;
    }
}

async fn converse(
    mut stream: WebSocketStream<TokioIo<Upgraded>>,
    mut actor: Box<dyn Actor>,
    mut inbox: mpsc::Receiver<Value>,
    drain: &CancellationToken,
) -> Result<(), Error> {
    let mut pings = interval(PING);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pings.reset();
    let mut heard_at = Instant::now();
    say(&mut stream, actor.open()).await?;
    loop {
        tokio::select! {
            message = stream.next() => {
                heard_at = Instant::now();
                let heard = match message.transpose()? {
                    Some(Message::Text(text)) => Heard::Text(text.as_str().to_owned()),
                    Some(Message::Binary(bytes)) => Heard::Binary(bytes),
                    Some(_) => continue,
                    None => return Ok(()),
                };
                say(&mut stream, actor.hear(heard)).await?;
            }
            Some(message) = inbox.recv() => say(&mut stream, vec![message]).await?,
            _ = pings.tick() => {
                say(&mut stream, actor.tick()).await?;
                stream.send(Message::Ping(Bytes::new())).await?;
            }
            () = sleep_until(heard_at + SILENCE) => {
                return close(&mut stream, CloseCode::Policy, "silence").await;
            }
            () = drain.cancelled() => return close(&mut stream, CloseCode::Away, "going down").await,
        }
    }
}

async fn say(stream: &mut WebSocketStream<TokioIo<Upgraded>>, messages: Vec<Value>) -> Result<(), Error> {
    for message in messages {
        stream.feed(Message::text(message.to_string())).await?;
    }
    stream.flush().await
}

/// Closes, and waits a moment for the other end to do so.
async fn close(
    stream: &mut WebSocketStream<TokioIo<Upgraded>>,
    code: CloseCode,
    reason: &'static str,
) -> Result<(), Error> {
    stream.close(Some(CloseFrame { code, reason: reason.into() })).await?;
    let gone = async { while let Some(Ok(_)) = stream.next().await {} };
    let _ = tokio::time::timeout(Duration::from_secs(1), gone).await;
    Ok(())
}
