//! Calls over real sockets, to servers that do with each stream what a test says.

use crate::error::{GatewayError, Kind};
use crate::exchange::tests::exchange;
use crate::state::tests::shared;
use crate::upstream::spec::tests::spec;
use crate::upstream::testing::{PATIENCE, Scripted, Wire, eventually};
use crate::upstream::{SendOptions, Upstream, UpstreamBody};
use ::h2::server::{Builder, SendResponse};
use ::h2::{Reason, RecvStream};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout};

type Outgoing = BoxBody<Bytes, io::Error>;
type Incoming = Request<RecvStream>;
type Answering = SendResponse<Bytes>;

fn upstream(server: &Scripted, more: &str) -> Arc<Upstream> {
    let (shared, _) = shared(&[]);
    let url = server.url();
    Upstream::new(spec(&format!("{{ targets: [{{ url: \"{url}\" }}], protocol: grpc, {more} }}")), &shared)
}

/// A server that allows so many streams and does this with each, all at once.
async fn serving<F>(
    streams: u32,
    each: impl Fn(Incoming, Answering) -> F + Clone + Send + 'static,
) -> Scripted
where
    F: Future<Output = ()> + Send + 'static,
{
    Scripted::start(move |wire| serve(wire, streams, each.clone())).await
}

async fn serve<F>(wire: Wire, streams: u32, each: impl Fn(Incoming, Answering) -> F) -> io::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut builder = Builder::new();
    builder.max_concurrent_streams(streams);
    let mut connection = builder.handshake(wire.into_socket()).await.map_err(io::Error::other)?;
    while let Some(stream) = connection.accept().await {
        let (request, answer) = stream.map_err(io::Error::other)?;
        tokio::spawn(each(request, answer));
    }
    Ok(())
}

fn nothing() -> Outgoing {
    Empty::new().map_err(|never| match never {}).boxed()
}

fn full(text: &'static str) -> Outgoing {
    Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed()
}

/// A body whose pieces come through a channel.
fn fed() -> (mpsc::UnboundedSender<io::Result<Bytes>>, Outgoing) {
    let (feed, mut pieces) = mpsc::unbounded_channel::<io::Result<Bytes>>();
    let frames = futures_util::stream::poll_fn(move |cx| pieces.poll_recv(cx).map_ok(Frame::data));
    (feed, BoxBody::new(StreamBody::new(frames)))
}

async fn send(
    upstream: &Arc<Upstream>,
    body: Outgoing,
    options: &SendOptions,
) -> Result<Response<UpstreamBody>, GatewayError> {
    let exchange = exchange(Method::POST, "/p.S/M");
    let request = Request::builder().method(Method::POST).uri("/p.S/M").header("te", "trailers");
    let sent = upstream.send(&exchange, request.body(body).unwrap(), options);
    timeout(PATIENCE, sent).await.expect("an outcome in time")
}

const DUPLEX: SendOptions =
    SendOptions { first_byte: None, stream: true, duplex: true, until: None, session: None, once: false };

async fn read(mut stream: RecvStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data.unwrap();
        stream.flow_control().release_capacity(data.len()).unwrap();
        all.extend_from_slice(&data);
    }
    all
}

