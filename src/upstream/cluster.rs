//! The servers of an upstream: those of the manifest, under the addresses that their names have now.
//!
//! What requests read is one immutable [`View`]; the task that keeps the upstream makes another when an address comes
//! or goes. A server whose address stays keeps its connections and what is known of it. One whose address went is let
//! go: its connections at rest close with it, those in use when they are done.

use super::balance::{Balancer, Place, Rules, Servers, Wish, gcd, hash};
use super::circuits;
use super::outlier::Conduct;
use super::pool::{Server, Watch};
use super::resolve::Resolve;
use super::spec::{Choice, ServerSpec, UpstreamSpec};
use super::standing::{DOWN, DRAINED, EJECTED, Standing, TRIAL, WARMING};
use crate::state::Shared;
use crate::telemetry::{EndpointState, UpstreamMetrics};
use arc_swap::{ArcSwap, Guard};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Parts that a target's weight is cut into at most, when its name has several addresses.
const MOST_PARTS: u64 = 10_000;

/// The servers of an upstream, and who chooses among them.
pub(super) struct Cluster {
    pub(super) spec: Arc<UpstreamSpec>,
    pub(super) resolver: Arc<dyn Resolve>,
    /// Wakes whoever decides about ejections.
    pub(super) look: Arc<Notify>,
    /// Held so that the counters of its servers are shown.
    metrics: Arc<UpstreamMetrics>,
    shared: Arc<Shared>,
    began: Instant,
    view: ArcSwap<View>,
    /// Which targets somebody took out of service.
    drained: Box<[AtomicBool]>,
    /// Held by whoever changes the view or how it stands: the keeper, and the admin API.
    changing: Mutex<()>,
}

/// The servers at one time.
pub(super) struct View {
    pub(super) servers: Box<[Arc<Server>]>,
    balancer: Balancer,
}

impl Servers for [Arc<Server>] {
    fn standing(&self, server: usize) -> &Standing {
        &self[server].standing
    }

    fn in_flight(&self, server: usize) -> usize {
        self[server].in_flight()
    }
}

impl Cluster {
    /// With names that nobody has looked up yet.
    pub(super) fn new(
        spec: Arc<UpstreamSpec>,
        shared: &Arc<Shared>,
        resolver: Arc<dyn Resolve>,
    ) -> Arc<Self> {
        let cluster = Cluster {
            resolver,
            look: Arc::default(),
            metrics: shared.telemetry.upstream(spec.name()),
            shared: shared.clone(),
            began: Instant::now(),
            view: ArcSwap::from_pointee(View { servers: Box::default(), balancer: balancer(&spec, &[]) }),
            drained: spec.servers().iter().map(|_| AtomicBool::new(false)).collect(),
            changing: Mutex::default(),
            spec,
        };
        let servers = cluster.spec.servers().iter().enumerate();
        let servers = servers.map(|(target, server)| cluster.server(target, server.clone())).collect();
        cluster.put(servers);
        Arc::new(cluster)
    }

    /// Milliseconds since it began.
    pub(super) fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// The servers now.
    pub(super) fn view(&self) -> Guard<Arc<View>> {
        self.view.load()
    }

    /// The server of the next try; none if all are drained.
    pub(super) fn choose(&self, key: Option<u64>, avoid: &[Arc<Server>]) -> Option<Arc<Server>> {
        let view = self.view.load();
        let place = |tried: &Arc<Server>| view.servers.iter().position(|server| Arc::ptr_eq(server, tried));
        // Empty, and so without an allocation, on a first try.
        let avoid: Vec<usize> = avoid.iter().filter_map(place).collect();
        let wish = Wish { key, avoid: &avoid };
        let chosen = view.balancer.pick(&*view.servers, &wish, || self.now(), rand::random)?;
        Some(view.servers[chosen].clone())
    }

    /// From now on these targets' names have these addresses; those that are not named keep theirs. Says which came
    /// and which went.
    pub(super) fn resolved(&self, found: &HashMap<usize, Vec<Vec<IpAddr>>>) -> (Vec<String>, Vec<String>) {
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let view = self.view.load_full();
        let (mut servers, mut came) = (Vec::new(), Vec::new());
        for (target, spec) in self.spec.servers().iter().enumerate() {
            let known = || view.servers.iter().filter(move |server| server.target == target);
            let Some(found) = found.get(&target) else {
                servers.extend(known().cloned());
                continue;
            };
            let first = known().any(|server| server.spec.resolved.is_empty());
            for ips in found {
                let resolved: Vec<SocketAddr> = ips.iter().map(|ip| (*ip, spec.port).into()).collect();
                if let Some(server) = known().find(|server| server.spec.resolved == resolved) {
                    servers.push(server.clone());
                    continue;
                }
                let server = self.server(target, ServerSpec { resolved, ..spec.clone() });
                came.push(server.place());
                if !first && !self.spec.slow_start().is_zero() {
                    server.standing.warm(self.now());
                }
                servers.push(server);
            }
        }
        let stays = |gone: &Arc<Server>| servers.iter().any(|server| Arc::ptr_eq(server, gone));
        let went: Vec<_> = view.servers.iter().filter(|server| !stays(server)).cloned().collect();
        if !came.is_empty() || !went.is_empty() {
            self.put(servers);
        }
        went.iter().for_each(|server| server.close_resting());
        (came, went.iter().map(|server| server.place()).collect())
    }

