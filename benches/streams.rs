//! A thousand chats at once through the native handler, every one of them stored, beside a plain proxied stream.
//!
//! `cargo bench --bench streams`. The gateway is a process of its own; the service behind it stamps the time into each
//! event, and the readers compare it with theirs, which is the same clock. Service and readers share the machine with
//! the gateway: what they are late themselves is in the figures, of both kinds of route alike. Without `--bench`, as
//! under `cargo test`, a few short streams run.

#![expect(clippy::print_stdout, reason = "its figures are what it is for")]
#![expect(unreachable_pub, reason = "the rooms of a benchmark are public to it")]

#[expect(dead_code, reason = "shared with the benchmark of the chain, which needs more of it")]
#[path = "chain/gateway.rs"]
mod gateway;
#[expect(dead_code, reason = "shared with the benchmark of the chain, which needs more of it")]
#[path = "chain/load.rs"]
mod load;
#[expect(
    dead_code,
    clippy::unwrap_used,
    reason = "made for tests, which do more with it and fail by panicking"
)]
#[path = "../src/stores/testing.rs"]
mod postgres;

use gateway::Gateway;
use load::{Caller, get, post};
use serde_json::Value;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

const MANIFEST: &str = r#"version: 1
upstreams: { app: { targets: [{ url: "${APP}" }], max_connections: 2000 } }
roles: { user: { allow: ["session:*", "chat:*"] } }
chains:
  all: [access_log, recovery, request_id, metrics, auth]
versions:
  - name: v01
    prefix: ""
    chain: all
    routes:
      - { route: POST /register, chain: [recovery], public: true, handler: auth.register }
      - { route: POST /sessions, handler: sessions.create }
      - { route: GET /sessions/:id/messages, handler: sessions.messages }
      - { route: POST /native, handler: chat.stream, upstream: app, path: /ask }
      - { route: POST /plain, upstream: app, path: /ask, protocol: sse }
"#;

/// Silence after which a stream has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much is measured.
#[derive(Clone, Copy)]
struct Scale {
    streams: usize,
    events: usize,
    /// Between two events of a stream.
    pace: Duration,
    /// Over which all streams begin.
    ramp: Duration,
}

/// Zero of the clock in the events.
fn clock() -> Duration {
    static ZERO: OnceLock<Instant> = OnceLock::new();
    ZERO.get_or_init(Instant::now).elapsed()
}

fn main() {
    let bench = std::env::args().any(|argument| argument == "--bench");
    let scale = match bench {
        true => Scale {
            streams: 1000,
            events: 100,
            pace: Duration::from_millis(200),
            ramp: Duration::from_secs(2),
        },
        false => Scale {
            streams: 20,
            events: 10,
            pace: Duration::from_millis(20),
            ramp: Duration::from_millis(100),
        },
    };
    clock();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let Scale { streams, events, pace, ramp } = scale;
        println!("{streams} streams of {events} events, {pace:?} apart, begun within {ramp:?}");
        println!(
            "{:<28} {:>8} {:>8} {:>8}   {:>16}   {:>7} {:>7} {:>7} {:>12}",
            "", "p50 ms", "p99 ms", "max ms", "× plain: 50, 99", "MiB", "during", "after", "KiB a stream"
        );
        let app = service(scale);
        let gateway = Gateway::start_with(MANIFEST, app, &[]).await;
        let plain = measured(&gateway, "/plain", scale).await;
        plain.show("plain proxied", &plain);
        measured(&gateway, "/native", scale).await.show("native, SQLite", &plain);
        drop(gateway);
        if postgres::programs().is_none() {
            println!("no PostgreSQL on this machine: what needs it is skipped");
            return;
        }
        let server = postgres::Server::start();
        let url = server.url("postgres");
        let gateway = Gateway::start_with(MANIFEST, app, &[("DATABASE_URL", &url)]).await;
        measured(&gateway, "/native", scale).await.show("native, PostgreSQL", &plain);
    });
}

/// What was found.
struct Figures {
    /// Of every event, ascending.
    delays: Vec<Duration>,
    /// Memory of the gateway before, while all streams were open, and after, in KiB; zeros where the system does not
    /// tell.
    memory: [u64; 3],
    streams: usize,
}

