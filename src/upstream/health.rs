//! Asks servers how they are, and closes connections that rested too long.
//!
//! A server counts as well until `unhealthy_after` checks in a row failed, so a gateway that starts while a server
//! restarts does not hold that against it. Each change is logged once. Checks use connections of their own: a busy
//! pool says nothing about health.

use super::Upstream;
use super::body::{Causes, RequestBody};
use super::client::{Purpose, connect};
use super::meter::Figures;
use super::pool::{REST, Server};
use super::spec::{HealthSpec, UpstreamSpec};
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::{HeaderValue, Request, Uri};
use serde::Serialize;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

/// What is known of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Condition {
    /// Not asked yet, or never asked.
    Unknown = 0,
    /// It answered well.
    Up = 1,
    /// It failed its checks and is passed over.
    Down = 2,
}

/// A server's health.
#[derive(Debug, Default)]
pub(super) struct Health {
    condition: AtomicU8,
    /// Results in a row that speak against the condition.
    streak: AtomicU32,
    /// What the last failed check said; gone with a good one.
    trouble: Mutex<Option<String>>,
}

/// An upstream at one moment, for `/health` and the admin API.
#[derive(Debug, Clone, Serialize)]
pub struct UpstreamStatus {
    /// Its name.
    pub name: String,
    /// Whether it has a server that is not down.
    pub available: bool,
    /// Its servers.
    pub servers: Vec<ServerStatus>,
    /// Its counters.
    pub figures: Figures,
}

/// A server at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct ServerStatus {
    /// `host:port`.
    pub address: String,
    /// Its share beside the others.
    pub weight: u32,
    /// What is known of it.
    pub condition: Condition,
    /// What the last check said, if it failed.
    pub trouble: Option<String>,
    /// Requests it has.
    pub in_flight: usize,
    /// Connections at rest.
    pub at_rest: usize,
}

impl Health {
    pub(super) fn is_up(&self) -> bool {
        self.condition.load(Ordering::Relaxed) != Condition::Down as u8
    }

    fn condition(&self) -> Condition {
        match self.condition.load(Ordering::Relaxed) {
            0 => Condition::Unknown,
            1 => Condition::Up,
            _ => Condition::Down,
        }
    }

    /// Takes a check's result; the new condition if it changed. Called by one task only.
    fn learn(&self, spec: &HealthSpec, result: Result<(), String>) -> Option<Condition> {
        let (good, trouble) = (result.is_ok(), result.err());
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
        let (next, needed) = match (self.condition(), good) {
            (Condition::Up, true) | (Condition::Down, false) => {
                self.streak.store(0, Ordering::Relaxed);
                return None;
            }
            (Condition::Unknown, true) => (Condition::Up, 1),
            (Condition::Down, true) => (Condition::Up, spec.healthy_after),
            (Condition::Unknown | Condition::Up, false) => (Condition::Down, spec.unhealthy_after),
        };
        if self.streak.fetch_add(1, Ordering::Relaxed) + 1 < needed {
            return None;
        }
        self.streak.store(0, Ordering::Relaxed);
        self.condition.store(next as u8, Ordering::Relaxed);
        Some(next)
    }
}

impl Upstream {
    /// Starts its upkeep: health checks where the manifest asks for them (the first at once), and the closing of
    /// connections that rested too long. Ends with the upstream, or when the gateway goes down. Must be called within
    /// a Tokio runtime; a second call does nothing.
    pub fn spawn_health(&self) {
        self.keeper.get_or_init(|| {
            let (spec, servers) = (self.spec.clone(), self.servers.to_vec());
            let mut closing = self.shared.closing.clone();
            let upkeep = async move {
                tokio::select! {
                    // Without a sender nobody will ever say so.
                    Ok(_) = closing.wait_for(|closing| *closing) => {}
                    () = check(&spec, &servers) => {}
                    () = sweep(&servers) => {}
                }
            };
            tokio::spawn(upkeep).abort_handle()
        });
    }

    /// How it is.
    pub fn status(&self) -> UpstreamStatus {
        let servers: Vec<ServerStatus> = self.servers.iter().map(|server| status(server)).collect();
        UpstreamStatus {
            name: self.spec.name().to_string(),
            available: servers.iter().any(|s| s.weight > 0 && s.condition != Condition::Down),
            servers,
            figures: self.meter.snapshot(),
        }
    }
}

fn status(server: &Server) -> ServerStatus {
    ServerStatus {
        address: server.spec.address.to_string(),
        weight: server.spec.weight,
        condition: server.health.condition(),
        trouble: server.health.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        in_flight: server.in_flight(),
        at_rest: server.at_rest(),
    }
}

async fn sweep(servers: &[Arc<Server>]) {
    let mut ticks = interval(REST / 4);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        servers.iter().for_each(|server| server.sweep());
    }
}

async fn check(spec: &UpstreamSpec, servers: &[Arc<Server>]) {
    let Some(health) = spec.health() else { return std::future::pending().await };
    loop {
        let begun = Instant::now();
        let checks = servers.iter().map(|server| async move {
            let result = ask(spec, server, health).await;
            let why = result.as_ref().err().cloned().unwrap_or_default();
            let name = &**spec.name();
            let changed = server.health.learn(health, result);
            if let Some(condition) = changed {
                server.metrics.set_healthy(condition != Condition::Down);
            }
            match changed {
                Some(Condition::Down) => {
                    tracing::warn!(
                        upstream = name,
                        target = &*server.spec.address,
                        error = why,
                        "a server is down"
                    );
                }
                Some(_) => tracing::info!(upstream = name, target = &*server.spec.address, "a server is up"),
                None => {}
            }
        });
        futures_util::future::join_all(checks).await;
        // Replicas must not ask all at once.
        sleep_until(begun + health.interval.mul_f64(rand::random_range(0.9..1.1))).await;
    }
}

async fn ask(spec: &UpstreamSpec, server: &Server, health: &HealthSpec) -> Result<(), String> {
    let all = async {
        let patience = spec.connect_timeout().min(health.timeout);
        let conn = connect(&server.spec, spec.tls(), patience, Purpose::Requests).await;
        let mut conn = conn.map_err(|error| Causes(&error).to_string())?;
        let mut request = Request::new(RequestBody::empty());
        *request.uri_mut() = Uri::from(health.path.clone());
        let headers = request.headers_mut();
        headers.insert(HOST, server.spec.authority.clone());
        headers.insert(USER_AGENT, HeaderValue::from_static("voicegate-health"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        let answer = conn.sender.send_request(request).await.map_err(|error| Causes(&error).to_string())?;
        match answer.status().is_success() {
            true => Ok(()),
            false => Err(format!("status {}", answer.status().as_u16())),
        }
    };
    timeout(health.timeout, all).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
}
