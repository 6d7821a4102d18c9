//! A `grpc:` that runs: one request, from JSON to its answer.

use super::Form;
use super::messages::Messages;
use super::reflected::Reflected;
use super::sending::Sending;
use crate::error::{BodyTooLarge, GatewayError, Kind};
use crate::exchange::Exchange;
use crate::grpc::frame::Decoder;
use crate::grpc::status::{Failure, ended, timeout};
use crate::grpc::{Address, Call};
use crate::sse::{StreamTimes, set_headers};
use crate::state::Shared;
use crate::targets::forward;
use crate::targets::notice::Notice;
use crate::targets::sse::{EventStream, Words};
use crate::telemetry::{StreamMetrics, Throttle};
use crate::upstream::{Pieces, Primed, SendOptions, Upstream, UpstreamBody};
use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TE, TRAILER, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use poem::{Body, Endpoint, Request, Response};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What the service's own end is given beyond a stream's longest time, so that the gateway's word comes first.
const BEHIND: Duration = Duration::from_secs(1);

/// Where a route's method comes from.
pub(super) enum Calls {
    Bound(Arc<Call>),
    Reflected(Reflected),
}

/// A `grpc:` that runs.
pub(super) struct Running {
    pub(super) upstream: Arc<Upstream>,
    pub(super) shared: Arc<Shared>,
    pub(super) calls: Calls,
    pub(super) form: Arc<Form>,
    pub(super) times: Option<StreamTimes>,
    pub(super) metrics: Option<Arc<StreamMetrics>>,
    pub(super) failures: Throttle,
    /// Whether a stream is held back until its first message has come.
    pub(super) held: bool,
}

impl Endpoint for Running {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let exchange = Exchange::of(&request).clone();
        let call = match &self.calls {
            Calls::Bound(call) => call.clone(),
            Calls::Reflected(reflected) => reflected.call(&self.upstream)?,
        };
        let address = call
            .address(|index| exchange.param_nth(index), request.uri().query())
            .map_err(GatewayError::invalid)?;
        let lines = wants_lines(request.headers());
        let body = self.body(&call, address, &mut request).await?;
        let began = Instant::now();
        let response = self.send(&exchange, &call, request, body).await?;
        if let Some(Err(failure)) = ended(response.headers()) {
            return Ok(self.refused(&exchange, &call, &failure));
        }
        match self.times.zip(self.metrics.as_ref()) {
            None => self.one(&exchange, &call, response).await,
            Some((times, metrics)) => {
                let body = match self.held {
                    true => {
                        let until = began + times.first_event;
                        Primed::wait(response.into_body(), Pieces::Any, until)
                            .await
                            .map_err(GatewayError::from)?
                    }
                    false => response.into_body().into(),
                };
                if let Some(Err(failure)) = body.trailers().and_then(ended) {
                    return Ok(self.refused(&exchange, &call, &failure));
                }
                let notice = Notice::new(&self.shared, exchange.identity().map(AsRef::as_ref));
                let words = if lines { Words::Lines } else { Words::Events };
                let messages = Messages::new(body, call, self.form.clone(), exchange.clone(), words);
                let stream = EventStream::new(messages, exchange, metrics.open(), times, began, notice)
                    .in_words(words);
                let mut response =
                    Response::builder().status(self.form.status).body(Body::from(BoxBody::new(stream)));
                let kind = match words {
                    Words::Events => "text/event-stream",
                    Words::Lines => "application/x-ndjson",
                };
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
                set_headers(response.headers_mut());
                Ok(response)
            }
        }
    }
}

impl Running {
    /// The body of the call.
    async fn body(
        &self,
        call: &Arc<Call>,
        address: Address,
        request: &mut Request,
    ) -> Result<BoxBody<Bytes, io::Error>, GatewayError> {
        let body = request.take_body();
        let limit = self.form.max_message;
        if call.reads_body() && !body.is_empty() {
            is_json(request.headers(), call.takes_stream())?;
        }
        if call.takes_stream() {
            return Ok(BoxBody::new(Sending::new(body.into(), call.clone(), address, limit)));
        }
        let text = match call.reads_body() {
            true => read(body, limit).await?,
            false => Bytes::new(),
        };
        let frame = call.frame(&address, &text).map_err(GatewayError::invalid)?;
        Ok(BoxBody::new(Full::new(frame).map_err(|never| match never {})))
    }

    /// Calls the upstream; a response whose head is gRPC's.
    async fn send(
        &self,
        exchange: &Arc<Exchange>,
        call: &Call,
        request: Request,
        body: BoxBody<Bytes, io::Error>,
    ) -> Result<http::Response<UpstreamBody>, GatewayError> {
        let trusted = self.shared.settings.trusts(exchange.peer.ip());
        let mut request = forward::request(exchange, request, None, trusted)?;
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from(call.path().clone());
        let began = Instant::from_std(exchange.started);
        let total = match self.times {
            Some(times) => times.max + BEHIND,
            None => self.upstream.spec().timeouts().total,
        };
        let route = exchange.deadline().map(|deadline| deadline.saturating_duration_since(exchange.started));
        let total = route.map_or(total, |route| route.min(total));
        as_call(request.headers_mut(), total.saturating_sub(began.elapsed()));
        let request = request.map(|_| body);
        let options = match self.times {
            Some(times) => SendOptions {
                first_byte: Some(times.first_event),
                stream: true,
                duplex: call.takes_stream(),
                ..SendOptions::default()
            },
            None => SendOptions::default(),
        };
        let response = self.upstream.send(exchange, request, &options).await?;
        let kind = response.headers().get(CONTENT_TYPE);
        let grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        if response.status() == StatusCode::OK && grpc {
            return Ok(response);
        }
        let status = response.status().as_u16();
        Err(self.bad(
            exchange,
            &format!(
                "its answer is not gRPC: {status} {}",
                kind.map_or("", |kind| { kind.to_str().unwrap_or_default() })
            ),
        ))
    }

