//! The admin listener: health for orchestrators, metrics, and the admin API. An address of its own, loopback by
//! default; whatever changes something needs the admin token (SECURITY rule 25).

mod accounts;
mod breakers;
mod cache;
mod maintenance;
mod targets;

use super::accept::{ConnInfo, Service};
use super::intake::{IntakeLimits, admit};
use super::live::{Live, Reloaded, short};
use super::watch;
use crate::accounts::ADMIN_ROLE;
use crate::compile::diff;
use crate::error::{GatewayError, Kind, Lang};
use crate::identity::Proof;
use crate::state::{CheckState, Revision};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io;
use std::sync::Arc;

/// What stands behind the admin listener.
#[derive(Clone)]
pub struct Admin {
    live: Arc<Live>,
    /// Hash of the admin token, so that comparing takes the same time for every guess.
    token: Option<[u8; 32]>,
}

type Answer = Response<BoxBody<Bytes, io::Error>>;

impl Admin {
    /// For what is live; without a token, calls that change something are refused.
    pub fn new(live: Arc<Live>, token: Option<&str>) -> Self {
        Admin { live, token: token.map(|token| Sha256::digest(token).into()) }
    }

    async fn answer(
        &self,
        method: &Method,
        path: &str,
        request: Request<Incoming>,
    ) -> Result<Answer, GatewayError> {
        let read = matches!(*method, Method::GET | Method::HEAD);
        match path {
            "/livez" if read => Ok(text(StatusCode::OK, "live\n")),
            "/readyz" if read => Ok(self.ready(request.uri().query().is_some_and(|q| q.contains("verbose")))),
            "/metrics" if read => {
                let mut answer = text(StatusCode::OK, &self.live.shared().telemetry.render());
                let form = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                answer.headers_mut().insert(CONTENT_TYPE, form);
                Ok(answer)
            }
            "/admin/api/revision" if read => Ok(json_answer(StatusCode::OK, &self.revision())),
            "/admin/api/routes" if read => Ok(json_answer(StatusCode::OK, &self.routes())),
            "/admin/api/upstreams" if read => {
                Ok(json_answer(StatusCode::OK, &json!({ "upstreams": self.live.upstreams().status() })))
            }
            breakers::LIST if read => Ok(breakers::list(self.live.upstreams())),
            breakers::RESET if *method == Method::POST => {
                let by = self.authorise(&request)?;
                breakers::reset(self.live.upstreams(), &by, request.into_body()).await
            }
            "/admin/api/reload" if *method == Method::POST => {
                self.authorise(&request)?;
                self.reload().await
            }
            "/admin/api/rollback" if *method == Method::POST => {
                self.authorise(&request)?;
                let live = self.live.clone();
                let revision = tokio::task::spawn_blocking(move || live.rollback()).await.ok().flatten();
                match revision {
                    Some(revision) => {
                        Ok(json_answer(StatusCode::OK, &json!({ "revision": describe(&revision) })))
                    }
                    None => {
                        Err(GatewayError::new(Kind::NotFound, "there is no earlier revision to go back to"))
                    }
                }
            }
            _ if targets::Call::find(path).is_some() => {
                if *method != Method::POST {
                    let allow = Some(HeaderValue::from_static("POST"));
                    return Err(GatewayError { allow, ..Kind::MethodNotAllowed.into() });
                }
                let by = self.authorise(&request)?;
                let call = targets::Call::find(path).ok_or(Kind::NotFound)?;
                call.perform(self.live.upstreams(), &by)
            }
            _ if cache::Call::find(path).is_some() => self.cache(method, path, request).await,
            "/admin/api/maintenance" => self.maintenance(method, request).await,
            _ if accounts::Call::find(path).is_some() => self.accounts(method, path, request).await,
            _ => {
                let posts = ["/admin/api/reload", "/admin/api/rollback", breakers::RESET];
                let reads = ["/livez", "/readyz", "/metrics", "/admin/api/revision", "/admin/api/routes"];
                let mut error: GatewayError = Kind::NotFound.into();
                if posts.contains(&path) {
                    error = Kind::MethodNotAllowed.into();
                    error.allow = Some(HeaderValue::from_static("POST"));
                } else if reads.contains(&path) || path == "/admin/api/upstreams" || path == breakers::LIST {
                    error = Kind::MethodNotAllowed.into();
                    error.allow = Some(HeaderValue::from_static("GET, HEAD"));
                }
                Err(error)
            }
        }
    }

