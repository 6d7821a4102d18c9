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
mod running;
mod sending;

use super::proxy::Decl;
use super::{Meets, Target, TargetCx};
use crate::diag::{Code, Diagnostic, Diagnostics};
use crate::endpoint::{Next, sealed};
use crate::error::Kind;
use crate::grpc::json::Style;
use crate::grpc::{At, Call, Problem, Wanted};
use crate::manifest::model::{FieldNames, Route, UpstreamProtocol};
use crate::manifest::{Manifest, Spanned};
use crate::openapi::OperationDoc;
use crate::sse::StreamTimes;
use crate::telemetry::Throttle;
use http::{Method, StatusCode};
use reflected::Reflected;
use running::{Calls, Running};
use std::sync::Arc;
use std::time::Duration;

/// Largest message where the upstream does not say.
const MAX_MESSAGE: u64 = 4 << 20;
/// A checked `grpc:`.
pub(super) struct Transcode {
    upstream: Arc<str>,
    meets: Meets,
    servers: Vec<String>,
    wanted: Wanted,
    /// Unknown before the descriptors have come by reflection.
    call: Option<Arc<Call>>,
    form: Arc<Form>,
    /// Where the method answers with a stream.
    times: Option<StreamTimes>,
    /// Whether a stream is held back until its first message has come.
    held: bool,
}

/// How messages are exchanged.
#[derive(Debug)]
struct Form {
    style: Style,
    proto_names: bool,
    max_message: u64,
    status: StatusCode,
}

/// Is it sound? Reports every fault. With `held`, a stream that brings no message is an error, not a stream.
pub(super) fn check(
    route: &Spanned<Route>,
    params: &[String],
    upstream: Option<Decl<'_>>,
    held: bool,
    manifest: &Manifest,
    out: &mut Diagnostics,
) -> Option<Transcode> {
    let declared = route.grpc.as_ref()?;
    for (key, span) in [
        ("path", route.path.as_ref().map(|it| it.span)),
        ("protocol", route.protocol.as_ref().map(|it| it.span)),
    ] {
        let Some(span) = span else { continue };
        out.push(
            Diagnostic::error(
                Code::MISPLACED,
                span,
                format!("`{key}` does not apply to a route with `grpc`"),
            )
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
            // Behind a bridge, messages are bodies.
            _ if route.bridge.is_some() => Some(Method::POST),
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
                let message =
                    format!("upstream `{}` has no descriptors, so its methods are not known", upstream.name);
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
    let streams =
        call.as_ref().map_or(limits.is_some() || route.bridge.is_some(), |call| call.gives_stream());
    if let (Some(limits), false) = (limits, streams) {
        out.push(
            Diagnostic::error(
                Code::MISPLACED,
                limits.span,
                "`stream` is for methods that answer with a stream",
            )
            .help("remove it: this method answers with one message"),
        );
    }
    if let (Some(bridge), false) = (&route.bridge, streams) {
        out.push(
            Diagnostic::error(
                Code::MISPLACED,
                bridge.span,
                "`bridge: websocket` is for methods that answer with a stream",
            )
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
        meets: Meets::of(upstream.decl),
        servers: servers.iter().map(|server| server.url.trim_end_matches('/').to_owned()).collect(),
        wanted,
        call,
        form: Arc::new(form),
        times,
        held,
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
    Diagnostic::error(problem.code, span.unwrap_or(route.route.span), problem.message)
        .maybe_help(problem.help)
}

impl Target for Transcode {
    fn document(&self, op: &mut OperationDoc) {
        self.meets.document(op);
        match &self.call {
            Some(call) => call.document(&self.form.style, self.form.status, op),
            None => op.note("What it takes and gives is known once the service has said so (reflection)."),
        }
        if let Some(times) = &self.times {
            op.extension("x-stream", times.document());
            let end = serde_json::json!({
                "type": "object",
                "description": "The service has said everything. Nothing follows.",
                "maxProperties": 0,
            });
            let failed = serde_json::json!({ "$ref": "#/components/schemas/Problem" });
            op.events(&[("end", end), ("error", failed)]);
            super::sse::document(op);
        }
        if op.has_body() {
            op.refuses(&[Kind::Invalid, Kind::UnsupportedMediaType, Kind::PayloadTooLarge], "");
        } else {
            op.refuses(&[Kind::Invalid], "");
        }
    }

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
            held: self.held,
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
