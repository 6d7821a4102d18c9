//! One spelling for each path: what is matched, authorised, limited, logged and forwarded is this string and no other.
//!
//! Gateways were broken wherever two layers spelt a path differently (`/a/%2e%2e/b`, `//`, `%2f`). So nothing that
//! could be read in two ways is repaired: it is refused. What is left has one normal form (RFC 3986 section 6.2.2):
//! escapes of unreserved characters are decoded, other escapes are in upper case, whatever may not stand in a path
//! is escaped. Dot segments are not resolved, they are refused. Normalising twice changes nothing.
use std::{borrow::Cow, fmt};

/// Why a path has no normal form. A request with such a path is answered 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathFault {
    /// The path is empty or relative.
    NotAbsolute,
    /// `//`, which some servers fold and others do not.
    EmptySegment,
    /// `.` or `..`, in any spelling, also before a `;`.
    DotSegment,
    /// `\`, which some servers read as `/`.
    Backslash,
    /// An ASCII control byte, raw or escaped.
    Control,
    /// An escape of a character that separates parts of a URI: `/ \ ; ? #`.
    EscapedSeparator,
    /// A raw `?` or `#`, or, in one segment, a raw `/`.
    Separator,
    /// `%` that is not followed by two hexadecimal digits.
    BadEscape,
    /// The escapes do not decode to UTF-8.
    NotUtf8,
}

impl PathFault {
    /// One sentence that says what is wrong.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::NotAbsolute => "The path must begin with `/`.",
            Self::EmptySegment => "The path has an empty segment (`//`).",
            Self::DotSegment => "The path has a dot segment (`.` or `..`).",
            Self::Backslash => "The path has a backslash.",
            Self::Control => "The path has a control character.",
            Self::EscapedSeparator => "The path has an escaped separator (one of `/ \\ ; ? #`).",
            Self::Separator => "The path has a separator where none may stand.",
            Self::BadEscape => "The path has a `%` without two hexadecimal digits.",
            Self::NotUtf8 => "The path is not UTF-8 after decoding.",
        }
    }
}

impl fmt::Display for PathFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.detail())
    }
}

impl std::error::Error for PathFault {}

/// Brings the path of a request to its normal form. Borrows what is already normal, which is nearly always.
///
/// # Errors
/// [`PathFault`] for whatever two parsers could read differently; see its variants.
pub fn normalise_path(path: &str) -> Result<Cow<'_, str>, PathFault> {
    let bytes = path.as_bytes();
    if bytes.first() != Some(&b'/') {
        return Err(PathFault::NotAbsolute);
    }
    // The common path: one table look-up per byte. It hands over at the first byte that needs judgement, and at a
    // segment that is empty or begins with a dot.
    let mut previous = 0;
    for &byte in bytes {
        let suspect = previous == b'/' && (byte == b'/' || byte == b'.');
        if suspect || !PLAIN[usize::from(byte)] && byte != b'/' {
            return normalise_slowly(path);
        }
        previous = byte;
    }
    Ok(Cow::Borrowed(path))
}

/// Brings one static segment of a pattern (`/sessions/:id` has one, `sessions`) to the form that requests have, so
/// that a manifest may say `/größe` or `/gr%c3%b6%C3%9fe` and means the same path.
///
/// # Errors
/// As [`normalise_path`]; also for a `/`, or for nothing at all.
pub fn normalise_pattern_segment(segment: &str) -> Result<Cow<'_, str>, PathFault> {
    if segment.is_empty() {
        return Err(PathFault::EmptySegment);
    }
    if segment.contains('/') {
        return Err(PathFault::Separator);
    }
    if !segment.starts_with('.') && segment.bytes().all(|byte| PLAIN[usize::from(byte)]) {
        return Ok(Cow::Borrowed(segment));
    }
    let mut out = Vec::with_capacity(segment.len() + 16);
    push_segment(segment, &mut out)?;
    Ok(keep_if_equal(segment, out))
}

fn normalise_slowly(path: &str) -> Result<Cow<'_, str>, PathFault> {
    let mut out = Vec::with_capacity(path.len() + 16);
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        // A slash at the very end is a path of its own, not an empty segment.
        if segment.is_empty() && segments.peek().is_some() {
            return Err(PathFault::EmptySegment);
        }
        out.push(b'/');
        push_segment(segment, &mut out)?;
    }
    Ok(keep_if_equal(path, out))
}

