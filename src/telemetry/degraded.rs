//! Answers that stand for an upstream's, and copies of requests.

use super::meters::{Meters, label};
use crate::exchange::{Degraded, RouteInfo};
use opentelemetry::metrics::{BoundCounter, Counter};

/// The instruments, before they are bound to a route or an upstream.
pub(super) struct DegradedMeters {
    degraded: Counter<u64>,
    mirrored: Counter<u64>,
}

/// What is counted of one route's answers in place of an upstream's.
#[derive(Debug)]
pub struct DegradedMetrics {
    kinds: Vec<BoundCounter<u64>>,
}

/// What becomes of a copy of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mirrored {
    /// The upstream answered.
    Answered,
    /// It did not, or not in time.
    Failed,
    /// As many as may be were under way.
    Dropped,
    /// The request's body was too large.
    TooLarge,
    /// The request's body was not read to its end.
    Cut,
}

impl Mirrored {
    const ALL: [(Mirrored, &'static str); 5] = [
        (Mirrored::Answered, "answered"),
        (Mirrored::Failed, "failed"),
        (Mirrored::Dropped, "dropped"),
        (Mirrored::TooLarge, "too_large"),
        (Mirrored::Cut, "cut"),
    ];
}

/// What is counted of the copies that one upstream gets.
#[derive(Debug)]
pub struct MirrorMetrics {
    results: Vec<BoundCounter<u64>>,
}

impl DegradedMeters {
    pub(super) fn new(meters: &Meters) -> Self {
        let degraded =
            "Answers that stand for an upstream's, which could not answer, by what answered instead.";
        let mirrored = "Copies of requests for an upstream, by what became of them.";
        DegradedMeters {
            degraded: meters.counter("voicegate_degraded_total", degraded),
            mirrored: meters.counter("voicegate_mirrored_total", mirrored),
        }
    }

    pub(super) fn degraded(&self, route: &RouteInfo, upstream: &str) -> DegradedMetrics {
        let bind = |kind: &Degraded| {
            self.degraded.bind(&[
                label("path", route.template.clone()),
                label("upstream", upstream.to_owned()),
                label("kind", kind.word()),
            ])
        };
        DegradedMetrics { kinds: Degraded::ALL.iter().map(bind).collect() }
    }

    pub(super) fn mirror(&self, upstream: &str) -> MirrorMetrics {
        let bind = |(_, word): &(Mirrored, &'static str)| {
            self.mirrored.bind(&[label("upstream", upstream.to_owned()), label("result", *word)])
        };
        MirrorMetrics { results: Mirrored::ALL.iter().map(bind).collect() }
    }
}

impl DegradedMetrics {
    /// Counts an answer.
    pub fn answered(&self, kind: Degraded) {
        if let Some(at) = Degraded::ALL.iter().position(|known| *known == kind) {
            self.kinds[at].add(1);
        }
    }
}

impl MirrorMetrics {
    /// Counts a copy.
    pub fn count(&self, result: Mirrored) {
        if let Some(at) = Mirrored::ALL.iter().position(|(known, _)| *known == result) {
            self.results[at].add(1);
        }
    }
}
