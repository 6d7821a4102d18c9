//! `bridge: websocket`: event streams for callers who speak WebSocket only.

use super::bed::*;
use crate::harness::scripted::body;
use crate::harness::{Gateway, Scripted, Wire, eventually};
use http::Response;
use serde_json::Value;
use std::time::{Duration, Instant};
use voicegate::demo::Demo;

const AT_ONCE: Duration = Duration::from_millis(1800);
const QUESTION: &str = r#"{"query": "hello", "session_id": "s"}"#;

async fn bridged(url: &str, limits: &str) -> Gateway {
    let manifest = format!(
        "upstreams: {{ algo: {{ targets: [{{ url: \"{url}\" }}] }} }}\n\
         chains: {{ all: [access_log, recovery, request_id, metrics] }}\n\
         routes:\n  - {{ route: GET /chat, chain: all, public: true, upstream: algo, path: /v01/query/stream, \
         protocol: sse, bridge: websocket, {limits} }}\n"
    );
    Gateway::with(&manifest).start().await
}

async fn text(wire: &mut Wire) -> String {
    match next(wire).await {
        Came::Text(text) => text,
        other => panic!("{other:?} is no text"),
    }
}

#[tokio::test]
async fn each_message_is_a_question_and_each_event_a_message() {
    let upstream = Scripted::start(|_, asked| {
        let asked = String::from_utf8(asked.to_vec()).unwrap();
        let stream = format!("data: you said {asked}\n\n: note\n\nid: 7\nevent: x\ndata: a\ndata: b\n\nretry: 1\n\ndata: end\n\n");
        Response::builder().header("content-type", "text/event-stream").body(body(stream)).unwrap()
    })
    .await;
    let gateway = bridged(&upstream.url(), "").await;
    let offer = ("Sec-WebSocket-Protocol", "voicegate.v1, bearer.s3cret");
    let headers = [offer, ("X-User-ID", "root"), ("Sec-WebSocket-Extensions", "permessage-deflate")];
    let (mut wire, head) = ask(gateway.client.address(), "/chat?a=1&token=s3cret", &headers).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(header(&head, "sec-websocket-protocol"), Some("voicegate.v1"));
    assert_eq!(header(&head, "sec-websocket-extensions"), None, "none is agreed on");
    assert_eq!(upstream.connections(), 0, "nothing is asked before the first message");
    let fragments = [frame(0x01, "one "), frame(PING, "?"), frame(0x80, "question")];
    for (sent, asked) in [(frame(TEXT, "hello"), "hello"), (fragments.concat(), "one question")] {
        wire.send(sent).await;
        if asked != "hello" {
            assert_eq!(next(&mut wire).await, Came::Frame(PONG, b"?".to_vec()));
        }
        assert_eq!(text(&mut wire).await, format!("you said {asked}"));
        assert_eq!(text(&mut wire).await, "a\nb");
        assert_eq!(text(&mut wire).await, "end");
    }
    let heads = upstream.heads();
    assert_eq!(heads.len(), 2);
    for head in heads {
        assert_eq!((head.method.as_str(), head.uri.to_string().as_str()), ("POST", "/v01/query/stream?a=1"));
        assert_eq!(head.headers["content-type"], "application/json");
        let shown = format!("{head:?}").to_ascii_lowercase();
        for not in ["s3cret", "root", "sec-websocket", "upgrade"] {
            assert!(!shown.contains(not), "{not}: {shown}");
        }
    }
    wire.send(close(4000, "bye")).await;
    assert_eq!(next(&mut wire).await, Came::Close(Some(4000), String::new()));
    assert_eq!(next(&mut wire).await, Came::End);
}

#[tokio::test]
async fn one_answer_is_under_way_at_a_time_and_ends_with_its_caller() {
    let demo = Demo::start().await.unwrap();
    let gateway = bridged(&demo.url(), "").await;
    let path = "/chat?delay=20ms&tokens=100000";
    let mut wire = open_with(gateway.client.address(), path, &[]).await;
    wire.send(frame(TEXT, QUESTION)).await;
    while !text(&mut wire).await.contains("token") {}
    wire.send(frame(TEXT, QUESTION)).await;
    let refused = loop {
        let said: Value = serde_json::from_str(&text(&mut wire).await).unwrap();
        if said["type"] != "token" {
            break said;
        }
    };
    assert_eq!((&refused["code"], &refused["status"]), (&"still_running".into(), &409.into()), "{refused}");
    assert!(text(&mut wire).await.contains("token"), "the answer goes on");
    assert_eq!(demo.stats().streams.running, 1);
    let begun = Instant::now();
    drop(wire);
    eventually("the upstream stops", AT_ONCE, async || demo.stats().streams.aborted == 1).await;
    assert!(begun.elapsed() < AT_ONCE);
}

