//! `sessions.*`: conversations of the caller. The rules are [`crate::conversations`]'.

use super::auth::{caller, no_store};
use super::input::{Input, Optional};
use crate::accounts::Accounts;
use crate::conversations::{
    Clock, Export, IdempotencyKey, Listing, Sessions, author_word, owner, status_word, timestamp,
};
use crate::settings::ConversationSettings;
use crate::stores::{AnyStore, ChatSession, Message, Order};
use poem::{Body, IntoResponse, Request, Response};
use poem_openapi::param::{Header, Path, Query};
use poem_openapi::payload::{Json, Payload};
use poem_openapi::registry::{MetaSchemaRef, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiResponse, Enum, Object, OpenApi};
use std::sync::Arc;

/// The group.
pub struct SessionsApi {
    sessions: Sessions,
    accounts: Arc<Accounts>,
    store: AnyStore,
    clock: Clock,
}

impl SessionsApi {
    /// Over the process's store and accounts.
    pub fn new(
        store: AnyStore,
        accounts: Arc<Accounts>,
        settings: &ConversationSettings,
        clock: Clock,
    ) -> Self {
        let sessions = Sessions::new(store.clone(), settings, clock.clone());
        SessionsApi { sessions, accounts, store, clock }
    }
}

/// A session to be made.
#[derive(Object)]
struct CreateSessionRequest {
    /// At most 200 characters; without, `New Chat`.
    title: Option<String>,
}

/// What shall change of a session.
#[derive(Object)]
struct UpdateSessionRequest {
    /// 1 to 200 characters.
    title: String,
}

/// A conversation.
#[derive(Object)]
struct SessionInfo {
    /// UUID.
    session_id: String,
    /// What people see of it in a list.
    title: String,
    /// When it was made, RFC 3339 in UTC.
    created_at: String,
    /// When it was renamed or something was said in it, RFC 3339 in UTC.
    updated_at: String,
}

/// A page of sessions.
#[derive(Object)]
struct SessionPage {
    /// Newest first.
    sessions: Vec<SessionInfo>,
    /// `cursor` of the next page; null on the last.
    next_cursor: Option<String>,
}

/// What was said.
#[derive(Object)]
struct MessageInfo {
    /// UUID.
    id: String,
    /// `user` or `assistant`.
    role: String,
    /// The text.
    content: String,
    /// `complete`, `interrupted`, `failed` or `cancelled`; a user's is always complete.
    status: String,
    /// When it stood in full, RFC 3339 in UTC.
    created_at: String,
    /// Tokens of an assistant's message, where known.
    #[oai(skip_serializing_if_is_none)]
    total_tokens: Option<u64>,
}

/// A page of messages.
#[derive(Object)]
struct MessagePage {
    /// In the order that was asked for.
    messages: Vec<MessageInfo>,
    /// `cursor` of the next page; null on the last.
    next_cursor: Option<String>,
}

/// Which end of a conversation comes first.
#[derive(Enum, Clone, Copy, PartialEq, Eq, Default)]
#[oai(rename_all = "lowercase")]
enum Direction {
    /// Oldest first.
    #[default]
    Asc,
    /// Newest first.
    Desc,
}

/// A new session.
#[derive(ApiResponse)]
enum CreatedResponse {
    /// Made now, or by the request that this one repeats.
    #[oai(status = 201)]
    Created(Json<SessionInfo>, #[oai(header = "Cache-Control")] String),
}

/// A session.
#[derive(ApiResponse)]
enum OneResponse {
    /// As it is now.
    #[oai(status = 200)]
    Ok(Json<SessionInfo>, #[oai(header = "Cache-Control")] String),
}

/// Sessions.
#[derive(ApiResponse)]
enum PageResponse {
    /// A page of them.
    #[oai(status = 200)]
    Ok(Json<SessionPage>, #[oai(header = "Cache-Control")] String),
}

/// Messages.
#[derive(ApiResponse)]
enum MessagesResponse {
    /// A page of them.
    #[oai(status = 200)]
    Ok(Json<MessagePage>, #[oai(header = "Cache-Control")] String),
}

/// That it is gone.
#[derive(ApiResponse)]
enum DeletedResponse {
    /// Deleted.
    #[oai(status = 204)]
    Deleted,
}

/// All that a user said and was told.
// Written piece by piece, by `conversations::export`: this is what callers are told of it.
#[derive(Object)]
struct SessionExport {
    /// The account.
    user: ExportedUser,
    /// When this was begun, RFC 3339 in UTC.
    exported_at: String,
    /// Newest first.
    sessions: Vec<ExportedSession>,
}

/// Whose export it is.
#[derive(Object)]
struct ExportedUser {
    /// UUID.
    id: String,
    /// As registered.
    username: String,
    /// As registered; null where none is known (WeChat).
    email: Option<String>,
    /// Empty for the default one.
    tenant_id: String,
    /// Role's name.
    role: String,
    /// When it was registered, RFC 3339 in UTC.
    created_at: String,
    /// Last login, RFC 3339 in UTC.
    last_login_at: Option<String>,
}

/// A conversation with what was said in it.
#[derive(Object)]
struct ExportedSession {
    /// UUID.
    session_id: String,
    /// What people see of it in a list.
    title: String,
    /// When it was made, RFC 3339 in UTC.
    created_at: String,
    /// When it was renamed or something was said in it, RFC 3339 in UTC.
    updated_at: String,
    /// Oldest first.
    messages: Vec<MessageInfo>,
}

/// A document that is written while it is read.
struct Pieces(Body);

impl Payload for Pieces {
    const CONTENT_TYPE: &'static str = "application/json";

    fn schema_ref() -> MetaSchemaRef {
        SessionExport::schema_ref()
    }

