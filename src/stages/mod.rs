//! Stages: the middleware of a chain, one file each.
//!
//! To add one: write `stages/NAME.rs` with a typed body that implements [`StageDecl`], add its line to
//! [`STAGES`], and a golden manifest. Order is the manifest's business; constraints on order are in the checks.
//!
//! Every stage takes a condition beside its own keys (`when`).
//!
//! A body is decoded and checked once ([`StageDecl::check`]), which yields the value that runs ([`Stage`]); building
//! cannot fail. A stage that only looks at heads is a [`Hook`]: neighbouring hooks run in one endpoint without a
//! future of their own. Only a stage that must wait, or wrap the whole call, is an endpoint ([`Layer::Around`]).

mod access_log;
mod caller;
mod json_body;
mod media;
mod metrics;
mod when;

use crate::diag::{Code, Diagnostic, Diagnostics, Span, did_you_mean};
use crate::endpoint::{Next, sealed};
use crate::error::GatewayError;
use crate::exchange::{Exchange, RouteInfo};
use crate::expr::Expression;
use crate::manifest::decode::decode;
use crate::manifest::model::{Protocol, StageUse};
use crate::manifest::node::{Key, Node, Value};
use crate::manifest::{Manifest, Table};
use crate::openapi::{Operation, OperationDoc};
use crate::shed::Priority;
use crate::state::Shared;
use futures_util::future::Either;
use poem::{Endpoint, Request, Response};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use std::future::Future;
use std::hash::DefaultHasher;
use std::sync::Arc;
use std::time::Duration;

pub mod api_key;
pub mod auth;
pub mod body_limit;
pub mod cache;
pub mod compress;
pub mod concurrency;
pub mod content_type;
pub mod cors;
pub mod headers;
pub mod inspect;
pub mod ip_filter;
pub mod rate_limit;
pub mod rbac;
pub mod recovery;
pub mod request_id;
pub mod security_headers;
pub mod shed;
pub mod tenant;
#[cfg(test)]
mod testing;
pub mod timeout;
pub mod transform;
pub mod upload;
pub mod validate;

/// A stage's typed body, as written in the manifest.
pub trait StageDecl: DeserializeOwned + JsonSchema {
    /// Name in chains.
    const NAME: &'static str;
    /// What it does, in one sentence.
    const ABOUT: &'static str;
    /// How short its body may be.
    const BODY: Body;

    /// Is it sound? Resolves names, reports every fault, and hands on what was decoded. Pure: no I/O beyond
    /// files the body names, no clock.
    fn check(self, cx: &mut StageCx<'_>) -> Option<Arc<dyn Stage>>;
}

/// How short a stage's body may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// May be left out; a mapping otherwise.
    Optional,
    /// A bare value stands for this key; may not be left out.
    Bare(&'static str),
    /// A bare value stands for this key; may be left out.
    OptionalBare(&'static str),
}

/// What a check may look at.
pub struct StageCx<'a> {
    /// The manifest, for names the body refers to.
    pub manifest: &'a Manifest,
    /// Where the stage stands.
    pub span: Span,
    /// Faults go here.
    pub out: &'a mut Diagnostics,
    /// What the body refers to: part of the route's identity, so that a changed policy is a changed route.
    pub references: DefaultHasher,
}

impl<'a> StageCx<'a> {
    /// The entry that a body names in one of the manifest's tables; a fault if there is none.
    pub fn lookup<'t, T>(
        &mut self,
        table: &'t Table<T>,
        what: &str,
        name: &str,
        span: Span,
    ) -> Option<&'t T> {
        let found = table.get(name);
        if found.is_none() {
            self.out.push(
                Diagnostic::error(Code::UNKNOWN_POLICY, span, format!("{what} `{name}` is not defined"))
                    .maybe_help(did_you_mean(name, table.names())),
            );
        }
        found
    }
}

/// A checked stage: can be built for any route, any number of times.
pub trait Stage: Send + Sync {
    /// Its name in chains.
    fn name(&self) -> &'static str;

