//! `cors`: which websites may call from a browser (Fetch standard, section 3.2).
//!
//! Origins are an exact list, compiled to a set; nothing is ever reflected. An allowed origin gets its headers on
//! every answer, errors included; any other gets none, and what a target set itself is removed, so that the policy
//! here is the only one. Preflights (`OPTIONS` with `Origin` and `Access-Control-Request-Method`) end here: 204 for
//! an allowed origin, 403 `origin_not_allowed` for another. Answers always vary by `Origin`.
//!
//! The body names a policy under `cors:` (`cors: default`, which a bare `cors` means too) or is one itself. Off by
//! leaving it out: browsers then keep other websites away. `Access-Control-Allow-Private-Network` is never sent.
//! A preflight reaches the chain of the route that would serve the method it asks for.

mod policy;

pub use policy::check_policy;

use super::{Body, BuildCx, Hook, Layer, Mark, Probe, Stage, StageCx, StageDecl, Stop, Verdict, vary};
use crate::diag::{Code, Diagnostic};
use crate::error::{GatewayError, Kind};
use crate::exchange::Exchange;
use crate::manifest::model;
use crate::manifest::{List, Spanned};
use crate::units::Dur;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use poem::{Request, Response};
use policy::{NOT_ALLOWED, Policy};
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;

/// Lets websites of other origins call: a policy by name, or one on the spot.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CorsStage {
    /// Name of a policy under `cors:` (default `default`); without any of the other keys.
    pub policy: Option<Spanned<String>>,
    /// Origins that may call, exactly as a browser sends them (`https://app.example.com`); `*` alone for any, which forbids credentials.
    #[serde(default)]
    pub origins: List<String>,
    /// Methods that may be used (default: those the path serves).
    #[serde(default)]
    pub methods: List<String>,
    /// Request headers that may be sent (default `Authorization`, `Content-Type`, `X-Request-ID`, `Idempotency-Key`, `Last-Event-ID`).
    #[serde(default)]
    pub headers: List<String>,
    /// Response headers that scripts may read (default none beyond those of the standard).
    #[serde(default)]
    pub expose: List<String>,
    /// Whether cookies and `Authorization` may be sent (default `false`).
    pub credentials: Option<bool>,
    /// How long a browser may remember a preflight answer (default `10m`).
    pub max_age: Option<Dur>,
}

const ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");

impl StageDecl for CorsStage {
    const NAME: &'static str = "cors";
    const ABOUT: &'static str = "Lets listed websites call from a browser and answers their preflights";
    const BODY: Body = Body::OptionalBare("policy");

    fn check(self, cx: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        let span = cx.span;
        let inline = self.is_inline();
        let policy = match (&self.policy, inline) {
            (Some(name), true) => {
                let message = "`policy` names a policy, the other keys are one";
                cx.out.push(
                    Diagnostic::error(Code::BAD_VALUE, name.span, message)
                        .help("keep the name, or the keys, not both"),
                );
                return None;
            }
            (None, true) => Policy::compile(&self.into_model(), span, cx.out)?,
            (name, false) => {
                let (name, at) =
                    name.as_ref().map_or(("default", span), |name| (name.value.as_str(), name.span));
                let manifest = cx.manifest;
                let named = cx.lookup(&manifest.cors, "CORS policy", name, at)?;
                let key =
                    manifest.cors.0.iter().find(|(key, _)| key.text == name).map_or(at, |(key, _)| key.span);
                Policy::compile(named, key, cx.out)?
            }
        };
        policy.identify(&mut cx.references);
        Some(Arc::new(Compiled(Arc::new(policy))))
    }
}

impl CorsStage {
    fn is_inline(&self) -> bool {
        let lists = [&self.origins, &self.methods, &self.headers, &self.expose];
        lists.iter().any(|list| !list.0.is_empty()) || self.credentials.is_some() || self.max_age.is_some()
    }

    fn into_model(self) -> model::Cors {
        model::Cors {
            origins: self.origins,
            methods: self.methods,
            headers: self.headers,
            expose: self.expose,
            credentials: self.credentials.unwrap_or_default(),
            max_age: self.max_age,
        }
    }
}

