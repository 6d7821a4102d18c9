//! Route patterns: `METHOD /static/:param/*rest`, hosts, and header and query predicates.

use crate::diag::{Code, Diagnostic, Diagnostics, Span, did_you_mean};
use crate::manifest::Spanned;
use crate::manifest::model;
use crate::path::normalise_pattern_segment;
use http::{HeaderName, HeaderValue, Method};

/// Which methods a route takes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum MethodSet {
    /// Every method (`ANY`).
    Any,
    /// This one; `GET` answers `HEAD` too where nothing else does.
    One(Method),
}

impl MethodSet {
    /// As declared: `GET`, `ANY`.
    pub fn as_str(&self) -> &str {
        match self {
            MethodSet::Any => "ANY",
            MethodSet::One(method) => method.as_str(),
        }
    }
}

/// One segment of a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Segment {
    /// Taken literally; in the normal form of request paths.
    Static(String),
    /// `:name`, one segment, not empty.
    Param(String),
    /// `*name`, the rest, possibly empty.
    Rest(String),
}

/// A path pattern.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    /// Its segments; none for `/`.
    pub segments: Vec<Segment>,
}

impl Pattern {
    /// As written, in normal form.
    pub fn template(&self) -> String {
        if self.segments.is_empty() {
            return "/".to_owned();
        }
        self.segments
            .iter()
            .map(|segment| match segment {
                Segment::Static(text) => format!("/{text}"),
                Segment::Param(name) => format!("/:{name}"),
                Segment::Rest(name) => format!("/*{name}"),
            })
            .collect()
    }

    /// The same with its parameters as `{name}`: how rewrites and OpenAPI write them.
    pub fn braced(&self) -> String {
        if self.segments.is_empty() {
            return "/".to_owned();
        }
        let segments = self.segments.iter().map(|segment| match segment {
            Segment::Static(text) => format!("/{text}"),
            Segment::Param(name) | Segment::Rest(name) => format!("/{{{name}}}"),
        });
        segments.collect()
    }

    /// Names of the parameters, in order.
    pub fn params(&self) -> Vec<String> {
        self.segments
            .iter()
            .filter_map(|segment| match segment {
                Segment::Static(_) => None,
                Segment::Param(name) | Segment::Rest(name) => Some(name.clone()),
            })
            .collect()
    }

    /// The pattern without names: two routes with the same shape meet in the same place of the table.
    pub fn shape(&self) -> String {
        self.segments
            .iter()
            .map(|segment| match segment {
                Segment::Static(text) => format!("/{text}"),
                Segment::Param(_) => "/:".to_owned(),
                Segment::Rest(_) => "/*".to_owned(),
            })
            .collect()
    }
}

/// The host a route answers for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// Exactly this name, lower case, without port.
    Exact(String),
    /// Any name that ends in this, which begins with a dot (`*.example.com`).
    Suffix(String),
}

/// What a predicate wants of a value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Want {
    /// Exactly this.
    Exact(String),
    /// Anything, as long as it is there.
    Present,
}

/// Header and query values a request must have; sorted by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Predicates {
    /// Headers.
    pub headers: Vec<(HeaderName, Want)>,
    /// Query parameters.
    pub query: Vec<(String, Want)>,
}

impl Predicates {
    /// How narrow they are: routes with narrower predicates are tried first.
    pub fn weight(&self) -> usize {
        let weigh = |want: &Want| if *want == Want::Present { 1 } else { 2 };
        self.headers.iter().map(|(_, w)| weigh(w)).chain(self.query.iter().map(|(_, w)| weigh(w))).sum()
    }

    /// Whether a request has what they want.
    pub fn hold(&self, headers: &http::HeaderMap, query: Option<&str>) -> bool {
        self.headers.iter().all(|(name, want)| {
            let mut values = headers.get_all(name).iter();
            match want {
                Want::Present => values.next().is_some(),
                Want::Exact(text) => values.any(|value| value.as_bytes() == text.as_bytes()),
            }
        }) && self.query.iter().all(|(name, want)| {
            url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()).any(|(key, value)| {
                key == name.as_str() && (*want == Want::Present || Some(value.as_ref()) == want.text())
            })
        })
    }
}

impl std::fmt::Display for Want {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text().unwrap_or("*"))
    }
}

