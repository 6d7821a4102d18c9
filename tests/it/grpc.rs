//! gRPC through the front door: tonic's client, the gateway, tonic's server.

mod documents;
mod errors;
mod service;
mod web;

use crate::access::token;
use crate::harness::{Gateway, eventually};
use futures_util::{StreamExt as _, stream};
use service::{Client, Echo, ask, ask_with, call, client, framed, over, pushed, read, talk_to, write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig, crypto::ring};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::Code;
use tonic::metadata::MetadataValue;

const SOON: Duration = Duration::from_secs(10);
/// A second, and some for a slow machine.
const A_SECOND: Duration = Duration::from_millis(2500);

/// A gateway before this service, with these stages.
async fn before(echo: &Echo, stages: &str) -> Gateway {
    Gateway::with(&manifest(&echo.url(), stages, "")).start().await
}

fn manifest(url: &str, stages: &str, upstream: &str) -> String {
    format!(
        "upstreams: {{ echo: {{ protocol: grpc, targets: [{{ url: \"{url}\" }}], {upstream} }} }}\n\
         roles: {{ user: {{ allow: [\"echo:*\"] }} }}\n\
         routes:\n  \
         - {{ route: ANY /test.Echo/*method, upstream: echo, protocol: grpc, chain: [{stages}], public: {} }}\n",
        !stages.contains("auth")
    )
}

async fn through(gateway: &Gateway) -> Client {
    client(gateway.client.address()).await
}

