//! `rate_limit`: how often a caller may call, in a sliding window.
//!
//! The body names a policy under `rate_limits:` or is one itself. Counters of a policy belong to its name and to what
//! it says, so they go on across reloads that leave it alone and are the same on every route that uses it (unless
//! `by` holds `route`); those of a limit written on the spot belong to the route. Every request counts, whatever its
//! method; a rejected one does not. Where state is shared, counters are exact across replicas; while it is away
//! each replica counts alone, and a limit that guards credentials (on a handler `auth.*`, or by a field of the body)
//! with half its number (SECURITY rule 17).
//!
//! Every answer says where its caller stands: `X-RateLimit-Limit`, `-Remaining`, `-Reset` (seconds) for the
//! tightest limit of the chain, and `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10)
//! for each. Too many: 429 `rate_limited` with `Retry-After`.
//!
//! By `body.X`, up to 64 KiB of a JSON body are read before the request goes on. A larger one counts by address, and
//! is refused with 413 where a handler `auth.*` would take it: a long body must not be a way round its limit.
//! Off by leaving it out.

use super::caller::{BODY, Callers, Keys, Read, read_body};
use super::{Body, BuildCx, Facts, Layer, Next, Probe, Stage, StageCx, StageDecl, Verdict, sealed};
use crate::diag::{Code, Diagnostic, Diagnostics};
use crate::error::{BodyTooLarge, GatewayError, Kind};
use crate::exchange::Exchange;
use crate::manifest::model;
use crate::manifest::{List, Spanned};
use crate::openapi::{On, OperationDoc};
use crate::shared::{AnyShared, Decision, Limit};
use crate::telemetry::{LimitMetrics, Throttle};
use crate::units::Dur;
use http::{HeaderMap, HeaderName, HeaderValue};
use poem::{Endpoint, Request, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use std::fmt::Write as _;
use std::hash::Hash as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The longest window.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Bounds how often a caller may call, in a sliding window: a policy by name, or one on the spot.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RateLimitStage")]
pub struct RateLimit {
    /// Name of a policy under `rate_limits:`; without any of the other keys.
    pub policy: Option<Spanned<String>>,
    /// Requests allowed in a window; counted for each route on its own.
    pub limit: Option<Spanned<u64>>,
    /// Length of the window; a day at most.
    pub per: Option<Spanned<Dur>>,
    /// What makes callers different: `ip`, `user`, `tenant`, `route`, `header.X`, `query.X`, `body.X` (default `ip`).
    #[serde(default)]
    pub by: List<String>,
}

/// Checks a policy on its own, used or not.
pub fn check_policy(policy: &model::RateLimit, out: &mut Diagnostics) {
    let _ = compile(&policy.limit, &policy.per, &policy.by, out);
}

fn compile(
    limit: &Spanned<u64>,
    per: &Spanned<Dur>,
    by: &List<String>,
    out: &mut Diagnostics,
) -> Option<(Limit, Callers)> {
    if limit.value == 0 {
        out.push(
            Diagnostic::error(Code::BAD_VALUE, limit.span, "a limit of 0 lets nothing pass")
                .help("write at least 1; `maintenance:` switches a route off"),
        );
    }
    if per.value.0 > LONGEST {
        out.push(
            Diagnostic::error(Code::BAD_VALUE, per.span, "a window is a day at most")
                .help("write `1d` or less: counters are kept in memory"),
        );
    }
    let callers = Callers::check(by, out)?.or_address();
    (limit.value > 0 && per.value.0 <= LONGEST)
        .then_some((Limit { limit: limit.value, per: per.value.0 }, callers))
}

impl StageDecl for RateLimit {
    const NAME: &'static str = "rate_limit";
    const ABOUT: &'static str = "Answers 429 when a caller calls too often";
    const BODY: Body = Body::Bare("policy");

    fn check(self, cx: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        let inline = self.limit.is_some() || self.per.is_some() || !self.by.0.is_empty();
        let (name, (limit, callers)) =
            match (self.policy, &self.limit, &self.per) {
                (Some(name), ..) if inline => {
                    let message = "`policy` names a policy, the other keys are one";
                    cx.out.push(
                        Diagnostic::error(Code::BAD_VALUE, name.span, message)
                            .help("keep the name, or the keys, not both"),
                    );
                    return None;
                }
                (Some(name), ..) => {
                    let manifest = cx.manifest;
                    let policy = cx.lookup(&manifest.rate_limits, "rate limit", &name, name.span)?;
                    // Its own faults are told where it is defined.
                    let compiled = compile(&policy.limit, &policy.per, &policy.by, &mut Diagnostics::new())?;
                    (Some(name.value), compiled)
                }
                (None, Some(limit), Some(per)) => (None, compile(limit, per, &self.by, cx.out)?),
                (None, ..) => {
                    let message = "stage `rate_limit` needs `limit` and `per`";
                    cx.out.push(Diagnostic::error(Code::MISSING_KEY, cx.span, message).help(
                        "write `{ limit: 100, per: 1m }`, or the name of a policy under `rate_limits:`",
                    ));
                    return None;
                }
            };
        (limit, callers.words()).hash(&mut cx.references);
        Some(Arc::new(Compiled { name, limit, callers }))
    }
}

struct Compiled {
    /// The policy's, if it has one.
    name: Option<String>,
    limit: Limit,
    callers: Callers,
}

impl Compiled {
    fn text(&self) -> String {
        format!("{} per {} by {}", self.limit.limit, Dur(self.limit.per), self.callers.words())
    }
}

impl Stage for Compiled {
    fn name(&self) -> &'static str {
        RateLimit::NAME
    }

    fn layer(&self, cx: &BuildCx<'_>) -> Layer {
        let Limit { limit, per } = self.limit;
        let definition = format!("{limit}/{}", per.as_millis());
        let (keys, label) = match &self.name {
            Some(name) => (self.callers.keys(name, &definition, cx.route), name.clone()),
            None => {
                let host = cx.route.host.as_deref().unwrap_or_default();
                let definition = format!("{definition} {} {host}{}", cx.route.method, cx.route.template);
                (self.callers.keys("route", &definition, cx.route), format!("{limit}-per-{}", Dur(per)))
            }
        };
        let metrics = cx.shared.telemetry.limit(&label);
        let label = quoted(&label);
        let guards = cx.operation.is_some_and(|operation| operation.starts_with("auth."));
        let policy = format!("{label};q={limit};w={}", seconds(per));
        let limiter = Limiter {
            limit: self.limit,
            keys,
            reads_body: self.callers.need_body(),
            guards,
            strict: guards || self.callers.need_body(),
            shared: cx.shared.shared.clone(),
            label,
            limit_header: limit.into(),
            policy_header: HeaderValue::try_from(policy).unwrap_or_else(|_| limit.into()),
            throttle: Throttle::default(),
            metrics,
        };
        Layer::Around(Box::new(move |next| sealed(Limited { limiter, next })))
    }

    fn facts(&self) -> Facts {
        Facts { needs_identity: self.callers.need_identity(), ..Facts::default() }
    }

    fn document(&self, op: &mut OperationDoc) {
        op.refuses(&[Kind::RateLimited], &self.text());
        op.extension(
            "x-rate-limit",
            json!([{
                "policy": self.name,
                "limit": self.limit.limit,
                "per": Dur(self.limit.per).to_string(),
                "by": self.callers.words(),
            }]),
        );
        if self.callers.words().contains("body.") {
            op.refuses(&[Kind::PayloadTooLarge], "a body too long to be counted by");
        }
        let number = || json!({ "type": "integer", "minimum": 0 });
        op.header(On::Every, "X-RateLimit-Limit", "Requests allowed in a window.", number());
        op.header(On::Every, "X-RateLimit-Remaining", "Requests left in it.", number());
        op.header(On::Every, "X-RateLimit-Reset", "Seconds until one more is allowed.", number());
        let text = || json!({ "type": "string" });
        op.header(
            On::Every,
            "RateLimit-Policy",
            "The limits (draft-ietf-httpapi-ratelimit-headers).",
            text(),
        );
        op.header(On::Every, "RateLimit", "Where the caller stands in them.", text());
    }

    fn explain(&self, _: &Probe<'_>) -> Verdict {
        Verdict::Passes(self.text())
    }
}

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE: HeaderName = HeaderName::from_static("ratelimit");

