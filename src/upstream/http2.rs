//! Connections that carry many requests at once (HTTP/2), for upstreams with `protocol: grpc`.
//!
//! A request takes a [`Seat`] on the first [`Link`] that has one, so that links which are not needed come to rest. A
//! link has as many seats as its server allows streams, and [`STREAMS`] at most: what is beyond goes over another
//! link, opened by one request while the others wait for it. A link whose server says GOAWAY takes no new request;
//! those it has go on. No lock is held while anything is waited for, save the turn to open a link.
//!
//! `driver` moves a link's bytes, `pump` a request's body, `call` is one request.

mod call;
mod driver;
mod pump;

use super::client::{dial, late};
use super::pool::{Alarm, REST};
use super::spec::ServerSpec;
use crate::telemetry::TargetMetrics;
use ::h2::client::{Builder, ResponseFuture, SendRequest};
use ::h2::{RecvStream, SendStream};
use arc_swap::ArcSwap;
use bytes::Bytes;
use driver::Driver;
use http::Request;
use http_body::{Body, Frame, SizeHint};
use pump::Stop;
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;

/// Streams on one link at most, whatever the server allows: more share one lock and one task.
const STREAMS: usize = 100;
/// What a stream's reader may leave unread: what a slow one costs.
const STREAM_WINDOW: u32 = 64 << 10;
/// What all readers of a link may leave unread: enough that slow ones never stop the others.
const LINK_WINDOW: u32 = STREAMS as u32 * STREAM_WINDOW;
/// What a stream buffers on its way out.
const SEND_BUFFER: usize = 128 << 10;
/// Largest head of a response, and of its trailers.
const MAX_HEAD: u32 = 64 << 10;
/// When the kernel asks a silent peer whether it is there. Cheaper than pings, which many gRPC servers punish when
/// they come more often than every five minutes.
const TCP_SILENCE: Duration = Duration::from_secs(30);

/// The links to one server.
pub(super) struct Links {
    links: ArcSwap<Vec<Arc<Link>>>,
    /// Held by whoever opens one.
    opening: Mutex<()>,
    metrics: Arc<TargetMetrics>,
}

/// One connection.
struct Link {
    sender: SendRequest<Bytes>,
    state: Arc<State>,
    driver: AbortHandle,
    opened: Instant,
    /// Milliseconds from `opened` to when the last request was over.
    left: AtomicU64,
    metrics: Arc<TargetMetrics>,
}

/// What a link, its driver and its requests know of it.
#[derive(Default)]
struct State {
    /// Requests on it.
    taken: AtomicUsize,
    /// Requests that may be on it at a time; 0 until the server has said so.
    seats: AtomicUsize,
    /// Whether it takes no more.
    closed: AtomicBool,
}

/// A request's place on a link. Dropped before the response's end, it resets the stream.
pub(super) struct Seat {
    link: Arc<Link>,
    stop: Option<Arc<Stop>>,
    pub(super) alarm: Alarm,
}

impl Links {
    pub(super) fn new(metrics: Arc<TargetMetrics>) -> Self {
        Links { links: ArcSwap::default(), opening: Mutex::new(()), metrics }
    }

    /// A seat on a link that stands.
    fn seat(&self) -> Option<Seat> {
        self.links.load().iter().find_map(Link::sit)
    }

    /// A seat on a link that stands now or is opened in time; and whether it was opened for this.
    ///
    /// # Errors
    /// Why none could be opened, for logs.
    pub(super) async fn take(
        &self,
        server: &ServerSpec,
        tls: Option<&Arc<ClientConfig>>,
        patience: Duration,
    ) -> io::Result<(Seat, bool)> {
        if let Some(seat) = self.seat() {
            return Ok((seat, false));
        }
        let deadline = Instant::now() + patience;
        let opened = async {
            let _turn = self.opening.lock().await;
            // Whoever had the turn before may have opened one.
            if let Some(seat) = self.seat() {
                return Ok((seat, false));
            }
            let link = open(server, tls, deadline, &self.metrics).await?;
            let seat = Link::sit(&link).ok_or_else(|| io::Error::other("the server allows no stream"))?;
            self.links.rcu(|links| {
                let standing = links.iter().filter(|link| !link.is_closed());
                standing.chain([&link]).cloned().collect::<Vec<_>>()
            });
            Ok((seat, true))
        };
        timeout_at(deadline, opened).await.unwrap_or_else(|_| Err(late()))
    }

    /// Links without a request.
    pub(super) fn at_rest(&self) -> usize {
        self.links.load().iter().filter(|link| link.state.taken.load(Ordering::Relaxed) == 0).count()
    }

