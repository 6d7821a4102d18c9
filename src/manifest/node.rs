//! A YAML document as a tree in which every key and value knows its place.
//!
//! The tree stands between the YAML reader and serde's typed structures for three reasons: one run must
//! report every fault (a typed read stops at its first), stage bodies are decoded by the stages and not here,
//! and `${VAR}` is replaced in values only, after parsing, so that no variable can add YAML.

use crate::diag::{Code, Diagnostic, Diagnostics, FileId, SourceFile, Span};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::hash::{Hash, Hasher};

/// A value with its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Where it stands.
    pub span: Span,
    /// What it is.
    pub value: Value,
    /// Whether a `${VAR}` was replaced in it: its text may be secret and must not be shown.
    pub expanded: bool,
}

/// What a value is.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// `true` or `false` (YAML 1.2: `yes` and `on` are texts).
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// Text.
    Str(String),
    /// A sequence.
    Seq(Vec<Node>),
    /// A mapping in file order; keys are unique.
    Map(Vec<(Key, Node)>),
}

/// A mapping's key with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The key.
    pub text: String,
    /// Where it stands.
    pub span: Span,
}

impl Node {
    /// A null at a place: the body of a stage that has none.
    pub fn null(span: Span) -> Self {
        Node { span, value: Value::Null, expanded: false }
    }

    /// The value under a key, if this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(k, _)| k.text == key).map(|(_, v)| v),
            _ => None,
        }
    }

    /// The text, if this is one.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// What kind of value this is, in words.
    pub fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::Str(_) => "a text",
            Value::Seq(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    /// Feeds what this says (not where) to a hasher: equal content, equal hash. Mappings count in any order.
    pub fn digest<H: Hasher + Clone>(&self, state: &mut H) {
        match &self.value {
            Value::Null => state.write_u8(0),
            Value::Bool(b) => (1u8, b).hash(state),
            Value::Int(i) => (2u8, i).hash(state),
            Value::Float(f) => (3u8, f.to_bits()).hash(state),
            Value::Str(s) => (4u8, s).hash(state),
            Value::Seq(items) => {
                (5u8, items.len()).hash(state);
                items.iter().for_each(|item| item.digest(state));
            }
            Value::Map(entries) => {
                (6u8, entries.len()).hash(state);
                let mut sum = 0u64;
                for (key, value) in entries {
                    let mut entry = state.clone();
                    key.text.hash(&mut entry);
                    value.digest(&mut entry);
                    sum = sum.wrapping_add(entry.finish());
                }
                state.write_u64(sum);
            }
        }
    }

    /// The value as JSON, for bodies that are passed on as they are (`respond: { json: … }`).
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(b) => (*b).into(),
            Value::Int(i) => (*i).into(),
            Value::Float(f) => serde_json::Number::from_f64(*f).map_or(serde_json::Value::Null, Into::into),
            Value::Str(s) => s.clone().into(),
            Value::Seq(items) => items.iter().map(Node::to_json).collect(),
            Value::Map(entries) => entries.iter().map(|(k, v)| (k.text.clone(), v.to_json())).collect(),
        }
    }
}

/// Bounds on one file: a manifest that needs more is split by `include:`.
pub const MAX_FILE_BYTES: usize = 16 << 20;
const MAX_DEPTH: usize = 32;
const MAX_NODES: usize = 2_000_000;
const MAX_ALIASES: usize = 10_000;
const MAX_REPLAYED: usize = 200_000;

/// Reads one file's text.
///
/// Faults (syntax, bounds, duplicate keys) go into `out`; `None` if there is no tree to go on with.
pub fn parse(file: FileId, source: &SourceFile, out: &mut Diagnostics) -> Option<Node> {
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::PassThrough,
        strict_booleans: true,
        with_snippet: false,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: MAX_NODES * 2,
            max_aliases: MAX_ALIASES,
            max_documents: 1,
            max_total_scalar_bytes: MAX_FILE_BYTES,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_REPLAYED,
        },
    };
    if source.text.trim().is_empty() {
        return Some(Node::null(Span::new(file, 0, 0)));
    }
    match serde_saphyr::from_str_with_options::<serde_saphyr::Spanned<Raw>>(&source.text, options) {
        Ok(raw) => Some(Builder { file, out, source }.node(raw)),
        Err(error) => {
            let error = error.without_snippet();
            let span = error.location().map_or(Span::new(file, 0, 0), |at| offset_of(file, source, &at));
            out.push(syntax_fault(error, span));
            None
        }
    }
}

fn syntax_fault(error: &serde_saphyr::Error, span: Span) -> Diagnostic {
    use serde_saphyr::Error as E;
    let text = error.to_string();
    // The reader appends its own position; ours is above the excerpt.
    let message = text.split(" at line ").next().unwrap_or(&text).trim().to_owned();
    if matches!(error, E::Budget { breach: serde_saphyr::budget::BudgetBreach::Documents { .. }, .. }) {
        return Diagnostic::error(Code::SYNTAX, span, "a second document begins here")
            .help("a file is one document: remove the `---`, or move what follows to a file of its own and `include:` it");
    }
    let bounds = matches!(
        error,
        E::Budget { .. } | E::AliasReplayLimitExceeded { .. } | E::AliasExpansionLimitExceeded { .. }
    );
    if bounds || message.contains("budget") || message.contains("limit") {
        return Diagnostic::error(Code::BOUNDS, span, "the file is larger or deeper than a manifest may be").help(
            format!("at most {MAX_DEPTH} levels, {MAX_NODES} values and {MAX_ALIASES} aliases a file: see `include:`"),
        );
    }
    Diagnostic::error(Code::SYNTAX, span, message)
}

