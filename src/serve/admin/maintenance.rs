//! The admin API for maintenance: switching routes off and on, whatever the manifest says, until that is lifted.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `GET maintenance` | | `{switches, manifest}`: what operators said, and what the manifest switches off |
//! | `POST maintenance` | `{route \| version \| all: true, on, retry_after?, reason?, respond?}` | the switch |
//! | `DELETE maintenance?route=\|version=\|all=true` | | `{lifted}`; without a query, everything |
//!
//! `on: true` switches off, `on: false` keeps open what the manifest switches off. A route is named as
//! `GET routes` and the log name it: method, host where it has one, path. It holds for this process, over reloads.

use super::accounts::read;
use super::{Answer, json_answer, timestamp};
use crate::check::Checked;
use crate::error::{GatewayError, Kind};
use crate::state::maintenance::{Closed, RETRY, Reply, Scope, Switch, Switches};
use crate::units::Dur;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SwitchRequest {
    route: Option<String>,
    version: Option<String>,
    #[serde(default)]
    all: bool,
    on: bool,
    retry_after: Option<Dur>,
    reason: Option<String>,
    respond: Option<ReplyRequest>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplyRequest {
    status: Option<u16>,
    json: Option<Value>,
    text: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

/// The methods it answers, where `method` is none of them.
pub(super) fn refuses(method: &Method) -> Option<&'static str> {
    let allow = "GET, HEAD, POST, DELETE";
    (!allow.split(", ").any(|allowed| allowed == method.as_str())).then_some(allow)
}

/// Does what an administrator asks for.
pub(super) async fn perform(
    switches: &Switches,
    serving: &Checked,
    by: String,
    method: &Method,
    query: Option<&str>,
    body: Incoming,
) -> Result<Answer, GatewayError> {
    match *method {
        Method::POST => {
            let body = read(body).await?;
            let asked = serde_json::from_slice(&body).map_err(|error| bad(error.to_string()))?;
            let switch = switch(asked, serving, by)?;
            let (scope, by) = (in_words(&switch.scope), switch.by.as_str());
            let reason = switch.reason.as_deref().unwrap_or_default();
            match switch.closed {
                Some(_) => tracing::warn!(scope, by, reason, "switched off for maintenance"),
                None => tracing::warn!(scope, by, reason, "kept open, whatever the manifest says"),
            }
            let shown = show(&switch);
            switches.set(switch);
            Ok(json_answer(StatusCode::OK, &shown))
        }
        Method::DELETE => {
            let lifted = switches.lift(asked_scope(query)?.as_ref());
            for switch in &lifted {
                let (scope, since) = (in_words(&switch.scope), timestamp(switch.since));
                tracing::warn!(
                    scope,
                    by,
                    since,
                    said_by = switch.by,
                    "the manifest's word on maintenance counts again"
                );
            }
            Ok(json_answer(StatusCode::OK, &json!({ "lifted": lifted.iter().map(show).collect::<Vec<_>>() })))
        }
        _ => {
            let closed = serving.routes().iter().filter(|route| route.maintenance.is_some());
            let answer = json!({
                "switches": switches.list().iter().map(show).collect::<Vec<_>>(),
                "manifest": closed.map(|route| route.label()).collect::<Vec<_>>(),
            });
            Ok(json_answer(StatusCode::OK, &answer))
        }
    }
}

fn bad(detail: impl Into<String>) -> GatewayError {
    GatewayError::new(Kind::BadRequest, detail.into())
}

fn switch(asked: SwitchRequest, serving: &Checked, by: String) -> Result<Switch, GatewayError> {
    let scope = scope(asked.route, asked.version, asked.all)?
        .ok_or_else(|| bad("say what: `route`, `version` or `all: true`"))?;
    match &scope {
        Scope::Route(name) => match serving.routes().iter().find(|route| route.label() == *name) {
            None => {
                let detail = "no route is called so; GET /admin/api/routes lists them: method, then path";
                return Err(GatewayError::new(Kind::NotFound, detail));
            }
            Some(route) if route.stays_up() => {
                return Err(bad("this route answers whatever is switched off"));
            }
            Some(_) => {}
        },
        Scope::Version(name)
            if !serving.routes().iter().any(|route| route.info.version.as_ref() == Some(name)) =>
        {
            return Err(GatewayError::new(Kind::NotFound, "no version with routes is called so"));
        }
        Scope::Version(_) | Scope::All => {}
    }
    let closed = match (asked.on, asked.respond) {
        (true, respond) => Some(Arc::new(Closed {
            reply: respond.map(reply).transpose()?,
            retry_after: asked.retry_after.map_or(RETRY, |after| after.0),
        })),
        (false, None) => None,
        (false, Some(_)) => return Err(bad("`respond` is for `on: true`")),
    };
    Ok(Switch { scope, closed, reason: asked.reason, by, since: SystemTime::now() })
}

fn scope(route: Option<String>, version: Option<String>, all: bool) -> Result<Option<Scope>, GatewayError> {
    Ok(match (route, version, all) {
        (Some(route), None, false) => Some(Scope::Route(route)),
        (None, Some(version), false) => Some(Scope::Version(version)),
        (None, None, true) => Some(Scope::All),
        (None, None, false) => None,
        _ => return Err(bad("say one of `route`, `version` and `all`")),
    })
}

/// What a query names; none for everything.
fn asked_scope(query: Option<&str>) -> Result<Option<Scope>, GatewayError> {
    let (mut route, mut version, mut all) = (None, None, false);
    for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        match &*name {
            "route" => route = Some(value.into_owned()),
            "version" => version = Some(value.into_owned()),
            "all" => all = value == "true",
            _ => return Err(bad("the query takes `route`, `version` or `all=true`")),
        }
    }
    scope(route, version, all)
}

