//! What is shipped works: the manifest, the demo and what it prints, and every manifest in the documentation.

use crate::harness::process::run;
use crate::harness::{Answer, Client, Gateway, Process, eventually};
use std::path::{Path, PathBuf};
use std::time::Duration;
use voicegate::demo::Demo;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// A gateway that serves the shipped files, with the demo behind it.
async fn shipped(demo: &Demo) -> Gateway {
    let text = |name: &str| std::fs::read_to_string(root().join(name)).unwrap();
    let manifest = text("routes.yaml").replacen("version: 1\n", "", 1);
    let mut builder = Gateway::with(&manifest).var("ALGO_SERVICE_URL", demo.url());
    for entry in std::fs::read_dir(root().join("policies")).unwrap() {
        let name = format!("policies/{}", entry.unwrap().file_name().to_string_lossy());
        builder = builder.file(&name, &text(&name));
    }
    builder.start().await
}

#[test]
fn the_shipped_manifest_has_no_fault_and_no_warning() {
    let output = run(&root(), &["check", "--strict"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
}

/// What a front end would send to a route: switches of the demo keep streams short.
fn request_for(path: &str) -> (String, String) {
    let body = r#"{"query": "Tell me", "session_id": "running"}"#.to_owned();
    let path = path.replace(":id", "running");
    if path.ends_with("/stream") { (format!("{path}?delay=0ms&tokens=3"), body) } else { (path, body) }
}

#[tokio::test]
async fn every_shipped_route_answers() {
    let demo = Demo::start().await.unwrap();
    let gateway = shipped(&demo).await;
    let routes = gateway.admin.get("/admin/api/routes").await.json();
    let routes = routes["routes"].as_array().unwrap().clone();
    assert!(routes.len() >= 9, "{routes:?}");
    for route in routes {
        let method = if route["method"] == "ANY" { "GET" } else { route["method"].as_str().unwrap() };
        let template = route["path"].as_str().unwrap();
        // Routes about a running answer need one; streams are limited, so the others get none.
        let mut running = None;
        if template.contains("/chat/") && !template.ends_with("/stream") {
            let ask = r#"{"query": "Tell me", "session_id": "running"}"#;
            let json = [("content-type", "application/json")];
            running =
                Some(gateway.client.open("POST", "/api/v2/chat/stream?stall_after=1", &json, ask).await);
            eventually("an answer is running", Duration::from_secs(10), || async {
                demo.stats().streams.running > 0
            })
            .await;
        }
        let (path, body) = request_for(template);
        let body = if method == "GET" { String::new() } else { body };
        let answer = gateway.client.send(method, &path, &[("content-type", "application/json")], &body).await;
        // What these do with a right body is shown in accounts.rs and sessions.rs; here they are there, and refuse.
        let ours = ["/auth/", "/v01/sessions"].iter().any(|part| template.contains(part));
        let refused = ours && matches!(answer.status.as_u16(), 400 | 401 | 404 | 429);
        assert!(
            answer.status.is_success() || refused,
            "{method} {path}: {} {}",
            answer.status,
            answer.text()
        );
        drop(running);
        eventually("it has ended", Duration::from_secs(10), || async { demo.stats().streams.running == 0 })
            .await;
    }
}

/// One `curl` command as it was printed, without the program's name.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in command.replace("\\\n", " ").chars() {
        match c {
            '\'' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => {
                words.extend(Some(std::mem::take(&mut word)).filter(|w| !w.is_empty()))
            }
            c => word.push(c),
        }
    }
    words.extend(Some(word).filter(|w| !w.is_empty()));
    words
}

/// Does what a printed `curl` command would do.
async fn curl(command: &str) -> Answer {
    let (mut headers, mut url, mut body, mut method) =
        (Vec::new(), String::new(), String::new(), "GET".to_owned());
    let mut words = words(command).into_iter().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "-N" | "-i" | "-s" => {}
            "-H" => headers.push(words.next().unwrap()),
            "-X" => method = words.next().unwrap(),
            "-d" => {
                body = words.next().unwrap();
                method = "POST".to_owned();
            }
            flag if flag.starts_with('-') => panic!("curl {flag}: {command}"),
            address => url = address.to_owned(),
        }
    }
    let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let headers: Vec<_> =
        headers.iter().map(|header| header.split_once(':').unwrap()).map(|(n, v)| (n, v.trim())).collect();
    Client::new(address.parse().unwrap()).send(&method, &format!("/{path}"), &headers, &body).await
}

