//! Build it: from a sound manifest to the table that runs.
//!
//! Nothing here can fail: whatever could was decided by the checks. A route whose compiled form did not change is
//! taken over from the table before, and with it its counters, pools and prepared answers.

mod catalogue;
pub mod diff;
pub mod document;
pub mod schema;
mod shedding;

use crate::check::Checked;
use crate::check::router::{Asked, Found, Router};
use crate::check::routes::{CheckedRoute, Ending};
use crate::check::walk::{ON_EVERY_REQUEST, asked_about, place_of, sees_closed, sees_options};
use crate::endpoint::{Next, sealed};
use crate::error::grpc::Form;
use crate::error::{GatewayError, Kind};
use crate::exchange::{Exchange, RouteInfo, RouteRef};
use crate::handlers::Handlers;
use crate::openapi::Published;
use crate::shed::Rank;
use crate::stages::body_limit::limit_body;
use crate::stages::{BuildCx, Hook, Layer, fold};
use crate::state::Shared;
use crate::state::maintenance::Closed;
use crate::targets::{Presence, Target, TargetCx};
use crate::upstream::{Registry, Running};
use futures_util::future::BoxFuture;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use poem::{Request, Response};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// The compiled, immutable form of one manifest revision.
pub struct RoutingTable {
    router: Router<Entry>,
    routes: HashMap<String, Arc<CompiledRoute>>,
    /// Answers what no route takes.
    refuse: Next,
    checked: Arc<Checked>,
    shared: Arc<Shared>,
    /// Where error codes are described, up to a code.
    catalogue: Option<&'static str>,
    /// Its description, where some route serves it.
    documents: Option<Arc<Published>>,
}

/// What every request of a route needs. It stands in the index, with what the route was found by: of ten thousand routes that
/// are asked in turn, nothing is near, so that each separate piece would be waited for.
pub struct Entry {
    route: Arc<CompiledRoute>,
    endpoint: Next,
    info: RouteRef,
    /// What answers in its place, while the manifest switches it off.
    maintenance: Option<Arc<Closed>>,
    /// Who goes first when there is too much to do.
    rank: Rank,
}

const _: () = assert!(size_of::<Entry>() <= 48, "as much as a node of the index has room for");

/// A route as it runs.
pub struct CompiledRoute {
    checked: Arc<CheckedRoute>,
    endpoint: Next,
    /// Answers those who are sent away when there is too much to do; built when first needed.
    refusing: OnceLock<Next>,
    /// Answers `OPTIONS`; built when first asked.
    options: OnceLock<Next>,
    /// Answers while the route is switched off; built when first asked.
    closed: OnceLock<Next>,
    /// How operators name it.
    label: String,
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
    let mut routes = HashMap::with_capacity(checked.routes().len());
    let mut entries = Vec::with_capacity(checked.routes().len());
    let mut common = Common::default();
    for route in checked.routes() {
        let key = route.key();
        let known = before.and_then(|table| table.routes.get(&key));
        let compiled = match known {
            Some(known) if known.checked.fingerprint == route.fingerprint => known.clone(),
            known => {
                let presence = match known.filter(|known| known.is_socket()) {
                    Some(known) => known.presence.clone(),
                    None if route.ending.is_socket() => Arc::default(),
                    None => common.presence.clone(),
                };
                Arc::new(compile_route(route, parts, &upstreams, presence, &mut common))
            }
        };
        entries.push((place_of(route), Entry::of(&compiled)));
        routes.insert(key, compiled);
    }
    let router = entries.into_iter().collect();
    let refuse = refusing_endpoint(&checked, &parts.shared);
    parts.upstreams.commit(upstreams);
    parts.shared.tokens.adopt(checked.auth().clone());
    let catalogue = catalogue::place(&checked);
    let documents = document::is_served(&checked).then(|| Arc::new(document::publish(&checked)));
    let shared = parts.shared.clone();
    RoutingTable { router, routes, refuse, checked, shared, catalogue, documents }
}

