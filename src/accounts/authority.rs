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
    fn sign(&self, user: &User, channel: &str, now: SystemTime) -> Result<String, GatewayError> {
        Ok(self.issue(user, Some(channel), now).token)
    }

    fn rules(&self) -> Rules {
        let policy = self.policy();
        Rules {
            access_ttl: policy.access_ttl,
            refresh_ttl: policy.refresh_ttl,
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

    async fn revoke_login(&self, identity: &Identity, now: SystemTime) -> Stored<()> {
        Tokens::revoke_login(self, identity, now).await
    }

    async fn revoke_user(&self, user_id: &str, now: SystemTime) -> Stored<()> {
        Tokens::revoke_user(self, user_id, now).await
    }
}
