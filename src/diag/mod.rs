//! Diagnostics: what is wrong with a manifest, where, and what to do about it.
//!
//! A fault is a value ([`Diagnostic`]); phases push into [`Diagnostics`] and go on, so that one run
//! reports everything. Rendering ([`render()`]) is separate: for people, for machines, for code review.
//! Texts never contain the value of an expanded `${VAR}`: excerpts are cut from the file as written.

mod codes;
mod render;
mod source;

use std::collections::HashMap;

pub use codes::{CATALOG, Code, CodeInfo, describe};
pub use render::{Format, Palette, render};
pub use source::{FileId, SourceFile, Sources, Span};

/// How grave a fault is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth a look; the manifest still runs (`--strict` makes it an error).
    Warning,
    /// The manifest is refused.
    Error,
}

impl Severity {
    /// The word that opens a rendered fault.
    pub fn word(self) -> &'static str {
        match self {
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// One fault: a code, a sentence, the place, and the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Stable code such as `VG031`, see [`CATALOG`].
    pub code: Code,
    /// Error or warning.
    pub severity: Severity,
    /// One sentence, no full stop, names in backticks.
    pub message: String,
    /// Where it is, if it is anywhere in a file.
    pub span: Option<Span>,
    /// What to do; rendered behind the caret.
    pub help: Option<String>,
    /// Other places that belong to it ("first defined here").
    pub notes: Vec<(Span, String)>,
}

impl Diagnostic {
    /// An error at a place.
    pub fn error(code: Code, span: Span, message: impl Into<String>) -> Self {
        Self::at(Severity::Error, code, Some(span), message)
    }

    /// A warning at a place.
    pub fn warning(code: Code, span: Span, message: impl Into<String>) -> Self {
        Self::at(Severity::Warning, code, Some(span), message)
    }

    /// An error that has no place in any file, such as a file that cannot be read.
    pub fn global(code: Code, message: impl Into<String>) -> Self {
        Self::at(Severity::Error, code, None, message)
    }

    fn at(severity: Severity, code: Code, span: Option<Span>, message: impl Into<String>) -> Self {
        Diagnostic { code, severity, message: message.into(), span, help: None, notes: Vec::new() }
    }

    /// Adds the way out.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }

    /// Adds the way out if there is one.
    #[must_use]
    pub fn maybe_help(mut self, text: Option<String>) -> Self {
        if text.is_some() {
            self.help = text;
        }
        self
    }

    /// Adds another place.
    #[must_use]
    pub fn note(mut self, span: Span, text: impl Into<String>) -> Self {
        self.notes.push((span, text.into()));
        self
    }
}

/// Every fault found so far.
#[derive(Debug, Clone, Default)]
pub struct Diagnostics {
    items: Vec<Diagnostic>,
}

impl Diagnostics {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.items.push(diagnostic);
    }

    /// Adds all of another collection.
    pub fn append(&mut self, mut other: Diagnostics) {
        self.items.append(&mut other.items);
    }

    /// In reading order: by file and place, those without a place first; exact repeats (one fault seen
    /// through two uses of the same chain) once.
    pub fn sort(&mut self) {
        self.items.sort_by(|a, b| {
            (a.span, a.code, a.severity, &a.message).cmp(&(b.span, b.code, b.severity, &b.message))
        });
        self.items.dedup();
        // A value whose variable could not be replaced is not what was meant: no other fault of it is one.
        let unset = |d: &Diagnostic| matches!(d.code, Code::ENV_UNSET | Code::ENV_SYNTAX);
        let broken: Vec<_> = self.items.iter().filter(|d| unset(d)).filter_map(|d| d.span).collect();
        if !broken.is_empty() {
            self.items.retain(|d| unset(d) || d.span.is_none_or(|span| !broken.contains(&span)));
        }
    }

    /// Takes texts that came from variables out of the faults about them: the excerpt shows them as written.
    pub fn redact(&mut self, secrets: &HashMap<Span, Vec<String>>) {
        if secrets.is_empty() {
            return;
        }
        for item in &mut self.items {
            let Some(span) = item.span else { continue };
            let around = secrets.iter().filter(|(place, _)| place.contains(span));
            for secret in around.flat_map(|(_, texts)| texts).filter(|text| !text.is_empty()) {
                item.message = item.message.replace(secret.as_str(), "${…}");
                item.help = item.help.take().map(|help| help.replace(secret.as_str(), "${…}"));
            }
        }
    }

    /// Turns warnings into errors (`--strict`).
    pub fn make_strict(&mut self) {
        for item in &mut self.items {
            item.severity = Severity::Error;
        }
    }

    /// Whether anything forbids running this manifest.
    pub fn has_errors(&self) -> bool {
        self.items.iter().any(|d| d.severity == Severity::Error)
    }

    /// Number of errors and of warnings.
    pub fn counts(&self) -> (usize, usize) {
        let errors = self.items.iter().filter(|d| d.severity == Severity::Error).count();
        (errors, self.items.len() - errors)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.items.iter()
    }
}

/// The nearest of `candidates` to a mistyped `name`, if one is near enough to be meant.
///
/// Damerau–Levenshtein distance of at most a third of the length (at least one), transpositions count one.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= limit && *distance < candidate.chars().count())
        .min()
        .map(|(_, candidate)| candidate)
}

/// "did you mean `x`?" for [`nearest`], else the known names if they are few, else nothing.
pub fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str> + Clone) -> Option<String> {
    if let Some(near) = nearest(name, candidates.clone()) {
        return Some(format!("did you mean `{near}`?"));
    }
    let mut known: Vec<&str> = candidates.into_iter().collect();
    known.sort_unstable();
    match known.len() {
        0 => Some("none is defined".to_owned()),
        1..=12 => Some(format!("known: {}", known.join(", "))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_needs_to_be_near() {
        assert_eq!(nearest("alog", ["algo", "documents"]), Some("algo"));
        assert_eq!(nearest("upstrem", ["upstream", "stream"]), Some("upstream"));
        assert_eq!(nearest("xyz", ["algo"]), None);
        assert_eq!(nearest("a", ["b"]), None, "a name that shares nothing is not meant");
    }

    #[test]
    fn suggestions_list_known_names_when_none_is_near() {
        assert_eq!(did_you_mean("zzzz", ["b", "a"]).unwrap(), "known: a, b");
        assert_eq!(did_you_mean("zzzz", []).unwrap(), "none is defined");
    }
}
