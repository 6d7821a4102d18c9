//! Requests over real sockets, to the demo services and to servers that misbehave.

use super::spec::tests::spec;
use super::testing::{PATIENCE, Scripted, eventually};
use super::*;
use crate::demo::Demo;
use crate::error::{GatewayError, Kind};
use crate::exchange::tests::exchange;
use crate::exchange::{End, Exchange};
use crate::state::tests::shared;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use std::io;
use std::time::{Duration, Instant};
use tokio::time::timeout;

type Outgoing = BoxBody<Bytes, io::Error>;
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn upstream(url: &str, more: &str) -> Arc<Upstream> {
    let (shared, _) = shared(&[]);
    Upstream::new(spec(&format!("{{ targets: [{{ url: \"{url}\" }}], {more} }}")), &shared)
}

fn full(text: &'static str) -> Outgoing {
    Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed()
}

/// A body whose pieces come through a channel.
fn fed() -> (tokio::sync::mpsc::Sender<io::Result<Bytes>>, Outgoing) {
    let (feed, pieces) = tokio::sync::mpsc::channel::<io::Result<Bytes>>(1);
    let frames = futures_util::stream::unfold(pieces, |mut pieces| async move {
        let piece = pieces.recv().await?;
        Some((piece.map(Frame::data), pieces))
    });
    (feed, BoxBody::new(StreamBody::new(SyncFrames(std::sync::Mutex::new(Box::pin(frames))))))
}

/// A stream is not `Sync` for its future's sake; a body must be.
struct SyncFrames<S>(std::sync::Mutex<std::pin::Pin<Box<S>>>);

impl<S: futures_util::Stream> futures_util::Stream for SyncFrames<S> {
    type Item = S::Item;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        self.0.get_mut().unwrap().as_mut().poll_next(cx)
    }
}

async fn send_body(
    upstream: &Arc<Upstream>,
    method: Method,
    path: &str,
    body: Outgoing,
) -> (Arc<Exchange>, Result<Response<UpstreamBody>, GatewayError>) {
    let exchange = exchange(method.clone(), path);
    let request = Request::builder().method(method).uri(path).body(body).unwrap();
    let sent = timeout(PATIENCE, upstream.send(&exchange, request, &SendOptions::default())).await;
    (exchange, sent.expect("an outcome in time"))
}

async fn send(
    upstream: &Arc<Upstream>,
    method: Method,
    path: &str,
) -> Result<Response<UpstreamBody>, GatewayError> {
    let body = if method == Method::POST { full("hello") } else { full("") };
    send_body(upstream, method, path, body).await.1
}

async fn get(upstream: &Arc<Upstream>, path: &str) -> Result<(StatusCode, String), Kind> {
    whole(send(upstream, Method::GET, path).await.map_err(|error| error.kind)?).await
}

async fn whole(response: Response<UpstreamBody>) -> Result<(StatusCode, String), Kind> {
    let status = response.status();
    let body = response.into_body().collect().await.expect("a whole body").to_bytes();
    Ok((status, String::from_utf8(body.to_vec()).unwrap()))
}

/// The kind of failure, and how long it took.
async fn fails(upstream: &Arc<Upstream>) -> (Kind, Duration) {
    let begun = Instant::now();
    let kind = get(upstream, "/").await.expect_err("a failure");
    (kind, begun.elapsed())
}

#[tokio::test]
async fn connections_are_used_again() {
    let demo = Demo::start().await.unwrap();
    let upstream = upstream(&demo.url(), "");
    for _ in 0..10 {
        assert_eq!(get(&upstream, "/echo").await.unwrap().0, 200);
    }
    assert_eq!(send(&upstream, Method::HEAD, "/echo").await.unwrap().status(), 200);
    assert!(whole(send(&upstream, Method::POST, "/echo").await.unwrap()).await.unwrap().1.contains("hello"));
    let figures = upstream.meter().snapshot();
    assert_eq!((demo.stats().connections.accepted, figures.connects, figures.reused), (1, 1, 11));
    assert_eq!(upstream.status().servers[0].at_rest, 1);
    drop(upstream);
    eventually(|| demo.stats().connections.open == 0).await;
}

