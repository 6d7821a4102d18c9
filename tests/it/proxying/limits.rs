//! Sizes and deadlines of what passes: 413, 408, 504, in the common form.

use super::{passing, through};
use crate::harness::scripted::body;
use crate::harness::{Gateway, Scripted, Sockets, Wire};
use http::Response;
use std::time::{Duration, Instant};

/// What a deadline of half a second may take on a busy machine.
const SOON: Duration = Duration::from_secs(3);

async fn echo() -> Scripted {
    Scripted::start(|_, received| Response::new(body(received))).await
}

/// Sends a chunked body of these sizes; the answer may come before its end.
async fn upload(gateway: &Gateway, sizes: &[usize]) -> crate::harness::Answer {
    let mut caller = Wire::connect(gateway.client.address()).await;
    caller.send("POST /up HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
    for size in sizes {
        caller.send_chunk(&vec![b'x'; *size]).await;
    }
    caller.send("0\r\n\r\n").await;
    caller.answer().await
}

#[tokio::test]
async fn a_body_announced_as_too_large_is_a_413_and_never_passed_on() {
    let upstream = echo().await;
    let gateway = through("{ body_limit: 1KiB }", &upstream.url(), "").start().await;
    let answer = gateway.client.post("/up", &"x".repeat(1025)).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (413, "payload_too_large"));
    assert_eq!(upstream.heads().len(), 0);
    assert_eq!(
        gateway.client.post("/up", &"x".repeat(1024)).await.body.len(),
        1024,
        "the limit itself passes"
    );
}

#[tokio::test]
async fn the_413_comes_before_the_body_is_sent() {
    let upstream = echo().await;
    let gateway = through("{ body_limit: 1KiB }", &upstream.url(), "").start().await;
    let mut caller = Wire::connect(gateway.client.address()).await;
    caller.send("POST /up HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000000\r\n\r\n").await;
    assert_eq!(caller.answer().await.code(), "payload_too_large");
}

#[tokio::test]
async fn a_chunked_body_that_grows_too_large_is_a_413_too() {
    let upstream = echo().await;
    let gateway = through("{ body_limit: 1KiB }", &upstream.url(), "").start().await;
    let answer = upload(&gateway, &[600, 600]).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (413, "payload_too_large"));
    assert_eq!(upload(&gateway, &[600, 424]).await.body.len(), 1024, "the limit itself passes");
}

#[tokio::test]
async fn an_upstream_never_takes_a_cut_body_for_a_whole_one() {
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let upstream = Sockets::start(move |_, mut wire| {
        let tell = tell.clone();
        async move {
            wire.head().await;
            tell.send(wire.rest().await.0).await.unwrap();
        }
    })
    .await;
    let gateway = through("{ body_limit: 1KiB }", &upstream.url(), "").start().await;
    assert_eq!(upload(&gateway, &[600, 600]).await.status, 413);
    let arrived = told.recv().await.unwrap();
    assert!(!arrived.contains("0\r\n\r\n"), "{arrived:?}");
}

#[tokio::test]
async fn routes_without_a_limit_take_what_the_door_takes() {
    let upstream = echo().await;
    let gateway = through("", &upstream.url(), "").flag("--max-body-size", "2KiB").start().await;
    assert_eq!(gateway.client.post("/up", &"x".repeat(2048)).await.status, 200);
    assert_eq!(gateway.client.post("/up", &"x".repeat(2049)).await.code(), "payload_too_large");
    assert_eq!(upload(&gateway, &[2000, 49]).await.code(), "payload_too_large");
}

#[tokio::test]
async fn a_routes_own_limit_goes_beyond_the_doors() {
    let upstream = echo().await;
    let gateway =
        through("{ body_limit: 4KiB }", &upstream.url(), "").flag("--max-body-size", "1KiB").start().await;
    assert_eq!(gateway.client.post("/up", &"x".repeat(4096)).await.status, 200);
}

#[tokio::test]
async fn a_body_that_stops_coming_is_a_408_and_the_end_of_the_connection() {
    let upstream = echo().await;
    let gateway = through("", &upstream.url(), "").flag("--body-timeout", "500ms").start().await;
    let mut caller = Wire::connect(gateway.client.address()).await;
    let began = Instant::now();
    caller.send("POST /up HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf").await;
    let answer = caller.answer().await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (408, "request_timeout"));
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(began.elapsed() >= Duration::from_millis(500) && began.elapsed() < SOON, "{:?}", began.elapsed());
    let _ = caller.rest().await;
}