    async fn accounts(
        &self,
        method: &Method,
        path: &str,
        request: Request<Incoming>,
    ) -> Result<Answer, GatewayError> {
        let call = accounts::Call::find(path).ok_or(Kind::NotFound)?;
        if let Some(allow) = call.refuses(method) {
            let allow = Some(HeaderValue::from_static(allow));
            return Err(GatewayError { allow, ..Kind::MethodNotAllowed.into() });
        }
        let by = self.authorise(&request)?;
        let (head, body) = request.into_parts();
        let serving = self.live.table().checked().clone();
        let accounts = &self.live.shared().accounts;
        call.perform(accounts, serving.roles(), &by, method, head.uri.query(), body).await
    }

    async fn cache(
        &self,
        method: &Method,
        path: &str,
        request: Request<Incoming>,
    ) -> Result<Answer, GatewayError> {
        let call = cache::Call::find(path).ok_or(Kind::NotFound)?;
        if let Some(allow) = call.refuses(method) {
            let allow = Some(HeaderValue::from_static(allow));
            return Err(GatewayError { allow, ..Kind::MethodNotAllowed.into() });
        }
        let copies = &self.live.shared().copies;
        match call {
            cache::Call::Figures => Ok(cache::figures(copies)),
            cache::Call::Purge => {
                let by = self.authorise(&request)?;
                cache::purge(copies, &by, request.into_body()).await
            }
        }
    }

    async fn maintenance(&self, method: &Method, request: Request<Incoming>) -> Result<Answer, GatewayError> {
        if let Some(allow) = maintenance::refuses(method) {
            let allow = Some(HeaderValue::from_static(allow));
            return Err(GatewayError { allow, ..Kind::MethodNotAllowed.into() });
        }
        let by = match *method {
            Method::GET | Method::HEAD => String::new(),
            _ => self.authorise(&request)?,
        };
        let (head, body) = request.into_parts();
        let serving = self.live.table().checked().clone();
        let switches = &self.live.shared().maintenance;
        maintenance::perform(switches, &serving, by, method, head.uri.query(), body).await
    }

    /// Who is calling: whoever has the admin token, or a user with the role `admin` and an access token.
    fn authorise(&self, request: &Request<Incoming>) -> Result<String, GatewayError> {
        let given = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer "));
        let hash: Option<[u8; 32]> = given.map(|token| Sha256::digest(token).into());
        if hash.is_some() && hash == self.token {
            return Ok("admin token".to_owned());
        }
        let user = given.and_then(|token| self.live.shared().accounts.identify(token));
        match user.filter(|user| user.proof == Proof::Token && &*user.role == ADMIN_ROLE) {
            Some(user) => Ok(format!("user {}", user.user_id)),
            None => Err(GatewayError::new(
                Kind::Forbidden,
                "this call needs `Authorization: Bearer` with the admin token (ADMIN_TOKEN, ADMIN_TOKEN_FILE) or an \
                 administrator's access token",
            )),
        }
    }

    fn ready(&self, verbose: bool) -> Answer {
        let readiness = &self.live.shared().readiness;
        let ready = readiness.is_ready();
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        if !verbose {
            return text(status, if ready { "ready\n" } else { "not ready\n" });
        }
        let checks = self.live.shared().health.checks();
        let checks: serde_json::Map<String, Value> = checks
            .into_iter()
            .map(|(name, state): (String, CheckState)| (name, state.word().into()))
            .collect();
        let failure = readiness.last_failure().map(|failure| {
            json!({ "at": timestamp(failure.at), "hash": short(&failure.hash), "report": failure.report })
        });
        let config = match failure {
            Some(_) => "refused",
            None if readiness.is_rolled_back() => "rolled_back",
            None => "current",
        };
        let body = json!({
            "status": if ready { "ready" } else { "not_ready" },
            "draining": readiness.is_draining(),
            "revision": readiness.revision().map(|revision| describe(&revision)),
            "config": config,
            "last_reload_failure": failure,
            "checks": checks,
            "pressure": self.live.shared().pressure.status(),
        });
        json_answer(status, &body)
    }

