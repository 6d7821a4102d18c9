//! `protocol: websocket`, a socket passed on frame by frame (RFC 6455).
//!
//! A request is refused before anything is dialled if it is no handshake (426), comes from a page that may not (403), or
//! its caller has as many sockets as `per_user` allows (429). Then the upstream is asked, with a handshake of the
//! gateway's own; only its 101 makes one for the caller, and whatever else it answers goes back as it is. The caller's
//! token never goes with it, nor back, wherever it stood (SECURITY rule 10).
//!
//! `permessage-deflate` is between the two ends: the gateway passes the offer and the answer, and counts messages as they
//! are on the wire. From the 101 on a `tunnel` of two `flow`s runs on a task of its own, and the exchange lasts as long.
//! A reload leaves it alone while its route is there, with the limits it began with.
//!
//! `bridge` is for callers who speak something else than the upstream: [`mod@bridge`] and [`events`].
//!
//! WebSockets over HTTP/2 (RFC 8441) are not served: browsers then open an HTTP/1.1 connection.

mod bridge;
mod closings;
pub(super) mod events;
mod flow;
mod origins;
mod seats;
mod tunnel;

pub use bridge::WebSocketBridge;

use super::notice::{Either, Notice, leave};
use super::proxy::{self, Decl};
use super::template::Template;
use super::{Meets, Presence, Target, TargetCx, forward};
use crate::diag::{Code, Diagnostic, Diagnostics, did_you_mean};
use crate::endpoint::{Next, sealed};
use crate::error::{GatewayError, Kind};
use crate::exchange::Exchange;
use crate::manifest::model::Route;
use crate::manifest::{Manifest, Spanned};
use crate::openapi::OperationDoc;
use crate::state::Shared;
use crate::telemetry::SocketMetrics;
use crate::upstream::{Switch, Upstream};
use crate::ws::{Offer, SUBPROTOCOL, SocketLimits, handshake};
use futures_util::FutureExt as _;
use http::header::{
    CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue, StatusCode, Version, response};
use http_body_util::combinators::BoxBody;
use origins::Origins;
use poem::{Endpoint, OnUpgrade, Request, Response};
use seats::{Seat, Seats};
use std::hash::Hasher;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tunnel::{Terms, Tunnel, Word};

static WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// A checked `upstream:` with `protocol: websocket`.
#[derive(Debug)]
pub(super) struct WebSocket {
    upstream: Arc<str>,
    meets: Meets,
    /// URLs of its servers, for people.
    servers: Vec<String>,
    path: Option<Arc<Template>>,
    limits: SocketLimits,
    origins: Origins,
}

/// Are they sound? Reports every fault of what a route says of its sockets: limits, and whose pages may connect.
fn terms(route: &Spanned<Route>, manifest: &Manifest, out: &mut Diagnostics) -> (SocketLimits, Origins) {
    if !route.route.value.trim_start().starts_with("GET ") {
        let method = route.route.value.split_whitespace().next().unwrap_or_default();
        let span = route.route.span;
        out.push(
            Diagnostic::error(Code::MISPLACED, span, format!("a WebSocket is opened with GET, not {method}"))
                .help("write `GET` before the path"),
        );
    }
    for change in &route.with.0 {
        if ["body_limit", "cache", "compress", "transform", "validate"].contains(&change.name.text.as_str()) {
            let message = format!("`{}` does not look into a WebSocket", change.name.text);
            let help = match change.name.text.as_str() {
                "body_limit" => "the largest message is `websocket.max_message`",
                _ => "remove it here: its messages pass as they are",
            };
            out.push(Diagnostic::error(Code::MISPLACED, change.name.span, message).help(help));
        }
    }
    let limits = SocketLimits::check(route.websocket.as_ref(), out);
    let origins = match route.websocket.as_ref().and_then(|limits| limits.origins.as_ref()) {
        None => Origins::Same,
        Some(name) => match manifest.cors.get(&name.value) {
            Some(policy) => Origins::of(policy),
            None => {
                let message = format!("CORS policy `{}` is not defined", name.value);
                out.push(
                    Diagnostic::error(Code::UNKNOWN_POLICY, name.span, message)
                        .maybe_help(did_you_mean(&name.value, manifest.cors.names())),
                );
                Origins::Same
            }
        },
    };
    (limits, origins)
}

/// Are they sound? Reports every fault of what a route says of the sockets that a bridge opens.
pub fn bridge(route: &Spanned<Route>, manifest: &Manifest, out: &mut Diagnostics) -> WebSocketBridge {
    let (limits, origins) = terms(route, manifest, out);
    WebSocketBridge { limits, origins }
}

