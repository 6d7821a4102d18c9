//! Durable rows: users, refresh tokens, revocations, lockouts, keys, conversations. SQLite where nothing is set, PostgreSQL where
//! replicas share one.
//!
//! One trait a concern, so that who needs users does not see keys; [`Store`] is all of them. To add a backend: one
//! file that implements them, one arm in [`open`], one folder of migrations; the contract suite in `tests.rs` then
//! runs over it. What both backends say in the same words is written once, in `portable/`. Every call has a deadline;
//! every statement is parameterised; times are given by the caller.
//!
//! Times are milliseconds since 1970 in both databases: exactly what the traits and the tokens carry, compared the
//! same way on both, free of time zones. What is finer than a millisecond is dropped when it is stored.

#[cfg(test)]
mod absent;
mod bell;
mod conversations;
mod faults;
mod fold;
mod lockout;
mod portable;
mod postgres;
mod rows;
mod sqlite;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use conversations::{
    Author, ChatSession, Conversations, Message, MessageStatus, NewTurn, Once, Order, Owner, Piece, RetryKey,
    TurnEnd, TurnRef, Turns,
};
pub use rows::folded;

#[cfg(test)]
pub(crate) use absent::no_conversations;

use crate::settings::StoreSettings;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Why a store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The row is not there.
    #[error("not found")]
    NotFound,
    /// No page of this list ended there.
    #[error("not a cursor of this list")]
    BadCursor,
    /// A unique value exists already.
    #[error("already exists: {0}")]
    Conflict(&'static str),
    /// The database does not answer in time or cannot be reached.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// Anything else; logged, never sent.
    #[error("the database failed: {0}")]
    Failed(String),
}

/// What stores answer.
pub type Stored<T> = Result<T, StoreError>;

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// UUID.
    pub id: String,
    /// Tenant; empty for the default one.
    pub tenant_id: String,
    /// As typed; unique in its tenant whatever the case.
    pub username: String,
    /// As typed; unique in its tenant whatever the case. None for WeChat users without one.
    pub email: Option<String>,
    /// bcrypt, `$2a$`, `$2b$` or `$2y$`; none where no password was set.
    pub password_hash: Option<String>,
    /// Role's name.
    pub role: String,
    /// WeChat's id.
    pub openid: Option<String>,
    /// Whether logging in is forbidden.
    pub disabled: bool,
    /// When it was made.
    pub created_at: SystemTime,
    /// Last successful login.
    pub last_login_at: Option<SystemTime>,
}

/// A user to be made.
#[derive(Debug, Clone)]
pub struct NewUser {
    /// UUID.
    pub id: String,
    /// Tenant.
    pub tenant_id: String,
    /// As typed.
    pub username: String,
    /// As typed.
    pub email: Option<String>,
    /// bcrypt.
    pub password_hash: Option<String>,
    /// Role's name.
    pub role: String,
    /// WeChat's id.
    pub openid: Option<String>,
}

/// A page of a list and where the next begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// Its rows.
    pub items: Vec<T>,
    /// Cursor of the next page, if there is one.
    pub next: Option<String>,
}

/// Users.
#[async_trait]
pub trait Users: Send + Sync {
    /// Makes one. `Conflict("username")`, `Conflict("email")` or `Conflict("openid")` if it is taken.
    async fn create_user(&self, user: NewUser, now: SystemTime) -> Stored<User>;
    /// By id, deleted ones not.
    async fn user(&self, id: &str) -> Stored<User>;
    /// By name in a tenant, whatever the case.
    async fn user_by_name(&self, tenant: &str, username: &str) -> Stored<User>;
    /// By e-mail in a tenant, whatever the case.
    async fn user_by_email(&self, tenant: &str, email: &str) -> Stored<User>;
    /// By WeChat's id in a tenant.
    async fn user_by_openid(&self, tenant: &str, openid: &str) -> Stored<User>;
    /// Notes a login.
    async fn note_login(&self, id: &str, now: SystemTime) -> Stored<()>;
    /// Sets a password hash.
    async fn set_password(&self, id: &str, hash: &str, now: SystemTime) -> Stored<()>;
    /// Sets the role.
    async fn set_role(&self, id: &str, role: &str, now: SystemTime) -> Stored<()>;
    /// Forbids or allows logging in.
    async fn set_disabled(&self, id: &str, disabled: bool, now: SystemTime) -> Stored<()>;
    /// Newest first; `cursor` from the page before.
    async fn users(&self, limit: u32, cursor: Option<&str>) -> Stored<Page<User>>;
    /// Deletes a user with all that belongs to it, and revokes the API keys it made. From the first transaction on there
    /// is no such user and its names are free; its rows go in batches after that. `NotFound` where there is no row;
    /// called again after it broke off, it goes on.
    async fn delete_user(&self, id: &str, now: SystemTime) -> Stored<()>;
    /// Ends the deletions that broke off (the process died, the database went away); how many users they were.
    async fn sweep_deleted_users(&self) -> Stored<u64>;
}

