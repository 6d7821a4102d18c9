//! The same document in OpenAPI 3.2, which can say what the items of a stream are (`itemSchema`).

use serde_json::{Value, json};

/// A document of 3.1 as one of 3.2.
pub fn newer(document: &Value) -> Value {
    let mut document = document.clone();
    document["openapi"] = "3.2.0".into();
    streams(&mut document);
    document
}

fn streams(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                match key.as_str() {
                    "text/event-stream" => items(value),
                    _ => streams(value),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(streams),
        _ => {}
    }
}

/// Each event, with its data as what `schema` said.
fn items(media: &mut Value) {
    let Some(data) = media.as_object_mut().and_then(|media| media.remove("schema")) else { return };
    media["itemSchema"] = json!({
        "type": "object",
        "properties": {
            "id": { "type": "string" },
            "event": { "type": "string" },
            "data": { "type": "string", "contentMediaType": "application/json", "contentSchema": data },
            "retry": { "type": "integer", "minimum": 0 },
        },
    });
}
