//! Stages on what an upstream answered: compression, headers, other origins.

use super::through;
use crate::harness::scripted::body;
use crate::harness::{Answer, Gateway, Scripted, Sockets};
use http::Response;
use voicegate::demo::Demo;

/// A kilobyte of JSON from the upstream.
async fn json() -> Scripted {
    Scripted::start(|_, _| {
        let text = format!("{{\"text\": \"{}\"}}", "all work and no play ".repeat(200));
        Response::builder().header("content-type", "application/json").body(body(text)).unwrap()
    })
    .await
}

#[tokio::test]
async fn an_upstreams_json_is_compressed_for_who_accepts_it() {
    let upstream = json().await;
    let gateway = through("compress", &upstream.url(), "").start().await;
    let plain = gateway.client.get("/").await;
    assert_eq!(plain.header("content-encoding"), None);
    assert_eq!(plain.header("vary"), Some("Accept-Encoding"));
    for coding in ["gzip", "br", "zstd"] {
        let small = gateway.client.send("GET", "/", &[("accept-encoding", coding)], "").await;
        assert_eq!(small.header("content-encoding"), Some(coding));
        assert!(small.body.len() * 4 < plain.body.len(), "{coding}: {} bytes", small.body.len());
        assert_eq!(small.header("content-length"), None);
    }
}

#[tokio::test]
async fn an_event_stream_is_never_compressed() {
    // As a plain route: nothing but its type says what it is.
    let demo = Demo::start().await.unwrap();
    let gateway = through("compress: { min_size: 1B, types: [\"text/*\"] }", &demo.url(), "").start().await;
    let ask = r#"{"query": "hello", "session_id": "s"}"#;
    let headers = [("accept-encoding", "gzip, br, zstd"), ("content-type", "application/json")];
    let mut open = gateway.client.open("POST", "/v01/query/stream?tokens=3&delay=0ms", &headers, ask).await;
    assert!(!open.headers.contains_key("content-encoding"), "{:?}", open.headers);
    let first = open.piece().await.unwrap().unwrap();
    assert!(first.starts_with(b"data: {\"type\":\"start\""), "{first:?}");
}

#[tokio::test]
async fn headers_are_changed_on_the_way_in_and_out() {
    let upstream = Scripted::start(|_, _| {
        let response = Response::builder().header("x-powered-by", "php").header("x-kept", "1");
        response.body(body("ok")).unwrap()
    })
    .await;
    let stage = "headers: { request: { set: { X-Api: internal }, remove: [X-Debug] }, \
                 response: { set: { X-Frame: none }, add: { X-Kept: '2' }, remove: [X-Powered-By] } }";
    let gateway = through(stage, &upstream.url(), "").start().await;
    let sent = [("x-debug", "1"), ("x-api", "forged")];
    let answer = gateway.client.send("GET", "/", &sent, "").await;
    let head = &upstream.heads()[0];
    assert_eq!(head.headers["x-api"], "internal");
    assert!(!head.headers.contains_key("x-debug"));
    assert_eq!(answer.header("x-frame"), Some("none"));
    assert_eq!(answer.header("x-powered-by"), None);
    assert_eq!(answer.headers.get_all("x-kept").iter().collect::<Vec<_>>(), ["1", "2"]);
}

#[tokio::test]
async fn security_headers_are_on_answers_and_errors_and_yield_to_the_upstreams() {
    let upstream = Scripted::start(|_, _| {
        Response::builder().header("x-frame-options", "SAMEORIGIN").body(body("ok")).unwrap()
    })
    .await;
    let gateway = through("security_headers", &upstream.url(), "").start().await;
    let answer = gateway.client.get("/").await;
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(answer.header("x-frame-options"), Some("SAMEORIGIN"));
    assert_eq!(answer.header("strict-transport-security"), None, "plain HTTP");
    drop(upstream);
    let refused = gateway.client.get("/%2e%2e/").await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.header("x-content-type-options"), Some("nosniff"));
}

const OURS: (&str, &str) = ("origin", "https://app.example");
const THEIRS: (&str, &str) = ("origin", "https://evil.example");