/// Answers what came, with a trailer.
async fn echo(request: Incoming, mut answer: Answering) {
    let path = request.uri().to_string();
    let body = read(request.into_body()).await;
    let head = Response::builder().header("asked", path).body(()).unwrap();
    let mut stream = answer.send_response(head, false).unwrap();
    stream.send_data(body.into(), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    stream.send_trailers(trailers).unwrap();
}

#[tokio::test]
async fn calls_share_a_connection_and_trailers_pass() {
    let server = serving(100, echo).await;
    let upstream = upstream(&server, "");
    let calls = (0..20).map(|_| async {
        let response = send(&upstream, full("hello"), &DUPLEX).await.unwrap();
        assert_eq!(response.headers()["asked"], format!("http://{}/p.S/M", server.address));
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(body.to_bytes(), "hello");
    });
    futures_util::future::join_all(calls).await;
    assert_eq!(server.accepted(), 1);
    let figures = upstream.meter().snapshot();
    assert_eq!((figures.connects, figures.reused, figures.broken), (1, 19, 0));
    let status = upstream.status();
    assert_eq!((status.servers[0].in_flight, status.servers[0].at_rest), (0, 1));
}

#[tokio::test]
async fn a_connection_takes_no_more_than_its_server_allows() {
    let most = Arc::new(AtomicUsize::new(0));
    let (all, gate) = (most.clone(), Arc::new(Notify::new()));
    let server = Scripted::start(move |wire| {
        let (all, gate) = (all.clone(), gate.clone());
        let now = Arc::new(AtomicUsize::new(0));
        serve(wire, 2, move |request, answer| {
            let (all, now, gate) = (all.clone(), now.clone(), gate.clone());
            async move {
                all.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let _ = timeout(Duration::from_millis(50), gate.notified()).await;
                echo(request, answer).await;
                now.fetch_sub(1, Ordering::SeqCst);
            }
        })
    })
    .await;
    let upstream = upstream(&server, "");
    let calls = (0..6).map(|_| async {
        let response = send(&upstream, full("x"), &DUPLEX).await.unwrap();
        response.into_body().collect().await.unwrap();
    });
    futures_util::future::join_all(calls).await;
    assert_eq!(most.load(Ordering::SeqCst), 2);
    assert!((2..=3).contains(&server.accepted()), "{}", server.accepted());
}

#[tokio::test]
async fn calls_are_bounded_by_max_connections() {
    let server = serving(100, |request, answer| async move {
        let _held = (request, answer);
        std::future::pending::<()>().await;
    })
    .await;
    let upstream = upstream(&server, "max_connections: 1, connect_timeout: 100ms");
    let mut first = Box::pin(send(&upstream, full("x"), &DUPLEX));
    assert!(timeout(Duration::from_millis(50), &mut first).await.is_err());
    assert_eq!(send(&upstream, full("x"), &DUPLEX).await.unwrap_err().kind, Kind::UpstreamSaturated);
}

#[tokio::test]
async fn the_answer_may_come_first_and_both_bodies_go_on() {
    let server = serving(100, |request, mut answer: Answering| async move {
        let mut out = answer.send_response(Response::new(()), false).unwrap();
        let mut incoming = request.into_body();
        while let Some(data) = incoming.data().await {
            let data = data.unwrap();
            incoming.flow_control().release_capacity(data.len()).unwrap();
            out.send_data(data, false).unwrap();
        }
        out.send_trailers(HeaderMap::new()).unwrap();
    })
    .await;
    let upstream = upstream(&server, "timeouts: { idle: 100ms, first_byte: 10s }");
    let (feed, body) = fed();
    let mut answer = send(&upstream, body, &DUPLEX).await.unwrap().into_body();
    for word in ["one", "two", "three"] {
        tokio::time::sleep(Duration::from_millis(150)).await;
        feed.send(Ok(word.into())).unwrap();
        let frame = timeout(PATIENCE, answer.frame()).await.unwrap().unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), word, "no deadline between them");
    }
    drop(feed);
    assert!(answer.frame().await.unwrap().unwrap().is_trailers());
    assert!(answer.frame().await.is_none());
}

#[tokio::test]
async fn who_leaves_resets_the_stream_and_nothing_else() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let server = serving(100, move |request, mut answer: Answering| {
        let tell = tell.clone();
        async move {
            let mut out = answer.send_response(Response::new(()), false).unwrap();
            let reason = std::future::poll_fn(|cx| out.poll_reset(cx)).await;
            drop(request);
            let _ = tell.send(reason.map_err(|error| error.to_string()));
        }
    })
    .await;
    let upstream = upstream(&server, "");
    // With a request that is over, and with one that is not.
    let (_feed, open) = fed();
    for body in [full("x"), open] {
        let response = send(&upstream, body, &DUPLEX).await.unwrap();
        let left = Instant::now();
        drop(response);
        let reason = timeout(PATIENCE, told.recv()).await.unwrap().unwrap();
        assert_eq!(reason, Ok(Reason::CANCEL));
        assert!(left.elapsed() < Duration::from_secs(1));
    }
    assert_eq!(server.accepted(), 1, "the connection stands");
    eventually(|| upstream.status().servers[0].in_flight == 0).await;
}

