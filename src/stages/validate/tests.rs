use super::super::testing::{check, code, fed, request, send, target};
use super::*;
use crate::diag::Diagnostics;
use crate::endpoint::Next;
use crate::exchange::RouteInfo;
use crate::openapi::PathNames;
use http::Method;
use poem::{Request, Response};
use std::path::Path;

const DOCUMENT: &str = r##"
openapi: 3.1.0
paths:
  /things/{id}:
    parameters:
      - { name: id, in: path, required: true, schema: { type: integer, minimum: 1 } }
    post:
      parameters:
        - { name: limit, in: query, schema: { type: integer, maximum: 100 } }
        - { name: tag, in: query, schema: { type: array, items: { enum: [a, b] }, maxItems: 2 } }
        - { name: filter, in: query, content: { application/json: { schema: { type: object, required: [q] } } } }
        - { name: X-Mode, in: header, required: true, schema: { enum: [fast, slow] } }
      requestBody:
        required: true
        content:
          application/json: { schema: { $ref: "#/components/schemas/Thing" } }
          multipart/form-data: {}
      responses:
        "200": { content: { application/json: { schema: { type: object, required: [ok] } } } }
        default: { content: { text/plain: {} } }
components:
  schemas:
    Thing:
      type: object
      required: [name]
      additionalProperties: false
      properties:
        name: { type: string, maxLength: 5, pattern: "^[a-z]+$" }
        mail: { type: string, format: email }
        parts: { type: array, items: { $ref: "#/components/schemas/Thing" } }
"##;

/// A manifest with a document beside it, as the loader would read it.
fn loaded(document: &str) -> (tempfile::TempDir, crate::manifest::Loaded) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("api.yaml"), document).unwrap();
    let reference = "{ route: POST /things/:id, public: true, respond: {}, \
                     docs: { openapi: \"api.yaml#/paths/~1things~1%7Bid%7D/post\" } }";
    std::fs::write(folder.path().join("routes.yaml"), format!("version: 1\nroutes:\n  - {reference}\n"))
        .unwrap();
    let loaded = crate::manifest::load(&folder.path().join("routes.yaml"), &|_| None);
    (folder, loaded)
}

fn operation(document: &str) -> Arc<Operation> {
    let (_folder, loaded) = loaded(document);
    let mut out = Diagnostics::new();
    let reference = loaded.manifest.routes[0].docs.as_ref().unwrap().openapi.as_ref().unwrap().clone();
    let operation = Operation::check(
        &reference,
        Some("POST"),
        &["id".to_owned()],
        &PathNames::default(),
        &loaded.manifest,
        &mut out,
    );
    let faults: Vec<_> = out.iter().map(|fault| fault.message.clone()).collect();
    operation.unwrap_or_else(|| panic!("{faults:?}"))
}

fn route() -> RouteInfo {
    RouteInfo {
        method: "POST".into(),
        template: "/things/:id".into(),
        host: None,
        version: None,
        params: vec!["id".into()],
    }
}

/// The stage round a target that answers `answer`, in a process of an environment.
fn around(stage: &str, answer: fn() -> Response, environment: &str) -> (Next, Arc<crate::state::Shared>) {
    let checked = check(stage, "").sound();
    let environment = format!("--environment={environment}");
    let (shared, _) = crate::state::tests::shared(&[&environment]);
    let (operation, info) = (operation(DOCUMENT), Arc::new(route()));
    let cx = BuildCx {
        route: &info,
        identity: 0,
        streams: false,
        websocket: false,
        operation: None,
        described: Some(&operation),
        shared: &shared,
    };
    let next = target(move |request: Request| async move {
        request.into_body().into_bytes().await?;
        Ok(answer())
    });
    (super::super::fold(vec![checked.layer(&cx)], next), shared)
}

