//! gRPC-Web, by hand: over HTTP/1.1 and HTTP/2, in bytes and in base64.

use super::service::{Echo, framed, frames};
use super::{A_SECOND, SOON, before};
use crate::harness::{Answer, Gateway, eventually};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const WEB: &str = "application/grpc-web+proto";
const TEXT: &str = "application/grpc-web-text";

/// The messages of an answer and its trailers.
fn read(body: &[u8]) -> (Vec<Vec<u8>>, String) {
    let mut all = frames(body).unwrap();
    let (last, trailers) = all.pop().expect("the trailers");
    assert!(last && all.iter().all(|(trailers, _)| !trailers), "they come last");
    (all.into_iter().map(|(_, message)| message).collect(), String::from_utf8(trailers).unwrap())
}

fn message(text: &str) -> Vec<u8> {
    framed(text)[5..].to_vec()
}

/// Base64 pieces, each padded by itself.
fn unpadded(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut from = 0;
    for end in (4..=text.len()).step_by(4) {
        if text[end - 1] == b'=' || end == text.len() {
            bytes.extend(STANDARD.decode(&text[from..end]).unwrap());
            from = end;
        }
    }
    bytes
}

async fn post(gateway: &Gateway, method: &str, kind: &str, body: &[u8]) -> Answer {
    let path = format!("/test.Echo/{method}");
    let headers = [("content-type", kind), ("x-grpc-web", "1"), ("accept", kind)];
    let mut request = gateway.client.request("POST", &path, &headers, "");
    *request.body_mut() = http_body_util::Full::from(body.to_vec());
    gateway.client.try_send(request).await.unwrap()
}

#[tokio::test]
async fn calls_of_browsers_are_answered_with_their_trailers_in_the_body() {
    let echo = Echo::start().await;
    let gateway = before(&echo, "").await;
    let answer = post(&gateway, "Unary", WEB, &framed("web")).await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, Some(WEB)));
    let (messages, trailers) = read(&answer.body);
    assert_eq!(messages, [message("hello web")]);
    assert_eq!(trailers, "grpc-status:0\r\n");
    let answer = post(&gateway, "Download", WEB, &framed("3")).await;
    assert_eq!(read(&answer.body).0, ["0", "1", "2"].map(message));
    let failed = post(&gateway, "Unary", WEB, &framed("fail")).await;
    let (messages, trailers) = read(&failed.body);
    assert!(messages.is_empty());
    assert!(trailers.contains("grpc-status:9\r\n") && trailers.contains("%C3%BC%25\r\n"), "{trailers}");
    assert!(failed.header("grpc-status").is_none(), "a browser may not see it there");
    let headers = post(&gateway, "Unary", WEB, &framed("headers")).await;
    let (messages, _) = read(&headers.body);
    let seen = String::from_utf8_lossy(&messages[0]).into_owned();
    assert!(
        seen.contains("content-type=application/grpc+proto\n") && seen.contains("te=trailers\n"),
        "{seen}"
    );
    assert!(!seen.contains("grpc-web"), "{seen}");
    let old =
        gateway.client.send_h2("POST", "/test.Echo/Unary", &[("content-type", WEB)], "\0\0\0\0\0").await;
    assert_eq!(read(&old.body).0, [message("hello ")], "over HTTP/2");
}

#[tokio::test]
async fn base64_goes_both_ways() {
    let echo = Echo::start().await;
    let gateway = before(&echo, "").await;
    let body = STANDARD.encode(framed("text"));
    let answer = post(&gateway, "Unary", TEXT, body.as_bytes()).await;
    assert_eq!(answer.header("content-type"), Some(TEXT));
    let (messages, trailers) = read(&unpadded(&answer.body));
    assert_eq!((messages, trailers.as_str()), (vec![message("hello text")], "grpc-status:0\r\n"));
    // Padded in the middle, as a writer that flushes does.
    let whole = framed("cut");
    let body = [STANDARD.encode(&whole[..5]), STANDARD.encode(&whole[5..])].concat();
    let answer = post(&gateway, "Unary", TEXT, body.as_bytes()).await;
    assert_eq!(read(&unpadded(&answer.body)).0, [message("hello cut")]);
    let bad = post(&gateway, "Unary", TEXT, b"*no base64*").await;
    assert!(read(&unpadded(&bad.body)).1.starts_with("grpc-status:3\r\n"));
}

