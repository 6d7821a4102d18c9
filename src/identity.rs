//! Who is calling, once a stage has found out.

use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::SystemTime;

/// A caller whose token or key was verified. What identity headers, limits, RBAC and stores go by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user, `sub`.
    pub user_id: Arc<str>,
    /// The tenant; empty for the default one.
    pub tenant_id: Arc<str>,
    /// The role's name.
    pub role: Arc<str>,
    /// Scopes of the token; none means that it is not narrowed.
    pub scopes: Vec<String>,
    /// Front end the token was made for (`web`, `wechat`).
    pub channel: Option<String>,
    /// WeChat's id of the user.
    pub openid: Option<String>,
    /// What ends it when revoked: the login it stems from, which renewed and refreshed tokens keep.
    pub token_id: Option<String>,
    /// When the login it stems from was; what a revocation of all that a user has goes by.
    pub issued_at: Option<SystemTime>,
    /// When it ends; long connections end with it.
    pub expires_at: Option<SystemTime>,
    /// What proved it.
    pub proof: Proof,
}

impl Identity {
    /// The `user_id` of who calls by the API key of this id. Users' ids are UUIDs, so none is like it.
    pub fn of_key(id: &str) -> String {
        format!("key-{id}")
    }
}

/// What proved an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proof {
    /// An access token of this gateway's.
    Token,
    /// A token of another issuer's.
    Provider,
    /// An API key.
    ApiKey,
}
