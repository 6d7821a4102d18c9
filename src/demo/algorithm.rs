//! The stand-in algorithm service: its calls, by path and method.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `POST /v01/query/stream` | `{query, session_id}` | a stream, see [`super::chat`] |
//! | `POST /api/v1/chat/stream` | `{query, session_id, context?}` | a stream, see [`super::chat`] |
//! | `POST /api/v1/chat/cancel` | `{session_id}` | 200, or 404 when none runs (any more) |
//! | `GET /api/v1/chat/session/{id}` | | the session's running generation, or 404; ids are compared as written |
//! | `GET /api/v1/chat/sessions` | | all running generations |
//! | `POST /query` | `{query, top_k?}` | answer and sources in one piece |
//! | `POST /ingest` | any object | 202 and a task's id; [`super::tasks`] |
//! | `GET /tasks/{id}` | | the task's progress, or 404 |
//! | `POST /cancel` | `{session_id}` or `{task_id}` | 200, or 404 when that is unknown or over |
//! | `GET /stats`, `GET /health` | | [`super::Stats`]; `{status, service, version, timestamp}` |
//! | `GET /sns/jscode2session` | | as WeChat: the openid behind a login code; see [`super::wechat`] |
//! | `POST /api/v1/voice/transcribe`, `POST /voice/query`, `POST /api/v1/voice/synthesize` | | [`super::speech`] |
//! | `WS /api/v1/voice/stream` | | voice sessions, [`super::voice`] |
//! | `WS /api/v1/voice/ws` | | the same in the original gateway's dialect, [`super::recording`] |
//! | `WS /api/v1/webrtc/signaling` | | [`super::signaling`] |
//! | `WS /ws`, `POST /notifications` | | the notification service, [`super::notifications`] |
//! | `ANY /files/{path}` | | `{method, path}` |
//! | `ANY /echo`, `ANY /echo/*` | anything | what arrived, see [`super::echo`] |
//!
//! HEAD goes wherever GET does. Errors are `{"error", "code", "status"}`: 400 no JSON or an unreadable switch, 404, 405,
//! 413 over 1 MiB, 422 JSON that lacks what the call needs.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::chat::{Chat, Dialect};
use super::echo;
use super::ledger::{Generation, Ledger};
use super::notifications::{Bell, Notifications};
use super::recording::Recording;
use super::reply::{Body, Refusal, json_response, method_not_allowed, parse, read, timestamp};
use super::script::{Script, answer};
use super::signaling::{Rooms, Signaling};
use super::socket::{self, Opening};
use super::speech;
use super::switches::Switches;
use super::tasks::Tasks;
use super::voice::Voice;
use super::wechat;

/// Where timestamps come from.
pub(super) type Clock = fn() -> Timestamp;

/// The longest query, in characters (seed).
const MAX_QUERY: usize = 2000;

/// The longest session id, in characters.
const MAX_SESSION_ID: usize = 128;

/// The state of the service.
#[derive(Debug)]
pub(super) struct Algorithm {
    ledger: Arc<Ledger>,
    tasks: Tasks,
    rooms: Arc<Rooms>,
    notifications: Arc<Notifications>,
    clock: Clock,
}

/// A WebSocket that a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Talk {
    Voice,
    Recording,
    Signaling,
    Notifications,
}

