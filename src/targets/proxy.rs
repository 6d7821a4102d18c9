//! `upstream:`, the request passed on and the response passed back, both as they come.

use super::notice::Notice;
use super::sse::{self, EventStream};
use super::template::Template;
use super::{Meets, Target, TargetCx, forward};
use crate::diag::{Code, Diagnostic, Diagnostics};
use crate::endpoint::{Next, sealed};
use crate::error::GatewayError;
use crate::exchange::Exchange;
use crate::manifest::Spanned;
use crate::manifest::model::{self, Protocol, Route, StreamLimits};
use crate::openapi::{EVENT_STREAM, OperationDoc};
use crate::sse::{StreamTimes, set_headers};
use crate::state::Shared;
use crate::telemetry::StreamMetrics;
use crate::upstream::{Pieces, Primed, SendOptions, Upstream, UpstreamBody};
use http::header::ACCEPT_ENCODING;
use http_body_util::combinators::BoxBody;
use poem::{Body, Endpoint, Request, Response};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// The upstream that a route names, as declared.
pub(super) struct Decl<'m> {
    pub(super) name: &'m str,
    pub(super) decl: &'m model::Upstream,
}

/// A checked `upstream:`.
#[derive(Debug)]
pub(super) struct Proxy {
    upstream: Arc<str>,
    meets: Meets,
    /// URLs of its servers, for people.
    servers: Vec<String>,
    path: Option<Arc<Template>>,
    stream: Option<StreamTimes>,
    /// Whether a stream is held back until its first event has come.
    held: bool,
}

/// Is it sound? Reports every fault. With `held`, a stream that brings no event is an error, not a stream.
pub(super) fn check(
    route: &Spanned<Route>,
    params: &[String],
    upstream: Option<Decl<'_>>,
    held: bool,
    out: &mut Diagnostics,
) -> Option<Proxy> {
    let path = route.path.as_ref().map(|path| Template::check(path, 0, &path.value, params, out));
    let is_sse = route.protocol.as_ref().is_some_and(|protocol| protocol.value == Protocol::Sse);
    let stream = match (&route.stream, is_sse) {
        (limits, true) => {
            limits.iter().for_each(|limits| for_chats_only(limits, out));
            Some(StreamTimes::check(limits.as_ref(), out))
        }
        (Some(limits), false) => {
            out.push(
                Diagnostic::error(
                    Code::MISPLACED,
                    limits.span,
                    "`stream` is for routes with `protocol: sse`",
                )
                .help("add `protocol: sse`, or remove `stream`"),
            );
            None
        }
        (None, false) => None,
    };
    let upstream = upstream?;
    Some(Proxy {
        upstream: upstream.name.into(),
        meets: Meets::of(upstream.decl),
        servers: servers(&upstream),
        path: match path {
            Some(path) => Some(Arc::new(path?)),
            None => None,
        },
        stream,
        held,
    })
}

/// Faults for limits of turns: what is passed on is nobody's message here, and cannot be read again.
pub(super) fn for_chats_only(limits: &StreamLimits, out: &mut Diagnostics) {
    for (key, span) in [
        ("on_disconnect", limits.on_disconnect.as_ref().map(|it| it.span)),
        ("resume_for", limits.resume_for.as_ref().map(|it| it.span)),
        ("max_size", limits.max_size.as_ref().map(|it| it.span)),
    ] {
        let Some(span) = span else { continue };
        out.push(
            Diagnostic::error(Code::MISPLACED, span, format!("`{key}` is for `handler: chat.stream`"))
                .help("remove it: a proxied stream ends with its caller, and is not kept"),
        );
    }
}

impl Target for Proxy {
    fn document(&self, op: &mut OperationDoc) {
        self.meets.document(op);
        if let Some(times) = &self.stream {
            op.extension("x-stream", times.document());
            if !op.described {
                let data = serde_json::json!({ "description": "Whatever the service says." });
                let content = serde_json::json!({ EVENT_STREAM: { "schema": data } });
                let about = "Server-sent events, as the service sends them.";
                op.answers("200", serde_json::json!({ "description": about, "content": content }));
            }
            sse::document(op);
        }
    }

    fn build(&self, cx: &TargetCx<'_>) -> Next {
        let upstream = cx.upstreams.get(&self.upstream).cloned();
        let running = Running {
            upstream: upstream.expect("the checks saw that this upstream is defined"),
            shared: cx.shared.clone(),
            path: self.path.clone(),
        };
        match self.stream {
            None => sealed(running),
            Some(times) => {
                let metrics = cx.shared.telemetry.streams(cx.route);
                sealed(Streaming { running, times, metrics, held: self.held })
            }
        }
    }