/// What routes of a table have in common, built once: less memory, and near when it is needed, since all of them need it.
#[derive(Default)]
struct Common {
    /// Nothing outlives the requests of most routes.
    presence: Arc<Presence>,
    /// Targets, by the names that they say.
    targets: HashMap<String, Next>,
    /// Whole chains, by the addresses of their parts.
    chains: HashMap<Vec<usize>, Next>,
}

impl Common {
    fn target(&mut self, target: &Arc<dyn Target>, cx: &TargetCx<'_>) -> Next {
        match target.common() {
            None => target.build(cx),
            Some(name) => match self.targets.get(name) {
                Some(known) => known.clone(),
                None => {
                    let built = target.build(cx);
                    self.targets.insert(name.to_owned(), built.clone());
                    built
                }
            },
        }
    }

    /// The chain of a route before its target, if nothing in it is the route's own.
    fn chain(&mut self, route: &CheckedRoute, target: &Next, build: impl FnOnce(Next) -> Next) -> Next {
        let stages = || route.links.iter().filter_map(|link| link.stage.as_ref());
        let Ending::Target(ending) = &route.ending else { return build(target.clone()) };
        if ending.common().is_none() || !stages().all(|stage| stage.is_common()) {
            return build(target.clone());
        }
        let deprecation = route.deprecation.as_ref().map_or(0, |headers| headers.as_ptr().addr());
        let parts = [target.address(), deprecation].into_iter();
        let key = parts.chain(stages().map(|stage| Arc::as_ptr(stage).addr())).collect();
        self.chains.entry(key).or_insert_with(|| build(target.clone())).clone()
    }
}

fn compile_route(
    route: &Arc<CheckedRoute>,
    parts: &Parts,
    upstreams: &Running,
    presence: Arc<Presence>,
    common: &mut Common,
) -> CompiledRoute {
    let cx = TargetCx {
        route: &route.info,
        shared: &parts.shared,
        upstreams,
        presence: &presence,
        identity: route.fingerprint,
    };
    let target = match &route.ending {
        Ending::Native(native) => {
            let operation = sealed(parts.handlers.endpoint(native.operation, native.behind(&cx)));
            let operation = match native.fallback() {
                Some(fallback) => fallback.before(operation, &cx),
                None => operation,
            };
            match native.bridge() {
                Some(bridge) => bridge.before(operation, &cx),
                None => operation,
            }
        }
        Ending::Target(target) => common.target(target, &cx),
    };
    let endpoint = common.chain(route, &target, |target| {
        let mut layers = layers(route, &parts.shared, |_| true);
        // A gRPC call's messages may come without end; none of them is kept here.
        let endless = matches!(&route.ending, Ending::Target(target) if target.passes_calls());
        if !endless && !route.links.iter().any(|link| link.name == "body_limit") {
            layers.push(limit_body(parts.shared.settings.door.max_body_size));
        }
        fold(layers, target)
    });
    CompiledRoute {
        endpoint,
        refusing: OnceLock::new(),
        checked: route.clone(),
        options: OnceLock::new(),
        closed: OnceLock::new(),
        label: route.label(),
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
        identity: route.fingerprint,
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
    let info = Arc::new(RouteInfo::unmatched());
    let cx = BuildCx {
        route: &info,
        identity: 0,
        streams: false,
        websocket: false,
        operation: None,
        described: None,
        shared,
    };
    let stages = ON_EVERY_REQUEST.iter().filter_map(|name| checked.first_use(name)?.stage.as_ref());
    let layers = stages.map(|stage| stage.layer(&cx)).collect();
    let answer = poem::endpoint::make_sync(|request: Request| -> poem::Result<Response> {
        let error =
            request.data::<Refused>().map_or(GatewayError::from(Kind::NotFound), |refused| refused.0.clone());
        Err(error.into())
    });
    fold(layers, sealed(answer))
}

impl Entry {
    fn of(route: &Arc<CompiledRoute>) -> Self {
        Entry {
            endpoint: route.endpoint.clone(),
            info: route.checked.info.clone().into(),
            maintenance: route.checked.maintenance.clone(),
            rank: shedding::rank(&route.checked),
            route: route.clone(),
        }
    }

    /// Answers a request, unless the route is switched off or the process has too much to do.
    fn serve(&self, shared: &Shared, exchange: &Arc<Exchange>, mut request: Request) -> Answering<'_> {
        if let Some(closed) = self.maintenance(shared) {
            request.set_data(closed);
            return self.route.closed().call(request);
        }
        match shared.pressure.admit(self.rank, exchange) {
            Ok(()) => self.endpoint.call(request),
            Err(reason) => {
                request.set_data(Refused(shared.pressure.refuse(exchange, reason)));
                self.route.refusing().call(request)
            }
        }
    }

    /// What answers in its place, if it is switched off: by an operator, else by the manifest.
    fn maintenance(&self, shared: &Shared) -> Option<Arc<Closed>> {
        if shared.maintenance.is_empty() {
            return self.maintenance.clone();
        }
        match shared.maintenance.of(&self.route.label, self.info.info().version.as_deref()) {
            None => self.maintenance.clone(),
            Some(switched) => switched.filter(|_| !self.route.checked.stays_up()),
        }
    }
}

