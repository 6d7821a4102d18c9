//! Targets: where a route ends, one kind a file.
//!
//! [`check`] reads what a route says and gives a [`Target`], which can be built for the running table any number of
//! times and cannot fail then. Native handlers are targets too, but not of this module: [`Found::Handler`] hands
//! their name on. Round targets that send to upstreams stand, from the inside: `fallback` (another answer where there is
//! none), `split` (one of several upstreams), `mirror` (a copy for one more). `forward` holds the header rules that `proxy` and `sse` share, `template` renders paths.

mod fallback;
mod forward;
mod grpc;
pub mod maintenance;
mod mirror;
mod notice;
mod proxy;
mod redirect;
mod respond;
mod split;
mod sse;
mod template;
#[cfg(test)]
mod testing;
mod transcode;
mod websocket;

pub use fallback::{Substitute, check_upstreams, of_handler, reached};
pub use respond::Answer;
pub use websocket::{WebSocketBridge, bridge};

use crate::diag::{Code, Diagnostic, Diagnostics, Span, did_you_mean};
use crate::endpoint::Next;
use crate::error::Kind;
use crate::exchange::RouteInfo;
use crate::manifest::model::{self, Bridge, Protocol, Route};
use crate::manifest::{Manifest, Spanned};
use crate::openapi::OperationDoc;
use crate::state::Shared;
use crate::upstream::Upstream;
use std::collections::HashMap;
use std::hash::Hasher;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// What callers meet because an upstream stands behind the gateway, by what the manifest says of it.
#[derive(Debug, Clone, Copy)]
pub struct Meets {
    /// Its breaker may be open.
    breaker: bool,
    /// Only so much may be under way there.
    capped: bool,
}

impl Meets {
    /// By the declaration of an upstream.
    pub fn of(upstream: &model::Upstream) -> Self {
        Meets {
            breaker: upstream.breaker.is_some(),
            capped: upstream.max_in_flight.is_some() || upstream.adaptive.is_some(),
        }
    }

    /// Says it.
    pub fn document(self, op: &mut OperationDoc) {
        op.refuses(&[Kind::UpstreamUnreachable, Kind::UpstreamReset, Kind::UpstreamBadResponse], "");
        op.refuses(&[Kind::UpstreamSaturated], "");
        if self.breaker {
            op.refuses(&[Kind::UpstreamUnavailable], "");
        }
        if self.capped {
            op.refuses(&[Kind::Overloaded], "too much is under way at the service behind it");
        }
        op.refuses(&[Kind::UpstreamTimeout], "");
    }
}

/// A checked target.
pub trait Target: Send + Sync {
    /// Builds it for a route.
    fn build(&self, cx: &TargetCx<'_>) -> Next;

    /// The name of what it builds, where that keeps nothing and is the same for all routes whose targets say this name.
    fn common(&self) -> Option<&str> {
        None
    }

    /// Whether it answers with a stream: then nothing in the chain may hold the response back.
    fn streams(&self) -> bool {
        false
    }

    /// Whether it passes gRPC calls on: their bodies stream both ways, and no stage can read them.
    fn passes_calls(&self) -> bool {
        false
    }

    /// Why a route with this method and pattern cannot end here, though both are sound by themselves.
    fn misfit(&self, _route: &RouteInfo) -> Option<Misfit> {
        None
    }

    /// The status it answers with, if that is the same for every request.
    fn answers(&self) -> Option<u16> {
        None
    }

    /// How long its stream may last, if it answers with one.
    fn longest_stream(&self) -> Option<Duration> {
        None
    }

    /// Whether it takes the connection over: then it lasts as long as its caller likes, and a reload that removes the
    /// route ends it.
    fn is_socket(&self) -> bool {
        false
    }

    /// What answers behind a bridge that callers open a WebSocket to, if there is one.
    fn bridged(&self) -> Option<&dyn Target> {
        None
    }

    /// Whether it bounds something by who is calling.
    fn counts_callers(&self) -> bool {
        false
    }

    /// Feeds what it takes from other sections of the manifest to the route's identity, so that a change there is a
    /// change of the route.
    fn identify(&self, _state: &mut dyn Hasher) {}

    /// Name of the upstream it sends to, if it does.
    fn upstream(&self) -> Option<&str> {
        None
    }

    /// Says what callers get from it, beside what `docs.openapi` said already.
    fn document(&self, _op: &mut OperationDoc) {}

    /// Where a request would end, as `explain` prints it: `http://host:port/path` for an upstream.
    ///
    /// `path` is the normalised path, `values` are its parameters in the order of the pattern.
    fn describe(&self, path: &str, values: &[&str]) -> String;
}

/// Why a route and its target do not fit together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// The sentence.
    pub message: String,
    /// The way out.
    pub help: String,
}

