//! The connections to one server: those in use are counted, those at rest wait in a stack.
//!
//! Whoever sends holds a [`Lease`]: one of `max_connections` slots and, once opened or taken from the stack, a
//! connection. A connection is opened only when none is at rest, so no more than `max_connections` are ever
//! open (HTTP/2 is otherwise: there the slots are for calls, which share the connections of `http2`). The youngest at rest is taken first; those that rested for [`REST`] are closed. The stack has a part for
//! each core and is entered by `try_lock`, so nobody waits for a thread that was stopped while it held the lock.

use super::body::RequestBody;
use super::breaker::Breaker;
use super::circuits::Passages;
use super::health::Health;
use super::http1::{Broken, Early, Failed, Http1, Returned, Socket};
use super::http2::{Links, Seat};
use super::outcome::Outcome;
use super::outlier::Conduct;
use super::spec::{ServerSpec, UpstreamSpec};
use super::standing::Standing;
use crate::exchange::UpstreamNote;
use crate::telemetry::{Held, TargetMetrics, UpstreamMetrics};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, Sleep};

/// A connection that rested this long is not used any more.
pub(super) const REST: Duration = Duration::from_secs(60);

/// One server and its connections.
pub(super) struct Server {
    pub(super) spec: ServerSpec,
    /// What exchanges note.
    pub(super) note: UpstreamNote,
    pub(super) health: Health,
    /// Its own breaker, where the upstream has several targets.
    pub(super) breaker: Option<Arc<Breaker>>,
    /// Why it takes no requests, or fewer.
    pub(super) standing: Standing,
    /// Where it is watched for what its traffic shows.
    pub(super) watch: Option<Watch>,
    /// Which of the manifest's targets it belongs to.
    pub(super) target: usize,
    pub(super) metrics: Arc<TargetMetrics>,
    max: usize,
    slots: Semaphore,
    /// How it is spoken to where that is HTTP/2; then nothing rests below.
    pub(super) links: Option<Links>,
    resting: Box<[Mutex<Vec<Resting>>]>,
}

/// What it takes to judge a server by its traffic.
pub(super) struct Watch {
    pub(super) conduct: Conduct,
    /// Wakes whoever decides.
    pub(super) look: Arc<Notify>,
    /// Zero of the clock.
    pub(super) began: Instant,
}

/// One connection; dropping it closes the socket.
pub(super) struct Conn {
    line: Line,
    /// Whether it carried a request before.
    pub(super) used: bool,
    /// Stays armed from one request to the next.
    alarm: Alarm,
}

/// Who drives a connection.
enum Line {
    /// Whoever waits for its answer.
    Here(Box<Http1>),
    /// A task, while the request is still being sent.
    Early(Early),
}

/// A timer for deadlines that mostly do not pass.
#[derive(Default)]
pub(super) struct Alarm(Option<Pin<Box<Sleep>>>);

struct Resting {
    conn: Conn,
    since: Instant,
    _counted: Held,
}

/// The right to send one request, with the connection it goes over. Dropped early, it closes the connection, or with
/// HTTP/2 resets the stream.
pub(super) struct Lease {
    pub(super) server: Arc<Server>,
    pub(super) conn: Option<Conn>,
    pub(super) seat: Option<Seat>,
    /// What an answer is still to be counted by whose trailers will say how it ended.
    pub(super) uncounted: Option<Box<Uncounted>>,
}

/// An answer whose status is not known yet.
pub(super) struct Uncounted {
    /// How long its head took.
    pub(super) took: Duration,
    pub(super) passages: Passages,
}

impl Conn {
    /// A new connection.
    pub(super) fn new(http1: Http1) -> Self {
        Conn { line: Line::Here(Box::new(http1)), used: false, alarm: Alarm::default() }
    }

    /// See [`Http1::start`].
    pub(super) fn start(&mut self, request: Request<RequestBody>) {
        if let Line::Here(http1) = &mut self.line {
            http1.start(request);
        }
    }

