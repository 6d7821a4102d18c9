//! Sections beside the routes: what contradicts itself, what nobody uses.

use super::routes::RouteChecker;
use crate::diag::{Code, Diagnostic, Diagnostics, Span, did_you_mean};
use crate::manifest::Manifest;
use crate::manifest::model::{ChainRef, StageUse};
use crate::stages::rate_limit;
use std::collections::HashSet;

/// Checks sections on their own.
pub(super) fn check(manifest: &Manifest, out: &mut Diagnostics) {
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
    for (_, policy) in &manifest.rate_limits.0 {
        rate_limit::check_policy(policy, out);
    }
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
    let cors = manifest.cors.0.iter().map(|(key, _)| ("cors", "CORS policy", key));
    let limits = manifest.rate_limits.0.iter().map(|(key, _)| ("rate_limit", "rate limit", key));
    for (stage, what, key) in cors.chain(limits) {
        if !policies.contains(&(stage, key.text.as_str())) {
            warn(key.span, what, &key.text);
        }
    }
}

/// Policies that any stage's body, or a WebSocket's `origins`, names: the stage that takes them, and their name.
fn policies_in_use(manifest: &Manifest) -> HashSet<(&str, &str)> {
    let mut names = HashSet::new();
    let routes = manifest.routes.iter().chain(manifest.versions.iter().flat_map(|version| &version.routes.0));
    for route in routes.clone() {
        names.extend(route.with.0.iter().filter_map(policy_of));
        let origins = route.websocket.as_ref().and_then(|limits| limits.origins.as_ref());
        names.extend(origins.map(|name| ("cors", name.value.as_str())));
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

/// The policy that a stage names.
fn policy_of(stage: &StageUse) -> Option<(&str, &str)> {
    let name = stage.name.text.as_str();
    let takes_one = matches!(name, "cors" | "rate_limit");
    takes_one
        .then(|| stage.body.as_str().or_else(|| stage.body.get("policy")?.as_str()))?
        .map(|policy| (name, policy))
}
