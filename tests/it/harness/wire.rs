//! Sockets without a library in between: for what a library would not send, or would hide.

use super::Answer;
use super::client::PATIENCE;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// One end of a connection, with what was read and not yet asked for.
pub struct Wire {
    stream: TcpStream,
    read: Vec<u8>,
}

/// How the other end finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    Closed,
    Reset,
}

impl Wire {
    pub async fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.expect("somebody listens"))
    }

    /// Of a connection that a library is done with.
    pub fn of(stream: TcpStream) -> Self {
        Self::over(stream)
    }

    fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Wire { stream, read: Vec::new() }
    }

    /// Writes all of it; whether the other end was still there to take it.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let sending = self.stream.write_all(bytes.as_ref());
        timeout(PATIENCE, sending).await.expect("the other end reads").is_ok()
    }

    /// Writes a chunk of a chunked body.
    pub async fn send_chunk(&mut self, bytes: &[u8]) -> bool {
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        self.send(chunk).await
    }

    /// Writes a chunk, however long the other end takes to read it.
    pub async fn press(&mut self, bytes: &[u8]) -> bool {
        let head = format!("{:x}\r\n", bytes.len());
        for part in [head.as_bytes(), bytes, b"\r\n"] {
            if self.stream.write_all(part).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Writes all of it, however long the other end takes to read it; whether it was there to take it.
    pub async fn press_raw(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    /// Reads a byte of what is there, if anything is.
    pub async fn sip(&mut self) {
        let _ = self.stream.try_read(&mut [0]);
    }

    /// Whether the other end has ended the connection; what it said before is passed over.
    pub async fn is_over(&mut self) -> bool {
        tokio::task::yield_now().await;
        let mut said = [0; 4096];
        loop {
            match self.stream.try_read(&mut said) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
            }
        }
    }

    /// Reads once; `Err` at the end of the connection.
    async fn more(&mut self) -> Result<usize, Finish> {
        let reading = self.stream.read_buf(&mut self.read);
        match timeout(PATIENCE, reading).await.expect("something comes, if only the end") {
            Ok(0) => Err(Finish::Closed),
            Ok(count) => Ok(count),
            Err(_) => Err(Finish::Reset),
        }
    }

    /// Whatever has come and was not asked for yet; waits if that is nothing, panics at the end.
    pub async fn some(&mut self) -> Vec<u8> {
        if self.read.is_empty() {
            self.more().await.expect("more bytes before the end");
        }
        std::mem::take(&mut self.read)
    }

    /// The next bytes as text; empty at the end of the connection.
    pub async fn some_or_end(&mut self) -> String {
        if self.read.is_empty() {
            let _ = self.more().await;
        }
        String::from_utf8_lossy(&std::mem::take(&mut self.read)).into_owned()
    }

    /// What comes up to `mark`, with it; `None` if the connection ends before.
    pub async fn try_until(&mut self, mark: &str) -> Option<String> {
        let mark = mark.as_bytes();
        loop {
            if let Some(at) = self.read.windows(mark.len()).position(|window| window == mark) {
                let rest = self.read.split_off(at + mark.len());
                let found = std::mem::replace(&mut self.read, rest);
                return Some(String::from_utf8_lossy(&found).into_owned());
            }
            self.more().await.ok()?;
        }
    }

    /// What comes up to `mark`, with it.
    pub async fn until(&mut self, mark: &str) -> String {
        let found = self.try_until(mark).await;
        found.unwrap_or_else(|| panic!("no {mark:?} in {:?}", String::from_utf8_lossy(&self.read)))
    }

    /// A head, with its empty line; `None` if the connection ends before.
    pub async fn head(&mut self) -> Option<String> {
        self.try_until("\r\n\r\n").await
    }

    /// So many bytes.
    pub async fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.read.len() < count {
            self.more().await.expect("more bytes before the end");
        }
        let rest = self.read.split_off(count);
        std::mem::replace(&mut self.read, rest)
    }

    /// So many bytes; `None` if the connection ends before.
    pub async fn try_bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.read.len() < count {
            self.more().await.ok()?;
        }
        let rest = self.read.split_off(count);
        Some(std::mem::replace(&mut self.read, rest))
    }

    /// Says that nothing more is sent, and goes on reading.
    pub async fn half_close(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// The socket itself, for a library; nothing may have been read ahead.
    pub fn into_stream(self) -> TcpStream {
        assert!(self.read.is_empty(), "bytes were read ahead");
        self.stream
    }

    /// Everything until the other end finishes, and how it does.
    pub async fn rest(&mut self) -> (String, Finish) {
        loop {
            if let Err(finish) = self.more().await {
                return (String::from_utf8_lossy(&std::mem::take(&mut self.read)).into_owned(), finish);
            }
        }
    }

    /// A response to anything but HEAD, its body whole.
    pub async fn answer(&mut self) -> Answer {
        let head = self.until("\r\n\r\n").await;
        let mut lines = head.lines();
        let line = lines.next().unwrap();
        let status: StatusCode = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        let mut body = Vec::new();
        if headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked") {
            loop {
                let size = self.until("\r\n").await;
                let size = usize::from_str_radix(size.trim(), 16).unwrap();
                let chunk = self.bytes(size + 2).await;
                body.extend_from_slice(&chunk[..size]);
                if size == 0 {
                    break;
                }
            }
        } else if let Some(length) = headers.get("content-length") {
            body = self.bytes(length.to_str().unwrap().parse().unwrap()).await;
        }
        Answer { status, headers, body: body.into() }
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }
}

/// A service that is nothing but connections: each is handed to a closure, with its number from 0.
pub struct Sockets {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Sockets {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sockets {
    pub async fn start<F, Fut>(serve: F) -> Self
    where
        F: Fn(usize, Wire) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(count.fetch_add(1, Ordering::SeqCst), Wire::over(stream)));
            }
        });
        Sockets { address, connections, task }
    }

    /// Reads each request's head, answers it with these bytes, and waits for the next.
    pub async fn saying(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = Arc::new(bytes.into());
        Self::start(move |_, mut wire| {
            let bytes = bytes.clone();
            async move {
                while wire.head().await.is_some() {
                    wire.send(&*bytes).await;
                }
            }
        })
        .await
    }

    /// Reads a request's head, answers it with these bytes, and closes.
    pub async fn saying_last(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = Arc::new(bytes.into());
        Self::start(move |_, mut wire| {
            let bytes = bytes.clone();
            async move {
                wire.head().await;
                wire.send(&*bytes).await;
            }
        })
        .await
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}
