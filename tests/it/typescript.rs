//! The TypeScript client: it compiles as strictly as TypeScript can, is small, and does what it says on Node and in Chromium.

use crate::harness::process::run;
use crate::harness::{Browser, Gateway, eventually, node};
use crate::shipped::shipped_with;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use voicegate::demo::Demo;

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/routes.yaml");

/// A file of `tests/it/typescript`.
fn ours(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/typescript").join(name);
    std::fs::read_to_string(path).unwrap()
}

/// A folder with the client of a document as `api.ts`, and with these files of ours.
fn folder(arguments: &[&str], files: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("api.json"), ours("api.json")).unwrap();
    for name in files {
        std::fs::write(folder.path().join(name), ours(name)).unwrap();
    }
    let output = run(folder.path(), &[&["client", "ts", "--out", "api.ts"], arguments].concat());
    assert_eq!(output.status.code(), Some(0), "{}", node::said(&output));
    folder
}

#[tokio::test]
async fn a_client_copes_with_whatever_a_server_answers() {
    let folder = folder(&["--from", "api.json"], &["scripted.js"]);
    node::compile(folder.path(), &["api.ts"]);
    let said = node::run(folder.path(), "scripted.js", &[]).await;
    assert_eq!(said.lines().filter(|line| line.starts_with("ok ")).count(), 21, "{said}");
}

#[test]
fn the_same_document_gives_the_same_file_as_json_and_as_yaml() {
    let folder = folder(&["--from", "api.json"], &[]);
    let first = std::fs::read_to_string(folder.path().join("api.ts")).unwrap();
    let document: serde_json::Value = serde_json::from_str(&ours("api.json")).unwrap();
    // JSON is YAML; a first line makes it nothing else.
    std::fs::write(folder.path().join("api.yaml"), format!("# yaml\n{document}")).unwrap();
    for from in ["api.json", "api.yaml"] {
        let again = run(folder.path(), &["client", "ts", "--from", from]);
        assert_eq!(String::from_utf8(again.stdout).unwrap(), first, "{from}");
    }
    let output = run(folder.path(), &["client", "ts", "--from", "package.json"]);
    assert_eq!(output.status.code(), Some(2), "{}", node::said(&output));
    std::fs::write(folder.path().join("other.yaml"), "version: 1\nroutes: []\n").unwrap();
    let output = run(folder.path(), &["client", "ts", "--from", "other.yaml"]);
    assert_eq!(output.status.code(), Some(1), "{}", node::said(&output));
}

/// Largest client of what is shipped, in bytes, without types and comments; it is not even minified.
const MAX_SIZE: u64 = 20_000;
/// The same with its types and comments, of one version.
const MAX_SOURCE: u64 = 40_000;

#[test]
fn the_shipped_api_has_a_small_client_for_each_version_and_for_all() {
    for (document, call) in
        [("all", "\"v01.auth.login\""), ("v01", "\"auth.login\""), ("v2", "\"chat.postStream\"")]
    {
        let folder = folder(&["--config", SHIPPED, "--document", document], &[]);
        node::compile(folder.path(), &["api.ts"]);
        let text = std::fs::read_to_string(folder.path().join("api.js")).unwrap();
        assert!(text.contains(call), "{text}");
        assert!((text.len() as u64) < MAX_SIZE, "{document}: {} bytes", text.len());
        let source = std::fs::metadata(folder.path().join("api.ts")).unwrap().len();
        assert!(source < MAX_SOURCE || document == "all", "{document}: {source} bytes");
    }
    let output = run(Path::new("."), &["client", "ts", "--config", SHIPPED, "--document", "v9"]);
    assert_eq!(output.status.code(), Some(2), "{}", node::said(&output));
}

