//! A bound on what is under way at a time. Whoever is let in holds a [`Pass`] until they are done.

use super::gradient::{Gradient, GradientSpec};
use crate::exchange::{Exchange, Observer};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Why somebody was shed, as the metric, the log and readiness name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// As many as the route's `max_in_flight` are under way on it.
    Route,
    /// As many as the route's `adaptive` has found good are.
    RouteAdaptive,
    /// As many as the upstream's `max_in_flight` are under way to it.
    Upstream,
    /// As many as the upstream's `adaptive` has found good are.
    UpstreamAdaptive,
    /// As many as MAX_IN_FLIGHT has for those of this priority are under way in the process.
    InFlight,
    /// The process has too little memory left.
    Memory,
}

impl Reason {
    /// Every reason, in order.
    pub const ALL: [Reason; 6] = [
        Reason::Route,
        Reason::RouteAdaptive,
        Reason::Upstream,
        Reason::UpstreamAdaptive,
        Reason::InFlight,
        Reason::Memory,
    ];

    /// The word for metrics.
    pub fn word(self) -> &'static str {
        match self {
            Reason::Route => "route",
            Reason::RouteAdaptive => "route_adaptive",
            Reason::Upstream => "upstream",
            Reason::UpstreamAdaptive => "upstream_adaptive",
            Reason::InFlight => "in_flight",
            Reason::Memory => "memory",
        }
    }
}

/// What bounds a gate; either or both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Caps {
    /// So many at a time, whatever happens.
    pub max_in_flight: Option<u32>,
    /// So many as turn out to be good.
    pub adaptive: Option<GradientSpec>,
}

/// Counts what is under way.
#[derive(Debug)]
pub struct Gate {
    busy: AtomicU32,
    /// Most that were under way at a time, since `gradient` last looked.
    peak: AtomicU32,
    fixed: u32,
    /// What `gradient` has found.
    found: AtomicU32,
    gradient: Option<Mutex<Gradient>>,
    /// What to say at `fixed`, and at `found`.
    reasons: (Reason, Reason),
}

/// The right to be under way; given back when dropped.
#[derive(Debug)]
#[must_use = "dropping it gives it back"]
pub struct Pass {
    gate: Arc<Gate>,
    began: Instant,
}

impl Gate {
    /// For one route.
    pub fn of_route(caps: &Caps) -> Arc<Gate> {
        Self::new(caps, (Reason::Route, Reason::RouteAdaptive), Instant::now())
    }

    /// For one upstream.
    pub fn of_upstream(caps: &Caps) -> Arc<Gate> {
        Self::new(caps, (Reason::Upstream, Reason::UpstreamAdaptive), Instant::now())
    }

    fn new(caps: &Caps, reasons: (Reason, Reason), now: Instant) -> Arc<Gate> {
        let gradient = caps.adaptive.map(|spec| Gradient::new(spec, now));
        Arc::new(Gate {
            busy: AtomicU32::new(0),
            peak: AtomicU32::new(0),
            fixed: caps.max_in_flight.unwrap_or(u32::MAX),
            found: AtomicU32::new(gradient.as_ref().map_or(u32::MAX, Gradient::limit)),
            gradient: gradient.map(Mutex::new),
            reasons,
        })
    }

    /// Lets somebody in, or says at once why not.
    ///
    /// # Errors
    /// As many as may be are under way.
    pub fn enter(self: &Arc<Self>) -> Result<Pass, Reason> {
        let found = self.found.load(Ordering::Relaxed);
        let limit = self.fixed.min(found);
        let entered = self
            .busy
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |busy| (busy < limit).then_some(busy + 1));
        match entered {
            Ok(before) => {
                if self.gradient.is_some() {
                    self.peak.fetch_max(before + 1, Ordering::Relaxed);
                }
                Ok(Pass { gate: self.clone(), began: Instant::now() })
            }
            Err(_) if found < self.fixed => Err(self.reasons.1),
            Err(_) => Err(self.reasons.0),
        }
    }

    /// An answer took so long to its head. Nobody waits here: where two come at once, one is not taken note of.
    pub fn answered(&self, took: Duration) {
        let Some(gradient) = &self.gradient else { return };
        let Ok(mut gradient) = gradient.try_lock() else { return };
        if gradient.sample(Instant::now(), took, self.peak.load(Ordering::Relaxed)) {
            self.peak.store(self.busy.load(Ordering::Relaxed), Ordering::Relaxed);
            self.found.store(gradient.limit(), Ordering::Relaxed);
        }
    }

    /// How many are under way.
    pub fn busy(&self) -> u32 {
        self.busy.load(Ordering::Relaxed)
    }

    /// How many may be.
    pub fn limit(&self) -> u32 {
        self.fixed.min(self.found.load(Ordering::Relaxed))
    }
}

impl Pass {
    /// The head of the answer is there, so long after this was given.
    pub fn answered(&self) {
        self.gate.answered(self.began.elapsed());
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Held by an exchange, it is given back when that ends.
impl Observer for Pass {
    fn finished(&self, _: &Exchange) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_limit_are_let_in_whatever_races() {
        let gate = Gate::of_route(&Caps { max_in_flight: Some(7), adaptive: None });
        let most = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        if let Ok(pass) = gate.enter() {
                            most.fetch_max(gate.busy(), Ordering::Relaxed);
                            drop(pass);
                        }
                    }
                });
            }
        });
        assert!((1..=7).contains(&most.into_inner()));
        assert_eq!(gate.busy(), 0);
        let passes: Vec<_> = (0..7).map(|_| gate.enter().unwrap()).collect();
        assert_eq!(gate.enter().unwrap_err(), Reason::Route);
        drop(passes);
        assert!(gate.enter().is_ok());
    }

    #[test]
    fn the_lower_of_both_counts_and_is_named() {
        let spec = GradientSpec {
            min: 2,
            max: 50,
            window: Duration::from_millis(1),
            remeasure: Duration::from_secs(60),
        };
        let gate = Gate::of_upstream(&Caps { max_in_flight: Some(4), adaptive: Some(spec) });
        let mut passes: Vec<_> = (0..2).map(|_| gate.enter().unwrap()).collect();
        assert_eq!(gate.enter().unwrap_err(), Reason::UpstreamAdaptive);
        // Quick answers: more turn out to be good than are allowed.
        let began = Instant::now();
        while gate.limit() < 4 {
            assert!(began.elapsed() < Duration::from_secs(10), "{gate:?}");
            gate.answered(Duration::from_micros(100));
        }
        passes.extend((0..2).map(|_| gate.enter().unwrap()));
        while gate.found.load(Ordering::Relaxed) <= 4 {
            assert!(began.elapsed() < Duration::from_secs(10), "{gate:?}");
            gate.answered(Duration::from_micros(100));
        }
        assert_eq!(gate.enter().unwrap_err(), Reason::Upstream);
    }
}
