//! One question to one server. Checks use connections of their own: a busy pool says nothing about health.

use super::grpc;
use crate::upstream::body::{Causes, RequestBody};
use crate::upstream::client::{Purpose, connect, dial};
use crate::upstream::spec::{HealthSpec, Probe, ServerSpec, UpstreamSpec};
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Uri};
use std::future::poll_fn;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Who asks.
pub(super) const ASKER: HeaderValue = HeaderValue::from_static("voicegate-health");

/// Asks a server how it is; an error says what is wrong with it, for people.
pub(super) async fn ask(spec: &UpstreamSpec, server: &ServerSpec, health: &HealthSpec) -> Result<(), String> {
    let patience = spec.connect_timeout().min(health.timeout);
    let all = async {
        match &health.probe {
            Probe::Http(path) => get(spec, server, path, patience).await,
            Probe::Grpc(service) => grpc::ask(spec, server, service, patience).await,
            Probe::Tcp => timeout(patience, dial(server, Instant::now() + patience))
                .await
                .map_err(|_| "no connection in time".to_owned())?
                .map(drop)
                .map_err(|error| Causes(&error).to_string()),
        }
    };
    timeout(health.timeout, all).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
}

async fn get(
    spec: &UpstreamSpec,
    server: &ServerSpec,
    path: &PathAndQuery,
    patience: Duration,
) -> Result<(), String> {
    let conn = connect(server, spec.tls(), patience, Purpose::Requests).await;
    let mut conn = conn.map_err(|error| Causes(&error).to_string())?;
    let mut request = Request::new(RequestBody::empty());
    *request.uri_mut() = Uri::from(path.clone());
    let headers = request.headers_mut();
    headers.insert(HOST, server.authority.clone());
    headers.insert(USER_AGENT, ASKER);
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    conn.start(request);
    let answer = poll_fn(|cx| conn.poll_head(cx)).await.map_err(|failed| Causes(&failed.why).to_string())?;
    match answer.status().is_success() {
        true => Ok(()),
        false => Err(format!("status {}", answer.status().as_u16())),
    }
}
