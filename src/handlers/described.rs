//! What poem-openapi knows of native operations, in the words of OpenAPI 3.1.

use super::{Groups, chat, narrowed};
use crate::conversations::ChatEvent;
use crate::error::Kind;
use crate::openapi::{upgraded, variants};
use poem_openapi::OpenApi as _;
use poem_openapi::registry::Registry;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// Everything that is known.
pub struct Described {
    /// Operation objects by name; without operation ids, with answers of success only.
    pub operations: BTreeMap<&'static str, Value>,
    /// Schemas that they refer to, as `#/components/schemas/NAME`.
    pub schemas: BTreeMap<String, Value>,
}

/// Every native operation.
pub fn described() -> &'static Described {
    static ALL: OnceLock<Described> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut registry = Registry::new();
        Groups::register(&mut registry);
        let json = |value: Result<Value, serde_json::Error>| upgraded(value.unwrap_or_default());
        let mut operations = BTreeMap::new();
        for operation in Groups::meta().into_iter().flat_map(|group| group.paths).flat_map(|p| p.operations) {
            let Some(name) = operation.operation_id else { continue };
            let mut said = match json(serde_json::to_value(&operation)) {
                Value::Object(said) => said,
                _ => Map::new(),
            };
            said.remove("operationId");
            said.insert("responses".to_owned(), responses(&operation.responses.responses, &json));
            if let Some(content) = said.get_mut("requestBody").and_then(|body| body.get_mut("content")) {
                essences(content);
            }
            if let Some(Value::Array(parameters)) = said.get_mut("parameters") {
                parameters.iter_mut().for_each(plain);
                parameters.iter_mut().for_each(narrowed::parameter);
            }
            operations.insert(name, Value::Object(said));
        }
        let schemas = registry.schemas.iter();
        let schemas =
            schemas.map(|(name, schema)| (name.clone(), optional(json(serde_json::to_value(schema)))));
        let events = variants::<ChatEvent>(chat::EVENTS, "type");
        Described { operations, schemas: schemas.chain(events).collect() }
    })
}

/// Answers by status; two of one status (JSON and YAML) become one.
fn responses(
    all: &[poem_openapi::registry::MetaResponse],
    json: &impl Fn(Result<Value, serde_json::Error>) -> Value,
) -> Value {
    let mut merged = Map::new();
    for response in all {
        let status = response.status.map_or_else(|| "default".to_owned(), |status| status.to_string());
        let mut said = json(serde_json::to_value(response));
        if let Some(Value::Object(headers)) = said.get_mut("headers") {
            let named = std::mem::take(headers).into_iter();
            headers.extend(named.map(|(name, mut header)| {
                plain(&mut header);
                (spelled(&name), header)
            }));
        }
        if let Some(content) = said.get_mut("content") {
            essences(content);
        }
        match merged.get_mut(&status) {
            None => {
                merged.insert(status, said);
            }
            Some(known) => {
                if let (Value::Object(known), Value::Object(new)) =
                    (&mut known["content"], said["content"].take())
                {
                    known.extend(new);
                }
            }
        }
    }
    merged.into()
}

/// A field that need not be there may be null too, and is so in answers: poem-openapi does not say that.
fn optional(mut schema: Value) -> Value {
    let required: Vec<String> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect();
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        for (_, property) in properties.iter_mut().filter(|(name, _)| !required.contains(name)) {
            if property.get("$ref").is_some() {
                *property = json!({ "anyOf": [property.take(), { "type": "null" }] });
            } else if let Some(kind @ Value::String(_)) = property.get_mut("type") {
                *kind = json!([kind.take(), "null"]);
            }
        }
    }
    schema
}

/// Media types without `charset`: JSON has none (RFC 8259, section 11). What is ready made in bytes is an object in JSON
/// and in YAML, whatever poem-openapi calls it.
fn essences(content: &mut Value) {
    if let Value::Object(content) = content {
        let kinds = std::mem::take(content).into_iter();
        content.extend(kinds.map(|(kind, mut media)| {
            let kind = kind.split(';').next().unwrap_or(&kind).trim().to_owned();
            if ["application/json", "application/yaml"].contains(&kind.as_str())
                && media["schema"]["format"] == "binary"
            {
                media["schema"] = json!({ "type": "object" });
            }
            (kind, media)
        }));
    }
}

