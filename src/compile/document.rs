//! The OpenAPI document of what is routed: every route with what its target, its chain and the manifest say of it.

use crate::check::Checked;
use crate::check::pattern::Segment;
use crate::check::routes::{CheckedRoute, Ending};
use crate::handlers::described;
use crate::openapi::{Described, Documents, OperationDoc, upgraded};
use http::Method;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Methods of an operation that answers any.
const ANY: [Method; 5] = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

/// The document of everything, and one of each version. `native` is what the native operations say of themselves.
pub(super) fn documents(checked: &Checked, native: &Value) -> Documents {
    let mut versions: Vec<&str> = Vec::new();
    for name in checked.routes().iter().filter_map(|route| route.info.version.as_deref()) {
        if !versions.contains(&name) {
            versions.push(name);
        }
    }
    let mut documents = Documents::default();
    documents.add("all", &document(checked, native, None, &versions));
    for version in &versions {
        documents.add(version, &document(checked, native, Some(version), &versions));
    }
    documents
}

/// The document of a sound manifest: of everything (`all`) or of one version. None if there is no such version.
pub fn api(checked: &Checked, name: &str) -> Option<Value> {
    let version = Some(name).filter(|name| *name != "all");
    let mut versions: Vec<&str> = Vec::new();
    for known in checked.routes().iter().filter_map(|route| route.info.version.as_deref()) {
        if !versions.contains(&known) {
            versions.push(known);
        }
    }
    let known = version.is_none_or(|version| versions.contains(&version));
    known.then(|| document(checked, &modern(described()), version, &versions))
}

fn document(checked: &Checked, native: &Value, version: Option<&str>, versions: &[&str]) -> Value {
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    let mut schemes = Map::new();
    let mut ids = BTreeSet::new();
    let mut tags: Vec<&str> = Vec::new();
    let wanted = |route: &CheckedRoute| version.is_none() || route.info.version.as_deref() == version;
    // Another host's routes would stand at the same paths.
    for route in checked.routes().iter().filter(|route| wanted(route) && route.host.is_none()) {
        let tag = route.info.version.as_deref().unwrap_or("gateway");
        if !tags.contains(&tag) {
            tags.push(tag);
        }
        let item = paths.entry(path(route)).or_default();
        for method in methods(route) {
            let key = method.as_str().to_ascii_lowercase();
            if item.contains_key(&key) {
                // Predicates tell them apart, which OpenAPI has no words for.
                continue;
            }
            let Described { operation, schemes: named } = operation(route, &method, native);
            schemes.extend(named.into_iter().map(|(name, scheme)| (name.to_owned(), scheme)));
            let mut said = Map::from_iter([
                ("operationId".to_owned(), Value::from(unique(&mut ids, id(route, &method)))),
                ("tags".to_owned(), json!([tag])),
            ]);
            if let Value::Object(operation) = operation {
                said.extend(operation);
            }
            item.insert(key, said.into());
        }
    }
    let paths = json!(paths);
    let schemas = schemas(&paths, native);
    let title = if checked.title().is_empty() { "API" } else { checked.title() };
    let mut info = json!({ "title": title, "version": checked.api_version() });
    if let Some(text) = checked.description() {
        info["description"] = text.into();
    }
    json!({
        "openapi": "3.1.0",
        "info": info,
        "servers": [{ "url": "/" }],
        "tags": tags.iter().map(|tag| json!({ "name": tag })).collect::<Vec<_>>(),
        "paths": paths,
        "components": { "schemas": schemas, "securitySchemes": schemes },
        "x-versions": versions,
    })
}

/// Where a route stands, with its parameters as OpenAPI writes them.
fn path(route: &CheckedRoute) -> String {
    let segments = route.pattern.segments.iter().map(|segment| match segment {
        Segment::Static(text) => format!("/{text}"),
        Segment::Param(name) | Segment::Rest(name) => format!("/{{{name}}}"),
    });
    let path: String = segments.collect();
    if path.is_empty() { "/".to_owned() } else { path }
}

fn methods(route: &CheckedRoute) -> Vec<Method> {
    match route.info.method.parse() {
        Ok(method) if route.info.method != "ANY" => vec![method],
        // A gRPC call is a POST.
        _ if matches!(&route.ending, Ending::Target(target) if target.passes_calls()) => vec![Method::POST],
        _ => ANY.to_vec(),
    }
}

/// A name that stays the same while the route does: of the operation, or of its path.
fn id(route: &CheckedRoute, method: &Method) -> String {
    let version = route.info.version.as_deref().unwrap_or_default();
    let own = match &route.ending {
        Ending::Native(native) => native.operation.name.to_owned(),
        Ending::Target(_) => {
            let words = route.pattern.segments.iter().map(|segment| match segment {
                Segment::Static(text) => text.as_str(),
                Segment::Param(name) | Segment::Rest(name) => name,
            });
            let words: Vec<&str> = words.collect();
            // What the version's prefix says is said by its name.
            let prefix = words.iter().position(|word| *word == version).map_or(0, |at| at + 1);
            format!("{} {}", method.as_str().to_ascii_lowercase(), words[prefix..].join(" "))
        }
    };
    let text = format!("{version} {own}");
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("_")
}

