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
mod pool;
mod registry;
mod send;
pub mod spec;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tls;

pub use body::UpstreamBody;
pub use health::{Condition, ServerStatus, UpstreamStatus};
pub use identity::{TRACEPARENT, X_REQUEST_ID, set_identity};
pub use meter::{Figures, Meter};
pub use registry::{Registry, Running};
pub use send::SendOptions;
pub use spec::UpstreamSpec;

use crate::state::Shared;
use crate::telemetry::{Throttle, UpstreamMetrics};
use balance::Balancer;
use pool::Server;
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
            spec,
        })
    }

    /// What it was made from.
    pub fn spec(&self) -> &Arc<UpstreamSpec> {
        &self.spec
    }

    /// Its counters.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.get() {
            keeper.abort();
        }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("name", self.spec.name()).finish_non_exhaustive()
    }
}