/// A checked target with a bridge before it, if the route's own keys are sound too.
pub(super) fn bridged(
    inner: Arc<dyn Target>,
    route: &Spanned<Route>,
    manifest: &Manifest,
    out: &mut Diagnostics,
) -> bridge::Bridged {
    bridge::Bridged { inner, bridge: bridge(route, manifest, out) }
}

/// Is it sound? Reports every fault.
pub(super) fn check(
    route: &Spanned<Route>,
    params: &[String],
    manifest: &Manifest,
    upstream: Option<Decl<'_>>,
    out: &mut Diagnostics,
) -> Option<WebSocket> {
    if let Some(stream) = &route.stream {
        out.push(
            Diagnostic::error(Code::MISPLACED, stream.span, "`stream` is for routes with `protocol: sse`")
                .help("the limits of a WebSocket stand under `websocket`"),
        );
    }
    if let Some(bridge) = &route.bridge {
        let message = "`bridge: websocket` is for routes that answer with an event stream";
        out.push(
            Diagnostic::error(Code::MISPLACED, bridge.span, message)
                .help("this route speaks WebSocket already: remove it"),
        );
    }
    let path = route.path.as_ref().map(|path| Template::check(path, 0, &path.value, params, out));
    let (limits, origins) = terms(route, manifest, out);
    let upstream = upstream?;
    Some(WebSocket {
        upstream: upstream.name.into(),
        meets: Meets::of(upstream.decl),
        servers: proxy::servers(&upstream),
        path: match path {
            Some(path) => Some(Arc::new(path?)),
            None => None,
        },
        limits,
        origins,
    })
}

/// Says what the handshake is, and within which limits messages pass.
fn document(limits: &SocketLimits, bridge: bool, op: &mut OperationDoc) {
    use serde_json::json;
    op.note(format!(
        "Opens a WebSocket (RFC 6455), over HTTP/1.1. What is said over it is in the AsyncAPI document. Pings after {} of \
         silence; a caller silent for {} counts as gone. A token may also stand in `Sec-WebSocket-Protocol: {SUBPROTOCOL}, \
         bearer.<token>`.",
        crate::units::Dur(limits.ping),
        crate::units::Dur(limits.idle),
    ));
    op.answers("101", json!({ "description": "The WebSocket is open." }));
    for (name, value) in
        [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]
    {
        let schema = json!({ "type": "string", "const": value });
        op.parameter(json!({ "name": name, "in": "header", "required": true, "schema": schema }));
    }
    // The last of 22 digits has two bits of the 128.
    let digits = "^[A-Za-z0-9+/]{21}[AQgw]==$";
    let key = json!({ "type": "string", "description": "16 random bytes in base64.", "pattern": digits });
    op.parameter(json!({ "name": "Sec-WebSocket-Key", "in": "header", "required": true, "schema": key }));
    op.refuses(&[Kind::UpgradeRequired, Kind::OriginNotAllowed], "");
    if let Some(seats) = limits.per_user.filter(|_| !limits.takeover) {
        op.refuses(&[Kind::TooManyConcurrent], &format!("{seats} sockets a caller"));
    }
    op.extension(
        "x-websocket",
        json!({
            "ping": crate::units::Dur(limits.ping).to_string(),
            "idle": crate::units::Dur(limits.idle).to_string(),
            "max_message": crate::units::Size(limits.max_message).to_string(),
            "max_rate": limits.max_rate,
            "max_bytes_rate": limits.max_bytes_rate,
            "per_user": limits.per_user,
            "takeover": limits.takeover,
            "subprotocols": [SUBPROTOCOL],
            "bridge": bridge,
            "closes": closings::document(limits, bridge),
        }),
    );
}

impl Target for WebSocket {
    fn document(&self, op: &mut OperationDoc) {
        document(&self.limits, false, op);
        self.meets.document(op);
    }

