//! A Redis of its own for each test that asks for one: `redis-server` from `PATH`, on a free port, gone with the test.
//! The integration tests use this file too.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A running Redis.
pub(crate) struct RedisServer {
    port: u16,
    process: Child,
    flags: Vec<String>,
    folder: tempfile::TempDir,
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // Ends a stopped one too.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl RedisServer {
    pub(crate) fn start() -> Self {
        RedisServer::start_with(&[])
    }

    pub(crate) fn start_with(flags: &[&str]) -> Self {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>();
        let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
        let process = spawn(port, &flags, folder.path());
        RedisServer { port, process, flags, folder }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Sends a signal such as `STOP` or `CONT`.
    pub(crate) fn signal(&self, name: &str) {
        let status =
            Command::new("kill").args([&format!("-{name}"), &self.process.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Kills it; what it knew is lost.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again on the same port.
    pub(crate) fn restart(&mut self) {
        self.process = spawn(self.port, &self.flags, self.folder.path());
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn spawn(port: u16, flags: &[String], folder: &Path) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no", "--dir"])
        .arg(folder)
        .args(flags)
        .stdout(Stdio::null())
        .spawn()
        .expect("the tests need `redis-server` in PATH (`apt-get install redis-server`)")
}
