//! `chat.*`: questions and their answers. The rules are [`crate::conversations`]'; here they meet HTTP and the upstream.

mod events;

use super::auth::caller;
use super::input::Input;
use super::{Behind, ChatLimits};
use crate::conversations::{Answer, IdempotencyKey, Question, TurnLimits, owner};
use crate::error::{FieldFault, GatewayError, Kind};
use crate::exchange::{Degraded, Exchange};
use crate::sse::is_event_stream;
use crate::state::Shared;
use crate::upstream::{Pieces, Primed, SendOptions, Upstream, set_identity};
use bytes::Bytes;
use events::Events;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use poem::{Body, IntoResponse, Request, Response};
use poem_openapi::param::Header;
use poem_openapi::payload::{Json, Payload};
use poem_openapi::registry::{MetaSchemaRef, Registry};
use poem_openapi::{ApiResponse, Object, OpenApi};
use serde_json::json;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// Longest question, in characters (seed).
const MAX_QUERY: usize = 2000;
/// Longest id that is looked up.
const MAX_ID: usize = 128;
/// How long the upstream's own cancel endpoint gets.
const CANCEL: Duration = Duration::from_secs(2);

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The group.
pub struct ChatApi {
    shared: Arc<Shared>,
}

impl ChatApi {
    /// For a process.
    pub fn new(shared: Arc<Shared>) -> Self {
        ChatApi { shared }
    }
}

/// A question.
#[derive(Object)]
struct StreamChatRequest {
    /// The session it belongs to, of the caller's own.
    session_id: String,
    /// The question; at most 2000 characters.
    query: String,
}

/// What shall be stopped.
#[derive(Object)]
struct CancelChatRequest {
    /// The session whose answers are stopped.
    session_id: String,
    /// Only this one of them: `X-Stream-ID` of its stream.
    stream_id: Option<String>,
}

/// What was stopped.
#[derive(Object)]
struct CancelledChat {
    /// The session.
    session_id: String,
    /// `cancelled`, or `cancelling` where a replica takes its time.
    status: String,
    /// The stopped answers, as messages of the session are called.
    stream_ids: Vec<String>,
}

/// An answer as server-sent events.
#[derive(ApiResponse)]
enum StreamResponse {
    /// The answer, event by event: `start`, `token` after `token`, then one of `end`, `cancelled`, `error`; or `reauth`.
    /// Each has an `id:` to go on from, but `reauth` and what the gateway says when it goes down.
    #[oai(status = 200)]
    Streams(
        EventsPayload,
        /// Names the answer: for `chat.cancel`, and as the id of its message.
        #[oai(header = "X-Stream-ID")]
        String,
        #[oai(header = "Cache-Control")] String,
        #[oai(header = "X-Accel-Buffering")] String,
    ),
}

/// Answers of `chat.cancel`.
#[derive(ApiResponse)]
enum CancelResponse {
    /// Stopped.
    #[oai(status = 200)]
    Cancelled(Json<CancelledChat>),
}

/// A body of events, which are [`ChatEvent`](crate::conversations::ChatEvent)s.
struct EventsPayload(Events);

/// What the description calls them.
pub(super) const EVENTS: &str = "ChatEvent";

impl Payload for EventsPayload {
    const CONTENT_TYPE: &'static str = "text/event-stream";

    fn schema_ref() -> MetaSchemaRef {
        MetaSchemaRef::Reference(EVENTS.to_owned())
    }

    fn register(_: &mut Registry) {
        // Its variants have schemas of their own, which `described` adds.
    }
}

impl IntoResponse for EventsPayload {
    fn into_response(self) -> Response {
        Response::builder().content_type(Self::CONTENT_TYPE).body(Body::from_bytes_stream(self.0))
    }
}

