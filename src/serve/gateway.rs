//! From a request as hyper gives it to an answer as hyper takes it: admitted, routed, counted.

use super::accept::{ConnInfo, Service};
use super::body::{RequestBody, ResponseBody};
use super::client::caller;
use super::intake::{IntakeLimits, Refusal, admit};
use super::io::Unread;
use super::live::Live;
use crate::compile::finish;
use crate::error::grpc::Form;
use crate::error::{GatewayError, Kind, Lang};
use crate::exchange::{Arrival, Exchange};
use crate::telemetry::trace::TRACESTATE;
use http::header::{CONNECTION, HeaderValue};
use http::uri::{PathAndQuery, Scheme};
use http::{Request, Response, StatusCode, Version};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use poem::web::{LocalAddr, RemoteAddr};
use poem::{Addr, Body, RequestParts};
use std::borrow::Cow;
use std::sync::Arc;

/// What stands behind the public door: the table that is live.
#[derive(Clone)]
pub struct Gateway {
    live: Arc<Live>,
    intake: IntakeLimits,
}

impl Gateway {
    /// Serves what is live.
    pub fn new(live: Arc<Live>) -> Self {
        Gateway { live, intake: IntakeLimits::default() }
    }
}

impl Service for Gateway {
    type Body = ResponseBody;

    async fn call(&self, request: Request<Incoming>, connection: Arc<ConnInfo>) -> Response<ResponseBody> {
        let shared = self.live.shared();
        let (mut parts, body) = request.into_parts();
        let admitted = admit(&parts, connection.tls, &self.intake);
        let (client_ip, secure) = caller(connection.peer, connection.tls, &parts.headers, &shared.settings);
        let (path, host, refusal) = match admitted {
            Ok(admitted) => {
                let path = match admitted.path {
                    Cow::Borrowed(_) => None,
                    Cow::Owned(path) => Some(path),
                };
                (path, admitted.host.into_owned(), None)
            }
            Err(refusal) => (Some(unreadable(parts.uri.path())), String::new(), Some(refusal)),
        };
        if let Some(path) = &path {
            respell(&mut parts, path);
        }
        let exchange = Exchange::begin(Arrival {
            peer: connection.peer,
            client_ip,
            secure,
            method: parts.method.clone(),
            path: path.unwrap_or_else(|| parts.uri.path().to_owned()),
            lang: Lang::of(&parts.headers),
        });
        let form = Form::of(&parts.headers, parts.version);
        if form != Form::Problem {
            exchange.speaks(form);
        }
        if !shared.telemetry.trace(&parts.headers, &exchange) {
            // It belongs to a trace that is not continued.
            parts.headers.remove(TRACESTATE);
        }
        let version = parts.version;
        let unread = (!body.is_end_stream()).then(|| parts.extensions.remove::<Unread>()).flatten();
        parts.extensions.insert(exchange.clone());
        let scheme = if connection.tls { Scheme::HTTPS } else { Scheme::HTTP };
        let (local, remote) = (Addr::SocketAddr(connection.local), Addr::SocketAddr(connection.peer));
        let parts = RequestParts::from((parts, LocalAddr(local), RemoteAddr(remote), scheme));
        let body = match body.is_end_stream() {
            true => Body::empty(),
            false => {
                let door = &shared.settings.door;
                let (window, least) = (door.body_timeout.0, door.min_body_rate.0);
                Body::from(RequestBody::new(body, unread, exchange.clone(), window, least).boxed())
            }
        };
        let request = poem::Request::from_parts(parts, body);
        let table = self.live.table();
        if let Some(catalogue) = table.catalogue() {
            exchange.errors_described_at(catalogue);
        }
        let answering = match &refusal {
            None => table.answer(&exchange, &host, request),
            Some(refusal) => table.refuse(request, error_of(refusal)),
        };
        let response = finish(answering.await);
        drop(table);
        exchange.set_status(response.status().as_u16());
        let response: Response<_> = response.into();
        let mut response = match response.status() {
            // Whoever took the connection over says how it ends.
            StatusCode::SWITCHING_PROTOCOLS => response.map(ResponseBody::of_nobody),
            _ => response.map(|body| ResponseBody::new(body, exchange)),
        };
        *response.version_mut() = version;
        if refusal.is_some_and(|refusal| refusal.close) && version <= Version::HTTP_11 {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

fn error_of(refusal: &Refusal) -> GatewayError {
    let mut error = GatewayError::new(refusal.kind, refusal.detail);
    if refusal.kind == Kind::MethodNotAllowed {
        // A 405 names what is served (RFC 9110, section 15.5.6); of which path nobody has asked yet.
        error.allow = Some(HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
    }
    error
}

/// Puts the path's one spelling into the URI, so that nothing further in sees another.
fn respell(parts: &mut http::request::Parts, path: &str) {
    let respelled = match parts.uri.query() {
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
        None => PathAndQuery::try_from(path),
    };
    if let Ok(path_and_query) = respelled {
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        uri.path_and_query = Some(path_and_query);
        parts.uri = http::Uri::from_parts(uri).unwrap_or_default();
    }
}

/// A refused path as logs may show it: bounded, and only what a path may be made of.
fn unreadable(path: &str) -> String {
    path.bytes().take(256).map(|byte| if byte.is_ascii_graphic() { char::from(byte) } else { '?' }).collect()
}
