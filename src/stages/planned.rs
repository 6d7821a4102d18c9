//! Stages that are known but not built yet.
//!
//! Their bodies are typed and documented here, so that editors complete them and mistakes in them show today;
//! [`StageDecl::PLANNED`] makes every use of one a fault, never silence. A stage that gets built moves to a file of
//! its own, which is why this one is longer than most.

use super::{Body, Stage, StageCx, StageDecl};
use crate::diag::milestone::{IDENTITY, PROTOCOLS, UPSTREAMS};
use crate::diag::{Code, Diagnostic, Diagnostics};
use crate::manifest::decode::{List, Spanned, Table};
use crate::manifest::node::Node;
use crate::units::{Dur, Size};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;
use std::net::IpAddr;
use std::sync::Arc;

/// Lets callers pass by address; `deny` counts before `allow`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IpFilter {
    /// Addresses or networks that may call (default all).
    #[serde(default)]
    pub allow: List<String>,
    /// Addresses or networks that may not (default none).
    #[serde(default)]
    pub deny: List<String>,
}

/// Bounds how often a caller may call, in a sliding window: a policy by name, or one on the spot.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RateLimitStage")]
pub struct RateLimit {
    /// Name of a policy under `rate_limits:`; without any of the other keys.
    pub policy: Option<Spanned<String>>,
    /// Requests allowed in a window.
    pub limit: Option<Spanned<u64>>,
    /// Length of the window.
    pub per: Option<Dur>,
    /// What makes callers different: `ip`, `user`, `tenant`, `route`, `header.X`, `query.X`, `body.X` (default `ip`).
    #[serde(default)]
    pub by: List<String>,
}

/// Bounds how many calls a caller may have under way.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Concurrency {
    /// Calls under way at a time.
    pub limit: Spanned<u64>,
    /// What makes callers different, as in `rate_limit` (default: nothing, all count together).
    #[serde(default)]
    pub by: List<String>,
}

/// Answers GET from memory while a copy is fresh (RFC 9111).
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// How long a copy is fresh.
    pub ttl: Dur,
    /// What makes copies different beside the path, as in `rate_limit` (default: the whole query).
    #[serde(default)]
    pub by: List<String>,
    /// How long a copy may be given out while a new one is fetched (default: not at all).
    pub stale_while_revalidate: Option<Dur>,
    /// Answers larger than this are not kept (default `1MiB`).
    pub max_size: Option<Size>,
}

/// Checks request bodies against a JSON Schema.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Validate {
    /// The schema: `file.yaml#/json/pointer` (default: the route's own OpenAPI operation).
    pub schema: Option<Spanned<String>>,
}

/// Changes JSON bodies on their way.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Transform {
    /// Of the request.
    pub request: Option<Mapping>,
    /// Of the response.
    pub response: Option<Mapping>,
}

/// Changes to one JSON body, in the order of these keys. Fields are named by dotted paths.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mapping {
    /// Field whose value takes the whole body's place (default none).
    pub unwrap: Option<Spanned<String>>,
    /// Old field to new field.
    #[serde(default)]
    pub rename: Table<Spanned<String>>,
    /// Fields that are taken away.
    #[serde(default)]
    pub drop: List<String>,
    /// Values of fields that are missing.
    #[serde(default)]
    pub default: Table<Node>,
    /// Fields computed by CEL expressions.
    #[serde(default)]
    pub set: Table<Spanned<String>>,
    /// Headers that take a field's value.
    #[serde(default)]
    pub to_headers: Table<Spanned<String>>,
    /// Fields that take a header's value.
    #[serde(default)]
    pub from_headers: Table<Spanned<String>>,
    /// Field that the whole body becomes (default none).
    pub wrap: Option<Spanned<String>>,
}

