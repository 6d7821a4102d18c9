//! What operations share: schemas under names that are unique and stay, the form of errors, ways of saying who is calling.

use super::sharing::Shared;
use crate::diag::Span;
use crate::error::Kind;
use crate::handlers;
use crate::openapi::{Bundle, capital};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};

/// Where schemas are referred to.
const SCHEMAS: &str = "#/components/schemas/";
/// What the gateway says in streams of others.
const NOTICE: &str = "StreamNotice";

/// Gathered while operations are described.
#[derive(Default)]
pub(super) struct Components {
    schemas: BTreeMap<String, Value>,
    /// Names of what was taken in, by the place that it comes from.
    names: HashMap<Span, String>,
    schemes: BTreeMap<String, Value>,
}

impl Components {
    /// Takes an upstream's operation in: its schemas get names of their own, which its references then say.
    pub(super) fn adopt(&mut self, bundle: &Bundle) -> Value {
        let mut names: Vec<String> = Vec::new();
        let mut new = Vec::new();
        for schema in &bundle.schemas {
            if let Some(known) = self.names.get(&schema.at) {
                names.push(known.clone());
                continue;
            }
            let name = match schema.name.as_str() {
                "" => "Schema".to_owned(),
                name => capital(name),
            };
            let name = self.free(&format!("{}{name}", capital(&schema.file)));
            self.names.insert(schema.at, name.clone());
            self.schemas.insert(name.clone(), Value::Null);
            new.push((schema, name.clone()));
            names.push(name);
        }
        for (schema, name) in new {
            self.schemas.insert(name, referring(&schema.value, &names));
        }
        referring(&bundle.operation, &names)
    }

    /// The name, or with the next number that is free. What the gateway itself describes keeps its names.
    fn free(&self, name: &str) -> String {
        let own = |name: &str| {
            name == "Problem" || name.starts_with(NOTICE) || handlers::described().schemas.contains_key(name)
        };
        let numbered = (2..).map(|number| format!("{name}{number}"));
        let mut names = std::iter::once(name.to_owned()).chain(numbered);
        names.find(|name| !own(name) && !self.schemas.contains_key(name)).unwrap_or_else(|| name.to_owned())
    }

    /// Takes a schema in.
    pub(super) fn schema(&mut self, name: String, schema: Value) {
        self.schemas.insert(name, schema);
    }

    /// Takes a security scheme in.
    pub(super) fn scheme(&mut self, name: String, scheme: Value) {
        self.schemes.insert(name, scheme);
    }

    /// What a reference to a schema leads to, native ones too.
    pub(super) fn find(&self, reference: &str) -> Option<&Value> {
        let name = reference.strip_prefix(SCHEMAS)?;
        self.schemas.get(name).or_else(|| handlers::described().schemas.get(name))
    }

    /// The components object of an AsyncAPI document: what its channels refer to, and all ways of saying who is calling.
    pub(super) fn of_channels(mut self, channels: &Value) -> Value {
        self.schemas.insert("Problem".to_owned(), problem());
        let mut schemas = BTreeMap::new();
        let mut wanted = Vec::new();
        references(channels, &mut wanted);
        while let Some(name) = wanted.pop() {
            if !schemas.contains_key(&name)
                && let Some(schema) = self.find(&format!("{SCHEMAS}{name}"))
            {
                references(schema, &mut wanted);
                schemas.insert(name, plain(schema));
            }
        }
        let mut components = Map::new();
        if !schemas.is_empty() {
            components.insert("schemas".to_owned(), schemas.into_iter().collect());
        }
        let schemes = self.schemes.into_iter().map(|(name, mut scheme)| {
            // OpenAPI's keys of HTTP requests have another name there.
            if scheme["type"] == "apiKey" {
                scheme["type"] = "httpApiKey".into();
            }
            (name, scheme)
        });
        let schemes: Map<String, Value> = schemes.collect();
        if !schemes.is_empty() {
            components.insert("securitySchemes".to_owned(), schemes.into());
        }
        components.into()
    }

    /// The components object, beside what the operations share: of `native` schemas, those that something refers to.
    pub(super) fn finish(mut self, paths: &Value, shared: Shared, native: &BTreeMap<String, Value>) -> Value {
        self.schemas.insert("Problem".to_owned(), problem());
        let mut wanted = Vec::new();
        references(paths, &mut wanted);
        shared.responses.values().for_each(|value| references(value, &mut wanted));
        self.schemas.values().for_each(|value| references(value, &mut wanted));
        while let Some(name) = wanted.pop() {
            if let Some(schema) = native.get(&name).filter(|_| !self.schemas.contains_key(&name)) {
                references(schema, &mut wanted);
                self.schemas.insert(name, schema.clone());
            }
        }
        let mut components = Map::new();
        components.insert("schemas".to_owned(), self.schemas.into_iter().collect());
        let mut responses = shared.responses;
        responses.insert("Unexpected".to_owned(), unexpected());
        components.insert("responses".to_owned(), responses.into());
        if !shared.headers.is_empty() {
            components.insert("headers".to_owned(), shared.headers.into());
        }
        if !self.schemes.is_empty() {
            components.insert("securitySchemes".to_owned(), self.schemes.into_iter().collect());
        }
        components.into()
    }
}

