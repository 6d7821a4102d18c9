//! Requests by route: how many, with which status, how long. gRPC calls are all 200, so they are counted by their own
//! status too.

use super::TelemetryError;
use super::meters::{Meters, label};
use crate::error::grpc::Code;
use crate::exchange::{Exchange, Observer};
use http::Method;
use opentelemetry::metrics::{BoundCounter, Counter};
use prometheus::{Histogram, HistogramVec};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The instruments, before they are bound to a route.
pub(super) struct RequestMeters {
    requests: Counter<u64>,
    durations: HistogramVec,
    calls: Counter<u64>,
}

/// What is counted of one route template. As an [`Observer`] it counts an exchange when it is over.
pub struct RouteMetrics {
    path: Arc<str>,
    meters: Arc<RequestMeters>,
    /// The series of this route, in the order of their first use: a route has few, so that walking them is
    /// cheaper than hashing, and nothing is ever taken out.
    first: Slot,
    /// By gRPC status; made with the route's first call.
    calls: OnceLock<Box<[OnceLock<BoundCounter<u64>>; CODES]>>,
}

/// gRPC's status codes: 0 to 16.
const CODES: usize = 17;

type Slot = OnceLock<Box<Series>>;

/// The counters of one method and status.
struct Series {
    method: &'static str,
    status: u16,
    requests: BoundCounter<u64>,
    duration: Histogram,
    next: Slot,
}

impl RequestMeters {
    pub(super) fn new(meters: &Meters) -> Result<Arc<Self>, TelemetryError> {
        let requests = meters.counter("http_requests_total", "Requests, by route template and status.");
        let durations = meters.seconds(
            "http_request_duration_seconds",
            "From a request's head to the response's last byte, streams included.",
            &["method", "path"],
        )?;
        let calls = meters.counter("grpc_requests_total", "gRPC calls, by route template and grpc-status.");
        Ok(Arc::new(RequestMeters { requests, durations, calls }))
    }
}

impl RouteMetrics {
    pub(super) fn new(path: Arc<str>, meters: Arc<RequestMeters>) -> Self {
        RouteMetrics { path, meters, first: OnceLock::new(), calls: OnceLock::new() }
    }

    /// Counts a request that took so long to its last byte.
    pub fn record(&self, method: &Method, status: u16, duration: Duration) {
        let series = self.series(method_label(method), status);
        series.requests.add(1);
        series.duration.observe(duration.as_secs_f64());
    }

    /// Counts a gRPC call by its status.
    fn record_call(&self, code: Code) {
        let calls = self.calls.get_or_init(|| Box::new([const { OnceLock::new() }; CODES]));
        let Some(slot) = calls.get(code as usize) else { return };
        let bind = || {
            let status = label("grpc_status", itoa::Buffer::new().format(code as u8).to_owned());
            self.meters.calls.bind(&[status, label("path", self.path.clone())])
        };
        slot.get_or_init(bind).add(1);
    }

    fn series(&self, method: &'static str, status: u16) -> &Series {
        let mut slot = &self.first;
        loop {
            let series = slot.get_or_init(|| Box::new(self.bind(method, status)));
            if series.status == status && series.method == method {
                return series;
            }
            slot = &series.next;
        }
    }

    fn bind(&self, method: &'static str, status: u16) -> Series {
        // In alphabetical order, as the SDK sorts them: it keeps any other order as a second copy.
        let labels = [
            label("method", method),
            label("path", self.path.clone()),
            label("status", itoa::Buffer::new().format(status).to_owned()),
        ];
        Series {
            method,
            status,
            requests: self.meters.requests.bind(&labels),
            duration: self.meters.durations.with_label_values(&[method, &self.path]),
            next: OnceLock::new(),
        }
    }
}

impl Observer for RouteMetrics {
    fn finished(&self, exchange: &Exchange) {
        self.record(&exchange.method, exchange.status(), exchange.started.elapsed());
        if let Some(code) = exchange.grpc_status() {
            self.record_call(code);
        }
    }
}

impl Drop for RouteMetrics {
    /// Takes the list apart in a loop: dropping it as it is would recurse once a series.
    fn drop(&mut self) {
        let mut next = self.first.take();
        while let Some(mut series) = next {
            next = series.next.take();
        }
    }
}

/// The method as a label: callers may send any token as their method, labels are a fixed set.
pub(super) fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "OTHER",
    }
}
