//! One route: pattern, chain, target, and whether they go together.

use super::chains::{Chains, Link};
use super::native::{self, Native};
use super::order;
use super::pattern::{self, Host, MethodSet, Pattern, Predicates};
use crate::diag::{Code, Diagnostic, Diagnostics, Span};
use crate::exchange::RouteInfo;
use crate::manifest::model::{Bridge, ChainRef, Protocol, Route, Version};
use crate::manifest::{Manifest, Spanned};
use crate::openapi::{Bundle, Operation, PathNames};
use crate::stages::{Fit, Keeps};
use crate::state::maintenance::Closed;
use crate::targets::{self, Found, Target, WebSocketBridge};
use http::{HeaderName, HeaderValue};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

/// A route that is sound.
pub struct CheckedRoute {
    /// What logs and metrics know of it.
    pub info: Arc<RouteInfo>,
    /// Methods it takes.
    pub method: MethodSet,
    /// Path it takes, with its version's prefix.
    pub pattern: Pattern,
    /// Host it answers for.
    pub host: Option<Host>,
    /// Header and query values it needs.
    pub predicates: Predicates,
    /// Its chain, outermost first.
    pub links: Arc<[Link]>,
    /// Where it ends.
    pub ending: Ending,
    /// The operation that `docs.openapi` names, if it does.
    pub described: Option<Arc<Operation>>,
    /// Headers of a deprecated version.
    pub deprecation: Option<Arc<[(HeaderName, HeaderValue)]>>,
    /// What answers in its place, while the manifest switches it off.
    pub maintenance: Option<Arc<Closed>>,
    /// Whether it says that anybody may call it.
    pub public: bool,
    /// What `docs:` says.
    pub docs: RouteDocs,
    /// Hash of everything that makes it what it is: equal means nothing about it changed.
    pub fingerprint: u64,
    /// Where it was written.
    pub span: Span,
}

/// What a route says of itself.
#[derive(Debug, Clone, Default)]
pub struct RouteDocs {
    /// One line.
    pub summary: Option<String>,
    /// More (CommonMark).
    pub description: Option<String>,
    /// Groups it belongs to.
    pub tags: Vec<String>,
    /// Whether it stays out of the documentation.
    pub hidden: bool,
    /// What the upstream says of the call.
    pub bundle: Option<Arc<Bundle>>,
    /// What goes over the WebSocket, by the upstream: see [`Bundle::of_channel`].
    pub channel: Option<Arc<Bundle>>,
}

impl RouteDocs {
    fn of(
        route: &Route,
        described: bool,
        upstream: &str,
        channel: Option<Arc<Bundle>>,
        manifest: &Manifest,
    ) -> Self {
        let Some(docs) = &route.docs else { return RouteDocs::default() };
        let bundle = docs.openapi.as_ref().filter(|_| described);
        RouteDocs {
            summary: docs.summary.clone(),
            description: docs.description.clone(),
            tags: docs.tags.0.iter().map(|tag| tag.value.clone()).collect(),
            hidden: docs.hidden,
            bundle: bundle
                .and_then(|it| Bundle::of(it, &PathNames::of(&it.value, upstream), manifest))
                .map(Arc::new),
            channel,
        }
    }
}

/// Where a route ends.
#[derive(Clone)]
pub enum Ending {
    /// In a native operation.
    Native(Native),
    /// In anything else.
    Target(Arc<dyn Target>),
}

impl CheckedRoute {
    /// How people and receipts name it: method, host and path.
    pub fn label(&self) -> String {
        match &self.info.host {
            Some(host) => format!("{} {host}{}", self.info.method, self.info.template),
            None => format!("{} {}", self.info.method, self.info.template),
        }
    }

    /// What identifies it across revisions: label and predicates.
    pub fn key(&self) -> String {
        let mut key = self.label();
        for (name, want) in &self.predicates.headers {
            key.push_str(&format!(" [{name}: {want}]"));
        }
        for (name, want) in &self.predicates.query {
            key.push_str(&format!(" [?{name}={want}]"));
        }
        key
    }

