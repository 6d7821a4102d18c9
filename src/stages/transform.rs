//! `transform`: JSON bodies are changed on their way, by a mapping for each direction.
//!
//! A mapping runs in the order of its keys (`unwrap`, `rename`, `drop`, `default`, `set`, `to_headers`, `from_headers`,
//! `wrap`), after `from: form` and before `to: form`. A body is read whole for it, up to `max_size`, nested up to
//! `max_depth`; numbers beyond 64 bits lose digits, and a name that stands twice counts the last time.
//!
//! **Requests.** A body of another type than the mapping reads is 415, a larger one 413, one that is no JSON or from which
//! a `set` cannot be computed 400 with the field. A request without a body passes as it is. A header of `to_headers` is
//! made of the body alone: what the caller sent under its name is gone in any case.
//!
//! **Responses.** Mapped is what succeeded (2xx) and is of the type that the mapping reads; anything else passes
//! unchanged, as do errors of the gateway's own. What says it is JSON and is none, is too large or deep, partial or
//! compressed becomes 502: it must not go out unmapped. (Upstreams are asked for neither ranges nor codings here.) A `set`
//! that fails leaves its field out, counted and logged. Digests of the body go, and its `ETag` becomes a weak one.
//!
//! **Event streams** are never held back: each event whose data is a JSON object or list is mapped when it is whole, with
//! its name and id as they were. Other events, comments and what the gateway itself says pass byte by byte. An event
//! larger than `max_size` ends the stream; one too deep is left out. Mapping an answer to headers or a form needs all of
//! it, which `check` refuses on routes that stream. Off by leaving it out. Longer than most files, as the rules above are
//! carried out here, side by side for both directions.

mod events;
mod form;
mod mapping;
mod path;

pub use mapping::{Format, Mapping};

use super::compress::{DIGESTS, weaken};
use super::headers::Side;
use super::json_body::{self, Bounds, DEEPEST, Unread, essence, is_coded, is_json};
use super::{
    Body as Form, BuildCx, Facts, Fit, Layer, Misfit, Next, Probe, Stage, StageCx, StageDecl, Verdict,
    is_event_stream, sealed,
};
use crate::diag::{Code, Diagnostic};
use crate::error::{FieldFault, GatewayError, Kind, MadeHere};
use crate::exchange::Exchange;
use crate::expr::{Expression, Failed, Scope};
use crate::manifest::Spanned;
use crate::manifest::model::Protocol;
use crate::telemetry::{ExpressionMetrics, Throttle};
use crate::units::Size;
use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, IF_RANGE, RANGE, TRAILER,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body::Body as _;
use http_body_util::combinators::BoxBody;
use mapping::Compiled;
use path::Path;
use poem::{Endpoint, Request, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use std::io;
use std::sync::Arc;

/// Changes JSON bodies on their way.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Transform {
    /// Of the request.
    pub request: Option<Mapping>,
    /// Of the response, if it succeeded; of each event, if it is an event stream.
    pub response: Option<Mapping>,
    /// Bodies, and events, larger than this are not mapped: a request is refused with 413, a response becomes 502
    /// (default `1MiB`).
    pub max_size: Option<Size>,
    /// JSON nested deeper than this is not mapped: a request is refused with 400, a response becomes 502 (default 32, at
    /// most 120).
    pub max_depth: Option<Spanned<u32>>,
}

impl StageDecl for Transform {
    const NAME: &'static str = "transform";
    const ABOUT: &'static str = "Changes JSON bodies on their way";
    const BODY: Form = Form::Optional;

