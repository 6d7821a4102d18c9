//! `fallback:`, through the front door: what answers where an upstream cannot.

use crate::access::token;
use crate::harness::client::Open;
use crate::harness::scripted::{Body, body};
use crate::harness::{Client, Gateway, Scripted, eventually};
use crate::shipped;
use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use voicegate::demo::Demo;

/// An address where nobody listens.
const NOWHERE: &str = "http://127.0.0.1:9";

/// A service whose status is the switch's, and whose body says whose it is.
async fn switched(switch: Arc<AtomicU16>) -> Scripted {
    Scripted::start(move |head, _| {
        let who = head.headers.get("authorization").map_or("nobody", |value| value.to_str().unwrap());
        let mut response = Response::new(body(format!("for {who}")));
        *response.status_mut() = http::StatusCode::from_u16(switch.load(Ordering::SeqCst)).unwrap();
        if head.uri.query() == Some("public") {
            response.headers_mut().insert("cache-control", "public".parse().unwrap());
        }
        if head.uri.query() == Some("secret") {
            response.headers_mut().insert("cache-control", "no-store".parse().unwrap());
        }
        response
    })
    .await
}

/// Pieces of an event stream, the last of which may be a break.
fn events(pieces: &'static [&'static str], breaks: bool) -> Response<Body> {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        for piece in pieces {
            let _ = sender.send(Ok(Frame::data(Bytes::from_static(piece.as_bytes())))).await;
        }
        // A break takes with it what was not sent yet.
        tokio::time::sleep(Duration::from_millis(100)).await;
        if breaks {
            let _ = sender.send(Err(io::Error::other("broken"))).await;
        }
    });
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async {
        Some((receiver.recv().await?, receiver))
    });
    let mut response = Response::new(StreamBody::new(pieces).boxed());
    response.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
    response
}

async fn with(upstreams: &str, routes: &str) -> Gateway {
    Gateway::with(&format!("upstreams:\n{upstreams}\nroutes:\n{routes}\n")).start().await
}

async fn as_user(client: &Client, path: &str, who: &str) -> crate::harness::Answer {
    client.send("GET", path, &[("authorization", who)], "").await
}

#[tokio::test]
async fn a_fixed_answer_stands_in_for_an_upstream_that_cannot() {
    let switch = Arc::new(AtomicU16::new(200));
    let service = switched(switch.clone()).await;
    let gateway = with(
        &format!(
            "  dead: {{ targets: [{{ url: \"{NOWHERE}\" }}], fallback: {{ respond: {{ status: 503, json: {{ error: busy }}, headers: {{ Retry-After: \"7\" }} }} }} }}\n\
             \x20 service: {{ targets: [{{ url: \"{}\" }}], fallback: {{ respond: {{ json: {{ list: [] }} }}, on: [500, 503] }} }}",
            service.url()
        ),
        "  - { route: GET /dead, public: true, upstream: dead }\n\
         \x20 - { route: GET /own, public: true, upstream: dead, fallback: { respond: { text: short } } }\n\
         \x20 - { route: GET /service, public: true, upstream: service, chain: [metrics] }",
    )
    .await;
    let answer = gateway.client.get("/dead").await;
    assert_eq!((answer.status.as_u16(), answer.json()["error"].as_str()), (503, Some("busy")));
    assert_eq!((answer.header("x-degraded"), answer.header("retry-after")), (Some("respond"), Some("7")));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let answer = gateway.client.get("/own").await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "short"), "a route's own goes first");
    for (status, degraded) in
        [(200, None), (404, None), (502, None), (500, Some("respond")), (503, Some("respond"))]
    {
        switch.store(status, Ordering::SeqCst);
        let answer = gateway.client.get("/service").await;
        assert_eq!(answer.header("x-degraded"), degraded, "{status}");
        assert_eq!(answer.status.as_u16(), if degraded.is_some() { 200 } else { status }, "{status}");
    }
    let series = "voicegate_degraded_total{kind=\"respond\",path=\"/service\",upstream=\"service\"}";
    assert_eq!(gateway.metric(series).await, 2.0);
}

