//! Metrics, logs and traces.

/// Metrics and traces of the process.
#[derive(Debug, Default)]
pub struct Telemetry {}