    /// Builds it for a route.
    fn layer(&self, cx: &BuildCx<'_>) -> Layer;

    /// Whether it builds the same for every route, and keeps nothing: then routes may have one in common.
    fn is_common(&self) -> bool {
        false
    }

    /// What checks of a whole chain need to know of it.
    fn facts(&self) -> Facts {
        Facts::default()
    }

    /// The condition it runs under, if it has one (`when:`).
    fn condition(&self) -> Option<&Expression> {
        None
    }

    /// Why it cannot do for this route what it is for, though both are sound by themselves.
    fn misfit(&self, _fit: &Fit<'_>) -> Option<Misfit> {
        None
    }

    /// Says what callers of the route meet because of it: answers, headers, limits.
    fn document(&self, _op: &mut OperationDoc) {}

    /// What it would do with a request, offline (`voicegate explain`).
    fn explain(&self, _probe: &Probe<'_>) -> Verdict {
        Verdict::Passes(String::new())
    }
}

/// What checks of a whole chain need to know of a stage.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Why it holds back a streamed response, if it does.
    pub buffers_response: Option<&'static str>,
    /// Time after which it ends the exchange.
    pub deadline: Option<Duration>,
    /// The word by which it goes by who is calling (`user`, `tenant`), if it does.
    pub needs_identity: Option<&'static str>,
    /// How important it says the route is, if it does.
    pub priority: Option<Priority>,
    /// Whom it gives kept answers to, if it keeps any.
    pub keeps_answers: Option<Keeps>,
    /// Whether it finds out who is calling only where the caller says so, and lets strangers pass.
    pub lets_strangers_pass: bool,
}

/// Whom a stage gives kept answers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    /// Whoever asks alike: nothing is said of who is calling.
    ForWhoeverAsks,
    /// The same to all callers, in so many words.
    ForAll,
    /// To each their own, told apart by this word (`user`).
    ForEach(&'static str),
}

/// What a stage must fit: the route with its target.
pub struct Fit<'a> {
    /// The route.
    pub route: &'a RouteInfo,
    /// The operation that `docs.openapi` names, if it does.
    pub described: Option<&'a Operation>,
    /// Whether the route answers with a stream.
    pub streams: bool,
    /// What is spoken with the upstream; with callers, where a socket is bridged to events.
    pub protocol: Protocol,
}

/// Why a stage and a route do not fit together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// What kind of fault it is.
    pub code: Code,
    /// The sentence.
    pub message: &'static str,
    /// The way out.
    pub help: &'static str,
}

/// What a build may look at.
pub struct BuildCx<'a> {
    /// The route.
    pub route: &'a Arc<RouteInfo>,
    /// Hash of everything that makes the route what it is: of another value, nothing that was kept for it holds.
    pub identity: u64,
    /// Whether the route answers with a stream.
    pub streams: bool,
    /// Whether callers open a WebSocket on it.
    pub websocket: bool,
    /// The operation that `docs.openapi` names, if it does.
    pub described: Option<&'a Arc<Operation>>,
    /// The native operation that answers, such as `auth.login`, if one does.
    pub operation: Option<&'static str>,
    /// What the process has.
    pub shared: &'a Arc<Shared>,
}

/// A built stage.
pub enum Layer {
    /// Looks at heads on the way in and out.
    Hook(Box<dyn Hook>),
    /// Takes what it encloses and gives the endpoint that runs.
    Around(Box<dyn FnOnce(Next) -> Next>),
}

/// A stage that never waits.
///
/// Most implement [`request`](Hook::request), [`response`](Hook::response) or both. One whose way out depends on what
/// the request said (CORS on its `Origin`) implements [`enter`](Hook::enter) and [`leave`](Hook::leave) instead, which
/// carry a number across without an allocation.
pub trait Hook: Send + Sync {
    /// On the way in. An error, or a response, ends the way: outer stages see it, inner ones nothing.
    fn request(&self, _exchange: &Arc<Exchange>, _request: &mut Request) -> Result<(), Stop> {
        Ok(())
    }

    /// On the way out, over every response from further in, errors included.
    fn response(&self, _exchange: &Arc<Exchange>, _response: &mut Response) {}

    /// [`request`](Hook::request), and what to remember until the way out.
    fn enter(&self, exchange: &Arc<Exchange>, request: &mut Request) -> Result<Mark, Stop> {
        self.request(exchange, request).map(|()| 0)
    }

    /// [`response`](Hook::response), with what was remembered.
    fn leave(&self, exchange: &Arc<Exchange>, _mark: Mark, response: &mut Response) {
        self.response(exchange, response);
    }
}

/// What a hook remembers of a request; its meaning is the hook's own, but for the highest number: that stands for a
/// hook that was passed over (`when:`).
pub type Mark = u32;

/// Why a hook ended the way in.
pub enum Stop {
    /// With an error in the common form.
    Error(GatewayError),
    /// With a finished response.
    Answer(Box<Response>),
}

