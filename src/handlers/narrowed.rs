//! What fields may be beyond their type, in the words of JSON Schema.
//!
//! poem-openapi checks the rules that it is told, but stops at the first and has its own words for it. So it is told none:
//! [`crate::accounts`] and [`crate::conversations`] check, and what they ask is described here. `scripts/schemathesis` holds
//! each rule against what happens, from both sides.
//!
//! Not said, since schemas have no words for it: titles are counted without the spaces around them and are one line, passwords
//! are at most 72 *bytes*, and a cursor is what some page gave.

use super::described::described;
use super::examples;
use crate::accounts::MAX_BYTES;
use crate::conversations::{author_word, status_word};
use crate::manifest::model::CharacterClass;
use crate::stores::{Author, MessageStatus};
use crate::tokens::policy::PasswordPolicy;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Fields that take a new password, by the manifest's rules.
const PASSWORDS: [(&str, &str); 3] = [
    ("RegisterRequest", "password"),
    ("PasswordChangeRequest", "new_password"),
    ("PasswordResetRequest", "password"),
];

/// Fields that hold a time.
const TIMES: [(&str, &str); 11] = [
    ("Me", "created_at"),
    ("Me", "last_login_at"),
    ("SessionInfo", "created_at"),
    ("SessionInfo", "updated_at"),
    ("MessageInfo", "created_at"),
    ("SessionExport", "exported_at"),
    ("ExportedUser", "created_at"),
    ("ExportedUser", "last_login_at"),
    ("ExportedSession", "created_at"),
    ("ExportedSession", "updated_at"),
    ("Health", "timestamp"),
];

/// Every schema of native operations, with the manifest's rules for passwords, and with examples.
pub fn schemas(passwords: &PasswordPolicy) -> BTreeMap<String, Value> {
    let mut schemas = described().schemas.clone();
    let mut narrow = |schema: &str, property: &str, rules: Value| {
        let known = schemas.get_mut(schema).and_then(|schema| schema["properties"].get_mut(property));
        if let (Some(Value::Object(known)), Value::Object(rules)) = (known, rules) {
            known.extend(rules);
        }
    };
    for (schema, property, rules) in fields() {
        narrow(schema, property, rules);
    }
    for (schema, property) in TIMES {
        narrow(schema, property, json!({ "format": "date-time" }));
    }
    for (schema, property) in PASSWORDS {
        narrow(schema, property, password(passwords));
    }
    for (name, example) in examples::all() {
        if let Some(schema) = schemas.get_mut(name) {
            schema["examples"] = json!([example]);
        }
    }
    // SECURITY rule 9: registering takes only its own fields.
    if let Some(schema) = schemas.get_mut("RegisterRequest") {
        schema["additionalProperties"] = false.into();
    }
    schemas
}

/// Schema, field, and what it may be.
fn fields() -> [(&'static str, &'static str, Value); 14] {
    let id = json!({ "minLength": 1 });
    let one_of = |words: &[&str]| json!({ "enum": words });
    let endings = [
        MessageStatus::Complete,
        MessageStatus::Interrupted,
        MessageStatus::Failed,
        MessageStatus::Cancelled,
    ];
    [
        (
            "RegisterRequest",
            "username",
            json!({ "minLength": 3, "maxLength": 50, "pattern": "^[A-Za-z0-9_]+$" }),
        ),
        ("RegisterRequest", "email", json!({ "format": "email", "maxLength": 254 })),
        ("CreateSessionRequest", "title", json!({ "maxLength": 200 })),
        ("UpdateSessionRequest", "title", json!({ "minLength": 1, "maxLength": 200, "pattern": "\\S" })),
        ("StreamChatRequest", "session_id", id.clone()),
        ("StreamChatRequest", "query", json!({ "minLength": 1, "maxLength": 2000, "pattern": "\\S" })),
        ("CancelChatRequest", "session_id", id.clone()),
        ("CancelChatRequest", "stream_id", id),
        ("MessageInfo", "role", one_of(&[Author::User, Author::Assistant].map(author_word))),
        ("MessageInfo", "status", one_of(&endings.map(status_word))),
        ("CancelledChat", "status", one_of(&["cancelled", "cancelling"])),
        ("Accepted", "status", one_of(&["accepted"])),
        ("Health", "status", one_of(&["healthy", "degraded", "unhealthy"])),
        ("Live", "status", one_of(&["live", "ready", "not_ready"])),
    ]
}

/// A new password. Its characters are looked for ahead, so that one pattern says them all.
fn password(policy: &PasswordPolicy) -> Value {
    let classes = policy.require.iter().map(|class| match class {
        CharacterClass::Lower => "(?=.*[a-z])",
        CharacterClass::Upper => "(?=.*[A-Z])",
        CharacterClass::Digit => "(?=.*[0-9])",
        CharacterClass::Symbol => "(?=.*[^A-Za-z0-9])",
    });
    let mut rules = Map::new();
    rules.insert("minLength".to_owned(), policy.min_length.into());
    rules.insert("maxLength".to_owned(), MAX_BYTES.into());
    if !policy.require.is_empty() {
        rules.insert("pattern".to_owned(), format!("^{}", classes.collect::<String>()).into());
    }
    rules.into()
}

/// Narrows a parameter that handlers read themselves.
pub(super) fn parameter(parameter: &mut Value) {
    if parameter["name"] == "Idempotency-Key"
        && let Some(schema) = parameter["schema"].as_object_mut()
    {
        schema.extend([
            ("minLength".to_owned(), 1.into()),
            ("maxLength".to_owned(), 255.into()),
            ("pattern".to_owned(), "^[!-~]+$".into()),
        ]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::Diagnostics;
    use crate::tokens::policy::AuthPolicy;

    #[test]
    fn every_field_that_is_narrowed_is_there() {
        let known = &described().schemas;
        let passwords = PASSWORDS.into_iter().chain(TIMES);
        for (schema, field) in fields().into_iter().map(|(schema, field, _)| (schema, field)).chain(passwords)
        {
            assert!(known[schema]["properties"][field].is_object(), "{schema}.{field}");
        }
        let keys = described().operations.values().flat_map(|said| said["parameters"].as_array()).flatten();
        let keys = keys.filter(|parameter| parameter["schema"]["pattern"] == "^[!-~]+$").count();
        assert_eq!(keys, 2, "sessions.create and chat.stream take an Idempotency-Key");
    }

    #[test]
    fn passwords_are_described_by_the_manifests_rules() {
        let mut policy = AuthPolicy::check(None, &mut Diagnostics::new()).password;
        policy.min_length = 9;
        policy.require = vec![CharacterClass::Lower, CharacterClass::Symbol];
        let all = schemas(&policy);
        let schema = &all["RegisterRequest"]["properties"]["password"];
        assert_eq!((&schema["minLength"], &schema["maxLength"]), (&json!(9), &json!(72)));
        let validator = jsonschema::validator_for(schema).unwrap();
        for (password, good) in
            [("abcdefgh!", true), ("abcdefghi", false), ("ABCDEFGH!", false), ("abc!", false)]
        {
            assert_eq!(validator.is_valid(&json!(password)), good, "{password}");
        }
        policy.require.clear();
        assert!(schemas(&policy)["PasswordResetRequest"]["properties"]["password"].get("pattern").is_none());
    }
}