impl Want {
    fn of(text: &str) -> Self {
        if text == "*" { Want::Present } else { Want::Exact(text.to_owned()) }
    }

    fn text(&self) -> Option<&str> {
        match self {
            Want::Exact(text) => Some(text),
            Want::Present => None,
        }
    }
}

/// Methods that a manifest may name.
pub const METHODS: &[&str] = &["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "ANY"];

/// Reads `METHOD /path` under a version's prefix.
pub fn route(text: &Spanned<String>, prefix: &str, out: &mut Diagnostics) -> Option<(MethodSet, Pattern)> {
    let Some((method, path)) = text.value.split_once(' ') else {
        out.push(bad(text.span, "a route is a method and a path").help("write `GET /path`"));
        return None;
    };
    let path_at = method.len() + 1 + (path.len() - path.trim_start().len());
    let path_span = text.span.part(span_offset(text) + path_at, path.trim().len());
    let method = match method {
        "ANY" => Some(MethodSet::Any),
        name if METHODS.contains(&name) => Method::from_bytes(name.as_bytes()).ok().map(MethodSet::One),
        name => {
            let span = text.span.part(span_offset(text), name.len());
            let help = match name.to_ascii_uppercase() {
                upper if METHODS.contains(&upper.as_str()) => {
                    Some(format!("methods are upper case: `{upper}`"))
                }
                _ => did_you_mean(name, METHODS.iter().copied()),
            };
            out.push(bad(span, format!("`{name}` is not a method")).maybe_help(help));
            None
        }
    };
    let full = format!("{prefix}{}", path.trim());
    let pattern = pattern(&full, path_span, out);
    Some((method?, pattern?))
}

/// Reads a path pattern.
pub fn pattern(path: &str, span: Span, out: &mut Diagnostics) -> Option<Pattern> {
    let Some(rest) = path.strip_prefix('/') else {
        out.push(bad(span, "a path begins with `/`"));
        return None;
    };
    if rest.is_empty() {
        return Some(Pattern { segments: Vec::new() });
    }
    let parts: Vec<&str> = rest.split('/').collect();
    let mut segments = Vec::with_capacity(parts.len());
    for (index, part) in parts.iter().enumerate() {
        let last = index + 1 == parts.len();
        segments.push(segment(part, last, span, out)?);
    }
    let pattern = Pattern { segments };
    let mut names = pattern.params();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        out.push(bad(span, format!("parameter `{}` stands twice", twice[0])));
        return None;
    }
    Some(pattern)
}

fn segment(part: &str, last: bool, span: Span, out: &mut Diagnostics) -> Option<Segment> {
    let mut fault = |message: String, help: &str| {
        out.push(bad(span, message).help(help.to_owned()));
        None
    };
    let name = |text: &str| {
        let valid = !text.is_empty()
            && !text.starts_with(|c: char| c.is_ascii_digit())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        valid.then(|| text.to_owned())
    };
    if let Some(text) = part.strip_prefix(':') {
        return match name(text) {
            Some(name) => Some(Segment::Param(name)),
            None => fault(
                format!("`:{text}` is not a parameter"),
                "letters, digits and `_`, not starting with a digit",
            ),
        };
    }
    if let Some(text) = part.strip_prefix('*') {
        return match name(text) {
            Some(_) if !last => fault(format!("`*{text}` must stand last"), "it takes the rest of the path"),
            Some(name) => Some(Segment::Rest(name)),
            None => fault(format!("`*{text}` needs a name"), "write `*path`"),
        };
    }
    if part.is_empty() && !last {
        return fault("the path has an empty segment (`//`)".into(), "requests with `//` are refused");
    }
    if part.contains(['{', '}', ' ']) {
        return fault(
            format!("segment `{part}` has a character that no path has"),
            "parameters are written `:name`, and predicates go under `match:`",
        );
    }
    if part.is_empty() {
        return Some(Segment::Static(String::new()));
    }
    match normalise_pattern_segment(part) {
        Ok(text) => Some(Segment::Static(text.into_owned())),
        Err(why) => fault(format!("segment `{part}` cannot stand in a path"), why.detail()),
    }
}

