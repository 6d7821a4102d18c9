//! The breakers of an upstream at work: its own, and one for each server where it has several targets.

use super::breaker::{Breaker, Changed, Circuit, Passage, Refused};
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
}

/// A server that may be sent a request.
pub(super) struct Chosen {
    pub(super) server: Arc<Server>,
    pub(super) passages: Passages,
}

impl Passages {
    /// Says how the try ended.
    pub(super) fn tell(mut self, outcome: Outcome) {
        if let Some(server) = self.server.take() {
            server.judge(outcome);
        }
        if self.own.is_none() && self.at_server.is_none() {
            return;
        }
        let now = millis(self.began);
        for passage in [self.own.take(), self.at_server.take()].into_iter().flatten() {
            passage.tell(outcome, now);
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
    pub(super) fn admit(&self, key: Option<u64>, tried: &[Arc<Server>]) -> Result<Chosen, GatewayError> {
        if self.breaker.is_none() {
            let server = self.choose(key, tried)?;
            let judged = Some(server.clone());
            let passages = Passages { began: self.began, own: None, at_server: None, server: judged };
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
                    let passages = Passages { began: self.began, own, at_server: passage, server: judged };
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