/// What a request asks for (`/echo` aside), its path's parts borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call<'a> {
    Stream(Dialect),
    CancelChat,
    Session(&'a str),
    Sessions,
    Query,
    Ingest,
    Task(&'a str),
    Cancel,
    Stats,
    Health,
    Synthesize,
    Notify,
    Wechat,
    Suggestions,
    Files(&'a str),
}

#[derive(Deserialize)]
struct ChatRequest {
    query: String,
    session_id: String,
    context: Option<Value>,
}

#[derive(Deserialize)]
struct QueryRequest {
    query: String,
    #[serde(default = "QueryRequest::default_top_k")]
    top_k: usize,
}

#[derive(Deserialize)]
struct CancelRequest {
    session_id: Option<String>,
    task_id: Option<String>,
}

impl Algorithm {
    pub(super) fn new(clock: Clock) -> Self {
        let notifications = Arc::new(Notifications::new(clock));
        Self { ledger: Arc::default(), tasks: Tasks::default(), rooms: Arc::default(), notifications, clock }
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Answers one request. Dropping the future is the caller's leaving. Where the answer makes the connection a
    /// WebSocket, it stands in `opened`.
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        opened: &Mutex<Option<Opening>>,
    ) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let _unanswered = (!matches!(path.as_str(), "/stats" | "/health")).then(|| self.ledger.requested());
        if path == "/echo" || path.starts_with("/echo/") {
            return echo::answer(request).await;
        }
        if let Some(talk) = Talk::find(&path) {
            return match self.open(talk, request) {
                Ok((response, opening)) => {
                    *opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(opening);
                    response
                }
                Err(refusal) => refusal.into_response(),
            };
        }
        if let "/api/v1/voice/transcribe" | "/voice/query" = path.as_str() {
            if request.method() != Method::POST {
                return method_not_allowed("POST");
            }
            let transcribed = speech::transcribe(request, path == "/voice/query").await;
            return transcribed.unwrap_or_else(Refusal::into_response);
        }
        let Some(call) = Call::find(&path) else {
            return Refusal::not_found(format!("the demo service has no {path}")).into_response();
        };
        if let Some(allow) = call.refuses(request.method()) {
            return method_not_allowed(allow);
        }
        self.perform(call, request).await.unwrap_or_else(Refusal::into_response)
    }

    fn open(&self, talk: Talk, request: Request<Incoming>) -> Result<(Response<Body>, Opening), Refusal> {
        let clock = self.clock;
        let said =
            |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (user, id) = (said("x-user-id"), said("x-request-id"));
        socket::open(request, |inbox| match talk {
            Talk::Voice => Box::new(Voice::new(clock)),
            Talk::Recording => Box::new(Recording::new(clock, id.unwrap_or_else(|| "recording".to_owned()))),
            Talk::Signaling => Box::new(Signaling::new(self.rooms.clone(), inbox)),
            Talk::Notifications => {
                let user = user.unwrap_or_else(|| "anonymous".to_owned());
                Box::new(Bell::new(self.notifications.clone(), user, inbox))
            }
        })
    }

    async fn perform(&self, call: Call<'_>, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let switches = Switches::parse(request.uri().query()).map_err(Refusal::bad_request)?;
        let method = request.method().clone();
        let query_string = request.uri().query().unwrap_or_default().to_owned();
        // Read even where it is not needed: only then does hyper notice a caller that leaves while we wait.
        let body = read(request.into_body()).await?;
        if let Some(status) = switches.status {
            return Err(Refusal::new(status, "switched", "this status was asked for by switch"));
        }
        // A stream keeps these two itself: it is registered before it hangs, and its head goes out before it waits.
        if !matches!(call, Call::Stream(_)) {
            if switches.hang {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(switches.first).await;
        }
        let now = Instant::now();
        let (status, answer) = match call {
            Call::Stream(dialect) => return self.stream(dialect, &body, switches).await,
            Call::Synthesize => return speech::synthesize(&body),
            Call::Notify => (StatusCode::OK, self.notifications.tell(&body)?),
            Call::Stats => return Ok(json_response(StatusCode::OK, &self.ledger.stats())),
            Call::Ingest => {
                let _: Value = parse(&body)?;
                (StatusCode::ACCEPTED, self.tasks.start(now))
            }
            Call::Task(id) => (StatusCode::OK, self.tasks.get(id, now)?),
            Call::CancelChat => (StatusCode::OK, self.cancel(&body, false)?),
            Call::Cancel => (StatusCode::OK, self.cancel(&body, true)?),
            Call::Session(id) => (StatusCode::OK, self.session(id)?),
            Call::Sessions => (StatusCode::OK, self.sessions()),
            Call::Query => (StatusCode::OK, query(&body)?),
            Call::Health => (StatusCode::OK, self.health()),
            Call::Wechat => (StatusCode::OK, wechat::session(&query_string)),
            Call::Suggestions => (StatusCode::OK, suggestions(&query_string)),
            Call::Files(path) => (StatusCode::OK, json!({ "method": method.as_str(), "path": path })),
        };
        Ok(json_response(status, &answer))
    }

    async fn stream(
        &self,
        dialect: Dialect,
        body: &[u8],
        switches: Switches,
    ) -> Result<Response<Body>, Refusal> {
        let request: ChatRequest = parse(body)?;
        check_query(&request.query)?;
        if request.session_id.is_empty() || request.session_id.chars().count() > MAX_SESSION_ID {
            return Err(Refusal::invalid(format!("session_id must have 1 to {MAX_SESSION_ID} characters")));
        }
        let context_entries = match request.context {
            None | Some(Value::Null) => 0,
            Some(Value::Object(entries)) => entries.len(),
            Some(Value::Array(entries)) => entries.len(),
            Some(_) => return Err(Refusal::invalid("context must be an object or a list")),
        };
        let running = self.ledger.begin(request.session_id, (self.clock)());
        if switches.hang {
            // `running` is held meanwhile: the caller's leaving counts as an aborted stream.
            std::future::pending::<()>().await;
        }
        let script = Script::new(&request.query, switches.tokens);
        Ok(Chat { dialect, running, script, switches, clock: self.clock, context_entries }.into_response())
    }

    /// Cancels what the body names; tasks only where `tasks` says so.
    fn cancel(&self, body: &[u8], tasks: bool) -> Result<Value, Refusal> {
        let request: CancelRequest = parse(body)?;
        match (request.session_id, request.task_id) {
            (Some(id), _) if self.ledger.cancel(&id) => {
                Ok(json!({ "session_id": id, "status": "cancelled" }))
            }
            (Some(_), _) => Err(Refusal::not_found("no generation of this session is running")),
            (None, Some(id)) if tasks => self.tasks.cancel(&id, Instant::now()),
            _ if tasks => Err(Refusal::invalid("missing field `session_id` or `task_id`")),
            _ => Err(Refusal::invalid("missing field `session_id`")),
        }
    }

    fn session(&self, id: &str) -> Result<Value, Refusal> {
        // The newest, should the session have several.
        let newest = self.ledger.running(Some(id)).pop();
        newest
            .map(|g| state(&g))
            .ok_or_else(|| Refusal::not_found("no generation of this session is running"))
    }

    fn sessions(&self) -> Value {
        let sessions: Vec<_> = self.ledger.running(None).iter().map(|g| state(g)).collect();
        json!({ "total": sessions.len(), "sessions": sessions })
    }

    fn health(&self) -> Value {
        json!({ "status": "healthy", "service": "algorithm", "version": env!("CARGO_PKG_VERSION"),
                "timestamp": timestamp((self.clock)()) })
    }
}

impl Talk {
    fn find(path: &str) -> Option<Self> {
        Some(match path {
            "/api/v1/voice/stream" => Self::Voice,
            "/api/v1/voice/ws" => Self::Recording,
            "/api/v1/webrtc/signaling" => Self::Signaling,
            "/ws" => Self::Notifications,
            _ => return None,
        })
    }
}

impl<'a> Call<'a> {
    fn find(path: &'a str) -> Option<Self> {
        let segment =
            |prefix| path.strip_prefix(prefix).filter(|rest: &&str| !rest.is_empty() && !rest.contains('/'));
        Some(match path {
            "/v01/query/stream" => Self::Stream(Dialect::Query),
            "/api/v1/chat/stream" => Self::Stream(Dialect::Agent),
            "/api/v1/chat/cancel" => Self::CancelChat,
            "/api/v1/chat/sessions" => Self::Sessions,
            "/query" => Self::Query,
            "/ingest" => Self::Ingest,
            "/cancel" => Self::Cancel,
            "/stats" => Self::Stats,
            "/health" => Self::Health,
            "/api/v1/voice/synthesize" => Self::Synthesize,
            "/notifications" => Self::Notify,
            "/sns/jscode2session" => Self::Wechat,
            "/api/v1/search/suggestions" => Self::Suggestions,
            _ => {
                let file = path.strip_prefix("/files/").map(Self::Files);
                return file
                    .or_else(|| segment("/api/v1/chat/session/").map(Self::Session))
                    .or_else(|| segment("/tasks/").map(Self::Task));
            }
        })
    }

    /// What the path would allow, when `method` is not it.
    fn refuses(self, method: &Method) -> Option<&'static str> {
        let allow = match self {
            Self::Stream(_)
            | Self::CancelChat
            | Self::Query
            | Self::Ingest
            | Self::Cancel
            | Self::Synthesize
            | Self::Notify => "POST",
            Self::Session(_)
            | Self::Sessions
            | Self::Task(_)
            | Self::Stats
            | Self::Health
            | Self::Suggestions
            | Self::Wechat => "GET, HEAD",
            Self::Files(_) => return None,
        };
        (!allow.split(", ").any(|allowed| allowed == method.as_str())).then_some(allow)
    }
}

impl QueryRequest {
    fn default_top_k() -> usize {
        3
    }
}

fn check_query(query: &str) -> Result<(), Refusal> {
    if query.trim().is_empty() {
        return Err(Refusal::invalid("query is empty"));
    }
    if query.chars().count() > MAX_QUERY {
        return Err(Refusal::invalid(format!("query is longer than {MAX_QUERY} characters")));
    }
    Ok(())
}

/// `POST /query`: `{query, answer, sources: [{id, title, score}], total}`.
fn query(body: &[u8]) -> Result<Value, Refusal> {
    let request: QueryRequest = parse(body)?;
    check_query(&request.query)?;
    if !(1..=50).contains(&request.top_k) {
        return Err(Refusal::invalid("top_k must be from 1 to 50"));
    }
    let source = |rank: usize| {
        json!({ "id": format!("doc-{rank}"), "title": format!("Sample document {rank}"),
                "score": 1.0 / (1.0 + rank as f64 / 4.0) })
    };
    let sources: Vec<_> = (1..=request.top_k).map(source).collect();
    Ok(
        json!({ "answer": answer(&request.query), "query": request.query, "sources": sources, "total": sources.len() }),
    )
}

/// `GET /api/v1/search/suggestions?q=&limit=`: what might be meant by the beginning of a question.
fn suggestions(query: &str) -> Value {
    let asked = |wanted: &str| {
        let mut pairs = url::form_urlencoded::parse(query.as_bytes());
        pairs.find(|(name, _)| name == wanted).map(|(_, value)| value.trim().to_owned())
    };
    let begun = asked("q").filter(|begun| !begun.is_empty());
    let limit = asked("limit").and_then(|limit| limit.parse().ok()).unwrap_or(3);
    let all = begun
        .iter()
        .flat_map(|begun| ["basics", "examples", "questions"].map(|end| format!("{begun} {end}")));
    json!({ "suggestions": all.take(limit).collect::<Vec<_>>() })
}

/// A running generation, as the session calls show it.
fn state(generation: &Generation) -> Value {
    let status = if generation.cancel.is_cancelled() { "cancelling" } else { "running" };
    json!({ "session_id": generation.session_id, "status": status,
            "started_at": timestamp(generation.started_at), "tokens": generation.tokens.load(Relaxed) })
}
