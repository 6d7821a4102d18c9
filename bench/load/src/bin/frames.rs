//! `frames ADDRESS PATH SOCKETS SECONDS PACE_MS SIZE SERVICE`: opens that many WebSockets within a second, sends a frame of
//! that size each PACE_MS on each, and prints as JSON how long each took to come back. TOKEN goes into the query.
//!
//! It is also what stands behind the gateways, at SERVICE, and says every frame again. Both are one thread: two processes on
//! one core would wait for each other's time slices, some milliseconds each, and that would be most of what is measured.
//! It is a plain loop over `epoll`, for the same reason: a hundred thousand frames a second cost it most of a core, and what
//! a runtime adds to each is what it then lacks to work off a pile.

#![forbid(unsafe_code)]

use load::{DIGITS, MARK, Wheel, accept, argument, frame, marks, micros, now, quantile, turn, write_frame};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Events taken at once: all that came, before the next fifty frames are sent. What piled up in this process while it could not
/// run is worked off first, and not made larger.
const EVENTS: usize = 4096;
/// The event of the listener; all others are places in `Talks::sockets`.
const LISTENER: u64 = u64::MAX;
const SECOND: u64 = 1_000_000_000;

fn main() -> std::io::Result<()> {
    let address: SocketAddr = argument(1, ([127, 0, 0, 1], 9103).into());
    let path: String = argument(2, "/ws".to_owned());
    let count: usize = argument(3, 1000);
    let seconds: u64 = argument(4, 10);
    let pace = Duration::from_millis(argument(5, 20));
    let token = std::env::var("TOKEN").unwrap_or_default();
    let mut talks = Talks::new(argument(7, ([127, 0, 0, 1], 9103).into()), argument(6, 640))?;
    let request = format!(
        "GET {path}?token={token} HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );

    let begun = now();
    let until = begun + (seconds + 20) * SECOND;
    let mut wheel = Wheel::new(begun, pace);
    let mut asked = 0;
    while (asked < count || talks.open > 0) && now() < until {
        let ask =
            (asked < count).then(|| begun + turn(asked, count, Duration::from_secs(1)).as_nanos() as u64);
        talks.wait(ask.into_iter().fold(wheel.next(), u64::min))?;
        if ask.is_some_and(|ask| ask <= now()) {
            match talks.ask(address, &request, now() + seconds * SECOND) {
                Some(place) => wheel.add(asked, place),
                None => talks.failed += 1,
            }
            asked += 1;
        }
        wheel.turn(now(), |&place| talks.send(place));
    }
    talks.failed += talks.open;
    talks.trips.sort_unstable();
    println!(
        "{{\"sent\":{},\"returned\":{},\"failed\":{},\"p50\":{},\"p99\":{},\"p999\":{}}}",
        talks.sent,
        talks.trips.len(),
        talks.failed,
        quantile(&talks.trips, 0.5),
        quantile(&talks.trips, 0.99),
        quantile(&talks.trips, 0.999),
    );
    Ok(())
}

/// One end of a socket.
struct Socket {
    stream: TcpStream,
    end: End,
    /// Whether the heads were exchanged.
    talking: bool,
    /// Whether a caller said all it had to and the other end closed after it.
    whole: bool,
    /// What came of a frame that is not whole yet.
    left: Vec<u8>,
    /// What found no room on its way out.
    unsent: Vec<u8>,
}

enum End {
    /// Sends until that time, then closes.
    Caller {
        until: u64,
    },
    Service,
}

struct Talks {
    epoll: OwnedFd,
    listener: TcpListener,
    events: Vec<epoll::Event>,
    sockets: Vec<Option<Socket>>,
    /// Callers that neither closed nor failed.
    open: usize,
    failed: usize,
    sent: u64,
    trips: Vec<u32>,
    /// A mark, room for the time, and what fills it up, as a frame; and where the time goes.
    said: (Vec<u8>, usize),
    // All sockets read into one piece of memory and write from one: what a thousand would have each is never near.
    room: Vec<u8>,
    out: Vec<u8>,
}

impl Talks {
    fn new(service: SocketAddr, size: usize) -> std::io::Result<Self> {
        let listener = TcpListener::bind(service)?;
        // Room for everybody who comes at once; the call again changes only that.
        rustix::net::listen(&listener, 8192)?;
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
        let mut payload = vec![b'.'; size.max(DIGITS + 1)];
        payload[0] = MARK;
        let mut said = Vec::new();
        write_frame(&mut said, 2, &payload, true);
        let time = said.len() - payload.len() + 1;
        Ok(Self {
            epoll,
            listener,
            events: Vec::with_capacity(EVENTS),
            sockets: Vec::new(),
            open: 0,
            failed: 0,
            sent: 0,
            trips: Vec::new(),
            said: (said, time),
            room: vec![0; 64 << 10],
            out: Vec::new(),
        })
    }

    /// Opens a socket that talks until then.
    fn ask(&mut self, address: SocketAddr, request: &str, until: u64) -> Option<usize> {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.write_all(request.as_bytes()).ok()?;
        let place = self.add(stream, End::Caller { until })?;
        self.open += 1;
        Some(place)
    }

    fn add(&mut self, stream: TcpStream, end: End) -> Option<usize> {
        let place = self.sockets.len();
        stream.set_nodelay(true).ok()?;
        stream.set_nonblocking(true).ok()?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &stream, epoll::EventData::new_u64(place as u64), flags).ok()?;
        let (left, unsent) = (Vec::new(), Vec::new());
        self.sockets.push(Some(Socket { stream, end, talking: false, whole: false, left, unsent }));
        Some(place)
    }

    /// Waits for what comes, until `next` at most, and takes it.
    fn wait(&mut self, next: u64) -> std::io::Result<()> {
        let rest = next.saturating_sub(now());
        let timeout = Timespec { tv_sec: (rest / SECOND) as i64, tv_nsec: (rest % SECOND) as i64 };
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            waited => waited?,
        };
        for at in 0..self.events.len() {
            let (flags, data) = (self.events[at].flags, self.events[at].data.u64());
            if data == LISTENER {
                while let Ok((stream, _)) = self.listener.accept() {
                    self.add(stream, End::Service);
                }
                continue;
            }
            let place = data as usize;
            let Some(mut socket) = self.sockets[place].take() else { continue };
            let goes_on =
                (socket.unsent.is_empty() || !flags.contains(epoll::EventFlags::OUT) || socket.flush())
                    && self.hear(&mut socket);
            match goes_on {
                true => self.sockets[place] = Some(socket),
                false => self.end(&socket),
            }
        }
        Ok(())
    }

    /// A socket that has ended.
    fn end(&mut self, socket: &Socket) {
        if let End::Caller { .. } = socket.end {
            self.open -= 1;
            self.failed += usize::from(!socket.whole);
        }
    }

    /// Sends a caller's next frame; whether there will be more.
    fn send(&mut self, place: usize) -> bool {
        let Some(mut socket) = self.sockets[place].take() else { return false };
        let End::Caller { until } = socket.end else { return false };
        if !socket.talking {
            self.sockets[place] = Some(socket);
            return true;
        }
        let now = now();
        let more = now < until;
        let alive = if more {
            let (said, time) = &mut self.said;
            self.sent += 1;
            write!(&mut said[*time..], "{now:020}").is_ok() && socket.say(said)
        } else {
            let mut close = Vec::new();
            write_frame(&mut close, 8, &1000u16.to_be_bytes(), true);
            socket.say(&close)
        };
        match alive {
            true => self.sockets[place] = Some(socket),
            false => self.end(&socket),
        }
        alive && more
    }

    /// Reads all that came; whether more may come.
    fn hear(&mut self, socket: &mut Socket) -> bool {
        loop {
            let count = match socket.stream.read(&mut self.room) {
                Ok(0) => return false,
                Ok(count) => count,
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            };
            let mut room = std::mem::take(&mut self.room);
            let goes_on = if socket.left.is_empty() {
                let came = &mut room[..count];
                let read = self.take(socket, came);
                read.map(|read| socket.left.extend_from_slice(&came[read..]))
            } else {
                let mut left = std::mem::take(&mut socket.left);
                left.extend_from_slice(&room[..count]);
                let read = self.take(socket, &mut left);
                read.map(|read| {
                    left.drain(..read);
                    socket.left = left;
                })
            };
            let full = count == room.len();
            self.room = room;
            if goes_on.is_none() || !full {
                return goes_on.is_some();
            }
        }
    }

    /// What came: how much of it was whole, and nothing if it was the last.
    fn take(&mut self, socket: &mut Socket, bytes: &mut [u8]) -> Option<usize> {
        let mut read = 0;
        if !socket.talking {
            let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else { return Some(0) };
            read = end + 4;
            socket.talking = true;
            match socket.end {
                End::Caller { .. } => bytes.starts_with(b"HTTP/1.1 101").then_some(())?,
                End::Service => {
                    let accept = accept(&key(&bytes[..read])?);
                    let head = format!(
                        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: {accept}\r\n\r\n"
                    );
                    socket.say(head.as_bytes()).then_some(())?;
                }
            }
        }
        let now = now();
        let mut closed = false;
        self.out.clear();
        while let Some((length, opcode, payload)) = frame(&mut bytes[read..]) {
            let payload = &bytes[read..][payload];
            match socket.end {
                End::Caller { .. } => {
                    marks(payload, |sent| self.trips.push(micros(sent, now)));
                }
                End::Service => {
                    write_frame(&mut self.out, if opcode == 9 { 10 } else { opcode }, payload, false);
                }
            }
            closed |= opcode == 8;
            read += length;
        }
        if !self.out.is_empty() {
            socket.say(&self.out).then_some(())?;
        }
        socket.whole = closed && matches!(socket.end, End::Caller { until } if until <= now);
        (!closed).then_some(read)
    }
}

impl Socket {
    /// Sends that, after what is yet unsent; whether the other end is still there.
    fn say(&mut self, bytes: &[u8]) -> bool {
        if !self.unsent.is_empty() {
            self.unsent.extend_from_slice(bytes);
            return self.flush();
        }
        match write(&mut self.stream, bytes) {
            Some(count) => {
                self.unsent.extend_from_slice(&bytes[count..]);
                true
            }
            None => false,
        }
    }

    /// Sends what is yet unsent.
    fn flush(&mut self) -> bool {
        let Some(count) = write(&mut self.stream, &self.unsent) else { return false };
        self.unsent.drain(..count);
        true
    }
}

/// How much of it there was room for; none if there is nobody.
fn write(stream: &mut TcpStream, bytes: &[u8]) -> Option<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match stream.write(&bytes[written..]) {
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(_) => return None,
        }
    }
    Some(written)
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
