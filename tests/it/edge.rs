//! The door, through raw sockets: one view of a request, framing that nobody can read in two ways, and floods.

use crate::harness::client::PATIENCE;
use crate::harness::wire::Finish;
use crate::harness::{Answer, Client, Gateway, Process, Scripted, Wire, eventually};
use std::time::{Duration, Instant};

/// One route that takes everything, in a chain that logs and counts.
fn manifest(url: &str) -> String {
    format!(
        "upstreams: {{ back: {{ targets: [{{ url: \"{url}\" }}] }} }}\n\
         chains: {{ all: [access_log, recovery, request_id, metrics] }}\n\
         routes:\n  - {{ route: ANY /*path, upstream: back, chain: all, public: true }}\n"
    )
}

async fn gateway(upstream: &Scripted) -> Gateway {
    Gateway::with(&manifest(&upstream.url())).start().await
}

/// The first answer to these bytes.
async fn answer_to(client: &Client, bytes: impl AsRef<[u8]>) -> Answer {
    let mut wire = Wire::connect(client.address()).await;
    wire.send(bytes).await;
    wire.answer().await
}

/// Everything that comes of these bytes until the gateway ends the connection.
async fn all_of(client: &Client, bytes: impl AsRef<[u8]>) -> String {
    let mut wire = Wire::connect(client.address()).await;
    wire.send(bytes).await;
    wire.rest().await.0
}

/// Paths with a second reading.
const AMBIGUOUS: [&str; 20] = [
    "/a/../b",
    "/..",
    "/a/./b",
    "/.",
    "//a",
    "/a//b",
    "/a/%2e%2E/b",
    "/a/.%2e",
    "/%2e/a",
    "/a%2fb",
    "/a%2Fb",
    "/a%5cb",
    "/a%00b",
    "/a%3bb",
    "/a%3fb",
    "/a%23b",
    "/a%",
    "/a%4",
    "/a%zz",
    "/a%c3%28",
];

#[tokio::test]
async fn a_path_with_a_second_reading_is_a_400_and_never_passed_on() {
    let upstream = Scripted::saying("ok").await;
    let gateway = gateway(&upstream).await;
    for path in AMBIGUOUS {
        let answer = answer_to(&gateway.client, format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "invalid_path"), "{path}");
    }
    assert_eq!(upstream.heads().len(), 0);
}

#[tokio::test]
async fn bytes_that_are_no_path_at_all_are_a_400() {
    let upstream = Scripted::saying("ok").await;
    let gateway = gateway(&upstream).await;
    for path in [&b"/a\x00b"[..], b"/\xff\xfe", b"/a\\b", b"/a b", b"/a\x7f", b"a"] {
        let bytes = [b"GET ", path, b" HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"].concat();
        let answer = all_of(&gateway.client, bytes).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{:?}: {answer}", String::from_utf8_lossy(path));
    }
    assert_eq!(upstream.heads().len(), 0);
}

