//! Bodies in chunks (RFC 9112, section 7.1), decoded as they come, wherever they are cut.
//!
//! Strict, because who reads leniently reads something else than the next one does: sizes are hexadecimal digits, lines end in
//! CRLF, and an extension holds no bare line end.

use super::Broken;
use super::response::{MAX_HEAD, MAX_HEADERS};
use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue};

/// Most bytes of extensions in a body: they are read and say nothing to us.
const MAX_EXTENSIONS: usize = 16 << 10;
/// Most digits of a size that fits 64 bits.
const MAX_DIGITS: u8 = 16;

/// Decodes one body.
#[derive(Default)]
pub(super) struct Chunked {
    at: At,
    /// Of the chunk.
    left: u64,
    digits: u8,
    extensions: usize,
    /// The trailers as they came.
    section: Vec<u8>,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum At {
    #[default]
    Size,
    /// Spaces behind a size.
    Space,
    Extension,
    SizeEnd,
    Data,
    DataEnd,
    DataEnded,
    Trailers,
    Done,
}

impl Chunked {
    /// Decodes what it can, appends the data to `out`, and says how much of `input` it has taken: all, or up to its end.
    pub(super) fn decode(&mut self, input: &[u8], out: &mut BytesMut) -> Result<usize, Broken> {
        let mut read = 0;
        while let Some(&byte) = input.get(read) {
            match self.at {
                At::Data => {
                    let rest = &input[read..];
                    let take = usize::try_from(self.left).map_or(rest.len(), |left| left.min(rest.len()));
                    out.extend_from_slice(&rest[..take]);
                    self.left -= take as u64;
                    read += take;
                    if self.left == 0 {
                        self.at = At::DataEnd;
                    }
                    continue;
                }
                At::Trailers => {
                    read += self.trailer_bytes(&input[read..])?;
                    continue;
                }
                At::Done => break,
                at => self.at = self.framed(at, byte)?,
            }
            read += 1;
        }
        Ok(read)
    }

    /// A byte between two chunks' data.
    fn framed(&mut self, at: At, byte: u8) -> Result<At, Broken> {
        Ok(match (at, byte) {
            (At::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                self.digits += 1;
                if self.digits > MAX_DIGITS {
                    return Err(Broken::Parse("a chunk's size has too many digits"));
                }
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                self.left = self.left << 4 | u64::from(digit);
                At::Size
            }
            (At::Size | At::Space, b' ' | b'\t') if self.digits > 0 => At::Space,
            (At::Size | At::Space, b';') if self.digits > 0 => At::Extension,
            (At::Size | At::Space | At::Extension, b'\r') if self.digits > 0 => At::SizeEnd,
            (At::Extension, b'\n') => return Err(Broken::Parse("a line of a chunk does not end in CRLF")),
            (At::Extension, _) => {
                self.extensions += 1;
                if self.extensions > MAX_EXTENSIONS {
                    return Err(Broken::Parse("chunks have too long extensions"));
                }
                At::Extension
            }
            (At::SizeEnd, b'\n') => {
                self.digits = 0;
                if self.left == 0 { At::Trailers } else { At::Data }
            }
            (At::DataEnd, b'\r') => At::DataEnded,
            (At::DataEnded, b'\n') => At::Size,
            _ => return Err(Broken::Parse("what is between two chunks is no size")),
        })
    }

    /// Takes bytes of the trailers, up to their end.
    fn trailer_bytes(&mut self, input: &[u8]) -> Result<usize, Broken> {
        for (index, byte) in input.iter().enumerate() {
            self.section.push(*byte);
            if self.section == b"\r\n" || self.section.ends_with(b"\r\n\r\n") {
                self.at = At::Done;
                return Ok(index + 1);
            }
            if self.section.len() > MAX_HEAD {
                return Err(Broken::Parse("its trailers are too long"));
            }
        }
        Ok(input.len())
    }

    /// Whether the body and its trailers are over.
    pub(super) fn is_done(&self) -> bool {
        self.at == At::Done
    }

    /// Whether the body is over and there are no trailers.
    pub(super) fn is_over(&self) -> bool {
        self.is_done() && self.section.len() <= 2
    }

    /// How much data so many bytes can hold.
    pub(super) fn expects(&self, bytes: usize) -> usize {
        match self.at {
            At::Done | At::Trailers => 0,
            _ => bytes,
        }
    }

    /// The trailers, if there are any. What is no header field is left out.
    pub(super) fn trailers(&mut self) -> Option<HeaderMap> {
        let section = std::mem::take(&mut self.section);
        if section.len() <= 2 {
            return None;
        }
        let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(&section, &mut fields)
        else {
            return None;
        };
        let mut trailers = HeaderMap::with_capacity(fields.len());
        for field in fields {
            if let (Ok(name), Ok(value)) =
                (HeaderName::from_bytes(field.name.as_bytes()), HeaderValue::from_bytes(field.value))
            {
                trailers.append(name, value);
            }
        }
        Some(trailers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data and the trailers, and what is left of the input.
    fn decoded(input: &[u8], cut: usize) -> Result<(Vec<u8>, Option<HeaderMap>, usize), Broken> {
        let (mut chunked, mut out, mut read) = (Chunked::default(), BytesMut::new(), 0);
        for piece in [&input[..cut], &input[cut..]] {
            read += chunked.decode(piece, &mut out)?;
        }
        if !chunked.is_done() {
            return Err(Broken::Closed("it has no end"));
        }
        Ok((out.to_vec(), chunked.trailers(), input.len() - read))
    }

    #[test]
    fn a_body_is_the_same_wherever_it_is_cut() {
        let body = b"5\r\nhello\r\n6 ;a=\"b\"\r\n world\r\n000\r\nx-Sum: 7\r\nx-sum: 8\r\n\r\nHTTP";
        for cut in 0..body.len() {
            let (data, trailers, rest) = decoded(body, cut).unwrap();
            assert_eq!((&data[..], rest), (&b"hello world"[..], 4), "cut at {cut}");
            let sums: Vec<_> = trailers.unwrap().get_all("x-sum").iter().cloned().collect();
            assert_eq!(sums, ["7", "8"]);
        }
        assert_eq!(decoded(b"0\r\n\r\n", 2).unwrap(), (Vec::new(), None, 0));
        assert_eq!(decoded(b"A\r\n0123456789\r\n0\r\n\r\n", 5).unwrap().0, b"0123456789");
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for body in [
            &b"5\nhello\r\n0\r\n\r\n"[..],
            b"5\r\nhello0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"-1\r\n",
            b"\r\n",
            b";a\r\n",
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"5 5\r\nhello\r\n0\r\n\r\n",
            b"5;a\nb\r\nhello\r\n0\r\n\r\n",
            b"00000000000000005\r\nhello\r\n0\r\n\r\n",
            b"fffffffffffffffff\r\n",
        ] {
            let refused = decoded(body, 1).expect_err("it is refused");
            assert!(refused.is_parse(), "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let long = [b"5;".to_vec(), vec![b'x'; MAX_EXTENSIONS + 1]].concat();
        assert!(decoded(&long, 0).expect_err("too long").is_parse());
        let long = [b"0\r\na: ".to_vec(), vec![b'x'; MAX_HEAD]].concat();
        assert!(decoded(&long, 0).expect_err("too long").is_parse());
    }
}
