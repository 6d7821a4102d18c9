//! Schemas of OpenAPI 3.0 in the words of 3.1 (JSON Schema 2020-12): `nullable`, `example`, exclusive bounds.
//!
//! For what poem-openapi writes; a data value is never touched.

use serde_json::{Map, Value, json};

/// Keys whose values are data, whatever they look like.
const DATA: [&str; 5] = ["const", "enum", "default", "example", "examples"];
/// Keys whose values map names to schemas.
const NAMED: [&str; 3] = ["properties", "patternProperties", "$defs"];

/// A schema of 3.0 as one of 3.1.
pub fn upgraded(schema: Value) -> Value {
    match schema {
        Value::Object(map) => upgraded_map(map),
        Value::Array(items) => items.into_iter().map(upgraded).collect(),
        other => other,
    }
}

fn upgraded_map(map: Map<String, Value>) -> Value {
    let nullable = map.get("nullable") == Some(&Value::Bool(true));
    let mut new = Map::with_capacity(map.len());
    for (key, value) in map {
        match (key.as_str(), value) {
            ("nullable", _) => {}
            ("example", value) => {
                new.insert("examples".to_owned(), json!([value]));
            }
            ("exclusiveMinimum", Value::Bool(exclusive)) => bound(&mut new, "minimum", &key, exclusive),
            ("exclusiveMaximum", Value::Bool(exclusive)) => bound(&mut new, "maximum", &key, exclusive),
            ("minimum" | "maximum" | "multipleOf", Value::Number(number)) => {
                new.insert(key, whole(&number));
            }
            // `allOf: [{$ref}]` beside other keys is how 3.0 describes a reference.
            ("allOf", Value::Array(mut one)) if one.len() == 1 && one[0].get("$ref").is_some() => {
                new.insert("$ref".to_owned(), one[0]["$ref"].take());
            }
            (name, Value::Object(named)) if NAMED.contains(&name) => {
                let named = named.into_iter().map(|(name, schema)| (name, upgraded(schema)));
                new.insert(key.clone(), Value::Object(named.collect()));
            }
            (name, value) if DATA.contains(&name) => {
                new.insert(key, value);
            }
            (_, value) => {
                new.insert(key, upgraded(value));
            }
        }
    }
    if nullable {
        match new.get_mut("type") {
            Some(kind) => *kind = json!([kind.take(), "null"]),
            None => return json!({ "anyOf": [new, { "type": "null" }] }),
        }
    }
    Value::Object(new)
}

/// `exclusiveMinimum: true` beside `minimum`. poem-openapi writes the bound first.
fn bound(map: &mut Map<String, Value>, from: &str, to: &str, exclusive: bool) {
    if exclusive && let Some(value) = map.remove(from) {
        map.insert(to.to_owned(), value);
    }
}

/// `1` for `1.0`.
fn whole(number: &serde_json::Number) -> Value {
    match number.as_f64() {
        Some(float) if float.fract() == 0.0 && float.abs() < 1e15 => json!(float as i64),
        _ => number.clone().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_3_0_writes_is_said_in_3_1() {
        let old = json!({
            "type": "object",
            "properties": {
                "nullable": { "type": "string", "nullable": true },
                "count": { "type": "integer", "minimum": 1.0, "exclusiveMinimum": true, "example": 3 },
            },
        });
        let new = json!({
            "type": "object",
            "properties": {
                "nullable": { "type": ["string", "null"] },
                "count": { "type": "integer", "exclusiveMinimum": 1, "examples": [3] },
            },
        });
        assert_eq!(upgraded(old), new);
        assert_eq!(
            upgraded(json!({ "description": "d", "allOf": [{ "$ref": "#/x" }] })),
            json!({ "description": "d", "$ref": "#/x" })
        );
    }
}
