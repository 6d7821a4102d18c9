//! One request to one server, up to its response's head.
//!
//! What may be sent twice (over HTTP/2 `http2::call` has its own, stricter rule): a request that provably never left (hyper gives it back), and one without body and of an
//! idempotent method (RFC 9110, section 9.2.2) whose connection had been used before and died without an answer:
//! then the server had most likely just closed it. Either only once, and on a new connection. Nothing else is ever
//! sent twice. Redirects are answers like any other.

use super::Upstream;
use super::body::{Causes, Progress, RequestBody, Source, UpstreamBody};
use super::client::{Purpose, connect};
use super::meter::Meter;
use super::outcome::Outcome;
use super::pool::{Conn, Lease, Server};
use crate::error::grpc;
use crate::error::{BodyTimeout, GatewayError, Kind};
use crate::exchange::Exchange;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;
use tokio::time::Instant;

/// How to send.
#[derive(Debug, Clone, Copy, Default)]
pub struct SendOptions {
    /// Deadline of the response's head instead of the upstream's `timeouts.first_byte`.
    pub first_byte: Option<Duration>,
    /// Whether the answer is a stream: then `timeouts.total` does not hold, and the response's body has no deadline
    /// until [`UpstreamBody::set_limits`] sets one.
    pub stream: bool,
    /// Whether the request is a stream too: it may rest without end, and its answer may come before its own end. Then
    /// `timeouts.idle` does not hold for its body.
    pub duplex: bool,
    /// When the whole exchange has to be over, instead of the upstream's `timeouts.total`; holds for streams too.
    pub until: Option<Instant>,
}

/// Why there is no response.
pub(super) enum Fail {
    /// Neither a response nor a deadline; the request where it never left.
    Broke(hyper::Error, Option<Box<Request<RequestBody>>>),
    /// The upstream's deadline passed.
    Late,
    /// The caller's body did not come.
    Starved,
}

/// When to give up waiting for a head.
pub(super) struct Deadlines {
    pub(super) first_byte: Duration,
    /// `None` where the request's body may rest.
    pub(super) idle: Option<Duration>,
    pub(super) until: Option<Instant>,
}

/// What was waited for in vain.
pub(super) enum Overdue {
    /// The upstream.
    Late,
    /// The caller's body.
    Starved,
}

impl From<Overdue> for Fail {
    fn from(overdue: Overdue) -> Self {
        match overdue {
            Overdue::Late => Fail::Late,
            Overdue::Starved => Fail::Starved,
        }
    }
}

impl Upstream {
    /// [`send`](Upstream::send), once it is let in.
    pub(super) async fn send_admitted(
        self: &Arc<Self>,
        exchange: &Arc<Exchange>,
        mut request: Request<BoxBody<Bytes, io::Error>>,
        options: &SendOptions,
    ) -> Result<Response<UpstreamBody>, GatewayError> {
        let began = Instant::now();
        let times = self.spec.timeouts();
        let total = (!options.stream).then(|| Instant::from_std(exchange.started) + times.total);
        let until = options.until.or(total);
        let deadlines = Deadlines {
            first_byte: options.first_byte.unwrap_or(times.first_byte),
            idle: (!options.duplex).then_some(times.idle),
            until,
        };
        let server = self.choose();
        exchange.sent_to(server.note.clone());
        let (response, mut lease, progress, close_delimited) = match &server.links {
            Some(links) => {
                let (response, lease, progress) =
                    self.call(exchange, server, links, request, &deadlines).await?;
                (response, lease, progress, false)
            }
            None => {
                *request.version_mut() = Version::HTTP_11;
                request.headers_mut().insert(HOST, server.spec.authority.clone());
                let (response, lease) =
                    self.exchange_heads(exchange, server, request, &deadlines, began).await?;
                match framing(&response) {
                    Ok(close_delimited) => (response.map(Source::Http1), lease, None, close_delimited),
                    Err(why) => {
                        return Err(self.failed(exchange, server, Kind::UpstreamBadResponse, &why));
                    }
                }
            }
        };
        let took = began.elapsed();
        exchange.upstream_answered(took);
        let status = match server.links {
            Some(_) => status_of_call(&response),
            None => Some(response.status().as_u16()),
        };
        match status {
            Some(status) => self.observe(server, Outcome::Answered { status, took }),
            None => {
                server.metrics.took(took);
                lease.uncounted = true;
            }
        }
        Ok(response.map(|incoming| {
            let (upstream, exchange) = (self.clone(), exchange.clone());
            let mut body = UpstreamBody::new(incoming, lease, upstream, exchange, progress, close_delimited);
            let idle = (!options.stream).then_some(times.idle);
            if idle.is_some() || until.is_some() {
                body.set_limits(idle, until);
            }
            body
        }))
    }

