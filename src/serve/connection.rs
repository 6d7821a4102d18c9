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
    convert::Infallible,
    io,
    pin::Pin,
    sync::Arc,
    task::{Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{
    accept::{ConnInfo, Service},
    clock::{Clock, Verdict, Version},
    drain::{Drain, Signal, Stage},
    intake::AmbiguousLength,
    io::{Exchange, Steady, Tap, Vitals},
    limits::Limits,
    stream::{Answer, StreamExecutor},
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
                    () = signal.last_call() => return,
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
            // What has been asked already is answered, also in a drain.
            sniffed = timeout_at(opened + self.limits.header_timeout, sniff(&mut io)) => sniffed,
            () = signal.last_call() => return Outcome::Ended(Ok(())),
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
) -> impl Future<Output = Result<Response<Answer<S::Body>>, Infallible>> + Send + 'static {
    let exchange = Exchange::begin(vitals);
    if vitals.is_ambiguous() {
        request.extensions_mut().insert(AmbiguousLength);
    }
    let (service, info) = (service.clone(), Arc::clone(info));
    async move { Ok(service.call(request, info).await.map(|body| Answer::new(body, exchange))) }
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
        loop {
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                return Poll::Ready(Outcome::Ended(ended));
            }
            // Only now, because hyper takes a connection of which it has seen nothing for an idle one.
            if stage >= Stage::Draining && !shutting {
                shutting = true;
                shut(connection.as_mut());
                continue;
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
