//! `protocol: sse`, through a whole gateway: what a caller sees of a stream, and what the upstream sees of the caller.

use crate::harness::client::{Open, PATIENCE};
use crate::harness::{Client, Gateway, Process, Sockets, Wire, eventually};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, mpsc};
use voicegate::demo::Demo;

const QUESTION: &str = r#"{"query": "hello", "session_id": "s"}"#;
const JSON: (&str, &str) = ("content-type", "application/json");
const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
const HEARTBEAT: &str = ": heartbeat\n\n";
/// Within a second, on a busy machine.
const AT_ONCE: Duration = Duration::from_millis(1800);

fn manifest(url: &str, limits: &str) -> String {
    format!(
        "upstreams: {{ algo: {{ targets: [{{ url: \"{url}\" }}] }} }}\n\
         chains: {{ all: [access_log, recovery, request_id, metrics] }}\n\
         routes:\n  - {{ route: POST /chat, upstream: algo, path: /v01/query/stream, protocol: sse, \
         stream: {{ {limits} }}, chain: all, public: true }}\n"
    )
}

/// A gateway that streams from this upstream under these limits.
async fn streaming(url: &str, limits: &str) -> Gateway {
    Gateway::with(&manifest(url, limits)).start().await
}

async fn ask(client: &Client, switches: &str) -> Open {
    client.open("POST", &format!("/chat?{switches}"), &[JSON], QUESTION).await
}

/// Reads until this was read; everything up to there.
async fn until(open: &mut Open, wanted: &str) -> String {
    let mut text = String::new();
    while !text.contains(wanted) {
        let piece = open.piece().await.unwrap_or_else(|| panic!("no {wanted:?} in {text:?}"));
        text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
    }
    text
}

/// An upstream that answers each question with these bytes as one chunk and then waits for the end.
async fn telling(text: &'static str) -> Sockets {
    Sockets::start(move |_, mut wire| async move {
        wire.head().await;
        wire.send(HEAD).await;
        wire.send_chunk(text.as_bytes()).await;
        wire.rest().await;
    })
    .await
}

#[tokio::test]
async fn each_event_arrives_before_the_next_is_sent() {
    let (ask_for, asked) = mpsc::channel::<usize>(1);
    let asked = Arc::new(Mutex::new(asked));
    let upstream = Sockets::start(move |_, mut wire| {
        let asked = asked.clone();
        async move {
            wire.head().await;
            wire.send(HEAD).await;
            while let Some(number) = asked.lock().await.recv().await {
                wire.send_chunk(format!("data: {number}\n\n").as_bytes()).await;
            }
        }
    })
    .await;
    let gateway = streaming(&upstream.url(), "").await;
    let mut open = ask(&gateway.client, "").await;
    for number in 0..50 {
        ask_for.send(number).await.unwrap();
        assert_eq!(open.piece().await.unwrap().unwrap(), format!("data: {number}\n\n"));
    }
}

