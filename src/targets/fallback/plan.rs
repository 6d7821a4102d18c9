//! What a manifest says of fallbacks, checked: at an upstream, or at a route.

use crate::diag::{Code, Diagnostic, Diagnostics, Span, did_you_mean};
use crate::exchange::Degraded;
use crate::manifest::model::{Fallback, Protocol, Resend, Route};
use crate::manifest::{Manifest, Spanned};
use crate::openapi::{On, OperationDoc};
use crate::targets::Answer;
use serde_json::json;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::time::Duration;

/// Largest body that is kept where the manifest says nothing.
const MAX_BODY: u64 = 64 << 10;
/// Largest answer that is kept, likewise.
const MAX_SIZE: u64 = 1 << 20;
/// Answers of an upstream that count as none where the manifest says nothing.
const ON: [u16; 3] = [502, 503, 504];
/// What `Age` says.
const AGE: &str = "Seconds since a copy was the service's answer.";

/// What answers instead of an upstream, on one route: whatever of it can be done there.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Name of another upstream.
    pub(super) upstream: Option<String>,
    pub(super) stale: Option<Duration>,
    pub(super) respond: Option<Answer>,
    pub(super) on: Vec<u16>,
    pub(super) resend: Resend,
    pub(super) max_body: u64,
    pub(super) max_size: u64,
}

/// What is spoken on a route, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speech {
    /// Requests and answers.
    Http,
    /// A stream that answers a request.
    Stream,
    /// A WebSocket, or one behind a bridge.
    Socket,
    /// gRPC, passed on.
    Calls,
    /// A native operation that asks an upstream.
    Handler,
}

impl Speech {
    pub(super) fn of(route: &Route) -> Self {
        match route.protocol.as_ref().map(|protocol| protocol.value) {
            _ if route.handler.is_some() => Speech::Handler,
            Some(Protocol::Grpc) => Speech::Calls,
            Some(Protocol::Websocket) => Speech::Socket,
            Some(Protocol::Sse) => Speech::Stream,
            Some(Protocol::Http) | None => Speech::Http,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Speech::Http => "requests of other methods than GET",
            Speech::Stream => "event streams",
            Speech::Socket => "WebSockets",
            Speech::Calls => "gRPC calls that are passed on",
            Speech::Handler => "handlers",
        }
    }
}

/// Which keys of a fallback a route has a use for.
struct Uses {
    respond: bool,
    upstream: bool,
    stale: bool,
}

impl Uses {
    fn of(route: &Route) -> Self {
        let speech = Speech::of(route);
        // An operation without a stream of its own answers by itself, whatever its upstream does.
        let streams = route.handler.as_ref().is_none_or(|name| name.value == "chat.stream");
        let method = route.route.split_whitespace().next().unwrap_or_default();
        Uses {
            respond: speech != Speech::Calls && streams,
            upstream: matches!(speech, Speech::Http | Speech::Stream | Speech::Handler) && streams,
            stale: speech == Speech::Http && route.bridge.is_none() && matches!(method, "GET" | "ANY"),
        }
    }

    fn any(&self, decl: &Fallback) -> bool {
        self.respond && decl.respond.is_some()
            || self.upstream && decl.upstream.is_some()
            || self.stale && decl.stale.is_some()
    }
}

impl Plan {
    /// For a route over an upstream: the route's own fallback, or the upstream's. None if nothing of it can be done
    /// there. Faults of an upstream's own are reported by [`check_upstreams`].
    pub(super) fn of(
        route: &Route,
        upstream: &str,
        manifest: &Manifest,
        first: bool,
        out: &mut Diagnostics,
    ) -> Option<Plan> {
        let own = route.fallback.as_ref().filter(|_| first);
        let declared = own.or_else(|| manifest.upstreams.get(upstream)?.fallback.as_ref())?;
        let mut quiet = Diagnostics::new();
        let uses = Uses::of(route);
        if own.is_some() {
            misplaced(route, declared, &uses, out);
        }
        let plan =
            Plan::check(declared, &uses, Speech::of(route), if own.is_some() { out } else { &mut quiet });
        let helps = plan.upstream.is_some() || plan.stale.is_some() || plan.respond.is_some();
        helps.then_some(plan)
    }

