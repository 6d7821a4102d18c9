//! HTML in named fields of JSON: only elements and attributes that do nothing stay.

use super::scan::Segment;
use ammonia::Builder;
use serde_json::Value;
use std::sync::LazyLock;

/// Tags that a text may have and be read as HTML: reading takes time square in how deep they nest. A text with more
/// becomes plain.
const MAX_TAGS: usize = 1000;

/// What stays, compiled once: ammonia's own list.
static HARMLESS: LazyLock<Builder<'static>> = LazyLock::new(Builder::default);

/// Fields by their keys on the way; lists are gone through.
#[derive(Debug, Default)]
pub(super) struct Fields(Box<[Box<[Box<str>]>]>);

impl Fields {
    /// Of dotted paths.
    pub(super) fn new<'a>(paths: impl Iterator<Item = &'a str>) -> Self {
        Fields(paths.map(|path| path.split('.').map(Box::from).collect()).collect())
    }

    /// Whether the value at a path is one of them, or in one.
    pub(super) fn hold(&self, path: &[Segment<'_>]) -> bool {
        let keys = || {
            path.iter().filter_map(|segment| match segment {
                Segment::Key(key) => Some(key.as_ref()),
                Segment::Index(_) => None,
            })
        };
        self.0.iter().any(|field| keys().take(field.len()).eq(field.iter().map(AsRef::as_ref)))
    }

    /// The body with its fields made harmless, if that is another one. `keys` are the keys that its text has: where the
    /// value has less, one stood twice, and the text must go.
    pub(super) fn clean(&self, mut value: Value, keys: usize) -> Option<Vec<u8>> {
        if self.0.is_empty() {
            return None;
        }
        let mut changed = count(&value) != keys;
        for field in &self.0 {
            visit(&mut value, field, &mut changed);
        }
        // A value that was read from JSON can be written as JSON.
        changed.then(|| serde_json::to_vec(&value).unwrap_or_default())
    }
}

fn visit(value: &mut Value, path: &[Box<str>], changed: &mut bool) {
    match (value, path) {
        (Value::Array(items), _) => items.iter_mut().for_each(|item| visit(item, path, changed)),
        (Value::Object(fields), [key, rest @ ..]) => {
            if let Some(inner) = fields.get_mut(&**key) {
                visit(inner, rest, changed);
            }
        }
        // A whole object was named: every text in it.
        (Value::Object(fields), []) => {
            fields.values_mut().for_each(|inner| visit(inner, path, changed));
        }
        // A text without an element is harmless, whatever else it says.
        (Value::String(text), []) if text.contains('<') => {
            let is_readable = text.bytes().filter(|byte| *byte == b'<').count() <= MAX_TAGS;
            let harmless =
                if is_readable { HARMLESS.clean(text).to_string() } else { ammonia::clean_text(text) };
            *changed |= harmless != *text;
            *text = harmless;
        }
        _ => {}
    }
}

/// Keys of a value and of all in it.
fn count(value: &Value) -> usize {
    match value {
        Value::Object(fields) => fields.len() + fields.values().map(count).sum::<usize>(),
        Value::Array(items) => items.iter().map(count).sum(),
        _ => 0,
    }
}
