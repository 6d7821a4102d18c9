//! One turn: a question, and the task that brings its answer home.
//!
//! The task belongs to the process, not to the caller's connection. It asks the upstream, writes what comes into the
//! turn's [`Log`], gathers the [`Reply`], and stores the assistant's message exactly once, however the turn ends
//! (SECURITY rule 14). The event that ends a stream is told after the message is stored, so that whoever asks for the
//! history on seeing it finds it there.

use super::log::Log;
use super::reply::{Meaning, Reply};
use crate::error::{GatewayError, Kind};
use crate::exchange::End;
use crate::manifest::model::OnDisconnect;
use crate::sse::{self, Splitter, StreamTimes};
use crate::stores::{MessageStatus, Owner, Piece, TurnEnd, TurnRef};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use http_body_util::combinators::BoxBody;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

/// How long the upstream gets to end its answer after the event that says so, for its connection to be used again.
const TRAILING: Duration = Duration::from_millis(100);

pub(super) const CANCELLED: &str = "data: {\"type\":\"cancelled\"}\n";
pub(super) const TOO_LARGE: &str = "event: error\ndata: {\"type\":\"error\",\"code\":\"stream_too_large\"}\n";

/// Limits of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TurnLimits {
    /// Deadlines and heartbeat.
    pub times: StreamTimes,
    /// What becomes of the answer when the last reader leaves.
    pub on_disconnect: OnDisconnect,
    /// How long its events can be read when it is over.
    pub resume_for: Duration,
    /// Largest stream, in bytes of its events.
    pub max_size: u64,
}

/// The upstream's answer.
pub struct Answer {
    /// Its event stream.
    pub body: BoxBody<Bytes, io::Error>,
    /// Whether only the connection's end tells the body's: then a death cannot be told from an end.
    pub close_delimited: bool,
}

/// Why a turn is stopped from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// Its last reader left.
    Left,
    /// Somebody asked for it.
    Cancelled,
}

/// A turn that runs, or whose events can still be read.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) id: String,
    pub(super) session_id: String,
    pub(super) owner: Owner,
    pub(super) limits: TurnLimits,
    pub(super) log: Log,
    readers: AtomicUsize,
    stop: watch::Sender<Option<Stop>>,
    said: Mutex<Said>,
    /// Set when its message is stored: nothing of it can be lost any more.
    stored: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Said {
    reply: Reply,
    /// How many bytes of it are saved.
    saved: usize,
}

/// How a turn ends.
pub(super) struct Ending {
    pub(super) status: MessageStatus,
    pub(super) end: End,
    /// What readers are told last.
    pub(super) last: Option<Bytes>,
}

impl Ending {
    fn new(status: MessageStatus, end: End, last: &'static str) -> Self {
        Ending { status, end, last: Some(Bytes::from_static(last.trim_ascii_end().as_bytes())) }
    }
}

