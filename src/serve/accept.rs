//! The door: listens, lets in as many as there is room for, and ends when asked.
//!
//! poem's own server sets no header timeout, bounds no HTTP/2 streams and spins when accepting fails; this one runs
//! hyper itself. What one connection does can't end the loop. At the cap a connection is accepted and sent away with
//! a 503 at once: left in the kernel's queue it would hang until someone else leaves, and clients and load balancers
//! can act on an answer, not on silence. Only a bounded number is sent away politely (and none over TLS, where even
//! that costs a handshake), the rest is closed.
use std::{
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout, timeout_at},
};

pub use super::limits::Limits;
use super::{
    connection::Protocols,
    drain::{Drain, LAST_CALL, Stage},
    tls::TlsSettings,
};
use crate::telemetry::Level;

/// Connections the kernel holds for us until we accept them.
const BACKLOG: i32 = 4096;
/// How many connections over the cap may be told so at the same time at most, and for how long each.
const FAREWELLS: usize = 128;
const FAREWELL: Duration = Duration::from_secs(1);
/// How long connections that were cut get to notice.
const AFTER_CUT: Duration = Duration::from_secs(1);

/// What is behind the door.
pub trait Service: Clone + Send + Sync + 'static {
    /// Body of its answers.
    type Body: Body<Data = Bytes, Error = io::Error> + Send + 'static;

    /// Answers one request. Dropped when the client leaves.
    fn call(
        &self,
        request: Request<Incoming>,
        connection: Arc<ConnInfo>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;
}

/// Where a request came in.
#[derive(Clone, Copy, Debug)]
pub struct ConnInfo {
    /// The other end of the socket, which may be a proxy.
    pub peer: SocketAddr,
    /// Our end.
    pub local: SocketAddr,
    /// Whether the connection is encrypted up to us.
    pub tls: bool,
}

/// Counts the connections of one listener. Clones share the counts.
#[derive(Clone, Default)]
pub struct Connections(Arc<Counts>);

#[derive(Default)]
struct Counts {
    open: AtomicUsize,
    accepted: AtomicU64,
    refused: AtomicU64,
    cut: AtomicUsize,
    none_left: Notify,
    gauge: Arc<Level>,
}

impl Connections {
    /// Nothing counted yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing counted yet; open connections are counted in a gauge too.
    pub fn shown_by(gauge: Arc<Level>) -> Self {
        Connections(Arc::new(Counts { gauge, ..Counts::default() }))
    }

    /// Connections open now, upgraded ones included.
    pub fn open(&self) -> usize {
        self.0.open.load(SeqCst)
    }

    /// Connections let in so far.
    pub fn accepted(&self) -> u64 {
        self.0.accepted.load(Relaxed)
    }

    /// Connections sent away at the cap so far.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Relaxed)
    }

    fn seat(&self, permit: OwnedSemaphorePermit, drain: Drain) -> Seat {
        self.0.open.fetch_add(1, SeqCst);
        self.0.accepted.fetch_add(1, Relaxed);
        self.0.gauge.up();
        Seat { counts: Arc::clone(&self.0), drain, _permit: permit }
    }

    async fn all_closed(&self) {
        loop {
            // Registered before looking, so that the last one to leave is not missed.
            let notified = self.0.none_left.notified();
            if self.open() == 0 {
                return;
            }
            notified.await;
        }
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("open", &self.open()).finish_non_exhaustive()
    }
}

/// A place in the house, given back when the socket is closed.
struct Seat {
    counts: Arc<Counts>,
    drain: Drain,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.drain.stage() == Stage::Cut {
            self.counts.cut.fetch_add(1, SeqCst);
        }
        self.counts.gauge.down();
        if self.counts.open.fetch_sub(1, SeqCst) == 1 {
            self.counts.none_left.notify_waiters();
        }
    }
}

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Connections let in.
    pub accepted: u64,
    /// Connections still open when the grace was over.
    pub cut: usize,
}

/// Opens a listening socket: address reusable at once, a long queue, both IP versions on `[::]`.
///
/// # Errors
/// Whatever the system refuses, with the address and what to do about it.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    listen(address).map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => "another process listens there: stop it or choose another port",
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 need CAP_NET_BIND_SERVICE: grant it or choose a higher port"
            }
            io::ErrorKind::AddrNotAvailable => {
                "no interface of this machine has that address: use one that has, or 0.0.0.0"
            }
            _ => "check the address",
        };
        io::Error::new(error.kind(), format!("can't listen on {address}: {error}; {remedy}"))
    })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves connections until the drain ends it: returns when all are done, or when the drain cuts what is left.
