//! `multipart/form-data` (RFC 7578) as it streams by: where parts begin, what their heads say, how long they are.
//!
//! A [`Scanner`] is fed a body in whatever pieces it comes and keeps nothing of it but the head it is reading. What two
//! readers could understand differently is refused, so that no part hides from this one and shows to the next: a
//! boundary behind a lone line feed, text before the first boundary or behind the last, folded or repeated headers,
//! escaped quotes, an encoding that hides what a part holds.

use http::HeaderMap;
use http::header::CONTENT_TYPE;

/// The longest head of a part, in bytes.
pub const MAX_HEAD: usize = 8 * 1024;
/// The longest boundary (RFC 2046, section 5.1.1).
const MAX_BOUNDARY: usize = 70;

/// Why a body is not `multipart/form-data` that has one reading. Its text is safe to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// Something on its way through a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'h> {
    /// A part begins.
    Part(Head<'h>),
    /// So many bytes of the part that began last.
    Data(u64),
}

/// What a part says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head<'h> {
    /// The field's name.
    pub name: &'h str,
    /// The file's name, if it is a file.
    pub filename: Option<&'h str>,
    /// Its media type with parameters; where it says none it is `text/plain` (RFC 7578, section 4.4).
    pub content_type: Option<&'h str>,
}

/// Reads a body piece by piece.
#[derive(Debug)]
pub struct Scanner {
    /// `--` and the boundary: at the beginning of a line it ends a part.
    delimiter: Box<[u8]>,
    state: State,
    /// Whether a part has begun.
    inside: bool,
    /// Bytes that may be the beginning of a delimiter, the line's end before it included.
    held: u64,
    head: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Within a line of a part.
    Data,
    /// Behind a line's end; so much of the delimiter has come.
    Line(Ending, usize),
    /// Behind a delimiter; the byte that came first.
    Delimited(Option<u8>),
    /// In a part's head.
    Head,
    /// Behind the last delimiter.
    End,
}

/// What ended a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Cr,
    Lf,
    CrLf,
}

impl Scanner {
    /// For the body of a request with these headers.
    ///
    /// # Errors
    /// [`Malformed`] where they do not say `multipart/form-data` with one boundary.
    pub fn of(headers: &HeaderMap) -> Result<Self, Malformed> {
        let mut values = headers.get_all(CONTENT_TYPE).iter();
        let value = values.next().and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (essence, parameters) = value.split_once(';').unwrap_or((value, ""));
        if !essence.trim().eq_ignore_ascii_case("multipart/form-data") || values.next().is_some() {
            return Err(Malformed("the body is not multipart/form-data"));
        }
        let boundary = one(&self::parameters(parameters)?, "boundary")?.unwrap_or_default();
        let is_bound = |byte: u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(&byte);
        if boundary.is_empty()
            || boundary.len() > MAX_BOUNDARY
            || boundary.ends_with(' ')
            || !boundary.bytes().all(is_bound)
        {
            return Err(Malformed("the boundary is missing or not acceptable"));
        }
        Ok(Scanner {
            delimiter: [b"--", boundary.as_bytes()].concat().into(),
            state: State::Line(Ending::CrLf, 0),
            inside: false,
            held: 0,
            head: Vec::new(),
        })
    }

    /// Reads on; tells of everything that begins in `bytes`, in order. After an error nothing more may be fed.
    ///
    /// # Errors
    /// [`Malformed`], and whatever `on` answers.
    pub fn feed<E: From<Malformed>>(
        &mut self,
        bytes: &[u8],
        on: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut data = 0;
        let mut rest = bytes;
        while let Some((&byte, behind)) = rest.split_first() {
            match self.state {
                State::Data => {
                    let line = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
                    let length = line.unwrap_or(rest.len());
                    data += length as u64;
                    rest = &rest[length..];
                    if let Some((byte, behind)) = rest.split_first() {
                        self.state = State::Line(Ending::of(*byte), 0);
                        self.held = 1;
                        rest = behind;
                    }
                    continue;
                }
                State::Line(ending, matched) => match self.line(byte, ending, matched)? {
                    None => {}
                    Some(held) => {
                        data += held;
                        self.state = State::Data;
                        continue;
                    }
                },
                State::Delimited(first) => {
                    self.state = match (first, byte) {
                        (None, b'\r' | b'-') => State::Delimited(Some(byte)),
                        (Some(b'\r'), b'\n') => State::Head,
                        (Some(b'-'), b'-') => State::End,
                        _ => return Err(Malformed("a boundary is not followed by a line's end").into()),
                    }
                }
                State::Head => {
                    self.head.push(byte);
                    if self.head.ends_with(b"\r\n\r\n") || self.head == b"\r\n" {
                        if data > 0 {
                            on(Event::Data(std::mem::take(&mut data)))?;
                        }
                        on(Event::Part(head(&self.head)?))?;
                        self.head.clear();
                        self.inside = true;
                        // A delimiter may follow at once: the head's end is a line's end.
                        self.state = State::Line(Ending::CrLf, 0);
                    } else if self.head.len() >= MAX_HEAD {
                        return Err(Malformed("the head of a part is too long").into());
                    }
                }
                State::End if matches!(byte, b'\r' | b'\n' | b' ' | b'\t') => {}
                State::End => return Err(Malformed("something follows the last boundary").into()),
            }
            rest = behind;
        }
        match data {
            0 => Ok(()),
            bytes => on(Event::Data(bytes)),
        }
    }