    /// The answer of a method that gives one message.
    async fn one(
        &self,
        exchange: &Arc<Exchange>,
        call: &Arc<Call>,
        response: http::Response<UpstreamBody>,
    ) -> poem::Result<Response> {
        let mut end = ended(response.headers());
        let mut body = response.into_body();
        let mut decoder = Decoder::new(self.form.max_message);
        let mut message = None;
        while let Some(piece) = body.frame().await {
            let piece = piece.map_err(|error| match error.kind() {
                io::ErrorKind::TimedOut => Kind::UpstreamTimeout,
                _ => Kind::UpstreamReset,
            });
            match piece.map_err(GatewayError::from)?.into_data() {
                Ok(data) => decoder.push(data),
                Err(other) => end = other.trailers_ref().and_then(ended).or(end),
            }
            while let Some(next) = decoder.pull().map_err(|error| self.bad(exchange, &error.to_string()))? {
                if message.replace(next).is_some() {
                    return Err(self.bad(exchange, "it sent more than one message").into());
                }
            }
        }
        match (end, message) {
            (Some(Err(failure)), _) => Ok(self.refused(exchange, call, &failure)),
            (None, _) => Err(self.bad(exchange, "it did not say how the call ended").into()),
            (Some(Ok(())), None) => Err(self.bad(exchange, "it sent no message").into()),
            (Some(Ok(())), Some(_)) if self.form.status == StatusCode::NO_CONTENT => {
                Ok(Response::builder().status(self.form.status).finish())
            }
            (Some(Ok(())), Some(message)) => {
                let mut text = Vec::with_capacity(message.len() * 2);
                call.answer(message, &self.form.style, &mut text)
                    .map_err(|error| self.bad(exchange, &error))?;
                Ok(Response::builder().status(self.form.status).content_type("application/json").body(text))
            }
        }
    }

    fn refused(&self, exchange: &Exchange, call: &Call, failure: &Failure) -> Response {
        exchange.set_grpc_status(failure.code());
        if failure.is_ours()
            && let Some(left_out) = self.failures.pass()
        {
            tracing::warn!(
                left_out,
                request_id = exchange.request_id(),
                upstream = &**self.upstream.spec().name(),
                method = call.path().as_str(),
                code = %failure.code(),
                error = failure.message(),
                "a call failed"
            );
        }
        failure.respond(
            call,
            self.form.proto_names,
            exchange.request_id(),
            exchange.lang,
            exchange.catalogue(),
        )
    }

    /// An answer that is not what gRPC, the descriptors or the limits allow.
    fn bad(&self, exchange: &Exchange, why: &str) -> GatewayError {
        if let Some(left_out) = self.failures.pass() {
            tracing::warn!(
                left_out,
                request_id = exchange.request_id(),
                upstream = &**self.upstream.spec().name(),
                error = why,
                "an upstream's answer is not acceptable gRPC"
            );
        }
        Kind::UpstreamBadResponse.into()
    }
}

/// The whole body, up to `limit` bytes.
async fn read(body: Body, limit: u64) -> Result<Bytes, GatewayError> {
    let mut body: BoxBody<Bytes, io::Error> = body.into();
    let mut text: Vec<u8> = Vec::new();
    while let Some(piece) = body.frame().await {
        let piece = piece.map_err(|error| {
            GatewayError::from_body_error(&error)
                .unwrap_or_else(|| GatewayError::new(Kind::BadRequest, "the request's body broke off"))
        })?;
        let Ok(data) = piece.into_data() else { continue };
        if (text.len() + data.len()) as u64 > limit {
            return Err((&BodyTooLarge { limit }).into());
        }
        text.extend_from_slice(&data);
    }
    Ok(text.into())
}

/// Refuses what does not say that it is JSON.
fn is_json(headers: &HeaderMap, many: bool) -> Result<(), GatewayError> {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let json = essence == "application/json"
        || essence.starts_with("application/") && essence.ends_with("+json")
        || many && is_lines(&essence);
    match json {
        true => Ok(()),
        false => {
            let wanted = if many { "application/x-ndjson or application/json" } else { "application/json" };
            Err(GatewayError::new(Kind::UnsupportedMediaType, format!("Send {wanted}")))
        }
    }
}

fn is_lines(essence: &str) -> bool {
    matches!(essence, "application/x-ndjson" | "application/ndjson" | "application/jsonl")
}

/// Whether a caller asks for NDJSON rather than for events.
fn wants_lines(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT).iter().filter_map(|accept| accept.to_str().ok()).any(|accept| {
        accept.split(',').any(|kind| is_lines(kind.split(';').next().unwrap_or_default().trim()))
    })
}

/// Makes headers those of a call: what belongs to HTTP goes, the rest is metadata.
fn as_call(headers: &mut HeaderMap, left: Duration) {
    for name in [ACCEPT, ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TRAILER, TRANSFER_ENCODING] {
        headers.remove(name);
    }
    // Only gRPC itself says these.
    let reserved: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("grpc-")).cloned().collect();
    for name in reserved {
        headers.remove(name);
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert("grpc-accept-encoding", HeaderValue::from_static("identity"));
    headers.insert("grpc-timeout", timeout(left));
}
