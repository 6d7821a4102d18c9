//! What the process has and every table shares: settings, telemetry, and word of its end.

use crate::settings::Settings;
use crate::telemetry::Telemetry;
use std::sync::Arc;
use tokio::sync::watch;

/// What the process has.
#[derive(Debug)]
pub struct Shared {
    /// Settings, as the process was started with.
    pub settings: Settings,
    /// Metrics and traces.
    pub telemetry: Arc<Telemetry>,
    /// Turns true when the gateway goes down: streams end at their next event boundary, health checks stop.
    pub closing: watch::Receiver<bool>,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        settings: Settings,
    }

    /// What a process started with these flags has, and the switch that says it goes down.
    pub(crate) fn shared(flags: &[&str]) -> (Arc<Shared>, watch::Sender<bool>) {
        let (close, closing) = watch::channel(false);
        let settings = Cli::parse_from(std::iter::once(&"test").chain(flags)).settings;
        (Arc::new(Shared { settings, telemetry: Arc::default(), closing }), close)
    }
}
