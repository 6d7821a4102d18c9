//! `protocol: grpc`: calls passed on as they are, from HTTP/2 to HTTP/2, and gRPC-Web to gRPC.
//!
//! Messages are never looked into; both directions stream, each at its own pace. A call ends with a status whatever
//! happens: what the gateway itself refuses, and what breaks later, is `grpc-status` in the caller's own form.
//!
//! A call has the deadline its caller gave (`grpc-timeout`), or the route's `timeout`, or the upstream's
//! `timeouts.total` where the manifest sets it: the nearest of them, and the upstream is told what is left of it. Without any
//! a call may last as long as both sides hold it: `timeouts.total` has no default here, and `timeouts.idle` counts only
//! where it is set. `timeouts.first_byte` holds for the head, from the request's last byte on. Callers whose token ends
//! get `UNAUTHENTICATED`, and when the gateway goes down `UNAVAILABLE`.
//!
//! gRPC-Web is served on the same routes, over HTTP/1.1 too. Of requests' trailers nothing is passed on.

mod answer;
mod timeout;
mod web;

use super::notice::Notice;
use super::template::Template;
use super::{Misfit, Target, TargetCx, forward, proxy};
use crate::diag::{Code, Diagnostic, Diagnostics};
use crate::endpoint::{Next, sealed};
use crate::error::grpc::{self, Flavour, Form};
use crate::error::{GatewayError, Kind};
use crate::exchange::{Exchange, RouteInfo};
use crate::manifest::Spanned;
use crate::manifest::model::{Protocol, Route, Upstream as Declared, UpstreamProtocol};
use crate::state::Shared;
use crate::upstream::{SendOptions, Upstream};
use answer::Answer;
use http::header::{ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, TE, UPGRADE};
use http::{HeaderValue, Method, StatusCode};
use http_body_util::combinators::BoxBody;
use poem::{Body, Endpoint, Request, Response};
use std::sync::Arc;
use std::time::Instant;

/// A checked `protocol: grpc`.
#[derive(Debug)]
pub(super) struct Grpc {
    upstream: Arc<str>,
    /// URLs of its servers, for people.
    servers: Vec<String>,
    /// The path it is rewritten to, and as it is written.
    path: Option<(Arc<Template>, String)>,
}

/// Faults where a route and its upstream differ on whether they speak gRPC.
pub(super) fn same_protocol(
    route: &Route,
    name: &Spanned<String>,
    upstream: &Declared,
    out: &mut Diagnostics,
) {
    let speaks = upstream.protocol.as_ref().filter(|protocol| protocol.value == UpstreamProtocol::Grpc);
    let asks = route.protocol.as_ref().filter(|protocol| protocol.value == Protocol::Grpc);
    let asks = asks.map(|it| it.span).or(route.grpc.as_ref().map(|it| it.span));
    match (speaks, asks) {
        (Some(speaks), None) => out.push(
            Diagnostic::error(
                Code::PROTOCOL_MISMATCH,
                name.span,
                format!("upstream `{}` speaks gRPC, this route does not", name.value),
            )
            .help(match route.handler {
                Some(_) => "name an upstream that speaks HTTP: the handler does",
                None => "add `protocol: grpc` to pass calls on, or name an upstream that speaks HTTP",
            })
            .note(speaks.span, "the upstream says so here"),
        ),
        (None, Some(asks)) => out.push(
            Diagnostic::error(
                Code::PROTOCOL_MISMATCH,
                asks,
                format!("this route speaks gRPC, upstream `{}` does not", name.value),
            )
            .help(format!("add `protocol: grpc` to upstream `{}`", name.value))
            .note(name.span, "the upstream is named here"),
        ),
        _ => {}
    }
}

