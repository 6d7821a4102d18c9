//! Upstreams that run. A reload keeps those whose definition did not change: their connections, their health and
//! their counters go on.

use super::breaker::Breaker;
use super::{Condition, Upstream, UpstreamSpec, UpstreamStatus};
use crate::state::{CheckState, HealthSource, Shared};
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::sync::Arc;

/// Running upstreams by name.
pub type Running = HashMap<Arc<str>, Arc<Upstream>>;

/// The upstreams of the live table.
#[derive(Debug, Default)]
pub struct Registry {
    running: ArcSwap<Running>,
}

impl Registry {
    /// None yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The upstreams for a new table: those that run already where nothing about them changed, else new ones that
    /// have not begun yet.
    pub fn prepare(&self, specs: &[Arc<UpstreamSpec>], shared: &Arc<Shared>) -> Running {
        let running = self.running.load();
        let keep_or_make = |spec: &Arc<UpstreamSpec>| match running.get(&**spec.name()) {
            Some(known) if known.spec().fingerprint() == spec.fingerprint() => known.clone(),
            _ => Upstream::new(spec.clone(), shared),
        };
        specs.iter().map(|spec| (spec.name().clone(), keep_or_make(spec))).collect()
    }

    /// From now on these run. The others end when the last request that uses them does.
    pub fn commit(&self, upstreams: Running) {
        for upstream in upstreams.values() {
            upstream.spawn_health();
            upstream.spawn_reflection();
        }
        self.running.store(Arc::new(upstreams));
    }

    /// Shows every breaker: its upstream, its server if it is not the upstream's own, and the time it goes by.
    pub(super) fn each_breaker(&self, mut show: impl FnMut(&str, Option<&str>, &Breaker, u64)) {
        for upstream in self.running.load().values() {
            let (name, now) = (upstream.spec().name(), upstream.now());
            if let Some(breaker) = &upstream.breaker {
                show(name, None, breaker, now);
            }
            for server in &upstream.servers {
                if let Some(breaker) = &server.breaker {
                    show(name, Some(&server.spec.address), breaker, now);
                }
            }
        }
    }

    /// Each at this moment, by name.
    pub fn status(&self) -> Vec<UpstreamStatus> {
        let mut all: Vec<_> = self.running.load().values().map(|upstream| upstream.status()).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

impl HealthSource for Registry {
    /// Upstreams that have health checks, named as the seed names them: `algo_service`.
    fn checks(&self) -> Vec<(String, CheckState)> {
        let running = self.running.load();
        let checked = running.values().filter(|upstream| upstream.spec().health().is_some());
        checked
            .map(|upstream| (format!("{}_service", upstream.spec().name()), state(&upstream.status())))
            .collect()
    }
}

fn state(status: &UpstreamStatus) -> CheckState {
    let count = |wanted| status.servers.iter().filter(|server| server.condition == wanted).count();
    match (count(Condition::Up), count(Condition::Down)) {
        (0, 0) => CheckState::Unknown,
        (_, 0) => CheckState::Healthy,
        (0, _) if count(Condition::Unknown) == 0 => CheckState::Unhealthy,
        _ => CheckState::Degraded,
    }
}