    fn check(decl: &Spanned<Fallback>, uses: &Uses, speech: Speech, out: &mut Diagnostics) -> Plan {
        if !says_something(decl) {
            out.push(
                Diagnostic::error(Code::FALLBACK, decl.span, "this fallback says nothing that could answer")
                    .help("add `respond: { … }`, `upstream: other` or `stale: 60s`"),
            );
        }
        let mut on = Vec::new();
        for status in decl.on.iter().flat_map(|on| &on.0) {
            if !matches!(status.value, 429 | 500..600) {
                let message = format!("{} is an answer, not the lack of one", status.value);
                out.push(
                    Diagnostic::error(Code::BAD_VALUE, status.span, message)
                        .help("name 429, or statuses from 500 to 599; what callers did wrong stays theirs"),
                );
            }
            on.push(status.value);
        }
        if decl.upstream.is_none() {
            let resend = decl.resend.as_ref().map(|resend| ("resend", resend.span));
            for (key, span) in
                resend.into_iter().chain(decl.max_body.as_ref().map(|it| ("max_body", it.span)))
            {
                let message = format!("`{key}` is for fallbacks with `upstream`");
                out.push(Diagnostic::error(Code::MISPLACED, span, message).help("remove it"));
            }
        }
        if let Some(max) = decl.max_size.as_ref().filter(|_| decl.stale.is_none()) {
            let message = "`max_size` is for fallbacks with `stale`";
            out.push(Diagnostic::error(Code::MISPLACED, max.span, message).help("remove it"));
        }
        let answer = decl.respond.as_ref().map(|respond| Answer::check(respond, out));
        let streams = matches!(speech, Speech::Stream | Speech::Handler);
        let resend = if streams { Resend::Always } else { Resend::Safe };
        Plan {
            upstream: decl.upstream.as_ref().filter(|_| uses.upstream).map(|name| name.value.clone()),
            stale: decl.stale.as_ref().filter(|_| uses.stale).map(|age| age.value.0),
            respond: answer.flatten().filter(|_| uses.respond),
            on: if decl.on.is_some() { on } else { ON.to_vec() },
            resend: decl.resend.as_ref().map_or(resend, |resend| resend.value),
            max_body: decl.max_body.as_ref().map_or(MAX_BODY, |size| size.value.0),
            max_size: decl.max_size.as_ref().map_or(MAX_SIZE, |size| size.value.0),
        }
    }

    /// Feeds what it says to a route's identity.
    pub(super) fn identify(&self, mut state: &mut dyn Hasher) {
        (&self.upstream, self.stale, &self.on, self.resend, self.max_body, self.max_size).hash(&mut state);
        self.respond.iter().for_each(|answer| answer.identify(state));
    }

    /// Says what callers get where the upstream cannot answer. Over a WebSocket that is told in messages.
    pub(super) fn document(&self, op: &mut OperationDoc) {
        if op.websocket {
            return;
        }
        let schema = json!({ "type": "string", "enum": Degraded::ALL.iter().map(|kind| kind.word()).collect::<Vec<_>>() });
        let about = "What answers instead of the service, while it cannot.";
        op.header(On::Success, "X-Degraded", about, schema.clone());
        if self.stale.is_some() {
            op.header(On::Success, "Age", AGE, json!({ "type": "integer", "minimum": 0 }));
        }
        if let Some(answer) = &self.respond {
            answer.stand_in(op);
            op.header(On::Status(answer.answers_with()), "X-Degraded", about, schema);
        }
        let steps = [
            self.upstream.as_ref().map(|_| "upstream"),
            self.stale.map(|_| "stale"),
            self.respond.as_ref().map(|_| "respond"),
        ];
        op.extension("x-fallback", steps.into_iter().flatten().collect::<Vec<_>>().join(", ").into());
    }

    /// For people; `other` says where the other upstream is, if that is known.
    pub(super) fn describe(&self, other: Option<&str>) -> String {
        let mut steps = Vec::new();
        let place = other.map(|place| format!(" ({place})")).unwrap_or_default();
        steps.extend(self.upstream.as_ref().map(|name| format!("upstream {name}{place}")));
        steps.extend(self.stale.map(|age| format!("a copy no older than {}", crate::units::Dur(age))));
        steps.extend(self.respond.as_ref().map(Answer::in_words));
        steps.join(", then ")
    }
}

/// Faults for what a route's own fallback says and the route has no use for.
fn misplaced(route: &Route, decl: &Fallback, uses: &Uses, out: &mut Diagnostics) {
    let speech = Speech::of(route);
    let mut refuse = |key: &str, span: Option<Span>, used: bool| {
        if let Some(span) = span.filter(|_| !used) {
            let message = format!("`fallback: {key}` does not apply to {}", speech.word());
            let help = match speech {
                Speech::Calls => {
                    "calls end with a status of gRPC's own: remove it, callers get `unavailable`"
                }
                _ => "remove it, or let `respond` answer",
            };
            out.push(Diagnostic::error(Code::MISPLACED, span, message).help(help));
        }
    };
    refuse("respond", decl.respond.as_ref().map(|it| it.span), uses.respond);
    refuse("upstream", decl.upstream.as_ref().map(|it| it.span), uses.upstream);
    refuse("stale", decl.stale.as_ref().map(|it| it.span), uses.stale);
    if speech == Speech::Handler {
        refuse("on", decl.on.as_ref().map(|it| it.span), false);
        refuse("resend", decl.resend.as_ref().map(|it| it.span), false);
        refuse("max_size", decl.max_size.as_ref().map(|it| it.span), false);
        refuse("max_body", decl.max_body.as_ref().map(|it| it.span), false);
    }
}

