//! The same document in OpenAPI 3.2, which can say what the items of a stream are (`itemSchema`).

use crate::openapi::{EVENT_STREAM, EventKind, alternatives};
use serde_json::{Map, Value, json};

/// The event without a name.
const UNNAMED: &str = "message";

/// A document of 3.1 as one of 3.2.
pub fn newer(document: &Value) -> Value {
    let mut newer = document.clone();
    newer["openapi"] = "3.2.0".into();
    streams(&mut newer, document);
    newer
}

fn streams(value: &mut Value, document: &Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                match key.as_str() {
                    EVENT_STREAM => items(value, document),
                    _ => streams(value, document),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| streams(value, document)),
        _ => {}
    }
}

/// Each event, with its data as what `schema` said: one alternative for each name.
fn items(media: &mut Value, document: &Value) {
    let Some(data) = media.as_object_mut().and_then(|media| media.shift_remove("schema")) else { return };
    let find = |reference: &str| document.pointer(reference.strip_prefix('#')?);
    let kinds = alternatives(&data, &find);
    let mut names: Vec<&str> = Vec::new();
    for name in kinds.iter().flat_map(|kind| &kind.events) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let mut items: Vec<Value> = names
        .iter()
        .map(|name| {
            let bearing = kinds.iter().filter(|kind| kind.events.iter().any(|event| event == name));
            item(Some(name), &names, bearing)
        })
        .collect();
    let mut others = kinds.iter().filter(|kind| kind.events.is_empty()).peekable();
    if others.peek().is_some() {
        items.push(item(None, &names, others));
    }
    media["itemSchema"] = match items.len() {
        1 => items.remove(0),
        _ => json!({ "oneOf": items }),
    };
}

/// An event of a name; without, of any but those of `names`.
fn item<'k>(name: Option<&str>, names: &[&str], kinds: impl Iterator<Item = &'k EventKind>) -> Value {
    let mut schemas: Vec<Value> = kinds.map(|kind| kind.schema.clone()).collect();
    let data = match schemas.len() {
        1 => schemas.remove(0),
        _ => json!({ "oneOf": schemas }),
    };
    let data = match data["type"] == "string" {
        // A text, not JSON.
        true => data,
        false => json!({ "type": "string", "contentMediaType": "application/json", "contentSchema": data }),
    };
    let mut properties = Map::new();
    let event = match name {
        Some(name) => json!({ "const": name }),
        None if names.is_empty() => json!({ "type": "string" }),
        None => json!({ "type": "string", "not": { "enum": names } }),
    };
    properties.insert("event".to_owned(), event);
    properties.insert("data".to_owned(), data);
    properties.insert("id".to_owned(), json!({ "type": "string" }));
    properties.insert("retry".to_owned(), json!({ "type": "integer", "minimum": 0 }));
    // What has no name has the usual one.
    let named = name.map_or(names.contains(&UNNAMED), |name| name != UNNAMED);
    let required = if named { json!(["event", "data"]) } else { json!(["data"]) };
    json!({ "type": "object", "required": required, "properties": properties })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item_schema(schema: Value) -> Value {
        let document = json!({
            "paths": { "/a": { "get": { "responses": { "200": { "content": { EVENT_STREAM: { "schema": schema } } } } } } },
            "components": { "schemas": {
                "A": { "type": "object" },
                "Any": { "oneOf": [{ "$ref": "#/components/schemas/A", "x-event": ["message", "a"] }, { "const": 1, "x-event": "a" }] },
            } },
        });
        newer(&document)["paths"]["/a"]["get"]["responses"]["200"]["content"][EVENT_STREAM]["itemSchema"]
            .clone()
    }

    #[test]
    fn data_without_a_word_on_events_is_that_of_all() {
        let item = item_schema(json!({ "type": "object" }));
        assert_eq!(item["required"], json!(["data"]));
        assert_eq!(item["properties"]["event"], json!({ "type": "string" }));
        assert_eq!(item["properties"]["data"]["contentSchema"], json!({ "type": "object" }));
    }

    #[test]
    fn there_is_one_alternative_for_each_name_and_one_for_the_rest() {
        let item = item_schema(json!({ "anyOf": [{ "$ref": "#/components/schemas/Any" }, {}] }));
        let items = item["oneOf"].as_array().unwrap();
        let data = |at: usize| &items[at]["properties"]["data"]["contentSchema"];
        assert_eq!(items.len(), 3);
        assert_eq!(
            (&items[0]["properties"]["event"], data(0)),
            (&json!({ "const": "message" }), &json!({ "$ref": "#/components/schemas/A" }))
        );
        assert_eq!(items[0]["required"], json!(["data"]));
        assert_eq!(items[1]["required"], json!(["event", "data"]));
        assert_eq!(data(1)["oneOf"].as_array().unwrap().len(), 2);
        assert_eq!(items[2]["properties"]["event"]["not"]["enum"], json!(["message", "a"]));
        assert_eq!(items[2]["required"], json!(["event", "data"]));
    }
}
