//! Accounts: registering, logging in and out, passwords, and what administrators do with users.
//!
//! The rules are here, HTTP is in `handlers/auth.rs` and `serve/admin`, rows are in `stores`. Every operation answers
//! with a [`GatewayError`] that may be sent as it is. Access tokens are signed by an [`Authority`]; refresh tokens are
//! opaque, 256 bits, kept as SHA-256 only (SECURITY rule 7).
//!
//! A family of refresh tokens is named `channel:login`. The login is the `sid` of every access token that it ever gives,
//! so that ending the login ends them all; and a refreshed one is for the same front end without another column.

mod administer;
mod audit;
mod authority;
mod delete;
mod login;
mod mail;
mod passwords;
mod register;
mod reset;
#[cfg(test)]
pub(crate) mod testing;
mod wechat;
mod wechat_login;
mod workers;

pub use administer::{CreatedKey, NewAdmin, NewKey};
pub use login::Credentials;
pub use mail::{MailError, Mailer};
pub use passwords::{MAX_BYTES, Passwords, Turn, Verdict};
pub use register::Registration;
pub use wechat::{Wechat, WechatError};

use crate::error::{GatewayError, Kind};
use crate::identity::Identity;
use crate::manifest::model::CharacterClass;
use crate::settings::{AccountSettings, Environment};
use crate::stores::{AnyStore, StoreError, Stored, User};
use rand::RngCore;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::Semaphore;

/// The tenant of callers who name none.
pub const DEFAULT_TENANT: &str = "";
/// The role that registration gives.
pub const DEFAULT_ROLE: &str = "user";
/// The role that may do all.
pub const ADMIN_ROLE: &str = "admin";
/// How long a link to a new password works.
pub const RESET_TTL: Duration = Duration::from_secs(30 * 60);
/// Links to a new password that are being sent at a time; what is beyond is not sent, and logged.
const MAILS_AT_ONCE: usize = 32;
/// Who can wait for a password worker, for each worker.
const QUEUE_A_WORKER: usize = 8;

/// The manifest's `auth` section, as far as accounts go by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Lifetime of an access token.
    pub access_ttl: Duration,
    /// Lifetime of a refresh token.
    pub refresh_ttl: Duration,
    /// How long a used refresh token is taken again.
    pub refresh_grace: Duration,
    /// bcrypt's cost.
    pub bcrypt_cost: u32,
    /// Characters a password needs at least.
    pub min_length: u32,
    /// Classes of characters a password needs.
    pub require: Vec<CharacterClass>,
    /// Failed logins that lock a name.
    pub lock_failures: u32,
    /// How long a failed login counts.
    pub lock_window: Duration,
    /// How long a lock lasts.
    pub lock_for: Duration,
}

impl Default for Rules {
    /// The seed's.
    fn default() -> Self {
        Rules {
            access_ttl: Duration::from_secs(24 * 3600),
            refresh_ttl: Duration::from_secs(7 * 24 * 3600),
            refresh_grace: Duration::ZERO,
            bcrypt_cost: 10,
            min_length: 8,
            require: vec![CharacterClass::Lower, CharacterClass::Upper, CharacterClass::Digit],
            lock_failures: 5,
            lock_window: Duration::from_secs(15 * 60),
            lock_for: Duration::from_secs(15 * 60),
        }
    }
}

/// Who signs, verifies and revokes access tokens, and says what the manifest wants.
#[async_trait::async_trait]
pub trait Authority: Send + Sync {
    /// Signs an access token for a user and a front end, of the login of this name.
    ///
    /// # Errors
    /// Where there are no keys.
    fn sign(&self, user: &User, login: &str, channel: &str, now: SystemTime) -> Result<String, GatewayError>;
    /// The rules of the manifest that serves.
    fn rules(&self) -> Rules;
    /// Who an access token is of, if it is valid and not revoked.
    fn identify(&self, token: &str, now: SystemTime) -> Option<Arc<Identity>>;
    /// Ends every access token of a login, on every replica; `expires_at` is when one of them ends, where that is known.
    ///
    /// # Errors
    /// The store's.
    async fn revoke_login(&self, login: &str, expires_at: Option<SystemTime>, now: SystemTime) -> Stored<()>;
    /// Ends every access token a user has by now, on every replica.
    ///
    /// # Errors
    /// The store's.
    async fn revoke_user(&self, user_id: &str, now: SystemTime) -> Stored<()>;
}

/// What a login gives.
#[derive(Debug, Clone)]
pub struct Session {
    /// The signed access token.
    pub access_token: String,
    /// The opaque refresh token.
    pub refresh_token: String,
    /// Lifetime of the access token.
    pub expires_in: Duration,
    /// Whose they are.
    pub user: User,
}

