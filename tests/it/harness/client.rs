//! A small HTTP client: one connection a client, answers whole or piece by piece.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;

/// How long a test waits for anything before it fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A client of one address. Connects anew for each call, so that tests do not share connections by accident.
#[derive(Debug, Clone)]
pub struct Client {
    address: SocketAddr,
    host: String,
}

/// An answer, whole.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("not JSON ({e}): {}", self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The `code` of an error in the common form, which it must have.
    pub fn code(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let body = self.json();
        for key in ["error", "code", "request_id", "status", "type", "title"] {
            assert!(!body[key].is_null(), "{key} is missing: {body}");
        }
        assert_eq!(body["status"], self.status.as_u16());
        body["code"].as_str().unwrap().to_owned()
    }
}

/// An answer whose body is still coming. Dropping it leaves.
pub struct Open {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// Gone once its stream was left.
    body: Option<Incoming>,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Open {
    fn body(&mut self) -> &mut Incoming {
        self.body.as_mut().expect("the stream was left")
    }

    /// Leaves the answer but not the connection: over HTTP/2, resets the stream.
    pub fn leave_stream(&mut self) {
        self.body = None;
    }

    /// The next piece as it came; `None` at a clean end, an error if the connection broke.
    pub async fn piece(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            let frame =
                tokio::time::timeout(PATIENCE, self.body().frame()).await.expect("a piece in time")?;
            match frame.map(|frame| frame.into_data()) {
                Ok(Ok(data)) if data.is_empty() => {}
                Ok(Ok(data)) => return Some(Ok(data)),
                Ok(Err(_)) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Everything that still comes, and whether the end was clean.
    pub async fn rest(mut self) -> (String, bool) {
        let mut text = Vec::new();
        loop {
            match self.piece().await {
                Some(Ok(data)) => text.extend_from_slice(&data),
                Some(Err(_)) => return (String::from_utf8_lossy(&text).into_owned(), false),
                None => return (String::from_utf8(text).unwrap(), true),
            }
        }
    }
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        Client { address, host: address.to_string() }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// As if the gateway were reached under this name.
    pub fn for_host(&self, host: &str) -> Self {
        Client { host: host.to_owned(), ..self.clone() }
    }

    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Request<Full<Bytes>> {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request = request.header("host", &self.host);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full::from(body.to_owned())).unwrap()
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    pub async fn post(&self, path: &str, body: &str) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body).await
    }

    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        self.try_send(self.request(method, path, headers, body)).await.unwrap()
    }

    /// Sends on a connection of its own and reads the whole answer.
    pub async fn try_send(&self, request: Request<Full<Bytes>>) -> Result<Answer, hyper::Error> {
        let open = self.try_open(request).await?;
        let (status, headers) = (open.status, open.headers.clone());
        let mut open = open;
        let collecting = tokio::time::timeout(PATIENCE, BodyExt::collect(open.body()));
        let collected = collecting.await.expect("an answer in time")?;
        Ok(Answer { status, headers, body: collected.to_bytes() })
    }

    pub async fn open(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Open {
        self.try_open(self.request(method, path, headers, body)).await.unwrap()
    }

    pub async fn try_open(&self, request: Request<Full<Bytes>>) -> Result<Open, hyper::Error> {
        let stream = TcpStream::connect(self.address).await.expect("the gateway listens");
        stream.set_nodelay(true).unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        let sent =
            tokio::time::timeout(PATIENCE, sender.send_request(request)).await.expect("an answer in time");
        let response = match sent {
            Ok(response) => response,
            Err(error) => {
                driver.abort();
                return Err(error);
            }
        };
        let (parts, body) = response.into_parts();
        Ok(Open { status: parts.status, headers: parts.headers, body: Some(body), driver })
    }

    /// Sends over HTTP/2 with prior knowledge, `:authority` being this client's host and `Host` what is given.
    pub async fn send_h2_with_host(&self, method: &str, path: &str, host: &str) -> Answer {
        let request = self.request(method, path, &[("host", host)], "");
        self.over_h2(request, path).await
    }

    /// Sends over HTTP/2 with prior knowledge.
    pub async fn send_h2(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut request = self.request(method, path, headers, body);
        request.headers_mut().remove("host");
        self.over_h2(request, path).await
    }

    async fn over_h2(&self, request: Request<Full<Bytes>>, path: &str) -> Answer {
        let mut open = self.opened_over_h2(request, path).await;
        let collecting = tokio::time::timeout(PATIENCE, BodyExt::collect(open.body()));
        let collected = collecting.await.expect("an answer in time").unwrap();
        Answer { status: open.status, headers: open.headers.clone(), body: collected.to_bytes() }
    }

    /// Opens a stream of a connection of its own over HTTP/2.
    pub async fn open_h2(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Open {
        let mut request = self.request(method, path, headers, body);
        request.headers_mut().remove("host");
        self.opened_over_h2(request, path).await
    }

    async fn opened_over_h2(&self, mut request: Request<Full<Bytes>>, path: &str) -> Open {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        // Held by the driver, so that the connection outlives its only stream.
        let held = sender.clone();
        let driver = tokio::spawn(async move {
            let _ = connection.await;
            drop(held);
        });
        *request.uri_mut() = format!("http://{}{path}", self.host).parse().unwrap();
        *request.version_mut() = http::Version::HTTP_2;
        let sent =
            tokio::time::timeout(PATIENCE, sender.send_request(request)).await.expect("an answer in time");
        let (parts, body) = sent.unwrap().into_parts();
        Open { status: parts.status, headers: parts.headers, body: Some(body), driver }
    }
}
