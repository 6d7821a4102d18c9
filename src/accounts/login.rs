//! Logging in with a password, refreshing, logging out.
//!
//! The lock is asked twice: before a worker is waited for, so that guessing at a locked name costs nothing, and again
//! when there is one, so that guesses sent all at once get no more tries than guesses one by one.

use super::passwords::{Turn, too_long};
use super::{Accounts, DEFAULT_TENANT, Session, audit, digest, fault, secret};
use crate::error::{GatewayError, Kind};
use crate::identity::Identity;
use crate::stores::{Family, Rotation, StoreError, User};

/// Who wants to log in.
pub struct Credentials {
    /// Whatever the case.
    pub username: String,
    /// As typed.
    pub password: String,
    /// The tenant whose user it is; none for the default one.
    pub tenant_id: Option<String>,
}

/// Longest name and tenant that are looked up: what is longer is nobody's.
const LONGEST_NAME: usize = 200;

impl Accounts {
    /// Logs in with a password.
    ///
    /// # Errors
    /// 401 for an unknown name and a wrong password alike, 423 with `Retry-After` where the name is locked, 403 where
    /// the account is disabled and the password is right, 400 for a password bcrypt would cut, 503 where hashing is
    /// overloaded.
    pub async fn login(&self, asked: Credentials, channel: &str) -> Result<Session, GatewayError> {
        if let Some(fault) = too_long("/password", &asked.password) {
            return Err(GatewayError::invalid(vec![fault]));
        }
        let tenant = asked.tenant_id.as_deref().unwrap_or(DEFAULT_TENANT);
        if asked.username.len() > LONGEST_NAME || tenant.len() > LONGEST_NAME {
            return Err(Kind::WrongCredentials.into());
        }
        let name = lock_name(&asked.username);
        self.refuse_locked(tenant, &name).await?;
        let turn = self.passwords.turn().await?;
        let failures = self.refuse_locked(tenant, &name).await?;
        let user = match self.store.user_by_name(tenant, &asked.username).await {
            Ok(user) => Some(user),
            Err(StoreError::NotFound) => None,
            Err(error) => return Err(fault(error)),
        };
        let user = self.prove(turn, user, asked.password, tenant, &name, Kind::WrongCredentials).await?;
        if user.disabled {
            return Err(Kind::AccountDisabled.into());
        }
        let now = self.now();
        if failures > 0 {
            self.store.unlock(tenant, &name).await.map_err(fault)?;
        }
        self.store.note_login(&user.id, now).await.map_err(fault)?;
        let session = self.begin(user, channel, now).await?;
        audit::own(&session.user.id, "login", channel);
        Ok(session)
    }

    /// Compares a password; a wrong one counts against the name. An unknown user and one without a password take as
    /// long as anybody.
    pub(super) async fn prove(
        &self,
        turn: Turn,
        user: Option<User>,
        password: String,
        tenant: &str,
        name: &str,
        wrong: Kind,
    ) -> Result<User, GatewayError> {
        let rules = self.authority.rules();
        let kept = user.as_ref().and_then(|user| user.password_hash.clone());
        let verdict = turn.verify(password, kept, rules.bcrypt_cost).await?;
        let now = self.now();
        let Some(user) = user.filter(|_| verdict.right) else {
            let counted = self
                .store
                .note_failure(tenant, name, rules.lock_failures, rules.lock_window, rules.lock_for, now)
                .await
                .map_err(fault)?;
            if counted.locked_until.is_some() {
                audit::alarm("lock", name, tenant);
            }
            return Err(wrong.into());
        };
        if let Some(hash) = verdict.rehashed {
            // The login goes on without it: next time will do.
            if let Err(error) = self.store.set_password(&user.id, &hash, now).await {
                tracing::warn!(%error, user = user.id, "a password was not kept with its new cost");
            }
        }
        Ok(user)
    }