#[tokio::test]
async fn a_body_that_comes_slowly_but_steadily_is_taken() {
    let upstream = echo().await;
    let gateway = through("", &upstream.url(), "")
        .flag("--body-timeout", "800ms")
        .flag("--min-body-rate", "2B")
        .start()
        .await;
    let mut caller = Wire::connect(gateway.client.address()).await;
    caller.send("POST /up HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n").await;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(120)).await;
        caller.send("x").await;
    }
    assert_eq!(caller.answer().await.text(), "xxxxxxxxxx");
}

#[tokio::test]
async fn an_upstream_that_takes_longer_than_the_routes_timeout_is_a_504() {
    let upstream = Sockets::start(|_, mut wire| async move {
        wire.rest().await;
    })
    .await;
    let gateway = through("{ timeout: 500ms }", &upstream.url(), "").start().await;
    let began = Instant::now();
    let answer = gateway.client.get("/").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (504, "deadline_exceeded"));
    assert!(began.elapsed() >= Duration::from_millis(500) && began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[tokio::test]
async fn an_answer_that_outlasts_the_routes_timeout_is_aborted() {
    let upstream = Sockets::start(|_, mut wire| async move {
        wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        while wire.send_chunk(b"x").await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let gateway = through("{ timeout: 500ms }", &upstream.url(), "").start().await;
    let began = Instant::now();
    let (text, clean) = gateway.client.open("GET", "/", &[], "").await.rest().await;
    assert!(!clean && text.len() > 2, "{} pieces, clean: {clean}", text.len());
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[tokio::test]
async fn an_error_before_the_body_is_read_does_not_confuse_the_next_request() {
    // The upstream answers without reading: the rest of the body must not be taken for a request.
    let upstream = Sockets::start(|_, mut wire| async move {
        wire.head().await;
        wire.send("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno").await;
        wire.rest().await;
    })
    .await;
    let gateway = passing(&upstream.url()).await;
    let mut caller = Wire::connect(gateway.client.address()).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    caller
        .send(format!("POST /up HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", smuggled.len() + 1))
        .await;
    assert_eq!(caller.answer().await.status, 403);
    caller.send(smuggled).await;
    let rest = tokio::time::timeout(Duration::from_secs(1), caller.some_or_end()).await.unwrap_or_default();
    assert!(!rest.contains("HTTP/1.1"), "the body was answered as a request: {rest}");
}

/// Sends a head and 8 MiB whatever happens, and only then reads.
async fn headlong(gateway: &Gateway, head: &str, chunked: bool) -> crate::harness::Answer {
    let mut caller = Wire::connect(gateway.client.address()).await;
    caller.send(head).await;
    for _ in 0..128 {
        let piece = [b'x'; 64 << 10];
        let taken = if chunked { caller.send_chunk(&piece).await } else { caller.send(piece).await };
        if !taken {
            break;
        }
    }
    caller.answer().await
}

#[tokio::test]
async fn a_caller_that_sends_headlong_still_reads_the_413() {
    let upstream = echo().await;
    let gateway = through("{ body_limit: 1KiB }", &upstream.url(), "").start().await;
    let declared = "POST /up HTTP/1.1\r\nhost: a\r\ncontent-length: 8388608\r\n\r\n";
    let chunked = "POST /up HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    for (head, is_chunked) in [(declared, false), (chunked, true)] {
        let answer = headlong(&gateway, head, is_chunked).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (413, "payload_too_large"), "{head}");
        assert_eq!(answer.header("connection"), Some("close"), "{head}");
    }
}

#[tokio::test]
async fn a_caller_that_waits_for_continue_is_not_asked_for_what_is_too_large() {
    let upstream = echo().await;
    let gateway = through("{ body_limit: 1KiB }", &upstream.url(), "").start().await;
    let mut caller = Wire::connect(gateway.client.address()).await;
    caller.send("POST /up HTTP/1.1\r\nhost: a\r\ncontent-length: 5000\r\nexpect: 100-continue\r\n\r\n").await;
    assert_eq!(caller.answer().await.code(), "payload_too_large");
}

#[tokio::test]
async fn a_body_that_stops_coming_is_the_callers_fault_by_the_upstreams_deadline_too() {
    let upstream = echo().await;
    let gateway = through("", &upstream.url(), "timeouts: { idle: 400ms }").start().await;
    let mut caller = Wire::connect(gateway.client.address()).await;
    caller.send("POST /up HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf").await;
    let answer = caller.answer().await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (408, "request_timeout"));
    assert_eq!(answer.header("connection"), Some("close"));
}
