//! Sessions: making, listing, renaming, deleting, and reading what was said in them.

use super::IdempotencyKey;
use crate::error::{FieldFault, GatewayError, Kind};
use crate::identity::Identity;
use crate::settings::ConversationSettings;
use crate::stores::{AnyStore, Author, ChatSession, Message, MessageStatus, Order, Owner, Page, StoreError};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Title of a session that was given none (the seed's).
pub const DEFAULT_TITLE: &str = "New Chat";
/// Characters of a title at most.
const MAX_TITLE: usize = 200;
/// Rows of a page, where the caller does not say.
const PAGE: u32 = 20;
/// Rows of a page at most.
const MAX_PAGE: u32 = 100;

/// Where the time comes from.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// Which page of a list is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Rows, 1 to 100; 20 where nothing is said.
    pub limit: Option<u32>,
    /// `next` of the page before; the first page without.
    pub cursor: Option<String>,
}

impl Listing {
    fn limit(&self) -> Result<u32, GatewayError> {
        let limit = self.limit.unwrap_or(PAGE);
        match (1..=MAX_PAGE).contains(&limit) {
            true => Ok(limit),
            false => Err(one(FieldFault::new(
                "",
                "limit",
                "the parameter `limit` must be a number from 1 to 100",
                "参数 `limit` 须为 1-100 的整数",
            ))),
        }
    }
}

/// Everything about sessions.
pub struct Sessions {
    store: AnyStore,
    retry_for: Duration,
    clock: Clock,
}

impl Sessions {
    /// Over a store, by the process's settings.
    pub fn new(store: AnyStore, settings: &ConversationSettings, clock: Clock) -> Self {
        Sessions { store, retry_for: settings.idempotency_ttl.0, clock }
    }

    /// Makes one; without a title, or with an empty one, it is called [`DEFAULT_TITLE`]. A retry by its key gives the
    /// session that was made first.
    ///
    /// # Errors
    /// 400 for a title that is none, 401 where the owner's account is gone, 422 where the key was used for another title.
    pub async fn create(
        &self,
        owner: &Owner,
        asked: Option<&str>,
        key: Option<IdempotencyKey>,
    ) -> Result<ChatSession, GatewayError> {
        let title = match asked.map(str::trim) {
            None | Some("") => DEFAULT_TITLE,
            Some(title) => checked(title)?,
        };
        let now = (self.clock)();
        let retry = key.map(|key| key.for_request(&[title], now + self.retry_for));
        let id = uuid::Uuid::new_v4().to_string();
        match self.store.create_session(owner, &id, title, retry.as_ref(), now).await {
            Ok(once) => IdempotencyKey::outcome(once),
            Err(StoreError::NotFound) => Err(Kind::InvalidToken.into()),
            Err(error) => Err(fault(error)),
        }
    }

    /// A page of them, newest first.
    ///
    /// # Errors
    /// 400 for a limit or a cursor that is none.
    pub async fn list(&self, owner: &Owner, page: &Listing) -> Result<Page<ChatSession>, GatewayError> {
        let limit = page.limit()?;
        self.store.sessions(owner, limit, page.cursor.as_deref()).await.map_err(fault)
    }

    /// One.
    ///
    /// # Errors
    /// 404.
    pub async fn get(&self, owner: &Owner, id: &str) -> Result<ChatSession, GatewayError> {
        self.store.session(owner, id).await.map_err(fault)
    }

    /// Gives it another title.
    ///
    /// # Errors
    /// 400 for a title that is none, 404.
    pub async fn rename(&self, owner: &Owner, id: &str, title: &str) -> Result<ChatSession, GatewayError> {
        let title = checked(title)?;
        self.store.rename_session(owner, id, title, (self.clock)()).await.map_err(fault)
    }

    /// Takes it out of sight, and stops what is being said in it.
    ///
    /// # Errors
    /// 404.
    pub async fn delete(&self, owner: &Owner, id: &str) -> Result<(), GatewayError> {
        self.store.delete_session(owner, id, (self.clock)()).await.map_err(fault)
    }

