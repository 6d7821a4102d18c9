//! Routes that end in a native operation, and the upstream that some of them work with.

use crate::diag::{Code, Diagnostic, Diagnostics, Span, did_you_mean};
use crate::handlers::{self, Behind, ChatLimits, Operation, Uses};
use crate::manifest::model::{Protocol, Route};
use crate::manifest::{Manifest, Spanned};
use crate::openapi::OperationDoc;
use crate::path::normalise_path;
use crate::sse::StreamTimes;
use crate::targets::{self, Meets, Substitute, TargetCx, WebSocketBridge};
use std::hash::Hasher;
use std::sync::Arc;
use std::time::Duration;

/// How long a stream that is over can be read again, where the manifest says nothing.
const RESUME_FOR: Duration = Duration::from_secs(60);
/// Largest chat stream, where the manifest says nothing: some 70,000 tokens.
const MAX_SIZE: u64 = 4 * 1024 * 1024;

/// A native operation that a route ends in.
#[derive(Clone)]
pub struct Native {
    /// The operation.
    pub operation: &'static Operation,
    behind: Option<Arc<Declared>>,
    /// Where callers speak WebSocket with it.
    bridge: Option<Arc<WebSocketBridge>>,
    /// What answers where its upstream cannot.
    fallback: Option<Arc<Substitute>>,
}

/// What a route says of the upstream behind its operation.
struct Declared {
    upstream: Arc<str>,
    meets: Meets,
    /// URLs of its servers, for people.
    servers: Vec<String>,
    path: Option<Arc<str>>,
    stream: Option<ChatLimits>,
}

impl Native {
    /// Whether it answers with a stream.
    pub fn streams(&self) -> bool {
        self.operation.uses == Uses::Stream
    }

    /// Whether it answers over a WebSocket.
    pub fn is_socket(&self) -> bool {
        self.bridge.is_some()
    }

    /// What callers speak with it instead of HTTP, if they do.
    pub fn bridge(&self) -> Option<&WebSocketBridge> {
        self.bridge.as_deref()
    }

    /// How long its stream may last, if it answers with one.
    pub fn longest_stream(&self) -> Option<Duration> {
        if self.is_socket() {
            return Some(Duration::MAX);
        }
        Some(self.behind.as_ref()?.stream?.times.max)
    }

    /// Says what its limits and its bridge do.
    pub fn document(&self, op: &mut OperationDoc) {
        if let Some(times) = self.behind.as_ref().and_then(|behind| behind.stream).map(|stream| stream.times)
        {
            op.extension("x-stream", times.document());
        }
        if let Some(behind) = self.behind.as_ref().filter(|_| self.bridge.is_none()) {
            behind.meets.document(op);
        }
        if let Some(fallback) = &self.fallback {
            fallback.document(op);
        }
        if let Some(bridge) = &self.bridge {
            bridge.document(op);
        }
    }

    /// What runs behind it, for a table.
    pub fn behind(&self, cx: &TargetCx<'_>) -> Option<Behind> {
        let declared = self.behind.as_ref()?;
        let upstream = cx.upstreams.get(&declared.upstream).cloned();
        Some(Behind {
            upstream: upstream.expect("the checks saw that this upstream is defined"),
            path: declared.path.clone(),
            stream: declared.stream,
            metrics: cx.shared.telemetry.streams(cx.route),
            other: self
                .fallback
                .as_ref()
                .and_then(|fallback| cx.upstreams.get(fallback.upstream()?).cloned()),
        })
    }

    /// What answers where its upstream cannot, if the manifest says so.
    pub fn fallback(&self) -> Option<&Substitute> {
        self.fallback.as_deref()
    }

    /// Feeds what it takes from other sections of the manifest to the route's identity.
    pub fn identify(&self, state: &mut dyn Hasher) {
        self.bridge.iter().for_each(|bridge| bridge.identify(state));
        self.fallback.iter().for_each(|fallback| fallback.identify(state));
    }

    /// Where a request ends, as `explain` prints it; `path` is the request's.
    pub fn describe(&self, path: &str) -> String {
        let mut text = format!("handler {}: {}", self.operation.name, self.operation.summary);
        if let Some(behind) = &self.behind {
            let path = behind.path.as_deref().unwrap_or(path);
            let urls: Vec<String> = behind.servers.iter().map(|server| format!("{server}{path}")).collect();
            text.push_str(&format!("; asks {}", urls.join(" or ")));
        }
        if let Some(fallback) = &self.fallback {
            text.push_str(&format!("; {}", fallback.describe()));
        }
        text
    }
}

