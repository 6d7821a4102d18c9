//! Frames as they stand on the wire (RFC 6455, section 5): where each begins, and those the gateway says itself.
//!
//! [`Scanner`] hops from header to header and never looks at a payload, so it costs the same for a megabyte as for a
//! byte, and reads masked and compressed frames alike. What it cannot misread it does not judge: reserved bits,
//! unknown opcodes, a fragment out of place and bad UTF-8 are for the other end to refuse. Only a length that no frame
//! can have is refused here, because nobody could tell where the next frame begins.

/// Longest header: two bytes, eight of length, four of mask.
pub const MAX_HEADER: usize = 14;

/// Longest payload of a control frame.
const MAX_CONTROL: usize = 125;

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const TEXT: u8 = 1;

/// What the gateway's own pings carry. A pong that answers one passes on to the upstream: nobody has to answer a pong
/// that was not asked for (section 5.5.3).
const OWN_PING: &[u8] = b"voicegate";

/// A frame's header, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    /// Bytes of the header itself.
    size: usize,
    /// Bytes of payload behind it; none where it says more than a frame can have.
    payload: Option<u64>,
    /// Whether the frame ends its message.
    is_last: bool,
    opcode: u8,
}

impl Header {
    /// The header these bytes begin with; none while part of it is missing.
    fn read(bytes: &[u8]) -> Option<Header> {
        let [first, second, rest @ ..] = bytes else { return None };
        let mask = if second & MASKED == 0 { 0 } else { 4 };
        let (payload, size) = match second & 0x7f {
            126 => (Some(u64::from(u16::from_be_bytes(*rest.first_chunk()?))), 4 + mask),
            127 => {
                let length = u64::from_be_bytes(*rest.first_chunk()?);
                ((length >> 63 == 0).then_some(length), 10 + mask)
            }
            short => (Some(u64::from(short)), 2 + mask),
        };
        let header = Header { size, payload, is_last: first & FIN != 0, opcode: first & 0x0f };
        (bytes.len() >= size).then_some(header)
    }

    fn is_control(&self) -> bool {
        self.opcode & 0x08 != 0
    }
}

/// Why what follows may not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// A message, or one frame, is larger than allowed.
    TooBig,
    /// A length that no frame can have.
    BadLength,
}

/// How far a piece may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scan {
    /// So many bytes may pass. Those behind them are part of a header, to be shown again with what follows; or,
    /// beside a violation, its frame.
    pub pass: usize,
    /// Frames that began among them.
    pub frames: u32,
    /// Why nothing behind them may pass.
    pub violation: Option<Violation>,
}

/// Follows the frames of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scanner {
    /// Bytes of the current frame's payload that have not come.
    missing: u64,
    /// Bytes of the current message so far, by the headers of its frames.
    message: u64,
    /// Whether a Close has begun.
    closed: bool,
}

impl Scanner {
    /// Whether no frame is under way: only here may another be put in.
    pub fn is_boundary(&self) -> bool {
        self.missing == 0
    }

    /// Whether a Close has begun: nothing may be put in behind it.
    pub fn saw_close(&self) -> bool {
        self.closed
    }

    /// Follows a piece. It begins where the last one's [`Scan::pass`] ended. `max` is the largest message, in bytes of
    /// payload on the wire (compressed, where the ends agreed on that); control frames count on their own.
    pub fn scan(&mut self, bytes: &[u8], max: u64) -> Scan {
        let mut scan = Scan { pass: 0, frames: 0, violation: None };
        loop {
            let step = self.missing.min((bytes.len() - scan.pass) as u64);
            self.missing -= step;
            scan.pass += step as usize;
            if scan.pass == bytes.len() {
                return scan;
            }
            let Some(header) = Header::read(&bytes[scan.pass..]) else { return scan };
            let Some(payload) = header.payload else {
                return Scan { violation: Some(Violation::BadLength), ..scan };
            };
            let message = if header.is_control() { payload } else { self.message.saturating_add(payload) };
            if message > max {
                return Scan { violation: Some(Violation::TooBig), ..scan };
            }
            if !header.is_control() {
                self.message = if header.is_last { 0 } else { message };
            }
            self.closed |= header.opcode == CLOSE;
            self.missing = payload;
            scan.frames += 1;
            scan.pass += header.size;
        }
    }

    /// Follows a piece to where the frame under way ends; how many bytes that are, the whole piece if it does not.
    pub fn finish(&mut self, bytes: &[u8]) -> usize {
        let step = self.missing.min(bytes.len() as u64);
        self.missing -= step;
        step as usize
    }
}

