//! Breakers and retries of upstreams.

use super::keyed::Keyed;
use super::meters::{Meters, label};
use opentelemetry::metrics::{BoundCounter, Counter};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// What a breaker can be, in the order of its gauge.
const CIRCUITS: [&str; 3] = ["closed", "half_open", "open"];

/// The instruments, before they are bound.
pub(super) struct TryMeters {
    transitions: Counter<u64>,
    retries: Counter<u64>,
    exhausted: Counter<u64>,
    breakers: Arc<Keyed<BreakerMetrics>>,
}

/// What is shown of one breaker.
pub struct BreakerMetrics {
    circuit: AtomicU8,
    upstream: String,
    /// Empty for the upstream's own.
    target: String,
    transitions: [BoundCounter<u64>; CIRCUITS.len()],
}

/// What is counted of an upstream's retries.
pub struct RetryMetrics {
    upstream: String,
    retries: Counter<u64>,
    exhausted: BoundCounter<u64>,
}

impl TryMeters {
    pub(super) fn new(meters: &Meters) -> Self {
        let breakers = Arc::new(Keyed::<BreakerMetrics>::default());
        let seen = breakers.clone();
        meters.gauge(
            "voicegate_upstream_breaker_state",
            "Circuit breakers: 0 closed, 1 half-open, 2 open. `target` is empty for the upstream's own.",
            move |gauge| {
                for breaker in seen.held() {
                    let labels = labels(&breaker.upstream, &breaker.target);
                    gauge.observe(f64::from(breaker.circuit.load(Relaxed)), &labels);
                }
            },
        );
        TryMeters {
            transitions: meters.counter(
                "voicegate_upstream_breaker_transitions_total",
                "Changes of circuit breakers, by what they became.",
            ),
            retries: meters.counter(
                "voicegate_upstream_retries_total",
                "Requests sent to an upstream once more, by why.",
            ),
            exhausted: meters.counter(
                "voicegate_upstream_retry_budget_exhausted_total",
                "Retries that were not made because the budget was used up.",
            ),
            breakers,
        }
    }

    pub(super) fn breaker(&self, upstream: &str, target: &str) -> Arc<BreakerMetrics> {
        self.breakers.get_or(&format!("{upstream} {target}"), |_| BreakerMetrics {
            circuit: AtomicU8::new(0),
            upstream: upstream.to_owned(),
            target: target.to_owned(),
            transitions: CIRCUITS.map(|circuit| {
                let [one, two] = labels(upstream, target);
                self.transitions.bind(&[label("state", circuit), one, two])
            }),
        })
    }

    pub(super) fn retries(&self, upstream: &str) -> RetryMetrics {
        RetryMetrics {
            upstream: upstream.to_owned(),
            retries: self.retries.clone(),
            exhausted: self.exhausted.bind(&[label("upstream", upstream.to_owned())]),
        }
    }
}

impl BreakerMetrics {
    /// It became that: 0 closed, 1 half-open, 2 open.
    pub fn became(&self, circuit: u8) {
        self.circuit.store(circuit, Relaxed);
        if let Some(counter) = self.transitions.get(usize::from(circuit)) {
            counter.add(1);
        }
    }
}

impl RetryMetrics {
    /// Counts a retry; `reason` is `connect`, `reset`, `hedge` or a status.
    pub fn again(&self, reason: String) {
        self.retries.add(1, &[label("reason", reason), label("upstream", self.upstream.clone())]);
    }

    /// Counts one that the budget did not allow.
    pub fn exhausted(&self) {
        self.exhausted.add(1);
    }
}

fn labels(upstream: &str, target: &str) -> [opentelemetry::KeyValue; 2] {
    [label("target", target.to_owned()), label("upstream", upstream.to_owned())]
}
