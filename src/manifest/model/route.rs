//! Routes: what a request must look like, the chain it passes, and the target it ends in.

use super::{Fallback, Maintenance, Mirror, Split, Wanted};
use crate::diag::Span;
use crate::manifest::decode::{nested, reported};
use crate::manifest::node::{Key, Node, Value};
use crate::manifest::places::nested_list;
use crate::manifest::{List, Spanned, Table};
use crate::units::{Dur, Size};
use schemars::JsonSchema;
use serde::de::{self, Deserialize, Deserializer};
use std::borrow::Cow;

/// A group of routes under a prefix.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Version {
    /// Its name, such as `v2`.
    pub name: Spanned<String>,
    /// Path before every route of it, such as `/api/v2`.
    pub prefix: Spanned<String>,
    /// The chain of its routes: a name, or a list of stages.
    pub chain: Option<ChainRef>,
    /// Since when it is deprecated and when it goes; callers get `Deprecation`, `Sunset` and `Link` headers.
    pub deprecated: Option<Spanned<Deprecated>>,
    /// Its routes.
    #[serde(default)]
    pub routes: List<Route>,
    /// Answers instead of all its routes while it is set.
    pub maintenance: Option<Spanned<Maintenance>>,
    /// Requests with their expected outcome.
    #[serde(default)]
    pub tests: List<RouteTest>,
}

/// Since when a version is deprecated (RFC 9745), when it goes (RFC 8594), and what replaces it.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Deprecated {
    /// Day, such as `2026-06-01`.
    pub since: Spanned<String>,
    /// Day it stops working.
    pub sunset: Option<Spanned<String>>,
    /// Name of the version that replaces it.
    pub successor: Option<Spanned<String>>,
}

/// One route: `METHOD /path`, the stages around it, and where it ends.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// `METHOD /path`; `:name` takes one segment, `*name` the rest; `ANY` takes every method.
    pub route: Spanned<String>,
    /// Host it answers for (default any); `*.example.com` for subdomains.
    pub host: Option<Spanned<String>>,
    /// Header and query values a request must have.
    #[serde(rename = "match")]
    pub predicates: Option<Predicates>,
    /// Target: a native operation, such as `gateway.health`.
    pub handler: Option<Spanned<String>>,
    /// Target: an upstream by name.
    pub upstream: Option<Spanned<String>>,
    /// Target: several upstreams by weight.
    pub split: Option<Spanned<Split>>,
    /// Target: a fixed answer.
    pub respond: Option<Spanned<Respond>>,
    /// Target: a redirect.
    pub redirect: Option<Spanned<Redirect>>,
    /// An upstream that gets copies.
    pub mirror: Option<Spanned<Mirror>>,
    /// What callers get when the upstream can't answer, instead of what the upstream says of that.
    pub fallback: Option<Spanned<Fallback>>,
    /// gRPC method `package.Service/Method` of the upstream that JSON is converted for; bare, or with how it is bound.
    pub grpc: Option<Spanned<GrpcCall>>,
    /// Path at the upstream; `{name}` takes a path parameter (default: the path as it came).
    pub path: Option<Spanned<String>>,
    /// What is spoken with the upstream (default `http`).
    pub protocol: Option<Spanned<Protocol>>,
    /// Limits of an event stream.
    pub stream: Option<Spanned<StreamLimits>>,
    /// Limits of a WebSocket.
    pub websocket: Option<Spanned<WebSocketLimits>>,
    /// What callers speak instead of the route's `protocol` (default: the same). `websocket` goes with routes that answer with
    /// an event stream (`protocol: sse`, `handler: chat.stream`, a `grpc` method that streams), `sse` with `protocol:
    /// websocket`.
    pub bridge: Option<Spanned<Bridge>>,
    /// The chain of this route instead of its version's: a name, or a list of stages.
    pub chain: Option<ChainRef>,
    /// Anybody may call it; a route without `auth` in its chain must say so.
    #[serde(default)]
    pub public: bool,
    /// Changes to the chain: a stage's body is replaced in place, a stage the chain lacks is added innermost.
    #[serde(default)]
    pub with: With,
    /// What the documentation says beyond what stages and target say themselves.
    pub docs: Option<Docs>,
    /// Answers instead of the target while it is set.
    pub maintenance: Option<Spanned<Maintenance>>,
    /// Requests with their expected outcome.
    #[serde(default)]
    pub tests: List<RouteTest>,
}

