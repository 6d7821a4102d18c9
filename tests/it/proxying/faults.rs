//! Upstreams whose connections end, stall or run out. What comes of each fault is in `crate::faults`.

use super::{passing, through};
use crate::harness::client::PATIENCE;
use crate::harness::{Gateway, Sockets, eventually};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Deadlines that tests can wait for.
const QUICK: &str = "connect_timeout: 500ms, timeouts: { first_byte: 400ms, idle: 400ms, total: 3s }";
/// What a deadline of [`QUICK`] may take on a busy machine.
const SOON: Duration = Duration::from_secs(3);

#[tokio::test]
async fn a_body_that_stalls_aborts_the_answer_at_the_deadline() {
    let upstream = Sockets::start(|_, mut wire| async move {
        wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nstall").await;
        wire.rest().await;
    })
    .await;
    let gateway = through("", &upstream.url(), QUICK).start().await;
    let began = Instant::now();
    let (text, clean) = gateway.client.open("GET", "/", &[], "").await.rest().await;
    assert_eq!((text.as_str(), clean), ("stall", false));
    assert!(began.elapsed() < SOON);
}

/// An upstream that answers the first request of each connection, and does this to the second.
async fn once_a_connection(heads: Arc<Mutex<Vec<String>>>) -> Sockets {
    Sockets::start(move |_, mut wire| {
        let heads = heads.clone();
        async move {
            let Some(head) = wire.head().await else { return };
            heads.lock().unwrap().push(head);
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            let Some(head) = wire.head().await else { return };
            // Taken, then gone without a word.
            heads.lock().unwrap().push(head);
            wire.reset();
        }
    })
    .await
}

/// Leaves a used connection in the pool.
async fn warmed(gateway: &Gateway) {
    assert_eq!(gateway.client.get("/warm").await.text(), "ok");
}

#[tokio::test]
async fn a_get_on_a_connection_that_died_is_sent_again() {
    let heads = Arc::default();
    let upstream = once_a_connection(Arc::clone(&heads)).await;
    let gateway = passing(&upstream.url()).await;
    warmed(&gateway).await;
    assert_eq!(gateway.client.get("/again").await.text(), "ok");
    let paths: Vec<_> =
        heads.lock().unwrap().iter().map(|head| head.split(' ').nth(1).unwrap().to_owned()).collect();
    assert_eq!(paths, ["/warm", "/again", "/again"]);
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn a_connection_that_the_upstream_closes_is_not_used_again() {
    let upstream = Sockets::start(|_, mut wire| async move {
        wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok").await;
        // Open for a while, as some servers leave it: the word counts, not the end.
        wire.rest().await;
    })
    .await;
    let gateway = passing(&upstream.url()).await;
    warmed(&gateway).await;
    assert_eq!(gateway.client.post("/pay", "{}").await.text(), "ok");
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn an_upstream_whose_connections_are_all_in_use_is_a_503_with_retry_after() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let upstream = Sockets::start(move |_, mut wire| {
        let gate = opened.clone();
        async move {
            while wire.head().await.is_some() {
                let _pass = gate.acquire().await;
                wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    let gateway = through("", &upstream.url(), "connect_timeout: 300ms, max_connections: 2").start().await;
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let client = gateway.client.clone();
            tokio::spawn(async move { client.get("/slow").await })
        })
        .collect();
    eventually("both connections are taken", PATIENCE, async || upstream.connections() == 2).await;
    let answer = gateway.client.get("/third").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "upstream_saturated"));
    assert_eq!(answer.header("retry-after"), Some("1"));
    gate.add_permits(10);
    for answer in waiting {
        assert_eq!(answer.await.unwrap().text(), "ok");
    }
    assert_eq!(gateway.client.get("/fourth").await.text(), "ok", "there is room again");
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn a_caller_that_leaves_before_the_answer_frees_the_upstream() {
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let reached = Arc::new(AtomicUsize::new(0));
    let count = reached.clone();
    let upstream = Sockets::start(move |_, mut wire| {
        let (tell, count) = (tell.clone(), count.clone());
        async move {
            wire.head().await;
            count.fetch_add(1, Ordering::SeqCst);
            wire.rest().await;
            tell.send(Instant::now()).await.unwrap();
        }
    })
    .await;
    let gateway = passing(&upstream.url()).await;
    let client = gateway.client.clone();
    let caller = tokio::spawn(async move { client.get("/").await });
    eventually("it is asked", PATIENCE, async || reached.load(Ordering::SeqCst) == 1).await;
    let left = Instant::now();
    caller.abort();
    let freed = tokio::time::timeout(PATIENCE, told.recv()).await.unwrap().unwrap();
    assert!(freed - left < Duration::from_millis(1500), "{:?}", freed - left);
}