    /// Whether a caller must say who they are.
    pub fn needs_auth(&self) -> bool {
        self.links.iter().any(Link::refuses_strangers)
    }

    /// Whether it answers whatever is switched off.
    pub fn stays_up(&self) -> bool {
        matches!(&self.ending, Ending::Native(native) if targets::maintenance::stays_up(native.operation.name))
    }

    /// Whether it answers with a stream.
    pub fn streams(&self) -> bool {
        match &self.ending {
            Ending::Native(native) => native.streams(),
            Ending::Target(target) => target.streams(),
        }
    }
}

impl Ending {
    /// Whether callers open a WebSocket there.
    pub fn is_socket(&self) -> bool {
        match self {
            Ending::Native(native) => native.is_socket(),
            Ending::Target(target) => target.is_socket(),
        }
    }

    /// Whether it bounds something by who is calling.
    fn counts_callers(&self) -> bool {
        match self {
            Ending::Native(native) => native.bridge().is_some_and(WebSocketBridge::counts_callers),
            Ending::Target(target) => target.counts_callers(),
        }
    }

    /// Feeds what it takes from other sections of the manifest to the route's identity.
    fn identify(&self, state: &mut dyn Hasher) {
        match self {
            Ending::Native(native) => native.identify(state),
            Ending::Target(target) => target.identify(state),
        }
    }

    /// How long its stream may last, if it answers with one.
    fn longest_stream(&self) -> Option<Duration> {
        match self {
            Ending::Native(native) => native.longest_stream(),
            Ending::Target(target) => target.longest_stream(),
        }
    }
}

/// What the routes of one version have in common.
pub struct Group<'a> {
    /// The version; none for routes outside any.
    pub version: Option<&'a Version>,
    /// Path before every route.
    pub prefix: String,
    /// Chain of routes that have none of their own.
    pub chain: Arc<[Link]>,
    /// Headers of a deprecated version.
    pub deprecation: Option<Arc<[(HeaderName, HeaderValue)]>>,
    /// What answers in the place of its routes, while it is switched off.
    pub maintenance: Option<Arc<Closed>>,
}

/// Checks routes one after the other.
pub struct RouteChecker<'a> {
    /// The manifest.
    pub manifest: &'a Manifest,
    /// Its chains.
    pub chains: Chains<'a>,
    /// Hash of each upstream that is sound.
    pub upstreams: HashMap<String, u64>,
    /// Upstreams that some route uses.
    pub used_upstreams: Vec<String>,
    /// Whole chains whose order was checked already, by address.
    ordered: Vec<Arc<[Link]>>,
}

impl<'a> RouteChecker<'a> {
    /// For a manifest whose upstreams were checked.
    pub fn new(manifest: &'a Manifest, upstreams: HashMap<String, u64>) -> Self {
        RouteChecker {
            manifest,
            chains: Chains::new(manifest),
            upstreams,
            used_upstreams: Vec::new(),
            ordered: Vec::new(),
        }
    }