    fn check(self, cx: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        let before = cx.out.counts().0;
        let mut bounds = Bounds::default();
        bounds.max_size = self.max_size.unwrap_or(bounds.max_size);
        if let Some(depth) = self.max_depth {
            bounds.max_depth = depth.value;
            if depth.value == 0 || depth.value > DEEPEST {
                let message = format!("a depth is 1 to {DEEPEST}");
                cx.out.push(Diagnostic::error(Code::BAD_VALUE, depth.span, message));
            }
        }
        let request = self.request.map(|typed| Compiled::check(&typed, Side::Request, cx.out));
        let response = self.response.map(|typed| Compiled::check(&typed, Side::Response, cx.out));
        let idle = |side: &Option<Compiled>| side.as_ref().is_none_or(Compiled::is_empty);
        if cx.out.counts().0 == before && idle(&request) && idle(&response) {
            cx.out.push(
                Diagnostic::error(Code::MISSING_KEY, cx.span, "stage `transform` changes nothing")
                    .help("write `transform: { request: { rename: { old: new } } }`"),
            );
            return None;
        }
        Some(Arc::new(Checked { request: request.map(Arc::new), response: response.map(Arc::new), bounds }))
    }
}

#[derive(Debug)]
struct Checked {
    request: Option<Arc<Compiled>>,
    response: Option<Arc<Compiled>>,
    bounds: Bounds,
}

impl Stage for Checked {
    fn name(&self) -> &'static str {
        Transform::NAME
    }

    fn layer(&self, cx: &BuildCx<'_>) -> Layer {
        let uses = self.response.as_ref().map(|mapping| mapping.uses()).unwrap_or_default();
        let maps = Maps {
            request: self.request.clone(),
            response: self.response.clone(),
            keeps_headers: uses.headers,
            keeps_query: uses.query,
            common: Arc::new(Common {
                bounds: self.bounds,
                metrics: cx.shared.telemetry.expressions(Transform::NAME),
                throttle: Throttle::default(),
            }),
        };
        Layer::Around(Box::new(move |next| sealed(Transforms { maps, next })))
    }

    fn facts(&self) -> Facts {
        let whole = self.response.as_ref().is_some_and(|mapping| {
            !mapping.to_headers.is_empty() || mapping.from == Format::Form || mapping.to == Format::Form
        });
        Facts {
            buffers_response: whole.then_some("headers and forms are made of a whole answer"),
            ..Facts::default()
        }
    }

    fn misfit(&self, fit: &Fit<'_>) -> Option<Misfit> {
        Some(match fit.protocol {
            Protocol::Grpc => Misfit {
                code: Code::READS_CALLS,
                message: "`transform` cannot read the messages of gRPC calls",
                help: "give routes with `protocol: grpc` a chain without it",
            },
            Protocol::Websocket => Misfit {
                code: Code::MISPLACED,
                message: "`transform` reads bodies, and a WebSocket has none",
                help: "give this route a chain without it",
            },
            _ => return None,
        })
    }

    fn explain(&self, _: &Probe<'_>) -> Verdict {
        Verdict::Passes(
            match (&self.request, &self.response) {
                (Some(_), Some(_)) => "maps request and response",
                (Some(_), None) => "maps the request",
                _ => "maps the response",
            }
            .to_owned(),
        )
    }
}

struct Transforms {
    maps: Maps,
    next: Next,
}

struct Maps {
    request: Option<Arc<Compiled>>,
    response: Option<Arc<Compiled>>,
    /// Whether expressions over the response look at the request's headers.
    keeps_headers: bool,
    /// Likewise at its query.
    keeps_query: bool,
    common: Arc<Common>,
}

/// What both directions need.
struct Common {
    bounds: Bounds,
    metrics: ExpressionMetrics,
    throttle: Throttle,
}

impl Common {
    /// Counts and logs an expression that gave nothing for a response.
    fn left_out(&self, exchange: &Exchange, path: &Path, expression: &Expression, error: &Failed) {
        self.metrics.failed();
        if let Some(left_out) = self.throttle.pass() {
            let (request_id, set) = (exchange.request_id(), expression.text());
            tracing::warn!(request_id, field = %path, set, %error, left_out, "a field of a response cannot be computed and is left out");
        }
    }
}

/// What is kept of a request for the expressions over its response.
#[derive(Debug, Default)]
struct Kept {
    headers: HeaderMap,
    query: Option<String>,
}

