//! `fallback:`, an answer where the upstream has none.
//!
//! An upstream that cannot be reached, breaks off, is late, busy or cut off by its breaker, or answers with one of
//! `on`, gave no answer. Then another upstream is asked, else the last good answer is given again, else a fixed one;
//! whichever it is says so in `X-Degraded`, the access log and a metric. Where none of them can, the error stays as it
//! was. Faults of callers are never replaced.
//!
//! An event stream is held back until its first event has come: until then another upstream can still answer. From
//! then on it ends as any other does, with an error event.
//!
//! Another upstream gets the request whole or not at all: its body as far as it is kept (`kept`). What the first may
//! have carried out is sent again by the rule of `resend`. Its own fallback holds there too; the checks see to it that
//! nobody is asked twice.

mod kept;
mod plan;
mod stale;

pub use plan::{check_upstreams, reached};

use super::{Target, TargetCx};
use crate::diag::Diagnostics;
use crate::endpoint::{Next, sealed};
use crate::error::{Kind, MadeHere};
use crate::exchange::{Degraded, Exchange, RouteInfo};
use crate::manifest::model::{Resend, Route};
use crate::manifest::{Manifest, Spanned};
use crate::openapi::OperationDoc;
use crate::telemetry::DegradedMetrics;
use http::header::CACHE_CONTROL;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use kept::Kept;
use plan::Plan;
use poem::{Endpoint, Request, Response};
use stale::Keeper;
use std::hash::Hasher;
use std::sync::Arc;
use std::time::Duration;

static X_DEGRADED: HeaderName = HeaderName::from_static("x-degraded");
static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Makes the bare target of an upstream; the flag says whether streams are held back until their first event.
pub(super) type Bare<'a> = dyn Fn(&Spanned<String>, bool, &mut Diagnostics) -> Option<Arc<dyn Target>> + 'a;

/// A target with what answers instead of it.
pub(super) struct Guarded {
    inner: Arc<dyn Target>,
    upstream: Arc<str>,
    plan: Arc<Plan>,
    other: Option<Arc<dyn Target>>,
}

/// The target of a route over one upstream, with its fallback if it has one.
pub(super) fn check(
    route: &Spanned<Route>,
    upstream: &Spanned<String>,
    manifest: &Manifest,
    leg: &Bare<'_>,
    out: &mut Diagnostics,
) -> Option<Arc<dyn Target>> {
    plan::check_route(route, &[&upstream.value], manifest, out);
    guarded(route, upstream, manifest, leg, &mut Vec::new(), out)
}

fn guarded(
    route: &Spanned<Route>,
    upstream: &Spanned<String>,
    manifest: &Manifest,
    leg: &Bare<'_>,
    asked: &mut Vec<String>,
    out: &mut Diagnostics,
) -> Option<Arc<dyn Target>> {
    let plan = Plan::of(route, &upstream.value, manifest, asked.is_empty(), out);
    asked.push(upstream.value.clone());
    let Some(plan) = plan else { return leg(upstream, false, out) };
    let inner = leg(upstream, true, out);
    let other = match plan.upstream.as_ref().filter(|name| !asked.contains(name)) {
        None => None,
        Some(name) => {
            manifest.upstreams.get(name)?;
            // Where it was written does not matter any more: what is wrong with the name was said already.
            let name = Spanned { value: name.clone(), span: upstream.span };
            Some(guarded(route, &name, manifest, leg, asked, out)?)
        }
    };
    Some(Arc::new(Guarded {
        inner: inner?,
        upstream: upstream.value.as_str().into(),
        plan: Arc::new(plan),
        other,
    }))
}

/// What answers instead of a native operation whose upstream cannot.
pub struct Substitute {
    plan: Arc<Plan>,
    upstream: Arc<str>,
}

/// What a route with a handler says of that; reports every fault.
pub fn of_handler(route: &Spanned<Route>, manifest: &Manifest, out: &mut Diagnostics) -> Option<Substitute> {
    let upstream = route.upstream.as_ref()?;
    plan::check_route(route, &[&upstream.value], manifest, out);
    let plan = Plan::of(route, &upstream.value, manifest, true, out)?;
    Some(Substitute { plan: Arc::new(plan), upstream: upstream.value.as_str().into() })
}

impl Substitute {
    /// Name of the upstream that the operation asks instead.
    pub fn upstream(&self) -> Option<&str> {
        self.plan.upstream.as_deref()
    }

    /// The operation, with a fixed answer where its upstream has none. What it asked of another upstream is marked.
    pub fn before(&self, operation: Next, cx: &TargetCx<'_>) -> Next {
        sealed(Running {
            next: operation,
            other: None,
            keeper: None,
            plan: self.plan.clone(),
            metrics: cx.shared.telemetry.degraded(cx.route, &self.upstream),
        })
    }

    /// Says what callers get of it.
    pub fn document(&self, op: &mut OperationDoc) {
        self.plan.document(op);
    }

    /// Feeds what it says to the route's identity.
    pub fn identify(&self, state: &mut dyn Hasher) {
        self.plan.identify(state);
    }

    /// For people.
    pub fn describe(&self) -> String {
        format!("if it cannot answer: {}", self.plan.describe(None))
    }
}

impl Target for Guarded {
    fn build(&self, cx: &TargetCx<'_>) -> Next {
        sealed(Running {
            next: self.inner.build(cx),
            other: self.other.as_ref().map(|other| other.build(cx)),
            keeper: self.plan.stale.map(|age| Arc::new(Keeper::new(cx, age, self.plan.max_size))),
            plan: self.plan.clone(),
            metrics: cx.shared.telemetry.degraded(cx.route, &self.upstream),
        })
    }

