//! `cache`: answers GET from memory while a copy is fresh, as a shared cache by RFC 9111.
//!
//! A copy is good for `ttl`, or for less if the answer says so (`s-maxage`, `max-age`, `Expires`); never for more. Kept are
//! answers of final statuses (200, 203, 204, 300, 301, 308, 404, 410) without `no-store`, `private`, `no-cache`,
//! `Set-Cookie` or `Vary: *`, up to `max_size`; answers with `Vary` once for each set of values. `HEAD` and conditional
//! requests are answered from a copy too, and a stale copy with a validator is asked for with `If-None-Match`.
//!
//! Nobody gets another's answer: requests with credentials (an identity, `Authorization`, `Cookie`) share only what says
//! that it is public, unless `by` tells users apart or `shared` says that all get the same. With `by: [query.…]`, only the
//! parameters it names reach what is behind: what is not in the key cannot change a copy. Requests with `Range`,
//! `no-store` or a body pass; `no-cache` and `max-age` of callers are not obeyed.
//!
//! Identical requests that find no copy share one call (`fills`): they wait for it up to `wait`, and go on their own if it
//! turns out that its answer is not for them. Every answer says in `Cache-Status` (RFC 9211) what became of it. Off by
//! leaving it out, or as a whole by `CACHE_MAX_SIZE=0B`.

mod answers;
mod conditions;
mod fetch;
mod fills;
mod rules;
#[cfg(test)]
mod tests;

use super::caller::Callers;
use super::{
    Body, BuildCx, Facts, Fit, Keeps, Layer, Misfit, Next, Probe, Stage, StageCx, StageDecl, Verdict, sealed,
};
use crate::copies::{Copies, Key};
use crate::diag::{Code, Diagnostic};
use crate::exchange::Exchange;
use crate::manifest::model::Protocol;
use crate::manifest::{List, Spanned};
use crate::openapi::{On, OperationDoc};
use crate::telemetry::{CacheMetrics, CacheResult};
use crate::units::{Dur, Size};
use fetch::Fetcher;
use fills::Fills;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{Method, Uri};
use poem::{Endpoint, Request, Response};
use rules::Times;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Answers GET from memory while a copy is fresh (RFC 9111).
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// How long a copy is fresh, unless the answer says less.
    pub ttl: Dur,
    /// What makes copies different beside host and path: `user`, `tenant`, `ip`, `header.X`, `query.X` (default: the whole
    /// query). With `query.X`, parameters that are not named do not count, and are not sent on.
    #[serde(default)]
    pub by: List<String>,
    /// How long behind that a copy may be given out while a new one is fetched (default: not at all).
    pub stale_while_revalidate: Option<Dur>,
    /// Answers larger than this are not kept (default `1MiB`).
    pub max_size: Option<Spanned<Size>>,
    /// Callers who are logged in get the same answer, whoever they are: needed behind `auth` where `by` has no `user`
    /// (default `false`).
    pub shared: Option<Spanned<bool>>,
    /// How long a request waits for an identical one that was sent before it, until it goes on its own (default `5s`).
    pub wait: Option<Dur>,
    /// How long a call may take that nobody waits for, because a stale copy was given out (default `30s`).
    pub refresh_timeout: Option<Dur>,
}

const MAX_SIZE: Size = Size(1 << 20);
const WAIT: Dur = Dur::secs(5);
const REFRESH: Dur = Dur::secs(30);

impl StageDecl for Cache {
    const NAME: &'static str = "cache";
    const ABOUT: &'static str = "Answers GET from memory while a copy is fresh";
    const BODY: Body = Body::Bare("ttl");

