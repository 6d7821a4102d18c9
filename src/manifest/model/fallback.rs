//! What a route does beside its one upstream, or instead of it: fallback, split, mirror, maintenance.

use super::Respond;
use crate::manifest::decode::{nested, reported};
use crate::manifest::node::{Node, Value};
use crate::manifest::places::nested_list;
use crate::manifest::{List, Spanned};
use crate::units::{Dur, Percent, Size};
use schemars::JsonSchema;
use serde::de::{Deserialize, Deserializer};
use std::borrow::Cow;

/// What callers get when the upstream can't answer: one of `upstream`, `stale` and `respond`, or several, which are tried
/// in this order. Every such answer carries `X-Degraded`.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fallback {
    /// Another upstream that speaks the same; streams change over until their first event has come.
    pub upstream: Option<Spanned<String>>,
    /// The last good answer to the same GET of the same caller, no older than this.
    pub stale: Option<Spanned<Dur>>,
    /// A fixed answer.
    pub respond: Option<Spanned<Respond>>,
    /// Statuses of the upstream's own that count as not answering: 429, 500 to 599 (default 502, 503, 504). That it cannot be
    /// reached, breaks off, is late, busy or cut off by its breaker always does.
    pub on: Option<Spanned<List<u16>>>,
    /// With `upstream`: what is sent on although the first upstream may have carried it out (default `safe`; `always` for
    /// streams, of which nothing was said yet).
    pub resend: Option<Spanned<Resend>>,
    /// With `upstream`: largest request body that is kept to be sent again (default `64KiB`); with a larger one, of which
    /// the first upstream took more, the error stays.
    pub max_body: Option<Spanned<Size>>,
    /// With `stale`: largest answer that is kept to be given again (default `1MiB`).
    pub max_size: Option<Spanned<Size>>,
}

/// What is sent on to another upstream although the first may have carried it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resend {
    /// Idempotent methods (RFC 9110, section 9.2.2), and requests with an `Idempotency-Key`; of others only what was provably not
    /// carried out: not connected, or answered with 503.
    Safe,
    /// Everything.
    Always,
}

/// Several upstreams by weight: bare, their list; or with how callers are told apart.
#[derive(Debug, Clone)]
pub struct Split {
    /// The upstreams and their shares.
    pub to: List<Share>,
    /// What callers are told apart by.
    pub by: Option<Spanned<SplitBy>>,
    /// Header that names one of the upstreams.
    pub header: Option<Spanned<String>>,
    /// Cookie that names one of the upstreams.
    pub cookie: Option<Spanned<String>>,
}

/// One upstream of a split.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Where it goes.
    pub upstream: Spanned<String>,
    /// Its share beside the others; 0 takes only who asks for it by header or cookie.
    pub weight: Spanned<u32>,
}

/// What callers of a split are told apart by: the same one always goes to the same upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SplitBy {
    /// The user; where nobody knows who is calling, the address.
    #[default]
    User,
    /// The address.
    Ip,
}

#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FullSplit {
    /// The upstreams and their shares.
    to: List<Share>,
    /// What callers are told apart by; the same one always goes to the same upstream, on every replica and after a reload
    /// (default `user`).
    by: Option<Spanned<SplitBy>>,
    /// Header by which a caller chooses one of the upstreams, by its name; other names count for nothing.
    header: Option<Spanned<String>>,
    /// Cookie by which a caller chooses, likewise; the header goes before it.
    cookie: Option<Spanned<String>>,
}

impl<'de> Deserialize<'de> for Split {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let node = Node::deserialize(deserializer)?;
        if let Value::Seq(_) = &node.value {
            return Ok(Split { to: nested_list(&node), by: None, header: None, cookie: None });
        }
        match nested::<FullSplit>(&node) {
            Some(FullSplit { to, by, header, cookie }) => Ok(Split { to, by, header, cookie }),
            None => Err(reported()),
        }
    }
}

impl JsonSchema for Split {
    fn schema_name() -> Cow<'static, str> {
        "Split".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let list = generator.subschema_for::<List<Share>>();
        let full = generator.subschema_for::<FullSplit>();
        schemars::json_schema!({
            "description": "Several upstreams by weight: bare, their list; or with how callers are told apart.",
            "oneOf": [list, full],
        })
    }
}

/// Copies of a route's requests for another upstream. Nobody waits for them, and their answers are thrown away.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// Where they go, with `X-Mirrored: true`.
    pub upstream: Spanned<String>,
    /// Share of the requests that is copied.
    pub share: Spanned<Percent>,
    /// Copies under way at a time; what would be more is left out (default 100).
    pub max_concurrent: Option<Spanned<u32>>,
    /// Largest request body that is copied (default `64KiB`).
    pub max_body: Option<Spanned<Size>>,
    /// How long a copy may take, answer and all (default `5s`).
    pub timeout: Option<Dur>,
}

/// Answers instead of a target while it is set. Health checks of the gateway and its admin listener go on, and so do streams
/// and sockets that are open.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Maintenance {
    /// The answer (default: 503 `maintenance` in the common form). Callers of gRPC get theirs.
    pub respond: Option<Spanned<Respond>>,
    /// When to try again, in `Retry-After` (default `60s`).
    pub retry_after: Option<Dur>,
}
