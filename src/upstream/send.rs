//! One request to one server, up to its response's head.
//!
//! What may be sent twice (over HTTP/2 `http2::call` has its own, stricter rule): a request that provably never left (its connection gives it back), and one without body and of an
//! idempotent method (RFC 9110, section 9.2.2) whose connection had been used before and died without an answer:
//! then the server had most likely just closed it. Either only once, and on a new connection. Nothing else is ever
//! sent twice. Redirects are answers like any other.

use super::Upstream;
use super::body::{Causes, Progress, Remaining, RequestBody, Source, UpstreamBody};
use super::circuits::Chosen;
use super::client::{Purpose, connect};
use super::http1::{Failed, Returned};
use super::meter::Meter;
use super::outcome::Outcome;
use super::pool::{Conn, Lease, Server, Uncounted};
use super::retry::Try;
use crate::error::grpc;
use crate::error::{BodyTimeout, GatewayError, Kind};
use crate::exchange::Exchange;
use bytes::Bytes;
use http::header::HOST;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use http_body_util::combinators::BoxBody;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;
use tokio::time::Instant;

/// A caller's own deadline that ends a try sooner than this is no fault of the server's: else anybody could open a breaker,
/// or have a server taken out, by giving calls no time.
const HURRIED: Duration = Duration::from_secs(1);

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
    /// Whether it is tried once, whatever the manifest says of retries.
    pub once: bool,
    /// When the whole exchange has to be over, instead of the upstream's `timeouts.total`; holds for streams too.
    pub until: Option<Instant>,
    /// The conversation it belongs to, where the request itself does not say so: what
    /// [`Upstream::session_key`] makes of it.
    pub session: Option<u64>,
}

/// Why there is no response.
pub(super) enum Fail {
    /// Neither a response nor a deadline.
    Broke(Failed),
    /// The upstream's deadline passed.
    Late,
    /// The caller's body did not come.
    Starved,
}

/// A request without a response.
#[derive(Debug)]
pub(super) struct Unanswered {
    /// Why.
    pub(super) error: GatewayError,
    /// The request, where nothing of it has left.
    pub(super) request: Option<Box<Request<BoxBody<Bytes, io::Error>>>>,
}

impl From<GatewayError> for Unanswered {
    fn from(error: GatewayError) -> Self {
        Unanswered { error, request: None }
    }
}

