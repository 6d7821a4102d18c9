//! The ways in beside plain HTTP/1.1: HTTP/2 with prior knowledge, and TLS.

use super::through;
use crate::harness::scripted::body;
use crate::harness::{Gateway, Scripted};
use http::Response;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

#[tokio::test]
async fn http2_with_prior_knowledge_is_served_and_passed_on_as_http1() {
    let upstream = Scripted::start(|_, received| Response::new(body(received))).await;
    let gateway = through("request_id", &upstream.url(), "").start().await;
    let answer =
        gateway.client.send_h2("POST", "/echo?a=1", &[("cookie", "a=1"), ("cookie", "b=2")], "hello").await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "hello"));
    assert!(answer.header("x-request-id").is_some());
    let head = &upstream.heads()[0];
    assert_eq!(head.uri.to_string(), "/echo?a=1");
    assert_eq!(head.headers["x-forwarded-host"], gateway.client.address().to_string());
    assert_eq!(head.headers["cookie"], "a=1; b=2", "HTTP/1.1 has one cookie line");
}

#[tokio::test]
async fn http2_gets_errors_in_the_common_form() {
    let upstream = Scripted::saying("ok").await;
    let gateway = through("{ body_limit: 1KiB }", &upstream.url(), "").start().await;
    assert_eq!(gateway.client.send_h2("GET", "/%2e%2e/x", &[], "").await.code(), "invalid_path");
    let large = "x".repeat(2000);
    let answer = gateway.client.send_h2("POST", "/", &[], &large).await;
    assert_eq!(answer.code(), "payload_too_large");
    assert_eq!(answer.header("connection"), None, "a stream ends, not the connection");
}

#[tokio::test]
async fn many_http2_requests_share_a_connection() {
    let upstream = Scripted::saying("ok").await;
    let gateway = through("", &upstream.url(), "").start().await;
    let stream = TcpStream::connect(gateway.client.address()).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(connection);
    let requests = (0..50).map(|index| {
        let mut sender = sender.clone();
        let request =
            http::Request::get(format!("http://api.example/{index}")).body(Full::<bytes::Bytes>::default());
        tokio::spawn(async move {
            let answer = sender.send_request(request.unwrap()).await.unwrap();
            assert_eq!(answer.status(), 200);
            answer.into_body().collect().await.unwrap().to_bytes()
        })
    });
    for answer in requests.collect::<Vec<_>>() {
        assert_eq!(answer.await.unwrap(), "ok");
    }
    driver.abort();
}

/// A gateway that speaks TLS, and a way to reach it that offers these protocols.
async fn behind_tls(upstream: &Scripted, protocols: &[&str]) -> (Gateway, TlsStream<TcpStream>) {
    let made = rcgen::generate_simple_self_signed(["gateway.test".to_owned()]).unwrap();
    let builder = through("security_headers", &upstream.url(), "")
        .file("tls/cert.pem", &made.cert.pem())
        .file("tls/key.pem", &made.signing_key.serialize_pem());
    let (cert, key) = (builder.folder().join("tls/cert.pem"), builder.folder().join("tls/key.pem"));
    let gateway = builder
        .flag("--tls-cert", cert.to_str().unwrap())
        .flag("--tls-key", key.to_str().unwrap())
        .start()
        .await;
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let socket = TcpStream::connect(gateway.client.address()).await.unwrap();
    let name = "gateway.test".try_into().unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap();
    (gateway, stream)
}

#[tokio::test]
async fn tls_serves_http1_and_says_so_to_upstream_and_browser() {
    let upstream = Scripted::saying("ok").await;
    let (_gateway, stream) = behind_tls(&upstream, &["http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(connection);
    let request =
        http::Request::get("/a").header("host", "gateway.test").body(Full::<bytes::Bytes>::default());
    let answer = sender.send_request(request.unwrap()).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["strict-transport-security"], "max-age=31536000");
    assert_eq!(upstream.heads()[0].headers["x-forwarded-proto"], "https");
    driver.abort();
}

#[tokio::test]
async fn tls_prefers_http2_by_alpn() {
    let upstream = Scripted::saying("ok").await;
    let (_gateway, stream) = behind_tls(&upstream, &["http/1.1", "h2"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(connection);
    let request = http::Request::get("https://gateway.test/a").body(Full::<bytes::Bytes>::default());
    let answer = sender.send_request(request.unwrap()).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(upstream.heads()[0].headers["x-forwarded-proto"], "https");
    driver.abort();
}

#[tokio::test]
async fn plain_http_on_a_tls_port_gets_nothing_and_hurts_nobody() {
    let upstream = Scripted::saying("ok").await;
    let (gateway, _stream) = behind_tls(&upstream, &["http/1.1"]).await;
    let mut plain = crate::harness::Wire::connect(gateway.client.address()).await;
    plain.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let (answer, _) = plain.rest().await;
    assert!(!answer.contains("HTTP/1.1"), "{answer}");
}