/// A header's name as people write it; poem-openapi shouts.
fn spelled(name: &str) -> String {
    let words = name.split('-').map(|word| match word {
        "ETAG" => "ETag".to_owned(),
        "ID" => "ID".to_owned(),
        word => {
            let mut letters = word.chars();
            let first: String = letters.next().into_iter().collect();
            first + &letters.as_str().to_ascii_lowercase()
        }
    });
    words.collect::<Vec<_>>().join("-")
}

/// Without flags that say what is so anyway.
fn plain(object: &mut Value) {
    if let Value::Object(map) = object {
        map.retain(|key, value| match key.as_str() {
            "deprecated" => *value == json!(true),
            "explode" => false,
            _ => true,
        });
    }
}

/// What an operation refuses with beside what its chain does: its rules are in [`crate::accounts`] and
/// [`crate::conversations`], whose errors are named here once. The tests hold the shipped ones against what happens.
pub fn refusals(name: &str) -> &'static [Kind] {
    use Kind::{
        AccountDisabled, AccountExists, AccountLocked, Forbidden, IdempotencyKeyReused, Invalid, LinkSpent,
        MailUnavailable, NotFound, NotRunning, Overloaded, RefreshRefused, StillRunning, StoreUnavailable,
        StreamGone, TurnCancelled, Unavailable, UnsupportedMediaType, UpstreamBadResponse, UpstreamReset,
        UpstreamSaturated, UpstreamTimeout, UpstreamUnreachable, WechatRefused, WechatUnreachable,
        WrongCredentials,
    };
    match name {
        "auth.register" => &[Invalid, UnsupportedMediaType, AccountExists, StoreUnavailable, Overloaded],
        "auth.login" => &[
            Invalid,
            UnsupportedMediaType,
            WrongCredentials,
            AccountDisabled,
            AccountLocked,
            StoreUnavailable,
            Overloaded,
        ],
        "auth.refresh" => &[Invalid, UnsupportedMediaType, RefreshRefused, AccountDisabled, StoreUnavailable],
        "auth.logout" => &[Invalid, UnsupportedMediaType, StoreUnavailable],
        "auth.me" => &[Forbidden, NotFound, StoreUnavailable],
        "auth.delete" => &[
            Invalid,
            UnsupportedMediaType,
            WrongCredentials,
            Forbidden,
            NotFound,
            AccountLocked,
            StoreUnavailable,
            Overloaded,
        ],
        "auth.password_change" => &[
            Invalid,
            UnsupportedMediaType,
            WrongCredentials,
            Forbidden,
            NotFound,
            AccountLocked,
            StoreUnavailable,
            Overloaded,
        ],
        "auth.password_forgot" => {
            &[Invalid, UnsupportedMediaType, StoreUnavailable, MailUnavailable, Overloaded]
        }
        "auth.password_reset" => &[Invalid, UnsupportedMediaType, LinkSpent, StoreUnavailable, Overloaded],
        "auth.ticket" => &[StoreUnavailable],
        "auth.wechat_login" => &[
            Invalid,
            UnsupportedMediaType,
            WechatRefused,
            AccountDisabled,
            Forbidden,
            WechatUnreachable,
            StoreUnavailable,
            Unavailable,
        ],
        "sessions.create" => {
            &[Invalid, UnsupportedMediaType, Forbidden, IdempotencyKeyReused, StillRunning, StoreUnavailable]
        }
        "sessions.list" => &[Invalid, Forbidden, StoreUnavailable],
        "sessions.get" | "sessions.delete" => &[Forbidden, NotFound, StoreUnavailable],
        "sessions.update" => &[Invalid, UnsupportedMediaType, Forbidden, NotFound, StoreUnavailable],
        "sessions.messages" => &[Invalid, Forbidden, NotFound, StoreUnavailable],
        "sessions.export" => &[Forbidden, NotFound, StoreUnavailable],
        "chat.stream" => &[
            Invalid,
            UnsupportedMediaType,
            Forbidden,
            NotFound,
            StillRunning,
            TurnCancelled,
            StreamGone,
            IdempotencyKeyReused,
            UpstreamUnreachable,
            UpstreamReset,
            UpstreamBadResponse,
            UpstreamSaturated,
            StoreUnavailable,
            UpstreamTimeout,
        ],
        "chat.cancel" => &[Invalid, UnsupportedMediaType, Forbidden, NotFound, NotRunning, StoreUnavailable],
        "gateway.openapi" => &[Invalid, NotFound],
        _ => &[],
    }
}