/// Names of the schemas that a value refers to.
fn references(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let own = map.get("$ref").and_then(Value::as_str).and_then(|text| text.strip_prefix(SCHEMAS));
            out.extend(own.map(str::to_owned));
            map.values().for_each(|value| references(value, out));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, out)),
        _ => {}
    }
}

/// A schema as AsyncAPI has it: its discriminator is a field's name, and the alternatives themselves say the rest.
fn plain(schema: &Value) -> Value {
    match schema {
        Value::Object(map) => {
            let entries = map.iter().map(|(key, value)| {
                let field = value.get("propertyName").filter(|_| key == "discriminator");
                (key.clone(), field.cloned().unwrap_or_else(|| plain(value)))
            });
            Value::Object(entries.collect())
        }
        Value::Array(items) => items.iter().map(plain).collect(),
        other => other.clone(),
    }
}

/// The value with `#/$defs/N` as the names of components.
fn referring(value: &Value, names: &[String]) -> Value {
    match value {
        Value::Object(map) => {
            let named = |value: &Value| {
                let number = value.as_str()?.strip_prefix("#/$defs/")?.parse::<usize>().ok()?;
                names.get(number).map(|name| Value::from(format!("{SCHEMAS}{name}")))
            };
            let entries = map.iter().map(|(key, value)| {
                let value = match (key.as_str(), value) {
                    ("$ref", value) => named(value).unwrap_or_else(|| value.clone()),
                    // A discriminator's.
                    ("mapping", Value::Object(all)) => {
                        let one = |value: &Value| named(value).unwrap_or_else(|| referring(value, names));
                        Value::Object(all.iter().map(|(key, value)| (key.clone(), one(value))).collect())
                    }
                    (_, value) => referring(value, names),
                };
                (key.clone(), value)
            });
            Value::Object(entries.collect())
        }
        Value::Array(items) => items.iter().map(|item| referring(item, names)).collect(),
        other => other.clone(),
    }
}

/// The form of every error that the gateway itself makes (RFC 9457).
fn problem() -> Value {
    json!({
        "type": "object",
        "description": "An error of the gateway's own (RFC 9457).",
        "required": ["error", "code", "request_id", "status", "type", "title"],
        "properties": {
            "error": { "type": "string", "description": "The text for people, by `Accept-Language` in English or Chinese." },
            "code": { "type": "string", "description": "What happened; stable." },
            "request_id": { "type": "string", "description": "Names the request in logs; also in `X-Request-ID`." },
            "status": { "type": "integer", "description": "The HTTP status.", "minimum": 400, "maximum": 599 },
            "type": { "type": "string", "description": "A URI for the code." },
            "title": { "type": "string", "description": "The same as `error`." },
            "detail": { "type": "string", "description": "What is particular to this case." },
            "retry_after": { "type": "integer", "description": "Seconds until it is worth trying again; also in `Retry-After`." },
            "errors": {
                "type": "array",
                "description": "What is wrong with single fields or parameters.",
                "items": {
                    "type": "object",
                    "required": ["pointer", "code", "detail"],
                    "properties": {
                        "parameter": { "type": "string", "description": "The parameter, such as `query.limit`; the body if none." },
                        "pointer": { "type": "string", "description": "Where it stands (JSON Pointer); empty for the whole." },
                        "code": { "type": "string", "description": "The broken rule; stable." },
                        "detail": { "type": "string", "description": "The rule for people." },
                    },
                },
            },
        },
    })
}

/// What any request may meet at the door.
fn unexpected() -> Value {
    let kinds = [
        Kind::InvalidFraming,
        Kind::InvalidTarget,
        Kind::InvalidHost,
        Kind::RequestTimeout,
        Kind::UriTooLong,
        Kind::HeadersTooLarge,
        Kind::Internal,
        Kind::Overloaded,
        Kind::Maintenance,
        Kind::ShuttingDown,
    ];
    let codes: Vec<String> =
        kinds.iter().map(|kind| format!("{} `{}`", kind.status().as_u16(), kind.code())).collect();
    json!({
        "description": format!("What any request may meet before it reaches its route: {}.", codes.join(", ")),
        "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
    })
}
