//! WebSockets by route: `voicegate_websockets_open{path}`, and `voicegate_websockets_ended_total{path,end}` by how
//! they ended, in the words of [`End`].

use super::keyed::Keyed;
use super::level::{Held, Level};
use super::meters::{Meters, label};
use crate::exchange::End;
use opentelemetry::metrics::Counter;
use std::sync::Arc;

/// The instruments, before they are bound to a route.
pub(super) struct SocketMeters {
    ended: Counter<u64>,
    routes: Arc<Keyed<SocketMetrics>>,
}

/// What is counted of the WebSockets of one route template.
pub struct SocketMetrics {
    path: Arc<str>,
    open: Arc<Level>,
    ended: Counter<u64>,
}

/// A WebSocket that is open. Dropping it counts its end.
#[must_use = "the socket counts as ended when this is dropped"]
pub struct OpenSocket {
    metrics: Arc<SocketMetrics>,
    end: End,
    _held: Held,
}

impl SocketMeters {
    pub(super) fn new(meters: &Meters) -> Self {
        let routes = Arc::new(Keyed::<SocketMetrics>::default());
        let seen = routes.clone();
        meters.gauge("voicegate_websockets_open", "WebSockets that are open.", move |gauge| {
            for socket in seen.held() {
                gauge.observe(socket.open.get() as f64, &[label("path", socket.path.clone())]);
            }
        });
        let about = "WebSockets that are over, by how they ended.";
        SocketMeters { ended: meters.counter("voicegate_websockets_ended_total", about), routes }
    }

    pub(super) fn route(&self, template: &str) -> Arc<SocketMetrics> {
        self.routes.get_or(template, |path| SocketMetrics {
            path,
            open: Arc::default(),
            ended: self.ended.clone(),
        })
    }
}

impl SocketMetrics {
    /// A socket is open. Unless told otherwise, it counts as left by the client.
    pub fn open(self: &Arc<Self>) -> OpenSocket {
        OpenSocket { _held: self.open.hold(), metrics: self.clone(), end: End::ClientLeft }
    }
}

impl OpenSocket {
    /// Notes how it ended; counted when this is dropped.
    pub fn ended(&mut self, end: End) {
        self.end = end;
    }
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        let labels = [label("end", self.end.word()), label("path", self.metrics.path.clone())];
        self.metrics.ended.add(1, &labels);
    }
}
