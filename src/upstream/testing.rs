//! A server that misbehaves as a test tells it to, byte by byte.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// No test waits longer than this for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct Scripted {
    pub(crate) address: SocketAddr,
    open: Arc<AtomicUsize>,
    accepted: Arc<AtomicUsize>,
}

/// A connection as the script sees it; numbered from 0.
pub(crate) struct Wire {
    pub(crate) number: usize,
    socket: TcpStream,
}

impl Scripted {
    /// Runs the script for each connection. A connection closes when its script ends.
    pub(crate) async fn start<F>(script: impl Fn(Wire) -> F + Send + 'static) -> Self
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        Scripted::start_at("127.0.0.1:0", script).await
    }

    /// The same, there.
    pub(crate) async fn start_at<F>(at: &str, script: impl Fn(Wire) -> F + Send + 'static) -> Self
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind(at).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (open, accepted) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (now_open, so_far) = (open.clone(), accepted.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let number = so_far.fetch_add(1, Ordering::SeqCst);
                now_open.fetch_add(1, Ordering::SeqCst);
                let run = script(Wire { number, socket });
                let open = now_open.clone();
                tokio::spawn(async move {
                    let _ = run.await;
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Scripted { address, open, accepted }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Waits until so many scripts run.
    pub(crate) async fn until_open(&self, wanted: usize) {
        eventually(|| self.open.load(Ordering::SeqCst) == wanted).await;
    }
}

impl Wire {
    /// Reads one request, with its body if it says its length, and returns the head; an error at the connection's end.
    /// (A close over unread bytes would be a reset.)
    pub(crate) async fn request(&mut self) -> io::Result<String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.socket.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let length = head.to_ascii_lowercase();
        let length = length.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        self.socket.read_exact(&mut body).await?;
        Ok(head)
    }

    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.socket.write_all(bytes.as_ref()).await
    }

    /// The bare socket.
    pub(crate) fn into_socket(self) -> TcpStream {
        self.socket
    }

    /// Reads and discards until the other side closes.
    pub(crate) async fn until_closed(&mut self) -> io::Result<()> {
        let mut room = [0; 4096];
        while self.socket.read(&mut room).await? > 0 {}
        Ok(())
    }
}

pub(crate) async fn eventually(wanted: impl Fn() -> bool) {
    let begun = Instant::now();
    while !wanted() {
        assert!(begun.elapsed() < PATIENCE, "never came");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