    fn common(&self) -> Option<&str> {
        (self.path.is_none() && self.stream.is_none()).then_some(&*self.upstream)
    }

    fn streams(&self) -> bool {
        self.stream.is_some()
    }

    fn longest_stream(&self) -> Option<Duration> {
        self.stream.as_ref().map(|times| times.max)
    }

    fn upstream(&self) -> Option<&str> {
        Some(&self.upstream)
    }

    fn describe(&self, path: &str, values: &[&str]) -> String {
        urls(&self.servers, self.path.as_deref(), path, values)
    }
}

/// URLs of an upstream's servers, for people.
pub(super) fn servers(upstream: &Decl<'_>) -> Vec<String> {
    upstream.decl.targets.0.iter().map(|server| server.url.trim_end_matches('/').to_owned()).collect()
}

/// Where a request would end, for [`Target::describe`].
pub(super) fn urls(servers: &[String], rewrite: Option<&Template>, path: &str, values: &[&str]) -> String {
    let path = match rewrite {
        None => Some(path.to_owned()),
        Some(template) => template.render(|index| values.get(index).copied()),
    };
    let Some(path) = path else {
        return "refused: the rewritten path cannot be sent (400)".to_owned();
    };
    servers.iter().map(|server| format!("{server}{path}")).collect::<Vec<_>>().join(" or ")
}

/// A `upstream:` that runs.
struct Running {
    upstream: Arc<Upstream>,
    shared: Arc<Shared>,
    path: Option<Arc<Template>>,
}

impl Running {
    /// The request as the upstream is to see it.
    fn prepared(&self, exchange: &Exchange, request: Request) -> Result<Prepared, GatewayError> {
        let trusted = self.shared.settings.trusts(exchange.peer.ip());
        forward::request(exchange, request, self.path.as_deref(), trusted)
    }

    /// Sends the request on; the response's headers are cleaned.
    async fn pass(
        &self,
        exchange: &Arc<Exchange>,
        prepared: Result<Prepared, GatewayError>,
        options: &SendOptions,
    ) -> Result<http::Response<UpstreamBody>, GatewayError> {
        let mut response = self.upstream.send(exchange, prepared?, options).await?;
        forward::clean_response(response.headers_mut());
        Ok(response)
    }
}

/// A request on its way out.
type Prepared = http::Request<BoxBody<bytes::Bytes, std::io::Error>>;

impl Endpoint for Running {
    type Output = Response;

    fn call(&self, request: Request) -> impl Future<Output = poem::Result<Response>> + Send {
        let exchange = Exchange::of(&request).clone();
        let prepared = self.prepared(&exchange, request);
        async move {
            let response = self.pass(&exchange, prepared, &SendOptions::default()).await?;
            Ok(finished(response.map(BoxBody::new)))
        }
    }
}

/// A `upstream:` with `protocol: sse` that runs.
struct Streaming {
    running: Running,
    times: StreamTimes,
    metrics: Arc<StreamMetrics>,
    held: bool,
}

impl Endpoint for Streaming {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let exchange = Exchange::of(&request).clone();
        let began = tokio::time::Instant::now();
        let options =
            SendOptions { first_byte: Some(self.times.first_event), stream: true, ..Default::default() };
        let mut prepared = self.running.prepared(&exchange, request)?;
        // Events must be readable here: limits and heartbeats go by their boundaries.
        prepared.headers_mut().remove(ACCEPT_ENCODING);
        let mut response = self.running.pass(&exchange, Ok(prepared), &options).await?;
        if !sse::is_stream(&response) {
            let times = self.running.upstream.spec().timeouts();
            response.body_mut().set_limits(Some(times.idle), Some(began + times.total));
            return Ok(finished(response.map(BoxBody::new)));
        }
        set_headers(response.headers_mut());
        let (head, body) = response.into_parts();
        let body = match self.held {
            true => Primed::wait(body, Pieces::Events, began + self.times.first_event).await,
            false => Ok(body.into()),
        };
        let body = body.map_err(GatewayError::from)?;
        let notice = Notice::new(&self.running.shared, exchange.identity().map(AsRef::as_ref));
        let open = self.metrics.open();
        let body = EventStream::new(body, exchange, open, self.times, began, notice);
        Ok(finished(http::Response::from_parts(head, BoxBody::new(body))))
    }
}

/// The response in poem's form; nothing is copied.
pub(super) fn finished(response: http::Response<BoxBody<bytes::Bytes, std::io::Error>>) -> Response {
    let (parts, body) = response.into_parts();
    let mut response = Response::builder().status(parts.status).body(Body::from(body));
    *response.headers_mut() = parts.headers;
    response
}

#[cfg(test)]
mod tests;
