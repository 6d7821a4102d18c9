//! How servers are found that only their traffic shows to be broken, and where they are.

use crate::manifest::Spanned;
use crate::units::{Dur, Percent};
use schemars::JsonSchema;
use serde::Deserialize;

/// Which servers are ejected for what their traffic shows, and for how long. It is on by default wherever there is more
/// than one server; the last one that takes requests is never ejected. What counts against a server: no connection, no
/// answer, a broken or unreadable one, and 502, 503 and 504.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Outlier {
    /// Whether servers are ejected at all (default true).
    pub enabled: Option<bool>,
    /// Failures in a row that eject a server (default 5).
    pub consecutive_failures: Option<Spanned<u32>>,
    /// What happened within this time counts for the shares and averages below (default `10s`).
    pub interval: Option<Spanned<Dur>>,
    /// Requests within the interval below which no share and no average counts (default 20).
    pub min_requests: Option<Spanned<u32>>,
    /// Share of failures that ejects a server, 0 to 1 (default 0.5).
    pub failure_ratio: Option<Spanned<f64>>,
    /// An answer whose head took longer is slow (default: none is).
    pub slow_call: Option<Dur>,
    /// Share of slow answers that ejects a server, 0 to 1 (default 0.5); needs `slow_call`.
    pub slow_ratio: Option<Spanned<f64>>,
    /// Ejects a server whose answers take this many times as long as those of the others on average, at least 100ms
    /// more, and beyond chance (default 5; 0 for never; with `balance: { hash: … }` never by default, because there
    /// servers have callers of their own).
    pub slow_factor: Option<Spanned<f64>>,
    /// How long the first ejection lasts; the next lasts as long again, and so on (default `30s`). Then the server is on
    /// trial: one request at a time, until three in a row were good.
    pub eject_for: Option<Spanned<Dur>>,
    /// How long an ejection lasts at most (default `5m`).
    pub max_eject_for: Option<Spanned<Dur>>,
    /// Share of the servers that may be ejected at a time, rounded up (default `50%`).
    pub max_ejected: Option<Percent>,
}

/// When the names of targets are looked up again.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resolve {
    /// Between two look-ups (default `30s`). Each address that a name has is a server of its own, with a part of the
    /// target's weight and with `max_connections` of its own; where there are several of both families, those of IPv4
    /// count. A look-up that fails changes nothing.
    pub every: Option<Spanned<Dur>>,
}
