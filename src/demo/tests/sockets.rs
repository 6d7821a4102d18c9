//! The demo's sockets directly, without a gateway in between.

use super::*;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

/// Opens a socket by hand; RFC 6455, section 1.3, has the key and its answer.
async fn open(demo: &Demo, path: &str) -> WebSocketStream<TcpStream> {
    let mut stream = TcpStream::connect(demo.addr()).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: demo\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-User-ID: ann\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    WebSocketStream::from_raw_socket(stream, Role::Client, None).await
}

async fn next(socket: &mut WebSocketStream<TcpStream>) -> Option<Message> {
    tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().map(Result::unwrap)
}

async fn hears(socket: &mut WebSocketStream<TcpStream>) -> Value {
    serde_json::from_str(next(socket).await.unwrap().to_text().unwrap()).unwrap()
}

#[tokio::test]
async fn sockets_talk_are_counted_and_are_told_when_it_goes_down() {
    let demo = Demo::start().await.unwrap();
    let mut bell = open(&demo, "/ws").await;
    assert_eq!(hears(&mut bell).await["user_id"], "ann");
    bell.send(Message::text(r#"{"type": "ping"}"#)).await.unwrap();
    assert_eq!(hears(&mut bell).await["type"], "pong");
    let mut voice = open(&demo, "/api/v1/voice/stream").await;
    voice.send(Message::binary(vec![0; 100])).await.unwrap();
    assert_eq!(hears(&mut voice).await["code"], "not_started");
    assert_eq!(demo.stats().sockets, Sockets { opened: 2, open: 2 });
    voice.close(None).await.unwrap();
    while next(&mut voice).await.is_some() {}
    let stats = demo.algorithm.clone();
    let begun = Instant::now();
    let stopping = tokio::spawn(demo.stop(PATIENCE));
    let Some(Message::Close(Some(told))) = next(&mut bell).await else { panic!("it closes") };
    assert_eq!((u16::from(told.code), told.reason.as_str()), (1001, "going down"));
    assert!(next(&mut bell).await.is_none());
    stopping.await.unwrap();
    assert!(begun.elapsed() < PATIENCE, "nobody waits for the whole grace");
    assert_eq!(stats.ledger().stats().sockets, Sockets { opened: 2, open: 0 });
}

#[tokio::test]
async fn what_asks_for_no_socket_is_told_so() {
    let demo = Demo::start().await.unwrap();
    for path in ["/ws", "/api/v1/voice/ws", "/api/v1/webrtc/signaling"] {
        let refused = get(&demo, path).await;
        assert_eq!(refused.status(), 426, "{path}");
    }
    assert_eq!(demo.stats().sockets, Sockets { opened: 0, open: 0 });
}
