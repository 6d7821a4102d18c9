//! Connections to a server that answers byte by byte as a test wants it.

use super::*;
use crate::upstream::body::RequestBody;
use http::header::{HeaderMap, TRAILER};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use std::future::poll_fn;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(5);

/// A connection, and its server's end.
async fn pair() -> (Http1, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (far, _) = listener.accept().await.unwrap();
    far.set_nodelay(true).unwrap();
    (Http1::new(Socket::Plain(near)), far)
}

fn body(text: &'static str) -> BoxBody<Bytes, io::Error> {
    match text {
        "" => Empty::new().map_err(|never| match never {}).boxed(),
        text => Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed(),
    }
}

fn request(method: &str, body: BoxBody<Bytes, io::Error>, headers: &[(&str, &str)]) -> Request<RequestBody> {
    let mut request = Request::builder().method(method).uri("/a?b");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(RequestBody::new(body, None)).unwrap()
}

async fn head(http1: &mut Http1) -> Result<Response<()>, Failed> {
    timeout(PATIENCE, poll_fn(|cx| http1.poll_head(cx))).await.expect("an outcome in time")
}

async fn frame(http1: &mut Http1) -> Option<Result<Frame<Bytes>, Broken>> {
    timeout(PATIENCE, poll_fn(|cx| http1.poll_frame(cx))).await.expect("an outcome in time")
}

/// The whole body, and its trailers.
async fn whole(http1: &mut Http1) -> Result<(Vec<u8>, Option<HeaderMap>), Broken> {
    let (mut data, mut trailers) = (Vec::new(), None);
    while let Some(frame) = frame(http1).await {
        match frame?.into_data() {
            Ok(piece) => data.extend_from_slice(&piece),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((data, trailers))
}

/// What the server gets of one request, read until so much has come.
async fn heard(far: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    let reading = async {
        while !read.ends_with(end.as_bytes()) {
            assert!(far.read_buf(&mut read).await.unwrap() > 0, "{}", String::from_utf8_lossy(&read));
        }
    };
    timeout(PATIENCE, reading).await.expect("a request in time");
    String::from_utf8(read).unwrap()
}

#[tokio::test]
async fn requests_go_out_framed_by_their_body() {
    let pieces = |trailers: bool| {
        let mut frames =
            vec![Ok(Frame::data(Bytes::from_static(b"hel"))), Ok(Frame::data(Bytes::from_static(b"lo")))];
        if trailers {
            let mut fields = HeaderMap::new();
            for name in ["x-sum", "x-other", "host"] {
                fields.insert(name, http::HeaderValue::from_static("7"));
            }
            frames.push(Ok(Frame::trailers(fields)));
        }
        BoxBody::new(StreamBody::new(futures_util::stream::iter(frames)))
    };
    let (mut http1, mut far) = pair().await;
    for (method, body, headers, expected) in [
        ("GET", body(""), &[("x-a", "1")][..], "GET /a?b HTTP/1.1\r\nx-a: 1\r\n\r\n"),
        ("POST", body(""), &[("content-length", "0")], "POST /a?b HTTP/1.1\r\ncontent-length: 0\r\n\r\n"),
        ("POST", body("hello"), &[], "POST /a?b HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello"),
        (
            "PUT",
            pieces(false),
            &[("content-length", "5")],
            "PUT /a?b HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello",
        ),
        (
            "PUT",
            pieces(false),
            &[],
            "PUT /a?b HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
        ),
        (
            "PUT",
            pieces(true),
            &[(TRAILER.as_str(), "X-Sum, host")],
            "PUT /a?b HTTP/1.1\r\ntrailer: X-Sum, host\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\nx-sum: 7\r\n\r\n",
        ),
    ] {
        http1.start(request(method, body, headers));
        let server = async {
            let heard = heard(&mut far, expected).await;
            far.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            heard
        };
        let (answer, heard) = tokio::join!(head(&mut http1), server);
        assert_eq!(heard, expected);
        assert_eq!(answer.ok().expect("an answer").status(), 200);
        assert_eq!(whole(&mut http1).await.unwrap().0, b"ok");
        assert!(http1.is_reusable() && http1.is_quiet());
    }
}

#[tokio::test]
async fn a_body_must_be_as_long_as_it_is_said_to_be() {
    for length in ["4", "6"] {
        let (mut http1, _far) = pair().await;
        let frames = [Ok(Frame::data(Bytes::from_static(b"hello")))];
        let body = BoxBody::new(StreamBody::new(futures_util::stream::iter(frames)));
        http1.start(request("PUT", body, &[("content-length", length)]));
        let failed = head(&mut http1).await.expect_err("it fails");
        assert!(
            matches!(failed.request, Returned::Nothing) && failed.why.to_string().contains("Content-Length"),
            "{}",
            failed.why
        );
        assert!(!http1.is_reusable());
    }
}

#[tokio::test]
async fn large_bodies_pass_whole_both_ways() {
    let large: &'static str = "0123456789abcdef".repeat(20_000).leak();
    let chunks = large.as_bytes().chunks(7_000).map(|piece| Ok(Frame::data(Bytes::from_static(piece))));
    let chunked = BoxBody::new(StreamBody::new(futures_util::stream::iter(chunks.collect::<Vec<_>>())));
    for (out, head_of_answer) in [
        (body(large), format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{large}", large.len())),
        (
            chunked,
            format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{large}\r\n0\r\nx-end: 1\r\n\r\n",
                large.len()
            ),
        ),
    ] {
        let (mut http1, mut far) = pair().await;
        http1.start(request("POST", out, &[]));
        let server = async {
            let mut read = Vec::new();
            while read.iter().filter(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')).count() < large.len() {
                far.read_buf(&mut read).await.unwrap();
            }
            far.write_all(head_of_answer.as_bytes()).await.unwrap();
        };
        let caller = async {
            head(&mut http1).await.ok().expect("an answer");
            whole(&mut http1).await.unwrap()
        };
        let ((data, trailers), ()) = tokio::join!(caller, server);
        assert!(data == large.as_bytes());
        assert_eq!(trailers.is_some(), head_of_answer.contains("chunked"));
        assert!(http1.is_reusable());
    }
}

#[tokio::test]
async fn an_answer_is_the_same_wherever_it_is_cut() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: \r\n\r\nhello",
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nX-A:\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
    ] {
        for cut in 0..answer.len() {
            let (mut http1, mut far) = pair().await;
            http1.start(request("GET", body(""), &[]));
            let server = async {
                heard(&mut far, "\r\n\r\n").await;
                far.write_all(&answer.as_bytes()[..cut]).await.unwrap();
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
                far.write_all(&answer.as_bytes()[cut..]).await.unwrap();
            };
            let (response, ()) = tokio::join!(head(&mut http1), server);
            let response = response.ok().unwrap_or_else(|| panic!("cut at {cut}"));
            assert_eq!((response.status().as_u16(), &response.headers()["x-a"]), (200, &"".parse().unwrap()));
            assert_eq!(whole(&mut http1).await.unwrap().0, b"hello", "cut at {cut}");
            assert!(http1.is_reusable(), "cut at {cut}");
        }
    }
}