/// What a build may look at.
pub struct TargetCx<'a> {
    /// The route.
    pub route: &'a Arc<RouteInfo>,
    /// What the process has.
    pub shared: &'a Arc<Shared>,
    /// Every upstream that the manifest defines, running.
    pub upstreams: &'a HashMap<Arc<str>, Arc<Upstream>>,
    /// Whether the route is there: the same for all its revisions.
    pub presence: &'a Arc<Presence>,
    /// Equal numbers, the same route in every respect.
    pub identity: u64,
}

/// Whether a route is in the table that serves. What outlives a request asks here.
#[derive(Debug, Default)]
pub struct Presence(watch::Sender<bool>);

impl Presence {
    /// The route was removed.
    pub fn end(&self) {
        self.0.send_replace(true);
    }

    /// Resolves when the route was removed.
    pub fn over(&self) -> impl Future<Output = ()> + Send + Sync + 'static + use<> {
        let mut over = self.0.subscribe();
        async move {
            if over.wait_for(|over| *over).await.is_err() {
                // Its last revision went with the process.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// What a route ends in.
pub enum Found {
    /// One of this module's.
    Target(Arc<dyn Target>),
    /// A native operation of this name. It may use the route's `upstream`, `path`, `stream` and `bridge`, and must
    /// refuse them where it does not.
    Handler(Spanned<String>),
}

/// Is a route's target sound? Reports every fault; `None` if there was an error. `params` are the names of the
/// pattern's parameters, in order.
pub fn check(
    route: &Spanned<Route>,
    params: &[String],
    manifest: &Manifest,
    out: &mut Diagnostics,
) -> Option<Found> {
    let before = out.counts().0;
    let kinds = kinds(route);
    // A handler may work with an upstream; any other two are a contradiction.
    let several = kinds.len() > 1 && !matches!(kinds[..], [("handler", _), ("upstream", _)]);
    if kinds.is_empty() {
        out.push(
            Diagnostic::error(Code::TARGET, route.route.span, "this route has no target")
                .help("add one of `upstream`, `split`, `handler`, `respond` or `redirect`"),
        );
    } else if several {
        let mut fault = Diagnostic::error(Code::TARGET, kinds[1].1, "this route has more than one target")
            .help("keep one of them");
        for (name, span) in kinds.iter().filter(|(_, span)| *span != kinds[1].1) {
            fault = fault.note(*span, format!("`{name}` is another"));
        }
        out.push(fault);
    }
    if let Some(name) = route.upstream.as_ref().filter(|_| route.handler.is_some()) {
        let upstream = known(name, manifest, out);
        upstream.iter().for_each(|upstream| grpc::same_protocol(route, name, upstream.decl, out));
    }
    if route.handler.is_some() || sends_on(route) && !speaks_websocket(route) {
        no_events(route, out);
    }
    let found = match (&route.handler, sends_on(route), &route.respond, &route.redirect) {
        (Some(handler), ..) => {
            no_sockets(route, out);
            no_mirror(route, out);
            Some(Found::Handler(handler.clone()))
        }
        (None, true, ..) => sent_on(route, params, manifest, out).map(Found::Target),
        (None, false, Some(respond), _) => {
            misplaced(route, "respond", out);
            respond::Answer::check(respond, out).map(|answer| Found::Target(Arc::new(answer)))
        }
        (None, false, None, Some(redirect)) => {
            misplaced(route, "redirect", out);
            redirect::check(redirect, params, out).map(|target| Found::Target(Arc::new(target)))
        }
        (None, false, None, None) => None,
    };
    found.filter(|_| out.counts().0 == before)
}

/// Whether a route ends in upstreams.
fn sends_on(route: &Route) -> bool {
    route.upstream.is_some() || route.split.is_some()
}

/// The target of a route that ends in one upstream or several: each with its fallback, chosen among by the split, their
/// requests mirrored, behind the bridge that the route asks for.
fn sent_on(
    route: &Spanned<Route>,
    params: &[String],
    manifest: &Manifest,
    out: &mut Diagnostics,
) -> Option<Arc<dyn Target>> {
    let bare = |name: &Spanned<String>, held: bool, out: &mut Diagnostics| {
        leg(route, params, name, held, manifest, out)
    };
    let one =
        |name: &Spanned<String>, out: &mut Diagnostics| fallback::check(route, name, manifest, &bare, out);
    let target = match (&route.split, &route.upstream) {
        (Some(split), _) => split::check(split, &one, out),
        (None, Some(name)) => one(name, out),
        (None, None) => None,
    };
    let target = mirror::check(route, params, target, manifest, out)?;
    let bridged =
        route.protocol.as_ref().is_none_or(|it| !matches!(it.value, Protocol::Websocket | Protocol::Grpc))
            && route.bridge.as_ref().is_some_and(|bridge| bridge.value == Bridge::Websocket);
    Some(match bridged {
        true => Arc::new(websocket::bridged(target, route, manifest, out)),
        false => target,
    })
}

/// The bare target of a route over one upstream. With `held`, a stream that brings no event is an error, not a stream.
fn leg(
    route: &Spanned<Route>,
    params: &[String],
    name: &Spanned<String>,
    held: bool,
    manifest: &Manifest,
    out: &mut Diagnostics,
) -> Option<Arc<dyn Target>> {
    let upstream = known(name, manifest, out);
    upstream.iter().for_each(|upstream| grpc::same_protocol(route, name, upstream.decl, out));
    let calls = route.protocol.as_ref().is_some_and(|it| it.value == Protocol::Grpc);
    Some(if route.grpc.is_some() {
        no_websocket(route, out);
        Arc::new(transcode::check(route, params, upstream, held, manifest, out)?)
    } else if calls {
        no_websocket(route, out);
        Arc::new(grpc::check(route, params, upstream, out)?)
    } else if speaks_websocket(route) && gives_events(route) {
        Arc::new(websocket::events::check(route, params, upstream, out)?)
    } else if speaks_websocket(route) {
        Arc::new(websocket::check(route, params, manifest, upstream, out)?)
    } else {
        no_websocket(route, out);
        Arc::new(proxy::check(route, params, upstream, held, out)?)
    })
}

/// The targets a route names, with their places.
fn kinds(route: &Route) -> Vec<(&'static str, Span)> {
    [
        ("handler", route.handler.as_ref().map(|it| it.span)),
        ("upstream", route.upstream.as_ref().map(|it| it.span)),
        ("split", route.split.as_ref().map(|it| it.span)),
        ("respond", route.respond.as_ref().map(|it| it.span)),
        ("redirect", route.redirect.as_ref().map(|it| it.span)),
    ]
    .into_iter()
    .filter_map(|(name, span)| Some((name, span?)))
    .collect()
}

fn speaks_websocket(route: &Route) -> bool {
    route.protocol.as_ref().is_some_and(|protocol| protocol.value == Protocol::Websocket)
}

fn gives_events(route: &Route) -> bool {
    route.bridge.as_ref().is_some_and(|bridge| bridge.value == Bridge::Sse)
}

/// A fault for `bridge: sse` where no WebSocket is to be bridged.
fn no_events(route: &Route, out: &mut Diagnostics) {
    if let Some(bridge) = route.bridge.as_ref().filter(|bridge| bridge.value == Bridge::Sse) {
        let message = "`bridge: sse` is for routes with `protocol: websocket`";
        let help = match route.protocol.as_ref().map(|protocol| protocol.value) {
            Some(Protocol::Sse) => "this route answers with events already: remove it",
            _ => "add `protocol: websocket`, or remove `bridge`",
        };
        out.push(Diagnostic::error(Code::MISPLACED, bridge.span, message).help(help));
    }
}

/// A fault for limits of a WebSocket where there is none.
fn no_websocket(route: &Route, out: &mut Diagnostics) {
    if let Some(bridge) = &route.bridge
        && bridge.value == Bridge::Websocket
        && route.protocol.as_ref().is_none_or(|protocol| protocol.value != Protocol::Sse)
        && route.grpc.is_none()
    {
        let message = "`bridge: websocket` is for routes that answer with an event stream";
        out.push(
            Diagnostic::error(Code::MISPLACED, bridge.span, message)
                .help("add `protocol: sse`, or remove `bridge`"),
        );
    }
    if let Some(limits) = &route.websocket
        && route.bridge.is_none()
    {
        let message = "`websocket` is for routes with `protocol: websocket`";
        out.push(
            Diagnostic::error(Code::MISPLACED, limits.span, message)
                .help("add `protocol: websocket`, or remove `websocket`"),
        );
    }
}

/// A fault for limits of sockets beside a handler, which answers requests unless there is a bridge.
fn no_sockets(route: &Route, out: &mut Diagnostics) {
    if let Some(limits) = route.websocket.as_ref().filter(|_| route.bridge.is_none()) {
        let message = "`websocket` does not apply to a route that ends in a handler";
        let help = "it belongs to routes with `upstream` alone, or with `bridge: websocket`; remove it here";
        out.push(Diagnostic::error(Code::MISPLACED, limits.span, message).help(help));
    }
}

/// A fault for copies of what a handler answers.
fn no_mirror(route: &Route, out: &mut Diagnostics) {
    if let Some(mirror) = &route.mirror {
        let message = "`mirror` does not apply to a route that ends in a handler";
        let help = "it copies what is passed on to an upstream; remove it here";
        out.push(Diagnostic::error(Code::MISPLACED, mirror.span, message).help(help));
    }
}

fn known<'m>(
    name: &Spanned<String>,
    manifest: &'m Manifest,
    out: &mut Diagnostics,
) -> Option<proxy::Decl<'m>> {
    let found = manifest.upstreams.0.iter().find(|(key, _)| key.text == name.value);
    if found.is_none() {
        out.push(
            Diagnostic::error(
                Code::UNKNOWN_UPSTREAM,
                name.span,
                format!("upstream `{}` is not defined", name.value),
            )
            .maybe_help(did_you_mean(&name.value, manifest.upstreams.names())),
        );
    }
    found.map(|(key, decl)| proxy::Decl { name: &key.text, decl })
}

/// Faults for keys that only mean something beside `upstream`.
fn misplaced(route: &Route, target: &str, out: &mut Diagnostics) {
    for (key, span) in [
        ("path", route.path.as_ref().map(|it| it.span)),
        ("protocol", route.protocol.as_ref().map(|it| it.span)),
        ("grpc", route.grpc.as_ref().map(|it| it.span)),
        ("stream", route.stream.as_ref().map(|it| it.span)),
        ("websocket", route.websocket.as_ref().map(|it| it.span)),
        ("bridge", route.bridge.as_ref().map(|it| it.span)),
        ("mirror", route.mirror.as_ref().map(|it| it.span)),
        ("fallback", route.fallback.as_ref().map(|it| it.span)),
    ] {
        if let Some(span) = span {
            let message = format!("`{key}` does not apply to a route that ends in `{target}`");
            out.push(
                Diagnostic::error(Code::MISPLACED, span, message)
                    .help("it belongs to routes with `upstream`; remove it here"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::faults;
    use super::*;

    #[test]
    fn a_route_has_exactly_one_target() {
        assert_eq!(faults("{ route: GET /a }"), [Code::TARGET]);
        assert_eq!(faults("{ route: GET /a, upstream: algo, redirect: /x }"), [Code::TARGET]);
        assert_eq!(faults("{ route: GET /a, handler: gateway.health, respond: {} }"), [Code::TARGET]);
        assert_eq!(faults("{ route: GET /a, handler: chat.stream, upstream: algo }"), []);
        assert_eq!(faults("{ route: GET /a, upstream: algo }"), []);
    }

    #[test]
    fn unknown_upstreams_are_named() {
        assert_eq!(faults("{ route: GET /a, upstream: alog }"), [Code::UNKNOWN_UPSTREAM]);
        assert_eq!(
            faults("{ route: GET /a, handler: chat.stream, upstream: alog }"),
            [Code::UNKNOWN_UPSTREAM]
        );
    }

    #[test]
    fn a_mirror_is_for_another_upstream_and_a_split_for_several() {
        let route = "{ route: GET /a, upstream: algo, mirror: { upstream: algo, share: 5% } }";
        assert_eq!(faults(route), [Code::MIRROR]);
        assert_eq!(faults("{ route: GET /a, split: [{ upstream: algo, weight: 1 }] }"), [Code::SPLIT]);
        assert_eq!(faults("{ route: GET /a, upstream: algo, fallback: {} }"), [Code::FALLBACK]);
        assert_eq!(faults("{ route: GET /a, upstream: algo, fallback: { upstream: algo } }"), [Code::CYCLE]);
    }

    #[test]
    fn keys_that_would_be_ignored_are_faults() {
        assert_eq!(
            faults("{ route: GET /a, respond: {}, path: /x, protocol: sse, stream: {} }"),
            [Code::MISPLACED; 3]
        );
        assert_eq!(faults("{ route: GET /a, redirect: /b, path: /x }"), [Code::MISPLACED]);
        assert_eq!(faults("{ route: GET /a, upstream: algo, stream: {} }"), [Code::MISPLACED]);
        assert_eq!(faults("{ route: GET /a, upstream: algo, protocol: sse, stream: {} }"), []);
        assert_eq!(faults("{ route: GET /a, upstream: algo, websocket: {} }"), [Code::MISPLACED]);
        assert_eq!(faults("{ route: GET /a, upstream: algo, protocol: websocket, websocket: {} }"), []);
    }
}
