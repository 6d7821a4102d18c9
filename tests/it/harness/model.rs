//! The demo behind a line that reads its switches from the question: a handler sends its upstream no query string.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use voicegate::demo::{Demo, Streams};

/// A model that does what the question says, such as `delay=0ms&tokens=3` (see the demo's switches).
pub struct Model {
    demo: Demo,
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    task: tokio::task::JoinHandle<()>,
}

/// A call as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    pub path: String,
    /// In lower case, with its request line.
    pub head: String,
    pub body: serde_json::Value,
}

impl Drop for Model {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Model {
    pub async fn start() -> Self {
        let demo = Demo::start().await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (behind, heard) = (demo.addr(), asked.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(pass(stream, behind, heard.clone()));
            }
        });
        Model { demo, address, asked, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Takes no more connections.
    pub async fn close(&mut self) {
        self.task.abort();
        // With the task, the listener is gone.
        let _ = (&mut self.task).await;
    }

    /// What became of its answers.
    pub fn streams(&self) -> Streams {
        self.demo.stats().streams
    }

    /// Calls so far, whatever they asked for.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// One call a connection, so that each goes through here.
async fn pass(mut stream: TcpStream, behind: SocketAddr, asked: Arc<Mutex<Vec<Asked>>>) {
    let _ = stream.set_nodelay(true);
    let mut read = Vec::new();
    let head_end = loop {
        if let Some(at) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if matches!(stream.read_buf(&mut read).await, Ok(0) | Err(_)) {
            return;
        }
    };
    let head = String::from_utf8(read[..head_end].to_vec()).unwrap();
    let lower = head.to_ascii_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.map_or(0, |length| length.parse().unwrap());
    while read.len() < head_end + length {
        if matches!(stream.read_buf(&mut read).await, Ok(0) | Err(_)) {
            return;
        }
    }
    let body: serde_json::Value = serde_json::from_slice(&read[head_end..]).unwrap_or_default();
    let (line, rest) = head.split_once("\r\n").unwrap();
    let path = line.split(' ').nth(1).unwrap().to_owned();
    let switches = body["query"].as_str().filter(|query| query.contains('=')).unwrap_or_default();
    let line = line.replacen(&path, &format!("{path}?{switches}"), 1);
    asked.lock().unwrap().push(Asked { path, head: lower.clone(), body });
    let Ok(mut upstream) = TcpStream::connect(behind).await else { return };
    let _ = upstream.set_nodelay(true);
    let mut request = format!("{line}\r\nconnection: close\r\n{rest}").into_bytes();
    request.extend_from_slice(&read[head_end..]);
    if upstream.write_all(&request).await.is_ok() {
        let _ = copy_bidirectional(&mut stream, &mut upstream).await;
    }
}
