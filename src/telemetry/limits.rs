//! Rate limits: whom they refused.

use super::meters::{Meters, label};
use opentelemetry::metrics::{BoundCounter, Counter};

/// The instrument, before it is bound to a limit.
pub(super) struct LimitMeters {
    rejections: Counter<u64>,
}

/// What is counted of one limit.
#[derive(Debug)]
pub struct LimitMetrics {
    rejections: BoundCounter<u64>,
}

impl LimitMeters {
    pub(super) fn new(meters: &Meters) -> Self {
        let about = "Requests refused by a rate limit, by its policy.";
        LimitMeters { rejections: meters.counter("voicegate_rate_limit_rejections_total", about) }
    }

    pub(super) fn limit(&self, name: &str) -> LimitMetrics {
        LimitMetrics { rejections: self.rejections.bind(&[label("limit", name.to_owned())]) }
    }
}

impl LimitMetrics {
    /// Counts a request that was refused.
    pub fn rejected(&self) {
        self.rejections.add(1);
    }
}