#[tokio::test]
async fn a_body_read_to_its_length_gives_its_connection_back() {
    let server = Scripted::start(|mut wire| async move {
        wire.request().await?;
        wire.write(OK).await?;
        wire.until_closed().await
    })
    .await;
    let upstream = upstream(&server.url(), "");
    let mut body = send(&upstream, Method::GET, "/").await.unwrap().into_body();
    assert!(!http_body::Body::is_end_stream(&body));
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "ok");
    assert!(http_body::Body::is_end_stream(&body), "a server asks no further");
    drop(body);
    assert_eq!(upstream.status().servers[0].at_rest, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_connections_than_allowed() {
    let demo = Demo::start().await.unwrap();
    let upstream = upstream(&demo.url(), "max_connections: 4, connect_timeout: 5s");
    let calls = (0..200).map(|_| {
        let upstream = upstream.clone();
        tokio::spawn(async move { get(&upstream, "/echo").await.unwrap().0 })
    });
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(call.await.unwrap(), 200);
    }
    let accepted = demo.stats().connections.accepted;
    assert!((1..=4).contains(&accepted), "{accepted}");
    eventually(|| upstream.status().servers[0].in_flight == 0).await;
}

#[tokio::test]
async fn who_finds_no_slot_waits_and_is_refused() {
    let server = Scripted::start(|mut wire| async move {
        wire.request().await?;
        wire.until_closed().await
    })
    .await;
    let upstream = upstream(&server.url(), "max_connections: 1, connect_timeout: 100ms");
    let holder = tokio::spawn({
        let upstream = upstream.clone();
        async move { send(&upstream, Method::GET, "/").await.map(drop) }
    });
    server.until_open(1).await;
    let (kind, after) = fails(&upstream).await;
    assert_eq!(kind, Kind::UpstreamSaturated);
    assert!((90..1000).contains(&after.as_millis()), "{after:?}");
    holder.abort();
    server.until_open(0).await;
    let again = tokio::spawn({
        let upstream = upstream.clone();
        async move { send(&upstream, Method::GET, "/").await.map(drop) }
    });
    server.until_open(1).await;
    again.abort();
}

/// A server that answers so many requests a connection, and then reads one more and closes without an answer.
async fn closing_after(answers: usize) -> Scripted {
    Scripted::start(move |mut wire| async move {
        for _ in 0..answers.saturating_sub(wire.number) {
            wire.request().await?;
            wire.write(OK).await?;
        }
        if wire.number > 0 && answers > 0 {
            wire.request().await?;
            wire.write(OK).await?;
            return wire.until_closed().await;
        }
        wire.request().await.map(drop)
    })
    .await
}

#[tokio::test]
async fn a_stale_connection_is_tried_again_for_get_but_not_for_post() {
    let server = closing_after(1).await;
    let one = upstream(&server.url(), "");
    get(&one, "/").await.unwrap();
    assert_eq!(get(&one, "/").await.unwrap().1, "ok", "sent again on a new connection");
    assert_eq!((server.accepted(), one.meter().snapshot().resent), (2, 1));

    for body in ["hello", ""] {
        let server = closing_after(1).await;
        let two = upstream(&server.url(), "");
        get(&two, "/").await.unwrap();
        let (_, outcome) = send_body(&two, Method::POST, "/", full(body)).await;
        let kind = outcome.expect_err("a POST that was sent is never sent twice").kind;
        assert_eq!((kind, server.accepted(), two.meter().snapshot().resent), (Kind::UpstreamReset, 1, 0));
    }
}

