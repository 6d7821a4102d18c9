//! The API's own description: OpenAPI 3.1 of every routed operation, made from the checked manifest and from nothing else.
//!
//! Each operation is the sum of what those say who do it: the native operation (poem-openapi), the upstream's imported
//! fragment or the gRPC method, then the target, then every stage of its chain. Paths, parameters' names and servers are
//! the manifest's; where the upstreams are is said nowhere. The command line makes the same documents offline.
//!
//! What OpenAPI has no word for: `ANY` is described once for each common method that no other route takes; gRPC routes
//! that are passed through are no HTTP operations and stand under `x-grpc`; WebSockets are a GET with 101, and what is said
//! over them is in the [`asyncapi`] document; routes that differ by `match:` or `host:` only are `x-variants` of the
//! first.

pub mod asyncapi;
mod components;
mod frames;
mod newer;
mod operation;
mod sharing;

pub use newer::newer;

use crate::check::Checked;
use crate::check::pattern::MethodSet;
use crate::check::routes::{CheckedRoute, Ending};
use crate::handlers;
use crate::openapi::{Published, Rendering, yaml};
use components::Components;
use http::Method;
use serde_json::{Map, Value, json};
use std::collections::{HashMap, HashSet};

/// Methods that an `ANY` route is described for.
const COMMON: [Method; 5] = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

/// Tag of routes outside any version.
const OUTSIDE: &str = "gateway";

/// Every document of a manifest, rendered.
pub fn publish(checked: &Checked) -> Published {
    let mut published = Published::default();
    let mut add = |name: &str, newer, document: &Value| {
        published.add(format!("{name}.json"), newer, Rendering::new(document.to_string()));
        published.add(format!("{name}.yaml"), newer, Rendering::new(yaml(document)));
    };
    let versions = checked.about().versions.iter().map(|version| Some(version.name.as_str()));
    for version in std::iter::once(None).chain(versions) {
        let document = openapi(checked, version);
        let name = version.unwrap_or("all");
        add(name, true, &newer(&document));
        add(name, false, &document);
    }
    add("asyncapi", false, &asyncapi::asyncapi(checked));
    published
}

/// Whether a manifest serves its description.
pub fn is_served(checked: &Checked) -> bool {
    checked.routes().iter().any(|route| match &route.ending {
        Ending::Native(native) => ["gateway.openapi", "gateway.docs"].contains(&native.operation.name),
        Ending::Target(_) => false,
    })
}

/// The OpenAPI 3.1 document: of one version, or of everything.
pub fn openapi(checked: &Checked, version: Option<&str>) -> Value {
    let mut components = Components::default();
    let mut ids = HashSet::new();
    // By shape: two templates that differ in names only are one path (OpenAPI 3.1, section 4.8.8).
    let mut shapes: HashMap<String, usize> = HashMap::new();
    let mut paths: Vec<(String, Vec<String>, Map<String, Value>)> = Vec::new();
    let mut calls = Vec::new();
    let taken: HashSet<(String, &str)> =
        checked.routes().iter().map(|route| (route.pattern.shape(), route.method.as_str())).collect();
    // Ids do not depend on which document they stand in.
    for route in checked.routes() {
        if route.docs.hidden {
            continue;
        }
        let wanted = version.is_none() || route.info.version.as_deref() == version;
        if passes_calls(route) {
            if wanted {
                calls.push(json!({ "route": route.label(), "tags": [tag(route)] }));
            }
            continue;
        }
        let methods: Vec<Method> = match &route.method {
            MethodSet::One(method) => vec![method.clone()],
            MethodSet::Any => {
                let shape = route.pattern.shape();
                let free = |method: &&Method| !taken.contains(&(shape.clone(), method.as_str()));
                COMMON.iter().filter(free).cloned().collect()
            }
        };
        for method in methods {
            let id = unique(operation::id(checked, route, &method), &mut ids);
            if !wanted {
                continue;
            }
            let shape = route.pattern.shape();
            let at = *shapes.entry(shape).or_insert_with(|| {
                paths.push((route.pattern.braced(), route.info.params.clone(), Map::new()));
                paths.len() - 1
            });
            let (_, names, operations) = &mut paths[at];
            let key = method.as_str().to_ascii_lowercase();
            if let Some(first) = operations.get_mut(&key) {
                variant(first, route, &id);
                continue;
            }
            let mut operation = Map::new();
            operation.insert("tags".to_owned(), tags(route));
            operation.insert("operationId".to_owned(), id.into());
            let described = operation::describe(route, &method, names, &mut components);
            if let Value::Object(described) = described {
                operation.extend(described);
            }
            operations.insert(key, operation.into());
        }
    }
    let mut paths: Map<String, Value> = paths
        .into_iter()
        .filter(|(_, _, operations)| !operations.is_empty())
        .map(|(path, _, operations)| (path, operations.into()))
        .collect();
    let mut document = head(checked, version);
    document.insert("tags".to_owned(), all_tags(checked, &paths));
    let shared = sharing::share(&mut paths);
    let paths = Value::Object(paths);
    let components = components.finish(&paths, shared, &handlers::schemas(&checked.auth().password));
    document.insert("paths".to_owned(), paths);
    document.insert("components".to_owned(), components);
    if !calls.is_empty() {
        document.insert("x-grpc".to_owned(), calls.into());
    }
    document.into()
}