fn offset_of(file: FileId, source: &SourceFile, at: &serde_saphyr::Location) -> Span {
    if let (Some(start), Some(len)) = (at.span().byte_offset(), at.span().byte_len()) {
        return Span::new(file, start as usize, len as usize);
    }
    let line = source.line(at.line() as usize);
    let before: usize = line.chars().take((at.column() as usize).saturating_sub(1)).map(char::len_utf8).sum();
    let line_start = line.as_ptr() as usize - source.text.as_ptr() as usize;
    Span::new(file, line_start + before, 1)
}

struct Builder<'a> {
    file: FileId,
    source: &'a SourceFile,
    out: &'a mut Diagnostics,
}

impl Builder<'_> {
    fn span(&self, at: &serde_saphyr::Location) -> Span {
        offset_of(self.file, self.source, at)
    }

    fn node(&mut self, raw: serde_saphyr::Spanned<Raw>) -> Node {
        let span = self.span(&raw.referenced);
        let value = match raw.value {
            Raw::Null => Value::Null,
            Raw::Bool(b) => Value::Bool(b),
            Raw::Int(i) => Value::Int(i),
            Raw::Float(f) => Value::Float(f),
            Raw::Str(s) => Value::Str(s),
            Raw::Seq(items) => Value::Seq(items.into_iter().map(|item| self.node(item)).collect()),
            Raw::Map(entries) => Value::Map(self.entries(entries)),
        };
        Node { span, value, expanded: false }
    }

    fn entries(
        &mut self,
        raw: Vec<(serde_saphyr::Spanned<String>, serde_saphyr::Spanned<Raw>)>,
    ) -> Vec<(Key, Node)> {
        let mut seen = std::collections::HashMap::with_capacity(raw.len());
        let mut entries = Vec::with_capacity(raw.len());
        for (key, value) in raw {
            let key = Key { span: self.span(&key.referenced), text: key.value };
            let value = self.node(value);
            match seen.get(&key.text) {
                None => {
                    seen.insert(key.text.clone(), key.span);
                    entries.push((key, value));
                }
                Some(first) => self.out.push(
                    Diagnostic::error(
                        Code::DUPLICATE_KEY,
                        key.span,
                        format!("key `{}` stands twice", key.text),
                    )
                    .help("keep one of the two")
                    .note(*first, "first stands here"),
                ),
            }
        }
        entries
    }
}

/// What the YAML reader hands over.
enum Raw {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    Seq(Vec<serde_saphyr::Spanned<Raw>>),
    Map(Vec<(serde_saphyr::Spanned<String>, serde_saphyr::Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(i64::try_from(value).map_or(Raw::Float(value as f64), Raw::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Str(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Str(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element()? {
            all.push(item);
        }
        Ok(Raw::Seq(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut all = Vec::new();
        while let Some(key) = entries.next_key()? {
            all.push((key, entries.next_value()?));
        }
        Ok(Raw::Map(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Option<Node>, Diagnostics) {
        let mut out = Diagnostics::new();
        let file = SourceFile::new("m.yaml", text);
        (parse(FileId(0), &file, &mut out), out)
    }

    #[test]
    fn values_know_their_places() {
        let (node, out) = read("a: 1\nb:\n  - { c: yes }\n");
        assert!(out.is_empty());
        let node = node.unwrap();
        let c = match &node.get("b").unwrap().value {
            Value::Seq(items) => items[0].get("c").unwrap().clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!((c.span.start, c.span.len), (17, 3));
        assert_eq!(c.value, Value::Str("yes".into()), "YAML 1.2 knows no yes");
    }

    #[test]
    fn every_duplicate_is_reported_with_both_places() {
        let (node, out) = read("a: 1\na: 2\nb: { x: 1, x: 2 }\n");
        assert_eq!(out.counts(), (2, 0));
        let first = out.iter().next().unwrap();
        assert_eq!(first.code, Code::DUPLICATE_KEY);
        assert_eq!((first.span.unwrap().start, first.notes[0].0.start), (5, 0));
        assert_eq!(node.unwrap().get("a").unwrap().value, Value::Int(1));
    }

    #[test]
    fn bombs_and_depth_are_bounded() {
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for i in 1..9 {
            let refs = vec![format!("*a{}", i - 1); 10].join(",");
            bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        let (node, out) = read(&bomb);
        assert!(node.is_none());
        assert_eq!(out.iter().next().unwrap().code, Code::BOUNDS, "{out:?}");
        let (node, out) = read(&format!("a: {}{}", "[".repeat(100), "]".repeat(100)));
        assert!(node.is_none());
        assert_eq!(out.iter().next().unwrap().code, Code::BOUNDS, "{out:?}");
    }

    #[test]
    fn syntax_faults_point_at_the_place() {
        let (node, out) = read("a: 1\n  b: 2\n");
        assert!(node.is_none());
        let fault = out.iter().next().unwrap();
        assert_eq!(fault.code, Code::SYNTAX);
        assert_eq!(fault.span.unwrap().start, 8);
    }

    #[test]
    fn digests_ignore_order_and_places() {
        use std::hash::DefaultHasher;
        let hash = |text: &str| {
            let mut state = DefaultHasher::new();
            read(text).0.unwrap().digest(&mut state);
            state.finish()
        };
        assert_eq!(hash("{a: 1, b: [x]}"), hash("b:\n - x\na:   1\n"));
        assert_ne!(hash("{a: 1}"), hash("{a: '1'}"));
        assert_ne!(hash("[a, b]"), hash("[b, a]"));
    }
}