impl CompiledRoute {
    /// What it was compiled from.
    pub fn checked(&self) -> &Arc<CheckedRoute> {
        &self.checked
    }

    fn is_socket(&self) -> bool {
        self.checked.ending.is_socket()
    }

    /// Answers who is sent away.
    fn refusing(&self) -> &Next {
        self.refusing.get_or_init(|| shedding::refusing(&self.checked, &self.shared))
    }

    /// Answers while it is switched off, before anybody is asked who they are.
    fn closed(&self) -> &Next {
        self.closed.get_or_init(|| {
            let answer = poem::endpoint::make_sync(|request: Request| -> poem::Result<Response> {
                let closed =
                    request.data::<Arc<Closed>>().ok_or_else(|| GatewayError::from(Kind::Maintenance))?;
                Ok(closed.answer(*Exchange::of(&request).form() == Form::Problem)?)
            });
            fold(layers(&self.checked, &self.shared, sees_closed), sealed(answer))
        })
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
    pub fn find(&self, asked: &Asked<'_>) -> Found<'_, Entry> {
        self.router.find(asked)
    }

    /// Answers a request. `host` is its normalised host; the path is the exchange's.
    ///
    /// The exchange must be in the request's extensions already.
    pub fn answer<'a>(
        &'a self,
        exchange: &'a Arc<Exchange>,
        host: &'a str,
        request: Request,
    ) -> Answering<'a> {
        let asked = Asked {
            host,
            method: &exchange.method,
            path: &exchange.path,
            headers: request.headers(),
            query: request.uri().query(),
        };
        match self.find(&asked) {
            Found::Route(entry, params) => {
                exchange.matched(entry.info.clone(), params);
                entry.serve(&self.shared, exchange, request)
            }
            Found::NotAllowed(allow) if exchange.method == Method::OPTIONS => {
                Box::pin(async move { Ok(self.answer_options(exchange, host, request, allow).await) })
            }
            Found::NotAllowed(allow) => {
                let mut error = GatewayError::from(Kind::MethodNotAllowed);
                error.allow = Some(allow);
                self.refuse(request, error)
            }
            Found::Nothing => self.refuse(request, Kind::NotFound.into()),
        }
    }

    /// Answers with an error, logged and counted like any other request.
    pub fn refuse(&self, mut request: Request, error: GatewayError) -> Answering<'_> {
        request.set_data(Refused(error));
        self.refuse.call(request)
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
            Some(Found::Route(entry, params)) => {
                request.set_data(AllowedMethods(allow));
                exchange.matched(entry.info.clone(), params);
                finish(entry.route.options().call(request).await)
            }
            _ => {
                let mut error = GatewayError::from(Kind::MethodNotAllowed);
                error.allow = Some(allow);
                finish(self.refuse(request, error).await)
            }
        }
    }
}

/// A request that is being answered; see [`finish`].
pub type Answering<'a> = BoxFuture<'a, poem::Result<Response>>;

/// The answer. Every endpoint here is sealed, so an error is a response already.
pub fn finish(result: poem::Result<Response>) -> Response {
    result.unwrap_or_else(|error| error.into_response())
}