/// The `curl` commands in a text; a backslash continues a line.
fn commands(text: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in text.lines() {
        let trimmed = line.trim();
        match goes_on {
            true => all.last_mut().unwrap().push_str(&format!("\n{trimmed}")),
            false if trimmed.starts_with("curl ") => all.push(trimmed.to_owned()),
            false => continue,
        }
        goes_on = trimmed.ends_with('\\');
    }
    all
}

#[tokio::test]
async fn the_demo_starts_anywhere_and_the_commands_it_prints_work() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::serve_in(folder, &["--demo"], &[]).await;
    eventually("it says what to try", Duration::from_secs(10), || {
        std::future::ready(process.stderr().contains("Ctrl-C stops"))
    })
    .await;
    let (public, admin) = (process.client.address().to_string(), process.admin.address().to_string());
    let commands = commands(&process.stderr());
    assert!(commands.len() >= 4, "{commands:?}");
    for command in &commands {
        assert!(command.contains(&public) || command.contains(&admin), "real addresses: {command}");
        let answer = curl(command).await;
        match command.contains("/nowhere") {
            true => assert_eq!(answer.json()["error"], "资源不存在", "{command}"),
            false => assert_eq!(answer.status, 200, "{command}: {}", answer.text()),
        }
        if command.contains("/chat/stream") {
            assert!(answer.text().contains("event: token") && answer.text().contains("event: done"));
        }
    }
    for needed in ["/chat/stream", "/health", "/metrics"] {
        assert!(
            commands.iter().any(|command| command.contains(needed)),
            "{needed} is not shown: {commands:?}"
        );
    }
}

#[tokio::test]
async fn the_demo_leaves_nothing_behind() {
    let (folder, temporary) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let temporary_path = temporary.path().to_str().unwrap().to_owned();
    let mut process = Process::serve_in(folder, &["--demo"], &[("TMPDIR", &temporary_path)]).await;
    let left = || std::fs::read_dir(temporary.path()).unwrap().count();
    assert_eq!(left(), 1, "the manifest it serves");
    process.signal("TERM");
    assert_eq!(process.ended(Duration::from_secs(10)).await.code(), Some(0));
    assert_eq!(left(), 0);
}

fn documents(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            documents(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            all.push(path);
        }
    }
}

/// Code blocks marked as YAML that are whole manifests, with the number of their first line.
fn manifests(text: &str) -> Vec<(usize, String)> {
    let mut all = Vec::new();
    let mut block: Option<(usize, String)> = None;
    for (number, line) in text.lines().enumerate() {
        match &mut block {
            None if line.trim() == "```yaml" => block = Some((number + 2, String::new())),
            None => {}
            Some(_) if line.trim() == "```" => {
                all.extend(block.take().filter(|(_, text)| text.starts_with("version: 1\n")));
            }
            Some((_, text)) => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    all
}

#[test]
fn every_manifest_in_the_documentation_is_sound() {
    let mut paths = Vec::new();
    documents(&root().join("docs"), &mut paths);
    let readme = root().join("README.md");
    if readme.exists() {
        let text = std::fs::read_to_string(&readme).unwrap();
        assert!(!manifests(&text).is_empty(), "README.md shows no manifest");
        paths.push(readme);
    }
    for path in paths {
        for (line, text) in manifests(&std::fs::read_to_string(&path).unwrap()) {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("routes.yaml"), &text).unwrap();
            // What a snippet includes is what is shipped.
            std::fs::create_dir(folder.path().join("policies")).unwrap();
            for entry in std::fs::read_dir(root().join("policies")).unwrap() {
                let from = entry.unwrap().path();
                std::fs::copy(&from, folder.path().join("policies").join(from.file_name().unwrap())).unwrap();
            }
            let output = run(folder.path(), &["check"]);
            let faults = String::from_utf8_lossy(&output.stdout);
            assert_eq!(output.status.code(), Some(0), "{}:{line}:\n{faults}", path.display());
        }
    }
}

#[test]
fn manifests_are_found_in_documents() {
    let text = "a\n```yaml\nversion: 1\nroutes: []\n```\n```yaml\nroutes: []\n```\n```sh\nversion: 1\n```\n";
    assert_eq!(manifests(text), [(3, "version: 1\nroutes: []\n".to_owned())]);
}
