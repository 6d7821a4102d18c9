//! The gateway as a process of its own, for what only shows there: its log.

use super::Client;
use super::client::PATIENCE;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// A running `voicegate serve` that logs JSON.
pub struct Process {
    pub client: Client,
    child: Child,
    lines: UnboundedReceiver<String>,
    _folder: tempfile::TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    /// With this as its `routes.yaml`; `version: 1` is put before it.
    pub async fn serve(manifest: &str, flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("routes.yaml");
        std::fs::write(&config, format!("version: 1\n{manifest}")).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_voicegate"))
            .arg("serve")
            .arg(format!("--config={}", config.display()))
            .args(["--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--log-format=json"])
            .args(flags)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (tell, mut lines) = unbounded_channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).all(|line| tell.send(line).is_ok()));
        let listening = matching(&mut lines, |line| line["message"] == "listening").await;
        let address: SocketAddr = listening["address"].as_str().unwrap().parse().unwrap();
        Process { client: Client::new(address), child, lines, _folder: folder }
    }

    /// The next line of its log for which this holds; those before are passed over.
    pub async fn line(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        matching(&mut self.lines, wanted).await
    }

    /// What it has logged and nobody looked at.
    pub fn rest(&mut self) -> String {
        let mut text = String::new();
        while let Ok(line) = self.lines.try_recv() {
            text.push_str(&line);
            text.push('\n');
        }
        text
    }
}

async fn matching(lines: &mut UnboundedReceiver<String>, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut seen = String::new();
    loop {
        let line = tokio::time::timeout(PATIENCE, lines.recv()).await;
        let Ok(Some(line)) = line else { panic!("no such line in:\n{seen}") };
        match serde_json::from_str(&line) {
            Ok(value) if wanted(&value) => return value,
            _ => seen.push_str(&(line + "\n")),
        }
    }
}
