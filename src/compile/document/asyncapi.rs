//! What is said over WebSockets: an AsyncAPI 3.0 document of every route that opens one.

use super::components::Components;
use super::operation;
use crate::check::Checked;
use crate::check::pattern::Segment;
use http::Method;
use serde_json::{Map, Value, json};
use std::collections::HashSet;

/// The document.
pub fn asyncapi(checked: &Checked) -> Value {
    let mut channels = Map::new();
    let mut operations = Map::new();
    let mut ids = HashSet::new();
    for route in checked.routes() {
        if !route.ending.is_socket() || route.docs.hidden {
            continue;
        }
        let id = super::unique(operation::id(checked, route, &Method::GET), &mut ids);
        // The handshake says who may connect, and within which limits.
        let handshake =
            operation::describe(route, &Method::GET, &route.info.params, &mut Components::default());
        let mut channel = json!({
            "address": route.pattern.braced(),
            "title": handshake["summary"],
            "description": handshake["description"],
            "messages": {
                "fromCaller": message("What the caller says", &handshake),
                "toCaller": message("What the caller hears", &handshake),
            },
            "tags": [{ "name": super::tag(route) }],
            "bindings": { "ws": { "method": "GET", "bindingVersion": "0.1.0" } },
        });
        for key in ["x-websocket", "x-permission", "x-roles", "x-rate-limit"] {
            if let Some(value) = handshake.get(key) {
                channel[key] = value.clone();
            }
        }
        if let Some(map) = channel.as_object_mut() {
            map.retain(|_, value| !value.is_null());
        }
        let named = |segment: &Segment| matches!(segment, Segment::Param(_) | Segment::Rest(_));
        if route.pattern.segments.iter().any(named) {
            let names = route.info.params.iter();
            channel["parameters"] = names.map(|name| (name.clone(), json!({}))).collect::<Map<_, _>>().into();
        }
        let reference = |message: &str| json!([{ "$ref": format!("#/channels/{id}/messages/{message}") }]);
        let channel_ref = json!({ "$ref": format!("#/channels/{id}") });
        // As the document's application, the gateway receives what callers say.
        operations.insert(
            format!("{id}_hear"),
            json!({ "action": "receive", "channel": channel_ref, "messages": reference("fromCaller") }),
        );
        operations.insert(
            format!("{id}_say"),
            json!({ "action": "send", "channel": channel_ref, "messages": reference("toCaller") }),
        );
        channels.insert(id, channel);
    }
    let head = super::head(checked, None);
    let mut document = Map::new();
    document.insert("asyncapi".to_owned(), "3.0.0".into());
    document.insert("info".to_owned(), head["info"].clone());
    document.insert("defaultContentType".to_owned(), "application/json".into());
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
    document.insert("servers".to_owned(), Value::Object(servers.collect()));
    document.insert("channels".to_owned(), channels.into());
    document.insert("operations".to_owned(), operations.into());
    document.into()
}

/// A message of one way; its payload is the service's business.
fn message(title: &str, handshake: &Value) -> Value {
    json!({
        "title": title,
        "contentType": "application/json",
        "description": match handshake["x-websocket"]["bridge"].as_bool() {
            Some(true) => "A text message: each is one request, each event of the answer one message.",
            _ => "Text or binary; the gateway passes messages as they are.",
        },
        "payload": {},
    })
}