#[tokio::test]
async fn the_head_goes_out_before_the_first_event() {
    let demo = Demo::start().await.unwrap();
    let gateway = streaming(&demo.url(), "").await;
    let began = Instant::now();
    let open = ask(&gateway.client, "first=10s").await;
    assert_eq!(open.status, 200);
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_stream_passes_at_the_upstreams_pace() {
    let demo = Demo::start().await.unwrap();
    let gateway = streaming(&demo.url(), "").await;
    let mut open = ask(&gateway.client, "delay=30ms&tokens=20").await;
    let (mut pieces, mut events) = (0, 0);
    while let Some(piece) = open.piece().await {
        pieces += 1;
        events += String::from_utf8(piece.unwrap().to_vec()).unwrap().matches("\n\n").count();
    }
    // The first and the last token come with the events beside them.
    assert!((20..=22).contains(&pieces) && events == 22, "{events} events in {pieces} pieces");
}

#[tokio::test]
async fn bytes_are_unchanged_however_they_are_cut() {
    let demo = Demo::start().await.unwrap();
    let gateway = streaming(&demo.url(), "").await;
    let switches = "delay=0ms&tokens=60&split=1";
    let direct = Client::new(demo.addr());
    let direct = direct.post(&format!("/v01/query/stream?{switches}"), QUESTION).await;
    let (through, clean) = ask(&gateway.client, switches).await.rest().await;
    assert!(clean);
    assert_eq!(through, direct.text());
}

#[tokio::test]
async fn the_head_tells_everybody_on_the_way_to_hold_nothing_back() {
    let demo = Demo::start().await.unwrap();
    let gateway = streaming(&demo.url(), "").await;
    let open = ask(&gateway.client, "tokens=1").await;
    assert_eq!(open.headers["content-type"], "text/event-stream");
    assert_eq!(open.headers["x-accel-buffering"], "no");
    assert_eq!(open.headers["cache-control"], "no-cache");
    assert!(!open.headers.contains_key("content-length"));
    assert!(open.headers.contains_key("x-request-id"));
}

#[tokio::test]
async fn silence_is_filled_with_heartbeats() {
    let demo = Demo::start().await.unwrap();
    let gateway = streaming(&demo.url(), "heartbeat: 150ms, idle: 30s").await;
    let mut open = ask(&gateway.client, "delay=0ms&stall_after=2").await;
    let text = until(&mut open, HEARTBEAT).await;
    assert!(text.contains("\"type\":\"token\""), "{text}");
    for _ in 0..3 {
        assert_eq!(open.piece().await.unwrap().unwrap(), HEARTBEAT);
    }
}

#[tokio::test]
async fn no_answer_within_first_event_is_a_504() {
    let demo = Demo::start().await.unwrap();
    let gateway = streaming(&demo.url(), "first_event: 400ms").await;
    let began = Instant::now();
    let answer = gateway.client.post("/chat?hang=1", QUESTION).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (504, "upstream_timeout"));
    assert!(began.elapsed() >= Duration::from_millis(400) && began.elapsed() < Duration::from_secs(3));
    eventually("the upstream is let go", PATIENCE, async || demo.stats().streams.aborted == 1).await;
}

#[tokio::test]
async fn no_event_within_first_event_ends_a_stream_that_has_begun() {
    let demo = Demo::start().await.unwrap();
    let gateway = streaming(&demo.url(), "first_event: 400ms").await;
    let (text, clean) = ask(&gateway.client, "first=30s").await.rest().await;
    assert!(
        clean && text.starts_with("event: error\n") && text.contains("\"code\":\"stream_idle\""),
        "{text}"
    );
}

#[tokio::test]
async fn a_stream_that_falls_silent_ends_with_an_error_event() {
    let demo = Demo::start().await.unwrap();
    let gateway = streaming(&demo.url(), "idle: 500ms, heartbeat: 200ms").await;
    let (text, clean) = ask(&gateway.client, "delay=0ms&stall_after=3").await.rest().await;
    assert!(clean && text.ends_with("\"code\":\"stream_idle\"}\n\n"), "{text}");
    assert_eq!(text.matches("\"type\":\"token\"").count(), 3);
    eventually("the upstream is let go", PATIENCE, async || demo.stats().streams.aborted == 1).await;
}

#[tokio::test]
async fn a_stream_that_goes_on_too_long_ends_with_an_error_event() {
    let demo = Demo::start().await.unwrap();
    let gateway = streaming(&demo.url(), "max: 600ms").await;
    let began = Instant::now();
    let (text, clean) = ask(&gateway.client, "delay=5ms&tokens=100000").await.rest().await;
    assert!(clean && text.ends_with("\"code\":\"stream_too_long\"}\n\n"), "{text}");
    assert!(began.elapsed() < Duration::from_secs(3));
    eventually("the upstream is let go", PATIENCE, async || demo.stats().streams.aborted == 1).await;
}

#[tokio::test]
async fn an_upstream_that_dies_between_events_becomes_an_error_event() {
    let demo = Demo::start().await.unwrap();
    let gateway = streaming(&demo.url(), "").await;
    let (text, clean) = ask(&gateway.client, "delay=0ms&fail_after=4&split=1").await.rest().await;
    assert!(clean && text.ends_with("\"code\":\"upstream_interrupted\"}\n\n"), "{text}");
    assert_eq!(text.matches("\"type\":\"token\"").count(), 4);
}

