//! What would become of a request, offline: which route takes it, what each stage would do, and where it ends. The tests
//! of a manifest and `voicegate explain` ask the same questions here; the running table looks things up as this does.

use super::router::{Asked, Found, Place, Router};
use super::routes::{CheckedRoute, Ending};
use crate::stages::{Probe, Verdict};
use http::{HeaderMap, HeaderValue, Method, header};
use std::sync::Arc;

/// Stages that see every request, also one that no route takes.
pub const ON_EVERY_REQUEST: &[&str] =
    &["access_log", "recovery", "request_id", "metrics", "security_headers"];

/// Whether a stage of a route's chain sees an `OPTIONS` request that the manifest has no route for.
pub fn sees_options(stage: &str) -> bool {
    ["cors", "ip_filter", "rate_limit"].contains(&stage) || ON_EVERY_REQUEST.contains(&stage)
}

/// Whether a stage sees the requests of a route that is switched off: what only looks on, and lets browsers read answers.
pub fn sees_closed(stage: &str) -> bool {
    stage == "cors" || ON_EVERY_REQUEST.contains(&stage)
}

/// The method of the route that answers an `OPTIONS` request, from what the path serves (`allow`): a preflight is
/// answered by the route it asks about, a plain OPTIONS by any that is there.
pub fn asked_about(headers: &HeaderMap, allow: &HeaderValue) -> Option<Method> {
    let wanted = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD);
    match wanted.filter(|_| headers.contains_key(header::ORIGIN)) {
        Some(name) => Method::from_bytes(name.as_bytes()).ok(),
        None => allow.to_str().ok().and_then(|list| list.split(", ").next()?.parse().ok()),
    }
}

/// Where a route goes in the index.
pub fn place_of(route: &CheckedRoute) -> Place<'_> {
    Place {
        host: route.host.as_ref(),
        method: &route.method,
        pattern: &route.pattern,
        predicates: &route.predicates,
        native: matches!(route.ending, Ending::Native(_)),
    }
}

/// A request as it is imagined.
pub struct Imagined {
    /// Its method.
    pub method: Method,
    /// Its path, normalised.
    pub path: String,
    /// Its query.
    pub query: Option<String>,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its host, lower case, without port.
    pub host: String,
}

/// What would become of it.
pub enum Course<'w> {
    /// A route takes it.
    Taken(Box<Taken<'w>>),
    /// The path is there, and serves these methods only.
    NotAllowed(HeaderValue),
    /// No route takes it.
    Nothing,
}

/// A request on its way through a route.
pub struct Taken<'w> {
    /// The route.
    pub route: &'w Arc<CheckedRoute>,
    /// Values of its path parameters.
    pub params: Vec<&'w str>,
    /// The stages that see it, outermost first; without a verdict behind one that ends its way.
    pub steps: Vec<(&'static str, Option<Verdict>)>,
    /// What the path serves, where the gateway answers OPTIONS in the route's stead.
    pub options: Option<HeaderValue>,
}

impl Taken<'_> {
    /// The stage that ends its way, with the status and why.
    pub fn stopped(&self) -> Option<(&'static str, u16, &str)> {
        self.steps.iter().find_map(|(name, verdict)| match verdict {
            Some(Verdict::Refuses(status, why) | Verdict::Answers(status, why)) => {
                Some((*name, *status, why.as_str()))
            }
            _ => None,
        })
    }

    /// Whether the route is switched off.
    pub fn is_closed(&self) -> bool {
        self.options.is_none() && self.route.maintenance.is_some()
    }

    /// The status that comes from where the route ends, if that is known without asking anybody.
    pub fn answered(&self) -> Option<u16> {
        if self.options.is_some() {
            return Some(204);
        }
        if let Some(closed) = &self.route.maintenance {
            return Some(closed.reply.as_ref().map_or(503, |reply| reply.status.as_u16()));
        }
        match &self.route.ending {
            Ending::Target(target) => target.answers(),
            Ending::Native(_) => None,
        }
    }
}

/// The routes of a manifest, to be walked.
pub struct Walks(Router<Arc<CheckedRoute>>);

impl Walks {
    /// Through these routes.
    pub fn of(routes: &[Arc<CheckedRoute>]) -> Self {
        Walks(routes.iter().map(|route| (place_of(route), route.clone())).collect())
    }

    /// What would become of a request of somebody with this role, or of nobody known.
    pub fn walk<'w>(&'w self, request: &'w Imagined, role: Option<&str>) -> Course<'w> {
        let asked = Asked {
            host: &request.host,
            method: &request.method,
            path: &request.path,
            headers: &request.headers,
            query: request.query.as_deref(),
        };
        match self.0.find(&asked) {
            Found::Route(route, ranges) => taken(route, &ranges, request, role, None),
            Found::NotAllowed(allow) => {
                // As the table answers OPTIONS where the manifest has no route for it.
                let method =
                    asked_about(&request.headers, &allow).filter(|_| request.method == Method::OPTIONS);
                match method.map(|method| self.0.find(&Asked { method: &method, ..asked })) {
                    Some(Found::Route(route, ranges)) => taken(route, &ranges, request, role, Some(allow)),
                    _ => Course::NotAllowed(allow),
                }
            }
            Found::Nothing => Course::Nothing,
        }
    }
}

fn taken<'w>(
    route: &'w Arc<CheckedRoute>,
    ranges: &[(u32, u32)],
    request: &'w Imagined,
    role: Option<&str>,
    options: Option<HeaderValue>,
) -> Course<'w> {
    let params = ranges.iter().map(|(from, to)| &request.path[*from as usize..*to as usize]).collect();
    let probe = Probe { method: &request.method, path: &request.path, headers: &request.headers, role };
    // A socket is opened with GET, what it asks an operation for is a POST each.
    let turn = matches!(&route.ending, Ending::Native(native) if native.is_socket());
    let turn = Probe { method: if turn { &Method::POST } else { probe.method }, ..probe };
    let closed = options.is_none() && route.maintenance.is_some();
    let links = route.links.iter().filter(|link| match (&options, closed) {
        (Some(_), _) => sees_options(link.name),
        (None, true) => sees_closed(link.name),
        (None, false) => true,
    });
    let mut stopped = false;
    let steps = links.map(|link| {
        let stage = link.stage.as_ref().filter(|_| !stopped);
        let verdict = stage.map(|stage| stage.explain(if link.name == "rbac" { &turn } else { &probe }));
        stopped |= matches!(verdict, Some(Verdict::Refuses(..) | Verdict::Answers(..)));
        (link.name, verdict)
    });
    let steps = steps.collect();
    Course::Taken(Box::new(Taken { route, params, steps, options }))
}