/// Is it sound? Reports every fault. Whether the upstream exists was looked at with the targets.
pub(super) fn check(
    name: &Spanned<String>,
    route: &Spanned<Route>,
    params: &[String],
    manifest: &Manifest,
    out: &mut Diagnostics,
) -> Option<Native> {
    let before = out.counts().0;
    let operation = operation(name, params, out)?;
    misplaced(route, operation, out);
    let limits = (operation.uses == Uses::Stream).then(|| chat_limits(route, out));
    let bridge = (operation.uses == Uses::Stream && route.bridge.is_some())
        .then(|| Arc::new(targets::bridge(route, manifest, out)));
    let path = route.path.as_ref().map(|path| fixed_path(path, out));
    let streams = operation.uses == Uses::Stream;
    let fallback = streams.then(|| targets::of_handler(route, manifest, out)).flatten().map(Arc::new);
    if operation.uses == Uses::Stream && route.upstream.is_none() {
        let message = format!("handler `{}` needs an upstream that answers", operation.name);
        out.push(
            Diagnostic::error(Code::TARGET, name.span, message)
                .help("add `upstream:`, and `path:` where its path is another"),
        );
    }
    if out.counts().0 > before {
        return None;
    }
    let behind = route.upstream.as_ref().and_then(|name| {
        let (key, declared) = manifest.upstreams.0.iter().find(|(key, _)| key.text == name.value)?;
        let servers = declared.targets.0.iter();
        Some(Arc::new(Declared {
            upstream: key.text.as_str().into(),
            meets: Meets::of(declared),
            servers: servers.map(|server| server.url.trim_end_matches('/').to_owned()).collect(),
            path: path.flatten(),
            stream: limits,
        }))
    });
    Some(Native { operation, behind, bridge, fallback })
}

fn chat_limits(route: &Route, out: &mut Diagnostics) -> ChatLimits {
    let said = route.stream.as_ref().map(|stream| &stream.value);
    let max_size = said.and_then(|stream| stream.max_size.as_ref());
    if let Some(size) = max_size
        && size.value.0 < 1024
    {
        out.push(
            Diagnostic::error(Code::BAD_VALUE, size.span, "a stream this small holds no answer")
                .help("write at least `1KiB`"),
        );
    }
    ChatLimits {
        times: StreamTimes::check(route.stream.as_ref(), out),
        on_disconnect: said
            .and_then(|stream| stream.on_disconnect.as_ref())
            .map_or_else(Default::default, |it| it.value),
        resume_for: said.and_then(|stream| stream.resume_for.as_ref()).map_or(RESUME_FOR, |it| it.value.0),
        max_size: max_size.map_or(MAX_SIZE, |size| size.value.0),
    }
}

/// A path that is sent as it stands: an operation's own parameters are in its body.
fn fixed_path(path: &Spanned<String>, out: &mut Diagnostics) -> Option<Arc<str>> {
    let is_fixed = !path.value.contains(['{', '}', '?', '#']);
    match normalise_path(&path.value) {
        Ok(normal) if is_fixed && normal == path.value.as_str() => Some(path.value.as_str().into()),
        _ => {
            out.push(
                Diagnostic::error(
                    Code::BAD_VALUE,
                    path.span,
                    "this is not a path that a handler can ask for",
                )
                .help(
                    "write the upstream's path as it is: it begins with `/` and has no `{name}`, no `?`, \
                         no `//` and no dot segments",
                ),
            );
            None
        }
    }
}

/// Faults for keys that the operation has no use for.
fn misplaced(route: &Route, operation: &Operation, out: &mut Diagnostics) {
    let span_of = |key: &str| -> Option<Span> {
        match key {
            "upstream" => route.upstream.as_ref().map(|it| it.span),
            "path" => route.path.as_ref().map(|it| it.span),
            "stream" => route.stream.as_ref().map(|it| it.span),
            "bridge" => route.bridge.as_ref().map(|it| it.span),
            "fallback" => route.fallback.as_ref().map(|it| it.span),
            // What is spoken with it is the operation's own business; saying what it is does no harm.
            _ => route
                .protocol
                .as_ref()
                .filter(|it| !(streams(operation) && it.value == Protocol::Sse))
                .map(|it| it.span),
        }
    };
    let unused: &[&str] = match operation.uses {
        Uses::Nothing => &["upstream", "path", "stream", "bridge", "protocol", "fallback"],
        Uses::Call => &["stream", "bridge", "protocol", "fallback"],
        Uses::Stream => &["protocol"],
    };
    for key in unused {
        if let Some(span) = span_of(key) {
            out.push(
                Diagnostic::error(Code::MISPLACED, span, format!("`{key}` does not apply to this handler"))
                    .help("remove it, or the handler"),
            );
        }
    }
    if operation.uses == Uses::Call
        && route.upstream.is_none()
        && let Some(path) = &route.path
    {
        out.push(
            Diagnostic::error(
                Code::MISPLACED,
                path.span,
                "`path` is the path at an upstream, and there is none",
            )
            .help("add `upstream:`, or remove `path`"),
        );
    }
}

fn streams(operation: &Operation) -> bool {
    operation.uses == Uses::Stream
}

fn operation(name: &Spanned<String>, params: &[String], out: &mut Diagnostics) -> Option<&'static Operation> {
    let Some(operation) = handlers::find(&name.value) else {
        let known = handlers::operations().iter().map(|operation| operation.name);
        out.push(
            Diagnostic::error(
                Code::UNKNOWN_HANDLER,
                name.span,
                format!("handler `{}` is not known", name.value),
            )
            .maybe_help(did_you_mean(&name.value, known)),
        );
        return None;
    };
    for wanted in operation.path.split('/').filter_map(|part| part.strip_prefix(':')) {
        if !params.iter().any(|param| param == wanted) {
            let message = format!("handler `{}` needs the path parameter `{wanted}`", name.value);
            out.push(
                Diagnostic::error(Code::UNKNOWN_PARAMETER, name.span, message)
                    .help(format!("put `:{wanted}` into the route's path")),
            );
        }
    }
    Some(operation)
}
