//! The stand-in VoiceHelper services, for `voicegate serve --demo` and as the upstream of the integration tests.
//!
//! One HTTP server (HTTP/1.1, and HTTP/2 by prior knowledge) plays all of them: its calls stand in `demo/algorithm.rs`, the
//! streams in `demo/chat.rs`, what it says in `demo/script.rs`, what tests may ask of it by query string in
//! `demo/switches.rs`; WebSockets in `demo/socket.rs` and, one a file, what is said on them: `voice`, `recording`,
//! `signaling`, `notifications`; uploads and spoken texts in `demo/speech.rs`. It is real enough to build a front end against, and it counts what happens to it
//! ([`Stats`]), so that a test can see that a caller's leaving stopped the work.
//!
//! The gRPC services (documents, sessions, auth) answer on the same port: `demo/grpc.rs`.
//!
//! It listens on loopback unless told otherwise and trusts its callers: no authentication, no header timeout.

mod algorithm;
mod chat;
mod echo;
mod folder;
pub mod grpc;
mod ledger;
mod notifications;
mod recognizer;
mod recording;
mod reply;
mod script;
mod signaling;
mod socket;
mod speech;
mod switches;
mod tasks;
#[cfg(test)]
mod tests;
mod voice;
mod wechat;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use algorithm::Algorithm;
pub use folder::Folder;
use grpc::Grpc;
pub use ledger::{Connections, Sockets, Stats, Streams};
use socket::Opening;

/// How long requests in flight may still run when a [`Demo`] is dropped without [`Demo::stop`].
pub const DROP_GRACE: Duration = Duration::from_secs(1);

/// What signs access tokens of the auth service where nothing else is said; for tests.
pub const SECRET: &str = "a secret that everybody knows: the demo's";

/// How long the accept loop rests after a failed accept (out of file descriptors, mostly).
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// The running stand-in services. Dropping it stops them in the background, within [`DROP_GRACE`].
#[derive(Debug)]
pub struct Demo {
    addr: SocketAddr,
    algorithm: Arc<Algorithm>,
    grpc: Grpc,
    stop: Option<oneshot::Sender<Duration>>,
    server: Option<JoinHandle<()>>,
}

impl Demo {
    /// Starts on a free port of the loopback interface. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// The operating system's, when no port can be bound.
    pub async fn start() -> std::io::Result<Self> {
        Self::start_signing(SECRET.as_bytes()).await
    }

    /// Starts on a free port of the loopback interface, with an auth service that signs access tokens with `secret`:
    /// the gateway's, which shall accept them.
    ///
    /// # Errors
    /// The operating system's, when no port can be bound.
    pub async fn start_signing(secret: &[u8]) -> std::io::Result<Self> {
        Self::listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), secret).await
    }

    /// Starts on the given address; port 0 takes a free one.
    ///
    /// # Errors
    /// The operating system's, when the address can't be bound.
    pub async fn start_at(addr: SocketAddr) -> std::io::Result<Self> {
        Self::listen(addr, SECRET.as_bytes()).await
    }

    async fn listen(addr: SocketAddr, secret: &[u8]) -> std::io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let algorithm = Arc::new(Algorithm::new(jiff::Timestamp::now));
        let grpc = Grpc::new(secret);
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(accept(listener, algorithm.clone(), grpc.clone(), stopped));
        Ok(Self { addr, algorithm, grpc, stop: Some(stop), server: Some(server) })
    }

    /// The address it really listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its base URL without a trailing slash, such as `http://127.0.0.1:41327`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// What has happened so far; the same that `GET /stats` answers.
    pub fn stats(&self) -> Stats {
        self.algorithm.ledger().stats()
    }

    /// Calls of the documents service's `Watch` under way.
    pub fn watchers(&self) -> usize {
        self.grpc.watchers()
    }

    /// Stops: the port closes at once, idle connections too; requests in flight have `grace` to end and are cut then
    /// (`Duration::ZERO` cuts at once). Returns when no connection is left.
    pub async fn stop(mut self, grace: Duration) {
        self.signal(grace);
        if let Some(server) = self.server.take() {
            // An error here means that the task is gone, which is what we wait for.
            let _ = server.await;
        }
    }

    fn signal(&mut self, grace: Duration) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(grace);
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.signal(DROP_GRACE);
    }
}

/// Accepts until told to stop, then drains. Owns every connection's task, so that none outlives it.
async fn accept(
    listener: TcpListener,
    algorithm: Arc<Algorithm>,
    grpc: Grpc,
    mut stopped: oneshot::Receiver<Duration>,
) {
    let drain = CancellationToken::new();
    let mut connections = JoinSet::new();
    let grace = loop {
        tokio::select! {
            grace = &mut stopped => break grace.unwrap_or(DROP_GRACE),
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, algorithm.clone(), grpc.clone(), drain.clone()));
                }
                Err(_) => tokio::time::sleep(ACCEPT_BACKOFF).await,
            },
        }
    };
    drop(listener);
    drain.cancel();
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(grace, ended).await.is_err() {
        connections.shutdown().await;
    }
}

/// Serves one connection to its end, or to the end of its running requests once `drain` is cancelled.
async fn connection(stream: TcpStream, algorithm: Arc<Algorithm>, grpc: Grpc, drain: CancellationToken) {
    // Tokens are tiny writes: Nagle would hold each back until the last is acknowledged.
    let _ = stream.set_nodelay(true);
    let _open = algorithm.ledger().connected();
    let serving = algorithm.clone();
    // What the connection becomes where a request turned it into a WebSocket: it stays on this task.
    let opened: Arc<Mutex<Option<Opening>>> = Arc::default();
    let opens = opened.clone();
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let (algorithm, grpc, opens) = (serving.clone(), grpc.clone(), opens.clone());
        async move {
            let answer = match Grpc::takes(request.headers()) {
                true => grpc.answer(request).await,
                false => algorithm.answer(request, &opens).await,
            };
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    let server = auto::Builder::new(TokioExecutor::new());
    let mut connection = Box::pin(server.serve_connection_with_upgrades(TokioIo::new(stream), service));
    // A connection's error is its caller's leaving or a cut that a switch asked for: the ledger tells, nobody here needs it.
    let served = tokio::select! {
        _ = connection.as_mut() => true,
        () = drain.cancelled() => false,
    };
    if !served {
        connection.as_mut().graceful_shutdown();
        let _ = connection.as_mut().await;
    }
    let opening = opened.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(opening) = opening {
        // The socket may be open for long: what served HTTP before it need not stay.
        drop(connection);
        let _talks = algorithm.ledger().talking();
        opening.talk(&drain).await;
    }
}