/// `connections` belongs to this listener alone, for it tells when all are done.
pub async fn serve<S: Service>(
    listener: TcpListener,
    service: S,
    limits: Limits,
    tls: Option<TlsSettings>,
    drain: Drain,
    connections: Connections,
) -> Summary {
    let seats = Arc::new(Semaphore::new(limits.max_connections.min(Semaphore::MAX_PERMITS)));
    // Each takes a file too: where there are few, those are for connections that are served.
    let farewells = Arc::new(Semaphore::new((limits.max_connections / 8).clamp(1, FAREWELLS)));
    let protocols = Arc::new(Protocols::new(service, limits, tls, drain.clone()));
    let mut full = Sparingly::default();
    let mut receive = |socket: TcpStream, peer: SocketAddr| {
        let Ok(permit) = Arc::clone(&seats).try_acquire_owned() else {
            connections.0.refused.fetch_add(1, Relaxed);
            if let Some(refused) = full.say(Instant::now()) {
                tracing::warn!(
                    refused,
                    open = connections.open(),
                    "no room for more connections; raise max_connections"
                );
            }
            match Arc::clone(&farewells).try_acquire_owned() {
                Ok(permit) if !protocols.has_tls() => drop(tokio::spawn(send_away(socket, permit))),
                _ => drop(socket),
            }
            return;
        };
        let seat = connections.seat(permit, drain.clone());
        // Both fail only if the peer has gone already.
        let _ = socket.set_nodelay(true);
        let Ok(local) = socket.local_addr() else { return };
        let info = ConnInfo { peer, local, tls: protocols.has_tls() };
        tokio::spawn(Arc::clone(&protocols).serve(socket, info, seat));
    };
    let draining = drain.reached(Stage::Draining);
    tokio::pin!(draining);
    let mut trouble = Trouble::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut draining => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, peer)) => {
                trouble.over();
                receive(socket, peer);
                // A thousand that come at once must not keep waiting what the first of them asked: those go on first.
                tokio::task::yield_now().await;
            }
            Err(error) => tokio::select! {
                () = &mut draining => break,
                () = sleep(trouble.pause(&error, Instant::now())) => {}
            },
        }
    }
    // Whoever stands in the kernel's queue would be reset; whoever has asked something already is answered instead.
    let last_call = Instant::now() + LAST_CALL;
    while let Ok(Ok((socket, peer))) = timeout_at(last_call, listener.accept()).await {
        receive(socket, peer);
    }
    // From here on the kernel refuses newcomers.
    drop(listener);
    tokio::select! {
        () = connections.all_closed() => {}
        () = drain.reached(Stage::Cut) => drop(timeout(AFTER_CUT, connections.all_closed()).await),
    }
    // Upgraded connections belong to whoever took them over; what they still hold ends with the process.
    let cut = connections.0.cut.load(SeqCst) + connections.open();
    if cut > 0 {
        tracing::warn!(cut, "the grace is over; connections were cut");
    }
    Summary { accepted: connections.accepted(), cut }
}

/// Tells a client that came over the cap to come back, and waits a moment until it has read that.
async fn send_away(mut socket: TcpStream, permit: OwnedSemaphorePermit) {
    let request_id = uuid::Uuid::now_v7();
    let body = format!(
        r#"{{"type":"about:blank","title":"Service Unavailable","status":503,"code":"too_many_connections","error":"The server has no room for another connection.","detail":"The server has no room for another connection.","request_id":"{request_id}","retry_after":1}}"#
    );
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\n\
         Retry-After: 1\r\nX-Request-ID: {request_id}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    // Whether the client hears it is up to the client.
    let _ = timeout(FAREWELL, async {
        socket.write_all(answer.as_bytes()).await?;
        socket.shutdown().await?;
        let mut discarded = [0; 1024];
        while socket.read(&mut discarded).await? > 0 {}
        io::Result::Ok(())
    })
    .await;
    drop(permit);
}

/// How long to wait when accepting fails: longer each time in a row.
#[derive(Default)]
struct Trouble {
    in_a_row: u32,
    log: Sparingly,
}

impl Trouble {
    const FIRST: Duration = Duration::from_millis(5);
    const LONGEST: Duration = Duration::from_secs(1);

    fn pause(&mut self, error: &io::Error, now: Instant) -> Duration {
        // The connection failed, not the listener (accept(2) hands such errors through).
        if matches!(
            error.kind(),
            io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionRefused
                | io::ErrorKind::Interrupted
                | io::ErrorKind::NetworkDown
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::HostUnreachable
        ) {
            return Duration::ZERO;
        }
        let pause = Self::FIRST.saturating_mul(1 << self.in_a_row.min(10)).min(Self::LONGEST);
        self.in_a_row = self.in_a_row.saturating_add(1);
        if let Some(failures) = self.log.say(now) {
            tracing::error!(
                %error, failures,
                "can't accept connections; if files have run out, raise the limit (ulimit -n, LimitNOFILE) or lower max_connections"
            );
        }
        pause
    }

    fn over(&mut self) {
        self.in_a_row = 0;
    }
}

/// Keeps what can happen thousands of times a second to one log line a second.
#[derive(Default)]
struct Sparingly {
    last: Option<Instant>,
    held_back: u64,
}

impl Sparingly {
    /// How often it happened since it was last said, if it is time to say it.
    fn say(&mut self, now: Instant) -> Option<u64> {
        self.held_back += 1;
        if self.last.is_some_and(|last| now.duration_since(last) < Duration::from_secs(1)) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.held_back))
    }
}

#[cfg(test)]
mod tests;
