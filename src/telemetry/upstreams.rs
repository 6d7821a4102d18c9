//! Upstreams: requests by result, time to the response's head, connections, health.

use super::TelemetryError;
use super::keyed::Keyed;
use super::level::Level;
use super::meters::{Meters, label};
use crate::error::Kind;
use opentelemetry::metrics::{BoundCounter, Counter};
use prometheus::{Histogram, HistogramVec};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Why servers are ejected.
const EJECTIONS: [&str; 3] = ["consecutive_failures", "failure_ratio", "slow"];

/// How an address of a target stands; it may be several of these at once, but `Taking` is without `Down` (unless health
/// checks are disregarded), `Ejected` and `Drained`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointState {
    /// It is sent requests.
    Taking = 0,
    /// It failed its health checks.
    Down = 1,
    /// Its traffic says that it should rest.
    Ejected = 2,
    /// It is sent one request at a time, to see whether it is well again.
    Trial = 3,
    /// Somebody took it out of service.
    Drained = 4,
    /// It came up not long ago and is sent less than its share.
    SlowStart = 5,
}

impl EndpointState {
    /// All of them, by number.
    pub const ALL: [EndpointState; 6] = [
        EndpointState::Taking,
        EndpointState::Down,
        EndpointState::Ejected,
        EndpointState::Trial,
        EndpointState::Drained,
        EndpointState::SlowStart,
    ];

    /// The word for metrics.
    pub fn word(self) -> &'static str {
        match self {
            EndpointState::Taking => "taking",
            EndpointState::Down => "down",
            EndpointState::Ejected => "ejected",
            EndpointState::Trial => "trial",
            EndpointState::Drained => "drained",
            EndpointState::SlowStart => "slow_start",
        }
    }
}

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The instruments, before they are bound to an upstream.
pub(super) struct UpstreamMeters {
    requests: Counter<u64>,
    durations: HistogramVec,
    ejections: Counter<u64>,
    upstreams: Arc<Keyed<UpstreamMetrics>>,
}

/// What is counted of one upstream.
pub struct UpstreamMetrics {
    name: Arc<str>,
    requests: Counter<u64>,
    duration: Histogram,
    ejections: Counter<u64>,
    panicking: AtomicBool,
    targets: Keyed<TargetMetrics>,
}

/// What is counted of one server of an upstream.
pub struct TargetMetrics {
    upstream: Arc<str>,
    target: Arc<str>,
    requests: Counter<u64>,
    duration: Histogram,
    classes: [OnceLock<BoundCounter<u64>>; CLASSES.len()],
    failures: [OnceLock<BoundCounter<u64>>; Kind::ALL.len()],
    ejections: [OnceLock<BoundCounter<u64>>; EJECTIONS.len()],
    ejected: Counter<u64>,
    endpoints: [AtomicU32; EndpointState::ALL.len()],
    /// Connections that carry a request.
    pub active: Arc<Level>,
    /// Connections kept for later.
    pub idle: Arc<Level>,
}

impl UpstreamMeters {
    pub(super) fn new(meters: &Meters) -> Result<Self, TelemetryError> {
        let upstreams = Arc::new(Keyed::<UpstreamMetrics>::default());
        let seen = upstreams.clone();
        meters.gauge("voicegate_upstream_connections", "Connections to a server, by state.", move |gauge| {
            for target in targets(&seen) {
                for (state, level) in [("active", &target.active), ("idle", &target.idle)] {
                    let [target, upstream] = target.labels();
                    gauge.observe(level.get() as f64, &[label("state", state), target, upstream]);
                }
            }
        });
        let seen = upstreams.clone();
        meters.gauge("voicegate_upstream_healthy", "1 while a server is sent requests.", move |gauge| {
            for target in targets(&seen) {
                let healthy = target.endpoints(EndpointState::Taking) > 0;
                gauge.observe(f64::from(u8::from(healthy)), &target.labels());
            }
        });
        let seen = upstreams.clone();
        meters.gauge("voicegate_upstream_endpoints", "Addresses of a server, by state.", move |gauge| {
            for target in targets(&seen) {
                for state in EndpointState::ALL {
                    let [name, upstream] = target.labels();
                    let labels = [label("state", state.word()), name, upstream];
                    gauge.observe(target.endpoints(state).into(), &labels);
                }
            }
        });
        let seen = upstreams.clone();
        meters.gauge(
            "voicegate_upstream_panic",
            "1 while so few servers are up that health checks are disregarded.",
            move |gauge| {
                for upstream in seen.held() {
                    let panics = upstream.panicking.load(Ordering::Relaxed);
                    gauge.observe(f64::from(u8::from(panics)), &[label("upstream", upstream.name.clone())]);
                }
            },
        );
        Ok(UpstreamMeters {
            requests: meters.counter(
                "voicegate_upstream_requests_total",
                "Requests sent to a server, by status class or error code.",
            ),
            durations: meters.seconds(
                "voicegate_upstream_duration_seconds",
                "From sending a request to the head of its response.",
                &["upstream"],
            )?,
            ejections: meters.counter(
                "voicegate_upstream_ejections_total",
                "Ejections of a server for what its traffic showed, by reason.",
            ),
            upstreams,
        })
    }

