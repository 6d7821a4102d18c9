//! What health checks say of servers.
//!
//! A server counts as well until `unhealthy_after` checks in a row failed, so a gateway that starts while a server
//! restarts does not hold that against it. Each change is logged once.

mod grpc;
mod probe;

use super::cluster::Cluster;
use super::spec::HealthSpec;
use super::standing::DOWN;
use serde::Serialize;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use tokio::time::{Instant, sleep_until};

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

impl Health {
    pub(super) fn condition(&self) -> Condition {
        match self.condition.load(Ordering::Relaxed) {
            0 => Condition::Unknown,
            1 => Condition::Up,
            _ => Condition::Down,
        }
    }

    /// What the last check said, if it failed.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
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

/// Asks every server how it is, again and again, where the manifest says so.
pub(super) async fn check(cluster: &Cluster) {
    let Some(health) = cluster.spec.health() else { return std::future::pending().await };
    loop {
        let begun = Instant::now();
        let servers = cluster.view().servers.to_vec();
        let checks = servers.iter().map(|server| async move {
            let result = probe::ask(&cluster.spec, &server.spec, health).await;
            let why = result.as_ref().err().cloned().unwrap_or_default();
            let before = server.health.condition();
            let Some(condition) = server.health.learn(health, result) else { return };
            server.standing.set(DOWN, condition == Condition::Down);
            if before == Condition::Down && !cluster.spec.slow_start().is_zero() {
                server.standing.warm(cluster.now());
            }
            cluster.publish();
            let (name, target) = (&**cluster.spec.name(), server.place());
            match condition {
                Condition::Down => {
                    tracing::warn!(upstream = name, target, error = why, "a server is down");
                }
                _ => tracing::info!(upstream = name, target, "a server is up"),
            }
        });
        futures_util::future::join_all(checks).await;
        // Replicas must not ask all at once.
        sleep_until(begun + health.interval.mul_f64(rand::random_range(0.9..1.1))).await;
    }
}
