//! Watches the bytes of an HTTP/1 connection go by, to know what the parser behind it does not tell.
//!
//! Two things: whether the peer is between requests, inside a head or inside a body (each has its own deadline), and
//! whether a head carried `Content-Length` together with `Transfer-Encoding`. hyper follows RFC 9112 section 6.3
//! there: it drops the length and answers, so nobody behind it can see what was on the wire. We refuse such requests.
//!
//! This is not a second parser whose view counts: nothing is served on its word. If it loses its place, deadlines are
//! those of an idle connection, and hyper's own handling (the encoding wins, the connection ends) is what is left.
use std::io::BufRead as _;

/// As much of a line as is kept: enough for every field that is looked at, however it is padded within reason.
const LINE_KEPT: usize = 256;

/// Where the peer stands in its request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// Nothing of the next request has come.
    #[default]
    Idle,
    /// A head has begun.
    Head,
    /// A head is complete, its body is not.
    Body,
}

/// The state machine. Feed it every byte, in order.
#[derive(Debug, Default)]
pub(super) struct Framing {
    state: State,
    length: Option<u64>,
    chunked: bool,
    /// The beginning of a line whose end has not come; nothing is kept when heads come whole.
    partial: Vec<u8>,
    ambiguous: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    RequestLine,
    Fields,
    /// Bytes left of a body with a length.
    Fixed(u64),
    ChunkSize,
    /// Bytes left of a chunk and its line end.
    Chunk(u64),
    Trailers,
    Lost,
}

impl Framing {
    /// Takes in what was read.
    pub(super) fn observe(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.state {
                State::Fixed(left) => {
                    self.state = skip(&mut bytes, left).map_or(State::RequestLine, State::Fixed)
                }
                State::Chunk(left) => {
                    self.state = skip(&mut bytes, left).map_or(State::ChunkSize, State::Chunk)
                }
                State::Lost => return,
                State::RequestLine | State::Fields | State::ChunkSize | State::Trailers => {
                    self.take_line(&mut bytes)
                }
            }
        }
    }

    pub(super) fn phase(&self) -> Phase {
        match self.state {
            State::RequestLine if self.partial.is_empty() => Phase::Idle,
            State::RequestLine | State::Fields => Phase::Head,
            State::Fixed(_) | State::ChunkSize | State::Chunk(_) | State::Trailers => Phase::Body,
            State::Lost => Phase::Idle,
        }
    }

    /// Whether a head said how long its body is in two ways. It stays so: the connection has to end.
    pub(super) fn is_ambiguous(&self) -> bool {
        self.ambiguous
    }

    /// Whether the wire can't be followed any more. It stays so.
    pub(super) fn is_lost(&self) -> bool {
        self.state == State::Lost
    }

    fn take_line(&mut self, bytes: &mut &[u8]) {
        let whole = *bytes;
        // The library's fast search for a byte, which a slice has under this name only; on a slice it can't fail.
        let taken = bytes.skip_until(b'\n').unwrap_or(whole.len());
        let piece = &whole[..taken];
        let complete = piece.ends_with(b"\n");
        if complete && self.partial.is_empty() {
            self.line(piece);
            return;
        }
        let room = LINE_KEPT.saturating_sub(self.partial.len());
        self.partial.extend_from_slice(&piece[..piece.len().min(room)]);
        if complete {
            let mut line = std::mem::take(&mut self.partial);
            self.line(&line);
            line.clear();
            self.partial = line;
        }
    }

    fn line(&mut self, line: &[u8]) {
        let line = line.trim_ascii_end();
        match self.state {
            State::RequestLine if line.is_empty() => {}
            State::RequestLine => {
                (self.length, self.chunked) = (None, false);
                self.state = State::Fields;
            }
            State::Fields if line.is_empty() => self.end_of_head(),
            State::Fields => self.field(line),
            State::ChunkSize => {
                self.state = match chunk_size(line) {
                    Some(0) => State::Trailers,
                    Some(size) => State::Chunk(size.saturating_add(2)),
                    None => State::Lost,
                }
            }
            State::Trailers if line.is_empty() => self.state = State::RequestLine,
            State::Trailers | State::Fixed(_) | State::Chunk(_) | State::Lost => {}
        }
    }

    fn field(&mut self, line: &[u8]) {
        // Nearly every field is told apart by its first letter.
        if !matches!(line[0] | 0x20, b'c' | b't') {
            return;
        }
        let mut parts = line.splitn(2, |&byte| byte == b':');
        let (Some(name), Some(value)) = (parts.next(), parts.next()) else { return };
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.chunked = true;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            // A length that can't be read is refused by the parser behind; it is one nevertheless.
            let length = std::str::from_utf8(value.trim_ascii()).ok().and_then(|text| text.parse().ok());
            self.length = Some(length.unwrap_or(0));
        }
    }

    fn end_of_head(&mut self) {
        self.ambiguous |= self.chunked && self.length.is_some();
        self.state = match self.length {
            _ if self.chunked => State::ChunkSize,
            None | Some(0) => State::RequestLine,
            Some(length) => State::Fixed(length),
        };
    }
}

