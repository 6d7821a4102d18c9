//! Heads of answers: parsed, and what they say of the body behind them (RFC 9112, section 6.3).
//!
//! What two parsers could read differently is refused.

use super::Broken;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Response, StatusCode, Version};
use std::mem::MaybeUninit;

/// Largest head of an answer.
pub(super) const MAX_HEAD: usize = 64 << 10;
/// Most fields of one.
pub(super) const MAX_HEADERS: usize = 100;

/// A head.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) response: Response<()>,
    pub(super) body: Body,
    /// Whether the server leaves the connection open behind this answer.
    pub(super) keeps: bool,
}

/// Where the body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    /// There is none.
    None,
    Length(u64),
    Chunked,
    /// With the connection.
    UntilClosed,
    /// What follows is another protocol.
    Switched,
}

/// The first head in `input` that is an answer to such a request, with its length; interim answers before it are skipped.
/// `None` while it is not whole.
pub(super) fn parse(input: &[u8], method: &Method) -> Result<Option<(Head, usize)>, Broken> {
    let mut from = 0;
    loop {
        let rest = &input[from..];
        let mut fields = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        let length = match config.parse_response_with_uninit_headers(&mut parsed, rest, &mut fields) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return bounded(rest).map(|()| None),
            Err(httparse::Error::TooManyHeaders) => {
                return Err(Broken::Parse("its head has too many fields"));
            }
            Err(_) => return Err(Broken::Parse("its head is no HTTP/1")),
        };
        if length > MAX_HEAD {
            return Err(Broken::Parse(TOO_LONG));
        }
        let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
        let status = status.ok_or(Broken::Parse("its status is none"))?;
        if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
            from += length;
            if from == input.len() {
                return Ok(None);
            }
            continue;
        }
        let version = if parsed.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
        let (headers, said) = headers(&rest[..length], parsed.headers)?;
        let body = body(&said, status, version, method)?;
        let keeps = said.keeps(version) && !matches!(body, Body::UntilClosed | Body::Switched);
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.version_mut() = version;
        *response.headers_mut() = headers;
        return Ok(Some((Head { response, body, keeps }, from + length)));
    }
}

const TOO_LONG: &str = "its head is too long";

/// A fault where a head has no end within its bound.
pub(super) fn bounded(held: &[u8]) -> Result<(), Broken> {
    if held.len() > MAX_HEAD { Err(Broken::Parse(TOO_LONG)) } else { Ok(()) }
}

/// Whether a head may be whole of which all but the bytes from `before` on was looked at already.
pub(super) fn may_end(held: &[u8], before: usize) -> bool {
    let fresh = &held[before.saturating_sub(3)..];
    fresh.windows(2).any(|two| two == b"\n\n") || fresh.windows(3).any(|three| three == b"\n\r\n")
}

/// Where the last whole interim answer ends.
pub(super) fn behind_interim(input: &[u8]) -> Result<usize, Broken> {
    let mut from = 0;
    loop {
        let mut fields = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        match config.parse_response_with_uninit_headers(&mut parsed, &input[from..], &mut fields) {
            Ok(httparse::Status::Complete(length)) if from + length <= input.len() => from += length,
            Ok(_) => return Ok(from),
            Err(_) => return Err(Broken::Parse("its head is no HTTP/1")),
        }
    }
}

/// What the fields say of the body and the connection.
#[derive(Default)]
struct Said {
    /// What Content-Length says; it may say the same thing twice.
    length: Option<u64>,
    /// How many fields name a transfer coding, and whether the last is `chunked` and nothing else.
    codings: usize,
    chunked: bool,
    close: bool,
    keep_alive: bool,
}

impl Said {
    fn read(&mut self, name: &HeaderName, value: &[u8]) -> Result<(), Broken> {
        if *name == CONTENT_LENGTH {
            for one in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                let digits = !one.is_empty() && one.iter().all(u8::is_ascii_digit);
                let length =
                    std::str::from_utf8(one).ok().filter(|_| digits).and_then(|one| one.parse().ok());
                let length: u64 = length.ok_or(Broken::Parse("a Content-Length that is no number"))?;
                if self.length.is_some_and(|said| said != length) {
                    return Err(Broken::Parse("two different Content-Lengths"));
                }
                self.length = Some(length);
            }
        } else if *name == TRANSFER_ENCODING {
            self.codings += 1;
            self.chunked = value.trim_ascii().eq_ignore_ascii_case(b"chunked");
        } else if *name == CONNECTION {
            for one in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                self.close |= one.eq_ignore_ascii_case(b"close");
                self.keep_alive |= one.eq_ignore_ascii_case(b"keep-alive");
            }
        }
        Ok(())
    }

    /// Whether the server says that it leaves the connection open.
    fn keeps(&self, version: Version) -> bool {
        !self.close && (self.keep_alive || version != Version::HTTP_10)
    }
}

