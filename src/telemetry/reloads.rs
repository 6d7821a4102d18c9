//! Reloads of the manifest.

use super::meters::{Meters, label};
use opentelemetry::metrics::BoundCounter;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// How reloads went.
pub(super) struct ReloadMetrics {
    success: BoundCounter<u64>,
    failure: BoundCounter<u64>,
    now: Arc<Now>,
}

/// What gauges show.
#[derive(Default)]
struct Now {
    revision: AtomicU64,
    succeeded_at_millis: AtomicU64,
    took_micros: AtomicU64,
    healthy: AtomicBool,
}

impl ReloadMetrics {
    pub(super) fn new(meters: &Meters) -> Self {
        let now = Arc::new(Now::default());
        let reloads =
            meters.counter("voicegate_config_reloads_total", "Loads of the manifest, by how they went.");
        let seen = now.clone();
        meters.gauge("voicegate_config_revision", "Number of the manifest revision served.", move |gauge| {
            gauge.observe(seen.revision.load(Ordering::Relaxed) as f64, &[]);
        });
        let seen = now.clone();
        meters.gauge(
            "voicegate_config_last_success_timestamp_seconds",
            "When the manifest was last loaded.",
            move |gauge| {
                gauge.observe(seen.succeeded_at_millis.load(Ordering::Relaxed) as f64 / 1000.0, &[]);
            },
        );
        let seen = now.clone();
        meters.gauge(
            "voicegate_config_load_seconds",
            "How long the manifest took to read, check and compile.",
            move |gauge| gauge.observe(seen.took_micros.load(Ordering::Relaxed) as f64 / 1e6, &[]),
        );
        let seen = now.clone();
        meters.gauge(
            "voicegate_config_healthy",
            "1 while the last load of the manifest worked.",
            move |gauge| {
                gauge.observe(f64::from(u8::from(seen.healthy.load(Ordering::Relaxed))), &[]);
            },
        );
        ReloadMetrics {
            success: reloads.bind(&[label("result", "success")]),
            failure: reloads.bind(&[label("result", "failure")]),
            now,
        }
    }

    /// A manifest was loaded in so long, and is served as this revision.
    pub(super) fn succeeded(&self, revision: u64, took: Duration, at: SystemTime) {
        let since_epoch = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.now.revision.store(revision, Ordering::Relaxed);
        self.now.succeeded_at_millis.store(since_epoch.as_millis() as u64, Ordering::Relaxed);
        self.now.took_micros.store(took.as_micros() as u64, Ordering::Relaxed);
        self.now.healthy.store(true, Ordering::Relaxed);
        self.success.add(1);
    }

    /// A manifest could not be loaded; the one before it is served on.
    pub(super) fn failed(&self) {
        self.now.healthy.store(false, Ordering::Relaxed);
        self.failure.add(1);
    }

    /// An earlier manifest is served again, as this revision; nothing was loaded.
    pub(super) fn rolled_back(&self, revision: u64) {
        self.now.revision.store(revision, Ordering::Relaxed);
    }

    /// What could not be loaded was taken back.
    pub(super) fn recovered(&self) {
        self.now.healthy.store(true, Ordering::Relaxed);
    }
}
