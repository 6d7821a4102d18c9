//! What the stages that look into bodies found.

use super::meters::{Meters, label};
use crate::exchange::RouteInfo;
use opentelemetry::metrics::{BoundCounter, Counter};

/// The instruments, before they are bound to a route.
pub(super) struct FindingMeters {
    invalid: Counter<u64>,
    suspicious: Counter<u64>,
}

/// What `validate` counts of one route.
#[derive(Debug)]
pub struct ValidationMetrics {
    requests: BoundCounter<u64>,
    responses: BoundCounter<u64>,
}

/// What `inspect` counts of one route, of one kind.
#[derive(Debug)]
pub struct InspectMetrics {
    findings: BoundCounter<u64>,
}

impl FindingMeters {
    pub(super) fn new(meters: &Meters) -> Self {
        let invalid = "Requests and responses that are not as their route describes them.";
        let suspicious = "Requests in which `inspect` found something, by kind and by what was done.";
        FindingMeters {
            invalid: meters.counter("voicegate_validation_failures_total", invalid),
            suspicious: meters.counter("voicegate_inspect_findings_total", suspicious),
        }
    }

    pub(super) fn validation(&self, route: &RouteInfo) -> ValidationMetrics {
        let bind = |of| self.invalid.bind(&[label("path", route.template.clone()), label("of", of)]);
        ValidationMetrics { requests: bind("request"), responses: bind("response") }
    }

    pub(super) fn inspect(
        &self,
        route: &RouteInfo,
        kind: &'static str,
        action: &'static str,
    ) -> InspectMetrics {
        let labels = [label("path", route.template.clone()), label("kind", kind), label("action", action)];
        InspectMetrics { findings: self.suspicious.bind(&labels) }
    }
}

impl ValidationMetrics {
    /// Counts a request that was refused.
    pub fn request(&self) {
        self.requests.add(1);
    }

    /// Counts a response that is not as described.
    pub fn response(&self) {
        self.responses.add(1);
    }
}

impl InspectMetrics {
    /// Counts a request in which something was found.
    pub fn found(&self) {
        self.findings.add(1);
    }
}
