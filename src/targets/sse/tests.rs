//! Event streams over the demo services, and from servers that break them at every place.

use super::super::testing::{Bench, faults};
use super::*;
use crate::demo::Demo;
use crate::diag::{Code, Diagnostics};
use crate::identity::Identity;
use crate::tokens::testing::identity;
use crate::upstream::testing::{PATIENCE, Scripted, eventually};
use http::Method;
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use proptest::prelude::*;
use std::time::{Duration, SystemTime};
use tokio::time::timeout;

const QUESTION: &str = r#"{"query":"hello","session_id":"s1"}"#;
const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n";

fn route(limits: &str) -> String {
    format!("{{ route: POST /v01/query/stream, upstream: algo, protocol: sse, stream: {{ {limits} }} }}")
}

/// The caller's end of a stream.
struct Caller {
    exchange: Arc<Exchange>,
    body: BoxBody<Bytes, io::Error>,
}

impl Caller {
    async fn open(bench: &Bench, query: &str) -> (Response<()>, Caller) {
        Caller::open_as(None, bench, query).await
    }

    async fn open_as(who: Option<Identity>, bench: &Bench, query: &str) -> (Response<()>, Caller) {
        let uri = format!("/v01/query/stream{query}");
        let headers = [("content-type", "application/json"), ("accept-encoding", "gzip")];
        let (exchange, response) = bench.send_as(who, Method::POST, &uri, &headers, QUESTION).await;
        let mut head = Response::new(());
        *head.status_mut() = response.status();
        *head.headers_mut() = response.headers().clone();
        (head, Caller { exchange, body: response.into_body().into() })
    }

    /// Everything up to the end, and whether that was clean.
    async fn rest(&mut self) -> (String, bool) {
        let mut text = Vec::new();
        loop {
            match timeout(PATIENCE, self.body.frame()).await.expect("an end in time") {
                None => return (String::from_utf8(text).unwrap(), true),
                Some(Ok(frame)) => text.extend_from_slice(&frame.into_data().unwrap()),
                Some(Err(_)) => return (String::from_utf8(text).unwrap(), false),
            }
        }
    }

    async fn until(&mut self, wanted: &str) -> String {
        let mut text = String::new();
        while !text.contains(wanted) {
            let frame = timeout(PATIENCE, self.body.frame()).await.expect("a piece in time");
            text.push_str(std::str::from_utf8(&frame.expect("more").unwrap().into_data().unwrap()).unwrap());
        }
        text
    }
}