/// Appends the normal form of one segment, which is always ASCII.
fn push_segment(segment: &str, out: &mut Vec<u8>) -> Result<(), PathFault> {
    let start = out.len();
    let bytes = segment.as_bytes();
    let mut escaped_non_ascii = false;
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        at += 1;
        match byte {
            b'%' => {
                let value = escape_at(bytes, at).ok_or(PathFault::BadEscape)?;
                at += 2;
                match value {
                    b'/' | b'\\' | b';' | b'?' | b'#' => return Err(PathFault::EscapedSeparator),
                    0..=0x1F | 0x7F => return Err(PathFault::Control),
                    _ if UNRESERVED[usize::from(value)] => out.push(value),
                    _ => {
                        escaped_non_ascii |= value >= 0x80;
                        push_escape(value, out);
                    }
                }
            }
            b'\\' => return Err(PathFault::Backslash),
            b'?' | b'#' => return Err(PathFault::Separator),
            0..=0x1F | 0x7F => return Err(PathFault::Control),
            _ if PLAIN[usize::from(byte)] => out.push(byte),
            _ => push_escape(byte, out),
        }
    }
    let normal = &out[start..];
    // Servers that know path parameters drop `;…` first and see a dot segment then.
    let name = normal.split(|&byte| byte == b';').next().unwrap_or(normal);
    if name == b"." || name == b".." {
        return Err(PathFault::DotSegment);
    }
    if escaped_non_ascii && !decodes_to_utf8(normal) {
        return Err(PathFault::NotUtf8);
    }
    Ok(())
}

/// Whether a segment in normal form, all of whose escapes are sound, is UTF-8 once decoded.
fn decodes_to_utf8(normal: &[u8]) -> bool {
    let mut decoded = Vec::with_capacity(normal.len());
    let mut at = 0;
    while at < normal.len() {
        let escape = (normal[at] == b'%').then(|| escape_at(normal, at + 1)).flatten();
        decoded.push(escape.unwrap_or(normal[at]));
        at += if escape.is_some() { 3 } else { 1 };
    }
    std::str::from_utf8(&decoded).is_ok()
}

fn keep_if_equal(given: &str, normal: Vec<u8>) -> Cow<'_, str> {
    if normal == given.as_bytes() {
        return Cow::Borrowed(given);
    }
    Cow::Owned(String::from_utf8(normal).expect("only ASCII is ever pushed"))
}

/// The byte that the two hexadecimal digits at `at` stand for.
fn escape_at(bytes: &[u8], at: usize) -> Option<u8> {
    let high = char::from(*bytes.get(at)?).to_digit(16)?;
    let low = char::from(*bytes.get(at + 1)?).to_digit(16)?;
    u8::try_from(high << 4 | low).ok()
}

fn push_escape(byte: u8, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.extend([b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 0xF)]]);
}

/// Bytes that mean the same escaped or not (RFC 3986 section 2.3).
static UNRESERVED: [bool; 256] = table(b"-._~");
/// Bytes that stand in a segment as they are: `pchar` of RFC 3986 section 3.3 without `%`.
static PLAIN: [bool; 256] = table(b"-._~!$&'()*+,;=:@");