impl Figures {
    fn within(&self, share: f64) -> f64 {
        self.delays[((self.delays.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3
    }

    /// A line of the table, compared with another.
    fn show(&self, name: &str, to: &Figures) {
        let [before, during, after] = self.memory.map(|kib| kib as f64 / 1024.0);
        let each = (during - before) * 1024.0 / self.streams as f64;
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| self.within(share));
        let [p50_to, p99_to] = [0.5, 0.99].map(|share| p_or_tiny(to.within(share)));
        println!(
            "{name:<28} {p50:>8.2} {p99:>8.2} {max:>8.2}   {:>7.2} {:>8.2}   {before:>7.1} {during:>7.1} {after:>7.1} {each:>12.1}",
            p50 / p50_to,
            p99 / p99_to,
        );
    }
}

/// Never zero, to be divided by.
fn p_or_tiny(value: f64) -> f64 {
    value.max(1e-6)
}

/// Resident memory of the gateway, in KiB.
fn memory(gateway: &Gateway) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", gateway.process.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
}

/// Runs all streams through a route. Each has to bring every event, in order, and what is stored has to be whole.
async fn measured(gateway: &Gateway, path: &'static str, scale: Scale) -> Figures {
    let (address, token) = (gateway.address, &gateway.token);
    let native = path == "/native";
    let mut api = Caller::connect(address).await;
    let mut sessions = Vec::with_capacity(scale.streams);
    for number in 0..scale.streams {
        sessions.push(match native {
            true => session(&mut api, address, token).await,
            false => number.to_string(),
        });
    }
    let before = memory(gateway);
    let middle = Arc::new(Barrier::new(scale.streams + 1));
    let mut running = JoinSet::new();
    for (number, session) in sessions.iter().enumerate() {
        let body = format!(r#"{{"session_id":"{session}","query":"why?"}}"#);
        let request = signed(post(address, path, &body), token);
        let (wait, middle) = (scale.ramp.mul_f64(number as f64 / scale.streams as f64), middle.clone());
        running.spawn(async move {
            tokio::time::sleep(wait).await;
            stream(address, request, scale.events, middle).await
        });
    }
    tokio::time::timeout(PATIENCE, middle.wait()).await.expect("all streams are open together");
    let during = memory(gateway);
    let mut delays = running.join_all().await.concat();
    delays.sort_unstable();
    if native {
        for session in &sessions {
            stored(&mut api, address, token, session, scale.events).await;
        }
    }
    Figures { delays, memory: [before, during, memory(gateway)], streams: scale.streams }
}

/// Adds the caller's token to a request.
fn signed(request: Vec<u8>, token: &str) -> Vec<u8> {
    let request = String::from_utf8(request).expect("it was made of text");
    request.replacen("\r\n", &format!("\r\nAuthorization: Bearer {token}\r\n"), 1).into_bytes()
}

async fn session(api: &mut Caller, address: SocketAddr, token: &str) -> String {
    let answer = api.ask(&signed(post(address, "/sessions", "{}"), token)).await;
    let said: Value = serde_json::from_slice(&answer.body).expect("JSON");
    said["session_id"].as_str().unwrap_or_else(|| panic!("no session: {said}")).to_owned()
}

async fn stored(api: &mut Caller, address: SocketAddr, token: &str, session: &str, events: usize) {
    let answer = api.ask(&get(address, &format!("/sessions/{session}/messages"), token)).await;
    let said: Value = serde_json::from_slice(&answer.body).expect("JSON");
    let messages = said["messages"].as_array().unwrap_or_else(|| panic!("no messages: {said}"));
    assert_eq!(messages.len(), 2, "{said}");
    let reply = &messages[1];
    assert_eq!(reply["status"], "complete", "{said}");
    let words = reply["content"].as_str().expect("a text").split_whitespace();
    let numbers = words.map(|word| word.split(':').next().and_then(|number| number.parse::<usize>().ok()));
    assert!(numbers.eq((0..events).map(Some)), "the stored answer is not whole: {said}");
}

/// Reads one stream to its end; how late each event was. Half way it waits for nobody, but tells.
async fn stream(address: SocketAddr, request: Vec<u8>, events: usize, middle: Arc<Barrier>) -> Vec<Duration> {
    let mut stream = TcpStream::connect(address).await.expect("the gateway listens");
    stream.set_nodelay(true).expect("a TCP socket has this option");
    stream.write_all(&request).await.expect("the gateway reads");
    let mut body = Chunked::default();
    let mut delays = Vec::with_capacity(events);
    loop {
        let read = tokio::time::timeout(PATIENCE, body.more(&mut stream)).await;
        read.expect("something comes in time").expect("the stream ends as it should");
        let now = clock();
        while let Some(line) = body.line() {
            let Some(data) = line.strip_prefix("data: ") else { continue };
            let data: Value = serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}"));
            match data["type"].as_str() {
                Some("token") => {
                    let content = data["content"].as_str().unwrap_or_default();
                    let (number, stamp) = content.trim().split_once(':').expect("number and stamp");
                    assert_eq!(number.parse(), Ok(delays.len()), "an event is missing or out of order");
                    let stamp = Duration::from_micros(stamp.parse().expect("microseconds"));
                    delays.push(now.saturating_sub(stamp));
                    if delays.len() == events / 2 {
                        let middle = middle.clone();
                        tokio::spawn(async move { middle.wait().await });
                    }
                }
                Some("end") => {
                    assert_eq!(delays.len(), events, "events are missing");
                    return delays;
                }
                other => panic!("{other:?} was not sent: {data}"),
            }
        }
    }
}

/// A chunked body on its way.
#[derive(Default)]
struct Chunked {
    raw: Vec<u8>,
    /// Lines that are not read yet.
    text: Vec<u8>,
    head: bool,
    /// What is missing of the current chunk, with the line break behind it.
    missing: usize,
}

impl Chunked {
    async fn more(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        if stream.read_buf(&mut self.raw).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !self.head {
            let Some(end) = self.raw.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return Ok(()) };
            let head = String::from_utf8_lossy(&self.raw[..end]).into_owned();
            assert!(head.starts_with("HTTP/1.1 200"), "{}", String::from_utf8_lossy(&self.raw));
            self.raw.drain(..end + 4);
            self.head = true;
        }
        loop {
            if self.missing == 0 {
                let Some(end) = self.raw.windows(2).position(|bytes| bytes == b"\r\n") else { return Ok(()) };
                let size = std::str::from_utf8(&self.raw[..end]).ok();
                let size =
                    size.and_then(|size| usize::from_str_radix(size, 16).ok()).expect("a chunk's size");
                self.raw.drain(..end + 2);
                self.missing = size + 2;
            }
            let count = self.missing.min(self.raw.len());
            let data = self.missing.saturating_sub(2).min(count);
            self.text.extend_from_slice(&self.raw[..data]);
            self.raw.drain(..count);
            self.missing -= count;
            if self.missing > 0 || self.raw.is_empty() {
                return Ok(());
            }
        }
    }