#[tokio::test]
async fn a_caller_that_breaks_off_resets_the_stream() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let server = serving(100, move |request, mut answer: Answering| {
        let tell = tell.clone();
        async move {
            let reason = std::future::poll_fn(|cx| answer.poll_reset(cx)).await;
            drop(request);
            let _ = tell.send(reason.unwrap());
        }
    })
    .await;
    let upstream = upstream(&server, "");
    let (feed, body) = fed();
    feed.send(Ok("half".into())).unwrap();
    feed.send(Err(io::ErrorKind::ConnectionReset.into())).unwrap();
    let failed = send(&upstream, body, &DUPLEX).await.unwrap_err();
    assert_eq!(failed.kind, Kind::BadRequest);
    assert_eq!(timeout(PATIENCE, told.recv()).await.unwrap(), Some(Reason::CANCEL));
}

#[tokio::test]
async fn a_goaway_lets_calls_end_and_sends_new_ones_elsewhere() {
    let open = Arc::new(Notify::new());
    let gate = open.clone();
    let server = Scripted::start(move |wire| {
        let gate = gate.clone();
        async move {
            let number = wire.number;
            let mut connection =
                ::h2::server::handshake(wire.into_socket()).await.map_err(io::Error::other)?;
            while let Some(stream) = connection.accept().await {
                let (request, answer) = stream.map_err(io::Error::other)?;
                let gate = gate.clone();
                tokio::spawn(async move {
                    if number == 0 {
                        gate.notified().await;
                    }
                    echo(request, answer).await;
                });
                if number == 0 {
                    connection.graceful_shutdown();
                }
            }
            Ok(())
        }
    })
    .await;
    let upstream = upstream(&server, "");
    let first = tokio::spawn({
        let upstream = upstream.clone();
        async move { send(&upstream, full("first"), &DUPLEX).await.unwrap().into_body().collect().await }
    });
    eventually(|| upstream.status().servers[0].in_flight == 1).await;
    let begun = Instant::now();
    // It may still be on its way.
    while server.accepted() < 2 {
        assert!(begun.elapsed() < PATIENCE);
        let sent = timeout(Duration::from_millis(100), send(&upstream, nothing(), &DUPLEX)).await;
        if let Ok(sent) = sent {
            sent.unwrap().into_body().collect().await.unwrap();
        }
    }
    open.notify_waiters();
    assert_eq!(first.await.unwrap().unwrap().to_bytes(), "first");
}

#[tokio::test]
async fn what_was_refused_is_sent_again_unless_its_body_was() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let server = serving(100, move |request, mut answer: Answering| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        async move {
            match number {
                0 | 2 | 3 | 5 => answer.send_reset(Reason::REFUSED_STREAM),
                4 => answer.send_reset(Reason::INTERNAL_ERROR),
                _ => echo(request, answer).await,
            }
        }
    })
    .await;
    let upstream = upstream(&server, "");
    assert!(send(&upstream, nothing(), &DUPLEX).await.is_ok(), "the second time");
    let twice = send(&upstream, nothing(), &DUPLEX).await;
    assert_eq!(twice.unwrap_err().kind, Kind::UpstreamReset, "no third time");
    assert_eq!(send(&upstream, nothing(), &DUPLEX).await.unwrap_err().kind, Kind::UpstreamReset);
    assert_eq!(asked.load(Ordering::SeqCst), 5, "it was not refused unread");
    assert_eq!(send(&upstream, full("x"), &DUPLEX).await.unwrap_err().kind, Kind::UpstreamReset);
    assert_eq!(asked.load(Ordering::SeqCst), 6, "its body is gone");
}

#[tokio::test]
async fn a_dead_connection_fails_its_calls_and_is_replaced() {
    let server = Scripted::start(|wire| async move {
        let number = wire.number;
        let mut connection = ::h2::server::handshake(wire.into_socket()).await.map_err(io::Error::other)?;
        while let Some(stream) = connection.accept().await {
            let (request, answer) = stream.map_err(io::Error::other)?;
            if number == 0 {
                return Ok(());
            }
            tokio::spawn(echo(request, answer));
        }
        Ok(())
    })
    .await;
    let upstream = upstream(&server, "");
    assert_eq!(send(&upstream, full("x"), &DUPLEX).await.unwrap_err().kind, Kind::UpstreamReset);
    assert!(send(&upstream, full("x"), &DUPLEX).await.is_ok());
    assert_eq!(server.accepted(), 2);
}

