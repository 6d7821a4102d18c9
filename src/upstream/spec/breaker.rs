//! `breaker:`, checked.

use super::bad;
use crate::diag::{Diagnostic, Diagnostics};
use crate::manifest::Spanned;
use crate::manifest::model;
use crate::upstream::window::EXACT;
use std::hash::{Hash, Hasher};
use std::time::Duration;

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerSpec {
    /// Outcomes of this long count.
    pub window: Duration,
    /// With fewer requests in the window it never opens.
    pub min_requests: u32,
    /// Share of failures that opens it.
    pub failure_ratio: f64,
    /// Answers whose head takes longer are slow.
    pub slow_call: Option<Duration>,
    /// Share of slow answers that opens it.
    pub slow_ratio: f64,
    /// It stays open this long before a probe.
    pub open_for: Duration,
}

impl BreakerSpec {
    /// Is it sound? Reports every fault.
    pub(super) fn check(decl: &model::Breaker, out: &mut Diagnostics) -> BreakerSpec {
        let ratio = |given: &Option<Spanned<f64>>, default: f64, out: &mut Diagnostics| match given {
            Some(ratio) if !(ratio.value > 0.0 && ratio.value <= 1.0) => {
                out.push(
                    bad(ratio.span, "a ratio is above 0 and at most 1")
                        .help("0.5 opens the breaker when half of the requests fail"),
                );
                default
            }
            Some(ratio) => ratio.value,
            None => default,
        };
        if let (None, Some(ratio)) = (&decl.slow_call, &decl.slow_ratio) {
            out.push(
                Diagnostic::error(
                    crate::diag::Code::MISPLACED,
                    ratio.span,
                    "`slow_ratio` has no effect without `slow_call`",
                )
                .help("say from when on an answer is slow: `slow_call: 2s`"),
            );
        }
        let window = decl.window.as_ref().map_or(Duration::from_secs(10), |window| {
            if !(100..=3_600_000).contains(&window.value.0.as_millis()) {
                out.push(bad(window.span, "a window is of 100ms to 1h"));
            }
            window.value.0
        });
        let min_requests = decl.min_requests.as_ref().map_or(20, |min| {
            // Counts of a busy slice are halved; below half of what is exact that is never seen.
            if !(1..=EXACT / 2).contains(&min.value) {
                out.push(bad(min.span, format!("expected 1 to {}", EXACT / 2)));
            }
            min.value
        });
        let open_for = decl.open_for.as_ref().map_or(Duration::from_secs(5), |open| {
            if open.value.0.is_zero() {
                out.push(bad(open.span, "a breaker that is open for no time never refuses anything"));
            }
            open.value.0
        });
        BreakerSpec {
            window,
            min_requests,
            failure_ratio: ratio(&decl.failure_ratio, 0.5, out),
            slow_call: decl.slow_call.map(|slow| slow.0),
            slow_ratio: ratio(&decl.slow_ratio, 0.8, out),
            open_for,
        }
    }
}

impl Hash for BreakerSpec {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.window, self.min_requests, self.slow_call, self.open_for).hash(state);
        (self.failure_ratio.to_bits(), self.slow_ratio.to_bits()).hash(state);
    }
}
