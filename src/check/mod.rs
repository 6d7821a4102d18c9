//! Is it sound? Names resolved, contradictions found, every fault of every file in one run.
//!
//! [`check`] takes what was read and gives a [`Checked`], which nobody else can make: what builds on it need not
//! look again. Checks are pure (they read files a manifest names, and nothing else).

pub mod chains;
pub mod documentation;
pub mod native;
pub mod order;
pub mod pattern;
pub mod routes;
mod sections;
mod versions;

use crate::diag::{Code, Diagnostic, Diagnostics, Sources};
use crate::manifest::Loaded;
use crate::tokens::policy::AuthPolicy;
use crate::upstream::UpstreamSpec;
use chains::Link;
use pattern::MethodSet;
use routes::{CheckedRoute, Group, RouteChecker, group_chain};
use std::collections::HashMap;
use std::sync::Arc;

/// A manifest that is sound.
pub struct Checked {
    api_version: String,
    title: String,
    about: About,
    hash: String,
    upstreams: Vec<Arc<UpstreamSpec>>,
    routes: Vec<Arc<CheckedRoute>>,
    auth: Arc<AuthPolicy>,
    roles: Vec<String>,
    counts: Counts,
}

/// What a manifest says of the API as a whole.
#[derive(Debug, Clone, Default)]
pub struct About {
    /// A few sentences (CommonMark).
    pub description: Option<String>,
    /// Public addresses, and what each is for.
    pub servers: Vec<(String, Option<String>)>,
    /// Its versions, in order.
    pub versions: Vec<VersionDocs>,
}

/// What a manifest says of a version.
#[derive(Debug, Clone)]
pub struct VersionDocs {
    /// Its name.
    pub name: String,
    /// Path before its routes.
    pub prefix: String,
    /// Since when it is deprecated, if it is.
    pub deprecated: Option<String>,
    /// When it goes, if that is said.
    pub sunset: Option<String>,
    /// The version that replaces it, if that is said.
    pub successor: Option<String>,
}

impl About {
    fn of(manifest: &crate::manifest::Manifest) -> Self {
        let info = manifest.info.as_ref();
        let servers = info.map(|info| info.servers.0.iter()).into_iter().flatten();
        let versions = manifest.versions.iter().map(|version| {
            let deprecated = version.deprecated.as_ref();
            let text = |part: Option<&crate::manifest::Spanned<String>>| part.map(|part| part.value.clone());
            VersionDocs {
                name: version.name.value.clone(),
                prefix: version.prefix.value.clone(),
                deprecated: deprecated.map(|declared| declared.since.value.clone()),
                sunset: deprecated.and_then(|declared| text(declared.sunset.as_ref())),
                successor: deprecated.and_then(|declared| text(declared.successor.as_ref())),
            }
        });
        About {
            description: info.and_then(|info| info.description.clone()),
            servers: servers.map(|server| (server.url.clone(), server.description.clone())).collect(),
            versions: versions.collect(),
        }
    }
}

/// How much a manifest holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Manifest files read; protos are not counted.
    pub files: usize,
    /// Routes.
    pub routes: usize,
    /// Versions.
    pub versions: usize,
    /// Upstreams.
    pub upstreams: usize,
    /// Chains.
    pub chains: usize,
}

/// What checking brought.
pub struct Outcome {
    /// The sound manifest, if there was no error.
    pub checked: Option<Checked>,
    /// Every fault of reading and checking, in reading order.
    pub diagnostics: Diagnostics,
    /// The files, for excerpts.
    pub sources: Sources,
}

impl Checked {
    /// The API's own version, `info.version`.
    pub fn api_version(&self) -> &str {
        &self.api_version
    }

    /// The API's name.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// What is said of the API as a whole.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Hash over all files.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Upstreams, in order.
    pub fn upstreams(&self) -> &[Arc<UpstreamSpec>] {
        &self.upstreams
    }

    /// Routes, in order.
    pub fn routes(&self) -> &[Arc<CheckedRoute>] {
        &self.routes
    }

    /// What it says of tokens and passwords.
    pub fn auth(&self) -> &Arc<AuthPolicy> {
        &self.auth
    }

    /// The names of the roles that it defines.
    pub fn roles(&self) -> &[String] {
        &self.roles
    }

