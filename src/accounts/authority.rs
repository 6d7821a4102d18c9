//! The gateway's own tokens as an [`Authority`].

use super::{Authority, Rules};
use crate::error::GatewayError;
use crate::identity::Identity;
use crate::stores::{Stored, User};
use crate::tokens::Tokens;
use std::sync::Arc;
use std::time::SystemTime;

#[async_trait::async_trait]
impl Authority for Tokens {
    fn sign(&self, user: &User, login: &str, channel: &str, now: SystemTime) -> Result<String, GatewayError> {
        Ok(self.issue_within(user, login, Some(channel), now).token)
    }

    fn rules(&self) -> Rules {
        let policy = self.policy();
        Rules {
            access_ttl: policy.access_ttl,
            refresh_ttl: policy.refresh_ttl,
            refresh_grace: policy.refresh_grace,
            bcrypt_cost: policy.password.bcrypt_cost,
            min_length: policy.password.min_length,
            require: policy.password.require.clone(),
            lock_failures: policy.lockout.failures,
            lock_window: policy.lockout.window,
            lock_for: policy.lockout.lock_for,
        }
    }

    fn identify(&self, token: &str, now: SystemTime) -> Option<Arc<Identity>> {
        self.verify(token, now).ok()
    }

    async fn revoke_login(&self, login: &str, expires_at: Option<SystemTime>, now: SystemTime) -> Stored<()> {
        self.end_login(login, expires_at, now).await
    }

    async fn revoke_user(&self, user_id: &str, now: SystemTime) -> Stored<()> {
        Tokens::revoke_user(self, user_id, now).await
    }
}
