//! An example of everything that native operations take and give: what the documentation shows, and fills in for a first try.
//!
//! None of it is anybody's: tokens are cut short, and whoever tries a login with it is refused.

use serde_json::{Value, json};

const USER: &str = "3f0c5a52-8c1e-4f7e-9d55-0b7c1f2a6e10";
const SESSION: &str = "9b2d7c64-1a3f-4e08-b6c9-5d0e8f7a2c31";
const ANSWER: &str = "c4e1f0a8-6b92-4d37-8a15-7e3d9c0b5f24";
const ASKED: &str = "2026-11-30T09:12:04Z";
const ANSWERED: &str = "2026-11-30T09:12:09Z";
const PASSWORD: &str = "Gateway1";
const REFRESH: &str = "rt_5Q…";

/// Examples by the names of their schemas.
pub(super) fn all() -> Vec<(&'static str, Value)> {
    let user = json!({ "id": USER, "username": "ann", "email": "ann@example.com" });
    let session =
        json!({ "session_id": SESSION, "title": "Gateways", "created_at": ASKED, "updated_at": ANSWERED });
    let answer = json!({
        "id": ANSWER,
        "role": "assistant",
        "content": "A gateway takes every request first.",
        "status": "complete",
        "created_at": ANSWERED,
        "total_tokens": 7,
    });
    let mut exported = session.clone();
    exported["messages"] = json!([answer]);
    let account = json!({
        "id": USER,
        "username": "ann",
        "email": "ann@example.com",
        "tenant_id": "",
        "role": "user",
        "created_at": ASKED,
        "last_login_at": ASKED,
    });
    vec![
        ("RegisterRequest", json!({ "username": "ann", "email": "ann@example.com", "password": PASSWORD })),
        ("LoginRequest", json!({ "username": "ann", "password": PASSWORD })),
        ("RefreshRequest", json!({ "refresh_token": REFRESH })),
        ("LogoutRequest", json!({ "refresh_token": REFRESH })),
        ("PasswordChangeRequest", json!({ "old_password": PASSWORD, "new_password": "Gateway2" })),
        ("PasswordForgotRequest", json!({ "email": "ann@example.com" })),
        ("PasswordResetRequest", json!({ "token": "pr_8Z…", "password": "Gateway2" })),
        ("DeleteAccountRequest", json!({ "password": PASSWORD })),
        ("WechatLoginRequest", json!({ "code": "023Xa0…" })),
        (
            "TokenResponse",
            json!({ "access_token": "eyJhbGciOi…", "refresh_token": REFRESH, "expires_in": 86400, "user": user }),
        ),
        ("UserInfo", user),
        ("TicketResponse", json!({ "ticket": "wt_2K…", "expires_in": 30 })),
        ("Me", account.clone()),
        ("Accepted", json!({ "status": "accepted" })),
        ("CreateSessionRequest", json!({ "title": "Gateways" })),
        ("UpdateSessionRequest", json!({ "title": "More gateways" })),
        ("SessionInfo", session.clone()),
        ("SessionPage", json!({ "sessions": [session], "next_cursor": null })),
        ("MessageInfo", answer.clone()),
        ("MessagePage", json!({ "messages": [answer], "next_cursor": null })),
        ("SessionExport", json!({ "user": account, "exported_at": ANSWERED, "sessions": [exported] })),
        ("StreamChatRequest", json!({ "session_id": SESSION, "query": "Tell me about gateways" })),
        ("CancelChatRequest", json!({ "session_id": SESSION })),
        ("CancelledChat", json!({ "session_id": SESSION, "status": "cancelled", "stream_ids": [ANSWER] })),
        ("ChatEventStart", json!({ "type": "start", "session_id": SESSION })),
        ("ChatEventToken", json!({ "type": "token", "content": "A gateway" })),
        ("ChatEventEnd", json!({ "type": "end", "total_tokens": 7 })),
        ("ChatEventCancelled", json!({ "type": "cancelled" })),
        ("ChatEventError", json!({ "type": "error", "code": "upstream_interrupted" })),
        ("ChatEventReauth", json!({ "type": "reauth", "code": "token_expired" })),
        (
            "Health",
            json!({ "status": "healthy", "version": "v0.6", "checks": { "database": "healthy", "algo": "healthy" }, "timestamp": ASKED }),
        ),
        ("Live", json!({ "status": "live" })),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::Diagnostics;
    use crate::handlers::{described, schemas};
    use crate::tokens::policy::AuthPolicy;
    use std::collections::BTreeSet;

    /// Names of the schemas that a value refers to.
    fn references(value: &Value, out: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                let name = map.get("$ref").and_then(Value::as_str).and_then(|to| to.rsplit('/').next());
                out.extend(name.map(str::to_owned));
                map.values().for_each(|value| references(value, out));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, out)),
            _ => {}
        }
    }

    #[test]
    fn every_body_has_an_example_which_fits_it() {
        let policy = AuthPolicy::check(None, &mut Diagnostics::new()).password;
        let schemas = schemas(&policy);
        let whole = json!({ "components": { "schemas": schemas } });
        for (name, example) in all() {
            assert_eq!(schemas[name]["examples"], json!([example]), "{name}");
            let mut schema = whole.clone();
            schema["$ref"] = format!("#/components/schemas/{name}").into();
            let options = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
            let faults: Vec<String> = options.iter_errors(&example).map(|fault| fault.to_string()).collect();
            assert_eq!(faults, Vec::<String>::new(), "{name}");
        }
        let mut used = BTreeSet::new();
        described().operations.values().for_each(|operation| references(operation, &mut used));
        for name in used.iter().filter(|name| schemas[*name]["type"] == "object") {
            assert!(schemas[name]["examples"].is_array(), "{name} has no example");
        }
    }
}
