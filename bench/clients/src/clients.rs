//! The clients that are compared. Each gets the method, the same six headers to send on and an address that is parsed
//! already, and reads the answer piece by piece, as a proxy does.

use crate::Outcome;
use bytes::Bytes;
use http::header::{ACCEPT, HOST, HeaderName, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::client::legacy::Client as Pooled;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use reqwest::{NoProxy, Proxy, Url};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

const DEADLINE: Duration = Duration::from_secs(30);

/// Which client, and of reqwest's what is switched on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// hyper's connection, kept by hand.
    Hyper,
    /// hyper-util's client with its pool.
    Util,
    /// reqwest with all that can be switched off switched off: no retries, redirects, proxies, deadlines.
    Bare,
    /// As the gateway would build it: no redirects, no proxies, no deadlines.
    Reqwest,
    /// The same with a deadline for the whole and one for each read.
    Deadlines,
    /// The same with a proxy that needs a password and is not meant for this host.
    Proxied,
    /// As `reqwest::Client::new()` would be: redirects followed, proxies of the environment.
    Defaults,
    /// The same, and the address is a string.
    Text,
}

static KINDS: [(&str, Kind); 8] = [
    ("hyper", Kind::Hyper),
    ("hyper-util", Kind::Util),
    ("reqwest-bare", Kind::Bare),
    ("reqwest", Kind::Reqwest),
    ("reqwest-deadlines", Kind::Deadlines),
    ("reqwest-proxied", Kind::Proxied),
    ("reqwest-defaults", Kind::Defaults),
    ("reqwest-text", Kind::Text),
];

impl Kind {
    /// All of them.
    pub fn names() -> String {
        KINDS.map(|(name, _)| name).join(" ")
    }

    /// What it is called on the command line.
    pub fn name(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = KINDS.iter().find(|(name, _)| *name == text);
        found.map(|(_, kind)| *kind).ok_or_else(|| format!("no client {text:?}, but {}", Kind::names()))
    }
}

/// A client and where it asks.
pub enum Client {
    Hyper { server: SocketAddr, path: Uri, host: HeaderValue, sender: Option<SendRequest<Empty<Bytes>>> },
    Util { uri: Uri, client: Pooled<HttpConnector, Empty<Bytes>> },
    Reqwest { url: Url, client: reqwest::Client },
    Text { url: String, client: reqwest::Client },
}

const PATH: &str = "/v1/voices/42?lang=en";

/// What the caller of a proxy sent and the proxy added.
pub fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut add = |name: HeaderName, value| headers.insert(name, HeaderValue::from_static(value));
    add(USER_AGENT, "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0");
    add(ACCEPT, "application/json");
    add(HeaderName::from_static("x-request-id"), "0193578f-1a2b-7c3d-8e4f-5a6b7c8d9e0f");
    add(HeaderName::from_static("x-forwarded-for"), "192.0.2.17");
    add(HeaderName::from_static("x-forwarded-proto"), "https");
    add(HeaderName::from_static("traceparent"), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    headers
}

impl Client {
    /// A client for this server.
    pub async fn open(kind: Kind, server: SocketAddr) -> Outcome<Self> {
        let whole = format!("http://{server}{PATH}");
        Ok(match kind {
            Kind::Hyper => {
                let host = HeaderValue::from_str(&server.to_string())?;
                Client::Hyper { server, path: PATH.parse()?, host, sender: None }
            }
            Kind::Util => {
                let mut connector = HttpConnector::new();
                connector.set_nodelay(true);
                let client = Pooled::builder(TokioExecutor::new()).build(connector);
                Client::Util { uri: whole.parse()?, client }
            }
            Kind::Text => Client::Text { url: whole, client: reqwest_client(kind)? },
            _ => Client::Reqwest { url: whole.parse()?, client: reqwest_client(kind)? },
        })
    }

    /// The same client for a caller of its own.
    pub async fn lane(&self) -> Outcome<Self> {
        Ok(match self {
            Client::Hyper { server, path, host, .. } => {
                let socket = TcpStream::connect(server).await?;
                socket.set_nodelay(true)?;
                let (sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
                tokio::spawn(connection);
                Client::Hyper {
                    server: *server,
                    path: path.clone(),
                    host: host.clone(),
                    sender: Some(sender),
                }
            }
            Client::Util { uri, client } => Client::Util { uri: uri.clone(), client: client.clone() },
            Client::Reqwest { url, client } => Client::Reqwest { url: url.clone(), client: client.clone() },
            Client::Text { url, client } => Client::Text { url: url.clone(), client: client.clone() },
        })
    }

    /// One request; how many bytes its answer had.
    pub async fn get(&mut self, headers: &HeaderMap) -> Outcome<usize> {
        match self {
            Client::Hyper { path, host, sender, .. } => {
                let sender = sender.as_mut().ok_or("no connection")?;
                let mut request = Request::new(Empty::new());
                *request.uri_mut() = path.clone();
                *request.headers_mut() = headers.clone();
                request.headers_mut().insert(HOST, host.clone());
                sender.ready().await?;
                read(sender.send_request(request).await?.into_body()).await
            }
            Client::Util { uri, client } => {
                let mut request = Request::new(Empty::new());
                *request.uri_mut() = uri.clone();
                *request.headers_mut() = headers.clone();
                read(client.request(request).await?.into_body()).await
            }
            Client::Reqwest { url, client } => {
                let mut request = reqwest::Request::new(Method::GET, url.clone());
                *request.headers_mut() = headers.clone();
                read_chunks(client.execute(request).await?).await
            }
            Client::Text { url, client } => {
                read_chunks(client.get(url.as_str()).headers(headers.clone()).send().await?).await
            }
        }
    }
}

async fn read(mut body: hyper::body::Incoming) -> Outcome<usize> {
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame?.data_ref().map_or(0, Bytes::len);
    }
    Ok(bytes)
}

async fn read_chunks(mut response: reqwest::Response) -> Outcome<usize> {
    let mut bytes = 0;
    while let Some(chunk) = response.chunk().await? {
        bytes += chunk.len();
    }
    Ok(bytes)
}

fn reqwest_client(kind: Kind) -> Outcome<reqwest::Client> {
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let mut builder = reqwest::Client::builder().tls_backend_preconfigured(tls);
    if !matches!(kind, Kind::Defaults | Kind::Text) {
        builder = builder.no_proxy().redirect(reqwest::redirect::Policy::none());
    }
    match kind {
        Kind::Bare => builder = builder.retry(reqwest::retry::never().max_retries_per_request(0)),
        Kind::Deadlines => builder = builder.timeout(DEADLINE).read_timeout(DEADLINE),
        Kind::Proxied => {
            let proxy = Proxy::http("http://user:password@127.0.0.1:9")?;
            builder = builder.proxy(proxy.no_proxy(NoProxy::from_string("127.0.0.1")));
        }
        _ => {}
    }
    Ok(builder.build()?)
}