    pub(super) fn upstream(&self, name: &str) -> Arc<UpstreamMetrics> {
        self.upstreams.get_or(name, |name| UpstreamMetrics {
            requests: self.requests.clone(),
            duration: self.durations.with_label_values(&[&name]),
            ejections: self.ejections.clone(),
            panicking: AtomicBool::new(false),
            targets: Keyed::default(),
            name,
        })
    }
}

impl UpstreamMetrics {
    /// Notes whether health checks are disregarded.
    pub fn set_panicking(&self, panicking: bool) {
        self.panicking.store(panicking, Ordering::Relaxed);
    }

    /// The counters of a server, `host:port`. Its gauges are shown while the answer, and this, are held.
    pub fn target(&self, server: &str) -> Arc<TargetMetrics> {
        self.targets.get_or(server, |target| TargetMetrics {
            upstream: self.name.clone(),
            target,
            requests: self.requests.clone(),
            duration: self.duration.clone(),
            classes: Default::default(),
            failures: [const { OnceLock::new() }; Kind::ALL.len()],
            ejections: [const { OnceLock::new() }; EJECTIONS.len()],
            ejected: self.ejections.clone(),
            endpoints: Default::default(),
            active: Arc::default(),
            idle: Arc::default(),
        })
    }
}

impl TargetMetrics {
    /// Counts an answer whose head came after so long.
    pub fn answered(&self, status: u16, after: Duration) {
        self.took(after);
        self.ended(status);
    }

    /// Notes how long the head of an answer took that is counted when it ends: a gRPC call has its status behind the
    /// body.
    pub fn took(&self, after: Duration) {
        self.duration.observe(after.as_secs_f64());
    }

    /// Counts such an answer by its status.
    pub fn ended(&self, status: u16) {
        let class = (usize::from(status / 100).clamp(1, CLASSES.len())) - 1;
        self.classes[class].get_or_init(|| self.bind(CLASSES[class])).add(1);
    }

    /// Counts a request that got no answer.
    pub fn failed(&self, kind: Kind) {
        let slot = Kind::ALL.iter().position(|known| *known == kind).unwrap_or_default();
        self.failures[slot].get_or_init(|| self.bind(kind.code())).add(1);
    }

    /// Counts an ejection; `why` is `consecutive_failures`, `failure_ratio` or `slow`.
    pub fn ejected(&self, why: &'static str) {
        let slot = EJECTIONS.iter().position(|known| *known == why).unwrap_or_default();
        let [target, upstream] = self.labels();
        let bind = || self.ejected.bind(&[label("reason", EJECTIONS[slot]), target, upstream]);
        self.ejections[slot].get_or_init(bind).add(1);
    }

    /// Notes how many of its addresses are in which state, in the order of [`EndpointState::ALL`].
    pub fn set_endpoints(&self, counts: [u32; EndpointState::ALL.len()]) {
        for (state, count) in self.endpoints.iter().zip(counts) {
            state.store(count, Ordering::Relaxed);
        }
    }

    fn endpoints(&self, state: EndpointState) -> u32 {
        self.endpoints[state as usize].load(Ordering::Relaxed)
    }

    fn bind(&self, result: &'static str) -> BoundCounter<u64> {
        let [target, upstream] = self.labels();
        self.requests.bind(&[label("result", result), target, upstream])
    }

    fn labels(&self) -> [opentelemetry::KeyValue; 2] {
        [label("target", self.target.clone()), label("upstream", self.upstream.clone())]
    }
}

/// Every server of every upstream that is held.
fn targets(upstreams: &Keyed<UpstreamMetrics>) -> impl Iterator<Item = Arc<TargetMetrics>> {
    upstreams.held().into_iter().flat_map(|upstream| upstream.targets.held())
}