/// Is it sound? Reports every fault.
pub(super) fn check(
    route: &Spanned<Route>,
    params: &[String],
    upstream: Option<proxy::Decl<'_>>,
    out: &mut Diagnostics,
) -> Option<Grpc> {
    if let Some(limits) = &route.stream {
        out.push(
            Diagnostic::error(Code::MISPLACED, limits.span, "`stream` is for event streams, not for calls")
                .help("remove it: a call ends by `grpc-timeout`, the stage `timeout` or the upstream's `timeouts`"),
        );
    }
    if let Some(method) = &route.grpc {
        out.push(
            Diagnostic::error(
                Code::MISPLACED,
                method.span,
                "`grpc` converts JSON, `protocol: grpc` passes calls on",
            )
            .help("keep one of them"),
        );
    }
    let path = route.path.as_ref().map(|path| Template::check(path, 0, &path.value, params, out));
    let upstream = upstream?;
    let servers = &upstream.decl.targets.0;
    Some(Grpc {
        upstream: upstream.name.into(),
        servers: servers.iter().map(|server| server.url.trim_end_matches('/').to_owned()).collect(),
        path: match (path, &route.path) {
            (Some(template), Some(written)) => Some((Arc::new(template?), written.value.clone())),
            _ => None,
        },
    })
}

/// Whether a pattern or a template can be the path of a call, `/package.Service/Method`.
fn is_call_path(path: &str) -> bool {
    let variable = |part: &str| part.starts_with([':', '*']) || part.starts_with('{') && part.ends_with('}');
    let identifier = |part: &str| {
        part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && part.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
    };
    let Some(path) = path.strip_prefix('/') else { return false };
    match path.split_once('/') {
        None => variable(path) && !path.starts_with(':'),
        Some((service, method)) => {
            (variable(service) || service.split('.').all(identifier))
                && (variable(method) || identifier(method))
        }
    }
}

impl Target for Grpc {
    fn build(&self, cx: &TargetCx<'_>) -> Next {
        let upstream = cx.upstreams.get(&self.upstream).cloned();
        sealed(Calls {
            upstream: upstream.expect("the checks saw that this upstream is defined"),
            shared: cx.shared.clone(),
            path: self.path.as_ref().map(|(template, _)| template.clone()),
        })
    }

    fn streams(&self) -> bool {
        true
    }

    fn passes_calls(&self) -> bool {
        true
    }

    fn upstream(&self) -> Option<&str> {
        Some(&self.upstream)
    }

    fn misfit(&self, route: &RouteInfo) -> Option<Misfit> {
        if !matches!(route.method.as_str(), "ANY" | "POST") {
            return Some(Misfit {
                message: format!("gRPC calls are POST, this route takes {}", route.method),
                help: "write `POST` or `ANY`".to_owned(),
            });
        }
        let path = self.path.as_ref().map_or(route.template.as_str(), |(_, written)| written);
        (!is_call_path(path)).then(|| Misfit {
            message: format!("no gRPC call has a path like `{path}`"),
            help:
                "calls are `/package.Service/Method`: write `ANY /package.Service/*method`, or rewrite the \
                   path with `path: /package.Service/{method}`"
                    .to_owned(),
        })
    }

    fn describe(&self, path: &str, values: &[&str]) -> String {
        proxy::urls(&self.servers, self.path.as_ref().map(|(template, _)| &**template), path, values)
    }
}

/// A `protocol: grpc` that runs.
struct Calls {
    upstream: Arc<Upstream>,
    shared: Arc<Shared>,
    path: Option<Arc<Template>>,
}

impl Endpoint for Calls {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let exchange = Exchange::of(&request).clone();
        let web = match exchange.form() {
            Form::Problem => return Ok(not_a_call(&exchange, &request)),
            Form::Grpc(_) => None,
            Form::Web(_) => Some(Flavour::Web),
            Form::WebText(_) => Some(Flavour::WebText),
        };
        if *request.method() != Method::POST {
            return Ok(only_post(&exchange));
        }
        exchange.begin_call();
        let deadline = self.deadline(&exchange, &request)?;
        let mut left = None;
        if let Some(deadline) = deadline {
            let time = deadline.saturating_duration_since(Instant::now());
            if time.is_zero() {
                return Err(GatewayError::from(Kind::DeadlineExceeded).into());
            }
            left = Some(timeout::written(time));
        }
        if let Some(flavour) = web {
            web::unwrap(&mut request, flavour);
        }
        let trusted = self.shared.settings.trusts(exchange.peer.ip());
        let mut request = forward::request(&exchange, request, self.path.as_deref(), trusted)?;
        let headers = request.headers_mut();
        headers.insert(TE, HeaderValue::from_static("trailers"));
        if let Some(left) = left {
            headers.insert(timeout::GRPC_TIMEOUT, left);
        }
        let options = SendOptions {
            stream: true,
            duplex: true,
            until: deadline.map(tokio::time::Instant::from_std),
            ..SendOptions::default()
        };
        let response = self.upstream.send(&exchange, request, &options).await?;
        let (mut head, mut body) = response.into_parts();
        forward::clean_response(&mut head.headers);
        head.headers.remove(CONTENT_LENGTH);
        let kind = head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        if head.status != StatusCode::OK || grpc::flavour(kind) != Some(Flavour::Grpc) {
            return Err(no_grpc(&head).into());
        }
        let status = grpc::status_in(&head.headers);
        if let Some(code) = status {
            exchange.set_grpc_status(code);
        }
        body.set_limits(self.upstream.spec().call_idle(), None);
        let body = match (web, status) {
            (None, Some(_)) => BoxBody::default(),
            (Some(flavour), Some(_)) => {
                let trailers = grpc::take_status(&mut head.headers);
                BoxBody::new(web::last_frame(&trailers, flavour))
            }
            (_, None) => {
                let notice = Notice::new(&self.shared, exchange.identity().map(AsRef::as_ref));
                BoxBody::new(Answer::new(body, exchange.clone(), notice, deadline, web))
            }
        };
        if let (Some(_), Form::Web(kind) | Form::WebText(kind)) = (web, exchange.form()) {
            head.headers.insert(CONTENT_TYPE, kind.clone());
        }
        let mut response = Response::builder().status(head.status).body(Body::from(body));
        *response.headers_mut() = head.headers;
        Ok(response)
    }
}

