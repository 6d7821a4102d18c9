//! Streams by route: open ones, events, and how they end.

use super::keyed::Keyed;
use super::level::{Held, Level};
use super::meters::{Meters, label};
use crate::exchange::End;
use opentelemetry::metrics::{BoundCounter, Counter};
use std::sync::{Arc, OnceLock};

const ENDS: [End; 6] =
    [End::ClientLeft, End::Complete, End::UpstreamBroke, End::StreamLimit, End::Shutdown, End::Reauth];

/// The instruments, before they are bound to a route.
pub(super) struct StreamMeters {
    events: Counter<u64>,
    ended: Counter<u64>,
    routes: Arc<Keyed<StreamMetrics>>,
}

/// What is counted of the streams of one route template.
pub struct StreamMetrics {
    path: Arc<str>,
    open: Arc<Level>,
    events: BoundCounter<u64>,
    ended: [OnceLock<BoundCounter<u64>>; ENDS.len()],
    ended_meter: Counter<u64>,
}

/// A stream under way. Dropping it counts its end.
#[must_use = "the stream counts as ended when this is dropped"]
pub struct OpenStream {
    metrics: Arc<StreamMetrics>,
    end: End,
    _held: Held,
}

impl StreamMeters {
    pub(super) fn new(meters: &Meters) -> Self {
        let routes = Arc::new(Keyed::<StreamMetrics>::default());
        let seen = routes.clone();
        meters.gauge("voicegate_streams_open", "Streams under way.", move |gauge| {
            for stream in seen.held() {
                gauge.observe(stream.open.get() as f64, &[label("path", stream.path.clone())]);
            }
        });
        StreamMeters {
            events: meters.counter("voicegate_stream_events_total", "Events passed on to callers."),
            ended: meters
                .counter("voicegate_streams_ended_total", "Streams that are over, by how they ended."),
            routes,
        }
    }

    pub(super) fn route(&self, template: &str) -> Arc<StreamMetrics> {
        self.routes.get_or(template, |path| StreamMetrics {
            events: self.events.bind(&[label("path", path.clone())]),
            path,
            open: Arc::default(),
            ended: Default::default(),
            ended_meter: self.ended.clone(),
        })
    }
}

impl StreamMetrics {
    /// A stream begins. Unless told otherwise, it counts as left by the client.
    pub fn open(self: &Arc<Self>) -> OpenStream {
        OpenStream { _held: self.open.hold(), metrics: self.clone(), end: End::ClientLeft }
    }
}

impl OpenStream {
    /// Counts events passed on.
    pub fn events(&self, count: u64) {
        if count > 0 {
            self.metrics.events.add(count);
        }
    }

    /// Notes how it ended; counted when this is dropped.
    pub fn ended(&mut self, end: End) {
        self.end = end;
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let metrics = &self.metrics;
        let slot = ENDS.iter().position(|end| *end == self.end).unwrap_or_default();
        let bind = || {
            let labels = [label("end", self.end.word()), label("path", metrics.path.clone())];
            metrics.ended_meter.bind(&labels)
        };
        metrics.ended[slot].get_or_init(bind).add(1);
    }
}