/// The fields; their values share one copy of the head.
fn headers(head: &[u8], fields: &[httparse::Header<'_>]) -> Result<(HeaderMap, Said), Broken> {
    // With room for what stages add.
    let mut headers = HeaderMap::with_capacity(fields.len() + 4);
    let mut said = Said::default();
    let (shared, base) = (Bytes::copy_from_slice(head), head.as_ptr() as usize);
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes())
            .map_err(|_| Broken::Parse("a field's name is none"))?;
        said.read(&name, field.value)?;
        let value = match (field.value.as_ptr() as usize).wrapping_sub(base) {
            // Of an empty one the place says nothing.
            _ if field.value.is_empty() => Bytes::new(),
            at => shared.slice(at..at + field.value.len()),
        };
        let value =
            HeaderValue::from_maybe_shared(value).map_err(|_| Broken::Parse("a field's value is none"))?;
        headers.append(name, value);
    }
    Ok((headers, said))
}

fn body(said: &Said, status: StatusCode, version: Version, method: &Method) -> Result<Body, Broken> {
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Body::Switched);
    }
    if said.codings > 0 {
        if said.length.is_some() {
            return Err(Broken::Parse("both Content-Length and Transfer-Encoding"));
        }
        if version == Version::HTTP_10 {
            return Err(Broken::Parse("Transfer-Encoding in HTTP/1.0"));
        }
        if said.codings > 1 || !said.chunked {
            return Err(Broken::Parse("a transfer coding other than chunked"));
        }
    }
    let bodyless =
        *method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    Ok(match said.length {
        _ if bodyless => Body::None,
        _ if said.codings > 0 => Body::Chunked,
        Some(length) => Body::Length(length),
        None => Body::UntilClosed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(head: &str) -> Result<Option<(Head, usize)>, Broken> {
        parse(head.as_bytes(), &Method::GET)
    }

    #[test]
    fn the_body_is_where_the_head_says() {
        for (head, method, expected, keeps) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", "GET", Body::Length(5), true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\nContent-Length:5\r\n", "GET", Body::Length(5), true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", "HEAD", Body::None, true),
            ("HTTP/1.1 204 No Content\r\n", "GET", Body::None, true),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n", "GET", Body::None, true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n", "GET", Body::Chunked, true),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: x, Close\r\n",
                "GET",
                Body::Chunked,
                false,
            ),
            ("HTTP/1.1 200\r\n", "GET", Body::UntilClosed, false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n", "GET", Body::Length(0), false),
            (
                "HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n",
                "GET",
                Body::Length(0),
                true,
            ),
            ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n", "GET", Body::Switched, false),
        ] {
            let text = format!("{head}\r\nmore");
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let (found, length) = parse(text.as_bytes(), &method).unwrap().unwrap();
            assert_eq!((found.body, found.keeps, length), (expected, keeps, text.len() - 4), "{head}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for head in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5,6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "220 smtp ready\r\n",
        ] {
            assert!(parsed(head).expect_err("it is refused").is_parse(), "{head}");
        }
    }

    #[test]
    fn interim_answers_are_skipped() {
        let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
        assert!(parsed(interim).unwrap().is_none());
        assert_eq!(behind_interim(interim.as_bytes()).unwrap(), interim.len());
        let text = format!("{interim}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        let (head, length) = parsed(&text).unwrap().unwrap();
        assert_eq!((head.response.status().as_u16(), &text[length..]), (200, "ok"));
    }

    #[test]
    fn a_head_is_bounded() {
        let fields = |count| "a: b\r\n".repeat(count);
        assert!(parsed(&format!("HTTP/1.1 200 OK\r\n{}\r\n", fields(MAX_HEADERS))).is_ok());
        assert!(parsed(&format!("HTTP/1.1 200 OK\r\n{}\r\n", fields(MAX_HEADERS + 1))).is_err());
        let long = format!("HTTP/1.1 200 OK\r\na: {}", "x".repeat(MAX_HEAD));
        assert!(parsed(&long).is_err());
    }
}
