//! A gRPC service with a method of each kind, made with tonic, and clients for it.

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

pub type Messages = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;

/// Runs until the process ends; counts what it is at.
pub struct Echo {
    pub address: SocketAddr,
    pub stats: Arc<Stats>,
}

#[derive(Default)]
pub struct Stats {
    /// Calls begun.
    pub calls: AtomicUsize,
    /// Calls under way.
    pub open: AtomicUsize,
    pub connections: AtomicUsize,
    /// Kilobytes that `flood` made.
    pub flooded: AtomicUsize,
}

/// One call under way.
struct Open(Arc<Stats>);

impl Open {
    fn new(stats: &Arc<Stats>) -> Self {
        stats.calls.fetch_add(1, Ordering::SeqCst);
        stats.open.fetch_add(1, Ordering::SeqCst);
        Open(stats.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Stats {
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

impl Echo {
    pub async fn start() -> Self {
        Self::over(None).await
    }

    pub async fn over(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stats) = (listener.local_addr().unwrap(), Arc::<Stats>::default());
        let shared = stats.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (stats, tls) = (shared.clone(), tls.clone());
                stats.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    match tls {
                        None => serve(socket, stats).await,
                        Some(tls) => serve(tls.accept(socket).await.unwrap(), stats).await,
                    }
                });
            }
        });
        Echo { address, stats }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

async fn serve(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, stats: Arc<Stats>) {
    let service = hyper::service::service_fn(move |request| {
        let stats = stats.clone();
        async move { Ok::<_, Infallible>(answer(request, stats).await) }
    });
    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let _ = builder.serve_connection(TokioIo::new(io), service).await;
}

async fn answer(request: Request<Incoming>, stats: Arc<Stats>) -> Response<Body> {
    let codec = ProstCodec::<String, String>::default();
    let mut grpc = tonic::server::Grpc::new(codec);
    let open = Open::new(&stats);
    match request.uri().path() {
        "/test.Echo/Unary" => grpc.unary(Each(|asked| unary(asked, open.take())), request).await,
        "/test.Echo/Download" => {
            grpc.server_streaming(Each(|asked| download(asked, open.take())), request).await
        }
        "/test.Echo/Upload" => grpc.client_streaming(Each(|asked| upload(asked, open.take())), request).await,
        "/test.Echo/Talk" => grpc.streaming(Each(|asked| talk(asked, open.take())), request).await,
        _ => Status::unimplemented("no such method").into_http(),
    }
}

impl Open {
    /// Another handle on the same call; for closures that are called once but need not know.
    fn take(&self) -> Open {
        self.0.open.fetch_add(1, Ordering::SeqCst);
        Open(self.0.clone())
    }
}

/// `headers` tells the metadata that came, `fail` fails, `sleep` never answers; anything else is greeted.
async fn unary(asked: tonic::Request<String>, open: Open) -> Result<tonic::Response<String>, Status> {
    let _open = open;
    let metadata = asked.metadata().clone();
    let text = match asked.get_ref().as_str() {
        "headers" => {
            let mut headers = metadata.clone().into_headers();
            headers.remove("user-agent");
            let lines = headers.iter().map(|(name, value)| format!("{name}={}\n", value.to_str().unwrap()));
            lines.collect()
        }
        "fail" => {
            let mut status =
                Status::with_details(Code::FailedPrecondition, "not ü%", Bytes::from_static(b"\0det"));
            status.metadata_mut().insert("why", "because".parse().unwrap());
            return Err(status);
        }
        "sleep" => std::future::pending().await,
        text => format!("hello {text}"),
    };
    let mut response = tonic::Response::new(text);
    if let Some(value) = metadata.get_bin("in-bin") {
        response.metadata_mut().insert_bin("out-bin", value.clone());
    }
    response.metadata_mut().insert_bin("raw-bin", MetadataValue::from_bytes(&[0, 255, 10]));
    Ok(response)
}

/// So many messages, or a `flood`, or `forever`, or `break` after one.
async fn download(asked: tonic::Request<String>, open: Open) -> Result<tonic::Response<Messages>, Status> {
    let messages: Messages = match asked.get_ref().as_str() {
        "forever" => Box::pin(stream::unfold((0, open), |(number, open)| async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Some((Ok(format!("{number}")), (number + 1, open)))
        })),
        "silence" => Box::pin(stream::unfold((0, open), |(number, open)| async move {
            if number > 0 {
                std::future::pending::<()>().await;
            }
            Some((Ok(format!("{number}")), (number + 1, open)))
        })),
        "flood" => Box::pin(stream::repeat_with(move || {
            open.0.flooded.fetch_add(1, Ordering::SeqCst);
            Ok("x".repeat(1 << 10))
        })),
        "break" => Box::pin(stream::iter([Ok("0".to_owned()), Err(Status::aborted("enough"))])),
        count => {
            let count: usize = count.parse().map_err(|_| Status::invalid_argument("not a number"))?;
            Box::pin(stream::iter((0..count).map(|number| Ok(format!("{number}")))))
        }
    };
    Ok(tonic::Response::new(messages))
}

