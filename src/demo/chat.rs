//! The two token streams, one event at a time.
//!
//! | call | events |
//! |---|---|
//! | `POST /v01/query/stream` | `data:` lines: `{"type":"start","session_id"}`, `{"type":"token","content"}`…, `{"type":"end","total_tokens"}` |
//! | `POST /api/v1/chat/stream` | `event: thinking` twice, `token`…, `done`; `data:` is `{"meta":{"session_id","timestamp"},"data":{…}}` |
//!
//! A cancel call ends either with a `cancelled` event, the `error_after` switch with an `error` event. Events are made
//! only when the connection asks for them, so a reader that stalls costs nothing, and one that leaves drops the stream
//! and with it the [`Running`] that counts it.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};

use super::algorithm::Clock;
use super::ledger::{Outcome, Running};
use super::reply::{Body, Cut, timestamp};
use super::script::{Script, pace};
use super::switches::Switches;

/// What a dying stream waits for first: hyper throws away what it has not written yet when a body fails.
const FLUSH: Duration = Duration::from_millis(10);

/// The sizes of the pieces that `split=1` writes, in bytes, over and over.
const PIECES: [usize; 5] = [3, 1, 7, 2, 11];

/// Which of the two wire forms a stream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `/v01/query/stream`: bare `data:` lines.
    Query,
    /// `/api/v1/chat/stream`: named agent events in an envelope.
    Agent,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Open,
    /// The agent's second thought; the first opens the stream.
    Plan,
    Token(usize),
    Over,
}

/// One generation on its way to its reader.
pub(super) struct Chat {
    pub(super) dialect: Dialect,
    pub(super) running: Running,
    pub(super) script: Script,
    pub(super) switches: Switches,
    pub(super) clock: Clock,
    /// How many entries the caller's `context` has.
    pub(super) context_entries: usize,
}

/// The stream's state between two frames.
struct Telling {
    chat: Chat,
    step: Step,
    /// Pieces of the current event that are not handed over yet.
    pieces: VecDeque<Bytes>,
    /// Set with the last event, counted when its last piece is handed over.
    outcome: Option<Outcome>,
}

impl Chat {
    /// The 200 with this stream as its body.
    pub(super) fn into_response(self) -> Response<Body> {
        let telling = Telling { chat: self, step: Step::Open, pieces: VecDeque::new(), outcome: None };
        let frames = stream::unfold(telling, |mut telling| async move {
            let frame = telling.next().await?;
            Some((frame.map(Frame::data), telling))
        });
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    }

    fn session_id(&self) -> &str {
        &self.running.generation().session_id
    }

    /// The bytes of one event. `name` is the agent event's name, or the `type` of a query event.
    fn event(&self, name: &str, data: Value) -> String {
        match self.dialect {
            Dialect::Query => {
                let mut line = json!({ "type": name });
                if let (Some(line), Value::Object(data)) = (line.as_object_mut(), data) {
                    line.extend(data);
                }
                format!("data: {line}\n\n")
            }
            Dialect::Agent => {
                let meta = json!({ "session_id": self.session_id(), "timestamp": timestamp((self.clock)()) });
                format!("event: {name}\ndata: {}\n\n", json!({ "meta": meta, "data": data }))
            }
        }
    }

    /// Waits its time and makes the event of `step`; the next step and, with the last event, the outcome.
    async fn tell(&self, step: Step) -> Result<(String, Step, Option<Outcome>), Cut> {
        match (step, self.dialect) {
            (Step::Open, Dialect::Query) => {
                tokio::time::sleep(self.switches.first).await;
                Ok((self.event("start", json!({ "session_id": self.session_id() })), Step::Token(0), None))
            }
            (Step::Open, Dialect::Agent) => {
                tokio::time::sleep(self.switches.first).await;
                let data = json!({ "stage": "understand", "content": "Reading the question",
                                   "context_entries": self.context_entries });
                Ok((self.event("thinking", data), Step::Plan, None))
            }
            (Step::Plan, _) => {
                self.pause(0).await;
                let data = json!({ "stage": "answer", "content": "Writing the answer" });
                Ok((self.event("thinking", data), Step::Token(0), None))
            }
            (Step::Token(index), _) => self.tell_token(index).await,
            (Step::Over, _) => std::future::pending().await,
        }
    }

