//! What the tests of sockets have in common: an echo, frames as bytes, and a client that reads them.

use crate::harness::wire::Finish;
use crate::harness::{Gateway, Sockets, Wire};
use futures_util::{SinkExt, StreamExt};
use http::HeaderValue;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Error, Message};
use voicegate::ws::handshake::accept;

pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

pub const TEXT: u8 = 0x81;
pub const BINARY: u8 = 0x82;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8a;

/// A frame as a client sends it.
pub fn frame(first: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
    framed(first, payload.as_ref(), Some([0x37, 0xfa, 0x21, 0x3d]))
}

/// A frame as a server sends it.
pub fn said(first: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
    framed(first, payload.as_ref(), None)
}

fn framed(first: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    let mut bytes = vec![first];
    match payload.len() {
        len @ 0..=125 => bytes.push(masked | len as u8),
        len @ 126..=65535 => {
            bytes.push(masked | 126);
            bytes.extend((len as u16).to_be_bytes());
        }
        len => {
            bytes.push(masked | 127);
            bytes.extend((len as u64).to_be_bytes());
        }
    }
    bytes.extend(mask.iter().flatten());
    let mask = mask.unwrap_or_default();
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// A Close as a client sends it.
pub fn close(code: u16, reason: &str) -> Vec<u8> {
    frame(CLOSE, [&code.to_be_bytes()[..], reason.as_bytes()].concat())
}

/// A frame that came; a payload is shown whole where it is short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Came {
    Text(String),
    Frame(u8, Vec<u8>),
    Close(Option<u16>, String),
    End,
}

/// Reads a frame, masked or not.
pub async fn next(wire: &mut Wire) -> Came {
    next_or_finish(wire).await.unwrap_or(Came::End)
}

pub async fn next_or_finish(wire: &mut Wire) -> Result<Came, Finish> {
    async fn take(wire: &mut Wire, count: usize) -> Result<Vec<u8>, Finish> {
        match wire.try_bytes(count).await {
            Some(bytes) => Ok(bytes),
            None => Err(wire.rest().await.1),
        }
    }
    let head = take(wire, 2).await?;
    let len = match head[1] & 0x7f {
        126 => u16::from_be_bytes(take(wire, 2).await?.try_into().unwrap()).into(),
        127 => u64::from_be_bytes(take(wire, 8).await?.try_into().unwrap()) as usize,
        len => len.into(),
    };
    let mask = if head[1] & 0x80 == 0 { vec![0; 4] } else { take(wire, 4).await? };
    let payload: Vec<u8> =
        take(wire, len).await?.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    Ok(match head[0] {
        TEXT => Came::Text(String::from_utf8(payload).unwrap()),
        CLOSE => {
            let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
            Came::Close(code, String::from_utf8_lossy(payload.get(2..).unwrap_or_default()).into_owned())
        }
        first => Came::Frame(first, payload),
    })
}

/// Asks for a socket; the answer's head.
pub async fn ask(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> (Wire, String) {
    let mut wire = Wire::connect(address).await;
    let mut request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n");
    let ours = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", KEY),
    ];
    let given = |name: &str| headers.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
    for (name, value) in ours.iter().filter(|(name, _)| !given(name)).chain(headers) {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    wire.send(request + "\r\n").await;
    let head = wire.head().await.expect("an answer");
    (wire, head)
}

/// Opens a socket.
pub async fn open_with(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Wire {
    let (wire, head) = ask(address, path, headers).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    wire
}

pub async fn open(gateway: &Gateway, path: &str) -> Wire {
    open_with(gateway.client.address(), path, &[]).await
}

/// The status of a refused handshake, and its `code`.
pub async fn refused(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let (mut wire, head) = ask(address, path, headers).await;
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
    let body = wire.bytes(length.parse().unwrap()).await;
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    (status, body["code"].as_str().unwrap_or_default().to_owned())
}

/// Says something and waits for its echo.
pub async fn echoes(wire: &mut Wire, text: &str) {
    assert!(wire.send(frame(TEXT, text)).await);
    assert_eq!(next(wire).await, Came::Text(text.to_owned()));
}

/// A header of a head.
pub fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| {
        let (known, value) = line.split_once(": ")?;
        known.eq_ignore_ascii_case(name).then_some(value)
    })
}

/// A service that says what it hears, by a library's understanding of the standard.
pub struct Echo {
    sockets: Sockets,
    heads: Arc<Mutex<Vec<String>>>,
    open: Arc<AtomicUsize>,
}

impl Echo {
    pub async fn start() -> Self {
        Self::saying("").await
    }

    /// With these lines in its 101.
    pub async fn saying(more: &'static str) -> Self {
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let open = Arc::new(AtomicUsize::new(0));
        let (seen, count) = (heads.clone(), open.clone());
        let sockets = Sockets::start(move |_, mut wire| {
            let (seen, count) = (seen.clone(), count.clone());
            async move {
                if !shake(&mut wire, more, &seen).await {
                    return;
                }
                count.fetch_add(1, Ordering::SeqCst);
                echo(wire).await;
                count.fetch_sub(1, Ordering::SeqCst);
            }
        })
        .await;
        Echo { sockets, heads, open }
    }

    pub fn url(&self) -> String {
        self.sockets.url()
    }

    pub fn address(&self) -> SocketAddr {
        self.sockets.address
    }

    /// Heads of the requests so far.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// Sockets that are open now.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.sockets.connections()
    }
}

/// Answers a handshake as a server does.
pub async fn shake(wire: &mut Wire, more: &str, seen: &Mutex<Vec<String>>) -> bool {
    shake_with(wire, more, seen, &[]).await
}

/// As [`shake`], with these bytes behind the head.
pub async fn shake_with(wire: &mut Wire, more: &str, seen: &Mutex<Vec<String>>, behind: &[u8]) -> bool {
    let Some(head) = wire.head().await else { return false };
    let key = HeaderValue::from_str(header(&head, "sec-websocket-key").unwrap()).unwrap();
    seen.lock().unwrap().push(head);
    let accept = accept(&key);
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {}\r\n{more}\r\n",
        accept.to_str().unwrap()
    );
    wire.send([answer.as_bytes(), behind].concat()).await
}

async fn echo(wire: Wire) {
    let mut socket = WebSocketStream::from_raw_socket(wire.into_stream(), Role::Server, None).await;
    loop {
        let code = match socket.next().await {
            Some(Ok(message)) if message.is_text() || message.is_binary() => {
                if socket.send(message).await.is_err() {
                    break;
                }
                continue;
            }
            Some(Ok(Message::Close(_))) | None => break,
            Some(Ok(_)) => continue,
            Some(Err(Error::Protocol(_))) => CloseCode::Protocol,
            Some(Err(Error::Utf8(_))) => CloseCode::Invalid,
            Some(Err(Error::Capacity(_))) => CloseCode::Size,
            Some(Err(_)) => break,
        };
        let _ = socket.close(Some(CloseFrame { code, reason: "".into() })).await;
        break;
    }
    let _ = socket.flush().await;
    let mut rest = crate::harness::wire::Wire::of(socket.into_inner());
    rest.half_close().await;
    rest.rest().await;
}