#[tokio::test]
async fn one_spelling_is_forwarded() {
    let upstream = Scripted::saying("ok").await;
    let gateway = gateway(&upstream).await;
    for path in ["/%61/%7eb", "/caf%c3%a9", "/a%20b?x=%2F..//", "/a#/../b"] {
        answer_to(&gateway.client, format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
    }
    let seen: Vec<_> = upstream.heads().iter().map(|head| head.uri.to_string()).collect();
    assert_eq!(seen, ["/a/~b", "/caf%C3%A9", "/a%20b?x=%2F..//", "/a"]);
}

#[tokio::test]
async fn refused_requests_are_logged_and_counted() {
    let upstream = Scripted::saying("ok").await;
    let gateway_here = gateway(&upstream).await;
    gateway_here.client.get("/a/../b").await;
    let counted = "http_requests_total{method=\"GET\",path=\"unmatched\",status=\"400\"}";
    eventually("it is counted", PATIENCE, async || gateway_here.metric(counted).await == 1.0).await;

    let mut process = Process::serve(&manifest(&upstream.url()), &[]).await;
    let answer = answer_to(&process.client, "GET /a/../b%0a?token=hush HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let line = process.line(|line| line["status"] == 400).await;
    assert_eq!(line["request_id"], answer.json()["request_id"]);
    assert_eq!(line["path"], "/a/../b%0a");
    assert!(line["route"].is_null(), "no route took it: {line}");
}

#[tokio::test]
async fn a_length_in_two_ways_is_refused_and_nothing_behind_it_is_read() {
    let upstream = Scripted::saying("ok").await;
    let gateway = gateway(&upstream).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    for framing in [
        "content-length: 6\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 6",
        "Transfer-Encoding: chunked\r\nX: y\r\nCONTENT-LENGTH: 0",
        "content-length: 5\r\ncontent-length: 6",
        "content-length: 5, 6",
        "content-length: +5",
        "content-length: 0x5",
        "content-length: -1",
        "content-length: 99999999999999999999",
        "transfer-encoding: gzip",
        "transfer-encoding: chunked, gzip",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: xchunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity",
        "transfer-encoding : chunked",
        "content-length: 5\r\n transfer-encoding: chunked",
    ] {
        let request = format!("POST /up HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n0\r\n\r\n{smuggled}");
        let all = all_of(&gateway.client, request).await;
        assert!(all.starts_with("HTTP/1.1 400"), "{framing:?}: {all}");
        assert_eq!(all.matches("HTTP/1.1 ").count(), 1, "{framing:?}: {all}");
    }
    assert_eq!(upstream.heads().len(), 0, "{:?}", upstream.heads());
}

#[tokio::test]
async fn a_refused_length_is_told_in_the_common_form() {
    let upstream = Scripted::saying("ok").await;
    let gateway = gateway(&upstream).await;
    let both =
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    let answer = answer_to(&gateway.client, both).await;
    assert_eq!(answer.code(), "invalid_framing");
    assert_eq!(answer.header("connection"), Some("close"));
}

#[tokio::test]
async fn http_1_0_has_no_transfer_encoding() {
    let upstream = Scripted::saying("ok").await;
    let gateway = gateway(&upstream).await;
    let all = all_of(&gateway.client, "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n").await;
    assert!(all.starts_with("HTTP/1.0 400") || all.starts_with("HTTP/1.1 400"), "{all}");
    assert_eq!(upstream.heads().len(), 0);
}

#[tokio::test]
async fn http_1_0_is_served_and_closed() {
    let upstream = Scripted::saying("ok").await;
    let gateway = gateway(&upstream).await;
    let all = all_of(&gateway.client, "GET /old HTTP/1.0\r\n\r\n").await;
    assert!(all.starts_with("HTTP/1.0 200") && all.ends_with("\r\n\r\nok"), "{all}");
}

#[tokio::test]
async fn a_chunk_that_is_none_breaks_the_request_off() {
    let upstream = Scripted::saying("ok").await;
    let gateway = gateway(&upstream).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    for chunk in [
        "zz\r\nab\r\n0\r\n\r\n",
        "-1\r\nab\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nab",
        "2\r\nabcd\r\n0\r\n\r\n",
    ] {
        let head = "POST /up HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        let all = all_of(&gateway.client, format!("{head}{chunk}{smuggled}")).await;
        assert!(all.is_empty() || all.starts_with("HTTP/1.1 400"), "{chunk:?}: {all}");
        assert!(all.matches("HTTP/1.1 ").count() <= 1, "{chunk:?}: {all}");
    }
    assert!(upstream.heads().iter().all(|head| head.uri.path() != "/smuggled"));
}

#[tokio::test]
async fn a_request_names_one_host_or_is_a_400() {
    let upstream = Scripted::saying("ok").await;
    let gateway = gateway(&upstream).await;
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a, b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a/b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: user@a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a:99999\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: 0x7f.1\r\n\r\n",
        "GET http://b/ HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET http://a:81/ HTTP/1.1\r\nhost: a\r\n\r\n",
    ] {
        assert_eq!(answer_to(&gateway.client, request).await.code(), "invalid_host", "{request:?}");
    }
    assert_eq!(upstream.heads().len(), 0);
}

#[tokio::test]
async fn http2_host_and_authority_agree_or_it_is_a_400() {
    let upstream = Scripted::saying("ok").await;
    let gateway = gateway(&upstream).await;
    let client = gateway.client.for_host("api.example");
    assert_eq!(client.send_h2_with_host("GET", "/", "api.example").await.status, 200);
    assert_eq!(client.send_h2_with_host("GET", "/", "evil.example").await.code(), "invalid_host");
}

#[tokio::test]
async fn trace_and_connect_are_refused() {
    let upstream = Scripted::saying("ok").await;
    let gateway = gateway(&upstream).await;
    for request in ["TRACE /a HTTP/1.1\r\nhost: a\r\n\r\n", "CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n"] {
        let answer = answer_to(&gateway.client, request).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code().as_str()),
            (405, "method_not_allowed"),
            "{request:?}"
        );
    }
    assert_eq!(upstream.heads().len(), 0);
}

