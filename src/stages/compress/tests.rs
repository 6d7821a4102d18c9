use super::super::testing::{answering, around, build, check, fed, request, send};
use super::super::{Next, fold};
use super::*;
use async_compression::tokio::bufread::{BrotliDecoder, GzipDecoder, ZstdDecoder};
use http_body_util::BodyExt;
use std::sync::Mutex;
use tokio::io::AsyncReadExt;

fn text() -> String {
    "The same words again and again. ".repeat(400)
}

fn json() -> Response {
    Response::builder()
        .content_type("application/json; charset=utf-8")
        .header("etag", "\"abc\"")
        .header("accept-ranges", "bytes")
        .header("content-length", text().len().to_string())
        .body(text())
}

async fn got(next: &Next, accept: &str) -> Response {
    send(next, request(Method::GET, &[("accept-encoding", accept)])).await
}

async fn decoded(response: Response) -> String {
    let coding = response.header("content-encoding").map(str::to_owned);
    let bytes = response.into_body().into_bytes().await.unwrap();
    let mut text = String::new();
    match coding.as_deref() {
        Some("gzip") => GzipDecoder::new(&bytes[..]).read_to_string(&mut text).await,
        Some("br") => BrotliDecoder::new(&bytes[..]).read_to_string(&mut text).await,
        Some("zstd") => ZstdDecoder::new(&bytes[..]).read_to_string(&mut text).await,
        _ => (&bytes[..]).read_to_string(&mut text).await,
    }
    .unwrap();
    text
}

#[tokio::test]
async fn every_coding_and_level_comes_back_as_it_was() {
    for coding in ["gzip", "br", "zstd"] {
        for level in ["fastest", "balanced", "best"] {
            let next = around(&format!("compress: {{ level: {level} }}"), answering(json));
            let response = got(&next, coding).await;
            assert_eq!(response.header("content-encoding"), Some(coding));
            assert_eq!(response.header("content-length"), None);
            assert_eq!(response.header("accept-ranges"), None);
            assert_eq!(response.header("etag"), Some("W/\"abc\""));
            assert_eq!(response.header("vary"), Some("Accept-Encoding"));
            assert_eq!(decoded(response).await, text());
        }
    }
}

#[tokio::test]
async fn the_caller_chooses_and_among_equals_the_manifest() {
    let all = around("compress", answering(json));
    let two = around("compress: { algorithms: [gzip, br] }", answering(json));
    for (next, accept, chosen) in [
        (&all, "gzip, deflate, br, zstd", Some("zstd")),
        (&two, "gzip, deflate, br, zstd", Some("gzip")),
        (&all, "gzip;q=1.0, br;q=0.9, zstd; q=0.5", Some("gzip")),
        (&all, "br;q=0.2, gzip;q=0.3", Some("gzip")),
        (&all, "*", Some("zstd")),
        (&all, "zstd;q=0, *;q=0.1", Some("br")),
        (&all, "x-GZIP", Some("gzip")),
        (&all, "GZip", Some("gzip")),
        (&all, "gzip;q=0", None),
        (&all, "gzip;q=nonsense", None),
        (&all, "identity", None),
        (&all, "deflate", None),
        (&all, "", None),
    ] {
        let response = got(next, accept).await;
        assert_eq!(response.header("content-encoding"), chosen, "{accept}");
        assert_eq!(response.header("vary"), Some("Accept-Encoding"), "{accept}");
        assert_eq!(decoded(response).await, text());
    }
    let response = send(&all, request(Method::GET, &[])).await;
    assert_eq!(response.header("content-encoding"), None, "nothing is accepted that is not named");
}

