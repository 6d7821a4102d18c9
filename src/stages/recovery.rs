//! `recovery`: a panic in what it encloses becomes a 500.
//!
//! The caller gets the common error form with the request id and nothing of the panic; the log gets its message and
//! place (and a backtrace where `RUST_BACKTRACE` asks for one). A panic while a streamed body is made ends that body
//! with an error, so that the caller sees an aborted stream and never a clean end, and the connection lives on.
//!
//! To turn it off, leave it out of the chain: a panic then ends the connection it happened on. It guards only what
//! stands further in, so it belongs near the outer end. Bodies of known length are not guarded: they were made
//! before the response began, or are passed on as they come.

use super::{Body as Form, BuildCx, Layer, Next, Stage, StageCx, StageDecl, sealed};
use crate::error::Kind;
use crate::exchange::Exchange;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::BoxBody;
use poem::{Endpoint, Request, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::io;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Once};
use std::task::{Context, Poll};

/// Turns a panic further in into a 500.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Recovery {}

struct Catches;

impl StageDecl for Recovery {
    const NAME: &'static str = "recovery";
    const ABOUT: &'static str = "Turns a panic further in into a 500 and logs where it happened";
    const BODY: Form = Form::Optional;

    fn check(self, _: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        Some(Arc::new(Catches))
    }
}

impl Stage for Catches {
    fn name(&self) -> &'static str {
        Recovery::NAME
    }

    fn layer(&self, _: &BuildCx<'_>) -> Layer {
        watch_panics();
        Layer::Around(Box::new(|next| sealed(Guarded(next))))
    }

    fn is_common(&self) -> bool {
        true
    }
}

struct Guarded(Next);

impl Endpoint for Guarded {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let exchange = Exchange::of(&request).clone();
        // Within the future, for a call does what it can before it returns one.
        let mut call = pin!(async { self.0.call(request).await });
        let outcome = std::future::poll_fn(|cx| match guarded(|| call.as_mut().poll(cx)) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        })
        .await;
        match outcome {
            Ok(Ok(mut response)) => {
                guard_body(&mut response, exchange);
                Ok(response)
            }
            Ok(Err(error)) => Err(error),
            Err(panic) => {
                panic.log(&exchange);
                Ok(exchange.refuse(&Kind::Internal.into()))
            }
        }
    }
}

/// Guards a body of unknown length.
fn guard_body(response: &mut Response, exchange: Arc<Exchange>) {
    let body: BoxBody<Bytes, io::Error> = response.take_body().into();
    if body.size_hint().exact().is_some() {
        response.set_body(body);
    } else {
        response.set_body(BoxBody::new(GuardedBody { body: Some(body), exchange }));
    }
}

struct GuardedBody {
    /// None once it panicked: it is never polled again.
    body: Option<BoxBody<Bytes, io::Error>>,
    exchange: Arc<Exchange>,
}

impl Body for GuardedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        match guarded(|| Pin::new(body).poll_frame(cx)) {
            Ok(poll) => poll,
            Err(panic) => {
                panic.log(&self.exchange);
                self.body = None;
                Poll::Ready(Some(Err(io::Error::other("the body could not be made"))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

/// What the panic hook saw.
#[derive(Debug, Default)]
struct Panic {
    message: String,
    place: String,
    backtrace: Option<Backtrace>,
}

impl Panic {
    fn log(&self, exchange: &Exchange) {
        let backtrace = self.backtrace.as_ref().map(tracing::field::display);
        tracing::error!(
            request_id = exchange.request_id(),
            route = exchange.route().map(|route| route.template.as_str()),
            place = self.place,
            backtrace,
            "a panic was caught: {}",
            self.message
        );
    }
}

thread_local! {
    /// Whether this thread is inside [`guarded`].
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    /// The panic that [`guarded`] is about to catch.
    static SEEN: RefCell<Option<Panic>> = const { RefCell::new(None) };
}

/// Runs `poll`; a panic in it is returned.
///
/// What `poll` borrows is not used again after a panic, so nothing half done can be seen.
fn guarded<T>(poll: impl FnOnce() -> T) -> Result<T, Panic> {
    let outer = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(poll));
    GUARDED.set(outer);
    result.map_err(|payload| {
        // Another hook may have taken the place of ours since.
        let seen = SEEN.take().unwrap_or_else(|| Panic { message: text(&*payload), ..Panic::default() });
        // A payload may panic when dropped.
        std::mem::forget(payload);
        seen
    })
}

/// Only a panic hook learns of the place. Panics outside [`guarded`] go to the hook that was there before.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            if !GUARDED.get() {
                return before(info);
            }
            let backtrace = Backtrace::capture();
            SEEN.set(Some(Panic {
                message: text(info.payload()),
                place: info.location().map(ToString::to_string).unwrap_or_default(),
                backtrace: (backtrace.status() == BacktraceStatus::Captured).then_some(backtrace),
            }));
        }));
    });
}

fn text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{answering, around, fed, request, send, target};
    use super::*;
    use http::Method;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn a_panic_is_a_500_that_tells_nothing() {
        let next = around("recovery", target(|_| async { panic!("password=hunter2") }));
        for _ in 0..2 {
            let request = request(Method::GET, &[]);
            let id = Exchange::of(&request).request_id().to_owned();
            let response = send(&next, request).await;
            assert_eq!(response.status(), 500);
            let body = response.into_body().into_string().await.unwrap();
            assert!(body.contains("internal_error") && body.contains(&id), "{body}");
            assert!(!body.contains("hunter2"), "{body}");
        }
    }

    #[tokio::test]
    async fn the_place_of_a_panic_is_known() {
        watch_panics();
        let panic = guarded::<()>(|| panic!("at {}", 7)).unwrap_err();
        assert_eq!(panic.message, "at 7");
        assert!(panic.place.contains("recovery.rs:"), "{}", panic.place);
        assert!(!GUARDED.get());
    }

    #[tokio::test]
    async fn a_panic_in_a_stream_aborts_it() {
        let next = around(
            "recovery",
            answering(|| {
                let mut left = 1;
                let stream = futures_util::stream::poll_fn(move |_| {
                    assert!(left > 0, "the second piece fails");
                    left -= 1;
                    Poll::Ready(Some(Ok::<_, io::Error>(Bytes::from_static(b"data: 1\n\n"))))
                });
                Response::builder().body(poem::Body::from_bytes_stream(stream))
            }),
        );
        let response = send(&next, request(Method::GET, &[])).await;
        let mut body: BoxBody<Bytes, io::Error> = response.into_body().into();
        assert!(body.frame().await.unwrap().is_ok());
        assert!(body.frame().await.unwrap().is_err(), "an abort, not a clean end");
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn an_event_stream_passes_at_once() {
        let (feed, body) = fed();
        let body = std::sync::Mutex::new(Some(body));
        let next = around(
            "recovery",
            answering(move || {
                Response::builder()
                    .content_type("text/event-stream")
                    .body(body.lock().unwrap().take().unwrap())
            }),
        );
        let response = send(&next, request(Method::GET, &[])).await;
        let mut body: BoxBody<Bytes, io::Error> = response.into_body().into();
        for event in ["data: 1\n\n", "data: 2\n\n"] {
            feed.send(Ok(event.into())).unwrap();
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), event);
        }
    }
}