    /// Checks one route of a group.
    pub fn check(
        &mut self,
        route: &Spanned<Route>,
        group: &Group<'_>,
        out: &mut Diagnostics,
    ) -> Option<CheckedRoute> {
        let before = out.counts().0;
        let parsed = pattern::route(&route.route, &group.prefix, out);
        let host = route.host.as_ref().map(|host| pattern::host(host, out));
        let predicates =
            route.predicates.as_ref().map(|declared| pattern::predicates(declared, out)).unwrap_or_default();
        let base = match &route.chain {
            Some(chain) => self.chains.resolve(chain, out),
            None => group.chain.clone(),
        };
        let links = self.chains.change(&base, &route.with, out);
        self.order_once(&links, out);
        let params = parsed.as_ref().map(|(_, pattern)| pattern.params()).unwrap_or_default();
        let ending = self.ending(route, &params, out);
        let maintenance = targets::maintenance::of_route(route, group.maintenance.as_ref(), out);
        let method = parsed.as_ref().map(|(method, _)| method.as_str());
        let upstream = path_upstream(route, parsed.as_ref().map(|(_, pattern)| pattern));
        let described = self.described(route, method, &params, &upstream, out);
        let channel = self.channel(route, ending.as_ref(), out);
        access(route, &links, out);
        kept(&links, out);
        let streaming = match &ending {
            Some(Ending::Target(target)) => target.streams(),
            Some(Ending::Native(native)) => native.streams(),
            None => false,
        };
        if streaming {
            streams(ending.as_ref().and_then(Ending::longest_stream), &links, out);
        }
        if ending.as_ref().is_some_and(Ending::counts_callers) {
            counted(route, &links, out);
        }
        let (method, pattern) = parsed?;
        let host = match host {
            Some(host) => Some(host?),
            None => None,
        };
        let ending = ending?;
        // What cannot be read was told where it stands.
        let unread = route.docs.as_ref().is_some_and(|docs| docs.openapi.is_some()) && described.is_none();
        if out.counts().0 > before || unread {
            return None;
        }
        let info = RouteInfo {
            method: method.as_str().to_owned(),
            template: pattern.template(),
            host: route.host.as_ref().map(|host| host.value.to_ascii_lowercase()),
            version: group.version.map(|version| version.name.value.clone()),
            params,
        };
        let fit = Fit {
            route: &info,
            described: described.as_deref(),
            streams: streaming,
            protocol: match ending.is_socket() {
                // A bridge's messages are as far from the chain as any other socket's.
                true => Protocol::Websocket,
                false => spoken(route),
            },
        };
        misfits(route, &fit, &links, out);
        if let Ending::Target(target) = &ending
            && let Some(misfit) = target.misfit(&info)
        {
            let fault = Diagnostic::error(Code::GRPC_ROUTE, route.route.span, misfit.message);
            out.push(fault.help(misfit.help));
        }
        if out.counts().0 > before {
            return None;
        }
        let mut state = DefaultHasher::new();
        (self.manifest.digest(route.span), &group.prefix, &info.version).hash(&mut state);
        // Themselves, not what the manifest says of them: they name another version's prefix.
        group.deprecation.hash(&mut state);
        links.iter().for_each(|link| link.fingerprint.hash(&mut state));
        described.as_ref().map(|described| described.digest()).hash(&mut state);
        channel.iter().for_each(|channel| channel.digest(&mut state));
        for name in used(route, self.manifest) {
            self.upstreams.get(name).hash(&mut state);
        }
        ending.identify(&mut state);
        maintenance.iter().for_each(|closed| closed.identify(&mut state));
        Some(CheckedRoute {
            info: Arc::new(info),
            method,
            pattern,
            host,
            predicates,
            links,
            ending,
            docs: RouteDocs::of(route, described.is_some(), &upstream, channel, self.manifest),
            described,
            deprecation: group.deprecation.clone(),
            maintenance,
            public: route.public,
            fingerprint: state.finish(),
            span: route.route.span,
        })
    }

    /// A chain shared by many routes is checked once.
    fn order_once(&mut self, links: &Arc<[Link]>, out: &mut Diagnostics) {
        if !self.ordered.iter().rev().take(64).any(|known| Arc::ptr_eq(known, links)) {
            order::check(links, out);
            self.ordered.push(links.clone());
        }
    }

    /// The operation that the route's documentation names.
    fn described(
        &self,
        route: &Route,
        method: Option<&str>,
        params: &[String],
        upstream: &str,
        out: &mut Diagnostics,
    ) -> Option<Arc<Operation>> {
        let reference = route.docs.as_ref()?.openapi.as_ref()?;
        let names = PathNames::of(&reference.value, upstream);
        Operation::check(reference, method, params, &names, self.manifest, out)
    }

