//! The API's own description: it says what the manifest says now, of every route, and names nobody behind the gateway.

use crate::harness::process::run;
use crate::harness::{Gateway, eventually};
use crate::shipped::shipped;
use serde_json::Value;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use voicegate::demo::Demo;

const BASE: &str = r#"
info: { title: Things, version: v1, servers: [{ url: "https://api.example.com" }] }
upstreams:
  hidden: { targets: [{ url: "http://inside.internal:8123" }] }
roles: { user: { allow: ["thing:*"] } }
rate_limits: { few: { limit: 7, per: 1m, by: [ip] } }
chains:
  open: [recovery, request_id]
  closed: [{ chain: open }, auth, rbac]
routes:
  - { route: GET /openapi.json, handler: gateway.openapi, chain: open, public: true }
  - { route: GET /openapi/:document, handler: gateway.openapi, chain: open, public: true }
  - { route: GET /docs/*page, handler: gateway.docs, chain: open, public: true }
"#;
const VERSION: &str = r#"
versions:
  - name: v1
    prefix: /v1
    chain: closed
    routes:
"#;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn operation<'d>(document: &'d Value, method: &str, path: &str) -> &'d Value {
    &document["paths"][path][method]
}

#[tokio::test]
async fn a_route_that_is_added_is_described_with_its_role_and_limit_and_loses_its_lock_with_its_auth() {
    let gateway = Gateway::with(BASE).start().await;
    let before = gateway.client.get("/openapi.json").await.json();
    assert!(before["paths"].get("/v1/things/{id}").is_none(), "{before}");
    assert_eq!(before["servers"][0]["url"], "https://api.example.com");

    let route = "      - { route: GET /things/:id, upstream: hidden, with: { rate_limit: few } }\n";
    gateway.rewrite(&format!("{BASE}{VERSION}{route}"));
    let there = async || {
        let document = gateway.client.get("/openapi.json").await.json();
        !operation(&document, "get", "/v1/things/{id}").is_null()
    };
    eventually("the route is described", Duration::from_secs(10), there).await;
    let document = gateway.client.get("/openapi.json").await.json();
    let said = operation(&document, "get", "/v1/things/{id}");
    assert!(said["x-permission"] == "thing:read" && said["x-roles"][0] == "user", "{said}");
    assert!(said["x-rate-limit"][0]["limit"] == 7 && said["tags"][0] == "v1", "{said}");
    assert_eq!(said["operationId"], "v1_get_things_id");
    for status in ["401", "403", "429", "502", "503", "504"] {
        let problem = &said["responses"][status]["content"]["application/problem+json"];
        assert!(problem.is_object(), "{status}: {said}");
    }
    assert!(said["security"].as_array().unwrap().iter().any(|way| way.get("bearer").is_some()), "{said}");

    let open = "      - { route: GET /things/:id, upstream: hidden, chain: open, public: true }\n";
    gateway.rewrite(&format!("{BASE}{VERSION}{open}"));
    let unlocked = async || {
        let document = gateway.client.get("/openapi.json").await.json();
        operation(&document, "get", "/v1/things/{id}")["security"] == serde_json::json!([])
    };
    eventually("the lock is gone", Duration::from_secs(10), unlocked).await;
    let document = gateway.client.get("/openapi.json").await.json();
    let said = operation(&document, "get", "/v1/things/{id}");
    assert!(said["responses"].get("401").is_none() && said.get("x-roles").is_none(), "{said}");
}

#[tokio::test]
async fn each_document_is_served_in_json_and_yaml_and_asked_for_again_by_its_tag() {
    let route = "      - { route: GET /things, upstream: hidden }\n      - { route: GET /secret, upstream: hidden, docs: { hidden: true } }\n";
    let gateway = Gateway::with(&format!("{BASE}{VERSION}{route}")).start().await;
    for name in ["all", "v1", "asyncapi"] {
        let json = gateway.client.get(&format!("/openapi/{name}.json")).await;
        let yaml = gateway.client.get(&format!("/openapi/{name}.yaml")).await;
        assert!(json.status == 200 && yaml.status == 200, "{name}");
        assert_eq!(yaml.headers["content-type"], "application/yaml");
        let read: Value = serde_saphyr::from_str(yaml.text()).unwrap();
        assert_eq!(read, json.json(), "{name}");
        assert!(!json.text().contains("inside.internal"), "{name} names an upstream");
        assert!(!json.text().contains("secret"), "{name} tells what is hidden");
    }
    let version = gateway.client.get("/openapi/v1.json").await;
    let paths: Vec<String> = version.json()["paths"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(paths, ["/v1/things"]);
    let tag = version.headers["etag"].to_str().unwrap().to_owned();
    let again = gateway.client.send("GET", "/openapi/v1.json", &[("if-none-match", &*tag)], "").await;
    assert!(again.status == 304 && again.body.is_empty());
    let newer = gateway.client.get("/openapi/v1.json?version=3.2").await;
    assert_eq!(newer.json()["openapi"], "3.2.0");
    assert_ne!(newer.headers["etag"].to_str().unwrap(), tag);
    // Beside the page it is the same document, and versions that there are not are refused by name.
    let beside = gateway.client.get("/docs/openapi/v1.json?version=3.2").await;
    assert_eq!(beside.headers["etag"], newer.headers["etag"]);
    for place in ["/openapi", "/docs/openapi"] {
        assert_eq!(gateway.client.get(&format!("{place}/v1.json?version=3.1")).await.headers["etag"], *tag);
        for version in ["3.0", "", "4", "3.2.0"] {
            let refused = gateway.client.get(&format!("{place}/v1.json?version={version}")).await;
            assert_eq!(refused.status, 400, "{version}");
            let fault = &refused.json()["errors"][0];
            assert_eq!(fault["parameter"], "query.version");
            assert_eq!(fault["detail"], "must be 3.1 or 3.2");
        }
    }
    let none = gateway.client.get("/openapi/v9.json").await;
    assert!(none.status == 404 && none.code() == "not_found", "{}", none.text());
}

#[tokio::test]
async fn every_shipped_route_is_described_and_nothing_else_and_nobody_behind_is_named() {
    let demo = Demo::start().await.unwrap();
    let gateway = shipped(&demo).await;
    let answer = gateway.client.get("/openapi.json").await;
    let behind = demo.url();
    let host = behind.trim_start_matches("http://");
    assert!(!answer.text().contains(host), "the document names the upstream {host}");
    let document = answer.json();
    let mut described: HashSet<(String, String)> = HashSet::new();
    let mut ids = HashSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            described.insert((method.to_uppercase(), path.clone()));
            assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{operation}");
            assert!(operation["summary"].is_string(), "{method} {path} says nothing of itself");
        }
    }
    let routes = gateway.admin.get("/admin/api/routes").await.json();
    let mut routed: HashSet<(String, String)> = HashSet::new();
    for route in routes["routes"].as_array().unwrap() {
        if route["method"] == "ANY" {
            assert!(document["x-grpc"].to_string().contains(route["path"].as_str().unwrap()));
            continue;
        }
        // What lies below the documentation page is its own business.
        if route["path"] == "/docs/*page" {
            continue;
        }
        let segments = route["path"].as_str().unwrap().split('/').map(|part| match part.strip_prefix(':') {
            Some(name) => format!("{{{name}}}"),
            None => part.to_owned(),
        });
        let path = segments.collect::<Vec<_>>().join("/");
        routed.insert((route["method"].as_str().unwrap().to_owned(), path));
    }
    assert_eq!(described, routed);
    let channels = gateway.client.get("/openapi/asyncapi.json").await;
    assert_eq!(channels.json()["channels"].as_object().unwrap().len(), 4);
}

#[test]
fn documents_are_valid_by_the_published_schemas() {
    let schema = |name: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(root().join("tests/schemas").join(name)).unwrap())
            .unwrap()
    };
    let described = root().join("tests/manifests/described");
    for (folder, config, document, schema) in [
        (root(), "routes.yaml", "all", schema("openapi-3.1.json")),
        (root(), "routes.yaml", "v01", schema("openapi-3.1.json")),
        (root(), "routes.yaml", "asyncapi", schema("asyncapi-3.0.json")),
        (described.clone(), "everything.yaml", "all", schema("openapi-3.1.json")),
        (described, "everything.yaml", "asyncapi", schema("asyncapi-3.0.json")),
    ] {
        let output = run(&folder, &["openapi", "--config", config, "--document", document]);
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        let validator = jsonschema::options().build(&schema).unwrap();
        let faults: Vec<_> = validator
            .iter_errors(&said)
            .map(|fault| format!("{}: {fault:.300}", fault.instance_path()))
            .collect();
        assert!(faults.is_empty(), "{config} {document}: {faults:#?}");
        assert!(validator.iter_errors(&serde_json::json!({ "openapi": "3.1.0" })).next().is_some());
        references(&said, &said);
    }
}

#[test]
fn what_many_operations_say_is_said_once() {
    let said: Value =
        serde_json::from_slice(&std::fs::read(root().join("openapi/gateway.json")).unwrap()).unwrap();
    let operations =
        said["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap().values());
    let answers = operations.flat_map(|operation| operation["responses"].as_object().unwrap());
    let mut refusals: Vec<String> = answers
        .filter(|(status, answer)| status.starts_with(['4', '5']) && answer.get("$ref").is_none())
        .map(|(_, answer)| answer.to_string())
        .collect();
    let all = refusals.len();
    refusals.sort();
    refusals.dedup();
    assert_eq!(refusals.len(), all, "two operations refuse in the same words");
    assert!(said["components"]["responses"]["Unauthorized"].is_object());
    assert!(said.to_string().len() < 200_000, "{} bytes", said.to_string().len());
}

/// Every `$ref` leads somewhere.
fn references(value: &Value, document: &Value) {
    match value {
        Value::Object(map) => {
            if let Some(to) = map.get("$ref").and_then(Value::as_str) {
                let there = to.strip_prefix('#').and_then(|pointer| document.pointer(pointer));
                assert!(there.is_some(), "{to} is not there");
            }
            map.values().for_each(|value| references(value, document));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, document)),
        _ => {}
    }
}

#[test]
fn the_checked_in_description_is_the_one_that_is_printed() {
    let printed = run(&root(), &["openapi"]);
    let kept = std::fs::read(root().join("openapi/gateway.json")).unwrap_or_default();
    assert!(kept == printed.stdout, "openapi/gateway.json is out of date: run scripts/generate");
}
