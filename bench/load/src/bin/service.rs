//! `service [ADDRESS]`: what stands behind the gateways besides nginx: paced event streams.
//!
//! `GET …?n=100&ms=20` with `Accept: text/event-stream`, or a POST (its body is read; `n` and `ms` stand in the environment
//! as EVENTS and PACE): n events, one each ms, each with the time it was sent. One thread, so that it needs one core only.

#![forbid(unsafe_code)]

use load::{listen, now};
use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

struct Head {
    len: usize,
    body: usize,
    events: u64,
    pace: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let address = load::argument(1, "127.0.0.1:9101".parse().expect("an address"));
    let listener = listen(address)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true).ok();
        tokio::spawn(async move { serve(stream).await });
    }
}

async fn serve(mut stream: TcpStream) -> Option<()> {
    let mut buffer = Vec::with_capacity(4096);
    loop {
        let head = loop {
            match parse(&buffer) {
                Some(head) if buffer.len() >= head.len + head.body => break head,
                _ => {}
            }
            if stream.read_buf(&mut buffer).await.ok()? == 0 {
                return None;
            }
        };
        buffer.drain(..head.len + head.body);
        events(&mut stream, head.events, head.pace).await?;
    }
}

fn parse(buffer: &[u8]) -> Option<Head> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let len = match request.parse(buffer).ok()? {
        httparse::Status::Complete(len) => len,
        httparse::Status::Partial => return None,
    };
    let header = |name: &str| {
        let found = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok()
    };
    let query = request.path.and_then(|path| path.split_once('?')).map_or("", |(_, query)| query);
    let number = |name: &str, variable: &str, default: u64| {
        let said = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse().ok());
        said.or_else(|| std::env::var(variable).ok()?.parse().ok()).unwrap_or(default)
    };
    Some(Head {
        len,
        body: header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0),
        events: number("n", "EVENTS", 100),
        pace: number("ms", "PACE", 20),
    })
}

async fn events(stream: &mut TcpStream, count: u64, pace: u64) -> Option<()> {
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head).await.ok()?;
    static STREAMS: AtomicUsize = AtomicUsize::new(0);
    let number = STREAMS.fetch_add(1, Ordering::Relaxed);
    let mut ticks = load::ticks(number, Duration::from_millis(pace.max(1)));
    let (mut event, mut chunk) = (Vec::new(), Vec::new());
    for _ in 0..count {
        ticks.tick().await;
        event.clear();
        chunk.clear();
        write!(event, "data: {{\"type\":\"token\",\"content\":\"@{:020}\"}}\n\n", now()).ok()?;
        write!(chunk, "{:x}\r\n", event.len()).ok()?;
        chunk.extend_from_slice(&event);
        chunk.extend_from_slice(b"\r\n");
        stream.write_all(&chunk).await.ok()?;
    }
    event.clear();
    write!(event, "data: {{\"type\":\"end\",\"total_tokens\":{count}}}\n\n").ok()?;
    chunk.clear();
    write!(chunk, "{:x}\r\n", event.len()).ok()?;
    chunk.extend_from_slice(&event);
    chunk.extend_from_slice(b"\r\n0\r\n\r\n");
    stream.write_all(&chunk).await.ok()
}
