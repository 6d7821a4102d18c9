//! Messages as JSON Schemas (proto3 JSON mapping): what callers may send, and what they get.
//!
//! A message becomes a component of its full name. What is read takes more than what is written: null for any field, and
//! numbers as texts; so what callers send has components of its own, whose names end in `.Input`. What the proto's comments
//! say is their description.

use super::comments;
use super::json::Style;
use prost_reflect::{Cardinality, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// How messages are written, and where they are gathered.
pub struct Schemas<'a> {
    /// How they are written.
    pub style: &'a Style,
    /// Whether callers send them.
    pub input: bool,
    /// By component name.
    pub out: &'a mut BTreeMap<String, Value>,
}

impl Schemas<'_> {
    /// A reference to a message's schema.
    pub fn message(&mut self, message: &MessageDescriptor) -> Value {
        if let Some(known) = well_known(message.full_name()) {
            return known;
        }
        let suffix = if self.input { ".Input" } else { "" };
        let name = format!("{}{suffix}", message.full_name());
        if !self.out.contains_key(&name) {
            // There already where it refers to itself.
            self.out.insert(name.clone(), Value::Null);
            let mut properties = Map::new();
            let mut always: Vec<Value> = Vec::new();
            for field in message.fields() {
                let key = if self.style.proto_names { field.name() } else { field.json_name() };
                let mut schema = self.field(&field);
                if let Some(comment) = comments::on(&field.parent_file(), field.path()) {
                    schema["description"] = comment.into();
                }
                properties.insert(key.to_owned(), schema);
                if self.style.defaults && !field.supports_presence() {
                    always.push(key.into());
                }
            }
            let mut schema = json!({ "type": "object" });
            if let Some(comment) = comments::on(&message.parent_file(), message.path()) {
                schema["description"] = comment.into();
            }
            if !self.input && !always.is_empty() {
                schema["required"] = always.into();
            }
            schema["properties"] = properties.into();
            if self.input {
                schema["additionalProperties"] = false.into();
            }
            self.out.insert(name.clone(), schema);
        }
        json!({ "$ref": format!("#/components/schemas/{name}") })
    }

    /// The schema of a field's value.
    pub fn field(&mut self, field: &FieldDescriptor) -> Value {
        let schema = if field.is_map() {
            let Kind::Message(entry) = field.kind() else { return json!({}) };
            let value = entry.map_entry_value_field();
            json!({ "type": "object", "additionalProperties": self.kind(&value) })
        } else if field.cardinality() == Cardinality::Repeated {
            json!({ "type": "array", "items": self.kind(field) })
        } else {
            self.kind(field)
        };
        if self.input { json!({ "anyOf": [schema, { "type": "null" }] }) } else { schema }
    }

    fn kind(&mut self, field: &FieldDescriptor) -> Value {
        match field.kind() {
            Kind::Message(message) => self.message(&message),
            Kind::Enum(kind) if self.input => {
                let names: Vec<String> = kind.values().map(|value| value.name().to_owned()).collect();
                json!({ "anyOf": [{ "type": "string", "enum": names }, { "type": "integer" }] })
            }
            Kind::Enum(kind) => {
                let names: Vec<String> = kind.values().map(|value| value.name().to_owned()).collect();
                json!({ "type": "string", "enum": names })
            }
            Kind::Bool => json!({ "type": "boolean" }),
            Kind::String => json!({ "type": "string" }),
            Kind::Bytes => json!({ "type": "string", "contentEncoding": "base64" }),
            Kind::Double | Kind::Float if self.input => json!({ "type": ["number", "string"] }),
            Kind::Double | Kind::Float => json!({ "type": ["number", "string"] }),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 | Kind::Uint64 | Kind::Fixed64 if !self.input => {
                json!({ "type": "string", "pattern": "^-?[0-9]+$" })
            }
            kind => {
                let (least, most) = bounds(&kind);
                let number = json!({ "type": "integer", "minimum": least, "maximum": most });
                match self.input {
                    false => number,
                    true => json!({ "anyOf": [number, { "type": "string", "pattern": "^-?[0-9]+$" }] }),
                }
            }
        }
    }
}

fn bounds(kind: &Kind) -> (Value, Value) {
    match kind {
        Kind::Uint32 | Kind::Fixed32 => (0.into(), u32::MAX.into()),
        Kind::Uint64 | Kind::Fixed64 => (0.into(), u64::MAX.into()),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => (i64::MIN.into(), i64::MAX.into()),
        _ => (i32::MIN.into(), i32::MAX.into()),
    }
}

/// Messages whose JSON is of a form of its own.
fn well_known(name: &str) -> Option<Value> {
    Some(match name.strip_prefix("google.protobuf.")? {
        "Timestamp" => json!({ "type": "string", "format": "date-time" }),
        "Duration" => json!({ "type": "string", "pattern": "^-?[0-9]+(\\.[0-9]+)?s$" }),
        "FieldMask" => json!({ "type": "string" }),
        "Struct" => json!({ "type": "object" }),
        "ListValue" => json!({ "type": "array" }),
        "Value" | "Any" => json!({}),
        "Empty" => json!({ "type": "object" }),
        "StringValue" => json!({ "type": ["string", "null"] }),
        "BytesValue" => json!({ "type": ["string", "null"], "contentEncoding": "base64" }),
        "BoolValue" => json!({ "type": ["boolean", "null"] }),
        "DoubleValue" | "FloatValue" => json!({ "type": ["number", "string", "null"] }),
        "Int32Value" | "UInt32Value" | "Int64Value" | "UInt64Value" => {
            json!({ "type": ["integer", "string", "null"] })
        }
        _ => return None,
    })
}
