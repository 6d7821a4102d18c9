//! How values look in rows: times, names, texts, cursors, users, keys, sessions, messages.

use super::{ApiKey, Author, ChatSession, Message, MessageStatus, NewUser, StoreError, Stored, User};
use std::borrow::Cow;
use std::time::{Duration, SystemTime};

/// A name as names are compared: lower case by Unicode's rules, whatever the locale. Used for user names, e-mail
/// addresses and lockouts.
///
/// Letter by letter, so that it does not depend on what stands beside (a final sigma equals any other), and a NUL,
/// which PostgreSQL cannot hold, becomes a replacement character. Folding twice changes nothing.
pub fn folded(name: &str) -> String {
    name.chars()
        .flat_map(char::to_lowercase)
        .map(|letter| match letter {
            'ς' => 'σ',
            '\0' => char::REPLACEMENT_CHARACTER,
            other => other,
        })
        .collect()
}

/// Milliseconds since 1970; negative before.
pub(super) fn millis(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |millis| -millis),
    }
}

/// The time of so many milliseconds since 1970.
pub(super) fn time(millis: i64) -> SystemTime {
    let distance = Duration::from_millis(millis.unsigned_abs());
    let time = if millis < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    // Only a time beyond what the clock of this machine can say.
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Finds nothing under a key that no row can have: PostgreSQL would call it an error.
pub(super) fn keyed<'a>(keys: impl IntoIterator<Item = &'a str>) -> Stored<()> {
    if keys.into_iter().any(|key| key.contains('\0')) { Err(StoreError::NotFound) } else { Ok(()) }
}

/// Refuses what one backend could keep and the other not.
pub(super) fn storable<'a>(values: impl IntoIterator<Item = &'a str>) -> Stored<()> {
    if values.into_iter().any(|value| value.contains('\0')) {
        return Err(StoreError::Failed("a NUL in a text: validate it before it is stored".to_owned()));
    }
    Ok(())
}

/// A text of people's or of a model's, which must be kept whatever is in it: a NUL, which PostgreSQL cannot hold, becomes
/// a replacement character.
pub(super) fn text(content: &str) -> Cow<'_, str> {
    if content.contains('\0') {
        Cow::Owned(content.replace('\0', "\u{fffd}"))
    } else {
        Cow::Borrowed(content)
    }
}

/// Where a page of a list ends, newest first: the time and id of its last row, so that rows made meanwhile move nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) created_at: i64,
    pub(super) id: String,
}

impl Cursor {
    /// Before the newest.
    pub(super) fn start() -> Self {
        Cursor { created_at: i64::MAX, id: String::new() }
    }

    /// As it is handed out.
    pub(super) fn text(&self) -> String {
        format!("{}.{}", self.created_at, self.id)
    }

    /// As it comes back, from outside. `BadCursor` if no page ever ended there.
    pub(super) fn parse(text: &str) -> Stored<Self> {
        let (created_at, id) = text.split_once('.').ok_or(StoreError::BadCursor)?;
        let created_at = created_at.parse().map_err(|_| StoreError::BadCursor)?;
        keyed([id]).map_err(|_| StoreError::BadCursor)?;
        Ok(Cursor { created_at, id: id.to_owned() })
    }
}

/// A row of `users`.
#[derive(sqlx::FromRow)]
pub(super) struct UserRow {
    pub(super) id: String,
    tenant_id: String,
    username: String,
    email: Option<String>,
    password_hash: Option<String>,
    role: String,
    openid: Option<String>,
    disabled: bool,
    pub(super) created_at: i64,
    last_login_at: Option<i64>,
}

impl From<UserRow> for User {
    fn from(row: UserRow) -> Self {
        User {
            id: row.id,
            tenant_id: row.tenant_id,
            username: row.username,
            email: row.email,
            password_hash: row.password_hash,
            role: row.role,
            openid: row.openid,
            disabled: row.disabled,
            created_at: time(row.created_at),
            last_login_at: row.last_login_at.map(time),
        }
    }
}

/// What a user that was just made looks like.
pub(super) fn made(user: NewUser, created_at: i64) -> User {
    User {
        id: user.id,
        tenant_id: user.tenant_id,
        username: user.username,
        email: user.email,
        password_hash: user.password_hash,
        role: user.role,
        openid: user.openid,
        disabled: false,
        created_at: time(created_at),
        last_login_at: None,
    }
}