    fn register(registry: &mut Registry) {
        SessionExport::register(registry);
    }
}

impl IntoResponse for Pieces {
    fn into_response(self) -> Response {
        Response::builder().content_type(Self::CONTENT_TYPE).body(self.0)
    }
}

/// A document to be kept.
#[derive(ApiResponse)]
enum ExportResponse {
    /// The caller's account, its sessions and their messages.
    #[oai(status = 200)]
    Ok(Pieces, #[oai(header = "Content-Disposition")] String, #[oai(header = "Cache-Control")] String),
}

#[OpenApi]
impl SessionsApi {
    /// Make a session
    #[oai(path = "/sessions", method = "post", operation_id = "sessions.create")]
    async fn create(
        &self,
        request: &Request,
        /// A name for this request, 1 to 255 visible ASCII characters: a retry with it gets the same session.
        #[oai(name = "Idempotency-Key")]
        _key: Header<Option<String>>,
        body: Optional<CreateSessionRequest>,
    ) -> poem::Result<CreatedResponse> {
        let owner = owner(caller(request)?);
        let key = IdempotencyKey::of(request.headers())?;
        let title = body.0.and_then(|body| body.title);
        let session = self.sessions.create(&owner, title.as_deref(), key).await?;
        Ok(CreatedResponse::Created(Json(session.into()), no_store()))
    }

    /// The caller's sessions, newest first
    #[oai(path = "/sessions", method = "get", operation_id = "sessions.list")]
    async fn list(
        &self,
        request: &Request,
        /// How many, 20 where nothing is said.
        #[oai(validator(minimum(value = "1"), maximum(value = "100")))]
        limit: Query<Option<u32>>,
        /// `next_cursor` of the page before.
        cursor: Query<Option<String>>,
    ) -> poem::Result<PageResponse> {
        let listing = Listing { limit: limit.0, cursor: cursor.0 };
        let page = self.sessions.list(&owner(caller(request)?), &listing).await?;
        let sessions = page.items.into_iter().map(SessionInfo::from).collect();
        Ok(PageResponse::Ok(Json(SessionPage { sessions, next_cursor: page.next }), no_store()))
    }

    /// One session
    #[oai(path = "/sessions/:id", method = "get", operation_id = "sessions.get")]
    async fn get(&self, request: &Request, id: Path<String>) -> poem::Result<OneResponse> {
        let session = self.sessions.get(&owner(caller(request)?), &id).await?;
        Ok(OneResponse::Ok(Json(session.into()), no_store()))
    }

    /// Rename a session
    #[oai(path = "/sessions/:id", method = "patch", operation_id = "sessions.update")]
    async fn update(
        &self,
        request: &Request,
        id: Path<String>,
        body: Input<UpdateSessionRequest>,
    ) -> poem::Result<OneResponse> {
        let session = self.sessions.rename(&owner(caller(request)?), &id, &body.0.title).await?;
        Ok(OneResponse::Ok(Json(session.into()), no_store()))
    }

    /// Delete a session
    #[oai(path = "/sessions/:id", method = "delete", operation_id = "sessions.delete")]
    async fn delete(&self, request: &Request, id: Path<String>) -> poem::Result<DeletedResponse> {
        self.sessions.delete(&owner(caller(request)?), &id).await?;
        Ok(DeletedResponse::Deleted)
    }

    /// What was said in a session
    #[oai(path = "/sessions/:id/messages", method = "get", operation_id = "sessions.messages")]
    async fn messages(
        &self,
        request: &Request,
        id: Path<String>,
        /// How many, 20 where nothing is said.
        #[oai(validator(minimum(value = "1"), maximum(value = "100")))]
        limit: Query<Option<u32>>,
        /// `next_cursor` of the page before, in the same order.
        cursor: Query<Option<String>>,
        /// `asc`, oldest first, where nothing is said.
        order: Query<Option<Direction>>,
    ) -> poem::Result<MessagesResponse> {
        let listing = Listing { limit: limit.0, cursor: cursor.0 };
        let order = match order.0.unwrap_or_default() {
            Direction::Asc => Order::OldestFirst,
            Direction::Desc => Order::NewestFirst,
        };
        let page = self.sessions.messages(&owner(caller(request)?), &id, order, &listing).await?;
        let messages = page.items.into_iter().map(MessageInfo::from).collect();
        Ok(MessagesResponse::Ok(Json(MessagePage { messages, next_cursor: page.next }), no_store()))
    }

    /// All the caller's sessions with their messages, as one JSON document
    // Not below `/sessions`, where it would be taken for a session's id on routes that have none for it.
    #[oai(path = "/export/sessions", method = "get", operation_id = "sessions.export")]
    async fn export(&self, request: &Request) -> poem::Result<ExportResponse> {
        let user = self.accounts.me(caller(request)?).await?;
        let export = Export::begin(self.store.clone(), &user, (self.clock)()).await?;
        let body = Body::from_bytes_stream(export.pieces());
        let name = "attachment; filename=\"sessions.json\"".to_owned();
        Ok(ExportResponse::Ok(Pieces(body), name, no_store()))
    }
}

impl From<ChatSession> for SessionInfo {
    fn from(session: ChatSession) -> Self {
        SessionInfo {
            session_id: session.id,
            title: session.title,
            created_at: timestamp(session.created_at),
            updated_at: timestamp(session.updated_at),
        }
    }
}

impl From<Message> for MessageInfo {
    fn from(message: Message) -> Self {
        MessageInfo {
            id: message.id,
            role: author_word(message.author).to_owned(),
            content: message.content,
            status: status_word(message.status).to_owned(),
            created_at: timestamp(message.created_at),
            total_tokens: message.total_tokens,
        }
    }
}

#[cfg(test)]
mod tests;