#[tokio::test]
async fn all_four_kinds_of_method_pass() {
    let echo = Echo::start().await;
    let gateway = before(&echo, "").await;
    let mut client = through(&gateway).await;
    assert_eq!(ask(&mut client, "you").await.unwrap().into_inner(), "hello you");
    let numbers: Vec<_> = read(&mut client, "100").await.unwrap().map(Result::unwrap).collect().await;
    assert_eq!(numbers, (0..100).map(|number| number.to_string()).collect::<Vec<_>>());
    let words = stream::iter(["one", "two", "three"].map(str::to_owned));
    assert_eq!(write(&mut client, words).await.unwrap(), "one+two+three");
    assert_eq!(write(&mut client, stream::empty()).await.unwrap(), "");
    let (push, messages) = pushed();
    push.send("a".into()).unwrap();
    let mut answers = talk_to(&mut client, messages).await.unwrap();
    // Each is answered before the next is said: both directions are open at once.
    for (said, next) in [("a", "b"), ("b", "c"), ("c", "d")] {
        let answer = timeout(SOON, answers.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(answer, format!("you said {said}"));
        push.send(next.into()).unwrap();
    }
    assert_eq!(answers.next().await.unwrap().unwrap(), "you said d");
    drop(push);
    assert!(answers.next().await.is_none());
    eventually("every call is over", SOON, || async { echo.stats.open() == 0 }).await;
    assert_eq!(echo.stats.connections.load(Ordering::SeqCst), 1, "they shared a connection");
}

#[tokio::test]
async fn an_answer_may_begin_before_anything_was_asked() {
    let echo = Echo::start().await;
    // Nothing of a call may be cut by what holds for other requests.
    let manifest = manifest(&echo.url(), "", "timeouts: { first_byte: 200ms }");
    let gateway = Gateway::with(&manifest).flag("--body-timeout", "300ms").start().await;
    let mut client = through(&gateway).await;
    let (push, messages) = pushed();
    let mut answers = timeout(SOON, talk_to(&mut client, messages)).await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    push.send("still here".into()).unwrap();
    assert_eq!(answers.next().await.unwrap().unwrap(), "you said still here");
}

#[tokio::test]
async fn messages_larger_than_any_window_pass_both_ways() {
    let echo = Echo::start().await;
    let gateway = before(&echo, "").await;
    let mut client = through(&gateway).await;
    let large = "x".repeat(3 << 20);
    let answer = timeout(SOON, ask(&mut client, &large)).await.unwrap().unwrap();
    assert_eq!(answer.into_inner().len(), large.len() + "hello ".len());
    // More than other routes take in one request.
    let pieces = stream::iter((0..12).map(move |_| "y".repeat(1 << 20)));
    let refused = write(&mut client, pieces).await.unwrap_err();
    // The service joins them into one message, which tonic's client does not take.
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
}

#[tokio::test]
async fn metadata_passes_and_identity_is_the_gateways() {
    let echo = Echo::start().await;
    let gateway = before(&echo, "request_id, auth, { rbac: \"echo:call\" }").await;
    let mut client = through(&gateway).await;
    let mut request = tonic::Request::new("headers".to_owned());
    let metadata = request.metadata_mut();
    metadata.insert("custom", "value".parse().unwrap());
    metadata.insert_bin("in-bin", MetadataValue::from_bytes(b"\0\xff\n"));
    metadata.insert("x-user-id", "root".parse().unwrap());
    let bearer = format!("Bearer {}", token(&gateway, "user", Duration::ZERO));
    metadata.insert("authorization", bearer.parse().unwrap());
    let answer = ask_with(&mut client, request).await.unwrap();
    assert_eq!(answer.metadata().get_bin("out-bin").unwrap().to_bytes().unwrap(), &b"\0\xff\n"[..]);
    assert_eq!(answer.metadata().get_bin("raw-bin").unwrap().to_bytes().unwrap(), &b"\0\xff\n"[..]);
    let id = answer.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned();
    let headers = answer.into_inner();
    let said = |line: &str| assert!(headers.lines().any(|it| it == line), "{line} in {headers}");
    said("custom=value");
    said("te=trailers");
    said("x-user-id=u-1");
    said("x-user-role=user");
    said("x-forwarded-proto=http");
    said(&format!("x-request-id={id}"));
    assert!(!headers.contains("root"), "{headers}");
}

#[tokio::test]
async fn statuses_pass_as_they_are() {
    let echo = Echo::start().await;
    let gateway = before(&echo, "").await;
    let mut client = through(&gateway).await;
    let failed = ask(&mut client, "fail").await.unwrap_err();
    assert_eq!((failed.code(), failed.message()), (Code::FailedPrecondition, "not ü%"));
    assert_eq!(failed.details(), b"\0det");
    assert_eq!(failed.metadata().get("why").unwrap(), "because");
    let mut numbers = read(&mut client, "break").await.unwrap();
    assert_eq!(numbers.next().await.unwrap().unwrap(), "0");
    let failed = numbers.next().await.unwrap().unwrap_err();
    assert_eq!((failed.code(), failed.message()), (Code::Aborted, "enough"));
    let unknown = call(&mut client, "/test.Echo/None", tonic::Request::new(String::new())).await;
    assert_eq!(unknown.unwrap_err().message(), "no such method", "the service says so itself");
    // By its real result, not by the 200 that every call has.
    let counted = |result: &str| {
        format!(
            "voicegate_upstream_requests_total{{result=\"{result}\",target=\"{}\",upstream=\"echo\"}}",
            echo.address
        )
    };
    assert_eq!(gateway.metric(&counted("4xx")).await, 2.0);
    assert_eq!(gateway.metric(&counted("5xx")).await, 1.0, "UNIMPLEMENTED");
    let by_status =
        |code: i32| format!("grpc_requests_total{{grpc_status=\"{code}\",path=\"/test.Echo/*method\"}}");
    assert_eq!(gateway.metric(&by_status(9)).await, 0.0, "no `metrics` in this chain");
}

#[tokio::test]
async fn calls_are_counted_by_their_status() {
    let echo = Echo::start().await;
    let gateway = before(&echo, "metrics").await;
    let mut client = through(&gateway).await;
    ask(&mut client, "fail").await.unwrap_err();
    ask(&mut client, "x").await.unwrap();
    let by_status =
        |code: i32| format!("grpc_requests_total{{grpc_status=\"{code}\",path=\"/test.Echo/*method\"}}");
    eventually("both are counted", SOON, || async {
        (gateway.metric(&by_status(9)).await, gateway.metric(&by_status(0)).await) == (1.0, 1.0)
    })
    .await;
}

#[tokio::test]
async fn the_nearest_deadline_holds_and_is_told() {
    let echo = Echo::start().await;
    let gateway = before(&echo, "{ timeout: 2s }").await;
    let mut client = through(&gateway).await;
    for (asked, most) in [(Some(1), 1_000_000), (Some(60), 2_000_000), (None, 2_000_000)] {
        let mut request = tonic::Request::new("headers".to_owned());
        asked.into_iter().for_each(|seconds| request.set_timeout(Duration::from_secs(seconds)));
        let headers = ask_with(&mut client, request).await.unwrap().into_inner();
        let line = headers.lines().find_map(|line| line.strip_prefix("grpc-timeout=")).unwrap();
        let micros: u64 = line.strip_suffix('u').unwrap().parse().unwrap();
        assert!(micros < most && micros + 900_000 > most, "{asked:?}: {micros}");
    }
    // tonic's client would end the call itself, so the time is given by hand.
    let mut request = tonic::Request::new("sleep".to_owned());
    request.metadata_mut().insert("grpc-timeout", "200m".parse().unwrap());
    let begun = Instant::now();
    let late = ask_with(&mut client, request).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
    assert!((Duration::from_millis(190)..A_SECOND).contains(&begun.elapsed()));
    let mut numbers = read(&mut client, "forever").await.unwrap();
    let end = loop {
        if let Err(status) = timeout(SOON, numbers.next()).await.unwrap().unwrap() {
            break status;
        }
    };
    assert_eq!(end.code(), Code::DeadlineExceeded, "the route's own, in the middle of a stream");
    eventually("the service is told", A_SECOND, || async { echo.stats.open() == 0 }).await;
}

#[tokio::test]
async fn an_upstream_may_have_limits_of_its_own() {
    let echo = Echo::start().await;
    for (limit, asked) in [("total: 300ms", "forever"), ("idle: 300ms", "silence")] {
        let manifest = manifest(&echo.url(), "", &format!("timeouts: {{ {limit} }}"));
        let gateway = Gateway::with(&manifest).start().await;
        let mut numbers = read(&mut through(&gateway).await, asked).await.unwrap();
        let begun = Instant::now();
        let end = loop {
            if let Err(status) = timeout(SOON, numbers.next()).await.unwrap().unwrap() {
                break status;
            }
        };
        assert_eq!(end.code(), Code::DeadlineExceeded, "{limit}: {end:?}");
        assert!(begun.elapsed() < A_SECOND);
        eventually("the service is told", A_SECOND, || async { echo.stats.open() == 0 }).await;
    }
}

#[tokio::test]
async fn who_leaves_is_not_served_any_longer() {
    let echo = Echo::start().await;
    let gateway = before(&echo, "").await;
    let mut client = through(&gateway).await;
    // Before an answer; in the middle of one that rests; with both directions open.
    let sleeping = timeout(Duration::from_millis(300), ask(&mut client, "sleep")).await;
    assert!(sleeping.is_err());
    eventually("a cancelled call ends", A_SECOND, || async { echo.stats.open() == 0 }).await;
    let mut silence = read(&mut client, "silence").await.unwrap();
    assert_eq!(silence.next().await.unwrap().unwrap(), "0");
    assert_eq!(echo.stats.open(), 1);
    drop(silence);
    eventually("a stream ends", A_SECOND, || async { echo.stats.open() == 0 }).await;
    // hyper's client resets no stream that it still writes to, so this one is h2's.
    let socket = TcpStream::connect(gateway.client.address()).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    let request =
        http::Request::post("http://gateway/test.Echo/Talk").header("content-type", "application/grpc");
    let (answer, mut stream) = sender.send_request(request.body(()).unwrap(), false).unwrap();
    stream.send_data(framed("a").into(), false).unwrap();
    let mut answer = answer.await.unwrap();
    assert_eq!(answer.body_mut().data().await.unwrap().unwrap(), framed("you said a"));
    stream.send_reset(h2::Reason::CANCEL);
    eventually("a conversation ends", A_SECOND, || async { echo.stats.open() == 0 }).await;
    assert_eq!(ask(&mut client, "x").await.unwrap().into_inner(), "hello x", "the connection stands");
}

#[tokio::test]
async fn tokens_that_end_end_their_calls() {
    let echo = Echo::start().await;
    let gateway = before(&echo, "auth").await;
    let mut client = through(&gateway).await;
    let issued = token(&gateway, "user", Duration::ZERO);
    client.ready().await.unwrap();
    let mut request = tonic::Request::new("forever".to_owned());
    request.metadata_mut().insert("authorization", format!("Bearer {issued}").parse().unwrap());
    let codec = tonic_prost::ProstCodec::<String, String>::default();
    let path = "/test.Echo/Download".parse().unwrap();
    let mut numbers = client.server_streaming(request, path, codec).await.unwrap().into_inner();
    numbers.next().await.unwrap().unwrap();
    let tokens = &gateway.live().shared().tokens;
    let identity = tokens.verify(&issued, SystemTime::now()).unwrap();
    tokens.revoke_login(&identity, SystemTime::now()).await.unwrap();
    let end = loop {
        if let Err(status) = timeout(A_SECOND, numbers.next()).await.unwrap().unwrap() {
            break status;
        }
    };
    assert_eq!(end.code(), Code::Unauthenticated, "{end:?}");
    eventually("the service is told", A_SECOND, || async { echo.stats.open() == 0 }).await;
}

#[tokio::test]
async fn a_drain_lets_calls_end_and_then_ends_them() {
    let echo = Echo::start().await;
    let manifest = manifest(&echo.url(), "", "");
    let mut gateway = Gateway::with(&manifest).flag("--shutdown-grace", "3s").start().await;
    let mut client = through(&gateway).await;
    let (push, messages) = pushed();
    push.send("a".into()).unwrap();
    let mut answers = talk_to(&mut client, messages).await.unwrap();
    answers.next().await.unwrap().unwrap();
    let ending = tokio::spawn(gateway.take().shut_down());
    tokio::time::sleep(Duration::from_millis(200)).await;
    push.send("b".into()).unwrap();
    assert_eq!(answers.next().await.unwrap().unwrap(), "you said b", "it goes on for the grace");
    let end = timeout(SOON, answers.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(end.code(), Code::Unavailable, "{end:?}");
    assert_eq!(ending.await.unwrap(), 0, "no connection is cut");
}

#[tokio::test]
async fn slow_readers_hold_the_service_back() {
    let echo = Echo::start().await;
    let gateway = before(&echo, "").await;
    let mut client = through(&gateway).await;
    let mut flood = read(&mut client, "flood").await.unwrap();
    flood.next().await.unwrap().unwrap();
    let flooded = || echo.stats.flooded.load(Ordering::SeqCst);
    let mut before = 0;
    eventually("the flood stands still", SOON, async || {
        before = flooded();
        tokio::time::sleep(Duration::from_millis(200)).await;
        before == flooded()
    })
    .await;
    assert!(before < 16 << 10, "{before} KiB in windows and buffers");
    // Others on the same connection go on.
    for _ in 0..20 {
        timeout(SOON, ask(&mut client, "x")).await.unwrap().unwrap();
    }
    for _ in 0..before + 1000 {
        flood.next().await.unwrap().unwrap();
    }
    assert!(flooded() > before, "it goes on when it is read");
    drop(flood);
    assert_eq!(ask(&mut client, "x").await.unwrap().into_inner(), "hello x");
}

#[tokio::test]
async fn tls_in_and_out() {
    let issued = rcgen::generate_simple_self_signed(["gateway.test".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(issued.signing_key.serialize_der()).unwrap();
    let server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![issued.cert.der().clone()], key);
    let with = |protocol: &[u8]| {
        let mut server = server.as_ref().unwrap().clone();
        server.alpn_protocols = vec![protocol.to_vec()];
        TlsAcceptor::from(Arc::new(server))
    };
    let (echo, old) = (Echo::over(Some(with(b"h2"))).await, Echo::over(Some(with(b"http/1.1"))).await);
    let tls = "tls: { ca: tls/cert.pem, server_name: gateway.test }";
    let mut answers = Vec::new();
    for port in [echo.address.port(), old.address.port()] {
        let builder = Gateway::with(&manifest(&format!("https://127.0.0.1:{port}"), "", tls))
            .file("tls/cert.pem", &issued.cert.pem())
            .file("tls/key.pem", &issued.signing_key.serialize_pem());
        let (cert, key) = (builder.folder().join("tls/cert.pem"), builder.folder().join("tls/key.pem"));
        let builder = builder.flag("--tls-cert", cert.to_str().unwrap());
        let gateway = builder.flag("--tls-key", key.to_str().unwrap()).start().await;
        let mut roots = RootCertStore::empty();
        roots.add(issued.cert.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let socket = TcpStream::connect(gateway.client.address()).await.unwrap();
        let name = "gateway.test".try_into().unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap();
        let mut client = over(stream, "https://gateway.test").await;
        answers.push(ask(&mut client, "headers").await);
    }
    let headers = answers.remove(0).unwrap().into_inner();
    assert!(headers.contains("x-forwarded-proto=https"), "{headers}");
    assert_eq!(answers.remove(0).unwrap_err().code(), Code::Unavailable, "no `h2` by ALPN");
}