    /// Whether the last boundary has come.
    pub fn is_whole(&self) -> bool {
        self.state == State::End
    }

    /// That the body may end here.
    ///
    /// # Errors
    /// [`Malformed`] where its last boundary has not come.
    pub fn end(&self) -> Result<(), Malformed> {
        match self.is_whole() {
            true => Ok(()),
            false => Err(Malformed("the body ends before its last boundary")),
        }
    }

    /// One byte behind a line's end. If it is not of a delimiter: how many bytes that were held are data.
    fn line(&mut self, byte: u8, ending: Ending, matched: usize) -> Result<Option<u64>, Malformed> {
        if byte == self.delimiter[matched] {
            self.held += 1;
            self.state = State::Line(ending, matched + 1);
            if matched + 1 == self.delimiter.len() {
                if ending != Ending::CrLf {
                    return Err(Malformed("a boundary stands behind half a line's end"));
                }
                self.held = 0;
                self.state = State::Delimited(None);
            }
        } else if (byte, ending, matched) == (b'\n', Ending::Cr, 0) {
            self.held += 1;
            self.state = State::Line(Ending::CrLf, 0);
        } else if self.inside {
            return Ok(Some(std::mem::take(&mut self.held)));
        } else if matched == 0 && matches!(byte, b'\r' | b'\n') {
            self.state = State::Line(Ending::of(byte), 0);
        } else {
            return Err(Malformed("the body does not begin with its boundary"));
        }
        Ok(None)
    }
}

impl Ending {
    fn of(byte: u8) -> Self {
        if byte == b'\r' { Ending::Cr } else { Ending::Lf }
    }
}

/// What the head of a part says, its last empty line included.
fn head(bytes: &[u8]) -> Result<Head<'_>, Malformed> {
    let text = std::str::from_utf8(bytes).map_err(|_| Malformed("the head of a part is not UTF-8"))?;
    let (mut disposition, mut content_type) = (None, None);
    for line in text.split("\r\n").filter(|line| !line.is_empty()) {
        if line.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
            return Err(Malformed("the head of a part holds control characters"));
        }
        // A folded line begins with a space, which no name has.
        let (name, value) =
            line.split_once(':').ok_or(Malformed("the head of a part is not made of headers"))?;
        if name.is_empty()
            || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        {
            return Err(Malformed("the head of a part is not made of headers"));
        }
        let value = value.trim();
        let place = match name.to_ascii_lowercase().as_str() {
            "content-disposition" => &mut disposition,
            "content-type" => &mut content_type,
            "content-transfer-encoding" => {
                if !["binary", "8bit", "7bit"].iter().any(|plain| value.eq_ignore_ascii_case(plain)) {
                    return Err(Malformed("a part is encoded; send it as it is (RFC 7578, section 4.7)"));
                }
                continue;
            }
            _ => continue,
        };
        if place.replace(value).is_some() {
            return Err(Malformed("a header of a part stands twice"));
        }
    }
    let disposition = disposition.unwrap_or_default();
    let (kind, rest) = disposition.split_once(';').unwrap_or((disposition, ""));
    if !kind.trim().eq_ignore_ascii_case("form-data") || rest.contains("\\\"") {
        return Err(Malformed("a part has no `Content-Disposition: form-data` that has one reading"));
    }
    let parameters = parameters(rest)?;
    let name = one(&parameters, "name")?.ok_or(Malformed("a part has no name"))?;
    Ok(Head { name, filename: one(&parameters, "filename")?, content_type })
}

/// `name=value` or `name="value"`, separated by semicolons. Names as written.
fn parameters(text: &str) -> Result<Vec<(&str, &str)>, Malformed> {
    const FAULT: Malformed = Malformed("the parameters of a header are malformed");
    let mut found = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (name, value) = rest.split_once('=').ok_or(FAULT)?;
        let behind = match value.strip_prefix('"') {
            Some(quoted) => {
                let (value, behind) = quoted.split_once('"').ok_or(FAULT)?;
                found.push((name.trim(), value));
                behind.trim_start()
            }
            None => {
                let end = value.find(';').unwrap_or(value.len());
                let (value, behind) = value.split_at(end);
                if value.contains(['"', ' ']) {
                    return Err(FAULT);
                }
                found.push((name.trim(), value));
                behind
            }
        };
        rest = match behind.strip_prefix(';') {
            Some(behind) => behind.trim_start(),
            None if behind.is_empty() => "",
            None => return Err(FAULT),
        };
    }
    Ok(found)
}

