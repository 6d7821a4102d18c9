//! The breakers of an upstream at work: its own, and one for each server where it has several targets.

use super::breaker::{Breaker, Changed, Circuit, Passage, Refused};
use super::cluster::Cluster;
use super::outcome::Outcome;
use super::pool::Server;
use super::spec::UpstreamSpec;
use super::window::Counts;
use super::{Registry, Upstream};
use crate::error::{GatewayError, Kind};
use crate::telemetry::Telemetry;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A breaker at one moment, for the admin API.
#[derive(Debug, Clone, Serialize)]
pub struct BreakerStatus {
    /// Name of the upstream.
    pub upstream: String,
    /// `host:port` of the server; none for the upstream's own.
    pub target: Option<String>,
    /// Whether it lets requests through.
    pub state: Circuit,
    /// Milliseconds until it lets a probe through, if it is open.
    pub opens_in_ms: Option<u64>,
    /// Requests that count now.
    pub requests: u64,
    /// Those that failed.
    pub failed: u64,
    /// Those that were slow.
    pub slow: u64,
}

/// What let a try through, and whom it says how it ended: the one place where servers are judged by their traffic.
/// Dropped without [`tell`](Self::tell), nobody knows how it ended.
pub(super) struct Passages {
    began: Instant,
    own: Option<Passage>,
    at_server: Option<Passage>,
    server: Option<Arc<Server>>,
    /// The servers beside it, where each has a breaker.
    fellows: Option<Arc<Cluster>>,
}

/// A server that may be sent a request.
pub(super) struct Chosen {
    pub(super) server: Arc<Server>,
    pub(super) passages: Passages,
}

impl Passages {
    /// Says how the try ended.
    pub(super) fn tell(mut self, outcome: Outcome) {
        let server = self.server.take();
        if let Some(server) = &server {
            server.judge(outcome);
        }
        if self.own.is_none() && self.at_server.is_none() {
            return;
        }
        let now = millis(self.began);
        if let Some(passage) = self.at_server.take() {
            passage.tell(outcome, now);
        }
        // What is wrong with one target is for its own breaker while another is well: else one of two that fails would
        // close the way to both.
        let fellows = self.fellows.take().filter(|_| outcome != Outcome::Abandoned);
        if let Some(own) = self.own.take() {
            let is_well = |other: &Arc<Server>| {
                let same = server.as_ref().is_some_and(|server| Arc::ptr_eq(server, other));
                !same && other.breaker.as_ref().is_some_and(|breaker| breaker.is_well(now))
            };
            let elsewhere = own.is_bad(outcome)
                && fellows.is_some_and(|cluster| cluster.view().servers.iter().any(is_well));
            own.tell(if elsewhere { Outcome::Abandoned } else { outcome }, now);
        }
    }

    /// The head of an answer came whose status only its trailers will say: a probe need not wait for those, which of a
    /// stream may be hours away while everybody else is refused.
    pub(super) fn headed(&mut self, took: Duration) {
        let now = millis(self.began);
        for passage in [&mut self.own, &mut self.at_server] {
            if let Some(probe) = passage.take_if(|passage| passage.is_probe()) {
                probe.tell(Outcome::Answered { status: 200, took }, now);
            }
        }
    }
}

impl Drop for Passages {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.judge(Outcome::Abandoned);
        }
    }
}

/// A breaker of an upstream, or with `target` of one of its servers, if the manifest asks for them.
pub(super) fn breaker(
    spec: &UpstreamSpec,
    target: Option<&str>,
    telemetry: &Telemetry,
) -> Option<Arc<Breaker>> {
    let rules = *spec.breaker()?;
    let (upstream, target) = (spec.name().clone(), target.unwrap_or_default().to_owned());
    let metrics = telemetry.breaker(&upstream, &target);
    let changed = move |circuit: Circuit, Counts([requests, failed, slow]): Counts| {
        metrics.became(circuit as u8);
        let (upstream, target) = (&*upstream, &*target);
        match circuit {
            Circuit::Open => {
                tracing::warn!(
                    upstream,
                    target,
                    requests,
                    failed,
                    slow,
                    "a breaker opened: requests are refused"
                );
            }
            Circuit::HalfOpen => {
                tracing::info!(upstream, target, "a breaker lets one request through to see")
            }
            Circuit::Closed => tracing::info!(upstream, target, "a breaker closed"),
        }
    };
    Some(Breaker::new(rules, Changed(Arc::new(changed))))
}

