//! `grpc: package.Service/Method`: JSON from the caller, gRPC to the upstream, and back.
//!
//! The route is bound to its method when the manifest is checked, so that a request costs one decode and one encode. A
//! method that answers with a stream is served as server-sent events, or as NDJSON where the caller asks for that; one
//! that takes a stream reads the body's JSON values one by one (NDJSON or a list) and sends each as it comes. Headers
//! travel as metadata by the rules of `forward`. The call has the deadline of the exchange (`grpc-timeout`), and is
//! cancelled when the caller leaves.
//!
//! A failed call is answered in the common form ([`crate::grpc::status`]). An upstream that answers anything but gRPC is
//! a 502. Where descriptors come by reflection, the route is bound when they have come, and answers 503 until then.

mod messages;
mod reflected;
mod sending;

use super::notice::Notice;
use super::proxy::Decl;
use super::sse::{EventStream, Words};
use super::{Target, TargetCx, forward};
use crate::diag::{Code, Diagnostic, Diagnostics};
use crate::endpoint::{Next, sealed};
use crate::error::{BodyTooLarge, GatewayError, Kind};
use crate::exchange::Exchange;
use crate::grpc::frame::Decoder;
use crate::grpc::json::Style;
use crate::grpc::status::{Failure, ended, timeout};
use crate::grpc::{Address, At, Call, Problem, Wanted};
use crate::manifest::model::{FieldNames, Route, UpstreamProtocol};
use crate::manifest::{Manifest, Spanned};
use crate::sse::{StreamTimes, set_headers};
use crate::state::Shared;
use crate::telemetry::{StreamMetrics, Throttle};
use crate::upstream::{SendOptions, Upstream, UpstreamBody};
use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TE, TRAILER, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use messages::Messages;
use poem::{Body, Endpoint, Request, Response};
use reflected::Reflected;
use sending::Sending;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Largest message where the upstream does not say.
const MAX_MESSAGE: u64 = 4 << 20;
/// What the service's own end is given beyond a stream's longest time, so that the gateway's word comes first.
const BEHIND: Duration = Duration::from_secs(1);

/// A checked `grpc:`.
pub(super) struct Transcode {
    upstream: Arc<str>,
    servers: Vec<String>,
    wanted: Wanted,
    /// Unknown before the descriptors have come by reflection.
    call: Option<Arc<Call>>,
    form: Arc<Form>,
    /// Where the method answers with a stream.
    times: Option<StreamTimes>,
}

/// How messages are exchanged.
#[derive(Debug)]
struct Form {
    style: Style,
    proto_names: bool,
    max_message: u64,
    status: StatusCode,
}

/// Is it sound? Reports every fault.
pub(super) fn check(
    route: &Spanned<Route>,
    params: &[String],
    upstream: Option<Decl<'_>>,
    manifest: &Manifest,
    out: &mut Diagnostics,
) -> Option<Transcode> {
    let declared = route.grpc.as_ref()?;
    for (key, span) in
        [("path", route.path.as_ref().map(|it| it.span)), ("protocol", route.protocol.as_ref().map(|it| it.span))]
    {
        let Some(span) = span else { continue };
        out.push(
            Diagnostic::error(Code::MISPLACED, span, format!("`{key}` does not apply to a route with `grpc`"))
                .help("remove it: the method says where the call goes, and it is always gRPC"),
        );
    }
    let status = match &declared.status {
        Some(status) if !(200..300).contains(&status.value) => {
            out.push(
                Diagnostic::error(Code::BAD_VALUE, status.span, "the status of a success is 200 to 299")
                    .help("failures have the status that belongs to the gRPC code"),
            );
            None
        }
        Some(status) => StatusCode::from_u16(status.value).ok(),
        None => Some(StatusCode::OK),
    };
    let limits = route.stream.as_ref();
    limits.iter().for_each(|limits| super::proxy::for_chats_only(limits, out));
    let upstream = upstream?;
    let wanted = Wanted {
        method: declared.method.value.clone(),
        http: route.route.split_whitespace().next().and_then(|word| match word {
            "ANY" => None,
            word => Method::from_bytes(word.as_bytes()).ok(),
        }),
        params: params.to_vec(),
        body: declared.body.as_ref().map(|body| body.value.clone()),
        response_body: declared.response_body.as_ref().map(|field| field.value.clone()),
    };
    let reflection = upstream.decl.reflection.as_ref().is_some_and(|reflection| reflection.value);
    let call = match manifest.descriptors.get(upstream.name) {
        Some(pool) => match Call::bind(pool, &wanted) {
            Ok(call) => Some(Arc::new(call)),
            Err(problems) => {
                problems.into_iter().for_each(|problem| out.push(fault(problem, route)));
                return None;
            }
        },
        None if reflection => None,
        None => {
            // What is named but could not be read was said already, and so was an upstream that speaks HTTP.
            let grpc = upstream.decl.protocol.as_ref().is_some_and(|it| it.value == UpstreamProtocol::Grpc);
            if grpc && upstream.decl.protos.is_none() && upstream.decl.descriptors.is_none() {
                let message = format!("upstream `{}` has no descriptors, so its methods are not known", upstream.name);
                out.push(
                    Diagnostic::error(Code::DESCRIPTORS, declared.span, message).help(
                        "add `protos: [file.proto]`, `descriptors: set.binpb` or `reflection: true` to the upstream",
                    ),
                );
            }
            return None;
        }
    };
    // By reflection nobody knows before the server has answered: then the route says whether it streams.
    let streams = call.as_ref().map_or(limits.is_some(), |call| call.gives_stream());
    if let (Some(limits), false) = (limits, streams) {
        out.push(
            Diagnostic::error(Code::MISPLACED, limits.span, "`stream` is for methods that answer with a stream")
                .help("remove it: this method answers with one message"),
        );
    }
    let times = streams.then(|| StreamTimes::check(limits, out));
    let json = upstream.decl.json.as_ref().map(|json| json.value.clone()).unwrap_or_default();
    let proto_names = json.names.unwrap_or_default() == FieldNames::Proto;
    let form = Form {
        style: Style::new(proto_names, json.defaults.unwrap_or(true)),
        proto_names,
        max_message: json.max_message.map_or(MAX_MESSAGE, |size| size.value.0),
        status: status?,
    };
    let servers = &upstream.decl.targets.0;
    Some(Transcode {
        upstream: upstream.name.into(),
        servers: servers.iter().map(|server| server.url.trim_end_matches('/').to_owned()).collect(),
        wanted,
        call,
        form: Arc::new(form),
        times,
    })
}

