//! One connection, from its first byte to its end: which HTTP it speaks, its deadlines, its part in the drain.
//!
//! hyper has one timer for a head and the wait before it; a client between two requests deserves longer than one that
//! dribbles a head. So that timer is off and the driver here keeps the deadlines, from what the wire shows:
//!
//! | the peer | may take | then |
//! |---|---|---|
//! | shakes hands (TLS) | `handshake_timeout` | dropped |
//! | has sent nothing, or part of a head | `header_timeout` | dropped |
//! | rests between requests | `keep_alive_timeout` | closed in order |
//! | takes none of our bytes | `write_stall` | dropped (`io`); HTTP/2: the stream is reset (here) |
//!
//! Bodies are not timed: how slowly one may come or go is the business of the route. While a response is being made
//! or sent nothing here ends the connection, save the cut at the end of a drain.
use std::{
    cell::Cell,
    convert::Infallible,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::BoxBody;
use hyper::{
    body::Incoming,
    rt::Executor,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    net::TcpStream,
    time::{Instant, Sleep, sleep_until, timeout_at},
};

use super::{
    accept::{ConnInfo, Limits, Service},
    drain::{Drain, Signal, Stage},
    framing::Phase,
    intake::AmbiguousLength,
    io::{Exchange, Steady, Tap, Vitals},
    tls::TlsSettings,
};

/// How every HTTP/2 connection begins (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What is read before it is known which HTTP the peer speaks: more than most first requests have.
const FIRST_READ: usize = 2 << 10;
/// hyper holds up to this many fields on the stack, and on the heap as soon as it is told a number.
const HYPER_MAX_HEADERS: usize = 100;

/// What all connections of one listener share.
pub(super) struct Protocols<S> {
    service: S,
    limits: Limits,
    tls: Option<TlsSettings>,
    drain: Drain,
    h1: http1::Builder,
    h2: http2::Builder<StreamExecutor>,
}

impl<S: Service> Protocols<S> {
    pub(super) fn new(service: S, limits: Limits, tls: Option<TlsSettings>, drain: Drain) -> Self {
        let mut h1 = http1::Builder::new();
        h1.half_close(false)
            .header_read_timeout(None)
            .max_header_size(limits.max_header_bytes)
            .max_buf_size(limits.h1_buffer_bytes.max(8 << 10));
        if limits.max_headers != HYPER_MAX_HEADERS {
            h1.max_headers(limits.max_headers);
        }
        let mut h2 = http2::Builder::new(StreamExecutor { stall: limits.write_stall });
        h2.timer(TokioTimer::new())
            .max_concurrent_streams(limits.h2_max_streams)
            .max_pending_accept_reset_streams(limits.h2_max_reset_streams)
            .max_local_error_reset_streams(limits.h2_max_local_resets)
            .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX))
            .max_send_buf_size(limits.h2_send_buffer_bytes)
            .initial_stream_window_size(limits.h2_stream_window_bytes)
            .initial_connection_window_size(limits.h2_connection_window_bytes)
            .keep_alive_interval(limits.h2_ping_interval)
            .keep_alive_timeout(limits.h2_ping_timeout);
        Self { service, limits, tls, drain, h1, h2 }
    }

    pub(super) fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Serves one connection to its end. `seat` is held as long as the socket is open, also after an upgrade.
    pub(super) async fn serve(
        self: Arc<Self>,
        socket: TcpStream,
        info: ConnInfo,
        seat: impl Send + Unpin + 'static,
    ) {
        let opened = Instant::now();
        let vitals = Arc::<Vitals>::default();
        let socket = Steady::new(socket, self.limits.write_stall, Arc::clone(&vitals), seat);
        let mut signal = self.drain.signal();
        let info = Arc::new(info);
        let peer = info.peer;
        let outcome = match &self.tls {
            None => self.serve_plain(socket, info, vitals, opened, signal).await,
            Some(tls) => {
                let handshake =
                    timeout_at(opened + self.limits.handshake_timeout, tls.acceptor().accept(socket));
                let stream = tokio::select! {
                    biased;
                    () = signal.draining() => return,
                    shaken = handshake => match shaken {
                        Ok(Ok(stream)) => stream,
                        Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
                        Err(_) => return tracing::debug!(%peer, "TLS handshake took too long"),
                    },
                };
                // The handshake had its own deadline; the first request gets a fresh one.
                let clock = Clock::new(&self.limits, Instant::now());
                if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                    let tap = Tap::replaying(stream, Bytes::new(), Arc::clone(&vitals));
                    self.serve_h2(tap, info, vitals, clock, signal).await
                } else {
                    let tap = Tap::watching(stream, Bytes::new(), Arc::clone(&vitals));
                    self.serve_h1(tap, info, vitals, clock, signal).await
                }
            }
        };
        match outcome {
            Outcome::Ended(Ok(())) => {}
            Outcome::Ended(Err(error)) => tracing::debug!(%peer, %error, "connection failed"),
            Outcome::Late => tracing::debug!(%peer, "connection dropped: no complete request in time"),
            Outcome::Cut => tracing::debug!(%peer, "connection cut: the grace is over"),
        }
    }

    async fn serve_plain<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        mut io: IO,
        info: Arc<ConnInfo>,
        vitals: Arc<Vitals>,
        opened: Instant,
        mut signal: Signal,
    ) -> Outcome {
        let sniffed = tokio::select! {
            biased;
            // Nothing has been asked yet, or too little to know what.
            () = signal.draining() => return Outcome::Ended(Ok(())),
            sniffed = timeout_at(opened + self.limits.header_timeout, sniff(&mut io)) => sniffed,
        };
        let clock = Clock::new(&self.limits, opened);
        match sniffed {
            Err(_) => Outcome::Late,
            Ok(Err(error)) => {
                tracing::debug!(peer = %info.peer, %error, "connection failed before its first request");
                Outcome::Ended(Ok(()))
            }
            Ok(Ok(None)) => Outcome::Ended(Ok(())),
            Ok(Ok(Some((Version::Http1, prefix)))) => {
                let tap = Tap::watching(io, prefix, Arc::clone(&vitals));
                self.serve_h1(tap, info, vitals, clock, signal).await
            }
            Ok(Ok(Some((Version::Http2, prefix)))) => {
                let tap = Tap::replaying(io, prefix, Arc::clone(&vitals));
                self.serve_h2(tap, info, vitals, clock, signal).await
            }
        }
    }

    async fn serve_h1<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        io: Tap<IO>,
        info: Arc<ConnInfo>,
        vitals: Arc<Vitals>,
        clock: Clock,
        signal: Signal,
    ) -> Outcome {
        let service = service_fn(|request| answer(&self.service, &info, &vitals, request));
        let connection = self.h1.serve_connection(TokioIo::new(io), service).with_upgrades();
        let outcome =
            drive(connection, |c| c.graceful_shutdown(), &vitals, Version::Http1, clock, signal).await;
        vitals.release();
        outcome
    }

    async fn serve_h2<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        io: Tap<IO>,
        info: Arc<ConnInfo>,
        vitals: Arc<Vitals>,
        clock: Clock,
        signal: Signal,
    ) -> Outcome {
        let service = service_fn(|request| answer(&self.service, &info, &vitals, request));
        let connection = self.h2.serve_connection(TokioIo::new(io), service);
        drive(connection, |c| c.graceful_shutdown(), &vitals, Version::Http2, clock, signal).await
    }
}

