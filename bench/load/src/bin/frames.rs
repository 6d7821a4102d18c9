//! `frames ADDRESS PATH SOCKETS SECONDS PACE_MS SIZE SERVICE`: opens that many WebSockets within a second, sends a frame of
//! that size each PACE_MS on each, and prints as JSON how long each took to come back. TOKEN goes into the query.
//!
//! It is also what stands behind the gateways, at SERVICE, and says every frame again. Both are one thread: two processes on
//! one core would wait for each other's time slices, some milliseconds each, and that would be most of what is measured.

#![forbid(unsafe_code)]

use load::{DIGITS, MARK, accept, argument, frame, listen, marks, micros, now, quantile, turn, write_frame};
use std::cell::RefCell;
use std::io::Write as _;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet, spawn_local};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

#[derive(Default)]
struct Seen {
    trips: Vec<u32>,
    sent: u64,
    failed: u32,
}

struct Plan {
    seconds: u64,
    pace: Duration,
    size: usize,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let address: String = argument(1, String::new());
    let path: String = argument(2, "/ws".to_owned());
    let sockets: usize = argument(3, 1000);
    let plan = Rc::new(Plan {
        seconds: argument(4, 10),
        pace: Duration::from_millis(argument(5, 20)),
        size: argument::<usize>(6, 640).max(DIGITS + 1),
    });
    let service = listen(argument(7, ([127, 0, 0, 1], 9103).into()))?;
    let token = std::env::var("TOKEN").unwrap_or_default();
    let request = Rc::<str>::from(format!(
        "GET {path}?token={token} HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ));
    let seen = Rc::new(RefCell::new(Seen::default()));
    LocalSet::new()
        .run_until(async {
            spawn_local(async move {
                while let Ok((stream, _)) = service.accept().await {
                    stream.set_nodelay(true).ok();
                    spawn_local(echo(stream));
                }
            });
            let mut tasks = JoinSet::new();
            for index in 0..sockets {
                let (address, request, seen, plan) =
                    (address.clone(), request.clone(), seen.clone(), plan.clone());
                tasks.spawn_local(async move {
                    sleep(turn(index, sockets, Duration::from_secs(1))).await;
                    if talk(&address, &request, &plan, &seen).await.is_none() {
                        seen.borrow_mut().failed += 1;
                    }
                });
            }
            while tasks.join_next().await.is_some() {}
        })
        .await;
    let mut seen = seen.borrow_mut();
    seen.trips.sort_unstable();
    println!(
        "{{\"sent\":{},\"returned\":{},\"failed\":{},\"p50\":{},\"p99\":{},\"p999\":{}}}",
        seen.sent,
        seen.trips.len(),
        seen.failed,
        quantile(&seen.trips, 0.5),
        quantile(&seen.trips, 0.99),
        quantile(&seen.trips, 0.999),
    );
    Ok(())
}

async fn talk(address: &str, request: &str, plan: &Plan, seen: &RefCell<Seen>) -> Option<()> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.set_nodelay(true).ok();
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut buffer = Vec::with_capacity(4096);
    let end = head(&mut stream, &mut buffer).await?;
    if !buffer.starts_with(b"HTTP/1.1 101") {
        return None;
    }
    buffer.drain(..end);
    let (mut reader, mut writer) = stream.into_split();
    let until = Instant::now() + Duration::from_secs(plan.seconds);
    let send = async {
        let phase = Duration::from_micros(now() / 1000 % plan.pace.as_micros() as u64);
        let mut ticks = interval_at(Instant::now() + phase, plan.pace);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut payload, mut out) = (Vec::new(), Vec::new());
        while Instant::now() < until {
            ticks.tick().await;
            payload.clear();
            payload.push(MARK);
            write!(payload, "{:020}", now()).ok()?;
            payload.resize(plan.size, b'.');
            out.clear();
            write_frame(&mut out, 2, &payload, true);
            writer.write_all(&out).await.ok()?;
            seen.borrow_mut().sent += 1;
        }
        out.clear();
        write_frame(&mut out, 8, &1000u16.to_be_bytes(), true);
        writer.write_all(&out).await.ok()
    };
    let receive = async {
        loop {
            while let Some((len, opcode, payload)) = frame(&mut buffer) {
                let now = now();
                if opcode == 8 {
                    return Some(());
                }
                marks(&payload, |sent| seen.borrow_mut().trips.push(micros(sent, now)));
                buffer.drain(..len);
            }
            if timeout(Duration::from_secs(10), reader.read_buf(&mut buffer)).await.ok()?.ok()? == 0 {
                return None;
            }
        }
    };
    let (sent, received) = tokio::join!(send, receive);
    sent.and(received)
}

/// Reads until a head is whole; its length.
async fn head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<usize> {
    loop {
        if let Some(end) = memchr::memmem::find(buffer, b"\r\n\r\n") {
            return Some(end + 4);
        }
        if timeout(Duration::from_secs(10), stream.read_buf(buffer)).await.ok()?.ok()? == 0 {
            return None;
        }
    }
}

/// What `Sec-WebSocket-Key` says.
fn key(head: &[u8]) -> Option<String> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(head).ok()?;
    let found = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("sec-websocket-key"))?;
    String::from_utf8(found.value.to_vec()).ok()
}

/// Says each frame again, unmasked. Frames are small and whole, as they are sent here.
async fn echo(mut stream: TcpStream) -> Option<()> {
    let mut buffer = Vec::with_capacity(4096);
    let end = head(&mut stream, &mut buffer).await?;
    let accept = accept(&key(&buffer[..end])?);
    buffer.drain(..end);
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: {accept}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.ok()?;
    let mut out = Vec::new();
    loop {
        while let Some((len, opcode, payload)) = load::frame(&mut buffer) {
            out.clear();
            let opcode = match opcode {
                8 => 8,
                9 => 10,
                other => other,
            };
            load::write_frame(&mut out, opcode, &payload, false);
            stream.write_all(&out).await.ok()?;
            buffer.drain(..len);
            if opcode == 8 {
                return Some(());
            }
        }
        if stream.read_buf(&mut buffer).await.ok()? == 0 {
            return None;
        }
    }
}