fn unique(ids: &mut BTreeSet<String>, id: String) -> String {
    let mut next = id.clone();
    let mut count = 1;
    while !ids.insert(next.clone()) {
        count += 1;
        next = format!("{id}_{count}");
    }
    next
}

fn operation(route: &CheckedRoute, method: &Method, native: &Value) -> Described {
    let mut doc = OperationDoc::new(route.info.clone(), method.clone());
    doc.websocket = route.ending.is_socket();
    for name in &route.info.params {
        doc.parameter(
            json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }),
        );
    }
    if let Some(Segment::Rest(name)) = route.pattern.segments.last() {
        // It holds slashes, which OpenAPI has no words for.
        doc.extension("x-rest-parameter", name.as_str().into());
    }
    if let Ending::Native(ending) = &route.ending {
        doc.handler = Some(ending.operation.name);
        doc.summary(ending.operation.summary);
        doc.extension("x-handler", ending.operation.name.into());
        if let Some(said) = said_of_itself(native, ending.operation.name) {
            copy(&mut doc, said);
        }
    }
    if let Some(described) = &route.described {
        copy(&mut doc, &described.said);
    }
    if let Some(summary) = &route.summary {
        doc.summary(summary);
    }
    if doc.websocket {
        doc.answers_mut().clear();
        doc.answers("101", json!({ "description": "The connection is a WebSocket from now on." }));
    } else if doc.answers_mut().is_empty() {
        let content = match route.streams() {
            true => json!({ "text/event-stream": { "schema": { "type": "string" } } }),
            false => json!({ "*/*": {} }),
        };
        doc.answers("200", json!({ "description": "The answer.", "content": content }));
    }
    let headers = route.deprecation.iter().flat_map(|headers| headers.iter());
    for (name, value) in headers {
        doc.deprecated();
        if name == "sunset" {
            doc.extension("x-sunset", value.to_str().unwrap_or_default().into());
        }
    }
    for stage in route.links.iter().filter_map(|link| link.stage.as_ref()) {
        stage.document(&mut doc);
    }
    doc.finish()
}

/// What a native operation says, in the words of 3.1.
fn said_of_itself<'a>(native: &'a Value, name: &str) -> Option<&'a Value> {
    let items = native["paths"].as_object()?.values();
    items.filter_map(Value::as_object).flat_map(Map::values).find(|said| said["operationId"] == name)
}

/// Takes over what an operation object says; its path parameters are the route's own already, unless described.
fn copy(doc: &mut OperationDoc, said: &Value) {
    if let Some(text) = said["summary"].as_str() {
        doc.summary(text);
    }
    if let Some(text) = said["description"].as_str() {
        doc.note(text);
    }
    for parameter in said["parameters"].as_array().into_iter().flatten() {
        let ours = parameter["in"] == "path";
        let named = doc.route.params.iter().any(|name| parameter["name"] == name.as_str());
        if !ours || named {
            doc.parameter(parameter.clone());
        }
    }
    if !said["requestBody"].is_null() {
        doc.body(said["requestBody"].clone());
    }
    for (status, answer) in said["responses"].as_object().into_iter().flatten() {
        doc.answers(status, answer.clone());
    }
    doc.described = true;
}

/// What the native operations say of themselves, in the words of 3.1.
pub(super) fn modern(native: &Value) -> Value {
    upgraded(native.clone())
}

/// The native schemas that are referred to, with those they refer to, and what a problem is.
fn schemas(paths: &Value, native: &Value) -> Map<String, Value> {
    const MARK: &str = "#/components/schemas/";
    let mut all = Map::from_iter([("Problem".to_owned(), problem())]);
    let mut left = vec![paths.clone()];
    while let Some(value) = left.pop() {
        match value {
            Value::Object(map) => {
                if let Some(name) =
                    map.get("$ref").and_then(Value::as_str).and_then(|text| text.strip_prefix(MARK))
                    && !all.contains_key(name)
                {
                    let schema = native["components"]["schemas"][name].clone();
                    all.insert(name.to_owned(), schema.clone());
                    left.push(schema);
                }
                left.extend(map.into_iter().map(|(_, value)| value));
            }
            Value::Array(items) => left.extend(items),
            _ => {}
        }
    }
    all
}

/// An error in the common form (RFC 9457, and the seed's `error` and `code`).
fn problem() -> Value {
    json!({
        "type": "object",
        "required": ["error", "code", "request_id", "status", "type", "title"],
        "properties": {
            "error": { "type": "string", "description": "What went wrong, for people." },
            "code": { "type": "string", "description": "What went wrong, for programs: stable." },
            "request_id": { "type": "string" },
            "status": { "type": "integer" },
            "type": { "type": "string", "format": "uri-reference", "description": "Where the code is described." },
            "title": { "type": "string" },
            "detail": { "type": "string" },
            "retry_after": { "type": "integer", "description": "Seconds until it is worth trying again." },
            "errors": { "type": "array", "items": {
                "type": "object",
                "required": ["pointer", "code", "detail"],
                "properties": {
                    "pointer": { "type": "string" },
                    "parameter": { "type": "string" },
                    "code": { "type": "string" },
                    "detail": { "type": "string" },
                },
            } },
        },
    })
}
