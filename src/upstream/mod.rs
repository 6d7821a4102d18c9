//! Upstreams: named sets of servers, their connections and their health.
//!
//! [`spec`] is what the manifest says, checked; [`Upstream`] runs it. A request's way: `balance` chooses one of the
//! servers that `cluster` has, by its `key` where the upstream hashes (`standing` is why a server takes nothing, or
//! less), `pool` gives a slot and a connection (`client` opens one if none is at rest; with `protocol: grpc` the
//! connections are HTTP/2 and of `http2`, which requests share), `send` gets the response's head, and `body` carries its
//! body until the connection can be given back. `keeper` is the upkeep: `health` asks servers how they are, `outlier`
//! judges them by their traffic, `resolve` looks up their names. `meter` counts, `status` tells people. Nobody but this
//! module speaks with a server.

mod admission;
mod balance;
mod body;
mod breaker;
mod budget;
mod circuits;
mod client;
mod cluster;
mod health;
mod http1;
mod http2;
mod identity;
mod keeper;
mod kept;
mod key;
mod meter;
mod outcome;
mod outlier;
mod pool;
mod primed;
mod reflection;
mod registry;
mod resolve;
mod retry;
mod send;
pub mod spec;
mod standing;
mod status;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tls;
mod upgrade;
mod window;

pub use body::UpstreamBody;
pub use breaker::Circuit;
pub use circuits::BreakerStatus;
pub use health::Condition;
pub use identity::{TRACEPARENT, X_REQUEST_ID, set_identity};
pub use meter::{Figures, Meter};
pub use outlier::Reason;
pub use primed::{Pieces, Primed};
pub use registry::{Drained, Registry, Running};
pub use send::SendOptions;
pub use spec::UpstreamSpec;
pub use status::{ServerStatus, UpstreamStatus};
pub use upgrade::{Switch, UpstreamSocket};

use crate::error::{GatewayError, Kind};
use crate::shed::{Caps, Gate};
use crate::state::Shared;
use crate::telemetry::{RetryMetrics, Throttle};
use arc_swap::ArcSwapOption;
use breaker::Breaker;
use budget::Budget;
use cluster::Cluster;
use outcome::Outcome;
use pool::Server;
use prost_reflect::DescriptorPool;
use resolve::{Resolve, System};
use std::fmt;
use std::sync::{Arc, OnceLock};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// A running upstream. Lives as long as a table or a response needs it; dropping it closes its connections at rest
/// and stops its health checks.
pub struct Upstream {
    spec: Arc<UpstreamSpec>,
    cluster: Arc<Cluster>,
    meter: Meter,
    /// Where the manifest bounds what is under way.
    gate: Option<Arc<Gate>>,
    failures: Throttle,
    /// Zero of the clock that breakers and the budget go by.
    began: Instant,
    breaker: Option<Arc<Breaker>>,
    budget: Option<Budget>,
    retries: RetryMetrics,
    shared: Arc<Shared>,
    keeper: OnceLock<AbortHandle>,
    /// What its servers said of their methods, with `reflection: true`.
    reflected: ArcSwapOption<DescriptorPool>,
    reflector: OnceLock<AbortHandle>,
}

impl Upstream {
    /// Makes it run; nothing is opened yet.
    pub fn new(spec: Arc<UpstreamSpec>, shared: &Arc<Shared>) -> Arc<Upstream> {
        Upstream::with_resolver(spec, shared, Arc::new(System))
    }

    /// As [`new`](Self::new), with names looked up by this.
    fn with_resolver(
        spec: Arc<UpstreamSpec>,
        shared: &Arc<Shared>,
        resolver: Arc<dyn Resolve>,
    ) -> Arc<Upstream> {
        Arc::new(Upstream {
            cluster: Cluster::new(spec.clone(), shared, resolver),
            meter: Meter::default(),
            gate: (*spec.caps() != Caps::default()).then(|| Gate::of_upstream(spec.caps())),
            failures: Throttle::default(),
            began: Instant::now(),
            breaker: circuits::breaker(&spec, None, &shared.telemetry),
            budget: spec.retry().map(|retry| Budget::new(retry.budget, retry.min_retries)),
            retries: shared.telemetry.retries(spec.name()),
            shared: shared.clone(),
            keeper: OnceLock::new(),
            reflected: ArcSwapOption::empty(),
            reflector: OnceLock::new(),
            spec,
        })
    }

    /// What it was made from.
    pub fn spec(&self) -> &Arc<UpstreamSpec> {
        &self.spec
    }

    /// Begins to ask its servers for their methods, with `reflection: true`. Ends with the upstream. Must be called
    /// within a Tokio runtime; a second call does nothing.
    pub fn spawn_reflection(self: &Arc<Self>) {
        if self.spec.reflection() {
            self.reflector
                .get_or_init(|| tokio::spawn(reflection::follow(Arc::downgrade(self))).abort_handle());
        }
    }

    /// What its servers said of their methods, with `reflection: true`; none before they have.
    pub fn reflected(&self) -> Option<Arc<DescriptorPool>> {
        self.reflected.load_full()
    }

    /// Its counters.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// The server of the next try. `avoid` are those that were tried already: one of them comes again only if there
    /// is no other that is up.
    ///
    /// # Errors
    /// [`UpstreamSaturated`](crate::error::Kind) no server may be sent anything.
    fn choose(&self, key: Option<u64>, avoid: &[Arc<Server>]) -> Result<Arc<Server>, GatewayError> {
        self.cluster.choose(key, avoid).ok_or_else(|| {
            if let Some(left_out) = self.failures.pass() {
                let upstream = &**self.spec.name();
                tracing::warn!(
                    left_out,
                    upstream,
                    "every target is drained: there is nowhere to send requests"
                );
            }
            Kind::UpstreamSaturated.into()
        })
    }

    /// Counts how a try ended. Whoever judges servers is told by [`circuits::Passages`].
    fn observe(&self, server: &Server, outcome: Outcome) {
        match outcome {
            Outcome::Answered { status, took } => server.metrics.answered(status, took),
            Outcome::Failed(kind) => server.metrics.failed(kind),
            Outcome::Abandoned => {}
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        for task in [&self.keeper, &self.reflector] {
            if let Some(task) = task.get() {
                task.abort();
            }
        }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("name", self.spec.name()).finish_non_exhaustive()
    }
}
