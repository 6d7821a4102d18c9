//! The proxy over the demo services.

use super::super::testing::Bench;
use crate::demo::Demo;
use crate::upstream::testing::{PATIENCE, Scripted, eventually};
use http::Method;
use http_body::Frame;
use http_body_util::StreamBody;
use http_body_util::combinators::BoxBody;
use poem::Response;
use serde_json::Value;
use std::time::{Duration, Instant};
use tokio::time::timeout;

async fn json(response: Response) -> Value {
    serde_json::from_str(&response.into_body().into_string().await.unwrap()).unwrap()
}

#[tokio::test]
async fn requests_and_answers_pass_whole() {
    let demo = Demo::start().await.unwrap();
    let bench = Bench::at(&demo.url(), "{ route: POST /echo/*rest, upstream: algo }");
    let headers = [
        ("host", "front.example"),
        ("content-type", "text/plain"),
        ("x_user_id", "evil"),
        ("connection", "x-gone"),
        ("x-gone", "1"),
    ];
    let uri = "/echo/a%20b/c?x=%41&token=secret&y";
    let (exchange, response) = bench.send(Method::POST, uri, &headers, "hello").await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.header("content-type"), Some("application/json"));
    let seen = json(response).await;
    assert_eq!(
        (&seen["method"], &seen["path"], &seen["query"]),
        (&"POST".into(), &"/echo/a%20b/c".into(), &"x=%41&y".into())
    );
    assert_eq!(seen["body"], "hello");
    let mut headers: Vec<(&str, &str)> = seen["headers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| (pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
        .collect();
    headers.sort_unstable();
    let authority = demo.addr().to_string();
    assert_eq!(
        headers,
        [
            ("content-length", "5"),
            ("content-type", "text/plain"),
            ("host", authority.as_str()),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-host", "front.example"),
            ("x-forwarded-proto", "http"),
            ("x-request-id", exchange.request_id()),
        ]
    );
    let note = exchange.upstream().unwrap();
    assert_eq!((&*note.upstream, &*note.target), ("algo", authority.as_str()));
    assert!(exchange.upstream_time().is_some());
}

#[tokio::test]
async fn paths_are_rewritten_or_refused() {
    let demo = Demo::start().await.unwrap();
    let bench =
        Bench::at(&demo.url(), "{ route: ANY /f/:id/*rest, upstream: algo, path: \"/echo/{rest}/v/{id}\" }");
    let seen = json(bench.call(Method::PUT, "/f/7/a/b?q=1", &[]).await).await;
    assert_eq!(
        (&seen["method"], &seen["path"], &seen["query"]),
        (&"PUT".into(), &"/echo/a/b/v/7".into(), &"q=1".into())
    );
    let refused = bench.call(Method::GET, "/f/7/", &[]).await;
    assert_eq!(refused.status(), 400);
    assert_eq!(json(refused).await["code"], "invalid_path");
    assert_eq!(demo.stats().requests, 1);
    assert_eq!(bench.target().describe("/f/7/a", &["7", "a"]), format!("{}/echo/a/v/7", demo.url()));
    assert!(bench.target().describe("/f/7/", &["7", ""]).starts_with("refused"));
}

#[tokio::test]
async fn failures_have_the_common_form() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let bench = Bench::at(&format!("http://{free}"), "{ route: GET /x, upstream: algo }");
    let (exchange, response) = bench.send(Method::GET, "/x", &[], "").await;
    assert_eq!(response.status(), 502);
    assert_eq!(response.header("content-type"), Some("application/problem+json"));
    let body = json(response).await;
    assert_eq!(
        (&body["code"], &body["request_id"]),
        (&"upstream_unreachable".into(), &exchange.request_id().into())
    );
    assert!(!body.to_string().contains(&free.port().to_string()), "callers learn no addresses: {body}");
}

#[tokio::test]
async fn a_get_may_have_a_body_of_unknown_length() {
    let demo = Demo::start().await.unwrap();
    let bench = Bench::at(&demo.url(), "{ route: GET /echo, upstream: algo }");
    let pieces =
        futures_util::stream::iter(["a", "b"].map(|piece| Ok::<_, std::io::Error>(piece.as_bytes())));
    let (_, response) = bench.send(Method::GET, "/echo", &[], poem::Body::from_bytes_stream(pieces)).await;
    assert_eq!(json(response).await["body"], "ab");
}

#[tokio::test]
async fn trailers_pass_on() {
    let demo = Demo::start().await.unwrap();
    let bench = Bench::at(&demo.url(), "{ route: POST /echo, upstream: algo }");
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-sum", "7".parse().unwrap());
    let frames = [Frame::data(bytes::Bytes::from_static(b"hello")), Frame::trailers(trailers)];
    let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, std::io::Error>)));
    let headers = [("trailer", "x-sum"), ("te", "trailers"), ("connection", "te")];
    let (_, response) =
        bench.send(Method::POST, "/echo", &headers, poem::Body::from(BoxBody::new(body))).await;
    let seen = json(response).await;
    assert_eq!((&seen["body"], &seen["trailers"]), (&"hello".into(), &serde_json::json!([["x-sum", "7"]])));
    assert_eq!(bench.upstream.status().servers[0].at_rest, 1);
}

#[tokio::test]
async fn hops_of_the_upstream_end_here() {
    let server = Scripted::start(|mut wire| async move {
        wire.request().await?;
        wire.write("HTTP/1.1 200 OK\r\nConnection: x-hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n").await?;
        wire.write("Transfer-Encoding: chunked\r\nServer: x\r\nTrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n").await?;
        wire.until_closed().await
    })
    .await;
    let bench = Bench::at(&server.url(), "{ route: GET /x, upstream: algo }");
    let response = bench.call(Method::GET, "/x", &[]).await;
    let names: Vec<&str> = response.headers().keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["server", "trailer"]);
    let body: BoxBody<_, _> = response.into_body().into();
    let collected = http_body_util::BodyExt::collect(body).await.unwrap();
    assert_eq!(collected.trailers().unwrap()["x-sum"], "1");
    assert_eq!(bench.upstream.status().servers[0].at_rest, 1);
}

#[tokio::test]
async fn a_caller_who_leaves_stops_the_upstream() {
    let demo = Demo::start().await.unwrap();
    let bench = Bench::at(&demo.url(), "{ route: POST /query, upstream: algo }");
    let call = bench.send(Method::POST, "/query?hang=1", &[], r#"{"query":"hello"}"#);
    assert!(timeout(Duration::from_millis(100), call).await.is_err(), "it hangs");
    let begun = Instant::now();
    eventually(|| demo.stats().unanswered == 0 && demo.stats().connections.open == 0).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(demo.stats().requests, 1);
    assert!(PATIENCE > begun.elapsed());
}