impl Calls {
    /// When the call has to be over, by its caller, its route or its upstream.
    fn deadline(&self, exchange: &Exchange, request: &Request) -> Result<Option<Instant>, GatewayError> {
        let asked = match request.headers().get(timeout::GRPC_TIMEOUT) {
            None => None,
            Some(value) => Some(timeout::read(value).ok_or_else(|| {
                GatewayError::new(
                    Kind::BadRequest,
                    "grpc-timeout is up to eight digits and one of H, M, S, m, u, n",
                )
            })?),
        };
        let total = self.upstream.spec().call_total();
        let ends = [asked, total].into_iter().flatten().map(|after| exchange.started + after);
        Ok(ends.chain(exchange.deadline()).min())
    }
}

/// The answer to a request that is no gRPC call: by HTTP's rules.
fn not_a_call(exchange: &Exchange, request: &Request) -> Response {
    let kind = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    if grpc::flavour(kind).is_none() {
        let detail = "gRPC calls come with `application/grpc` or `application/grpc-web`";
        return exchange.refuse(&GatewayError::new(Kind::UnsupportedMediaType, detail));
    }
    let mut response = exchange.refuse(&Kind::Http2Required.into());
    // RFC 9110, section 15.5.22.
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("HTTP/2.0"));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response
}

fn only_post(exchange: &Exchange) -> Response {
    let mut response = exchange.refuse(&Kind::MethodNotAllowed.into());
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    response
}

/// What a caller is told of an answer that is no gRPC.
fn no_grpc(head: &http::response::Parts) -> GatewayError {
    let code = grpc::status_in(&head.headers).unwrap_or_else(|| grpc::code_of_status(head.status));
    let detail = format!("it answered {} without gRPC", head.status.as_u16());
    GatewayError { grpc: Some(code), ..GatewayError::new(Kind::UpstreamBadResponse, detail) }
}

#[cfg(test)]
mod tests {
    use super::super::testing::faults;
    use super::*;

    #[test]
    fn paths_of_calls() {
        for path in ["/a.b.C/*m", "/a.b.C/:m", "/C/Do", "/:service/:method", "/*all", "/a.C/{m}", "/{s}/{m}"]
        {
            assert!(is_call_path(path), "{path}");
        }
        for path in ["/", "/:x", "/api/v2/a.C/*m", "/a..C/*m", "/a-b.C/Do", "/a.C/", "/1.C/Do"] {
            assert!(!is_call_path(path), "{path}");
        }
    }

    #[test]
    fn keys_of_other_protocols_are_faults() {
        let mismatch = Code::PROTOCOL_MISMATCH;
        assert_eq!(
            faults("{ route: ANY /a.B/*m, upstream: algo, protocol: grpc, stream: {} }"),
            [mismatch, Code::MISPLACED]
        );
        assert_eq!(faults("{ route: ANY /a.B/*m, upstream: algo, protocol: grpc }"), [mismatch]);
    }
}