/// Header and query values a request must have: exact, or `*` for any.
#[derive(Debug, Clone, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Predicates {
    /// By header name.
    #[serde(default)]
    pub headers: Wanted,
    /// By query parameter.
    #[serde(default)]
    pub query: Wanted,
}

/// A fixed answer.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Respond {
    /// Status (default 200).
    pub status: Option<Spanned<u16>>,
    /// Body as JSON.
    pub json: Option<Node>,
    /// Body as text.
    pub text: Option<Spanned<String>>,
    /// Headers.
    #[serde(default)]
    pub headers: Table<Spanned<String>>,
}

/// A redirect: bare, where to; or with its status.
#[derive(Debug, Clone)]
pub struct Redirect {
    /// URL or path; `{name}` takes a path parameter.
    pub to: Spanned<String>,
    /// 301, 302, 303, 307 or 308 (default 308).
    pub status: Option<Spanned<u16>>,
}

/// A gRPC method that is called by JSON: bare, its name; or with how it is bound.
#[derive(Debug, Clone)]
pub struct GrpcCall {
    /// `package.Service/Method`.
    pub method: Spanned<String>,
    /// Field that takes the request's body; `*` for the whole message.
    pub body: Option<Spanned<String>>,
    /// Field of the response's message that is answered; `*` for the whole message.
    pub response_body: Option<Spanned<String>>,
    /// Status of a success.
    pub status: Option<Spanned<u16>>,
}

#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FullGrpcCall {
    /// `package.Service/Method`.
    method: Spanned<String>,
    /// Field that takes the request's body; `*` for the whole message (default: as `google.api.http` says where the
    /// method's rule fits the route; else `*` for methods with a body).
    body: Option<Spanned<String>>,
    /// Field of the response's message that is answered; `*` for the whole message (default: as `google.api.http`
    /// says where the method's rule fits the route; else `*`).
    response_body: Option<Spanned<String>>,
    /// Status of a success: 200 to 299 (default 200; 204 answers without a body).
    status: Option<Spanned<u16>>,
}

#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FullRedirect {
    /// URL or path; `{name}` takes a path parameter.
    to: Spanned<String>,
    /// 301, 302, 303, 307 or 308 (default 308).
    status: Option<Spanned<u16>>,
}

/// What is spoken with the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Requests and responses, streamed both ways.
    Http,
    /// A response of server-sent events, passed on unbuffered.
    Sse,
    /// A WebSocket.
    Websocket,
    /// gRPC.
    Grpc,
}

/// What callers speak, where that is not what the upstream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bridge {
    /// A WebSocket: each text message is a POST, each event of its answer a text message.
    Websocket,
    /// Server-sent events: one GET or POST, whose body is the first text message; each message of the upstream's is an
    /// event. Of `websocket`, only `max_message` applies; `stream` limits the events.
    Sse,
}

/// Limits of an event stream.
#[derive(Debug, Clone, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamLimits {
    /// Until the first event (default `15s`).
    pub first_event: Option<Spanned<Dur>>,
    /// Between two events (default `60s`).
    pub idle: Option<Spanned<Dur>>,
    /// For the whole stream (default `120s`).
    pub max: Option<Spanned<Dur>>,
    /// A comment keeps the connection alive after this much silence (default `15s`).
    pub heartbeat: Option<Spanned<Dur>>,
    /// Only for `handler: chat.stream`: what becomes of the answer when the caller leaves (default `cancel`).
    pub on_disconnect: Option<Spanned<OnDisconnect>>,
    /// Only for `handler: chat.stream`: how long a stream that is over can still be read again (default `60s`).
    pub resume_for: Option<Spanned<Dur>>,
    /// Only for `handler: chat.stream`: largest stream, in bytes of its events (default `4MiB`).
    pub max_size: Option<Spanned<Size>>,
}

