//! Requests that were sent away so that others can be served.

use super::meters::{Meters, label};
use opentelemetry::metrics::Counter;

/// The instrument.
pub(super) struct ShedMeters(Counter<u64>);

impl ShedMeters {
    pub(super) fn new(meters: &Meters) -> Self {
        let about = "Requests answered 503 because there was too much to do, by what was full.";
        ShedMeters(meters.counter("voicegate_shed_total", about))
    }

    pub(super) fn count(&self, reason: &'static str, route: &str) {
        self.0.add(1, &[label("reason", reason), label("route", route.to_owned())]);
    }
}