#[tokio::test]
async fn another_upstream_gets_the_request_whole_and_only_if_it_may() {
    let first = Scripted::start(|_, _| {
        let mut response = Response::new(body("down"));
        *response.status_mut() = http::StatusCode::BAD_GATEWAY;
        response
    })
    .await;
    let other = Scripted::start(|head, sent| {
        Response::new(body(format!("{} {} {}", head.method, head.uri, String::from_utf8_lossy(&sent))))
    })
    .await;
    let gateway = with(
        &format!(
            "  first: {{ targets: [{{ url: \"{}\" }}], fallback: {{ upstream: other, max_body: 1KiB }} }}\n\
             \x20 dead: {{ targets: [{{ url: \"{NOWHERE}\" }}], fallback: {{ upstream: first }} }}\n\
             \x20 other: {{ targets: [{{ url: \"{}\" }}] }}",
            first.url(),
            other.url()
        ),
        "  - { route: ANY /a/:id, public: true, upstream: first, path: \"/x/{id}\" }\n\
         \x20 - { route: ANY /chain, public: true, upstream: dead }",
    )
    .await;
    let client = &gateway.client;
    let answer = client.get("/a/1?q=2").await;
    assert_eq!((answer.text(), answer.header("x-degraded")), ("GET /x/1?q=2 ", Some("upstream")));
    let answer = client.send("PUT", "/a/1", &[], "hello").await;
    assert_eq!(answer.text(), "PUT /x/1 hello");
    // It may have been carried out: 502 does not say.
    let answer = client.post("/a/1", "hello").await;
    assert_eq!((answer.status.as_u16(), answer.header("x-degraded")), (502, None));
    let keyed = client.send("POST", "/a/1", &[("idempotency-key", "k1")], "hello").await;
    assert_eq!(keyed.text(), "POST /x/1 hello");
    // The first read more than is kept.
    let answer = client.send("PUT", "/a/1", &[], &"x".repeat(4000)).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (502, "down"));
    // An upstream that cannot be reached carried out nothing; what comes then has its own fallback.
    let answer = client.send("PUT", "/chain", &[], "through").await;
    assert_eq!((answer.text(), answer.header("x-degraded")), ("PUT /chain through", Some("upstream")));
}

#[tokio::test]
async fn an_upstream_that_never_answers_is_replaced_when_its_time_is_up() {
    let hole = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = Scripted::saying("other").await;
    let gateway = with(
        &format!(
            "  hole: {{ targets: [{{ url: \"http://{}\" }}], timeouts: {{ first_byte: 200ms }}, fallback: {{ upstream: other }} }}\n\
             \x20 other: {{ targets: [{{ url: \"{}\" }}] }}",
            hole.local_addr().unwrap(),
            other.url()
        ),
        "  - { route: ANY /a, public: true, upstream: hole }",
    )
    .await;
    assert_eq!(gateway.client.get("/a").await.text(), "other");
    let answer = gateway.client.post("/a", "{}").await;
    assert_eq!(answer.code(), "upstream_timeout", "nobody knows whether it was carried out");
    assert_eq!(other.heads().len(), 1);
}

#[tokio::test]
async fn a_stream_changes_over_until_its_first_event_and_not_behind_it() {
    let silent = Scripted::start(|head, _| match head.uri.path() {
        "/breaks" => events(&[": hello\n\n", "data: ha"], true),
        "/later" => events(&["data: one\n\n"], true),
        _ => {
            let never = StreamBody::new(futures_util::stream::pending::<io::Result<Frame<Bytes>>>());
            let mut response = Response::new(never.boxed());
            response.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
            response
        }
    })
    .await;
    let other = Scripted::start(|_, sent| {
        let mut response = Response::new(body(format!("data: other {}\n\n", String::from_utf8_lossy(&sent))));
        response.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
        response
    })
    .await;
    let gateway = with(
        &format!(
            "  first: {{ targets: [{{ url: \"{}\" }}], fallback: {{ upstream: other }} }}\n\
             \x20 other: {{ targets: [{{ url: \"{}\" }}] }}",
            silent.url(),
            other.url()
        ),
        "  - { route: POST /:how, public: true, upstream: first, protocol: sse, stream: { first_event: 300ms } }",
    )
    .await;
    for path in ["/breaks", "/silent"] {
        let open = gateway.client.open("POST", path, &[], "question").await;
        assert_eq!(open.headers["x-degraded"], "upstream", "{path}");
        let (text, clean) = Open::rest(open).await;
        assert_eq!(
            (text.as_str(), clean),
            ("data: other question\n\n", true),
            "{path}: and nothing of the first"
        );
    }
    let open = gateway.client.open("POST", "/later", &[], "question").await;
    assert!(!open.headers.contains_key("x-degraded"));
    let (text, _) = Open::rest(open).await;
    assert!(text.starts_with("data: one\n\n"), "{text}");
    assert!(text.contains("upstream_interrupted"), "an error event: {text}");
    assert_eq!(other.heads().len(), 2);
}

