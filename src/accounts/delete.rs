//! Deleting an account with all that belongs to it.
//!
//! What a user was given is revoked before its rows go, so that it ends at once even if the rest breaks off, and again
//! after: who logged in between was given nothing that lasts.

use super::audit::own;
use super::login::lock_name;
use super::passwords::too_long;
use super::{Accounts, fault};
use crate::error::{FieldFault, GatewayError, Kind};
use crate::identity::Identity;
use crate::stores::{StoreError, User};

impl Accounts {
    /// Deletes the caller's own account, where the password is right; an account without one needs none.
    ///
    /// # Errors
    /// 400 where the password is missing, 401 where it is wrong (it counts like a failed login) or the account is gone
    /// already, 423 where the name is locked.
    pub async fn delete_own(
        &self,
        identity: &Identity,
        password: Option<String>,
    ) -> Result<(), GatewayError> {
        let user = self.me(identity).await?;
        if user.password_hash.is_some() {
            let Some(password) = password else {
                let fault = FieldFault::new("/password", "required", "is required", "为必填项");
                return Err(GatewayError::invalid(vec![fault]));
            };
            if let Some(fault) = too_long("/password", &password) {
                return Err(GatewayError::invalid(vec![fault]));
            }
            let (tenant, name) = (user.tenant_id.clone(), lock_name(&user.username));
            self.refuse_locked(&tenant, &name).await?;
            let turn = self.passwords.turn().await?;
            self.refuse_locked(&tenant, &name).await?;
            self.prove(turn, Some(user.clone()), password, &tenant, &name, Kind::WrongCredentials).await?;
        }
        self.remove(&user).await?;
        own(&user.id, "delete_account", &user.username);
        Ok(())
    }

    /// Removes a user and ends all it was given.
    pub(super) async fn remove(&self, user: &User) -> Result<(), GatewayError> {
        self.end_sessions(&user.id, self.now()).await?;
        match self.store.delete_user(&user.id, self.now()).await {
            // Somebody was quicker.
            Ok(()) | Err(StoreError::NotFound) => {}
            Err(error) => return Err(fault(error)),
        }
        self.revoke_user(&user.id, self.now()).await?;
        self.store.unlock(&user.tenant_id, &lock_name(&user.username)).await.map_err(fault)
    }
}
