//! The real binary, in a folder of its own: for what only a process has, such as signals, exit codes and stderr.

use super::client::PATIENCE;
use super::{Client, eventually};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// `voicegate`, without this process's environment.
pub fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_voicegate"));
    command.current_dir(folder).env_clear().env("JWT_SECRET", "0123456789abcdef0123456789abcdef-test");
    command
}

/// Runs `voicegate` to its end.
pub fn run(folder: &Path, arguments: &[&str]) -> Output {
    command(folder).args(arguments).output().unwrap()
}

/// A running `voicegate serve`. Killed when dropped.
pub struct Process {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    /// Lines that [`Process::line`] and [`Process::rest`] have gone past.
    read: usize,
    /// Lives as long as the process.
    _folder: tempfile::TempDir,
    pub client: Client,
    pub admin: Client,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    /// With this as its `routes.yaml`; `version: 1` is put before it.
    pub async fn serve(manifest: &str, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("routes.yaml"), format!("version: 1\n{manifest}")).unwrap();
        Self::serve_in(folder, more, &[]).await
    }

    /// Serves `routes.yaml` of `folder` on free ports in this environment, logs as JSON; returns once it listens.
    pub async fn serve_in(folder: tempfile::TempDir, more: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::start(command(folder.path()), folder, more, environment).await
    }

    /// The same with so many files at most.
    pub async fn serve_with_files(files: u32, manifest: &str, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("routes.yaml"), format!("version: 1\n{manifest}")).unwrap();
        let plain = command(folder.path());
        let mut limited = Command::new("sh");
        limited.args(["-c", &format!("ulimit -n {files} && exec \"$0\" \"$@\"")]).arg(plain.get_program());
        limited.current_dir(folder.path()).env_clear();
        limited.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Self::start(limited, folder, more, &[]).await
    }

    async fn start(
        mut command: Command,
        folder: tempfile::TempDir,
        more: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let addresses = ["--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--admin-token=admin-secret"];
        let mut child = command
            .env("LOG_FORMAT", "json")
            .envs(environment.iter().copied())
            .arg("serve")
            .args(addresses)
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let kept = lines.clone();
        std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).for_each(|line| kept.lock().unwrap().push(line));
        });
        let nowhere = Client::new(([127, 0, 0, 1], 9).into());
        let (client, admin) = (nowhere.clone(), nowhere);
        let mut process = Process { child, lines, read: 0, _folder: folder, client, admin };
        eventually("the gateway listens", Duration::from_secs(20), || {
            let gone = process.child.try_wait().unwrap();
            assert!(gone.is_none(), "it ended: {gone:?}\n{}", process.stderr());
            let listens = process.events("listening").pop();
            std::future::ready(listens.is_some())
        })
        .await;
        let line = process.events("listening").pop().unwrap();
        let at = |name: &str| -> SocketAddr { line[name].as_str().unwrap().parse().unwrap() };
        (process.client, process.admin) = (Client::new(at("address")), Client::new(at("admin")));
        process
    }

    /// Its resident memory, in bytes.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// Sends a signal by its name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits for its end.
    pub async fn ended(&mut self, within: Duration) -> ExitStatus {
        let mut status = None;
        eventually("the process ends", within, || {
            status = self.child.try_wait().unwrap();
            std::future::ready(status.is_some())
        })
        .await;
        status.unwrap()
    }

    /// Everything it has said so far.
    pub fn stderr(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    /// Log lines so far, as JSON; what is no log line is left out.
    pub fn log(&self) -> Vec<Value> {
        self.lines.lock().unwrap().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The next log line for which this holds; those before are passed over.
    pub async fn line(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut found = None;
        eventually("there is such a log line", PATIENCE, || {
            let lines = self.lines.lock().unwrap();
            while found.is_none() && self.read < lines.len() {
                found = serde_json::from_str(&lines[self.read]).ok().filter(&wanted);
                self.read += 1;
            }
            std::future::ready(found.is_some())
        })
        .await;
        found.unwrap()
    }

    /// What it has said and [`Process::line`] has not gone past.
    pub fn rest(&mut self) -> String {
        let lines = self.lines.lock().unwrap();
        let rest = lines[self.read..].join("\n");
        self.read = lines.len();
        rest
    }

    /// Log lines with this message.
    pub fn events(&self, message: &str) -> Vec<Value> {
        self.log().into_iter().filter(|line| line["message"] == message).collect()
    }

    /// Lines of the access log.
    pub fn access(&self) -> Vec<Value> {
        self.log().into_iter().filter(|line| line["target"] == "access").collect()
    }
}
