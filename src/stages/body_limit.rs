//! `body_limit`: request bodies are bounded.
//!
//! A body announced as larger is refused with 413 before a byte of it is read. One without a length is counted as it
//! streams and cut at the limit: its reader gets an error made of [`BodyTooLarge`], which becomes 413 in the common
//! form wherever it surfaces as long as no response has begun. Lengths are taken from the decoded body, not from the
//! header alone, and nothing is buffered.
//!
//! Routes without it take what the door takes (setting `--max-body-size`, default 10MiB); see [`limit_body`].

use super::{Body as Form, BuildCx, Hook, Layer, Probe, Stage, StageCx, StageDecl, Stop, Verdict};
use crate::error::Kind;
use crate::error::{BodyTooLarge, GatewayError};
use crate::exchange::Exchange;
use crate::openapi::OperationDoc;
use crate::units::Size;
use bytes::Bytes;
use http::Version;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::BoxBody;
use poem::Request;
use schemars::JsonSchema;
use serde::Deserialize;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Bounds request bodies.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BodyLimit {
    /// Largest body that is taken, in bytes with a unit.
    pub max: Size,
}

/// The limit as a layer, for routes that declare none.
pub fn limit_body(max: Size) -> Layer {
    Layer::Hook(Box::new(BodyLimit { max }))
}

impl StageDecl for BodyLimit {
    const NAME: &'static str = "body_limit";
    const ABOUT: &'static str = "Refuses request bodies over a size with 413";
    const BODY: Form = Form::Bare("max");

    fn check(self, _: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        Some(Arc::new(self))
    }
}

impl Stage for BodyLimit {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn layer(&self, _: &BuildCx<'_>) -> Layer {
        limit_body(self.max)
    }

    fn is_common(&self) -> bool {
        true
    }

    fn document(&self, op: &mut OperationDoc) {
        if op.has_body() {
            op.refuses(&[Kind::PayloadTooLarge], &format!("more than {}", self.max));
            op.extension("x-max-body", self.max.to_string().into());
        }
    }

    fn explain(&self, probe: &Probe<'_>) -> Verdict {
        let length =
            probe.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        match length {
            Some(length) if length > self.max.0 => {
                Verdict::Refuses(413, format!("the body is larger than {}", self.max))
            }
            _ => Verdict::Passes(format!("up to {}", self.max)),
        }
    }
}

impl Hook for BodyLimit {
    fn request(&self, _: &Arc<Exchange>, request: &mut Request) -> Result<(), Stop> {
        let limit = self.max.0;
        let declared =
            request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let body: BoxBody<Bytes, io::Error> = request.take_body().into();
        let hint = body.size_hint();
        if declared.unwrap_or(0).max(hint.lower()) > limit {
            let mut refusal = GatewayError::from(&BodyTooLarge { limit });
            // The rest of the body is not read, so nothing can follow it. HTTP/2 has streams for that.
            refusal.close = request.version() <= Version::HTTP_11;
            return Err(refusal.into());
        }
        match hint.upper() {
            Some(most) if most <= limit => request.set_body(body),
            _ => request.set_body(BoxBody::new(Counted { body, limit, left: limit })),
        }
        Ok(())
    }
}

struct Counted {
    body: BoxBody<Bytes, io::Error>,
    limit: u64,
    left: u64,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let poll = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &poll
            && let Some(data) = frame.data_ref()
        {
            match self.left.checked_sub(data.len() as u64) {
                Some(left) => self.left = left,
                None => {
                    self.body = BoxBody::default();
                    return Poll::Ready(Some(Err(BodyTooLarge { limit: self.limit }.into())));
                }
            }
        }
        poll
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
    use super::super::testing::{around, code, exchange_of, fed, request, send, target};
    use super::super::{Next, sealed};
    use super::*;
    use http::Method;
    use http_body_util::BodyExt;
    use poem::Response;

    /// Reads the body whole and answers its length.
    fn reading() -> Next {
        around(
            "body_limit: 8B",
            target(|request| async move {
                let body = request.into_body().into_bytes().await?;
                Ok(Response::builder().body(body.len().to_string()))
            }),
        )
    }

    fn with_body(body: impl Into<poem::Body>) -> Request {
        let mut request = request(Method::POST, &[]);
        request.set_body(body.into());
        request
    }

    #[tokio::test]
    async fn a_declared_length_is_refused_before_reading() {
        let next = around("body_limit: 8B", target(|_| async { panic!("it is not called") }));
        let mut declared = request(Method::POST, &[("content-length", "9")]);
        let (feed, body) = fed();
        declared.set_body(body);
        let response = send(&next, declared).await;
        assert_eq!(response.status(), 413);
        assert_eq!(response.header("connection"), Some("close"));
        assert_eq!(code(response).await, "payload_too_large");
        assert!(feed.is_closed());
        assert_eq!(send(&next, with_body("123456789")).await.status(), 413, "by what it is, too");
    }

    #[tokio::test]
    async fn exactly_the_limit_passes() {
        let response = send(&reading(), with_body("12345678")).await;
        assert_eq!(response.into_body().into_string().await.unwrap(), "8");
        let (feed, body) = fed();
        for _ in 0..2 {
            feed.send(Ok("1234".into())).unwrap();
        }
        drop(feed);
        let response = send(&reading(), with_body(body)).await;
        assert_eq!(response.into_body().into_string().await.unwrap(), "8");
    }

    #[tokio::test]
    async fn a_body_without_length_is_cut_with_413() {
        let (feed, body) = fed();
        feed.send(Ok("12345678".into())).unwrap();
        feed.send(Ok("9".into())).unwrap();
        let response = send(&reading(), with_body(body)).await;
        assert_eq!(response.status(), 413);
        assert_eq!(code(response).await, "payload_too_large");
        assert!(feed.is_closed(), "no more is read");
    }

    #[tokio::test]
    async fn bodies_stream_in_and_event_streams_out() {
        // The target echoes what comes as events, piece by piece.
        let echo = sealed(poem::endpoint::make(|request: Request| async move {
            Ok::<_, poem::Error>(
                Response::builder().content_type("text/event-stream").body(request.into_body()),
            )
        }));
        let next = around("body_limit: 1KiB", echo);
        let (feed, body) = fed();
        let mut body: BoxBody<Bytes, io::Error> = send(&next, with_body(body)).await.into_body().into();
        for event in ["data: 1\n\n", "data: 2\n\n"] {
            feed.send(Ok(event.into())).unwrap();
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), event);
        }
    }

    #[tokio::test]
    async fn a_client_that_sends_the_body_on_hands_the_cause_back() {
        let (feed, body) = fed();
        let mut incoming = with_body(body);
        let hook = BodyLimit { max: Size(8) };
        assert!(hook.request(&exchange_of(&incoming), &mut incoming).is_ok());
        let body: BoxBody<Bytes, io::Error> = incoming.take_body().into();
        let (near, _far) = tokio::io::duplex(1 << 16);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(near)).await.unwrap();
        let request = http::Request::post("/").body(body).unwrap();
        feed.send(Ok("1234".into())).unwrap();
        feed.send(Ok("56789".into())).unwrap();
        let (answer, _) = tokio::join!(sender.send_request(request), connection);
        let refusal = GatewayError::from_body_error(&answer.unwrap_err()).expect("the cause is in the chain");
        assert_eq!(refusal.kind.status(), 413);
    }
}
