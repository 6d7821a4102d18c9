//! Upstreams at one moment, for `/health` and the admin API.

use super::cluster::Cluster;
use super::outlier::Reason;
use super::pool::{Server, Watch};
use super::standing::{DOWN, DRAINED, EJECTED, TRIAL, WHOLE};
use super::{Condition, Figures, Upstream};
use crate::state::CheckState;
use serde::Serialize;

/// An upstream at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct UpstreamStatus {
    /// Its name.
    pub name: String,
    /// Whether it has a server that takes requests because it is well.
    pub available: bool,
    /// Whether so few servers pass their health checks that these are disregarded.
    pub panicking: bool,
    /// Its servers.
    pub servers: Vec<ServerStatus>,
    /// Its counters.
    pub figures: Figures,
}

/// A server at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct ServerStatus {
    /// The target, `host:port`.
    pub address: String,
    /// The addresses that lead to it, where the target's host is a name that was looked up.
    pub resolved: Vec<String>,
    /// The target's share beside the others.
    pub weight: u32,
    /// What health checks say of it.
    pub condition: Condition,
    /// What the last check said, if it failed.
    pub trouble: Option<String>,
    /// Whether somebody took the target out of service.
    pub drained: bool,
    /// Whether it rests for what its traffic showed, and for how many seconds more.
    pub ejected: Option<u64>,
    /// Whether it was ejected and is now sent one request at a time.
    pub on_trial: bool,
    /// Why it was last ejected.
    pub last_ejection: Option<Reason>,
    /// Ejections that lengthen the next one.
    pub ejections: u32,
    /// What it takes of its share for having come up not long ago, in percent.
    pub share: u64,
    /// Requests it has.
    pub in_flight: usize,
    /// Connections at rest.
    pub at_rest: usize,
}

impl Upstream {
    /// How it is.
    pub fn status(&self) -> UpstreamStatus {
        let cluster = &self.cluster;
        let panicking = cluster.panics();
        let view = cluster.view();
        let well = |server: &Server| {
            let bits = server.standing.bits();
            server.spec.weight > 0
                && bits & (EJECTED | TRIAL | DRAINED) == 0
                && (bits & DOWN == 0 || panicking)
        };
        UpstreamStatus {
            name: self.spec().name().to_string(),
            available: view.servers.iter().any(|server| well(server)),
            panicking,
            servers: view.servers.iter().map(|server| status(cluster, server)).collect(),
            figures: self.meter().snapshot(),
        }
    }
}

fn status(cluster: &Cluster, server: &Server) -> ServerStatus {
    let now = cluster.now();
    let conduct = server.watch.as_ref().map(|Watch { conduct, .. }| conduct);
    let (last_ejection, ejections) = conduct.map(|conduct| conduct.ejections()).unwrap_or_default();
    let slow_start = cluster.spec.slow_start().as_millis() as u64;
    ServerStatus {
        address: server.spec.address.to_string(),
        resolved: server.spec.resolved.iter().map(ToString::to_string).collect(),
        weight: server.spec.weight,
        condition: server.health.condition(),
        trouble: server.health.trouble(),
        drained: server.standing.has(DRAINED),
        ejected: conduct
            .and_then(|conduct| conduct.left(&server.standing, now))
            .map(|left| left.div_ceil(1000)),
        on_trial: server.standing.has(TRIAL),
        last_ejection,
        ejections,
        share: server.standing.share(now, slow_start) * 100 / WHOLE,
        in_flight: server.in_flight(),
        at_rest: server.at_rest(),
    }
}

impl UpstreamStatus {
    /// For `/health`; none where nobody asks servers how they are and their traffic shows nothing. Drained servers say
    /// nothing unless all are.
    pub(super) fn check(&self, asks: bool) -> Option<CheckState> {
        let away = |server: &&ServerStatus| server.ejected.is_some() || server.on_trial;
        if !asks && !self.servers.iter().any(|server| server.drained || away(&server)) {
            return None;
        }
        let serving = || self.servers.iter().filter(|server| !server.drained);
        let bad = serving().filter(|s| away(s) || s.condition == Condition::Down).count();
        let up = serving().filter(|s| !away(s) && s.condition == Condition::Up).count();
        let unknown = serving().count() - bad - up;
        Some(match (up, bad, unknown) {
            (0, 0, 0) => CheckState::Unhealthy,
            (0, 0, _) if asks => CheckState::Unknown,
            (_, 0, _) => CheckState::Healthy,
            (0, _, 0) => CheckState::Unhealthy,
            _ => CheckState::Degraded,
        })
    }
}
