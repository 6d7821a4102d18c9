//! gRPC services called by JSON: one message, streams both ways, faults, limits, reloads, and where descriptors come from.

use crate::harness::{Answer, Gateway, eventually, gateway::Builder};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use voicegate::demo::{Demo, SECRET};

const SOON: Duration = Duration::from_secs(10);

const ROUTES: &str = r#"
routes:
  - { route: POST /register, handler: auth.register, public: true, chain: [] }
  - { route: POST /documents, chain: [auth], upstream: documents, grpc: { method: voicehelper.documents.v1.Documents/Create, status: 201 } }
  - { route: GET /documents, chain: [auth], upstream: documents, grpc: voicehelper.documents.v1.Documents/List }
  - { route: "GET /documents/:id", chain: [auth], upstream: documents, grpc: voicehelper.documents.v1.Documents/Get }
  - { route: "PATCH /documents/:id", chain: [auth], upstream: documents, grpc: voicehelper.documents.v1.Documents/Update }
  - { route: "DELETE /documents/:id", chain: [auth], upstream: documents, grpc: { method: voicehelper.documents.v1.Documents/Delete, status: 204 } }
  - { route: GET /watch, chain: [auth], upstream: documents, grpc: voicehelper.documents.v1.Documents/Watch, stream: { heartbeat: 200ms } }
  - { route: POST /upload, chain: [auth], upstream: documents, grpc: voicehelper.documents.v1.Documents/Upload }
  - { route: POST /edit, chain: [auth], upstream: documents, grpc: voicehelper.documents.v1.Documents/Edit }
"#;

fn root(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// A gateway over the demo's documents; `more` is added to the upstream.
fn over(url: &str, source: &str) -> Builder {
    let upstream = format!(
        "upstreams: {{ documents: {{ protocol: grpc, targets: [{{ url: \"{url}\" }}], {source} }} }}"
    );
    Gateway::with(&format!("{upstream}{ROUTES}"))
        .file("documents.proto", &root("openapi/protos/documents.proto"))
}

const PROTOS: &str = "protos: [documents.proto]";

struct Caller<'g> {
    gateway: &'g Gateway,
    bearer: String,
}

impl<'g> Caller<'g> {
    async fn of(gateway: &'g Gateway) -> Self {
        let ann = r#"{"username": "ann", "email": "ann@example.com", "password": "Gateway1"}"#;
        let said = gateway.client.post("/register", ann).await;
        assert_eq!(said.status, 201, "{}", said.text());
        let bearer = format!("Bearer {}", said.json()["access_token"].as_str().unwrap());
        Caller { gateway, bearer }
    }

