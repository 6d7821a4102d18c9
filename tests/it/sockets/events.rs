//! `bridge: sse`: WebSocket upstreams for callers who speak plain HTTP only.

use super::bed::*;
use crate::harness::client::Open;
use crate::harness::wire::Finish;
use crate::harness::{Gateway, Sockets, Wire, eventually};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex as Shared, mpsc};

/// Within a second, on a busy machine.
const AT_ONCE: Duration = Duration::from_millis(1800);
const BROKE: &str = "event: error\ndata: {\"type\":\"error\",\"code\":\"upstream_interrupted\"}\n\n";
const END: &str = "event: end\ndata: {}\n\n";
const TEXT_BODY: (&str, &str) = ("content-type", "text/plain");

async fn bridged(url: &str, limits: &str) -> Gateway {
    bridged_with(url, limits, "5s").await
}

async fn bridged_with(url: &str, limits: &str, grace: &str) -> Gateway {
    let route = format!(
        "chain: all, public: true, upstream: voice, path: /up, protocol: websocket, bridge: sse, {limits}"
    );
    let manifest = format!(
        "upstreams: {{ voice: {{ targets: [{{ url: \"{url}\" }}] }} }}\n\
         chains: {{ all: [access_log, recovery, request_id, metrics] }}\n\
         routes:\n  - {{ route: POST /say, {route} }}\n  - {{ route: GET /hear, {route} }}\n"
    );
    Gateway::with(&manifest).flag("--shutdown-grace", grace).start().await
}

/// An upstream that says what the test says, bytes for bytes, and tells what it hears; it ends when the test does.
struct Puppet {
    sockets: Sockets,
    heads: Arc<Mutex<Vec<String>>>,
    say: Option<mpsc::Sender<Vec<u8>>>,
    heard: mpsc::UnboundedReceiver<Came>,
}

impl Puppet {
    async fn start() -> Self {
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let (say, lines) = mpsc::channel::<Vec<u8>>(16);
        let (tell, heard) = mpsc::unbounded_channel();
        let (lines, seen) = (Arc::new(Shared::new(lines)), heads.clone());
        let sockets = Sockets::start(move |_, mut wire: Wire| {
            let (lines, tell, seen) = (lines.clone(), tell.clone(), seen.clone());
            async move {
                if !shake(&mut wire, "", &seen).await {
                    return;
                }
                let mut lines = lines.lock().await;
                loop {
                    tokio::select! {
                        biased;
                        line = lines.recv() => match line {
                            Some(bytes) => drop(wire.send(bytes).await),
                            None => return,
                        },
                        came = next(&mut wire) => {
                            let over = came == Came::End;
                            let _ = tell.send(came);
                            if over {
                                return;
                            }
                        }
                    }
                }
            }
        })
        .await;
        Puppet { sockets, heads, say: Some(say), heard }
    }

    async fn say(&self, bytes: impl Into<Vec<u8>>) {
        self.say.as_ref().unwrap().send(bytes.into()).await.unwrap();
    }

    async fn hears(&mut self) -> Came {
        tokio::time::timeout(AT_ONCE, self.heard.recv()).await.expect("heard in time").unwrap()
    }
}

async fn ask(gateway: &Gateway, body: &str) -> Open {
    gateway.client.open("POST", "/say", &[TEXT_BODY], body).await
}

async fn piece(open: &mut Open) -> String {
    String::from_utf8(open.piece().await.expect("a piece").unwrap().into()).unwrap()
}

fn closing(code: u16, reason: &str) -> Vec<u8> {
    said(CLOSE, [&code.to_be_bytes()[..], reason.as_bytes()].concat())
}

