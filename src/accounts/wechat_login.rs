//! Logging in with WeChat. At the first login a user is made and bound to the openid.

use super::{Accounts, DEFAULT_ROLE, DEFAULT_TENANT, Session, audit, fault};
use crate::error::{GatewayError, Kind};
use crate::stores::{NewUser, StoreError, User};

/// The front end that such tokens are for.
const CHANNEL: &str = "wechat";

impl Accounts {
    /// Logs in whoever a login code is of.
    ///
    /// The caller's word is not enough to join a tenant: a new user is made in the default tenant, or in one of
    /// `WECHAT_TENANTS` (SECURITY rule 9).
    ///
    /// # Errors
    /// 401 where WeChat does not accept the code, 403 for a disabled account and for a new user of a tenant that takes
    /// none, 502 and 503 where WeChat does not answer.
    pub async fn wechat_login(&self, code: &str, tenant_id: Option<&str>) -> Result<Session, GatewayError> {
        // No code and no tenant has a NUL in it, and no store keeps one.
        if code.contains('\0') || tenant_id.is_some_and(|tenant| tenant.contains('\0')) {
            return Err(Kind::WechatRefused.into());
        }
        let tenant = tenant_id.unwrap_or(DEFAULT_TENANT);
        let openid = self.wechat.openid(code).await?;
        let user = match self.store.user_by_openid(tenant, &openid).await {
            Ok(user) => user,
            Err(StoreError::NotFound) => self.bind(tenant, openid).await?,
            Err(error) => return Err(fault(error)),
        };
        if user.disabled {
            return Err(Kind::AccountDisabled.into());
        }
        let now = self.now();
        self.store.note_login(&user.id, now).await.map_err(fault)?;
        let session = self.begin(user, CHANNEL, now).await?;
        audit::own(&session.user.id, "login", CHANNEL);
        Ok(session)
    }

    async fn bind(&self, tenant: &str, openid: String) -> Result<User, GatewayError> {
        if tenant != DEFAULT_TENANT && !self.wechat_tenants.iter().any(|known| known == tenant) {
            return Err(GatewayError::new(Kind::Forbidden, "this tenant takes no new users by WeChat"));
        }
        let id = uuid::Uuid::new_v4();
        let user = NewUser {
            id: id.to_string(),
            tenant_id: tenant.to_owned(),
            username: format!("wx_{}", id.simple()),
            email: None,
            password_hash: None,
            role: DEFAULT_ROLE.to_owned(),
            openid: Some(openid.clone()),
        };
        match self.store.create_user(user, self.now()).await {
            Ok(user) => Ok(user),
            // Two first logins at once: the other one made it.
            Err(StoreError::Conflict("openid")) => {
                self.store.user_by_openid(tenant, &openid).await.map_err(fault)
            }
            Err(error) => Err(fault(error)),
        }
    }
}
