//! Word that there may be new revocations, from whoever hears it first to whoever waits.

use std::time::Duration;
use tokio::sync::Notify;

/// Wakes those who wait; rung while nobody waits, it wakes the next who does.
#[derive(Debug, Default)]
pub(super) struct Bell(Notify);

impl Bell {
    /// Wakes everyone who waits, and one who comes later: he may have looked just before this.
    pub(super) fn ring(&self) {
        self.0.notify_waiters();
        self.0.notify_one();
    }

    /// Until the next ring, or after `patience`.
    pub(super) async fn wait(&self, patience: Duration) {
        // Either end means the same: look again.
        let _ = tokio::time::timeout(patience, self.0.notified()).await;
    }
}
