//! Named sets of servers: where they are, how they are used, what happens when they fail.

use super::{Adaptive, Fallback, Outlier, Resolve};
use crate::manifest::{List, Spanned, Table};
use crate::units::{Dur, Percent, Size};
use schemars::JsonSchema;
use serde::Deserialize;

/// A named set of servers behind the gateway.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// The servers; at least one.
    pub targets: List<Target>,
    /// What the servers speak (default `http`).
    pub protocol: Option<Spanned<UpstreamProtocol>>,
    /// How a server is chosen (default `round_robin`).
    pub balance: Option<Spanned<Balance>>,
    /// Until a connection stands, TLS included (default `1s`).
    pub connect_timeout: Option<Dur>,
    /// Connections open to each server at a time; a request that finds none free waits for `connect_timeout` (default
    /// 1000). With `protocol: grpc` calls under way to each server, which share connections.
    pub max_connections: Option<Spanned<u32>>,
    /// Requests under way to the whole upstream at a time, from each replica; what is beyond is answered 503 at once
    /// (default: no bound).
    pub max_in_flight: Option<Spanned<u32>>,
    /// A bound on them that is found from how long answers take; beside `max_in_flight` the lower counts.
    pub adaptive: Option<Spanned<Adaptive>>,
    /// Deadlines of a request once connected.
    pub timeouts: Option<Timeouts>,
    /// How servers are verified when their URL is `https`.
    pub tls: Option<UpstreamTls>,
    /// Active health checks.
    pub health: Option<Spanned<Health>>,
    /// When servers are ejected for what their traffic shows.
    pub outlier: Option<Spanned<Outlier>>,
    /// When fewer than this share of the servers pass their health checks, the checks are disregarded (default `50%`;
    /// `0%`: only when none does). What is ejected for its traffic stays out.
    pub panic_threshold: Option<Percent>,
    /// A server that came up, came back or was added gets its share little by little, over this time (default: all at
    /// once).
    pub slow_start: Option<Dur>,
    /// When the names of targets are looked up again.
    pub resolve: Option<Resolve>,
    /// Circuit breaker.
    pub breaker: Option<Spanned<Breaker>>,
    /// Retries.
    pub retry: Option<Spanned<Retry>>,
    /// What callers get when the upstream can't answer, on every route that it can be done for: `respond` not for gRPC calls
    /// that are passed on, `upstream` not for them and WebSockets, `stale` for GET alone.
    pub fallback: Option<Spanned<Fallback>>,
    /// `.proto` files for routes with `grpc`, compiled at load; relative to this file. Imports are looked up in
    /// `openapi/protos`, beside these files, and beside this file.
    pub protos: Option<List<String>>,
    /// Instead of `protos`: a descriptor set (`protoc --include_imports --descriptor_set_out`); relative to this file.
    pub descriptors: Option<Spanned<String>>,
    /// Instead of `protos`: whether the server is asked for its descriptors (gRPC server reflection). Until it has
    /// answered, routes with `grpc` answer 503.
    pub reflection: Option<Spanned<bool>>,
    /// How messages of routes with `grpc` look as JSON.
    pub json: Option<Spanned<GrpcJson>>,
}

/// How messages look as JSON, and how large they may be.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GrpcJson {
    /// What fields are called in answers (default `camel`); requests may use either.
    pub names: Option<FieldNames>,
    /// Whether answers have fields whose value is the default, such as `0` and `""` (default true).
    pub defaults: Option<bool>,
    /// Largest message, either way (default `4MiB`).
    pub max_message: Option<Spanned<Size>>,
}

/// What fields are called in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FieldNames {
    /// As proto3 JSON has it: `createdAt`, or the field's `json_name`.
    #[default]
    Camel,
    /// As the proto writes it: `created_at`.
    Proto,
}

/// One server.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// `http://host:port` or `https://host`, without path or query.
    pub url: Spanned<String>,
    /// Its share of the traffic beside the others (default 1; 0 takes none).
    pub weight: Option<Spanned<u32>>,
}

/// What an upstream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    Http,
    /// gRPC over HTTP/2.
    Grpc,
}

/// How a server is chosen.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// In turn, by weight.
    RoundRobin,
    /// The less busy of two drawn by weight.
    LeastRequest,
    /// By lot, by weight.
    Random,
    /// The same server for the same key, by weight; when a server goes, only its keys move. `user`: the caller, or the
    /// client's address where nobody is known. `session`: the path's parameter `session_id` or `id`, the query's
    /// `session_id`, the header `X-Session-ID`, or the session of a native handler; else as `user`. `ip`: the client's
    /// address. `header.X`: a header; requests without it are spread by lot.
    Hash(Spanned<String>),
}