impl Endpoint for Transforms {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let maps = &self.maps;
        let exchange = Exchange::of(&request).clone();
        let mut kept = Kept::default();
        if maps.keeps_headers {
            kept.headers = request.headers().clone();
        }
        if maps.keeps_query {
            kept.query = request.uri().query().map(str::to_owned);
        }
        if let Some(mapping) = &maps.request {
            maps.map_request(mapping, &exchange, &mut request).await?;
        }
        let Some(mapping) = &maps.response else { return self.next.call(request).await };
        for name in [&ACCEPT_ENCODING, &RANGE, &IF_RANGE] {
            request.headers_mut().remove(name);
        }
        let head = request.method() == Method::HEAD;
        let response = self.next.call(request).await?;
        Ok(maps.map_response(mapping, &exchange, kept, head, response).await?)
    }
}

impl Maps {
    async fn map_request(
        &self,
        mapping: &Compiled,
        exchange: &Exchange,
        request: &mut Request,
    ) -> Result<(), GatewayError> {
        let body: BoxBody<Bytes, io::Error> = request.take_body().into();
        if body.is_end_stream() {
            request.set_body(body);
            without_body(mapping, request);
            return Ok(());
        }
        request.set_body(body);
        if !is_of(mapping.from, request.headers()) {
            return Err(GatewayError::new(
                Kind::UnsupportedMediaType,
                match mapping.from {
                    Format::Json => "This route reads application/json",
                    Format::Form => "This route reads application/x-www-form-urlencoded",
                },
            ));
        }
        let bounds = &self.common.bounds;
        let read = match mapping.from {
            Format::Json => json_body::read_json(request, bounds).await?,
            Format::Form => {
                let form = form::read(&json_body::read(request, bounds.max_size).await?);
                Some(form.map_err(|not| GatewayError::invalid(vec![not.fault()]))?)
            }
        };
        // Chunks may announce a body and bring none.
        let Some(mut body) = read else {
            without_body(mapping, request);
            return Ok(());
        };
        let mut faults = Vec::new();
        let scope = Scope {
            exchange,
            headers: request.headers(),
            query: request.uri().query(),
            body: None,
            response: None,
        };
        let told = mapping.apply(&mut body, &scope, request.headers(), &mut |path, _, error| {
            self.common.metrics.failed();
            faults.push(FieldFault::new(
                path.to_string(),
                "computed",
                format!("it cannot be computed from this request: {error}"),
                format!("无法由该请求计算此字段：{error}"),
            ));
        });
        if !faults.is_empty() {
            return Err(GatewayError::invalid(faults));
        }
        let text = written(mapping.to, &body).map_err(|name| {
            GatewayError::invalid(vec![FieldFault::new(
                format!("/{name}"),
                "flat",
                "a form holds texts, numbers, booleans and lists of them",
                "表单只能包含文本、数字、布尔值及其列表",
            )])
        })?;
        set_head(request.headers_mut(), mapping, told, text.len());
        request.set_body(text);
        Ok(())
    }

