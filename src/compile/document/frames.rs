//! What goes over a route's WebSocket, message by message: by the upstream's own description, or, where a bridge stands
//! before an event stream, by what is known of that stream.

use super::components::Components;
use super::operation::take;
use crate::check::routes::{CheckedRoute, Ending};
use crate::handlers;
use crate::openapi::{EVENT_STREAM, OperationDoc, alternatives, is_json_message};
use http::Method;
use serde_json::{Value, json};

/// The messages of a socket; each as [`Bundle::of_channel`](crate::openapi::Bundle::of_channel) has them, its schemas
/// under their names.
pub(super) struct Frames {
    /// What callers send.
    pub(super) send: Vec<Value>,
    /// What callers hear.
    pub(super) receive: Vec<Value>,
}

impl Frames {
    /// Those of a route; none where nobody has said what they are.
    pub(super) fn of(route: &CheckedRoute, components: &mut Components) -> Option<Frames> {
        if let Some(channel) = &route.docs.channel {
            let mut said = components.adopt(channel);
            let mut list = |key: &str| match said[key].take() {
                Value::Array(messages) => messages,
                _ => Vec::new(),
            };
            return Some(Frames { send: list("send"), receive: list("receive") });
        }
        bridged(route, components)
    }

    /// As `x-websocket` of the handshake has them: a schema each way.
    pub(super) fn schema(messages: &[Value]) -> Value {
        let mut schemas: Vec<Value> = messages.iter().map(schema).collect();
        match schemas.len() {
            1 => schemas.remove(0),
            _ => json!({ "oneOf": schemas }),
        }
    }
}

/// What a message is, where its media type cannot be said beside it.
fn schema(message: &Value) -> Value {
    let kind = message["contentType"].as_str().unwrap_or_default();
    match is_json_message(kind) || kind.starts_with("text/") {
        true => message["payload"].clone(),
        false => json!({ "contentMediaType": kind }),
    }
}

/// What a bridge passes: bodies of requests one way, the data of events the other.
fn bridged(route: &CheckedRoute, components: &mut Components) -> Option<Frames> {
    let mut doc = OperationDoc::new(route.info.clone(), Method::POST);
    let inner = match &route.ending {
        Ending::Native(native) => {
            native.bridge()?;
            take(&mut doc, &handlers::described().operations[native.operation.name]);
            None
        }
        Ending::Target(target) => Some(target.bridged()?),
    };
    if let Some(bundle) = &route.docs.bundle {
        let imported = components.adopt(bundle);
        take(&mut doc, &imported);
        doc.described = true;
    }
    if let Some(inner) = inner {
        inner.document(&mut doc);
    }
    std::mem::take(&mut doc.schemas).into_iter().for_each(|(name, schema)| components.schema(name, schema));
    let said = doc.finish().operation;
    let request = said["requestBody"]["content"]["application/json"].get("schema");
    let send = request.map(|schema| message("request", "A request, as its body would be", schema.clone()));
    let answers = said["responses"].as_object().into_iter().flatten();
    let stream = answers.filter_map(|(_, answer)| answer["content"][EVENT_STREAM].get("schema")).next();
    let find = |reference: &str| components.find(reference);
    let mut receive: Vec<Value> = Vec::new();
    for (at, kind) in stream.map(|schema| alternatives(schema, &find)).unwrap_or_default().iter().enumerate()
    {
        let meant = kind.schema["$ref"].as_str().and_then(find).unwrap_or(&kind.schema);
        let name = meant["properties"]["type"]["const"].as_str();
        let name = name.or(kind.events.first().map(String::as_str).filter(|name| *name != "message"));
        let mut name = name.map_or_else(|| "event".to_owned(), str::to_owned);
        if receive.iter().any(|known| known["key"] == name.as_str()) {
            name = format!("{name}{}", at + 1);
        }
        let about = meant["description"].as_str().unwrap_or("The data of an event");
        receive.push(message(&name, about, kind.schema.clone()));
    }
    let refused = json!({ "$ref": "#/components/schemas/Problem" });
    receive.push(message("problem", "A request is refused, as the body of the answer would say it", refused));
    Some(Frames { send: send.into_iter().collect(), receive })
}

fn message(name: &str, about: &str, payload: Value) -> Value {
    json!({
        "key": name,
        "name": name,
        "summary": about,
        "contentType": "application/json",
        "payload": payload,
    })
}
