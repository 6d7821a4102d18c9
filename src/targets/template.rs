//! Paths with `{name}` in them, and queries as they may leave the gateway.
//!
//! A template is taken apart at load; rendering appends pieces. Parameters are parts of the request's normalised
//! path, still percent-encoded. Joined with the template's own text they could still make `//` or a dot segment
//! (`/a/{rest}/b` where the rest is empty), so every rendered path is looked at once more and refused
//! ([`is_normal`]), never repaired.

use crate::diag::{Code, Diagnostic, Diagnostics, Span, did_you_mean};
use crate::manifest::Spanned;
use std::borrow::Cow;
use std::fmt::Write as _;

/// Query parameters that carry credentials: they go no further than the gateway.
const SECRET_PARAMETERS: [&str; 3] = ["token", "access_token", "ticket"];

/// A path with parameters, ready to render.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// Index into the route's parameters.
    Param(usize),
}

impl Template {
    /// Takes a path apart. `offset` is where `text` begins inside the spanned value it was cut from; `params` are the
    /// names it may use.
    pub(super) fn check(
        whole: &Spanned<String>,
        offset: usize,
        text: &str,
        params: &[String],
        out: &mut Diagnostics,
    ) -> Option<Template> {
        let before = out.counts().0;
        let bad = |message: &str| Diagnostic::error(Code::BAD_VALUE, whole.span, message);
        let mut parts = Vec::new();
        let mut rest = text;
        let mut at = offset;
        while let Some(open) = rest.find('{') {
            push_text(&mut parts, &rest[..open]);
            let Some(close) = rest[open..].find('}') else {
                out.push(bad("a `{` has no `}`").help("write a parameter as `{name}`"));
                return None;
            };
            let name = &rest[open + 1..open + close];
            match params.iter().position(|param| param == name) {
                Some(index) => parts.push(Part::Param(index)),
                None => {
                    let message = format!("the route has no parameter `{name}`");
                    let span = part_of(whole, at + open, close + 1);
                    let help = match params.is_empty() {
                        true => Some("its pattern has no `:name` and no `*name`".to_owned()),
                        false => did_you_mean(name, params.iter().map(String::as_str)),
                    };
                    out.push(Diagnostic::error(Code::UNKNOWN_PARAMETER, span, message).maybe_help(help));
                }
            }
            at += open + close + 1;
            rest = &rest[open + close + 1..];
        }
        if rest.contains('}') {
            out.push(bad("a `}` has no `{`").help("write a parameter as `{name}`"));
        }
        push_text(&mut parts, rest);
        let template = Template { parts };
        // With a plain value for each parameter, whatever is wrong is wrong with the text.
        let sample = template.render(|_| Some("x"));
        if out.counts().0 == before && sample.is_none() {
            out.push(
                bad("this is not a path that can be sent").help(
                    "it begins with `/`, has no `?`, no `#`, no `//` and no dot segments, and its escapes are whole",
                ),
            );
        }
        (out.counts().0 == before).then_some(template)
    }

    /// The path with the parameters' values. `None` if a value is missing or the result is not in normal form.
    pub(super) fn render<'v>(&self, value: impl Fn(usize) -> Option<&'v str>) -> Option<String> {
        let length = |part: &Part| match part {
            Part::Text(text) => text.len(),
            Part::Param(index) => value(*index).map_or(0, str::len),
        };
        let mut path = String::with_capacity(self.parts.iter().map(length).sum());
        for part in &self.parts {
            path.push_str(match part {
                Part::Text(text) => text,
                Part::Param(index) => value(*index)?,
            });
        }
        is_normal(&path).then_some(path)
    }
}

/// The place of a part of a text, where the text stands in the file as it is, plain or quoted; else that of the whole.
fn part_of(whole: &Spanned<String>, offset: usize, len: usize) -> Span {
    match (whole.span.len as usize).checked_sub(whole.value.len()) {
        Some(0) => whole.span.part(offset, len),
        Some(2) => whole.span.part(offset + 1, len),
        _ => whole.span,
    }
}

/// Text of a template; what is not ASCII is escaped.
fn push_text(parts: &mut Vec<Part>, text: &str) {
    if text.is_empty() {
        return;
    }
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() {
            escaped.push(c);
        } else {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                let _ = write!(escaped, "%{byte:02X}");
            }
        }
    }
    parts.push(Part::Text(escaped));
}

