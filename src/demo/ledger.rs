//! What has happened to the demo services and what still runs: the counters of `GET /stats`, and the registry of running
//! generations that `chat/cancel` and `chat/session` look into.
//!
//! A [`Running`] is the proof that a generation runs. Whoever drops it without [`Running::end`] has lost its reader, and
//! that is counted as aborted in the same instant.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

/// What the demo services have seen since they started. Calls of `/health` and `/stats` are not counted, so that neither
/// health checks nor the looking itself disturb a test's sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Requests that arrived, whatever became of them.
    pub requests: u64,
    /// Requests whose answer has not begun yet.
    pub unanswered: u64,
    /// TCP connections.
    pub connections: Connections,
    /// WebSockets.
    pub sockets: Sockets,
    /// Token streams: `started` is the sum of all the others.
    pub streams: Streams,
}

/// TCP connections of the demo services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Connections {
    /// Accepted since the start.
    pub accepted: u64,
    /// Open now.
    pub open: u64,
}

/// WebSockets of the demo services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sockets {
    /// Opened since the start.
    pub opened: u64,
    /// Open now.
    pub open: u64,
}

/// Token streams by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Streams {
    /// Begun, the running ones included.
    pub started: u64,
    /// Ran to their last event.
    pub finished: u64,
    /// Ended by a cancel call.
    pub cancelled: u64,
    /// Ended by the `fail_after` or `error_after` switch.
    pub failed: u64,
    /// Their reader left, or the server stopped, before the last event.
    pub aborted: u64,
    /// Running now.
    pub running: u64,
}

/// How a generation ended, where it was not simply abandoned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Finished,
    Cancelled,
    Failed,
}

/// The counters and the registry of one [`super::Demo`].
#[derive(Debug, Default)]
pub(super) struct Ledger {
    requests: AtomicU64,
    unanswered: AtomicU64,
    accepted: AtomicU64,
    open: AtomicU64,
    sockets_opened: AtomicU64,
    sockets_open: AtomicU64,
    streams: Mutex<Book>,
}

/// The streams' counters and the running ones, under one lock so that a snapshot adds up.
#[derive(Debug, Default)]
struct Book {
    counts: Streams,
    running: BTreeMap<u64, Arc<Generation>>,
}

/// One running generation, as the registry knows it.
#[derive(Debug)]
pub(super) struct Generation {
    pub(super) session_id: String,
    pub(super) started_at: Timestamp,
    pub(super) tokens: AtomicU64,
    /// Cancelled when a cancel call named this session.
    pub(super) cancel: CancellationToken,
}

/// Held by a generation while it runs; see the module's doc.
#[derive(Debug)]
pub(super) struct Running {
    ledger: Arc<Ledger>,
    number: u64,
    generation: Arc<Generation>,
    over: bool,
}

/// A gauge that falls again when this is dropped.
#[derive(Debug)]
pub(super) struct Counted<'a>(&'a AtomicU64);

impl Ledger {
    /// Counts a connection, open until the guard is dropped.
    pub(super) fn connected(&self) -> Counted<'_> {
        self.accepted.fetch_add(1, Relaxed);
        Counted::up(&self.open)
    }

    /// Counts a WebSocket, open until the guard is dropped.
    pub(super) fn talking(&self) -> Counted<'_> {
        self.sockets_opened.fetch_add(1, Relaxed);
        Counted::up(&self.sockets_open)
    }

    /// Counts a request, unanswered until the guard is dropped.
    pub(super) fn requested(&self) -> Counted<'_> {
        self.requests.fetch_add(1, Relaxed);
        Counted::up(&self.unanswered)
    }

    /// Registers a generation of `session_id`. One session may have several at once.
    pub(super) fn begin(self: &Arc<Self>, session_id: String, started_at: Timestamp) -> Running {
        let generation = Arc::new(Generation {
            session_id,
            started_at,
            tokens: AtomicU64::new(0),
            cancel: CancellationToken::new(),
        });
        let mut book = self.book();
        let number = book.counts.started;
        book.counts.started += 1;
        book.running.insert(number, generation.clone());
        Running { ledger: self.clone(), number, generation, over: false }
    }

    /// Tells every generation of the session to end; false when none runs or all were told before.
    pub(super) fn cancel(&self, session_id: &str) -> bool {
        let book = self.book();
        let mut any = false;
        for generation in book.running.values().filter(|g| g.session_id == session_id) {
            any |= !generation.cancel.is_cancelled();
            generation.cancel.cancel();
        }
        any
    }

    /// The generations that run, oldest first; those of one session, or all.
    pub(super) fn running(&self, session_id: Option<&str>) -> Vec<Arc<Generation>> {
        let wanted = |g: &&Arc<Generation>| session_id.is_none_or(|id| g.session_id == id);
        self.book().running.values().filter(wanted).cloned().collect()
    }

    pub(super) fn stats(&self) -> Stats {
        let streams = {
            let book = self.book();
            Streams { running: book.running.len() as u64, ..book.counts }
        };
        Stats {
            requests: self.requests.load(Relaxed),
            unanswered: self.unanswered.load(Relaxed),
            connections: Connections { accepted: self.accepted.load(Relaxed), open: self.open.load(Relaxed) },
            sockets: Sockets {
                opened: self.sockets_opened.load(Relaxed),
                open: self.sockets_open.load(Relaxed),
            },
            streams,
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Counters are whole after every statement: a panic elsewhere can't have left them half written.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    pub(super) fn generation(&self) -> &Generation {
        &self.generation
    }

    /// The generation is over; only the first call counts.
    pub(super) fn end(&mut self, outcome: Outcome) {
        self.close(|counts| match outcome {
            Outcome::Finished => &mut counts.finished,
            Outcome::Cancelled => &mut counts.cancelled,
            Outcome::Failed => &mut counts.failed,
        });
    }

    fn close(&mut self, counter: impl FnOnce(&mut Streams) -> &mut u64) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let mut book = self.ledger.book();
        *counter(&mut book.counts) += 1;
        book.running.remove(&self.number);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.close(|counts| &mut counts.aborted);
    }
}

impl<'a> Counted<'a> {
    fn up(gauge: &'a AtomicU64) -> Self {
        gauge.fetch_add(1, Relaxed);
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
