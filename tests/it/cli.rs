//! The command line: exit 0 fine, 1 findings, 2 usage; stdout is data, stderr is talk.

use crate::harness::process::{command, run};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Output;

const GOOD: &str = r#"version: 1
upstreams: { algo: { targets: [{ url: "http://127.0.0.1:8000" }] } }
cors: { default: { origins: ["https://app.example.com"] } }
chains: { c: [recovery, { cors: default }, request_id] }
versions:
  - name: v1
    prefix: /api/v1
    chain: c
    routes:
      - { route: "GET /things/:id", public: true, upstream: algo, path: "/things/{id}/state" }
      - { route: POST /things, public: true, upstream: algo }
routes:
  - { route: GET /health, public: true, handler: gateway.health }
"#;

const BAD: &str = "version: 1\nroutes:\n  - { route: GET /a, public: true, upstream: alog }\n  - { route: GET /b, respond: {} }\n";

/// Sound, but for what only a warning says.
const WARNED: &str = "version: 1\nupstreams: { unused: { targets: [{ url: \"http://127.0.0.1:8000\" }] } }\nroutes: [{ route: GET /a, public: true, respond: {} }]\n";

/// A folder with this as its `routes.yaml`.
fn folder(manifest: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("routes.yaml"), manifest).unwrap();
    folder
}

