//! A target that can be killed, slowed down, and brought back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// It answers every request alike, after a while.
pub struct Target {
    pub address: SocketAddr,
    millis: Arc<AtomicU64>,
    task: AbortHandle,
}

impl Target {
    pub async fn start(takes: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let millis = Arc::new(AtomicU64::new(takes.as_millis() as u64));
        let task = tokio::spawn(serve(listener, millis.clone())).abort_handle();
        Target { address, millis, task }
    }

    /// From now on it takes this long.
    pub fn take(&self, takes: Duration) {
        self.millis.store(takes.as_millis() as u64, Ordering::Relaxed);
    }

    /// Ends it with all of its connections.
    pub fn kill(&self) {
        self.task.abort();
    }

    /// It listens again where it did.
    pub async fn revive(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("the port is free again");
        self.task = tokio::spawn(serve(listener, self.millis.clone())).abort_handle();
    }
}

async fn serve(listener: TcpListener, millis: Arc<AtomicU64>) {
    // They end with this.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(answer(stream, millis.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(mut stream: TcpStream, millis: Arc<AtomicU64>) {
    let _ = stream.set_nodelay(true);
    let mut read = Vec::with_capacity(4096);
    while stream.read_buf(&mut read).await.is_ok_and(|count| count > 0) {
        if read.ends_with(b"\r\n\r\n") {
            read.clear();
            tokio::time::sleep(Duration::from_millis(millis.load(Ordering::Relaxed))).await;
            if stream.write_all(ANSWER).await.is_err() {
                return;
            }
        }
    }
}
