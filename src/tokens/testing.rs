//! A store and shared state that only know revocations and keys: enough for tests of tokens and of stages.

use super::Tokens;
use super::keys::Keys;
use crate::identity::{Identity, Proof};
use crate::shared::{AnyShared, Decision, Lease, Limit, SharedError, SharedState};
use crate::stores::{
    AnyStore, ApiKey, ApiKeys, Family, LockState, Lockouts, NewUser, Page, RefreshTokens, Resets, Revocation,
    Revocations, Rotation, Store, StoreError, Stored, User, Users, no_conversations,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, broadcast};

/// Secret of [`tokens`].
pub(crate) const SECRET: &str = "a secret of more than thirty-two bytes";

/// Tokens over stores of their own.
pub(crate) fn tokens() -> Arc<Tokens> {
    let (store, shared) = backends();
    Tokens::new(Keys::new(SECRET.as_bytes(), &[]), store, shared, 64)
}

/// A user.
pub(crate) fn user(id: &str, tenant: &str, role: &str) -> User {
    User {
        id: id.into(),
        tenant_id: tenant.into(),
        username: id.into(),
        email: None,
        password_hash: None,
        role: role.into(),
        openid: None,
        disabled: false,
        created_at: UNIX_EPOCH,
        last_login_at: None,
    }
}

/// Both, empty.
pub(crate) fn backends() -> (AnyStore, AnyShared) {
    (Arc::new(FewRows::default()), Arc::new(Word(broadcast::channel(64).0)))
}

#[derive(Default)]
struct FewRows {
    revocations: Mutex<Vec<Revocation>>,
    keys: Mutex<HashMap<[u8; 32], ApiKey>>,
    changed: Notify,
}

fn ms(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

#[async_trait]
impl Revocations for FewRows {
    async fn revoke(
        &self,
        subject: &str,
        not_after: SystemTime,
        expires_at: SystemTime,
    ) -> Stored<Revocation> {
        let mut all = self.revocations.lock().unwrap();
        let one = Revocation {
            serial: all.len() as i64 + 1,
            subject: subject.into(),
            not_after_ms: ms(not_after),
            expires_at_ms: ms(expires_at),
        };
        all.push(one.clone());
        self.changed.notify_waiters();
        Ok(one)
    }
    async fn revocations_since(&self, serial: i64, now: SystemTime) -> Stored<Vec<Revocation>> {
        let all = self.revocations.lock().unwrap();
        let good = all.iter().filter(|one| one.serial > serial && one.expires_at_ms > ms(now));
        Ok(good.take(1000).cloned().collect())
    }
    async fn revocations_changed(&self, patience: Duration) {
        let _ = tokio::time::timeout(patience, self.changed.notified()).await;
    }
    async fn sweep_revocations(&self, _: SystemTime) -> Stored<u64> {
        Ok(0)
    }
}

#[async_trait]
impl ApiKeys for FewRows {
    async fn create_api_key(&self, key: ApiKey, hash: &[u8; 32]) -> Stored<()> {
        self.keys.lock().unwrap().insert(*hash, key);
        Ok(())
    }
    async fn api_key(&self, hash: &[u8; 32], now: SystemTime) -> Stored<ApiKey> {
        let found = self.keys.lock().unwrap().get(hash).cloned();
        let live = |key: &ApiKey| !key.revoked && key.expires_at.is_none_or(|end| end > now);
        found.filter(live).ok_or(StoreError::NotFound)
    }
    async fn api_keys(&self) -> Stored<Vec<ApiKey>> {
        Ok(self.keys.lock().unwrap().values().cloned().collect())
    }
    async fn revoke_api_key(&self, id: &str) -> Stored<()> {
        self.keys.lock().unwrap().values_mut().filter(|key| key.id == id).for_each(|key| key.revoked = true);
        Ok(())
    }
}

/// What these tests have no use for.
fn none<T>() -> Stored<T> {
    Err(StoreError::NotFound)
}

#[async_trait]
impl Users for FewRows {
    async fn create_user(&self, _: NewUser, _: SystemTime) -> Stored<User> {
        none()
    }
    async fn user(&self, _: &str) -> Stored<User> {
        none()
    }
    async fn user_by_name(&self, _: &str, _: &str) -> Stored<User> {
        none()
    }
    async fn user_by_email(&self, _: &str, _: &str) -> Stored<User> {
        none()
    }
    async fn user_by_openid(&self, _: &str, _: &str) -> Stored<User> {
        none()
    }
    async fn note_login(&self, _: &str, _: SystemTime) -> Stored<()> {
        none()
    }
    async fn set_password(&self, _: &str, _: &str, _: SystemTime) -> Stored<()> {
        none()
    }
    async fn set_role(&self, _: &str, _: &str, _: SystemTime) -> Stored<()> {
        none()
    }
    async fn set_disabled(&self, _: &str, _: bool, _: SystemTime) -> Stored<()> {
        none()
    }
    async fn users(&self, _: u32, _: Option<&str>) -> Stored<Page<User>> {
        none()
    }
    async fn delete_user(&self, _: &str, _: SystemTime) -> Stored<()> {
        none()
    }
    async fn sweep_deleted_users(&self) -> Stored<u64> {
        Ok(0)
    }
}

#[async_trait]
impl RefreshTokens for FewRows {
    async fn begin_family(&self, _: &str, _: &str, _: &[u8; 32], _: SystemTime, _: SystemTime) -> Stored<()> {
        none()
    }
    async fn rotate(
        &self,
        _: &[u8; 32],
        _: &[u8; 32],
        _: SystemTime,
        _: Duration,
        _: SystemTime,
    ) -> Stored<Rotation> {
        none()
    }
    async fn end_family_of(&self, _: &[u8; 32], _: SystemTime) -> Stored<Option<Family>> {
        none()
    }
    async fn end_families(&self, _: &str, _: SystemTime) -> Stored<u64> {
        none()
    }
    async fn sweep_refresh_tokens(&self, _: SystemTime) -> Stored<u64> {
        none()
    }
}

#[async_trait]
impl Lockouts for FewRows {
    async fn lock_state(&self, _: &str, _: &str, _: SystemTime) -> Stored<LockState> {
        none()
    }
    async fn note_failure(
        &self,
        _: &str,
        _: &str,
        _: u32,
        _: Duration,
        _: Duration,
        _: SystemTime,
    ) -> Stored<LockState> {
        none()
    }
    async fn unlock(&self, _: &str, _: &str) -> Stored<()> {
        none()
    }
}

#[async_trait]
impl Resets for FewRows {
    async fn create_reset(&self, _: &str, _: &[u8; 32], _: SystemTime) -> Stored<()> {
        none()
    }
    async fn consume_reset(&self, _: &[u8; 32], _: SystemTime) -> Stored<Option<String>> {
        none()
    }
}

no_conversations!(FewRows);

#[async_trait]
impl Store for FewRows {
    fn backend(&self) -> &'static str {
        "test"
    }
    async fn migrate(&self) -> Stored<usize> {
        Ok(0)
    }
    async fn ping(&self) -> Stored<()> {
        Ok(())
    }
    fn connections(&self) -> (u32, u32) {
        (0, 0)
    }
    async fn close(&self) {}
}

