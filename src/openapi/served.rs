//! Documents of this API as they are served: by name, prepared when a manifest is compiled.

use super::yaml::yaml;
use bytes::Bytes;
use http::HeaderValue;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// The documents of one revision.
#[derive(Debug, Default)]
pub struct Documents(BTreeMap<String, Document>);

/// One document in one form.
#[derive(Debug, Clone)]
pub struct Document {
    /// Its text.
    pub body: Bytes,
    /// Its media type.
    pub media_type: &'static str,
    /// A strong `ETag` of the text.
    pub etag: HeaderValue,
}

impl Documents {
    /// Adds a document as `NAME.json` and `NAME.yaml`.
    pub fn add(&mut self, name: &str, document: &Value) {
        let forms = [
            ("json", "application/json", document.to_string()),
            ("yaml", "application/yaml", yaml(document)),
        ];
        for (ending, media_type, text) in forms {
            let hash: String =
                Sha256::digest(&text).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
            let etag = HeaderValue::try_from(format!("\"{hash}\""))
                .expect("hex digits in quotes are a header value");
            self.0.insert(format!("{name}.{ending}"), Document { body: text.into(), media_type, etag });
        }
    }

    /// The document of a name such as `v01.json`.
    pub fn get(&self, name: &str) -> Option<&Document> {
        self.0.get(name)
    }
}
