//! Access tokens: made, verified, renewed, revoked.
//!
//! [`Tokens`] is one a process. `policy` is what the manifest decides, `keys` what the settings bring, `claims` what
//! a token says, `verify` the one place that decides whether it is good, `jwks` the keys of other issuers,
//! `revocations` what is taken back, `ended` what long connections wait for, `tickets` what opens one WebSocket, `cache` what was verified lately. Asking takes no lock and no trip:
//! proxying with tokens goes on while every store is away (SECURITY rule 17).

pub(crate) mod cache;
mod claims;
mod ended;
mod jwks;
pub mod keys;
mod path;
pub mod policy;
mod revocations;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tickets;
mod verify;

pub use tickets::{Ticket, TicketError};

use crate::identity::{Identity, Proof};
use crate::shared::AnyShared;
use crate::stores::{AnyStore, Revocation, Stored, User};
use arc_swap::ArcSwap;
use cache::Cache;
use claims::{ACCESS, Claims, since_epoch};
use jwks::{KeySets, Verified};
use keys::Keys;
use policy::AuthPolicy;
use revocations::{CHANNEL, Feed, Revoked, Subject, USER, follow};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use uuid::Uuid;
use verify::Failure;

/// Makes, verifies, renews and revokes tokens.
pub struct Tokens {
    keys: Keys,
    policy: ArcSwap<AuthPolicy>,
    verified: Verified,
    sets: KeySets,
    revoked: Arc<Revoked>,
    store: AnyStore,
    shared: AnyShared,
}

/// A token that was made.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    /// The token.
    pub token: String,
    /// Its `jti`.
    pub jti: String,
    /// When it ends.
    pub expires_at: SystemTime,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("jti", &self.jti).finish_non_exhaustive()
    }
}

/// Why a token does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is not one of ours, or not for this. More would only help who forges.
    #[error("the token is not valid")]
    Invalid,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// It was taken back.
    #[error("the token has been revoked")]
    Revoked,
}

/// How much longer than tokens a revocation is kept: clocks, and what is signed while word spreads.
const MARGIN: Duration = Duration::from_secs(60);

impl Tokens {
    /// With the default policy until a table brings its own ([`adopt`](Self::adopt)). `capacity` is how many verified
    /// tokens are remembered.
    pub fn new(keys: Keys, store: AnyStore, shared: AnyShared, capacity: usize) -> Arc<Self> {
        let verified: Verified = Arc::new(Cache::new(capacity));
        Arc::new(Tokens {
            keys,
            policy: ArcSwap::default(),
            sets: KeySets::new(verified.clone()),
            verified,
            revoked: Arc::default(),
            store,
            shared,
        })
    }

    /// The live policy.
    pub fn policy(&self) -> Arc<AuthPolicy> {
        self.policy.load_full()
    }

    /// Goes by this policy from now on, and fetches the key sets it names. Called when a table becomes the live one,
    /// inside the runtime.
    pub fn adopt(&self, policy: Arc<AuthPolicy>) {
        self.sets.adopt(policy.providers.iter().map(|provider| provider.jwks.as_str()));
        self.policy.store(policy);
    }

    /// A token for a user who just proved who they are, of a login of its own; `channel` is the front end it is for.
    pub fn issue(&self, user: &User, channel: Option<&str>, now: SystemTime) -> Issued {
        self.issue_within(user, &Uuid::new_v4().to_string(), channel, now)
    }

    /// A token of the login of this name, as the first one or as one more: they end together
    /// ([`end_login`](Self::end_login)).
    pub fn issue_within(&self, user: &User, login: &str, channel: Option<&str>, now: SystemTime) -> Issued {
        let identity = Identity {
            user_id: user.id.as_str().into(),
            tenant_id: user.tenant_id.as_str().into(),
            role: user.role.as_str().into(),
            scopes: Vec::new(),
            channel: channel.map(str::to_owned),
            openid: user.openid.clone(),
            token_id: Some(login.to_owned()),
            issued_at: Some(now),
            expires_at: None,
            proof: Proof::Token,
        };
        self.sign(&identity, &self.policy.load(), now)
    }

