//! The codes of errors and diagnostics: every problem says where its code is described, and the descriptions are current.

use crate::harness::process::run;
use crate::harness::{Gateway, eventually};
use std::path::Path;
use std::time::Duration;

#[test]
fn the_checked_in_catalogues_are_the_ones_that_are_printed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for codes in ["errors", "diagnostics"] {
        let printed = run(root, &["catalogue", codes]);
        let kept = std::fs::read(root.join(format!("docs/{codes}.md"))).unwrap_or_default();
        assert!(kept == printed.stdout, "docs/{codes}.md is out of date: run scripts/generate");
    }
}

#[test]
fn explain_says_what_a_code_stands_for() {
    let folder = tempfile::tempdir().unwrap();
    let explain = |code: &str| {
        let output = run(folder.path(), &["explain", code]);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    // No manifest is needed.
    let (code, said, _) = explain("VG031");
    assert_eq!((code, said.lines().next().unwrap()), (0, "VG031: an upstream is not defined"));
    assert_eq!(explain("vg031").1, said);
    let (code, said, _) = explain("rate_limited");
    assert!(code == 0 && said.starts_with("rate_limited (429)") && said.contains("Cure: "), "{said}");
    for (mistyped, meant) in [("VG0311", "VG031"), ("rate_limit", "rate_limited")] {
        let (code, said, talk) = explain(mistyped);
        assert!(code == 2 && said.is_empty(), "{said}");
        assert!(talk.contains(&format!("`{mistyped}`")) && talk.contains(meant), "{talk}");
    }
}

const PLAIN: &str = "routes:\n  - { route: GET /a, respond: { text: a }, public: true }\n";

fn documented_at(path: &str) -> String {
    format!("{PLAIN}  - {{ route: GET {path}, handler: gateway.docs, chain: [request_id], public: true }}\n")
}

#[tokio::test]
async fn the_type_of_a_problem_leads_to_what_its_code_means() {
    let gateway = Gateway::with(PLAIN).start().await;
    let kind = async || gateway.client.get("/nowhere").await.json()["type"].as_str().unwrap().to_owned();
    assert_eq!(kind().await, "urn:voicegate:error:not_found", "nothing describes it here");
    for home in ["/docs", "/api/documentation"] {
        gateway.rewrite(&documented_at(home));
        let wanted = format!("{home}/errors#not_found");
        eventually("problems lead there", Duration::from_secs(5), async || kind().await == wanted).await;
        let page = gateway.client.get(&format!("{home}/errors")).await;
        assert!(page.status == 200 && page.text().contains("id=\"not_found\""), "{page:?}");
    }
    // What is refused before a route is looked for, too.
    let refused = gateway.client.get("/a/../b%2f").await;
    assert_eq!(refused.json()["type"], "/api/documentation/errors#invalid_path");
}

#[tokio::test]
async fn the_documentation_stands_wherever_it_is_put_and_is_held_to_its_policy() {
    let gateway = Gateway::with(&documented_at("/api/docs")).start().await;
    let home = gateway.client.get("/api/docs").await;
    assert_eq!(home.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = home.header("content-security-policy").unwrap();
    for wanted in ["default-src 'none'", "script-src 'self';", "connect-src 'self'", "frame-ancestors 'none'"]
    {
        assert!(policy.contains(wanted), "{policy}");
    }
    assert!(!policy.contains("eval") && !policy.contains("http"), "{policy}");
    assert_eq!(home.header("x-content-type-options"), Some("nosniff"));
    let etag = home.header("etag").unwrap();
    let again = gateway.client.send("GET", "/api/docs", &[("if-none-match", etag)], "").await;
    assert_eq!((again.status.as_u16(), again.body.len()), (304, 0));
    // Every file it names is there, for good, in the coding that the caller reads.
    let files: Vec<&str> = home.text().split('"').filter(|part| part.starts_with("docs/assets/")).collect();
    assert!(files.len() >= 4, "{files:?}");
    for file in files {
        for coding in ["br", "gzip", "identity"] {
            let path = format!("/api/{file}");
            let answer = gateway.client.send("GET", &path, &[("accept-encoding", coding)], "").await;
            assert_eq!(answer.status, 200, "{path}");
            assert!(answer.header("cache-control").unwrap().contains("immutable"));
            assert!(answer.header("content-encoding").is_none_or(|said| said == coding), "{path}");
        }
    }
    for missing in ["/api/docs/nothing", "/api/docs/assets/0/page.js", "/api/docs/assets/", "/docs"] {
        assert_eq!(gateway.client.get(missing).await.code(), "not_found", "{missing}");
    }
}
