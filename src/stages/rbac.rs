//! `rbac`: lets only callers pass whose role has the route's permission. Denies by default.
//!
//! The permission is the stage's body (`rbac: session:read`), or derived from the route: the resource is the first
//! static segment behind the version's prefix, in the singular (`/sessions/:id` → `session`, `/capabilities` →
//! `capability`), the action is `read` for GET, HEAD and OPTIONS and `write` for every other method. A route without a
//! static segment gives no permission, which is a fault.
//!
//! A route needs one permission, known when it is compiled; so roles are compiled to the set of those that have it, one
//! bit a role, inheritance and wildcards resolved. A caller's scopes narrow their role and never widen it; `api:read`, as
//! the original writes scopes, stands for reading anything. An API key has no role: its permissions are all it has.
//! A role that the manifest does not define may nothing.

use super::{Body, BuildCx, Fit, Hook, Layer, Misfit, Probe, Stage, StageCx, StageDecl, Stop, Verdict};
use crate::diag::{Code, Diagnostic, Diagnostics};
use crate::error::Kind;
use crate::exchange::{Exchange, RouteInfo};
use crate::identity::{Identity, Proof};
use crate::manifest::{Manifest, Spanned};
use crate::openapi::OperationDoc;
use http::Method;
use poem::Request;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

/// Lets only callers pass whose role has a permission.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rbac {
    /// Permission `resource:action` (default: derived from the route's path and method).
    pub permission: Option<Spanned<String>>,
}

impl StageDecl for Rbac {
    const NAME: &'static str = "rbac";
    const ABOUT: &'static str = "Lets only callers pass whose role has a permission";
    const BODY: Body = Body::OptionalBare("permission");

    fn check(self, cx: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        if let Some(permission) = &self.permission {
            check_permission(permission, cx.out);
        }
        let roles = Roles::of(cx.manifest);
        roles.names.iter().zip(&roles.patterns).for_each(|role| role.hash(&mut cx.references));
        let versions = cx.manifest.versions.iter();
        let prefixes = versions.map(|v| (v.name.value.clone(), v.prefix.value.clone())).collect();
        Some(Arc::new(Checked {
            permission: self.permission.map(|p| p.value),
            roles: Arc::new(roles),
            prefixes,
        }))
    }
}

/// `resource:action`, both plain words: what a route needs is one permission, not a group.
fn check_permission(permission: &Spanned<String>, out: &mut Diagnostics) {
    let word = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-.".contains(&b))
    };
    if !permission.split_once(':').is_some_and(|(resource, action)| word(resource) && word(action)) {
        out.push(
            Diagnostic::error(Code::BAD_VALUE, permission.span, "this is not a permission")
                .help("a permission is `resource:action`, such as `session:read`; `*` belongs into roles"),
        );
    }
}

/// Roles with what they may do, inherited patterns included.
struct Roles {
    names: Vec<String>,
    patterns: Vec<Vec<String>>,
}

impl Roles {
    fn of(manifest: &Manifest) -> Self {
        let mut roles = Roles { names: Vec::new(), patterns: Vec::new() };
        for (key, _) in &manifest.roles.0 {
            let mut patterns = Vec::new();
            let mut at = Some(key.text.as_str());
            // A circle is a fault of its own; here it must only end.
            for _ in 0..=manifest.roles.0.len() {
                let Some(role) = at.and_then(|name| manifest.roles.get(name)) else { break };
                patterns.extend(role.allow.0.iter().map(|pattern| pattern.value.clone()));
                at = role.inherits.as_ref().map(|name| name.value.as_str());
            }
            roles.names.push(key.text.clone());
            roles.patterns.push(patterns);
        }
        roles
    }

    fn holders(&self, permission: &str) -> Holders {
        let mut holders = Holders::default();
        for (index, name) in self.names.iter().enumerate() {
            holders.index.insert(name.as_str().into(), index);
            if self.patterns[index].iter().any(|pattern| covers(pattern, permission)) {
                holders.bits.resize(index / 64 + 1, 0);
                holders.bits[index / 64] |= 1 << (index % 64);
            }
        }
        holders
    }
}

/// The roles that have one permission.
#[derive(Default)]
struct Holders {
    index: HashMap<Box<str>, usize>,
    bits: Vec<u64>,
}

impl Holders {
    fn contains(&self, role: &str) -> bool {
        self.index.get(role).is_some_and(|index| {
            self.bits.get(index / 64).is_some_and(|word| word & (1 << (index % 64)) != 0)
        })
    }
}

/// `*`, `resource:*`, `*:action` or the permission itself.
fn covers(pattern: &str, permission: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    match (pattern.split_once(':'), permission.split_once(':')) {
        (Some((resource, action)), Some((wanted, doing))) => {
            (resource == "*" || resource == wanted) && (action == "*" || action == doing)
        }
        _ => false,
    }
}

/// Whether a scope lets a permission through.
fn in_scope(scope: &str, permission: &str) -> bool {
    covers(scope, permission)
        || scope.strip_prefix("api:").is_some_and(|action| {
            action == "*" || permission.split_once(':').is_some_and(|(_, doing)| doing == action)
        })
}

