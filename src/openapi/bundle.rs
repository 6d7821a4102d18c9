//! One operation of an upstream's description as JSON that refers to nothing outside itself: what is imported into the
//! gateway's own document.
//!
//! Parameters, bodies, answers, headers and examples stand where they are referred to; schemas that are named stay apart,
//! and are referred to as `#/$defs/N`, N being their place in the bundle. What is the upstream's own business stays out:
//! its servers, its security, its operation id and tags. The parameters of its path are called what the route calls them.

use super::names::PathNames;
use super::schema::Gathered;
use super::{Place, find};
use crate::diag::{Diagnostics, Span};
use crate::manifest::documents::parts;
use crate::manifest::node::Value as Written;
use crate::manifest::{Manifest, Spanned};
use serde_json::{Map, Value};
use std::hash::{Hash, Hasher};

/// An operation with the schemas it refers to.
#[derive(Debug, Clone, PartialEq)]
pub struct Bundle {
    /// The operation object; or a channel, see [`Bundle::of_channel`].
    pub operation: Value,
    /// Schemas that it refers to as `#/$defs/N`; so do they.
    pub schemas: Vec<Bundled>,
}

/// A schema of a bundle.
#[derive(Debug, Clone, PartialEq)]
pub struct Bundled {
    /// Its name under `components/schemas`, if it stands there.
    pub name: String,
    /// The file it comes from, without its folder and extension.
    pub file: String,
    /// Where it stands: another bundle has the same schema from the same place.
    pub at: Span,
    /// The schema.
    pub value: Value,
}

/// Keys that are not taken over.
const LEFT: [&str; 6] = ["operationId", "tags", "security", "servers", "callbacks", "externalDocs"];

impl Bundle {
    /// The operation that `docs.openapi` names, which [`Operation::check`](super::Operation::check) found sound. The
    /// parameters of its path get the route's `names`.
    pub fn of(reference: &Spanned<String>, names: &PathNames, manifest: &Manifest) -> Option<Bundle> {
        // Its faults were told.
        let out = &mut Diagnostics::new();
        let (file, pointer) = parts(&reference.value);
        let (above, name) = pointer.rsplit_once('/')?;
        let item = Spanned { value: format!("{file}#{above}"), span: reference.span };
        let item = find(manifest, &item, out)?;
        let mut gathered = Gathered::new(manifest, out);
        let item = gathered.dereferenced(item)?;
        let Value::Object(mut operation) = object(&mut gathered, item.get(name)?) else { return None };
        operation.retain(|key, _| !LEFT.contains(&key.as_str()));
        // Links lead to operations as the upstream calls them.
        let answers = operation.get_mut("responses").and_then(Value::as_object_mut).into_iter();
        for answer in answers.flat_map(Map::values_mut).filter_map(Value::as_object_mut) {
            answer.shift_remove("links");
        }
        // Those of the path stand for every operation of it.
        if let Some(shared) = item.get("parameters").map(|shared| object(&mut gathered, shared))
            && let Value::Array(shared) = shared
        {
            let own = operation.entry("parameters").or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(own) = own {
                let new = |one: &Value| {
                    !own.iter().any(|known| known["name"] == one["name"] && known["in"] == one["in"])
                };
                let shared: Vec<Value> = shared.into_iter().filter(new).collect();
                own.extend(shared);
            }
        }
        let parameters = operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten();
        for parameter in parameters.filter(|parameter| parameter["in"] == "path") {
            let ours = parameter["name"].as_str().map(|name| names.ours(name).to_owned());
            ours.into_iter().for_each(|name| parameter["name"] = name.into());
        }
        let mut values = Vec::new();
        while let Some(place) = gathered.parts.get(values.len()).copied() {
            values.push(gathered.schema(place));
        }
        let schemas = gathered.parts.iter().zip(values);
        let schemas = schemas.map(|(place, value)| Bundled {
            name: name_of(*place).unwrap_or_default(),
            file: place.document.path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            at: place.node.span,
            value,
        });
        Some(Bundle { schemas: schemas.collect(), operation: operation.into() })
    }
}

impl Bundle {
    /// Feeds what it says to a hash.
    pub fn digest(&self, state: &mut impl Hasher) {
        self.operation.to_string().hash(state);
        for schema in &self.schemas {
            (&schema.file, &schema.name, schema.value.to_string()).hash(state);
        }
    }
}

/// Anything of an operation but a schema; its references are replaced by what they lead to.
fn object<'m>(gathered: &mut Gathered<'m, '_>, place: Place<'m>) -> Value {
    let Some(place) = gathered.dereferenced(place) else { return Value::Null };
    match &place.node.value {
        Written::Map(entries) => {
            let mut map = Map::with_capacity(entries.len());
            for (key, node) in entries {
                let inner = place.at(node);
                let value = match key.text.as_str() {
                    "schema" | "itemSchema" => gathered.schema(inner),
                    "example" | "default" | "value" => node.to_json(),
                    _ => object(gathered, inner),
                };
                map.insert(key.text.clone(), value);
            }
            Value::Object(map)
        }
        Written::Seq(items) => items.iter().map(|node| object(gathered, place.at(node))).collect(),
        _ => place.node.to_json(),
    }
}

/// The name of a schema that stands under `components/schemas` of its document.
pub(super) fn name_of(place: Place<'_>) -> Option<String> {
    let named = place.at(&place.document.root).get("components")?.get("schemas")?;
    named.entries().find(|(_, known)| std::ptr::eq(known.node, place.node)).map(|(name, _)| name.to_owned())
}
