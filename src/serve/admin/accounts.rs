//! The admin API for users and API keys. Every call needs an administrator, reading too: it shows people.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `GET users?limit=&cursor=` | | `{users, next_cursor}`, newest first |
//! | `POST users/ID/role` | `{role}` | 204; ends the user's sessions |
//! | `POST users/ID/disable`, `enable`, `unlock`, `revoke` | | 204; `disable` and `revoke` end sessions |
//! | `POST unlock` | `{username, tenant_id?}` | 204; also for names of nobody |
//! | `GET keys` | | `{keys}`, newest first, without secrets |
//! | `POST keys` | `{name, permissions, tenant_id?, expires_at?}` | 201 with `secret`, shown this once |
//! | `POST keys/ID/revoke` | | 204 |

use super::{Answer, json_answer, timestamp};
use crate::accounts::{Accounts, NewKey};
use crate::error::{FieldFault, GatewayError, Kind};
use crate::handlers::read_json;
use crate::stores::{ApiKey, User};
use http::header::CACHE_CONTROL;
use http::{HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use poem_openapi::Object;
use serde_json::{Value, json};

/// Bytes of a body at most.
const MAX_BODY: usize = 64 * 1024;
/// Users of a page, where the call does not say.
const PAGE: u32 = 50;

#[derive(Object)]
struct RoleRequest {
    role: String,
}

#[derive(Object)]
struct UnlockRequest {
    username: String,
    tenant_id: Option<String>,
}

#[derive(Object)]
struct KeyRequest {
    name: String,
    permissions: Vec<String>,
    tenant_id: Option<String>,
    /// RFC 3339.
    expires_at: Option<String>,
}

/// What a path under `/admin/api/` asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Call<'a> {
    Users,
    OfUser(&'a str, Act),
    Unlock,
    Keys,
    RevokeKey(&'a str),
}

/// What is done to a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Role,
    Disable,
    Enable,
    Unlock,
    Revoke,
}

impl<'a> Call<'a> {
    /// Reads a whole path.
    pub(super) fn find(path: &'a str) -> Option<Self> {
        let parts: Vec<&str> = path.strip_prefix("/admin/api/")?.split('/').collect();
        Some(match parts[..] {
            ["users"] => Call::Users,
            ["users", id, act] => Call::OfUser(
                id,
                match act {
                    "role" => Act::Role,
                    "disable" => Act::Disable,
                    "enable" => Act::Enable,
                    "unlock" => Act::Unlock,
                    "revoke" => Act::Revoke,
                    _ => return None,
                },
            ),
            ["unlock"] => Call::Unlock,
            ["keys"] => Call::Keys,
            ["keys", id, "revoke"] => Call::RevokeKey(id),
            _ => return None,
        })
    }

    /// The methods it answers, where `method` is none of them.
    pub(super) fn refuses(&self, method: &Method) -> Option<&'static str> {
        let allow = match self {
            Call::Users => "GET, HEAD",
            Call::Keys => "GET, HEAD, POST",
            _ => "POST",
        };
        (!allow.split(", ").any(|allowed| allowed == method.as_str())).then_some(allow)
    }

    /// Does it for an administrator; `roles` are those of the manifest that serves.
    pub(super) async fn perform(
        self,
        accounts: &Accounts,
        roles: &[String],
        by: &str,
        method: &Method,
        query: Option<&str>,
        body: Incoming,
    ) -> Result<Answer, GatewayError> {
        match self {
            Call::Users => users(accounts, query).await,
            Call::OfUser(id, act) => {
                match act {
                    Act::Role => {
                        let RoleRequest { role } = read_json(&read(body).await?, true)?;
                        accounts.set_role(by, id, &role, Some(roles)).await?;
                    }
                    Act::Disable => accounts.set_disabled(by, id, true).await?,
                    Act::Enable => accounts.set_disabled(by, id, false).await?,
                    Act::Unlock => accounts.unlock(by, id).await?,
                    Act::Revoke => accounts.revoke_sessions(by, id).await?,
                }
                Ok(done())
            }
            Call::Unlock => {
                let UnlockRequest { username, tenant_id } = read_json(&read(body).await?, true)?;
                accounts.unlock_name(by, &tenant_id.unwrap_or_default(), &username).await?;
                Ok(done())
            }
            Call::Keys if *method == Method::POST => create_key(accounts, by, &read(body).await?).await,
            Call::Keys => {
                let keys: Vec<_> = accounts.keys().await?.iter().map(show_key).collect();
                Ok(json_answer(StatusCode::OK, &json!({ "keys": keys })))
            }
            Call::RevokeKey(id) => {
                accounts.revoke_key(by, id).await?;
                Ok(done())
            }
        }
    }
}

