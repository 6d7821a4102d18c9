//! Build it: from a sound manifest to the table that runs.
//!
//! Nothing here can fail: whatever could was decided by the checks. A route whose compiled form did not change is
//! taken over from the table before, and with it its counters, pools and prepared answers.

mod catalogue;
pub mod diff;
pub mod document;
pub mod router;
pub mod schema;

use crate::check::Checked;
use crate::check::routes::{CheckedRoute, Ending};
use crate::endpoint::{Next, sealed};
use crate::error::{GatewayError, Kind};
use crate::exchange::{Exchange, Params};
use crate::handlers::Handlers;
use crate::openapi::Published;
use crate::stages::body_limit::limit_body;
use crate::stages::{BuildCx, Hook, Layer, fold};
use crate::state::Shared;
use crate::targets::{Presence, TargetCx};
use crate::upstream::{Registry, Running};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use poem::{Endpoint, Request, Response};
use router::{Asked, Found, Place, Router};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// Stages that see every request, also one that no route takes.
const ON_EVERY_REQUEST: &[&str] = &["access_log", "recovery", "request_id", "metrics", "security_headers"];

/// Whether a stage of a route's chain sees an `OPTIONS` request that the manifest has no route for.
pub fn sees_options(stage: &str) -> bool {
    ["cors", "ip_filter", "rate_limit"].contains(&stage) || ON_EVERY_REQUEST.contains(&stage)
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

/// The compiled, immutable form of one manifest revision.
pub struct RoutingTable {
    router: Router<Arc<CompiledRoute>>,
    routes: HashMap<String, Arc<CompiledRoute>>,
    /// Answers what no route takes.
    refuse: Next,
    checked: Arc<Checked>,
    /// Where error codes are described, up to a code.
    catalogue: Option<&'static str>,
    /// Its description, where some route serves it.
    documents: Option<Arc<Published>>,
}

/// A route as it runs.
pub struct CompiledRoute {
    checked: Arc<CheckedRoute>,
    endpoint: Next,
    /// Answers `OPTIONS`; built when first asked.
    options: OnceLock<Next>,
    shared: Arc<Shared>,
    /// The same for all revisions of the route.
    presence: Arc<Presence>,
}

/// What every table is built with.
pub struct Parts {
    /// What the process has.
    pub shared: Arc<Shared>,
    /// Native operations.
    pub handlers: Handlers,
    /// Upstreams that run.
    pub upstreams: Arc<Registry>,
}

/// Builds a table. Unchanged routes and upstreams are taken over from `before`.
pub fn compile(checked: Arc<Checked>, parts: &Parts, before: Option<&RoutingTable>) -> RoutingTable {
    let upstreams = parts.upstreams.prepare(checked.upstreams(), &parts.shared);
    let mut router = Router::default();
    let mut routes = HashMap::with_capacity(checked.routes().len());
    for route in checked.routes() {
        let key = route.key();
        let known = before.and_then(|table| table.routes.get(&key));
        let compiled = match known {
            Some(known) if known.checked.fingerprint == route.fingerprint => known.clone(),
            known => {
                let known = known.filter(|known| known.is_socket());
                let presence = known.map_or_else(Arc::default, |known| known.presence.clone());
                Arc::new(compile_route(route, parts, &upstreams, presence))
            }
        };
        router.insert(&place_of(route), compiled.clone());
        routes.insert(key, compiled);
    }
    let refuse = refusing_endpoint(&checked, &parts.shared);
    parts.upstreams.commit(upstreams);
    parts.shared.tokens.adopt(checked.auth().clone());
    let catalogue = catalogue::place(&checked);
    let documents = document::is_served(&checked).then(|| Arc::new(document::publish(&checked)));
    RoutingTable { router, routes, refuse, checked, catalogue, documents }
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

fn compile_route(
    route: &Arc<CheckedRoute>,
    parts: &Parts,
    upstreams: &Running,
    presence: Arc<Presence>,
) -> CompiledRoute {
    let cx = TargetCx { route: &route.info, shared: &parts.shared, upstreams, presence: &presence };
    let target = match &route.ending {
        Ending::Native(native) => {
            let operation = sealed(parts.handlers.endpoint(native.operation, native.behind(&cx)));
            match native.bridge() {
                Some(bridge) => bridge.before(operation, &cx),
                None => operation,
            }
        }
        Ending::Target(target) => target.build(&cx),
    };
    let mut layers = layers(route, &parts.shared, |_| true);
    // A gRPC call's messages may come without end; none of them is kept here.
    let endless = matches!(&route.ending, Ending::Target(target) if target.passes_calls());
    if !endless && !route.links.iter().any(|link| link.name == "body_limit") {
        layers.push(limit_body(parts.shared.settings.door.max_body_size));
    }
    CompiledRoute {
        endpoint: fold(layers, target),
        checked: route.clone(),
        options: OnceLock::new(),
        shared: parts.shared.clone(),
        presence,
    }
}

/// The layers of a route's chain whose names `keep` wants, outermost first.
fn layers(route: &CheckedRoute, shared: &Arc<Shared>, keep: impl Fn(&str) -> bool) -> Vec<Layer> {
    let operation = match &route.ending {
        Ending::Native(native) => Some(native.operation.name),
        Ending::Target(_) => None,
    };
    let cx = BuildCx {
        route: &route.info,
        streams: route.streams(),
        websocket: route.ending.is_socket(),
        operation,
        described: route.described.as_ref(),
        shared,
    };
    let deprecation = route.deprecation.clone().map(|headers| Layer::Hook(Box::new(FixedHeaders(headers))));
    let stages = route.links.iter().filter(|link| keep(link.name)).filter_map(|link| link.stage.as_ref());
    deprecation.into_iter().chain(stages.map(|stage| stage.layer(&cx))).collect()
}

/// Headers that every answer of a deprecated version carries.
struct FixedHeaders(Arc<[(HeaderName, HeaderValue)]>);

impl Hook for FixedHeaders {
    fn response(&self, _: &Arc<Exchange>, response: &mut Response) {
        for (name, value) in self.0.iter() {
            response.headers_mut().append(name.clone(), value.clone());
        }
    }
}

/// What goes with a request that no route takes: the error it gets.
#[derive(Clone)]
struct Refused(GatewayError);

/// Logs and counts requests that no route takes, as the manifest's first such stages do, and answers the error.
fn refusing_endpoint(checked: &Checked, shared: &Arc<Shared>) -> Next {
    let info = Arc::new(crate::exchange::RouteInfo::unmatched());
    let cx =
        BuildCx { route: &info, streams: false, websocket: false, operation: None, described: None, shared };
    let stages = ON_EVERY_REQUEST.iter().filter_map(|name| checked.first_use(name)?.stage.as_ref());
    let layers = stages.map(|stage| stage.layer(&cx)).collect();
    let answer = poem::endpoint::make_sync(|request: Request| -> poem::Result<Response> {
        let error =
            request.data::<Refused>().map_or(GatewayError::from(Kind::NotFound), |refused| refused.0.clone());
        Err(error.into())
    });
    fold(layers, sealed(answer))
}

impl CompiledRoute {
    /// What it was compiled from.
    pub fn checked(&self) -> &Arc<CheckedRoute> {
        &self.checked
    }

    fn is_socket(&self) -> bool {
        self.checked.ending.is_socket()
    }

    /// Answers `OPTIONS` where the manifest has no route for it: what the chain says to everybody, then `Allow`.
    fn options(&self) -> &Next {
        self.options.get_or_init(|| {
            let answer = poem::endpoint::make_sync(|request: Request| {
                let mut response = Response::builder().status(StatusCode::NO_CONTENT).finish();
                if let Some(AllowedMethods(value)) = request.data() {
                    response.headers_mut().insert(header::ALLOW, value.clone());
                }
                response
            });
            fold(layers(&self.checked, &self.shared, sees_options), sealed(answer))
        })
    }
}

#[derive(Clone)]
struct AllowedMethods(HeaderValue);

impl RoutingTable {
    /// What it was compiled from.
    pub fn checked(&self) -> &Arc<Checked> {
        &self.checked
    }

    /// Where error codes are described, up to a code (`/docs/errors#`), if they are.
    pub fn catalogue(&self) -> Option<&'static str> {
        self.catalogue
    }

    /// Its description, where some route serves it.
    pub fn documents(&self) -> Option<&Arc<Published>> {
        self.documents.as_ref()
    }

    /// Routes whose compiled form is the same one in both tables.
    pub fn shares(&self, other: &RoutingTable) -> usize {
        let same = |(key, route): (&String, &Arc<CompiledRoute>)| {
            other.routes.get(key).is_some_and(|known| Arc::ptr_eq(known, route))
        };
        self.routes.iter().filter(|entry| same(*entry)).count()
    }

    /// Another table serves instead from now on: ends what outlives requests of routes that are not in it.
    pub fn retire(&self, successor: &RoutingTable) {
        for (key, route) in self.routes.iter().filter(|(_, route)| route.is_socket()) {
            if !successor.routes.get(key).is_some_and(|next| next.is_socket()) {
                route.presence.end();
            }
        }
    }

    /// The route that would take a request, and the ranges of its parameters.
    pub fn find(&self, asked: &Asked<'_>) -> Found<'_, Arc<CompiledRoute>> {
        self.router.find(asked)
    }

    /// Answers a request. `host` is its normalised host; the path is the exchange's.
    ///
    /// The exchange must be in the request's extensions already.
    pub async fn answer(&self, exchange: &Arc<Exchange>, host: &str, request: Request) -> Response {
        let asked = Asked {
            host,
            method: &exchange.method,
            path: &exchange.path,
            headers: request.headers(),
            query: request.uri().query(),
        };
        match self.find(&asked) {
            Found::Route(route, params) => run(&route.endpoint, exchange, route, params, request).await,
            Found::NotAllowed(allow) if exchange.method == Method::OPTIONS => {
                self.answer_options(exchange, host, request, allow).await
            }
            Found::NotAllowed(allow) => {
                let mut error = GatewayError::from(Kind::MethodNotAllowed);
                error.allow = Some(allow);
                self.refuse(request, error).await
            }
            Found::Nothing => self.refuse(request, Kind::NotFound.into()).await,
        }
    }

    /// Answers with an error, logged and counted like any other request.
    pub async fn refuse(&self, mut request: Request, error: GatewayError) -> Response {
        request.set_data(Refused(error));
        finish(self.refuse.call(request).await)
    }

    async fn answer_options(
        &self,
        exchange: &Arc<Exchange>,
        host: &str,
        mut request: Request,
        allow: HeaderValue,
    ) -> Response {
        let method = asked_about(request.headers(), &allow);
        let found = method.as_ref().map(|method| {
            let headers = request.headers();
            self.find(&Asked { host, method, path: &exchange.path, headers, query: request.uri().query() })
        });
        match found {
            Some(Found::Route(route, params)) => {
                request.set_data(AllowedMethods(allow));
                run(route.options(), exchange, route, params, request).await
            }
            _ => {
                let mut error = GatewayError::from(Kind::MethodNotAllowed);
                error.allow = Some(allow);
                self.refuse(request, error).await
            }
        }
    }
}

async fn run(
    endpoint: &Next,
    exchange: &Arc<Exchange>,
    route: &Arc<CompiledRoute>,
    params: Params,
    request: Request,
) -> Response {
    exchange.matched(route.checked.info.clone(), params);
    finish(endpoint.call(request).await)
}

/// Every endpoint here is sealed, so an error is a response already.
fn finish(result: poem::Result<Response>) -> Response {
    result.unwrap_or_else(|error| error.into_response())
}