    fn revision(&self) -> Value {
        let readiness = &self.live.shared().readiness;
        json!({
            "revision": readiness.revision().map(|revision| describe(&revision)),
            "earlier": self.live.history().iter().map(describe).collect::<Vec<_>>(),
            "config": self.live.config().display().to_string(),
        })
    }

    fn routes(&self) -> Value {
        let table = self.live.table();
        let routes: Vec<_> = table
            .checked()
            .routes()
            .iter()
            .map(|route| {
                json!({
                    "method": route.info.method,
                    "path": route.info.template,
                    "host": route.info.host,
                    "version": route.info.version,
                    "public": route.public,
                    "chain": route.links.iter().map(|link| link.name).collect::<Vec<_>>(),
                    "target": diff::ending(route),
                })
            })
            .collect();
        json!({ "routes": routes })
    }

    async fn reload(&self) -> Result<Answer, GatewayError> {
        let reloaded = watch::reload_now(&self.live, "asked by the admin API").await.ok_or(Kind::Internal)?;
        Ok(match reloaded {
            Reloaded::Unchanged => json_answer(StatusCode::OK, &json!({ "result": "unchanged" })),
            Reloaded::Serves { revision, diff, took } => {
                let changed: Vec<_> = diff.changed.iter().map(|(route, _)| route).collect();
                let body = json!({
                    "result": "serves",
                    "revision": describe(&revision),
                    "added": diff.added, "changed": changed, "removed": diff.removed,
                    "lost_auth": diff.lost_auth, "gained_auth": diff.gained_auth,
                    "milliseconds": took.as_millis() as u64,
                });
                json_answer(StatusCode::OK, &body)
            }
            Reloaded::Refused { report, errors } => {
                let body = json!({ "result": "refused", "errors": errors, "report": report });
                json_answer(StatusCode::UNPROCESSABLE_ENTITY, &body)
            }
        })
    }
}

impl Service for Admin {
    type Body = BoxBody<Bytes, io::Error>;

    async fn call(&self, request: Request<Incoming>, connection: Arc<ConnInfo>) -> Answer {
        let (parts, body) = request.into_parts();
        let lang = Lang::of(&parts.headers);
        let request_id = uuid::Uuid::new_v4().to_string();
        let path = admit(&parts, connection.tls, &IntakeLimits::default())
            .map(|admitted| admitted.path.into_owned());
        let request = Request::from_parts(parts, body);
        let answer = match path {
            Ok(path) => {
                let method = request.method().clone();
                self.answer(&method, &path, request).await
            }
            Err(refusal) => {
                let mut error = GatewayError::new(refusal.kind, refusal.detail);
                error.close = refusal.close;
                Err(error)
            }
        };
        answer.unwrap_or_else(|error| error.respond(&request_id, lang).into())
    }
}

fn describe(revision: &Revision) -> Value {
    json!({
        "number": revision.number,
        "hash": short(&revision.hash),
        "since": timestamp(revision.since),
        "routes": revision.routes,
        "api_version": revision.api_version,
    })
}

fn timestamp(at: std::time::SystemTime) -> String {
    jiff::Timestamp::try_from(at).map(|at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()).unwrap_or_default()
}

fn text(status: StatusCode, body: &str) -> Answer {
    let response = poem::Response::builder().status(status).content_type("text/plain; charset=utf-8");
    response.header(CACHE_CONTROL, "no-store").body(body.to_owned()).into()
}

fn json_answer(status: StatusCode, body: &Value) -> Answer {
    let response = poem::Response::builder().status(status).content_type("application/json");
    response.header(CACHE_CONTROL, "no-store").body(format!("{body:#}\n")).into()
}
