//! `shed`: answers 503 `overloaded` at once when too much is under way on the route, and says how important it is.
//!
//! `max_in_flight` is a fixed number; `adaptive` finds one from how long the answers take. Counted is from here until the
//! answer's last byte, or a WebSocket's end, for each route and replica on its own; nobody waits. `priority` says who
//! goes first when the whole process has too much to do (`MAX_IN_FLIGHT`, `SHED_MEMORY`). Put it near the outer end of
//! a chain: what is shed should cost little. Off by leaving it out.

use super::{Body, BuildCx, Facts, Hook, Layer, Mark, Probe, Stage, StageCx, StageDecl, Stop, Verdict};
use crate::diag::{Code, Diagnostic};
use crate::error::Kind;
use crate::exchange::Exchange;
use crate::manifest::Spanned;
use crate::manifest::model::Adaptive;
use crate::openapi::OperationDoc;
use crate::shed::{Caps, Gate, Pressure, Priority};
use poem::{Request, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;

/// Bounds what is under way on a route, and ranks it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Shed {
    /// Requests under way on the route at a time; what is beyond is answered 503 at once.
    pub max_in_flight: Option<Spanned<u32>>,
    /// A bound that is found from how long answers take.
    pub adaptive: Option<Spanned<Adaptive>>,
    /// Who goes first when the process has too much to do (default `normal`); holds whatever `when` says.
    pub priority: Option<Priority>,
}

impl StageDecl for Shed {
    const NAME: &'static str = "shed";
    const ABOUT: &'static str = "Answers 503 at once when too much is under way on the route";
    const BODY: Body = Body::Bare("max_in_flight");

    fn check(self, cx: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        if self.max_in_flight.is_none() && self.adaptive.is_none() && self.priority.is_none() {
            cx.out.push(
                Diagnostic::error(Code::MISSING_KEY, cx.span, "this `shed` says nothing")
                    .help("write `shed: 200`, or one of `max_in_flight`, `adaptive` and `priority`"),
            );
            return None;
        }
        let caps = Caps::check(self.max_in_flight.as_ref(), self.adaptive.as_ref(), cx.out);
        Some(Arc::new(Compiled { caps, priority: self.priority }))
    }
}

struct Compiled {
    caps: Caps,
    priority: Option<Priority>,
}

impl Stage for Compiled {
    fn name(&self) -> &'static str {
        Shed::NAME
    }

    fn layer(&self, cx: &BuildCx<'_>) -> Layer {
        Layer::Hook(match self.caps == Caps::default() {
            true => Box::new(Ranked),
            false => Box::new(Gated {
                gate: Gate::of_route(&self.caps),
                adapts: self.caps.adaptive.is_some(),
                pressure: cx.shared.pressure.clone(),
            }),
        })
    }

    fn facts(&self) -> Facts {
        Facts { priority: self.priority, ..Facts::default() }
    }

    fn document(&self, op: &mut OperationDoc) {
        if self.caps != Caps::default() {
            op.refuses(&[Kind::Overloaded], "too much is under way on this route");
        }
        if let Some(max) = self.caps.max_in_flight {
            op.extension("x-max-in-flight", max.into());
        }
    }

    fn explain(&self, _: &Probe<'_>) -> Verdict {
        let fixed = self.caps.max_in_flight.map(|max| format!("at most {max} under way"));
        let found = self.caps.adaptive.map(|it| format!("between {} and {}, as it goes", it.min, it.max));
        let priority = self.priority.map(|priority| format!("{priority:?} priority").to_lowercase());
        Verdict::Passes([fixed, found, priority].into_iter().flatten().collect::<Vec<_>>().join("; "))
    }
}

/// It only has a priority, which the table knows.
struct Ranked;

impl Hook for Ranked {}

struct Gated {
    gate: Arc<Gate>,
    adapts: bool,
    pressure: Arc<Pressure>,
}

impl Hook for Gated {
    fn enter(&self, exchange: &Arc<Exchange>, _: &mut Request) -> Result<Mark, Stop> {
        let pass = self.gate.enter().map_err(|reason| self.pressure.refuse(exchange, reason))?;
        exchange.observe(Arc::new(pass));
        // When, after the exchange began. The highest mark is not ours to use.
        let after = exchange.started.elapsed().as_micros();
        Ok(Mark::try_from(after).unwrap_or(Mark::MAX).min(Mark::MAX - 1))
    }

    fn leave(&self, exchange: &Arc<Exchange>, mark: Mark, response: &mut Response) {
        let status = response.status().as_u16();
        // An error that came at once says nothing of how busy it is in there.
        if self.adapts && (status < 400 || status == 504) {
            let before = Duration::from_micros(u64::from(mark));
            self.gate.answered(exchange.started.elapsed().saturating_sub(before));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{around, check, code, fed, request, send, target};
    use super::*;
    use http::Method;
    use std::sync::Mutex;

    #[tokio::test]
    async fn beyond_the_bound_the_answer_is_503_until_one_is_over() {
        let (feed, body) = fed();
        let body = Mutex::new(Some(body));
        let next = around(
            "shed: 1",
            target(move |_| {
                let body = body.lock().unwrap().take();
                async move { Ok(body.map_or_else(Response::default, |body| Response::builder().body(body))) }
            }),
        );
        let first = request(Method::GET, &[]);
        let exchange = Exchange::of(&first).clone();
        let streaming = send(&next, first).await;
        let refused = send(&next, request(Method::GET, &[])).await;
        assert_eq!((refused.status().as_u16(), refused.header("retry-after")), (503, Some("1")));
        assert_eq!(code(refused).await, "overloaded");
        drop((streaming, feed, exchange));
        assert_eq!(send(&next, request(Method::GET, &[])).await.status(), 200);
    }

    #[test]
    fn what_it_says_is_understood() {
        assert_eq!(check("shed: { priority: high }", "").sound().facts().priority, Some(Priority::High));
        assert_eq!(check("shed: 20", "").sound().facts().priority, None);
        assert!(check("shed: { adaptive: {} }", "").faults.is_empty());
        for (faulty, count) in [
            ("shed: 0", 1),
            ("shed: {}", 1),
            ("shed: { adaptive: { min: 0 } }", 1),
            ("shed: { adaptive: { min: 20, max: 10 } }", 1),
            ("shed: { max_in_flight: 5, adaptive: { min: 10 } }", 1),
            ("shed: { adaptive: { window: 1s, remeasure: 5s } }", 1),
            ("shed: { priority: urgent }", 2),
        ] {
            let faults = check(faulty, "").faults;
            assert_eq!(faults.len(), count, "{faulty}: {faults:?}");
        }
    }
}