fn fine() -> Response {
    Response::builder().content_type("application/json").body(r#"{"ok": true}"#)
}

fn posted(id: &str, query: &str, headers: &[(&str, &str)], body: impl Into<poem::Body>) -> Request {
    let mut request = request(Method::POST, headers);
    let path = format!("/things/{id}");
    *request.uri_mut() = format!("{path}?{query}").parse().unwrap();
    let exchange = crate::exchange::tests::exchange(Method::POST, &path);
    exchange.matched(Arc::new(route()).into(), vec![("/things/".len() as u32, path.len() as u32)]);
    request.set_data(exchange);
    request.set_body(body.into());
    request
}

const HEADERS: [(&str, &str); 2] = [("content-type", "application/json"), ("x-mode", "fast")];

/// What an answer has against a request: parameter or pointer, and code.
async fn faults(response: Response) -> Vec<(String, String)> {
    let text = response.into_body().into_string().await.unwrap();
    let body: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(body["code"], "validation_failed", "{text}");
    let word = |fault: &serde_json::Value, key: &str| fault[key].as_str().unwrap_or_default().to_owned();
    let faults = body["errors"].as_array().unwrap();
    faults.iter().map(|it| (word(it, "parameter") + &word(it, "pointer"), word(it, "code"))).collect()
}

#[tokio::test]
async fn what_fits_passes() {
    let (next, _) = around("validate", fine, "production");
    let body = r#"{"name": "ann", "mail": "a@b.example", "parts": [{"name": "bob"}]}"#;
    let query = "limit=100&tag=a&tag=b&filter=%7B%22q%22%3A1%7D&unknown=1";
    assert_eq!(send(&next, posted("7", query, &HEADERS, body)).await.status(), 200);
    let upload = [("content-type", "multipart/form-data; boundary=x"), ("x-mode", "slow")];
    assert_eq!(send(&next, posted("7", "", &upload, "anything")).await.status(), 200);
}

#[tokio::test]
async fn every_fault_is_listed_with_its_place_and_without_its_value() {
    let (next, shared) = around("validate", fine, "production");
    let body = r#"{"name": "hunter2!", "mail": "hunter2", "parts": [{}, {"name": 1, "a/b": 2}]}"#;
    let headers = [HEADERS[0], ("x-mode", "hunter2")];
    let response = send(&next, posted("0", "limit=1000&tag=c&filter=hunter2", &headers, body)).await;
    assert_eq!(response.status(), 400);
    let text = response.into_body().into_string().await.unwrap();
    assert!(!text.contains("hunter2"), "{text}");
    let response = send(&next, posted("0", "limit=1000&tag=c&filter=hunter2", &headers, body)).await;
    let mut found = faults(response).await;
    found.sort();
    let mut wanted = [
        ("path.id", "minimum"),
        ("query.limit", "maximum"),
        ("query.tag/0", "enum"),
        ("query.filter", "json"),
        ("header.X-Mode", "enum"),
        ("/name", "max_length"),
        ("/name", "pattern"),
        ("/mail", "format"),
        ("/parts/0/name", "required"),
        ("/parts/1/name", "type"),
        ("/parts/1/a~1b", "unknown_field"),
    ]
    .map(|(place, code)| (place.to_owned(), code.to_owned()));
    wanted.sort();
    assert_eq!(found, wanted);
    let series = "voicegate_validation_failures_total{of=\"request\",path=\"/things/:id\"} 2";
    assert!(shared.telemetry.render().contains(series));
}

#[tokio::test]
async fn missing_repeated_and_mistyped_things_are_told() {
    let (next, _) = around("validate", fine, "production");
    let only = |place: &str, code: &str| vec![(place.to_owned(), code.to_owned())];
    let name = r#"{"name": "ann"}"#;
    assert_eq!(
        faults(send(&next, posted("1", "limit=x", &HEADERS, name)).await).await,
        only("query.limit", "type")
    );
    let twice = posted("1", "limit=1&limit=2", &HEADERS, name);
    assert_eq!(faults(send(&next, twice).await).await, only("query.limit", "repeated"));
    let missing = posted("1", "", &HEADERS[..1], name);
    assert_eq!(faults(send(&next, missing).await).await, only("header.X-Mode", "required"));
    assert_eq!(faults(send(&next, posted("1", "", &HEADERS, "")).await).await, only("", "required"));
    assert_eq!(faults(send(&next, posted("1", "", &HEADERS, "{")).await).await, only("", "json"));
    let (feed, body) = fed();
    drop(feed);
    assert_eq!(faults(send(&next, posted("1", "", &HEADERS, body)).await).await, only("", "required"));
    for kind in ["text/plain", "application/xml", ""] {
        let headers = [("content-type", kind), HEADERS[1]];
        let response = send(&next, posted("1", "", &headers, name)).await;
        assert_eq!(
            (response.status().as_u16(), code(response).await.as_str()),
            (415, "unsupported_media_type")
        );
    }
}

#[tokio::test]
async fn lists_of_faults_and_bodies_are_bounded() {
    let (next, _) = around("validate: { max_faults: 3, max_size: 100B, max_depth: 2 }", fine, "production");
    let body = serde_json::json!({ "name": "ann", "a": 1, "b": 1, "c": 1, "d": 1 }).to_string();
    assert_eq!(faults(send(&next, posted("1", "", &HEADERS, body)).await).await.len(), 3);
    let (feed, body) = fed();
    feed.send(Ok(" ".repeat(101).into())).unwrap();
    assert_eq!(send(&next, posted("1", "", &HEADERS, body)).await.status(), 413);
    let deep = r#"{"name": "ann", "parts": [[[1]]]}"#;
    assert_eq!(faults(send(&next, posted("1", "", &HEADERS, deep)).await).await[0].1, "depth");
}

fn wrong() -> Response {
    Response::builder().content_type("application/json").body(r#"{"secret": "hunter2"}"#)
}

const ANSWERS: &str = "voicegate_validation_failures_total{of=\"response\",path=\"/things/:id\"}";

#[tokio::test]
async fn answers_are_reported_in_development_and_pass() {
    for (environment, stage, count) in [
        ("development", "validate", 1),
        ("production", "validate", 0),
        ("development", "validate: { response: off }", 0),
        ("production", "validate: { response: report }", 1),
    ] {
        let (next, shared) = around(stage, wrong, environment);
        let response = send(&next, posted("1", "", &HEADERS, r#"{"name": "ann"}"#)).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.into_body().into_string().await.unwrap(), r#"{"secret": "hunter2"}"#);
        let metrics = shared.telemetry.render();
        assert_eq!(metrics.contains(&format!("{ANSWERS} 1")), count == 1, "{environment} {stage}: {metrics}");
    }
}

#[tokio::test]
async fn wrong_answers_are_refused_where_that_is_asked_for() {
    let stage = "validate: { response: refuse }";
    for (answer, status) in [
        (fine as fn() -> Response, 200),
        (wrong, 502),
        (|| Response::builder().content_type("text/html").body("x"), 502),
        (
            || Response::builder().status(http::StatusCode::NOT_FOUND).content_type("text/plain").body("x"),
            200,
        ),
        (|| Response::builder().content_type("application/json").body(" ".repeat(2 << 20)), 502),
    ] {
        let (next, _) = around(stage, answer, "production");
        let response = send(&next, posted("1", "", &HEADERS, r#"{"name": "ann"}"#)).await;
        let wanted = if status == 200 && response.status() == 404 { 404 } else { status };
        assert_eq!(response.status(), wanted);
        let text = response.into_body().into_string().await.unwrap();
        assert!(!text.contains("hunter2"), "{text}");
    }
    assert!(check(stage, "").sound().facts().buffers_response.is_some());
    assert!(check("validate", "").sound().facts().buffers_response.is_none());
}

#[test]
fn a_route_must_be_described_and_have_what_is_described() {
    let operation = operation(DOCUMENT);
    let misfit = |stage: &str, method: &str, described: bool, protocol| {
        let route = RouteInfo { method: method.into(), ..route() };
        let described = described.then_some(&*operation);
        let checked = check(stage, "").sound();
        checked
            .misfit(&Fit { route: &route, described, streams: protocol == Protocol::Sse, protocol })
            .map(|it| it.code)
    };
    assert_eq!(misfit("validate", "POST", false, Protocol::Http), Some(Code::NO_DESCRIPTION));
    assert_eq!(misfit("validate", "POST", true, Protocol::Http), None);
    assert_eq!(misfit("validate", "POST", true, Protocol::Sse), None);
    assert_eq!(misfit("validate: { response: report }", "POST", true, Protocol::Sse), Some(Code::MISPLACED));
    assert_eq!(misfit("validate", "POST", true, Protocol::Websocket), Some(Code::MISPLACED));
    assert_eq!(misfit("validate", "POST", true, Protocol::Grpc), Some(Code::READS_CALLS));
}

/// Faults of a description: line, code, message and help.
fn told(document: &str) -> Vec<String> {
    let (_folder, loaded) = loaded(document);
    let mut out = Diagnostics::new();
    out.append(loaded.diagnostics.clone());
    let reference = loaded.manifest.routes[0].docs.as_ref().unwrap().openapi.as_ref().unwrap().clone();
    let _ = Operation::check(
        &reference,
        Some("POST"),
        &["id".to_owned()],
        &PathNames::default(),
        &loaded.manifest,
        &mut out,
    );
    out.sort();
    let place = |fault: &crate::diag::Diagnostic| {
        let place = loaded.sources.place(fault.span.unwrap());
        Path::new(&place).file_name().unwrap().to_string_lossy().into_owned()
    };
    out.iter().map(|fault| format!("{} {} {}", place(fault), fault.code, fault.message)).collect()
}

#[test]
fn faults_of_a_description_have_their_places() {
    assert_eq!(told(DOCUMENT), Vec::<String>::new());
    for (from, to, code) in [
        ("schemas/Thing\" } }\n          multi", "schemas/Think\" } }\n          multi", "VG095"),
        ("maxLength: 5", "maxLength: long", "VG096"),
        ("^[a-z]+$", "^(?=a)[a-z]+$", "VG096"),
        ("openapi: 3.1.0", "openapi: 3.0.3", "VG096"),
        ("{ name: limit, in: query", "{ name: limit, in: body", "VG096"),
        ("type: array, items: { enum: [a, b] }, maxItems: 2", "type: object", "VG096"),
        ("\"200\":", "\"2OO\":", "VG096"),
    ] {
        let line = DOCUMENT[..DOCUMENT.find(from).unwrap()].matches('\n').count() + 1;
        let faults = told(&DOCUMENT.replacen(from, to, 1));
        let place = format!("api.yaml:{line}:");
        let is_told = faults.len() == 1 && faults[0].starts_with(&place) && faults[0].contains(code);
        assert!(is_told, "{to} in line {line}: {faults:#?}");
    }
    let renamed = told(&DOCUMENT.replacen("{ name: id, in: path", "{ name: thing, in: path", 1));
    assert!(
        renamed.len() == 1 && renamed[0].contains("routes.yaml:3") && renamed[0].contains("VG043"),
        "{renamed:?}"
    );
    let remote = DOCUMENT.replacen("#/components/schemas/Thing", "https://example.com/a.yaml#/A", 1);
    assert!(told(&remote)[0].contains("nothing is fetched"), "{:?}", told(&remote));
}

#[test]
fn schemas_that_lead_to_themselves_end() {
    for schema in [
        "{ $ref: \"#/components/schemas/Thing\", description: itself }",
        "{ anyOf: [{ $ref: \"#/components/schemas/Thing\" }, { type: string }] }",
        "{ allOf: [{ $ref: \"#/components/schemas/Thing\" }] }",
    ] {
        let at = DOCUMENT.find("    Thing:\n").unwrap();
        let document = format!("{}    Thing: {schema}\n", &DOCUMENT[..at]);
        let operation = operation(&document);
        let content = operation.body.as_ref().unwrap();
        let crate::openapi::Answered::Described(schema) = content.of("application/json") else { panic!() };
        let _ = schema.accepts(&serde_json::json!({ "a": [1] }));
    }
}
