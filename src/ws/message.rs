//! Messages from frames (RFC 6455, section 5), for where the gateway is itself an end of the socket.
//!
//! Of a client's frames sizes are not looked at here: who feeds this has bounded them. No extension is ever agreed on.

use super::frame::CloseCode;
use bytes::{Buf, BytesMut};

/// What the other end said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// A text message, whole.
    Text(String),
    /// A binary message, whole.
    Binary(Vec<u8>),
    /// A ping, to be answered with the same.
    Ping(Vec<u8>),
    /// A pong.
    Pong,
    /// A Close, with what stands in it.
    Close(Vec<u8>),
}

/// Puts frames together as their bytes come.
#[derive(Debug, Default)]
pub struct Decoder {
    held: BytesMut,
    message: Vec<u8>,
    /// Opcode of the message under way.
    opcode: Option<u8>,
    /// Largest message of a server's; none where a client is heard.
    server_max: Option<u64>,
}

impl Decoder {
    /// For a server's frames, which are not masked. `max` is its largest message, in bytes of payload.
    pub fn of_server(max: u64) -> Self {
        Decoder { server_max: Some(max), ..Decoder::default() }
    }

    /// Where the next bytes go.
    pub fn room(&mut self) -> &mut BytesMut {
        &mut self.held
    }

    /// The next thing said; none while part of it is missing.
    ///
    /// # Errors
    /// With what to close, for what may not be said: 1002, 1007 for text that is not UTF-8, 1009 for a message of a
    /// server's that is too big, as soon as its header says so.
    pub fn next_said(&mut self) -> Result<Option<Said>, CloseCode> {
        while let Some((first, payload)) = self.frame()? {
            let (is_last, opcode) = (first & 0x80 != 0, first & 0x0f);
            match (opcode, is_last) {
                (8, true) => return close(payload).map(Some),
                (9, true) => return Ok(Some(Said::Ping(payload))),
                (10, true) => return Ok(Some(Said::Pong)),
                (0, _) if self.opcode.is_some() => self.message.extend_from_slice(&payload),
                (1 | 2, _) if self.opcode.is_none() => {
                    self.opcode = Some(opcode);
                    self.message = payload;
                }
                _ => return Err(CloseCode::PROTOCOL),
            }
            if is_last {
                let message = std::mem::take(&mut self.message);
                return match self.opcode.take() {
                    Some(1) => match String::from_utf8(message) {
                        Ok(text) => Ok(Some(Said::Text(text))),
                        Err(_) => Err(CloseCode::NOT_TEXT),
                    },
                    _ => Ok(Some(Said::Binary(message))),
                };
            }
        }
        Ok(None)
    }

    /// The next whole frame: its first byte, and its payload unmasked.
    fn frame(&mut self) -> Result<Option<(u8, Vec<u8>)>, CloseCode> {
        let [first, second, rest @ ..] = &self.held[..] else { return Ok(None) };
        let (first, short) = (*first, second & 0x7f);
        let is_control = first & 0x08 != 0;
        let (is_masked, from_client) = (second & 0x80 != 0, self.server_max.is_none());
        // Reserved bits mean an extension; a client masks and a server does not; control frames are short.
        if first & 0x70 != 0 || is_masked != from_client || is_control && short > 125 {
            return Err(CloseCode::PROTOCOL);
        }
        let (header, length) = match short {
            126 => match rest.first_chunk() {
                Some(length) => (4, u64::from(u16::from_be_bytes(*length))),
                None => return Ok(None),
            },
            127 => match rest.first_chunk() {
                Some(length) => (10, u64::from_be_bytes(*length)),
                None => return Ok(None),
            },
            short => (2, u64::from(short)),
        };
        let length = usize::try_from(length).map_err(|_| CloseCode::TOO_BIG)?;
        let message = if is_control { 0 } else { self.message.len() as u64 };
        if self.server_max.is_some_and(|max| message.saturating_add(length as u64) > max) && !is_control {
            return Err(CloseCode::TOO_BIG);
        }
        let (mask, begin) = match from_client {
            true => match self.held[header..].first_chunk::<4>() {
                Some(mask) => (*mask, header + 4),
                None => return Ok(None),
            },
            false => ([0; 4], header),
        };
        if self.held.len() - begin < length {
            return Ok(None);
        }
        self.held.advance(begin);
        let payload = self.held.split_to(length);
        let payload = match from_client {
            true => payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect(),
            false => payload.to_vec(),
        };
        Ok(Some((first, payload)))
    }
}

