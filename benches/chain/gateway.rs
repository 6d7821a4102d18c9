//! The gateway that is measured: a process of its own with its log on a pipe, as in production, and a service behind it.

use super::load::{Caller, post};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Every benchmark of requests has these; more routes may follow.
pub const MANIFEST_OF_ALL: &str = r#"version: 1
upstreams: { app: { targets: [{ url: "${APP}" }] } }
cors: { default: { origins: ["http://localhost:3000"], credentials: true } }
rate_limits: { default: { limit: 1000000000, per: 1m, by: [ip, route] } }
roles: { user: { allow: ["session:read"] } }
chains:
  bare: []
  full: [access_log, recovery, { cors: default }, request_id, metrics, security_headers, { rate_limit: default },
         { body_limit: 1MiB }, auth, { rbac: "session:read" }, tenant]
routes:
  - { route: GET /bare/fixed, chain: bare, public: true, respond: { text: hello } }
  - { route: GET /bare/proxied, chain: bare, public: true, upstream: app, path: / }
  - { route: GET /bare/events, chain: bare, public: true, upstream: app, path: /events, protocol: sse }
  - { route: GET /full/fixed, chain: full, respond: { text: hello } }
  - { route: GET /full/proxied, chain: full, upstream: app, path: / }
  - { route: POST /register, chain: [recovery], public: true, handler: auth.register }
  - { route: POST /login, chain: [recovery], public: true, handler: auth.login }
"#;

const VOICEGATE: &str = env!("CARGO_BIN_EXE_voicegate");

/// A running `voicegate serve`. Killed when dropped.
pub struct Gateway {
    pub process: Child,
    _folder: tempfile::TempDir,
    pub address: SocketAddr,
    /// Of a user.
    pub token: String,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Gateway {
    /// Over SQLite, with Redis or with state in memory.
    pub async fn start(app: SocketAddr, redis: Option<&str>) -> Self {
        let redis = redis.map(|url| ("REDIS_URL", url));
        Self::start_with(MANIFEST_OF_ALL, app, redis.as_slice()).await
    }

    /// With another manifest, which has `/register`, and these variables.
    pub async fn start_with(manifest: &str, app: SocketAddr, variables: &[(&str, &str)]) -> Self {
        Self::run(Command::new(VOICEGATE), manifest, app, variables).await
    }

    /// With one worker, under callgrind, which writes what it counts to `counts`.
    #[allow(dead_code, reason = "not every benchmark counts")]
    pub async fn counted(manifest: &str, app: SocketAddr, counts: &Path) -> Self {
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["--tool=callgrind", "--quiet"]);
        valgrind.arg(format!("--callgrind-out-file={}", counts.display())).arg(VOICEGATE);
        let path = std::env::var("PATH").unwrap_or_default();
        Self::run(valgrind, manifest, app, &[("WORKERS", "1"), ("PATH", &path)]).await
    }

    async fn run(mut command: Command, manifest: &str, app: SocketAddr, variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the gateway");
        std::fs::write(folder.path().join("routes.yaml"), manifest).expect("the folder is ours");
        let mut process = command
            .args(["serve", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"])
            .current_dir(folder.path())
            .env_clear()
            .env("APP", format!("http://{app}"))
            .env("LOG_FORMAT", "json")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the gateway can be run");
        let log = BufReader::new(process.stderr.take().expect("it is piped"));
        let (tell, told) = mpsc::channel();
        // Reads on for as long as the gateway lives: who collects a log reads it.
        std::thread::spawn(move || {
            let mut before = String::new();
            for line in log.lines().map_while(Result::ok) {
                if let Some(address) = listening(&line) {
                    let _ = tell.send(Ok(address));
                }
                if before.len() < 10_000 {
                    before = before + &line + "\n";
                }
            }
            let _ = tell.send(Err(before));
        });
        let address = match told.recv_timeout(Duration::from_secs(60)) {
            Ok(Ok(address)) => address,
            other => panic!("the gateway does not listen: {other:?}"),
        };
        let mut gateway = Gateway { process, _folder: folder, address, token: String::new() };
        gateway.token = gateway.register().await;
        gateway
    }

    async fn register(&self) -> String {
        let ann = r#"{"username":"ann","email":"ann@example.com","password":"Correct1horse"}"#;
        let answer = Caller::connect(self.address).await.ask(&post(self.address, "/register", ann)).await;
        let said: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
        said["access_token"].as_str().unwrap_or_else(|| panic!("no token: {said}")).to_owned()
    }
}

/// The address in the line that says it.
fn listening(line: &str) -> Option<SocketAddr> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    (line["message"] == "listening").then(|| line["address"].as_str()?.parse().ok()).flatten()
}

/// A service that answers every request alike, on a thread of its own that ends with the process.
pub fn service() -> SocketAddr {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            tell.send(listener.local_addr().expect("it is bound")).expect("who asked waits");
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::spawn(async move {
                    let mut read = Vec::with_capacity(4096);
                    // Bodies are empty, and the gateway sends a request at a time.
                    while stream.read_buf(&mut read).await.is_ok_and(|count| count > 0) {
                        if read.ends_with(b"\r\n\r\n") {
                            read.clear();
                            let answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello";
                            if stream.write_all(answer).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
    });
    told.recv().expect("the service starts")
}
