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
//! hyper holds some 20 KiB for a connection, at work or not. So it gets an HTTP/1 connection when there is something to
//! read, and when the connection has rested for [`REST_AFTER`](super::clock::REST_AFTER) it is taken apart: what is left
//! is a socket and a timer. What few connections need (TLS, HTTP/2) is boxed, so that the others have no room for it.
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

use futures_util::future::Either;
use http::{Request, Response};
use http_body::Body as _;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{
    accept::{ConnInfo, Service},
    clock::{Clock, Verdict, Version},
    drain::{Drain, Signal, Stage},
    intake::AmbiguousLength,
    io::{Exchange, Steady, Tap, Unread, Vitals},
    limits::Limits,
    stream::{Answer, StreamExecutor},
    tls::TlsSettings,
};

/// How every HTTP/2 connection begins (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
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
    pub(super) fn serve(
        self: Arc<Self>,
        socket: TcpStream,
        info: ConnInfo,
        seat: impl Send + Unpin + 'static,
    ) -> impl Future<Output = ()> + Send {
        let vitals = Arc::<Vitals>::default();
        let socket = Steady::new(socket, self.limits.write_stall, Arc::clone(&vitals), seat);
        let clock = Clock::new(&self.limits, Instant::now());
        let mut course = Course { info: Arc::new(info), vitals, clock, signal: self.drain.signal() };
        // Not one `async fn` after the other: each would hold a place for the arguments that it passes on.
        match self.tls.is_some() {
            false => {
                let mut home = Some(Tap::new(socket, Arc::clone(&course.vitals)));
                Either::Left(async move { self.serve_plain(&mut home, &mut course).await.log(&course) })
            }
            true => Either::Right(Box::pin(async move {
                if let Some(outcome) = self.serve_tls(socket, &mut course).await {
                    outcome.log(&course);
                }
            })),
        }
    }

    async fn serve_plain<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        home: &mut Option<Tap<IO>>,
        course: &mut Course,
    ) -> Outcome {
        let Some(io) = home else { return Outcome::Ended(Ok(())) };
        loop {
            match course.hear(io).await {
                Heard::Bytes(Ok(0)) | Heard::Called => return Outcome::Ended(Ok(())),
                Heard::Bytes(Ok(_)) => {}
                Heard::Bytes(Err(error)) => {
                    let peer = course.info.peer;
                    tracing::debug!(%peer, %error, "connection failed before its first request");
                    return Outcome::Ended(Ok(()));
                }
                Heard::Due => return Outcome::Late,
            }
            let compared = io.heard().len().min(PREFACE.len());
            if io.heard()[..compared] != PREFACE[..compared] {
                return self.serve_h1(home, course).await;
            }
            if compared == PREFACE.len() {
                return Box::pin(self.serve_h2(home, course)).await;
            }
        }
    }

    async fn serve_tls(
        &self,
        socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        course: &mut Course,
    ) -> Option<Outcome> {
        let peer = course.info.peer;
        let acceptor = self.tls.as_ref()?.acceptor();
        let deadline = Instant::now() + self.limits.handshake_timeout;
        let handshake = Box::pin(timeout_at(deadline, acceptor.accept(socket)));
        let stream = tokio::select! {
            biased;
            () = course.signal.last_call() => return None,
            shaken = handshake => match shaken {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    tracing::debug!(%peer, %error, "TLS handshake failed");
                    return None;
                }
                Err(_) => {
                    tracing::debug!(%peer, "TLS handshake took too long");
                    return None;
                }
            },
        };
        // The handshake had its own deadline; the first request gets a fresh one.
        course.clock = Clock::new(&self.limits, Instant::now());
        let speaks_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let mut home = Some(Tap::new(stream, Arc::clone(&course.vitals)));
        Some(match speaks_h2 {
            true => self.serve_h2(&mut home, course).await,
            false => self.serve_h1(&mut home, course).await,
        })
    }

    /// Serves HTTP/1. The socket is in `home` while nobody asks for anything, and otherwise with hyper.
    async fn serve_h1<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        home: &mut Option<Tap<IO>>,
        course: &mut Course,
    ) -> Outcome {
        if let Some(io) = home {
            io.watch();
        }
        while let Some(io) = home {
            // Whatever ends the wait but a request, hyper closes the connection as is proper then.
            let asked = !io.heard().is_empty() || matches!(course.hear(io).await, Heard::Bytes(_));
            let Some(io) = home.take() else { break };
            course.clock.may_rest(asked);
            let (info, vitals) = (&course.info, &course.vitals);
            let (clock, signal) = (&mut course.clock, &mut course.signal);
            // Boxed, because hyper keeps room for it as long as the connection stands, also while a response is streamed.
            let service = service_fn(|request| Box::pin(answer(&self.service, info, vitals, request)));
            let mut connection =
                Box::new(self.h1.serve_connection(TokioIo::new(io), service).with_upgrades());
            let pinned = Pin::new(&mut *connection);
            let ended = drive(pinned, |c| c.graceful_shutdown(), vitals, Version::Http1, clock, signal).await;
            if let Some(outcome) = ended {
                vitals.release();
                return outcome;
            }
            // What hyper has read and not understood can only be line ends between two requests. Were it anything else,
            // such as the rest of a body that nobody took, it must not be read as a request.
            *home = connection
                .into_parts()
                .filter(|parts| parts.read_buf.iter().all(|byte| matches!(byte, b'\r' | b'\n')))
                .map(|parts| parts.io.into_inner());
            course.clock.may_rest(false);
        }
        Outcome::Ended(Ok(()))
    }

    async fn serve_h2<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        home: &mut Option<Tap<IO>>,
        course: &mut Course,
    ) -> Outcome {
        let Some(io) = home.take() else { return Outcome::Ended(Ok(())) };
        let (info, vitals) = (&course.info, &course.vitals);
        let (clock, signal) = (&mut course.clock, &mut course.signal);
        let service = service_fn(|request| answer(&self.service, info, vitals, request));
        let mut connection = Box::pin(self.h2.serve_connection(TokioIo::new(io), service));
        let pinned = connection.as_mut();
        let ended = drive(pinned, |c| c.graceful_shutdown(), vitals, Version::Http2, clock, signal).await;
        ended.unwrap_or(Outcome::Ended(Ok(())))
    }
}