/// What becomes of an answer whose reader leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDisconnect {
    /// The upstream is stopped; what was said so far is kept as interrupted.
    #[default]
    Cancel,
    /// It is finished and kept; whoever comes back with `Last-Event-ID` gets what was missed.
    Finish,
}

/// Limits of a WebSocket.
#[derive(Debug, Clone, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebSocketLimits {
    /// Silence of the caller's after which the gateway pings (default `30s`).
    pub ping: Option<Spanned<Dur>>,
    /// The caller counts as gone after this much silence; a pong breaks it (default `60s`).
    pub idle: Option<Spanned<Dur>>,
    /// Largest message either way, in bytes on the wire: compressed, where the ends agreed on that (default `1MiB`).
    pub max_message: Option<Spanned<Size>>,
    /// Frames that a caller may send in a second, and at once (default: no limit).
    pub max_rate: Option<Spanned<u64>>,
    /// Bytes that a caller may send in a second, and at once (default: no limit).
    pub max_bytes_rate: Option<Spanned<Size>>,
    /// CORS policy whose origins may connect (default: pages of the same host, and callers that are no browser).
    pub origins: Option<Spanned<String>>,
    /// Connections that a caller may have on this route, over all replicas (default: no limit).
    pub per_user: Option<Spanned<u32>>,
    /// With `per_user: 1`: a new connection closes the old one with 4409 instead of being refused (default `false`).
    pub takeover: Option<Spanned<bool>>,
}

/// What the documentation says beyond what stages and target say themselves.
#[derive(Debug, Clone, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Docs {
    /// One line.
    pub summary: Option<String>,
    /// More (CommonMark).
    pub description: Option<String>,
    /// Groups it belongs to.
    #[serde(default)]
    pub tags: List<String>,
    /// What the upstream says of this call, an OpenAPI 3.1 operation: `file.yaml#/paths/~1a~1path/post`, the file relative to
    /// this one.
    pub openapi: Option<Spanned<String>>,
    /// What the upstream says over this WebSocket and is told, a channel of an AsyncAPI 3 document with its operations:
    /// `file.yaml#/channels/name`, the file relative to this one.
    pub asyncapi: Option<Spanned<String>>,
    /// Stays out of the documentation; it is served all the same (default `false`).
    #[serde(default)]
    pub hidden: bool,
}

/// A request and its expected outcome; run offline with every check, and before every reload.
#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteTest {
    /// `METHOD /path`, the whole path with its query.
    pub request: Spanned<String>,
    /// Role of the caller (default: nobody is logged in).
    #[serde(rename = "as")]
    pub role: Option<Spanned<String>>,
    /// Headers of the request; `Host` too.
    #[serde(default)]
    pub headers: Table<String>,
    /// What must come of it.
    pub expect: Spanned<Expectation>,
}

/// The expected outcome of a request. With neither `status` nor `stage` it must reach where the route ends.
#[derive(Debug, Clone, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// Status, where a stage, the gateway or the manifest answers; an upstream's is not known offline.
    pub status: Option<Spanned<u16>>,
    /// The route that takes it, `METHOD /pattern` with its version's prefix (default on a route: that one).
    pub route: Option<Spanned<String>>,
    /// The stage that refuses or answers it.
    pub stage: Option<Spanned<String>>,
}

/// A chain: one by name, or stages listed on the spot.
#[derive(Debug, Clone, PartialEq)]
pub enum ChainRef {
    /// A name under `chains:`.
    Named(Spanned<String>),
    /// The stages.
    Inline(Span, List<StageUse>),
}

/// One stage of a chain as written: `auth`, or `{ rate_limit: login }`.
#[derive(Debug, Clone, PartialEq)]
pub struct StageUse {
    /// Its name, or `chain` for another chain's stages.
    pub name: Key,
    /// Its body; null for a bare name. Decoded by the stage.
    pub body: Node,
}

