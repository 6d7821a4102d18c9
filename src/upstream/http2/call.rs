//! One request over a link, up to its response's head.
//!
//! A request is sent again, once, only where it provably had no effect: the link took no new stream, or the server
//! refused this one unread (REFUSED_STREAM, or a GOAWAY that leaves it out; RFC 9113, sections 6.8 and 8.7). One whose
//! body was begun is gone then, and not sent again.

use super::Links;
use super::pump::{Pump, Stop};
use super::{Seat, StreamBody};
use crate::error::grpc::code_of_reset;
use crate::error::{BodyTimeout, GatewayError, Kind};
use crate::exchange::Exchange;
use crate::upstream::Upstream;
use crate::upstream::body::{Causes, Progress, RequestBody, Source};
use crate::upstream::meter::Meter;
use crate::upstream::pool::{Lease, Server};
use crate::upstream::retry::Try;
use crate::upstream::send::{Deadlines, Overdue, Unanswered, callers_fault};
use ::h2::Reason;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::Scheme;
use http::{HeaderValue, Request, Response, Uri, Version};
use http_body::Body as _;
use http_body_util::combinators::BoxBody;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use tokio::time::Instant;

/// How many links a request may find ended before it is sent.
const UNSENT: usize = 3;

/// Why there is no response.
enum Fail {
    /// The stream or its connection broke.
    Broke(::h2::Error),
    /// The upstream's deadline passed.
    Late,
    /// The caller's body did not come.
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
    /// Head out, head in; the lease holds the seat. The body goes on by itself; its progress tells how far it is.
    pub(in crate::upstream) async fn call(
        &self,
        exchange: &Exchange,
        server: &Arc<Server>,
        links: &Links,
        request: Request<BoxBody<Bytes, io::Error>>,
        plan: &Try<'_>,
    ) -> Result<(Response<Source>, Lease, Option<Arc<Progress>>), Unanswered> {
        let (patience, deadlines) = (plan.patience, &plan.deadlines);
        let Some(mut lease) = server.lease(patience).await else {
            let why = "every slot for a call is in use";
            let error = self.failed(exchange, server, Kind::UpstreamSaturated, &why);
            return Err(Unanswered { error, request: Some(Box::new(request)) });
        };
        let mut first = match self.sit(exchange, server, links, patience).await {
            Ok(seat) => Some(seat),
            Err(error) => return Err(Unanswered { error, request: Some(Box::new(request)) }),
        };
        let (parts, body) = request.into_parts();
        let progress = (!body.is_end_stream()).then(Progress::new);
        let mut body = Some(RequestBody::new(body, progress.clone()));
        let head = head_of(parts, server);
        let (mut again, mut unsent) = (true, 0);
        loop {
            let mut seat = match first.take() {
                Some(seat) => seat,
                None => self.sit(exchange, server, links, patience).await?,
            };
            let ends = progress.is_none();
            let (mut answer, stream) = match seat.begin(head.clone(), ends) {
                Ok(begun) => begun,
                // Nothing was sent: the link has ended since it was last looked at, and the next may have too.
                Err(_) if unsent < UNSENT => {
                    unsent += 1;
                    Meter::add(&self.meter.resent);
                    continue;
                }
                Err(error) => {
                    return Err(self.failed(exchange, server, Kind::UpstreamReset, &Causes(&error)).into());
                }
            };
            let seat = lease.seat.insert(seat);
            let sent = Instant::now();
            let begun = match body.take_if(|_| !ends) {
                Some(body) => seat.pump(stream, body).await,
                None => false,
            };
            let fail = match wait(seat, &mut answer, sent, progress.as_deref(), deadlines).await {
                Ok(response) => {
                    let length = response.headers().get(CONTENT_LENGTH);
                    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
                    let response = response.map(|stream| Source::Http2(StreamBody::new(stream, length)));
                    return Ok((response, lease, progress));
                }
                Err(fail) => fail,
            };
            if let (Some(seat), Fail::Broke(error)) = (lease.seat.take(), &fail)
                && error.is_go_away()
            {
                seat.close();
            }
            match fail {
                Fail::Broke(error) if !begun && again && was_refused(&error) => {
                    again = false;
                    Meter::add(&self.meter.resent);
                }
                fail => return Err(self.explain_call(exchange, server, fail, progress.as_deref()).into()),
            }
        }
    }