async fn upload(
    asked: tonic::Request<Streaming<String>>,
    open: Open,
) -> Result<tonic::Response<String>, Status> {
    let _open = open;
    let mut messages = asked.into_inner();
    let mut all = Vec::new();
    while let Some(message) = messages.next().await {
        all.push(message?);
    }
    Ok(tonic::Response::new(all.join("+")))
}

/// Answers each message before the next.
async fn talk(
    asked: tonic::Request<Streaming<String>>,
    open: Open,
) -> Result<tonic::Response<Messages>, Status> {
    let answers = stream::unfold((asked.into_inner(), open), |(mut messages, open)| async move {
        let answer = messages.next().await?.map(|text| format!("you said {text}"));
        Some((answer, (messages, open)))
    });
    Ok(tonic::Response::new(Box::pin(answers)))
}

/// A function as tonic's services are.
struct Each<F>(F);

impl<F, R, A, T> Service<R> for Each<F>
where
    F: FnMut(R) -> A,
    A: Future<Output = Result<T, Status>>,
{
    type Response = T;
    type Error = Status;
    type Future = A;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> A {
        (self.0)(request)
    }
}

/// tonic's client over one connection of hyper's.
pub type Client = tonic::client::Grpc<Connection>;

pub struct Connection(http2::SendRequest<Body>);

impl Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// A connection to what listens there, and its origin, for a client of one's own.
pub async fn connection(address: SocketAddr) -> (Connection, Uri) {
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    (Connection(sender), format!("http://{address}").parse().unwrap())
}

/// A client of what listens there.
pub async fn client(address: SocketAddr) -> Client {
    over(TcpStream::connect(address).await.unwrap(), &format!("http://{address}")).await
}

/// A client over a connection that stands.
pub async fn over(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, origin: &str) -> Client {
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    tonic::client::Grpc::with_origin(Connection(sender), origin.parse::<Uri>().unwrap())
}

/// The four kinds of method.
pub async fn ask(client: &mut Client, text: &str) -> Result<tonic::Response<String>, Status> {
    ask_with(client, tonic::Request::new(text.to_owned())).await
}

pub async fn ask_with(
    client: &mut Client,
    request: tonic::Request<String>,
) -> Result<tonic::Response<String>, Status> {
    call(client, "/test.Echo/Unary", request).await
}

pub async fn call(
    client: &mut Client,
    path: &'static str,
    request: tonic::Request<String>,
) -> Result<tonic::Response<String>, Status> {
    client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    client.unary(request, path.parse().unwrap(), ProstCodec::default()).await
}

pub async fn read(client: &mut Client, text: &str) -> Result<Streaming<String>, Status> {
    client.ready().await.unwrap();
    let request = tonic::Request::new(text.to_owned());
    let path = "/test.Echo/Download".parse().unwrap();
    client.server_streaming(request, path, ProstCodec::default()).await.map(tonic::Response::into_inner)
}

pub async fn write(
    client: &mut Client,
    messages: impl Stream<Item = String> + Send + 'static,
) -> Result<String, Status> {
    client.ready().await.unwrap();
    let path = "/test.Echo/Upload".parse().unwrap();
    let sent = client.client_streaming(tonic::Request::new(messages), path, ProstCodec::default()).await;
    sent.map(tonic::Response::into_inner)
}

pub async fn talk_to(
    client: &mut Client,
    messages: impl Stream<Item = String> + Send + 'static,
) -> Result<Streaming<String>, Status> {
    client.ready().await.unwrap();
    let path = "/test.Echo/Talk".parse().unwrap();
    let sent = client.streaming(tonic::Request::new(messages), path, ProstCodec::default()).await;
    sent.map(tonic::Response::into_inner)
}

/// Messages as they are pushed.
pub fn pushed() -> (tokio::sync::mpsc::UnboundedSender<String>, impl Stream<Item = String> + Send + 'static) {
    let (push, mut pulled) = tokio::sync::mpsc::unbounded_channel();
    (push, stream::poll_fn(move |cx| pulled.poll_recv(cx)))
}

/// A message in its frame.
pub fn framed(text: &str) -> Vec<u8> {
    use prost::Message as _;
    let message = text.to_owned().encode_to_vec();
    let mut frame = vec![0];
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.extend_from_slice(&message);
    frame
}

/// The frames of a body: whether they are trailers, and what is in them.
pub fn frames(mut body: &[u8]) -> io::Result<Vec<(bool, Vec<u8>)>> {
    let mut frames = Vec::new();
    while !body.is_empty() {
        let (head, rest) = body.split_at_checked(5).ok_or(io::ErrorKind::UnexpectedEof)?;
        let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
        let (frame, rest) = rest.split_at_checked(length).ok_or(io::ErrorKind::UnexpectedEof)?;
        frames.push((head[0] & 0x80 != 0, frame.to_vec()));
        body = rest;
    }
    Ok(frames)
}