/// When to give up waiting for a head.
#[derive(Debug, Clone, Copy)]
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
        request: Request<BoxBody<Bytes, io::Error>>,
        options: &SendOptions,
    ) -> Result<Response<UpstreamBody>, GatewayError> {
        let times = self.spec.timeouts();
        let total = (!options.stream).then(|| Instant::from_std(exchange.started) + times.total);
        let until = options.until.or(total);
        let deadlines = Deadlines {
            first_byte: options.first_byte.unwrap_or(times.first_byte),
            idle: (!options.duplex).then_some(times.idle),
            until,
        };
        let plan = Try { exchange, options, deadlines, patience: self.spec.connect_timeout(), until };
        let key = self.key(exchange, request.uri(), request.headers(), options);
        if let Some(retry) = self.spec.retry().filter(|_| !options.once) {
            return Box::pin(self.send_again(retry, key, request, plan)).await;
        }
        let chosen = self.pick(key, &[])?;
        self.attempt(chosen, request, &plan).await.map_err(|unanswered| unanswered.error)
    }

    /// One try at one server.
    pub(super) async fn attempt(
        self: &Arc<Self>,
        chosen: Chosen,
        mut request: Request<BoxBody<Bytes, io::Error>>,
        plan: &Try<'_>,
    ) -> Result<Response<UpstreamBody>, Unanswered> {
        let began = Instant::now();
        let Chosen { server, mut passages } = chosen;
        let (server, exchange) = (&server, plan.exchange);
        exchange.sent_to(server.note.clone());
        exchange.tried();
        let sent = async {
            Ok::<_, Unanswered>(match &server.links {
                Some(links) => {
                    // Boxed: else requests over HTTP/1.1 would carry its state about.
                    let (response, lease, progress) =
                        Box::pin(self.call(exchange, server, links, request, plan)).await?;
                    (response, lease, progress, false)
                }
                None => {
                    *request.version_mut() = Version::HTTP_11;
                    request.headers_mut().insert(HOST, server.spec.authority.clone());
                    let (response, mut lease) = self.exchange_heads(server, request, plan, began).await?;
                    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                        let why = "it switched protocols unasked";
                        return Err(self.failed(exchange, server, Kind::UpstreamBadResponse, &why).into());
                    }
                    let (response, close_delimited) = begun(response, &mut lease);
                    (response, lease, None, close_delimited)
                }
            })
        };
        let (response, mut lease, progress, close_delimited) = match sent.await {
            Ok(answered) => answered,
            Err(unanswered) => {
                let kind = unanswered.error.kind;
                // A caller's deadline that leaves no time says nothing of the server.
                let hurried = kind == Kind::UpstreamTimeout
                    && plan.options.until.is_some_and(|until| until <= Instant::now())
                    && began.elapsed() < HURRIED;
                passages.tell(if hurried { Outcome::Abandoned } else { outcome_of(kind) });
                return Err(unanswered);
            }
        };
        let took = began.elapsed();
        exchange.upstream_answered(took);
        let status = match server.links {
            Some(_) => status_of_call(&response),
            None => Some(response.status().as_u16()),
        };
        match status {
            Some(status) => {
                let outcome = Outcome::Answered { status, took };
                self.observe(server, outcome);
                passages.tell(outcome);
            }
            None => {
                server.metrics.took(took);
                passages.headed(took);
                lease.uncounted = Some(Box::new(Uncounted { took, passages }));
            }
        }
        let (idle, until) = ((!plan.options.stream).then_some(self.spec.timeouts().idle), plan.until);
        Ok(response.map(|incoming| {
            let (upstream, exchange) = (self.clone(), exchange.clone());
            let mut body = UpstreamBody::new(incoming, lease, upstream, exchange, progress, close_delimited);
            if idle.is_some() || until.is_some() {
                body.set_limits(idle, until);
            }
            body
        }))
    }

    /// Head out, head in; the lease holds the connection they went over.
    async fn exchange_heads(
        &self,
        server: &Arc<Server>,
        request: Request<BoxBody<Bytes, io::Error>>,
        plan: &Try<'_>,
        began: Instant,
    ) -> Result<(Response<()>, Lease), Unanswered> {
        let (patience, exchange) = (plan.patience, plan.exchange);
        let Some(mut lease) = server.lease(patience).await else {
            let why = "every connection is in use";
            let error = self.failed(exchange, server, Kind::UpstreamSaturated, &why);
            return Err(Unanswered { error, request: Some(Box::new(request)) });
        };
        let mut conn = match server.take(began) {
            Some(conn) => {
                Meter::add(&self.meter.reused);
                conn
            }
            None => match self.open(exchange, server, patience, Purpose::Requests).await {
                Ok(conn) => conn,
                Err(error) => return Err(Unanswered { error, request: Some(Box::new(request)) }),
            },
        };
        let progress = (!request.body().is_end_stream()).then(Progress::new);
        // One with a body may have been carried out before its connection died, and does not come back.
        let repeatable = is_idempotent(request.method());
        let mut request = request.map(|body| RequestBody::new(body, progress.clone()));
        loop {
            // Only a connection that was used before can have been closed behind our back; it is never used after
            // this loop has opened a new one, so nothing goes out a third time.
            let used = conn.used;
            let conn_of = lease.conn.insert(conn);
            let fail = match head(conn_of, request, progress.as_deref(), &plan.deadlines).await {
                Ok(response) => return Ok((response, lease)),
                Err(fail) => fail,
            };
            lease.conn = None;
            request = match fail {
                Fail::Broke(Failed { request: Returned::Unsent(unsent), .. }) if used => *unsent,
                Fail::Broke(Failed { request: Returned::Sent(sent), why })
                    if used && repeatable && !why.is_parse() =>
                {
                    *sent
                }
                fail => return Err(self.explain(exchange, server, fail, progress.as_deref()).into()),
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
        // Boxed: the state of a handshake is large, and most requests go over a connection that stands.
        match Box::pin(connect(&server.spec, self.spec.tls(), patience, purpose)).await {
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
            Fail::Starved => BodyTimeout.into(),
            Fail::Late => self.failed(exchange, server, Kind::UpstreamTimeout, &"no answer in time"),
            Fail::Broke(Failed { why: error, .. }) => {
                if let Some(failure) = progress.and_then(Progress::failure) {
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
) -> Result<Response<()>, Fail> {
    let sent = Instant::now();
    let mut due = deadlines.due(sent, sent, progress).map_err(Fail::from)?;
    conn.start(request);
    poll_fn(|cx| {
        if let Poll::Ready(answer) = conn.poll_head(cx) {
            return Poll::Ready(answer.map_err(Fail::Broke));
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

/// How a try without a response ended.
pub(super) fn outcome_of(kind: Kind) -> Outcome {
    match kind {
        kind @ (Kind::UpstreamUnreachable
        | Kind::UpstreamReset
        | Kind::UpstreamBadResponse
        | Kind::UpstreamTimeout) => Outcome::Failed(kind),
        // Our own limits, and what callers do.
        _ => Outcome::Abandoned,
    }
}

/// The answer with its body, which the lease's connection brings; and whether only the connection's end tells the body's.
pub(super) fn begun(response: Response<()>, lease: &mut Lease) -> (Response<Source>, bool) {
    lease.conn = lease.conn.take().map(Conn::answered);
    let conn = lease.conn.as_ref();
    let remaining = conn.map(Remaining::of).unwrap_or_default();
    let close_delimited = conn.is_some_and(Conn::ends_with_connection);
    (response.map(|()| Source::Http1(remaining)), close_delimited)
}

/// The error that ended the caller's body, or that it broke off.
pub(super) fn callers_fault(failure: &io::Error) -> GatewayError {
    GatewayError::from_body_error(failure)
        .unwrap_or_else(|| GatewayError::new(Kind::BadRequest, "the request's body broke off"))
}