struct Checked {
    permission: Option<String>,
    roles: Arc<Roles>,
    /// Names of versions and their prefixes.
    prefixes: Vec<(String, String)>,
}

impl Checked {
    /// What the permission of a route is about, by its path.
    fn resource_of(&self, route: &RouteInfo) -> Option<String> {
        let version = route.version.as_deref();
        let prefix = self.prefixes.iter().find(|(name, _)| Some(name.as_str()) == version);
        resource(&route.template, prefix.map_or("", |(_, prefix)| prefix.as_str()))
    }

    fn demand(&self, permission: String) -> Demand {
        Demand { holders: self.roles.holders(&permission), permission }
    }
}

impl Stage for Checked {
    fn name(&self) -> &'static str {
        Rbac::NAME
    }

    fn layer(&self, cx: &BuildCx<'_>) -> Layer {
        let demands = match &self.permission {
            Some(permission) => Demands::One(self.demand(permission.clone())),
            None => match self.resource_of(cx.route) {
                // A socket is opened with GET; what it asks an operation for is not only reading.
                Some(resource) if cx.websocket && cx.operation.is_some() => {
                    Demands::One(self.demand(format!("{resource}:write")))
                }
                Some(resource) => Demands::ByMethod {
                    read: self.demand(format!("{resource}:read")),
                    write: self.demand(format!("{resource}:write")),
                },
                // Such a route does not pass the check; deny by default all the same.
                None => Demands::Nobody,
            },
        };
        Layer::Hook(Box::new(demands))
    }

    fn misfit(&self, fit: &Fit<'_>) -> Option<Misfit> {
        (self.permission.is_none() && self.resource_of(fit.route).is_none()).then_some(Misfit {
            code: Code::NO_PERMISSION,
            message: "`rbac` cannot derive a permission from this path: it has no static segment",
            help: "name the permission, such as `with: { rbac: file:read }`",
        })
    }

    fn document(&self, op: &mut OperationDoc) {
        let derived = || {
            let resource = self.resource_of(&op.route)?;
            let action = if op.websocket && op.handler.is_some() { "write" } else { action(&op.method) };
            Some(format!("{resource}:{action}"))
        };
        let Some(permission) = self.permission.clone().or_else(derived) else { return };
        let holders = self.roles.holders(&permission);
        let roles: Vec<&str> =
            self.roles.names.iter().map(String::as_str).filter(|role| holders.contains(role)).collect();
        op.refuses(&[Kind::Forbidden], &format!("needs `{permission}`"));
        op.extension("x-permission", permission.into());
        op.extension("x-roles", roles.into());
    }

    fn explain(&self, probe: &Probe<'_>) -> Verdict {
        let permission = match &self.permission {
            Some(permission) => permission.clone(),
            None => {
                let fitting =
                    self.prefixes.iter().filter(|(_, prefix)| probe.path.starts_with(prefix.as_str()));
                let prefix =
                    fitting.max_by_key(|(_, prefix)| prefix.len()).map_or("", |(_, prefix)| prefix.as_str());
                match resource(probe.path, prefix) {
                    Some(resource) => format!("{resource}:{}", action(probe.method)),
                    None => {
                        return Verdict::Refuses(
                            403,
                            "no permission can be derived from this path".to_owned(),
                        );
                    }
                }
            }
        };
        match probe.role {
            Some(role) if self.roles.holders(&permission).contains(role) => {
                Verdict::Passes(format!("{role} has {permission}"))
            }
            Some(role) => Verdict::Refuses(403, format!("{role} lacks {permission}")),
            None => Verdict::Passes(format!("whose role has {permission}")),
        }
    }
}

/// What a route asks for.
enum Demands {
    One(Demand),
    ByMethod { read: Demand, write: Demand },
    Nobody,
}

struct Demand {
    permission: String,
    holders: Holders,
}

impl Demand {
    fn met_by(&self, caller: &Identity) -> bool {
        let scoped = || caller.scopes.iter().any(|scope| in_scope(scope, &self.permission));
        match caller.proof {
            Proof::ApiKey => caller.scopes.iter().any(|allowed| covers(allowed, &self.permission)),
            _ => self.holders.contains(&caller.role) && (caller.scopes.is_empty() || scoped()),
        }
    }
}

impl Hook for Demands {
    fn request(&self, exchange: &Arc<Exchange>, _: &mut Request) -> Result<(), Stop> {
        let Some(caller) = exchange.identity() else { return Err(Stop::Error(Kind::NoToken.into())) };
        let demand = match self {
            Demands::One(demand) => Some(demand),
            Demands::ByMethod { read, write } => {
                Some(if action(&exchange.method) == "read" { read } else { write })
            }
            Demands::Nobody => None,
        };
        match demand.is_some_and(|demand| demand.met_by(caller)) {
            true => Ok(()),
            false => Err(Stop::Error(Kind::Forbidden.into())),
        }
    }
}

fn action(method: &Method) -> &'static str {
    match *method {
        Method::GET | Method::HEAD | Method::OPTIONS => "read",
        _ => "write",
    }
}