    fn build(&self, cx: &TargetCx<'_>) -> Next {
        let upstream = cx.upstreams.get(&self.upstream).cloned();
        sealed(Running {
            upstream: upstream.expect("the checks saw that this upstream is defined"),
            path: self.path.clone(),
            door: Door::new(self.limits, self.origins.clone(), cx),
        })
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

    fn counts_callers(&self) -> bool {
        self.limits.per_user.is_some()
    }

    fn identify(&self, state: &mut dyn Hasher) {
        self.origins.identify(state);
    }

    fn upstream(&self) -> Option<&str> {
        Some(&self.upstream)
    }

    fn describe(&self, path: &str, values: &[&str]) -> String {
        proxy::urls(&self.servers, self.path.as_deref(), path, values)
    }
}

/// A `protocol: websocket` that runs.
struct Running {
    upstream: Arc<Upstream>,
    path: Option<Arc<Template>>,
    door: Door,
}

/// Who may open a socket on a route, and on what terms.
struct Door {
    shared: Arc<Shared>,
    limits: SocketLimits,
    origins: Origins,
    seats: Option<Arc<Seats>>,
    metrics: Arc<SocketMetrics>,
    presence: Arc<Presence>,
}

/// Who was let in.
struct Entered {
    /// The caller's key.
    key: HeaderValue,
    upgrade: OnUpgrade,
    seat: Option<Seat>,
    /// What comes when another takes the seat.
    replaced: Option<oneshot::Receiver<()>>,
}

impl Endpoint for Running {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let exchange = Exchange::of(&request).clone();
        let version = request.version();
        match self.open(&exchange, request).await {
            Ok(response) => Ok(response),
            Err(error) => Ok(refusal(&exchange, &error, version)),
        }
    }
}

impl Running {
    async fn open(&self, exchange: &Arc<Exchange>, request: Request) -> Result<Response, GatewayError> {
        let Entered { key, upgrade, seat, replaced } = self.door.enter(exchange, &request).await?;
        let offer = Offer::of(request.headers());
        let knows_ours = offer.knows_ours();
        let asked = Asked {
            key: handshake::fresh_key(),
            protocols: offer.forwarded(),
            extensions: request.headers().get_all(SEC_WEBSOCKET_EXTENSIONS).iter().cloned().collect(),
        };
        let trusted = self.door.shared.settings.trusts(exchange.peer.ip());
        let forwarded = forward::request(exchange, request, self.path.as_deref(), trusted)?;
        let mut forwarded = forwarded.map(drop);
        asked.set(forwarded.headers_mut());
        let (head, socket) = match self.upstream.switch(exchange, forwarded, self.door.limits.ping).await? {
            Switch::Switched(head, socket) => (head, socket),
            Switch::Declined(response) => {
                let mut response = response.map(BoxBody::new);
                forward::clean_response(response.headers_mut());
                return Ok(proxy::finished(response));
            }
        };
        asked.check(&head).map_err(|why| self.upstream.misbehaved(exchange, why))?;
        let response = switching(head.headers, &key, knows_ours);
        let terms = self.door.terms(exchange, seat, replaced);
        tokio::spawn(run(upgrade, socket, terms));
        Ok(response)
    }
}

impl Door {
    fn new(limits: SocketLimits, origins: Origins, cx: &TargetCx<'_>) -> Self {
        Door {
            shared: cx.shared.clone(),
            limits,
            origins,
            seats: Seats::new(&limits, cx.route, &cx.shared.shared),
            metrics: cx.shared.telemetry.sockets(cx.route),
            presence: cx.presence.clone(),
        }
    }

    /// Lets a request in, if it asks for a socket and may have one.
    async fn enter(&self, exchange: &Exchange, request: &Request) -> Result<Entered, GatewayError> {
        let key = handshake::asked(request.method(), request.version(), request.headers())?.clone();
        if !self.origins.allow(request.headers()) {
            return Err(Kind::OriginNotAllowed.into());
        }
        let upgrade = request.take_upgrade().map_err(|_| GatewayError::from(Kind::UpgradeRequired))?;
        let (seat, replaced) = match &self.seats {
            Some(seats) => {
                let (seat, replaced) = seats.take(exchange).await?;
                (Some(seat), replaced)
            }
            None => (None, None),
        };
        Ok(Entered { key, upgrade, seat, replaced })
    }

    /// What its socket is opened with. It counts as open from now on.
    fn terms(
        &self,
        exchange: &Arc<Exchange>,
        seat: Option<Seat>,
        replaced: Option<oneshot::Receiver<()>>,
    ) -> Terms<Seat> {
        Terms {
            limits: self.limits,
            stall: self.shared.settings.door.write_timeout.0,
            notice: self.notice(exchange, replaced),
            open: self.metrics.open(),
            exchange: exchange.clone(),
            seat,
        }
    }

    /// Whatever ends it from outside.
    fn notice(&self, exchange: &Exchange, replaced: Option<oneshot::Receiver<()>>) -> Notice<Word> {
        let left = leave(&self.shared, exchange.identity().map(AsRef::as_ref)).map(Word::Leave);
        let removed = self.presence.over().map(|()| Word::RouteRemoved);
        let from_table = Either::new(left, removed);
        match replaced {
            None => Notice::of(from_table),
            Some(replaced) => {
                let replaced = replaced.then(async |told| match told {
                    Ok(()) => Word::Replaced,
                    Err(_) => std::future::pending().await,
                });
                Notice::of(Either::new(from_table, replaced))
            }
        }
    }
}