    /// How much there is.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The first use of a stage of a name in any chain.
    pub fn first_use(&self, name: &str) -> Option<&Link> {
        self.routes.iter().flat_map(|route| route.links.iter()).find(|link| link.name == name)
    }
}

/// Checks what was read. With `strict`, warnings are errors.
pub fn check(loaded: Loaded, strict: bool) -> Outcome {
    let Loaded { manifest, sources, mut diagnostics, content_hash, .. } = loaded;
    let out = &mut diagnostics;
    let mut upstreams = Vec::new();
    let mut fingerprints = HashMap::new();
    for (key, declared) in &manifest.upstreams.0 {
        if let Some(spec) = UpstreamSpec::check(key, declared, &manifest, out) {
            fingerprints.insert(key.text.clone(), spec.fingerprint());
            upstreams.push(Arc::new(spec));
        }
    }
    sections::check(&manifest, out);
    let auth = AuthPolicy::check(manifest.auth.as_ref(), out);
    let mut checker = RouteChecker::new(&manifest, fingerprints);
    let mut routes = Vec::new();
    for version in &manifest.versions {
        let prefix = versions::prefix(version, out);
        let chain = group_chain(version.chain.as_ref(), &mut checker.chains, out);
        let deprecated = version.deprecated.as_ref();
        let group = Group {
            version: Some(&version.value),
            prefix: prefix.unwrap_or_default(),
            chain,
            deprecation: deprecated.and_then(|declared| versions::deprecation(declared, &manifest, out)),
        };
        for route in &version.routes.0 {
            routes.extend(checker.check(route, &group, out).map(Arc::new));
        }
    }
    let outside = Group { version: None, prefix: String::new(), chain: [].into(), deprecation: None };
    for route in &manifest.routes {
        routes.extend(checker.check(route, &outside, out).map(Arc::new));
    }
    documentation::complete(&mut routes);
    checker.chains.resolve_all(out);
    conflicts(&routes, out);
    sections::unused(&manifest, &checker, out);
    out.redact(&manifest.secrets);
    if strict {
        out.make_strict();
    }
    out.sort();
    let counts = Counts {
        files: sources.iter().count(),
        routes: routes.len(),
        versions: manifest.versions.len(),
        upstreams: upstreams.len(),
        chains: manifest.chains.0.len(),
    };
    let about = About::of(&manifest);
    let roles = manifest.roles.names().map(str::to_owned).collect();
    let info = manifest.info;
    let checked = (!out.has_errors()).then(|| Checked {
        api_version: info.as_ref().map(|info| info.version.clone()).unwrap_or_default(),
        title: info.map(|info| info.title).unwrap_or_default(),
        about,
        hash: content_hash,
        upstreams,
        routes,
        auth: Arc::new(auth),
        roles,
        counts,
    });
    Outcome { checked, diagnostics, sources }
}

/// Routes that can't be told apart, and routes that never get a request.
fn conflicts(routes: &[Arc<CheckedRoute>], out: &mut Diagnostics) {
    type Place<'a> = (Option<&'a pattern::Host>, String, &'a pattern::Predicates);
    let mut places: HashMap<Place<'_>, Vec<&CheckedRoute>> = HashMap::with_capacity(routes.len());
    for route in routes {
        places
            .entry((route.host.as_ref(), route.pattern.shape(), &route.predicates))
            .or_default()
            .push(route);
    }
    for together in places.values() {
        for (at, route) in together.iter().enumerate() {
            if let Some(first) = together[..at].iter().find(|other| other.method == route.method) {
                out.push(
                    Diagnostic::error(
                        Code::CONFLICT,
                        route.span,
                        format!("`{}` cannot be told apart from `{}`", route.label(), first.label()),
                    )
                    .help("remove one, or tell them apart by `host:` or `match:`")
                    .note(first.span, "the other route"),
                );
            }
        }
        let any = together.iter().find(|route| route.method == MethodSet::Any);
        let taken = |name: &str| together.iter().any(|route| route.method.as_str() == name);
        if let Some(any) = any
            && pattern::METHODS.iter().filter(|name| **name != "ANY").all(|name| taken(name))
        {
            out.push(
                Diagnostic::error(Code::SHADOWED, any.span, format!("`{}` can never answer", any.label()))
                    .help("every method has a route of its own at this path: remove this one"),
            );
        }
    }
}
