//! `request_id`: one id for a request, in the answer, in logs and at the upstream.
//!
//! An incoming `X-Request-ID` is taken over if it is 1 to 128 visible ASCII characters without quotes and backslash,
//! so that no log line or header can be broken by it; otherwise the gateway's own (UUID v4) stands in its place. The
//! answer carries it as `X-Request-ID`, whatever the upstream sent; proxies send the same id upstream.
//!
//! With `trust_incoming: false` callers' ids are ignored. Without the stage requests have an id all the same, in logs
//! and error bodies, but callers can neither give nor read it.

use super::{Body, BuildCx, Hook, Layer, Probe, Stage, StageCx, StageDecl, Stop, Verdict};
use crate::exchange::Exchange;
use http::{HeaderName, HeaderValue};
use poem::{Request, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;

/// Gives every request an id that callers and upstreams see as `X-Request-ID`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RequestId {
    /// Whether an acceptable `X-Request-ID` of the caller's is taken over (default `true`).
    #[serde(default = "yes")]
    pub trust_incoming: bool,
}

fn yes() -> bool {
    true
}

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_LENGTH: usize = 128;

impl StageDecl for RequestId {
    const NAME: &'static str = "request_id";
    const ABOUT: &'static str = "Takes over or makes the request's id and returns it as X-Request-ID";
    const BODY: Body = Body::Optional;

    fn check(self, _: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        Some(Arc::new(self))
    }
}

impl Stage for RequestId {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn layer(&self, _: &BuildCx<'_>) -> Layer {
        Layer::Hook(Box::new(*self))
    }

    fn is_common(&self) -> bool {
        true
    }

    fn explain(&self, probe: &Probe<'_>) -> Verdict {
        Verdict::Passes(match probe.headers.get(X_REQUEST_ID) {
            None => "makes an id".to_owned(),
            Some(_) if !self.trust_incoming => "makes an id, callers' ids are not trusted".to_owned(),
            Some(id) if acceptable(id).is_some() => "takes over X-Request-ID".to_owned(),
            Some(_) => "makes an id, X-Request-ID is not acceptable".to_owned(),
        })
    }
}

impl Hook for RequestId {
    fn request(&self, exchange: &Arc<Exchange>, request: &mut Request) -> Result<(), Stop> {
        if self.trust_incoming
            && let Some(id) = request.headers().get(X_REQUEST_ID).and_then(acceptable)
        {
            exchange.adopt_request_id(id.to_owned());
        }
        Ok(())
    }

    fn response(&self, exchange: &Arc<Exchange>, response: &mut Response) {
        if let Ok(id) = HeaderValue::from_str(exchange.request_id()) {
            response.headers_mut().insert(X_REQUEST_ID, id);
        }
    }
}

fn acceptable(id: &HeaderValue) -> Option<&str> {
    let plain = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b'\\');
    let fits = (1..=MAX_LENGTH).contains(&id.len()) && id.as_bytes().iter().all(plain);
    if fits { id.to_str().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{answering, around, exchange_of, request, send, target};
    use super::*;
    use crate::error::{GatewayError, Kind};
    use http::Method;

    async fn sent(stage: &str, id: Option<&str>) -> String {
        let next = around(stage, answering(|| Response::builder().header("x-request-id", "theirs").finish()));
        let headers: Vec<_> = id.map(|id| ("x-request-id", id)).into_iter().collect();
        let request = request(Method::GET, &headers);
        let exchange = exchange_of(&request);
        let response = send(&next, request).await;
        let ids: Vec<_> = response.headers().get_all("x-request-id").iter().collect();
        assert_eq!(ids.len(), 1, "the upstream's is replaced");
        assert_eq!(ids[0], exchange.request_id());
        exchange.request_id().to_owned()
    }

    #[tokio::test]
    async fn an_acceptable_id_is_taken_over() {
        assert_eq!(sent("request_id", Some("abc-1/2:3")).await, "abc-1/2:3");
        let longest = "x".repeat(128);
        assert_eq!(sent("request_id", Some(&longest)).await, longest);
    }

    #[tokio::test]
    async fn any_other_is_replaced() {
        let long = "x".repeat(129);
        for bad in [None, Some(""), Some("a b"), Some("a\"b"), Some("a\\b"), Some("ü"), Some(&*long)] {
            let id = sent("request_id", bad).await;
            assert!(uuid::Uuid::parse_str(&id).is_ok(), "{bad:?} gave {id}");
        }
        let id = sent("request_id: { trust_incoming: false }", Some("abc")).await;
        assert!(uuid::Uuid::parse_str(&id).is_ok());
    }

    #[tokio::test]
    async fn errors_carry_it_too() {
        let next = around(
            "request_id",
            target(|_| async { Err(GatewayError::from(Kind::UpstreamUnreachable).into()) }),
        );
        let response = send(&next, request(Method::GET, &[("x-request-id", "me")])).await;
        assert_eq!(response.status(), 502);
        assert_eq!(response.header("x-request-id"), Some("me"));
        assert!(response.into_body().into_string().await.unwrap().contains("\"request_id\":\"me\""));
    }
}
