//! How much is taken on at a time.

use crate::manifest::Spanned;
use crate::units::Dur;
use schemars::JsonSchema;
use serde::Deserialize;

/// A bound on what is under way that is found from how long answers take to their head: it grows while they are as quick
/// as those of an idle server, and shrinks when they begin to wait for each other.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Adaptive {
    /// Lowest bound, and the first (default 10).
    pub min: Option<Spanned<u32>>,
    /// Highest bound (default 1000).
    pub max: Option<Spanned<u32>>,
    /// Over how long answers are gathered before the bound moves (default `100ms`).
    pub window: Option<Dur>,
    /// How often the time of an idle server is measured anew; the bound is halved for that moment (default `30s`).
    pub remeasure: Option<Spanned<Dur>>,
}