/// Runs an open socket to its end.
async fn run(upgrade: OnUpgrade, socket: impl flow::End, terms: Terms<Seat>) {
    // The caller may have left before it was told.
    if let Ok(caller) = upgrade.await {
        Tunnel::new(caller, socket, terms).await;
    }
}

/// What the gateway asks of an upstream in a caller's stead.
struct Asked {
    key: HeaderValue,
    protocols: Option<HeaderValue>,
    extensions: Vec<HeaderValue>,
}

impl Asked {
    /// Puts it into a request's headers.
    fn set(&self, headers: &mut HeaderMap) {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, WEBSOCKET.clone());
        headers.insert(SEC_WEBSOCKET_VERSION, handshake::VERSION);
        headers.insert(SEC_WEBSOCKET_KEY, self.key.clone());
        headers.remove(SEC_WEBSOCKET_PROTOCOL);
        headers.remove(SEC_WEBSOCKET_EXTENSIONS);
        headers.remove(CONTENT_LENGTH);
        if let Some(protocols) = &self.protocols {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, protocols.clone());
        }
        for value in &self.extensions {
            headers.append(SEC_WEBSOCKET_EXTENSIONS, value.clone());
        }
    }

    /// Whether an upstream's 101 answers it (RFC 6455, section 4.1); else why not.
    fn check(&self, head: &response::Parts) -> Result<(), &'static str> {
        let headers = &head.headers;
        if !handshake::has_token(headers, &UPGRADE, "websocket")
            || !handshake::has_token(headers, &CONNECTION, "upgrade")
        {
            return Err("it switched to another protocol than was asked for");
        }
        if handshake::single(headers, &SEC_WEBSOCKET_ACCEPT) != Some(&handshake::accept(&self.key)) {
            return Err("its Sec-WebSocket-Accept does not answer the key");
        }
        let offered = |value: &HeaderValue, offers: &[HeaderValue]| {
            let mut names = value.as_bytes().split(|byte| *byte == b',').map(name_of);
            names.all(|name| {
                let mut offers = offers.iter().flat_map(|offer| offer.as_bytes().split(|byte| *byte == b','));
                !name.is_empty() && offers.any(|offer| name_of(offer) == name)
            })
        };
        if headers.get_all(SEC_WEBSOCKET_EXTENSIONS).iter().any(|value| !offered(value, &self.extensions)) {
            return Err("it uses an extension that was not offered");
        }
        let mut protocols = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
        let chosen = protocols.next();
        let is_one = |value: &HeaderValue| {
            let offers = self.protocols.as_slice();
            !value.as_bytes().contains(&b',') && offered(value, offers)
        };
        if chosen.is_some_and(|chosen| !is_one(chosen)) || protocols.next().is_some() {
            return Err("it chose a subprotocol that was not offered");
        }
        Ok(())
    }
}

/// The name before an extension's parameters.
fn name_of(item: &[u8]) -> &[u8] {
    item.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii()
}

/// The caller's 101, from the upstream's.
fn switching(mut headers: HeaderMap, key: &HeaderValue, knows_ours: bool) -> Response {
    forward::clean_response(&mut headers);
    for not_of_a_101 in [CONTENT_LENGTH, TRANSFER_ENCODING, SEC_WEBSOCKET_VERSION] {
        headers.remove(not_of_a_101);
    }
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, WEBSOCKET.clone());
    headers.insert(SEC_WEBSOCKET_ACCEPT, handshake::accept(key));
    if knows_ours && !headers.contains_key(SEC_WEBSOCKET_PROTOCOL) {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    let mut response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS).finish();
    *response.headers_mut() = headers;
    response
}

/// The answer to who was not let in.
fn refusal(exchange: &Exchange, error: &GatewayError, version: Version) -> Response {
    let mut response = exchange.refuse(error);
    if error.kind == Kind::UpgradeRequired {
        ask_for_upgrade(response.headers_mut(), version);
    }
    response
}

/// Says what would be served (RFC 9110, section 15.5.22; RFC 6455, section 4.4).
fn ask_for_upgrade(headers: &mut HeaderMap, version: Version) {
    headers.insert(SEC_WEBSOCKET_VERSION, handshake::VERSION);
    // HTTP/2 has no such fields.
    if version <= Version::HTTP_11 {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, WEBSOCKET.clone());
    }
}
