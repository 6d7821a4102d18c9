//! What is shipped works: the manifest, the demo and what it prints, and every manifest in the documentation.

use crate::harness::process::run;
use crate::harness::{Gateway, Process, eventually};
use crate::sockets::bed;
use std::path::{Path, PathBuf};
use std::time::Duration;
use voicegate::demo::Demo;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// A gateway that serves the shipped files, with the demo behind it.
pub async fn shipped(demo: &Demo) -> Gateway {
    shipped_with(demo, |manifest| manifest).await
}

/// The same, with its `routes.yaml` changed.
pub async fn shipped_with(demo: &Demo, change: impl FnOnce(String) -> String) -> Gateway {
    let text = |name: &str| std::fs::read_to_string(root().join(name)).unwrap();
    let manifest = change(text("routes.yaml").replacen("version: 1\n", "", 1));
    let mut builder = Gateway::with(&manifest);
    for service in ["ALGO", "DOCUMENT", "NOTIFICATION"] {
        builder = builder.var(&format!("{service}_SERVICE_URL"), demo.url());
    }
    for folder in ["policies", "openapi/upstreams", "openapi/protos"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
                builder = builder.file(&name, &text(&name));
            }
        }
    }
    builder.start().await
}

#[test]
fn the_shipped_manifests_have_no_fault_and_no_warning() {
    for manifest in ["routes.yaml", "examples/microservices.yaml"] {
        let output = run(&root(), &["check", "--strict", "--config", manifest]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

/// Where callers open WebSockets.
const SOCKETS: [&str; 4] = ["/voice/stream", "/voice/ws", "/webrtc/signaling", "/v2/notifications"];

/// What a front end would send to a route, its content type last: switches of the demo keep streams short.
fn request_for(path: &str) -> (String, String, &'static str) {
    let json = "application/json";
    let body = r#"{"query": "Tell me", "session_id": "running", "text": "Hi"}"#.to_owned();
    let path = path.replace(":id", "running").replace("*page", "errors").replace(":document", "v01.yaml");
    if path.ends_with("/watch") {
        return (format!("{path}?existing=true&max_events=1"), body, json);
    }
    if ["/voice/transcribe", "/voice/query"].iter().any(|form| path.ends_with(form)) {
        let audio = "--b\r\ncontent-disposition: form-data; name=audio\r\ncontent-type: audio/wav\r\n\r\nx\r\n--b--\r\n";
        return (path, audio.to_owned(), "multipart/form-data; boundary=b");
    }
    if path.ends_with("/stream") {
        (format!("{path}?delay=0ms&tokens=3"), body, json)
    } else {
        (path, body, json)
    }
}

#[tokio::test]
async fn every_shipped_route_answers() {
    let demo = Demo::start().await.unwrap();
    let gateway = shipped(&demo).await;
    let routes = gateway.admin.get("/admin/api/routes").await.json();
    let routes = routes["routes"].as_array().unwrap().clone();
    assert!(routes.len() >= 9, "{routes:?}");
    let said = gateway.client.post("/api/v01/auth/register", ANN).await;
    assert_eq!(said.status, 201, "{}", said.text());
    let bearer = format!("Bearer {}", said.json()["access_token"].as_str().unwrap());
    let json = [("content-type", "application/json"), ("authorization", &*bearer)];
    // So that there is something to watch.
    let made = gateway.client.send("POST", "/api/v01/documents", &json, r#"{"title": "One"}"#).await;
    assert_eq!(made.status, 201, "{}", made.text());
    for route in routes {
        let method = if route["method"] == "ANY" { "GET" } else { route["method"].as_str().unwrap() };
        let template = route["path"].as_str().unwrap();
        if template.starts_with("/voicehelper.") {
            // grpc/documents.rs calls it.
            continue;
        }
        // Routes about a running answer need one; streams are limited, so the others get none.
        let mut running = None;
        if template.contains("/chat/") && !template.ends_with("/stream") {
            let ask = r#"{"query": "Tell me", "session_id": "running"}"#;
            running =
                Some(gateway.client.open("POST", "/api/v2/chat/stream?stall_after=1", &json, ask).await);
            eventually("an answer is running", Duration::from_secs(10), || async {
                demo.stats().streams.running > 0
            })
            .await;
        }
        let (path, body, content_type) = request_for(template);
        let headers = [("content-type", content_type), json[1]];
        if SOCKETS.iter().any(|socket| template.ends_with(socket)) && method == "GET" {
            let stranger = bed::refused(gateway.client.address(), &path, &[]).await;
            assert_eq!(stranger, (401, "no_token".to_owned()), "{path}");
            bed::open_with(gateway.client.address(), &path, &headers[1..]).await;
            continue;
        }
        let body = if method == "GET" { String::new() } else { body };
        // What needs a token is refused without one, before anything is asked behind the gateway.
        let stranger = gateway.client.send(method, &path, &headers[..1], &body).await;
        let open = [
            "/auth/register",
            "/auth/login",
            "/auth/refresh",
            "/auth/password/forgot",
            "/auth/password/reset",
        ];
        let open = open.iter().chain(&["/auth/wechat/login", "/health", "/livez", "/readyz"]);
        let open = open.chain(&["/docs", "/docs/*page", "/openapi.json", "/openapi/:document"]);
        let guarded = !open.into_iter().any(|open| template.ends_with(open));
        assert_eq!(stranger.status == 401, guarded, "{method} {path}: {}", stranger.text());
        let answer = gateway.client.send(method, &path, &headers, &body).await;
        // What these do with a right body is shown in accounts.rs and sessions.rs; here they are there, and refuse.
        let ours = ["/auth/", "/v01/sessions", "/v01/chat/", "/v01/documents"]
            .iter()
            .any(|part| template.contains(part));
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

/// The commands in a text, as they would be pasted; a backslash continues a line.
fn commands(text: &str) -> String {
    let (mut script, mut goes_on) = (String::new(), false);
    for line in text.lines().map(str::trim) {
        if goes_on || line.starts_with("curl ") || line.contains("=$(curl ") {
            script.push_str(line);
            script.push('\n');
            goes_on = line.ends_with('\\');
        }
    }
    script
}

/// Pastes commands into a shell: what they print, and the status and URL of each call.
fn paste(script: &str) -> (String, Vec<(String, String)>) {
    let told =
        "curl() { command curl -sS --max-time 20 -w '%{stderr}%{http_code} %{url_effective}\\n' \"$@\"; }";
    // Where what they write is of no matter.
    let folder = tempfile::tempdir().unwrap();
    let mut shell = std::process::Command::new("sh");
    let output =
        shell.args(["-c", &format!("{told}\n{script}")]).current_dir(folder.path()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let called = |line: &str| line.split_once(' ').map(|(status, url)| (status.to_owned(), url.to_owned()));
    let calls: Vec<_> = stderr.lines().map(|line| called(line).expect(&stderr)).collect();
    assert_eq!(calls.len(), script.matches("curl ").count(), "{stderr}");
    (String::from_utf8(output.stdout).unwrap(), calls)
}

/// Pastes, and holds that every call answers as it should.
async fn pasted(script: String) -> String {
    let (said, calls) = tokio::task::spawn_blocking(move || paste(&script)).await.unwrap();
    for (status, url) in &calls {
        let wanted = match url {
            url if url.ends_with("/nowhere") => "404",
            url if ["/register", "/sessions", "/documents"].iter().any(|end| url.ends_with(end)) => "201",
            _ => "200",
        };
        assert_eq!(status, wanted, "{url}: {said}");
    }
    for needed in ["/register", "/login", "/chat/stream", "/health"] {
        assert!(calls.iter().any(|(_, url)| url.ends_with(needed)), "{needed} is not shown: {calls:?}");
    }
    // Either dialect.
    let whole = said.contains(r#""type":"token""#) && said.contains(r#""type":"end""#)
        || said.contains("event: token") && said.contains("event: done");
    assert!(whole, "{said}");
    said
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
    let script = commands(&process.stderr());
    for line in script.lines().filter(|line| line.contains("http://")) {
        assert!(line.contains(&public) || line.contains(&admin), "real addresses: {line}");
    }
    let said = pasted(script).await;
    let history = [r#""role":"user","content":"Tell me about gateways""#, r#""role":"assistant""#];
    assert!(history.iter().all(|message| said.contains(message)), "{said}");
    assert!(said.contains("资源不存在") && said.contains("http_requests_total"), "{said}");
}

#[tokio::test]
async fn the_commands_of_the_readme_work() {
    let process = Process::serve_in(tempfile::tempdir().unwrap(), &["--demo"], &[]).await;
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let script = commands(&readme).replace("127.0.0.1:8080", &process.client.address().to_string());
    pasted(script).await;
}

const ANN: &str = r#"{"username": "ann", "email": "ann@example.com", "password": "Gateway1"}"#;

#[tokio::test]
async fn a_demo_shows_the_lockout() {
    let process = Process::serve_in(tempfile::tempdir().unwrap(), &["--demo"], &[]).await;
    assert_eq!(process.client.post("/api/v01/auth/register", ANN).await.status, 201);
    let mut answers = Vec::new();
    for password in ["Wrong123", "Wrong123", "Wrong123", "Wrong123", "Wrong123", "Wrong123", "Gateway1"] {
        let asked = format!(r#"{{"username": "ANN", "password": "{password}"}}"#);
        answers.push(process.client.post("/api/v01/auth/login", &asked).await.status.as_u16());
    }
    assert_eq!(answers, [401, 401, 401, 401, 401, 423, 423]);
}

/// Entries of a folder.
fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test]
async fn the_demo_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().unwrap();
    // Text that a URL would read as something else.
    let temporary = temporary.path().join("a b?c%41#d");
    std::fs::create_dir(&temporary).unwrap();
    let environment = [("TMPDIR", temporary.to_str().unwrap())];
    for killed in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path().to_owned();
        let mut process = Process::serve_in(folder, &["--demo"], &environment).await;
        // Yesterday's users are gone, also those of a demo that was killed.
        assert_eq!(process.client.post("/api/v01/auth/register", ANN).await.status, 201);
        assert_eq!(entries(&here), Vec::<PathBuf>::new(), "nothing of it in the current folder");
        assert_eq!(entries(&temporary).len(), 1, "what it serves and keeps");
        process.signal(if killed { "KILL" } else { "TERM" });
        let code = process.ended(Duration::from_secs(10)).await.code();
        assert_eq!(code, (!killed).then_some(0));
        assert_eq!(entries(&temporary).len(), usize::from(killed));
    }
}

#[tokio::test]
async fn a_demo_keeps_users_where_it_is_told_to() {
    let kept = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}", kept.path().join("kept.db").display());
    let environment = [("DATABASE_URL", &*database)];
    let mut answers = Vec::new();
    for _ in 0..2 {
        let mut process = Process::serve_in(tempfile::tempdir().unwrap(), &["--demo"], &environment).await;
        answers.push(process.client.post("/api/v01/auth/register", ANN).await.status.as_u16());
        process.signal("TERM");
        process.ended(Duration::from_secs(10)).await;
    }
    assert_eq!(answers, [201, 409]);
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
            std::fs::create_dir_all(folder.path().join("openapi/protos")).unwrap();
            for service in ["auth", "documents", "sessions"] {
                let name = format!("openapi/protos/{service}.proto");
                std::fs::copy(root().join(&name), folder.path().join(&name)).unwrap();
            }
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
