//! Bodies: streamed both ways, byte by byte, with their framing and their ends.

use super::passing;
use crate::harness::scripted::body;
use crate::harness::{Scripted, Sockets, Wire};
use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{mpsc, watch};

/// More in total than all buffers on the way.
const PIECES: usize = 60;
const PIECE: usize = 64 << 10;

#[tokio::test]
async fn an_upload_arrives_while_it_is_still_being_sent() {
    let (arrived, mut seen) = watch::channel(0usize);
    let arrived = Arc::new(arrived);
    let upstream = Sockets::start(move |_, mut wire| {
        let arrived = arrived.clone();
        async move {
            wire.head().await;
            let mut total = 0;
            while total < PIECES * PIECE {
                // Chunk sizes are the gateway's; count the payload by its letter.
                total += wire.some().await.iter().filter(|byte| **byte == b'x').count();
                arrived.send_replace(total);
            }
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let gateway = passing(&upstream.url()).await;
    let mut caller = Wire::connect(gateway.client.address()).await;
    caller.send("POST /up HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
    for sent in 1..=PIECES {
        caller.send_chunk(&[b'x'; PIECE]).await;
        let all = seen.wait_for(|total| *total == sent * PIECE);
        tokio::time::timeout(crate::harness::client::PATIENCE, all).await.expect("it is passed on").unwrap();
    }
    caller.send("0\r\n\r\n").await;
    assert_eq!(caller.answer().await.text(), "ok");
}

#[tokio::test]
async fn a_download_arrives_while_it_is_still_being_sent() {
    let (ask, asked) = mpsc::channel::<()>(1);
    let asked = Arc::new(tokio::sync::Mutex::new(asked));
    let upstream = Sockets::start(move |_, mut wire| {
        let asked = asked.clone();
        async move {
            wire.head().await;
            let length = PIECES * PIECE;
            wire.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n")).await;
            while asked.lock().await.recv().await.is_some() {
                wire.send([b'y'; PIECE]).await;
            }
        }
    })
    .await;
    let gateway = passing(&upstream.url()).await;
    let mut caller = Wire::connect(gateway.client.address()).await;
    caller.send("GET /down HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(caller.until("\r\n\r\n").await.contains(&format!("content-length: {}", PIECES * PIECE)));
    for _ in 0..PIECES {
        ask.send(()).await.unwrap();
        assert!(caller.bytes(PIECE).await.iter().all(|byte| *byte == b'y'));
    }
}

#[tokio::test]
async fn a_mebibyte_comes_back_byte_for_byte() {
    let upstream = Scripted::start(|_, received| Response::new(body(received))).await;
    let gateway = passing(&upstream.url()).await;
    let payload: Bytes =
        (0..1u32 << 20).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let request = gateway.client.request("POST", "/echo", &[], "").map(|_| Full::new(payload.clone()));
    let answer = gateway.client.try_send(request).await.unwrap();
    assert_eq!(answer.header("content-length"), Some("1048576"), "the length is known both ways");
    assert!(answer.body == payload, "bytes changed on the way");
    assert_eq!(upstream.heads()[0].headers["content-length"], "1048576");
}

#[tokio::test]
async fn a_chunked_upload_stays_one_of_unknown_length() {
    let upstream = Scripted::start(|_, received| Response::new(body(received))).await;
    let gateway = passing(&upstream.url()).await;
    let mut caller = Wire::connect(gateway.client.address()).await;
    caller.send("POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
    for piece in ["ab", "c", "def"] {
        caller.send_chunk(piece.as_bytes()).await;
    }
    caller.send("0\r\n\r\n").await;
    assert_eq!(caller.answer().await.text(), "abcdef");
    let head = &upstream.heads()[0];
    assert_eq!(head.headers["transfer-encoding"], "chunked");
    assert!(!head.headers.contains_key("content-length"));
}

#[tokio::test]
async fn head_is_answered_with_the_length_and_without_the_body() {
    let upstream = Sockets::saying("HTTP/1.1 200 OK\r\ncontent-length: 1234\r\netag: \"x\"\r\n\r\n").await;
    let gateway = passing(&upstream.url()).await;
    let mut caller = Wire::connect(gateway.client.address()).await;
    // A second answer right behind the first head: no byte of a body came between.
    for _ in 0..2 {
        caller.send("HEAD /file HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let head = caller.until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("content-length: 1234\r\n") && head.contains("etag: \"x\""), "{head}");
    }
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn statuses_without_a_body_pass_and_the_connection_lives_on() {
    for (status, length) in [("204 No Content", ""), ("304 Not Modified", "content-length: 77\r\n")] {
        let upstream = Sockets::saying(format!("HTTP/1.1 {status}\r\n{length}\r\n")).await;
        let gateway = passing(&upstream.url()).await;
        let mut caller = Wire::connect(gateway.client.address()).await;
        for _ in 0..2 {
            caller.send("GET /thing HTTP/1.1\r\nhost: a\r\n\r\n").await;
            let head = caller.until("\r\n\r\n").await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{head}");
            assert!(!head.contains("transfer-encoding"), "{head}");
        }
        assert_eq!(upstream.connections(), 1);
    }
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let upstream = Sockets::start(|_, mut wire| async move {
        let head = wire.head().await.unwrap();
        assert!(head.contains("trailer: x-sum\r\n"), "{head}");
        let sent = wire.until("0\r\n").await + &wire.until("\r\n\r\n").await;
        assert!(sent.contains("x-sum: up"), "{sent}");
        let answer = "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n\
                      2\r\nok\r\n0\r\nx-sum: down\r\n\r\n";
        wire.send(answer).await;
    })
    .await;
    let gateway = passing(&upstream.url()).await;
    let mut caller = Wire::connect(gateway.client.address()).await;
    let head = "POST /sum HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\ntrailer: x-sum\r\n\
                transfer-encoding: chunked\r\n\r\n";
    caller.send(head).await;
    caller.send("2\r\nhi\r\n0\r\nx-sum: up\r\n\r\n").await;
    let answer = caller.until("\r\n\r\n").await + &caller.until("\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("x-sum: down\r\n"), "{answer}");
}

#[tokio::test]
async fn a_caller_that_waits_for_continue_is_told_to() {
    let upstream = Scripted::start(|_, received| Response::new(body(received))).await;
    let gateway = passing(&upstream.url()).await;
    let mut caller = Wire::connect(gateway.client.address()).await;
    let head = "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n";
    caller.send(head).await;
    assert_eq!(caller.until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    caller.send("hello").await;
    assert_eq!(caller.answer().await.text(), "hello");
    assert!(!upstream.heads()[0].headers.contains_key("expect"), "it was answered here");
}

#[tokio::test]
async fn an_upload_that_breaks_off_does_not_reach_the_upstream_as_whole() {
    let (tell, mut told) = mpsc::channel(1);
    let upstream = Sockets::start(move |_, mut wire| {
        let tell = tell.clone();
        async move {
            wire.head().await;
            tell.send(wire.rest().await.0).await.unwrap();
        }
    })
    .await;
    let gateway = passing(&upstream.url()).await;
    let mut caller = Wire::connect(gateway.client.address()).await;
    caller.send("POST /up HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
    caller.send_chunk(b"half").await;
    drop(caller);
    let body = tokio::time::timeout(crate::harness::client::PATIENCE, told.recv()).await.unwrap().unwrap();
    assert!(!body.contains("0\r\n\r\n"), "the last chunk was made up: {body:?}");
}

#[tokio::test]
async fn requests_in_a_row_share_one_upstream_connection() {
    let answered = Arc::new(AtomicUsize::new(0));
    let count = answered.clone();
    let upstream = Scripted::start(move |_, _| {
        count.fetch_add(1, Ordering::SeqCst);
        Response::new(body("ok"))
    })
    .await;
    let gateway = passing(&upstream.url()).await;
    for _ in 0..25 {
        // The caller's connections are new each time; only the gateway keeps one.
        assert_eq!(gateway.client.get("/").await.text(), "ok");
    }
    assert_eq!(answered.load(Ordering::SeqCst), 25);
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn what_an_upstream_says_on_the_way_does_not_stand_for_its_answer() {
    let early = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n";
    let upstream = Sockets::saying(format!("{early}HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")).await;
    let gateway = passing(&upstream.url()).await;
    let answer = gateway.client.get("/").await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "ok"));
}