/// One request: the service behind the door, with the request counted as in progress until its body is gone.
fn answer<S: Service>(
    service: &S,
    info: &Arc<ConnInfo>,
    vitals: &Arc<Vitals>,
    mut request: Request<Incoming>,
) -> impl Future<Output = Result<Response<Answer>, Infallible>> + Send + 'static {
    let exchange = Exchange::begin(vitals);
    if vitals.is_ambiguous() {
        request.extensions_mut().insert(AmbiguousLength);
    }
    let (service, info) = (service.clone(), Arc::clone(info));
    async move { Ok(service.call(request, info).await.map(|body| Answer { body, _exchange: exchange })) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Http1,
    Http2,
}

/// Reads until the bytes differ from the HTTP/2 preface or are all of it. `None` if the peer left first.
async fn sniff(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<(Version, Bytes)>> {
    let mut read = BytesMut::with_capacity(FIRST_READ);
    while io.read_buf(&mut read).await? > 0 {
        let compared = read.len().min(PREFACE.len());
        if read[..compared] != PREFACE[..compared] {
            return Ok(Some((Version::Http1, read.freeze())));
        }
        if compared == PREFACE.len() {
            return Ok(Some((Version::Http2, read.freeze())));
        }
    }
    Ok(None)
}

/// How a connection came to its end.
enum Outcome {
    Ended(hyper::Result<()>),
    Late,
    Cut,
}

/// Runs a connection under its deadlines and the stages of the drain. `shut` asks it to end in order.
async fn drive<C: Future<Output = hyper::Result<()>>>(
    connection: C,
    shut: fn(Pin<&mut C>),
    vitals: &Vitals,
    version: Version,
    mut clock: Clock,
    mut signal: Signal,
) -> Outcome {
    let mut connection = std::pin::pin!(connection);
    let mut shutting = false;
    std::future::poll_fn(|cx| {
        let stage = signal.poll(cx);
        if stage == Stage::Cut {
            return Poll::Ready(Outcome::Cut);
        }
        if stage >= Stage::Draining && !shutting {
            shutting = true;
            shut(connection.as_mut());
        }
        loop {
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                return Poll::Ready(Outcome::Ended(ended));
            }
            match ready!(clock.poll(cx, vitals, version)) {
                Verdict::Idle if !shutting => {
                    shutting = true;
                    clock.last_call();
                    shut(connection.as_mut());
                }
                Verdict::Idle | Verdict::Late => return Poll::Ready(Outcome::Late),
            }
        }
    })
    .await
}

