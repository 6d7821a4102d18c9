//! The upkeep of an upstream, one task: its health checks, its names' addresses, the ejection of servers that their
//! traffic shows to be broken, and the closing of connections that rested too long.

use super::Upstream;
use super::cluster::Cluster;
use super::health;
use super::outlier::{Event, Member};
use super::pool::{REST, Server, Watch};
use super::resolve;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

/// Until a look-up of a name has failed.
const LOOK_UP: Duration = Duration::from_secs(10);

impl Upstream {
    /// Starts its upkeep (health checks and look-ups at once). Ends with the upstream, or when the gateway goes down.
    /// Must be called within a Tokio runtime; a second call does nothing.
    pub fn spawn_upkeep(&self) {
        self.keeper.get_or_init(|| {
            let cluster = self.cluster.clone();
            let mut closing = self.shared.closing.clone();
            let upkeep = async move {
                tokio::select! {
                    // Without a sender nobody will ever say so.
                    Ok(_) = closing.wait_for(|closing| *closing) => {}
                    () = health::check(&cluster) => {}
                    () = look_up(&cluster) => {}
                    () = watch(&cluster) => {}
                    () = sweep(&cluster) => {}
                }
            };
            tokio::spawn(upkeep).abort_handle()
        });
    }
}

async fn sweep(cluster: &Cluster) {
    let mut ticks = interval(REST / 4);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        cluster.view().servers.iter().for_each(|server| server.sweep());
    }
}

/// Looks up the names of targets, again and again.
async fn look_up(cluster: &Cluster) {
    let named = |(_, server): &(usize, &super::spec::ServerSpec)| server.literal.is_none();
    let named: Vec<_> = cluster.spec.servers().iter().enumerate().filter(named).collect();
    if named.is_empty() {
        return std::future::pending().await;
    }
    // What is wrong with which, so that it is said once.
    let mut troubles: HashMap<usize, String> = HashMap::new();
    loop {
        let begun = Instant::now();
        let asked = named.iter().map(|(target, server)| async move {
            let found = timeout(LOOK_UP, cluster.resolver.resolve(&server.host)).await;
            let found = match found {
                Ok(Ok(found)) if found.is_empty() => Err("the name has no address".to_owned()),
                Ok(found) => found.map_err(|error| error.to_string()),
                Err(_) => Err("no answer in time".to_owned()),
            };
            (*target, &*server.address, found)
        });
        let name = &**cluster.spec.name();
        let mut found = HashMap::new();
        for (target, address, answer) in futures_util::future::join_all(asked).await {
            match answer {
                Ok(ips) => {
                    troubles.remove(&target);
                    found.insert(target, resolve::servers(ips));
                }
                Err(why) if troubles.get(&target) != Some(&why) => {
                    tracing::warn!(
                        upstream = name,
                        target = address,
                        error = why,
                        "a target's name cannot be looked up; the addresses known so far stay"
                    );
                    troubles.insert(target, why);
                }
                Err(_) => {}
            }
        }
        let (came, went) = cluster.resolved(&found);
        if !went.is_empty() {
            tracing::info!(upstream = name, ?came, ?went, "the addresses of targets changed");
        }
        // Replicas must not ask all at once.
        sleep_until(begun + cluster.spec.resolve_every().mul_f64(rand::random_range(0.9..1.0))).await;
    }
}

/// Decides which servers rest for what their traffic shows, and ends the slow start of others.
async fn watch(cluster: &Cluster) {
    let slow_start = cluster.spec.slow_start();
    let part = |time: Duration| (time / 10).clamp(Duration::from_millis(10), Duration::from_secs(1));
    let tick = match cluster.spec.outlier() {
        Some(outlier) => part(outlier.interval).min(part(outlier.eject_for)),
        None if slow_start.is_zero() => return std::future::pending().await,
        None => part(slow_start),
    };
    let mut ticks = interval(tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = cluster.look.notified() => {}
        }
        decide(cluster);
    }
}

/// One look at all servers.
pub(super) fn decide(cluster: &Cluster) {
    let (view, now) = (cluster.view(), cluster.now());
    let slow_start = cluster.spec.slow_start().as_millis() as u64;
    let mut changed = false;
    for server in &view.servers {
        changed |= server.standing.settle(now, slow_start);
    }
    if let Some(outlier) = cluster.spec.outlier() {
        let weighed = |server: &&Arc<Server>| server.spec.weight > 0;
        let watched: Vec<(&Arc<Server>, &Watch)> = view
            .servers
            .iter()
            .filter(weighed)
            .filter_map(|server| Some((server, server.watch.as_ref()?)))
            .collect();
        let members: Vec<Member<'_>> = watched
            .iter()
            .map(|(server, watch)| Member { standing: &server.standing, conduct: &watch.conduct })
            .collect();
        for (index, event) in outlier.sweep(&members, now) {
            let (server, watch) = watched[index];
            changed = true;
            if event == Event::Back && slow_start > 0 {
                server.standing.warm(now);
            }
            tell(cluster, server, watch, event);
        }
    }
    if changed {
        cluster.publish();
    }
}

fn tell(cluster: &Cluster, server: &Server, watch: &Watch, event: Event) {
    let (upstream, target) = (&**cluster.spec.name(), server.place());
    match event {
        Event::Ejected(reason, rest) => {
            server.metrics.ejected(reason.word());
            let (_, times) = watch.conduct.ejections();
            let (reason, rest) = (reason.word(), rest.as_secs_f64());
            tracing::warn!(upstream, target, reason, times, seconds = rest, "a server is ejected");
        }
        Event::OnTrial => tracing::info!(upstream, target, "an ejected server is on trial"),
        Event::Back => tracing::info!(upstream, target, "an ejected server is back"),
    }
}