#[tokio::test]
async fn a_new_connection_that_breaks_is_not_tried_again() {
    let server = closing_after(0).await;
    let upstream = upstream(&server.url(), "");
    assert_eq!(fails(&upstream).await.0, Kind::UpstreamReset);
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn a_connection_that_closed_at_rest_harms_nobody() {
    let server = Scripted::start(|mut wire| async move {
        wire.request().await?;
        wire.write(OK).await
    })
    .await;
    let upstream = upstream(&server.url(), "");
    for method in [Method::GET, Method::POST, Method::POST, Method::GET] {
        whole(send(&upstream, method, "/").await.unwrap()).await.unwrap();
        server.until_open(0).await;
        // The close must have arrived here, too.
        eventually(|| {
            upstream.cluster.view().servers.iter().all(|s| {
                s.sweep();
                s.at_rest() == 0
            })
        })
        .await;
    }
    assert_eq!(server.accepted(), 4);
}

#[tokio::test]
async fn no_connection_is_502_at_once_or_at_the_deadline() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert_eq!(fails(&upstream(&format!("http://{free}"), "")).await.0, Kind::UpstreamUnreachable);
    assert_eq!(
        fails(&upstream("http://no.such.host.invalid", "connect_timeout: 3s")).await.0,
        Kind::UpstreamUnreachable
    );
    // Takes the connection and says nothing: TLS counts as connecting.
    let mute = Scripted::start(|mut wire| async move { wire.until_closed().await }).await;
    let upstream = upstream(&mute.url().replace("http:", "https:"), "connect_timeout: 100ms");
    let (kind, after) = fails(&upstream).await;
    assert_eq!(kind, Kind::UpstreamUnreachable);
    assert!((90..1000).contains(&after.as_millis()), "{after:?}");
    mute.until_open(0).await;
}

#[tokio::test]
async fn no_answer_is_504_at_the_deadline_however_it_drips() {
    for drips in [false, true] {
        let server = Scripted::start(move |mut wire| async move {
            wire.request().await?;
            if drips {
                wire.write("HTTP/1.1 200 OK\r\nX: ").await?;
                loop {
                    wire.write("x").await?;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            wire.until_closed().await
        })
        .await;
        let upstream = upstream(&server.url(), "timeouts: { first_byte: 100ms }");
        let (kind, after) = fails(&upstream).await;
        assert_eq!(kind, Kind::UpstreamTimeout, "drips: {drips}");
        assert!((90..1000).contains(&after.as_millis()), "{after:?}");
        server.until_open(0).await;
        assert_eq!(upstream.status().servers[0].in_flight, 0);
    }
}

#[tokio::test]
async fn bad_framing_is_502() {
    let huge = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    for bad in [
        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        "HTTP/9.9 200 OK\r\n\r\n",
        &huge,
    ] {
        let text = bad.to_owned();
        let server = Scripted::start(move |mut wire| {
            let text = text.clone();
            async move {
                wire.request().await?;
                wire.write(text).await?;
                wire.until_closed().await
            }
        })
        .await;
        let upstream = upstream(&server.url(), "timeouts: { first_byte: 2s }");
        assert_eq!(fails(&upstream).await.0, Kind::UpstreamBadResponse, "{bad:.80}");
        server.until_open(0).await;
        assert_eq!(upstream.status().servers[0].at_rest, 0);
    }
}

#[tokio::test]
async fn bodies_that_break_or_stall_are_errors() {
    for (head, closes, deadline) in [
        ("Content-Length: 100\r\n\r\npart", true, ""),
        ("Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\n", true, ""),
        ("Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\nzz\r\n", false, ""),
        ("Content-Length: 100\r\n\r\npart", false, "timeouts: { idle: 100ms }"),
        ("Content-Length: 100\r\n\r\npart", false, "timeouts: { total: 100ms }"),
    ] {
        let server = Scripted::start(move |mut wire| async move {
            wire.request().await?;
            wire.write(format!("HTTP/1.1 200 OK\r\n{head}")).await?;
            if closes { Ok(()) } else { wire.until_closed().await }
        })
        .await;
        let upstream = upstream(&server.url(), deadline);
        let (exchange, response) = send_body(&upstream, Method::GET, "/", full("")).await;
        let begun = Instant::now();
        let body = timeout(PATIENCE, response.unwrap().into_body().collect()).await.expect("an end in time");
        assert!(body.is_err(), "{head} {deadline}");
        assert!(begun.elapsed() < Duration::from_secs(1));
        assert_eq!(exchange.end(), End::UpstreamBroke);
        assert_eq!(upstream.meter().snapshot().broken, 1);
        server.until_open(0).await;
        assert_eq!((upstream.status().servers[0].at_rest, upstream.status().servers[0].in_flight), (0, 0));
    }
}

#[tokio::test]
async fn a_slow_body_lives_while_it_moves() {
    let server = Scripted::start(|mut wire| async move {
        wire.request().await?;
        wire.write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n").await?;
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(30)).await;
            wire.write("x").await?;
        }
        wire.until_closed().await
    })
    .await;
    let upstream = upstream(&server.url(), "timeouts: { idle: 150ms, first_byte: 100ms }");
    assert_eq!(get(&upstream, "/").await.unwrap().1, "xxxxxxxxxx");
    assert_eq!(upstream.status().servers[0].at_rest, 1);
}

