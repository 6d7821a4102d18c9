//! Answers from memory: what came of each request, and how much is kept.

use super::meters::{Meters, label};
use crate::exchange::RouteInfo;
use opentelemetry::metrics::{BoundCounter, Counter};

/// The instrument, before it is bound to a route.
pub(super) struct CacheMeters {
    requests: Counter<u64>,
}

/// What came of a request at a `cache`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheResult {
    /// Answered with a fresh copy.
    Hit,
    /// Answered with a stale copy, while a new one is fetched.
    Stale,
    /// Fetched.
    Miss,
    /// Answered with what an identical request was fetching.
    Coalesced,
    /// Nothing for this cache: sent on as it came.
    Bypass,
}

impl CacheResult {
    const ALL: [CacheResult; 5] = [
        CacheResult::Hit,
        CacheResult::Stale,
        CacheResult::Miss,
        CacheResult::Coalesced,
        CacheResult::Bypass,
    ];

    fn word(self) -> &'static str {
        match self {
            CacheResult::Hit => "hit",
            CacheResult::Stale => "stale",
            CacheResult::Miss => "miss",
            CacheResult::Coalesced => "coalesced",
            CacheResult::Bypass => "bypass",
        }
    }
}

/// What is counted of one route's cache.
#[derive(Debug)]
pub struct CacheMetrics {
    requests: [BoundCounter<u64>; 5],
}

impl CacheMeters {
    pub(super) fn new(meters: &Meters) -> Self {
        let about = "Requests at a `cache`, by what came of them.";
        CacheMeters { requests: meters.counter("voicegate_cache_requests_total", about) }
    }

    pub(super) fn route(&self, route: &RouteInfo) -> CacheMetrics {
        let bind = |result: CacheResult| {
            self.requests.bind(&[label("path", route.template.clone()), label("result", result.word())])
        };
        CacheMetrics { requests: CacheResult::ALL.map(bind) }
    }
}

impl CacheMetrics {
    /// Counts a request.
    pub fn request(&self, result: CacheResult) {
        self.requests[result as usize].add(1);
    }
}

/// Shows how much is kept, whenever metrics are scraped.
pub(super) fn show(meters: &Meters, figures: impl Fn() -> [u64; 3] + Clone + Send + Sync + 'static) {
    let read = figures.clone();
    meters.gauge("voicegate_cache_entries", "Answers that are kept in memory.", move |gauge| {
        gauge.observe(read()[0] as f64, &[]);
    });
    let read = figures.clone();
    meters.gauge("voicegate_cache_bytes", "Bytes of the answers that are kept in memory.", move |gauge| {
        gauge.observe(read()[1] as f64, &[]);
    });
    let about = "Answers kept in memory that gave way to others.";
    meters.count("voicegate_cache_evictions_total", about, move |counter| {
        counter.observe(figures()[2] as f64, &[]);
    });
}
