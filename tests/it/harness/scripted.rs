//! A service behind the gateway that does what a test says: answers from a closure, and remembers what it was sent.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

pub type Body = BoxBody<Bytes, io::Error>;

/// A running service.
pub struct Scripted {
    pub address: SocketAddr,
    heads: Arc<Mutex<Vec<http::request::Parts>>>,
    connections: Arc<AtomicUsize>,
    given_up: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A whole body.
pub fn body(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never: Infallible| match never {}).boxed()
}

impl Scripted {
    /// Answers every request with what `answer` makes of its head and body.
    pub async fn start<F>(answer: F) -> Self
    where
        F: Fn(&http::request::Parts, Bytes) -> Response<Body> + Send + Sync + 'static,
    {
        Self::serve(move |head, body| std::future::ready(answer(head, body)), false).await
    }

    /// Answers every request when `answer` has made something of its head. Heads are noted as they come, and who leaves
    /// before the answer is counted.
    pub async fn start_slowly<F, Fut>(answer: F) -> Self
    where
        F: Fn(&http::request::Parts) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::serve(move |head, _| answer(head), true).await
    }

    /// `early`: heads are noted before they are answered.
    async fn serve<F, Fut>(answer: F, early: bool) -> Self
    where
        F: Fn(&http::request::Parts, Bytes) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads: Arc<Mutex<Vec<http::request::Parts>>> = Arc::default();
        let (connections, given_up) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let answer = Arc::new(answer);
        let task = tokio::spawn({
            let (heads, connections, given_up) = (heads.clone(), connections.clone(), given_up.clone());
            async move {
                loop {
                    let Ok((stream, _)) = listener.accept().await else { return };
                    connections.fetch_add(1, Ordering::SeqCst);
                    let (heads, answer, given_up) = (heads.clone(), answer.clone(), given_up.clone());
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (heads, answer) = (heads.clone(), answer.clone());
                        let waiting = Waiting(Some(given_up.clone()));
                        async move {
                            let (parts, body) = request.into_parts();
                            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                            if early {
                                heads.lock().unwrap().push(parts.clone());
                            }
                            let response = answer(&parts, body).await;
                            waiting.answered();
                            if !early {
                                heads.lock().unwrap().push(parts);
                            }
                            Ok::<_, Infallible>(response)
                        }
                    });
                    tokio::spawn(
                        hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service),
                    );
                }
            }
        });
        Scripted { address, heads, connections, given_up, task }
    }

    /// Answers 200 with this text.
    pub async fn saying(text: &'static str) -> Self {
        Self::start(move |_, _| Response::new(body(text))).await
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Heads of the requests so far.
    pub fn heads(&self) -> Vec<http::request::Parts> {
        self.heads.lock().unwrap().clone()
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Requests that were left before they were answered.
    pub fn given_up(&self) -> usize {
        self.given_up.load(Ordering::SeqCst)
    }
}

/// Counts a request that is dropped while it waits.
struct Waiting(Option<Arc<AtomicUsize>>);

impl Waiting {
    fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(count) = &self.0 {
            count.fetch_add(1, Ordering::SeqCst);
        }
    }
}