/// The deadline that applies now, recomputed each time the connection was polled; one timer, moved seldom.
struct Clock {
    header_timeout: Duration,
    keep_alive_timeout: Duration,
    write_stall: Duration,
    /// What the connection was doing, and since when if that has mattered yet.
    state: (Phase, u64, bool),
    since: Option<Instant>,
    last_call: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    armed: bool,
}

/// A deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The connection rests and may be closed in order.
    Idle,
    /// The peer owes us something and may be dropped.
    Late,
}

impl Clock {
    fn new(limits: &Limits, opened: Instant) -> Self {
        Self {
            header_timeout: limits.header_timeout,
            keep_alive_timeout: limits.keep_alive_timeout,
            write_stall: limits.write_stall,
            state: (Phase::Idle, 0, false),
            since: Some(opened),
            last_call: None,
            timer: None,
            armed: false,
        }
    }

    /// A peer that was told to go and has nothing to wait for is dropped after a while, whatever it does.
    fn last_call(&mut self) {
        self.last_call = Some(Instant::now() + self.write_stall);
    }

    fn poll(&mut self, cx: &mut Context<'_>, vitals: &Vitals, version: Version) -> Poll<Verdict> {
        loop {
            let (at, verdict) = match self.due(vitals, version) {
                Some(due) => due,
                None => return Poll::Pending,
            };
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
            // A timer that goes off too early is moved then; moving it for each request would cost more.
            if !self.armed || at < timer.deadline() {
                timer.as_mut().reset(at);
                self.armed = true;
            }
            ready!(timer.as_mut().poll(cx));
            self.armed = false;
            if let Some(verdict) = verdict.filter(|_| Instant::now() >= at) {
                return Poll::Ready(verdict);
            }
            if verdict.is_none() {
                self.since = None;
            }
        }
    }

    /// When to act and how; without a verdict, when to look again.
    fn due(&mut self, vitals: &Vitals, version: Version) -> Option<(Instant, Option<Verdict>)> {
        let state = (vitals.phase(), vitals.started(), vitals.is_busy());
        let (phase, started, busy) = state;
        // The time for the first head runs from the beginning, not from its first byte.
        let first = started == 0 && !busy;
        if state != self.state {
            self.state = state;
            if !first {
                self.since = None;
            }
        }
        if busy && version == Version::Http1 {
            return None;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        let rest = since + self.keep_alive_timeout;
        if busy {
            // The last HTTP/2 stream ends on a task of its own, which does not wake this one.
            return Some((rest, None));
        }
        if let Some(at) = self.last_call {
            return Some((at, Some(Verdict::Late)));
        }
        match (version, phase) {
            (Version::Http2, _) => Some((rest, Some(Verdict::Idle))),
            (Version::Http1, Phase::Idle) if !first => Some((rest, Some(Verdict::Idle))),
            (Version::Http1, Phase::Idle | Phase::Head) => {
                Some((since + self.header_timeout, Some(Verdict::Late)))
            }
            (Version::Http1, Phase::Body) => None,
        }
    }
}

pin_project_lite::pin_project! {
    /// The body of a response, with the request it answers.
    struct Answer {
        #[pin]
        body: BoxBody<Bytes, io::Error>,
        _exchange: Exchange,
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let polled = self.project().body.poll_frame(cx);
        TURN.set(if polled.is_pending() { Turn::Ours } else { Turn::Theirs });
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Who has to move for a stream to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// The body was not asked: as before.
    Unchanged,
    /// The body has nothing yet.
    Ours,
    /// A frame was handed over and has to leave.
    Theirs,
}

thread_local! {
    /// How a body, deep inside hyper's stream, tells the task that polls the stream. Read in the same poll.
    static TURN: Cell<Turn> = const { Cell::new(Turn::Unchanged) };
}

/// Runs each HTTP/2 stream as a task, and ends it when its peer grants no window for too long: the connection goes on
/// answering pings meanwhile, so neither the socket nor the pings show that.
#[derive(Clone, Copy)]
pub(super) struct StreamExecutor {
    stall: Duration,
}

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for StreamExecutor {
    fn execute(&self, stream: F) {
        tokio::spawn(Stream { stream, stall: self.stall, stalled: false, timer: None });
    }
}

pin_project_lite::pin_project! {
    struct Stream<F> {
        #[pin]
        stream: F,
        stall: Duration,
        stalled: bool,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl<F: Future> Future for Stream<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        TURN.set(Turn::Unchanged);
        if this.stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        match TURN.get() {
            Turn::Unchanged => {}
            Turn::Ours => *this.stalled = false,
            Turn::Theirs => {
                let stall = *this.stall;
                let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
                timer.as_mut().reset(Instant::now() + stall);
                *this.stalled = true;
            }
        }
        match this.timer {
            // Dropping the stream resets it.
            Some(timer) if *this.stalled => timer.as_mut().poll(cx),
            _ => Poll::Pending,
        }
    }
}