    /// See [`Http1::poll_head`].
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<()>, Failed>> {
        match &mut self.line {
            Line::Here(http1) => http1.poll_head(cx),
            Line::Early(_) => {
                let why = Broken::Closed("its answer has begun already");
                Poll::Ready(Err(Failed { why, request: Returned::Nothing }))
            }
        }
    }

    /// The answer has begun: where its request is not over, the rest of that goes out by itself from now on.
    pub(super) fn answered(self) -> Self {
        match self.line {
            Line::Here(http1) if !http1.is_sent() => Conn { line: Line::Early(Early::new(http1)), ..self },
            line => Conn { line, ..self },
        }
    }

    /// See [`Http1::poll_frame`].
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match &mut self.line {
            Line::Here(http1) => http1.poll_frame(cx),
            Line::Early(early) => early.poll_frame(cx),
        }
    }

    /// Whether nothing is left of the answer.
    pub(super) fn is_done(&self) -> bool {
        matches!(&self.line, Line::Here(http1) if http1.is_done())
    }

    /// Whether only the connection's end tells the answer's.
    pub(super) fn ends_with_connection(&self) -> bool {
        matches!(&self.line, Line::Here(http1) if http1.ends_with_connection())
    }

    /// How many bytes are left of the answer, where its head told.
    pub(super) fn left(&self) -> Option<u64> {
        match &self.line {
            Line::Here(http1) => http1.left(),
            Line::Early(_) => None,
        }
    }

    fn is_reusable(&self) -> bool {
        matches!(&self.line, Line::Here(http1) if http1.is_reusable())
    }

    fn is_quiet(&mut self) -> bool {
        match &mut self.line {
            Line::Here(http1) => http1.is_quiet(),
            Line::Early(_) => false,
        }
    }

    /// The socket of a connection that switched protocols, and what was read from it already.
    pub(super) fn into_socket(self) -> Option<(Socket, Bytes)> {
        match self.line {
            Line::Here(http1) => Some(http1.into_socket()),
            Line::Early(_) => None,
        }
    }

    /// See [`Alarm::poll`].
    pub(super) fn poll_timer(&mut self, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
        self.alarm.poll(due, cx)
    }
}

impl Alarm {
    /// Ready when it is time to look whether `due` has passed; it may be too early, but is never too late.
    ///
    /// Setting a timer takes a lock that the whole process shares. This one is left as it is while it fires no later
    /// than `due`, so on a busy connection it is set anew about once in the time of its shortest deadline, and no
    /// request has to.
    pub(super) fn poll(&mut self, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if timer.deadline() > due || timer.is_elapsed() {
            timer.as_mut().reset(due);
        }
        timer.as_mut().poll(cx)
    }
}

impl Server {
    pub(super) fn new(
        upstream: &UpstreamSpec,
        spec: ServerSpec,
        target: usize,
        watch: Option<Watch>,
        breaker: Option<Arc<Breaker>>,
        metrics: &UpstreamMetrics,
    ) -> Arc<Self> {
        let shards = std::thread::available_parallelism().map_or(4, usize::from).min(32);
        let max = (upstream.max_connections() as usize).min(Semaphore::MAX_PERMITS);
        let metrics = metrics.target(&spec.address);
        Arc::new(Server {
            links: upstream.multiplexes().then(|| Links::new(metrics.clone())),
            note: UpstreamNote { upstream: upstream.name().clone(), target: spec.address.clone() },
            spec,
            health: Health::default(),
            breaker,
            standing: Standing::default(),
            watch,
            target,
            metrics,
            max,
            slots: Semaphore::new(max),
            resting: (0..shards).map(|_| Mutex::default()).collect(),
        })
    }

    /// A slot; waits for one at most `patience`. `None` if none became free.
    pub(super) async fn lease(self: &Arc<Self>, patience: Duration) -> Option<Lease> {
        let permit = match self.slots.try_acquire() {
            Ok(permit) => permit,
            Err(_) => tokio::time::timeout(patience, self.slots.acquire()).await.ok()?.ok()?,
        };
        // Given back by the lease's drop.
        permit.forget();
        self.metrics.active.up();
        Some(Lease { server: self.clone(), conn: None, seat: None, uncounted: None })
    }