    fn check(self, cx: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        if let Some(body) = self.by.0.iter().find(|word| word.starts_with("body.")) {
            cx.out.push(
                Diagnostic::error(Code::BAD_VALUE, body.span, "requests that are cached have no body")
                    .help("tell copies apart by `query.X`, `header.X`, `user`, `tenant` or `ip`"),
            );
        }
        if let Some(none) = self.max_size.as_ref().filter(|size| size.value.0 == 0) {
            cx.out.push(
                Diagnostic::error(Code::BAD_VALUE, none.span, "nothing is that small")
                    .help("leave the stage out where nothing is to be kept"),
            );
        }
        let callers = Callers::check(&self.by, cx.out)?;
        let shared = self.shared.filter(|shared| shared.value);
        if let Some(shared) = shared.as_ref().filter(|_| callers.tell_users_apart()) {
            let message = "`shared: true` and `by: [user]` contradict each other";
            cx.out.push(
                Diagnostic::error(Code::MISPLACED, shared.span, message).help(
                    "remove `shared` if each user has answers of their own, `user` if all get the same",
                ),
            );
        }
        Some(Arc::new(Compiled {
            times: Times {
                ttl: self.ttl.0,
                stale: self.stale_while_revalidate.map_or(Duration::ZERO, |time| time.0),
            },
            max_size: self.max_size.map_or(MAX_SIZE, |size| size.value),
            wait: self.wait.unwrap_or(WAIT),
            refresh: self.refresh_timeout.unwrap_or(REFRESH),
            shared: shared.is_some(),
            callers,
        }))
    }
}

struct Compiled {
    times: Times,
    max_size: Size,
    wait: Dur,
    refresh: Dur,
    shared: bool,
    callers: Callers,
}

impl Stage for Compiled {
    fn name(&self) -> &'static str {
        Cache::NAME
    }

    fn layer(&self, cx: &BuildCx<'_>) -> Layer {
        let route = cx.route;
        let label = match &route.host {
            Some(host) => format!("{} {host}{}", route.method, route.template),
            None => format!("{} {}", route.method, route.template),
        };
        let copies = cx.shared.copies.clone();
        let parameters = self.callers.parameters();
        let keys = Keys {
            identity: cx.identity,
            callers: self.callers.clone(),
            parameters: parameters.map(|names| names.into_iter().map(str::to_owned).collect()),
            shared: self.shared,
        };
        let fetcher = Fetcher {
            times: self.times,
            // What the store would not take anyway is not held back either.
            max_size: usize::try_from(self.max_size.0).unwrap_or(usize::MAX).min(copies.largest()),
            refresh: self.refresh.0,
            route: label.into(),
            copies: copies.clone(),
            closing: cx.shared.closing.clone(),
        };
        let metrics = cx.shared.telemetry.cache(route);
        let wait = self.wait.0;
        Layer::Around(Box::new(move |next| {
            let caching = Caching {
                keys,
                wait,
                copies,
                metrics,
                fetcher: Arc::new(fetcher),
                fills: Arc::default(),
                next: Arc::new(next),
            };
            sealed(caching)
        }))
    }

    fn facts(&self) -> Facts {
        Facts {
            buffers_response: Some("`cache` keeps whole answers"),
            keeps_answers: Some(match self.callers.need_identity() {
                Some(_) if self.callers.tell_users_apart() => Keeps::ForEach("user"),
                _ if self.shared => Keeps::ForAll,
                _ => Keeps::ForWhoeverAsks,
            }),
            ..Facts::default()
        }
    }

    fn misfit(&self, fit: &Fit<'_>) -> Option<Misfit> {
        Some(match (fit.protocol, fit.route.method.as_str()) {
            (Protocol::Grpc, _) => Misfit {
                code: Code::READS_CALLS,
                message: "`cache` cannot keep the answers to gRPC calls",
                help: "give routes with `protocol: grpc` a chain without it",
            },
            (Protocol::Websocket, _) => Misfit {
                code: Code::MISPLACED,
                message: "`cache` keeps answers, and a WebSocket has none",
                help: "give this route a chain without it",
            },
            (_, "GET" | "HEAD") => return None,
            _ => Misfit {
                code: Code::NOT_CACHEABLE,
                message: "`cache` keeps answers to GET, and this route takes other methods",
                help: "give GET a route of its own, or this route a chain without `cache`",
            },
        })
    }

    fn document(&self, op: &mut OperationDoc) {
        op.answers("304", json!({ "description": "What the caller has is still good." }));
        let about = "What became of it in the gateway's memory (RFC 9211).";
        op.header(On::Success, "Cache-Status", about, json!({ "type": "string" }));
        let about = "Seconds since a copy was the service's answer.";
        op.header(On::Success, "Age", about, json!({ "type": "integer", "minimum": 0 }));
        let mut said = json!({ "ttl": Dur(self.times.ttl).to_string(), "by": self.callers.words() });
        if !self.times.stale.is_zero() {
            said["stale_while_revalidate"] = Dur(self.times.stale).to_string().into();
        }
        op.extension("x-cache", said);
    }

    fn explain(&self, probe: &Probe<'_>) -> Verdict {
        if let Some(why) = rules::bypasses(probe.method, probe.headers) {
            return Verdict::Passes(format!("not from memory ({why})"));
        }
        let by = self.callers.words();
        let by = if by.is_empty() { "path and query".to_owned() } else { format!("path, {by}") };
        Verdict::Passes(format!("answers from memory for {}, by {by}", Dur(self.times.ttl)))
    }
}