/// Whether a path can be read in one way only: it begins with `/`; no segment but the last is empty; none is a dot
/// segment in any spelling, also before a `;`; escapes are whole, are UTF-8 and stand for no separator or control
/// character; every other byte may stand in a path (RFC 3986, section 3.3).
pub(super) fn is_normal(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else { return false };
    let mut segments = rest.split('/').peekable();
    let mut escaped = false;
    while let Some(segment) = segments.next() {
        if segment.is_empty() && segments.peek().is_some() || is_dots(segment) {
            return false;
        }
        let bytes = segment.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            if bytes[at] == b'%' {
                escaped = true;
                match escape(&bytes[at..]) {
                    None | Some(0..0x20 | 0x7f | b'/' | b'\\' | b';' | b'?' | b'#') => return false,
                    Some(_) => at += 3,
                }
            } else if is_path_byte(bytes[at]) {
                at += 1;
            } else {
                return false;
            }
        }
    }
    !escaped || std::str::from_utf8(&decode(path.as_bytes())).is_ok()
}

/// Whether a segment is `.` or `..`, escaped or not, up to a `;`.
fn is_dots(segment: &str) -> bool {
    let mut rest = segment.split(';').next().unwrap_or_default().as_bytes();
    let mut dots = 0;
    while !rest.is_empty() {
        rest = match rest {
            [b'.', rest @ ..] => rest,
            [b'%', b'2', b'e' | b'E', rest @ ..] => rest,
            _ => return false,
        };
        dots += 1;
    }
    matches!(dots, 1 | 2)
}

fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte)
}

/// The byte that `%xx` at the beginning stands for.
fn escape(bytes: &[u8]) -> Option<u8> {
    let digit = |at: usize| bytes.get(at).and_then(|b| (*b as char).to_digit(16));
    Some((digit(1)? * 16 + digit(2)?) as u8)
}

/// Escapes decoded; bad ones stay.
fn decode(bytes: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], escape(&bytes[at..])) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                at += 3;
            }
            (byte, _) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    decoded
}