    /// The token at `index`, or what the switches put in its place, or the end.
    async fn tell_token(&self, index: usize) -> Result<(String, Step, Option<Outcome>), Cut> {
        let due = |after: Option<usize>| after == Some(index);
        if due(self.switches.fail_after) {
            tokio::time::sleep(FLUSH).await;
            return Err(Cut);
        }
        if due(self.switches.stall_after) {
            return std::future::pending().await;
        }
        if due(self.switches.error_after) {
            let data = json!({ "error": "the model broke off", "code": "model_error" });
            return Ok((self.event("error", data), Step::Over, Some(Outcome::Failed)));
        }
        if index == self.script.len() {
            let (name, data) = match self.dialect {
                Dialect::Query => ("end", json!({ "total_tokens": index })),
                Dialect::Agent => ("done", json!({ "total_tokens": index, "finish_reason": "stop" })),
            };
            return Ok((self.event(name, data), Step::Over, Some(Outcome::Finished)));
        }
        self.pause(index).await;
        let content = self.script.token(index);
        let data = match self.dialect {
            Dialect::Query => json!({ "content": content }),
            Dialect::Agent => json!({ "content": content, "index": index }),
        };
        self.running.generation().tokens.fetch_add(1, Relaxed);
        Ok((self.event("token", data), Step::Token(index + 1), None))
    }

    async fn pause(&self, index: usize) {
        let pause = self.switches.delay.unwrap_or_else(|| pace(index));
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
}

impl Telling {
    async fn next(&mut self) -> Option<Result<Bytes, Cut>> {
        if self.pieces.is_empty() {
            if self.step == Step::Over {
                return None;
            }
            if let Err(cut) = self.advance().await {
                self.step = Step::Over;
                self.chat.running.end(Outcome::Failed);
                return Some(Err(cut));
            }
        } else {
            // Pending once: hyper flushes the piece before, so that each really travels alone.
            tokio::task::yield_now().await;
        }
        let piece = self.pieces.pop_front();
        if let (true, Some(outcome)) = (self.pieces.is_empty(), self.outcome) {
            self.chat.running.end(outcome);
        }
        piece.map(Ok)
    }

    /// Makes the next event, unless a cancel call comes first.
    async fn advance(&mut self) -> Result<(), Cut> {
        let chat = &self.chat;
        let (event, step, outcome) = tokio::select! {
            biased;
            () = chat.running.generation().cancel.cancelled() => {
                let tokens = chat.running.generation().tokens.load(Relaxed);
                let data = json!({ "session_id": chat.session_id(), "total_tokens": tokens });
                (chat.event("cancelled", data), Step::Over, Some(Outcome::Cancelled))
            }
            told = chat.tell(self.step) => told?,
        };
        self.step = step;
        self.outcome = outcome;
        self.pieces =
            if self.chat.switches.split { split(event) } else { VecDeque::from([Bytes::from(event)]) };
        Ok(())
    }
}

/// Cuts an event into small pieces, without regard for lines and characters; the last newline always comes alone.
fn split(event: String) -> VecDeque<Bytes> {
    let mut rest = Bytes::from(event);
    let last = rest.split_off(rest.len().saturating_sub(1));
    let mut pieces = VecDeque::new();
    for size in PIECES.into_iter().cycle() {
        if rest.is_empty() {
            break;
        }
        pieces.push_back(rest.split_to(size.min(rest.len())));
    }
    pieces.push_back(last);
    pieces
}