    fn document(&self, op: &mut OperationDoc) {
        self.inner.document(op);
        self.other.iter().for_each(|other| other.document(op));
        self.plan.document(op);
    }

    fn streams(&self) -> bool {
        self.inner.streams()
    }

    fn misfit(&self, route: &RouteInfo) -> Option<super::Misfit> {
        self.inner.misfit(route)
    }

    fn longest_stream(&self) -> Option<Duration> {
        self.inner.longest_stream()
    }

    fn is_socket(&self) -> bool {
        self.inner.is_socket()
    }

    fn counts_callers(&self) -> bool {
        self.inner.counts_callers()
    }

    fn identify(&self, state: &mut dyn Hasher) {
        self.inner.identify(state);
        self.plan.identify(state);
        self.other.iter().for_each(|other| other.identify(state));
    }

    fn upstream(&self) -> Option<&str> {
        Some(&self.upstream)
    }

    fn describe(&self, path: &str, values: &[&str]) -> String {
        let other = self.other.as_ref().map(|other| other.describe(path, values));
        let steps = self.plan.describe(other.as_deref());
        format!("{}; if it cannot answer: {steps}", self.inner.describe(path, values))
    }
}

/// Why an upstream's answer is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// The gateway's word for it.
    Ours(Kind),
    /// A status of its own.
    Theirs(StatusCode),
}

impl Failure {
    /// Whether the request was certainly not carried out.
    fn is_harmless(self) -> bool {
        match self {
            Failure::Ours(kind) => {
                kind == Kind::UpstreamUnreachable || kind.status() == StatusCode::SERVICE_UNAVAILABLE
            }
            Failure::Theirs(status) => {
                matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS)
            }
        }
    }
}

impl Plan {
    /// Why this is no answer, if it is none.
    fn failure(&self, exchange: &Exchange, response: &Response) -> Option<Failure> {
        if exchange.degraded().is_some() {
            // What another fallback gives is an answer, whatever its status.
            return None;
        }
        let status = response.status();
        match response.data::<MadeHere>() {
            Some(MadeHere(Kind::ShuttingDown | Kind::StoreUnavailable)) => None,
            Some(MadeHere(kind)) => matches!(status.as_u16(), 502..=504).then_some(Failure::Ours(*kind)),
            None => self.on.contains(&status.as_u16()).then_some(Failure::Theirs(status)),
        }
    }

    fn may_resend(&self, failure: Failure, kept: &Kept) -> bool {
        let idempotent = matches!(
            *kept.method(),
            Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
        );
        self.resend == Resend::Always
            || idempotent
            || failure.is_harmless()
            || kept.headers().contains_key(&IDEMPOTENCY_KEY)
    }
}

/// A target with a fallback, running.
struct Running {
    next: Next,
    other: Option<Next>,
    keeper: Option<Arc<Keeper>>,
    plan: Arc<Plan>,
    metrics: DegradedMetrics,
}

impl Endpoint for Running {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let exchange = Exchange::of(&request).clone();
        let kept = self.other.as_ref().map(|_| Kept::of(&mut request, self.plan.max_body));
        let keeper = self.keeper.as_ref();
        let kept_answers = keeper.and_then(|keeper| Some((keeper, keeper.asked(&exchange, &request)?)));
        let mut response = self.next.call(request).await?;
        let Some(mut failure) = self.plan.failure(&exchange, &response) else {
            return Ok(match (exchange.degraded(), kept_answers) {
                (Some(kind), _) if !response.headers().contains_key(&X_DEGRADED) => {
                    self.marked(&exchange, kind, response)
                }
                (None, Some((keeper, asked))) => keeper.keep(asked, &exchange, response),
                _ => response,
            });
        };
        if let (Some(other), Some(kept)) = (&self.other, kept)
            && self.plan.may_resend(failure, &kept)
            && let Some(again) = kept.again()
        {
            // Ends what is left of the first answer, and of its connection.
            drop(response);
            response = other.call(again).await?;
            match self.plan.failure(&exchange, &response) {
                None if exchange.degraded().is_some() => return Ok(response),
                None => return Ok(self.marked(&exchange, Degraded::Upstream, response)),
                Some(second) => failure = second,
            }
        }
        if let Some(copy) = kept_answers.and_then(|(keeper, asked)| keeper.last(&asked)) {
            return Ok(self.marked(&exchange, Degraded::Stale, copy));
        }
        match &self.plan.respond {
            Some(answer) => {
                tracing::debug!(request_id = exchange.request_id(), ?failure, "a fixed answer stands in");
                Ok(self.marked(&exchange, Degraded::Respond, answer.response()))
            }
            None => Ok(response),
        }
    }
}

impl Running {
    /// The answer, saying what it is; no cache on its way shall keep it beyond the upstream's recovery.
    fn marked(&self, exchange: &Exchange, kind: Degraded, mut response: Response) -> Response {
        exchange.set_degraded(kind);
        self.metrics.answered(kind);
        response.headers_mut().insert(&X_DEGRADED, HeaderValue::from_static(kind.word()));
        let streams = crate::sse::is_event_stream(response.status(), response.headers());
        let headers = response.headers_mut();
        let declared = kind == Degraded::Respond && headers.contains_key(CACHE_CONTROL);
        if !streams && !declared {
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        response
    }
}