#[tokio::test]
async fn whoever_speaks_no_http2_is_unreachable() {
    let silent = Scripted::start(|mut wire| async move { wire.until_closed().await }).await;
    let old = Scripted::start(|mut wire| async move {
        wire.write("HTTP/1.1 400 Bad Request\r\n\r\n").await?;
        wire.until_closed().await
    })
    .await;
    for server in [&silent, &old] {
        let upstream = upstream(server, "connect_timeout: 200ms");
        let failed = send(&upstream, full("x"), &DUPLEX).await.unwrap_err();
        assert_eq!(failed.kind, Kind::UpstreamUnreachable);
        server.until_open(0).await;
    }
}

#[tokio::test]
async fn an_answer_in_time_or_none() {
    let server = serving(100, |request, answer: Answering| async move {
        let _held = (request, answer);
        std::future::pending::<()>().await;
    })
    .await;
    let late = upstream(&server, "timeouts: { first_byte: 100ms }");
    assert_eq!(send(&late, full("x"), &DUPLEX).await.unwrap_err().kind, Kind::UpstreamTimeout);
    let (_feed, open) = fed();
    let until = Some(Instant::now() + Duration::from_millis(200));
    let bounded = SendOptions { until, ..DUPLEX };
    assert_eq!(send(&late, open, &bounded).await.unwrap_err().kind, Kind::UpstreamTimeout);
    let starving = upstream(&server, "timeouts: { idle: 100ms }");
    let (_feed, open) = fed();
    let failed = send(&starving, open, &SendOptions::default()).await.unwrap_err();
    assert_eq!(failed.kind, Kind::RequestTimeout, "as over HTTP/1.1, where it is no stream");
}

#[tokio::test]
async fn unread_answers_hold_the_server_back_and_nobody_else() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let server = serving(100, move |request, mut answer: Answering| {
        let count = count.clone();
        async move {
            let asked = read(request.into_body()).await;
            let mut out = answer.send_response(Response::new(()), false).unwrap();
            if asked != b"flood" {
                return out.send_data("ok".into(), true).unwrap();
            }
            loop {
                out.reserve_capacity(1 << 20);
                let Some(Ok(room)) = std::future::poll_fn(|cx| out.poll_capacity(cx)).await else { return };
                if out.send_data(vec![0; room].into(), false).is_err() {
                    return;
                }
                count.fetch_add(room, Ordering::SeqCst);
            }
        }
    })
    .await;
    let upstream = upstream(&server, "");
    let mut slow = Vec::new();
    for _ in 0..20 {
        slow.push(send(&upstream, full("flood"), &DUPLEX).await.unwrap().into_body());
    }
    let window = super::STREAM_WINDOW as usize;
    eventually(|| sent.load(Ordering::SeqCst) == 20 * window).await;
    let quick = send(&upstream, full("quick"), &DUPLEX).await.unwrap();
    assert_eq!(quick.into_body().collect().await.unwrap().to_bytes(), "ok");
    assert_eq!(sent.load(Ordering::SeqCst), 20 * window, "no more than the windows");
    slow[0].frame().await.unwrap().unwrap();
    eventually(|| sent.load(Ordering::SeqCst) > 20 * window).await;
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn an_upload_waits_for_its_server() {
    let server = serving(100, |request, mut answer: Answering| async move {
        let _out = answer.send_response(Response::new(()), false).unwrap();
        let _unread = request;
        std::future::pending::<()>().await;
    })
    .await;
    let upstream = upstream(&server, "");
    let pulled = Arc::new(AtomicUsize::new(0));
    let count = pulled.clone();
    let endless = futures_util::stream::repeat_with(move || {
        count.fetch_add(1, Ordering::SeqCst);
        Ok::<_, io::Error>(Frame::data(Bytes::from(vec![0; 16 << 10])))
    });
    let _answer = send(&upstream, BoxBody::new(StreamBody::new(endless)), &DUPLEX).await.unwrap();
    // The window that nobody widened is 64 KiB less one byte.
    eventually(|| pulled.load(Ordering::SeqCst) == 4).await;
    tokio::task::yield_now().await;
    assert_eq!(pulled.load(Ordering::SeqCst), 4);
}