#[tokio::test]
async fn a_target_that_is_no_path_is_a_400() {
    let upstream = Scripted::saying("ok").await;
    let gateway = gateway(&upstream).await;
    for target in ["*", "ftp://a/x", "http://user@a/x"] {
        let answer = answer_to(&gateway.client, format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "invalid_target"), "{target}");
    }
}

#[tokio::test]
async fn a_target_that_is_too_long_is_a_414() {
    let upstream = Scripted::saying("ok").await;
    let gateway = gateway(&upstream).await;
    for target in [format!("/{}", "a".repeat(9000)), format!("/a?{}", "b".repeat(9000))] {
        let answer = answer_to(&gateway.client, format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (414, "uri_too_long"));
    }
    let fits = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(8000));
    assert_eq!(answer_to(&gateway.client, fits).await.status, 200);
}

#[tokio::test]
async fn too_many_or_too_large_headers_are_a_431_and_the_end() {
    let upstream = Scripted::saying("ok").await;
    let gateway = gateway(&upstream).await;
    let many: String = (0..120).map(|index| format!("x-{index}: 1\r\n")).collect();
    for headers in
        [many, format!("x-large: {}\r\n", "a".repeat(40 << 10)), format!("{}: 1\r\n", "a".repeat(40 << 10))]
    {
        let all = all_of(&gateway.client, format!("GET / HTTP/1.1\r\nhost: a\r\n{headers}\r\n")).await;
        assert!(all.starts_with("HTTP/1.1 431"), "{}", &all[..all.len().min(100)]);
    }
    assert_eq!(upstream.heads().len(), 0);
    let enough: String = (0..80).map(|index| format!("x-{index}: 1\r\n")).collect();
    let request = format!("GET / HTTP/1.1\r\nhost: a\r\n{enough}\r\n");
    assert_eq!(answer_to(&gateway.client, request).await.status, 200);
}