/// A query without the parameters that carry credentials, whatever spelling their names have; otherwise unchanged,
/// byte for byte.
pub(super) fn without_secrets(query: &str) -> Cow<'_, str> {
    // Every spelling of a name in question has its last letters, or an escape.
    if !query.contains('%')
        && !query
            .as_bytes()
            .windows(3)
            .any(|w| matches!(w.to_ascii_lowercase()[..], [b'k', b'e', b'n' | b't']))
    {
        return Cow::Borrowed(query);
    }
    let secret = |pair: &&str| {
        let name = decode(pair.split('=').next().unwrap_or_default().as_bytes());
        SECRET_PARAMETERS.iter().any(|secret| name.eq_ignore_ascii_case(secret.as_bytes()))
    };
    if !query.split('&').any(|pair| secret(&pair)) {
        return Cow::Borrowed(query);
    }
    let kept: Vec<&str> = query.split('&').filter(|pair| !secret(pair)).collect();
    Cow::Owned(kept.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::{FileId, SourceFile};
    use crate::manifest::{decode::decode as read_as, node};
    use proptest::prelude::*;

    fn read(text: &str, params: &[&str]) -> Result<Template, Vec<Code>> {
        let mut out = Diagnostics::new();
        let whole = Spanned { value: text.to_owned(), span: Span::new(FileId(0), 0, text.len()) };
        let params: Vec<String> = params.iter().map(|p| (*p).to_owned()).collect();
        Template::check(&whole, 0, text, &params, &mut out)
            .ok_or(out.iter().map(|fault| fault.code).collect())
    }

    fn render(text: &str, values: &[(&str, &str)]) -> Option<String> {
        let names: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
        read(text, &names).unwrap().render(|index| values.get(index).map(|(_, value)| *value))
    }

    #[test]
    fn parameters_are_put_in_as_they_came() {
        assert_eq!(render("/files/{path}", &[("path", "a/b%20c/")]).unwrap(), "/files/a/b%20c/");
        assert_eq!(render("/v1/{id}.json;v={id}", &[("id", "x")]).unwrap(), "/v1/x.json;v=x");
        assert_eq!(render("/größe", &[]).unwrap(), "/gr%C3%B6%C3%9Fe");
        assert_eq!(render("/files/{path}", &[("path", "")]).unwrap(), "/files/");
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for value in [
            "", "a/", "/a", "a//b", "..", ".", "%2e%2E", "a%2fb", "a%5cb", "a%00b", "a%", "a?b", "a#b",
            "a\\b", "..;x", "%ff",
        ] {
            assert_eq!(render("/a/{rest}/b", &[("rest", value)]), None, "{value}");
        }
        assert_eq!(render("/.{rest}", &[("rest", "")]), None);
        assert_eq!(render("/.{rest}", &[("rest", ".")]), None);
    }

    #[test]
    fn faults_of_the_text_are_found_at_load() {
        assert_eq!(read("/a/{id}", &["id", "x"]).unwrap().parts.len(), 2);
        assert_eq!(read("/a/{di}", &["id"]).unwrap_err(), [Code::UNKNOWN_PARAMETER]);
        assert_eq!(read("/a/{x}/{y}", &["id"]).unwrap_err(), [Code::UNKNOWN_PARAMETER; 2]);
        for bad in ["a", "", "/a?b=c", "/a#b", "/a//b", "/../a", "/a/{id", "/a/id}", "/%zz", "/%2F", "/a b"] {
            assert_eq!(read(bad, &["id"]).unwrap_err(), [Code::BAD_VALUE], "{bad}");
        }
    }

    #[test]
    fn the_caret_points_at_the_parameter() {
        for yaml in ["- /a/{di}/b", "- \"/a/{di}/b\"", "- '/a/{di}/b'"] {
            let mut out = Diagnostics::new();
            let tree = node::parse(FileId(0), &SourceFile::new("m.yaml", yaml), &mut out).unwrap();
            let list: Vec<Spanned<String>> = read_as(&tree, &mut out).unwrap();
            assert!(Template::check(&list[0], 0, &list[0].value, &["id".to_owned()], &mut out).is_none());
            let fault = out.iter().next().unwrap();
            let span = fault.span.unwrap();
            assert_eq!(&yaml[span.start as usize..][..span.len as usize], "{di}", "{yaml}");
            assert_eq!(fault.help.as_deref(), Some("did you mean `id`?"));
        }
    }

    #[test]
    fn credentials_stay_here() {
        for (query, wanted) in [
            ("a=1&b=2", "a=1&b=2"),
            ("token=x", ""),
            ("a=1&token=x&b=%20", "a=1&b=%20"),
            ("access_token=x&a", "a"),
            ("Ticket=1&x", "x"),
            ("t%6Fken=x&a=token", "a=token"),
            ("token&a", "a"),
            ("tokens=1&mytoken=2", "tokens=1&mytoken=2"),
            ("a=token=b", "a=token=b"),
            ("", ""),
        ] {
            assert_eq!(without_secrets(query), wanted, "{query}");
        }
    }

    proptest! {
        /// Whatever a parameter holds: what is rendered has the template's segments and only whole segments more.
        #[test]
        fn no_parameter_changes_the_shape(value in "[a-c./%2eE;?#\\\\]{0,12}") {
            if let Some(path) = render("/fixed/{p}/end", &[("p", &value)]) {
                prop_assert!(path.starts_with("/fixed/") && path.ends_with("/end"));
                prop_assert!(!path.contains("//"));
                let segments: Vec<String> =
                    path.split('/').map(|s| String::from_utf8(decode(s.as_bytes())).unwrap()).collect();
                prop_assert!(segments.iter().all(|s| !matches!(s.split(';').next(), Some("." | ".."))));
                let parsed = url::Url::parse(&format!("http://h{path}")).unwrap();
                prop_assert_eq!(parsed.path(), path, "another parser sees the same path");
                prop_assert!(parsed.query().is_none() && parsed.fragment().is_none());
            }
        }

        /// No spelling of a secret's name gets through, and nothing else is lost.
        #[test]
        fn secrets_never_pass(pairs in proptest::collection::vec("(token|TICKET|access%5ftoken|t%6fken|a|to|%|b%20)(=[a-z&%]{0,3})?", 0..6)) {
            let query = pairs.join("&");
            let passed = without_secrets(&query);
            for pair in passed.split('&') {
                let name = decode(pair.split('=').next().unwrap().as_bytes()).to_ascii_lowercase();
                prop_assert!(!SECRET_PARAMETERS.iter().any(|s| name == s.as_bytes()), "{} -> {}", query, passed);
            }
        }
    }
}
