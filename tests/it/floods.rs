//! Rule 22 of the security rules: floods. Throughout each a fresh request is answered within a second, memory is
//! bounded, and whoever floods is gone when their time is over.

use crate::harness::scripted::body;
use crate::harness::{Client, Process, Scripted, Wire, eventually};
use bytes::Bytes;
use futures_util::future::join_all;
use http::Response;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpSocket;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;

/// Deadlines that a test can wait for.
const QUICK: [&str; 4] =
    ["--header-timeout=2s", "--body-timeout=2s", "--write-timeout=2s", "--keep-alive=2s"];
/// How long a flood goes on that is sent away at once and comes back.
const FLOOD: Duration = Duration::from_secs(2);
/// Within these, on a busy machine, everybody who floods is gone.
const GONE: Duration = Duration::from_secs(12);
/// A second, and something for a machine that runs other tests.
const AT_ONCE: Duration = Duration::from_millis(2000);
/// What a connection may cost in memory, in KiB: the buffers of both its sides with what they are rounded up to.
const A_CONNECTION: u64 = 512;

/// Four floods at a time are enough for a small machine.
static TURNS: Semaphore = Semaphore::const_new(4);

/// Somebody who asks again and again, each time on a new connection.
struct Bystander {
    stop: Arc<AtomicBool>,
    asking: JoinHandle<(usize, Duration)>,
}

impl Bystander {
    fn of(client: &Client) -> Self {
        let (client, stop) = (client.clone(), Arc::new(AtomicBool::new(false)));
        let over = stop.clone();
        let asking = tokio::spawn(async move {
            let (mut count, mut worst) = (0, Duration::ZERO);
            while !over.load(Ordering::Relaxed) {
                let began = Instant::now();
                assert_eq!(client.get("/fresh").await.text(), "ok");
                (count, worst) = (count + 1, worst.max(began.elapsed()));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            (count, worst)
        });
        Bystander { stop, asking }
    }

    /// Every request was answered, and each within a second.
    async fn was_served(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (count, worst) = self.asking.await.unwrap();
        assert!(count > 5 && worst < AT_ONCE, "{count} requests, the slowest took {worst:?}");
    }
}

/// A gateway in a process of its own, before a service.
struct Bed {
    process: Process,
    _service: Scripted,
    _turn: SemaphorePermit<'static>,
    before: u64,
}

impl Bed {
    async fn new(flags: &[&str]) -> Self {
        Bed::made(async |manifest| {
            Process::serve(manifest, if flags.is_empty() { &QUICK } else { flags }).await
        })
        .await
    }

    /// Whose process may have so many files open.
    async fn limited_to(files: u32) -> Self {
        Bed::made(async |manifest| Process::serve_with_files(files, manifest, &QUICK).await).await
    }

    async fn made(start: impl AsyncFnOnce(&str) -> Process) -> Self {
        let turn = TURNS.acquire().await.unwrap();
        let large = Bytes::from(vec![b'x'; 8 << 20]);
        let service = Scripted::start(move |head, _| {
            Response::new(match head.uri.path() {
                "/large" => body(large.clone()),
                _ => body("ok"),
            })
        })
        .await;
        let manifest = format!(
            "upstreams: {{ back: {{ targets: [{{ url: \"{}\" }}] }} }}\n\
             routes:\n  - {{ route: ANY /*path, upstream: back, chain: [], public: true }}\n",
            service.url()
        );
        let process = start(&manifest).await;
        assert_eq!(process.client.get("/fresh").await.text(), "ok");
        let before = process.memory();
        Bed { process, _service: service, _turn: turn, before }
    }

    fn address(&self) -> SocketAddr {
        self.process.client.address()
    }

    fn bystander(&self) -> Bystander {
        Bystander::of(&self.process.client)
    }

    /// How many connections callers have open.
    async fn open(&self) -> usize {
        let answer = self.process.admin.get("/metrics").await;
        let line = answer.text().lines().find_map(|line| line.strip_prefix("voicegate_connections_open "));
        line.unwrap().parse::<f64>().unwrap() as usize
    }

    /// The flood, of so many connections at a time, cost no more memory than it may.
    fn stayed_small(&self, connections: u64) {
        let grown = self.process.memory().saturating_sub(self.before) >> 10;
        assert!(grown < 16_384 + connections * A_CONNECTION, "{} MiB more", grown >> 10);
    }

