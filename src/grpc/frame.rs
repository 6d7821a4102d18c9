//! Messages on the wire: a byte that says whether it is compressed, four that say how long it is, and itself (gRPC over
//! HTTP/2, section "Length-Prefixed-Message"). Nothing is compressed here, and only `identity` is asked for.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::Message;

const PREFIX: usize = 5;

/// A message with its prefix.
pub fn encode(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX + len);
    frame.put_u8(0);
    // Messages are bounded far below 4 GiB before they come here.
    frame.put_u32(len as u32);
    message.encode_raw(&mut frame);
    frame.freeze()
}

/// Why bytes are no messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A compressed message, though `identity` was asked for.
    #[error("a message is compressed, which was not asked for")]
    Compressed,
    /// A message above the limit.
    #[error("a message of {len} bytes is larger than {limit} bytes")]
    TooLarge {
        /// Its length.
        len: u32,
        /// What may be.
        limit: u64,
    },
}

/// Takes messages out of a stream of bytes.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    limit: u64,
}

impl Decoder {
    /// For messages of at most `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Decoder { buffer: BytesMut::new(), limit }
    }

    /// More bytes came.
    pub fn push(&mut self, bytes: Bytes) {
        if !self.buffer.is_empty() {
            self.buffer.extend_from_slice(&bytes);
            return;
        }
        // Mostly a whole message, and nobody else's: nothing is copied then.
        match bytes.try_into_mut() {
            Ok(mine) => self.buffer = mine,
            Err(shared) => self.buffer.extend_from_slice(&shared),
        }
    }

    /// The next whole message.
    ///
    /// # Errors
    /// [`FrameError`]; nothing behind it can be read.
    pub fn pull(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some((prefix, _)) = self.buffer.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let [flag, len @ ..] = *prefix;
        let len = u32::from_be_bytes(len);
        if u64::from(len) > self.limit {
            return Err(FrameError::TooLarge { len, limit: self.limit });
        }
        if flag != 0 {
            return Err(FrameError::Compressed);
        }
        let whole = PREFIX + len as usize;
        if self.buffer.len() < whole {
            self.buffer.reserve(whole - self.buffer.len());
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(whole);
        frame.advance(PREFIX);
        Ok(Some(frame.freeze()))
    }

    /// Whether a message is under way.
    pub fn is_amid(&self) -> bool {
        !self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_however_they_were_cut() {
        let messages = ["".to_owned(), "a".to_owned(), "long".repeat(100)];
        let wire: Vec<u8> = messages.iter().flat_map(encode).collect();
        for size in [1, 2, 4, 5, 6, 7, wire.len()] {
            let mut decoder = Decoder::new(1000);
            let mut found = Vec::new();
            for piece in wire.chunks(size) {
                decoder.push(Bytes::copy_from_slice(piece));
                while let Some(message) = decoder.pull().unwrap() {
                    found.push(String::decode(message).unwrap());
                }
            }
            assert_eq!(found, messages, "pieces of {size}");
            assert!(!decoder.is_amid());
        }
    }

    #[test]
    fn large_and_compressed_ones_are_refused_before_they_are_there() {
        let next = |head: &'static [u8]| {
            let mut decoder = Decoder::new(10);
            decoder.push(Bytes::from_static(head));
            decoder.pull()
        };
        assert_eq!(next(&[0, 0, 0, 0, 11]), Err(FrameError::TooLarge { len: 11, limit: 10 }));
        assert_eq!(
            next(&[0, 0xff, 0xff, 0xff, 0xff]),
            Err(FrameError::TooLarge { len: u32::MAX, limit: 10 })
        );
        assert_eq!(next(&[1, 0, 0, 0, 1]), Err(FrameError::Compressed));
        assert_eq!(next(&[0, 0, 0, 0, 10]), Ok(None));
    }
}
