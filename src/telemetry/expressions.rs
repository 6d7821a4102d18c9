//! Expressions: those that gave nothing for a request.

use super::meters::{Meters, label};
use opentelemetry::metrics::{BoundCounter, Counter};

/// The instrument, before it is bound to a stage.
pub(super) struct ExpressionMeters {
    errors: Counter<u64>,
}

/// What is counted of the expressions of one kind of stage.
#[derive(Debug)]
pub struct ExpressionMetrics {
    errors: BoundCounter<u64>,
}

impl ExpressionMeters {
    pub(super) fn new(meters: &Meters) -> Self {
        let about = "Expressions that could not be evaluated for a request, by the stage they belong to.";
        ExpressionMeters { errors: meters.counter("voicegate_expression_errors_total", about) }
    }

    pub(super) fn stage(&self, name: &'static str) -> ExpressionMetrics {
        ExpressionMetrics { errors: self.errors.bind(&[label("stage", name)]) }
    }
}

impl ExpressionMetrics {
    /// Counts an expression that gave nothing.
    pub fn failed(&self) {
        self.errors.add(1);
    }
}
