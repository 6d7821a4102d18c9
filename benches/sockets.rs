//! A thousand open WebSockets that talk and are answered fifty times a second each, as voices do, beside the same without
//! a gateway.
//!
//! `cargo bench --bench sockets`. A frame is 20 ms of sound (640 bytes); the service says each frame again, and the caller
//! takes the time of the round trip. The gateway is a process of its own; service and callers have a thread each, and
//! share the machine with it: where that is small the figures are those of a full machine, direct and through alike.
//! Without `--bench`, as under `cargo test`, a few short sockets run.

#![expect(clippy::print_stdout, reason = "its figures are what it is for")]
#![expect(unreachable_pub, reason = "the rooms of a benchmark are public to it")]

#[expect(dead_code, reason = "shared with the benchmark of the chain, which needs more of it")]
#[path = "chain/gateway.rs"]
mod gateway;
#[expect(dead_code, reason = "shared with the benchmark of the chain, which needs more of it")]
#[path = "chain/load.rs"]
mod load;

use gateway::Gateway;
use http::HeaderValue;
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use voicegate::ws::handshake::accept;

const MANIFEST: &str = r#"version: 1
upstreams: { app: { targets: [{ url: "${APP}" }], max_connections: 2000 } }
chains:
  all: [access_log, recovery, request_id, metrics, auth]
routes:
  - { route: POST /register, chain: [recovery], public: true, handler: auth.register }
  - { route: GET /plain, chain: all, upstream: app, protocol: websocket }
  - { route: GET /bounded, chain: all, upstream: app, protocol: websocket,
      websocket: { max_message: 64KiB, max_rate: 200, max_bytes_rate: 1MiB } }
"#;

const PATIENCE: Duration = Duration::from_secs(60);

/// Sound of 20 ms: 16 kHz, 16 bits.
const SOUND: usize = 640;
/// A client's header of such a frame, masked with zeros: what is masked is readable as it is.
const HEADER: [u8; 8] = [0x82, 0x80 | 126, (SOUND >> 8) as u8, (SOUND & 0xff) as u8, 0, 0, 0, 0];
/// The length of the same frame as the service says it.
const SAID: usize = SOUND + 4;

/// How much is measured.
#[derive(Clone, Copy)]
struct Scale {
    sockets: usize,
    frames: usize,
    pace: Duration,
}

fn main() {
    let bench = std::env::args().any(|argument| argument == "--bench");
    let scale = match bench {
        true => Scale { sockets: 1000, frames: 500, pace: Duration::from_millis(20) },
        false => Scale { sockets: 10, frames: 10, pace: Duration::from_millis(20) },
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let Scale { sockets, frames, pace } = scale;
        println!("{sockets} sockets, {frames} frames of {SOUND} bytes each way on each, {pace:?} apart");
        println!(
            "{:<20} {:>8} {:>8} {:>8}   {:>17}   {:>7} {:>7} {:>12} {:>12}",
            "",
            "p50 ms",
            "p99 ms",
            "max ms",
            "added ms: 50, 99",
            "MiB",
            "during",
            "KiB a socket",
            "CPU µs/frame"
        );
        let app = service();
        let direct = measured(app, "/", "", None, scale).await;
        direct.show("direct", None);
        let gateway = Gateway::start_with(MANIFEST, app, &[]).await;
        for (name, path) in [("tunnel", "/plain"), ("tunnel with rates", "/bounded")] {
            let through = measured(gateway.address, path, &gateway.token, Some(&gateway), scale).await;
            through.show(name, Some(&direct));
        }
    });
}

/// What was found.
struct Figures {
    /// Of every frame, there and back, ascending.
    trips: Vec<Duration>,
    /// Memory of the gateway before and while all sockets were open, in KiB.
    memory: [u64; 2],
    /// Time on its processors.
    cpu: Duration,
    sockets: usize,
}