fn out(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn err(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

#[test]
fn every_command_exits_with_0_when_all_is_fine() {
    let folder = folder(GOOD);
    for arguments in [
        &["check"][..],
        &["check", "--strict", "--config", "routes.yaml"],
        &["routes"],
        &["routes", "--json"],
        &["explain", "GET", "/api/v1/things/7"],
        &["diff", "routes.yaml", "routes.yaml"],
        &["schema"],
        &["completions", "bash"],
        &["--help"],
        &["--version"],
        &["serve", "--help"],
    ] {
        let output = run(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", err(&output));
    }
}

#[test]
fn every_command_exits_with_1_when_there_are_findings() {
    let folder = folder(BAD);
    std::fs::write(folder.path().join("good.yaml"), GOOD).unwrap();
    std::fs::write(folder.path().join("other.yaml"), WARNED).unwrap();
    for arguments in [
        &["check"][..],
        &["check", "--config", "missing.yaml"],
        &["routes"],
        &["explain", "GET", "/a"],
        &["explain", "GET", "/nowhere", "--config", "good.yaml"],
        &["diff", "good.yaml", "other.yaml"],
        &["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"],
    ] {
        let output = run(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", err(&output));
    }
}

#[test]
fn every_command_exits_with_2_when_it_is_not_asked_rightly() {
    let folder = folder(GOOD);
    std::fs::write(folder.path().join("bad.yaml"), BAD).unwrap();
    for arguments in [
        &[][..],
        &["frobnicate"],
        &["check", "--format", "xml"],
        &["routes", "--yaml"],
        &["explain", "GET"],
        &["explain", "G ET", "/a"],
        &["explain", "GET", "/a/../b%2F"],
        &["explain", "GET", "/a", "-H", "no colon"],
        &["diff", "routes.yaml"],
        &["diff", "routes.yaml", "bad.yaml"],
        &["schema", "extra"],
        &["completions", "tcsh-like"],
        &["serve", "--listen", "here"],
        &["serve", "--shutdown-grace", "30"],
        &["serve", "--log-level", "loud"],
    ] {
        let output = run(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", err(&output));
        assert!(output.stdout.is_empty(), "{arguments:?} says so on stderr, not {}", out(&output));
        assert!(!output.stderr.is_empty(), "{arguments:?} says why");
    }
}

#[test]
fn check_prints_counts_and_time_of_a_good_manifest_as_talk() {
    let output = run(folder(GOOD).path(), &["check"]);
    assert_eq!(out(&output), "");
    let talk = err(&output);
    assert!(
        talk.starts_with(
            "ok: routes.yaml: 3 routes in 1 version, 1 upstream, 1 chain, 1 file (0 warnings) in "
        ) && talk.ends_with(" ms\n"),
        "{talk}"
    );
}

#[test]
fn check_shows_every_fault_for_people() {
    let output = run(folder(BAD).path(), &["check"]);
    let text = out(&output);
    assert!(text.contains("upstream `alog` is not defined") && text.contains("--> routes.yaml:3:"), "{text}");
    assert!(
        text.contains("neither `auth` in its chain nor `public: true`")
            && text.contains("--> routes.yaml:4:"),
        "{text}"
    );
    assert!(err(&output).contains("2 errors, 0 warnings"), "{}", err(&output));
    assert!(!text.contains('\u{1b}'), "no colours where nobody looks");
}

#[test]
fn check_shows_every_fault_for_machines() {
    let output = run(folder(BAD).path(), &["check", "--format", "json"]);
    let report: Value = serde_json::from_str(out(&output)).unwrap();
    assert_eq!((&report["errors"], &report["warnings"]), (&2.into(), &0.into()));
    let first = &report["diagnostics"][0];
    assert_eq!(first["severity"], "error");
    assert!(first["code"].as_str().unwrap().starts_with("VG"));
    assert_eq!((&first["at"]["file"], &first["at"]["line"]), (&"routes.yaml".into(), &3.into()));
    let good = run(folder(GOOD).path(), &["check", "--format", "json"]);
    let report: Value = serde_json::from_str(out(&good)).unwrap();
    assert_eq!(report, serde_json::json!({ "errors": 0, "warnings": 0, "diagnostics": [] }));
}

#[test]
fn check_shows_every_fault_as_an_annotation() {
    let output = run(folder(BAD).path(), &["check", "--format", "github"]);
    let lines: Vec<_> = out(&output).lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("::error file=routes.yaml,line=3,col="), "{lines:?}");
    assert!(lines[1].starts_with("::error file=routes.yaml,line=4,col="), "{lines:?}");
}

#[test]
fn a_warning_is_a_finding_only_when_it_is_strict() {
    let folder = folder(WARNED);
    let lax = run(folder.path(), &["check"]);
    assert_eq!(lax.status.code(), Some(0));
    assert!(out(&lax).starts_with("warning[VG"), "{}", out(&lax));
    assert!(err(&lax).contains("(1 warnings)") || err(&lax).contains("(1 warning)"), "{}", err(&lax));
    let strict = run(folder.path(), &["check", "--strict"]);
    assert_eq!(strict.status.code(), Some(1));
    assert!(out(&strict).starts_with("error[VG"), "{}", out(&strict));
}

#[test]
fn the_manifest_is_named_by_the_environment_too() {
    let folder = folder(GOOD);
    std::fs::rename(folder.path().join("routes.yaml"), folder.path().join("mine.yaml")).unwrap();
    let output = command(folder.path()).arg("check").env("VOICEGATE_CONFIG", "mine.yaml").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
}

#[test]
fn routes_lists_the_table_as_compiled() {
    let output = run(folder(GOOD).path(), &["routes"]);
    let lines: Vec<_> = out(&output).lines().collect();
    assert_eq!(lines.len(), 3);
    let words: Vec<_> = lines[0].split_whitespace().collect();
    let wanted = [
        "GET",
        "/api/v1/things/:id",
        "public",
        "http://127.0.0.1:8000/things/:id/state",
        "recovery",
        "→",
        "cors",
        "→",
        "request_id",
    ];
    assert_eq!(words, wanted);
}

#[test]
fn routes_lists_the_table_as_json() {
    let output = run(folder(GOOD).path(), &["routes", "--json"]);
    let routes: Value = serde_json::from_str(out(&output)).unwrap();
    assert_eq!(routes.as_array().unwrap().len(), 3);
    assert_eq!(
        routes[2],
        serde_json::json!({ "method": "GET", "path": "/health", "access": "public", "target": "handler gateway.health", "chain": "" })
    );
}

fn explained(manifest: &str, arguments: &[&str]) -> (i32, String) {
    let output = run(folder(manifest).path(), &[&["explain"], arguments].concat());
    (output.status.code().unwrap(), out(&output).to_owned())
}

#[test]
fn explain_names_route_parameters_stages_and_target() {
    let (code, text) = explained(GOOD, &["get", "/api/v1/things/7?q=1"]);
    assert_eq!(code, 0);
    for part in [
        "GET /api/v1/things/7\n",
        "route   GET /api/v1/things/:id (v1)",
        "id = 7",
        "recovery          passes",
        "request_id        passes: makes an id",
        "target  http://127.0.0.1:8000/things/7/state\n",
    ] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
}

#[test]
fn explain_normalises_the_path_as_the_gateway_does() {
    let (code, text) = explained(GOOD, &["GET", "/api/%761/things/%7e"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("id = ~"), "{text}");
}

#[test]
fn explain_says_404_and_405() {
    let (code, text) = explained(GOOD, &["GET", "/nowhere"]);
    assert_eq!(code, 1);
    assert!(text.contains("404 not_found"), "{text}");
    let (code, text) = explained(GOOD, &["DELETE", "/api/v1/things"]);
    assert_eq!(code, 1);
    assert!(text.contains("405 method_not_allowed: the path serves POST, OPTIONS"), "{text}");
}

#[test]
fn explain_says_that_the_gateway_refuses_a_path() {
    let output = run(folder(GOOD).path(), &["explain", "GET", "/api/v1/%2e%2e/health"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("the gateway refuses this path"), "{}", err(&output));
}

#[test]
fn explain_looks_at_headers() {
    let (_, text) = explained(GOOD, &["GET", "/api/v1/things/7", "-H", "X-Request-ID: mine"]);
    assert!(text.contains("request_id        passes: takes over X-Request-ID"), "{text}");
    let hosts = "version: 1\nroutes:\n  - { route: GET /a, public: true, respond: {} }\n  - { route: GET /a, host: api.example.com, public: true, respond: { status: 204 } }\n";
    let (_, text) = explained(hosts, &["GET", "/a", "-H", "Host: API.example.com:443"]);
    assert!(text.contains("target  respond 204"), "{text}");
}

#[test]
fn explain_answers_a_preflight_as_the_gateway_would() {
    let preflight = |origin: &str| {
        let origin = format!("Origin: {origin}");
        explained(
            GOOD,
            &["OPTIONS", "/api/v1/things/7", "-H", &origin, "-H", "Access-Control-Request-Method: GET"],
        )
    };
    let (code, text) = preflight("https://app.example.com");
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("route   GET /api/v1/things/:id (v1)"), "{text}");
    assert!(text.contains("cors              answers 204"), "{text}");
    let (_, text) = preflight("https://evil.example.com");
    assert!(text.contains("cors              refuses with 403"), "{text}");
}

#[test]
fn explain_answers_a_plain_options_as_the_gateway_would() {
    let (code, text) = explained(GOOD, &["OPTIONS", "/api/v1/things/7"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("204") && text.contains("GET, HEAD, OPTIONS"), "{text}");
}

#[test]
fn diff_tells_added_removed_and_changed_routes() {
    let folder = folder(GOOD);
    let changed = GOOD
        .replace(
            "{ route: POST /things, public: true, upstream: algo }",
            "{ route: PUT /things, public: true, upstream: algo }",
        )
        .replace("/things/{id}/state", "/things/{id}");
    std::fs::write(folder.path().join("new.yaml"), changed).unwrap();
    let output = run(folder.path(), &["diff", "routes.yaml", "new.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    let wanted = "\
+ PUT /api/v1/things (public, http://127.0.0.1:8000/api/v1/things)
~ GET /api/v1/things/:id
    target: http://127.0.0.1:8000/things/:id/state → http://127.0.0.1:8000/things/:id
- POST /api/v1/things (public, http://127.0.0.1:8000/api/v1/things)
";
    assert_eq!(out(&output), wanted);
    assert_eq!(err(&output), "+1 ~1 −1; 1 unchanged\n");
}

#[test]
fn diff_sees_a_stage_that_a_shared_chain_lost() {
    let folder = folder(GOOD);
    let changed = GOOD.replace("[recovery, { cors: default }, request_id]", "[recovery, request_id]");
    std::fs::write(folder.path().join("new.yaml"), changed).unwrap();
    let output = run(folder.path(), &["diff", "routes.yaml", "new.yaml"]);
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    assert_eq!(out(&output).matches("stage cors: removed").count(), 2, "{}", out(&output));
}

#[test]
fn diff_of_equal_manifests_says_nothing() {
    let output = run(folder(GOOD).path(), &["diff", "routes.yaml", "routes.yaml"]);
    assert_eq!((output.status.code(), out(&output)), (Some(0), ""));
}

fn schema() -> Value {
    let output = run(&root(), &["schema"]);
    serde_json::from_str(out(&output)).unwrap()
}

/// Every `$ref` in a schema.
fn references(value: &Value, all: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            all.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
            members.values().for_each(|member| references(member, all));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, all)),
        _ => {}
    }
}

#[test]
fn every_reference_in_the_schema_resolves() {
    let schema = schema();
    let mut all = BTreeSet::new();
    references(&schema, &mut all);
    assert!(all.len() > 20, "{all:?}");
    for reference in all {
        let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference} is elsewhere"));
        assert!(schema.pointer(pointer).is_some(), "{reference} is not there");
    }
}

#[test]
fn the_checked_in_schema_is_the_one_that_is_printed() {
    let path = root().join("openapi/manifest.schema.json");
    let printed = run(&root(), &["schema"]);
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == out(&printed), "{} is out of date: run scripts/generate", path.display());
}

/// A manifest's files as JSON, `None` where one is no YAML at all.
fn document(path: &Path) -> Option<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    serde_saphyr::from_str(&text).ok()
}

fn yaml_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == "yaml")).collect();
    files.sort();
    files
}

#[test]
fn good_and_shipped_manifests_validate_against_the_schema() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let mut files = yaml_files(&root().join("tests/manifests/ok"));
    files.extend(yaml_files(&root().join("policies")));
    files.push(root().join("routes.yaml"));
    assert!(files.len() >= 10);
    for path in files {
        let document = document(&path).unwrap();
        let faults: Vec<_> = validator
            .iter_errors(&document)
            .map(|fault| format!("{} at {}", fault, fault.instance_path()))
            .collect();
        assert!(faults.is_empty(), "{}: {faults:#?}", path.display());
    }
}