#[tokio::test]
async fn redirects_and_bodiless_answers_pass() {
    let server = Scripted::start(|mut wire| async move {
        for answer in [
            "302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0",
            "204 No Content",
            "304 Not Modified\r\nContent-Length: 5",
            "100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0",
        ] {
            wire.request().await?;
            wire.write(format!("HTTP/1.1 {answer}\r\n\r\n")).await?;
        }
        wire.request().await?;
        wire.write("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n").await?;
        wire.until_closed().await
    })
    .await;
    let upstream = upstream(&server.url(), "");
    for status in [302, 204, 304, 200] {
        assert_eq!(
            get(&upstream, "/").await.unwrap(),
            (StatusCode::from_u16(status).unwrap(), String::new())
        );
    }
    let head = send(&upstream, Method::HEAD, "/").await.unwrap();
    assert_eq!(head.headers()["content-length"], "7");
    assert_eq!(whole(head).await.unwrap().1, "");
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn who_leaves_closes_the_connection() {
    let server = Scripted::start(|mut wire| async move {
        let head = wire.request().await?;
        if head.starts_with("GET /body") {
            wire.write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart").await?;
        }
        wire.until_closed().await
    })
    .await;
    let upstream = upstream(&server.url(), "");
    let waiting = tokio::spawn({
        let upstream = upstream.clone();
        async move { send(&upstream, Method::GET, "/").await.map(drop) }
    });
    server.until_open(1).await;
    waiting.abort();
    server.until_open(0).await;

    let mut response = send(&upstream, Method::GET, "/body").await.unwrap().map(Box::pin);
    assert!(response.body_mut().frame().await.unwrap().is_ok());
    server.until_open(1).await;
    let begun = Instant::now();
    drop(response);
    server.until_open(0).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(upstream.status().servers[0].in_flight, 0);
}

#[tokio::test]
async fn faults_of_the_callers_body_are_the_callers() {
    let demo = Demo::start().await.unwrap();
    let upstream = upstream(&demo.url(), "timeouts: { idle: 100ms }");
    for (failure, kind) in [
        (io::Error::other("gone"), Kind::BadRequest),
        (crate::error::BodyTimeout.into(), Kind::RequestTimeout),
        (io::Error::other(GatewayError::from(Kind::PayloadTooLarge)), Kind::PayloadTooLarge),
    ] {
        let (feed, body) = fed();
        let call = send_body(&upstream, Method::POST, "/echo", body);
        let feeding = async {
            feed.send(Ok(Bytes::from_static(b"part"))).await.unwrap();
            feed.send(Err(failure)).await.unwrap();
        };
        let ((_, outcome), ()) = tokio::join!(call, feeding);
        assert_eq!(outcome.unwrap_err().kind, kind);
    }
    let (feed, body) = fed();
    feed.send(Ok(Bytes::from_static(b"part"))).await.unwrap();
    let (_, outcome) = send_body(&upstream, Method::POST, "/echo", body).await;
    assert_eq!(outcome.unwrap_err().kind, Kind::RequestTimeout, "nothing more came");
    eventually(|| demo.stats().connections.open == 0).await;
}

#[tokio::test]
async fn uploads_stream_and_their_deadline_begins_at_their_end() {
    let demo = Demo::start().await.unwrap();
    let upstream = upstream(&demo.url(), "timeouts: { first_byte: 100ms }");
    let (feed, body) = fed();
    let call = send_body(&upstream, Method::POST, "/echo", body);
    let feeding = async {
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(60)).await;
            feed.send(Ok(Bytes::from_static(b"piece"))).await.unwrap();
        }
        drop(feed);
    };
    let ((_, outcome), ()) = tokio::join!(call, feeding);
    assert!(whole(outcome.unwrap()).await.unwrap().1.contains("piecepiecepiecepiece"));
    assert_eq!(upstream.status().servers[0].at_rest, 1);
}