/// The refresh tokens that stem from one login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// Its name.
    pub id: String,
    /// Whose it is.
    pub user_id: String,
}

/// What came of presenting a refresh token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rotation {
    /// It was good and is used up now; the new one stands in its place.
    Rotated(Family),
    /// It was used a moment ago, within the grace; the new one stands beside the others that it was exchanged for.
    Repeated(Family),
    /// It was used before that: the family is ended.
    Reused(Family),
    /// It is unknown, over, or ended.
    Refused,
}

/// Refresh tokens: opaque, stored hashed, single use (SECURITY rule 7).
#[async_trait]
pub trait RefreshTokens: Send + Sync {
    /// Begins a family with its first token.
    async fn begin_family(
        &self,
        user_id: &str,
        family: &str,
        token_hash: &[u8; 32],
        expires_at: SystemTime,
        now: SystemTime,
    ) -> Stored<()>;
    /// Uses one up and puts another in its place, in one transaction whose decision is one conditional UPDATE: of any
    /// number of parallel calls with the same token exactly one rotates. The others find it used: up to `grace` after
    /// that moment they repeat, and their token stands beside the first's; afterwards it is reuse, which ends the family
    /// with every token of it. A grace of zero makes any second call reuse.
    async fn rotate(
        &self,
        token_hash: &[u8; 32],
        next_hash: &[u8; 32],
        next_expires_at: SystemTime,
        grace: Duration,
        now: SystemTime,
    ) -> Stored<Rotation>;
    /// Ends the family of a token; which, if the token is known.
    async fn end_family_of(&self, token_hash: &[u8; 32], now: SystemTime) -> Stored<Option<Family>>;
    /// Ends every family of a user; how many.
    async fn end_families(&self, user_id: &str, now: SystemTime) -> Stored<u64>;
    /// Removes what is over since before `before`; how many.
    async fn sweep_refresh_tokens(&self, before: SystemTime) -> Stored<u64>;
}

/// One revocation: of a token, or of everything a user was given until a moment.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Revocation {
    /// Ascending; what a replica has seen.
    pub serial: i64,
    /// A token's `jti`, or `user:` and a user's id.
    pub subject: String,
    /// Tokens signed at or before this moment (seconds since 1970, milliseconds kept) are revoked; a single token's own.
    pub not_after_ms: i64,
    /// When the last token concerned is over, and this may be forgotten (milliseconds since 1970).
    pub expires_at_ms: i64,
}

/// Revocations, and word of them between replicas.
#[async_trait]
pub trait Revocations: Send + Sync {
    /// Adds one, and wakes listeners on every replica where the backend can (PostgreSQL NOTIFY).
    async fn revoke(
        &self,
        subject: &str,
        not_after: SystemTime,
        expires_at: SystemTime,
    ) -> Stored<Revocation>;
    /// Those after a serial number that still count, ascending, at most 1000.
    async fn revocations_since(&self, serial: i64, now: SystemTime) -> Stored<Vec<Revocation>>;
    /// Waits until there may be new ones: woken by the backend, or after `patience`.
    async fn revocations_changed(&self, patience: Duration);
    /// Removes those that are over; how many.
    async fn sweep_revocations(&self, now: SystemTime) -> Stored<u64>;
}

/// Failed logins of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockState {
    /// Failures that count now.
    pub failures: u32,
    /// Locked until then.
    pub locked_until: Option<SystemTime>,
}

/// Lockout: counts on the normalised name, unknown names too (SECURITY rule 8).
#[async_trait]
pub trait Lockouts: Send + Sync {
    /// How a name stands.
    async fn lock_state(&self, tenant: &str, name: &str, now: SystemTime) -> Stored<LockState>;
    /// Counts a failure; failures older than `window` do not count; at `limit` the name is locked for `lock_for`.
    async fn note_failure(
        &self,
        tenant: &str,
        name: &str,
        limit: u32,
        window: Duration,
        lock_for: Duration,
        now: SystemTime,
    ) -> Stored<LockState>;
    /// Forgets failures and lock.
    async fn unlock(&self, tenant: &str, name: &str) -> Stored<()>;
}

