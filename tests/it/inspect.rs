//! What looks like an attack, through the front door: reported or refused; HTML made harmless on its way; streams and
//! uploads untouched.

use crate::harness::client::PATIENCE;
use crate::harness::scripted::body;
use crate::harness::{Gateway, Scripted};
use http::Response;
use voicegate::demo::Demo;

const MANIFEST: &str = r#"
upstreams: { app: { targets: [{ url: "${APP}" }] } }
chains:
  reporting: [request_id, { body_limit: 1MiB }, { inspect: { sanitize: [bio], max_size: 64KiB } }]
  refusing: [request_id, { body_limit: 1MiB }, { inspect: { action: refuse } }]
routes:
  - { route: POST /reported, upstream: app, path: /echo, chain: reporting, public: true }
  - { route: ANY /refused/*rest, upstream: app, path: /echo, chain: refusing, public: true }
  - { route: POST /stream, upstream: app, path: /api/v1/chat/stream, protocol: sse, chain: refusing, public: true }
"#;

const JSON: (&str, &str) = ("content-type", "application/json");
const XSS: &str = r#"{"text": "<script>alert(1)</script>"}"#;

/// A service that answers with what it was sent.
async fn started() -> (Gateway, Scripted) {
    let app = Scripted::start(|_, sent| Response::new(body(sent))).await;
    (Gateway::with(MANIFEST).var("APP", app.url()).start().await, app)
}

#[tokio::test]
async fn attacks_are_reported_by_default_and_refused_on_demand() {
    let (gateway, app) = started().await;
    let client = &gateway.client;
    let answer = client.post("/reported", XSS).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, XSS));
    let count = |action: &str, path: &str| {
        format!("voicegate_inspect_findings_total{{action=\"{action}\",kind=\"xss\",path=\"{path}\"}}")
    };
    assert_eq!(gateway.metric(&count("report", "/reported")).await, 1.0);
    let before = app.heads().len();
    for (method, path, body) in [
        ("POST", "/refused/a", XSS),
        ("GET", "/refused/a?q=%3Cscript%3Ealert(1)%3C%2Fscript%3E", ""),
        ("GET", "/refused/%3Cscript%3Ealert(1)%3Cscript%3E", ""),
    ] {
        let answer = client.send(method, path, &[JSON], body).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (403, "suspicious_input"), "{path}");
        assert!(!answer.text().contains("alert"), "{}", answer.text());
    }
    assert_eq!(gateway.metric(&count("refuse", "/refused/*rest")).await, 3.0);
    assert_eq!(app.heads().len(), before, "nothing reached the service");
    assert_eq!(client.send("GET", "/refused/a?q=b", &[], "").await.status, 200);
    assert_eq!(client.send("POST", "/refused/a", &[("content-type", "image/png")], XSS).await.status, 200);
}

#[tokio::test]
async fn html_is_made_harmless_and_the_length_is_right() {
    let (gateway, app) = started().await;
    let sent = r#"{"bio": "<p onclick=\"x()\">Hi<script>alert(1)</script></p>", "n": 1}"#;
    let answer = gateway.client.post("/reported", sent).await;
    let clean = r#"{"bio":"<p>Hi</p>","n":1}"#;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, clean));
    let head = app.heads().pop().unwrap();
    assert_eq!(head.headers["content-length"], clean.len().to_string());
    let large = format!(r#"{{"a": "{}"}}"#, "x".repeat(65 << 10));
    assert_eq!(gateway.client.post("/reported", &large).await.status, 413);
    let deep = format!("{}{}", "[".repeat(33), "]".repeat(33));
    assert_eq!(gateway.client.post("/reported", &deep).await.status, 400);
}

#[tokio::test]
async fn a_stream_passes_as_it_comes() {
    let demo = Demo::start().await.unwrap();
    let gateway = Gateway::with(MANIFEST).var("APP", demo.url()).start().await;
    let question = r#"{"query": "hello", "session_id": "s"}"#;
    let mut open = gateway.client.open("POST", "/stream?stall_after=2&delay=0ms", &[JSON], question).await;
    assert_eq!(open.status, 200);
    let mut text = String::new();
    // The stream stalls for good: only what is passed on at once can be seen.
    tokio::time::timeout(PATIENCE, async {
        while text.matches("event: token").count() < 2 {
            text.push_str(std::str::from_utf8(&open.piece().await.unwrap().unwrap()).unwrap());
        }
    })
    .await
    .unwrap();
    drop(open);
    let answer = gateway.client.post("/stream", r#"{"query": "1' OR '1'='1", "session_id": "s"}"#).await;
    assert_eq!(answer.code(), "suspicious_input");
}