    fn headers<'h>(&'h self, more: &[(&'h str, &'h str)]) -> Vec<(&'h str, &'h str)> {
        let mut headers = vec![("authorization", &*self.bearer)];
        if !more.iter().any(|(name, _)| *name == "content-type") {
            headers.push(("content-type", "application/json"));
        }
        headers.extend(more);
        headers
    }

    async fn call(&self, method: &str, path: &str, body: &str) -> Answer {
        self.call_with(method, path, &[], body).await
    }

    async fn call_with(&self, method: &str, path: &str, more: &[(&str, &str)], body: &str) -> Answer {
        self.gateway.client.send(method, path, &self.headers(more), body).await
    }

    /// Makes a document; its id.
    async fn make(&self, title: &str) -> String {
        let made = self.call("POST", "/documents", &json!({ "title": title }).to_string()).await;
        assert_eq!(made.status, 201, "{}", made.text());
        made.json()["id"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn documents_are_made_read_changed_and_removed_by_json() {
    let demo = Demo::start().await.unwrap();
    let gateway = over(&demo.url(), PROTOS).start().await;
    let caller = Caller::of(&gateway).await;
    let text = r#"{"title": "One", "content": "Text", "tags": ["a", "b"], "metadata": {"n": 1, "x": null}}"#;
    let made = caller.call("POST", "/documents", text).await;
    assert_eq!((made.status.as_u16(), made.header("content-type")), (201, Some("application/json")));
    let made = made.json();
    assert_eq!(
        (&made["size"], &made["status"], &made["tags"]),
        (&"4".into(), &"STATUS_READY".into(), &json!(["a", "b"]))
    );
    assert_eq!(made["metadata"], json!({ "n": 1.0, "x": null }));
    assert!(made["createdAt"].as_str().unwrap().ends_with('Z'), "{made}");
    let path = format!("/documents/{}", made["id"].as_str().unwrap());
    assert_eq!(caller.call("GET", &path, "").await.json(), made);

    let changed = caller.call("PATCH", &path, r#"{"title": "Two", "ifRevision": "1"}"#).await;
    assert_eq!((&changed.json()["title"], &changed.json()["content"]), (&"Two".into(), &"Text".into()));
    let late = caller.call("PATCH", &path, r#"{"title": "Three", "if_revision": 1}"#).await;
    assert_eq!((late.status.as_u16(), late.code()), (400, "revision_changed".to_owned()));

    for title in ["B", "C"] {
        caller.make(title).await;
    }
    let page = caller.call("GET", "/documents?limit=2", "").await.json();
    let titles = |page: &Value| -> Vec<String> {
        page["documents"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["title"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(titles(&page), ["C", "B"]);
    let next = format!("/documents?limit=2&cursor={}", page["nextCursor"].as_str().unwrap());
    assert_eq!(titles(&caller.call("GET", &next, "").await.json()), ["Two"]);
    assert_eq!(
        titles(&caller.call("GET", "/documents?tags=a&tags=b&status=STATUS_READY", "").await.json()),
        ["Two"]
    );

    let gone = caller.call("DELETE", &path, "").await;
    assert_eq!((gone.status.as_u16(), gone.text()), (204, ""));
    let missing = caller.call("GET", &path, "").await;
    assert_eq!(missing.status, 404);
    assert_eq!(missing.header("content-type"), Some("application/problem+json"));
    assert_eq!(missing.code(), "not_found");
    let details = missing.json()["details"].clone();
    assert!(details.as_array().unwrap().iter().any(|it| it["resource_type"] == "document"), "{details}");
}

#[tokio::test]
async fn faults_are_told_in_the_common_form() {
    let demo = Demo::start().await.unwrap();
    let gateway =
        over(&demo.url(), &format!("{PROTOS}, timeouts: {{ total: 1s, first_byte: 2s }}")).start().await;
    let caller = Caller::of(&gateway).await;
    let faults = |answer: &Answer| -> Vec<(String, String)> {
        let all = answer.json()["errors"].as_array().unwrap_or(&Vec::new()).clone();
        let text = |it: &Value, key: &str| it[key].as_str().unwrap().to_owned();
        all.iter().map(|it| (text(it, "pointer"), text(it, "code"))).collect()
    };
    // Before anything is sent: what the message has no place for.
    let before = demo.stats().requests;
    let refused = caller.call("POST", "/documents", r#"{"titel": "x", "tags": ["a", 5]}"#).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (400, "validation_failed".to_owned()));
    assert_eq!(
        faults(&refused),
        [("/titel".into(), "unknown_field".into()), ("/tags/1".into(), "type".into())]
    );
    assert_eq!(caller.call("GET", "/documents?limit=x", "").await.status, 400);
    assert_eq!(caller.call("GET", "/documents?nope=1", "").await.status, 400);
    assert_eq!(caller.call("POST", "/documents", "{").await.status, 400);
    let plain = caller.call_with("POST", "/documents", &[("content-type", "text/plain")], "{}").await;
    assert_eq!(plain.status, 415);
    assert_eq!(demo.stats().requests, before);
    // The service's own.
    let refused = caller.call("POST", "/documents", r#"{"tags": ["a", ""]}"#).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (400, "validation_failed".to_owned()));
    assert_eq!(faults(&refused), [("/title".into(), "invalid".into()), ("/tags/1".into(), "invalid".into())]);
    // Every code has its status.
    for (code, status) in [
        (1, 499),
        (2, 500),
        (7, 403),
        (8, 429),
        (10, 409),
        (11, 400),
        (12, 501),
        (13, 500),
        (14, 503),
        (16, 401),
    ] {
        let answer = caller.call_with("GET", "/documents", &[("x-demo-status", &code.to_string())], "").await;
        assert_eq!(answer.status.as_u16(), status, "gRPC code {code}");
        assert_eq!(answer.json()["request_id"].as_str().unwrap().len(), 36);
        assert_eq!(answer.header("retry-after").is_some(), matches!(code, 8 | 14), "gRPC code {code}");
        assert_eq!(
            answer.text().contains("asked for by metadata"),
            !matches!(code, 2 | 12 | 13),
            "{}",
            answer.text()
        );
    }
    for status in ["200", "404", "503"] {
        let answer = caller.call_with("GET", "/documents", &[("x-demo-plain", status)], "").await;
        assert_eq!((answer.status.as_u16(), answer.code()), (502, "upstream_bad_response".to_owned()));
    }
    // The service is told how long it has: both ends give up about then.
    let late = caller.call_with("GET", "/documents", &[("x-demo-delay", "60000")], "").await;
    assert_eq!(late.status, 504, "{}", late.text());
    drop(demo);
    eventually("it is gone", SOON, || async { caller.call("GET", "/documents", "").await.status == 502 })
        .await;
}

#[tokio::test]
async fn a_stream_is_served_as_events_and_as_lines() {
    let demo = Demo::start().await.unwrap();
    let gateway = over(&demo.url(), PROTOS).start().await;
    let caller = Caller::of(&gateway).await;
    caller.make("One").await;
    let mut events =
        gateway.client.open("GET", "/watch?existing=true&max_events=2", &caller.headers(&[]), "").await;
    assert_eq!(events.headers["content-type"], "text/event-stream");
    let first = events.piece().await.unwrap().unwrap();
    let first = String::from_utf8(first.to_vec()).unwrap();
    let value: Value = serde_json::from_str(first.strip_prefix("data: ").unwrap().trim_end()).unwrap();
    assert_eq!((&value["kind"], &value["document"]["title"]), (&"KIND_EXISTS".into(), &"One".into()));
    // Silence is filled, and what happens comes at once.
    let mut beat = events.piece().await.unwrap().unwrap();
    assert_eq!(beat, ": heartbeat\n\n");
    caller.make("Two").await;
    while beat == ": heartbeat\n\n" {
        beat = events.piece().await.unwrap().unwrap();
    }
    assert!(beat.starts_with(b"data: {\"kind\":\"KIND_CREATED\""), "{beat:?}");
    let (rest, whole) = events.rest().await;
    assert_eq!((rest.as_str(), whole), ("event: end\ndata: {}\n\n", true));

    let lines = [("accept", "application/x-ndjson")];
    let answer = caller.call_with("GET", "/watch?existing=true&max_events=2", &lines, "").await;
    assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
    let titles: Vec<_> = answer
        .text()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["document"]["title"].clone())
        .collect();
    assert_eq!(titles, ["One", "Two"]);
}

#[tokio::test]
async fn a_caller_who_leaves_cancels_the_call() {
    let demo = Demo::start().await.unwrap();
    let gateway = over(&demo.url(), PROTOS).start().await;
    let caller = Caller::of(&gateway).await;
    caller.make("One").await;
    let mut open = gateway.client.open("GET", "/watch?existing=true", &caller.headers(&[]), "").await;
    open.piece().await.unwrap().unwrap();
    assert_eq!(demo.watchers(), 1);
    drop(open);
    eventually("the service's work ends", SOON, || async { demo.watchers() == 0 }).await;
}

#[tokio::test]
async fn streams_of_messages_are_read_from_lines_and_lists() {
    let demo = Demo::start().await.unwrap();
    let gateway = over(&demo.url(), PROTOS).start().await;
    let caller = Caller::of(&gateway).await;
    let lines = "{\"title\":\"L\",\"data\":\"Y2Fm\"}\n{\"data\":\"w6k=\"}\n";
    let list = format!("[{}]", lines.trim().replace('\n', ","));
    for (kind, body) in [("application/x-ndjson", lines), ("application/json", &*list)] {
        let made = caller.call_with("POST", "/upload", &[("content-type", kind)], body).await;
        assert_eq!((made.status.as_u16(), &made.json()["content"]), (200, &"café".into()), "{}", made.text());
    }
    let faulty = caller.call("POST", "/upload", r#"[{"title": "L"}, {"dat": ""}]"#).await;
    assert_eq!(faulty.status, 400, "{}", faulty.text());
    assert_eq!(faulty.json()["errors"][0]["pointer"], "/1/dat");
    assert_eq!(caller.call("POST", "/upload", r#"[{"title": "L"}"#).await.status, 400);

    // Both ways at once: answers as events, and what fails later is the last of them.
    let id = caller.make("E").await;
    let edits = format!("{{\"id\":\"{id}\",\"append\":\"a\"}}\n{{\"append\":\"b\"}}\n{{}}\n");
    let answer = caller.call_with("POST", "/edit", &[("content-type", "application/x-ndjson")], &edits).await;
    let events: Vec<_> = answer.text().split("\n\n").collect();
    assert_eq!(
        events[..2],
        [r#"data: {"revision":"2","content":"a"}"#, r#"data: {"revision":"3","content":"ab"}"#]
    );
    let error: Value = serde_json::from_str(events[2].strip_prefix("event: error\ndata: ").unwrap()).unwrap();
    assert_eq!((&error["status"], &error["errors"][0]["pointer"]), (&400.into(), &"/edit".into()));
}

#[tokio::test]
async fn messages_are_bounded_both_ways() {
    let demo = Demo::start().await.unwrap();
    let gateway = over(&demo.url(), &format!("{PROTOS}, json: {{ max_message: 1KiB }}")).start().await;
    let caller = Caller::of(&gateway).await;
    let long = json!({ "title": "L", "content": "x".repeat(2000) }).to_string();
    let refused = caller.call("POST", "/documents", &long).await;
    assert_eq!(refused.status, 413, "{}", refused.text());
    let refused = caller.call("POST", "/upload", &format!("[{{\"title\":\"{}\"}}]", "x".repeat(2000))).await;
    assert_eq!(refused.status, 413, "{}", refused.text());
    for _ in 0..12 {
        caller.make(&"y".repeat(100)).await;
    }
    let refused = caller.call("GET", "/documents", "").await;
    assert_eq!((refused.status.as_u16(), refused.code()), (502, "upstream_bad_response".to_owned()));
}

#[tokio::test]
async fn a_changed_proto_is_taken_over_and_a_broken_one_is_not() {
    let demo = Demo::start().await.unwrap();
    let gateway = over(&demo.url(), PROTOS).start().await;
    let caller = Caller::of(&gateway).await;
    let path = format!("/documents/{}", caller.make("One").await);
    let proto = root("openapi/protos/documents.proto");
    std::fs::write(gateway.path("documents.proto"), proto.replace("string title", "string heading")).unwrap();
    eventually("the new name is used", SOON, || async {
        caller.call("GET", &path, "").await.json()["heading"] == "One"
    })
    .await;
    let revision = gateway.revision();
    std::fs::write(gateway.path("documents.proto"), proto.replace("string title", "strin title")).unwrap();
    eventually("it is refused", SOON, || async {
        let failure = gateway.live().shared().readiness.last_failure();
        failure.is_some_and(|failure| {
            failure.report.contains("documents.proto:") && failure.report.contains("strin")
        })
    })
    .await;
    assert_eq!(gateway.revision(), revision);
    assert_eq!(caller.call("GET", &path, "").await.json()["heading"], "One");
}

#[tokio::test]
async fn descriptors_come_from_a_set_or_from_the_server() {
    let demo = Demo::start().await.unwrap();
    let builder = over(&demo.url(), "descriptors: all.binpb, json: { names: proto, defaults: false }");
    std::fs::write(builder.folder().join("all.binpb"), voicegate::demo::grpc::proto::DESCRIPTORS).unwrap();
    let gateway = builder.start().await;
    let caller = Caller::of(&gateway).await;
    let made = caller.call("POST", "/documents", r#"{"title": "Set"}"#).await.json();
    assert!(made.get("created_at").is_some() && made.get("content").is_none(), "{made}");

    // By reflection the service may come later than the gateway.
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let gateway = over(&format!("http://{free}"), "reflection: true").start().await;
    let caller = Caller::of(&gateway).await;
    let early = caller.call("GET", "/documents", "").await;
    assert_eq!((early.status.as_u16(), early.code()), (503, "unavailable".to_owned()));
    let _demo = Demo::start_at(free).await.unwrap();
    eventually("it has told", SOON, || async { caller.call("GET", "/documents", "").await.status == 200 })
        .await;
    // Annotations came along: nothing but the rule's own query is taken.
    caller.make("Asked").await;
    assert_eq!(caller.call("GET", "/documents?limit=1", "").await.json()["documents"][0]["title"], "Asked");
    // A route that does not say that it streams, or says so of a method that does not, is not served.
    assert_eq!(caller.call_with("POST", "/edit", &[], "").await.status, 503);
}

#[tokio::test]
async fn accounts_and_sessions_move_to_services_by_yaml_alone() {
    let demo = Demo::start().await.unwrap();
    let manifest = root("examples/microservices.yaml").replacen("version: 1\n", "", 1).replace("../", "");
    let mut builder = Gateway::with(&manifest).flag("--jwt-secret", SECRET);
    for service in ["ALGO", "AUTH", "SESSION"] {
        builder = builder.var(&format!("{service}_SERVICE_URL"), demo.url());
    }
    for name in ["auth", "chains", "cors", "rate-limits", "rbac"] {
        let name = format!("policies/{name}.yaml");
        builder = builder.file(&name, &root(&name));
    }
    for name in ["auth", "sessions"] {
        let name = format!("openapi/protos/{name}.proto");
        builder = builder.file(&name, &root(&name));
    }
    let gateway = builder.start().await;
    let client = &gateway.client;
    let ann = r#"{"username": "ann", "email": "ann@example.com", "password": "Gateway1"}"#;
    let tokens = client.post("/api/v01/auth/register", ann).await;
    assert_eq!(tokens.status, 201, "{}", tokens.text());
    let tokens = tokens.json();
    assert_eq!((&tokens["expires_in"], &tokens["user"]["username"]), (&86400.into(), &"ann".into()));
    let again = client.post("/api/v01/auth/register", ann).await;
    assert_eq!((again.status.as_u16(), again.code()), (409, "account_exists".to_owned()));
    let wrong = client.post("/api/v01/auth/login", r#"{"username": "ann", "password": "Wrong123"}"#).await;
    assert_eq!((wrong.status.as_u16(), wrong.code()), (401, "invalid_credentials".to_owned()));
    let bearer = format!("Bearer {}", tokens["access_token"].as_str().unwrap());
    let headers = [("authorization", &*bearer), ("content-type", "application/json")];
    let call = async |method: &str, path: &str, body: &str| client.send(method, path, &headers, body).await;
    let me = call("GET", "/api/v01/auth/me", "").await.json();
    assert_eq!((&me["username"], &me["role"]), (&"ann".into(), &"user".into()));
    let session = call("POST", "/api/v01/sessions", "").await;
    assert_eq!((session.status.as_u16(), &session.json()["title"]), (201, &"New Chat".into()));
    let path = format!("/api/v01/sessions/{}", session.json()["session_id"].as_str().unwrap());
    assert_eq!(call("PATCH", &path, r#"{"title": "Mine"}"#).await.json()["title"], "Mine");
    let listed = call("GET", "/api/v01/sessions?limit=5", "").await.json();
    assert_eq!(listed["sessions"][0]["title"], "Mine");
    assert_eq!(call("GET", &format!("{path}/messages"), "").await.json()["messages"], json!([]));
    assert_eq!(call("DELETE", &path, "").await.status, 204);
    assert_eq!(call("GET", &path, "").await.code(), "not_found");
    assert_eq!(client.get("/api/v01/sessions").await.code(), "no_token");
    let refresh = json!({ "refresh_token": tokens["refresh_token"] }).to_string();
    assert_eq!(call("POST", "/api/v01/auth/logout", &refresh).await.status, 204);
    assert_eq!(client.post("/api/v01/auth/refresh", &refresh).await.code(), "invalid_refresh_token");
}