    /// So many connections, each of which begins like this and then sends this every 100 ms for as long as it is let. The
    /// flood is over when all were sent away.
    async fn drips(&self, count: usize, begins: &str, drip: &'static str) {
        let address = self.address();
        let drips = (0..count).map(|_| async move {
            let mut wire = Wire::connect(address).await;
            wire.send(begins).await;
            let began = Instant::now();
            while wire.send(drip).await {
                assert!(began.elapsed() < GONE, "it may drip on and on");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        join_all(drips).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_heads() {
    let bed = Bed::new(&[]).await;
    let bystander = bed.bystander();
    bed.drips(400, "GET / HTTP/1.1\r\nhost: a\r\nx-slow: ", "x").await;
    bystander.was_served().await;
    bed.stayed_small(400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_bodies() {
    let bed = Bed::new(&[]).await;
    let bystander = bed.bystander();
    let (known, chunked) = (
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
    );
    tokio::join!(bed.drips(200, known, "x"), bed.drips(200, chunked, "1\r\nx\r\n"));
    bystander.was_served().await;
    bed.stayed_small(400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers() {
    let bed = Bed::new(&[]).await;
    let bystander = bed.bystander();
    let address = bed.address();
    let mut readers = Vec::new();
    for _ in 0..100 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut wire = Wire::of(socket.connect(address).await.unwrap());
        wire.send("GET /large HTTP/1.1\r\nhost: a\r\n\r\n").await;
        readers.push(wire);
    }
    eventually("all are served", GONE, async || bed.open().await >= 100).await;
    // A byte now and then is not reading.
    let began = Instant::now();
    while bed.open().await > 10 {
        assert!(began.elapsed() < GONE, "they may hang on");
        for wire in &mut readers {
            wire.sip().await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bystander.was_served().await;
    bed.stayed_small(100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_say_nothing() {
    let bed = Bed::new(&[]).await;
    let bystander = bed.bystander();
    let silent = join_all((0..500).map(|_| Wire::connect(bed.address()))).await;
    let began = Instant::now();
    join_all(silent.into_iter().map(|mut wire| async move { wire.rest().await })).await;
    assert!(began.elapsed() < GONE);
    bystander.was_served().await;
    bed.stayed_small(500);
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// `GET /fresh`, `:authority` `a`, in HPACK without Huffman.
const GET: &[u8] = b"\x82\x86\x04\x06/fresh\x41\x01a";

/// For a while so many send these bytes again and again until they are sent away, and come back at once.
async fn press(address: SocketAddr, count: usize, pieces: impl Fn(u32) -> Vec<u8> + Copy) {
    let end = Instant::now() + FLOOD;
    let flood = (0..count).map(|_| async move {
        let mut times = 0;
        while Instant::now() < end {
            let mut wire = Wire::connect(address).await;
            wire.send(PREFACE).await;
            let began = Instant::now();
            for number in 0.. {
                if !wire.press_raw(&pieces(number)).await || wire.is_over().await {
                    break;
                }
                assert!(began.elapsed() < GONE, "it may go on and on");
            }
            times += 1;
        }
        times
    });
    let times: usize = join_all(flood).await.into_iter().sum();
    assert!(times >= count, "nobody was sent away");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_resets() {
    let bed = Bed::new(&[]).await;
    let bystander = bed.bystander();
    // Hundreds of requests in a row, each taken back at once (CVE-2023-44487).
    let resets = |number: u32| {
        (0..200)
            .flat_map(|index| {
                let stream = (number * 200 + index) * 2 + 1;
                [frame(1, 5, stream, GET), frame(3, 0, stream, &8u32.to_be_bytes())].concat()
            })
            .collect()
    };
    press(bed.address(), 50, resets).await;
    bystander.was_served().await;
    bed.stayed_small(50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resets_that_give_requests_time_to_begin() {
    let bed = Bed::new(&[]).await;
    let bystander = bed.bystander();
    let address = bed.address();
    let end = Instant::now() + FLOOD;
    let flood = (0..20).map(|_| async move {
        let mut wire = Wire::connect(address).await;
        wire.send(PREFACE).await;
        let mut stream = 1;
        while Instant::now() < end {
            if !wire.press_raw(&frame(1, 5, stream, GET)).await || wire.is_over().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
            wire.press_raw(&frame(3, 0, stream, &8u32.to_be_bytes())).await;
            stream += 2;
        }
    });
    join_all(flood).await;
    bystander.was_served().await;
    bed.stayed_small(20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_bombs() {
    let bed = Bed::new(&[]).await;
    let bystander = bed.bystander();
    let address = bed.address();
    // A head without end, in frames of 16 KiB (CVE-2024-27316).
    let literal = [&b"\0\x01x\x7f\x81\x7e"[..], &[b'a'; 16_000]].concat();
    let continued = literal.clone();
    let endless = |number: u32| match number {
        0 => frame(1, 1, 1, &[GET, &literal].concat()),
        _ => frame(9, 0, 1, &continued),
    };
    press(address, 20, endless).await;
    // One field of 4,000 bytes, and then thousands of times one byte that stands for it.
    let large = [b"\x40\x01x\x7f\xa1\x1e".as_slice(), &[b'a'; 4000]].concat();
    let bomb = |number: u32| {
        let block = [GET, &large, &[0xbe; 12_000]].concat();
        frame(1, 5, number * 2 + 1, &block)
    };
    press(address, 20, bomb).await;
    // The same in HTTP/1.
    let head = format!(
        "GET / HTTP/1.1\r\nhost: a\r\n{}",
        "x-bomb: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n".repeat(50_000)
    );
    join_all((0..20).map(|_| async {
        let mut wire = Wire::connect(address).await;
        wire.press_raw(head.as_bytes()).await;
        wire.rest().await;
    }))
    .await;
    bystander.was_served().await;
    bed.stayed_small(20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_connections_than_files() {
    let bed = Bed::limited_to(256).await;
    let client = bed.process.client.clone();
    let silent = join_all((0..600).map(|_| Wire::connect(bed.address()))).await;
    // Every place is taken: who is new is told so, at once, until the silent are gone.
    let began = Instant::now();
    let mut told = 0;
    loop {
        let asked = Instant::now();
        let answer = client.try_send(client.request("GET", "/fresh", &[], "")).await;
        assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
        match answer {
            Ok(answer) if answer.status == 200 => break,
            Ok(answer) => assert_eq!(answer.code(), "too_many_connections"),
            // Who comes while too many are being told is closed without a word.
            Err(_) => {}
        }
        told += 1;
        assert!(began.elapsed() < GONE, "no place became free");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(told > 0);
    drop(silent);
    assert!(bed.process.events("can't accept connections").is_empty());
    bed.stayed_small(64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_files_at_all() {
    // Fewer than a gateway needs for the least number of connections it works with.
    let bed = Bed::limited_to(28).await;
    let client = bed.process.client.clone();
    let silent = join_all((0..24).map(|_| Wire::connect(bed.address()))).await;
    // How often accepting failed, as far as it was said.
    let failures = |bed: &Bed| -> (usize, u64) {
        let log = bed.process.log();
        let said = log.iter().filter_map(|line| line["failures"].as_u64());
        (said.clone().count(), said.sum())
    };
    let began = Instant::now();
    eventually("files run out", GONE, async || failures(&bed).0 > 0).await;
    eventually("it serves again when they are gone", GONE, async || {
        let asking = client.try_send(client.request("GET", "/fresh", &[], ""));
        asking.await.is_ok_and(|answer| answer.status == 200)
    })
    .await;
    drop(silent);
    let (lines, times) = failures(&bed);
    assert!(lines <= 2 + began.elapsed().as_secs() as usize, "it says so {lines} times");
    assert!(times <= 100, "accepting backs off: it failed {times} times in {:?}", began.elapsed());
}

/// What `slowhttptest` (Debian) saw of a service in one mode: for each second whether it was available.
async fn slowhttptest(address: SocketAddr, mode: &[&str]) -> Vec<bool> {
    let folder = tempfile::tempdir().unwrap();
    let (url, prefix) = (format!("http://{address}/large"), folder.path().join("seen"));
    let mut command = Command::new("slowhttptest");
    command
        .args(mode)
        .args(["-u", &url, "-c", "200", "-r", "100", "-i", "1", "-l", "7", "-p", "3", "-v", "1"]);
    command.arg("-g").arg("-o").arg(&prefix);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
    let output = output.expect("`slowhttptest` is here: apt-get install slowhttptest");
    let text = std::fs::read_to_string(prefix.with_extension("csv")).unwrap_or_else(|error| {
        panic!("no figures ({error}): {}", String::from_utf8_lossy(&output.stdout));
    });
    // Seconds, closed, pending, connected, and zero or not.
    text.lines().skip(1).map(|line| line.rsplit(',').next().unwrap() != "0").collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slowhttptest_finds_the_service_available_in_all_its_modes() {
    let modes: [&[&str]; 4] = [
        &["-H", "-x", "24"],
        &["-B", "-s", "8192", "-x", "10"],
        &["-X", "-w", "512", "-y", "1024", "-n", "2", "-z", "32", "-k", "3"],
        &["-R", "-a", "10", "-b", "3000"],
    ];
    join_all(modes.map(|mode| async move {
        // With the deadlines as they are shipped, nearly all hang on to the end.
        let bed = Bed::new(&["--header-timeout=10s", "--body-timeout=30s", "--write-timeout=30s"]).await;
        let bystander = bed.bystander();
        let seen = slowhttptest(bed.address(), mode).await;
        assert!(seen.len() >= 2 && seen.iter().all(|available| *available), "{mode:?}: {seen:?}");
        bystander.was_served().await;
        bed.stayed_small(200);
    }))
    .await;
}