/// The first static segment of a template behind a prefix, in the singular.
fn resource(template: &str, prefix: &str) -> Option<String> {
    let behind = template.strip_prefix(prefix.trim_end_matches('/')).unwrap_or(template);
    let segment = behind.split('/').find(|part| !part.is_empty() && !part.starts_with([':', '*']))?;
    Some(singular(&segment.to_ascii_lowercase()))
}

/// English plurals as paths have them.
fn singular(word: &str) -> String {
    let kept = ["ss", "us", "is"];
    match (word.strip_suffix("ies"), word.strip_suffix('s')) {
        (Some(stem), _) if stem.len() > 1 => format!("{stem}y"),
        (_, Some(stem)) if stem.len() > 1 && !kept.iter().any(|end| word.ends_with(end)) => stem.to_owned(),
        _ => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{answering, check, code, fold_around_route, request_as, send};
    use super::*;
    use crate::state::tests::shared;
    use crate::tokens::testing::identity;
    use poem::Response;

    const ROLES: &str = "roles: { admin: { allow: ['*'] }, user: { inherits: guest, allow: ['session:*', 'chat:write', '*:export'] }, \
                         guest: { allow: ['public:read'] } }\n\
                         versions: [{ name: v01, prefix: /api/v01 }]";

    async fn asked(stage: &str, method: Method, template: &str, caller: Identity) -> String {
        let (shared, _close) = shared(&[]);
        let route = RouteInfo {
            method: method.to_string(),
            template: template.into(),
            host: None,
            version: template.starts_with("/api/v01").then(|| "v01".into()),
            params: Vec::new(),
        };
        let stage = check(stage, ROLES).sound();
        let next = fold_around_route(&stage, &shared, route, answering(Response::default));
        let response = send(&next, request_as(method, &[], caller)).await;
        match response.status().as_u16() {
            200 => "passes".to_owned(),
            _ => code(response).await,
        }
    }

    #[tokio::test]
    async fn roles_have_what_they_and_their_ancestors_are_given() {
        for (permission, role, passes) in [
            ("session:delete", "user", true),
            ("public:read", "user", true),
            ("document:export", "user", true),
            ("chat:read", "user", false),
            ("public:write", "user", false),
            ("anything:else", "admin", true),
            ("public:read", "guest", true),
            ("session:read", "guest", false),
            ("public:read", "unknown", false),
            ("public:read", "", false),
        ] {
            let stage = format!("rbac: {permission}");
            let wanted = if passes { "passes" } else { "permission_denied" };
            assert_eq!(
                asked(&stage, Method::GET, "/a", identity("u", "", role)).await,
                wanted,
                "{permission} {role}"
            );
        }
    }

    #[tokio::test]
    async fn permissions_are_derived_from_path_and_method() {
        for (method, template, scope, passes) in [
            (Method::GET, "/api/v01/sessions/:id", "session:read", true),
            (Method::DELETE, "/api/v01/sessions/:id", "session:read", false),
            (Method::DELETE, "/api/v01/sessions/:id", "session:write", true),
            (Method::POST, "/tools/:id", "tool:write", true),
            (Method::GET, "/api/v01/:id", "*", false),
        ] {
            let caller = Identity { scopes: vec![scope.into()], ..identity("u", "", "admin") };
            let wanted = if passes { "passes" } else { "permission_denied" };
            assert_eq!(asked("rbac", method, template, caller).await, wanted, "{template} {scope}");
        }
        for (word, wanted) in [
            ("sessions", "session"),
            ("capabilities", "capability"),
            ("status", "status"),
            ("address", "address"),
            ("chat", "chat"),
            ("s", "s"),
        ] {
            assert_eq!(singular(word), wanted);
        }
    }

    #[tokio::test]
    async fn scopes_narrow_and_keys_have_nothing_else() {
        let caller = |role: &str, proof, scopes: &[&str]| Identity {
            scopes: scopes.iter().map(|s| (*s).to_owned()).collect(),
            proof,
            ..identity("u", "", role)
        };
        for (caller, passes) in [
            (caller("user", Proof::Token, &["api:read"]), true),
            (caller("user", Proof::Token, &["api:write"]), false),
            (caller("user", Proof::Token, &["chat:read", "session:*"]), true),
            (caller("guest", Proof::Token, &["*"]), false),
            (caller("", Proof::ApiKey, &["session:read"]), true),
            (caller("admin", Proof::ApiKey, &["session:write"]), false),
            (caller("admin", Proof::ApiKey, &[]), false),
        ] {
            let wanted = if passes { "passes" } else { "permission_denied" };
            let shown = format!("{caller:?}");
            assert_eq!(asked("rbac: session:read", Method::GET, "/a", caller).await, wanted, "{shown}");
        }
    }

    #[test]
    fn roles_are_part_of_the_route() {
        let digest = |roles: &str| check("rbac", roles).digest;
        assert_ne!(digest(ROLES), digest(&ROLES.replace("chat:write", "chat:read")));
        assert_eq!(digest(ROLES), digest(ROLES));
    }
}