/// What tells requests apart.
struct Keys {
    identity: u64,
    callers: Callers,
    /// The query parameters that count, if only some do.
    parameters: Option<Box<[String]>>,
    shared: bool,
}

/// What is known of a request before anything is looked up.
struct Asked {
    key: Key,
    /// Whether it carries credentials that the key does not tell apart.
    personal: bool,
}

impl Keys {
    /// The key of a request. Takes from its query what does not count.
    fn of(&self, exchange: &Exchange, request: &mut Request) -> Asked {
        if let (Some(names), Some(query)) = (&self.parameters, request.uri().query())
            && let Some(narrow) = narrowed(query, names)
        {
            replace_query(request.uri_mut(), &narrow);
        }
        let known = exchange.identity().is_some();
        let told = self.shared || (known && self.callers.tell_users_apart());
        let personal = !told && (known || rules::has_credentials(request.headers()));
        let host = request.headers().get(HOST).map(|host| host.as_bytes());
        let host = host.or_else(|| request.uri().host().map(str::as_bytes));
        let key = Key::of("cache", self.identity)
            .maybe(host)
            .with(&[u8::from(exchange.secure), u8::from(personal)])
            .with(exchange.path.as_bytes())
            .maybe(request.uri().query().map(str::as_bytes));
        Asked { key: self.callers.tell(key, exchange, request).end(), personal }
    }
}

/// A query with the parameters of these names only, as they were written; none if there is nothing to take away.
fn narrowed(query: &str, names: &[String]) -> Option<String> {
    let counts = |pair: &str| {
        url::form_urlencoded::parse(pair.as_bytes())
            .next()
            .is_some_and(|(name, _)| names.iter().any(|it| *it == name))
    };
    if query.split('&').all(counts) {
        return None;
    }
    Some(query.split('&').filter(|pair| counts(pair)).collect::<Vec<_>>().join("&"))
}

fn replace_query(uri: &mut Uri, query: &str) {
    let path = uri.path();
    let whole = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = PathAndQuery::try_from(whole).ok();
    if let Ok(narrow) = Uri::from_parts(parts) {
        *uri = narrow;
    }
}

struct Caching {
    keys: Keys,
    wait: Duration,
    copies: Arc<Copies>,
    metrics: CacheMetrics,
    fetcher: Arc<Fetcher>,
    fills: Arc<Fills>,
    next: Arc<Next>,
}

impl Endpoint for Caching {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        if let Some(why) = rules::bypasses(request.method(), request.headers()) {
            return self.pass(request, CacheResult::Bypass, why).await;
        }
        let exchange = Exchange::of(&request).clone();
        let asked = self.keys.of(&exchange, &mut request);
        let now = Instant::now();
        let found = self.copies.find(&asked.key, request.headers(), now);
        if let Some(copy) = &found.copy {
            let (fresh, stale) = (copy.is_fresh(now), copy.may_be_stale(now));
            if fresh || stale {
                self.metrics.request(if fresh { CacheResult::Hit } else { CacheResult::Stale });
                let mut response = answers::of_copy(copy, request.method(), request.headers(), now);
                answers::say_hit(&mut response, copy.left(now));
                if !fresh {
                    self.refresh(asked, &found, request);
                }
                return Ok(response);
            }
        }
        if found.passes {
            return self.pass(request, CacheResult::Bypass, "fwd=uri-miss; detail=uncacheable").await;
        }
        if request.method() == Method::HEAD {
            return self.pass(request, CacheResult::Miss, "fwd=uri-miss").await;
        }
        self.fetch(asked, found, request, &exchange).await
    }
}

impl Caching {
    /// Sends a request on as it is.
    async fn pass(&self, request: Request, result: CacheResult, how: &str) -> poem::Result<Response> {
        self.metrics.request(result);
        let mut response = self.next.call(request).await?;
        answers::say_forwarded(&mut response, how);
        Ok(response)
    }
}