impl From<GatewayError> for Stop {
    fn from(error: GatewayError) -> Self {
        Stop::Error(error)
    }
}

/// A request as `explain` imagines it.
pub struct Probe<'a> {
    /// Method.
    pub method: &'a http::Method,
    /// Normalised path.
    pub path: &'a str,
    /// Headers given with `-H`.
    pub headers: &'a http::HeaderMap,
    /// Role given with `--as`.
    pub role: Option<&'a str>,
}

/// What a stage would do with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Lets it pass; with a remark.
    Passes(String),
    /// Refuses it with a status; why.
    Refuses(u16, String),
    /// Answers it itself with a status.
    Answers(u16, String),
}

/// One line of the list of stages.
pub struct StageKind {
    /// Name in chains.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// How short its body may be.
    pub body: Body,
    check: fn(&Node, &mut StageCx<'_>) -> Option<Arc<dyn Stage>>,
    schema: fn(&mut SchemaGenerator) -> Schema,
}

impl StageKind {
    const fn of<D: StageDecl>() -> Self {
        StageKind {
            name: D::NAME,
            about: D::ABOUT,
            body: D::BODY,
            check: |node, cx| decode::<D>(node, cx.out)?.check(cx),
            schema: SchemaGenerator::subschema_for::<D>,
        }
    }

    /// Decodes and checks a stage's body.
    pub fn check(&self, stage: &StageUse, cx: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        let mut body = self.whole_body(&stage.name, &stage.body, cx)?;
        body.digest(&mut cx.references);
        let errors = cx.out.counts().0;
        let condition = when::take(self.name, &mut body, cx);
        let checked = (self.check)(&body, cx);
        let checked = checked.filter(|_| cx.out.counts().0 == errors)?;
        Some(match condition {
            Some(condition) => when::conditional(checked, condition?),
            None => checked,
        })
    }

    /// The body as a mapping: a bare value under its key, nothing as empty.
    fn whole_body(&self, name: &Key, body: &Node, cx: &mut StageCx<'_>) -> Option<Node> {
        match (&body.value, self.body) {
            (Value::Map(_), _) => Some(body.clone()),
            (Value::Null, Body::Optional | Body::OptionalBare(_)) => {
                Some(Node { value: Value::Map(Vec::new()), ..body.clone() })
            }
            (Value::Null, Body::Bare(key)) => {
                let message = format!("stage `{}` needs a body", self.name);
                let help = format!("write `{}: …` with a value for `{key}`", self.name);
                cx.out.push(Diagnostic::error(Code::MISSING_KEY, name.span, message).help(help));
                None
            }
            (_, Body::Bare(key) | Body::OptionalBare(key)) => {
                let key = Key { text: key.to_owned(), span: body.span };
                Some(Node { value: Value::Map(vec![(key, body.clone())]), ..body.clone() })
            }
            (_, Body::Optional) => {
                let message = format!("stage `{}` takes a mapping, found {}", self.name, body.kind());
                cx.out.push(Diagnostic::error(Code::BAD_VALUE, body.span, message));
                None
            }
        }
    }

    /// The JSON Schema of its body.
    pub fn schema(&self, generator: &mut SchemaGenerator) -> Schema {
        (self.schema)(generator)
    }
}

/// Every stage there is.
pub const STAGES: &[StageKind] = &[
    StageKind::of::<access_log::AccessLog>(),
    StageKind::of::<metrics::Metrics>(),
    StageKind::of::<recovery::Recovery>(),
    StageKind::of::<request_id::RequestId>(),
    StageKind::of::<cors::CorsStage>(),
    StageKind::of::<security_headers::SecurityHeaders>(),
    StageKind::of::<headers::Headers>(),
    StageKind::of::<timeout::Timeout>(),
    StageKind::of::<body_limit::BodyLimit>(),
    StageKind::of::<content_type::ContentType>(),
    StageKind::of::<upload::Upload>(),
    StageKind::of::<compress::Compress>(),
    StageKind::of::<auth::Auth>(),
    StageKind::of::<rbac::Rbac>(),
    StageKind::of::<tenant::Tenant>(),
    StageKind::of::<api_key::ApiKey>(),
    StageKind::of::<ip_filter::IpFilter>(),
    StageKind::of::<rate_limit::RateLimit>(),
    StageKind::of::<concurrency::Concurrency>(),
    StageKind::of::<shed::Shed>(),
    StageKind::of::<cache::Cache>(),
    StageKind::of::<transform::Transform>(),
    StageKind::of::<validate::Validate>(),
    StageKind::of::<inspect::Inspect>(),
];

/// The stage of a name.
pub fn find(name: &str) -> Option<&'static StageKind> {
    STAGES.iter().find(|kind| kind.name == name)
}

