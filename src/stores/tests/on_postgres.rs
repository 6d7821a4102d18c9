//! What only a server can promise, and break.

use super::super::testing::PASSWORD;
use super::*;
use sqlx::migrate::Migrate;
use std::time::Instant;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_reaches_another_replica_at_once() {
    let bed = Bed::postgres().await;
    let other = bed.another().await.unwrap();
    // Its listener rings when it begins to hear.
    other.revocations_changed(secs(30)).await;
    for number in 0..3 {
        let start = Instant::now();
        let waiting = {
            let other = Arc::clone(&other);
            tokio::spawn(async move {
                let mut last = Vec::new();
                while last.len() <= number {
                    other.revocations_changed(secs(30)).await;
                    last = other.revocations_since(0, at(0)).await.unwrap();
                }
            })
        };
        bed.store.revoke("user:x", at(0), at(9)).await.unwrap();
        waiting.await.unwrap();
        assert!(start.elapsed() < secs(1), "{:?}", start.elapsed());
    }
}

/// SECURITY rule 17: recovery needs no restart of ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_goes_away_and_comes_back_needs_no_restart() {
    let server = tokio::task::spawn_blocking(Server::start).await.unwrap();
    let bed = Bed::on(fresh_database(&server).await, None).await;
    let other = bed.another().await.unwrap();
    let user = bed.user("a").await;
    other.revocations_changed(secs(30)).await;

    server.stop();
    let start = Instant::now();
    for gone in [
        bed.store.user(&user.id).await.err(),
        bed.store.set_role(&user.id, "admin", at(1)).await.err(),
        bed.store.ping().await.err(),
    ] {
        let Some(StoreError::Unavailable(why)) = gone else { panic!("{gone:?}") };
        assert!(!why.contains(PASSWORD), "{why}");
    }
    assert!(start.elapsed() < secs(8), "acquiring gives up after two seconds: {:?}", start.elapsed());
    let Err(StoreError::Unavailable(why)) = bed.store.migrate().await else { panic!("migrated on nothing") };
    assert!(why.contains("127.0.0.1") && !why.contains(PASSWORD), "names the server: {why}");

    assert!(server.resume());
    assert_eq!(bed.store.user(&user.id).await.unwrap(), user);
    // What was revoked while the listener was away is heard of when it is back.
    bed.store.revoke("x", at(0), at(9)).await.unwrap();
    let start = Instant::now();
    while other.revocations_since(0, at(0)).await.unwrap().is_empty() {
        other.revocations_changed(secs(30)).await;
    }
    other.revocations_changed(secs(30)).await;
    let waiting = tokio::spawn(async move { other.revocations_changed(secs(30)).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    bed.store.revoke("y", at(0), at(9)).await.unwrap();
    waiting.await.unwrap();
    assert!(start.elapsed() < secs(15), "the listener is back: {:?}", start.elapsed());
}

#[tokio::test]
async fn a_wrong_password_is_said_without_saying_it() {
    let url = fresh_database(shared_server()).await.replace(PASSWORD, "hunter2");
    let store = open(&url, &limits()).await.unwrap();
    let error = store.migrate().await.unwrap_err().to_string();
    assert!(error.contains("password authentication failed"), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
    let error = store.ping().await.unwrap_err().to_string();
    assert!(!error.contains("hunter2"), "{error}");
}

#[tokio::test]
async fn a_migration_waits_for_another_replica_longer_than_a_statement_may_take() {
    let url = fresh_database(shared_server()).await;
    let short = StoreLimits { statement_timeout: Duration::from_millis(100), ..limits() };
    let store = open(&url, &short).await.unwrap();
    let mut other = PgConnection::connect(&url).await.unwrap();
    other.lock().await.unwrap();
    let mut migrating = tokio::spawn(async move { store.migrate().await });
    let early = tokio::time::timeout(Duration::from_millis(500), &mut migrating).await;
    assert!(early.is_err(), "did not wait for the lock: {early:?}");
    other.unlock().await.unwrap();
    assert_eq!(migrating.await.unwrap().unwrap(), MIGRATIONS);
}

#[tokio::test]
async fn a_statement_that_waits_too_long_is_ended() {
    let bed = Bed::postgres().await;
    let user = bed.user("a").await;
    let short = StoreLimits { statement_timeout: Duration::from_millis(200), ..limits() };
    let store = open(&bed.url, &short).await.unwrap();
    let mut other = PgConnection::connect(&bed.url).await.unwrap();
    let mut held = other.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM users FOR UPDATE").execute(&mut *held).await.unwrap();
    let start = Instant::now();
    let refused = store.set_role(&user.id, "admin", at(1)).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert!(start.elapsed() < secs(3), "{:?}", start.elapsed());
    held.rollback().await.unwrap();
    store.set_role(&user.id, "admin", at(1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_calls_than_connections_queue_and_do_not_fail() {
    let url = fresh_database(shared_server()).await;
    let small = StoreLimits { max_connections: 3, ..limits() };
    let store = open(&url, &small).await.unwrap();
    store.migrate().await.unwrap();
    let calls = (0..60).map(|number| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.create_user(someone(&format!("u{number}")), at(0)).await })
    });
    for call in futures_util::future::join_all(calls).await {
        call.unwrap().unwrap();
    }
    let (busy, idle) = store.connections();
    assert!(busy + idle <= 3, "{busy} busy, {idle} idle");
}