#[tokio::test]
async fn an_early_answer_passes_while_the_upload_is_under_way() {
    let server = Scripted::start(|mut wire| async move {
        wire.request().await?;
        wire.write("HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await
    })
    .await;
    let upstream = upstream(&server.url(), "");
    let (feed, body) = fed();
    feed.send(Ok(Bytes::from_static(b"part"))).await.unwrap();
    let (_, outcome) = send_body(&upstream, Method::POST, "/", body).await;
    assert_eq!(outcome.unwrap().status(), 413);
    eventually(|| feed.is_closed() && upstream.status().servers[0].in_flight == 0).await;
}

#[tokio::test]
async fn requests_go_to_every_server_and_past_the_dead() {
    let (one, two) = (Demo::start().await.unwrap(), Demo::start().await.unwrap());
    let yaml = format!(
        "{{ targets: [{{ url: \"{}\", weight: 3 }}, {{ url: \"{}\" }}], health: {{ path: /health, interval: 20ms, \
         timeout: 15ms, unhealthy_after: 2 }} }}",
        one.url(),
        two.url()
    );
    let (shared, _close) = shared(&[]);
    let upstream = Upstream::new(spec(&yaml), &shared);
    for _ in 0..8 {
        get(&upstream, "/echo").await.unwrap();
    }
    assert_eq!((one.stats().requests, two.stats().requests), (6, 2));
    upstream.spawn_upkeep();
    let condition = |server: usize| upstream.status().servers[server].condition;
    eventually(|| condition(0) == Condition::Up && condition(1) == Condition::Up).await;
    one.stop(Duration::ZERO).await;
    eventually(|| condition(0) == Condition::Down).await;
    assert!(upstream.status().servers[0].trouble.is_some() && upstream.status().available);
    for _ in 0..8 {
        get(&upstream, "/echo").await.unwrap();
    }
    assert_eq!(two.stats().requests, 10);
}

#[tokio::test]
async fn checks_follow_status_thresholds_and_the_upstreams_life() {
    let sick = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let says = sick.clone();
    let server = Scripted::start(move |mut wire| {
        let says = says.clone();
        async move {
            let head = wire.request().await?;
            assert!(head.starts_with("GET /up?x=1 HTTP/1.1\r\n"), "{head}");
            let status = if says.load(std::sync::atomic::Ordering::SeqCst) { "503 No" } else { "204 Yes" };
            wire.write(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")).await?;
            wire.until_closed().await
        }
    })
    .await;
    let (shared, _close) = shared(&[]);
    let health = "health: { path: \"/up?x=1\", interval: 10ms, unhealthy_after: 2, healthy_after: 2 }";
    let upstream =
        Upstream::new(spec(&format!("{{ targets: [{{ url: \"{}\" }}], {health} }}", server.url())), &shared);
    assert_eq!(upstream.status().servers[0].condition, Condition::Unknown);
    upstream.spawn_upkeep();
    upstream.spawn_upkeep();
    let condition = || upstream.status().servers[0].condition;
    eventually(|| condition() == Condition::Up).await;
    sick.store(true, std::sync::atomic::Ordering::SeqCst);
    eventually(|| condition() == Condition::Down).await;
    assert_eq!(upstream.status().servers[0].trouble.as_deref(), Some("status 503"));
    sick.store(false, std::sync::atomic::Ordering::SeqCst);
    eventually(|| condition() == Condition::Up).await;
    drop(upstream);
    server.until_open(0).await;
    let so_far = server.accepted();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(server.accepted(), so_far, "nobody is asked for an upstream that is gone");
}

#[tokio::test]
async fn tls_verifies_against_the_given_authority() {
    use tokio_rustls::rustls::{ServerConfig, crypto::ring};
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, issued.cert.pem()).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(issued.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![issued.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let server = Scripted::start(move |wire| {
        let acceptor = acceptor.clone();
        async move {
            let mut tls = acceptor.accept(wire.into_socket()).await?;
            let mut room = [0; 1024];
            while tokio::io::AsyncReadExt::read(&mut tls, &mut room).await? > 0 {
                tokio::io::AsyncWriteExt::write_all(&mut tls, OK.as_bytes()).await?;
            }
            Ok(())
        }
    })
    .await;
    let url = format!("https://127.0.0.1:{}", server.address.port());
    let with = |tls: &str| upstream(&url, tls);
    let trusted = with(&format!("tls: {{ ca: \"{}\", server_name: localhost }}", ca.display()));
    assert_eq!(get(&trusted, "/").await.unwrap().1, "ok");
    assert_eq!(get(&trusted, "/").await.unwrap().1, "ok");
    assert_eq!(server.accepted(), 1);
    let misnamed = with(&format!("tls: {{ ca: \"{}\" }}", ca.display()));
    assert_eq!(fails(&misnamed).await.0, Kind::UpstreamUnreachable);
    assert_eq!(fails(&with("tls: { server_name: localhost }")).await.0, Kind::UpstreamUnreachable);
}

#[tokio::test]
async fn callers_that_give_no_time_open_no_breaker() {
    let server = Scripted::start(|mut wire| async move { wire.until_closed().await }).await;
    let upstream = upstream(&server.url(), "breaker: { min_requests: 2 }");
    let hurry = || async {
        let until = Some(tokio::time::Instant::now() + Duration::from_millis(20));
        let request = Request::builder().uri("/").body(full("")).unwrap();
        let options = SendOptions { until, ..SendOptions::default() };
        upstream.send(&exchange(Method::GET, "/"), request, &options).await.unwrap_err().kind
    };
    for _ in 0..6 {
        assert_eq!(hurry().await, Kind::UpstreamTimeout, "not refused by a breaker");
    }
}

#[tokio::test]
async fn a_request_is_noted_where_it_was_answered() {
    let mute = Scripted::start(|mut wire| async move { wire.until_closed().await }).await;
    let well = Scripted::start(|mut wire| async move {
        loop {
            wire.request().await?;
            wire.write(OK).await?;
        }
    })
    .await;
    let (shared, _) = shared(&[]);
    let targets = format!("[{{ url: \"{}\" }}, {{ url: \"{}\" }}]", mute.url(), well.url());
    let rules = "min_retries: 100, backoff: { base: 1ms }";
    for retry in [format!("per_try: 50ms, {rules}"), format!("hedge: {{ after: 30ms }}, {rules}")] {
        let spec = spec(&format!("{{ targets: {targets}, retry: {{ {retry} }} }}"));
        let upstream = Upstream::new(spec, &shared);
        let mut tries = Vec::new();
        for _ in 0..4 {
            let exchange = exchange(Method::GET, "/");
            let request = Request::builder().uri("/").body(full("")).unwrap();
            let answer = upstream.send(&exchange, request, &SendOptions::default()).await.unwrap();
            assert_eq!(answer.status(), 200);
            assert!(well.url().ends_with(&*exchange.upstream().unwrap().target), "{retry}");
            tries.push(exchange.tries());
        }
        assert!(tries.contains(&2), "{retry}: {tries:?}");
    }
}
