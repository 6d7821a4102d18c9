//! Upstreams that run. A reload keeps those whose definition did not change: their connections, their health and
//! their counters go on.

use super::breaker::{Breaker, Circuit};
use super::{Upstream, UpstreamSpec, UpstreamStatus};
use crate::state::{CheckState, HealthSource, Shared};
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Running upstreams by name.
pub type Running = HashMap<Arc<str>, Arc<Upstream>>;

/// The upstreams of the live table.
#[derive(Debug, Default)]
pub struct Registry {
    running: ArcSwap<Running>,
    /// Held while somebody drains a target or a table takes another's place.
    changing: Mutex<()>,
}

/// What came of draining a target, or of ending that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// There is no upstream of this name.
    NoUpstream,
    /// It has no such target.
    NoTarget,
    /// It is done; so many requests are still under way to the target.
    Done(usize),
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
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.running.load();
        for (name, upstream) in &upstreams {
            // What was drained stays so under another definition too, as long as it has the target.
            if let Some(old) = before.get(name).filter(|old| !Arc::ptr_eq(old, upstream)) {
                for target in old.cluster.drained() {
                    upstream.cluster.drain(target, true);
                }
            }
            upstream.spawn_upkeep();
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
            for server in &upstream.cluster.view().servers {
                if let Some(breaker) = &server.breaker {
                    show(name, Some(&server.spec.address), breaker, now);
                }
            }
        }
    }

    /// Takes a target (`host:port`) out of service, or puts it back: it gets no new request while those that it has go
    /// on. Holds until the opposite is asked for, over reloads too as long as the upstream has the target, but not
    /// over a restart, and in this process only.
    pub fn drain(&self, upstream: &str, target: &str, drained: bool) -> Drained {
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        match self.running.load().get(upstream) {
            None => Drained::NoUpstream,
            Some(upstream) => {
                upstream.cluster.drain(target, drained).map_or(Drained::NoTarget, Drained::Done)
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
    /// Upstreams whose servers are asked how they are or show it by their traffic, or whose breaker is not closed, named
    /// as the seed names them: `algo_service`.
    fn checks(&self) -> Vec<(String, CheckState)> {
        let running = self.running.load();
        let checked = running.values().filter_map(|upstream| {
            let state = match upstream.breaker.as_ref().map(|breaker| breaker.circuit()) {
                Some(Circuit::Open) => CheckState::Unhealthy,
                Some(Circuit::HalfOpen) => CheckState::Degraded,
                Some(Circuit::Closed) | None => {
                    upstream.status().check(upstream.spec().health().is_some())?
                }
            };
            Some((format!("{}_service", upstream.spec().name()), state))
        });
        checked.collect()
    }
}
