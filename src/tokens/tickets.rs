//! Tickets: what opens one WebSocket for callers who can set neither a header nor a subprotocol.
//!
//! A ticket stands in a URL, and URLs are written down along the way (histories, logs of other proxies). So it is not a
//! token: 256 random bits that say nothing, that open one connection, once, within `auth.ticket_ttl` (30 s). Whoever
//! finds one later finds a spent one. Shared state keeps only its hash, with the identity that the access token
//! proved: its login and its end go along, so that revoking and expiry end the ticket, and the connection that it opened.
//!
//! Where shared state is away nobody gets a ticket and none counts (503): one that only this replica knew would fail at
//! another.

use super::claims::{at, since_epoch};
use super::{TokenError, Tokens};
use crate::identity::{Identity, Proof};
use crate::shared::SharedError;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngCore as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A ticket that was made.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket {
    /// What the caller sends as `?ticket=`: 43 characters that need no escape.
    pub ticket: String,
    /// How long it can be used.
    pub expires_in: Duration,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket").field("expires_in", &self.expires_in).finish_non_exhaustive()
    }
}

/// Why a ticket does not count, or cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TicketError {
    /// It was never given out, was used, or its time is over.
    #[error("the ticket is not valid any more")]
    Spent,
    /// The login that it stems from has ended.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Nobody can say: shared state is away.
    #[error(transparent)]
    Shared(#[from] SharedError),
}

/// An identity on its way. Times are milliseconds since 1970.
#[derive(Serialize, Deserialize)]
struct Note {
    user: Arc<str>,
    tenant: Arc<str>,
    role: Arc<str>,
    scopes: Vec<String>,
    channel: Option<String>,
    openid: Option<String>,
    login: Option<String>,
    since: Option<u64>,
    until: Option<u64>,
    proof: Proof,
}

impl Tokens {
    /// A ticket for somebody who was let in; good for `auth.ticket_ttl` of the live policy, and once.
    ///
    /// # Errors
    /// [`TicketError::Shared`].
    pub async fn issue_ticket(&self, identity: &Identity) -> Result<Ticket, TicketError> {
        let mut secret = [0u8; 32];
        rand::rng().fill_bytes(&mut secret);
        let ticket = URL_SAFE_NO_PAD.encode(secret);
        let expires_in = self.policy.load().ticket_ttl;
        // Strings, numbers and lists of strings: there is always a JSON for that.
        let note = serde_json::to_vec(&Note::of(identity)).unwrap_or_default();
        self.shared.leave_note(&key(&ticket), &note, expires_in).await?;
        Ok(Ticket { ticket, expires_in })
    }

    /// Takes a ticket: of all who send it, one is let in, as who asked for it.
    ///
    /// # Errors
    /// [`TicketError`].
    pub async fn redeem_ticket(&self, ticket: &str, now: SystemTime) -> Result<Arc<Identity>, TicketError> {
        let note = self.shared.take_note(&key(ticket)).await?.ok_or(TicketError::Spent)?;
        // A note that cannot be read is of another version's.
        let note: Note = serde_json::from_slice(&note).map_err(|_| TicketError::Spent)?;
        let identity = note.identity();
        self.still_good(&identity, now)?;
        Ok(Arc::new(identity))
    }
}

/// What names a ticket in shared state, without being one.
fn key(ticket: &str) -> String {
    ["ticket:", &URL_SAFE_NO_PAD.encode(Sha256::digest(ticket))].concat()
}

impl Note {
    fn of(identity: &Identity) -> Self {
        let ms = |time: SystemTime| since_epoch(time).as_millis() as u64;
        Note {
            user: identity.user_id.clone(),
            tenant: identity.tenant_id.clone(),
            role: identity.role.clone(),
            scopes: identity.scopes.clone(),
            channel: identity.channel.clone(),
            openid: identity.openid.clone(),
            login: identity.token_id.clone(),
            since: identity.issued_at.map(ms),
            until: identity.expires_at.map(ms),
            proof: identity.proof,
        }
    }