    /// Head out, head in; the lease holds the connection they went over.
    async fn exchange_heads(
        &self,
        exchange: &Exchange,
        server: &Arc<Server>,
        request: Request<BoxBody<Bytes, io::Error>>,
        deadlines: &Deadlines,
        began: Instant,
    ) -> Result<(Response<Incoming>, Lease), GatewayError> {
        let patience = self.spec.connect_timeout();
        let Some(mut lease) = server.lease(patience).await else {
            let why = "every connection is in use";
            return Err(self.failed(exchange, server, Kind::UpstreamSaturated, &why));
        };
        let progress = (!request.body().is_end_stream()).then(Progress::new);
        let repeatable = progress.is_none() && is_idempotent(request.method());
        let mut request = request.map(|body| RequestBody::new(body, progress.clone()));
        let mut conn = match server.take(began) {
            Some(conn) => {
                Meter::add(&self.meter.reused);
                conn
            }
            None => self.open(exchange, server, patience, Purpose::Requests).await?,
        };
        loop {
            // Only a connection that was used before can have been closed behind our back; it is never used after
            // this loop has opened a new one, so nothing goes out a third time.
            let used = conn.used;
            let mut copy = (used && repeatable).then(|| copy_of(&request));
            let fail = match head(lease.conn.insert(conn), request, progress.as_deref(), deadlines).await {
                Ok(response) => return Ok((response, lease)),
                Err(fail) => fail,
            };
            lease.conn = None;
            request = match (fail, copy.take()) {
                (Fail::Broke(_, Some(unsent)), _) if used => *unsent,
                (Fail::Broke(error, None), Some(copy)) if !error.is_parse() => copy,
                (fail, _) => return Err(self.explain(exchange, server, fail, progress.as_deref())),
            };
            Meter::add(&self.meter.resent);
            conn = self.open(exchange, server, patience, Purpose::Requests).await?;
        }
    }

    pub(super) async fn open(
        &self,
        exchange: &Exchange,
        server: &Server,
        patience: Duration,
        purpose: Purpose,
    ) -> Result<Conn, GatewayError> {
        match connect(&server.spec, self.spec.tls(), patience, purpose).await {
            Ok(conn) => {
                Meter::add(&self.meter.connects);
                Ok(conn)
            }
            Err(error) => {
                let why = Causes(&error);
                Err(self.failed(exchange, server, Kind::UpstreamUnreachable, &why))
            }
        }
    }

    /// The error for a request that got no response.
    pub(super) fn explain(
        &self,
        exchange: &Exchange,
        server: &Server,
        fail: Fail,
        progress: Option<&Progress>,
    ) -> GatewayError {
        match fail {
            Fail::Starved => {
                self.observe(server, Outcome::Abandoned);
                BodyTimeout.into()
            }
            Fail::Late => self.failed(exchange, server, Kind::UpstreamTimeout, &"no answer in time"),
            Fail::Broke(error, _) => {
                if let Some(failure) = progress.and_then(Progress::failure) {
                    self.observe(server, Outcome::Abandoned);
                    return callers_fault(failure);
                }
                let kind = match error.is_parse() {
                    true => Kind::UpstreamBadResponse,
                    false => Kind::UpstreamReset,
                };
                self.failed(exchange, server, kind, &Causes(&error))
            }
        }
    }

