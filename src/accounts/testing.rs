//! A store in memory and an authority that signs nothing, for tests of what stands on them.

use super::{Accounts, Authority, Rules};
use crate::error::GatewayError;
use crate::identity::{Identity, Proof};
use crate::settings::{AccountSettings, Environment};
use crate::stores::*;
use async_trait::async_trait;
use clap::Parser;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

#[derive(Default)]
struct Rows {
    users: Vec<User>,
    tokens: HashMap<[u8; 32], (String, SystemTime, Option<SystemTime>)>,
    families: HashMap<String, (String, bool)>,
    failures: HashMap<(String, String), (Vec<SystemTime>, Option<SystemTime>)>,
    resets: HashMap<[u8; 32], (String, SystemTime)>,
    keys: Vec<([u8; 32], ApiKey)>,
}

/// The store.
#[derive(Default)]
pub(crate) struct Fake {
    rows: Mutex<Rows>,
    /// Turned on, every call fails as if the database were away.
    pub(crate) away: AtomicBool,
}

impl Fake {
    fn rows(&self) -> Stored<std::sync::MutexGuard<'_, Rows>> {
        match self.away.load(Ordering::Relaxed) {
            true => Err(StoreError::Unavailable("it is away".into())),
            false => Ok(self.rows.lock().unwrap()),
        }
    }

    /// Changes a user's row behind everybody's back.
    pub(crate) fn alter(&self, name: &str, change: impl FnOnce(&mut User)) {
        let mut rows = self.rows.lock().unwrap();
        change(rows.users.iter_mut().find(|user| user.username == name).unwrap());
    }

    fn find(&self, wanted: impl Fn(&User) -> bool) -> Stored<User> {
        self.rows()?.users.iter().find(|user| wanted(user)).cloned().ok_or(StoreError::NotFound)
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut User)) -> Stored<()> {
        let mut rows = self.rows()?;
        let user = rows.users.iter_mut().find(|user| user.id == id).ok_or(StoreError::NotFound)?;
        change(user);
        Ok(())
    }
}

