//! Changing a password: with the old one, or with a link sent by e-mail. Both end every session.

use super::login::lock_name;
use super::passwords::{faults as password_faults, too_long};
use super::{Accounts, DEFAULT_TENANT, RESET_TTL, audit, digest, fault, secret};
use crate::error::{GatewayError, Kind};
use crate::identity::Identity;
use crate::stores::StoreError;
use std::sync::Arc;
use std::time::Duration;

/// When a caller may ask again where there is no mail server: setting one up takes a restart.
const NO_MAIL: Duration = Duration::from_secs(3600);

impl Accounts {
    /// Sets a new password where the old one is right, and ends every session.
    ///
    /// # Errors
    /// 400 naming each failed rule, 401 where the old one is wrong (it counts like a failed login), 423 where the name is
    /// locked.
    pub async fn change_password(
        &self,
        identity: &Identity,
        old: String,
        new: String,
    ) -> Result<(), GatewayError> {
        let rules = self.authority.rules();
        let mut faults = password_faults("/new_password", &new, rules.min_length, &rules.require);
        faults.extend(too_long("/old_password", &old));
        if !faults.is_empty() {
            return Err(GatewayError::invalid(faults));
        }
        let user = self.me(identity).await?;
        let (tenant, name) = (user.tenant_id.clone(), lock_name(&user.username));
        self.refuse_locked(&tenant, &name).await?;
        let turn = self.passwords.turn().await?;
        let failures = self.refuse_locked(&tenant, &name).await?;
        let user = self.prove(turn, Some(user), old, &tenant, &name, Kind::WrongCredentials).await?;
        let hash = self.passwords.turn().await?.hash(new, rules.bcrypt_cost).await?;
        let now = self.now();
        if failures > 0 {
            self.store.unlock(&tenant, &name).await.map_err(fault)?;
        }
        self.store.set_password(&user.id, &hash, now).await.map_err(fault)?;
        audit::own(&user.id, "change_password", "");
        self.end_sessions(&user.id, now).await
    }

    /// Sends a link to a new password, if the address is somebody's. Returns at once and tells nobody which: looking up
    /// and sending go on behind it.
    ///
    /// # Errors
    /// 503 where no mail can be sent at all: whoever waits for a link that never comes is worse off, and since everybody is
    /// told so, nobody learns whose the address is.
    pub fn forgot_password(
        self: &Arc<Self>,
        email: String,
        tenant_id: Option<String>,
    ) -> Result<(), GatewayError> {
        // Said in the log once, at start.
        if self.mailer.check().is_err() {
            return Err(GatewayError { retry_after: Some(NO_MAIL), ..Kind::MailUnavailable.into() });
        }
        let Ok(place) = self.mails.clone().try_acquire_owned() else {
            tracing::error!("a link to a new password is not sent: too many are being sent already");
            return Ok(());
        };
        let accounts = self.clone();
        tokio::spawn(async move {
            accounts.send_link(&email, tenant_id.as_deref().unwrap_or(DEFAULT_TENANT)).await;
            drop(place);
        });
        Ok(())
    }

    async fn send_link(&self, email: &str, tenant: &str) {
        let user = match self.store.user_by_email(tenant, email).await {
            Ok(user) if !user.disabled => user,
            Ok(_) | Err(StoreError::NotFound) => return,
            Err(error) => return tracing::error!(%error, "a link to a new password is not sent"),
        };
        let token = secret("vgp_");
        let ends = self.now() + RESET_TTL;
        if let Err(error) = self.store.create_reset(&user.id, &digest(&token), ends).await {
            return tracing::error!(%error, user = user.id, "a link to a new password is not sent");
        }
        // To the address as it was registered, not as it was asked for.
        let Some(address) = &user.email else { return };
        match self.mailer.send_reset(address, &user.username, &token, RESET_TTL.as_secs() / 60).await {
            Ok(()) => tracing::info!(user = user.id, "a link to a new password was sent"),
            Err(error) => tracing::error!(%error, user = user.id, "a link to a new password is not sent"),
        }
    }

    /// Sets a new password with the token of a link, unlocks the name, and ends every session.
    ///
    /// # Errors
    /// 400 naming each failed rule, or `link_invalid` for a token that is unknown, used or over.
    pub async fn reset_password(&self, token: &str, new: String) -> Result<(), GatewayError> {
        let rules = self.authority.rules();
        let faults = password_faults("/password", &new, rules.min_length, &rules.require);
        if !faults.is_empty() {
            return Err(GatewayError::invalid(faults));
        }
        // The worker first: a token must not be used up for a 503.
        let turn = self.passwords.turn().await?;
        let now = self.now();
        let used = self.store.consume_reset(&digest(token), now).await.map_err(fault)?;
        let Some(user_id) = used else { return Err(Kind::LinkSpent.into()) };
        let user = match self.store.user(&user_id).await {
            Ok(user) if !user.disabled => user,
            Ok(_) | Err(StoreError::NotFound) => return Err(Kind::LinkSpent.into()),
            Err(error) => return Err(fault(error)),
        };
        let hash = turn.hash(new, rules.bcrypt_cost).await?;
        let now = self.now();
        self.store.set_password(&user.id, &hash, now).await.map_err(fault)?;
        self.store.unlock(&user.tenant_id, &lock_name(&user.username)).await.map_err(fault)?;
        audit::own(&user.id, "reset_password", "");
        self.end_sessions(&user.id, now).await
    }
}