#[OpenApi]
impl ChatApi {
    /// Ask a question and read the answer as it is written
    #[oai(path = "/chat/stream", method = "post", operation_id = "chat.stream")]
    async fn stream(
        &self,
        request: &Request,
        /// A name for this question, 1 to 255 visible ASCII characters: a retry with it reads the same answer.
        #[oai(name = "Idempotency-Key")]
        _key: Header<Option<String>>,
        /// The last `id:` that was read: the same question with it goes on behind that event.
        #[oai(name = "Last-Event-ID")]
        _last: Header<Option<String>>,
        body: Input<StreamChatRequest>,
    ) -> poem::Result<StreamResponse> {
        let StreamChatRequest { session_id, query } = body.0;
        let exchange = Exchange::of(request);
        let owner = owner(caller(request)?);
        let (behind, limits) = behind(request)?;
        check(&session_id, &query)?;
        let turns = &self.shared.turns;
        let tail = match request.header("last-event-id").map(str::trim).filter(|id| !id.is_empty()) {
            Some(id) => turns.resume(&owner, &session_id, id, limits).await?,
            None => {
                let remembered = SystemTime::now() + self.shared.settings.conversations.idempotency_ttl.0;
                let retry = IdempotencyKey::of(request.headers())?
                    .map(|key| key.for_request(&["chat.stream", &session_id, &query], remembered));
                let asked = json!({ "query": query, "session_id": session_id });
                let path = behind.path.as_deref().unwrap_or(&exchange.path);
                let asking = Asking {
                    call: call(path, &asked, exchange)?,
                    upstream: behind.upstream.clone(),
                    again: match &behind.other {
                        Some(other) => Some((other.clone(), call(path, &asked, exchange)?)),
                        None => None,
                    },
                    first_event: limits.times.first_event,
                    session_id: session_id.clone(),
                    exchange: exchange.clone(),
                };
                let question = Question { owner, session_id, query, retry };
                let ask = move || asking.ask();
                turns.ask(question, limits, ask).await?
            }
        };
        let stream_id = tail.turn.clone();
        let ended = exchange.identity().map(|identity| self.shared.tokens.ended(identity));
        let open = behind.metrics.open();
        let events = Events::new(tail, exchange.clone(), open, limits.times.heartbeat, ended);
        Ok(StreamResponse::Streams(EventsPayload(events), stream_id, "no-cache".to_owned(), "no".to_owned()))
    }

    /// Stop an answer that is being written
    #[oai(path = "/chat/cancel", method = "post", operation_id = "chat.cancel")]
    async fn cancel(
        &self,
        request: &Request,
        body: Input<CancelChatRequest>,
    ) -> poem::Result<CancelResponse> {
        let CancelChatRequest { session_id, stream_id } = body.0;
        let exchange = Exchange::of(request);
        let owner = owner(caller(request)?);
        let is_id = |id: &str| (1..=MAX_ID).contains(&id.len());
        if !is_id(&session_id) || !stream_id.as_deref().is_none_or(is_id) {
            return Err(GatewayError::from(Kind::NotRunning).into());
        }
        let stopping = self.shared.turns.cancel(&owner, &session_id, stream_id.as_deref());
        let stopped = match request.data::<Arc<Behind>>() {
            None => stopping.await?,
            Some(behind) => {
                let path = behind.path.as_deref().unwrap_or(&exchange.path);
                let call = call(path, &json!({ "session_id": session_id }), exchange)?;
                let stopped = stopping.await?;
                // The streams are closed already; this tells what else may run there. That it knows of nothing is fine.
                // It knows sessions only: told of one answer, it would stop the session's others too.
                if stream_id.is_none() {
                    tell_upstream(&behind.upstream, exchange, call, &session_id).await;
                }
                stopped
            }
        };
        let status = if stopped.over { "cancelled" } else { "cancelling" };
        Ok(CancelResponse::Cancelled(Json(CancelledChat {
            session_id,
            status: status.to_owned(),
            stream_ids: stopped.turns,
        })))
    }
}

/// What the route says is behind this operation. The checks refuse a `chat.stream` without.
fn behind(request: &Request) -> Result<(&Arc<Behind>, TurnLimits), GatewayError> {
    let behind = request.data::<Arc<Behind>>().ok_or(Kind::Internal)?;
    let ChatLimits { times, on_disconnect, resume_for, max_size } = behind.stream.ok_or(Kind::Internal)?;
    Ok((behind, TurnLimits { times, on_disconnect, resume_for, max_size }))
}

