//! `timeout`: the whole exchange must be over in time.
//!
//! Counted from when the request's head had come. No response by then is a 504 `deadline_exceeded`, and whatever was
//! under way further in is dropped. A response that has begun is aborted: callers see a broken body, never a
//! shorter one. Event streams are bounded to their head only: how long they last is the route's `stream.max`. The
//! checks refuse this stage on a route that streams anyway, because there a first-event limit says it better.
//!
//! Off by leaving it out; upstreams have their own `timeouts`.

use super::{Body as Form, BuildCx, Facts, Layer, Next, Stage, StageCx, StageDecl, is_event_stream, sealed};
use crate::error::Kind;
use crate::exchange::{End, Exchange};
use crate::openapi::OperationDoc;
use crate::units::Dur;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::BoxBody;
use poem::{Endpoint, Request, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::time::{Instant, Sleep, sleep_until};

/// Ends the exchange when it takes too long.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Timeout {
    /// Time for the whole exchange, from the request's head to the last byte of the answer.
    pub after: Dur,
}

impl StageDecl for Timeout {
    const NAME: &'static str = "timeout";
    const ABOUT: &'static str = "Answers 504 when the exchange takes too long";
    const BODY: Form = Form::Bare("after");

    fn check(self, _: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        Some(Arc::new(self))
    }
}

impl Stage for Timeout {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn layer(&self, _: &BuildCx<'_>) -> Layer {
        let after = self.after;
        Layer::Around(Box::new(move |next| sealed(Bounded { after, next })))
    }

    fn is_common(&self) -> bool {
        true
    }

    fn facts(&self) -> Facts {
        Facts { deadline: Some(self.after.0), ..Facts::default() }
    }

    fn document(&self, op: &mut OperationDoc) {
        op.refuses(&[Kind::DeadlineExceeded], &format!("after {}", self.after));
        op.extension("x-timeout", self.after.to_string().into());
    }

    fn explain(&self, _: &super::Probe<'_>) -> super::Verdict {
        super::Verdict::Passes(format!("within {}", self.after))
    }
}

struct Bounded {
    after: Dur,
    next: Next,
}

impl Endpoint for Bounded {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let exchange = Exchange::of(&request).clone();
        exchange.ends_by(exchange.started + self.after.0);
        let mut alarm = Box::pin(sleep_until(Instant::from_std(exchange.started) + self.after.0));
        let mut response = tokio::select! {
            biased;
            response = self.next.call(request) => response?,
            () = &mut alarm => return Ok(exchange.refuse(&Kind::DeadlineExceeded.into())),
        };
        // A call's own end says why, in its trailers.
        if !is_event_stream(response.headers()) && !exchange.is_call() {
            let body: BoxBody<Bytes, io::Error> = response.take_body().into();
            if body.is_end_stream() {
                response.set_body(body);
            } else {
                response.set_body(BoxBody::new(BoundedBody { body, alarm, exchange }));
            }
        }
        Ok(response)
    }
}

struct BoundedBody {
    body: BoxBody<Bytes, io::Error>,
    alarm: Pin<Box<Sleep>>,
    exchange: Arc<Exchange>,
}

impl Body for BoundedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let late = match Pin::new(&mut self.body).poll_frame(cx) {
            // A body that always has something ready must end in time too.
            Poll::Ready(Some(Ok(_))) if Instant::now() >= self.alarm.deadline() => true,
            Poll::Ready(frame) => return Poll::Ready(frame),
            Poll::Pending => self.alarm.as_mut().poll(cx).is_ready(),
        };
        if !late {
            return Poll::Pending;
        }
        self.body = BoxBody::default();
        self.exchange.ended(End::StreamLimit);
        Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::TimedOut, "the route's `timeout` passed"))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{answering, around, check, code, exchange_of, fed, request, send, target};
    use super::*;
    use http::Method;
    use http_body_util::BodyExt;
    use std::sync::Mutex;
    use std::time::Duration;

    /// Long enough for a busy machine to answer within, short enough to wait for.
    const SHORT: &str = "timeout: 300ms";

    fn streaming(kind: &'static str, body: poem::Body) -> Next {
        let body = Mutex::new(Some(body));
        around(
            SHORT,
            answering(move || {
                Response::builder().content_type(kind).body(body.lock().unwrap().take().unwrap())
            }),
        )
    }

    #[tokio::test]
    async fn a_late_head_is_a_504_and_the_rest_is_dropped() {
        let (alive, _) = tokio::sync::broadcast::channel::<()>(1);
        let held = alive.clone();
        let next = around(
            SHORT,
            target(move |_| {
                let held = held.subscribe();
                async move {
                    std::future::pending::<()>().await;
                    drop(held);
                    Ok(Response::default())
                }
            }),
        );
        let response = send(&next, request(Method::GET, &[])).await;
        assert_eq!(response.status(), 504);
        assert_eq!(code(response).await, "deadline_exceeded");
        assert_eq!(alive.receiver_count(), 0);
    }

    #[tokio::test]
    async fn what_is_in_time_passes() {
        let next = around("timeout: 1h", answering(|| Response::builder().body("done")));
        let response = send(&next, request(Method::GET, &[])).await;
        assert_eq!(response.into_body().into_string().await.unwrap(), "done");
    }

    #[tokio::test]
    async fn a_body_that_takes_too_long_is_aborted() {
        let (feed, body) = fed();
        let next = streaming("application/json", body);
        let request = request(Method::GET, &[]);
        let exchange = exchange_of(&request);
        let mut body: BoxBody<Bytes, io::Error> = send(&next, request).await.into_body().into();
        feed.send(Ok("[".into())).unwrap();
        assert!(body.frame().await.unwrap().is_ok());
        assert!(body.frame().await.unwrap().is_err(), "an abort, not a clean end");
        assert_eq!(exchange.end(), End::StreamLimit);
        assert!(feed.is_closed(), "what made the body is told");
    }

    #[tokio::test]
    async fn a_body_that_never_pauses_is_aborted_too() {
        let endless = futures_util::stream::repeat_with(|| Ok::<_, io::Error>(Bytes::from_static(b"x")));
        let next = streaming("text/plain", poem::Body::from_bytes_stream(endless));
        let response = send(&next, request(Method::GET, &[])).await;
        let mut body: BoxBody<Bytes, io::Error> = response.into_body().into();
        assert!(body.frame().await.unwrap().is_ok());
        while body.frame().await.unwrap().is_ok() {}
    }

    #[tokio::test]
    async fn an_event_stream_passes_at_once_and_outlives_it() {
        let (feed, body) = fed();
        let next = streaming("text/event-stream", body);
        let response = send(&next, request(Method::GET, &[])).await;
        let mut body: BoxBody<Bytes, io::Error> = response.into_body().into();
        for event in ["data: 1\n\n", "data: 2\n\n"] {
            feed.send(Ok(event.into())).unwrap();
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), event);
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
    }

    #[test]
    fn it_is_a_bare_duration_and_says_so_to_the_checks() {
        let stage = check("timeout: 30s", "").sound();
        assert_eq!(stage.facts().deadline, Some(Duration::from_secs(30)));
        assert_eq!(
            check("timeout", "").faults,
            ["s:1:1 VG012 stage `timeout` needs a body [write `timeout: …` with a value for `after`]"]
        );
    }
}
