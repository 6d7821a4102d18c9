//! `gateway.*`: the gateway's own health and metrics.

use crate::state::{CheckState, Shared};
use poem_openapi::payload::{Json, PlainText};
use poem_openapi::{ApiResponse, Object, OpenApi};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The group.
pub struct GatewayApi {
    shared: Arc<Shared>,
}

impl GatewayApi {
    /// For a process.
    pub fn new(shared: Arc<Shared>) -> Self {
        GatewayApi { shared }
    }
}

/// How the gateway and what it needs are doing (the seed's form).
#[derive(Debug, Object)]
pub struct Health {
    /// `healthy`, `degraded` (something behind it does not answer), or `unhealthy`.
    status: String,
    /// Version of the API.
    version: String,
    /// State of each thing behind the gateway: `healthy`, `degraded`, `unhealthy`, or `unknown` until first asked.
    checks: BTreeMap<String, String>,
    /// When this was written, RFC 3339 in UTC.
    timestamp: String,
}

/// Answers of `gateway.health`.
#[derive(ApiResponse)]
pub enum HealthResponse {
    /// It works; `degraded` if something behind it does not.
    #[oai(status = 200)]
    Works(Json<Health>),
    /// Nothing can be served.
    #[oai(status = 503)]
    Down(Json<Health>),
}

/// Whether something is so.
#[derive(Debug, Object)]
pub struct Live {
    /// `live`, `ready` or `not_ready`.
    status: String,
}

/// Answers of `gateway.ready`.
#[derive(ApiResponse)]
pub enum ReadyResponse {
    /// Traffic may come.
    #[oai(status = 200)]
    Ready(Json<Live>),
    /// It should go elsewhere.
    #[oai(status = 503)]
    NotReady(Json<Live>),
}

#[OpenApi]
impl GatewayApi {
    /// Health of the gateway and of what is behind it
    #[oai(path = "/gateway/health", method = "get", operation_id = "gateway.health")]
    async fn health(&self) -> HealthResponse {
        let checks = self.shared.health.checks();
        let works = self.shared.readiness.is_ready();
        let status = match checks.values().any(|state| *state > CheckState::Unknown) {
            _ if !works => CheckState::Unhealthy,
            true => CheckState::Degraded,
            false => CheckState::Healthy,
        };
        let version = self.shared.readiness.revision().map(|revision| revision.api_version.clone());
        let health = Json(Health {
            status: status.word().to_owned(),
            version: version.unwrap_or_default(),
            checks: checks.into_iter().map(|(name, state)| (name, state.word().to_owned())).collect(),
            timestamp: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        });
        if works { HealthResponse::Works(health) } else { HealthResponse::Down(health) }
    }

    /// Whether the process runs
    #[oai(path = "/gateway/live", method = "get", operation_id = "gateway.live")]
    async fn live(&self) -> Json<Live> {
        Json(Live { status: "live".to_owned() })
    }

    /// Whether traffic should come here
    #[oai(path = "/gateway/ready", method = "get", operation_id = "gateway.ready")]
    async fn ready(&self) -> ReadyResponse {
        match self.shared.readiness.is_ready() {
            true => ReadyResponse::Ready(Json(Live { status: "ready".to_owned() })),
            false => ReadyResponse::NotReady(Json(Live { status: "not_ready".to_owned() })),
        }
    }

    /// Metrics in Prometheus' text format
    #[oai(path = "/gateway/metrics", method = "get", operation_id = "gateway.metrics")]
    async fn metrics(&self) -> PlainText<String> {
        PlainText(self.shared.telemetry.render())
    }
}
