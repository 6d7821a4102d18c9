//! A CORS policy: what the manifest says, proven and compiled.

use super::super::Mark;
use crate::diag::{Code, Diagnostic, Diagnostics, Span};
use crate::manifest::List;
use crate::manifest::model;
use crate::units::Dur;
use http::header::{ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_ORIGIN};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use std::collections::HashMap;
use std::hash::Hash;

pub(super) const DEFAULT_HEADERS: &str =
    "Authorization, Content-Type, X-Request-ID, Idempotency-Key, Last-Event-ID";
const DEFAULT_MAX_AGE: Dur = Dur::secs(600);

/// A sound policy, ready to run.
#[derive(Debug)]
pub(super) struct Policy {
    origins: Origins,
    /// Declared methods, joined.
    pub(super) methods: Option<HeaderValue>,
    pub(super) headers: HeaderValue,
    pub(super) expose: Option<HeaderValue>,
    credentials: bool,
    pub(super) max_age: HeaderValue,
}

#[derive(Debug)]
enum Origins {
    /// `*`.
    Any,
    /// By origin, which is also the value of `Access-Control-Allow-Origin`; and its place in `values`.
    Listed { places: HashMap<Box<[u8]>, u32>, values: Vec<HeaderValue> },
}

/// Marks: no allowed origin, any origin, or one of the list from here on.
pub(super) const NOT_ALLOWED: Mark = 0;
const ANY: Mark = 1;
const FIRST: Mark = 2;

/// Checks a policy that no stage may use yet; `span` is its name's.
pub fn check_policy(policy: &model::Cors, span: Span, out: &mut Diagnostics) {
    let _ = Policy::compile(policy, span, out);
}

impl Policy {
    /// Reports every fault; `None` if there is one.
    pub(super) fn compile(policy: &model::Cors, span: Span, out: &mut Diagnostics) -> Option<Self> {
        let before = out.counts().0;
        if policy.origins.0.is_empty() {
            out.push(
                Diagnostic::error(Code::MISSING_KEY, span, "a CORS policy needs `origins`")
                    .help("list the websites that may call, such as `https://app.example.com`"),
            );
        }
        for origin in &policy.origins.0 {
            let fault = match origin.value.as_str() {
                "*" => any_origin(policy, origin.span),
                "null" => null_origin(policy, origin.span),
                text => not_an_origin(text).map(|help| {
                    Diagnostic::error(
                        Code::BAD_VALUE,
                        origin.span,
                        "this is not an origin as browsers send it",
                    )
                    .help(help)
                }),
            };
            if let Some(fault) = fault {
                out.push(fault);
            }
        }
        let methods = joined::<Method>(&policy.methods, "method", out, |text| {
            let upper = text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
            let forbidden = matches!(text, "CONNECT" | "TRACE");
            (upper && !forbidden).then(|| text.parse().ok()).flatten()
        });
        let headers = joined::<HeaderName>(&policy.headers, "header name", out, header_name);
        let expose = joined::<HeaderName>(&policy.expose, "header name", out, header_name);
        if out.counts().0 != before {
            return None;
        }
        let seconds = policy.max_age.unwrap_or(DEFAULT_MAX_AGE).0.as_secs();
        Some(Policy {
            origins: Origins::of(&policy.origins),
            methods,
            headers: headers.unwrap_or(HeaderValue::from_static(DEFAULT_HEADERS)),
            expose,
            credentials: policy.credentials,
            max_age: seconds.into(),
        })
    }

    /// Feeds what it says to the route's identity.
    pub(super) fn identify(&self, state: &mut impl std::hash::Hasher) {
        if let Origins::Listed { values, .. } = &self.origins {
            values.hash(state);
        }
        (&self.methods, &self.headers, &self.expose, self.credentials, &self.max_age).hash(state);
    }

    pub(super) fn allows(&self, origin: &HeaderValue) -> Mark {
        match &self.origins {
            Origins::Any => ANY,
            Origins::Listed { places, .. } => {
                places.get(origin.as_bytes()).map_or(NOT_ALLOWED, |place| FIRST + place)
            }
        }
    }