const fn table(marks: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < marks.len() {
        table[marks[at] as usize] = true;
        at += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_normal_is_borrowed() {
        for path in [
            "/",
            "/a",
            "/a/",
            "/api/v01/sessions/7f-3_x~",
            "/a;v=1/b:c@d",
            "/.well-known/x",
            "/a/...",
            "/x%2Ay",
            "/%C3%B6",
        ] {
            let normal = normalise_path(path).unwrap();
            assert!(matches!(normal, Cow::Borrowed(_)), "{path}");
            assert_eq!(normal, path);
        }
    }

    #[test]
    fn one_spelling_for_each_path() {
        for (given, normal) in [
            ("/%61%2D%7e", "/a-~"),
            ("/%c3%b6", "/%C3%B6"),
            ("/ö", "/%C3%B6"),
            ("/a%2a", "/a%2A"),
            ("/a b\"<>^`{|}[]", "/a%20b%22%3C%3E%5E%60%7B%7C%7D%5B%5D"),
            ("/%2e%2e%2e", "/..."),
            ("/a%2eb", "/a.b"),
            ("/%252e%252e", "/%252e%252e"),
        ] {
            assert_eq!(normalise_path(given).unwrap(), normal, "{given}");
        }
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
        use PathFault::*;
        for (path, fault) in [
            ("", NotAbsolute),
            ("a", NotAbsolute),
            ("*", NotAbsolute),
            ("//", EmptySegment),
            ("/a//b", EmptySegment),
            ("/a//", EmptySegment),
            ("/.", DotSegment),
            ("/..", DotSegment),
            ("/a/../b", DotSegment),
            ("/a/./b", DotSegment),
            ("/a/.%2e", DotSegment),
            ("/a/%2E./b", DotSegment),
            ("/%2e", DotSegment),
            ("/..;/b", DotSegment),
            ("/%2e.;x=1", DotSegment),
            ("/a%2fb", EscapedSeparator),
            ("/a%2Fb", EscapedSeparator),
            ("/a%5cb", EscapedSeparator),
            ("/a%3bb", EscapedSeparator),
            ("/a%3Fb", EscapedSeparator),
            ("/a%23b", EscapedSeparator),
            ("/a%00b", Control),
            ("/a%0d%0ab", Control),
            ("/a%7f", Control),
            ("/a\u{7f}", Control),
            ("/a\tb", Control),
            ("/a\\b", Backslash),
            ("/a?b", Separator),
            ("/a#b", Separator),
            ("/a%", BadEscape),
            ("/a%4", BadEscape),
            ("/a%zz", BadEscape),
            ("/a%+1", BadEscape),
            ("/a%/4b", BadEscape),
            ("/%ff", NotUtf8),
            ("/%C3", NotUtf8),
            ("/%C3/%B6", NotUtf8),
            ("/%c0%af", NotUtf8),
            ("/%ed%a0%80", NotUtf8),
        ] {
            assert_eq!(normalise_path(path), Err(fault), "{path:?}");
        }
    }

    #[test]
    fn a_pattern_segment_takes_the_form_of_requests() {
        assert_eq!(normalise_pattern_segment("größe").unwrap(), "gr%C3%B6%C3%9Fe");
        assert!(matches!(normalise_pattern_segment("sessions").unwrap(), Cow::Borrowed(_)));
        assert_eq!(normalise_pattern_segment(""), Err(PathFault::EmptySegment));
        assert_eq!(normalise_pattern_segment("a/b"), Err(PathFault::Separator));
        assert_eq!(normalise_pattern_segment("%2e%2e"), Err(PathFault::DotSegment));
        assert_eq!(normalise_pattern_segment("a%2Fb"), Err(PathFault::EscapedSeparator));
    }

    /// Paths made of the pieces that matter, so that the interesting ones are not one in a million.
    fn paths() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("/".to_owned()),
            Just(".".to_owned()),
            Just("%2e".to_owned()),
            Just(";".to_owned()),
            "%[0-9a-fA-F]{2}",
            "%c3%[89ab][0-9a-f]",
            "[a-z0-9~!@ \"\\[ö]{1,3}",
            ".{1,2}",
        ];
        prop::collection::vec(piece, 0..12).prop_map(|pieces| format!("/{}", pieces.concat()))
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(path in paths()) {
            if let Ok(once) = normalise_path(&path) {
                let twice = normalise_path(&once);
                prop_assert_eq!(twice.as_deref(), Ok(&*once));
                prop_assert!(matches!(twice, Ok(Cow::Borrowed(_))));
            }
        }

        #[test]
        fn the_normal_form_is_harmless(path in paths()) {
            if let Ok(normal) = normalise_path(&path) {
                prop_assert!(normal.is_ascii() && normal.starts_with('/') && !normal.contains("//"));
                prop_assert!(!normal.bytes().any(|b| b.is_ascii_control() || b"\\?# ".contains(&b)));
                for segment in normal[1..].split('/') {
                    let name = segment.split(';').next().unwrap();
                    prop_assert!(name != "." && name != "..");
                }
                let lower = normal.to_ascii_lowercase();
                for escape in ["%2e", "%2f", "%5c", "%00", "%3b", "%3f", "%23", "%41", "%7e"] {
                    prop_assert!(!lower.contains(escape), "{}", normal);
                }
            }
        }

        #[test]
        fn both_ways_through_agree(path in paths()) {
            prop_assert_eq!(normalise_path(&path), normalise_slowly(&path));
        }

        #[test]
        fn no_input_panics(path in any::<String>()) {
            let _ = normalise_path(&path);
            let _ = normalise_pattern_segment(&path);
        }
    }
}