fn check(session_id: &str, query: &str) -> Result<(), GatewayError> {
    let mut faults = Vec::new();
    if session_id.is_empty() {
        faults.push(FieldFault::new("/session_id", "required", "is required", "为必填项"));
    }
    if query.trim().is_empty() {
        faults.push(FieldFault::new("/query", "required", "is required", "为必填项"));
    } else if query.chars().count() > MAX_QUERY {
        let en = format!("must have at most {MAX_QUERY} characters");
        faults.push(FieldFault::new("/query", "too_long", en, format!("不能超过 {MAX_QUERY} 个字符")));
    }
    match faults.is_empty() {
        false => Err(GatewayError::invalid(faults)),
        // No session is called so.
        true if session_id.len() > MAX_ID => Err(Kind::NotFound.into()),
        true => Ok(()),
    }
}

/// A call of the upstream with a JSON body, and with what it is told of the caller.
fn call(path: &str, body: &serde_json::Value, exchange: &Exchange) -> Result<Call, GatewayError> {
    let body = body.to_string();
    let length = body.len();
    let body = Full::new(Bytes::from(body)).map_err(|never| match never {});
    let mut request = http::Request::new(BoxBody::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = path.parse().map_err(|_| GatewayError::from(Kind::InvalidPath))?;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream, application/json"));
    headers.insert(CONTENT_LENGTH, length.into());
    if let Ok(ip) = HeaderValue::from_str(&exchange.client_ip.to_string()) {
        headers.insert(&X_FORWARDED_FOR, ip);
    }
    set_identity(headers, exchange);
    Ok(request)
}

/// A request as an upstream gets it.
type Call = http::Request<BoxBody<Bytes, io::Error>>;

/// A question on its way to the upstream, and to another one where that cannot answer.
struct Asking {
    upstream: Arc<Upstream>,
    call: Call,
    again: Option<(Arc<Upstream>, Call)>,
    first_event: Duration,
    session_id: String,
    exchange: Arc<Exchange>,
}

impl Asking {
    async fn ask(self) -> Result<Answer, GatewayError> {
        let Asking { upstream, call, again, first_event, session_id, exchange } = self;
        let Some((other, again)) = again else {
            return ask(&upstream, &exchange, call, first_event, &session_id, false).await;
        };
        // Until the first event nothing was said: the other one may still answer.
        match ask(&upstream, &exchange, call, first_event, &session_id, true).await {
            Err(error) if matches!(error.kind.status().as_u16(), 502..=504) => {
                let answer = ask(&other, &exchange, again, first_event, &session_id, false).await?;
                exchange.set_degraded(Degraded::Upstream);
                Ok(answer)
            }
            answer => answer,
        }
    }
}

/// Asks one upstream. With `held`, it must have said something: else that is an error.
async fn ask(
    upstream: &Arc<Upstream>,
    exchange: &Arc<Exchange>,
    call: Call,
    first_event: Duration,
    session_id: &str,
    held: bool,
) -> Result<Answer, GatewayError> {
    let until = Instant::now() + first_event;
    let session = upstream.session_key(session_id);
    let options = SendOptions { first_byte: Some(first_event), stream: true, session, ..Default::default() };
    let response = upstream.send(exchange, call, &options).await?;
    if !is_event_stream(response.status(), response.headers()) {
        tracing::warn!(
            request_id = exchange.request_id(),
            upstream = &**upstream.spec().name(),
            status = response.status().as_u16(),
            content_type = ?response.headers().get(CONTENT_TYPE),
            "the upstream answered a question with something else than an event stream"
        );
        return Err(Kind::UpstreamBadResponse.into());
    }
    let body = match held {
        true => Primed::wait(response.into_body(), Pieces::Events, until).await?,
        false => response.into_body().into(),
    };
    Ok(Answer { close_delimited: body.close_delimited(), body: BoxBody::new(body) })
}

async fn tell_upstream(upstream: &Arc<Upstream>, exchange: &Arc<Exchange>, call: Call, session_id: &str) {
    // Where answers are spread by session, this goes to the server that writes them.
    let session = upstream.session_key(session_id);
    let options = SendOptions { first_byte: Some(CANCEL), session, ..Default::default() };
    match upstream.send(exchange, call, &options).await {
        Ok(response) => {
            tracing::debug!(status = response.status().as_u16(), "the upstream was told to stop");
            // Read to its end, so that the connection can be used again.
            let _ = tokio::time::timeout(CANCEL, response.into_body().collect()).await;
        }
        Err(error) => tracing::debug!(code = error.kind.code(), "the upstream could not be told to stop"),
    }
}