/// A server that answers a head and these pieces, 20 ms apart, and then closes or waits.
async fn telling(head: &'static str, pieces: &'static [&'static str], closes: bool) -> Scripted {
    Scripted::start(move |mut wire| async move {
        wire.request().await?;
        wire.write(HEAD).await?;
        wire.write(head).await?;
        for piece in pieces {
            match head.contains("chunked") {
                true => wire.write(format!("{:x}\r\n{piece}\r\n", piece.len())).await?,
                false => wire.write(piece).await?,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if closes { Ok(()) } else { wire.until_closed().await }
    })
    .await
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n\r\n";

/// Streams that are open, and those that ended so, as metrics show them.
fn counted(bench: &Bench, end: End) -> (u64, u64) {
    let text = bench.shared.telemetry.render();
    let value = |series: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        line.map_or(0, |value| value.trim().parse().unwrap())
    };
    let path = "path=\"/v01/query/stream\"";
    let ended = format!("voicegate_streams_ended_total{{end=\"{}\",{path}}}", end.word());
    (value(&format!("voicegate_streams_open{{{path}}}")), value(&ended))
}

/// What the caller read, whether its end was clean, how the exchange ended, and how many streams ended so.
async fn told(server: &Scripted, limits: &str) -> (String, bool, End, u64) {
    let bench = Bench::at(&server.url(), &route(limits));
    let (head, mut caller) = Caller::open(&bench, "").await;
    assert_eq!(head.status(), 200);
    let (text, clean) = caller.rest().await;
    assert!(caller.body.is_end_stream() || !clean);
    let end = caller.exchange.end();
    drop(caller);
    let (open, ended) = counted(&bench, end);
    assert_eq!(open, 0);
    (text, clean, end, ended)
}

#[tokio::test]
async fn bytes_pass_unchanged_however_they_are_cut() {
    let demo = Demo::start().await.unwrap();
    let mut texts = Vec::new();
    for split in ["", "&split=1"] {
        let bench = Bench::at(&demo.url(), &route(""));
        let (head, mut caller) = Caller::open(&bench, &format!("?delay=0ms{split}")).await;
        assert_eq!(head.headers()["content-type"], "text/event-stream");
        assert_eq!(head.headers()["x-accel-buffering"], "no");
        assert_eq!(head.headers()["cache-control"], "no-cache");
        let (text, clean) = caller.rest().await;
        assert!(clean && text.ends_with("}\n\n"));
        drop(caller);
        assert_eq!(counted(&bench, End::Complete), (0, 1));
        assert_eq!(bench.upstream.status().servers[0].at_rest, 1, "a whole stream gives its connection back");
        texts.push(text);
    }
    assert_eq!(texts[0], texts[1]);
    assert!(texts[0].contains("\"type\":\"end\""));
}

#[tokio::test]
async fn silence_is_filled_with_heartbeats_between_events_only() {
    let demo = Demo::start().await.unwrap();
    let bench = Bench::at(&demo.url(), &route("heartbeat: 40ms"));
    let (_, mut caller) = Caller::open(&bench, "?first=150ms&delay=0ms&stall_after=2").await;
    let text = caller.until("\"type\":\"token\"").await;
    let before = text.split("\"type\":\"start\"").next().unwrap_or_default();
    assert!((2..=4).contains(&before.matches(HEARTBEAT).count()) && text.starts_with(HEARTBEAT), "{text}");
    for _ in 0..2 {
        caller.until(HEARTBEAT).await;
    }

    let server = telling(CHUNKED, &["data: a\n\n", "data: half"], false).await;
    let (text, clean, ..) = told(&server, "heartbeat: 15ms, idle: 150ms").await;
    assert!(!clean && text.ends_with("data: half"), "nothing is put into an event: {text}");
}

#[tokio::test]
async fn an_upstream_that_dies_is_an_error_event_or_an_abort() {
    let demo = Demo::start().await.unwrap();
    let bench = Bench::at(&demo.url(), &route(""));
    let (_, mut caller) = Caller::open(&bench, "?delay=0ms&fail_after=3").await;
    let (text, clean) = caller.rest().await;
    assert!(clean && text.ends_with(INTERRUPTED), "{text}");
    assert_eq!(text.matches("\"type\":\"token\"").count(), 3);
    assert_eq!(caller.exchange.end(), End::UpstreamBroke);

    for (pieces, whole) in [
        (&["data: a\n\n"][..], true),
        (&["data: a\r\n\r\n"], true),
        (&["data: a\r\r"], true),
        (&["data: a\n\n: comment\n"], true),
        (&[": nothing yet\n"], true),
        (&["data: a\n"], false),
        (&["data: a\n\nda"], false),
        (&["data: a\n\n: com"], false),
        (&["data: a\r", "\n"], false),
        (&["data: a\n", "\ndata: b\r\n"], false),
        (&["data: a\n", "\r", "\n"], true),
    ] {
        let server = telling(CHUNKED, pieces, true).await;
        let (text, clean, end, ended) = told(&server, "").await;
        let sent = pieces.concat();
        assert_eq!((text, clean), (if whole { sent + INTERRUPTED } else { sent }, whole), "{pieces:?}");
        assert_eq!((end, ended), (End::UpstreamBroke, 1));
    }
}

#[tokio::test]
async fn the_connections_end_is_a_clean_end_between_events_only() {
    let until_close = "Connection: close\r\n\r\n";
    let (text, clean, end, _) = told(&telling(until_close, &["data: a\n\n"], true).await, "").await;
    assert_eq!(
        (text.as_str(), clean, end),
        ("data: a\n\n", true, End::ClientLeft),
        "left for the door to call complete"
    );
    let (text, clean, end, _) = told(&telling(until_close, &["data: a\n\ndata"], true).await, "").await;
    assert_eq!((text.as_str(), clean, end), ("data: a\n\ndata", false, End::UpstreamBroke));
}

#[tokio::test]
async fn limits_end_a_stream_between_events_and_abort_it_inside_one() {
    for (pieces, limits, event) in [
        (&["data: a\n\n"][..], "idle: 80ms", Some(IDLE)),
        (&["data: a\n\nhalf"], "idle: 80ms", None),
        (
            &[": alive\n\n", ": alive\n\n", ": alive\n\n", ": alive\n\n", ": alive\n\n"],
            "first_event: 80ms",
            Some(IDLE),
        ),
        (&["data: a\n\n"; 20], "max: 150ms", Some(TOO_LONG)),
    ] {
        let server = telling(CHUNKED, pieces, false).await;
        let begun = Instant::now();
        let (text, clean, end, ended) = told(&server, limits).await;
        assert_eq!(clean, event.is_some(), "{limits}: {text}");
        assert!(event.is_none_or(|event| text.ends_with(event)), "{limits}: {text}");
        assert_eq!((end, ended), (End::StreamLimit, 1));
        assert!(begun.elapsed() < Duration::from_secs(1));
        server.until_open(0).await;
    }
}

#[tokio::test]
async fn no_head_in_time_is_504() {
    let demo = Demo::start().await.unwrap();
    let bench = Bench::at(&demo.url(), &route("first_event: 80ms"));
    let (head, _) = Caller::open(&bench, "?hang=1").await;
    assert_eq!(head.status(), 504);
    eventually(|| demo.stats().connections.open == 0).await;
}

#[tokio::test]
async fn what_is_no_stream_passes_plainly() {
    let demo = Demo::start().await.unwrap();
    let bench = Bench::at(&demo.url(), &route("idle: 50ms, heartbeat: 20ms"));
    let (head, mut caller) = Caller::open(&bench, "?status=503").await;
    assert_eq!(
        (head.status().as_u16(), &head.headers()["content-type"]),
        (503, &"application/json".parse().unwrap())
    );
    assert!(!head.headers().contains_key("x-accel-buffering"));
    assert!(head.headers().contains_key("content-length"));
    let (text, clean) = caller.rest().await;
    assert!(clean && text.starts_with('{'));
    assert_eq!(counted(&bench, End::Complete), (0, 0));
}

#[tokio::test]
async fn a_caller_who_leaves_stops_the_stream() {
    let demo = Demo::start().await.unwrap();
    let bench = Bench::at(&demo.url(), &route(""));
    let (_, mut caller) = Caller::open(&bench, "?delay=5ms&tokens=100000").await;
    caller.until("\"type\":\"token\"").await;
    assert_eq!(counted(&bench, End::ClientLeft), (1, 0));
    let begun = Instant::now();
    let exchange = caller.exchange.clone();
    drop(caller);
    eventually(|| demo.stats().streams.aborted == 1 && demo.stats().connections.open == 0).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(exchange.end(), End::ClientLeft);
    assert_eq!(counted(&bench, End::ClientLeft), (0, 1));
}

#[tokio::test]
async fn a_gateway_that_goes_down_says_so() {
    let demo = Demo::start().await.unwrap();
    let bench = Bench::at(&demo.url(), &route(""));
    let (_, mut quiet) = Caller::open(&bench, "?delay=0ms&stall_after=1").await;
    quiet.until("\"type\":\"token\"").await;
    let (_, mut busy) = Caller::open(&bench, "?delay=2ms&tokens=100000&split=1").await;
    busy.until("\"type\":\"token\"").await;
    // Polled once more in its silence, so that only the word itself can wake it.
    assert!(timeout(Duration::from_millis(20), quiet.body.frame()).await.is_err());
    bench.close.send(true).unwrap();
    for caller in [&mut quiet, &mut busy] {
        let (text, clean) = caller.rest().await;
        assert!(clean && text.ends_with(SHUTTING_DOWN), "{text}");
        assert_eq!(caller.exchange.end(), End::Shutdown);
        let events = text.strip_suffix(SHUTTING_DOWN).unwrap();
        assert!(events.is_empty() || events.ends_with("\n\n"), "{events}");
    }
    eventually(|| demo.stats().streams.running == 0).await;
}

fn somebody() -> Identity {
    Identity { issued_at: Some(SystemTime::now()), ..identity("u", "t", "user") }
}

#[tokio::test]
async fn a_caller_who_is_revoked_is_told_between_events() {
    let demo = Demo::start().await.unwrap();
    let bench = Bench::at(&demo.url(), &route(""));
    let stalled = "?delay=0ms&stall_after=1";
    let (_, mut quiet) = Caller::open_as(Some(somebody()), &bench, stalled).await;
    quiet.until("\"type\":\"token\"").await;
    let (_, mut busy) = Caller::open_as(Some(somebody()), &bench, "?delay=2ms&tokens=100000&split=1").await;
    busy.until("\"type\":\"token\"").await;
    let other = Identity { user_id: "other".into(), ..somebody() };
    let (_, mut other) = Caller::open_as(Some(other), &bench, stalled).await;
    other.until("\"type\":\"token\"").await;
    let (_, mut nobody) = Caller::open(&bench, stalled).await;
    nobody.until("\"type\":\"token\"").await;
    // Polled once more in its silence, so that only the word itself can wake it.
    assert!(timeout(Duration::from_millis(20), quiet.body.frame()).await.is_err());
    bench.shared.tokens.revoke_user("u", SystemTime::now()).await.unwrap();
    let begun = Instant::now();
    for caller in [&mut quiet, &mut busy] {
        let (text, clean) = caller.rest().await;
        let events = text.strip_suffix(TOKEN_REVOKED).unwrap_or_else(|| panic!("{text}"));
        assert!(clean && (events.is_empty() || events.ends_with("\n\n")), "{events}");
        assert_eq!(caller.exchange.end(), End::Reauth);
        assert!(caller.body.is_end_stream());
    }
    assert!(begun.elapsed() < Duration::from_secs(1));
    eventually(|| demo.stats().streams.running == 2).await;
    drop((quiet, busy));
    assert_eq!(counted(&bench, End::Reauth), (2, 2));
    for caller in [&mut other, &mut nobody] {
        assert!(timeout(Duration::from_millis(20), caller.body.frame()).await.is_err(), "it goes on");
    }
}

#[tokio::test]
async fn a_caller_whose_time_is_over_is_told() {
    let demo = Demo::start().await.unwrap();
    let bench = Bench::at(&demo.url(), &route(""));
    for (left, switches) in [(400, "stall_after=1"), (400, "tokens=100000"), (0, "stall_after=1")] {
        let end = SystemTime::now() + Duration::from_millis(left);
        let who = Identity { expires_at: Some(end), ..somebody() };
        let (_, mut caller) = Caller::open_as(Some(who), &bench, &format!("?delay=1ms&{switches}")).await;
        let (text, clean) = caller.rest().await;
        assert!(clean && text.ends_with(TOKEN_EXPIRED), "{text}");
        assert_eq!(text == TOKEN_EXPIRED, left == 0, "{text}");
        assert_eq!(caller.exchange.end(), End::Reauth);
    }
    eventually(|| demo.stats().streams.running == 0).await;
}

/// What a caller reads whose token is revoked when this much of these pieces has come.
async fn revoked_after(came: &str, pieces: &'static [&'static str]) -> (String, bool, Duration) {
    let server = telling(CHUNKED, pieces, false).await;
    let bench = Bench::at(&server.url(), &route(""));
    let (_, mut caller) = Caller::open_as(Some(somebody()), &bench, "").await;
    let mut text = caller.until(came).await;
    bench.shared.tokens.revoke_user("u", SystemTime::now()).await.unwrap();
    let begun = Instant::now();
    let (rest, clean) = caller.rest().await;
    assert_eq!(caller.exchange.end(), End::Reauth);
    server.until_open(0).await;
    text.push_str(&rest);
    (text, clean, begun.elapsed())
}

#[tokio::test]
async fn the_event_under_way_is_the_last_one() {
    for (pieces, whole) in [
        (&["data: a\n\nda", "ta: b\n\ndata: c\n\n"][..], "data: a\n\ndata: b\n\n"),
        (&["data: a\n\nda", "ta: b", "\r\n\r\ndata: c"], "data: a\n\ndata: b\r\n\r\n"),
        (&["data: a\n\nda", "ta: b\r", "\rdata: c"], "data: a\n\ndata: b\r\r"),
        (&["data: a\n\n:da", "ta\n\ndata: c\n\n"], "data: a\n\n:data\n"),
    ] {
        let (text, clean, took) = revoked_after("da", pieces).await;
        assert_eq!((text.as_str(), clean), (&*format!("{whole}{TOKEN_REVOKED}"), true), "{pieces:?}");
        assert!(took < LAST_EVENT);
    }
}

#[tokio::test]
async fn an_event_that_does_not_end_is_aborted() {
    let (text, clean, took) = revoked_after("half", &["data: a\n\nhalf"]).await;
    assert_eq!((text.as_str(), clean), ("data: a\n\nhalf", false));
    assert!(took >= LAST_EVENT && took < 2 * LAST_EVENT, "{took:?}");
    // One that goes on and on is no better.
    let (text, clean, took) = revoked_after("half", &["half "; 1000]).await;
    assert!(!clean && !text.contains("reauth"));
    assert!(took >= LAST_EVENT && took < 2 * LAST_EVENT, "{took:?}");
}

#[test]
fn contradicting_limits_are_faults() {
    let codes = |limits: &str| {
        faults(&format!("{{ route: POST /s, upstream: algo, protocol: sse, stream: {{ {limits} }} }}"))
    };
    for bad in
        ["heartbeat: 60s", "idle: 10s, heartbeat: 10s", "idle: 2m", "first_event: 3m", "max: 30s, idle: 40s"]
    {
        assert_eq!(codes(bad), [Code::DEADLINES], "{bad}");
    }
    assert_eq!(codes("idle: 200s, first_event: 200s, heartbeat: 300s"), [Code::DEADLINES; 3]);
    for good in ["idle: 10s", "max: 10s", "max: 10m, idle: 5m, heartbeat: 1m", "first_event: 90s"] {
        assert_eq!(codes(good), [], "{good}");
    }
    let given = StreamTimes::check(None, &mut Diagnostics::new());
    let seconds = [given.first_event, given.idle, given.max, given.heartbeat].map(|time| time.as_secs());
    assert_eq!(seconds, [15, 60, 120, 15]);
}

/// Line by line, as the specification says it: whether an event or a line is under way, and how many events ended.
fn by_the_book(text: &str) -> (bool, usize) {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let (mut ended, mut in_event) = (0, false);
    let (lines, rest) =
        text.rsplit_once('\n').map_or((None, text.as_str()), |(lines, rest)| (Some(lines), rest));
    for line in lines.iter().flat_map(|lines| lines.split('\n')) {
        if line.is_empty() {
            ended += usize::from(std::mem::take(&mut in_event));
        } else if !line.starts_with(':') {
            in_event = true;
        }
    }
    (!in_event && rest.is_empty(), ended)
}

proptest! {
    /// However a stream is cut, the position is that of the text as a whole.
    #[test]
    fn boundaries_are_found_by_the_book(pieces in proptest::collection::vec("[a:\r\n]{0,5}", 0..12)) {
        let mut position = Position::default();
        let mut ended = 0;
        let mut so_far = String::new();
        for piece in &pieces {
            for byte in piece.bytes() {
                position.read(&[byte]);
                ended += usize::from(std::mem::take(&mut position.event_ended));
            }
            so_far.push_str(piece);
            // A CR that ends the text could still be half of a line's end: the line has ended either way.
            prop_assert_eq!((position.is_boundary(), ended), by_the_book(&so_far), "{:?}", so_far);
        }
        let mut whole = Position::default();
        whole.read(so_far.as_bytes());
        prop_assert_eq!(whole.is_boundary(), position.is_boundary());
        prop_assert_eq!(whole.event_ended, ended > 0);
    }

    /// Reading to each boundary in turn is reading all, and every boundary is one.
    #[test]
    fn boundaries_are_reached_one_by_one(text in "[a:\r\n]{0,24}") {
        let (mut whole, mut parts) = (Position::default(), Position::default());
        let (mut rest, mut ended) = (text.as_bytes(), 0);
        while !rest.is_empty() {
            let (len, events) = parts.read_to_boundary(rest);
            prop_assert!(len > 0 && events <= 1 && (parts.is_boundary() || len == rest.len()));
            let all_but_one = &rest[..len - 1];
            rest = &rest[len..];
            ended += events;
            prop_assert!(!all_but_one.ends_with(b"\n\n"));
        }
        prop_assert_eq!(whole.read(text.as_bytes()), ended);
        prop_assert_eq!(whole, parts);
    }

    /// Whatever is put in at a boundary, the events are the same.
    #[test]
    fn a_heartbeat_at_a_boundary_changes_no_event(text in "[a:\r\n]{0,24}", at in 0usize..24) {
        let at = at.min(text.len());
        let mut position = Position::default();
        position.read(&text.as_bytes()[..at]);
        if position.is_boundary() {
            let filled = format!("{}{HEARTBEAT}{}", &text[..at], &text[at..]);
            prop_assert_eq!(by_the_book(&filled), by_the_book(&text));
        }
    }
}
