//! The JSON Schema of manifests: the typed sections, and the stages' bodies put into their places.

use crate::manifest::model::{Document, STAGE_SCHEMA, WITH_SCHEMA};
use crate::stages::{Body, STAGES, StageKind};
use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

/// The schema, as `openapi/manifest.schema.json` holds it.
pub fn manifest_schema() -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let bodies: Vec<(&StageKind, Schema)> =
        STAGES.iter().map(|kind| (kind, kind.schema(&mut generator))).collect();
    let mut stage_choices = vec![json!({
        "type": "object",
        "description": "The stages of another chain.",
        "properties": { "chain": { "type": "string" } },
        "required": ["chain"],
        "additionalProperties": false,
    })];
    let bare: Vec<&str> =
        STAGES.iter().filter(|kind| !matches!(kind.body, Body::Bare(_))).map(|kind| kind.name).collect();
    stage_choices.insert(0, json!({ "enum": bare }));
    let mut with = Map::new();
    for (kind, body) in &bodies {
        let body = with_bare(kind.body, body);
        with.insert(kind.name.to_owned(), described(&body, kind.about));
        stage_choices.push(json!({
            "type": "object",
            "description": kind.about,
            "properties": { kind.name: body },
            "required": [kind.name],
            "additionalProperties": false,
        }));
    }
    let root = generator.root_schema_for::<Document>();
    let mut root: Value = root.into();
    root["title"] = json!("voicegate manifest");
    root["$id"] = json!("manifest.schema.json");
    let mut defs = definitions(&mut generator);
    defs.insert(
        STAGE_SCHEMA.to_owned(),
        json!({ "description": "One stage of a chain.", "oneOf": stage_choices }),
    );
    defs.insert(
        WITH_SCHEMA.to_owned(),
        json!({
            "description": "Changes to a chain, by stage.",
            "type": "object",
            "properties": with,
            "additionalProperties": false,
        }),
    );
    if let Some(known) = root["$defs"].as_object_mut() {
        for (name, schema) in defs {
            known.entry(name).or_insert(schema);
        }
        for (_, body) in &bodies {
            admit_condition(body, known);
        }
        let mut sorted: Vec<_> = std::mem::take(known).into_iter().collect();
        sorted.sort_by(|a, b| a.0.cmp(&b.0));
        known.extend(sorted);
    }
    admit_variables(&mut root);
    root
}

/// Any value that is no text may also be written as text with a variable in it: `"${LIMIT:-5}"`.
fn admit_variables(schema: &mut Value) {
    match schema {
        Value::Array(schemas) => schemas.iter_mut().for_each(admit_variables),
        Value::Object(schema) => {
            let kinds = match schema.get("type") {
                Some(Value::String(kind)) => vec![kind.clone()],
                Some(Value::Array(kinds)) => {
                    kinds.iter().filter_map(Value::as_str).map(str::to_owned).collect()
                }
                _ => Vec::new(),
            };
            let plain = kinds.iter().any(|kind| matches!(kind.as_str(), "integer" | "number" | "boolean"));
            if plain && !kinds.iter().any(|kind| kind == "string") {
                let kinds: Vec<_> = kinds.into_iter().chain(["string".to_owned()]).collect();
                schema.insert("type".to_owned(), json!(kinds));
                schema.insert("pattern".to_owned(), json!(r"\$\{"));
            }
            schema.values_mut().for_each(admit_variables);
        }
        _ => {}
    }
}

/// Every stage takes a condition beside its own keys.
fn admit_condition(body: &Schema, defs: &mut Map<String, Value>) {
    let reference = body.get("$ref").and_then(Value::as_str).unwrap_or_default();
    let Some(definition) = reference.strip_prefix("#/$defs/").and_then(|name| defs.get_mut(name)) else {
        return;
    };
    let about = "Condition (CEL over `route`, `request` and `claims`) for the stage to run; where it cannot be decided, \
                 the stage runs (default: always).";
    let when = json!({ "type": "string", "description": about });
    let Some(definition) = definition.as_object_mut() else { return };
    let keys = definition.entry("properties").or_insert_with(|| json!({}));
    keys["when"] = when;
}

fn definitions(generator: &mut SchemaGenerator) -> Map<String, Value> {
    generator.definitions().clone()
}

/// A body's schema with what may stand for it.
fn with_bare(form: Body, body: &Schema) -> Value {
    let body: Value = body.clone().into();
    match form {
        Body::Optional => json!({ "anyOf": [body, { "type": "null" }] }),
        Body::Bare(key) => json!({ "anyOf": [body, bare_form(key)] }),
        Body::OptionalBare(key) => json!({ "anyOf": [body, bare_form(key), { "type": "null" }] }),
    }
}

fn bare_form(key: &str) -> Value {
    json_schema!({ "type": ["string", "number", "array"], "description": format!("Stands for `{key}`.") })
        .into()
}

fn described(schema: &Value, about: &str) -> Value {
    let mut schema = schema.clone();
    schema["description"] = json!(about);
    schema
}
