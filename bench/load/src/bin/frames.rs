//! `frames ADDRESS PATH SOCKETS SECONDS PACE_MS SIZE SERVICE`: opens that many WebSockets within a second, sends a frame of
//! that size each PACE_MS on each, and prints as JSON how long each took to come back. TOKEN goes into the query.
//!
//! It is also what stands behind the gateways, at SERVICE, and says every frame again. Both are one thread: two processes on
//! one core would wait for each other's time slices, some milliseconds each, and that would be most of what is measured.

#![forbid(unsafe_code)]

use load::{
    DIGITS, MARK, accept, argument, frame, listen, marks, micros, now, quantile, ticks, turn, write_frame,
};
use std::cell::{Cell, RefCell};
use std::io::{ErrorKind, Write as _};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet, spawn_local};
use tokio::time::{Instant, sleep, timeout};

#[derive(Default)]
struct Seen {
    trips: Vec<u32>,
    sent: u64,
    failed: u32,
}

struct Plan {
    seconds: u64,
    pace: Duration,
    /// A mark, room for the time, and what fills it up.
    payload: Vec<u8>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let address: String = argument(1, String::new());
    let path: String = argument(2, "/ws".to_owned());
    let sockets: usize = argument(3, 1000);
    let mut payload = vec![b'.'; argument::<usize>(6, 640).max(DIGITS + 1)];
    payload[0] = MARK;
    let plan =
        Rc::new(Plan { seconds: argument(4, 10), pace: Duration::from_millis(argument(5, 20)), payload });
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
                    let all = Duration::from_secs(plan.seconds + 20);
                    let talked = timeout(all, talk(index, &address, &request, &plan, &seen)).await;
                    if !matches!(talked, Ok(Some(()))) {
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

async fn talk(
    index: usize,
    address: &str,
    request: &str,
    plan: &Plan,
    seen: &Rc<RefCell<Seen>>,
) -> Option<()> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.set_nodelay(true).ok();
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut buffer = Vec::new();
    let end = head(&mut stream, &mut buffer).await?;
    if !buffer.starts_with(b"HTTP/1.1 101") {
        return None;
    }
    let stream = Rc::new(stream);
    let received = spawn_local(receive(stream.clone(), buffer.split_off(end), seen.clone()));
    let until = Instant::now() + Duration::from_secs(plan.seconds);
    let mut ticks = ticks(index, plan.pace);
    while Instant::now() < until {
        ticks.tick().await;
        let mut out = OUT.take();
        out.clear();
        write_frame(&mut out, 2, &plan.payload, true);
        let time = out.len() - plan.payload.len() + 1;
        write!(&mut out[time..], "{:020}", now()).ok()?;
        say(&stream, &out).await?;
        OUT.set(out);
        seen.borrow_mut().sent += 1;
    }
    let mut close = Vec::new();
    write_frame(&mut close, 8, &1000u16.to_be_bytes(), true);
    say(&stream, &close).await?;
    received.await.ok()?
}

async fn receive(stream: Rc<TcpStream>, mut left: Vec<u8>, seen: Rc<RefCell<Seen>>) -> Option<()> {
    let mut closed = false;
    while !closed {
        hear(&stream, &mut left, |opcode, payload| {
            let now = now();
            closed |= opcode == 8;
            marks(payload, |sent| seen.borrow_mut().trips.push(micros(sent, now)));
        })
        .await?;
    }
    Some(())
}

// All sockets read into one piece of memory and write from one, as far as they can: what a thousand would have each is
// never near, and this side has little time to spare.
thread_local! {
    static ROOM: RefCell<Vec<u8>> = RefCell::new(vec![0; 64 << 10]);
    static OUT: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Reads once; the frames that are whole. `left` is what came of another before.
async fn hear(stream: &TcpStream, left: &mut Vec<u8>, mut each: impl FnMut(u8, &[u8])) -> Option<()> {
    let mut whole = |bytes: &mut [u8]| {
        let mut read = 0;
        while let Some((length, opcode, payload)) = frame(&mut bytes[read..]) {
            each(opcode, &bytes[read..][payload]);
            read += length;
        }
        read
    };
    loop {
        stream.readable().await.ok()?;
        let read = ROOM.with_borrow_mut(|room| {
            let count = stream.try_read(room)?;
            let came = &mut room[..count];
            if left.is_empty() {
                let read = whole(came);
                left.extend_from_slice(&came[read..]);
            } else {
                left.extend_from_slice(came);
                let read = whole(left);
                left.drain(..read);
            }
            Ok::<_, std::io::Error>(count)
        });
        match read {
            Ok(0) => return None,
            Ok(_) => return Some(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
}

async fn say(stream: &TcpStream, mut bytes: &[u8]) -> Option<()> {
    while !bytes.is_empty() {
        match stream.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => stream.writable().await.ok()?,
            Err(_) => return None,
        }
    }
    Some(())
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
    let found =
        request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("sec-websocket-key"))?;
    String::from_utf8(found.value.to_vec()).ok()
}

/// Says each frame again, unmasked. Frames are small and whole, as they are sent here.
async fn echo(mut stream: TcpStream) -> Option<()> {
    let mut buffer = Vec::new();
    let end = head(&mut stream, &mut buffer).await?;
    let accept = accept(&key(&buffer[..end])?);
    let mut left = buffer.split_off(end);
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: {accept}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.ok()?;
    let mut closed = false;
    while !closed {
        let mut out = Vec::new();
        hear(&stream, &mut left, |opcode, payload| {
            if out.capacity() == 0 {
                out = OUT.take();
                out.clear();
            }
            closed |= opcode == 8;
            write_frame(&mut out, if opcode == 9 { 10 } else { opcode }, payload, false);
        })
        .await?;
        say(&stream, &out).await?;
        if out.capacity() > 0 {
            OUT.set(out);
        }
    }
    Some(())
}