    /// Makes the headers of an answer to an origin.
    pub(super) fn allow(&self, mark: Mark, headers: &mut HeaderMap) {
        let value = match &self.origins {
            Origins::Any => HeaderValue::from_static("*"),
            Origins::Listed { values, .. } => match values.get((mark - FIRST) as usize) {
                Some(value) => value.clone(),
                None => return,
            },
        };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, value);
        if self.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }
}

impl Origins {
    fn of(list: &List<String>) -> Self {
        if list.0.iter().any(|origin| origin.value == "*") {
            return Origins::Any;
        }
        let mut places = HashMap::new();
        let mut values = Vec::new();
        for origin in &list.0 {
            if let Ok(value) = HeaderValue::from_str(origin) {
                places.insert(origin.as_bytes().into(), values.len() as u32);
                values.push(value);
            }
        }
        Origins::Listed { places, values }
    }
}

fn any_origin(policy: &model::Cors, span: Span) -> Option<Diagnostic> {
    let error = |message, help| Some(Diagnostic::error(Code::BAD_VALUE, span, message).help(help));
    if policy.origins.0.len() > 1 {
        return error(
            "`*` stands beside other origins",
            "`*` allows every origin already: keep one or the other",
        );
    }
    if policy.credentials {
        return error(
            "`*` with `credentials: true` would let every website act as its visitors",
            "list the origins, or drop `credentials`",
        );
    }
    let message = "every website may read what this policy covers";
    Some(
        Diagnostic::warning(Code::LOOSENED, span, message).help("list the origins unless the data is public"),
    )
}

fn null_origin(policy: &model::Cors, span: Span) -> Option<Diagnostic> {
    if policy.credentials {
        let message = "`null` with `credentials: true` would let any sandboxed page act as its visitors";
        return Some(Diagnostic::error(Code::BAD_VALUE, span, message).help("drop `null`, or `credentials`"));
    }
    let message = "`null` is the origin of every sandboxed page and local file";
    Some(Diagnostic::warning(Code::LOOSENED, span, message).help("list the real origin"))
}

/// What to write instead, if a browser never sends this as `Origin` (RFC 6454, section 6.1).
pub(super) fn not_an_origin(text: &str) -> Option<String> {
    const FORM: &str =
        "write `scheme://host` or `scheme://host:port`, lower case, without a path or a slash at the end";
    if text.contains('*') {
        return Some("origins are exact: list each of them".to_owned());
    }
    let Some((scheme, host)) = text.split_once("://") else { return Some(FORM.to_owned()) };
    if matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https") {
        return match url::Url::parse(text) {
            Ok(url) if url.origin().ascii_serialization() == text => None,
            // A value that came from a variable is not shown: the help names no part of it.
            _ => Some(format!("{FORM}; the scheme's own port is left out")),
        };
    }
    // Other schemes: `chrome-extension://id`, `capacitor://localhost`.
    let scheme_fits = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c));
    let host_fits = !host.is_empty()
        && host.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._:".contains(c));
    (!scheme_fits || !host_fits).then(|| FORM.to_owned())
}

fn header_name(text: &str) -> Option<HeaderName> {
    text.parse().ok().filter(|_| text != "*")
}

/// The items of a list as one header value; `None` if there are none or one is faulty.
fn joined<T>(
    list: &List<String>,
    what: &str,
    out: &mut Diagnostics,
    parse: impl Fn(&str) -> Option<T>,
) -> Option<HeaderValue> {
    for item in &list.0 {
        if parse(item).is_none() {
            let help = match (item.value.as_str(), what) {
                ("*", _) => "list them: `*` means nothing beside credentials",
                (_, "method") => "methods are upper case, such as `GET`; CONNECT and TRACE are never served",
                _ => "a header name is letters, digits and hyphens",
            };
            let message = format!("this is not a {what}");
            out.push(Diagnostic::error(Code::BAD_VALUE, item.span, message).help(help));
        }
    }
    let text: Vec<&str> = list.0.iter().map(|item| item.value.as_str()).collect();
    (!text.is_empty()).then(|| HeaderValue::from_str(&text.join(", ")).ok()).flatten()
}