fn reply(asked: ReplyRequest) -> Result<Reply, GatewayError> {
    let status = asked.status.unwrap_or(503);
    let status = StatusCode::from_u16(status)
        .ok()
        .filter(|_| (200..600).contains(&status))
        .ok_or_else(|| bad("`status` is from 200 to 599"))?;
    let (kind, body) = match (asked.json, asked.text) {
        (Some(_), Some(_)) => return Err(bad("an answer has one body: `json` or `text`")),
        (Some(json), None) => (Some("application/json"), Bytes::from(json.to_string())),
        (None, Some(text)) => (Some("text/plain; charset=utf-8"), Bytes::from(text)),
        (None, None) => (None, Bytes::new()),
    };
    let mut headers = HeaderMap::new();
    headers.extend(kind.map(|kind| (CONTENT_TYPE, HeaderValue::from_static(kind))));
    for (name, value) in asked.headers {
        let ours = ["connection", "content-length", "transfer-encoding", "upgrade"];
        let header = HeaderName::try_from(name.as_str()).ok().zip(HeaderValue::try_from(value).ok());
        let (name, value) = header
            .filter(|(name, _)| !ours.contains(&name.as_str()))
            .ok_or_else(|| bad(format!("`{name}` is not a header that can be set, or its value is none")))?;
        headers.insert(name, value);
    }
    Ok(Reply { status, headers, body })
}

fn in_words(scope: &Scope) -> String {
    match scope {
        Scope::Route(name) => format!("route {name}"),
        Scope::Version(name) => format!("version {name}"),
        Scope::All => "all".to_owned(),
    }
}

fn show(switch: &Switch) -> Value {
    let (route, version) = match &switch.scope {
        Scope::Route(name) => (Some(name), None),
        Scope::Version(name) => (None, Some(name)),
        Scope::All => (None, None),
    };
    json!({
        "route": route,
        "version": version,
        "all": switch.scope == Scope::All,
        "on": switch.closed.is_some(),
        "status": switch.closed.as_ref().map(|closed| closed.reply.as_ref().map_or(503, |reply| reply.status.as_u16())),
        "reason": switch.reason,
        "by": switch.by,
        "since": timestamp(switch.since),
    })
}