struct Limited {
    limiter: Limiter,
    next: Next,
}

struct Limiter {
    limit: Limit,
    keys: Keys,
    reads_body: bool,
    /// Whether a handler that takes credentials is behind it.
    guards: bool,
    /// Whether it holds at half while replicas cannot count together.
    strict: bool,
    shared: AnyShared,
    /// The name in the IETF's fields, quoted.
    label: String,
    limit_header: HeaderValue,
    policy_header: HeaderValue,
    throttle: Throttle,
    metrics: LimitMetrics,
}

/// On a response: the requests left by the tightest limit whose fields it carries.
#[derive(Clone, Copy)]
struct Tightest(u64);

impl Endpoint for Limited {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let exchange = Exchange::of(&request).clone();
        let decision = match self.limiter.decide(&exchange, &mut request).await {
            Ok(decision) => decision,
            Err(refusal) => return Ok(exchange.refuse(&refusal)),
        };
        let Some(decision) = decision else { return self.next.call(request).await };
        let mut response = match decision.allowed {
            true => self.next.call(request).await?,
            false => {
                self.limiter.metrics.rejected();
                let retry_after = Some(decision.retry_after);
                exchange.refuse(&GatewayError { retry_after, ..Kind::RateLimited.into() })
            }
        };
        self.limiter.tell(&decision, &mut response);
        Ok(response)
    }
}

