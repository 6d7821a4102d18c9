//! The guides, followed to the letter.

use crate::harness::{Browser, Gateway, Process, node};
use std::path::Path;

/// What a guide tells to type into a shell; what runs until it is stopped is marked `console` and left out.
fn commands(guide: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guides").join(guide);
    let text = std::fs::read_to_string(path).unwrap();
    let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.collect()
}

/// A gateway that serves the files of a front end, as `http.server` does.
async fn serving(folder: &Path, names: &[(&str, &str)], at: std::net::SocketAddr) -> Gateway {
    let mut manifest = "routes:\n".to_owned();
    for (name, kind) in names {
        let text = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        let text = serde_json::to_string(&text).unwrap().replace('$', "$$");
        let path = name.replace("index.html", "");
        manifest.push_str(&format!(
            "  - {{ route: GET /{path}, public: true, respond: {{ text: {text}, headers: {{ content-type: {kind} }} }} }}\n"
        ));
    }
    Gateway::with(&manifest).flag("--listen", &at.to_string()).start().await
}

/// What the demo tells to try, typed as it stands there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_the_demo_tells_to_try_works() {
    let process = Process::serve_in(tempfile::tempdir().unwrap(), &["--demo"], &[]).await;
    let said = process.stderr();
    let docs = format!("http://{}/docs", process.client.address());
    assert!(said.contains(&format!("Open {docs} in a browser")), "{said}");
    assert_eq!(process.client.get("/docs").await.status, 200);
    let hints = said.split_once("Or type:").unwrap().1.split("\nEdit ").next().unwrap();
    assert!(hints.matches("curl").count() > 12, "{hints}");
    // Each command behind its number, so that its answer can be told.
    let mut script = String::new();
    let mut number = 0;
    for line in hints.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
        // Further in than the others: the line before goes on.
        if !line.starts_with("   ") {
            number += 1;
            script.push_str(&format!("echo; echo \"#{number}\"\n"));
        }
        script.push_str(&format!("{line}\n"));
    }
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().to_owned();
    let typed = script.clone();
    let output = tokio::task::spawn_blocking(move || {
        std::process::Command::new("sh").args(["-euc", &typed]).current_dir(here).output().unwrap()
    })
    .await
    .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}\n{script}", node::said(&output));
    for wanted in [
        "access_token",
        r#""type":"token""#,
        r#""role":"assistant""#,
        r#""text""#,
        r#""ticket""#,
        "A gRPC service keeps this",
        "资源不存在",
        "ready",
        "# HELP",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    // Only the address that is not there is refused.
    let refused = text.matches("application/problem+json").count() + text.matches(r#""status":4"#).count();
    assert!(refused <= 2 && !text.contains(r#""status":5"#), "{text}");
    let document = std::fs::read(folder.path().join("openapi.json")).unwrap();
    assert!(serde_json::from_slice::<serde_json::Value>(&document).unwrap()["paths"].is_object());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_front_end_developer_gets_to_the_first_token() {
    let begun = std::time::Instant::now();
    let folder = tempfile::tempdir().unwrap();
    // The demo must know whose pages may call it before the page has an address: any origin that will do is found first.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let page_at = listener.local_addr().unwrap();
    drop(listener);
    let origin = format!("http://{page_at}");
    let environment = [("WEB_ORIGIN", &*origin)];
    let process = Process::serve_in(tempfile::tempdir().unwrap(), &["--demo"], &environment).await;
    let gateway = format!("http://{}", process.client.address());

    let script = commands("frontend.md").replace("http://localhost:8080", &gateway);
    // What is installed for the other tests is not fetched again.
    let script = script.replace("npm install --silent --no-save typescript\n", "");
    std::os::unix::fs::symlink(node::modules(), folder.path().join("node_modules")).unwrap();
    let binaries = Path::new(env!("CARGO_BIN_EXE_voicegate")).parent().unwrap();
    let path = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap());
    let here = folder.path().to_owned();
    let output = tokio::task::spawn_blocking(move || {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-euc", &script]).current_dir(here).env("PATH", path).output().unwrap()
    })
    .await
    .unwrap();
    assert!(output.status.success(), "{}", node::said(&output));

    let files = [("index.html", "text/html"), ("main.js", "text/javascript"), ("api.js", "text/javascript")];
    let pages = serving(folder.path(), &files, page_at).await;
    let browser = Browser::start().await;
    let page = browser.open(&format!("http://{}/", pages.client.address())).await;
    page.until("document.getElementById('answer').textContent.length > 0").await;
    page.until("document.title === 'complete'").await;
    assert_eq!(page.complaints(), Vec::<String>::new());
    assert!(begun.elapsed().as_secs() < 300, "it takes less than five minutes");
}