    /// Closes what rested too long, and forgets what was closed.
    pub(super) fn sweep(&self) {
        if self.links.load().iter().any(|link| link.is_over()) {
            // A request that takes a seat on one of them right now keeps it until it is done.
            self.links.rcu(|links| links.iter().filter(|link| !link.is_over()).cloned().collect::<Vec<_>>());
        }
    }
}

impl Link {
    fn is_closed(&self) -> bool {
        self.state.closed.load(Ordering::Relaxed)
    }

    /// Whether it is closed or was at rest for too long.
    fn is_over(&self) -> bool {
        let left = self.opened + Duration::from_millis(self.left.load(Ordering::Relaxed));
        self.is_closed() || self.state.taken.load(Ordering::Relaxed) == 0 && left.elapsed() >= REST
    }

    fn sit(self: &Arc<Self>) -> Option<Seat> {
        if self.is_closed() {
            return None;
        }
        let seats = self.state.seats.load(Ordering::Relaxed);
        let more = |taken: usize| (taken < seats).then_some(taken + 1);
        let before = self.state.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        if before == 0 {
            self.metrics.idle.down();
        }
        Some(Seat { link: self.clone(), stop: None, alarm: Alarm::default() })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The driver owns the socket.
        self.driver.abort();
        self.metrics.idle.down();
    }
}

impl Seat {
    /// Begins the stream. An error means that nothing of it was sent; the link takes no more requests then.
    fn begin(
        &mut self,
        head: Request<()>,
        ends: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), ::h2::Error> {
        let begun = self.link.sender.clone().send_request(head, ends);
        if begun.is_err() {
            self.close();
        }
        begun
    }

    /// From now on nobody begins a stream on this link.
    fn close(&self) {
        self.link.state.closed.store(true, Ordering::Relaxed);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.ask();
        }
        let link = &self.link;
        link.left.store(link.opened.elapsed().as_millis() as u64, Ordering::Relaxed);
        if link.state.taken.fetch_sub(1, Ordering::Relaxed) == 1 {
            link.metrics.idle.up();
        }
    }
}

/// Opens a link; ready when the server has said how many streams it allows.
async fn open(
    server: &ServerSpec,
    tls: Option<&Arc<ClientConfig>>,
    deadline: Instant,
    metrics: &Arc<TargetMetrics>,
) -> io::Result<Arc<Link>> {
    let socket = dial(server, deadline).await?;
    socket.set_nodelay(true)?;
    watch(&socket)?;
    match (&server.tls, tls) {
        (Some(name), Some(config)) => {
            let stream = TlsConnector::from(config.clone()).connect(name.clone(), socket).await?;
            if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                return Err(io::Error::other("the server does not offer HTTP/2 (ALPN `h2`)"));
            }
            shake(stream, metrics).await
        }
        _ => shake(socket, metrics).await,
    }
}

/// Has the kernel find out when the peer is gone without a word.
fn watch(socket: &TcpStream) -> io::Result<()> {
    let keepalive = TcpKeepalive::new().with_time(TCP_SILENCE).with_interval(TCP_SILENCE / 3);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

async fn shake<T>(io: T, metrics: &Arc<TargetMetrics>) -> io::Result<Arc<Link>>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(LINK_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(MAX_HEAD)
        // Until the server has said what it allows.
        .initial_max_send_streams(0)
        .enable_push(false);
    let (sender, connection) = builder.handshake::<_, Bytes>(io).await.map_err(io::Error::other)?;
    let state = Arc::<State>::default();
    let (tell, told) = oneshot::channel();
    let driver = tokio::spawn(Driver::new(connection, state.clone(), tell)).abort_handle();
    metrics.idle.up();
    let link = Link {
        sender,
        state,
        driver,
        opened: Instant::now(),
        left: AtomicU64::new(0),
        metrics: metrics.clone(),
    };
    // Dropping the link, as this future may be, ends its driver.
    match told.await {
        Ok(()) => Ok(Arc::new(link)),
        Err(_) => Err(io::Error::other("the connection ended before the server said what it allows")),
    }
}

/// A response's body as it comes over a link. What is handed on makes room for more.
pub(super) struct StreamBody {
    stream: RecvStream,
    length: Option<u64>,
    done: bool,
}

impl StreamBody {
    /// `length` is what the head says of it.
    pub(super) fn new(stream: RecvStream, length: Option<u64>) -> Self {
        StreamBody { done: stream.is_end_stream(), stream, length }
    }
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = ::h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ::h2::Error>>> {
        if self.done {
            return Poll::Ready(None);
        }
        loop {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Fails only for more than was received.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    if self.stream.is_end_stream() {
                        self.done = true;
                    }
                    if !data.is_empty() || self.done {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    let trailers = ready!(self.stream.poll_trailers(cx))?;
                    self.done = true;
                    return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.done
    }

    fn size_hint(&self) -> SizeHint {
        match self.length {
            Some(length) if !self.done => SizeHint::with_exact(length),
            _ => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests;
