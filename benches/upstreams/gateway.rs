//! The gateway that is measured, and what callers do.

use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const MANIFEST: &str = r#"version: 1
upstreams:
  app:
    targets: [{ url: "${ONE}" }, { url: "${TWO}" }, { url: "${THREE}" }]
    health: { tcp: true, interval: 1s, timeout: 500ms }
    outlier: { eject_for: 3s, max_eject_for: 6s }
routes:
  - { route: GET /, chain: [], public: true, upstream: app }
"#;

/// A running `voicegate serve`. Killed when dropped.
pub struct Gateway {
    process: Child,
    _folder: tempfile::TempDir,
    pub address: SocketAddr,
    pub admin: SocketAddr,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Gateway {
    /// Before these targets.
    pub async fn start(targets: [SocketAddr; 3]) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the gateway");
        std::fs::write(folder.path().join("routes.yaml"), MANIFEST).expect("the folder is ours");
        let [one, two, three] = targets.map(|target| format!("http://{target}"));
        let mut process = Command::new(env!("CARGO_BIN_EXE_voicegate"))
            .args(["serve", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"])
            .current_dir(folder.path())
            .env_clear()
            .envs([("ONE", one), ("TWO", two), ("THREE", three)])
            .env("LOG_FORMAT", "json")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the gateway can be run");
        let log = BufReader::new(process.stderr.take().expect("it is piped"));
        let (tell, told) = mpsc::channel();
        // Reads on for as long as the gateway lives: who collects a log reads it.
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                let Ok(line) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
                if line["message"] == "listening" {
                    let address = |key: &str| line[key].as_str().and_then(|text| text.parse().ok());
                    if let (Some(address), Some(admin)) = (address("address"), address("admin")) {
                        let _ = tell.send((address, admin));
                    }
                }
            }
        });
        let (address, admin) = told.recv_timeout(Duration::from_secs(30)).expect("the gateway listens");
        Gateway { process, _folder: folder, address, admin }
    }
}

/// One request over a connection of its own; the status and the body.
pub async fn get(address: SocketAddr, path: &str) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut read = Vec::with_capacity(4096);
    stream.read_to_end(&mut read).await?;
    let end = read.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)? + 4;
    let status = std::str::from_utf8(&read[..end]).ok().and_then(|head| head.get(9..12)?.parse().ok());
    Ok((status.ok_or(io::ErrorKind::InvalidData)?, read.split_off(end)))
}