/// Two routes of one path, each with its own policy: only one lets the website call.
async fn crossed(url: &str) -> Gateway {
    Gateway::with(&format!(
        "upstreams: {{ back: {{ targets: [{{ url: \"{url}\" }}], connect_timeout: 500ms }} }}\n\
         cors: {{ default: {{ origins: [\"https://app.example\"], credentials: true, expose: [X-Request-ID] }} }}\n\
         routes:\n\
         \x20 - {{ route: GET /thing, upstream: back, public: true, chain: [cors] }}\n\
         \x20 - {{ route: DELETE /thing, upstream: back, public: true, chain: [{{ cors: {{ origins: [\"https://admin.example\"] }} }}] }}\n"
    ))
    .start()
    .await
}

async fn preflight(gateway: &Gateway, origin: (&str, &str), method: &str) -> Answer {
    let headers = [
        origin,
        ("access-control-request-method", method),
        ("access-control-request-headers", "authorization"),
    ];
    gateway.client.send("OPTIONS", "/thing", &headers, "").await
}

#[tokio::test]
async fn a_preflight_is_answered_by_the_route_it_asks_about() {
    let upstream = Scripted::saying("ok").await;
    let gateway = crossed(&upstream.url()).await;
    let get = preflight(&gateway, OURS, "GET").await;
    assert_eq!(get.status, 204);
    assert_eq!(get.header("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(get.header("access-control-allow-credentials"), Some("true"));
    assert!(get.header("access-control-allow-methods").unwrap().contains("GET"));
    assert!(
        get.header("access-control-allow-headers").unwrap().to_ascii_lowercase().contains("authorization")
    );
    assert_eq!(preflight(&gateway, OURS, "DELETE").await.code(), "origin_not_allowed");
    let admin = preflight(&gateway, ("origin", "https://admin.example"), "DELETE").await;
    assert_eq!(admin.status, 204);
    assert_eq!(upstream.heads().len(), 0, "the upstream is not asked");
}

#[tokio::test]
async fn a_preflight_of_a_strangers_is_a_403_that_varies() {
    let upstream = Scripted::saying("ok").await;
    let gateway = crossed(&upstream.url()).await;
    let answer = preflight(&gateway, THEIRS, "GET").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (403, "origin_not_allowed"));
    assert_eq!(answer.header("access-control-allow-origin"), None);
    assert!(answer.header("vary").unwrap().contains("Origin"));
}

#[tokio::test]
async fn only_a_listed_website_may_read_the_answer_and_answers_vary() {
    let upstream = Scripted::start(|_, _| {
        // A service that lets everybody in: the gateway's policy is the only one.
        Response::builder().header("access-control-allow-origin", "*").body(body("ok")).unwrap()
    })
    .await;
    let gateway = crossed(&upstream.url()).await;
    let ours = gateway.client.send("GET", "/thing", &[OURS], "").await;
    assert_eq!(
        ours.headers.get_all("access-control-allow-origin").iter().collect::<Vec<_>>(),
        ["https://app.example"]
    );
    assert_eq!(
        ours.header("access-control-expose-headers").map(str::to_ascii_lowercase).as_deref(),
        Some("x-request-id")
    );
    let theirs = gateway.client.send("GET", "/thing", &[THEIRS], "").await;
    assert_eq!((theirs.status.as_u16(), theirs.header("access-control-allow-origin")), (200, None));
    for answer in [ours, theirs, gateway.client.get("/thing").await] {
        assert!(answer.header("vary").unwrap().contains("Origin"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_website_may_read_errors_too() {
    let upstream = Sockets::saying_last("garbage\r\n\r\n").await;
    let gateway = crossed(&upstream.url()).await;
    let answer = gateway.client.send("GET", "/thing", &[OURS], "").await;
    assert_eq!(answer.code(), "upstream_bad_response");
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"));
}

#[tokio::test]
async fn an_origin_that_is_no_text_is_refused_and_nothing_breaks() {
    let upstream = Scripted::saying("ok").await;
    let gateway = crossed(&upstream.url()).await;
    let mut wire = crate::harness::Wire::connect(gateway.client.address()).await;
    wire.send(b"OPTIONS /thing HTTP/1.1\r\nhost: a\r\naccess-control-request-method: GET\r\norigin: https://\xff\xfe\r\n\r\n").await;
    assert_eq!(wire.answer().await.code(), "origin_not_allowed");
    assert_eq!(gateway.client.get("/thing").await.text(), "ok");
}
