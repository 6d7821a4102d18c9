//! Requests held against what their route describes, and answers too: through the front door, with the shipped
//! description of the algorithm service and with files that change while the gateway runs.

use crate::harness::client::PATIENCE;
use crate::harness::scripted::body;
use crate::harness::{Gateway, Scripted, eventually};
use http::Response;
use std::path::Path;
use voicegate::demo::Demo;

const JSON: (&str, &str) = ("content-type", "application/json");

fn shipped() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi/upstreams/algo.yaml");
    std::fs::read_to_string(path).unwrap()
}

const MANIFEST: &str = r#"
upstreams: { algo: { targets: [{ url: "${ALGO}" }] } }
chains: { all: [request_id, metrics, { body_limit: 1MiB }, validate] }
routes:
  - route: POST /chat/stream
    upstream: algo
    path: /api/v1/chat/stream
    protocol: sse
    chain: all
    public: true
    docs: { openapi: "algo.yaml#/paths/~1api~1v1~1chat~1stream/post" }
  - route: POST /query
    upstream: algo
    path: /query
    chain: all
    public: true
    docs: { openapi: "algo.yaml#/paths/~1query/post" }
  - route: GET /sessions/:id
    upstream: algo
    path: /api/v1/chat/session/{id}
    chain: all
    public: true
    docs: { openapi: "algo.yaml#/paths/~1api~1v1~1chat~1session~1%7Bid%7D/get" }
"#;

async fn started(url: &str) -> Gateway {
    Gateway::with(MANIFEST).var("ALGO", url).file("algo.yaml", &shipped()).start().await
}

#[tokio::test]
async fn what_a_service_would_refuse_never_reaches_it() {
    let demo = Demo::start().await.unwrap();
    let gateway = started(&demo.url()).await;
    let client = &gateway.client;
    let long = format!(r#"{{"query": "{}", "session_id": "s"}}"#, "x".repeat(2001));
    for (path, body, place, code) in [
        ("/query", r#"{"query": "x", "top_k": "many"}"#, "/top_k", "type"),
        ("/query", r#"{"query": "  "}"#, "/query", "pattern"),
        ("/query", r#"{"top_k": 1}"#, "/query", "required"),
        ("/query", "[]", "", "type"),
        ("/chat/stream", &long, "/query", "max_length"),
        ("/chat/stream", r#"{"query": "x", "session_id": "s", "context": 1}"#, "/context", "type"),
    ] {
        let answer = client.post(path, body).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "validation_failed"), "{body}");
        let fault = &answer.json()["errors"][0];
        assert_eq!((fault["pointer"].as_str(), fault["code"].as_str()), (Some(place), Some(code)), "{body}");
    }
    let answer = client.send("POST", "/query", &[JSON, ("accept-language", "zh")], "{}").await;
    assert_eq!(answer.json()["errors"][0]["detail"], "为必填项");
    let answer = client.send("POST", "/query", &[("content-type", "text/plain")], "x").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (415, "unsupported_media_type"));
    let long = format!("/sessions/{}", "s".repeat(129));
    let answer = client.get(&long).await;
    assert_eq!(answer.json()["errors"][0]["parameter"], "path.id", "{}", answer.text());
    assert_eq!(demo.stats().requests, 0, "nothing reached the service");
    assert_eq!(client.post("/query", r#"{"query": "x", "top_k": 2}"#).await.status, 200);
    let series = "voicegate_validation_failures_total{of=\"request\",path=\"/query\"}";
    assert_eq!(gateway.metric(series).await, 6.0);
    // In development, the answers of the stand-in service are as described.
    assert_eq!(gateway.metric(&series.replace("request", "response")).await, 0.0);
}

#[tokio::test]
async fn a_stream_passes_as_it_comes() {
    let demo = Demo::start().await.unwrap();
    let gateway = started(&demo.url()).await;
    let question = r#"{"query": "hello", "session_id": "s"}"#;
    let mut open =
        gateway.client.open("POST", "/chat/stream?stall_after=2&delay=0ms", &[JSON], question).await;
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
    let answer = gateway.client.send("POST", "/chat/stream?delay=0ms&tokens=3", &[JSON], question).await;
    assert_eq!(answer.text().matches("event: ").count(), 6, "{}", answer.text());
}

const DOCUMENT: &str = r#"
openapi: 3.1.0
paths:
  /a:
    post:
      requestBody: { required: true, content: { application/json: { schema: { $ref: "schemas.json#/A" } } } }
      responses: { "200": { content: { application/json: { schema: { type: object, required: [ok] } } } } }
"#;

const ROUTE: &str = r#"
upstreams: { app: { targets: [{ url: "${APP}" }] } }
routes:
  - route: POST /a
    upstream: app
    public: true
    chain: [{ validate: { response: report } }]
    docs: { openapi: "api/a.yaml#/paths/~1a/post" }
  - { route: POST /b, upstream: app, public: true, chain: [{ validate: "api/schemas.json#/A" }] }
  - { route: POST /c, upstream: app, public: true, chain: [{ validate: { response: refuse } }],
      docs: { openapi: "api/a.yaml#/paths/~1a/post" } }
"#;

#[tokio::test]
async fn a_changed_description_is_taken_over_and_a_broken_one_is_not() {
    let app = Scripted::start(|_, _| {
        Response::builder().header("content-type", "application/json").body(body("{\"secret\": 1}")).unwrap()
    })
    .await;
    let gateway = Gateway::with(ROUTE)
        .var("APP", app.url())
        .file("api/a.yaml", DOCUMENT)
        .file("api/schemas.json", r#"{"A": {"type": "object", "required": ["old"]}}"#)
        .start()
        .await;
    let client = &gateway.client;
    for path in ["/a", "/b"] {
        assert_eq!(client.post(path, r#"{"old": 1}"#).await.status, 200);
        assert_eq!(client.post(path, r#"{"new": 1}"#).await.status, 400);
    }
    let answer = client.post("/c", r#"{"old": 1}"#).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (502, "upstream_bad_response"));
    assert_eq!(gateway.metric("voicegate_validation_failures_total{of=\"response\",path=\"/a\"}").await, 1.0);

    let schemas = gateway.path("api/schemas.json");
    std::fs::write(&schemas, r#"{"A": {"type": "object", "required": ["new"]}}"#).unwrap();
    eventually("the new schema serves", PATIENCE, || async { gateway.revision() == 2 }).await;
    for path in ["/a", "/b"] {
        assert_eq!(client.post(path, r#"{"new": 1}"#).await.status, 200);
        assert_eq!(client.post(path, r#"{"old": 1}"#).await.status, 400);
    }
    std::fs::write(&schemas, r#"{"A": {"type": "objekt"}}"#).unwrap();
    eventually("it is refused", PATIENCE, || async {
        gateway.admin.get("/readyz?verbose").await.text().contains("VG096")
    })
    .await;
    assert_eq!(client.post("/a", r#"{"new": 1}"#).await.status, 200, "the old one serves on");
}