#[tokio::test]
async fn what_is_no_stream_is_said_too_and_the_socket_goes_on() {
    let demo = Demo::start().await.unwrap();
    let gateway = bridged(&demo.url(), "").await;
    let mut wire = open_with(gateway.client.address(), "/chat?status=503", &[]).await;
    for _ in 0..2 {
        wire.send(frame(TEXT, QUESTION)).await;
        let said = text(&mut wire).await;
        assert!(serde_json::from_str::<Value>(&said).is_ok(), "{said}");
    }
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let gateway = bridged(&format!("http://{closed}"), "").await;
    let mut wire = open_with(gateway.client.address(), "/chat", &[]).await;
    for _ in 0..2 {
        wire.send(frame(TEXT, QUESTION)).await;
        let said: Value = serde_json::from_str(&text(&mut wire).await).unwrap();
        assert_eq!(said["code"], "upstream_unreachable", "{said}");
    }
    // A stream that breaks off says so, as it does to callers of event streams.
    let gateway = bridged(&demo.url(), "").await;
    let mut wire = open_with(gateway.client.address(), "/chat?delay=0ms&fail_after=2", &[]).await;
    wire.send(frame(TEXT, QUESTION)).await;
    let last = loop {
        let said: Value = serde_json::from_str(&text(&mut wire).await).unwrap();
        if said["code"].is_string() {
            break said;
        }
    };
    assert!(["upstream_interrupted", "upstream_reset"].contains(&last["code"].as_str().unwrap()), "{last}");
}

#[tokio::test]
async fn its_sockets_are_sockets_like_any_other() {
    let demo = Demo::start().await.unwrap();
    let limits = "websocket: { ping: 200ms, idle: 600ms, max_message: 1KiB }";
    let gateway = bridged(&demo.url(), limits).await;
    let address = gateway.client.address();
    assert_eq!(gateway.client.get("/chat").await.code(), "upgrade_required");
    let evil = refused(address, "/chat", &[("Origin", "https://evil.example")]).await;
    assert_eq!(evil, (403, "origin_not_allowed".to_owned()));
    for (sent, code) in [
        (frame(TEXT, [b'x'; 1025]), 1009),
        (frame(BINARY, "x"), 1003),
        (frame(TEXT, [0xff]), 1007),
        (said(TEXT, "not masked"), 1002),
        (frame(0x80, "of nothing"), 1002),
    ] {
        let mut wire = open_with(address, "/chat", &[]).await;
        wire.send(sent).await;
        let came = next(&mut wire).await;
        assert!(matches!(came, Came::Close(Some(said), _) if said == code), "{code}: {came:?}");
        wire.send(close(code, "")).await;
        assert_eq!(next(&mut wire).await, Came::End);
    }
    let mut silent = open_with(address, "/chat", &[]).await;
    assert!(matches!(next(&mut silent).await, Came::Frame(PING, _)));
    let last = loop {
        match next(&mut silent).await {
            Came::Frame(PING, _) => {}
            other => break other,
        }
    };
    assert_eq!(last, Came::Close(Some(1001), "idle".to_owned()));
    let open = "voicegate_websockets_open{path=\"/chat\"}";
    drop(silent);
    eventually("none is left", AT_ONCE, async || gateway.metric(open).await == 0.0).await;
    assert_eq!(demo.stats().streams.running, 0);
}

#[tokio::test]
async fn a_reader_who_is_slow_holds_the_answer_back() {
    let demo = Demo::start().await.unwrap();
    let gateway = bridged(&demo.url(), "websocket: { idle: 10m }").await;
    let mut wire = open_with(gateway.client.address(), "/chat?delay=0ms&tokens=2000", &[]).await;
    wire.send(frame(TEXT, QUESTION)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut tokens = 0;
    loop {
        let said: Value = serde_json::from_str(&text(&mut wire).await).unwrap();
        match said["type"].as_str() {
            Some("token") => tokens += 1,
            Some("end") => break,
            _ => {}
        }
    }
    assert_eq!(tokens, 2000, "and nothing is lost");
}
