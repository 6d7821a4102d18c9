//! Routes of the documentation: one that ends in `gateway.docs` serves what is below its path too.
//!
//! `GET /docs` is what a manifest says; its scripts, `/docs/errors` and the rest belong to it, with the same chain. They
//! are a route of their own (`GET /docs/*page`), which `voicegate routes` shows like any other.

use super::pattern::{Pattern, Segment};
use super::routes::{CheckedRoute, Ending, RouteDocs};
use crate::exchange::RouteInfo;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// The operation that documents this gateway.
pub const OPERATION: &str = "gateway.docs";
/// Name of what stands below its path.
const PAGE: &str = "page";

/// Adds the route below each route of the documentation, unless the manifest has one.
pub(super) fn complete(routes: &mut Vec<Arc<CheckedRoute>>) {
    let missing: Vec<_> =
        routes.iter().filter(|route| serves_docs(route)).filter_map(|home| beneath(home)).collect();
    for below in missing {
        let place = |route: &CheckedRoute| (route.host.clone(), route.pattern.shape());
        if !routes.iter().any(|route| place(route) == place(&below)) {
            routes.push(Arc::new(below));
        }
    }
}

/// Whether a route ends in the documentation.
pub fn serves_docs(route: &CheckedRoute) -> bool {
    matches!(&route.ending, Ending::Native(native) if native.operation.name == OPERATION)
}

/// The route of what is below; none where the route takes all of it already.
fn beneath(home: &CheckedRoute) -> Option<CheckedRoute> {
    let mut segments = home.pattern.segments.clone();
    if matches!(segments.last(), Some(Segment::Rest(_))) {
        return None;
    }
    segments.push(Segment::Rest(PAGE.to_owned()));
    let pattern = Pattern { segments };
    let info = RouteInfo {
        method: home.info.method.clone(),
        template: pattern.template(),
        host: home.info.host.clone(),
        version: home.info.version.clone(),
        params: pattern.params(),
    };
    let mut state = DefaultHasher::new();
    (home.fingerprint, PAGE).hash(&mut state);
    Some(CheckedRoute {
        info: Arc::new(info),
        method: home.method.clone(),
        pattern,
        host: home.host.clone(),
        predicates: home.predicates.clone(),
        links: home.links.clone(),
        ending: home.ending.clone(),
        described: None,
        // One entry is enough: it says what is below.
        docs: RouteDocs { hidden: true, ..home.docs.clone() },
        deprecation: home.deprecation.clone(),
        public: home.public,
        fingerprint: state.finish(),
        span: home.span,
    })
}