#[tokio::test]
async fn a_connection_carries_no_other_request_behind_what_is_in_doubt() {
    for (answer, whole_body) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", true),
        ("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", true),
        ("HTTP/1.1 204 No Content\r\n\r\nx", true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nx", true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok0\r\n", false),
    ] {
        let (mut http1, mut far) = pair().await;
        http1.start(request("GET", body(""), &[]));
        let server = async {
            heard(&mut far, "\r\n\r\n").await;
            far.write_all(answer.as_bytes()).await.unwrap();
        };
        let (response, ()) = tokio::join!(head(&mut http1), server);
        assert!(response.is_ok(), "{answer}");
        assert_eq!(whole(&mut http1).await.is_ok(), whole_body, "{answer}");
        assert!(!http1.is_reusable(), "{answer}");
    }
}

#[tokio::test]
async fn what_nobody_asked_for_is_noticed_at_rest() {
    for say in ["HTTP/1.1 408 Request Timeout\r\n\r\n", ""] {
        let (mut http1, mut far) = pair().await;
        assert!(http1.is_quiet());
        far.write_all(say.as_bytes()).await.unwrap();
        if say.is_empty() {
            drop(far);
        }
        let noticed = async {
            while http1.is_quiet() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, noticed).await.expect("it is noticed");
    }
}

#[tokio::test]
async fn ends_that_come_too_early_are_no_ends() {
    for (answer, with_head) in [
        ("", false),
        ("HTTP/1.1 200 OK\r\nContent-", false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", true),
    ] {
        let (mut http1, mut far) = pair().await;
        http1.start(request("GET", body(""), &[]));
        let server = async {
            heard(&mut far, "\r\n\r\n").await;
            far.write_all(answer.as_bytes()).await.unwrap();
            drop(far);
        };
        let (response, ()) = tokio::join!(head(&mut http1), server);
        assert_eq!(response.is_ok(), with_head, "{answer}");
        if with_head {
            let broken = whole(&mut http1).await.expect_err("it is not whole");
            assert!(matches!(broken, Broken::Closed(_)), "{answer}: {broken}");
        }
    }
    let (mut http1, mut far) = pair().await;
    http1.start(request("GET", body(""), &[]));
    let server = async {
        heard(&mut far, "\r\n\r\n").await;
        far.write_all(b"HTTP/1.1 200 OK\r\n\r\nall there is").await.unwrap();
        drop(far);
    };
    let (response, ()) = tokio::join!(head(&mut http1), server);
    assert!(response.is_ok() && http1.ends_with_connection());
    assert_eq!(whole(&mut http1).await.unwrap().0, b"all there is");
    assert!(!http1.is_reusable());
}

#[tokio::test]
async fn a_server_that_refuses_a_body_is_heard() {
    let (mut http1, mut far) = pair().await;
    let pieces =
        futures_util::stream::iter((0..4096).map(|_| Ok(Frame::data(Bytes::from_static(&[b'x'; 4096])))));
    http1.start(request("POST", BoxBody::new(StreamBody::new(pieces)), &[]));
    let server = async {
        let mut some = [0; 1024];
        far.read_exact(&mut some).await.unwrap();
        far.write_all(b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            .await
            .unwrap();
        far.shutdown().await.unwrap();
        // As long as it reads on, what it said is not lost.
        tokio::io::copy(&mut far, &mut tokio::io::sink()).await.unwrap();
    };
    let (response, ()) = tokio::join!(
        async {
            let response = head(&mut http1).await.ok().expect("an answer");
            drop(http1);
            response
        },
        server
    );
    assert_eq!(response.status(), 413);
}

#[tokio::test]
async fn a_request_of_which_nothing_left_comes_back() {
    let (mut http1, far) = pair().await;
    drop(far);
    // Until the reset has come, a first write may succeed.
    while http1.is_quiet() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let Socket::Plain(socket) = &http1.socket else { unreachable!("it is plain") };
    socket2::SockRef::from(socket).shutdown(std::net::Shutdown::Write).unwrap();
    http1.start(request("GET", body(""), &[("x-a", "1")]));
    let failed = head(&mut http1).await.expect_err("it fails");
    let Returned::Unsent(unsent) = failed.request else { panic!("nothing has left") };
    assert_eq!((unsent.method().as_str(), &unsent.headers()["x-a"]), ("GET", &"1".parse().unwrap()));
}