struct Word(broadcast::Sender<String>);

#[async_trait]
impl SharedState for Word {
    async fn hit(&self, _: &str, _: Limit, _: SystemTime) -> Result<Decision, SharedError> {
        Err(SharedError::Unavailable("not in this test".into()))
    }
    async fn acquire(
        &self,
        _: &str,
        _: u32,
        _: Duration,
        _: SystemTime,
    ) -> Result<Option<Lease>, SharedError> {
        Ok(None)
    }
    async fn renew(&self, _: &Lease, _: Duration, _: SystemTime) -> Result<bool, SharedError> {
        Ok(false)
    }
    async fn release(&self, _: &Lease) -> Result<(), SharedError> {
        Ok(())
    }
    async fn publish(&self, _: &str, message: &str) -> Result<(), SharedError> {
        let _ = self.0.send(message.to_owned());
        Ok(())
    }
    fn subscribe(&self, _: &str) -> broadcast::Receiver<String> {
        self.0.subscribe()
    }
    async fn append_events(&self, _: &str, _: &[(u64, Bytes)], _: Duration) -> Result<(), SharedError> {
        Err(SharedError::Unavailable("not in this test".into()))
    }
    async fn read_events(&self, _: &str, _: u64, _: usize) -> Result<Vec<(u64, Bytes)>, SharedError> {
        Ok(Vec::new())
    }
    async fn leave_note(&self, _: &str, _: &[u8], _: Duration) -> Result<(), SharedError> {
        Err(SharedError::Unavailable("not in this test".into()))
    }
    async fn take_note(&self, _: &str) -> Result<Option<Bytes>, SharedError> {
        Err(SharedError::Unavailable("not in this test".into()))
    }
    async fn ping(&self) -> Result<(), SharedError> {
        Ok(())
    }
    fn backend(&self) -> &'static str {
        "test"
    }
    fn connections(&self) -> u32 {
        0
    }
}

/// Somebody who is known.
pub(crate) fn identity(user: &str, tenant: &str, role: &str) -> Identity {
    Identity {
        user_id: user.into(),
        tenant_id: tenant.into(),
        role: role.into(),
        scopes: Vec::new(),
        channel: None,
        openid: None,
        token_id: None,
        issued_at: None,
        expires_at: None,
        proof: Proof::Token,
    }
}
