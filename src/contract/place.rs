//! Places in a document, and what references lead to.

use serde_json::Value;

/// A place in a document.
#[derive(Debug, Clone)]
pub(super) struct Place<'d> {
    pub(super) value: &'d Value,
    /// JSON Pointer (RFC 6901).
    pub(super) at: String,
}

impl<'d> Place<'d> {
    /// The value under a key, if it is there.
    pub(super) fn get(&self, key: &str) -> Option<Self> {
        let value = self.value.get(key)?;
        Some(Place { value, at: format!("{}/{}", self.at, escaped(key)) })
    }

    /// The items of a list.
    pub(super) fn items(&self) -> Vec<Self> {
        let items = self.value.as_array().map(Vec::as_slice).unwrap_or_default();
        items.iter().enumerate().map(|(at, value)| Place { value, at: format!("{}/{at}", self.at) }).collect()
    }

    /// The entries of a mapping.
    pub(super) fn entries(&self) -> Vec<(&'d str, Self)> {
        let entries = self.value.as_object().into_iter().flatten();
        let entries = entries
            .map(|(key, value)| (key.as_str(), Place { value, at: format!("{}/{}", self.at, escaped(key)) }));
        entries.collect()
    }

    /// What `$ref`s lead to from here.
    pub(super) fn followed(self, document: &'d Value) -> Option<Self> {
        let mut place = self;
        for _ in 0..16 {
            match place.value["$ref"].as_str() {
                None => return Some(place),
                Some(reference) => place = find(document, reference)?,
            }
        }
        None
    }
}

/// What a reference inside a document names.
pub(super) fn find<'d>(document: &'d Value, reference: &str) -> Option<Place<'d>> {
    let pointer = reference.strip_prefix('#')?;
    let at = percent_encoding::percent_decode_str(pointer).decode_utf8().ok()?.into_owned();
    Some(Place { value: document.pointer(&at)?, at })
}

/// A key as it stands in a JSON Pointer.
pub(super) fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}