#[tokio::test]
async fn messages_come_as_they_are_sent_and_leaving_is_heard() {
    let echo = Echo::start().await;
    let gateway = before(&echo, "").await;
    for (kind, body) in [(WEB, framed("silence")), (TEXT, STANDARD.encode(framed("silence")).into_bytes())] {
        let mut request =
            gateway.client.request("POST", "/test.Echo/Download", &[("content-type", kind)], "");
        *request.body_mut() = http_body_util::Full::from(body);
        let mut open = gateway.client.try_open(request).await.unwrap();
        let piece = open.piece().await.unwrap().unwrap();
        let bytes = if kind == TEXT { unpadded(&piece) } else { piece.to_vec() };
        assert_eq!(bytes, framed("0"), "before there is another");
        drop(open);
        eventually("the service is told", A_SECOND, || async { echo.stats.open() == 0 }).await;
    }
}

#[tokio::test]
async fn errors_are_frames_too() {
    let echo = Echo::start().await;
    let gateway = before(&echo, "request_id, auth").await;
    for kind in [WEB, TEXT] {
        let answer = post(&gateway, "Unary", kind, b"").await;
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, Some(kind)));
        let body = if kind == TEXT { unpadded(&answer.body) } else { answer.body.to_vec() };
        let (_, trailers) = read(&body);
        assert!(trailers.starts_with("grpc-status:16\r\ngrpc-message:No token provided\r\n"), "{trailers}");
    }
    let late = [("content-type", WEB), ("grpc-timeout", "100m")];
    let open = before(&echo, "").await;
    let mut request = open.client.request("POST", "/test.Echo/Unary", &late, "");
    *request.body_mut() = http_body_util::Full::from(framed("sleep"));
    let answer = tokio::time::timeout(SOON, open.client.try_send(request)).await.unwrap().unwrap();
    assert!(read(&answer.body).1.starts_with("grpc-status:4\r\n"));
}

#[tokio::test]
async fn browsers_of_other_origins_may_call() {
    let echo = Echo::start().await;
    let manifest = format!(
        "upstreams: {{ echo: {{ protocol: grpc, targets: [{{ url: \"{}\" }}] }} }}\n\
         cors: {{ web: {{ origins: [\"https://app.test\"], methods: [POST], \
         headers: [content-type, x-grpc-web, x-user-agent, grpc-timeout, authorization], \
         expose: [grpc-status, grpc-message] }} }}\n\
         routes:\n  \
         - {{ route: POST /test.Echo/*method, upstream: echo, protocol: grpc, chain: [{{ cors: web }}], public: true }}\n",
        echo.url()
    );
    let gateway = Gateway::with(&manifest).start().await;
    let asked = [
        ("origin", "https://app.test"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "content-type,x-grpc-web,x-user-agent"),
    ];
    let preflight = gateway.client.send("OPTIONS", "/test.Echo/Unary", &asked, "").await;
    assert_eq!(preflight.status, 204);
    assert_eq!(preflight.header("access-control-allow-origin"), Some("https://app.test"));
    let headers = [("content-type", WEB), ("origin", "https://app.test")];
    let mut request = gateway.client.request("POST", "/test.Echo/Unary", &headers, "");
    *request.body_mut() = http_body_util::Full::from(framed("you"));
    let answer = gateway.client.try_send(request).await.unwrap();
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.test"));
    assert_eq!(read(&answer.body).0, [message("hello you")]);
}