    /// Another token of the same login with a whole lifetime, where it is due: less than `renew_within` is left, the
    /// token is ours and not revoked, and the login is not older than a refresh token may get.
    pub fn renew(&self, identity: &Identity, policy: &AuthPolicy, now: SystemTime) -> Option<Issued> {
        let left = identity.expires_at?.duration_since(now).unwrap_or_default();
        let age = now.duration_since(identity.issued_at?).unwrap_or_default();
        let due = identity.proof == Proof::Token && left < policy.renew_within && age < policy.refresh_ttl;
        if !due || self.revoked.covers(identity) {
            return None;
        }
        Some(self.sign(identity, policy, now))
    }

    /// Who a token is from, under the live policy.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Arc<Identity>, TokenError> {
        self.verify_under(&self.policy.load(), token, now)
    }

    /// Who a token is from, under the policy of the table that a request runs on. Never waits.
    ///
    /// # Errors
    /// [`TokenError`]; a key that its provider's set lacks is [`TokenError::Invalid`].
    pub fn verify_under(
        &self,
        policy: &AuthPolicy,
        token: &str,
        now: SystemTime,
    ) -> Result<Arc<Identity>, TokenError> {
        self.try_verify(policy, token, now).map_err(|failure| match failure {
            Failure::Token(error) => error,
            Failure::UnknownKey(_) => TokenError::Invalid,
        })
    }

    /// [`verify_under`](Self::verify_under), but where a provider may have a new key it is asked first, at most every
    /// 30 s and for 5 s.
    ///
    /// # Errors
    /// As there.
    pub async fn verify_patiently(
        &self,
        policy: &AuthPolicy,
        token: &str,
        now: SystemTime,
    ) -> Result<Arc<Identity>, TokenError> {
        match self.try_verify(policy, token, now) {
            Ok(identity) => Ok(identity),
            Err(Failure::Token(error)) => Err(error),
            Err(Failure::UnknownKey(set)) => {
                set.refetched().await;
                self.verify_under(policy, token, now)
            }
        }
    }

    /// Whether a caller who was let in may stay. Long connections wait for [`ended`](Self::ended).
    ///
    /// # Errors
    /// [`TokenError::Expired`] or [`TokenError::Revoked`].
    pub fn still_good(&self, identity: &Identity, now: SystemTime) -> Result<(), TokenError> {
        if identity.expires_at.is_some_and(|end| end <= now) {
            return Err(TokenError::Expired);
        }
        match self.revoked.covers(identity) {
            true => Err(TokenError::Revoked),
            false => Ok(()),
        }
    }

    /// Resolves when [`still_good`](Self::still_good) fails for a caller who was let in: what long connections wait
    /// for, to end with it (SECURITY rule 12). An API key ends too when its time is over or an administrator takes it
    /// back.
    ///
    /// It sleeps until `expires_at`, by the monotonic clock from now on, and is woken when something that may concern
    /// the caller is revoked: here at once, elsewhere within a second; never on a timer. Each wake costs one look that takes
    /// no lock. Nothing happens until it is polled, but the time runs from now.
    pub fn ended(&self, identity: &Identity) -> impl Future<Output = TokenError> + Send + Sync + use<> {
        let left = identity.expires_at.map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
        ended::ended(self.revoked.clone(), Subject::of(identity), left)
    }

    /// Ends the login that a token stems from; [`end_login`](Self::end_login).
    ///
    /// # Errors
    /// The store's.
    pub async fn revoke_login(&self, identity: &Identity, now: SystemTime) -> Stored<()> {
        match &identity.token_id {
            Some(login) => self.end_login(login, identity.expires_at, now).await,
            None => Ok(()),
        }
    }

    /// Ends a login everywhere: every token that was issued, refreshed or renewed of it. Here at once, on other replicas
    /// within a second. `expires_at` is when a token of it ends that the caller knows: another issuer's may live long.
    ///
    /// # Errors
    /// The store's.
    pub async fn end_login(
        &self,
        login: &str,
        expires_at: Option<SystemTime>,
        now: SystemTime,
    ) -> Stored<()> {
        // An earlier manifest may have given our tokens a longer life, but hardly beyond a refresh token's.
        let last = now + self.policy.load().refresh_ttl;
        self.revoke(login, now, expires_at.map_or(last, |end| end.max(last)) + MARGIN).await
    }

    /// Ends everything a user was given until now, everywhere. Logins in the same millisecond end too: give a later
    /// `now` to [`issue`](Self::issue) after this.
    ///
    /// # Errors
    /// The store's.
    pub async fn revoke_user(&self, user_id: &str, now: SystemTime) -> Stored<()> {
        let last = now + self.policy.load().refresh_ttl;
        self.revoke(&format!("{USER}{user_id}"), now, last + MARGIN).await
    }

    /// Reads the revocations there are.
    ///
    /// # Errors
    /// The store's.
    pub async fn load_revocations(&self, now: SystemTime) -> Stored<()> {
        Feed::new().read(&self.store, &self.revoked, now).await
    }

    /// Follows what is revoked, here and by other replicas, until it is dropped.
    pub fn follow(&self) -> impl Future<Output = ()> + Send + use<> {
        follow(self.store.clone(), self.shared.clone(), self.revoked.clone(), Feed::new())
    }

    async fn revoke(&self, subject: &str, now: SystemTime, until: SystemTime) -> Stored<()> {
        let revocation: Revocation = self.store.revoke(subject, now, until).await?;
        self.revoked.add(std::slice::from_ref(&revocation), now);
        // Only makes it sooner: others read the store anyway.
        if let Ok(text) = serde_json::to_string(&revocation)
            && let Err(error) = self.shared.publish(CHANNEL, &text).await
        {
            tracing::warn!(%error, "other replicas learn of a revocation from the database only");
        }
        Ok(())
    }

    fn try_verify(
        &self,
        policy: &AuthPolicy,
        token: &str,
        now: SystemTime,
    ) -> Result<Arc<Identity>, Failure> {
        let hash = token_hash(token);
        // What one policy lets pass another may not.
        let key = hash ^ u128::from(policy.fingerprint());
        let identity = match self.verified.get(key, now) {
            Some(identity) => identity,
            None => {
                let identity = verify::verify(&self.keys, &self.sets, policy, token, hash, now)?;
                let identity = Arc::new(identity);
                if let Some(until) = identity.expires_at {
                    self.verified.put(key, until, now, identity.clone());
                }
                identity
            }
        };
        match self.revoked.covers(&identity) {
            true => Err(TokenError::Revoked.into()),
            false => Ok(identity),
        }
    }

    fn sign(&self, identity: &Identity, policy: &AuthPolicy, now: SystemTime) -> Issued {
        let jti = Uuid::new_v4().to_string();
        let at = since_epoch(now).as_secs();
        let exp = at + policy.access_ttl.as_secs().max(1);
        let user_id = identity.user_id.to_string();
        let claims = Claims {
            iss: policy.issuer.clone(),
            exp,
            iat: Some(at),
            nbf: Some(at),
            sub: Some(user_id.clone()),
            jti: Some(jti.clone()),
            token_use: Some(ACCESS.to_owned()),
            sid: identity.token_id.clone(),
            sid_at: identity.issued_at.map(|login| since_epoch(login).as_millis() as u64),
            user_id: Some(user_id),
            tenant_id: Some(identity.tenant_id.to_string()),
            openid: identity.openid.clone(),
            channel: identity.channel.clone(),
            role: Some(identity.role.to_string()),
            scopes: Some(identity.scopes.clone()),
        };
        Issued { token: self.keys.sign(&claims), jti, expires_at: claims::seconds(exp) }
    }
}

/// Half of SHA-256: names a token without being one.
fn token_hash(token: &str) -> u128 {
    let digest = Sha256::digest(token.as_bytes());
    let mut half = [0; 16];
    half.copy_from_slice(&digest[..16]);
    u128::from_le_bytes(half)
}