    /// The channel that the route's documentation names.
    fn channel(&self, route: &Route, ending: Option<&Ending>, out: &mut Diagnostics) -> Option<Arc<Bundle>> {
        let reference = route.docs.as_ref()?.asyncapi.as_ref()?;
        let misplaced = match (&route.bridge, ending) {
            (Some(_), _) => {
                Some("what a bridge passes is said by `docs.openapi`, or by the operation itself")
            }
            (None, Some(ending)) if !ending.is_socket() => Some(
                "it is for routes with `protocol: websocket`; of others, `docs.openapi` says what is sent",
            ),
            _ => None,
        };
        if let Some(help) = misplaced {
            let message = "`asyncapi` describes a WebSocket that callers do not open here";
            out.push(Diagnostic::error(Code::MISPLACED, reference.span, message).help(help));
            return None;
        }
        Bundle::of_channel(reference, self.manifest, out).map(Arc::new)
    }

    fn ending(&mut self, route: &Spanned<Route>, params: &[String], out: &mut Diagnostics) -> Option<Ending> {
        self.used_upstreams.extend(used(route, self.manifest).into_iter().map(str::to_owned));
        match targets::check(route, params, self.manifest, out)? {
            Found::Target(target) => Some(Ending::Target(target)),
            Found::Handler(name) => {
                native::check(&name, route, params, self.manifest, out).map(Ending::Native)
            }
        }
    }
}

/// The path that goes upstream, its parameters as `{name}`.
fn path_upstream(route: &Route, pattern: Option<&Pattern>) -> String {
    match (&route.path, pattern) {
        (Some(path), _) => path.value.clone(),
        (None, Some(pattern)) => pattern.braced(),
        (None, None) => String::new(),
    }
}

/// Upstreams that a route names, or comes to by a fallback.
fn used<'m>(route: &'m Route, manifest: &'m Manifest) -> Vec<&'m str> {
    let split =
        route.split.iter().flat_map(|split| split.to.0.iter().map(|part| part.upstream.value.as_str()));
    let mut all: Vec<&str> = route.upstream.iter().map(|name| name.value.as_str()).chain(split).collect();
    let others: Vec<&str> = all.iter().flat_map(|name| targets::reached(name, route, manifest)).collect();
    all.extend(others);
    all.extend(route.mirror.iter().map(|mirror| mirror.upstream.value.as_str()));
    all
}

/// Who may call is decided, not forgotten (SECURITY rule 11).
fn access(route: &Route, links: &[Link], out: &mut Diagnostics) {
    let auth = links.iter().find(|link| link.refuses_strangers());
    match (auth, route.public) {
        (None, false) => {
            let message = "this route has neither `auth` in its chain nor `public: true`";
            let mut fault = Diagnostic::error(Code::NOT_PUBLIC, route.route.span, message)
                .help("add `auth` to its chain, or say `public: true` if anybody may call it");
            if let Some(optional) = links.iter().find(|link| super::order::IDENTIFY.contains(&link.name)) {
                let conditional = optional.stage.as_ref().is_some_and(|stage| stage.condition().is_some());
                let how = if conditional {
                    "lets pass whom its condition leaves out"
                } else {
                    "lets strangers pass"
                };
                fault = fault.note(optional.span, format!("`{}` here {how}", optional.name));
            }
            out.push(fault);
        }
        (Some(link), true) => out.push(
            Diagnostic::warning(
                Code::LOOSENED,
                route.route.span,
                format!("this route says `public: true`, but `{}` in its chain refuses strangers", link.name),
            )
            .help("remove `public: true`, or give it a chain without it")
            .note(link.span, format!("`{}` stands here", link.name)),
        ),
        _ => {}
    }
}

/// A limit for each caller needs to know who is calling.
fn counted(route: &Route, links: &[Link], out: &mut Diagnostics) {
    let span = route.websocket.as_ref().and_then(|limits| limits.per_user.as_ref()).map(|count| count.span);
    let known = links.iter().any(|link| super::order::IDENTIFY.contains(&link.name));
    if let Some(span) = span.filter(|_| !known) {
        let message = "`per_user` counts by who is calling, and nobody finds that out on this route";
        out.push(
            Diagnostic::error(Code::NO_CALLER, span, message)
                .help("put `auth` or `api_key` into its chain, or remove `per_user`"),
        );
    }
}