/// Single-use secrets sent by e-mail: password resets.
#[async_trait]
pub trait Resets: Send + Sync {
    /// Keeps the hash of one; earlier ones of the user are void.
    async fn create_reset(&self, user_id: &str, hash: &[u8; 32], expires_at: SystemTime) -> Stored<()>;
    /// Uses one up; whose it was, if it was good.
    async fn consume_reset(&self, hash: &[u8; 32], now: SystemTime) -> Stored<Option<String>>;
}

/// An API key: the key itself is never stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// UUID.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// Tenant.
    pub tenant_id: String,
    /// Who made it.
    pub created_by: String,
    /// `resource:action`; what it may do.
    pub permissions: Vec<String>,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it ends.
    pub expires_at: Option<SystemTime>,
    /// Whether it was taken back.
    pub revoked: bool,
}

/// API keys.
#[async_trait]
pub trait ApiKeys: Send + Sync {
    /// Keeps one under the hash of its secret.
    async fn create_api_key(&self, key: ApiKey, hash: &[u8; 32]) -> Stored<()>;
    /// The live one of a secret's hash.
    async fn api_key(&self, hash: &[u8; 32], now: SystemTime) -> Stored<ApiKey>;
    /// All of them, newest first.
    async fn api_keys(&self) -> Stored<Vec<ApiKey>>;
    /// Takes one back.
    async fn revoke_api_key(&self, id: &str) -> Stored<()>;
}

/// Everything a backend does.
#[async_trait]
pub trait Store:
    Users + RefreshTokens + Revocations + Lockouts + Resets + ApiKeys + Conversations + Turns
{
    /// Which it is: `sqlite` or `postgres`.
    fn backend(&self) -> &'static str;
    /// Brings the schema up to date; safe when replicas start together. The number of migrations that ran.
    async fn migrate(&self) -> Stored<usize>;
    /// Whether it answers, within a second.
    async fn ping(&self) -> Stored<()>;
    /// Connections in use and at rest, for metrics.
    fn connections(&self) -> (u32, u32);
    /// Closes it in order.
    async fn close(&self);
}

/// The store behind a URL.
pub type AnyStore = Arc<dyn Store>;

/// How much a store may take: connections and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreLimits {
    /// Connections of the pool; on SQLite, of readers, and no more of them than there are cores.
    pub max_connections: u32,
    /// How long a call waits for a connection.
    pub acquire_timeout: Duration,
    /// How long one statement may run, enforced by PostgreSQL; on SQLite, how long it waits for another process.
    pub statement_timeout: Duration,
    /// How long a call may take in all.
    pub call_timeout: Duration,
    /// How long [`Store::migrate`] may take, waiting for other replicas included.
    pub migrate_timeout: Duration,
}

impl From<&StoreSettings> for StoreLimits {
    fn from(settings: &StoreSettings) -> Self {
        StoreLimits {
            max_connections: settings.db_max_connections,
            acquire_timeout: settings.db_acquire_timeout.0,
            statement_timeout: settings.db_statement_timeout.0,
            call_timeout: settings.db_call_timeout.0,
            ..StoreLimits::default()
        }
    }
}

impl Default for StoreLimits {
    fn default() -> Self {
        StoreLimits {
            max_connections: 100,
            acquire_timeout: Duration::from_secs(2),
            statement_timeout: Duration::from_secs(3),
            call_timeout: Duration::from_secs(5),
            migrate_timeout: Duration::from_secs(60),
        }
    }
}

/// Opens the store behind a URL: `sqlite://FILE` (made if it is missing), `sqlite::memory:` (for tests),
/// `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, also as `postgresql:`, with libpq's `sslmode` and so on.
///
/// SQLite's file is opened here; PostgreSQL is first reached by a call, so that a gateway starts while it is away.
/// Nothing is migrated: call [`Store::migrate`]. Needs a tokio runtime.
///
/// # Errors
/// What is wrong with the URL or the file. A password in the URL is in no error.
pub async fn open(url: &str, limits: &StoreLimits) -> Stored<AnyStore> {
    match url.split_once(':') {
        Some(("sqlite", _)) => Ok(Arc::new(sqlite::SqliteStore::open(url, limits).await?)),
        Some(("postgres" | "postgresql", _)) => Ok(Arc::new(postgres::PostgresStore::open(url, limits)?)),
        // Nothing of the URL is said: whatever it is, it may be a secret.
        _ => Err(StoreError::Failed(
            "DATABASE_URL begins neither with `sqlite:` nor with `postgres:` or `postgresql:`; \
             write sqlite://FILE or postgres://USER:PASSWORD@HOST:PORT/DATABASE"
                .to_owned(),
        )),
    }
}
