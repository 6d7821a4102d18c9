//! `when:`, which every stage takes: a condition on the request (CEL, see [`crate::expr`]) for the stage to run at all.
//!
//! It is decided once, on the way in; a stage that was passed over sees nothing of the answer either. Where a condition
//! cannot be decided (it asks for something this request has not got), the stage **runs**: nobody gets round a limit by
//! leaving a header out. That is counted (`voicegate_expression_errors_total`) and logged. Conditions go by what is known
//! where the stage stands: `claims` only behind the stage that finds them out, which the check of order sees to.
//!
//! A stage with a condition counts for less: `auth` with one does not refuse strangers (the route must say `public: true`),
//! and `check` warns about every protecting stage that has one. What it holds back, or cuts off, still counts.

use super::body_limit::BodyLimit;
use super::{
    BuildCx, Facts, Fit, Hook, Layer, Mark, Misfit, Next, Probe, Stage, StageCx, StageDecl, Stop, Verdict,
    sealed,
};
use crate::diag::{Code, Diagnostic};
use crate::exchange::Exchange;
use crate::expr::{Expression, Place, Scope};
use crate::identity::{Identity, Proof};
use crate::manifest::Spanned;
use crate::manifest::decode::decode;
use crate::manifest::node::{Node, Value};
use crate::openapi::OperationDoc;
use crate::telemetry::{ExpressionMetrics, Throttle};
use poem::{Endpoint, Request, Response};
use std::sync::Arc;

/// The key.
pub(super) const WHEN: &str = "when";

/// Stages that keep somebody out.
const PROTECTING: [&str; 5] = ["auth", "api_key", "rbac", "tenant", "ip_filter"];

/// Remembered of a request for which the stage does not run. No hook remembers this itself.
const PASSED_OVER: Mark = Mark::MAX;

/// Takes the condition out of a stage's body, and checks it. The inner `None` is one that has faults.
pub(super) fn take(stage: &'static str, body: &mut Node, cx: &mut StageCx<'_>) -> Option<Option<Expression>> {
    let Value::Map(entries) = &mut body.value else { return None };
    let at = entries.iter().position(|(key, _)| key.text == WHEN)?;
    let (key, node) = entries.remove(at);
    let text: Option<Spanned<String>> = decode(&node, cx.out);
    let condition = text.and_then(|text| Expression::check(&text, Place::Condition, cx.out));
    if condition.is_some() && PROTECTING.contains(&stage) {
        let message = format!("`{stage}` protects only while its condition holds");
        cx.out.push(Diagnostic::warning(Code::LOOSENED, key.span, message).help(
            "whoever the condition leaves out passes unchecked: better give those routes a chain without it",
        ));
    }
    Some(condition)
}

/// A stage that runs only where its condition holds.
pub(super) fn conditional(stage: Arc<dyn Stage>, condition: Expression) -> Arc<dyn Stage> {
    Arc::new(Conditional { stage, condition: Arc::new(condition) })
}

struct Conditional {
    stage: Arc<dyn Stage>,
    condition: Arc<Expression>,
}

impl Stage for Conditional {
    fn name(&self) -> &'static str {
        self.stage.name()
    }

    fn layer(&self, cx: &BuildCx<'_>) -> Layer {
        let condition = Decides {
            stage: self.stage.name(),
            condition: self.condition.clone(),
            metrics: cx.shared.telemetry.expressions(self.stage.name()),
            throttle: Throttle::default(),
        };
        match self.stage.layer(cx) {
            Layer::Hook(hook) => {
                // Without its own limit, a route takes what the door takes, and not anything.
                let otherwise = (self.stage.name() == BodyLimit::NAME)
                    .then(|| BodyLimit { max: cx.shared.settings.door.max_body_size });
                Layer::Hook(Box::new(HookWhen { condition, hook, otherwise }))
            }
            Layer::Around(wrap) => Layer::Around(Box::new(move |next| {
                let next = Arc::new(next);
                sealed(AroundWhen { condition, around: wrap(sealed(Inner(next.clone()))), next })
            })),
        }
    }

    fn facts(&self) -> Facts {
        self.stage.facts()
    }

    fn condition(&self) -> Option<&Expression> {
        Some(&self.condition)
    }

    fn misfit(&self, fit: &Fit<'_>) -> Option<Misfit> {
        self.stage.misfit(fit)
    }

    fn document(&self, op: &mut OperationDoc) {
        op.only_where(self.condition.text(), |op| self.stage.document(op));
    }

    fn explain(&self, probe: &Probe<'_>) -> Verdict {
        let text = self.condition.text();
        let with = |why: String, how: &str| match why.is_empty() {
            true => format!("{how} `{text}`"),
            false => format!("{why} ({how} `{text}`)"),
        };
        let inner = |how: &str| match self.stage.explain(probe) {
            Verdict::Passes(why) => Verdict::Passes(with(why, how)),
            Verdict::Refuses(status, why) => Verdict::Refuses(status, with(why, how)),
            Verdict::Answers(status, why) => Verdict::Answers(status, with(why, how)),
        };
        if self.condition.uses().live {
            return match self.stage.explain(probe) {
                Verdict::Passes(why) => Verdict::Passes(with(why, "only when")),
                Verdict::Refuses(status, why) | Verdict::Answers(status, why) => {
                    Verdict::Passes(with(format!("would end with {status}: {why}"), "only when"))
                }
            };
        }
        let exchange = imagined(probe);
        let scope =
            Scope { exchange: &exchange, headers: probe.headers, query: None, body: None, response: None };
        match self.condition.holds(&scope) {
            Ok(true) => inner("as it holds that"),
            Ok(false) => Verdict::Passes(format!("passed over: not `{text}`")),
            Err(_) => inner("nobody can say whether"),
        }
    }
}