/// Looks for attacks in what callers send.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Inspect {
    /// Attacks looked for (default both).
    #[serde(default)]
    pub look_for: List<Attack>,
    /// What happens when one is found (default `report`, because chat text looks like SQL).
    pub action: Option<Action>,
    /// Fields whose HTML is made harmless, by dotted paths (default none).
    #[serde(default)]
    pub sanitize: List<String>,
    /// Bodies larger than this are refused (default `1MiB`).
    pub max_size: Option<Size>,
    /// JSON nested deeper than this is refused (default 32).
    pub max_depth: Option<u32>,
}

/// A kind of attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Attack {
    /// Scripts in text.
    Xss,
    /// SQL in text.
    Sql,
}

/// What happens when an attack is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is logged and counted; the request goes on.
    Report,
    /// The request is refused with 403.
    Refuse,
}

/// Declares a stage that is checked and never runs.
macro_rules! planned {
    ($($type:ident = $name:literal, $about:literal, $body:expr, $with:ident, $check:expr;)*) => {
        $(impl StageDecl for $type {
            const NAME: &'static str = $name;
            const ABOUT: &'static str = $about;
            const BODY: Body = $body;
            const PLANNED: Option<&'static str> = Some($with);

            fn check(self, cx: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
                let check: fn(Self, &mut StageCx<'_>) = $check;
                check(self, cx);
                None
            }
        })*
    };
}

planned! {
    IpFilter = "ip_filter", "Lets callers pass by address", Body::Optional, IDENTITY, check_addresses;
    RateLimit = "rate_limit", "Bounds how often a caller may call", Body::Bare("policy"), IDENTITY, check_rate_limit;
    Concurrency = "concurrency", "Bounds how many calls a caller may have under way", Body::Bare("limit"), IDENTITY,
        |body, cx| {
            check_not_zero(&body.limit, cx.out);
            check_keys(&body.by, cx.out);
        };
    Cache = "cache", "Answers GET from memory while a copy is fresh", Body::Bare("ttl"), UPSTREAMS,
        |body, cx| check_keys(&body.by, cx.out);
    Validate = "validate", "Checks request bodies against a JSON Schema", Body::OptionalBare("schema"), PROTOCOLS,
        |_, _| {};
    Transform = "transform", "Changes JSON bodies on their way", Body::Optional, PROTOCOLS, |_, _| {};
    Inspect = "inspect", "Looks for attacks in what callers send", Body::Optional, PROTOCOLS, |_, _| {};
}

fn check_addresses(body: IpFilter, cx: &mut StageCx<'_>) {
    if body.allow.0.is_empty() && body.deny.0.is_empty() {
        cx.out.push(
            Diagnostic::error(Code::MISSING_KEY, cx.span, "stage `ip_filter` lets everybody pass")
                .help("give it `allow` or `deny`, such as `allow: [10.0.0.0/8]`"),
        );
    }
    for network in body.allow.0.iter().chain(&body.deny.0) {
        if network.parse::<IpNet>().is_err() && network.parse::<IpAddr>().is_err() {
            cx.out.push(
                Diagnostic::error(Code::BAD_VALUE, network.span, "this is not an address or a network")
                    .help("write `192.0.2.7`, `10.0.0.0/8` or `2001:db8::/32`"),
            );
        }
    }
}

fn check_rate_limit(body: RateLimit, cx: &mut StageCx<'_>) {
    let inline = body.limit.is_some() || body.per.is_some() || !body.by.0.is_empty();
    match &body.policy {
        Some(name) if inline => cx.out.push(
            Diagnostic::error(Code::BAD_VALUE, name.span, "`policy` names a policy, the other keys are one")
                .help("keep the name, or the keys, not both"),
        ),
        Some(name) => {
            let manifest = cx.manifest;
            if let Some(policy) = cx.lookup(&manifest.rate_limits, "rate limit", name, name.span) {
                check_keys(&policy.by, cx.out);
            }
        }
        None if body.limit.is_none() || body.per.is_none() => cx.out.push(
            Diagnostic::error(Code::MISSING_KEY, cx.span, "stage `rate_limit` needs `limit` and `per`")
                .help("write `{ limit: 100, per: 1m }`, or the name of a policy under `rate_limits:`"),
        ),
        None => body.limit.iter().for_each(|limit| check_not_zero(limit, cx.out)),
    }
    check_keys(&body.by, cx.out);
}

fn check_not_zero(limit: &Spanned<u64>, out: &mut Diagnostics) {
    if limit.value == 0 {
        out.push(
            Diagnostic::error(Code::BAD_VALUE, limit.span, "a limit of 0 lets nothing pass")
                .help("write at least 1; `maintenance:` switches a route off"),
        );
    }
}

/// Words that make callers different, as in `by: [ip, header.X]`.
fn check_keys(by: &List<String>, out: &mut Diagnostics) {
    for key in &by.0 {
        let known = match key.split_once('.') {
            Some(("header", name)) => name.parse::<http::HeaderName>().is_ok(),
            Some(("query" | "body", name)) => !name.is_empty(),
            Some(_) => false,
            None => matches!(key.as_str(), "ip" | "user" | "tenant" | "route"),
        };
        if !known {
            out.push(
                Diagnostic::error(Code::BAD_VALUE, key.span, "this does not tell callers apart")
                    .help("write `ip`, `user`, `tenant`, `route`, `header.X`, `query.X` or `body.X`"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::STAGES;
    use super::super::testing::check;

    fn manifest() -> &'static str {
        "rate_limits: { login: { limit: 5, per: 1m, by: [ip, body.username] } }\n"
    }

    /// Every fault beside that of not being there.
    fn others(stage: &str) -> Vec<String> {
        let checked = check(stage, manifest());
        assert!(checked.stage.is_none(), "{stage}");
        let (missing, others): (Vec<_>, Vec<_>) =
            checked.faults.into_iter().partition(|fault| fault.contains("VG020"));
        assert_eq!(missing.len(), 1, "{stage}: {missing:?}");
        others
    }

    #[test]
    fn the_contract_is_understood_and_refused() {
        for sound in [
            "rate_limit: login",
            "rate_limit: { limit: 5, per: 1m, by: [ip, header.X-App, query.q] }",
            "concurrency: { limit: 3, by: [user] }",
            "cache: { ttl: 30s, by: [query.q, user], stale_while_revalidate: 60s }",
            "validate",
            "validate: schemas.yaml#/Chat",
            "transform: { request: { rename: { a: b }, default: { n: [1, 2] } } }",
            "inspect: { look_for: [xss], action: refuse }",
            "ip_filter: { allow: [10.0.0.0/8, \"::1\"] }",
        ] {
            assert_eq!(others(sound), Vec::<String>::new(), "{sound}");
        }
        assert_eq!(
            check("ip_filter: { deny: [10.0.0.1] }", "").faults,
            [
                "s:1:1 VG020 stage `ip_filter` is not available yet [it comes with *Identity, access and limits*; remove it until then]"
            ]
        );
    }

    #[test]
    fn mistakes_in_them_show() {
        for (faulty, count) in [
            ("rate_limit: lgoin", 1),
            ("rate_limit: { policy: login, limit: 3 }", 1),
            ("rate_limit: { limit: 3 }", 1),
            ("rate_limit", 1),
            ("rate_limit: { limit: 0, per: 1m, by: [phone, header.] }", 3),
            ("concurrency: { limit: 0 }", 1),
            ("cache: { tll: 30s }", 2),
            ("ip_filter", 1),
            ("ip_filter: { allow: [10.0.0.0/33] }", 1),
            ("inspect: { action: shout }", 1),
        ] {
            // A body that is missing stops before.
            let found = if faulty == "rate_limit" { check(faulty, "").faults } else { others(faulty) };
            assert_eq!(found.len(), count, "{faulty}: {found:#?}");
        }
    }

    #[test]
    fn names_are_unique_and_schemas_stand() {
        let mut names: Vec<_> = STAGES.iter().map(|kind| kind.name).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
        let mut generator = schemars::SchemaGenerator::default();
        for kind in STAGES {
            assert!(kind.schema(&mut generator).as_object().is_some(), "{}", kind.name);
        }
    }
}
