//! Documents that a manifest refers to: OpenAPI and AsyncAPI descriptions and JSON Schemas, in YAML or JSON.
//!
//! They are read with the manifest, so that its hash covers them and a reload notices when one changes; nothing is
//! ever fetched. What refers to one is written `file#/json/pointer`, relative to the file it stands in; inside a
//! document `$ref` does the same. Which documents those are is found by key, since stage bodies are decoded later:
//! `docs.openapi` and `docs.asyncapi` of a route, and `validate` or `validate.schema` of a stage. Whether a reference
//! leads anywhere is the business of the checks ([`crate::openapi`]).

use super::Spanned;
use super::load::Manifest;
use super::model::{ChainRef, StageUse};
use super::node::{Node, Value};
use percent_encoding::percent_decode_str;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Documents by their path.
#[derive(Debug, Clone, Default)]
pub struct Documents(BTreeMap<PathBuf, Found>);

/// What reading a document brought.
#[derive(Debug, Clone)]
pub enum Found {
    /// It.
    Document(Arc<Document>),
    /// It is no YAML; its faults were told.
    Malformed,
    /// It could not be read, and why.
    Unreadable(String),
}

/// A file of YAML or JSON.
#[derive(Debug)]
pub struct Document {
    /// Its path.
    pub path: PathBuf,
    /// The path as people name it.
    pub name: String,
    /// What it says.
    pub root: Node,
}

impl Documents {
    /// The document of a path that [`beside`] gave, if something refers to it.
    pub fn get(&self, path: &Path) -> Option<&Found> {
        self.0.get(path)
    }

    pub(super) fn has(&self, path: &Path) -> bool {
        self.0.contains_key(path)
    }

    pub(super) fn add(&mut self, path: PathBuf, found: Found) {
        self.0.insert(path, found);
    }
}

/// The parts of a reference: the file's name (empty for the same file) and the JSON Pointer behind the `#`.
pub fn parts(reference: &str) -> (&str, &str) {
    reference.split_once('#').unwrap_or((reference, ""))
}

/// Whether a reference names something on the network.
pub fn is_remote(reference: &str) -> bool {
    let (file, _) = parts(reference);
    file.starts_with("//") || file.split_once(':').is_some_and(|(scheme, _)| scheme.len() > 1)
}

/// The path of a file that is named beside another's folder, without `.` and `..` where they can be folded.
pub fn beside(folder: &Path, file: &str) -> PathBuf {
    let file = percent_decode_str(file).decode_utf8_lossy();
    let mut path = PathBuf::new();
    for part in folder.join(file.as_ref()).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if matches!(path.components().next_back(), Some(Component::Normal(_))) => {
                path.pop();
            }
            part => path.push(part),
        }
    }
    path
}

/// Paths of the documents that a manifest itself names.
pub(super) fn named(manifest: &Manifest) -> Vec<PathBuf> {
    let mut stages: Vec<&StageUse> = Vec::new();
    let mut references: Vec<&Spanned<String>> = Vec::new();
    for (_, chain) in &manifest.chains.0 {
        stages.extend(chain.0.iter().map(|stage| &stage.value));
    }
    for version in &manifest.versions {
        stages.extend(listed(&version.chain));
    }
    for route in manifest.versions.iter().flat_map(|version| &version.routes.0).chain(&manifest.routes) {
        stages.extend(listed(&route.chain));
        stages.extend(&route.with.0);
        let docs = route.docs.iter();
        references.extend(docs.flat_map(|docs| docs.openapi.iter().chain(&docs.asyncapi)));
    }
    let named = stages.into_iter().filter(|stage| stage.name.text == "validate");
    let bodies = named.filter_map(|stage| match &stage.body.value {
        Value::Str(_) => Some(&stage.body),
        _ => stage.body.get("schema"),
    });
    let in_stages = bodies.filter_map(|node| Some((node.span, node.as_str()?)));
    let in_routes = references.into_iter().map(|reference| (reference.span, reference.value.as_str()));
    in_stages
        .chain(in_routes)
        .filter(|(_, reference)| !is_remote(reference) && !parts(reference).0.is_empty())
        .map(|(span, reference)| beside(manifest.folder(span), parts(reference).0))
        .collect()
}

/// The stages that a chain lists on the spot.
fn listed(chain: &Option<ChainRef>) -> Vec<&StageUse> {
    match chain {
        Some(ChainRef::Inline(_, stages)) => stages.0.iter().map(|stage| &stage.value).collect(),
        _ => Vec::new(),
    }
}

/// Paths of the documents that a document refers to.
pub(super) fn referred(from: &Document) -> Vec<PathBuf> {
    let folder = from.path.parent().unwrap_or(Path::new(""));
    let mut found = Vec::new();
    references(&from.root, &mut |reference| {
        let (file, _) = parts(reference);
        if !file.is_empty() && !is_remote(reference) {
            found.push(beside(folder, file));
        }
    });
    found
}

fn references(node: &Node, visit: &mut dyn FnMut(&str)) {
    match &node.value {
        Value::Map(entries) => {
            for (key, value) in entries {
                match value.as_str() {
                    Some(reference) if key.text == "$ref" => visit(reference),
                    _ => references(value, visit),
                }
            }
        }
        Value::Seq(items) => items.iter().for_each(|item| references(item, visit)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_folded_as_written() {
        let at = |folder: &str, file: &str| beside(Path::new(folder), file).display().to_string();
        assert_eq!(at(".", "openapi/a.yaml"), "openapi/a.yaml");
        assert_eq!(at("openapi/upstreams", "../common.yaml"), "openapi/common.yaml");
        assert_eq!(at("", "../a.yaml"), "../a.yaml");
        assert_eq!(at("/etc/gate", "./x%20y.json"), "/etc/gate/x y.json");
    }

    #[test]
    fn the_network_is_told_from_files() {
        assert!(is_remote("https://example.com/a.yaml#/A") && is_remote("//example.com/a"));
        assert!(!is_remote("a.yaml#/x:y") && !is_remote("#/A") && !is_remote("C:/a.yaml"));
    }
}