    /// Takes note of how a try ended.
    pub(super) fn judge(&self, outcome: Outcome) {
        if let Some(Watch { conduct, look, began }) = &self.watch
            && conduct.note(&self.standing, outcome, began.elapsed().as_millis() as u64)
        {
            look.notify_one();
        }
    }

    /// Requests it has.
    pub(super) fn in_flight(&self) -> usize {
        self.max.saturating_sub(self.slots.available_permits())
    }

    /// Connections at rest.
    pub(super) fn at_rest(&self) -> usize {
        match &self.links {
            Some(links) => links.at_rest(),
            None => self.resting.iter().map(|shard| lock(shard).len()).sum(),
        }
    }

    /// A connection at rest that still stands.
    pub(super) fn take(&self, now: Instant) -> Option<Conn> {
        let own = own_shard();
        let shards = self.resting.len();
        let mut contended = false;
        for step in 0..shards {
            match self.resting[(own + step) % shards].try_lock() {
                Ok(mut shard) => {
                    if let Some(conn) = take(&mut shard, now) {
                        return Some(conn);
                    }
                }
                Err(TryLockError::WouldBlock) => contended = true,
                Err(TryLockError::Poisoned(poison)) => poison.into_inner().clear(),
            }
        }
        // Opening another now could exceed `max_connections`: look properly.
        match contended {
            true => self.resting.iter().find_map(|shard| take(&mut lock(shard), now)),
            false => None,
        }
    }

    fn put(&self, conn: Conn) {
        let resting = Resting { conn, since: Instant::now(), _counted: self.metrics.idle.hold() };
        let own = own_shard();
        let shards = self.resting.len();
        let free = (0..shards).find_map(|step| self.resting[(own + step) % shards].try_lock().ok());
        free.unwrap_or_else(|| lock(&self.resting[own % shards])).push(resting);
    }

    /// Closes what rests.
    pub(super) fn close_resting(&self) {
        self.resting.iter().for_each(|shard| lock(shard).clear());
    }

    /// Closes what rested too long or was closed by the server.
    pub(super) fn sweep(&self) {
        if let Some(links) = &self.links {
            return links.sweep();
        }
        let now = Instant::now();
        for shard in &self.resting {
            lock(shard).retain_mut(|it| now.duration_since(it.since) < REST && it.conn.is_quiet());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take(shard: &mut Vec<Resting>, now: Instant) -> Option<Conn> {
    while let Some(Resting { mut conn, since, .. }) = shard.pop() {
        if now.saturating_duration_since(since) >= REST {
            // Those below are older.
            shard.clear();
            return None;
        }
        if conn.is_quiet() {
            conn.used = true;
            return Some(conn);
        }
    }
    None
}

/// Threads are spread over the parts of the stack.
fn own_shard() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: Cell<usize> = Cell::new(THREADS.fetch_add(1, Ordering::Relaxed));
    }
    OWN.get()
}

impl Lease {
    /// Ready when it is time to look whether `due` has passed, see [`Alarm::poll`]; at once where there is no
    /// connection any more.
    pub(super) fn poll_timer(&mut self, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
        match (&mut self.conn, &mut self.seat) {
            (Some(conn), _) => conn.poll_timer(due, cx),
            (None, Some(seat)) => seat.alarm.poll(due, cx),
            (None, None) => Poll::Ready(()),
        }
    }

    /// Counts an answer whose status is known now.
    pub(super) fn count(&mut self, status: u16) {
        if let Some(uncounted) = self.uncounted.take() {
            let Uncounted { took, passages } = *uncounted;
            self.server.metrics.ended(status);
            passages.tell(Outcome::Answered { status, took });
        }
    }

    /// The response was read whole: the connection rests, if it can carry another request.
    pub(super) fn finish(mut self) {
        if let Some(conn) = self.conn.take_if(|conn| conn.is_reusable()) {
            // Before the slot is given back: who waits for it finds the connection.
            self.server.put(conn);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop((self.conn.take(), self.seat.take()));
        if self.uncounted.is_some() {
            // Whoever asked has left.
            self.server.metrics.ended(499);
        }
        self.server.metrics.active.down();
        self.server.slots.add_permits(1);
    }
}