    /// Takes a target out of service or puts it back, and says how many requests its servers have; `None` if there is
    /// no target of this address, `host:port`.
    pub(super) fn drain(&self, address: &str, drained: bool) -> Option<usize> {
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let targets = self.spec.servers().iter().enumerate();
        let targets: Vec<usize> =
            targets.filter(|(_, server)| *server.address == *address).map(|(target, _)| target).collect();
        for target in &targets {
            self.drained[*target].store(drained, Relaxed);
        }
        let view = self.view.load();
        let servers = || view.servers.iter().filter(|server| targets.contains(&server.target));
        for server in servers() {
            if !server.standing.set(DRAINED, drained) {
                continue;
            }
            if drained {
                server.close_resting();
            } else if !self.spec.slow_start().is_zero() {
                server.standing.warm(self.now());
            }
        }
        self.publish();
        (!targets.is_empty()).then(|| servers().map(|server| server.in_flight()).sum())
    }

    /// Addresses of targets that are out of service.
    pub(super) fn drained(&self) -> impl Iterator<Item = &Arc<str>> {
        let targets = self.spec.servers().iter().zip(&self.drained);
        targets.filter(|(_, drained)| drained.load(Relaxed)).map(|(server, _)| &server.address)
    }

    /// Whether health checks are disregarded, because too few servers pass them.
    pub(super) fn panics(&self) -> bool {
        let view = self.view.load();
        view.balancer.panics(&*view.servers)
    }

    /// Shows in the metrics how its servers stand. Called after every change of it.
    pub(super) fn publish(&self) {
        let (view, panics) = (self.view.load(), self.panics());
        self.metrics.set_panicking(panics);
        for target in self.spec.servers() {
            let mut counts = [0; EndpointState::ALL.len()];
            for server in view.servers.iter().filter(|server| server.spec.address == target.address) {
                let bits = server.standing.bits();
                let taking =
                    server.spec.weight > 0 && bits & (EJECTED | DRAINED) == 0 && (bits & DOWN == 0 || panics);
                counts[EndpointState::Taking as usize] += u32::from(taking);
                for (bit, state) in [
                    (DOWN, EndpointState::Down),
                    (EJECTED, EndpointState::Ejected),
                    (TRIAL, EndpointState::Trial),
                    (DRAINED, EndpointState::Drained),
                    (WARMING, EndpointState::SlowStart),
                ] {
                    counts[state as usize] += u32::from(bits & bit != 0);
                }
            }
            self.metrics.target(&target.address).set_endpoints(counts);
        }
    }

    fn server(&self, target: usize, spec: ServerSpec) -> Arc<Server> {
        let watch = self.spec.outlier().map(|outlier| Watch {
            conduct: Conduct::new(outlier),
            look: self.look.clone(),
            began: self.began,
        });
        let several = self.spec.servers().len() > 1;
        let breaker =
            several.then(|| circuits::breaker(&self.spec, Some(&spec.address), &self.shared.telemetry));
        let server = Server::new(&self.spec, spec, target, watch, breaker.flatten(), &self.metrics);
        server.standing.set(DRAINED, self.drained[target].load(Relaxed));
        server
    }

    fn put(&self, servers: Vec<Arc<Server>>) {
        let balancer = balancer(&self.spec, &servers);
        self.view.store(Arc::new(View { servers: servers.into(), balancer }));
        self.publish();
    }
}

impl Server {
    /// Its address, and where it is a name's the one that is meant.
    pub(super) fn place(&self) -> String {
        match self.spec.resolved.first() {
            Some(resolved) => format!("{} ({})", self.spec.address, resolved.ip()),
            None => self.spec.address.to_string(),
        }
    }
}

/// Chooses among these servers. A target's weight is shared by its addresses.
fn balancer(spec: &UpstreamSpec, servers: &[Arc<Server>]) -> Balancer {
    let siblings =
        |server: &Server| servers.iter().filter(|other| other.target == server.target).count() as u64;
    let parts =
        servers.iter().map(|server| siblings(server)).fold(1, |a, b| (a / gcd(a, b) * b).min(MOST_PARTS));
    let mut seen = HashMap::new();
    let place = |server: &Arc<Server>| {
        let siblings = siblings(server);
        let weight = u64::from(server.spec.weight);
        // One address of its own: the name's keys stay with it when that changes.
        let name = if siblings > 1 { server.place() } else { server.spec.address.to_string() };
        let again: &mut u64 = seen.entry(name.clone()).or_default();
        let seed = hash(name.as_bytes()) ^ hash(&again.to_be_bytes());
        *again += 1;
        Place { weight: if weight == 0 { 0 } else { (weight * parts / siblings).max(1) }, seed }
    };
    let places = servers.iter().map(place).collect();
    let rules =
        Rules { slow_start: spec.slow_start().as_millis() as u64, panic_threshold: spec.panic_threshold() };
    let choice: Choice = spec.balance().clone();
    Balancer::new(choice, places, rules)
}

#[cfg(test)]
mod tests;
