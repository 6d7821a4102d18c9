//! The door from outside: real sockets, small limits.
use super::*;
use crate::serve::{
    drain::Grace,
    intake::{IntakeLimits, admit},
};
use http::{StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::{body::Frame, client::conn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use tokio::task::JoinHandle;
use tokio_rustls::{
    TlsConnector,
    rustls::{self, pki_types},
};

const TICK: Duration = Duration::from_millis(300);
/// Long beside every limit that a test sets small, short beside every limit it leaves alone.
const SOON: Duration = Duration::from_secs(5);

/// Small where tests wait, and far away where a test that hangs should show it.
fn limits() -> Limits {
    Limits {
        header_timeout: Duration::from_secs(60),
        handshake_timeout: Duration::from_secs(60),
        write_stall: Duration::from_secs(60),
        keep_alive_timeout: Duration::from_secs(60),
        ..Limits::default()
    }
}

/// A door on a free port with a few operations behind it.
struct House {
    address: SocketAddr,
    drain: Drain,
    connections: Connections,
    desk: Desk,
    ended: JoinHandle<Summary>,
}

#[derive(Clone, Default)]
struct Desk {
    /// Lets one `/gate` request go on.
    gate: Arc<Notify>,
    /// Told when a `/gate` request has begun, and when one was dropped.
    begun: Arc<Tally>,
    dropped: Arc<Tally>,
}

/// Counts what happened and lets a test take it, once each.
struct Tally(Semaphore);

impl Default for Tally {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

impl Tally {
    async fn take(&self) {
        soon(self.0.acquire()).await.unwrap().forget();
    }
}

struct OnDrop(Option<Arc<Tally>>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        if let Some(tally) = &self.0 {
            tally.0.add_permits(1);
        }
    }
}

impl Service for Desk {
    type Body = BoxBody<Bytes, io::Error>;

    async fn call(
        &self,
        request: Request<Incoming>,
        at: Arc<ConnInfo>,
    ) -> Response<BoxBody<Bytes, io::Error>> {
        let (parts, body) = request.into_parts();
        let text =
            |text: String| Full::new(Bytes::from(text)).map_err(|never: Infallible| match never {}).boxed();
        let path = match admit(&parts, at.tls, &IntakeLimits::default()) {
            Ok(admitted) => admitted.path.into_owned(),
            Err(refusal) => {
                let mut answer = Response::builder().status(refusal.kind.status());
                if refusal.close && parts.version == http::Version::HTTP_11 {
                    answer = answer.header(header::CONNECTION, "close");
                }
                return answer.body(text(refusal.kind.code().to_owned())).unwrap();
            }
        };
        match &*path {
            "/gate" => {
                let mut gone = OnDrop(Some(Arc::clone(&self.dropped)));
                self.begun.0.add_permits(1);
                self.gate.notified().await;
                gone.0 = None;
                Response::new(text("through".into()))
            }
            "/echo" => match body.collect().await {
                Ok(all) => Response::new(text(String::from_utf8_lossy(&all.to_bytes()).into_owned())),
                Err(_) => Response::builder().status(400).body(text("bad body".into())).unwrap(),
            },
            "/endless" => {
                let frames = futures_util::stream::repeat_with(|| {
                    Ok(Frame::data(Bytes::from_static(&[b'x'; 16 << 10])))
                });
                let gone = OnDrop(Some(Arc::clone(&self.dropped)));
                let body = StreamBody::new(frames).map_frame(move |frame| {
                    let _held = &gone;
                    frame
                });
                Response::new(body.boxed())
            }
            "/upgrade" => {
                let on = hyper::upgrade::on(Request::from_parts(parts, body));
                tokio::spawn(async move {
                    let mut io = TokioIo::new(on.await.unwrap());
                    let mut byte = [0; 1];
                    while io.read(&mut byte).await.unwrap_or(0) > 0 {
                        io.write_all(&byte).await.unwrap();
                    }
                });
                let answer =
                    Response::builder().status(101).header("connection", "upgrade").header("upgrade", "x");
                answer.body(text(String::new())).unwrap()
            }
            _ => Response::new(text(format!("{:?}{path}", parts.version))),
        }
    }
}

fn open(limits: Limits, tls: Option<TlsSettings>) -> House {
    let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let (drain, connections, desk) = (Drain::new(), Connections::new(), Desk::default());
    let serving = serve(listener, desk.clone(), limits, tls, drain.clone(), connections.clone());
    House { address, drain, connections, desk, ended: tokio::spawn(serving) }
}

impl House {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends `wire` on a new connection and returns all that comes until it is closed.
    async fn talk(&self, wire: &str) -> String {
        let mut socket = self.connect().await;
        socket.write_all(wire.as_bytes()).await.unwrap();
        until_closed(&mut socket).await
    }

    async fn h2(&self) -> conn::http2::SendRequest<Empty<Bytes>> {
        self.h2_with(conn::http2::Builder::new(TokioExecutor::new())).await
    }

    async fn h2_with(
        &self,
        builder: conn::http2::Builder<TokioExecutor>,
    ) -> conn::http2::SendRequest<Empty<Bytes>> {
        let (send, connection) = builder.handshake(TokioIo::new(self.connect().await)).await.unwrap();
        tokio::spawn(connection);
        send
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(SOON, what).await.expect("should have happened long ago")
}

async fn until_closed(socket: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let _ = soon(socket.read_to_end(&mut all)).await;
    String::from_utf8_lossy(&all).into_owned()
}

/// Reads one answer of known length.
async fn answer(io: &mut (impl tokio::io::AsyncRead + Unpin), ends_with: &str) -> String {
    let mut all = Vec::new();
    while !all.ends_with(ends_with.as_bytes()) {
        assert!(
            soon(io.read_buf(&mut all)).await.unwrap() > 0,
            "closed after {:?}",
            String::from_utf8_lossy(&all)
        );
    }
    String::from_utf8(all).unwrap()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

fn request(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://a{path}")).body(Empty::new()).unwrap()
}

async fn text(answer: Response<Incoming>) -> String {
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn http1_keeps_the_connection() {
    let house = open(limits(), None);
    let mut socket = house.connect().await;
    for path in ["/one", "/two"] {
        socket.write_all(get(path).as_bytes()).await.unwrap();
        assert!(answer(&mut socket, path).await.starts_with("HTTP/1.1 200 OK\r\n"));
    }
    // Pipelined, and a head that comes in two pieces.
    socket.write_all((get("/three") + &get("/four")[..10]).as_bytes()).await.unwrap();
    answer(&mut socket, "/three").await;
    socket.write_all(&get("/four").as_bytes()[10..]).await.unwrap();
    answer(&mut socket, "/four").await;
    assert_eq!((house.connections.accepted(), house.connections.open()), (1, 1));
}

#[tokio::test]
async fn http2_with_prior_knowledge() {
    let house = open(limits(), None);
    let mut send = house.h2().await;
    let (one, two) = (send.send_request(request("/one")), send.clone().send_request(request("/two")));
    let (one, two) = soon(async { tokio::try_join!(one, two) }).await.unwrap();
    assert_eq!((text(one).await, text(two).await), ("HTTP/2.0/one".into(), "HTTP/2.0/two".into()));
    assert_eq!(house.connections.accepted(), 1);
}

#[tokio::test]
async fn a_preface_that_comes_in_pieces_is_http2_and_one_that_goes_wrong_is_not() {
    let house = open(limits(), None);
    let mut socket = house.connect().await;
    for piece in ["PRI * HT", "TP/2.0\r\n\r\nSM", "\r\n\r\n\0\0\0\x04\0\0\0\0\0"] {
        socket.write_all(piece.as_bytes()).await.unwrap();
        tokio::task::yield_now().await;
    }
    // The server's SETTINGS frame.
    let mut frame = [0; 9];
    soon(socket.read_exact(&mut frame)).await.unwrap();
    assert_eq!((frame[3], &frame[5..]), (4, &[0, 0, 0, 0][..]));
    let answer = house.talk("PRI * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.ends_with("invalid_target"), "{answer}");
}

#[tokio::test]
async fn tls_speaks_what_alpn_says() {
    let here = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let (certificate, key) = (here.path().join("crt"), here.path().join("key"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let house = open(limits(), Some(TlsSettings::load(&certificate, &key).unwrap()));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    for (alpn, version) in [(&b"h2"[..], "HTTP/2.0"), (b"http/1.1", "HTTP/1.1"), (b"", "HTTP/1.1")] {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        if !alpn.is_empty() {
            config.alpn_protocols = vec![alpn.to_vec()];
        }
        let name = pki_types::ServerName::try_from("localhost").unwrap();
        let mut stream =
            TlsConnector::from(Arc::new(config)).connect(name, house.connect().await).await.unwrap();
        if version == "HTTP/2.0" {
            let io = TokioIo::new(stream);
            let (mut send, connection) = conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            let got = send.send_request(Request::get("https://a/x").body(Empty::<Bytes>::new()).unwrap());
            assert_eq!(text(soon(got).await.unwrap()).await, "HTTP/2.0/x");
        } else {
            stream.write_all(get("/x").as_bytes()).await.unwrap();
            answer(&mut stream, "HTTP/1.1/x").await;
        }
    }
    // Not TLS at all, or never finished: gone.
    assert!(!house.talk(&get("/x")).await.contains("HTTP"));
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_is_dropped() {
    let here = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let (certificate, key) = (here.path().join("crt"), here.path().join("key"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let tls = TlsSettings::load(&certificate, &key).unwrap();
    let house = open(Limits { handshake_timeout: TICK, ..limits() }, Some(tls));
    assert_eq!(until_closed(&mut house.connect().await).await, "");
}

#[tokio::test]
async fn a_silent_connection_and_a_slow_head_are_closed_at_the_deadline() {
    let house = open(Limits { header_timeout: TICK, ..limits() }, None);
    let begun = Instant::now();
    let silent = async { until_closed(&mut house.connect().await).await };
    let half_preface = house.talk("PRI * HTTP/2");
    let dripping = async {
        let mut socket = house.connect().await;
        socket.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").await.unwrap();
        while socket.write_all(b"X-A: b\r\n").await.is_ok() {
            sleep(TICK / 10).await;
        }
        String::new()
    };
    let second_head = async {
        let mut socket = house.connect().await;
        socket.write_all(get("/x").as_bytes()).await.unwrap();
        answer(&mut socket, "/x").await;
        socket.write_all(b"GET /y HT").await.unwrap();
        until_closed(&mut socket).await
    };
    let all = soon(async { tokio::join!(silent, half_preface, dripping, second_head) }).await;
    assert_eq!(all, Default::default());
    assert!(begun.elapsed() >= TICK && begun.elapsed() < 10 * TICK, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn between_requests_there_is_more_time_than_inside_a_head() {
    let house = open(Limits { header_timeout: TICK, keep_alive_timeout: TICK * 4, ..limits() }, None);
    let mut socket = house.connect().await;
    for _ in 0..2 {
        socket.write_all(get("/x").as_bytes()).await.unwrap();
        answer(&mut socket, "/x").await;
        sleep(TICK * 2).await;
    }
    let begun = Instant::now();
    socket.write_all(get("/x").as_bytes()).await.unwrap();
    answer(&mut socket, "/x").await;
    assert_eq!(until_closed(&mut socket).await, "");
    assert!(begun.elapsed() >= TICK * 4 && begun.elapsed() < TICK * 10, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn an_idle_http2_connection_is_closed_in_order() {
    let house = open(Limits { keep_alive_timeout: TICK, ..limits() }, None);
    let mut send = house.h2().await;
    text(send.send_request(request("/x")).await.unwrap()).await;
    soon(async {
        while !send.is_closed() {
            sleep(TICK / 10).await;
        }
        house.connections.all_closed().await;
    })
    .await;
}

#[tokio::test]
async fn a_response_in_progress_outlives_every_idle_limit() {
    let short = Limits { header_timeout: TICK, keep_alive_timeout: TICK, write_stall: TICK, ..limits() };
    let house = open(short, None);
    let mut socket = house.connect().await;
    socket.write_all(get("/gate").as_bytes()).await.unwrap();
    let mut send = house.h2().await;
    let other = tokio::spawn(send.send_request(request("/gate")));
    sleep(TICK * 4).await;
    // A body that comes slowly is none of the door's business either.
    let mut upload = house.connect().await;
    upload.write_all(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab").await.unwrap();
    sleep(TICK * 3).await;
    upload.write_all(b"cd").await.unwrap();
    answer(&mut upload, "abcd").await;
    house.desk.gate.notify_waiters();
    answer(&mut socket, "through").await;
    assert_eq!(text(soon(other).await.unwrap().unwrap()).await, "through");
}

#[tokio::test]
async fn a_reader_that_stalls_is_dropped() {
    let house = open(Limits { write_stall: TICK, ..limits() }, None);
    let mut socket = house.connect().await;
    socket.write_all(get("/endless").as_bytes()).await.unwrap();
    house.desk.dropped.take().await;
    soon(house.connections.all_closed()).await;
}

#[tokio::test]
async fn an_http2_stream_whose_reader_stalls_is_reset_and_the_connection_goes_on() {
    let house = open(Limits { write_stall: TICK, ..limits() }, None);
    let mut send = house.h2().await;
    // Held and never read: its window stays shut.
    let held = send.send_request(request("/endless")).await.unwrap();
    house.desk.dropped.take().await;
    let mut body = held.into_body();
    let failed = async { while body.frame().await.is_some_and(|frame| frame.is_ok()) {} };
    soon(failed).await;
    assert_eq!(text(soon(send.send_request(request("/x"))).await.unwrap()).await, "HTTP/2.0/x");
    assert_eq!(house.connections.accepted(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request() {
    let house = open(limits(), None);
    let mut socket = house.connect().await;
    socket.write_all(get("/gate").as_bytes()).await.unwrap();
    house.desk.begun.take().await;
    drop(socket);
    house.desk.dropped.take().await;
    let mut send = house.h2().await;
    let asked = tokio::spawn(send.send_request(request("/gate")));
    house.desk.begun.take().await;
    asked.abort();
    house.desk.dropped.take().await;
}

#[tokio::test]
async fn at_the_cap_newcomers_are_told_and_a_free_place_is_given() {
    let house = open(Limits { max_connections: 1, ..limits() }, None);
    let mut first = house.connect().await;
    first.write_all(get("/x").as_bytes()).await.unwrap();
    answer(&mut first, "/x").await;
    let refused = house.talk(&get("/x")).await;
    assert!(
        refused.starts_with("HTTP/1.1 503 ") && refused.contains("\"too_many_connections\""),
        "{refused}"
    );
    let body: serde_json::Value = serde_json::from_str(refused.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!((&body["status"], body["error"].is_string()), (&503.into(), true));
    assert_eq!(house.connections.refused(), 1);
    drop(first);
    soon(house.connections.all_closed()).await;
    assert!(house.talk("GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.ends_with("/x"));
}

#[tokio::test]
async fn a_drain_lets_requests_finish_and_nothing_begin() {
    let house = open(limits(), None);
    let (mut busy, mut idle, mut fresh) =
        (house.connect().await, house.connect().await, house.connect().await);
    idle.write_all(get("/x").as_bytes()).await.unwrap();
    answer(&mut idle, "/x").await;
    busy.write_all(get("/gate").as_bytes()).await.unwrap();
    house.desk.begun.take().await;
    let mut send = house.h2().await;
    let other = tokio::spawn(send.send_request(request("/gate")));
    house.desk.begun.take().await;
    house.drain.advance(Stage::Draining);
    assert_eq!(until_closed(&mut idle).await + &until_closed(&mut fresh).await, "");
    soon(async {
        while TcpStream::connect(house.address).await.is_ok() {
            sleep(TICK / 10).await;
        }
    })
    .await;
    house.desk.gate.notify_waiters();
    let last = until_closed(&mut busy).await;
    assert!(last.contains("connection: close") && last.ends_with("through"), "{last}");
    assert_eq!(text(soon(other).await.unwrap().unwrap()).await, "through");
    assert_eq!(soon(house.ended).await.unwrap().cut, 0);
}

#[tokio::test]
async fn what_stands_in_the_queue_is_answered_before_the_door_shuts() {
    let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut queued = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    queued.write_all(get("/x").as_bytes()).await.unwrap();
    let drain = Drain::new();
    drain.advance(Stage::Draining);
    let summary = soon(serve(listener, Desk::default(), limits(), None, drain, Connections::new())).await;
    assert_eq!(summary, Summary { accepted: 1, cut: 0 });
    assert!(until_closed(&mut queued).await.ends_with("/x"));
}

#[tokio::test]
async fn what_is_left_after_the_grace_is_cut() {
    let house = open(limits(), None);
    let mut busy = house.connect().await;
    busy.write_all(get("/gate").as_bytes()).await.unwrap();
    house.desk.begun.take().await;
    let mut send = house.h2().await;
    let other = tokio::spawn(send.send_request(request("/gate")));
    house.desk.begun.take().await;
    let grace = Grace { close_after: TICK / 2, cut_after: TICK };
    let begun = Instant::now();
    tokio::spawn(async move { house.drain.run(grace).await });
    let summary = soon(house.ended).await.unwrap();
    assert_eq!(summary, Summary { accepted: 2, cut: 2 });
    assert!(begun.elapsed() >= TICK);
    assert_eq!(until_closed(&mut busy).await, "");
    soon(other).await.unwrap().unwrap_err();
    for _ in 0..2 {
        house.desk.dropped.take().await;
    }
}

#[tokio::test]
async fn an_upgraded_connection_keeps_its_seat() {
    let house = open(Limits { header_timeout: TICK, keep_alive_timeout: TICK, ..limits() }, None);
    let mut socket = house.connect().await;
    let upgrade = "GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
    socket.write_all(upgrade.as_bytes()).await.unwrap();
    answer(&mut socket, "\r\n\r\n").await;
    sleep(TICK * 3).await;
    socket.write_all(b"ping").await.unwrap();
    answer(&mut socket, "ping").await;
    assert_eq!(house.connections.open(), 1);
    drop(socket);
    soon(house.connections.all_closed()).await;
}

#[tokio::test]
async fn framing_that_could_be_read_differently_is_refused_and_the_connection_closed() {
    let house = open(limits(), None);
    let chunked = "5\r\nGET /\r\n0\r\n\r\n";
    for (head, code) in [
        ("HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked", "invalid_framing"),
        ("HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5", "invalid_framing"),
        ("HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked", "invalid_framing"),
        (
            "HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "invalid_framing",
        ),
        (
            "HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 5",
            "invalid_framing",
        ),
        // hyper's own, with an empty answer.
        ("HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip", ""),
        ("HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked", ""),
        ("HTTP/1.1\r\nHost: a\r\nX: y\r\n folded: z", ""),
        ("HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6", ""),
        ("HTTP/1.1\r\nHost: a\r\nContent-Length: +5", ""),
        ("HTTP/1.0\r\nTransfer-Encoding: chunked", ""),
    ] {
        let answer = house.talk(&format!("POST /echo {head}\r\n\r\n{chunked}{}", get("/smuggled"))).await;
        assert!(
            answer.starts_with("HTTP/1.1 400") || answer.starts_with("HTTP/1.0 400"),
            "{head:?}: {answer}"
        );
        assert!(answer.ends_with(&format!("\r\n\r\n{code}")), "{head:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{head:?}: {answer}");
    }
    let answer = house
        .talk(&format!(
            "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}\
             POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n{chunked}{}",
            get("/smuggled")
        ))
        .await;
    assert!(answer.ends_with("invalid_framing") && !answer.contains("smuggled"), "{answer}");
}

#[tokio::test]
async fn targets_hosts_and_sizes_on_the_wire() {
    let house = open(limits(), None);
    let filler = |n: usize| (0..n).map(|i| format!("X-{i}: y\r\n")).collect::<String>();
    let long = "a".repeat(40 << 10);
    for (wire, status, code) in [
        ("CONNECT a:80 HTTP/1.1\r\nHost: a:80".to_owned(), 405, "method_not_allowed"),
        ("TRACE / HTTP/1.1\r\nHost: a".to_owned(), 405, "method_not_allowed"),
        ("GET * HTTP/1.1\r\nHost: a".to_owned(), 400, "invalid_target"),
        ("GET a:80 HTTP/1.1\r\nHost: a:80".to_owned(), 400, "invalid_target"),
        ("GET http://b/ HTTP/1.1\r\nHost: a".to_owned(), 400, "invalid_host"),
        ("GET / HTTP/1.1".to_owned(), 400, "invalid_host"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b".to_owned(), 400, "invalid_host"),
        ("GET /a/%2e%2e/b HTTP/1.1\r\nHost: a".to_owned(), 400, "invalid_path"),
        ("GET /a\\b HTTP/1.1\r\nHost: a".to_owned(), 400, "invalid_path"),
        ("OPTIONS * HTTP/1.1\r\nHost: a".to_owned(), 200, "HTTP/1.1*"),
        (format!("GET /{} HTTP/1.1\r\nHost: a", &long[..9 << 10]), 414, "uri_too_long"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{}X: y", filler(99)), 431, ""),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}"), 431, ""),
    ] {
        let answer = house.talk(&format!("{wire}\r\nConnection: close\r\n\r\n")).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.ends_with(code),
            "{wire:.80}: {answer:.300}"
        );
    }
}

#[tokio::test]
async fn http2_heads_are_held_to_the_same_rules() {
    let house = open(limits(), None);
    let mut send = house.h2().await;
    let mut ask = async |change: &dyn Fn(&mut Request<Empty<Bytes>>)| {
        let mut request = request("/x");
        change(&mut request);
        let answer = soon(send.send_request(request)).await;
        answer.map(|answer| answer.status()).map_err(|error| error.to_string())
    };
    let (ok, bad) = (Ok(StatusCode::OK), Ok(StatusCode::BAD_REQUEST));
    let too_large = Ok(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    assert_eq!(ask(&|r| drop(r.headers_mut().insert("host", "a".parse().unwrap()))).await, ok);
    assert_eq!(ask(&|r| drop(r.headers_mut().insert("host", "b".parse().unwrap()))).await, bad);
    assert_eq!(ask(&|r| *r.uri_mut() = "http://a/x/../y".parse().unwrap()).await, bad);
    assert_eq!(ask(&|r| *r.method_mut() = http::Method::TRACE).await, Ok(StatusCode::METHOD_NOT_ALLOWED));
    let fields = |n: u16| (0..n).map(|i| (format!("x-{i}").parse().ok(), http::HeaderValue::from(i)));
    let many = |r: &mut Request<_>| r.headers_mut().extend(fields(101));
    assert_eq!(ask(&many).await, too_large);
    // Over the size that the server announces; this client sends it all the same.
    let long = "a".repeat(40 << 10);
    let large = |r: &mut Request<_>| drop(r.headers_mut().insert("x", long.parse().unwrap()));
    assert!(ask(&large).await.map_or_else(|error| !error.is_empty(), |status| Ok(status) == too_large));
    assert_eq!(ask(&|_| ()).await, ok);
}

#[tokio::test]
async fn a_refusal_is_heard_by_a_client_that_is_still_sending() {
    let house = open(limits(), None);
    let mut socket = house.connect().await;
    let head = "POST /a/../b HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(&vec![b'x'; 3_000_000]).await.unwrap();
    let answer = until_closed(&mut socket).await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.ends_with("invalid_path"), "{answer}");
}

#[tokio::test]
async fn a_flood_of_resets_ends_the_connection() {
    let mut wire = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for stream in (1..100u32).step_by(2) {
        // GET / with :authority `a`, from the static table; then CANCEL.
        wire.extend(b"\0\0\x06\x01\x05".iter().chain(&stream.to_be_bytes()).chain(b"\x82\x86\x84\x41\x01a"));
        wire.extend(b"\0\0\x04\x03\0".iter().chain(&stream.to_be_bytes()).chain(b"\0\0\0\x08"));
    }
    wire.extend(b"\0\0\x08\x06\0\0\0\0\0are you?");
    for (allowed, survives) in [(5, false), (1000, true)] {
        let house = open(Limits { h2_max_reset_streams: allowed, ..limits() }, None);
        let mut socket = house.connect().await;
        socket.write_all(&wire).await.unwrap();
        if survives {
            let mut all = Vec::new();
            while !all.windows(8).any(|piece| piece == b"are you?") {
                assert!(soon(socket.read_buf(&mut all)).await.unwrap() > 0);
            }
        } else {
            until_closed(&mut socket).await;
            soon(house.connections.all_closed()).await;
        }
    }
}

#[tokio::test]
async fn an_address_in_use_says_so() {
    let taken = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let error = bind(taken.local_addr().unwrap()).unwrap_err().to_string();
    assert!(
        error.contains(&taken.local_addr().unwrap().to_string()) && error.contains("another process"),
        "{error}"
    );
}

#[test]
fn trouble_backs_off_and_is_said_once_a_second() {
    let mut trouble = Trouble::default();
    let begun = Instant::now();
    let full = io::Error::from_raw_os_error(24);
    let pauses: Vec<u128> = (0..10).map(|_| trouble.pause(&full, begun).as_millis()).collect();
    assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
    assert_eq!(trouble.log.held_back, 9);
    trouble.pause(&full, begun + Duration::from_secs(1));
    assert_eq!(trouble.log.held_back, 0);
    trouble.over();
    assert_eq!(trouble.pause(&full, begun), Trouble::FIRST);
    assert_eq!(trouble.pause(&io::ErrorKind::ConnectionAborted.into(), begun), Duration::ZERO);
}
