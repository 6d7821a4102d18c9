//! How much the whole process has to do, and who is sent away first.
//!
//! Every route has a [`Rank`]. `MAX_IN_FLIGHT` is filled by everybody, but the less important may fill only a part of
//! it: so the last places are free for the more important. Memory goes by three marks (soft, half way, hard), each of
//! which sends away those below a rank; a mark is left again a little below where it was met, so that nothing flaps.

use super::Reason;
use super::memory::Marks;
use crate::error::{GatewayError, Kind};
use crate::exchange::{Exchange, Observer};
use crate::telemetry::{Telemetry, Throttle};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// How important a route is beside the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Shed first.
    Low,
    /// As most.
    #[default]
    Normal,
    /// Shed last.
    High,
}

/// How long a request goes on being let in as the process gets busier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank(u8);

impl Rank {
    /// Never shed: health.
    pub const VITAL: Rank = Rank(6);

    /// Of a route: by its priority, and on one priority a new stream goes before a short request.
    pub fn of(priority: Priority, stream: bool) -> Self {
        Rank(priority as u8 * 2 + u8::from(!stream))
    }
}

/// The part of `MAX_IN_FLIGHT` that each rank may find taken.
const SHARES: [f64; 6] = [0.5, 0.6, 0.75, 0.9, 0.95, 1.0];

/// How short memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// There is enough.
    Calm = 0,
    /// Above the soft mark: new streams and what is of low priority are shed.
    Soft = 1,
    /// Half way to the hard mark: only short requests of high priority are let in.
    Tight = 2,
    /// Above the hard mark: nothing but health.
    Hard = 3,
}

impl Level {
    const ALL: [Level; 4] = [Level::Calm, Level::Soft, Level::Tight, Level::Hard];

    /// The word for logs and readiness.
    pub fn word(self) -> &'static str {
        match self {
            Level::Calm => "calm",
            Level::Soft => "soft",
            Level::Tight => "tight",
            Level::Hard => "hard",
        }
    }

    /// The lowest rank that is let in.
    fn lowest(self) -> Rank {
        Rank([0, 3, 5, 6][self as usize])
    }

    /// Where it begins.
    fn mark(self, marks: Marks) -> u64 {
        match self {
            Level::Calm => 0,
            Level::Soft => marks.soft,
            Level::Tight => marks.soft + (marks.hard - marks.soft) / 2,
            Level::Hard => marks.hard,
        }
    }

    /// The level with so much in use, after `before`: it rises at its mark, and falls a twentieth below that.
    fn after(before: Level, used: u64, marks: Marks) -> Level {
        let holds = |level: &&Level| {
            let mark = level.mark(marks);
            used >= if **level <= before { mark - mark / 20 } else { mark }
        };
        *Level::ALL.iter().rev().find(holds).unwrap_or(&Level::Calm)
    }
}

/// How much the process has to do.
pub struct Pressure {
    /// Requests that may be under way for each rank; none where nothing bounds them.
    limits: Option<[u32; 6]>,
    busy: AtomicU32,
    marks: Option<Marks>,
    used: AtomicU64,
    level: AtomicU8,
    shed: [AtomicU64; Reason::ALL.len()],
    telemetry: Arc<Telemetry>,
    log: Throttle,
}

