//! What administrators do with users and API keys. Each change is written to the log with who made it (`audit`).

use super::audit::administered;
use super::login::lock_name;
use super::{ADMIN_ROLE, Accounts, DEFAULT_ROLE, Registration, digest, fault, secret};
use crate::diag::did_you_mean;
use crate::error::{FieldFault, GatewayError, Kind};
use crate::identity::Identity;
use crate::stores::{ApiKey, Page, StoreError, User};
use std::time::SystemTime;

/// Users of a page at most.
const MAX_PAGE: u32 = 200;
/// Lengths of what administrators name.
const MAX_TEXT: usize = 100;
/// Permissions of one key at most.
const MAX_PERMISSIONS: usize = 100;

/// A first administrator.
pub struct NewAdmin {
    /// Like any username.
    pub username: String,
    /// For links to a new password.
    pub email: String,
    /// By the rules.
    pub password: String,
}

/// An API key to be made.
pub struct NewKey {
    /// What it is for.
    pub name: String,
    /// Tenant it acts for.
    pub tenant_id: String,
    /// `resource:action`; `*` stands for any.
    pub permissions: Vec<String>,
    /// When it ends.
    pub expires_at: Option<SystemTime>,
}

/// An API key with its secret, which is shown once.
pub struct CreatedKey {
    /// The row.
    pub key: ApiKey,
    /// The secret; only its hash ([`super::digest`]) is kept.
    pub secret: String,
}

impl Accounts {
    /// A page of users, newest first.
    ///
    /// # Errors
    /// The store's.
    pub async fn users(&self, limit: u32, cursor: Option<&str>) -> Result<Page<User>, GatewayError> {
        self.store.users(limit.clamp(1, MAX_PAGE), cursor).await.map_err(found)
    }

    /// Makes a user with the role `admin` in the default tenant.
    ///
    /// # Errors
    /// As [`Accounts::register`].
    pub async fn create_admin(&self, by: &str, admin: NewAdmin) -> Result<User, GatewayError> {
        let NewAdmin { username, email, password } = admin;
        let user = self.create(Registration { username, email, password }, ADMIN_ROLE).await?;
        administered(by, "create_admin", &user.id, &user.username);
        Ok(user)
    }

    /// The user of a name in a tenant.
    ///
    /// # Errors
    /// 404.
    pub async fn user_named(&self, tenant: &str, username: &str) -> Result<User, GatewayError> {
        self.store.user_by_name(tenant, username).await.map_err(found)
    }

    /// Gives a user a role, and ends its sessions: tokens say the role they were signed with. `defined` are the roles of
    /// the manifest, where that is known: any other would leave the user with nothing but what needs no permission.
    /// `admin` and `user` are the gateway's own words and always good.
    ///
    /// # Errors
    /// 400 for what is no role's name or is not defined, 404.
    pub async fn set_role(
        &self,
        by: &str,
        id: &str,
        role: &str,
        defined: Option<&[String]>,
    ) -> Result<(), GatewayError> {
        let good = (1..=MAX_TEXT).contains(&role.len())
            && role.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
        if !good {
            let fault = FieldFault::new("/role", "role", "must be the name of a role", "角色名称无效");
            return Err(GatewayError::invalid(vec![fault]));
        }
        let own = [ADMIN_ROLE, DEFAULT_ROLE];
        if let Some(defined) = defined.filter(|defined| !defined.iter().any(|known| known == role))
            && !own.contains(&role)
        {
            let mut known: Vec<&str> = defined.iter().map(String::as_str).chain(own).collect();
            known.sort_unstable();
            known.dedup();
            let en = match did_you_mean(role, known.iter().copied()) {
                Some(help) => format!("must be a role that the manifest defines; {help}"),
                None => "must be a role that the manifest defines".to_owned(),
            };
            let zh = format!("角色未在清单中定义；已定义：{}", known.join("、"));
            return Err(GatewayError::invalid(vec![FieldFault::new("/role", "role_unknown", en, zh)]));
        }
        let now = self.now();
        self.store.set_role(id, role, now).await.map_err(found)?;
        administered(by, "set_role", id, role);
        self.end_sessions(id, now).await
    }

    /// Forbids a user to log in and ends its sessions, or allows it again.
    ///
    /// # Errors
    /// 404.
    pub async fn set_disabled(&self, by: &str, id: &str, disabled: bool) -> Result<(), GatewayError> {
        let now = self.now();
        self.store.set_disabled(id, disabled, now).await.map_err(found)?;
        administered(by, if disabled { "disable" } else { "enable" }, id, "");
        if disabled { self.end_sessions(id, now).await } else { Ok(()) }
    }

    /// Forgets a user's failed logins and lock.
    ///
    /// # Errors
    /// 404.
    pub async fn unlock(&self, by: &str, id: &str) -> Result<(), GatewayError> {
        let user = self.store.user(id).await.map_err(found)?;
        self.unlock_name(by, &user.tenant_id, &user.username).await
    }