impl Turn {
    pub(super) fn new(turn: TurnRef, owner: Owner, limits: TurnLimits) -> Arc<Self> {
        Arc::new(Turn {
            log: Log::new(&turn.id),
            id: turn.id,
            session_id: turn.session_id,
            owner,
            limits,
            readers: AtomicUsize::new(0),
            stop: watch::Sender::new(None),
            said: Mutex::default(),
            stored: watch::Sender::new(false),
        })
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Asks it to stop; the first reason counts.
    pub(super) fn stop(&self, why: Stop) {
        self.stop.send_if_modified(|current| {
            let first = current.is_none();
            current.get_or_insert(why);
            first
        });
    }

    /// A reader came.
    pub(super) fn enter(&self) {
        self.readers.fetch_add(1, Ordering::Relaxed);
    }

    /// A reader left; the last one stops it where that is what the manifest wants.
    pub(super) fn leave(&self) {
        let last = self.readers.fetch_sub(1, Ordering::AcqRel) == 1;
        if last && self.limits.on_disconnect == OnDisconnect::Cancel {
            self.stop(Stop::Left);
        }
    }

    /// What was said since it was last saved.
    pub(super) fn unsaved(&self) -> Option<Piece> {
        let said = self.said();
        let text = &said.reply.text()[said.saved..];
        (!text.is_empty()).then(|| Piece {
            turn: self.id.clone(),
            at: said.saved as u64,
            text: text.to_owned(),
        })
    }

    /// That a piece is saved.
    pub(super) fn is_saved(&self, piece: &Piece) {
        self.said().saved = piece.end() as usize;
    }

    /// Its message is stored, or its account is gone.
    pub(super) fn is_stored(&self) {
        self.stored.send_replace(true);
    }

    /// Waits until its message is stored.
    pub(super) async fn until_stored(&self) {
        // The sender lives as long as `self` does.
        let _ = self.stored.subscribe().wait_for(|stored| *stored).await;
    }

    /// The assistant's message.
    pub(super) fn message(&self, status: MessageStatus) -> TurnEnd {
        let said = self.said();
        TurnEnd { content: said.reply.text().to_owned(), status, total_tokens: Some(said.reply.tokens()) }
    }

    /// Waits for a reason to end early.
    pub(super) async fn stopped(&self, mut closing: watch::Receiver<bool>) -> Ending {
        let mut stop = self.stop.subscribe();
        tokio::select! {
            why = async { stop.wait_for(Option::is_some).await.map(|why| *why) } => match why {
                Ok(Some(Stop::Cancelled)) => Ending::new(MessageStatus::Cancelled, End::Complete, CANCELLED),
                _ => Ending { status: MessageStatus::Interrupted, end: End::ClientLeft, last: None },
            },
            told = async { closing.wait_for(|closing| *closing).await.is_ok() } => match told {
                true => Ending::new(MessageStatus::Interrupted, End::Shutdown, sse::SHUTTING_DOWN),
                // Nobody can ever say so.
                false => std::future::pending().await,
            },
        }
    }

    /// Reads the upstream's answer to its end, or to the turn's; `began` is when the upstream was asked.
    pub(super) async fn read(
        &self,
        answer: Answer,
        began: Instant,
        stopped: impl Future<Output = Ending>,
        mut told: impl FnMut(u64, Bytes),
    ) -> (Ending, Option<BoxBody<Bytes, io::Error>>) {
        let Answer { mut body, close_delimited } = answer;
        let times = self.limits.times;
        let hard = began + times.max;
        let mut due = (began + times.first_event).min(hard);
        let mut stopped = pin!(stopped);
        // Set anew only when it fires too early: events move `due`, not the timer.
        let mut timer = pin!(sleep_until(due));
        let mut splitter = Splitter::default();
        let mut number = 0;
        loop {
            let frame = tokio::select! {
                biased;
                ending = &mut stopped => return (ending, None),
                frame = body.frame() => frame,
                () = &mut timer => {
                    let now = Instant::now();
                    match (now >= hard, now >= due) {
                        (true, _) => return (too_long(), None),
                        (_, true) => return (Ending::new(MessageStatus::Interrupted, End::StreamLimit, sse::IDLE), None),
                        _ => timer.as_mut().reset(due),
                    }
                    continue;
                }
            };
            let data = match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => data,
                    // Trailers.
                    Err(_) => continue,
                },
                // Its own end, unless that cannot be told from its death.
                None if !close_delimited && splitter.pending() == 0 => {
                    return (
                        Ending { status: MessageStatus::Complete, end: End::Complete, last: None },
                        Some(body),
                    );
                }
                None | Some(Err(_)) => {
                    let broke = Ending::new(MessageStatus::Interrupted, End::UpstreamBroke, sse::INTERRUPTED);
                    return (broke, None);
                }
            };
            splitter.push(&data);
            let mut events = 0;
            while let Some(event) = splitter.next_event() {
                events += 1;
                let meaning = self.said().reply.take(&event);
                let (status, end) = match meaning {
                    Meaning::Ends => (MessageStatus::Complete, End::Complete),
                    Meaning::Fails => (MessageStatus::Failed, End::Complete),
                    Meaning::GoesOn | Meaning::Says => {
                        number += 1;
                        told(number, self.log.append(&event));
                        continue;
                    }
                };
                return (Ending { status, end, last: Some(event.freeze()) }, Some(body));
            }
            if self.log.size() + splitter.pending() as u64 > self.limits.max_size {
                return (Ending::new(MessageStatus::Interrupted, End::StreamLimit, TOO_LARGE), None);
            }
            let now = Instant::now();
            if events > 0 {
                due = (now + times.idle).min(hard);
            }
            // An upstream that never pauses must not outrun its limit.
            if now >= hard {
                return (too_long(), None);
            }
        }
    }
}

fn too_long() -> Ending {
    Ending::new(MessageStatus::Interrupted, End::StreamLimit, sse::TOO_LONG)
}

/// Reads what is behind the last event, for a moment: an answer read to its end leaves a connection to use again.
pub(super) async fn read_out(mut body: BoxBody<Bytes, io::Error>) {
    let _ = timeout(TRAILING, async { while let Some(Ok(_)) = body.frame().await {} }).await;
}

/// How a turn ends whose upstream gave no stream. Who asked is answered with the error; whoever else reads, by a retry
/// key, has a stream already and is told in it.
pub(super) fn refused(error: &GatewayError) -> Ending {
    let status = match error.kind {
        Kind::ShuttingDown => MessageStatus::Interrupted,
        _ => MessageStatus::Failed,
    };
    let code = error.kind.code();
    let last = format!("event: error\ndata: {{\"type\":\"error\",\"code\":\"{code}\"}}\n");
    Ending { status, end: End::UpstreamBroke, last: Some(last.into()) }
}

#[cfg(test)]
mod tests;
