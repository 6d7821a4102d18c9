//! What the gateway says of itself: metrics, logs, the access log, traces.
//!
//! [`logs::init`] comes first in a process, then [`Telemetry::start`]. The other modules hand out typed handles
//! with plain methods, prepared when a table is built: [`RouteMetrics`], [`StreamMetrics`], [`UpstreamMetrics`],
//! [`LimitMetrics`], [`Level`]. What a request does with them is an atomic addition; what takes longer
//! (reading `/proc`, adding up, writing out) happens when somebody scrapes, or on a thread of its own.
//!
//! To add a metric: a method on the handle its callers hold already, its instrument beside that, its name in
//! the list that the tests below compare with.

mod access;
mod caches;
mod degraded;
mod export;
mod expressions;
mod findings;
mod keyed;
mod level;
mod limits;
mod lines;
pub mod logs;
mod meters;
mod process;
mod reloads;
mod requests;
mod sheds;
mod sockets;
mod streams;
mod throttle;
pub mod trace;
mod tries;
mod upstreams;
mod write;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use access::AccessLog;
pub use caches::{CacheMetrics, CacheResult};
pub use degraded::{DegradedMetrics, MirrorMetrics, Mirrored};
pub use expressions::ExpressionMetrics;
pub use findings::{InspectMetrics, ValidationMetrics};
pub use level::{Held, Level};
pub use limits::LimitMetrics;
pub use lines::Lines;
pub use process::memory_in_use;
pub use requests::RouteMetrics;
pub use sockets::{OpenSocket, SocketMetrics};
pub use streams::{OpenStream, StreamMetrics};
pub use throttle::Throttle;
pub use tries::{BreakerMetrics, RetryMetrics};
pub use upstreams::{EndpointState, TargetMetrics, UpstreamMetrics};

use crate::exchange::{Exchange, RouteInfo};
use caches::CacheMeters;
use degraded::DegradedMeters;
use export::{Env, Exporter};
use expressions::ExpressionMeters;
use findings::FindingMeters;
use http::HeaderMap;
use keyed::Keyed;
use limits::LimitMeters;
use logs::LogGuard;
use meters::{Meters, label};
use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use reloads::ReloadMetrics;
use requests::RequestMeters;
use sheds::ShedMeters;
use sockets::SocketMeters;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use streams::StreamMeters;
use trace::TraceContext;
use tries::TryMeters;
use upstreams::UpstreamMeters;

/// Why telemetry did not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Metrics could not be registered.
    #[error("metrics could not be set up: {0}")]
    Metrics(String),
    /// Traces cannot be exported as the environment asks.
    #[error("traces: {0}")]
    Traces(String),
}

/// Metrics, access log and traces of the process.
pub struct Telemetry {
    meters: Meters,
    requests: Arc<RequestMeters>,
    routes: Keyed<RouteMetrics>,
    streams: StreamMeters,
    sockets: SocketMeters,
    upstreams: UpstreamMeters,
    tries: TryMeters,
    expressions: ExpressionMeters,
    limits: LimitMeters,
    sheds: ShedMeters,
    findings: FindingMeters,
    caches: CacheMeters,
    degraded: DegradedMeters,
    reloads: ReloadMetrics,
    connections: Arc<Level>,
    access: Arc<AccessLog>,
    exporter: Option<Exporter>,
}

impl Telemetry {
    /// Starts for a process that logs; `version` is the gateway's own. Exports traces if the standard `OTEL_*`
    /// variables ask for it.
    ///
    /// Fails if they ask for what cannot be done, with what to change.
    pub fn start(version: &str, log: &LogGuard) -> Result<Self, TelemetryError> {
        Self::with(version, AccessLog::new(log), log.lines().clone(), &|name| std::env::var(name).ok())
    }