/// Checks the fallbacks of upstreams on their own: what they name is there and speaks the same, they end somewhere, and
/// some route has a use for them.
pub fn check_upstreams(manifest: &Manifest, out: &mut Diagnostics) {
    let everything = Uses { respond: true, upstream: true, stale: true };
    let named: HashSet<&str> = fallbacks(manifest).filter_map(other).collect();
    for (key, upstream) in &manifest.upstreams.0 {
        let Some(decl) = &upstream.fallback else { continue };
        Plan::check(decl, &everything, Speech::Http, out);
        if let Some(name) = &decl.upstream {
            leads_on(&[&key.text], name, manifest, out);
        }
        let mut users = routes(manifest).filter(|route| {
            let split = route.split.iter().flat_map(|split| &split.to.0).map(|share| &share.upstream.value);
            route.upstream.iter().map(|name| &name.value).chain(split).any(|name| *name == key.text)
        });
        let first = users.next().filter(|_| says_something(decl));
        let useful = |route: &Spanned<Route>| Uses::of(route).any(decl);
        if let Some(route) = first
            && !named.contains(key.text.as_str())
            && !useful(route)
            && !users.any(useful)
        {
            let speech = Speech::of(route);
            let message = format!("the fallback of `{}` can be done on none of its routes", key.text);
            out.push(
                Diagnostic::error(Code::FALLBACK, decl.span, message)
                    .help("`respond` is nothing for gRPC calls that are passed on, `upstream` nothing for them and WebSockets, `stale` for GET alone")
                    .note(route.route.span, format!("such as this one, with {}", speech.word())),
            );
        }
    }
}

/// Is the fallback of a route sound in what it leads to? `upstreams` are the route's.
pub(super) fn check_route(route: &Route, upstreams: &[&str], manifest: &Manifest, out: &mut Diagnostics) {
    if let Some(name) = route.fallback.as_ref().and_then(|fallback| fallback.upstream.as_ref()) {
        leads_on(upstreams, name, manifest, out);
    }
}

/// Faults where another upstream is not there, speaks something else than the first, or leads back to one of `from`.
fn leads_on(from: &[&str], name: &Spanned<String>, manifest: &Manifest, out: &mut Diagnostics) {
    let Some(found) = manifest.upstreams.get(&name.value) else {
        let message = format!("upstream `{}` is not defined", name.value);
        out.push(
            Diagnostic::error(Code::UNKNOWN_UPSTREAM, name.span, message)
                .maybe_help(did_you_mean(&name.value, manifest.upstreams.names())),
        );
        return;
    };
    let speaks = |upstream: &crate::manifest::model::Upstream| {
        upstream
            .protocol
            .as_ref()
            .is_some_and(|it| it.value == crate::manifest::model::UpstreamProtocol::Grpc)
    };
    let first = from.first().and_then(|first| manifest.upstreams.get(first));
    if let Some(first) = first
        && speaks(first) != speaks(found)
    {
        let message = format!("upstream `{}` speaks another protocol than `{}`", name.value, from[0]);
        out.push(
            Diagnostic::error(Code::PROTOCOL_MISMATCH, name.span, message)
                .help("name an upstream that speaks the same, or let `respond` answer"),
        );
    }
    let mut seen = from.to_vec();
    let mut at = name.value.as_str();
    loop {
        if seen.contains(&at) {
            let message = format!("this fallback leads back to `{at}`");
            let help = "an upstream that cannot answer is not asked again: name one whose own fallback ends elsewhere";
            out.push(Diagnostic::error(Code::CYCLE, name.span, message).help(help));
            return;
        }
        seen.push(at);
        let next = manifest.upstreams.get(at).and_then(|upstream| other(upstream.fallback.as_ref()?));
        match next {
            Some(next) => at = next,
            None => return,
        }
    }
}

/// Every upstream that a route may come to from one, by fallbacks; the first is not among them.
pub fn reached<'m>(first: &str, route: &'m Route, manifest: &'m Manifest) -> Vec<&'m str> {
    let mut all = Vec::new();
    let own = route.fallback.as_ref().or_else(|| manifest.upstreams.get(first)?.fallback.as_ref());
    let mut next = own.and_then(|fallback| other(fallback));
    while let Some(name) = next.filter(|name| !all.contains(name)) {
        all.push(name);
        next = manifest.upstreams.get(name).and_then(|upstream| other(upstream.fallback.as_ref()?));
    }
    all
}

fn says_something(fallback: &Fallback) -> bool {
    fallback.upstream.is_some() || fallback.stale.is_some() || fallback.respond.is_some()
}

fn other(fallback: &Spanned<Fallback>) -> Option<&str> {
    fallback.upstream.as_ref().map(|name| name.value.as_str())
}

fn routes(manifest: &Manifest) -> impl Iterator<Item = &Spanned<Route>> {
    manifest.routes.iter().chain(manifest.versions.iter().flat_map(|version| &version.routes.0))
}

fn fallbacks(manifest: &Manifest) -> impl Iterator<Item = &Spanned<Fallback>> {
    let upstreams = manifest.upstreams.0.iter().filter_map(|(_, upstream)| upstream.fallback.as_ref());
    upstreams.chain(routes(manifest).filter_map(|route| route.fallback.as_ref()))
}