/// Folds layers round a target: the first is outermost, as listed in the manifest.
pub fn fold(layers: Vec<Layer>, target: Next) -> Next {
    let mut next = target;
    let mut hooks: Vec<Box<dyn Hook>> = Vec::new();
    for layer in layers.into_iter().rev() {
        match layer {
            Layer::Hook(hook) => hooks.push(hook),
            Layer::Around(wrap) => {
                next = wrap(with_hooks(&mut hooks, next));
            }
        }
    }
    with_hooks(&mut hooks, next)
}

/// Encloses `next` in the hooks gathered so far (innermost first), if any.
fn with_hooks(hooks: &mut Vec<Box<dyn Hook>>, next: Next) -> Next {
    if hooks.is_empty() {
        return next;
    }
    let mut hooks = std::mem::take(hooks);
    hooks.reverse();
    let mut next = next;
    while !hooks.is_empty() {
        let run = hooks.split_off(hooks.len().saturating_sub(MAX_RUN));
        next = in_one(run, next);
    }
    next
}

/// Hooks in one endpoint at most: their marks live in its future.
const MAX_RUN: usize = 8;

/// One endpoint of up to [`MAX_RUN`] hooks.
fn in_one(hooks: Vec<Box<dyn Hook>>, next: Next) -> Next {
    fn exactly<const N: usize>(hooks: Vec<Box<dyn Hook>>, next: Next) -> Next {
        match <[Box<dyn Hook>; N]>::try_from(hooks) {
            Ok(hooks) => sealed(Hooks { next, hooks }),
            Err(hooks) => unreachable!("{} hooks were counted as {N}", hooks.len()),
        }
    }
    match hooks.len() {
        1 => exactly::<1>(hooks, next),
        2 => exactly::<2>(hooks, next),
        3 => exactly::<3>(hooks, next),
        4 => exactly::<4>(hooks, next),
        5 => exactly::<5>(hooks, next),
        6 => exactly::<6>(hooks, next),
        7 => exactly::<7>(hooks, next),
        _ => exactly::<MAX_RUN>(hooks, next),
    }
}

/// Whether a response is a stream of server-sent events, which no stage may hold back or cut.
fn is_event_stream(headers: &http::HeaderMap) -> bool {
    let kind = headers.get(http::header::CONTENT_TYPE).map(http::HeaderValue::as_bytes).unwrap_or_default();
    let essence = kind.split(|byte| *byte == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}

/// Adds names to `Vary`, unless all are there.
fn vary(headers: &mut http::HeaderMap, names: &'static str) {
    let present = |name: &str| {
        headers.get_all(http::header::VARY).iter().any(|value| {
            value.as_bytes().split(|byte| *byte == b',').any(|one| {
                let one = one.trim_ascii();
                one == b"*" || one.eq_ignore_ascii_case(name.as_bytes())
            })
        })
    };
    if !names.split(", ").all(present) {
        headers.append(http::header::VARY, http::HeaderValue::from_static(names));
    }
}

/// Hooks that run one after the other, in one piece of memory with each other: what a request of a rarely asked route meets
/// has to come from far.
struct Hooks<const N: usize> {
    next: Next,
    hooks: [Box<dyn Hook>; N],
}

impl<const N: usize> Endpoint for Hooks<N> {
    type Output = Response;

    fn call(&self, mut request: Request) -> impl Future<Output = poem::Result<Response>> + Send {
        let exchange = Exchange::of(&request).clone();
        let mut marks: [Mark; N] = [0; N];
        let mut entered = 0;
        let mut stopped = None;
        for (hook, mark) in self.hooks.iter().zip(&mut marks) {
            match hook.enter(&exchange, &mut request) {
                Ok(remembered) => *mark = remembered,
                Err(stop) => {
                    stopped = Some(match stop {
                        Stop::Error(error) => exchange.refuse(&error),
                        Stop::Answer(response) => *response,
                    });
                    break;
                }
            }
            entered += 1;
        }
        let called = match stopped {
            Some(response) => Either::Left(std::future::ready(Ok(response))),
            None => Either::Right(self.next.call(request)),
        };
        async move {
            let mut response = called.await?;
            for (hook, mark) in self.hooks.iter().zip(marks).take(entered).rev() {
                hook.leave(&exchange, mark, &mut response);
            }
            Ok(response)
        }
    }
}