#[test]
fn manifests_with_unknown_keys_do_not_validate_against_the_schema() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let folder = root().join("tests/manifests/bad");
    for name in ["unknown_keys", "missing_keys", "wrong_types", "stage_unknown", "units_missing"] {
        let document = document(&folder.join(format!("{name}.yaml"))).unwrap();
        assert!(!validator.is_valid(&document), "{name} is valid");
    }
    let document = document(&folder.join("unknown_keys.yaml")).unwrap();
    let faults: String = validator.iter_errors(&document).map(|fault| format!("{fault}\n")).collect();
    for key in ["upstrems", "respnd", "sttus"] {
        assert!(faults.contains(key), "{key} is not refused:\n{faults}");
    }
}

#[test]
fn completions_know_the_commands_in_every_shell() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = run(folder.path(), &["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        for word in ["serve", "check", "explain", "config"] {
            assert!(out(&output).contains(word), "{word} in {shell}");
        }
    }
}

#[test]
fn serve_shows_the_faults_of_an_unsound_manifest_and_leaves_nothing_running() {
    let folder = folder(BAD);
    // The port is free again once the command has ended, and was never taken.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let output = run(folder.path(), &["serve", "--listen", &free, "--admin-listen", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(1));
    let talk = err(&output);
    assert!(talk.contains("upstream `alog` is not defined") && talk.contains("routes.yaml:3:"), "{talk}");
    assert!(talk.contains("2 errors, 0 warnings: not started"), "{talk}");
    TcpListener::bind(&free).unwrap();
}

#[test]
fn serve_says_which_port_is_in_use() {
    let folder = folder(GOOD);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (flag, other) in [("--listen", "--admin-listen"), ("--admin-listen", "--listen")] {
        let output = run(folder.path(), &["serve", flag, &address, other, "127.0.0.1:0"]);
        assert_eq!(output.status.code(), Some(1), "{flag}");
        let talk = err(&output);
        assert!(
            talk.contains(&format!("can't listen on {address}")) && talk.contains("another process"),
            "{talk}"
        );
    }
}