    fn identity(self) -> Identity {
        let time = |ms: u64| at(Duration::from_millis(ms));
        Identity {
            user_id: self.user,
            tenant_id: self.tenant,
            role: self.role,
            scopes: self.scopes,
            channel: self.channel,
            openid: self.openid,
            token_id: self.login,
            issued_at: self.since.map(time),
            expires_at: self.until.map(time),
            proof: self.proof,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Keys;
    use super::super::testing::{SECRET, backends, identity, user};
    use super::*;
    use crate::shared::Memory;
    use futures_util::FutureExt as _;

    const NOW: fn() -> SystemTime = SystemTime::now;

    fn tokens() -> Arc<Tokens> {
        Tokens::new(Keys::new(SECRET.as_bytes(), &[]), backends().0, Arc::new(Memory::new()), 8)
    }

    #[tokio::test]
    async fn a_ticket_stands_for_who_asked_and_once() {
        let tokens = tokens();
        let issued = tokens.issue(&user("u", "t", "user"), Some("web"), NOW());
        let asked = tokens.verify(&issued.token, NOW()).unwrap();
        let first = tokens.issue_ticket(&asked).await.unwrap();
        let second = tokens.issue_ticket(&asked).await.unwrap();
        assert_eq!((first.ticket.len(), first.expires_in), (43, Duration::from_secs(30)));
        assert_ne!(first.ticket, second.ticket);
        assert_eq!(tokens.redeem_ticket(&first.ticket, NOW()).await.unwrap(), asked);
        for spent in [first.ticket.as_str(), "", "unknown"] {
            let refused = tokens.redeem_ticket(spent, NOW()).await;
            assert!(matches!(refused, Err(TicketError::Spent)), "{spent}: {refused:?}");
        }
        assert!(!format!("{second:?}").contains(&second.ticket));
    }

    #[tokio::test]
    async fn everything_that_is_known_of_a_caller_goes_along() {
        let tokens = tokens();
        let whole = Identity {
            scopes: vec!["chat:read".into()],
            channel: Some("wechat".into()),
            openid: Some("o".into()),
            token_id: Some("login".into()),
            issued_at: Some(at(Duration::from_millis(1_700_000_000_123))),
            expires_at: Some(at(Duration::from_millis(4_000_000_000_456))),
            proof: Proof::Provider,
            ..identity("u", "t", "r")
        };
        let bare = Identity { proof: Proof::ApiKey, ..identity("u", "", "r") };
        for asked in [whole, bare] {
            let ticket = tokens.issue_ticket(&asked).await.unwrap().ticket;
            assert_eq!(*tokens.redeem_ticket(&ticket, NOW()).await.unwrap(), asked);
        }
    }

    #[tokio::test]
    async fn a_ticket_ends_with_its_login_and_so_does_what_it_opened() {
        let tokens = tokens();
        let issued = tokens.issue(&user("u", "t", "user"), None, NOW());
        let asked = tokens.verify(&issued.token, NOW()).unwrap();
        let (open, late) =
            (tokens.issue_ticket(&asked).await.unwrap(), tokens.issue_ticket(&asked).await.unwrap());
        let opened = tokens.redeem_ticket(&open.ticket, NOW()).await.unwrap();
        let mut ended = Box::pin(tokens.ended(&opened));
        assert_eq!((&mut ended).now_or_never(), None);
        tokens.revoke_login(&asked, NOW()).await.unwrap();
        assert_eq!(ended.now_or_never(), Some(TokenError::Revoked));
        let refused = tokens.redeem_ticket(&late.ticket, NOW()).await;
        assert!(matches!(refused, Err(TicketError::Token(TokenError::Revoked))), "{refused:?}");
        let over = Identity { expires_at: Some(NOW()), ..identity("v", "t", "user") };
        let ticket = tokens.issue_ticket(&over).await.unwrap().ticket;
        let refused = tokens.redeem_ticket(&ticket, NOW()).await;
        assert!(matches!(refused, Err(TicketError::Token(TokenError::Expired))), "{refused:?}");
    }

    #[tokio::test]
    async fn without_shared_state_there_are_none() {
        let tokens = Tokens::new(Keys::new(SECRET.as_bytes(), &[]), backends().0, backends().1, 8);
        let refused = tokens.issue_ticket(&identity("u", "t", "user")).await;
        assert!(matches!(refused, Err(TicketError::Shared(_))), "{refused:?}");
        assert!(matches!(tokens.redeem_ticket("x", NOW()).await, Err(TicketError::Shared(_))));
    }
}