#[test]
fn the_compiler_tells_events_and_frames_apart() {
    let folder = folder(&["--config", SHIPPED], &["typed.ts"]);
    std::fs::rename(folder.path().join("api.ts"), folder.path().join("voicegate.ts")).unwrap();
    node::compile(folder.path(), &["typed.ts", "voicegate.ts"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_served_document_passes_openapi_typescript() {
    let demo = Demo::start().await.unwrap();
    let gateway = crate::shipped::shipped(&demo).await;
    let folder = tempfile::tempdir().unwrap();
    for document in ["all", "v01", "v2"] {
        let text = gateway.client.get(&format!("/openapi/{document}.json")).await;
        assert_eq!(text.status, 200, "{}", text.text());
        std::fs::write(folder.path().join("api.json"), text.text()).unwrap();
        let output = node::tool("openapi-typescript", folder.path(), &["api.json", "-o", "schema.ts"]);
        assert!(output.status.success(), "{document}: {}", node::said(&output));
        node::compile(folder.path(), &["schema.ts"]);
    }
}

#[test]
fn breaking_changes_of_an_api_are_findings() {
    let folder = folder(&["--from", "api.json"], &[]);
    let mut new: Value = serde_json::from_str(&ours("api.json")).unwrap();
    let login = &mut new["components"]["schemas"]["LoginRequest"];
    login["required"].as_array_mut().unwrap().push("tenant".into());
    login["properties"]["tenant"] = json!({ "type": "string" });
    let new = new.to_string();
    std::fs::write(folder.path().join("new.json"), new).unwrap();
    for (arguments, code, wanted) in [
        (
            &["api.json", "new.json"][..],
            1,
            "breaking[request-field-added-required] POST /api/v01/auth/login: field `tenant` of the body is new, and required\n",
        ),
        (&["new.json", "api.json"], 1, "breaking[request-field-removed]"),
        (
            &["api.json", "new.json", "--format", "github"],
            1,
            "::error title=request-field-added-required::POST",
        ),
        (&["api.json", "new.json", "--format", "json"], 1, "\"breaking\": 1"),
        (&["api.json", "api.json"], 0, ""),
        (&["api.json", "nowhere.json"], 2, ""),
        (&["api.json", "api.json", "--format", "xml"], 2, ""),
    ] {
        let output = run(folder.path(), &[&["diff", "--api"], arguments].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", node::said(&output));
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains(wanted), "{arguments:?}: {said}");
    }
    // The same in other words is the same.
    let described = |version: &str| {
        let output = run(folder.path(), &["openapi", "--config", SHIPPED, "--version", version]);
        std::fs::write(folder.path().join(format!("{version}.json")), output.stdout).unwrap();
    };
    ["3.1", "3.2"].into_iter().for_each(described);
    for arguments in [["3.1.json", "3.2.json"], ["3.2.json", "3.1.json"], ["3.2.json", SHIPPED]] {
        let output = run(folder.path(), &[&["diff", "--api"], &arguments[..]].concat());
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", node::said(&output));
        assert!(output.stdout.is_empty(), "{arguments:?}: {}", node::said(&output));
    }
    for kind in [r#"{ "swagger": "2.0" }"#, r#"{ "asyncapi": "3.0.0" }"#, r#"{ "openapi": "4.0.0" }"#] {
        std::fs::write(folder.path().join("other.json"), kind).unwrap();
        let output = run(folder.path(), &["diff", "--api", "other.json", SHIPPED]);
        assert_eq!(output.status.code(), Some(2), "{}", node::said(&output));
        assert!(node::said(&output).contains("OpenAPI 3 is read here, not"), "{}", node::said(&output));
    }
    // A manifest is what it serves.
    let limited = |limit: u32| {
        format!(
            "version: 1\nrate_limits: {{ r: {{ limit: {limit}, per: 1m, by: [ip] }} }}\n\
             routes: [{{ route: GET /a, public: true, respond: {{}}, chain: [{{ rate_limit: r }}] }}]\n"
        )
    };
    std::fs::write(folder.path().join("old.yaml"), limited(9)).unwrap();
    std::fs::write(folder.path().join("new.yaml"), limited(5)).unwrap();
    let output = run(folder.path(), &["diff", "--api", "old.yaml", "new.yaml"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{}", node::said(&output));
    assert!(
        said.starts_with("breaking[limit-lowered] GET /a: rate limit r is 5 per 1m, was 9 per 1m\n"),
        "{said}"
    );
    let output = run(folder.path(), &["diff", "--api", "new.yaml", "old.yaml"]);
    assert_eq!(output.status.code(), Some(0), "{}", node::said(&output));
    // Without `--api` there is nothing to write in another form.
    let output = run(folder.path(), &["diff", "api.json", "new.json", "--format", "json"]);
    assert_eq!(output.status.code(), Some(2));
}

/// A gateway that serves what is shipped and these modules below `/page`; tokens are renewed when they are a second old.
async fn bed(demo: &Demo, folder: &Path) -> Gateway {
    let module = |name: &str| {
        let text = serde_json::to_string(&std::fs::read_to_string(folder.join(name)).unwrap())
            .unwrap()
            .replace("${", "$${");
        format!(
            "  - {{ route: GET /page/{name}, public: true, respond: {{ text: {text}, headers: {{ content-type: text/javascript }} }} }}\n"
        )
    };
    let page = "  - { route: GET /page, public: true, respond: { text: \"<!doctype html><title>t</title>\", headers: { content-type: text/html } } }\n";
    let routes = format!("{page}{}{}", module("live.js"), module("voicegate.js"));
    let gateway = shipped_with(demo, |manifest| {
        let (before, tests) = manifest.split_once("\ntests:").unwrap();
        format!("{before}\n{routes}\ntests:{tests}")
    })
    .await;
    // WebSockets are for pages of the front end's own origin, which is the gateway's here.
    let origin = format!("http://{}", gateway.client.address());
    for (policy, from, to) in [
        ("policies/cors.yaml", "${WEB_ORIGIN:-http://localhost:3000}", &*origin),
        ("policies/auth.yaml", "access_ttl: 24h", "access_ttl: 61s"),
        ("policies/auth.yaml", "renew_within: 1h", "renew_within: 60s"),
    ] {
        let path = gateway.path(policy);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{policy}: {text}");
        std::fs::write(path, text.replace(from, to)).unwrap();
    }
    let live = gateway.live().clone();
    tokio::task::spawn_blocking(move || live.reload("test", true)).await.unwrap();
    gateway
}

/// What [`live.ts`](typescript/live.ts) must have come to.
fn went_well(told: &Value) {
    let tokens: String = told["tokens"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(told["tokens"].as_array().unwrap().len() > 5 && tokens.len() > 20, "{told:#}");
    for (key, expected) in [
        ("code", "401 invalid_credentials"),
        ("ended", "end"),
        ("kept", "user complete, assistant complete"),
        ("aborted", "AbortError"),
        ("signedOut", "no_token"),
    ] {
        assert_eq!(told[key], expected, "{key}: {told:#}");
    }
    assert_eq!((&told["renewedBy401"], &told["renewedByHeader"]), (&true.into(), &true.into()), "{told:#}");
    assert_eq!(told["sessions"], 1);
    let socket = told["socket"].as_array().unwrap();
    assert_eq!(
        (socket.first().unwrap(), socket.last().unwrap()),
        (&"session_started".into(), &"session_stopped".into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_front_end_works_with_the_client_on_node_and_in_a_browser() {
    let folder = folder(&["--config", SHIPPED], &["live.ts"]);
    std::fs::rename(folder.path().join("api.ts"), folder.path().join("voicegate.ts")).unwrap();
    node::compile(folder.path(), &["live.ts", "voicegate.ts"]);
    let demo = Demo::start().await.unwrap();
    let gateway = bed(&demo, folder.path()).await;
    let origin = format!("http://{}", gateway.client.address());
    let nobody_reads = async || {
        eventually("nothing is written that nobody reads", Duration::from_secs(10), async || {
            demo.stats().streams.running == 0
        })
        .await;
    };

    let script =
        "import { run } from './live.js'; console.log(JSON.stringify(await run(process.env.BASE, 'ann')));";
    std::fs::write(folder.path().join("node.js"), script).unwrap();
    let said = node::run(folder.path(), "node.js", &[("BASE", &origin)]).await;
    let told: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(told["registered"], "ann");
    went_well(&told);
    nobody_reads().await;

    let browser = Browser::start().await;
    let page = browser.open(&format!("{origin}/page")).await;
    let told = page.eval("import('/page/live.js').then(({ run }) => run('', 'bob'))").await;
    went_well(&told);
    nobody_reads().await;
    let foreign =
        page.requests().into_iter().filter(|url| !url.contains(&gateway.client.address().to_string()));
    assert_eq!(foreign.collect::<Vec<_>>(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_is_in_the_changelog() {
    let route = |more: &str| {
        format!(
            "routes:\n  - {{ route: GET /docs, handler: gateway.docs, public: true }}\n  - {{ route: GET /docs/*page, handler: gateway.docs, public: true }}\n{more}"
        )
    };
    let gateway = Gateway::with(&route("  - { route: GET /a, public: true, respond: {} }\n")).start().await;
    let first = gateway.client.get("/docs/changelog.json").await.json();
    assert_eq!(
        (&first["revisions"][0]["revision"], &first["revisions"][0]["changes"]),
        (&1.into(), &json!([]))
    );
    gateway.rewrite(&route("  - { route: GET /b, public: true, respond: {} }\n"));
    eventually("the new revision serves", Duration::from_secs(10), async || gateway.revision() == 2).await;
    let mut log = Value::Null;
    eventually("the revision is in the changelog", Duration::from_secs(10), async || {
        log = gateway.client.get("/docs/changelog.json").await.json();
        log["revisions"][0]["revision"] == 2
    })
    .await;
    let rules: Vec<_> =
        log["revisions"][0]["changes"].as_array().unwrap().iter().map(|change| &change["rule"]).collect();
    assert_eq!(rules, ["operation-removed", "operation-added"], "{log:#}");
    assert_eq!((&log["revisions"][0]["breaking"], &log["revisions"][1]["revision"]), (&1.into(), &1.into()));
    let page = gateway.client.get("/docs/changelog").await;
    assert!(
        page.text().contains("<li class=\"breaking\"><strong>breaking</strong> <code>GET /a</code>"),
        "{}",
        page.text()
    );
    // Going back is a revision too.
    assert_eq!(
        gateway
            .admin
            .send("POST", "/admin/api/rollback", &[("authorization", "Bearer admin-secret")], "")
            .await
            .status,
        200
    );
    let log = gateway.client.get("/docs/changelog.json").await.json();
    assert_eq!(
        (&log["revisions"][0]["revision"], &log["revisions"][0]["breaking"]),
        (&3.into(), &1.into()),
        "{log:#}"
    );
}
