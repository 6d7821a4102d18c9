//! What the upstreams and the callers share: one clock, one mark in what is sent, and quantiles.

#![forbid(unsafe_code)]

use rustix::time::{ClockId, clock_gettime};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// Stands before the time in whatever is sent.
pub const MARK: u8 = b'@';
/// Digits of the time behind the mark.
pub const DIGITS: usize = 20;

/// Nanoseconds of a clock that all processes of the machine share.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A listener with room for everybody who comes at once.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(8192)
}

/// The times behind the marks of `bytes`, and how many bytes of them were read; the rest may hold the beginning of one.
pub fn marks(bytes: &[u8], mut found: impl FnMut(u64)) -> usize {
    let mut read = 0;
    while let Some(at) = memchr::memchr(MARK, &bytes[read..]) {
        let digits = read + at + 1;
        let Some(text) = bytes.get(digits..digits + DIGITS) else { return read + at };
        match std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()) {
            Some(time) => {
                found(time);
                read = digits + DIGITS;
            }
            None => read = digits,
        }
    }
    bytes.len()
}

/// A quantile of sorted numbers; 0 of none.
pub fn quantile(sorted: &[u32], share: f64) -> u32 {
    match sorted.len() {
        0 => 0,
        len => sorted[((len - 1) as f64 * share) as usize],
    }
}

/// Microseconds between two moments of [`now`].
pub fn micros(from: u64, to: u64) -> u32 {
    (to.saturating_sub(from) / 1000).min(u64::from(u32::MAX)) as u32
}