#[tokio::test]
async fn the_body_is_the_first_message_and_messages_are_events_as_they_come() {
    let mut puppet = Puppet::start().await;
    let gateway = bridged(&puppet.sockets.url(), "").await;
    let headers =
        [("content-type", "application/json"), ("X-User-ID", "root"), ("Sec-WebSocket-Protocol", "a")];
    let mut open = gateway.client.open("POST", "/say?a=1&token=s3cret", &headers, r#"{"q": "ä"}"#).await;
    assert_eq!(open.status, 200);
    assert_eq!(open.headers["content-type"], "text/event-stream");
    assert_eq!(open.headers["x-accel-buffering"], "no");
    for not in ["upgrade", "sec-websocket-accept", "content-length"] {
        assert!(!open.headers.contains_key(not), "{not}");
    }
    assert_eq!(puppet.hears().await, Came::Text(r#"{"q": "ä"}"#.to_owned()));
    for number in 0..3 {
        puppet.say(said(TEXT, format!("{number}"))).await;
        assert_eq!(piece(&mut open).await, format!("data: {number}\n\n"));
    }
    puppet.say(said(TEXT, "a\nb\r\nevent: c")).await;
    assert_eq!(piece(&mut open).await, "data: a\ndata: b\ndata: event: c\n\n");
    puppet.say(said(BINARY, [0xff, 0])).await;
    assert_eq!(piece(&mut open).await, "event: binary\ndata: /wA=\n\n");
    puppet.say([said(0x01, "one "), said(PING, "?"), said(0x80, "message")].concat()).await;
    assert_eq!(piece(&mut open).await, "data: one message\n\n");
    assert_eq!(puppet.hears().await, Came::Frame(PONG, b"?".to_vec()));
    puppet.say(closing(1000, "")).await;
    assert_eq!(open.rest().await, (END.to_owned(), true));
    assert_eq!(puppet.hears().await, Came::Close(Some(1000), String::new()));
    assert_eq!(puppet.hears().await, Came::End);
    let head = puppet.heads.lock().unwrap()[0].to_ascii_lowercase();
    assert!(head.starts_with("get /up?a=1 http/1.1\r\n"), "{head}");
    for not in ["s3cret", "root", "content-", "transfer-encoding", "sec-websocket-protocol"] {
        assert!(!head.contains(not), "{not}: {head}");
    }
}

#[tokio::test]
async fn a_get_says_nothing() {
    let mut puppet = Puppet::start().await;
    let gateway = bridged(&puppet.sockets.url(), "").await;
    let mut open = gateway.client.open("GET", "/hear", &[("Origin", "https://evil.example")], "").await;
    assert_eq!(open.status, 200, "origins are the business of `cors`");
    puppet.say([said(TEXT, "hello"), said(PING, "")].concat()).await;
    assert_eq!(piece(&mut open).await, "data: hello\n\n");
    assert_eq!(puppet.hears().await, Came::Frame(PONG, vec![]), "and nothing before");
}

#[tokio::test]
async fn a_stream_says_how_its_socket_ended() {
    let error = |code: u16| {
        format!(
            "event: error\ndata: {{\"type\":\"error\",\"code\":\"upstream_closed\",\"close_code\":{code},\"reason\":\"why\"}}\n\n"
        )
    };
    for (bytes, end, answer) in [
        (closing(1001, "bye"), END.to_owned(), Some(1001)),
        (closing(1011, "why"), error(1011), Some(1011)),
        (closing(4000, "why"), error(4000), Some(4000)),
        (said(0x81, vec![b'x'; 1025]), BROKE.to_owned(), Some(1009)),
        ([said(0x01, vec![b'x'; 1000]), said(0x80, vec![b'x'; 25])].concat(), BROKE.to_owned(), Some(1009)),
        (said(TEXT, [0xff]), BROKE.to_owned(), Some(1007)),
        (frame(TEXT, "masked"), BROKE.to_owned(), Some(1002)),
    ] {
        let mut puppet = Puppet::start().await;
        let gateway = bridged(&puppet.sockets.url(), "websocket: { max_message: 1KiB }").await;
        let mut open = ask(&gateway, "hello").await;
        puppet.say(said(TEXT, "first")).await;
        assert_eq!(piece(&mut open).await, "data: first\n\n");
        puppet.say(bytes).await;
        assert_eq!(open.rest().await, (end, true));
        assert_eq!(puppet.hears().await, Came::Text("hello".to_owned()));
        assert_eq!(puppet.hears().await, Came::Close(answer, String::new()));
    }
}

#[tokio::test]
async fn an_abrupt_end_is_no_end() {
    for begun in [vec![], said(TEXT, "half of it")[..5].to_vec()] {
        let mut puppet = Puppet::start().await;
        let gateway = bridged(&puppet.sockets.url(), "").await;
        let mut open = ask(&gateway, "hello").await;
        assert_eq!(puppet.hears().await, Came::Text("hello".to_owned()));
        puppet.say([said(TEXT, "first"), begun].concat()).await;
        assert_eq!(piece(&mut open).await, "data: first\n\n");
        puppet.say = None;
        assert_eq!(open.rest().await, (BROKE.to_owned(), true));
    }
}

#[tokio::test]
async fn a_caller_who_leaves_closes_the_socket() {
    let mut puppet = Puppet::start().await;
    let gateway = bridged(&puppet.sockets.url(), "").await;
    let mut open = ask(&gateway, "hello").await;
    puppet.say(said(TEXT, "first")).await;
    assert_eq!(piece(&mut open).await, "data: first\n\n");
    assert_eq!(puppet.hears().await, Came::Text("hello".to_owned()));
    let began = Instant::now();
    drop(open);
    assert_eq!(puppet.hears().await, Came::Close(Some(1001), String::new()));
    assert_eq!(puppet.hears().await, Came::End);
    assert!(began.elapsed() < AT_ONCE);
    let open = "voicegate_streams_open{path=\"/say\"}";
    eventually("none is left", AT_ONCE, async || gateway.metric(open).await == 0.0).await;
}

#[tokio::test]
async fn limits_and_heartbeats_are_those_of_streams() {
    let mut puppet = Puppet::start().await;
    let limits = "stream: { heartbeat: 100ms, first_event: 5s, idle: 600ms }";
    let gateway = bridged(&puppet.sockets.url(), limits).await;
    let mut open = ask(&gateway, "hello").await;
    assert_eq!(piece(&mut open).await, ": heartbeat\n\n");
    puppet.say(said(TEXT, "first")).await;
    let (text, clean) = open.rest().await;
    assert!(clean && text.contains("data: first\n\n: heartbeat\n\n"), "{text}");
    assert!(
        text.ends_with("event: error\ndata: {\"type\":\"error\",\"code\":\"stream_idle\"}\n\n"),
        "{text}"
    );
    assert_eq!(puppet.hears().await, Came::Text("hello".to_owned()));
    assert_eq!(puppet.hears().await, Came::Close(Some(1001), String::new()));
}

#[tokio::test]
async fn a_gateway_that_goes_down_says_so() {
    let mut puppet = Puppet::start().await;
    let gateway = bridged_with(&puppet.sockets.url(), "", "1s").await;
    let mut open = ask(&gateway, "hello").await;
    puppet.say(said(TEXT, "first")).await;
    assert_eq!(piece(&mut open).await, "data: first\n\n");
    let (cut, (text, clean)) = tokio::join!(gateway.shut_down(), open.rest());
    let notice = "event: error\ndata: {\"type\":\"error\",\"code\":\"shutting_down\"}\n\n";
    assert_eq!((cut, text.as_str(), clean), (0, notice, true));
    assert_eq!(puppet.hears().await, Came::Text("hello".to_owned()));
    assert_eq!(puppet.hears().await, Came::Close(Some(1001), String::new()));
}

#[tokio::test]
async fn bodies_that_are_no_message_open_nothing() {
    let puppet = Puppet::start().await;
    let gateway = bridged(&puppet.sockets.url(), "websocket: { max_message: 1KiB }").await;
    let large = "x".repeat(1025);
    let coded = [TEXT_BODY, ("content-encoding", "gzip")];
    for (headers, body, status, code) in [
        (&[TEXT_BODY][..], large.as_str(), 413, "payload_too_large"),
        (&coded[..], "x", 415, "unsupported_media_type"),
    ] {
        let answer = gateway.client.send("POST", "/say", headers, body).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code));
    }
    let mut wire = Wire::connect(gateway.client.address()).await;
    wire.send(b"POST /say HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\n\xff").await;
    let answer = wire.answer().await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "bad_request"));
    assert_eq!(puppet.sockets.connections(), 0);
}

#[tokio::test]
async fn an_upstream_that_opens_no_socket_answers_as_elsewhere() {
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let gateway = bridged(&format!("http://{closed}"), "").await;
    let answer = gateway.client.post("/say", "{}").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (502, "upstream_unreachable"));
    let busy =
        Sockets::saying("HTTP/1.1 409 Conflict\r\ncontent-length: 4\r\nx-why: taken\r\n\r\nbusy").await;
    let answer = bridged(&busy.url(), "").await.client.post("/say", "{}").await;
    assert_eq!((answer.status.as_u16(), answer.text(), answer.header("x-why")), (409, "busy", Some("taken")));
    let wrong = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n";
    let answer = bridged(&Sockets::saying(wrong).await.url(), "").await.client.post("/say", "{}").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (502, "upstream_bad_response"));
    let silent = Sockets::start(|_, mut wire| async move {
        while wire.head().await.is_some() {}
        assert_eq!(wire.rest().await.1, Finish::Closed);
    })
    .await;
    let answer =
        bridged(&silent.url(), "stream: { first_event: 300ms }").await.client.post("/say", "{}").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (504, "upstream_timeout"));
}
