//! What the gateway itself says to gRPC callers, and to those who are none.

use super::service::{Echo, ask, call, framed, read};
use super::{SOON, before, manifest, through};
use crate::access::token;
use crate::harness::{Gateway, eventually};
use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tonic::Code;

const GRPC: (&str, &str) = ("content-type", "application/grpc+proto");

/// A server that does this with each stream, by hand.
async fn raw<F>(
    each: impl Fn(Request<h2::RecvStream>, h2::server::SendResponse<Bytes>) -> F + Clone + Send + 'static,
) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let each = each.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok((request, answer))) = connection.accept().await {
                    tokio::spawn(each(request, answer));
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn every_stage_refuses_in_the_callers_form() {
    let echo = Echo::start().await;
    let stages = "request_id, { rate_limit: { limit: 3, per: 1m } }, auth, { rbac: \"reports:read\" }";
    let gateway = before(&echo, stages).await;
    let call = |headers: Vec<(&'static str, String)>| {
        let client = gateway.client.clone();
        async move {
            let mut all = vec![GRPC];
            all.extend(headers.iter().map(|(name, value)| (*name, value.as_str())));
            client.send_h2("POST", "/test.Echo/Unary", &all, "").await
        }
    };
    let stranger = call(vec![]).await;
    let said = |name: &str| stranger.header(name).unwrap().to_owned();
    assert_eq!(stranger.status, 200);
    assert_eq!(said("content-type"), "application/grpc+proto");
    assert_eq!((said("grpc-status"), said("grpc-message")), ("16".into(), "No token provided".into()));
    assert_eq!(said("x-request-id").len(), 36);
    assert!(stranger.body.is_empty());
    let bearer = format!("Bearer {}", token(&gateway, "user", Duration::ZERO));
    let powerless = call(vec![("authorization", bearer), ("accept-language", "zh".into())]).await;
    assert_eq!(powerless.header("grpc-status"), Some("7"));
    assert_eq!(powerless.header("grpc-message"), Some("%E6%9D%83%E9%99%90%E4%B8%8D%E8%B6%B3"));
    call(vec![]).await;
    let often = call(vec![]).await;
    assert_eq!(often.header("grpc-status"), Some("8"));
    let pushback: u64 = often.header("grpc-retry-pushback-ms").unwrap().parse().unwrap();
    assert!((1..=120_000).contains(&pushback), "{pushback}");
    assert_eq!(echo.stats.calls.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[tokio::test]
async fn methods_that_no_route_takes_are_unimplemented() {
    let echo = Echo::start().await;
    let gateway = before(&echo, "").await;
    let mut client = through(&gateway).await;
    let nobody = call(&mut client, "/test.Other/Do", tonic::Request::new(String::new())).await;
    assert_eq!(nobody.unwrap_err().code(), Code::Unimplemented);
    let got = gateway.client.send_h2("GET", "/test.Echo/Unary", &[GRPC], "").await;
    assert_eq!((got.header("grpc-status"), got.header("allow")), (Some("12"), Some("POST")));
}

#[tokio::test]
async fn whoever_does_not_speak_grpc_is_told_in_http() {
    let echo = Echo::start().await;
    let gateway = before(&echo, "").await;
    let json = gateway.client.post("/test.Echo/Unary", "{}").await;
    assert_eq!((json.status.as_u16(), json.code().as_str()), (415, "unsupported_media_type"));
    let json = gateway.client.send_h2("POST", "/test.Echo/Unary", &[], "").await;
    assert_eq!(json.status, 415);
    let old = gateway.client.send("POST", "/test.Echo/Unary", &[GRPC], "").await;
    assert_eq!((old.status.as_u16(), old.code().as_str()), (426, "http2_required"));
    assert_eq!(old.header("upgrade"), Some("HTTP/2.0"));
    let bad = [GRPC, ("grpc-timeout", "soon")];
    let bad = gateway.client.send_h2("POST", "/test.Echo/Unary", &bad, "").await;
    assert_eq!(bad.header("grpc-status"), Some("3"));
}

#[tokio::test]
async fn bodies_over_the_limit_are_exhausted_resources() {
    let echo = Echo::start().await;
    let gateway = before(&echo, "{ body_limit: 1KiB }").await;
    let mut client = through(&gateway).await;
    assert!(ask(&mut client, "x").await.is_ok());
    let large = ask(&mut client, &"x".repeat(100_000)).await.unwrap_err();
    assert_eq!(large.code(), Code::ResourceExhausted, "{large:?}");
    // While the answer is under way.
    let (push, messages) = super::pushed();
    push.send("a".into()).unwrap();
    let mut answers = super::talk_to(&mut client, messages).await.unwrap();
    use futures_util::StreamExt as _;
    answers.next().await.unwrap().unwrap();
    push.send("x".repeat(2000)).unwrap();
    let end = timeout(SOON, answers.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(end.code(), Code::ResourceExhausted, "{end:?}");
    eventually("the service is told", SOON, || async { echo.stats.open() == 0 }).await;
}

#[tokio::test]
async fn slots_are_exhausted_resources_too() {
    let echo = Echo::start().await;
    let gateway = before(&echo, "{ concurrency: { limit: 1, by: [ip] } }").await;
    let mut client = through(&gateway).await;
    let mut one = read(&mut client, "forever").await.unwrap();
    one.message().await.unwrap();
    assert_eq!(ask(&mut client, "x").await.unwrap_err().code(), Code::ResourceExhausted);
    drop(one);
    eventually("the slot is free", SOON, || async { ask(&mut through(&gateway).await, "x").await.is_ok() })
        .await;
}

#[tokio::test]
async fn a_dead_upstream_is_unavailable_and_comes_back() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let gateway = Gateway::with(&manifest(&format!("http://{port}"), "", "")).start().await;
    let mut client = through(&gateway).await;
    let dead = ask(&mut client, "x").await.unwrap_err();
    assert_eq!(dead.code(), Code::Unavailable, "{dead:?}");
    assert_eq!(dead.message(), "The service behind this route cannot be reached");
    assert_eq!(dead.metadata().get("x-request-id").unwrap().len(), 36);
}

#[tokio::test]
async fn what_breaks_on_the_way_ends_with_a_status() {
    let address = raw(|request, mut answer| async move {
        let head = Response::builder().header("content-type", "application/grpc");
        let head = head.body(()).unwrap();
        match request.uri().path() {
            "/test.Echo/Refuse" => answer.send_reset(Reason::REFUSED_STREAM),
            "/test.Echo/Calm" => answer.send_reset(Reason::ENHANCE_YOUR_CALM),
            "/test.Echo/Later" => {
                let mut stream = answer.send_response(head, false).unwrap();
                stream.send_data(framed("half").into(), false).unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
                stream.send_reset(Reason::CANCEL);
            }
            "/test.Echo/Nothing" => drop(answer.send_response(head, true)),
            "/test.Echo/NoStatus" => {
                let mut stream = answer.send_response(head, false).unwrap();
                stream.send_trailers(HeaderMap::new()).unwrap();
            }
            "/test.Echo/Html" => {
                let head = Response::builder().status(503).header("content-type", "text/html");
                let mut stream = answer.send_response(head.body(()).unwrap(), false).unwrap();
                stream.send_data("<h1>busy</h1>".into(), true).unwrap();
            }
            "/test.Echo/Both" => {
                let mut stream = answer.send_response(head, false).unwrap();
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                trailers.insert("connection", HeaderValue::from_static("close"));
                stream.send_trailers(trailers).ok();
            }
            path => panic!("{path}"),
        }
    })
    .await;
    let gateway = Gateway::with(&manifest(&format!("http://{address}"), "", "")).start().await;
    let mut client = through(&gateway).await;
    for (path, code) in [
        ("/test.Echo/Refuse", Code::Unavailable),
        ("/test.Echo/Calm", Code::ResourceExhausted),
        ("/test.Echo/Later", Code::Cancelled),
        ("/test.Echo/Nothing", Code::Internal),
        ("/test.Echo/NoStatus", Code::Internal),
        ("/test.Echo/Html", Code::Unavailable),
    ] {
        let ended = call(&mut client, path, tonic::Request::new("x".to_owned())).await.unwrap_err();
        assert_eq!(ended.code(), code, "{path}: {ended:?}");
    }
}

#[tokio::test]
async fn the_wire_is_trailers_only_or_trailers_last() {
    let echo = Echo::start().await;
    let gateway = before(&echo, "").await;
    let socket = TcpStream::connect(gateway.client.address()).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(socket).await.unwrap();
    let driver = tokio::spawn(connection);
    let mut ask = async |path: &str, text: &str| {
        let request = Request::builder().method(Method::POST).uri(format!("http://gateway{path}"));
        let request = request.header("content-type", "application/grpc").header("te", "trailers");
        let (answer, mut stream) = sender.send_request(request.body(()).unwrap(), false).unwrap();
        stream.send_data(framed(text).into(), true).unwrap();
        answer.await.unwrap()
    };
    let refused = ask("/test.None/Do", "x").await;
    assert!(refused.body().is_end_stream(), "one HEADERS frame is all");
    assert_eq!(refused.headers()["grpc-status"], "12");
    let failed = ask("/test.Echo/Unary", "fail").await;
    assert!(failed.body().is_end_stream());
    assert_eq!(failed.headers()["grpc-status"], "9");
    let mut good = ask("/test.Echo/Unary", "you").await;
    assert!(!good.headers().contains_key("grpc-status"));
    assert_eq!(good.body_mut().data().await.unwrap().unwrap(), framed("hello you"));
    assert!(good.body_mut().data().await.is_none());
    assert_eq!(good.body_mut().trailers().await.unwrap().unwrap()["grpc-status"], "0");
    driver.abort();
}