/// Status codes of a Close that the gateway says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseCode(pub u16);

impl CloseCode {
    /// The other side left, or the gateway goes down.
    pub const GOING_AWAY: CloseCode = CloseCode(1001);
    /// What came is no WebSocket.
    pub const PROTOCOL: CloseCode = CloseCode(1002);
    /// A kind of message that nobody reads here.
    pub const NOT_READ: CloseCode = CloseCode(1003);
    /// Text that is not UTF-8.
    pub const NOT_TEXT: CloseCode = CloseCode(1007);
    /// A limit that is no message's size.
    pub const POLICY: CloseCode = CloseCode(1008);
    /// A message is too big.
    pub const TOO_BIG: CloseCode = CloseCode(1009);
    /// The upstream broke off.
    pub const BROKE: CloseCode = CloseCode(1011);
    /// What served this is no more: connect anew.
    pub const RESTART: CloseCode = CloseCode(1012);
    /// The caller's token or key is over: log in anew.
    pub const REAUTH: CloseCode = CloseCode(4401);
    /// The same user has connected again, and only one connection may be.
    pub const REPLACED: CloseCode = CloseCode(4409);
}

/// A Close frame. `mask` is set towards an upstream, for a client must mask (section 5.3). `reason` is cut to what
/// fits.
pub fn close(code: CloseCode, reason: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut end = reason.len().min(MAX_CONTROL - 2);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let mut payload = Vec::with_capacity(2 + end);
    payload.extend_from_slice(&code.0.to_be_bytes());
    payload.extend_from_slice(&reason.as_bytes()[..end]);
    control(CLOSE, &payload, mask)
}