/// Deadlines of a request once connected.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Timeouts {
    /// Until the response's head has come, from the request's last byte on (default `30s`).
    pub first_byte: Option<Dur>,
    /// Between two pieces of a body, either way (default `60s`; routes with `protocol: grpc` have no default).
    pub idle: Option<Dur>,
    /// For the whole exchange (default `5m`; streams have `stream.max` instead, routes with `protocol: grpc` no default).
    pub total: Option<Dur>,
}

/// How servers are verified when their URL is `https`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamTls {
    /// PEM file of the authorities to trust instead of the public ones; relative to this file.
    pub ca: Option<Spanned<String>>,
    /// Name the certificate must carry, if not the URL's host.
    pub server_name: Option<Spanned<String>>,
}

/// Active health checks.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// Path asked with GET; any 2xx is healthy. Not with `protocol: grpc`.
    pub path: Option<Spanned<String>>,
    /// Instead of `path`: whether it is enough that the server takes connections.
    pub tcp: Option<Spanned<bool>>,
    /// The service that a gRPC server is asked for (`grpc.health.v1.Health/Check`; default the empty name, the server as
    /// a whole). With `protocol: grpc` only, where it is how servers are asked unless `tcp` is set.
    pub grpc: Option<Spanned<String>>,
    /// Between two checks (default `30s`).
    pub interval: Option<Dur>,
    /// Until a check counts as failed (default `2s`).
    pub timeout: Option<Spanned<Dur>>,
    /// Failures in a row that make a server unhealthy (default 3).
    pub unhealthy_after: Option<u32>,
    /// Successes in a row that make it healthy again (default 1).
    pub healthy_after: Option<u32>,
}

/// Circuit breaker: one for the upstream, and one for each target where it has several.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Breaker {
    /// Outcomes of this long count (default `10s`).
    pub window: Option<Spanned<Dur>>,
    /// With fewer requests in the window it never opens (default 20).
    pub min_requests: Option<Spanned<u32>>,
    /// Share of failures that opens it, above 0 and up to 1 (default 0.5). Failures are 502, 503, 504, and what is no
    /// answer: no connection, a reset, a deadline that passed.
    pub failure_ratio: Option<Spanned<f64>>,
    /// An answer whose head takes longer than this is slow (default: none is).
    pub slow_call: Option<Dur>,
    /// Share of slow answers that opens it, above 0 and up to 1 (default 0.8).
    pub slow_ratio: Option<Spanned<f64>>,
    /// It stays open this long before one probe (default `5s`).
    pub open_for: Option<Spanned<Dur>>,
}

/// Retries.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// Tries at most, the first included (default 2).
    pub attempts: Option<Spanned<u32>>,
    /// What is tried again: `connect`, `reset`, or a status, 500 to 599 (default `[connect, reset, 502, 503, 504]`). A
    /// deadline that passed counts as 504, an answer that cannot be understood as 502.
    #[serde(default)]
    pub on: List<RetryOn>,
    /// Retries at most, as a share of the requests of the last ten seconds (default `20%`).
    pub budget: Option<Percent>,
    /// Retries that are allowed in a second however few requests there are (default 1).
    pub min_retries: Option<u32>,
    /// Methods that may be tried again (default the idempotent ones of RFC 9110, section 9.2.2). Whatever carries an
    /// `Idempotency-Key` may be besides.
    #[serde(default)]
    pub methods: List<String>,
    /// Until a try without an answer has failed with 504, where another may follow (default: as long as `timeouts` allow).
    pub per_try: Option<Dur>,
    /// How long to rest before trying again.
    pub backoff: Option<Backoff>,
    /// Largest body that is kept for another try; a request with a larger one is sent once (default `64KiB`).
    pub max_body: Option<Size>,
    /// A second try for GET and HEAD while the first is still waited for; the first good answer counts. Taken from the
    /// budget (default: none).
    pub hedge: Option<Hedge>,
}

/// How long to rest before trying again: by lot, up to a bound that doubles with each try.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Backoff {
    /// Bound before the second try (default `25ms`).
    pub base: Option<Dur>,
    /// Bound in the end (default `250ms`). A `Retry-After` that asks for more ends the tries.
    pub max: Option<Dur>,
}

/// A second try before the first has failed.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hedge {
    /// How long the first may take until then.
    pub after: Spanned<Dur>,
}

/// What is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected `connect`, `reset`, or a status from 500 to 599")]
pub enum RetryOn {
    /// A status the upstream answered.
    Status(u16),
    /// `connect` or `reset`.
    Cause(RetryCause),
}

/// A failure below HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RetryCause {
    /// No connection.
    Connect,
    /// The connection broke before an answer.
    Reset,
}

/// Names used by predicates: header or query parameter to wanted value.
pub type Wanted = Table<Spanned<String>>;