    fn with(
        version: &str,
        access: AccessLog,
        lines: Arc<Lines>,
        env: Env<'_>,
    ) -> Result<Self, TelemetryError> {
        let resource = resource(version, env);
        let exporter = match export::endpoint(env)? {
            Some(endpoint) => Some(Exporter::start(&endpoint, resource.clone())?),
            None => None,
        };
        let meters = Meters::new(resource)?;
        let requests = RequestMeters::new(&meters)?;
        let connections = Arc::<Level>::default();
        let open = connections.clone();
        meters.gauge("voicegate_connections_open", "Connections of callers.", move |gauge| {
            gauge.observe(open.get() as f64, &[]);
        });
        meters.count(
            "voicegate_log_lines_dropped_total",
            "Log lines dropped because stderr was read too slowly.",
            move |counter| counter.observe(lines.dropped() as f64, &[]),
        );
        process::register(&meters);
        Ok(Telemetry {
            routes: Keyed::default(),
            streams: StreamMeters::new(&meters),
            sockets: SocketMeters::new(&meters),
            upstreams: UpstreamMeters::new(&meters)?,
            tries: TryMeters::new(&meters),
            expressions: ExpressionMeters::new(&meters),
            limits: LimitMeters::new(&meters),
            sheds: ShedMeters::new(&meters),
            findings: FindingMeters::new(&meters),
            caches: CacheMeters::new(&meters),
            degraded: DegradedMeters::new(&meters),
            reloads: ReloadMetrics::new(&meters),
            connections,
            access: Arc::new(access),
            requests,
            exporter,
            meters,
        })
    }

    /// The counters of a route. Routes with the same template share them, across reloads too.
    pub fn route(&self, route: &RouteInfo) -> Arc<RouteMetrics> {
        self.routes.get_or(&route.template, |path| RouteMetrics::new(path, self.requests.clone()))
    }

    /// The counters of a route's streams, shared likewise.
    pub fn streams(&self, route: &RouteInfo) -> Arc<StreamMetrics> {
        self.streams.route(&route.template)
    }

    /// The counters of a route's WebSockets, shared likewise.
    pub fn sockets(&self, route: &RouteInfo) -> Arc<SocketMetrics> {
        self.sockets.route(&route.template)
    }

    /// The counters of an upstream by name, shared likewise.
    pub fn upstream(&self, name: &str) -> Arc<UpstreamMetrics> {
        self.upstreams.upstream(name)
    }

    /// What is shown of a breaker: of an upstream (`target` is empty) or of one of its servers. Shared likewise.
    pub fn breaker(&self, upstream: &str, target: &str) -> Arc<BreakerMetrics> {
        self.tries.breaker(upstream, target)
    }

    /// The counters of an upstream's retries.
    pub fn retries(&self, upstream: &str) -> RetryMetrics {
        self.tries.retries(upstream)
    }

    /// The counter of a rate limit by its policy's name. Limits of one name share it, across reloads too.
    pub fn limit(&self, name: &str) -> LimitMetrics {
        self.limits.limit(name)
    }

    /// Counts a request that was sent away for this reason on the route with this template.
    pub fn shed(&self, reason: &'static str, route: &str) {
        self.sheds.count(reason, route);
    }

    /// The counter of expressions that gave nothing, for one kind of stage.
    pub fn expressions(&self, stage: &'static str) -> ExpressionMetrics {
        self.expressions.stage(stage)
    }

    /// The counters of what `validate` finds wrong on a route. Routes with the same template share them.
    pub fn validation(&self, route: &RouteInfo) -> ValidationMetrics {
        self.findings.validation(route)
    }

    /// The counter of what `inspect` finds on a route, of one kind, and what it does then. Shared likewise.
    pub fn inspect(&self, route: &RouteInfo, kind: &'static str, action: &'static str) -> InspectMetrics {
        self.findings.inspect(route, kind, action)
    }

    /// The counters of a route's answers in place of an upstream's. Shared likewise.
    pub fn degraded(&self, route: &RouteInfo, upstream: &str) -> DegradedMetrics {
        self.degraded.degraded(route, upstream)
    }

    /// The counters of the copies that an upstream gets. Shared likewise.
    pub fn mirror(&self, upstream: &str) -> MirrorMetrics {
        self.degraded.mirror(upstream)
    }

    /// The counters of a route's `cache`. Routes with the same template share them.
    pub fn cache(&self, route: &RouteInfo) -> CacheMetrics {
        self.caches.route(route)
    }

    /// From now on shows the copies of answers: their number, their bytes, and how many gave way to others.
    pub fn show_copies(&self, figures: impl Fn() -> [u64; 3] + Clone + Send + Sync + 'static) {
        caches::show(&self.meters, figures);
    }