fn same(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

#[async_trait]
impl Users for Fake {
    async fn create_user(&self, new: NewUser, now: SystemTime) -> Stored<User> {
        let mut rows = self.rows()?;
        for user in rows.users.iter().filter(|user| user.tenant_id == new.tenant_id) {
            if same(&user.username, &new.username) {
                return Err(StoreError::Conflict("username"));
            }
            if user.email.is_some()
                && user.email.as_ref().map(|e| e.to_lowercase())
                    == new.email.as_ref().map(|e| e.to_lowercase())
            {
                return Err(StoreError::Conflict("email"));
            }
            if user.openid.is_some() && user.openid == new.openid {
                return Err(StoreError::Conflict("openid"));
            }
        }
        let user = User {
            id: new.id,
            tenant_id: new.tenant_id,
            username: new.username,
            email: new.email,
            password_hash: new.password_hash,
            role: new.role,
            openid: new.openid,
            disabled: false,
            created_at: now,
            last_login_at: None,
        };
        rows.users.push(user.clone());
        Ok(user)
    }
    async fn user(&self, id: &str) -> Stored<User> {
        self.find(|user| user.id == id)
    }
    async fn user_by_name(&self, tenant: &str, username: &str) -> Stored<User> {
        self.find(|user| user.tenant_id == tenant && same(&user.username, username))
    }
    async fn user_by_email(&self, tenant: &str, email: &str) -> Stored<User> {
        self.find(|user| user.tenant_id == tenant && user.email.as_ref().is_some_and(|own| same(own, email)))
    }
    async fn user_by_openid(&self, tenant: &str, openid: &str) -> Stored<User> {
        self.find(|user| user.tenant_id == tenant && user.openid.as_deref() == Some(openid))
    }
    async fn note_login(&self, id: &str, now: SystemTime) -> Stored<()> {
        self.change(id, |user| user.last_login_at = Some(now))
    }
    async fn set_password(&self, id: &str, hash: &str, _now: SystemTime) -> Stored<()> {
        self.change(id, |user| user.password_hash = Some(hash.to_owned()))
    }
    async fn set_role(&self, id: &str, role: &str, _now: SystemTime) -> Stored<()> {
        self.change(id, |user| user.role = role.to_owned())
    }
    async fn set_disabled(&self, id: &str, disabled: bool, _now: SystemTime) -> Stored<()> {
        self.change(id, |user| user.disabled = disabled)
    }
    async fn users(&self, limit: u32, cursor: Option<&str>) -> Stored<Page<User>> {
        let rows = self.rows()?;
        let from = cursor.map_or(0, |cursor| cursor.parse().unwrap());
        let items: Vec<_> = rows.users.iter().rev().skip(from).take(limit as usize).cloned().collect();
        let next = from + items.len();
        Ok(Page { items, next: (next < rows.users.len()).then(|| next.to_string()) })
    }
    async fn delete_user(&self, id: &str, _now: SystemTime) -> Stored<()> {
        let mut rows = self.rows()?;
        let before = rows.users.len();
        rows.users.retain(|user| user.id != id);
        if rows.users.len() == before { Err(StoreError::NotFound) } else { Ok(()) }
    }
    async fn sweep_deleted_users(&self) -> Stored<u64> {
        Ok(0)
    }
}

#[async_trait]
impl RefreshTokens for Fake {
    async fn begin_family(
        &self,
        user_id: &str,
        family: &str,
        hash: &[u8; 32],
        expires_at: SystemTime,
        _now: SystemTime,
    ) -> Stored<()> {
        let mut rows = self.rows()?;
        rows.families.insert(family.to_owned(), (user_id.to_owned(), false));
        rows.tokens.insert(*hash, (family.to_owned(), expires_at, None));
        Ok(())
    }
    async fn rotate(
        &self,
        hash: &[u8; 32],
        next: &[u8; 32],
        next_expires_at: SystemTime,
        grace: Duration,
        now: SystemTime,
    ) -> Stored<Rotation> {
        let mut rows = self.rows()?;
        let rows = &mut *rows;
        let Some((family, expires_at, used)) = rows.tokens.get_mut(hash) else {
            return Ok(Rotation::Refused);
        };
        let family = family.clone();
        let (user_id, ended) = rows.families.get_mut(&family).unwrap();
        if *ended || *expires_at <= now {
            return Ok(Rotation::Refused);
        }
        let found = Family { id: family.clone(), user_id: user_id.clone() };
        let first = used.is_none();
        if used.is_some_and(|at| grace.is_zero() || at + grace < now) {
            *ended = true;
            return Ok(Rotation::Reused(found));
        }
        used.get_or_insert(now);
        rows.tokens.insert(*next, (family, next_expires_at, None));
        Ok(if first { Rotation::Rotated(found) } else { Rotation::Repeated(found) })
    }
    async fn end_family_of(&self, hash: &[u8; 32], _now: SystemTime) -> Stored<Option<Family>> {
        let mut rows = self.rows()?;
        let Some((family, ..)) = rows.tokens.get(hash).cloned() else { return Ok(None) };
        let (user_id, ended) = rows.families.get_mut(&family).unwrap();
        *ended = true;
        Ok(Some(Family { id: family, user_id: user_id.clone() }))
    }
    async fn end_families(&self, user_id: &str, _now: SystemTime) -> Stored<u64> {
        let mut rows = self.rows()?;
        let mut count = 0;
        for (_, ended) in rows.families.values_mut().filter(|(owner, ended)| owner == user_id && !ended) {
            *ended = true;
            count += 1;
        }
        Ok(count)
    }
    async fn sweep_refresh_tokens(&self, _before: SystemTime) -> Stored<u64> {
        Ok(0)
    }
}

#[async_trait]
impl Revocations for Fake {
    async fn revoke(&self, _: &str, _: SystemTime, _: SystemTime) -> Stored<Revocation> {
        unreachable!("accounts revoke through their authority")
    }
    async fn revocations_since(&self, _: i64, _: SystemTime) -> Stored<Vec<Revocation>> {
        Ok(Vec::new())
    }
    async fn revocations_changed(&self, patience: Duration) {
        tokio::time::sleep(patience).await;
    }
    async fn sweep_revocations(&self, _: SystemTime) -> Stored<u64> {
        Ok(0)
    }
}

#[async_trait]
impl Lockouts for Fake {
    async fn lock_state(&self, tenant: &str, name: &str, now: SystemTime) -> Stored<LockState> {
        let rows = self.rows()?;
        let found = rows.failures.get(&(tenant.to_owned(), name.to_owned()));
        let (failed, until) = found.cloned().unwrap_or_default();
        Ok(LockState { failures: failed.len() as u32, locked_until: until.filter(|until| *until > now) })
    }
    async fn note_failure(
        &self,
        tenant: &str,
        name: &str,
        limit: u32,
        window: Duration,
        lock_for: Duration,
        now: SystemTime,
    ) -> Stored<LockState> {
        let mut rows = self.rows()?;
        let (failed, until) = rows.failures.entry((tenant.to_owned(), name.to_owned())).or_default();
        failed.retain(|at| *at + window > now);
        failed.push(now);
        if failed.len() as u32 >= limit {
            failed.clear();
            *until = Some(now + lock_for);
        }
        Ok(LockState { failures: failed.len() as u32, locked_until: until.filter(|until| *until > now) })
    }
    async fn unlock(&self, tenant: &str, name: &str) -> Stored<()> {
        self.rows()?.failures.remove(&(tenant.to_owned(), name.to_owned()));
        Ok(())
    }
}

#[async_trait]
impl Resets for Fake {
    async fn create_reset(&self, user_id: &str, hash: &[u8; 32], expires_at: SystemTime) -> Stored<()> {
        let mut rows = self.rows()?;
        rows.resets.retain(|_, (owner, _)| owner != user_id);
        rows.resets.insert(*hash, (user_id.to_owned(), expires_at));
        Ok(())
    }
    async fn consume_reset(&self, hash: &[u8; 32], now: SystemTime) -> Stored<Option<String>> {
        Ok(self.rows()?.resets.remove(hash).filter(|(_, end)| *end > now).map(|(user, _)| user))
    }
}

#[async_trait]
impl ApiKeys for Fake {
    async fn create_api_key(&self, key: ApiKey, hash: &[u8; 32]) -> Stored<()> {
        self.rows()?.keys.push((*hash, key));
        Ok(())
    }
    async fn api_key(&self, hash: &[u8; 32], _now: SystemTime) -> Stored<ApiKey> {
        let rows = self.rows()?;
        let found = rows.keys.iter().find(|(own, key)| own == hash && !key.revoked);
        found.map(|(_, key)| key.clone()).ok_or(StoreError::NotFound)
    }
    async fn api_keys(&self) -> Stored<Vec<ApiKey>> {
        Ok(self.rows()?.keys.iter().rev().map(|(_, key)| key.clone()).collect())
    }
    async fn revoke_api_key(&self, id: &str) -> Stored<()> {
        let mut rows = self.rows()?;
        let (_, key) = rows.keys.iter_mut().find(|(_, key)| key.id == id).ok_or(StoreError::NotFound)?;
        key.revoked = true;
        Ok(())
    }
}

no_conversations!(Fake);

#[async_trait]
impl Store for Fake {
    fn backend(&self) -> &'static str {
        "fake"
    }
    async fn migrate(&self) -> Stored<usize> {
        Ok(0)
    }
    async fn ping(&self) -> Stored<()> {
        self.rows().map(drop)
    }
    fn connections(&self) -> (u32, u32) {
        (0, 0)
    }
    async fn close(&self) {}
}