/// A text message of a server's, in one frame.
pub fn text(text: &str) -> Vec<u8> {
    let mut frame = Vec::with_capacity(10 + text.len());
    frame.push(FIN | TEXT);
    match text.len() {
        len @ 0..=125 => frame.push(len as u8),
        len @ 126..=65535 => {
            frame.push(126);
            frame.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            frame.push(127);
            frame.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(text.as_bytes());
    frame
}

/// A server's answer to a ping with this in it, which is no longer than a ping may be.
pub fn pong(payload: &[u8]) -> Vec<u8> {
    control(PONG, &payload[..payload.len().min(MAX_CONTROL)], None)
}

/// A server's answer to a Close with this in it: the same code.
pub fn answer_close(payload: &[u8]) -> Vec<u8> {
    control(CLOSE, &payload[..payload.len().min(2)], None)
}

/// A ping of the gateway's own, for a caller.
pub fn ping() -> Vec<u8> {
    control(PING, OWN_PING, None)
}

/// A whole frame of a server's, short of a mask, as a client must send it.
pub fn masked(frame: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let Some(header) = Header::read(frame) else { return frame.to_vec() };
    let (header, payload) = frame.split_at(header.size);
    let mut bytes = Vec::with_capacity(frame.len() + mask.len());
    bytes.extend_from_slice(header);
    bytes[1] |= MASKED;
    bytes.extend_from_slice(&mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

fn control(opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut frame = Vec::with_capacity(6 + payload.len());
    let masked = if mask.is_some() { MASKED } else { 0 };
    frame.extend_from_slice(&[FIN | opcode, masked | payload.len() as u8]);
    match mask {
        None => frame.extend_from_slice(payload),
        Some(mask) => {
            frame.extend_from_slice(&mask);
            frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        }
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: u64 = 1 << 20;

    fn frame(first: u8, payload: usize, mask: bool) -> Vec<u8> {
        let masked = if mask { MASKED } else { 0 };
        let mut bytes = vec![first];
        match payload {
            0..=125 => bytes.push(masked | payload as u8),
            126..=65535 => {
                bytes.push(masked | 126);
                bytes.extend_from_slice(&(payload as u16).to_be_bytes());
            }
            _ => {
                bytes.push(masked | 127);
                bytes.extend_from_slice(&(payload as u64).to_be_bytes());
            }
        }
        bytes.extend_from_slice(&[0xff; 4][..if mask { 4 } else { 0 }]);
        bytes.extend(std::iter::repeat_n(0x81, payload));
        bytes
    }

    #[test]
    fn a_frame_is_masked_behind_its_header() {
        for (text_len, header) in [(2, 2), (300, 4), (70_000, 10)] {
            let plain = text(&"x".repeat(text_len));
            let bytes = masked(&plain, [1, 2, 3, 4]);
            assert_eq!(bytes.len(), plain.len() + 4);
            assert_eq!((bytes[0], bytes[1]), (plain[0], plain[1] | MASKED));
            assert_eq!(bytes[2..header], plain[2..header]);
            assert_eq!(bytes[header..header + 6], [1, 2, 3, 4, b'x' ^ 1, b'x' ^ 2]);
        }
        assert_eq!(
            masked(&close(CloseCode(1000), "a", None), [9; 4]),
            close(CloseCode(1000), "a", Some([9; 4]))
        );
    }

    proptest! {
        #[test]
        fn a_stream_cut_anywhere_is_read_alike(
            frames in prop::collection::vec((prop::sample::select(vec![0x81u8, 0x01, 0x80, 0xc2, 0x89]),
                prop::sample::select(vec![0usize, 1, 125, 126, 300, 65535, 65536]), any::<bool>()), 1..8),
            cuts in prop::collection::vec(1usize..70000, 1..40),
        ) {
            let whole: Vec<u8> = frames.iter().flat_map(|(first, len, mask)| frame(*first, *len, *mask)).collect();
            let mut scanner = Scanner::default();
            let (mut held, mut rest, mut passed, mut count) = (Vec::new(), &whole[..], Vec::new(), 0);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                rest = later;
                held.extend_from_slice(now);
                let scan = scanner.scan(&held, MAX);
                prop_assert_eq!(scan.violation, None);
                prop_assert!(held.len() - scan.pass < MAX_HEADER);
                passed.extend(held.drain(..scan.pass));
                count += scan.frames as usize;
            }
            prop_assert!(held.is_empty() && scanner.is_boundary());
            prop_assert_eq!(count, frames.len());
            prop_assert_eq!(passed, whole);
        }
    }

    #[test]
    fn a_message_counts_over_its_fragments_and_control_frames_do_not() {
        let mut scanner = Scanner::default();
        let mut bytes = frame(0x01, 60, true);
        bytes.extend(frame(0x89, 50, true));
        let good = bytes.len();
        bytes.extend(frame(0x80, 41, true));
        let scan = scanner.scan(&bytes, 100);
        assert_eq!(scan, Scan { pass: good, frames: 2, violation: Some(Violation::TooBig) });
        assert!(scanner.is_boundary(), "what passed ends with a frame");
        let mut scanner = Scanner::default();
        let two: Vec<u8> = [frame(0x82, 100, true), frame(0x82, 100, true)].concat();
        assert_eq!(scanner.scan(&two, 100).violation, None, "two messages are not one");
        assert_eq!(Scanner::default().scan(&frame(0x89, 101, true), 100).violation, Some(Violation::TooBig));
    }

    #[test]
    fn lengths_that_no_frame_has_are_refused_before_anything_of_it_passes() {
        let mut bytes = frame(0x81, 1, false);
        bytes.extend([0x82, 0x7f, 0x80, 0, 0, 0, 0, 0, 0, 0]);
        let scan = Scanner::default().scan(&bytes, u64::MAX);
        assert_eq!((scan.pass, scan.violation), (3, Some(Violation::BadLength)));
        let huge = [0x02, 0x7f, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        let mut scanner = Scanner { message: u64::MAX - 5, ..Scanner::default() };
        assert_eq!(scanner.scan(&huge, 100).violation, Some(Violation::TooBig), "no overflow");
    }

    #[test]
    fn a_close_is_seen_when_its_header_is() {
        let mut scanner = Scanner::default();
        let close = close(CloseCode(1000), "bye", Some([1, 2, 3, 4]));
        assert_eq!(scanner.scan(&close[..5], MAX).pass, 0);
        assert!(!scanner.saw_close());
        assert_eq!(scanner.scan(&close[..7], MAX).pass, 7);
        assert!(scanner.saw_close() && !scanner.is_boundary());
        assert_eq!(scanner.finish(&close[7..]), 4);
        assert!(scanner.is_boundary());
    }

    #[test]
    fn own_frames_are_as_the_standard_has_them() {
        assert_eq!(close(CloseCode::GOING_AWAY, "", None), [0x88, 2, 0x03, 0xe9]);
        assert_eq!(close(CloseCode(0), "a", Some([1, 2, 3, 4])), [0x88, 0x83, 1, 2, 3, 4, 1, 2, b'a' ^ 3]);
        assert_eq!(&ping()[..2], [0x89, 9]);
        let long = close(CloseCode::POLICY, &"é".repeat(100), None);
        assert_eq!((long[1], long.len()), (124, 126), "cut between two characters");
    }
}