/// Everything above the paths.
fn head(checked: &Checked, version: Option<&str>) -> Map<String, Value> {
    let about = checked.about();
    let title = match checked.title() {
        "" => "API",
        title => title,
    };
    let api_version = match checked.api_version() {
        "" => "0",
        version => version,
    };
    let mut info = json!({
        "title": match version {
            Some(version) => format!("{title}, {version}"),
            None => title.to_owned(),
        },
        "version": api_version,
    });
    if let Some(description) = &about.description {
        info["description"] = description.as_str().into();
    }
    let mut document = Map::new();
    document.insert("openapi".to_owned(), "3.1.0".into());
    document.insert("info".to_owned(), info);
    let servers = about.servers.iter().map(|(url, description)| match description {
        Some(description) => json!({ "url": url, "description": description }),
        None => json!({ "url": url }),
    });
    let servers: Vec<Value> = servers.collect();
    if !servers.is_empty() {
        document.insert("servers".to_owned(), servers.into());
    }
    let versions: Vec<&str> = about.versions.iter().map(|version| version.name.as_str()).collect();
    document.insert("x-versions".to_owned(), versions.into());
    document
}

/// Tags of the operations, with what is known of versions.
fn all_tags(checked: &Checked, paths: &Map<String, Value>) -> Value {
    let mut names: Vec<&str> = Vec::new();
    let operations = paths.values().filter_map(Value::as_object).flat_map(|item| item.values());
    for name in operations.filter_map(|operation| operation["tags"].as_array()).flatten() {
        let name = name.as_str().unwrap_or_default();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let known = |name: &str| checked.about().versions.iter().find(|version| version.name == name).cloned();
    let tags = names.into_iter().map(|name| match known(name) {
        Some(version) => {
            let mut text = format!("Version {name}, under `{}`.", version.prefix);
            if let Some(since) = &version.deprecated {
                text.push_str(&format!(" Deprecated since {since}"));
                version.sunset.iter().for_each(|day| text.push_str(&format!(", gone on {day}")));
                version.successor.iter().for_each(|next| text.push_str(&format!("; use {next}")));
                text.push('.');
            }
            json!({ "name": name, "description": text })
        }
        None if name == OUTSIDE => json!({ "name": name, "description": "Outside any version." }),
        None => json!({ "name": name }),
    });
    tags.collect()
}

fn tag(route: &CheckedRoute) -> &str {
    route.info.version.as_deref().unwrap_or(OUTSIDE)
}

fn tags(route: &CheckedRoute) -> Value {
    std::iter::once(tag(route)).chain(route.docs.tags.iter().map(String::as_str)).collect()
}

/// Whether gRPC passes through it.
fn passes_calls(route: &CheckedRoute) -> bool {
    matches!(&route.ending, Ending::Target(target) if target.passes_calls())
}

/// Notes that another route answers the same method and path under conditions of its own.
fn variant(first: &mut Value, route: &CheckedRoute, id: &str) {
    let mut said = json!({ "operationId": id, "route": route.key() });
    if let Some(summary) = &route.docs.summary {
        said["summary"] = summary.as_str().into();
    }
    match first.get_mut("x-variants") {
        Some(Value::Array(all)) => all.push(said),
        _ => first["x-variants"] = json!([said]),
    }
}

/// An id that nothing else has.
fn unique(wanted: String, ids: &mut HashSet<String>) -> String {
    let mut id = wanted.clone();
    let mut number = 2;
    while !ids.insert(id.clone()) {
        id = format!("{wanted}_{number}");
        number += 1;
    }
    id
}
