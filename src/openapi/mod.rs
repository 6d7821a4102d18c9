//! What API descriptions say: operations of OpenAPI documents and JSON Schemas, found, checked and compiled at load.
//!
//! A reference is `file#/json/pointer`. [`find`] follows one that stands in the manifest, `follow` a `$ref` inside a
//! document; both report what leads nowhere, at its place, with what may be meant. [`Operation`] is what a route's
//! `docs.openapi` names, [`Bundle::of_channel`] is what its `docs.asyncapi` names, [`Schema`] compiles a JSON Schema with everything it refers to. Documents are OpenAPI 3.1 (3.2
//! reads the same here) and JSON Schema 2020-12; they were read with the manifest, and nothing is ever fetched.

mod bundle;
mod channel;
mod describe;
mod events;
mod faults;
mod names;
mod operation;
mod published;
mod schema;
mod upgrade;
mod values;
mod yaml;

pub use bundle::{Bundle, Bundled};
pub use channel::is_json as is_json_message;
pub use describe::{Alternative, Described, On, OperationDoc, example_of};
pub use events::{EVENT, EVENT_STREAM, EventKind, alternatives, variants};
pub use names::PathNames;
pub use operation::{Answered, Broken, Operation, Parameter, Source};
pub use published::{Published, Rendering};
pub use schema::Schema;
pub use upgrade::upgraded;
pub use yaml::yaml;

use crate::diag::{Code, Diagnostic, Diagnostics, Span, did_you_mean};
use crate::manifest::documents::{Document, Found, beside, is_remote, parts};
use crate::manifest::node::Value;
use crate::manifest::{Manifest, Node, Spanned};
use percent_encoding::percent_decode_str;
use std::path::Path;

/// `$ref`s that may lead to one another, where an object is meant and not a schema.
const MAX_HOPS: usize = 16;

/// A value in a document.
#[derive(Debug, Clone, Copy)]
pub struct Place<'m> {
    /// The document.
    pub document: &'m Document,
    /// The value.
    pub node: &'m Node,
}

impl<'m> Place<'m> {
    /// Another value of the same document.
    fn at(self, node: &'m Node) -> Self {
        Place { node, ..self }
    }

    /// The value under a key.
    fn get(self, key: &str) -> Option<Self> {
        self.node.get(key).map(|node| self.at(node))
    }

    /// The entries of a mapping; none of anything else.
    fn entries(self) -> impl Iterator<Item = (&'m str, Self)> {
        let entries = match &self.node.value {
            Value::Map(entries) => entries.as_slice(),
            _ => &[],
        };
        entries.iter().map(move |(key, node)| (key.text.as_str(), self.at(node)))
    }

    /// The items of a list; none of anything else.
    fn items(self) -> impl Iterator<Item = Self> {
        let items = match &self.node.value {
            Value::Seq(items) => items.as_slice(),
            _ => &[],
        };
        items.iter().map(move |node| self.at(node))
    }
}

/// What a reference in the manifest names; a fault if that is nothing.
pub fn find<'m>(
    manifest: &'m Manifest,
    reference: &Spanned<String>,
    out: &mut Diagnostics,
) -> Option<Place<'m>> {
    let (file, pointer) = parts(&reference.value);
    if file.is_empty() {
        out.push(
            Diagnostic::error(Code::BAD_REFERENCE, reference.span, "this reference names no file")
                .help("write `file.yaml#/json/pointer`; the file is relative to the one this stands in"),
        );
        return None;
    }
    let document =
        document(manifest, manifest.folder(reference.span), &reference.value, reference.span, out)?;
    resolve(document, pointer, reference.span, out)
}

/// What a `$ref` inside a document names; a fault if that is nothing.
fn follow<'m>(
    manifest: &'m Manifest,
    from: &'m Document,
    reference: &str,
    span: Span,
    out: &mut Diagnostics,
) -> Option<Place<'m>> {
    let (file, pointer) = parts(reference);
    let folder = from.path.parent().unwrap_or(Path::new(""));
    let document = if file.is_empty() { from } else { document(manifest, folder, reference, span, out)? };
    resolve(document, pointer, span, out)
}

/// The value itself, or what its `$ref` leads to.
fn dereferenced<'m>(manifest: &'m Manifest, place: Place<'m>, out: &mut Diagnostics) -> Option<Place<'m>> {
    let mut place = place;
    for _ in 0..MAX_HOPS {
        let Some(reference) = place.node.get("$ref") else { return Some(place) };
        let Some(text) = reference.as_str() else { return Some(place) };
        place = follow(manifest, place.document, text, reference.span, out)?;
    }
    let message = "these references lead to one another";
    out.push(Diagnostic::error(Code::CYCLE, place.node.span, message).help("name the object itself"));
    None
}

fn document<'m>(
    manifest: &'m Manifest,
    folder: &Path,
    reference: &str,
    span: Span,
    out: &mut Diagnostics,
) -> Option<&'m Document> {
    if is_remote(reference) {
        out.push(
            Diagnostic::error(Code::BAD_REFERENCE, span, "nothing is fetched from the network")
                .help("keep a copy of the document beside the manifest, and name that file"),
        );
        return None;
    }
    let (file, _) = parts(reference);
    let path = beside(folder, file);
    let why = match manifest.documents.get(&path) {
        Some(Found::Document(document)) => return Some(document),
        // Its faults were told at their places.
        Some(Found::Malformed) => return None,
        Some(Found::Unreadable(why)) => why.as_str(),
        None => "it was not read with the manifest",
    };
    out.push(
        Diagnostic::error(Code::UNREADABLE, span, format!("cannot read {}: {why}", path.display()))
            .help("the path is relative to the file it stands in"),
    );
    None
}

/// The value that a JSON Pointer (RFC 6901), in its form for URI fragments, names.
fn resolve<'m>(
    document: &'m Document,
    pointer: &str,
    span: Span,
    out: &mut Diagnostics,
) -> Option<Place<'m>> {
    let mut node = &document.root;
    let pointer = percent_decode_str(pointer).decode_utf8_lossy();
    if !pointer.is_empty() && !pointer.starts_with('/') {
        out.push(
            Diagnostic::error(Code::BAD_REFERENCE, span, format!("`#{pointer}` is no JSON Pointer"))
                .help("names (`$anchor`) are not followed: write `#/` and the keys on the way"),
        );
        return None;
    }
    for token in pointer.split('/').skip(1) {
        let key = token.replace("~1", "/").replace("~0", "~");
        let next = match &node.value {
            Value::Seq(items) => key.parse::<usize>().ok().and_then(|index| items.get(index)),
            _ => node.get(&key),
        };
        let Some(next) = next else {
            let known: Vec<String> = match &node.value {
                Value::Map(entries) => entries.iter().map(|(key, _)| escaped(&key.text)).collect(),
                _ => Vec::new(),
            };
            let message = format!("`#{pointer}` is not in {}: there is no `{token}`", document.name);
            out.push(
                Diagnostic::error(Code::BAD_REFERENCE, span, message)
                    .maybe_help(did_you_mean(token, known.iter().map(String::as_str))),
            );
            return None;
        };
        node = next;
    }
    Some(Place { document, node })
}

/// A key as it stands in a JSON Pointer.
fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// A word as part of a name: `algo` becomes `Algo`; what names cannot hold is left out.
pub fn capital(word: &str) -> String {
    let parts = word.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty());
    parts.map(|part| format!("{}{}", part[..1].to_ascii_uppercase(), &part[1..])).collect()
}