/// An authority whose tokens are readable: `login|user|role|channel|tenant`.
#[derive(Default)]
pub(crate) struct Plain {
    pub(crate) rules: Mutex<Rules>,
    pub(crate) revoked: Mutex<Vec<String>>,
}

#[async_trait]
impl Authority for Plain {
    fn sign(&self, user: &User, login: &str, channel: &str, _: SystemTime) -> Result<String, GatewayError> {
        Ok(format!("{login}|{}|{}|{channel}|{}", user.id, user.role, user.tenant_id))
    }
    fn rules(&self) -> Rules {
        self.rules.lock().unwrap().clone()
    }
    fn identify(&self, token: &str, now: SystemTime) -> Option<Arc<Identity>> {
        let parts: Vec<&str> = token.split('|').collect();
        let [login, user, role, channel, tenant] = parts[..] else { return None };
        let revoked = self.revoked.lock().unwrap();
        let alive = !revoked.iter().any(|subject| subject == login || subject == &format!("user:{user}"));
        alive.then(|| {
            Arc::new(Identity {
                user_id: user.into(),
                tenant_id: tenant.into(),
                role: role.into(),
                scopes: Vec::new(),
                channel: Some(channel.to_owned()),
                openid: None,
                token_id: Some(login.to_owned()),
                issued_at: Some(now),
                expires_at: Some(now + Duration::from_secs(60)),
                proof: Proof::Token,
            })
        })
    }
    async fn revoke_login(&self, login: &str, _: Option<SystemTime>, _: SystemTime) -> Stored<()> {
        self.revoked.lock().unwrap().push(login.to_owned());
        Ok(())
    }
    async fn revoke_user(&self, user_id: &str, _: SystemTime) -> Stored<()> {
        self.revoked.lock().unwrap().push(format!("user:{user_id}"));
        Ok(())
    }
}

/// Accounts over fakes, with a clock that is set by hand.
pub(crate) struct House {
    pub(crate) store: Arc<Fake>,
    pub(crate) authority: Arc<Plain>,
    pub(crate) accounts: Arc<Accounts>,
    pub(crate) seconds: Arc<AtomicU64>,
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    settings: AccountSettings,
}

impl House {
    /// With these flags of `serve`, in development, with cheap hashes.
    pub(crate) fn with(flags: &[&str]) -> Self {
        House::in_environment(flags, Environment::Development)
    }

    pub(crate) fn in_environment(flags: &[&str], environment: Environment) -> Self {
        let settings = Cli::parse_from(std::iter::once(&"test").chain(flags)).settings;
        let (store, authority) = (Arc::new(Fake::default()), Arc::new(Plain::default()));
        authority.rules.lock().unwrap().bcrypt_cost = 4;
        let seconds = Arc::new(AtomicU64::new(1_700_000_000));
        let ticking = seconds.clone();
        let clock: super::Clock =
            Arc::new(move || SystemTime::UNIX_EPOCH + Duration::from_secs(ticking.load(Ordering::Relaxed)));
        let accounts =
            Accounts::new(store.clone(), authority.clone(), &settings, environment, clock).unwrap();
        House { store, authority, accounts: Arc::new(accounts), seconds }
    }

    pub(crate) fn pass(&self, seconds: u64) {
        self.seconds.fetch_add(seconds, Ordering::Relaxed);
    }
}