    async fn map_response(
        &self,
        mapping: &Arc<Compiled>,
        exchange: &Arc<Exchange>,
        kept: Kept,
        head: bool,
        mut response: Response,
    ) -> Result<Response, GatewayError> {
        let status = response.status();
        let bodiless = matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT);
        if !status.is_success() || bodiless || response.data::<MadeHere>().is_some() {
            return Ok(response);
        }
        let events = is_event_stream(response.headers());
        if !events && !is_of(mapping.from, response.headers()) {
            return Ok(response);
        }
        if head {
            // As long as it would be unmapped; how long it will be mapped, nobody knows.
            response.headers_mut().remove(CONTENT_LENGTH);
            weaken(response.headers_mut());
            return Ok(response);
        }
        if is_coded(response.headers()) {
            return Err(self.unmapped(exchange, "it is compressed, though nobody asked for that"));
        }
        if status == StatusCode::PARTIAL_CONTENT || response.headers().contains_key(CONTENT_RANGE) {
            return Err(self.unmapped(exchange, "it is only a part, though nobody asked for one"));
        }
        let body: BoxBody<Bytes, io::Error> = response.take_body().into();
        if events {
            let headers = response.headers_mut();
            headers.remove(CONTENT_LENGTH);
            DIGESTS.iter().for_each(|name| drop(headers.remove(name)));
            let head = (status, headers.clone());
            let mapped =
                events::Mapped::new(body, mapping.clone(), self.common.clone(), exchange.clone(), kept, head);
            response.set_body(BoxBody::new(mapped));
            return Ok(response);
        }
        if body.is_end_stream() {
            response.set_body(body);
            return Ok(response);
        }
        let bytes =
            json_body::whole(body, self.common.bounds.max_size).await.map_err(|unread| match unread {
                Unread::TooLarge => self.unmapped(exchange, "it is larger than `max_size`"),
                Unread::Broke(error) => {
                    let request_id = exchange.request_id();
                    tracing::warn!(request_id, %error, "an answer broke off before it could be mapped");
                    Kind::UpstreamReset.into()
                }
            })?;
        let mut body = parsed(mapping.from, &bytes, &self.common.bounds)
            .map_err(|not| self.unmapped(exchange, &not.to_string()))?;
        let scope = Scope {
            exchange,
            headers: &kept.headers,
            query: kept.query.as_deref(),
            body: None,
            response: Some((status, response.headers())),
        };
        let told = mapping.apply(&mut body, &scope, response.headers(), &mut |path, expression, error| {
            self.common.left_out(exchange, path, expression, &error);
        });
        let text = written(mapping.to, &body)
            .map_err(|_| self.unmapped(exchange, "a form holds nothing that is nested"))?;
        let headers = response.headers_mut();
        set_head(headers, mapping, told, text.len());
        headers.remove(ACCEPT_RANGES);
        weaken(headers);
        response.set_body(text);
        Ok(response)
    }

    /// The error of an answer that cannot be mapped, and must not go out unmapped.
    fn unmapped(&self, exchange: &Exchange, why: &str) -> GatewayError {
        if let Some(left_out) = self.common.throttle.pass() {
            let request_id = exchange.request_id();
            tracing::warn!(request_id, why, left_out, "an answer cannot be mapped");
        }
        Kind::UpstreamBadResponse.into()
    }
}

/// A header that the body makes is not there without one, whatever the caller says.
fn without_body(mapping: &Compiled, request: &mut Request) {
    for (name, _) in &mapping.to_headers {
        request.headers_mut().remove(name);
    }
}

/// Whether a message says that its body is written so.
fn is_of(format: Format, headers: &HeaderMap) -> bool {
    match format {
        Format::Json => is_json(headers),
        Format::Form => essence(headers).eq_ignore_ascii_case(form::TYPE.as_bytes()),
    }
}

fn parsed(format: Format, bytes: &[u8], bounds: &Bounds) -> Result<Value, json_body::NotRead> {
    match format {
        Format::Json => json_body::parse(bytes, bounds),
        Format::Form => form::read(bytes),
    }
}

/// The body's text, or the name of a field that has no place in it.
fn written(format: Format, body: &Value) -> Result<Vec<u8>, String> {
    match format {
        Format::Json => serde_json::to_vec(body).map_err(|_| String::new()),
        Format::Form => form::write(body).map(String::into_bytes),
    }
}

/// Makes a message's headers agree with its new body.
fn set_head(
    headers: &mut HeaderMap,
    mapping: &Compiled,
    told: Vec<(http::HeaderName, Option<HeaderValue>)>,
    length: usize,
) {
    for (name, value) in told {
        match value {
            Some(value) => drop(headers.insert(name, value)),
            None => drop(headers.remove(name)),
        }
    }
    if mapping.from != mapping.to {
        let kind = match mapping.to {
            Format::Json => "application/json",
            Format::Form => form::TYPE,
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    headers.insert(CONTENT_LENGTH, length.into());
    headers.remove(TRAILER);
    DIGESTS.iter().for_each(|name| drop(headers.remove(name)));
}

#[cfg(test)]
mod tests;