/// Reads a host.
pub fn host(text: &Spanned<String>, out: &mut Diagnostics) -> Option<Host> {
    let name = text.value.to_ascii_lowercase();
    let plain = name.strip_prefix("*.").unwrap_or(&name);
    let valid = !plain.is_empty()
        && plain.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        });
    if !valid {
        out.push(
            Diagnostic::error(Code::BAD_MATCH, text.span, "this is not a host name")
                .help("a name such as `api.example.com` or `*.example.com`, without scheme and port"),
        );
        return None;
    }
    Some(match name.strip_prefix('*') {
        Some(suffix) => Host::Suffix(suffix.to_owned()),
        None => Host::Exact(name),
    })
}

/// Reads predicates.
pub fn predicates(declared: &model::Predicates, out: &mut Diagnostics) -> Predicates {
    let mut result = Predicates::default();
    for (key, value) in &declared.headers.0 {
        let name = HeaderName::from_bytes(key.text.as_bytes());
        let good_value = HeaderValue::from_str(&value.value).is_ok();
        match name {
            Ok(name) if good_value => result.headers.push((name, Want::of(&value.value))),
            _ => out.push(
                Diagnostic::error(
                    Code::BAD_MATCH,
                    key.span,
                    format!("`{}` is not a header and its value", key.text),
                )
                .help("values are exact, or `*` for any"),
            ),
        }
    }
    for (key, value) in &declared.query.0 {
        result.query.push((key.text.clone(), Want::of(&value.value)));
    }
    result.headers.sort_by(|a, b| a.0.as_str().cmp(b.0.as_str()));
    result.query.sort();
    result
}

fn bad(span: Span, message: impl Into<String>) -> Diagnostic {
    Diagnostic::error(Code::BAD_PATTERN, span, message)
}

/// Where the text starts inside its span: behind the quote, if it is quoted.
fn span_offset(text: &Spanned<String>) -> usize {
    usize::from(text.span.len as usize == text.value.len() + 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::FileId;

    fn read(text: &str, prefix: &str) -> Result<String, String> {
        let mut out = Diagnostics::new();
        let text = Spanned { value: text.to_owned(), span: Span::new(FileId(0), 0, text.len()) };
        match route(&text, prefix, &mut out) {
            Some((method, pattern)) => Ok(format!("{} {}", method.as_str(), pattern.template())),
            None => Err(out.iter().map(|d| d.message.clone()).collect::<Vec<_>>().join("; ")),
        }
    }

    #[test]
    fn routes_are_method_and_pattern() {
        assert_eq!(read("GET /a/:id", "/api/v1").unwrap(), "GET /api/v1/a/:id");
        assert_eq!(read("ANY /*path", "").unwrap(), "ANY /*path");
        assert_eq!(read("GET /", "").unwrap(), "GET /");
        assert_eq!(read("GET /文档/a%7eb", "").unwrap(), "GET /%E6%96%87%E6%A1%A3/a~b");
        assert_eq!(read("GET /a/", "").unwrap(), "GET /a/");
    }

    #[test]
    fn faults_of_patterns() {
        for (text, part) in [
            ("GET", "a method and a path"),
            ("get /a", "`get` is not a method"),
            ("TRACE /a", "`TRACE` is not a method"),
            ("GET a", "begins with `/`"),
            ("GET /*a/b", "must stand last"),
            ("GET /:", "is not a parameter"),
            ("GET /*", "needs a name"),
            ("GET /a//b", "empty segment"),
            ("GET /a/../b", "cannot stand in a path"),
            ("GET /a?b=c", "cannot stand in a path"),
            ("GET /a{id}", "character that no path has"),
            ("GET /%2f", "cannot stand in a path"),
            ("GET /%zz", "cannot stand in a path"),
            ("GET /:a/:a", "stands twice"),
        ] {
            let fault = read(text, "").unwrap_err();
            assert!(fault.contains(part), "{text}: {fault}");
        }
    }

    #[test]
    fn predicates_hold_or_not() {
        let predicates = Predicates {
            headers: vec![(HeaderName::from_static("x-a"), Want::Exact("1".into()))],
            query: vec![("q".into(), Want::Present)],
        };
        let mut headers = http::HeaderMap::new();
        headers.append("x-a", HeaderValue::from_static("0"));
        assert!(!predicates.hold(&headers, Some("q=")));
        headers.append("x-a", HeaderValue::from_static("1"));
        assert!(predicates.hold(&headers, Some("p=1&q=")));
        assert!(!predicates.hold(&headers, None));
        assert_eq!(predicates.weight(), 3);
    }
}
