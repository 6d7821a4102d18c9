//! What a document says at a place, with everything it refers to in its stead: to be said again elsewhere.

use super::{Place, dereferenced};
use crate::diag::Diagnostics;
use crate::manifest::Manifest;
use crate::manifest::node::Value as Written;
use serde_json::{Map, Value};

/// How deep references are followed; a schema that contains itself ends there, as one that takes anything.
const DEPTH: usize = 24;

/// The value as JSON without references.
pub(super) fn inlined(manifest: &Manifest, place: Place<'_>) -> Value {
    value(manifest, place, DEPTH)
}

fn value(manifest: &Manifest, place: Place<'_>, depth: usize) -> Value {
    let Some(depth) = depth.checked_sub(1) else { return Value::Object(Map::new()) };
    // Its faults were told when the operation was checked.
    let Some(found) = dereferenced(manifest, place, &mut Diagnostics::new()) else {
        return Value::Object(Map::new());
    };
    match &found.node.value {
        Written::Map(_) => {
            found.entries().map(|(key, at)| (key.to_owned(), value(manifest, at, depth))).collect()
        }
        Written::Seq(_) => found.items().map(|at| value(manifest, at, depth)).collect(),
        _ => found.node.to_json(),
    }
}