impl Limiter {
    /// What the limit says; `None` where nobody can.
    async fn decide(
        &self,
        exchange: &Exchange,
        request: &mut Request,
    ) -> Result<Option<Decision>, GatewayError> {
        let body = match self.reads_body {
            false => None,
            true => match read_body(request).await? {
                Read::Json(body) => Some(body),
                Read::Other => None,
                Read::TooLarge if self.guards => {
                    return Err(GatewayError {
                        close: request.version() <= http::Version::HTTP_11,
                        ..GatewayError::from(&BodyTooLarge { limit: BODY as u64 })
                    });
                }
                Read::TooLarge => None,
            },
        };
        let key = self.keys.of(exchange, request, body.as_ref());
        let now = SystemTime::now();
        let decision = match self.strict {
            true => self.shared.hit_strictly(&key, self.limit, now).await,
            false => self.shared.hit(&key, self.limit, now).await,
        };
        match decision {
            Ok(decision) => Ok(Some(decision)),
            Err(error) => {
                if let Some(left_out) = self.throttle.pass() {
                    tracing::warn!(limit = self.label, %error, left_out, "a limit cannot be counted");
                }
                // Without a count, credentials are not tried; anything else goes on.
                match self.strict {
                    true => Err(Kind::Overloaded.into()),
                    false => Ok(None),
                }
            }
        }
    }

    /// Writes where the caller stands onto the answer.
    fn tell(&self, decision: &Decision, response: &mut Response) {
        let tightest = response.data::<Tightest>().copied();
        let reset = seconds(decision.reset_after);
        let headers = response.headers_mut();
        if tightest.is_none() {
            // Where the target stands with somebody else is not for our callers.
            for theirs in [&LIMIT, &REMAINING, &RESET, &POLICY, &STATE] {
                headers.remove(theirs);
            }
        }
        headers.append(POLICY, self.policy_header.clone());
        self.tell_state(decision, reset, headers);
        if tightest.is_none_or(|Tightest(left)| decision.remaining < left) {
            headers.insert(LIMIT, self.limit_header.clone());
            headers.insert(REMAINING, decision.remaining.into());
            headers.insert(RESET, reset.into());
            response.set_data(Tightest(decision.remaining));
        }
    }

    fn tell_state(&self, decision: &Decision, reset: u64, headers: &mut HeaderMap) {
        let mut state = String::with_capacity(self.label.len() + 32);
        let _ = write!(state, "{};r={};t={reset}", self.label, decision.remaining);
        if let Ok(state) = HeaderValue::try_from(state) {
            headers.append(STATE, state);
        }
    }
}

/// Whole seconds, at least what is meant.
fn seconds(duration: Duration) -> u64 {
    duration.as_millis().div_ceil(1000) as u64
}

/// A name as a string of structured fields (RFC 9651, section 3.3.3), which are ASCII.
fn quoted(name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 2);
    text.push('"');
    for character in name.chars() {
        match character {
            '"' | '\\' => text.extend(['\\', character]),
            ' '..='~' => text.push(character),
            _ => text.push('?'),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests;
