//! `voicehelper.sessions.v1.Sessions`.

use super::caller::{Caller, now, page};
use super::faults;
use super::proto::sessions::sessions_server::Sessions;
use super::proto::sessions::{
    CreateSessionRequest, DeleteSessionRequest, GetSessionRequest, ListMessagesRequest, ListMessagesResponse,
    ListSessionsRequest, ListSessionsResponse, Session, UpdateSessionRequest,
};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tonic::{Request, Response, Status};
use uuid::Uuid;

/// The service.
#[derive(Debug, Default)]
pub(super) struct SessionsService {
    /// By owner, then by id; UUIDs of version 7 stand in the order of time.
    sessions: Mutex<BTreeMap<Caller, BTreeMap<String, Session>>>,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Sessions for SessionsService {
    async fn create(&self, request: Request<CreateSessionRequest>) -> Answer<Session> {
        let owner = Caller::of(&request)?;
        let title = match request.into_inner().title {
            title if title.is_empty() => "New Chat".to_owned(),
            title => checked(title)?,
        };
        let session_id = Uuid::now_v7().to_string();
        let made = Session { session_id, title, created_at: Some(now()), updated_at: Some(now()) };
        self.lock().entry(owner).or_default().insert(made.session_id.clone(), made.clone());
        Ok(Response::new(made))
    }

    async fn list(&self, request: Request<ListSessionsRequest>) -> Answer<ListSessionsResponse> {
        let owner = Caller::of(&request)?;
        let ListSessionsRequest { limit, cursor } = request.into_inner();
        let kept = self.lock();
        let all = kept.get(&owner).into_iter().flat_map(|sessions| sessions.values().rev().cloned());
        let (sessions, next_cursor) = page(all, limit, &cursor, |session| &session.session_id)?;
        Ok(Response::new(ListSessionsResponse { sessions, next_cursor }))
    }

    async fn get(&self, request: Request<GetSessionRequest>) -> Answer<Session> {
        self.with(&request, &request.get_ref().session_id, |session| session.clone())
    }

    async fn update(&self, request: Request<UpdateSessionRequest>) -> Answer<Session> {
        let title = checked(request.get_ref().title.clone())?;
        self.with(&request, &request.get_ref().session_id, |session| {
            session.title = title;
            session.updated_at = Some(now());
            session.clone()
        })
    }

    async fn delete(&self, request: Request<DeleteSessionRequest>) -> Answer<()> {
        let owner = Caller::of(&request)?;
        let id = &request.get_ref().session_id;
        let gone = self.lock().get_mut(&owner).and_then(|sessions| sessions.remove(id));
        gone.map(|_| Response::new(())).ok_or_else(|| faults::not_found("session", id))
    }

    async fn messages(&self, request: Request<ListMessagesRequest>) -> Answer<ListMessagesResponse> {
        // Chats are not this demo's: what is said elsewhere is not told here.
        self.with(&request, &request.get_ref().session_id, |_| ListMessagesResponse::default())
    }
}

impl SessionsService {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Caller, BTreeMap<String, Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with one of the caller's sessions.
    fn with<T, R>(&self, request: &Request<R>, id: &str, act: impl FnOnce(&mut Session) -> T) -> Answer<T> {
        let owner = Caller::of(request)?;
        let mut kept = self.lock();
        let session = kept.get_mut(&owner).and_then(|sessions| sessions.get_mut(id));
        let session = session.ok_or_else(|| faults::not_found("session", id))?;
        Ok(Response::new(act(session)))
    }
}

fn checked(title: String) -> Result<String, Status> {
    match title.chars().count() {
        1..=200 => Ok(title),
        _ => Err(faults::invalid("title", "1 to 200 characters")),
    }
}