#[tokio::test]
async fn some_are_left_as_they_are() {
    let json = || Response::builder().content_type("application/json");
    type Make = Box<dyn Fn() -> Response + Send + Sync>;
    let cases: Vec<(&str, Make)> = vec![
        ("short", Box::new(move || json().body("{}"))),
        ("encoded", Box::new(move || json().header("content-encoding", "gzip").body(text()))),
        ("partial", Box::new(move || json().status(StatusCode::PARTIAL_CONTENT).body(text()))),
        ("range", Box::new(move || json().header("content-range", "bytes 0-1/2").body(text()))),
        (
            "no-transform",
            Box::new(move || json().header("cache-control", "public, No-Transform").body(text())),
        ),
        ("not modified", Box::new(move || json().status(StatusCode::NOT_MODIFIED).finish())),
        ("digest", Box::new(move || json().header("content-digest", "sha-256=:x:").body(text()))),
        ("trailers", Box::new(move || json().header("trailer", "x").body(text()))),
        ("image", Box::new(|| Response::builder().content_type("image/png").body(text()))),
        ("video", Box::new(|| Response::builder().content_type("video/mp4").body(text()))),
        ("grpc", Box::new(|| Response::builder().content_type("application/grpc+proto").body(text()))),
        ("no type", Box::new(|| Response::builder().body(text()))),
        (
            "events",
            Box::new(|| Response::builder().content_type("Text/Event-Stream; charset=utf-8").body(text())),
        ),
    ];
    for (what, make) in cases {
        let plain = make();
        let next = around("compress", answering(make));
        let response = got(&next, "gzip").await;
        let codings = |response: &Response| response.header("content-encoding").map(str::to_owned);
        assert_eq!(codings(&response), codings(&plain), "{what}");
        assert_eq!(
            response.into_body().into_bytes().await.unwrap(),
            plain.into_body().into_bytes().await.unwrap(),
            "{what}"
        );
    }
    let next = around("compress", answering(self::json));
    let response = send(&next, request(Method::HEAD, &[("accept-encoding", "gzip")])).await;
    assert_eq!(response.header("content-encoding"), None);
}

#[tokio::test]
async fn types_and_size_can_be_chosen() {
    let next = around(
        "compress: { types: [image/bmp, \"+cbor\", \"audio/*\"], min_size: 1B }",
        answering(|| Response::builder().content_type("application/senml+cbor").body("x")),
    );
    assert_eq!(got(&next, "gzip").await.header("content-encoding"), Some("gzip"));
    let next = around("compress: { types: [image/bmp] }", answering(json));
    assert_eq!(got(&next, "gzip").await.header("content-encoding"), None);
    let faults =
        check("compress: { types: [text, \"a b/c\", text/event-stream], algorithms: [gzip, gzip, lzw] }", "")
            .faults;
    assert_eq!(faults.len(), 5, "{faults:#?}");
}

#[tokio::test]
async fn an_event_stream_passes_at_once() {
    let (feed, body) = fed();
    let body = Mutex::new(Some(body));
    let events = move || {
        Response::builder().content_type("text/event-stream").body(body.lock().unwrap().take().unwrap())
    };
    let response = got(&around("compress", answering(events)), "gzip").await;
    assert_eq!(response.header("content-encoding"), None);
    let mut body: BoxBody<Bytes, io::Error> = response.into_body().into();
    for event in ["data: 1\n\n", "data: 2\n\n"] {
        feed.send(Ok(event.into())).unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), event);
    }
}

#[tokio::test]
async fn a_route_that_streams_is_left_alone_whatever_it_sends() {
    let stage = check("compress", "").sound();
    assert!(stage.facts().buffers_response.is_some());
    let next = fold(vec![build(&stage, "POST", true)], answering(json));
    let response = got(&next, "gzip").await;
    assert_eq!((response.header("content-encoding"), response.header("vary")), (None, None));
}

#[tokio::test]
async fn a_pause_flushes_and_a_break_breaks() {
    for coding in ["gzip", "br", "zstd"] {
        let (feed, body) = fed();
        let body = Mutex::new(Some(body));
        let make = move || {
            Response::builder().content_type("application/json").body(body.lock().unwrap().take().unwrap())
        };
        let response = got(&around("compress", answering(make)), coding).await;
        assert_eq!(response.header("content-encoding"), Some(coding));
        let mut body: BoxBody<Bytes, io::Error> = response.into_body().into();
        let mut encoded = Vec::new();
        let mut plain = Vec::new();
        feed.send(Ok("[1,".into())).unwrap();
        // Whatever came before the pause can be decoded before anything else comes.
        while plain != b"[1," {
            encoded.extend(body.frame().await.unwrap().unwrap().into_data().unwrap());
            let mut part = [0; 64];
            let length = match coding {
                "gzip" => GzipDecoder::new(&encoded[..]).read(&mut part).await,
                "br" => BrotliDecoder::new(&encoded[..]).read(&mut part).await,
                _ => ZstdDecoder::new(&encoded[..]).read(&mut part).await,
            };
            plain = part[..length.unwrap_or(0)].to_vec();
        }
        feed.send(Err(io::ErrorKind::ConnectionReset.into())).unwrap();
        assert!(body.frame().await.unwrap().is_err(), "{coding}: an abort, not a clean end");
    }
}