#[tokio::test]
async fn an_upstream_that_dies_inside_an_event_aborts_the_answer() {
    let upstream = Sockets::start(|_, mut wire| async move {
        wire.head().await;
        wire.send(HEAD).await;
        wire.send_chunk(b"data: whole\n\ndata: ha").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        wire.reset();
    })
    .await;
    let gateway = streaming(&upstream.url(), "").await;
    let (text, clean) = ask(&gateway.client, "").await.rest().await;
    assert_eq!((text.as_str(), clean), ("data: whole\n\ndata: ha", false));
}

#[tokio::test]
async fn an_answer_that_is_no_stream_passes_as_it_is() {
    let demo = Demo::start().await.unwrap();
    let gateway = streaming(&demo.url(), "").await;
    let answer = gateway.client.post("/chat?status=429", QUESTION).await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (429, Some("application/json")));
    assert_eq!(answer.json()["code"], "switched");
}

#[tokio::test]
async fn a_caller_who_leaves_stops_the_upstream_within_a_second() {
    let demo = Demo::start().await.unwrap();
    let gateway = streaming(&demo.url(), "").await;
    let mut open = ask(&gateway.client, "delay=20ms&tokens=100000").await;
    until(&mut open, "\"type\":\"token\"").await;
    let left = Instant::now();
    drop(open);
    eventually("the upstream stops", AT_ONCE, async || demo.stats().streams.aborted == 1).await;
    assert!(left.elapsed() < AT_ONCE);
}

#[tokio::test]
async fn a_caller_who_leaves_during_silence_stops_the_upstream_within_a_second() {
    let demo = Demo::start().await.unwrap();
    let gateway = streaming(&demo.url(), "").await;
    let mut open = ask(&gateway.client, "delay=0ms&stall_after=1").await;
    until(&mut open, "\"type\":\"token\"").await;
    drop(open);
    eventually("the upstream stops", AT_ONCE, async || demo.stats().streams.aborted == 1).await;
}

#[tokio::test]
async fn a_caller_who_leaves_before_the_first_byte_stops_the_upstream_within_a_second() {
    let demo = Demo::start().await.unwrap();
    let gateway = streaming(&demo.url(), "").await;
    let client = gateway.client.clone();
    let caller = tokio::spawn(async move { ask(&client, "hang=1").await });
    eventually("the upstream works", PATIENCE, async || demo.stats().streams.running == 1).await;
    caller.abort();
    eventually("the upstream stops", AT_ONCE, async || demo.stats().streams.aborted == 1).await;
}