    /// Forgets failed logins and lock of a name, whoever's it is: names of nobody are locked too.
    ///
    /// # Errors
    /// The store's.
    pub async fn unlock_name(&self, by: &str, tenant: &str, username: &str) -> Result<(), GatewayError> {
        self.store.unlock(tenant, &lock_name(username)).await.map_err(found)?;
        administered(by, "unlock", username, tenant);
        Ok(())
    }

    /// Ends every session of a user.
    ///
    /// # Errors
    /// 404.
    pub async fn revoke_sessions(&self, by: &str, id: &str) -> Result<(), GatewayError> {
        self.store.user(id).await.map_err(found)?;
        self.end_sessions(id, self.now()).await?;
        administered(by, "revoke_sessions", id, "");
        Ok(())
    }

    /// Deletes a user with all that belongs to it.
    ///
    /// # Errors
    /// 404.
    pub async fn delete_user(&self, by: &str, id: &str) -> Result<(), GatewayError> {
        let user = self.store.user(id).await.map_err(found)?;
        self.remove(&user).await?;
        administered(by, "delete_user", id, &user.username);
        Ok(())
    }

    /// Makes an API key.
    ///
    /// # Errors
    /// 400 naming each fault.
    pub async fn create_key(&self, by: &str, asked: NewKey) -> Result<CreatedKey, GatewayError> {
        let now = self.now();
        let mut faults = Vec::new();
        if !(1..=MAX_TEXT).contains(&asked.name.len()) {
            faults.push(FieldFault::new(
                "/name",
                "length",
                "must have 1 to 100 bytes",
                "长度须为 1-100 字节",
            ));
        }
        if asked.tenant_id.len() > MAX_TEXT {
            faults.push(FieldFault::new(
                "/tenant_id",
                "length",
                "must have at most 100 bytes",
                "长度不能超过 100 字节",
            ));
        }
        for (pointer, text) in [("/name", &asked.name), ("/tenant_id", &asked.tenant_id)] {
            if text.chars().any(char::is_control) {
                let en = "must not have control characters";
                faults.push(FieldFault::new(pointer, "control_characters", en, "不能包含控制字符"));
            }
        }
        if !(1..=MAX_PERMISSIONS).contains(&asked.permissions.len()) {
            let en = "must have 1 to 100 permissions";
            faults.push(FieldFault::new("/permissions", "length", en, "权限数量须为 1-100 个"));
        }
        for (at, permission) in asked.permissions.iter().enumerate().filter(|(_, text)| !is_permission(text))
        {
            let en = format!("`{permission}` is not a permission: `resource:action`, `resource:*` or `*`");
            faults.push(FieldFault::new(format!("/permissions/{at}"), "permission", en, "权限格式无效"));
        }
        if asked.expires_at.is_some_and(|end| end <= now) {
            faults.push(FieldFault::new(
                "/expires_at",
                "past",
                "must be in the future",
                "过期时间须晚于当前时间",
            ));
        }
        if !faults.is_empty() {
            return Err(GatewayError::invalid(faults));
        }
        let secret = secret("vgk_");
        let key = ApiKey {
            id: uuid::Uuid::new_v4().to_string(),
            name: asked.name,
            tenant_id: asked.tenant_id,
            created_by: by.to_owned(),
            permissions: asked.permissions,
            created_at: now,
            expires_at: asked.expires_at,
            revoked: false,
        };
        self.store.create_api_key(key.clone(), &digest(&secret)).await.map_err(fault)?;
        administered(by, "create_key", &key.id, &key.name);
        Ok(CreatedKey { key, secret })
    }

    /// All API keys, newest first, without their secrets.
    ///
    /// # Errors
    /// The store's.
    pub async fn keys(&self) -> Result<Vec<ApiKey>, GatewayError> {
        self.store.api_keys().await.map_err(fault)
    }

    /// Takes an API key back, and ends the connections that were opened with it.
    ///
    /// # Errors
    /// 404.
    pub async fn revoke_key(&self, by: &str, id: &str) -> Result<(), GatewayError> {
        self.store.revoke_api_key(id).await.map_err(found)?;
        administered(by, "revoke_key", id, "");
        // After the row: who is let in meanwhile is ended too.
        self.revoke_user(&Identity::of_key(id), self.now()).await
    }
}

fn is_permission(text: &str) -> bool {
    text == "*"
        || text.split_once(':').is_some_and(|(resource, action)| {
            !resource.is_empty() && !action.is_empty() && !action.contains(':') && text.len() <= MAX_TEXT
        })
}

fn found(error: StoreError) -> GatewayError {
    match error {
        StoreError::NotFound | StoreError::BadCursor => Kind::NotFound.into(),
        error => fault(error),
    }
}