impl Figures {
    fn within(&self, share: f64) -> f64 {
        self.trips[((self.trips.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3
    }

    /// A line of the table, compared with the direct run.
    fn show(&self, name: &str, direct: Option<&Figures>) {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| self.within(share));
        print!("{name:<20} {p50:>8.2} {p99:>8.2} {max:>8.2}");
        if let Some(direct) = direct {
            let [before, during] = self.memory.map(|kib| kib as f64 / 1024.0);
            let each = (during - before) * 1024.0 / self.sockets as f64;
            // One there and one back.
            let cpu = self.cpu.as_secs_f64() * 1e6 / (2 * self.trips.len()) as f64;
            print!(
                "   {:>8.2} {:>8.2}   {before:>7.1} {during:>7.1} {each:>12.1} {cpu:>12.1}",
                p50 - direct.within(0.5),
                p99 - direct.within(0.99),
            );
        }
        println!();
    }
}

/// Resident memory in KiB, and time on the processors; zeros where the system does not tell.
fn usage(gateway: Option<&Gateway>) -> (u64, Duration) {
    let Some(gateway) = gateway else { return Default::default() };
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", gateway.process.id()));
    let status = read("status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let memory = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    let stat = read("stat").unwrap_or_default();
    let behind_name = stat.rsplit(')').next().unwrap_or_default();
    // In the kernel's ticks, of which there are a hundred a second.
    let ticks: u64 =
        behind_name.split(' ').skip(12).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    (memory.unwrap_or_default(), Duration::from_millis(ticks * 10))
}

/// Runs all sockets. Each has to bring every frame again, in order.
async fn measured(
    address: SocketAddr,
    path: &'static str,
    token: &str,
    gateway: Option<&Gateway>,
    scale: Scale,
) -> Figures {
    let before = usage(gateway).0;
    let mut sockets = Vec::with_capacity(scale.sockets);
    for _ in 0..scale.sockets {
        sockets.push(connect(address, path, token).await);
    }
    let begun = Instant::now();
    let cpu = usage(gateway).1;
    let mut running = JoinSet::new();
    for (number, socket) in sockets.into_iter().enumerate() {
        // Voices do not speak in step.
        let wait = scale.pace.mul_f64(number as f64 / scale.sockets as f64);
        running.spawn(talk(socket, begun, wait, scale));
    }
    tokio::time::sleep(scale.pace * scale.frames as u32 / 2).await;
    let during = usage(gateway).0;
    let mut trips = running.join_all().await.concat();
    let cpu = usage(gateway).1.saturating_sub(cpu);
    trips.sort_unstable();
    Figures { trips, memory: [before, during], cpu, sockets: scale.sockets }
}

async fn connect(address: SocketAddr, path: &str, token: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("somebody listens");
    stream.set_nodelay(true).expect("a TCP socket has this option");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Authorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        assert!(stream.read_buf(&mut head).await.expect("an answer") > 0, "it closed");
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream
}

/// Talks on one socket; the round trips of its frames.
async fn talk(socket: TcpStream, zero: Instant, wait: Duration, scale: Scale) -> Vec<Duration> {
    let (read, mut write) = socket.into_split();
    let listening = tokio::spawn(listen(read, zero, scale.frames));
    let mut frame = [&HEADER[..], &[7; SOUND]].concat();
    let mut tick = tokio::time::interval_at((Instant::now() + wait).into(), scale.pace);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    for number in 0..scale.frames as u64 {
        tick.tick().await;
        let stamp = zero.elapsed().as_nanos() as u64;
        frame[HEADER.len()..][..8].copy_from_slice(&number.to_be_bytes());
        frame[HEADER.len() + 8..][..8].copy_from_slice(&stamp.to_be_bytes());
        write.write_all(&frame).await.expect("it reads");
    }
    listening.await.expect("it does not panic")
}

async fn listen(mut read: OwnedReadHalf, zero: Instant, frames: usize) -> Vec<Duration> {
    let mut trips = Vec::with_capacity(frames);
    let mut bytes = Vec::with_capacity(4 * SAID);
    while trips.len() < frames {
        let more = tokio::time::timeout(PATIENCE, read.read_buf(&mut bytes)).await;
        assert!(more.expect("something comes in time").expect("it goes on") > 0, "it closed");
        let now = zero.elapsed();
        let whole = bytes.len() / SAID * SAID;
        for frame in bytes[..whole].chunks(SAID) {
            let number = |at: usize| frame[at..].first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
            assert_eq!(frame[..2], [0x82, 126], "another frame than was said");
            assert_eq!(number(4), Some(trips.len() as u64), "a frame is missing or out of order");
            trips.push(now.saturating_sub(Duration::from_nanos(number(12).unwrap_or_default())));
        }
        bytes.drain(..whole);
    }
    trips
}

/// A service that says every frame again, on a thread of its own that ends with the process.
fn service() -> SocketAddr {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            tell.send(listener.local_addr().expect("it is bound")).expect("who asked waits");
            while let Ok((stream, _)) = listener.accept().await {
                // A caller who leaves is no fault of the service's.
                tokio::spawn(async move { drop(echo(stream).await) });
            }
        });
    });
    told.recv().expect("the service starts")
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut read = Vec::with_capacity(8 * (HEADER.len() + SOUND));
    while !read.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
    }
    let head = String::from_utf8_lossy(&read).to_ascii_lowercase();
    let at = head.find("sec-websocket-key: ").expect("a key") + "sec-websocket-key: ".len();
    let key = HeaderValue::from_bytes(&read[at..at + 24]).expect("base64");
    let accept = accept(&key);
    let accept = accept.to_str().expect("base64");
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).await?;
    read.clear();
    let mut said = Vec::with_capacity(8 * SAID);
    loop {
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
        let size = HEADER.len() + SOUND;
        let whole = read.len() / size * size;
        said.clear();
        for frame in read[..whole].chunks(size) {
            said.extend_from_slice(&[0x82, 126]);
            said.extend_from_slice(&frame[2..4]);
            said.extend_from_slice(&frame[HEADER.len()..]);
        }
        read.drain(..whole);
        stream.write_all(&said).await?;
    }
}