    /// Counts and logs a failure; callers learn its kind only.
    pub(super) fn failed(
        &self,
        exchange: &Exchange,
        server: &Server,
        kind: Kind,
        why: &dyn fmt::Display,
    ) -> GatewayError {
        self.observe(server, Outcome::Failed(kind));
        // The access log has a line for each; what failed below HTTP is said once a second.
        let Some(left_out) = self.failures.pass() else { return kind.into() };
        tracing::warn!(
            left_out,
            request_id = exchange.request_id(),
            upstream = &**self.spec.name(),
            target = &*server.spec.address,
            code = kind.code(),
            error = %why,
            "a request to an upstream failed"
        );
        kind.into()
    }
}

impl Deadlines {
    /// When to look again; `Err` when it is too late.
    pub(super) fn due(
        &self,
        now: Instant,
        sent: Instant,
        progress: Option<&Progress>,
    ) -> Result<Instant, Overdue> {
        let look = now + self.first_byte;
        let (due, fail, look) = match (progress, self.idle) {
            // The end of the body may come any time and its deadline be nearer.
            (Some(body), Some(idle)) if !body.done() => {
                let fail = if body.starved() { Overdue::Starved } else { Overdue::Late };
                (body.last() + idle, fail, look.min(now + idle))
            }
            (Some(body), None) if !body.done() => (look, Overdue::Late, look),
            (Some(body), _) => (body.last() + self.first_byte, Overdue::Late, look),
            (None, _) => (sent + self.first_byte, Overdue::Late, look),
        };
        match self.until {
            Some(until) if until <= now => Err(fail),
            _ if due <= now => Err(fail),
            until => Ok(until.map_or(due, |until| until.min(due)).min(look)),
        }
    }
}

/// Sends on this connection and waits for the head.
pub(super) async fn head(
    conn: &mut Conn,
    request: Request<RequestBody>,
    progress: Option<&Progress>,
    deadlines: &Deadlines,
) -> Result<Response<Incoming>, Fail> {
    let sent = Instant::now();
    let mut due = deadlines.due(sent, sent, progress).map_err(Fail::from)?;
    let mut answer = pin!(conn.sender.try_send_request(request));
    poll_fn(|cx| {
        if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
            return Poll::Ready(answer.map_err(|mut error| {
                let unsent = error.take_message().map(Box::new);
                Fail::Broke(error.into_error(), unsent)
            }));
        }
        loop {
            ready!(conn.poll_timer(due, cx));
            match deadlines.due(Instant::now(), sent, progress) {
                Ok(next) => due = next,
                Err(overdue) => return Poll::Ready(Err(overdue.into())),
            }
        }
    })
    .await
}

/// The status to count a call's answer by, as HTTP knows it; `None` where its trailers will say.
fn status_of_call(response: &Response<Source>) -> Option<u16> {
    match grpc::status_in(response.headers()) {
        Some(code) => Some(grpc::http_of(code)),
        None if response.status() == StatusCode::OK && !response.body().is_end_stream() => None,
        None => Some(response.status().as_u16()),
    }
}

fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE)
}

/// A request without body once more.
fn copy_of(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// Whether only the connection's end tells the body's; an error for framing that two parsers could read differently
/// (RFC 9112, section 6.3) and for a switch of protocols that nobody asked for.
pub(super) fn framing(response: &Response<Incoming>) -> Result<bool, &'static str> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err("it switched protocols unasked");
    }
    let headers = response.headers();
    let length = headers.contains_key(CONTENT_LENGTH);
    match headers.get(TRANSFER_ENCODING) {
        Some(_) if length => Err("both Content-Length and Transfer-Encoding"),
        Some(coding) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(false),
        Some(_) => Err("a transfer coding other than chunked"),
        None => Ok(!length && !response.body().is_end_stream()),
    }
}

/// The error that ended the caller's body, or that it broke off.
pub(super) fn callers_fault(failure: &io::Error) -> GatewayError {
    GatewayError::from_body_error(failure)
        .unwrap_or_else(|| GatewayError::new(Kind::BadRequest, "the request's body broke off"))
}