/// Skips up to `left` bytes; what is still to skip after them.
fn skip(bytes: &mut &[u8], left: u64) -> Option<u64> {
    let skipped = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    *bytes = &bytes[skipped..];
    Some(left - skipped as u64).filter(|&left| left > 0)
}

fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|&byte| byte == b';').next()?.trim_ascii();
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `wire` in pieces of `step` bytes and returns the phase after each.
    fn phases(wire: &str, step: usize) -> (Framing, Vec<Phase>) {
        let mut framing = Framing::default();
        let phases = wire.as_bytes().chunks(step).map(|piece| {
            framing.observe(piece);
            framing.phase()
        });
        let phases = phases.collect();
        (framing, phases)
    }

    #[test]
    fn phases_follow_the_request() {
        let mut framing = Framing::default();
        for (piece, phase) in [
            ("", Phase::Idle),
            ("\r\n", Phase::Idle),
            ("GE", Phase::Head),
            ("T / HTTP/1.1\r\n", Phase::Head),
            ("Host: a\r\n\r", Phase::Head),
            ("\n", Phase::Idle),
            ("POST / HTTP/1.1\r\ncontent-LENGTH:  5 \r\n\r\n", Phase::Body),
            ("abcd", Phase::Body),
            ("eGET / HTTP/1.1\r\n", Phase::Head),
            ("\r\n", Phase::Idle),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nab", Phase::Body),
            ("c\r\n0\r\nX: Y\r\n", Phase::Body),
            ("\r\n", Phase::Idle),
        ] {
            framing.observe(piece.as_bytes());
            assert_eq!(framing.phase(), phase, "{piece:?}");
        }
        assert!(!framing.is_ambiguous());
    }

    #[test]
    fn two_lengths_are_seen_in_any_order_also_behind_other_requests() {
        let before = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n\
                      POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc";
        for head in [
            "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nA: b\r\ncontent-length: x\r\n\r\n",
            "POST / HTTP/1.1\nTRANSFER-ENCODING:chunked\nCONTENT-LENGTH:3\n\n",
        ] {
            for wire in [head.to_owned(), format!("{before}{head}")] {
                for step in [1, 7, 4096] {
                    assert!(phases(&wire, step).0.is_ambiguous(), "{wire:?} by {step}");
                }
            }
        }
    }

    #[test]
    fn what_a_body_says_is_not_a_head() {
        let body = "X\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n";
        let fixed = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let chunked = format!(
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        );
        for wire in [fixed, chunked] {
            for step in [1, 5, 4096] {
                let (framing, phases) = phases(&wire, step);
                assert!(!framing.is_ambiguous());
                assert_eq!(phases.last(), Some(&Phase::Idle));
            }
        }
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let (framing, phases) = phases(&"a".repeat(100_000), 1000);
        assert_eq!(phases.last(), Some(&Phase::Head));
        assert!(framing.partial.capacity() <= 4 * LINE_KEPT);
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_come_to_the_same(wire in "[ -~\r\n]{0,80}", step in 1usize..9) {
            let (by_step, _) = phases(&wire, step);
            let (whole, _) = phases(&wire, 4096);
            prop_assert_eq!(by_step.phase(), whole.phase());
            prop_assert_eq!(by_step.is_ambiguous(), whole.is_ambiguous());
        }
    }
}
