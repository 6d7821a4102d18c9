//! Upstreams: named sets of servers, their connections and their health.
//!
//! [`spec`] is what the manifest says, checked; [`Upstream`] runs it. A request's way: `balance` chooses a server,
//! `pool` gives a slot and a connection (`client` opens one if none is at rest; with `protocol: grpc` the connections
//! are HTTP/2 and of `http2`, which requests share), `send` gets the response's head,
//! and `body` carries its body until the connection can be given back. `health` asks servers how they are, `meter`
//! counts. Nobody but this module speaks with a server.

mod balance;
mod body;
mod client;
mod health;
mod http2;
mod identity;
mod meter;
mod outcome;
mod pool;
mod primed;
mod reflection;
mod registry;
mod send;
pub mod spec;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tls;
mod upgrade;

pub use body::UpstreamBody;
pub use health::{Condition, ServerStatus, UpstreamStatus};
pub use identity::{TRACEPARENT, X_REQUEST_ID, set_identity};
pub use meter::{Figures, Meter};
pub use primed::{Pieces, Primed};
pub use registry::{Registry, Running};
pub use send::SendOptions;
pub use spec::UpstreamSpec;
pub use upgrade::{Switch, UpstreamSocket};

use crate::state::Shared;
use crate::telemetry::{Throttle, UpstreamMetrics};
use arc_swap::ArcSwapOption;
use balance::Balancer;
use outcome::Outcome;
use pool::Server;
use prost_reflect::DescriptorPool;
use std::fmt;
use std::sync::{Arc, OnceLock};
use tokio::task::AbortHandle;

/// A running upstream. Lives as long as a table or a response needs it; dropping it closes its connections at rest
/// and stops its health checks.
pub struct Upstream {
    spec: Arc<UpstreamSpec>,
    servers: Box<[Arc<Server>]>,
    /// Held so that the counters of its servers are shown.
    _metrics: Arc<UpstreamMetrics>,
    balancer: Balancer,
    meter: Meter,
    failures: Throttle,
    shared: Arc<Shared>,
    keeper: OnceLock<AbortHandle>,
    /// What its servers said of their methods, with `reflection: true`.
    reflected: ArcSwapOption<DescriptorPool>,
    reflector: OnceLock<AbortHandle>,
}

impl Upstream {
    /// Makes it run; nothing is opened yet.
    pub fn new(spec: Arc<UpstreamSpec>, shared: &Arc<Shared>) -> Arc<Upstream> {
        let metrics = shared.telemetry.upstream(spec.name());
        let weights: Vec<u32> = spec.servers().iter().map(|server| server.weight).collect();
        Arc::new(Upstream {
            servers: spec.servers().iter().map(|server| Server::new(&spec, server, &metrics)).collect(),
            _metrics: metrics,
            balancer: Balancer::new(spec.balance(), &weights),
            meter: Meter::default(),
            failures: Throttle::default(),
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

    /// The server of the next try.
    fn choose(&self) -> &Arc<Server> {
        &self.servers[self.balancer.pick(&*self.servers, rand::random)]
    }

    /// Takes note of how a try ended: the one place where servers are judged by their traffic.
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