/// Answers that are kept are given to those they are for.
fn kept(links: &[Link], out: &mut Diagnostics) {
    let identifies = |link: &Link| super::order::IDENTIFY.contains(&link.name);
    for (at, link) in links.iter().enumerate() {
        let keeps = link.stage.as_ref().and_then(|stage| stage.facts().keeps_answers);
        let known = links[..at].iter().find(|outer| identifies(outer));
        match (keeps, known) {
            (Some(Keeps::ForWhoeverAsks), Some(identify)) => {
                let message = format!(
                    "`{}` behind `{}` would give one caller's answer to another",
                    link.name, identify.name
                );
                out.push(
                    Diagnostic::error(Code::SHARED_ANSWERS, link.span, message)
                        .help("add `user` to its `by`, or say `shared: true` if all callers get the same")
                        .note(identify.span, format!("`{}` stands here", identify.name)),
                );
            }
            (Some(Keeps::ForEach(word)), None) if !links.iter().any(identifies) => {
                let message = format!(
                    "`{}` goes by `{word}`, and nobody finds out who is calling before it",
                    link.name
                );
                out.push(
                    Diagnostic::error(Code::NO_CALLER, link.span, message)
                        .help(format!("put `auth` or `api_key` before it, or remove `{word}`")),
                );
            }
            _ => {}
        }
    }
}

/// Stages that cannot do for this route what they are for.
fn misfits(route: &Route, fit: &Fit<'_>, links: &[Link], out: &mut Diagnostics) {
    for link in links {
        let Some(misfit) = link.stage.as_ref().and_then(|stage| stage.misfit(fit)) else { continue };
        out.push(
            Diagnostic::error(misfit.code, route.route.span, misfit.message)
                .help(misfit.help)
                .note(link.span, format!("`{}` stands here", link.name)),
        );
    }
}

/// What stages have before them: a WebSocket that is bridged to events has requests with bodies.
fn spoken(route: &Route) -> Protocol {
    match (&route.protocol, &route.bridge) {
        (Some(protocol), Some(bridge))
            if protocol.value == Protocol::Websocket && bridge.value == Bridge::Sse =>
        {
            Protocol::Sse
        }
        (protocol, _) => protocol.as_ref().map_or(Protocol::Http, |protocol| protocol.value),
    }
}

/// What would hold back or cut a stream.
fn streams(longest: Option<Duration>, links: &[Link], out: &mut Diagnostics) {
    for link in links {
        let Some(stage) = &link.stage else { continue };
        let facts = stage.facts();
        if let Some(reason) = facts.buffers_response {
            let message = format!("`{}` would hold back this route's stream", link.name);
            out.push(
                Diagnostic::error(Code::BUFFERS_STREAM, link.span, message)
                    .help(format!("{reason}; give streaming routes a chain without it")),
            );
        }
        if let (Some(deadline), Some(longest)) = (facts.deadline, longest)
            && deadline < longest
        {
            let deadline = crate::units::Dur(deadline);
            let (message, help) = match longest {
                Duration::MAX => (
                    format!("`{}` of {deadline} stands before a socket, which has no end", link.name),
                    "give this route a chain without it; `websocket.idle` ends a socket whose caller is gone",
                ),
                longest => (
                    format!(
                        "`{}` of {deadline} would cut a stream that may last {}",
                        link.name,
                        crate::units::Dur(longest)
                    ),
                    "raise it for this route by `with:`, or lower `stream.max`",
                ),
            };
            out.push(Diagnostic::error(Code::DEADLINES, link.span, message).help(help));
        }
    }
}

/// The chain of a version, or of routes outside any: none declared means no stage.
pub fn group_chain(chain: Option<&ChainRef>, chains: &mut Chains<'_>, out: &mut Diagnostics) -> Arc<[Link]> {
    match chain {
        Some(chain) => chains.resolve(chain, out),
        None => [].into(),
    }
}