/// An upstream that sends events as fast as they are taken, and how many bytes that were.
async fn gushing() -> (Sockets, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (sent, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (count, ended) = (sent.clone(), over.clone());
    let upstream = Sockets::start(move |_, mut wire| {
        let (count, ended) = (count.clone(), ended.clone());
        async move {
            wire.head().await;
            wire.send(HEAD).await;
            let event = format!("data: {}\n\n", "x".repeat(64 << 10));
            while count.load(Ordering::SeqCst) < 256 << 20 && wire.press(event.as_bytes()).await {
                count.fetch_add(event.len(), Ordering::SeqCst);
            }
            ended.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    (upstream, sent, over)
}

/// A caller that asks and reads nothing.
async fn stalled(gateway: &Gateway) -> Wire {
    let mut caller = Wire::connect(gateway.client.address()).await;
    let length = QUESTION.len();
    let head = format!("POST /chat HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n");
    caller.send(head + QUESTION).await;
    caller
}

#[tokio::test]
async fn a_reader_that_stalls_holds_the_upstream_back() {
    let (upstream, sent, _) = gushing().await;
    let gateway = streaming(&upstream.url(), "").await;
    let caller = stalled(&gateway).await;
    eventually("it begins", PATIENCE, async || sent.load(Ordering::SeqCst) > 0).await;
    // Nothing moves for half a second: every buffer on the way is full.
    let (mut before, mut since) = (0, Instant::now());
    eventually("it comes to a halt", PATIENCE, || {
        let now = sent.load(Ordering::SeqCst);
        if now != before {
            (before, since) = (now, Instant::now());
        }
        std::future::ready(since.elapsed() > Duration::from_millis(500))
    })
    .await;
    // The kernel's buffers of two connections may take 10 MiB each.
    assert!(before < 24 << 20, "{} MiB are held for a reader that stalls", before >> 20);
    drop(caller);
}

#[tokio::test]
async fn a_reader_that_stalls_for_too_long_is_let_go() {
    let (upstream, sent, over) = gushing().await;
    let gateway = Gateway::with(&manifest(&upstream.url(), "")).flag("--write-timeout", "1s").start().await;
    let _caller = stalled(&gateway).await;
    eventually("it begins", PATIENCE, async || sent.load(Ordering::SeqCst) > 0).await;
    eventually("the upstream is let go", PATIENCE, async || over.load(Ordering::SeqCst) == 1).await;
    assert!(sent.load(Ordering::SeqCst) < 256 << 20);
}

#[tokio::test]
async fn a_hundred_streams_at_once_all_arrive_whole() {
    let demo = Demo::start().await.unwrap();
    let gateway = streaming(&demo.url(), "").await;
    let streams: Vec<_> = (0..100)
        .map(|_| {
            let client = gateway.client.clone();
            tokio::spawn(async move { ask(&client, "delay=10ms&tokens=30").await.rest().await })
        })
        .collect();
    let mut texts = Vec::new();
    for stream in streams {
        let (text, clean) = stream.await.unwrap();
        assert!(clean && text.contains("\"type\":\"end\""), "{text}");
        texts.push(text);
    }
    texts.dedup();
    assert_eq!(texts.len(), 1, "the same question has the same answer");
    assert_eq!(demo.stats().streams.finished, 100);
}

#[tokio::test]
async fn metrics_show_streams_while_they_are_open_and_how_they_ended() {
    const OPEN: &str = "voicegate_streams_open{path=\"/chat\"}";
    let ended = |end: &str| format!("voicegate_streams_ended_total{{end=\"{end}\",path=\"/chat\"}}");
    let demo = Demo::start().await.unwrap();
    let gateway = streaming(&demo.url(), "idle: 800ms, heartbeat: 300ms").await;
    let mut one = ask(&gateway.client, "delay=10ms&tokens=100000").await;
    let mut two = ask(&gateway.client, "delay=0ms&stall_after=1").await;
    until(&mut one, "token").await;
    until(&mut two, "token").await;
    assert_eq!(gateway.metric(OPEN).await, 2.0);
    drop(one);
    assert!(two.rest().await.0.contains("stream_idle"));
    assert!(ask(&gateway.client, "delay=0ms&tokens=3").await.rest().await.1);
    assert!(ask(&gateway.client, "delay=0ms&fail_after=1").await.rest().await.1);
    eventually("none is open", PATIENCE, async || gateway.metric(OPEN).await == 0.0).await;
    for end in ["client_left", "stream_limit", "complete", "upstream_broke"] {
        assert_eq!(gateway.metric(&ended(end)).await, 1.0, "{end}");
    }
    assert!(gateway.metric("voicegate_stream_events_total{path=\"/chat\"}").await > 7.0);
}

#[tokio::test]
async fn metrics_show_requests_to_upstreams_by_result() {
    let demo = Demo::start().await.unwrap();
    let gateway = streaming(&demo.url(), "first_event: 300ms").await;
    let target = format!("target=\"{}\",upstream=\"algo\"", demo.addr());
    let requests =
        |result: &str| format!("voicegate_upstream_requests_total{{result=\"{result}\",{target}}}");
    let connections = |state: &str| format!("voicegate_upstream_connections{{state=\"{state}\",{target}}}");
    let mut open = ask(&gateway.client, "delay=0ms&stall_after=1").await;
    until(&mut open, "token").await;
    assert_eq!(gateway.metric(&connections("active")).await, 1.0);
    drop(open);
    assert!(ask(&gateway.client, "delay=0ms&tokens=3").await.rest().await.1);
    gateway.client.post("/chat?status=503", QUESTION).await;
    gateway.client.post("/chat?hang=1", QUESTION).await;
    assert_eq!(gateway.metric(&requests("2xx")).await, 2.0);
    assert_eq!(gateway.metric(&requests("5xx")).await, 1.0);
    assert_eq!(gateway.metric(&requests("upstream_timeout")).await, 1.0);
    eventually("none is busy", PATIENCE, async || gateway.metric(&connections("active")).await == 0.0).await;
    assert!(ask(&gateway.client, "delay=0ms&tokens=3").await.rest().await.1);
    eventually("one rests", PATIENCE, async || gateway.metric(&connections("idle")).await == 1.0).await;
    assert_eq!(gateway.metric(&format!("voicegate_upstream_healthy{{{target}}}")).await, 1.0);
}

#[tokio::test]
async fn a_streams_log_line_comes_at_its_end_and_says_how_it_ended() {
    let demo = Demo::start().await.unwrap();
    let mut gateway = Process::serve(&manifest(&demo.url(), "idle: 500ms, heartbeat: 200ms"), &[]).await;
    for (switches, end, status) in [
        ("delay=0ms&tokens=3&token=hush", "complete", 200),
        ("delay=0ms&fail_after=2", "upstream_broke", 200),
        ("delay=0ms&stall_after=2", "stream_limit", 200),
        ("status=503", "complete", 503),
    ] {
        let (text, _) = ask(&gateway.client, switches).await.rest().await;
        let line = gateway.line(|line| line["route"] == "/chat").await;
        assert_eq!(line["end"], end, "{line}");
        assert_eq!(line["status"], status, "{line}");
        assert_eq!(line["upstream"], "algo", "{line}");
        assert_eq!(line["upstream_target"], demo.addr().to_string(), "{line}");
        assert_eq!(line["bytes_out"], text.len(), "{line}");
        assert_eq!(line["bytes_in"], QUESTION.len(), "{line}");
        assert!(line["request_id"].as_str().is_some_and(|id| id.len() == 36), "{line}");
        assert!(!line.to_string().contains("hush"), "{line}");
    }
    let mut open = ask(&gateway.client, "delay=20ms&tokens=100000").await;
    until(&mut open, "token").await;
    assert!(!gateway.rest().contains("/chat"), "no line before the end");
    drop(open);
    let line = gateway.line(|line| line["route"] == "/chat").await;
    assert_eq!(line["end"], "client_left", "{line}");
}

#[tokio::test]
async fn a_stream_without_end_of_its_last_event_is_no_clean_end() {
    let upstream = Sockets::saying_last(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: a\n\ndata: b",
    )
    .await;
    let gateway = streaming(&upstream.url(), "").await;
    let (text, clean) = ask(&gateway.client, "").await.rest().await;
    assert_eq!((text.as_str(), clean), ("data: a\n\ndata: b", false));
}

#[tokio::test]
async fn a_comment_of_the_upstreams_passes_but_keeps_nothing_alive() {
    let upstream = telling(": hello\n\n").await;
    let gateway = streaming(&upstream.url(), "first_event: 400ms, heartbeat: 100ms").await;
    let (text, clean) = ask(&gateway.client, "").await.rest().await;
    assert!(clean && text.starts_with(": hello\n\n") && text.ends_with("\"stream_idle\"}\n\n"), "{text}");
}

#[tokio::test]
async fn over_http2_events_arrive_as_they_are_sent_and_a_reset_stops_the_upstream() {
    let demo = Demo::start().await.unwrap();
    let gateway = streaming(&demo.url(), "").await;
    let mut open = gateway.client.open_h2("POST", "/chat?delay=20ms&tokens=100000", &[JSON], QUESTION).await;
    assert_eq!(open.headers["x-accel-buffering"], "no");
    let text = until(&mut open, "\"type\":\"token\"").await;
    assert!(text.len() < 1000, "it came at once: {text}");
    open.leave_stream();
    eventually("the upstream stops", AT_ONCE, async || demo.stats().streams.aborted == 1).await;
}

mod reauth;