/// Changes to a chain: stage name to body, in file order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct With(pub Vec<StageUse>);

/// Name of the schema definition that the list of stages fills in.
pub const STAGE_SCHEMA: &str = "Stage";
/// Name of the schema definition for `with:`, filled in likewise.
pub const WITH_SCHEMA: &str = "With";

impl<'de> Deserialize<'de> for StageUse {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let node = Node::deserialize(deserializer)?;
        match node.value {
            Value::Str(text) => {
                Ok(StageUse { body: Node::null(node.span), name: Key { text, span: node.span } })
            }
            Value::Map(mut entries) if entries.len() == 1 => match entries.pop() {
                Some((name, body)) => Ok(StageUse { name, body }),
                None => Err(de::Error::custom("a stage needs a name")),
            },
            _ => Err(de::Error::custom(
                "a stage is a name (`auth`) or a mapping of one name to its body (`rate_limit: login`)",
            )),
        }
    }
}

impl<'de> Deserialize<'de> for With {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let node = Node::deserialize(deserializer)?;
        match node.value {
            Value::Null => Ok(With::default()),
            Value::Map(entries) => {
                Ok(With(entries.into_iter().map(|(name, body)| StageUse { name, body }).collect()))
            }
            _ => Err(de::Error::custom("`with` is a mapping of stages to their bodies")),
        }
    }
}

impl<'de> Deserialize<'de> for ChainRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let node = Node::deserialize(deserializer)?;
        match &node.value {
            Value::Str(name) => Ok(ChainRef::Named(Spanned { value: name.clone(), span: node.span })),
            Value::Seq(_) => Ok(ChainRef::Inline(node.span, nested_list(&node))),
            _ => Err(de::Error::custom("a chain is the name of one under `chains:`, or a list of stages")),
        }
    }
}

impl<'de> Deserialize<'de> for Redirect {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let node = Node::deserialize(deserializer)?;
        if let Value::Str(to) = &node.value {
            return Ok(Redirect { to: Spanned { value: to.clone(), span: node.span }, status: None });
        }
        match nested::<FullRedirect>(&node) {
            Some(full) => Ok(Redirect { to: full.to, status: full.status }),
            None => Err(reported()),
        }
    }
}

impl<'de> Deserialize<'de> for GrpcCall {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let node = Node::deserialize(deserializer)?;
        if let Value::Str(method) = &node.value {
            let method = Spanned { value: method.clone(), span: node.span };
            return Ok(GrpcCall { method, body: None, response_body: None, status: None });
        }
        match nested::<FullGrpcCall>(&node) {
            Some(FullGrpcCall { method, body, response_body, status }) => {
                Ok(GrpcCall { method, body, response_body, status })
            }
            None => Err(reported()),
        }
    }
}

fn reference(name: &str) -> schemars::Schema {
    schemars::json_schema!({ "$ref": format!("#/$defs/{name}") })
}

impl JsonSchema for StageUse {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        STAGE_SCHEMA.into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        reference(STAGE_SCHEMA)
    }
}

impl JsonSchema for With {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        WITH_SCHEMA.into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        reference(WITH_SCHEMA)
    }
}

impl JsonSchema for GrpcCall {
    fn schema_name() -> Cow<'static, str> {
        "GrpcCall".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "anyOf": [{ "type": "string" }, generator.subschema_for::<FullGrpcCall>()] })
    }
}

impl JsonSchema for Redirect {
    fn schema_name() -> Cow<'static, str> {
        "Redirect".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let full = generator.subschema_for::<FullRedirect>();
        schemars::json_schema!({
            "description": "A redirect: bare, where to; or with its status.",
            "oneOf": [{ "type": "string" }, full],
        })
    }
}

impl JsonSchema for ChainRef {
    fn schema_name() -> Cow<'static, str> {
        "Chain".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "The name of a chain under `chains:`, or a list of stages.",
            "oneOf": [
                { "type": "string" },
                { "type": "array", "items": { "$ref": format!("#/$defs/{STAGE_SCHEMA}") } },
            ],
        })
    }
}
