//! What our tokens say, and the identity that comes of it.
//!
//! Names are the original's (`user_id`, `tenant_id`, `openid`, `channel`, `role`, `scopes`) and RFC 7519's. Ours say
//! besides: `token_use: access`; `jti`; and which login they stem from, `sid`, with the moment `sid_at` in milliseconds
//! when its holder last proved it by password or refresh token. A renewed token keeps both, a refreshed one keeps `sid`:
//! so revoking a login, or everything until a moment, ends what came of it.

use super::TokenError;
use crate::identity::{Identity, Proof};
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The claims of a token of ours, or of the original's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Claims {
    pub(super) iss: String,
    pub(super) exp: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) iat: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) nbf: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sub: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) jti: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) token_use: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sid_at: Option<u64>,
    #[serde(default)]
    pub(super) user_id: Option<String>,
    #[serde(default)]
    pub(super) tenant_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) openid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) channel: Option<String>,
    #[serde(default)]
    pub(super) role: Option<String>,
    /// The original writes `null` where there are none.
    #[serde(default)]
    pub(super) scopes: Option<Vec<String>>,
}

/// `token_use` of what opens doors.
pub(super) const ACCESS: &str = "access";
/// How far clocks may be apart (SECURITY rule 6 allows 30 s).
const LEEWAY: u64 = 5;
/// Role of callers whose token names none.
pub(super) const LEAST_ROLE: &str = "guest";
/// Longer values would not fit into headers of upstreams.
const LONGEST: usize = 256;

impl Claims {
    /// Who it is, if these claims are whole. `token_hash` stands in for the id that the original's tokens lack.
    pub(super) fn identity(self, token_hash: u128) -> Result<Identity, TokenError> {
        let (user_id, token_id, issued_at) = match self.token_use.as_deref() {
            Some(ACCESS) => {
                let sub = self.sub.filter(|sub| !sub.is_empty()).ok_or(TokenError::Invalid)?;
                if self.user_id.is_some_and(|user_id| user_id != sub) {
                    return Err(TokenError::Invalid);
                }
                let jti = self.jti.ok_or(TokenError::Invalid)?;
                let login = self.sid_at.map(|ms| at(Duration::from_millis(ms)));
                (sub, self.sid.unwrap_or(jti), login)
            }
            // A refresh token, or whatever else it is for.
            Some(_) => return Err(TokenError::Invalid),
            // The original's: no `token_use`, and the user under its own name.
            None => {
                let user_id = self.user_id.filter(|id| !id.is_empty()).ok_or(TokenError::Invalid)?;
                if self.sub.is_some_and(|sub| sub != user_id) {
                    return Err(TokenError::Invalid);
                }
                (user_id, hashed_id(token_hash), None)
            }
        };
        let issued_at = issued_at.or(self.iat.map(seconds)).ok_or(TokenError::Invalid)?;
        let identity = Identity {
            user_id: user_id.into(),
            tenant_id: self.tenant_id.unwrap_or_default().into(),
            role: self.role.filter(|role| !role.is_empty()).unwrap_or_else(|| LEAST_ROLE.to_owned()).into(),
            scopes: self.scopes.unwrap_or_default(),
            channel: self.channel.filter(|channel| !channel.is_empty()),
            openid: self.openid.filter(|openid| !openid.is_empty()),
            token_id: Some(token_id),
            issued_at: Some(issued_at),
            expires_at: Some(seconds(self.exp)),
            proof: Proof::Token,
        };
        sendable(identity)
    }
}

/// The identity again, if its parts can go into headers as they are: one that got lost on the way would make an
/// upstream take the caller for somebody else.
pub(super) fn sendable(identity: Identity) -> Result<Identity, TokenError> {
    let plain = |text: &str| text.len() <= LONGEST && text.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
    let trimmed = |text: &str| text.trim_ascii().len() == text.len();
    let parts = [&identity.user_id, &identity.tenant_id, &identity.role];
    match parts.iter().all(|part| plain(part) && trimmed(part)) {
        true => Ok(identity),
        false => Err(TokenError::Invalid),
    }
}

/// Whether it counts now, with some leeway for clocks.
pub(super) fn in_time(exp: u64, nbf: Option<u64>, now: SystemTime) -> Result<(), TokenError> {
    let now = since_epoch(now).as_secs();
    if exp.saturating_add(LEEWAY) <= now {
        return Err(TokenError::Expired);
    }
    match nbf {
        Some(nbf) if nbf > now.saturating_add(LEEWAY) => Err(TokenError::Invalid),
        _ => Ok(()),
    }
}

/// Stands for `jti` where a token has none that is ours.
pub(super) fn hashed_id(token_hash: u128) -> String {
    format!("hash:{token_hash:032x}")
}

/// A moment as NumericDate. What does not fit into the system's clock is as late as it gets.
pub(super) fn seconds(numeric: u64) -> SystemTime {
    at(Duration::from_secs(numeric))
}

/// A moment so long after 1970; see [`seconds`].
pub(super) fn at(after: Duration) -> SystemTime {
    const LATEST: Duration = Duration::from_secs(253_402_300_799);
    UNIX_EPOCH + after.min(LATEST)
}

/// Since 1970.
pub(super) fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}
