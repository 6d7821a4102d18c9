//! A Redis of its own for each test that asks for one: `redis-server` from `PATH`, on a free port, gone with the test.
//! The integration tests use this file too.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

/// A running Redis.
pub(crate) struct RedisServer {
    port: u16,
    process: Child,
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
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        RedisServer { port, process: spawn(port) }
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
        self.process = spawn(self.port);
    }
}

fn spawn(port: u16) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no", "--dir", "/tmp"])
        .stdout(Stdio::null())
        .spawn()
        .expect("the tests need `redis-server` in PATH (`apt-get install redis-server`)")
}