/// A problem at its place.
fn fault(problem: Problem, route: &Route) -> Diagnostic {
    let declared = route.grpc.as_ref();
    let span = match problem.at {
        At::Pattern => None,
        At::Method => declared.map(|grpc| grpc.method.span),
        At::Body => declared.and_then(|grpc| grpc.body.as_ref()).map(|body| body.span),
        At::ResponseBody => declared.and_then(|grpc| grpc.response_body.as_ref()).map(|body| body.span),
    };
    // A field that the method's own rule names is the method's.
    let span = span.or(declared.map(|grpc| grpc.method.span).filter(|_| problem.at != At::Pattern));
    Diagnostic::error(problem.code, span.unwrap_or(route.route.span), problem.message).maybe_help(problem.help)
}

impl Target for Transcode {
    fn build(&self, cx: &TargetCx<'_>) -> Next {
        let upstream = cx.upstreams.get(&self.upstream).cloned();
        let calls = match &self.call {
            Some(call) => Calls::Bound(call.clone()),
            None => Calls::Reflected(Reflected::new(self.wanted.clone(), self.times.is_some())),
        };
        sealed(Running {
            upstream: upstream.expect("the checks saw that this upstream is defined"),
            shared: cx.shared.clone(),
            calls,
            form: self.form.clone(),
            times: self.times,
            metrics: self.times.map(|_| cx.shared.telemetry.streams(cx.route)),
            failures: Throttle::default(),
        })
    }

    fn streams(&self) -> bool {
        self.times.is_some()
    }

    fn longest_stream(&self) -> Option<Duration> {
        self.times.map(|times| times.max)
    }

    fn upstream(&self) -> Option<&str> {
        Some(&self.upstream)
    }

    fn describe(&self, _: &str, _: &[&str]) -> String {
        let urls = self.servers.iter().map(|server| format!("{server}/{}", self.wanted.method));
        format!("gRPC: {}", urls.collect::<Vec<_>>().join(" or "))
    }
}

/// Where a route's method comes from.
enum Calls {
    Bound(Arc<Call>),
    Reflected(Reflected),
}

/// A `grpc:` that runs.
struct Running {
    upstream: Arc<Upstream>,
    shared: Arc<Shared>,
    calls: Calls,
    form: Arc<Form>,
    times: Option<StreamTimes>,
    metrics: Option<Arc<StreamMetrics>>,
    failures: Throttle,
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
        match ended(response.headers()) {
            Some(Err(failure)) => return Ok(self.refused(&exchange, &call, &failure)),
            Some(Ok(())) | None => {}
        }
        match self.times.zip(self.metrics.as_ref()) {
            None => self.one(&exchange, &call, response).await,
            Some((times, metrics)) => {
                let notice = Notice::new(&self.shared, exchange.identity().map(AsRef::as_ref));
                let words = if lines { Words::Lines } else { Words::Events };
                let messages =
                    Messages::new(response.into_body(), call, self.form.clone(), exchange.clone(), words);
                let stream =
                    EventStream::new(messages, exchange, metrics.open(), times, began, notice).in_words(words);
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
        Err(self.bad(exchange, &format!("its answer is not gRPC: {status} {}", kind.map_or("", |kind| {
            kind.to_str().unwrap_or_default()
        }))))
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
            while let Some(next) = decoder.next().map_err(|error| self.bad(exchange, &error.to_string()))? {
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
                call.answer(message, &self.form.style, &mut text).map_err(|error| self.bad(exchange, &error))?;
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
        failure.respond(call, self.form.proto_names, exchange.request_id(), exchange.lang)
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
