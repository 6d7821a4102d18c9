//! A gateway for a test, the services behind it, and a client that sees bytes as they come.

pub mod client;
pub mod gateway;
pub mod kept;
pub mod load;
pub mod postgres;
pub mod process;
#[path = "../../../src/shared/testing.rs"]
mod redis;
pub mod scripted;
pub mod wire;

pub use client::{Answer, Client};
pub use gateway::Gateway;
pub use kept::Kept;
pub use load::Load;
pub use postgres::Database;
pub use process::Process;
pub(crate) use redis::RedisServer;
pub use scripted::Scripted;
pub use wire::{Sockets, Wire};

use std::time::{Duration, Instant};

/// Waits until `condition` holds; fails with `what` after `within`.
pub async fn eventually<F, Fut>(what: &str, within: Duration, mut condition: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let deadline = Instant::now() + within;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