/// A row of `api_keys`.
#[derive(sqlx::FromRow)]
pub(super) struct ApiKeyRow {
    id: String,
    name: String,
    tenant_id: String,
    created_by: String,
    permissions: String,
    created_at: i64,
    expires_at: Option<i64>,
    revoked: bool,
}

impl ApiKeyRow {
    /// The key of this row.
    pub(super) fn key(self) -> Stored<ApiKey> {
        let permissions = serde_json::from_str(&self.permissions).map_err(|_| {
            // A key whose permissions are unknown may do nothing.
            StoreError::Failed(format!("API key {}: its permissions are not a list of texts", self.id))
        })?;
        Ok(ApiKey {
            id: self.id,
            name: self.name,
            tenant_id: self.tenant_id,
            created_by: self.created_by,
            permissions,
            created_at: time(self.created_at),
            expires_at: self.expires_at.map(time),
            revoked: self.revoked,
        })
    }
}

/// A row of `sessions`.
#[derive(sqlx::FromRow)]
pub(super) struct SessionRow {
    pub(super) id: String,
    title: String,
    pub(super) created_at: i64,
    updated_at: i64,
}

impl From<SessionRow> for ChatSession {
    fn from(row: SessionRow) -> Self {
        ChatSession {
            id: row.id,
            title: row.title,
            created_at: time(row.created_at),
            updated_at: time(row.updated_at),
        }
    }
}

/// A row of `messages`.
#[derive(sqlx::FromRow)]
pub(super) struct MessageRow {
    id: String,
    pub(super) number: i64,
    author: String,
    content: String,
    status: String,
    total_tokens: Option<i64>,
    created_at: i64,
}

impl MessageRow {
    /// The message of this row.
    pub(super) fn message(self) -> Stored<Message> {
        let unknown =
            |what: &str| StoreError::Failed(format!("message {}: its {what} is not known", self.id));
        let author = match &*self.author {
            "user" => Author::User,
            "assistant" => Author::Assistant,
            _ => return Err(unknown("author")),
        };
        let status = STATUSES.iter().find(|(_, name)| *name == self.status);
        let (status, _) = *status.ok_or_else(|| unknown("status"))?;
        Ok(Message {
            author,
            status,
            total_tokens: self.total_tokens.and_then(|tokens| u64::try_from(tokens).ok()),
            created_at: time(self.created_at),
            id: self.id,
            content: self.content,
        })
    }
}

/// How messages end, as rows say it.
const STATUSES: [(MessageStatus, &str); 4] = [
    (MessageStatus::Complete, "complete"),
    (MessageStatus::Interrupted, "interrupted"),
    (MessageStatus::Failed, "failed"),
    (MessageStatus::Cancelled, "cancelled"),
];

/// How a message ended, as rows say it.
pub(super) fn status_name(status: MessageStatus) -> &'static str {
    match status {
        MessageStatus::Complete => "complete",
        MessageStatus::Interrupted => "interrupted",
        MessageStatus::Failed => "failed",
        MessageStatus::Cancelled => "cancelled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fold_by_unicode() {
        assert_eq!(folded("ÄRGER"), folded("ärger"));
        assert_eq!(folded("ΣΟΦΟΣ"), folded("σοφος"));
        assert_eq!(folded("ЖЕНЯ"), folded("женя"));
        assert_eq!(folded("王小明"), "王小明");
        assert_eq!(folded("I"), "i");
        assert_ne!(folded("ı"), "i", "a dotless i is another letter");
        for name in ["İstanbul", "ΑΣ", "ǅ", "ß", "a\0b"] {
            assert_eq!(folded(&folded(name)), folded(name), "{name:?}");
        }
    }

    #[test]
    fn times_survive_both_ways() {
        for value in [0, 1, -1, 1_700_000_000_123, -62_135_596_800_000] {
            assert_eq!(millis(time(value)), value);
        }
        let fine = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_999_999);
        assert_eq!(millis(fine), 1, "what is finer is dropped");
    }

    #[test]
    fn cursors_come_back_and_nonsense_is_refused() {
        let cursor = Cursor { created_at: 17, id: "a.b".to_owned() };
        assert_eq!(Cursor::parse(&cursor.text()).unwrap(), cursor);
        for nonsense in ["", "x", ".", "1", "1' OR 1=1 --.x", "1.\0", "99999999999999999999.a"] {
            assert!(matches!(Cursor::parse(nonsense), Err(StoreError::BadCursor)), "{nonsense:?}");
        }
    }
}