/// What goes with a connection from its beginning to its end.
struct Course {
    info: Arc<ConnInfo>,
    vitals: Arc<Vitals>,
    clock: Clock,
    signal: Signal,
}

/// What ended a wait.
enum Heard {
    /// The peer sent so many bytes, which the tap keeps; none if it left.
    Bytes(io::Result<usize>),
    /// The drain began.
    Called,
    /// A deadline passed.
    Due,
}

impl Course {
    /// Waits for the peer to say something.
    async fn hear<IO: AsyncRead + Unpin>(&mut self, io: &mut Tap<IO>) -> Heard {
        std::future::poll_fn(|cx| {
            let stage = self.signal.poll(cx);
            // What has been asked already is answered, also in a drain.
            if let Poll::Ready(came) = io.poll_hear(cx) {
                return Poll::Ready(Heard::Bytes(came));
            }
            if stage >= Stage::Draining {
                return Poll::Ready(Heard::Called);
            }
            self.clock.poll(cx, &self.vitals, Version::Http1).map(|_| Heard::Due)
        })
        .await
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
    if !request.body().is_end_stream() {
        request.extensions_mut().insert(Unread::of(vitals));
    }
    let (service, info) = (service.clone(), Arc::clone(info));
    async move { Ok(service.call(request, info).await.map(|body| Answer::new(body, exchange))) }
}

/// How a connection came to its end.
enum Outcome {
    Ended(hyper::Result<()>),
    Late,
    Cut,
}

impl Outcome {
    fn log(self, course: &Course) {
        let peer = course.info.peer;
        match self {
            Outcome::Ended(Ok(())) => {}
            Outcome::Ended(Err(error)) => tracing::debug!(%peer, %error, "connection failed"),
            Outcome::Late => tracing::debug!(%peer, "connection dropped: no complete request in time"),
            Outcome::Cut => tracing::debug!(%peer, "connection cut: the grace is over"),
        }
    }
}

/// Runs a connection under its deadlines and the stages of the drain, to its end (`Some`) or until it rests (`None`).
/// `shut` asks it to end in order.
async fn drive<C: Future<Output = hyper::Result<()>>>(
    mut connection: Pin<&mut C>,
    shut: fn(Pin<&mut C>),
    vitals: &Vitals,
    version: Version,
    clock: &mut Clock,
    signal: &mut Signal,
) -> Option<Outcome> {
    let mut shutting = false;
    std::future::poll_fn(|cx| {
        let stage = signal.poll(cx);
        if stage == Stage::Cut {
            return Poll::Ready(Some(Outcome::Cut));
        }
        loop {
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                return Poll::Ready(Some(Outcome::Ended(ended)));
            }
            // Only now, because hyper takes a connection of which it has seen nothing for an idle one.
            if stage >= Stage::Draining && !shutting {
                shutting = true;
                clock.may_rest(false);
                shut(connection.as_mut());
                continue;
            }
            match ready!(clock.poll(cx, vitals, version)) {
                Verdict::Rest => return Poll::Ready(None),
                Verdict::Idle if !shutting => {
                    shutting = true;
                    clock.last_call();
                    shut(connection.as_mut());
                }
                Verdict::Idle | Verdict::Late => return Poll::Ready(Some(Outcome::Late)),
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http_body_util::{BodyExt as _, Empty, combinators::BoxBody};

    #[derive(Clone)]
    struct Silent;

    impl Service for Silent {
        type Body = BoxBody<Bytes, io::Error>;

        async fn call(&self, _: Request<Incoming>, _: Arc<ConnInfo>) -> Response<Self::Body> {
            Response::new(Empty::new().map_err(|never| match never {}).boxed())
        }
    }

    #[tokio::test]
    async fn what_few_connections_need_takes_no_room_in_the_others() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = listener.local_addr().unwrap();
        let socket = TcpStream::connect(peer).await.unwrap();
        let protocols = Arc::new(Protocols::new(Silent, Limits::default(), None, Drain::new()));
        let served = protocols.serve(socket, ConnInfo { peer, local: peer, tls: false }, ());
        let room = size_of_val(&served);
        assert!(room <= 1 << 10, "each connection's task takes {room} bytes");
    }
}