/// Where the time comes from.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// Everything about accounts.
pub struct Accounts {
    store: AnyStore,
    authority: Arc<dyn Authority>,
    passwords: Passwords,
    mailer: Arc<Mailer>,
    wechat: Wechat,
    wechat_tenants: Vec<String>,
    mails: Arc<Semaphore>,
    clock: Clock,
}

/// Why accounts cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// E-mail.
    #[error(transparent)]
    Mail(#[from] MailError),
    /// WeChat.
    #[error(transparent)]
    Wechat(#[from] WechatError),
}

impl Accounts {
    /// Over a store, by the process's settings. In production without a mail server it says so in the log.
    ///
    /// # Errors
    /// [`SetupError`]: a setting that is malformed.
    pub fn new(
        store: AnyStore,
        authority: Arc<dyn Authority>,
        settings: &AccountSettings,
        environment: Environment,
        clock: Clock,
    ) -> Result<Self, SetupError> {
        let mailer = Mailer::new(&settings.mail, environment)?;
        if let Err(error) = mailer.check() {
            tracing::warn!("nobody can be sent a link to a new password, and who asks is told so: {error}");
        }
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let workers = settings.password_workers.unwrap_or_else(cores).max(1);
        let queue = settings.password_queue.unwrap_or(workers * QUEUE_A_WORKER);
        Ok(Accounts {
            store,
            authority,
            passwords: Passwords::new(workers, queue),
            mailer: Arc::new(mailer),
            wechat: Wechat::new(&settings.wechat)?,
            wechat_tenants: settings.wechat.wechat_tenants.clone(),
            mails: Arc::new(Semaphore::new(MAILS_AT_ONCE)),
            clock,
        })
    }

    /// Waits until the links that were asked for are sent or given up. For the way down, when nobody asks any more.
    pub async fn links_sent(&self) {
        // Each link under way holds one; a closed semaphore would be nobody's doing.
        let _ = self.mails.acquire_many(MAILS_AT_ONCE as u32).await;
    }

    /// Who an access token is of, if it is valid and not revoked.
    pub fn identify(&self, token: &str) -> Option<Arc<Identity>> {
        self.authority.identify(token, self.now())
    }

    /// The caller's own row.
    ///
    /// # Errors
    /// 401 where the user is gone, 403 where the account is disabled.
    pub async fn me(&self, identity: &Identity) -> Result<User, GatewayError> {
        let user = match self.store.user(&identity.user_id).await {
            Ok(user) => user,
            Err(StoreError::NotFound) => return Err(Kind::InvalidToken.into()),
            Err(error) => return Err(fault(error)),
        };
        if user.disabled { Err(Kind::AccountDisabled.into()) } else { Ok(user) }
    }

    fn now(&self) -> SystemTime {
        (self.clock)()
    }

    /// Begins a session: a family of refresh tokens, and an access token.
    async fn begin(&self, user: User, channel: &str, now: SystemTime) -> Result<Session, GatewayError> {
        let rules = self.authority.rules();
        let login = uuid::Uuid::new_v4().to_string();
        let access_token = self.authority.sign(&user, &login, channel, now)?;
        let refresh_token = secret("vgr_");
        let family = format!("{channel}:{login}");
        let hash = digest(&refresh_token);
        self.store
            .begin_family(&user.id, &family, &hash, now + rules.refresh_ttl, now)
            .await
            .map_err(fault)?;
        Ok(Session { access_token, refresh_token, expires_in: rules.access_ttl, user })
    }

    /// Ends everything a user was given: refresh tokens, and access tokens signed by now.
    async fn end_sessions(&self, user_id: &str, now: SystemTime) -> Result<(), GatewayError> {
        self.store.end_families(user_id, now).await.map_err(fault)?;
        self.revoke_user(user_id, now).await
    }

    async fn revoke_user(&self, user_id: &str, now: SystemTime) -> Result<(), GatewayError> {
        self.authority.revoke_user(user_id, now).await.map_err(fault)
    }
}

/// A store's failure as the caller is told: 503 where it is away, 500 otherwise; the cause is logged, never sent.
fn fault(error: StoreError) -> GatewayError {
    match error {
        StoreError::Unavailable(_) => {
            tracing::warn!(%error, "accounts cannot reach the store");
            Kind::StoreUnavailable.into()
        }
        _ => {
            tracing::error!(%error, "accounts failed at the store");
            Kind::Internal.into()
        }
    }
}

/// A new secret of 256 bits, in hex after its kind's prefix.
fn secret(prefix: &str) -> String {
    let mut bytes = [0u8; 32];
    rand::rng().fill_bytes(&mut bytes);
    let mut text = String::with_capacity(prefix.len() + 64);
    text.push_str(prefix);
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
    text
}

/// What is kept of a secret: SHA-256 over all of its text.
pub fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret).into()
}