/// A Close, if it is one that may be sent (section 7.4.1).
fn close(payload: Vec<u8>) -> Result<Said, CloseCode> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return if payload.is_empty() { Ok(Said::Close(payload)) } else { Err(CloseCode::PROTOCOL) };
    };
    let may_be_sent = matches!(u16::from_be_bytes(*code), 1000..=1003 | 1007..=1014 | 3000..=4999);
    match (may_be_sent, std::str::from_utf8(reason)) {
        (false, _) => Err(CloseCode::PROTOCOL),
        (true, Err(_)) => Err(CloseCode::NOT_TEXT),
        (true, Ok(_)) => Ok(Said::Close(payload)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [1, 2, 3, 4];
        let mut bytes = vec![first];
        match payload.len() {
            len @ 0..=125 => bytes.push(0x80 | len as u8),
            len => {
                bytes.push(0x80 | 126);
                bytes.extend((len as u16).to_be_bytes());
            }
        }
        bytes.extend(mask);
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        bytes
    }

    /// Everything that is said, in pieces of every size; the code it is closed with, if it is.
    fn said(bytes: &[u8]) -> (Vec<Said>, Option<CloseCode>) {
        let mut results = [1, 3, usize::MAX].map(|size| {
            let (mut decoder, mut all) = (Decoder::default(), Vec::new());
            for piece in bytes.chunks(size.min(bytes.len())) {
                decoder.room().extend_from_slice(piece);
                loop {
                    match decoder.next_said() {
                        Ok(Some(said)) => all.push(said),
                        Ok(None) => break,
                        Err(code) => return (all, Some(code)),
                    }
                }
            }
            (all, None)
        });
        assert!(results[0] == results[1] && results[1] == results[2], "{results:?}");
        std::mem::take(&mut results[0])
    }

    #[test]
    fn messages_are_put_together_with_control_frames_in_between() {
        let long = "ä".repeat(100);
        let bytes = [
            frame(0x01, "h\u{e9}".as_bytes().split_at(2).0),
            frame(0x89, b"?"),
            frame(0x80, "h\u{e9}".as_bytes().split_at(2).1),
            frame(0x8a, b""),
            frame(0x81, long.as_bytes()),
            frame(0x82, &[0xff]),
            frame(0x88, &[0x03, 0xe8, b'x']),
        ];
        let wanted = [
            Said::Ping(b"?".to_vec()),
            Said::Text("h\u{e9}".to_owned()),
            Said::Pong,
            Said::Text(long),
            Said::Binary(vec![0xff]),
            Said::Close(vec![0x03, 0xe8, b'x']),
        ];
        assert_eq!(said(&bytes.concat()), (wanted.to_vec(), None));
    }

    #[test]
    fn a_server_does_not_mask_and_says_no_more_than_it_may() {
        let said = |bytes: &[u8]| {
            let mut decoder = Decoder::of_server(4);
            decoder.room().extend_from_slice(bytes);
            decoder.next_said()
        };
        assert_eq!(
            said(&[0x01, 2, b'a', b'b', 0x80, 2, b'c', b'd']),
            Ok(Some(Said::Text("abcd".to_owned())))
        );
        assert_eq!(said(&[0x82, 2, 0xff, 0]), Ok(Some(Said::Binary(vec![0xff, 0]))));
        assert_eq!(said(&[0x89, 5, 1, 2, 3, 4, 5]), Ok(Some(Said::Ping(vec![1, 2, 3, 4, 5]))));
        assert_eq!(said(&[0x81, 126, 0xff, 0xff]), Err(CloseCode::TOO_BIG), "by its header");
        assert_eq!(said(&[0x01, 3, b'a', b'b', b'c', 0x80, 2]), Err(CloseCode::TOO_BIG));
        assert_eq!(said(&frame(0x81, b"a")), Err(CloseCode::PROTOCOL));
    }

    #[test]
    fn what_a_client_may_not_say_is_refused() {
        for (bytes, code) in [
            (vec![0x81, 0x01, b'x'], CloseCode::PROTOCOL),
            (frame(0xc1, b"x"), CloseCode::PROTOCOL),
            (frame(0x83, b"x"), CloseCode::PROTOCOL),
            (frame(0x80, b"x"), CloseCode::PROTOCOL),
            ([frame(0x01, b"x"), frame(0x81, b"y")].concat(), CloseCode::PROTOCOL),
            (frame(0x09, b"x"), CloseCode::PROTOCOL),
            (frame(0x89, &[0; 126]), CloseCode::PROTOCOL),
            (frame(0x81, &[0xff]), CloseCode::NOT_TEXT),
            (frame(0x88, &[3]), CloseCode::PROTOCOL),
            (frame(0x88, &1005u16.to_be_bytes()), CloseCode::PROTOCOL),
            (frame(0x88, &[3, 232, 0xff]), CloseCode::NOT_TEXT),
        ] {
            assert_eq!(said(&bytes), (vec![], Some(code)), "{bytes:?}");
        }
        assert_eq!(said(&frame(0x88, b"")), (vec![Said::Close(vec![])], None));
    }
}
