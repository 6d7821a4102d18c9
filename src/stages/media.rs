//! Lists of media types, for stages that let bodies pass by what they are: `audio/wav`, `audio/*`, `*/*`.

use crate::diag::{Code, Diagnostic, Diagnostics};
use crate::manifest::List;

/// Media types that pass. Parameters (`; charset=…`) do not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MediaTypes(Box<[String]>);

impl MediaTypes {
    /// Reads a list; whatever is no media type is a fault.
    pub(super) fn check(list: &List<String>, out: &mut Diagnostics) -> Self {
        let mut types = Vec::with_capacity(list.0.len());
        for text in &list.0 {
            match is_range(text) {
                true => types.push(text.to_ascii_lowercase()),
                false => out.push(
                    Diagnostic::error(Code::BAD_VALUE, text.span, "this is not a media type")
                        .help("write `audio/wav`, or `audio/*` for all of a kind; without parameters"),
                ),
            }
        }
        MediaTypes(types.into())
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a type passes, as a header says it.
    pub(super) fn pass(&self, given: &str) -> bool {
        let essence = given.split(';').next().unwrap_or_default().trim();
        self.0.iter().any(|range| match range.strip_suffix('*') {
            Some("*/") => is_range(essence),
            Some(kind) => {
                essence.get(..kind.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(kind))
                    && essence.len() > kind.len()
            }
            None => essence.eq_ignore_ascii_case(range),
        })
    }

    /// For people.
    pub(super) fn words(&self) -> String {
        self.0.join(", ")
    }
}

/// `type/subtype`, `type/*` or `*/*` (RFC 9110, sections 8.3.1 and 12.5.1).
fn is_range(text: &str) -> bool {
    let is_token = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&^_.+-".contains(&b))
    };
    match text.split_once('/') {
        Some(("*", kind)) => kind == "*",
        Some((kind, "*")) => is_token(kind),
        Some((kind, subtype)) => is_token(kind) && is_token(subtype),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_pass_by_name_kind_or_all() {
        let types = |list: &[&str]| MediaTypes(list.iter().map(|text| (*text).to_owned()).collect());
        let audio = types(&["audio/*", "video/webm"]);
        for good in ["audio/wav", "Audio/L16;rate=16000", " video/webm ", "VIDEO/WebM; codecs=opus"] {
            assert!(audio.pass(good), "{good}");
        }
        for bad in ["", "audio", "audio/", "audiox/wav", "video/mp4", "video/webmx", "text/plain; audio/wav"]
        {
            assert!(!audio.pass(bad), "{bad}");
        }
        assert!(types(&["*/*"]).pass("a/b") && !types(&["*/*"]).pass("a"));
        for bad in ["*/wav", "audio", "audio/", "/wav", "audio/wav; rate=1", "a b/c", "*"] {
            assert!(!is_range(bad), "{bad}");
        }
    }
}
