//! The TypeScript client: it compiles as strictly as TypeScript can, is small, and does what it says on Node and in Chromium.

use crate::harness::node;
use crate::harness::process::run;
use std::path::Path;

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

#[test]
fn breaking_changes_of_an_api_are_findings() {
    let folder = folder(&["--from", "api.json"], &[]);
    let old = ours("api.json");
    let new = old.replace(
        "\"required\":[\"username\",\"password\"]",
        "\"required\":[\"username\",\"password\",\"tenant\"]",
    );
    let new = new.replace("{\"username\":{", "{\"tenant\":{\"type\":\"string\"},\"username\":{");
    assert_ne!(old, new);
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
    // Without `--api` there is nothing to write in another form.
    let output = run(folder.path(), &["diff", "api.json", "new.json", "--format", "json"]);
    assert_eq!(output.status.code(), Some(2));
}
