//! Looks every second at how much memory the process has, where there is a mark that it should stay below.

use crate::shed::Pressure;
use crate::telemetry::memory_in_use;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// How often.
const EVERY: Duration = Duration::from_secs(1);

/// Looks for ever; ends at once where there is nothing to look for, or nowhere to look.
pub(super) async fn watch(pressure: Arc<Pressure>) {
    let Some(marks) = pressure.marks() else { return };
    tracing::info!(soft = marks.soft, hard = marks.hard, "less is taken on when memory is short");
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match memory_in_use() {
            Some(bytes) => pressure.uses(bytes),
            None => {
                return tracing::warn!(
                    "nobody knows how much memory is in use here, so nothing is shed for it"
                );
            }
        }
    }
}