/// The exchange of a request that `explain` imagines: path, method, and the role if one is given.
fn imagined(probe: &Probe<'_>) -> Arc<Exchange> {
    let nowhere = ([127, 0, 0, 1], 0).into();
    let exchange = Exchange::begin(crate::exchange::Arrival {
        peer: nowhere,
        client_ip: nowhere.ip(),
        secure: false,
        method: probe.method.clone(),
        path: probe.path.to_owned(),
        lang: crate::error::Lang::En,
    });
    if let Some(role) = probe.role {
        exchange.identified(Arc::new(Identity {
            user_id: "".into(),
            tenant_id: "".into(),
            role: role.into(),
            scopes: Vec::new(),
            channel: None,
            openid: None,
            token_id: None,
            issued_at: None,
            expires_at: None,
            proof: Proof::Token,
        }));
    }
    exchange
}

/// Decides whether a stage runs.
struct Decides {
    stage: &'static str,
    condition: Arc<Expression>,
    metrics: ExpressionMetrics,
    throttle: Throttle,
}

impl Decides {
    fn runs(&self, exchange: &Exchange, request: &Request) -> bool {
        let scope = Scope {
            exchange,
            headers: request.headers(),
            query: request.uri().query(),
            body: None,
            response: None,
        };
        self.condition.holds(&scope).unwrap_or_else(|error| {
            self.metrics.failed();
            if let Some(left_out) = self.throttle.pass() {
                let (stage, when) = (self.stage, self.condition.text());
                tracing::warn!(stage, when, %error, left_out, "a condition cannot be decided, so its stage runs");
            }
            true
        })
    }
}

struct HookWhen {
    condition: Decides,
    hook: Box<dyn Hook>,
    /// What runs in its stead, on the way in.
    otherwise: Option<BodyLimit>,
}

impl Hook for HookWhen {
    fn enter(&self, exchange: &Arc<Exchange>, request: &mut Request) -> Result<Mark, Stop> {
        if self.condition.runs(exchange, request) {
            return self.hook.enter(exchange, request);
        }
        if let Some(otherwise) = &self.otherwise {
            otherwise.request(exchange, request)?;
        }
        Ok(PASSED_OVER)
    }

    fn leave(&self, exchange: &Arc<Exchange>, mark: Mark, response: &mut Response) {
        if mark != PASSED_OVER {
            self.hook.leave(exchange, mark, response);
        }
    }
}

struct AroundWhen {
    condition: Decides,
    /// The stage, and what is behind it.
    around: Next,
    /// What is behind it.
    next: Arc<Next>,
}

impl Endpoint for AroundWhen {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        match self.condition.runs(Exchange::of(&request), &request) {
            true => self.around.call(request).await,
            false => self.next.call(request).await,
        }
    }
}

struct Inner(Arc<Next>);

impl Endpoint for Inner {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        self.0.call(request).await
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{answering, around, build, check, request, request_as, send};
    use super::super::{Layer, fold};
    use super::*;
    use http::Method;

    fn admin() -> Identity {
        Identity {
            user_id: "u".into(),
            tenant_id: "".into(),
            role: "admin".into(),
            scopes: Vec::new(),
            channel: None,
            openid: None,
            token_id: None,
            issued_at: None,
            expires_at: None,
            proof: Proof::Token,
        }
    }