struct Compiled(Arc<Policy>);

impl Stage for Compiled {
    fn name(&self) -> &'static str {
        CorsStage::NAME
    }

    fn layer(&self, cx: &BuildCx<'_>) -> Layer {
        let served = match cx.route.method.as_str() {
            "ANY" => None,
            "GET" => Some(HeaderValue::from_static("GET, HEAD")),
            method => HeaderValue::from_str(method).ok(),
        };
        let methods = self.0.methods.clone().or(served);
        Layer::Hook(Box::new(CorsHook { policy: self.0.clone(), methods }))
    }

    fn explain(&self, probe: &Probe<'_>) -> Verdict {
        let Some(origin) = probe.headers.get(ORIGIN) else {
            return Verdict::Passes("no Origin: not a call across origins".to_owned());
        };
        let preflight =
            probe.method == Method::OPTIONS && probe.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        match (self.0.allows(origin) != NOT_ALLOWED, preflight) {
            (true, true) => Verdict::Answers(204, "preflight of an allowed origin".to_owned()),
            (false, true) => Verdict::Refuses(403, "preflight of an origin that is not listed".to_owned()),
            (true, false) => Verdict::Passes("the origin is allowed".to_owned()),
            (false, false) => {
                Verdict::Passes("the origin is not listed: a browser keeps the answer".to_owned())
            }
        }
    }
}

struct CorsHook {
    policy: Arc<Policy>,
    /// Methods that preflights are told; none on a route that serves any.
    methods: Option<HeaderValue>,
}

impl CorsHook {
    fn preflight(&self, exchange: &Exchange, mark: Mark, asked: &HeaderValue) -> Response {
        let mut response = if mark == NOT_ALLOWED {
            exchange.refuse(&Kind::OriginNotAllowed.into())
        } else {
            match (&self.methods, Method::from_bytes(asked.as_bytes())) {
                (_, Err(_)) => exchange.refuse(&GatewayError::new(
                    Kind::BadRequest,
                    "Access-Control-Request-Method is not a method",
                )),
                (methods, Ok(_)) => {
                    let mut response = Response::builder().status(StatusCode::NO_CONTENT).finish();
                    let headers = response.headers_mut();
                    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods.as_ref().unwrap_or(asked).clone());
                    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, self.policy.headers.clone());
                    headers.insert(ACCESS_CONTROL_MAX_AGE, self.policy.max_age.clone());
                    self.policy.allow(mark, headers);
                    response
                }
            }
        };
        vary(response.headers_mut(), "Origin, Access-Control-Request-Method, Access-Control-Request-Headers");
        response
    }
}

impl Hook for CorsHook {
    fn enter(&self, exchange: &Arc<Exchange>, request: &mut Request) -> Result<Mark, Stop> {
        let headers = request.headers();
        let Some(origin) = headers.get(ORIGIN) else { return Ok(NOT_ALLOWED) };
        // Two origins are none.
        let several = headers.get_all(ORIGIN).iter().nth(1).is_some();
        let mark = if several { NOT_ALLOWED } else { self.policy.allows(origin) };
        if request.method() == Method::OPTIONS
            && let Some(asked) = headers.get(ACCESS_CONTROL_REQUEST_METHOD)
        {
            return Err(Stop::Answer(Box::new(self.preflight(exchange, mark, asked))));
        }
        Ok(mark)
    }

    fn leave(&self, _: &Arc<Exchange>, mark: Mark, response: &mut Response) {
        let headers = response.headers_mut();
        for theirs in [
            ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
            ACCESS_CONTROL_ALLOW_METHODS,
            ACCESS_CONTROL_ALLOW_HEADERS,
            ACCESS_CONTROL_EXPOSE_HEADERS,
            ACCESS_CONTROL_MAX_AGE,
            ALLOW_PRIVATE_NETWORK,
        ] {
            headers.remove(theirs);
        }
        if mark != NOT_ALLOWED {
            self.policy.allow(mark, headers);
            if let Some(expose) = &self.policy.expose {
                headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
            }
        }
        vary(headers, "Origin");
    }
}

#[cfg(test)]
mod tests;
