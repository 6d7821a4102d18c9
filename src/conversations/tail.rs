//! One reader's view of a turn: the events it has not read yet, then those to come.

use super::event::ChatEvent;
use super::fault;
use super::turn::Turn;
use super::turns::{Turns, log_key};
use crate::error::GatewayError;
use crate::exchange::End;
use crate::sse;
use crate::stores::{Message, MessageStatus, Owner, TurnRef};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::timeout;

/// How often another replica's events are looked for.
const LOOK: Duration = Duration::from_millis(100);
/// Events taken at a time from another replica.
const BATCH: usize = 256;
/// Looks without an event after which the database is asked whether the turn still runs.
const DOUBT: u32 = 20;

/// An event as it is to be sent, or how the turn ended.
type Told = Result<Bytes, End>;

/// One reader's view of a turn. Dropping it is leaving.
pub struct Tail {
    /// The turn.
    pub turn: String,
    source: Source,
}

enum Source {
    /// It runs here, or ran here.
    Here { turn: Arc<Turn>, read: usize },
    /// It runs on another replica. The lock only makes the boxed stream shareable; it is never contended.
    Elsewhere(Mutex<BoxStream<'static, Told>>),
    /// It is over, and all there is to say is here.
    Told { events: VecDeque<Bytes>, end: End },
}

impl std::fmt::Debug for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tail").field("turn", &self.turn).finish_non_exhaustive()
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        if let Source::Here { turn, .. } = &self.source {
            turn.leave();
        }
    }
}

impl Tail {
    /// Of a turn of this process, of whose events `read` are known.
    pub(super) fn of(turn: &Arc<Turn>, read: usize) -> Self {
        turn.enter();
        let read = read.min(turn.log.len());
        Tail { turn: turn.id.clone(), source: Source::Here { turn: turn.clone(), read } }
    }

    /// Of a turn whose events are gone: its message in their place.
    pub(super) fn told_again(turn: &TurnRef, message: &Message) -> Self {
        let mut events = VecDeque::new();
        let mut say = |event: &ChatEvent| {
            let id = format!("{}:{}", turn.id, events.len() + 1);
            events.push_back(event.numbered(&id));
        };
        say(&ChatEvent::Start { session_id: turn.session_id.clone() });
        if !message.content.is_empty() {
            say(&ChatEvent::Token { content: message.content.clone() });
        }
        let end = match message.status {
            MessageStatus::Complete => {
                say(&ChatEvent::End { total_tokens: message.total_tokens.unwrap_or_default() });
                End::Complete
            }
            MessageStatus::Cancelled => {
                say(&ChatEvent::Cancelled {});
                End::Complete
            }
            MessageStatus::Interrupted => {
                events.push_back(Bytes::from_static(sse::INTERRUPTED.as_bytes()));
                End::UpstreamBroke
            }
            MessageStatus::Failed => {
                say(&ChatEvent::failed("failed"));
                End::UpstreamBroke
            }
        };
        Tail { turn: turn.id.clone(), source: Source::Told { events, end } }
    }

    /// Of a turn of another replica, whose events behind number `read` stand in shared state under `key`. `None`
    /// where there are none and the turn does not run.
    pub(super) async fn elsewhere(
        turns: &Arc<Turns>,
        owner: &Owner,
        turn: TurnRef,
        read: u64,
    ) -> Result<Option<Self>, GatewayError> {
        let unavailable = |error| {
            tracing::warn!(%error, "the events of an answer on another replica cannot be read");
            GatewayError::from(crate::error::Kind::StoreUnavailable)
        };
        // The owner is part of the key: nobody else's can be read.
        let key = log_key(owner, &turn);
        // What was read last is looked at too: it tells a log that is there from one that is not.
        let first =
            turns.shared.read_events(&key, read.saturating_sub(1), BATCH).await.map_err(unavailable)?;
        if first.is_empty() && !turns.runs(owner, &turn).await.map_err(fault)? {
            return Ok(None);
        }
        let id = turn.id.clone();
        let state = Remote {
            turns: turns.clone(),
            key,
            owner: owner.clone(),
            turn,
            read,
            held: first.into_iter().filter(|(number, _)| *number > read).collect(),
            silent: 0,
            over: None,
        };
        let stream = futures_util::stream::unfold(state, |mut state| async move {
            let next = state.next().await?;
            Some((next, state))
        });
        Ok(Some(Tail { turn: id, source: Source::Elsewhere(Mutex::new(Box::pin(stream))) }))
    }

    /// The next event as it is to be sent; `Err` with how the turn ended where nothing follows.
    pub fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Told> {
        match &mut self.source {
            Source::Here { turn, read } => {
                let event = ready!(turn.log.poll_event(*read, cx));
                *read += usize::from(event.is_ok());
                Poll::Ready(event)
            }
            Source::Elsewhere(stream) => {
                let stream = stream.get_mut().unwrap_or_else(|poison| poison.into_inner());
                Poll::Ready(ready!(stream.as_mut().poll_next(cx)).unwrap_or(Err(End::Complete)))
            }
            Source::Told { events, end } => Poll::Ready(events.pop_front().ok_or(*end)),
        }
    }
}

/// Reads another replica's events.
struct Remote {
    turns: Arc<Turns>,
    key: String,
    owner: Owner,
    turn: TurnRef,
    read: u64,
    held: VecDeque<(u64, Bytes)>,
    silent: u32,
    /// How it ended, once nothing more is to be told.
    over: Option<End>,
}

impl Remote {
    /// What is left cannot be told: the last event says why.
    fn broke(&mut self, end: End, last: &'static str) -> Option<Told> {
        self.over = Some(end);
        self.held.clear();
        Some(Ok(Bytes::from_static(last.as_bytes())))
    }

    async fn next(&mut self) -> Option<Told> {
        loop {
            if let Some(end) = self.over {
                return Some(Err(end));
            }
            if let Some((number, event)) = self.held.pop_front() {
                if number > self.read + 1 {
                    tracing::warn!(turn = %self.turn.id, "events of an answer on another replica are gone");
                    return self.broke(End::UpstreamBroke, sse::INTERRUPTED);
                }
                self.read = number;
                if event.is_empty() {
                    self.over = Some(End::Complete);
                    continue;
                }
                return Some(Ok(event));
            }
            match self.turns.shared.read_events(&self.key, self.read, BATCH).await {
                Ok(events) if !events.is_empty() => {
                    self.silent = 0;
                    self.held.extend(events);
                    continue;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "the events of an answer on another replica cannot be read")
                }
            }
            self.silent += 1;
            if self.silent.is_multiple_of(DOUBT)
                && !self.turns.runs(&self.owner, &self.turn).await.unwrap_or(true)
                && self.silent > DOUBT
            {
                // Its replica died before it could say that nothing follows.
                return self.broke(End::UpstreamBroke, sse::INTERRUPTED);
            }
            if timeout(LOOK, self.turns.closes()).await.is_ok() {
                // This replica goes; the answer goes on, and can be read on another.
                return self.broke(End::Shutdown, sse::SHUTTING_DOWN);
            }
        }
    }
}
