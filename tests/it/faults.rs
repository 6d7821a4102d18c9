//! Rule 18 of the security rules: upstreams that fail in every way a network can make them fail. Each fault has its
//! status at its deadline, costs its connection, and is over when it is over.

use crate::harness::client::PATIENCE;
use crate::harness::fault::{How, Place};
use crate::harness::scripted::body;
use crate::harness::{Fault, Faulty, Gateway, Process, Scripted, Sockets, eventually};
use futures_util::future::join_all;
use http::Response;
use std::time::{Duration, Instant};

/// The deadline of a response's head.
const FIRST_BYTE: Duration = Duration::from_millis(500);
/// What a deadline may take beyond that on a busy machine.
const SLACK: Duration = Duration::from_millis(2500);

/// What a caller gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gets {
    /// An error in the common form, at once.
    Error(u16, &'static str),
    /// An error in the common form, at the deadline.
    Late(u16, &'static str),
    /// A head and part of the body at most, and no clean end.
    Abort,
}

/// A fault, what comes of it, and whether it is one of connections that stand already.
fn faults() -> Vec<(&'static str, Fault, Gets)> {
    use Gets::{Abort, Error, Late};
    let broken = Error(502, "upstream_reset");
    let nonsense = Error(502, "upstream_bad_response");
    let late = Late(504, "upstream_timeout");
    let say = |text: &str| Fault::Say(text.to_owned());
    vec![
        ("refused", Fault::Refuse, Error(502, "upstream_unreachable")),
        ("black hole", Fault::BlackHole, late),
        ("mute", Fault::Mute, late),
        ("too late", Fault::Delay(PATIENCE), late),
        ("dripping head", Fault::Drip(Duration::from_millis(40)), late),
        ("reset before the answer", Fault::Cut(Place::Head(0), How::Reset), broken),
        ("closed before the answer", Fault::Cut(Place::Head(0), How::Finish), broken),
        ("reset inside the head", Fault::Cut(Place::Head(12), How::Reset), broken),
        ("closed inside the head", Fault::Cut(Place::Head(12), How::Finish), broken),
        ("reset inside the body", Fault::Cut(Place::Body(4), How::Reset), Abort),
        ("a short body", Fault::Cut(Place::Body(4), How::Finish), Abort),
        ("another protocol", say("SSH-2.0-OpenSSH_9.6\r\n\r\n"), nonsense),
        ("no status", say("HTTP/1.1 two hundred\r\n\r\n"), nonsense),
        (
            "both framings",
            say(
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            ),
            nonsense,
        ),
        ("two lengths", say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok"), nonsense),
        ("a length that is none", say("HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok"), nonsense),
        ("an unknown coding", say("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nok"), nonsense),
        (
            "a switch nobody asked for",
            say("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"),
            nonsense,
        ),
        (
            "a head without end",
            Fault::Say(format!("HTTP/1.1 200 OK\r\nx-bomb: {}", "a".repeat(1 << 20))),
            nonsense,
        ),
        ("a chunk that is none", say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"), Abort),
        (
            "a chunk without end",
            say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\n"),
            Abort,
        ),
    ]
}

/// A service, the proxy before it, and a gateway before that.
struct Bed {
    service: Scripted,
    proxy: Faulty,
    gateway: Gateway,
}

impl Bed {
    async fn new(keys: &str) -> Self {
        let service = Scripted::saying("all is well").await;
        let proxy = Faulty::before(service.address).await;
        let gateway = Gateway::with(&format!(
            "upstreams: {{ back: {{ targets: [{{ url: \"{}\" }}], connect_timeout: 500ms, {keys} }} }}\n\
             routes:\n  - {{ route: ANY /*path, upstream: back, chain: [], public: true }}\n",
            proxy.url()
        ))
        .start()
        .await;
        Bed { service, proxy, gateway }
    }

    /// How often the service got this.
    fn arrived(&self, method: &str, path: &str) -> usize {
        self.service.heads().iter().filter(|head| head.method == method && head.uri.path() == path).count()
    }

    /// Sends while the fault is set; fails unless it is met as it should be.
    async fn meets(&self, name: &str, method: &str, gets: Gets) {
        let began = Instant::now();
        let sent = if method == "POST" { "{}" } else { "" };
        let client = &self.gateway.client;
        let open = match client.try_open(client.request(method, "/during", &[], sent)).await {
            Ok(open) => open,
            // A body that breaks at once takes its head with it.
            Err(_) if gets == Gets::Abort => return,
            Err(error) => panic!("{name}: {error}"),
        };
        let status = open.status.as_u16();
        let (text, clean) = open.rest().await;
        let took = began.elapsed();
        let code = || {
            let body: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            body["code"].as_str().unwrap_or_default().to_owned()
        };
        match gets {
            Gets::Abort => {
                assert_eq!((status, clean), (200, false), "{name}: {text:?}");
            }
            Gets::Error(wanted, of) => {
                assert_eq!((status, code().as_str(), clean), (wanted, of, true), "{name}: {text:?}");
                assert!(took < FIRST_BYTE + SLACK, "{name}: {took:?}");
            }
            Gets::Late(wanted, of) => {
                assert_eq!((status, code().as_str(), clean), (wanted, of, true), "{name}: {text:?}");
                assert!(took >= FIRST_BYTE && took < FIRST_BYTE + SLACK, "{name}: {took:?}");
            }
        }
        let port = self.proxy.address.port().to_string();
        assert!(!text.contains(&port), "{name}: callers do not learn where it was: {text}");
    }

    /// After the fault: the connection it struck is not used again, a new one is.
    async fn recovers(&self, name: &str) {
        let before = self.proxy.connections();
        self.proxy.heal().await;
        let answer = self.gateway.client.get("/after").await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "all is well"), "{name}");
        assert_eq!(self.proxy.connections(), before + 1, "{name}: a connection that failed was kept");
    }
}

const QUICK: &str = "timeouts: { first_byte: 500ms, idle: 500ms, total: 10s }";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_has_its_answer_at_its_deadline_and_is_over_when_it_is_over() {
    join_all(faults().into_iter().map(async |(name, fault, gets)| {
        let bed = Bed::new(QUICK).await;
        bed.proxy.set(fault).await;
        bed.meets(name, "GET", gets).await;
        bed.recovers(name).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_post_is_never_sent_twice_whatever_becomes_of_its_connection() {
    // A port that nobody listens on hurts new connections only.
    let faults = faults().into_iter().filter(|(_, fault, _)| !matches!(fault, Fault::Refuse));
    join_all(faults.map(async |(name, fault, gets)| {
        let bed = Bed::new(QUICK).await;
        assert_eq!(bed.gateway.client.get("/before").await.text(), "all is well");
        bed.proxy.set(fault).await;
        bed.meets(name, "POST", gets).await;
        assert!(bed.arrived("POST", "/during") <= 1, "{name}: sent twice");
        assert_eq!(bed.proxy.connections(), 1, "{name}: not on a second connection either");
        bed.recovers(name).await;
    }))
    .await;
}

#[tokio::test]
async fn a_get_on_a_stale_connection_is_sent_once_more_and_not_a_third_time() {
    let bed = Bed::new(QUICK).await;
    assert_eq!(bed.gateway.client.get("/before").await.text(), "all is well");
    bed.proxy.set(Fault::Cut(Place::Head(0), How::Reset)).await;
    bed.meets("stale", "GET", Gets::Error(502, "upstream_reset")).await;
    assert_eq!(bed.arrived("GET", "/during"), 2);
    assert_eq!(bed.proxy.connections(), 2);
    bed.recovers("stale").await;
}

#[tokio::test]
async fn connections_that_failed_are_closed() {
    let bed = Bed::new(QUICK).await;
    bed.proxy.set(Fault::Mute).await;
    bed.meets("mute", "GET", Gets::Late(504, "upstream_timeout")).await;
    eventually("its connection is closed, not pooled", PATIENCE, async || bed.proxy.open() == 0).await;
}

#[tokio::test]
async fn an_answer_that_is_late_but_in_time_passes() {
    let bed = Bed::new(QUICK).await;
    bed.proxy.set(Fault::Delay(Duration::from_millis(200))).await;
    assert_eq!(bed.gateway.client.get("/").await.text(), "all is well");
    bed.proxy.set(Fault::Drip(Duration::from_millis(1))).await;
    assert_eq!(bed.gateway.client.get("/").await.text(), "all is well");
    assert_eq!(bed.proxy.connections(), 1);
}

#[tokio::test]
async fn a_body_that_trickles_ends_at_the_deadline_of_the_whole() {
    let service = Scripted::start(|_, _| Response::new(body("x".repeat(4000)))).await;
    let proxy = Faulty::before(service.address).await;
    proxy.set(Fault::Throttle(400)).await;
    let gateway = Gateway::with(&format!(
        "upstreams: {{ back: {{ targets: [{{ url: \"{}\" }}], \
         timeouts: {{ first_byte: 5s, idle: 1s, total: 1500ms }} }} }}\n\
         routes:\n  - {{ route: ANY /*path, upstream: back, chain: [], public: true }}\n",
        proxy.url()
    ))
    .start()
    .await;
    let began = Instant::now();
    let (text, clean) = gateway.client.open("GET", "/", &[], "").await.rest().await;
    let took = began.elapsed();
    assert!(!clean && !text.is_empty() && text.len() < 4000, "{} bytes", text.len());
    assert!(took >= Duration::from_millis(1500) && took < Duration::from_millis(1500) + SLACK, "{took:?}");
}

#[tokio::test]
async fn redirects_are_the_callers_to_follow() {
    let inside = Scripted::saying("inside").await;
    let bed = Bed::new(QUICK).await;
    let to = inside.url();
    for (method, sent) in [("GET", ""), ("HEAD", ""), ("POST", "{}")] {
        bed.proxy.set(Fault::redirect(&to)).await;
        let answer = bed.gateway.client.send(method, "/", &[], sent).await;
        assert_eq!((answer.status.as_u16(), answer.header("location")), (307, Some(&*to)), "{method}");
    }
    assert_eq!(inside.connections(), 0);
}

#[tokio::test]
async fn a_proxy_that_the_environment_names_is_not_asked() {
    let elsewhere = Scripted::saying("of the proxy").await;
    let service = Scripted::saying("of the service").await;
    let folder = tempfile::tempdir().unwrap();
    let manifest = format!(
        "version: 1\nupstreams: {{ back: {{ targets: [{{ url: \"{}\" }}], health: {{ path: /healthz, interval: 1s }} }} }}\n\
         routes:\n  - {{ route: ANY /*path, upstream: back, chain: [], public: true }}\n",
        service.url()
    );
    std::fs::write(folder.path().join("routes.yaml"), manifest).unwrap();
    let url = elsewhere.url();
    let names = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    let environment: Vec<_> = names.iter().map(|name| (*name, &*url)).collect();
    let process = Process::serve_in(folder, &[], &environment).await;
    assert_eq!(process.client.get("/").await.text(), "of the service");
    eventually("it is asked for its health", PATIENCE, async || {
        service.heads().iter().any(|head| head.uri.path() == "/healthz")
    })
    .await;
    assert_eq!(elsewhere.connections(), 0);
}

/// A stream of events over the proxy, behind a gateway.
async fn streamed(fault: Fault) -> (String, bool) {
    let events = "data: 1\n\ndata: 2\n\n".repeat(50);
    let service = Sockets::saying(format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n{events}",
        events.len()
    ))
    .await;
    let proxy = Faulty::before(service.address).await;
    proxy.set(fault).await;
    let gateway = Gateway::with(&format!(
        "upstreams: {{ back: {{ targets: [{{ url: \"{}\" }}] }} }}\n\
         routes:\n  - {{ route: POST /chat, upstream: back, protocol: sse, stream: {{ idle: 500ms, first_event: 500ms }}, \
         chain: [], public: true }}\n",
        proxy.url()
    ))
    .start()
    .await;
    gateway.client.open("POST", "/chat", &[], "{}").await.rest().await
}

#[tokio::test]
async fn a_stream_that_dies_never_ends_clean_without_a_word() {
    for how in [How::Reset, How::Finish] {
        // After an event, and inside one.
        let (text, clean) = streamed(Fault::Cut(Place::Body(18), how)).await;
        assert!(clean && text.ends_with("\"code\":\"upstream_interrupted\"}\n\n"), "{how:?}: {text:?}");
        let (text, clean) = streamed(Fault::Cut(Place::Body(22), how)).await;
        assert_eq!((text.as_str(), clean), ("data: 1\n\ndata: 2\n\ndata", false), "{how:?}");
    }
    let (text, clean) = streamed(Fault::Cut(Place::Head(20), How::Reset)).await;
    assert!(clean && text.contains("upstream_reset"), "{text:?}");
    let (text, clean) = streamed(Fault::None).await;
    assert!(clean && text.ends_with("data: 2\n\n"), "{text:?}");
}