    #[tokio::test]
    async fn a_hook_runs_both_ways_or_neither() {
        let next = around(
            "headers: { request: { set: { X-In: a } }, response: { set: { X-Out: b } }, when: \"request.headers['x-ask'] == 'yes'\" }",
            super::super::testing::target(|request| async move {
                let seen = request.headers().contains_key("x-in");
                Ok(Response::builder().header("x-seen", seen.to_string()).finish())
            }),
        );
        for (headers, runs) in [(&[("x-ask", "yes")][..], true), (&[("x-ask", "no")], false), (&[], true)] {
            let response = send(&next, request(Method::GET, headers)).await;
            assert_eq!(response.header("x-seen"), Some(if runs { "true" } else { "false" }), "{headers:?}");
            assert_eq!(response.header("x-out").is_some(), runs, "what cannot be decided runs: {headers:?}");
        }
    }

    #[tokio::test]
    async fn a_stage_that_waits_runs_or_not() {
        let stage = "timeout: { after: 1ms, when: \"claims.role != 'admin'\" }";
        assert!(matches!(build(&check(stage, "").sound(), "GET", false), Layer::Around(_)));
        let slow = super::super::testing::target(|_| async {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            Ok(Response::default())
        });
        let next = fold(vec![build(&check(stage, "").sound(), "GET", false)], slow);
        assert_eq!(send(&next, request_as(Method::GET, &[], admin())).await.status(), 200);
        let other = Identity { role: "user".into(), ..admin() };
        assert_eq!(send(&next, request_as(Method::GET, &[], other)).await.status(), 504);
        assert_eq!(send(&next, request(Method::GET, &[])).await.status(), 504, "strangers have no role");
    }

    #[tokio::test]
    async fn without_its_own_limit_a_body_has_the_doors() {
        let next = around(
            "body_limit: { max: 1B, when: \"request.method == 'PUT'\" }",
            answering(Response::default),
        );
        let status = async |length: u64| {
            send(&next, request(Method::POST, &[("content-length", &length.to_string())]))
                .await
                .status()
                .as_u16()
        };
        assert_eq!((status(1000).await, status(1 << 40).await), (200, 413));
    }

    #[tokio::test]
    async fn conditions_within_a_run_of_hooks_stay_apart() {
        let stage = |name: &str, want: &str| {
            format!(
                "headers: {{ response: {{ add: {{ X-Ran: {name} }} }}, when: \"request.method == '{want}'\" }}"
            )
        };
        let layers = [("a", "GET"), ("b", "POST"), ("c", "GET")]
            .map(|(name, want)| build(&check(&stage(name, want), "").sound(), "GET", false));
        let next = fold(layers.into(), answering(Response::default));
        let response = send(&next, request(Method::GET, &[])).await;
        let ran: Vec<_> = response.headers().get_all("x-ran").iter().collect();
        assert_eq!(ran, ["c", "a"]);
    }

    #[test]
    fn faults_and_warnings_show() {
        let faults = check("headers: { response: { remove: [A] }, when: \"claims.rol == 'a'\" }", "").faults;
        assert_eq!(faults, ["s:1:53 VG091 `claims` has no `rol` [did you mean `role`?]"]);
        let faults = check("request_id: { when: true }", "").faults;
        assert_eq!(faults, ["s:1:21 VG011 expected a text, found a boolean"]);
        let faults = check("auth: { when: \"request.path != '/x'\" }", "").faults;
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(
            faults[0].starts_with("s:1:9 VG063 `auth` protects only while its condition holds"),
            "{faults:?}"
        );
    }

    #[test]
    fn a_changed_condition_is_a_changed_stage() {
        let digest = |when: &str| check(&format!("request_id: {{ when: \"{when}\" }}"), "").digest;
        assert_ne!(digest("request.path == '/a'"), digest("request.path == '/b'"));
    }

    #[test]
    fn explain_decides_what_it_can() {
        let stage = |when: &str| check(&format!("body_limit: {{ max: 1KiB, when: \"{when}\" }}"), "").sound();
        let headers = http::HeaderMap::new();
        let probe = Probe { method: &Method::GET, path: "/x", headers: &headers, role: Some("user") };
        assert_eq!(
            stage("claims.role == 'user'").explain(&probe),
            Verdict::Passes("up to 1KiB (as it holds that `claims.role == 'user'`)".into())
        );
        assert_eq!(
            stage("claims.role == 'admin'").explain(&probe),
            Verdict::Passes("passed over: not `claims.role == 'admin'`".into())
        );
        assert_eq!(
            stage("request.ip == '1.2.3.4'").explain(&probe),
            Verdict::Passes("up to 1KiB (only when `request.ip == '1.2.3.4'`)".into())
        );
    }
}
