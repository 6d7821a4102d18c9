//! Writes values into a log line's bytes: escaped, and without allocating.
//!
//! Whatever comes from outside may hold line breaks, terminal escapes or marks that reorder text; in a line they
//! stand as escapes, so that nobody forges a line or moves a cursor.

use std::fmt;
use std::time::{Duration, SystemTime};

/// What the escapes look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Inside a JSON string (RFC 8259, section 7).
    Json,
    /// For people: `\n`, `\u{1b}`.
    Plain,
    /// For people, in a message: a line break stays one, with the next line indented.
    Message,
}

/// Appends text, escaped, without quotes.
pub(super) fn escaped(line: &mut Vec<u8>, text: &str, form: Form) {
    let plain = |b: u8| (0x20..0x7f).contains(&b) && b != b'"' && b != b'\\';
    if text.bytes().all(plain) {
        line.extend_from_slice(text.as_bytes());
        return;
    }
    let mut done = 0;
    for (at, c) in text.char_indices() {
        if !must_escape(c, form) {
            continue;
        }
        line.extend_from_slice(&text.as_bytes()[done..at]);
        done = at + c.len_utf8();
        escape(line, c, form);
    }
    line.extend_from_slice(&text.as_bytes()[done..]);
}

/// Appends a JSON string.
pub(super) fn json_string(line: &mut Vec<u8>, text: &str) {
    line.push(b'"');
    escaped(line, text, Form::Json);
    line.push(b'"');
}

/// Appends a point in time: RFC 3339, UTC, milliseconds.
pub(super) fn time(line: &mut Vec<u8>, at: SystemTime) {
    const PRINTER: jiff::fmt::temporal::DateTimePrinter =
        jiff::fmt::temporal::DateTimePrinter::new().precision(Some(3));
    let timestamp = jiff::Timestamp::try_from(at).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    // Writing into a Vec cannot fail.
    let _ = PRINTER.print_timestamp(&timestamp, line);
}

/// Appends a whole number.
pub(super) fn number(line: &mut Vec<u8>, number: impl itoa::Integer) {
    line.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends a duration in milliseconds with three decimals.
pub(super) fn millis(line: &mut Vec<u8>, duration: Duration) {
    let micros = duration.as_micros() as u64;
    number(line, micros / 1000);
    let rest = (micros % 1000) as u16;
    let digit = |n: u16| b'0' + (n % 10) as u8;
    line.extend_from_slice(&[b'.', digit(rest / 100), digit(rest / 10), digit(rest)]);
}

/// Takes formatted text and appends it escaped.
pub(super) struct Escaping<'a>(pub(super) &'a mut Vec<u8>, pub(super) Form);

impl fmt::Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        escaped(self.0, text, self.1);
        Ok(())
    }
}

fn must_escape(c: char, form: Form) -> bool {
    match c {
        '"' | '\\' => form == Form::Json,
        ' '..='~' => false,
        // Marks that reorder text, and line breaks that only some viewers know.
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' => true,
        '\u{2028}' | '\u{2029}' => true,
        _ => c.is_control(),
    }
}

fn escape(line: &mut Vec<u8>, c: char, form: Form) {
    match (c, form) {
        ('\n', Form::Message) => line.extend_from_slice(b"\n    "),
        ('"', _) => line.extend_from_slice(b"\\\""),
        ('\\', _) => line.extend_from_slice(b"\\\\"),
        ('\n', _) => line.extend_from_slice(b"\\n"),
        ('\r', _) => line.extend_from_slice(b"\\r"),
        ('\t', _) => line.extend_from_slice(b"\\t"),
        (c, Form::Json) => {
            line.extend_from_slice(b"\\u");
            hex(line, c, 4);
        }
        (c, _) => {
            line.extend_from_slice(b"\\u{");
            hex(line, c, 2);
            line.push(b'}');
        }
    }
}

/// Appends a character's code in hex with at least so many digits; those escaped here have at most four.
fn hex(line: &mut Vec<u8>, c: char, digits: u32) {
    let code = u32::from(c);
    let digits = if code > 0xff { 4 } else { digits };
    for place in (0..digits).rev() {
        line.push(b"0123456789abcdef"[(code >> (4 * place) & 15) as usize]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(form: Form, text: &str) -> String {
        let mut line = Vec::new();
        escaped(&mut line, text, form);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn json_strings_read_back_as_they_were_and_hold_no_control_character() {
        let nasty: String = (0..0x2100).filter_map(char::from_u32).chain("中文😀".chars()).collect();
        let mut line = Vec::new();
        json_string(&mut line, &nasty);
        let text = std::str::from_utf8(&line).unwrap();
        assert_eq!(serde_json::from_str::<String>(text).unwrap(), nasty);
        assert!(!text.chars().any(|c| c.is_control() || c == '\u{202e}'));
        assert!(text.contains("中文😀"), "letters stay letters");
    }

    #[test]
    fn plain_text_cannot_move_a_cursor_or_begin_a_line() {
        let forged = "a\r\nb\u{1b}[2J\u{9b}1m\u{202e}\"\\";
        assert_eq!(with(Form::Plain, forged), "a\\r\\nb\\u{1b}[2J\\u{9b}1m\\u{202e}\"\\");
        assert_eq!(with(Form::Message, "one\ntwo\r"), "one\n    two\\r");
    }

    #[test]
    fn times_and_durations() {
        let mut line = Vec::new();
        time(&mut line, SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_120_900));
        line.push(b' ');
        millis(&mut line, Duration::from_micros(12_034));
        assert_eq!(line, b"2023-11-14T22:13:20.120Z 12.034");
    }
}
