//! A gateway for a test, the services behind it, and a client that sees bytes as they come.

pub mod browser;
pub mod client;
pub mod fault;
pub mod gateway;
pub mod kept;
pub mod load;
pub mod model;
pub mod node;
pub mod postgres;
pub mod process;
#[path = "../../../src/shared/testing.rs"]
mod redis;
pub mod scripted;
pub mod wire;

pub use browser::Browser;
pub use client::{Answer, Client};
pub use fault::{Fault, Faulty};
pub use gateway::Gateway;
pub use kept::Kept;
pub use load::Load;
pub use model::Model;
pub use postgres::Database;
pub use process::Process;
pub(crate) use redis::RedisServer;
pub use scripted::Scripted;
pub use wire::{Sockets, Wire};

use std::time::{Duration, Instant};

/// Waits until `condition` holds; fails with `what` after `within`.
pub async fn eventually(what: &str, within: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Makes each flow, an `async fn(Bed)`, a test on SQLite and one on PostgreSQL; the module has a `Bed` with both names.
macro_rules! on_both {
    ($($flow:ident),+ $(,)?) => {
        $crate::harness::on_both!(@ sqlite $($flow)+);
        $crate::harness::on_both!(@ postgres $($flow)+);
    };
    (@ $database:ident $($flow:ident)+) => {
        mod $database {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $flow() {
                    super::$flow(super::Bed::$database().await).await;
                }
            )+
        }
    };
}
pub(crate) use on_both;
