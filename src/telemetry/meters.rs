//! The registry that `/metrics` shows, and the instruments in it.
//!
//! Counters and gauges are OpenTelemetry instruments behind its Prometheus exporter; counters are bound to their
//! labels ahead of time, which makes counting one atomic addition. Durations are histograms of the `prometheus`
//! crate in the same registry: the SDK's own histogram locks a mutex on every record, bound or not, and a request
//! waits for no lock. Names are written in full here, because the exporter is told to add no suffix.

use super::TelemetryError;
use opentelemetry::metrics::{AsyncInstrument, Counter, Meter, MeterProvider};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{Instrument, SdkMeterProvider, Stream};
use prometheus::{HistogramOpts, HistogramVec, Registry, TextEncoder};

/// Upper bounds in seconds: a percentile is readable from half a millisecond to two minutes.
const SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0,
    120.0,
];

/// Label sets an instrument may have; what is beyond is counted under `otel_metric_overflow="true"`. Labels are
/// bounded by the manifest, so this is no limit that traffic could reach: it has room for 10,000 routes with some
/// ten methods and statuses each, where the SDK's own default of 2,000 has not.
fn max_series(name: &str) -> Option<usize> {
    match name {
        "http_requests_total" => Some(100_000),
        _ if name.starts_with("voicegate_stream") || name.starts_with("voicegate_upstream") => Some(20_000),
        _ if name.starts_with("voicegate_shed") => Some(60_000),
        _ if name.starts_with("voicegate_validation") || name.starts_with("voicegate_inspect") => {
            Some(30_000)
        }
        _ => None,
    }
}

/// The registry and what makes instruments.
pub(super) struct Meters {
    registry: Registry,
    meter: Meter,
    /// Keeps the instruments alive; the registry itself holds them weakly.
    _provider: SdkMeterProvider,
}

impl Meters {
    pub(super) fn new(resource: Resource) -> Result<Self, TelemetryError> {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .without_units()
            .without_counter_suffixes()
            .scope_info_enabled(false)
            .build()
            .map_err(|error| TelemetryError::Metrics(error.to_string()))?;
        let provider = SdkMeterProvider::builder()
            .with_resource(resource)
            .with_reader(exporter)
            .with_view(|instrument: &Instrument| {
                let limit = max_series(instrument.name())?;
                Stream::builder().with_cardinality_limit(limit).build().ok()
            })
            .build();
        let meter = provider.meter_with_scope(InstrumentationScope::builder("voicegate").build());
        Ok(Meters { registry, meter, _provider: provider })
    }

    /// A counter; `name` ends in `_total`.
    pub(super) fn counter(&self, name: &'static str, about: &'static str) -> Counter<u64> {
        self.meter.u64_counter(name).with_description(about).build()
    }

    /// A histogram of seconds.
    pub(super) fn seconds(
        &self,
        name: &str,
        about: &str,
        labels: &[&str],
    ) -> Result<HistogramVec, TelemetryError> {
        let failed = |error: prometheus::Error| TelemetryError::Metrics(error.to_string());
        let options = HistogramOpts::new(name, about).buckets(SECONDS.to_vec());
        let histogram = HistogramVec::new(options, labels).map_err(failed)?;
        self.registry.register(Box::new(histogram.clone())).map_err(failed)?;
        Ok(histogram)
    }

    /// A gauge that is read when metrics are scraped.
    pub(super) fn gauge<F>(&self, name: &'static str, about: &'static str, read: F)
    where
        F: Fn(&dyn AsyncInstrument<f64>) + Send + Sync + 'static,
    {
        // The SDK keeps the callback; the handle does nothing.
        let _ = self.meter.f64_observable_gauge(name).with_description(about).with_callback(read).build();
    }

    /// A counter that is read when metrics are scraped; `name` ends in `_total`.
    pub(super) fn count<F>(&self, name: &'static str, about: &'static str, read: F)
    where
        F: Fn(&dyn AsyncInstrument<f64>) + Send + Sync + 'static,
    {
        let _ = self.meter.f64_observable_counter(name).with_description(about).with_callback(read).build();
    }

    /// Everything in the Prometheus text format.
    pub(super) fn render(&self) -> String {
        let families = self.registry.gather();
        TextEncoder::new().encode_to_string(&families).unwrap_or_else(|error| {
            tracing::error!(%error, "metrics could not be written");
            String::new()
        })
    }
}

/// A label.
pub(super) fn label(name: &'static str, value: impl Into<opentelemetry::Value>) -> KeyValue {
    KeyValue::new(name, value)
}