    /// Refuses a locked name; how many failures count against it otherwise.
    pub(super) async fn refuse_locked(&self, tenant: &str, name: &str) -> Result<u32, GatewayError> {
        let now = self.now();
        let state = self.store.lock_state(tenant, name, now).await.map_err(fault)?;
        match state.locked_until.and_then(|until| until.duration_since(now).ok()) {
            Some(left) if !left.is_zero() => {
                Err(GatewayError { retry_after: Some(left), ..Kind::AccountLocked.into() })
            }
            _ => Ok(state.failures),
        }
    }

    /// Uses up a refresh token and gives new tokens of the same login in its place; also for one that was used within
    /// the grace, because the answer may have got lost, or two tabs asked together.
    ///
    /// # Errors
    /// 401 for one that is unknown, over, ended or was used before that: then the login is ended with every token of
    /// it, since one of two holders is a thief. 403 where the account is disabled.
    pub async fn refresh(&self, refresh_token: &str) -> Result<Session, GatewayError> {
        let rules = self.authority.rules();
        let now = self.now();
        let next = secret("vgr_");
        let rotation = self
            .store
            .rotate(&digest(refresh_token), &digest(&next), now + rules.refresh_ttl, rules.refresh_grace, now)
            .await
            .map_err(fault)?;
        let Family { id: family, user_id } = match rotation {
            Rotation::Rotated(family) => family,
            Rotation::Repeated(family) => {
                tracing::info!(
                    user = family.user_id,
                    family = family.id,
                    "a refresh token came again within the grace"
                );
                family
            }
            Rotation::Reused(family) => {
                audit::alarm("refresh_token_reused", &family.user_id, login_of(&family.id));
                self.authority.revoke_login(login_of(&family.id), None, now).await.map_err(fault)?;
                return Err(Kind::RefreshRefused.into());
            }
            Rotation::Refused => return Err(Kind::RefreshRefused.into()),
        };
        let user = match self.store.user(&user_id).await {
            Ok(user) if !user.disabled => user,
            Ok(_) => {
                self.store.end_families(&user_id, now).await.map_err(fault)?;
                return Err(Kind::AccountDisabled.into());
            }
            Err(StoreError::NotFound) => return Err(Kind::RefreshRefused.into()),
            Err(error) => return Err(fault(error)),
        };
        let channel = family.split_once(':').map_or("web", |(channel, _)| channel);
        let access_token = self.authority.sign(&user, login_of(&family), channel, now)?;
        Ok(Session { access_token, refresh_token: next, expires_in: rules.access_ttl, user })
    }

    /// Ends the login of a refresh token and that of the access token the caller came with, mostly one and the same,
    /// with every token of it. An unknown refresh token is no error: it is as good as ended.
    pub async fn logout(
        &self,
        identity: Option<&Identity>,
        refresh_token: Option<&str>,
    ) -> Result<(), GatewayError> {
        let now = self.now();
        let mut family = None;
        if let Some(token) = refresh_token {
            family = self.store.end_family_of(&digest(token), now).await.map_err(fault)?;
        }
        let refreshed = family.as_ref().map(|family| login_of(&family.id));
        if let Some(login) = refreshed {
            self.authority.revoke_login(login, None, now).await.map_err(fault)?;
        }
        if let Some(identity) = identity
            && let Some(login) = identity.token_id.as_deref().filter(|login| refreshed != Some(*login))
        {
            self.authority.revoke_login(login, identity.expires_at, now).await.map_err(fault)?;
        }
        let user = identity.map(|identity| &*identity.user_id);
        if let Some(user) = user.or(family.as_ref().map(|family| &*family.user_id)) {
            audit::own(user, "logout", "");
        }
        Ok(())
    }
}

/// The login that a family stems from.
fn login_of(family: &str) -> &str {
    family.split_once(':').map_or(family, |(_, login)| login)
}

/// The name that failures are counted on: without case, and without what hides beside it.
pub(super) fn lock_name(username: &str) -> String {
    username.trim().to_lowercase()
}
