//! `concurrency`: how many calls a caller may have under way.
//!
//! A call holds a slot until its exchange ends: after the last byte of its answer, or when the caller leaves, so a
//! stream counts for as long as it lasts. Slots are leases in shared state, kept up while the exchange lives; those of
//! a replica that died run out after half a minute. All taken: 429 `too_many_concurrent`. Slots belong to the
//! route and to what the stage says. Where state cannot be reached at all, the call goes on. Off by leaving it out.

use super::caller::{Callers, Keys, Read, read_body};
use super::{Body, BuildCx, Facts, Layer, Next, Probe, Stage, StageCx, StageDecl, Verdict, sealed};
use crate::diag::{Code, Diagnostic};
use crate::error::{GatewayError, Kind};
use crate::exchange::{Exchange, Observer};
use crate::manifest::{List, Spanned};
use crate::openapi::OperationDoc;
use crate::shared::{AnyShared, Slot};
use poem::{Endpoint, Request, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// When to try again: nobody knows when a call ends.
const AGAIN: Duration = Duration::from_secs(1);

/// Bounds how many calls a caller may have under way.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Concurrency {
    /// Calls under way at a time; counted for each route on its own.
    pub limit: Spanned<u64>,
    /// What makes callers different, as in `rate_limit` (default: nothing, all count together).
    #[serde(default)]
    pub by: List<String>,
}

impl StageDecl for Concurrency {
    const NAME: &'static str = "concurrency";
    const ABOUT: &'static str = "Answers 429 when a caller has too many calls under way";
    const BODY: Body = Body::Bare("limit");

    fn check(self, cx: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        let slots = u32::try_from(self.limit.value).ok().filter(|slots| *slots > 0);
        if slots.is_none() {
            let message = format!("a limit of {} calls at a time is none", self.limit.value);
            cx.out.push(
                Diagnostic::error(Code::BAD_VALUE, self.limit.span, message)
                    .help("write at least 1; `maintenance:` switches a route off"),
            );
        }
        let callers = Callers::check(&self.by, cx.out)?;
        Some(Arc::new(Compiled { slots: slots?, callers }))
    }
}

struct Compiled {
    slots: u32,
    callers: Callers,
}

impl Stage for Compiled {
    fn name(&self) -> &'static str {
        Concurrency::NAME
    }

    fn layer(&self, cx: &BuildCx<'_>) -> Layer {
        let route = cx.route;
        let host = route.host.as_deref().unwrap_or_default();
        let definition = format!("{} {} {host}{}", self.slots, route.method, route.template);
        let bounded = Slots {
            slots: self.slots,
            keys: self.callers.keys("slots", &definition, route),
            reads_body: self.callers.need_body(),
            shared: cx.shared.shared.clone(),
        };
        Layer::Around(Box::new(move |next| sealed(Bounded { slots: bounded, next })))
    }

    fn facts(&self) -> Facts {
        Facts { needs_identity: self.callers.need_identity(), ..Facts::default() }
    }

    fn document(&self, op: &mut OperationDoc) {
        let text = format!("{} at a time by {}", self.slots, self.callers.words());
        op.refuses(&[Kind::TooManyConcurrent], &text);
        op.extension("x-concurrency", json!([{ "limit": self.slots, "by": self.callers.words() }]));
    }

    fn explain(&self, _: &Probe<'_>) -> Verdict {
        let by = self.callers.words();
        let by = if by.is_empty() { "for all together".to_owned() } else { format!("by {by}") };
        Verdict::Passes(format!("{} at a time {by}", self.slots))
    }
}

struct Bounded {
    slots: Slots,
    next: Next,
}

struct Slots {
    slots: u32,
    keys: Keys,
    reads_body: bool,
    shared: AnyShared,
}

/// Held by the exchange: when it goes, the slot does.
struct Held(#[expect(dead_code, reason = "its drop gives it back")] Slot);

impl Observer for Held {
    fn finished(&self, _: &Exchange) {}
}

impl Endpoint for Bounded {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let exchange = Exchange::of(&request).clone();
        match self.slots.take(&exchange, &mut request).await {
            Ok(()) => self.next.call(request).await,
            Err(refusal) => Ok(exchange.refuse(&refusal)),
        }
    }
}

impl Slots {
    async fn take(&self, exchange: &Exchange, request: &mut Request) -> Result<(), GatewayError> {
        let body = match self.reads_body {
            true => match read_body(request).await? {
                Read::Json(body) => Some(body),
                Read::Other | Read::TooLarge => None,
            },
            false => None,
        };
        let key = self.keys.of(exchange, request, body.as_ref());
        match Slot::take(&self.shared, key, self.slots).await {
            Ok(Some(slot)) => exchange.observe(Arc::new(Held(slot))),
            Ok(None) => {
                return Err(GatewayError { retry_after: Some(AGAIN), ..Kind::TooManyConcurrent.into() });
            }
            Err(error) => tracing::debug!(%error, "calls under way cannot be counted"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{around, check, code, fed, request, send, target};
    use super::*;
    use http::Method;
    use std::sync::Mutex;

    #[tokio::test]
    async fn a_slot_is_held_until_the_exchange_ends() {
        let (feed, body) = fed();
        let body = Mutex::new(Some(body));
        let next = around(
            "concurrency: 1",
            target(move |_| {
                let body = body.lock().unwrap().take();
                async move { Ok(body.map_or_else(Response::default, |body| Response::builder().body(body))) }
            }),
        );
        let first = request(Method::GET, &[]);
        let exchange = Exchange::of(&first).clone();
        let streaming = send(&next, first).await;
        let refused = send(&next, request(Method::GET, &[])).await;
        assert_eq!(refused.status(), 429);
        assert_eq!(refused.header("retry-after"), Some("1"));
        assert_eq!(code(refused).await, "too_many_concurrent");
        drop((streaming, feed));
        assert_eq!(send(&next, request(Method::GET, &[])).await.status(), 429, "the exchange is not over");
        drop(exchange);
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while send(&next, request(Method::GET, &[])).await.status() == 429 {
            assert!(std::time::Instant::now() < deadline, "the slot is not given back");
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn mistakes_show() {
        assert_eq!(
            check("concurrency: { limit: 0, by: [phone] }", "").faults.len(),
            2,
            "a limit of 0, and what does not tell callers apart"
        );
        let stage = check("concurrency: { limit: 3, by: [user] }", "").sound();
        assert_eq!(stage.facts().needs_identity, Some("user"));
    }
}