/// The parameter of a name, of which there may be one.
fn one<'t>(parameters: &[(&'t str, &'t str)], name: &str) -> Result<Option<&'t str>, Malformed> {
    let mut found = parameters.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
    let first = found.next().map(|(_, value)| *value);
    match found.next() {
        None => Ok(first),
        Some(_) => Err(Malformed("a parameter stands twice")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn scanner(content_type: &str) -> Result<Scanner, Malformed> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap());
        Scanner::of(&headers)
    }

    /// `name/filename/type: length` of each part, fed in pieces of this size.
    fn read(body: &[u8], piece: usize) -> Result<Vec<String>, Malformed> {
        let mut scanner = scanner("multipart/form-data; boundary=b-1")?;
        let mut parts: Vec<(String, u64)> = Vec::new();
        for piece in body.chunks(piece) {
            scanner.feed(piece, &mut |event| -> Result<(), Malformed> {
                match event {
                    Event::Part(Head { name, filename, content_type }) => {
                        let text = |one: Option<&str>| one.unwrap_or("-").to_owned();
                        parts.push((format!("{name}/{}/{}", text(filename), text(content_type)), 0));
                    }
                    Event::Data(bytes) => parts.last_mut().unwrap().1 += bytes,
                }
                Ok(())
            })?;
        }
        scanner.end()?;
        Ok(parts.into_iter().map(|(head, length)| format!("{head}: {length}")).collect())
    }

    const WHOLE: &[u8] = b"--b-1\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\none\r\n--b-1\r\n\
        content-type: audio/wav; rate=1\r\ncontent-disposition: form-data; filename=\"x;\xc3\xa4.wav\"; name=audio\r\n\r\n\
        \r\n--b-\r\n\n--x\r--b\r\r\n--b-1\r\nContent-Disposition: form-data; name=\"\"\r\n\r\n\r\n--b-1--\r\n";

    #[test]
    fn parts_are_found_in_whatever_pieces_they_come() {
        for piece in 1..=WHOLE.len() {
            let parts = read(WHOLE, piece).unwrap();
            assert_eq!(parts, ["a/-/-: 3", "audio/x;ä.wav/audio/wav; rate=1: 17", "/-/-: 0"], "{piece}");
        }
        assert_eq!(read(b"\r\n--b-1--", 3).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_has_two_readings_is_refused() {
        let part = |head: &str| format!("--b-1\r\n{head}\r\n\r\nx\r\n--b-1--");
        let disposed = |more: &str| part(&format!("Content-Disposition: form-data; {more}"));
        assert!(read(disposed("name=a").as_bytes(), 7).is_ok());
        for body in [
            "x--b-1\r\n".to_owned(),
            "preamble\r\n--b-1--".to_owned(),
            "\n--b-1--".to_owned(),
            "--b-1--\r\nepilogue".to_owned(),
            "--b-1x\r\n".to_owned(),
            "--b-1 \r\n".to_owned(),
            disposed("name=a").replace("x\r\n", "x\n"),
            disposed("name=a").replace("x\r\n", "x\r"),
            disposed("name=a").replace("b-1--", "b-1-"),
            disposed("name=a").replace("\r\nx", "\nx"),
            disposed("name=a; name=b"),
            disposed("name=a; NAME=b"),
            disposed("name=\"a\\\"; x=\""),
            disposed("name=\"a"),
            disposed("name=\"a\"b"),
            disposed("filename=a"),
            disposed("name=a\r\n filename=b"),
            disposed("name=a\r\nContent-Type: a/b\r\ncontent-type: c/d"),
            disposed("name=a\r\nContent-Transfer-Encoding: base64"),
            disposed("name=a\r\nContent-Type : a/b"),
            disposed("name=a\u{1}"),
            part("Content-Type: audio/wav"),
            part("Content-Disposition: attachment; name=a"),
            part(&format!("X: {}", "y".repeat(MAX_HEAD))),
        ] {
            assert!(read(body.as_bytes(), 5).is_err(), "{body:?}");
            assert!(read(body.as_bytes(), 1000).is_err(), "{body:?}");
        }
    }

    #[test]
    fn the_boundary_is_told_once() {
        for good in ["multipart/form-data;boundary=\"a b\"", "Multipart/Form-Data; charset=x; BOUNDARY=----x"]
        {
            assert!(scanner(good).is_ok(), "{good}");
        }
        let long = format!("multipart/form-data; boundary={}", "x".repeat(71));
        for bad in [
            "",
            "application/json",
            "multipart/mixed; boundary=a",
            "multipart/form-data",
            &long,
            "multipart/form-data; boundary=",
            "multipart/form-data; boundary=\"a \"",
            "multipart/form-data; boundary=a; boundary=b",
            "multipart/form-data; boundary=a{",
        ] {
            assert!(scanner(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        /// Whatever a part holds but its delimiter: it is counted, however it is cut.
        #[test]
        fn every_byte_is_counted(content in "[\\r\\nb\\-1x]{0,60}", piece in 1usize..20) {
            prop_assume!(!content.contains("\n--b-1") && !content.contains("\r--b-1") && !content.starts_with("--b-1"));
            let body = format!("--b-1\r\nContent-Disposition: form-data; name=a\r\n\r\n{content}\r\n--b-1--");
            prop_assert_eq!(read(body.as_bytes(), piece).unwrap(), [format!("a/-/-: {}", content.len())]);
        }
    }
}
