//! A call's answer on its way to the caller, to its status.
//!
//! It ends with trailers whatever happens: the upstream's, or the gateway's own where the upstream broke off, the
//! deadline passed, the caller's time is over or the gateway goes down. A message that was under way then is cut; its
//! length says so.

use super::super::notice::{Leave, Notice};
use super::web;
use crate::error::grpc::{Code, Flavour, code_of_reset, status_in};
use crate::error::{GatewayError, Kind};
use crate::exchange::{End, Exchange};
use crate::targets::forward;
use crate::tokens::TokenError;
use crate::upstream::UpstreamBody;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::time::{Sleep, sleep_until};

type Out = Poll<Option<io::Result<Frame<Bytes>>>>;

/// The body of an answer.
pub(super) struct Answer {
    /// Gone once the call has ended; dropping it earlier resets the stream.
    upstream: Option<UpstreamBody>,
    exchange: Arc<Exchange>,
    notice: Notice,
    deadline: Option<Instant>,
    /// Made when the deadline is first waited for.
    timer: Option<Pin<Box<Sleep>>>,
    web: Option<Flavour>,
}

impl Answer {
    /// `notice` tells when the call has to end, `web` in which form the caller reads it.
    pub(super) fn new(
        body: UpstreamBody,
        exchange: Arc<Exchange>,
        notice: Notice,
        deadline: Option<Instant>,
        web: Option<Flavour>,
    ) -> Self {
        Answer { upstream: Some(body), exchange, notice, deadline, timer: None, web }
    }

    /// Ends the call with these trailers.
    fn finish(&mut self, code: Code, trailers: HeaderMap) -> Out {
        self.upstream = None;
        self.exchange.set_grpc_status(code);
        Poll::Ready(Some(Ok(match self.web {
            None => Frame::trailers(trailers),
            Some(flavour) => Frame::data(web::last_piece(&trailers, flavour)),
        })))
    }

    /// Ends the call with an error of the gateway's.
    fn fail(&mut self, end: End, error: impl Into<GatewayError>) -> Out {
        self.exchange.ended(end);
        let error = error.into();
        let trailers = error.grpc_trailers(self.exchange.request_id(), self.exchange.lang);
        self.finish(error.grpc_code(), trailers)
    }

    fn leave(&mut self, why: Leave) -> Out {
        let kind = match why {
            Leave::Shutdown => Kind::ShuttingDown,
            Leave::Reauth(TokenError::Expired) => Kind::TokenExpired,
            Leave::Reauth(_) => Kind::TokenRevoked,
        };
        self.fail(why.end(), kind)
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Out {
        let this = &mut *self;
        let Some(upstream) = &mut this.upstream else { return Poll::Ready(None) };
        if let Some(why) = this.notice.heard() {
            return this.leave(why);
        }
        // Also for an upstream that never pauses.
        if this.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return this.fail(End::StreamLimit, Kind::DeadlineExceeded);
        }
        match Pin::new(&mut *upstream).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => Poll::Ready(Some(Ok(Frame::data(match this.web {
                    None => data,
                    Some(flavour) => web::piece(data, flavour),
                })))),
                Err(frame) => {
                    let mut trailers = frame.into_trailers().unwrap_or_default();
                    forward::clean_response(&mut trailers);
                    match status_in(&trailers) {
                        Some(code) => this.finish(code, trailers),
                        None => this.fail(End::UpstreamBroke, no_status()),
                    }
                }
            },
            Poll::Ready(None) => this.fail(End::UpstreamBroke, no_status()),
            Poll::Ready(Some(Err(error))) => match upstream.callers_fault() {
                Some(fault) => this.fail(End::ClientLeft, fault),
                None => this.fail(End::UpstreamBroke, broken(&error)),
            },
            Poll::Pending => {
                if let Some(why) = this.notice.listen(cx) {
                    return this.leave(why);
                }
                let Some(deadline) = this.deadline else { return Poll::Pending };
                let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline.into())));
                match timer.as_mut().poll(cx) {
                    Poll::Ready(()) => this.fail(End::StreamLimit, Kind::DeadlineExceeded),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.upstream.is_none()
    }
}

fn no_status() -> GatewayError {
    let detail = "it ended the call without a status";
    GatewayError { grpc: Some(Code::Internal), ..GatewayError::new(Kind::UpstreamBadResponse, detail) }
}

/// What a caller is told of a stream that failed.
fn broken(error: &io::Error) -> GatewayError {
    if error.kind() == io::ErrorKind::TimedOut {
        return Kind::UpstreamTimeout.into();
    }
    let reset = error.get_ref().and_then(|inner| inner.downcast_ref::<h2::Error>());
    let reason = reset.filter(|error| error.is_reset()).and_then(h2::Error::reason);
    GatewayError { grpc: reason.map(code_of_reset), ..Kind::UpstreamReset.into() }
}
