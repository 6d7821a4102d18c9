//! What the process has and every table shares: settings and telemetry.

use crate::settings::Settings;
use crate::telemetry::Telemetry;
use std::sync::Arc;

/// What the process has.
#[derive(Debug)]
pub struct Shared {
    /// Settings, as the process was started with.
    pub settings: Settings,
    /// Metrics and traces.
    pub telemetry: Arc<Telemetry>,
}