#[tokio::test]
async fn a_copy_is_given_to_whom_it_belongs_and_no_longer_than_it_may() {
    let switch = Arc::new(AtomicU16::new(200));
    let service = switched(switch.clone()).await;
    let upstreams = format!(
        "  service: {{ targets: [{{ url: \"{}\" }}], fallback: {{ stale: 60s }} }}\n\
         \x20 brief: {{ targets: [{{ url: \"{}\" }}], fallback: {{ stale: 100ms, respond: {{ text: none }} }} }}",
        service.url(),
        service.url()
    );
    let routes = "  - { route: ANY /a, public: true, upstream: service }\n\
                  \x20 - { route: GET /brief, public: true, upstream: brief }";
    let gateway = with(&upstreams, routes).await;
    let client = &gateway.client;
    for who in ["ann", "bob"] {
        assert_eq!(as_user(client, "/a?x=1", who).await.text(), format!("for {who}"));
    }
    assert_eq!(as_user(client, "/a?public", "ann").await.text(), "for ann");
    assert_eq!(as_user(client, "/a?secret", "ann").await.text(), "for ann");
    assert_eq!(as_user(client, "/brief", "ann").await.text(), "for ann");
    switch.store(503, Ordering::SeqCst);
    for who in ["ann", "bob"] {
        let answer = as_user(client, "/a?x=1", who).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, &*format!("for {who}")));
        assert_eq!(answer.header("x-degraded"), Some("stale"));
        assert!(answer.header("age").is_some() && answer.header("warning").is_none(), "{answer:?}");
    }
    for (path, who) in [("/a?x=1", "eve"), ("/a?x=2", "ann"), ("/a?secret", "ann")] {
        let answer = as_user(client, path, who).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-degraded")), (503, None), "{path} {who}");
    }
    assert_eq!(client.get("/a?x=1").await.status, 503, "nor to nobody");
    assert_eq!(client.send("POST", "/a?x=1", &[("authorization", "ann")], "").await.status, 503);
    assert_eq!(as_user(client, "/a?public", "eve").await.text(), "for ann", "what is public is for all");
    eventually("the copy is too old", Duration::from_secs(5), || async {
        as_user(client, "/brief", "ann").await.text() == "none"
    })
    .await;
    // A reload that leaves the route alone leaves its copies alone.
    gateway.rewrite(&format!(
        "upstreams:\n{upstreams}\nroutes:\n{routes}\n  - {{ route: GET /new, public: true, respond: {{}} }}\n"
    ));
    eventually("the reload", Duration::from_secs(5), || async { gateway.revision() == 2 }).await;
    assert_eq!(as_user(client, "/a?x=1", "ann").await.header("x-degraded"), Some("stale"));
}

#[tokio::test]
async fn copies_go_by_the_identity_behind_auth() {
    let switch = Arc::new(AtomicU16::new(200));
    let service = Scripted::start({
        let switch = switch.clone();
        move |head, _| {
            let who = head.headers["x-user-id"].to_str().unwrap();
            let mut response = Response::new(body(format!("for {who}")));
            *response.status_mut() = http::StatusCode::from_u16(switch.load(Ordering::SeqCst)).unwrap();
            response
        }
    })
    .await;
    let gateway = with(
        &format!("  service: {{ targets: [{{ url: \"{}\" }}], fallback: {{ stale: 60s }} }}", service.url()),
        "  - { route: GET /a, upstream: service, chain: [auth] }",
    )
    .await;
    let bearer = |ago: u64| format!("Bearer {}", token(&gateway, "user", Duration::from_secs(ago)));
    assert_eq!(as_user(&gateway.client, "/a", &bearer(60)).await.text(), "for u-1");
    switch.store(503, Ordering::SeqCst);
    let answer = as_user(&gateway.client, "/a", &bearer(0)).await;
    assert_eq!(answer.header("x-degraded"), Some("stale"), "the same user with another token");
    assert_eq!(as_user(&gateway.client, "/a", "Bearer nonsense").await.status, 401);
    let admin = format!("Bearer {}", token(&gateway, "admin", Duration::ZERO));
    assert_eq!(as_user(&gateway.client, "/a", &admin).await.status, 503, "another role may see other things");
}

