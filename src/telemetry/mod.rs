//! Metrics, logs and traces.

/// Metrics and traces of the process.
#[derive(Debug, Default)]
pub struct Telemetry {}

impl Telemetry {
    /// Text.
    pub fn render(&self) -> String {
        String::new()
    }
}