impl Upstream {
    /// The server of the next try, past the breakers. `tried` are those that had it before.
    ///
    /// # Errors
    /// [`Kind::UpstreamUnavailable`] where breakers let nobody through, with when they will; and as `choose`.
    pub(super) fn pick(&self, key: Option<u64>, tried: &[Arc<Server>]) -> Result<Chosen, GatewayError> {
        if self.breaker.is_none() {
            let server = self.choose(key, tried)?;
            let judged = Some(server.clone());
            let passages =
                Passages { began: self.began, own: None, at_server: None, server: judged, fellows: None };
            return Ok(Chosen { server, passages });
        }
        let now = self.now();
        let own = match &self.breaker {
            Some(breaker) => Some(breaker.admit(now).map_err(|refused| self.unavailable(refused))?),
            None => None,
        };
        let mut avoid = tried.to_vec();
        let mut soonest: Option<u64> = None;
        loop {
            let server = self.choose(key, &avoid)?;
            let again = avoid[tried.len()..].iter().any(|refused| Arc::ptr_eq(refused, &server));
            let admitted = match &server.breaker {
                _ if again => Err(Refused(soonest.unwrap_or_default())),
                Some(breaker) => breaker.admit(now).map(Some),
                None => Ok(None),
            };
            match admitted {
                Ok(passage) => {
                    let judged = Some(server.clone());
                    let fellows = passage.is_some().then(|| self.cluster.clone());
                    let passages =
                        Passages { began: self.began, own, at_server: passage, server: judged, fellows };
                    return Ok(Chosen { server, passages });
                }
                Err(refused) if again => {
                    server.judge(Outcome::Abandoned);
                    return Err(self.unavailable(refused));
                }
                Err(Refused(wait)) => {
                    // It may have had the one place of a server on trial.
                    server.judge(Outcome::Abandoned);
                    soonest = Some(soonest.map_or(wait, |soonest| soonest.min(wait)));
                    avoid.push(server);
                }
            }
        }
    }

    fn unavailable(&self, Refused(wait): Refused) -> GatewayError {
        let kind = Kind::UpstreamUnavailable;
        GatewayError { retry_after: Some(Duration::from_millis(wait.max(1))), ..kind.into() }
    }

    /// Milliseconds since it began.
    pub(super) fn now(&self) -> u64 {
        millis(self.began)
    }

    /// An answer whose head was good broke off.
    pub(super) fn broke_off(&self, server: &Server) {
        for breaker in [&self.breaker, &server.breaker].into_iter().flatten() {
            breaker.broke_off(self.now());
        }
    }
}

impl Registry {
    /// Every breaker at this moment, by upstream and target.
    pub fn breakers(&self) -> Vec<BreakerStatus> {
        let mut all = Vec::new();
        self.each_breaker(|upstream, target, breaker, now| {
            let Counts([requests, failed, slow]) = breaker.counts(now);
            all.push(BreakerStatus {
                upstream: upstream.to_owned(),
                target: target.map(str::to_owned),
                state: breaker.circuit(),
                opens_in_ms: breaker.opens_in(now),
                requests,
                failed,
                slow,
            });
        });
        all.sort_by(|a, b| (&a.upstream, &a.target).cmp(&(&b.upstream, &b.target)));
        all
    }

    /// Closes the breakers of an upstream, or of one of its servers; how many there are.
    pub fn reset_breakers(&self, upstream: &str, target: Option<&str>) -> usize {
        let mut count = 0;
        self.each_breaker(|name, address, breaker, _| {
            if name == upstream && (target.is_none() || target == address) {
                breaker.reset();
                count += 1;
            }
        });
        count
    }
}

fn millis(began: Instant) -> u64 {
    began.elapsed().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::spec::tests::spec;

    #[test]
    fn a_probe_that_streams_closes_the_breaker_with_its_head() {
        let spec = spec("{ targets: [{ url: \"http://h\" }], breaker: { min_requests: 1, open_for: 1ms } }");
        let breaker = Breaker::new(*spec.breaker().unwrap(), Changed(Arc::new(|_, _| {})));
        breaker.admit(0).unwrap().tell(Outcome::Failed(Kind::UpstreamReset), 0);
        assert_eq!(breaker.circuit(), Circuit::Open);
        let own = Some(breaker.admit(10).unwrap());
        let mut passages =
            Passages { began: Instant::now(), own, at_server: None, server: None, fellows: None };
        assert!(breaker.admit(11).is_err(), "one at a time");
        passages.headed(Duration::from_millis(1));
        assert_eq!(breaker.circuit(), Circuit::Closed);
        drop(passages);
        assert_eq!(breaker.circuit(), Circuit::Closed);
    }
}