    /// From now on shows the connections to a database, by its kind: those in use, and those at rest.
    pub fn show_database(
        &self,
        kind: &'static str,
        connections: impl Fn() -> (u32, u32) + Send + Sync + 'static,
    ) {
        self.meters.gauge("db_connections", "Connections to the database, by state.", move |gauge| {
            let (active, idle) = connections();
            for (state, count) in [("active", active), ("idle", idle)] {
                gauge.observe(f64::from(count), &[label("pool", kind), label("state", state)]);
            }
        });
    }

    /// From now on shows the connections to Redis. None is ever idle: commands share one, a channel has its own.
    pub fn show_redis(&self, connections: impl Fn() -> u32 + Send + Sync + 'static) {
        self.meters.gauge("redis_connections", "Connections to Redis, by state.", move |gauge| {
            gauge.observe(f64::from(connections()), &[label("state", "active")]);
        });
    }

    /// A manifest was loaded in so long, and is served from now on as this revision.
    pub fn reload_succeeded(&self, revision: u64, took: Duration) {
        self.reloads.succeeded(revision, took, SystemTime::now());
    }

    /// A manifest could not be loaded; the one before it is served on.
    pub fn reload_failed(&self) {
        self.reloads.failed();
    }

    /// An earlier manifest is served again, as this revision.
    pub fn reload_rolled_back(&self, revision: u64) {
        self.reloads.rolled_back(revision);
    }

    /// The files are those of the served manifest again, after one that could not be loaded.
    pub fn reload_recovered(&self) {
        self.reloads.recovered();
    }

    /// Connections of callers: hold one for each.
    pub fn connections(&self) -> &Arc<Level> {
        &self.connections
    }

    /// The access log; an observer of exchanges.
    pub fn access_log(&self) -> &Arc<AccessLog> {
        &self.access
    }

    /// Notes the exchange's place in a trace, and begins its span if spans are exported.
    ///
    /// `true` if the caller's trace is continued: only then may its `tracestate` be passed on.
    pub fn trace(&self, headers: &HeaderMap, exchange: &Arc<Exchange>) -> bool {
        let parent = TraceContext::of(headers);
        let own = match &self.exporter {
            Some(exporter) => exporter.begin(parent, headers, exchange),
            None => parent.map_or_else(TraceContext::begin, TraceContext::child),
        };
        exchange.set_trace(Arc::new(own));
        parent.is_some()
    }

    /// All metrics in the Prometheus text format.
    ///
    /// Reads `/proc` and writes out every series, so it belongs on the runtime's blocking pool once there are
    /// thousands of routes; outside the runtime it cannot count tasks.
    pub fn render(&self) -> String {
        self.meters.render()
    }

    /// Sends the last spans, for at most so long. That some were lost is logged.
    pub async fn shutdown(&self, within: Duration) {
        let Some(exporter) = self.exporter.clone() else { return };
        // The SDK waits for its thread.
        let sent = tokio::task::spawn_blocking(move || exporter.shutdown(within)).await;
        if let Ok(Err(error)) = sent {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

impl Default for Telemetry {
    /// Metrics as always, no access log, no export: for tests, and commands that serve nothing.
    fn default() -> Self {
        Self::with(env!("CARGO_PKG_VERSION"), AccessLog::nowhere(), Lines::nowhere(), &|_| None)
            .expect("without an exporter, only a name registered twice could fail")
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("exports", &self.exporter.is_some()).finish_non_exhaustive()
    }
}

/// Who speaks: `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_SERVICE_NAME`, and `voicegate` where they do not say.
fn resource(version: &str, env: Env<'_>) -> Resource {
    let listed = env("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let listed = listed.split(',').filter_map(|entry| {
        let (key, value) = entry.split_once('=')?;
        Some(KeyValue::new(key.trim().to_owned(), value.trim().to_owned()))
    });
    let name = env("OTEL_SERVICE_NAME").filter(|name| !name.is_empty());
    let own =
        [KeyValue::new("service.name", "voicegate"), KeyValue::new("service.version", version.to_owned())];
    Resource::builder_empty()
        .with_attributes(own)
        .with_attributes(listed)
        .with_attributes(name.map(|name| KeyValue::new("service.name", name)))
        .build()
}
