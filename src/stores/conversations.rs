//! Sessions, messages and turns, as rows.
//!
//! A *turn* is a question and its answer. It is opened with the user's message, in one transaction; while it runs, its
//! row says until when its replica is known to be alive, and pieces beside it keep what was said so far; it is closed with the
//! assistant's message, in one transaction. The turn's id *is* the id of that message, so that however many finish it
//! (the replica that ran it, one that took it for dead), there is one row.
//!
//! Every call of a user's names the [`Owner`]: what belongs to somebody else is not found (SECURITY rule 11).
//!
//! Messages stand in the order in which they were stored, whatever their times. What was said is kept whatever is in
//! it; a NUL, which PostgreSQL cannot hold, becomes U+FFFD.

use super::{Page, Stored};
use async_trait::async_trait;
use std::sync::Arc;
use std::time::SystemTime;

/// Whose a row is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Tenant; empty for the default one.
    pub tenant_id: Arc<str>,
    /// The user.
    pub user_id: Arc<str>,
}

/// A conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatSession {
    /// UUID.
    pub id: String,
    /// What people see of it in a list.
    pub title: String,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it was renamed or something was said in it.
    pub updated_at: SystemTime,
}

/// Who said a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Author {
    /// The user.
    User,
    /// The model.
    Assistant,
}

/// How a message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageStatus {
    /// It is whole.
    Complete,
    /// It broke off: the caller left, the upstream or the gateway died, a limit was met.
    Interrupted,
    /// The upstream said that it failed, or never answered.
    Failed,
    /// Somebody stopped it.
    Cancelled,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// UUID.
    pub id: String,
    /// Who said it.
    pub author: Author,
    /// What was said.
    pub content: String,
    /// How it ended; a user's is always complete.
    pub status: MessageStatus,
    /// Tokens of an assistant's message, where known.
    pub total_tokens: Option<u64>,
    /// When it stood in full.
    pub created_at: SystemTime,
}

/// Which end of a conversation comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// As it was said.
    #[default]
    OldestFirst,
    /// Backwards.
    NewestFirst,
}

/// A caller's name for one request (`Idempotency-Key`), so that a retry does not do it twice. It belongs to its owner
/// and to one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryKey {
    /// SHA-256 of the key.
    pub key: [u8; 32],
    /// SHA-256 of what was asked for: a key is for one request only.
    pub request: [u8; 32],
    /// Until when a retry is recognised.
    pub expires_at: SystemTime,
}

/// What came of a request that may be a retry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Once<T> {
    /// It was done now.
    Done(T),
    /// It had been done before: this came of it. Nothing was written.
    Before(T),
    /// The key was used for another request. Nothing was written.
    Mismatch,
}

/// A turn to be opened.
#[derive(Debug, Clone)]
pub struct NewTurn {
    /// UUID of the turn, which is the assistant's message to be.
    pub id: String,
    /// The session.
    pub session_id: String,
    /// UUID of the user's message.
    pub message_id: String,
    /// What the user said.
    pub query: String,
    /// Who runs it.
    pub replica: String,
    /// Until when that replica is taken for alive without another word.
    pub alive_until: SystemTime,
}

/// A turn as it was named at its beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnRef {
    /// The turn.
    pub id: String,
    /// Its session.
    pub session_id: String,
}

/// How a turn ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnEnd {
    /// What the assistant said.
    pub content: String,
    /// How it ended.
    pub status: MessageStatus,
    /// Its tokens, where known.
    pub total_tokens: Option<u64>,
}

/// Sessions and their messages.
#[async_trait]
pub trait Conversations: Send + Sync {
    /// Makes a session. `NotFound` where there is no such user. A retry gives the session as it is now, also where it
    /// was deleted since.
    async fn create_session(
        &self,
        owner: &Owner,
        id: &str,
        title: &str,
        retry: Option<&RetryKey>,
        now: SystemTime,
    ) -> Stored<Once<ChatSession>>;
    /// One, deleted ones not.
    async fn session(&self, owner: &Owner, id: &str) -> Stored<ChatSession>;
    /// Newest first, by when they were made; `cursor` from the page before, else `BadCursor`.
    async fn sessions(&self, owner: &Owner, limit: u32, cursor: Option<&str>) -> Stored<Page<ChatSession>>;
    /// Gives it another title.
    async fn rename_session(
        &self,
        owner: &Owner,
        id: &str,
        title: &str,
        now: SystemTime,
    ) -> Stored<ChatSession>;
    /// Takes it out of sight and asks its turns to stop; its rows stay until its owner's account is deleted.
    async fn delete_session(&self, owner: &Owner, id: &str, now: SystemTime) -> Stored<()>;
    /// Messages of a session; `cursor` from the page before, of the same order, else `BadCursor`.
    async fn messages(
        &self,
        owner: &Owner,
        session_id: &str,
        order: Order,
        limit: u32,
        cursor: Option<&str>,
    ) -> Stored<Page<Message>>;
    /// One message, of a session that is not deleted.
    async fn message(&self, owner: &Owner, session_id: &str, id: &str) -> Stored<Message>;
}

/// A piece of what a running turn said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The turn.
    pub turn: String,
    /// How many bytes of what it said come before.
    pub at: u64,
    /// What it said there.
    pub text: String,
}

impl Piece {
    /// [`at`](Self::at), as databases count.
    pub(super) fn place(&self) -> i64 {
        i64::try_from(self.at).unwrap_or(i64::MAX)
    }

    /// Where the next one begins.
    pub fn end(&self) -> u64 {
        self.at + self.text.len() as u64
    }
}

/// Turns that run.
#[async_trait]
pub trait Turns: Send + Sync {
    /// Stores the user's message and opens the turn, in one transaction; the session's `updated_at` moves.
    /// `NotFound` where the session is not the owner's.
    async fn begin_turn(
        &self,
        owner: &Owner,
        turn: &NewTurn,
        retry: Option<&RetryKey>,
        now: SystemTime,
    ) -> Stored<Once<TurnRef>>;
    /// A replica's word that it runs its turns, until `alive_until`; with what those that went on said since they were
    /// last kept. A piece may be given again, and longer then. The ids of its turns that somebody asked to stop, and of
    /// those that said something but are no more: their account is deleted. A turn that was taken for dead meanwhile, and
    /// so has its message, is none of them.
    async fn keep_turns(&self, replica: &str, said: &[Piece], alive_until: SystemTime)
    -> Stored<Vec<String>>;
    /// Closes a turn with the assistant's message, in one transaction. A turn that was taken for dead meanwhile gets
    /// this message instead of the one it got then, in its place and with its time. Nothing happens where the account is
    /// deleted.
    async fn finish_turn(&self, turn: &TurnRef, end: &TurnEnd, now: SystemTime) -> Stored<()>;
    /// Asks the turns of a session (or only `turn`) to stop, wherever they run: their ids, none where nothing runs.
    /// `NotFound` where the session is not the owner's.
    async fn ask_to_stop(&self, owner: &Owner, session_id: &str, turn: Option<&str>) -> Stored<Vec<String>>;
    /// Whether a turn of this session of the owner's runs.
    async fn turn_runs(&self, owner: &Owner, session_id: &str, id: &str) -> Stored<bool>;
    /// Closes as interrupted, with what was said by then, the turns whose replica is dead: those of `replica` (an
    /// earlier process in its place) and those whose time ran out. Their number.
    async fn recover_turns(&self, replica: &str, now: SystemTime) -> Stored<u64>;
    /// Removes retry keys that are over; how many.
    async fn sweep_retry_keys(&self, now: SystemTime) -> Stored<u64>;
}
