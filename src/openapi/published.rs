//! Documents as they are served: rendered and hashed once a revision.

use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// A document in one of its forms.
#[derive(Debug, Clone)]
pub struct Rendering {
    /// The text.
    pub body: Bytes,
    /// Its `ETag` (RFC 9110, section 8.8.3).
    pub etag: String,
}

impl Rendering {
    /// Of a text.
    pub fn new(text: String) -> Self {
        let hash = Sha256::digest(text.as_bytes());
        let etag = hash.iter().take(12).fold(String::from("\""), |mut etag, byte| {
            use std::fmt::Write as _;
            let _ = write!(etag, "{byte:02x}");
            etag
        });
        Rendering { body: text.into(), etag: etag + "\"" }
    }
}

/// Every document of a revision.
#[derive(Debug, Default)]
pub struct Published {
    all: BTreeMap<(String, bool), Rendering>,
}

impl Published {
    /// Adds one, by the name it is served as (`all.json`), and whether it is in OpenAPI 3.2.
    pub fn add(&mut self, name: impl Into<String>, newer: bool, rendering: Rendering) {
        self.all.insert((name.into(), newer), rendering);
    }

    /// The one of a name, in OpenAPI 3.2 where that is asked for and there is a difference.
    pub fn get(&self, name: &str, newer: bool) -> Option<&Rendering> {
        let key = |newer| (name.to_owned(), newer);
        self.all.get(&key(newer)).or_else(|| self.all.get(&key(false)))
    }

    /// Names that are served, without the newer forms.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.all.keys().filter(|(_, newer)| !newer).map(|(name, _)| name.as_str())
    }
}
