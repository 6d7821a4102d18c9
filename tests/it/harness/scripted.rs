//! A service behind the gateway that does what a test says: answers from a closure, and remembers what it was sent.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
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
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads: Arc<Mutex<Vec<http::request::Parts>>> = Arc::default();
        let connections = Arc::new(AtomicUsize::new(0));
        let answer = Arc::new(answer);
        let task = tokio::spawn({
            let (heads, connections) = (heads.clone(), connections.clone());
            async move {
                loop {
                    let Ok((stream, _)) = listener.accept().await else { return };
                    connections.fetch_add(1, Ordering::SeqCst);
                    let (heads, answer) = (heads.clone(), answer.clone());
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (heads, answer) = (heads.clone(), answer.clone());
                        async move {
                            let (parts, body) = request.into_parts();
                            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                            let response = answer(&parts, body);
                            heads.lock().unwrap().push(parts);
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
        Scripted { address, heads, connections, task }
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
}