/// One of those under way; gone when dropped.
struct Place(Arc<Pressure>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Observer for Place {
    fn finished(&self, _: &Exchange) {}
}

impl Pressure {
    /// With so many under way at most, and these marks of memory.
    pub fn new(max_in_flight: Option<u32>, marks: Option<Marks>, telemetry: Arc<Telemetry>) -> Arc<Self> {
        let of = |max: u32| SHARES.map(|share| ((f64::from(max) * share).ceil() as u32).max(1));
        Arc::new(Pressure {
            limits: max_in_flight.map(of),
            busy: AtomicU32::new(0),
            marks,
            used: AtomicU64::new(0),
            level: AtomicU8::new(Level::Calm as u8),
            shed: Default::default(),
            telemetry,
            log: Throttle::default(),
        })
    }

    /// Lets a request in until its exchange ends, or says at once why not.
    ///
    /// # Errors
    /// The process has too much to do for one of this rank.
    pub fn admit(self: &Arc<Self>, rank: Rank, exchange: &Exchange) -> Result<(), Reason> {
        if rank == Rank::VITAL {
            return Ok(());
        }
        if rank < self.level().lowest() {
            return Err(Reason::Memory);
        }
        let Some(limits) = &self.limits else { return Ok(()) };
        let limit = limits[usize::from(rank.0)];
        let more = |busy: u32| (busy < limit).then_some(busy + 1);
        self.busy.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).map_err(|_| Reason::InFlight)?;
        exchange.observe(Arc::new(Place(self.clone())));
        Ok(())
    }

    /// Counts and logs somebody who was sent away, and says what they are told.
    pub fn refuse(&self, exchange: &Exchange, reason: Reason) -> GatewayError {
        let route = exchange.route().map_or("unmatched", |route| &route.template);
        self.shed[reason as usize].fetch_add(1, Ordering::Relaxed);
        self.telemetry.shed(reason.word(), route);
        // The access log has a line for each.
        if let Some(left_out) = self.log.pass() {
            let reason = reason.word();
            tracing::warn!(left_out, reason, route, "too much to do: requests are answered 503");
        }
        let again = match reason {
            Reason::Memory => Duration::from_secs(5),
            _ => Duration::from_secs(1),
        };
        GatewayError { retry_after: Some(again), ..Kind::Overloaded.into() }
    }

    /// The marks of memory, if there are any: then somebody should say regularly how much is [in use](Self::uses).
    pub fn marks(&self) -> Option<Marks> {
        self.marks
    }

    /// So much memory is in use.
    pub fn uses(&self, bytes: u64) {
        let Some(marks) = self.marks else { return };
        self.used.store(bytes, Ordering::Relaxed);
        let before = self.level();
        let now = Level::after(before, bytes, marks);
        if now == before {
            return;
        }
        self.level.store(now as u8, Ordering::Relaxed);
        let (used, soft, hard) = (bytes, marks.soft, marks.hard);
        match now > before {
            true => tracing::warn!(
                level = now.word(),
                used,
                soft,
                hard,
                "memory is short, less is taken on; raise the memory of this process, or SHED_MEMORY"
            ),
            false => tracing::info!(level = now.word(), used, soft, hard, "memory is less short"),
        }
    }

    /// How short memory is.
    pub fn level(&self) -> Level {
        Level::ALL[usize::from(self.level.load(Ordering::Relaxed)) % Level::ALL.len()]
    }

    /// Everything as readiness shows it.
    pub fn status(&self) -> Value {
        let shed: serde_json::Map<_, _> = Reason::ALL
            .iter()
            .map(|reason| {
                (reason.word().to_owned(), self.shed[*reason as usize].load(Ordering::Relaxed).into())
            })
            .collect();
        let memory = self.marks.map(|marks| {
            json!({
                "level": self.level().word(),
                "used_bytes": self.used.load(Ordering::Relaxed),
                "soft_bytes": marks.soft,
                "hard_bytes": marks.hard,
            })
        });
        let in_flight = self.limits.map(
            |limits| json!({ "now": self.busy.load(Ordering::Relaxed), "max": limits[limits.len() - 1] }),
        );
        json!({ "shed": shed, "memory": memory, "in_flight": in_flight })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::tests::exchange;
    use http::Method;
    use proptest::prelude::*;

    const MARKS: Marks = Marks { soft: 800, hard: 900 };

    fn pressure(max: Option<u32>) -> Arc<Pressure> {
        Pressure::new(max, Some(MARKS), Arc::default())
    }

    fn ranks() -> Vec<Rank> {
        let priorities = [Priority::Low, Priority::Normal, Priority::High];
        priorities
            .iter()
            .flat_map(|priority| [true, false].map(|stream| Rank::of(*priority, stream)))
            .collect()
    }

    fn asked() -> Arc<Exchange> {
        exchange(Method::GET, "/")
    }

    /// Which ranks are let in now, the lowest first.
    fn let_in(pressure: &Arc<Pressure>) -> Vec<bool> {
        ranks().into_iter().map(|rank| pressure.admit(rank, &asked()).is_ok()).collect()
    }

    #[test]
    fn the_less_important_go_first() {
        let ranks = ranks();
        assert!(ranks.is_sorted() && *ranks.last().unwrap() < Rank::VITAL);
        let pressure = pressure(Some(20));
        let mut held = Vec::new();
        for (rank, wanted) in ranks.iter().zip([10, 12, 15, 18, 19, 20]) {
            loop {
                let exchange = asked();
                match pressure.admit(*rank, &exchange) {
                    Ok(()) => held.push(exchange),
                    Err(reason) => break assert_eq!(reason, Reason::InFlight),
                }
                assert!(held.len() <= 20);
            }
            assert_eq!(held.len(), wanted, "{rank:?}");
        }
        assert_eq!(pressure.admit(Rank::VITAL, &asked()), Ok(()));
        drop(held);
        assert_eq!(let_in(&pressure), [true; 6], "each is over when its exchange is");
    }

    #[test]
    fn one_place_is_for_anybody() {
        let pressure = pressure(Some(1));
        assert_eq!(let_in(&pressure), [true; 6]);
    }

    #[test]
    fn memory_sheds_streams_then_what_is_normal_then_everything() {
        let pressure = pressure(None);
        for (used, allowed) in [
            (799, [true, true, true, true, true, true]),
            (800, [false, false, false, true, true, true]),
            // Not far enough below.
            (780, [false, false, false, true, true, true]),
            (850, [false, false, false, false, false, true]),
            (900, [false; 6]),
            (870, [false; 6]),
            (850, [false, false, false, false, false, true]),
            (800, [false, false, false, true, true, true]),
            (759, [true; 6]),
            (5000, [false; 6]),
            (1, [true; 6]),
        ] {
            pressure.uses(used);
            assert_eq!(let_in(&pressure), allowed, "{used}");
            assert_eq!(pressure.admit(Rank::VITAL, &asked()), Ok(()));
        }
    }

    #[test]
    fn readiness_shows_all_of_it() {
        let pressure = pressure(Some(10));
        pressure.uses(860);
        let exchange = asked();
        let reason = pressure.admit(Rank::of(Priority::Normal, false), &exchange).unwrap_err();
        let error = pressure.refuse(&exchange, reason);
        assert_eq!((error.kind, error.retry_after), (Kind::Overloaded, Some(Duration::from_secs(5))));
        assert_eq!(
            pressure.status(),
            json!({
                "shed": {
                    "route": 0, "route_adaptive": 0, "upstream": 0, "upstream_adaptive": 0, "in_flight": 0, "memory": 1,
                },
                "memory": { "level": "tight", "used_bytes": 860, "soft_bytes": 800, "hard_bytes": 900 },
                "in_flight": { "now": 0, "max": 10 },
            })
        );
    }

    proptest! {
        #[test]
        fn levels_follow_the_marks_and_never_flap(uses in proptest::collection::vec(0u64..1200, 1..60)) {
            let mut level = Level::Calm;
            for used in uses {
                let next = Level::after(level, used, MARKS);
                // Never lower than the marks say, never higher but by what holds a level.
                prop_assert!(next >= Level::after(Level::Calm, used, MARKS));
                prop_assert!(next <= Level::after(Level::Hard, used, MARKS));
                prop_assert_eq!(Level::after(next, used, MARKS), next, "the same figure changes nothing more");
                level = next;
            }
        }
    }
}
