//! Spans to a collector: OTLP over HTTP, when the standard `OTEL_*` variables ask for it.
//!
//! One server span an exchange, named and described by OpenTelemetry's conventions for HTTP. Spans are batched and
//! sent by a thread of the SDK; a collector that is slow or gone costs spans, never requests.

use super::TelemetryError;
use super::requests::method_label;
use super::trace::TraceContext;
use crate::exchange::{End, Exchange, Observer};
use http::HeaderMap;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId,
    TraceState, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};
use std::num::{NonZeroU64, NonZeroU128};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Looks up an environment variable.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Makes spans and sends them.
#[derive(Clone)]
pub(super) struct Exporter {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// A span under way; ends with its exchange.
struct OpenSpan(Mutex<Option<Span>>);

/// Where spans go, if they go anywhere: the endpoint's whole URL.
///
/// Fails where the variables ask for what this gateway does not speak.
pub(super) fn endpoint(env: Env<'_>) -> Result<Option<String>, TelemetryError> {
    let set = |name: &str| env(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    if set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    match set("OTEL_TRACES_EXPORTER").as_deref() {
        None | Some("otlp") => {}
        Some("none") => return Ok(None),
        Some(other) => {
            return Err(TelemetryError::Traces(format!(
                "OTEL_TRACES_EXPORTER is `{other}`: only `otlp` and `none` are known"
            )));
        }
    }
    let own = set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
    let shared = set("OTEL_EXPORTER_OTLP_ENDPOINT");
    let below = |base: String| format!("{}/v1/traces", base.trim_end_matches('/'));
    let Some(endpoint) = own.or_else(|| shared.map(below)) else {
        return Ok(None);
    };
    // Not echoed: a URL may hold a password.
    if !url::Url::parse(&endpoint).is_ok_and(|url| matches!(url.scheme(), "http" | "https")) {
        let text = "OTEL_EXPORTER_OTLP_ENDPOINT is not a URL such as `http://collector:4318`";
        return Err(TelemetryError::Traces(text.to_owned()));
    }
    let protocol = set("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| set("OTEL_EXPORTER_OTLP_PROTOCOL"));
    match protocol.as_deref() {
        None | Some("http/protobuf") => Ok(Some(endpoint)),
        Some(other) => Err(TelemetryError::Traces(format!(
            "OTEL_EXPORTER_OTLP_PROTOCOL is `{other}`: only `http/protobuf` is spoken; collectors take it on port 4318"
        ))),
    }
}

impl Exporter {
    /// Sends to an endpoint, with the SDK's own settings for sampling, batches, headers and timeouts.
    pub(super) fn start(endpoint: &str, resource: Resource) -> Result<Self, TelemetryError> {
        // The exporter's HTTP client brings no cryptography. Whoever installed a provider first is as good.
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint)
            .build()
            .map_err(|error| {
                let why = error.to_string().replace(endpoint, "OTEL_EXPORTER_OTLP_ENDPOINT");
                TelemetryError::Traces(format!("cannot be exported: {why}"))
            })?;
        let provider =
            SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build();
        Ok(Exporter { tracer: provider.tracer("voicegate"), provider })
    }

    /// Begins the exchange's span, and gives its place in the trace.
    pub(super) fn begin(
        &self,
        parent: Option<TraceContext>,
        headers: &HeaderMap,
        exchange: &Exchange,
    ) -> TraceContext {
        let context = parent.map_or_else(Context::new, |parent| {
            Context::new().with_remote_span_context(remote(parent, headers))
        });
        let builder = SpanBuilder::from_name(method_label(&exchange.method))
            .with_kind(SpanKind::Server)
            .with_start_time(exchange.at);
        let span = self.tracer.build_with_context(builder, &context);
        let ours = span.span_context();
        let place = NonZeroU128::new(u128::from_be_bytes(ours.trace_id().to_bytes()))
            .zip(NonZeroU64::new(u64::from_be_bytes(ours.span_id().to_bytes())))
            .map(|(trace_id, span_id)| TraceContext { trace_id, span_id, sampled: ours.is_sampled() });
        if span.is_recording() {
            exchange.observe(Arc::new(OpenSpan(Mutex::new(Some(span)))));
        }
        // The SDK gives no ids once it is shut down.
        place.unwrap_or_else(|| parent.map_or_else(TraceContext::begin, TraceContext::child))
    }

    /// Sends what is left, for at most so long. Blocks.
    pub(super) fn shutdown(&self, within: Duration) -> OTelSdkResult {
        self.provider.shutdown_with_timeout(within)
    }
}

/// The caller's span, as the SDK wants it.
fn remote(parent: TraceContext, headers: &HeaderMap) -> SpanContext {
    let state = headers.get(super::trace::TRACESTATE).and_then(|value| value.to_str().ok());
    SpanContext::new(
        TraceId::from(parent.trace_id.get()),
        SpanId::from(parent.span_id.get()),
        TraceFlags::NOT_SAMPLED.with_sampled(parent.sampled),
        true,
        state.and_then(|state| TraceState::from_str(state).ok()).unwrap_or_default(),
    )
}

impl Observer for OpenSpan {
    fn finished(&self, exchange: &Exchange) {
        let span = self.0.lock().unwrap_or_else(|poison| poison.into_inner()).take();
        let Some(mut span) = span else { return };
        let method = method_label(&exchange.method);
        let status = exchange.status();
        if let Some(route) = exchange.route() {
            span.update_name(format!("{method} {}", route.template));
            span.set_attribute(KeyValue::new("http.route", route.template.clone()));
        }
        let known = method != "OTHER";
        span.set_attribute(KeyValue::new("http.request.method", if known { method } else { "_OTHER" }));
        if !known {
            let original = exchange.method.as_str().to_owned();
            span.set_attribute(KeyValue::new("http.request.method_original", original));
        }
        span.set_attribute(KeyValue::new("url.path", exchange.path.clone()));
        span.set_attribute(KeyValue::new("url.scheme", if exchange.secure { "https" } else { "http" }));
        span.set_attribute(KeyValue::new("client.address", exchange.client_ip.to_string()));
        span.set_attribute(KeyValue::new("network.peer.address", exchange.peer.ip().to_string()));
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        span.set_attribute(KeyValue::new("voicegate.request_id", exchange.request_id().to_owned()));
        span.set_attribute(KeyValue::new("voicegate.end", exchange.end().word()));
        if let Some(note) = exchange.upstream() {
            span.set_attribute(KeyValue::new("voicegate.upstream", note.upstream.clone()));
            span.set_attribute(KeyValue::new("voicegate.upstream.target", note.target.clone()));
        }
        // Faults of callers are not faults of this span (HTTP conventions, "Status").
        if status >= 500 {
            span.set_attribute(KeyValue::new("error.type", status.to_string()));
            span.set_status(Status::error(""));
        } else if exchange.end() == End::UpstreamBroke {
            span.set_attribute(KeyValue::new("error.type", End::UpstreamBroke.word()));
            span.set_status(Status::error("the upstream broke off"));
        }
        span.end_with_timestamp(exchange.at + exchange.started.elapsed());
    }
}