    /// A page of what was said in it.
    ///
    /// # Errors
    /// 400 for a limit or a cursor that is none, 404.
    pub async fn messages(
        &self,
        owner: &Owner,
        id: &str,
        order: Order,
        page: &Listing,
    ) -> Result<Page<Message>, GatewayError> {
        let limit = page.limit()?;
        self.store.messages(owner, id, order, limit, page.cursor.as_deref()).await.map_err(fault)
    }
}

/// Whose rows a caller sees.
pub fn owner(identity: &Identity) -> Owner {
    Owner { tenant_id: identity.tenant_id.clone(), user_id: identity.user_id.clone() }
}

/// Who said a message, as callers are told.
pub fn author_word(author: Author) -> &'static str {
    match author {
        Author::User => "user",
        Author::Assistant => "assistant",
    }
}

/// How a message ended, as callers are told.
pub fn status_word(status: MessageStatus) -> &'static str {
    match status {
        MessageStatus::Complete => "complete",
        MessageStatus::Interrupted => "interrupted",
        MessageStatus::Failed => "failed",
        MessageStatus::Cancelled => "cancelled",
    }
}

/// A time as callers are told: RFC 3339 in UTC, to the millisecond.
pub fn timestamp(at: SystemTime) -> String {
    let at = jiff::Timestamp::try_from(at);
    at.map(|at| at.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()).unwrap_or_default()
}

/// A title that may be kept, trimmed.
fn checked(title: &str) -> Result<&str, GatewayError> {
    let title = title.trim();
    if title.chars().any(char::is_control) {
        let en = "must have no control characters";
        return Err(one(FieldFault::new("/title", "control_character", en, "不能包含控制字符")));
    }
    match (1..=MAX_TITLE).contains(&title.chars().count()) {
        true => Ok(title),
        false => {
            let en = "must have 1 to 200 characters";
            Err(one(FieldFault::new("/title", "length", en, "长度须为 1-200 个字符")))
        }
    }
}

fn one(fault: FieldFault) -> GatewayError {
    GatewayError::invalid(vec![fault])
}

/// A store's failure as the caller is told: 404, 400 for a cursor, 503 where the store is away, 500 otherwise; the
/// cause is logged, never sent.
pub(super) fn fault(error: StoreError) -> GatewayError {
    match error {
        StoreError::NotFound => Kind::NotFound.into(),
        StoreError::BadCursor => one(FieldFault::new(
            "",
            "cursor",
            "the parameter `cursor` must be `next_cursor` of the page before",
            "参数 `cursor` 须为上一页返回的 `next_cursor`",
        )),
        StoreError::Unavailable(_) => {
            tracing::warn!(%error, "conversations cannot reach the store");
            Kind::StoreUnavailable.into()
        }
        StoreError::Conflict(_) | StoreError::Failed(_) => {
            tracing::error!(%error, "conversations failed at the store");
            Kind::Internal.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_are_trimmed_and_bounded() {
        assert_eq!(checked("  Größe 😀\n").unwrap(), "Größe 😀");
        let longest = "字".repeat(MAX_TITLE);
        assert_eq!(checked(&format!(" {longest} ")).unwrap(), longest);
        for (bad, code) in [
            (format!("{longest}x"), "length"),
            (String::new(), "length"),
            (" \t".to_owned(), "length"),
            ("a\nb".to_owned(), "control_character"),
            ("a\0b".to_owned(), "control_character"),
            ("a\u{85}b".to_owned(), "control_character"),
        ] {
            let error = checked(&bad).unwrap_err();
            assert_eq!((&*error.errors[0].pointer, error.errors[0].code), ("/title", code), "{bad:?}");
        }
    }

    #[test]
    fn limits_are_held() {
        let limit = |limit| Listing { limit, cursor: None }.limit().ok();
        assert_eq!([None, Some(1), Some(100)].map(limit), [Some(20), Some(1), Some(100)]);
        assert_eq!([Some(0), Some(101), Some(u32::MAX)].map(limit), [None; 3]);
    }

    #[test]
    fn times_are_told_to_the_millisecond() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_007);
        assert_eq!(timestamp(at), "2023-11-14T22:13:20.007Z");
    }
}