async fn users(accounts: &Accounts, query: Option<&str>) -> Result<Answer, GatewayError> {
    let (mut limit, mut cursor) = (PAGE, None);
    for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        match &*name {
            "limit" => {
                limit = value
                    .parse()
                    .map_err(|_| GatewayError::new(Kind::BadRequest, "`limit` must be a whole number"))?;
            }
            "cursor" => cursor = Some(value.into_owned()),
            _ => {}
        }
    }
    let page = accounts.users(limit, cursor.as_deref()).await?;
    let users: Vec<_> = page.items.iter().map(show_user).collect();
    Ok(json_answer(StatusCode::OK, &json!({ "users": users, "next_cursor": page.next })))
}

async fn create_key(accounts: &Accounts, by: &str, body: &[u8]) -> Result<Answer, GatewayError> {
    let asked: KeyRequest = read_json(body, true)?;
    let expires_at = match asked.expires_at.as_deref().map(str::parse::<jiff::Timestamp>) {
        None => None,
        Some(Ok(at)) => Some(at.into()),
        Some(Err(_)) => {
            let en = "must be a time such as `2027-01-01T00:00:00Z`";
            let fault = FieldFault::new("/expires_at", "timestamp", en, "须为 RFC 3339 格式的时间");
            return Err(GatewayError::invalid(vec![fault]));
        }
    };
    let tenant_id = asked.tenant_id.unwrap_or_default();
    let new = NewKey { name: asked.name, tenant_id, permissions: asked.permissions, expires_at };
    let created = accounts.create_key(by, new).await?;
    let mut shown = show_key(&created.key);
    shown["secret"] = created.secret.into();
    Ok(json_answer(StatusCode::CREATED, &shown))
}

pub(super) async fn read(body: Incoming) -> Result<Vec<u8>, GatewayError> {
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes().to_vec()),
        Err(error) if error.is::<LengthLimitError>() => Err(Kind::PayloadTooLarge.into()),
        Err(_) => Err(GatewayError::new(Kind::BadRequest, "the body broke off")),
    }
}

fn done() -> Answer {
    let mut answer: Answer = poem::Response::builder().status(StatusCode::NO_CONTENT).finish().into();
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn show_user(user: &User) -> Value {
    json!({
        "id": user.id,
        "tenant_id": user.tenant_id,
        "username": user.username,
        "email": user.email,
        "role": user.role,
        "disabled": user.disabled,
        "wechat": user.openid.is_some(),
        "created_at": timestamp(user.created_at),
        "last_login_at": user.last_login_at.map(timestamp),
    })
}

fn show_key(key: &ApiKey) -> Value {
    json!({
        "id": key.id,
        "name": key.name,
        "tenant_id": key.tenant_id,
        "created_by": key.created_by,
        "permissions": key.permissions,
        "created_at": timestamp(key.created_at),
        "expires_at": key.expires_at.map(timestamp),
        "revoked": key.revoked,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_whole() {
        assert_eq!(Call::find("/admin/api/users"), Some(Call::Users));
        assert_eq!(Call::find("/admin/api/users/7/role"), Some(Call::OfUser("7", Act::Role)));
        assert_eq!(Call::find("/admin/api/keys/7/revoke"), Some(Call::RevokeKey("7")));
        for other in ["/admin/api/users/7", "/admin/api/users/7/delete", "/admin/api/keys/7", "/users"] {
            assert_eq!(Call::find(other), None, "{other}");
        }
        assert_eq!(Call::Users.refuses(&Method::POST), Some("GET, HEAD"));
        assert_eq!(Call::Keys.refuses(&Method::POST), None);
        assert_eq!(Call::Unlock.refuses(&Method::GET), Some("POST"));
    }
}