#[tokio::test]
async fn a_head_that_drips_is_cut_off_at_the_deadline() {
    let upstream = Scripted::saying("ok").await;
    let gateway = Gateway::with(&manifest(&upstream.url())).flag("--header-timeout", "700ms").start().await;
    let mut wire = Wire::connect(gateway.client.address()).await;
    let began = Instant::now();
    for byte in b"GET / HTTP/1.1\r\nx-slow: ".iter().chain(std::iter::repeat(&b'a')) {
        if !wire.send([*byte]).await {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(5), "it may drip on and on");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert!(began.elapsed() >= Duration::from_millis(600), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let upstream = Scripted::saying("ok").await;
    let gateway = Gateway::with(&manifest(&upstream.url())).flag("--header-timeout", "500ms").start().await;
    let began = Instant::now();
    let mut wire = Wire::connect(gateway.client.address()).await;
    wire.rest().await;
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_connection_that_rests_is_closed_in_order() {
    let upstream = Scripted::saying("ok").await;
    let gateway = Gateway::with(&manifest(&upstream.url())).flag("--keep-alive", "600ms").start().await;
    let mut wire = Wire::connect(gateway.client.address()).await;
    wire.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(wire.answer().await.text(), "ok");
    let began = Instant::now();
    assert_eq!(wire.rest().await, (String::new(), Finish::Closed));
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_connection_over_the_cap_is_told_so_and_room_is_found_again() {
    let upstream = Scripted::saying("ok").await;
    let gateway = Gateway::with(&manifest(&upstream.url())).flag("--max-connections", "3").start().await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut wire = Wire::connect(gateway.client.address()).await;
        wire.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(wire.answer().await.status, 200);
        held.push(wire);
    }
    let mut one_more = Wire::connect(gateway.client.address()).await;
    let refusal = one_more.answer().await;
    assert_eq!((refusal.status.as_u16(), refusal.code().as_str()), (503, "too_many_connections"));
    assert_eq!(refusal.header("retry-after"), Some("1"));
    held.pop();
    eventually("there is room again", PATIENCE, async || {
        let request = gateway.client.request("GET", "/", &[], "");
        gateway.client.try_send(request).await.is_ok_and(|answer| answer.status == 200)
    })
    .await;
}

/// Numbers that look random and are the same each time (xorshift).
fn noise(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
}

#[tokio::test]
async fn a_flood_of_garbage_breaks_nothing() {
    let upstream = Scripted::saying("ok").await;
    let mut process =
        Process::serve(&manifest(&upstream.url()), &["--header-timeout=1s", "--body-timeout=1s"]).await;
    let starts = [
        "",
        "GET ",
        "GET / HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
        "\x16\x03\x01",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n",
    ];
    let address = process.client.address();
    let floods: Vec<_> = (0..300)
        .map(|seed: u64| {
            let start = starts[seed as usize % starts.len()];
            let bytes: Vec<u8> = start.bytes().chain(noise(seed).take(seed as usize * 7)).collect();
            tokio::spawn(async move {
                let mut wire = Wire::connect(address).await;
                wire.send(bytes).await;
                // Some wait for an answer, some just leave.
                if seed.is_multiple_of(3) {
                    wire.some_or_end().await;
                }
            })
        })
        .collect();
    for flood in floods {
        flood.await.unwrap();
    }
    assert_eq!(process.client.get("/after").await.text(), "ok");
    process.line(|line| line["path"] == "/after").await;
    let log = process.rest();
    assert!(!log.contains("panicked") && !log.contains("\"level\":\"ERROR\""), "{log}");
}

#[tokio::test]
async fn a_fresh_request_is_answered_within_a_second_while_200_slow_ones_hang_on() {
    let upstream = Scripted::saying("ok").await;
    let gateway = Gateway::with(&manifest(&upstream.url())).flag("--header-timeout", "30s").start().await;
    let mut slow = Vec::new();
    for index in 0..200 {
        let mut wire = Wire::connect(gateway.client.address()).await;
        // Half of them are slow with their head, half with their body.
        let begun = match index % 2 {
            0 => "GET / HTTP/1.1\r\nhost: a\r\nx-",
            _ => "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\nx",
        };
        assert!(wire.send(begun).await);
        slow.push(wire);
    }
    for _ in 0..5 {
        for wire in &mut slow {
            assert!(wire.send("x").await, "it still hangs on");
        }
        let began = Instant::now();
        assert_eq!(gateway.client.get("/fresh").await.text(), "ok");
        assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    }
    assert!(gateway.metric("voicegate_connections_open").await >= 200.0);
}

#[tokio::test]
async fn many_requests_sent_at_once_are_answered_in_their_order() {
    let upstream = Scripted::start(|head, _| {
        http::Response::new(crate::harness::scripted::body(head.uri.path().to_owned()))
    })
    .await;
    let gateway = gateway(&upstream).await;
    let mut wire = Wire::connect(gateway.client.address()).await;
    let requests: String = (0..20).map(|index| format!("GET /{index} HTTP/1.1\r\nhost: a\r\n\r\n")).collect();
    wire.send(requests).await;
    for index in 0..20 {
        assert_eq!(wire.answer().await.text(), format!("/{index}"));
    }
}
