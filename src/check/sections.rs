//! Sections beside the routes: what is not available yet, what contradicts itself, what nobody uses.

use super::routes::RouteChecker;
use crate::diag::milestone::{DOCUMENTS, IDENTITY, UPSTREAMS};
use crate::diag::{Code, Diagnostic, Diagnostics, Span, did_you_mean};
use crate::manifest::Manifest;
use crate::manifest::model::{ChainRef, StageUse};
use std::collections::HashSet;

/// Checks sections on their own.
pub(super) fn check(manifest: &Manifest, out: &mut Diagnostics) {
    let identity = IDENTITY;
    for (key, role) in &manifest.roles.0 {
        if let Some(inherits) = &role.inherits {
            if manifest.roles.get(&inherits.value).is_none() {
                let message = format!("role `{}` is not defined", inherits.value);
                out.push(
                    Diagnostic::error(Code::UNKNOWN_ROLE, inherits.span, message)
                        .maybe_help(did_you_mean(&inherits.value, manifest.roles.names())),
                );
            } else if circle(manifest, &key.text) {
                let message = format!("role `{}` inherits from itself", key.text);
                out.push(Diagnostic::error(Code::CYCLE, inherits.span, message).help("break the circle"));
            }
        }
        for permission in &role.allow.0 {
            let good = permission.value == "*"
                || permission.value.split_once(':').is_some_and(|(resource, action)| {
                    !resource.is_empty() && !action.is_empty() && !action.contains(':')
                });
            if !good {
                out.push(
                    Diagnostic::error(Code::BAD_VALUE, permission.span, "this is not a permission")
                        .help("`resource:action`, `resource:*` or `*`"),
                );
            }
        }
    }
    for (key, limit) in &manifest.rate_limits.0 {
        not_yet(key.span, "rate_limits:", identity, out);
        if limit.limit == 0 {
            out.push(
                Diagnostic::error(Code::BAD_VALUE, key.span, "a limit of 0 lets nobody through")
                    .help("remove the route instead, or use `maintenance`"),
            );
        }
        for by in &limit.by.0 {
            let known = ["ip", "user", "tenant", "route"];
            let of_request = ["header.", "query.", "body."];
            let good = known.contains(&by.value.as_str())
                || of_request.iter().any(|p| by.value.strip_prefix(p).is_some_and(|name| !name.is_empty()));
            if !good {
                let all = known.into_iter().chain(["header.X", "query.X", "body.X"]);
                out.push(
                    Diagnostic::error(
                        Code::BAD_VALUE,
                        by.span,
                        format!("a limit cannot count by `{}`", by.value),
                    )
                    .maybe_help(did_you_mean(&by.value, all)),
                );
            }
        }
    }
    let documents = DOCUMENTS;
    if let Some(test) = manifest.tests.first() {
        not_yet(test.span, "tests", documents, out);
    }
    for version in &manifest.versions {
        if let Some(test) = version.tests.0.first() {
            not_yet(test.span, "tests", documents, out);
        }
        if let Some(maintenance) = &version.maintenance {
            not_yet(maintenance.span, "maintenance", UPSTREAMS, out);
        }
    }
}

fn not_yet(span: Span, key: &str, waits_for: &str, out: &mut Diagnostics) {
    out.push(Diagnostic::not_available(span, &format!("`{key}`"), waits_for));
}

fn circle(manifest: &Manifest, start: &str) -> bool {
    let mut seen = HashSet::new();
    let mut at = start;
    while let Some(next) = manifest.roles.get(at).and_then(|role| role.inherits.as_ref()) {
        if !seen.insert(at) {
            return false;
        }
        at = &next.value;
        if at == start {
            return true;
        }
    }
    false
}

/// Warns of definitions that nothing refers to.
pub(super) fn unused(manifest: &Manifest, checker: &RouteChecker<'_>, out: &mut Diagnostics) {
    let mut warn = |span: Span, what: &str, name: &str| {
        out.push(
            Diagnostic::warning(Code::UNUSED, span, format!("{what} `{name}` is never used"))
                .help("remove it, or use it"),
        );
    };
    for (key, _) in &manifest.upstreams.0 {
        if !checker.used_upstreams.contains(&key.text) {
            warn(key.span, "upstream", &key.text);
        }
    }
    for (key, _) in &manifest.chains.0 {
        if !checker.chains.used.contains(&key.text) {
            warn(key.span, "chain", &key.text);
        }
    }
    let policies = policies_in_use(manifest);
    for (key, _) in &manifest.cors.0 {
        if !policies.contains(key.text.as_str()) {
            warn(key.span, "CORS policy", &key.text);
        }
    }
}

/// Names of CORS policies that any stage's body, or a WebSocket's `origins`, mentions.
fn policies_in_use(manifest: &Manifest) -> HashSet<&str> {
    let mut names = HashSet::new();
    let routes = manifest.routes.iter().chain(manifest.versions.iter().flat_map(|version| &version.routes.0));
    for route in routes.clone() {
        names.extend(route.with.0.iter().filter_map(policy_of));
        let origins = route.websocket.as_ref().and_then(|limits| limits.origins.as_ref());
        names.extend(origins.map(|name| name.value.as_str()));
    }
    let chains =
        routes.map(|route| &route.chain).chain(manifest.versions.iter().map(|version| &version.chain));
    for chain in chains.flatten() {
        if let ChainRef::Inline(_, stages) = chain {
            names.extend(stages.0.iter().filter_map(|stage| policy_of(&stage.value)));
        }
    }
    for (_, chain) in &manifest.chains.0 {
        names.extend(chain.0.iter().filter_map(|stage| policy_of(&stage.value)));
    }
    names
}

/// The policy that a `cors` stage names.
fn policy_of(stage: &StageUse) -> Option<&str> {
    match stage.name.text.as_str() {
        "cors" => stage.body.as_str().or_else(|| stage.body.get("policy")?.as_str()),
        _ => None,
    }
}
