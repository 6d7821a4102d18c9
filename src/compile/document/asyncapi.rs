//! What is said over WebSockets: an AsyncAPI 3.0 document of every route that opens one.
//!
//! The document's application is the gateway: it receives what callers send. Who may connect, how the caller says who it is
//! and within which limits, is the handshake's business, which the OpenAPI document describes; it is said here too.
//! Messages are those of `frames`; where nobody has said what they are, only that they pass.

use super::components::Components;
use super::frames::Frames;
use super::operation;
use crate::check::Checked;
use crate::check::pattern::Segment;
use crate::check::routes::CheckedRoute;
use http::Method;
use serde_json::{Map, Value, json};
use std::collections::HashSet;

/// What is said of a handshake and stands at its channel too.
const OF_HANDSHAKE: [&str; 5] = ["x-websocket", "x-permission", "x-roles", "x-rate-limit", "x-maintenance"];

/// The document.
pub fn asyncapi(checked: &Checked) -> Value {
    let mut channels = Map::new();
    let mut operations = Map::new();
    let mut components = Components::default();
    let mut ids = HashSet::new();
    for route in checked.routes() {
        if !route.ending.is_socket() || route.docs.hidden {
            continue;
        }
        let id = super::unique(operation::id(checked, route, &Method::GET), &mut ids);
        // The handshake says who may connect, and within which limits.
        let handshake = operation::describe(route, &Method::GET, &route.info.params, &mut components);
        let frames = Frames::of(route, &mut components).unwrap_or_else(|| Frames {
            send: vec![unknown("fromCaller", "What the caller says")],
            receive: vec![unknown("toCaller", "What the caller hears")],
        });
        let mut messages = Map::new();
        let sent: Vec<String> = frames.send.into_iter().map(|one| add(one, "sent", &mut messages)).collect();
        let heard: Vec<String> =
            frames.receive.into_iter().map(|one| add(one, "heard", &mut messages)).collect();
        let security = security(&handshake);
        // As the document's application, the gateway receives what callers say.
        for (suffix, action, keys) in [("hear", "receive", sent), ("say", "send", heard)] {
            if keys.is_empty() {
                continue;
            }
            let pointer = |key: &String| format!("#/channels/{id}/messages/{}", escaped(key));
            let messages: Vec<Value> = keys.iter().map(|key| json!({ "$ref": pointer(key) })).collect();
            let channel = json!({ "$ref": format!("#/channels/{id}") });
            let mut said = json!({ "action": action, "channel": channel, "messages": messages });
            if !security.is_empty() {
                said["security"] = security.clone().into();
            }
            operations.insert(format!("{id}_{suffix}"), said);
        }
        channels.insert(id, channel(route, &handshake, messages));
    }
    let head = super::head(checked, None);
    let mut document = Map::new();
    document.insert("asyncapi".to_owned(), "3.0.0".into());
    document.insert("info".to_owned(), head["info"].clone());
    document.insert("defaultContentType".to_owned(), "application/json".into());
    document.insert("servers".to_owned(), Value::Object(servers(checked)));
    let channels = Value::Object(channels);
    let components = components.of_channels(&channels);
    document.insert("channels".to_owned(), channels);
    document.insert("operations".to_owned(), operations.into());
    document.insert("components".to_owned(), components);
    document.into()
}

fn channel(route: &CheckedRoute, handshake: &Value, messages: Map<String, Value>) -> Value {
    let mut channel = json!({
        "address": route.pattern.braced(),
        "title": handshake["summary"],
        "description": handshake["description"],
        "messages": messages,
        "tags": [{ "name": super::tag(route) }],
        "bindings": { "ws": { "method": "GET", "bindingVersion": "0.1.0" } },
    });
    for key in OF_HANDSHAKE {
        if let Some(value) = handshake.get(key) {
            channel[key] = value.clone();
        }
    }
    // Its messages stand above.
    if let Some(socket) = channel.get_mut("x-websocket").and_then(Value::as_object_mut) {
        socket.shift_remove("send");
        socket.shift_remove("receive");
    }
    if let Some(map) = channel.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
    let named = |segment: &Segment| matches!(segment, Segment::Param(_) | Segment::Rest(_));
    if route.pattern.segments.iter().any(named) {
        let names = route.info.params.iter();
        channel["parameters"] = names.map(|name| (name.clone(), json!({}))).collect::<Map<_, _>>().into();
    }
    channel
}

/// Adds a message under its key; one that goes both ways stands once. The key it has.
fn add(mut message: Value, way: &str, messages: &mut Map<String, Value>) -> String {
    let mut key = match message.as_object_mut().and_then(|map| map.shift_remove("key")) {
        Some(Value::String(key)) => key,
        _ => way.to_owned(),
    };
    if messages.get(&key).is_some_and(|known| *known != message) {
        key = format!("{key}_{way}");
    }
    messages.insert(key.clone(), message);
    key
}

/// A message of one way that nobody describes.
fn unknown(key: &str, title: &str) -> Value {
    json!({
        "key": key,
        "title": title,
        "description": "Text or binary; the gateway passes messages as they are.",
    })
}

/// Ways of saying who is calling, of which one is enough; none where it need not be said.
fn security(handshake: &Value) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    for way in handshake["security"].as_array().into_iter().flatten() {
        let names = way.as_object().into_iter().flat_map(Map::keys);
        for name in names {
            let reference = json!({ "$ref": format!("#/components/securitySchemes/{name}") });
            if !all.contains(&reference) {
                all.push(reference);
            }
        }
    }
    all
}

fn servers(checked: &Checked) -> Map<String, Value> {
    let servers = checked.about().servers.iter().enumerate().filter_map(|(at, (url, description))| {
        let url = url::Url::parse(url).ok()?;
        let host = match (url.host_str()?, url.port()) {
            (host, Some(port)) => format!("{host}:{port}"),
            (host, None) => host.to_owned(),
        };
        let protocol = if url.scheme() == "https" { "wss" } else { "ws" };
        let mut server = json!({ "host": host, "protocol": protocol });
        if let Some(description) = description {
            server["description"] = description.as_str().into();
        }
        if url.path() != "/" {
            server["pathname"] = url.path().into();
        }
        Some((format!("server{}", at + 1), server))
    });
    servers.collect()
}

/// A key as it stands in a JSON Pointer (RFC 6901).
fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}