#[tokio::test]
async fn a_cache_does_not_keep_what_stands_in() {
    let switch = Arc::new(AtomicU16::new(503));
    let service = switched(switch.clone()).await;
    let gateway = with(
        &format!(
            "  service: {{ targets: [{{ url: \"{}\" }}], fallback: {{ respond: {{ json: {{ list: [] }} }} }} }}",
            service.url()
        ),
        "  - { route: GET /a, public: true, upstream: service, chain: [{ cache: 60s }] }",
    )
    .await;
    let answer = gateway.client.get("/a").await;
    assert_eq!((answer.status.as_u16(), answer.header("x-degraded")), (200, Some("respond")));
    switch.store(200, Ordering::SeqCst);
    let answer = gateway.client.get("/a").await;
    assert_eq!((answer.text(), answer.header("x-degraded")), ("for nobody", None), "the service is back");
}

#[tokio::test]
async fn suggestions_are_few_when_the_service_is_down() {
    let demo = Demo::start().await.unwrap();
    let gateway = shipped::shipped(&demo).await;
    let said = gateway
        .client
        .post(
            "/api/v01/auth/register",
            r#"{"username": "ann", "password": "Secret123", "email": "ann@example.com"}"#,
        )
        .await;
    let bearer = format!("Bearer {}", said.json()["access_token"].as_str().unwrap());
    let path = "/api/v01/search/suggestions?q=rust";
    let answer = as_user(&gateway.client, path, &bearer).await;
    assert_eq!(answer.json()["suggestions"][0], "rust basics", "{answer:?}");
    drop(demo);
    let other = "/api/v01/search/suggestions?q=go";
    eventually("the service is down", Duration::from_secs(10), || async {
        let answer = as_user(&gateway.client, other, &bearer).await;
        answer.header("x-degraded") == Some("respond")
    })
    .await;
    let kept = as_user(&gateway.client, path, &bearer).await;
    assert_eq!(kept.json()["suggestions"][0], "rust basics", "a fresh copy is better than a degraded answer");
    let answer = as_user(&gateway.client, other, &bearer).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json(), serde_json::json!({ "suggestions": [], "degraded": true }));
}

#[tokio::test]
async fn a_question_is_answered_by_another_upstream_and_kept_once() {
    let demo = Demo::start().await.unwrap();
    let gateway = with(
        &format!(
            "  dead: {{ targets: [{{ url: \"{NOWHERE}\" }}], fallback: {{ upstream: demo }} }}\n\
             \x20 demo: {{ targets: [{{ url: \"{}\" }}] }}",
            demo.url()
        ),
        "  - { route: POST /register, handler: auth.register, public: true }\n\
         \x20 - { route: POST /sessions, handler: sessions.create, chain: [auth] }\n\
         \x20 - { route: GET /sessions/:id/messages, handler: sessions.messages, chain: [auth] }\n\
         \x20 - { route: POST /chat, handler: chat.stream, upstream: dead, path: /v01/query/stream, chain: [auth] }\n\
         \x20 - { route: POST /fixed, handler: chat.stream, upstream: dead, path: /v01/query/stream, chain: [auth], fallback: { respond: { json: { error: later } } } }",
    )
    .await;
    let said = gateway
        .client
        .post("/register", r#"{"username": "ann", "password": "Secret123", "email": "ann@example.com"}"#)
        .await;
    let bearer = format!("Bearer {}", said.json()["access_token"].as_str().unwrap());
    let headers = [("authorization", &*bearer), ("content-type", "application/json")];
    let session = gateway.client.send("POST", "/sessions", &headers, "{}").await.json();
    let session = session["session_id"].as_str().unwrap();
    let question = format!(r#"{{"session_id": "{session}", "query": "Tell me"}}"#);
    let open = gateway.client.open("POST", "/chat", &headers, &question).await;
    assert_eq!((open.status.as_u16(), &open.headers["x-degraded"]), (200, &"upstream".parse().unwrap()));
    let (text, clean) = Open::rest(open).await;
    assert!(clean && text.contains("\"end\""), "{text}");
    let messages = gateway.client.send("GET", &format!("/sessions/{session}/messages"), &headers, "").await;
    let messages = messages.json()["messages"].as_array().unwrap().clone();
    let states: Vec<_> = messages.iter().map(|it| (it["role"].as_str(), it["status"].as_str())).collect();
    assert_eq!(states, [(Some("user"), Some("complete")), (Some("assistant"), Some("complete"))]);
    let answer = gateway.client.send("POST", "/fixed", &headers, &question).await;
    assert_eq!(
        (answer.header("x-degraded"), answer.json()["error"].as_str()),
        (Some("respond"), Some("later"))
    );
}