    async fn sit(
        &self,
        exchange: &Exchange,
        server: &Server,
        links: &Links,
        patience: std::time::Duration,
    ) -> Result<Seat, GatewayError> {
        match links.take(&server.spec, self.spec.tls(), patience).await {
            Ok((seat, opened)) => {
                Meter::add(if opened { &self.meter.connects } else { &self.meter.reused });
                Ok(seat)
            }
            Err(error) => Err(self.failed(exchange, server, Kind::UpstreamUnreachable, &Causes(&error))),
        }
    }

    /// The error for a call that got no response.
    fn explain_call(
        &self,
        exchange: &Exchange,
        server: &Server,
        fail: Fail,
        progress: Option<&Progress>,
    ) -> GatewayError {
        match fail {
            Fail::Starved => BodyTimeout.into(),
            Fail::Late => self.failed(exchange, server, Kind::UpstreamTimeout, &"no answer in time"),
            Fail::Broke(error) => {
                if let Some(failure) = progress.and_then(Progress::failure) {
                    return callers_fault(failure);
                }
                let kind = match error.is_library() {
                    true => Kind::UpstreamBadResponse,
                    false => Kind::UpstreamReset,
                };
                let reason = error.reason().filter(|_| error.is_reset() && error.is_remote());
                let failed = self.failed(exchange, server, kind, &Causes(&error));
                GatewayError { grpc: reason.map(code_of_reset), ..failed }
            }
        }
    }
}

impl Seat {
    /// Sends a body: what is there of it at once, the rest by a task of its own. Whether it was begun.
    async fn pump(&mut self, stream: ::h2::SendStream<Bytes>, body: RequestBody) -> bool {
        let stop = Arc::<Stop>::default();
        let mut pump = Pump::new(stream, body, stop.clone());
        let done = poll_fn(|cx| Poll::Ready(Pin::new(&mut pump).poll(cx).is_ready())).await;
        if !done {
            self.stop = Some(stop);
            tokio::spawn(pump);
        }
        true
    }
}

/// Waits for the head.
async fn wait(
    seat: &mut Seat,
    answer: &mut ::h2::client::ResponseFuture,
    sent: Instant,
    progress: Option<&Progress>,
    deadlines: &Deadlines,
) -> Result<Response<::h2::RecvStream>, Fail> {
    let due = |now| deadlines.due(now, sent, progress).map_err(Fail::from);
    let mut next = due(sent)?;
    poll_fn(|cx| {
        if let Poll::Ready(answer) = Pin::new(&mut *answer).poll(cx) {
            return Poll::Ready(answer.map_err(Fail::Broke));
        }
        loop {
            ready!(seat.alarm.poll(next, cx));
            match due(Instant::now()) {
                Ok(later) => next = later,
                Err(fail) => return Poll::Ready(Err(fail)),
            }
        }
    })
    .await
}

/// Whether the server says that it did nothing with the request.
fn was_refused(error: &::h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM))
}

/// The head as HTTP/2 has it: whole URI, nothing of another connection (RFC 9113, section 8.2.2).
fn head_of(parts: http::request::Parts, server: &Server) -> Request<()> {
    let mut uri = parts.uri.into_parts();
    uri.scheme = Some(if server.spec.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP });
    uri.authority = http::uri::Authority::try_from(server.spec.authority.as_bytes()).ok();
    let mut head = Request::new(());
    *head.method_mut() = parts.method;
    *head.version_mut() = Version::HTTP_2;
    *head.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
    let mut headers = parts.headers;
    strip(&mut headers);
    *head.headers_mut() = headers;
    head
}

fn strip(headers: &mut HeaderMap) {
    static GONE: [HeaderName; 6] = [
        HOST,
        CONNECTION,
        TRANSFER_ENCODING,
        UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ];
    for name in &GONE {
        headers.remove(name);
    }
    if headers.contains_key(TE) {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}
