//! Connections a user: `per_user`, and `takeover`, here and over two replicas.

use super::bed::*;
use super::manifest;
use crate::harness::gateway::Builder;
use crate::harness::{Database, Gateway, RedisServer, eventually};
use std::time::{Duration, Instant};

const AT_ONCE: Duration = Duration::from_secs(2);

/// For callers with a key.
fn of_users(url: &str, limits: &str) -> Builder {
    let manifest = manifest(url, limits)
        .replace("chain: all, public: true, upstream", "chain: own, upstream")
        .replace("chains: { ", "chains: { own: [{ chain: all }, api_key], ");
    Gateway::with(&manifest)
}

/// A key of somebody's.
async fn key(gateway: &Gateway, name: &str) -> String {
    let headers = [("content-type", "application/json"), ("authorization", "Bearer admin-secret")];
    let body = format!(r#"{{"name": "{name}", "permissions": ["*"]}}"#);
    let answer = gateway.admin.send("POST", "/admin/api/keys", &headers, &body).await;
    assert!(answer.status.is_success(), "{}", answer.text());
    answer.json()["secret"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_user_has_so_many_sockets_and_no_more() {
    let echo = Echo::start().await;
    let gateway = of_users(&echo.url(), "per_user: 2").start().await;
    let address = gateway.client.address();
    let (ada, bob) = (key(&gateway, "ada").await, key(&gateway, "bob").await);
    let ada = [("X-API-Key", &*ada)];
    let mut first = open_with(address, "/ws", &ada).await;
    let second = open_with(address, "/ws", &ada).await;
    let dialled = echo.connections();
    assert_eq!(refused(address, "/ws", &ada).await, (429, "too_many_concurrent".to_owned()));
    assert_eq!(echo.connections(), dialled, "nothing was dialled");
    echoes(&mut open_with(address, "/ws", &[("X-API-Key", &bob)]).await, "another user").await;
    drop(second);
    eventually("the seat is free", AT_ONCE, async || {
        ask(address, "/ws", &ada).await.1.starts_with("HTTP/1.1 101 ")
    })
    .await;
    echoes(&mut first, "still here").await;
}

#[tokio::test]
async fn the_newest_takes_the_place_of_the_old_one() {
    let echo = Echo::start().await;
    let gateway = of_users(&echo.url(), "per_user: 1, takeover: true").start().await;
    let address = gateway.client.address();
    let (ada, bob) = (key(&gateway, "ada").await, key(&gateway, "bob").await);
    let ada = [("X-API-Key", &*ada)];
    let mut other = open_with(address, "/ws", &[("X-API-Key", &bob)]).await;
    let mut old = open_with(address, "/ws", &ada).await;
    for _ in 0..5 {
        // The old one is not waited for: it may never answer.
        let begun = Instant::now();
        let mut new = open_with(address, "/ws", &ada).await;
        assert_eq!(next(&mut old).await, Came::Close(Some(4409), "replaced".to_owned()));
        echoes(&mut new, "mine").await;
        assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
        old = new;
    }
    echoes(&mut other, "another user's").await;
    let replaced = "voicegate_websockets_ended_total{end=\"replaced\",path=\"/ws\"}";
    eventually("all are counted", AT_ONCE, async || gateway.metric(replaced).await == 5.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_two_replicas_a_user_has_one_socket_the_newest() {
    let echo = Echo::start().await;
    let (database, redis) = (Database::fresh().await, RedisServer::start());
    let replica = async || {
        let gateway = of_users(&echo.url(), "per_user: 1, takeover: true")
            .flag("--database-url", database.url())
            .flag("--redis-url", &redis.url())
            .flag("--jwt-secret", "0123456789abcdef0123456789abcdef-shared")
            .start()
            .await;
        let shared = gateway.live().shared().shared.clone();
        eventually("Redis is there", Duration::from_secs(20), async || shared.ping().await.is_ok()).await;
        gateway
    };
    let replicas = [replica().await, replica().await];
    let ada = key(&replicas[0], "ada").await;
    let ada = [("X-API-Key", &*ada)];
    let mut old = open_with(replicas[0].client.address(), "/ws", &ada).await;
    for turn in 1..5 {
        let begun = Instant::now();
        let mut new = open_with(replicas[turn % 2].client.address(), "/ws", &ada).await;
        assert_eq!(next(&mut old).await, Came::Close(Some(4409), "replaced".to_owned()));
        assert!(begun.elapsed() < AT_ONCE + AT_ONCE, "{:?}", begun.elapsed());
        old.send(close(4409, "")).await;
        assert_eq!(next(&mut old).await, Came::End);
        echoes(&mut new, "mine").await;
        old = new;
    }
    // Both at once: one of them is left, and it works.
    let (mut one, mut other) = tokio::join!(
        open_with(replicas[0].client.address(), "/ws", &ada),
        open_with(replicas[1].client.address(), "/ws", &ada),
    );
    assert_eq!(next(&mut old).await, Came::Close(Some(4409), "replaced".to_owned()));
    let alive = async |wire: &mut crate::harness::Wire| {
        wire.send(frame(TEXT, "?")).await;
        next(wire).await == Came::Text("?".to_owned())
    };
    assert!(alive(&mut one).await ^ alive(&mut other).await, "exactly one is left");
}