/// The `index`th argument, or a default.
pub fn argument<T: std::str::FromStr>(index: usize, default: T) -> T {
    std::env::args().nth(index).and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// When one of `count` begins, so that all have begun within `all`.
pub fn turn(index: usize, count: usize, all: Duration) -> Duration {
    all.mul_f64(index as f64 / count.max(1) as f64)
}

/// When a sender sends, in its own phase. Ticks that were missed are skipped: a sender that was late once would else stay with all who
/// were late with it.
pub fn ticks(number: usize, pace: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + pace.mul_f64(phase(number)), pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

/// Keeps its runtime from sleeping, for ever; whoever else wants the core goes first. A caller that sleeps has to be woken by whoever sends
/// to it, and on a virtual machine a core that sleeps costs that one an exit to its host: some microseconds an event, which are the
/// caller's and not the gateway's.
pub async fn stay_awake() {
    loop {
        std::thread::yield_now();
        tokio::task::yield_now().await;
    }
}

/// Who sends in which millisecond of their pace, for a loop that has no timers: the phases are those of [`ticks`].
pub struct Wheel {
    slots: Vec<Vec<usize>>,
    begun: u64,
    turned: u64,
}

impl Wheel {
    const SLOT: u64 = 1_000_000;

    /// A wheel that turns once in `pace`, in whole milliseconds.
    pub fn new(begun: u64, pace: Duration) -> Self {
        Self { slots: vec![Vec::new(); (pace.as_millis() as usize).max(1)], begun, turned: 0 }
    }

    /// Adds the sender at `place`, the `number`th of all.
    pub fn add(&mut self, number: usize, place: usize) {
        let slot = (phase(number) * self.slots.len() as f64) as usize;
        self.slots[slot].push(place);
    }

    /// When the next slot is due, in [`now`]'s nanoseconds.
    pub fn next(&self) -> u64 {
        self.begun + (self.turned + 1) * Self::SLOT
    }

    /// Asks those of one slot to send, if it is due; who says no is not asked again. Turns that were missed whole are skipped.
    pub fn turn(&mut self, now: u64, send: impl FnMut(&usize) -> bool) {
        let (due, slots) = (now.saturating_sub(self.begun) / Self::SLOT, self.slots.len() as u64);
        if due > self.turned {
            self.turned = (self.turned + 1).max(due.saturating_sub(slots) + 1);
            self.slots[(self.turned % slots) as usize].retain(send);
        }
    }
}

/// A sender's share of its pace before it begins, so that no two begin together however many there are.
fn phase(number: usize) -> f64 {
    const GOLDEN: f64 = 0.618_033_988_749_895;
    (number as f64 * GOLDEN).fract()
}

/// The answer to a `Sec-WebSocket-Key` (RFC 6455, section 4.2.2).
pub fn accept(key: &str) -> String {
    use base64::Engine as _;
    use sha1::{Digest as _, Sha1};
    let digest = Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"));
    base64::engine::general_purpose::STANDARD.encode(digest)
}

/// The first frame of `buffer` (RFC 6455, section 5.2): its length, its opcode, and where its payload is, unmasked; none while it is not
/// whole.
pub fn frame(buffer: &mut [u8]) -> Option<(usize, u8, Range<usize>)> {
    let (first, second) = (*buffer.first()?, *buffer.get(1)?);
    let (mut at, short) = (2, usize::from(second & 0x7f));
    let len = match short {
        126 => {
            at = 4;
            usize::from(u16::from_be_bytes(buffer.get(2..4)?.try_into().ok()?))
        }
        127 => {
            at = 10;
            usize::try_from(u64::from_be_bytes(buffer.get(2..10)?.try_into().ok()?)).ok()?
        }
        short => short,
    };
    let mask: Option<[u8; 4]> = match second & 0x80 {
        0 => None,
        _ => {
            let mask = buffer.get(at..at + 4)?.try_into().ok()?;
            at += 4;
            Some(mask)
        }
    };
    let payload = buffer.get_mut(at..at + len)?;
    if let Some(mask) = mask.filter(|mask| *mask != [0; 4]) {
        payload.iter_mut().enumerate().for_each(|(index, byte)| *byte ^= mask[index % 4]);
    }
    Some((at + len, first & 0x0f, at..at + len))
}

/// Appends a whole frame, masked (with zeros, so that what is sent stays readable) where a client says it.
pub fn write_frame(out: &mut Vec<u8>, opcode: u8, payload: &[u8], masked: bool) {
    let mask = if masked { 0x80 } else { 0 };
    out.push(0x80 | opcode);
    match payload.len() {
        len @ 0..126 => out.push(mask | len as u8),
        len => {
            out.push(mask | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
    }
    if masked {
        out.extend_from_slice(&[0; 4]);
    }
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_wherever_the_bytes_are_cut() {
        let text = b"data: @00000000000000000007 and @00000000000000000008\n";
        for cut in 0..text.len() {
            let mut found = Vec::new();
            let mut rest = text[..cut].to_vec();
            let read = marks(&rest, |time| found.push(time));
            rest.drain(..read);
            rest.extend_from_slice(&text[cut..]);
            marks(&rest, |time| found.push(time));
            assert_eq!(found, [7, 8], "cut at {cut}");
        }
    }

    #[test]
    fn frames_are_read_as_they_were_written() {
        for len in [0, 1, 125, 126, 640] {
            let payload = vec![7; len];
            for masked in [false, true] {
                let mut bytes = Vec::new();
                write_frame(&mut bytes, 2, &payload, masked);
                let (length, opcode, range) = frame(&mut bytes[..]).unwrap();
                assert_eq!((length, opcode, &bytes[range]), (bytes.len(), 2, &payload[..]));
                let short = bytes.len() - 1;
                assert_eq!(frame(&mut bytes[..short]), None);
            }
        }
    }

    #[test]
    fn a_wheel_asks_each_sender_once_a_turn_and_skips_the_turns_it_missed() {
        let (mut wheel, mut asked) = (Wheel::new(0, Duration::from_millis(4)), [0; 8]);
        (0..8).for_each(|number| wheel.add(number, number));
        let mut turn = |wheel: &mut Wheel, now| {
            wheel.turn(now, |&place| {
                asked[place] += 1;
                place != 7
            });
            asked.iter().sum::<i32>()
        };
        assert_eq!(turn(&mut wheel, 999_999), 0, "nothing is due in the first millisecond");
        for millisecond in 1..=4 {
            turn(&mut wheel, millisecond * 1_000_000);
        }
        assert_eq!(turn(&mut wheel, 4_999_999), 8, "no slot twice");
        for _ in 0..20 {
            turn(&mut wheel, 100_000_000);
        }
        assert_eq!(asked, [2, 2, 2, 2, 2, 2, 2, 1], "one turn of the many missed, without who has finished");
        assert_eq!(wheel.next(), 101_000_000);
    }

    #[test]
    fn keys_are_accepted_as_the_rfc_shows() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