    /// The next whole line.
    fn line(&mut self) -> Option<String> {
        let end = self.text.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.text.drain(..=end).collect();
        Some(String::from_utf8(line).expect("text").trim_end().to_owned())
    }
}

/// A service that says numbers and times, on a thread of its own that ends with the process.
fn service(scale: Scale) -> SocketAddr {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            tell.send(listener.local_addr().expect("it is bound")).expect("who asked waits");
            while let Ok((stream, _)) = listener.accept().await {
                // A caller who leaves is no fault of the service's.
                tokio::spawn(async move { drop(answers(stream, scale).await) });
            }
        });
    });
    told.recv().expect("the service starts")
}

async fn answers(mut stream: TcpStream, scale: Scale) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut read = Vec::with_capacity(4096);
    loop {
        read.clear();
        // Questions are all alike, and end so.
        while !read.ends_with(b"}") {
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await?;
        let mut tick = tokio::time::interval(scale.pace);
        for number in 0..scale.events {
            tick.tick().await;
            let stamp = clock().as_micros();
            say(&mut stream, &format!(r#"{{"type":"token","content":"{number}:{stamp} "}}"#)).await?;
        }
        say(&mut stream, &format!(r#"{{"type":"end","total_tokens":{}}}"#, scale.events)).await?;
        stream.write_all(b"0\r\n\r\n").await?;
    }
}

async fn say(stream: &mut TcpStream, data: &str) -> io::Result<()> {
    let event = format!("data: {data}\n\n");
    stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await
}
