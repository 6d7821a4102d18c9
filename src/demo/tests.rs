//! The demo services over real connections: every test speaks through the same few lines of client. WebSockets are in
//! `tests/sockets.rs`.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::*;

mod sockets;

/// No test waits longer than this for anything.
const PATIENCE: Duration = Duration::from_secs(10);

/// One request on a connection of its own.
struct Caller {
    response: Response<Incoming>,
    connection: JoinHandle<()>,
}

/// Sends a request; the future ends with the answer's head.
async fn send(demo: &Demo, version: Version, request: Request<Full<Bytes>>) -> Caller {
    let io = TokioIo::new(TcpStream::connect(demo.addr()).await.unwrap());
    let (response, connection) = if version == Version::HTTP_2 {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        let connection = tokio::spawn(async move { drop(connection.await) });
        (sender.send_request(request).await, connection)
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        let connection = tokio::spawn(async move { drop(connection.await) });
        (sender.send_request(request).await, connection)
    };
    Caller { response: response.unwrap(), connection }
}

fn request(demo: &Demo, method: Method, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let uri = format!("{}{path}", demo.url());
    Request::builder().method(method).uri(uri).header("host", "demo").body(Full::new(body.into())).unwrap()
}

async fn post(demo: &Demo, path: &str, body: Value) -> Caller {
    send(demo, Version::HTTP_11, request(demo, Method::POST, path, body.to_string())).await
}

async fn get(demo: &Demo, path: &str) -> Caller {
    send(demo, Version::HTTP_11, request(demo, Method::GET, path, "")).await
}

fn question(session: &str) -> Value {
    json!({ "query": "How do routes work?", "session_id": session })
}

impl Caller {
    fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// The whole body as JSON.
    async fn json(self) -> Value {
        serde_json::from_slice(&self.response.into_body().collect().await.unwrap().to_bytes()).unwrap()
    }

    /// The next piece of the body; none at its clean end.
    async fn piece(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        let frame =
            tokio::time::timeout(PATIENCE, self.response.body_mut().frame()).await.expect("a frame in time");
        frame.map(|frame| frame.map(|frame| frame.into_data().expect("no trailers here")))
    }

    /// All of the body up to its end, and whether that was clean.
    async fn rest(&mut self) -> (String, bool) {
        let mut bytes = Vec::new();
        while let Some(piece) = self.piece().await {
            match piece {
                Ok(piece) => bytes.extend_from_slice(&piece),
                Err(_) => return (String::from_utf8(bytes).unwrap(), false),
            }
        }
        (String::from_utf8(bytes).unwrap(), true)
    }

    /// Waits until the body so far has `text`.
    async fn until(&mut self, text: &str) -> String {
        let mut read = String::new();
        while !read.contains(text) {
            let piece = self.piece().await.expect("more body").expect("no error");
            read.push_str(std::str::from_utf8(&piece).unwrap());
        }
        read
    }

    /// Closes the connection, as a caller who walks away.
    async fn leave(self) {
        self.connection.abort();
        let _ = self.connection.await;
    }
}

/// The events of a body: name (empty where there is none) and data.
fn events(body: &str) -> Vec<(String, Value)> {
    assert!(body.ends_with("\n\n"), "the last event is whole: {body:?}");
    let event = |block: &str| {
        let field = |name| block.lines().find_map(|line: &str| line.strip_prefix(name)).map(str::to_owned);
        let data = field("data: ").expect("a data line");
        (field("event: ").unwrap_or_default(), serde_json::from_str(&data).expect("JSON"))
    };
    body.trim_end().split("\n\n").map(event).collect()
}

/// Waits until the counters are as wanted.
async fn eventually(demo: &Demo, wanted: impl Fn(Stats) -> bool) -> Stats {
    let begin = Instant::now();
    while !wanted(demo.stats()) {
        assert!(begin.elapsed() < PATIENCE, "never came: {:?}", demo.stats());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    demo.stats()
}

#[tokio::test]
async fn the_query_stream_keeps_its_contract() {
    let demo = Demo::start().await.unwrap();
    let mut caller = post(&demo, "/v01/query/stream?delay=0ms", question("s1")).await;
    assert_eq!(caller.response.headers()["content-type"], "text/event-stream");
    let (body, clean) = caller.rest().await;
    assert!(clean);
    let events: Vec<Value> = events(&body).into_iter().map(|(_, data)| data).collect();
    let tokens = &events[1..events.len() - 1];
    assert_eq!(events[0], json!({ "type": "start", "session_id": "s1" }));
    assert_eq!(events.last().unwrap(), &json!({ "type": "end", "total_tokens": tokens.len() }));
    assert!(tokens.iter().all(|t| t["type"] == "token" && t.as_object().unwrap().len() == 2));
    let text: String = tokens.iter().map(|t| t["content"].as_str().unwrap()).collect();
    assert_eq!(text, script::answer("How do routes work?"));
    let expected = Streams { started: 1, finished: 1, ..Streams::default() };
    assert_eq!(demo.stats().streams, expected);
}

#[tokio::test]
async fn the_agent_stream_names_and_wraps_its_events() {
    let demo = Demo::start().await.unwrap();
    let body = json!({ "query": "你好", "session_id": "s2", "context": { "page": "home" } });
    let (body, clean) = post(&demo, "/api/v1/chat/stream?delay=0ms&tokens=3", body).await.rest().await;
    assert!(clean);
    let events = events(&body);
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["thinking", "thinking", "token", "token", "token", "done"]);
    for (_, data) in &events {
        assert_eq!(data["meta"]["session_id"], "s2");
        let timestamp = data["meta"]["timestamp"].as_str().unwrap();
        timestamp.parse::<jiff::Timestamp>().unwrap();
        assert_eq!(timestamp.len(), "2026-01-01T00:00:00.000Z".len(), "{timestamp}");
    }
    assert_eq!(events[0].1["data"]["context_entries"], 1);
    assert_eq!(events[2].1["data"]["content"], "您");
    assert_eq!(events[5].1["data"]["total_tokens"], 3);
}

#[tokio::test]
async fn tokens_come_one_by_one_at_a_human_pace() {
    let demo = Demo::start().await.unwrap();
    let begin = Instant::now();
    let mut caller = post(&demo, "/v01/query/stream?tokens=5", question("s")).await;
    let mut pieces = 0;
    while caller.piece().await.is_some() {
        pieces += 1;
    }
    assert!(pieces >= 6, "{pieces} pieces: tokens were held back");
    let expected: Duration = (0..5).map(script::pace).sum();
    assert!(begin.elapsed() >= expected, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn the_first_event_can_be_late_while_the_head_is_not() {
    let demo = Demo::start().await.unwrap();
    let path = "/v01/query/stream?first=60s";
    let head = tokio::time::timeout(PATIENCE, post(&demo, path, question("s"))).await;
    assert_eq!(head.expect("the head does not wait").status(), 200);

    for path in ["/v01/query/stream?first=50ms&tokens=0", "/api/v1/chat/sessions?first=50ms"] {
        let begin = Instant::now();
        let method = if path.contains("stream") { Method::POST } else { Method::GET };
        let request = request(&demo, method, path, question("s").to_string());
        send(&demo, Version::HTTP_11, request).await.piece().await.unwrap().unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(50), "{path}: {:?}", begin.elapsed());
    }
}

#[tokio::test]
async fn fail_after_breaks_the_stream_off_after_its_tokens() {
    let demo = Demo::start().await.unwrap();
    for (version, failed) in [(Version::HTTP_11, 1), (Version::HTTP_2, 2)] {
        let request = request(
            &demo,
            Method::POST,
            "/v01/query/stream?delay=0ms&fail_after=5",
            question("s").to_string(),
        );
        let (body, clean) = send(&demo, version, request).await.rest().await;
        assert!(!clean, "{version:?}: the end looked clean");
        assert_eq!(body.matches("\"token\"").count(), 5, "{version:?}: {body}");
        assert_eq!(demo.stats().streams.failed, failed);
    }
}

#[tokio::test]
async fn error_after_ends_with_an_error_event() {
    let demo = Demo::start().await.unwrap();
    for path in ["/v01/query/stream", "/api/v1/chat/stream"] {
        let (body, clean) =
            post(&demo, &format!("{path}?delay=0ms&error_after=2"), question("s")).await.rest().await;
        let (name, data) = events(&body).pop().unwrap();
        assert!(clean);
        assert!(name == "error" || data["type"] == "error", "{body}");
    }
    assert_eq!(demo.stats().streams.failed, 2);
}

#[tokio::test]
async fn a_callers_leaving_is_counted_at_once() {
    let demo = Demo::start().await.unwrap();
    let mut left = 0;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for path in
            ["/v01/query/stream?delay=0ms&stall_after=2", "/api/v1/chat/stream?delay=20ms&tokens=10000"]
        {
            let request = request(&demo, Method::POST, path, question("s").to_string());
            let mut caller = send(&demo, version, request).await;
            caller.until("\"content\":\"You ").await;
            assert_eq!(demo.stats().streams.running, 1);
            let begin = Instant::now();
            caller.leave().await;
            left += 1;
            let stats = eventually(&demo, |stats| stats.streams.aborted == left).await;
            assert!(begin.elapsed() < Duration::from_secs(1), "{version:?} {path}: {:?}", begin.elapsed());
            assert_eq!((stats.streams.running, stats.streams.finished), (0, 0));
        }
    }
}

#[tokio::test]
async fn leaving_before_any_answer_is_counted_too() {
    let demo = Demo::start().await.unwrap();
    let mut aborted = 0;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for path in ["/v01/query/stream?hang=1", "/files/a?hang=1"] {
            let hanging = request(&demo, Method::POST, path, question("s").to_string());
            let arrived = eventually(&demo, |stats| stats.unanswered == 1);
            tokio::select! {
                _ = send(&demo, version, hanging) => panic!("it answered"),
                stats = arrived => assert!(stats.streams.aborted == aborted),
            }
            // The dropped call has taken its sender along, which ends the connection.
            aborted += u64::from(path.contains("stream"));
            eventually(&demo, |stats| stats.streams.aborted == aborted && stats.unanswered == 0).await;
        }
    }
    assert_eq!(demo.stats().streams, Streams { started: 2, aborted: 2, ..Streams::default() });
}

#[tokio::test]
async fn cancel_ends_the_running_stream() {
    let demo = Demo::start().await.unwrap();
    for (path, cancel) in [("/api/v1/chat/stream", "/api/v1/chat/cancel"), ("/v01/query/stream", "/cancel")] {
        let who = json!({ "session_id": "s3" });
        assert_eq!(post(&demo, cancel, who.clone()).await.status(), 404);
        let mut caller = post(&demo, &format!("{path}?delay=0ms&stall_after=2"), question("s3")).await;
        caller.until("\"content\":\"You ").await;

        let state = get(&demo, "/api/v1/chat/session/s3").await.json().await;
        assert_eq!((&state["status"], &state["tokens"]), (&json!("running"), &json!(2)), "{state}");
        assert_eq!(get(&demo, "/api/v1/chat/sessions").await.json().await["sessions"], json!([state]));

        assert_eq!(post(&demo, cancel, who.clone()).await.status(), 200);
        let (body, clean) = caller.rest().await;
        assert!(clean && body.contains("cancelled"), "{body}");
        assert_eq!(events(&body).len(), 1, "nothing but the notice: {body}");
        assert_eq!(post(&demo, cancel, who).await.status(), 404, "it is over");
        assert_eq!(get(&demo, "/api/v1/chat/session/s3").await.status(), 404);
    }
    assert_eq!(demo.stats().streams, Streams { started: 2, cancelled: 2, ..Streams::default() });
}

#[tokio::test]
async fn split_cuts_events_apart_and_loses_nothing() {
    let demo = Demo::start().await.unwrap();
    let chinese = json!({ "query": "网关", "session_id": "s" });
    let mut whole = post(&demo, "/v01/query/stream?delay=0ms", chinese.clone()).await;
    let mut split = post(&demo, "/v01/query/stream?delay=0ms&split=1", chinese).await;
    let (mut read, mut torn) = (Vec::new(), 0);
    while let Some(piece) = split.piece().await {
        let piece = piece.unwrap();
        assert!(piece.len() <= 11, "{piece:?}");
        torn += usize::from(std::str::from_utf8(&piece).is_err());
        read.extend_from_slice(&piece);
    }
    assert!(torn > 0, "no character was ever cut through");
    assert_eq!(String::from_utf8(read).unwrap(), whole.rest().await.0);
}

#[tokio::test]
async fn bad_requests_are_told_what_is_wrong() {
    let demo = Demo::start().await.unwrap();
    let long = json!({ "query": "问".repeat(2001), "session_id": "s" }).to_string();
    let fits = json!({ "query": "问".repeat(2000), "session_id": "s" }).to_string();
    let big = " ".repeat(reply::MAX_BODY + 1);
    let cases = [
        ("/v01/query/stream", "{", 400, "JSON"),
        ("/v01/query/stream", "", 400, "JSON"),
        ("/v01/query/stream", r#"{"query":"a"}"#, 422, "session_id"),
        ("/v01/query/stream", r#"{"query":7,"session_id":"s"}"#, 422, "string"),
        ("/v01/query/stream", r#"{"query":" ","session_id":"s"}"#, 422, "empty"),
        ("/v01/query/stream", r#"{"query":"a","session_id":""}"#, 422, "session_id"),
        ("/api/v1/chat/stream", r#"{"query":"a","session_id":"s","context":7}"#, 422, "context"),
        ("/v01/query/stream", &long, 422, "2000"),
        ("/api/v1/chat/stream", &big, 413, "1048576"),
        ("/v01/query/stream?delay=soon", &fits, 400, "delay"),
        ("/api/v1/chat/cancel", "{}", 422, "session_id"),
        ("/cancel", "{}", 422, "task_id"),
        ("/cancel", r#"["s"]"#, 422, "object"),
        ("/query", r#"{"query":"a","top_k":0}"#, 422, "top_k"),
        ("/nowhere", "{}", 404, "/nowhere"),
        ("/health", "", 405, "GET"),
        ("/files/a?status=503", "", 503, "switch"),
    ];
    for (path, body, status, word) in cases {
        let caller = send(&demo, Version::HTTP_11, request(&demo, Method::POST, path, body.to_owned())).await;
        assert_eq!(caller.status(), status, "{path} {}", &body[..body.len().min(60)]);
        assert_eq!(caller.response.headers()["content-type"], "application/json");
        let answer = caller.json().await;
        assert_eq!(answer["status"], status);
        assert!(answer["error"].as_str().unwrap().contains(word), "{path}: {answer}");
    }
    let mut caller = post(&demo, "/v01/query/stream?delay=0ms", serde_json::from_str(&fits).unwrap()).await;
    assert!(caller.status() == 200 && caller.rest().await.1);
    let wrong = get(&demo, "/query").await;
    assert_eq!((wrong.status(), wrong.response.headers()["allow"].to_str().unwrap()), (405, "POST"));
}

#[tokio::test]
async fn echo_answers_what_arrived() {
    let demo = Demo::start().await.unwrap();
    let body = "x".repeat(70 * 1024);
    for (version, name) in [(Version::HTTP_11, "HTTP/1.1"), (Version::HTTP_2, "HTTP/2.0")] {
        let mut sent = request(&demo, Method::PATCH, "/echo/a%2Fb//c?status=503&x=%20", body.clone());
        sent.headers_mut().append("x-twice", "1".parse().unwrap());
        sent.headers_mut().append("x-twice", "2".parse().unwrap());
        let caller = send(&demo, version, sent).await;
        assert_eq!(caller.status(), 200, "switches mean nothing here");
        let answer = caller.json().await;
        assert_eq!(answer["method"], "PATCH");
        assert_eq!(answer["path"], "/echo/a%2Fb//c");
        assert_eq!(answer["query"], "status=503&x=%20");
        assert_eq!(answer["version"], name);
        assert_eq!(answer["body_length"], 70 * 1024);
        assert_eq!(answer["body"].as_str().unwrap().len(), 64 * 1024);
        let headers = answer["headers"].as_array().unwrap();
        let twice: Vec<_> = headers.iter().filter(|pair| pair[0] == "x-twice").map(|pair| &pair[1]).collect();
        assert_eq!(twice, ["1", "2"]);
    }
    assert_eq!(get(&demo, "/echo").await.json().await["query"], Value::Null);
    assert_eq!(get(&demo, "/echoes").await.status(), 404);
}

#[tokio::test]
async fn the_plain_calls_answer() {
    let demo = Demo::start().await.unwrap();
    assert_eq!(get(&demo, "/health").await.json().await["status"], "healthy");
    assert_eq!(get(&demo, "/files/a/b%20c.txt").await.json().await["path"], "a/b%20c.txt");
    let answer = post(&demo, "/query", json!({ "query": "hello", "top_k": 2 })).await.json().await;
    assert_eq!((&answer["total"], answer["sources"].as_array().unwrap().len()), (&json!(2), 2));
    let caller = post(&demo, "/ingest", json!({ "documents": [] })).await;
    assert_eq!(caller.status(), 202);
    let id = caller.json().await["task_id"].as_str().unwrap().to_owned();
    assert_eq!(get(&demo, &format!("/tasks/{id}")).await.json().await["status"], "running");
    assert_eq!(post(&demo, "/cancel", json!({ "task_id": id })).await.status(), 200);
    assert_eq!(get(&demo, &format!("/tasks/{id}")).await.json().await["status"], "cancelled");
    let stats = get(&demo, "/stats").await.json().await;
    assert_eq!(stats["requests"], 6, "health and stats don't count: {stats}");
    assert_eq!(stats["streams"], serde_json::to_value(Streams::default()).unwrap());
}

#[tokio::test]
async fn one_connection_serves_many_requests() {
    let demo = Demo::start().await.unwrap();
    let io = TokioIo::new(TcpStream::connect(demo.addr()).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        let path = "/v01/query/stream?delay=0ms&tokens=2";
        let sent = request(&demo, Method::POST, path, question("s").to_string());
        let response = sender.send_request(sent).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body().collect().await.unwrap();
    }
    let stats = demo.stats();
    assert_eq!(stats.connections, Connections { accepted: 1, open: 1 });
    assert_eq!(stats.streams.finished, 3);
}

#[tokio::test]
async fn stopping_lets_streams_end_within_the_grace() {
    let demo = Demo::start().await.unwrap();
    let addr = demo.addr();
    let mut ending = post(&demo, "/v01/query/stream?delay=20ms&tokens=10", question("s")).await;
    ending.until("token").await;
    let stop = tokio::spawn(demo.stop(PATIENCE));
    let (body, clean) = ending.rest().await;
    assert!(clean && body.contains("\"end\""), "{body}");
    tokio::time::timeout(PATIENCE / 2, stop).await.expect("it ends with its last stream").unwrap();
    assert!(TcpStream::connect(addr).await.is_err(), "the port is closed");
}

#[tokio::test]
async fn an_idle_connection_does_not_hold_the_stop() {
    let demo = Demo::start().await.unwrap();
    let io = TokioIo::new(TcpStream::connect(demo.addr()).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request(&demo, Method::GET, "/health", "")).await.unwrap();
    response.into_body().collect().await.unwrap();
    tokio::time::timeout(PATIENCE, demo.stop(PATIENCE * 10)).await.expect("it does not wait for the grace");
    tokio::time::timeout(PATIENCE, connection).await.expect("our end sees it closed").unwrap().unwrap();
}

#[tokio::test]
async fn stopping_cuts_what_outlasts_the_grace() {
    let demo = Demo::start().await.unwrap();
    let mut stalled = post(&demo, "/v01/query/stream?delay=0ms&stall_after=1", question("s")).await;
    stalled.until("token").await;
    let algorithm = demo.algorithm.clone();
    demo.stop(Duration::ZERO).await;
    assert!(!stalled.rest().await.1, "a cut is no clean end");
    assert_eq!(algorithm.ledger().stats().streams.aborted, 1);
}

#[tokio::test]
async fn dropping_stops_too() {
    let demo = Demo::start().await.unwrap();
    let addr = demo.addr();
    let algorithm = demo.algorithm.clone();
    drop(get(&demo, "/health").await);
    drop(demo);
    let begin = Instant::now();
    while TcpStream::connect(addr).await.is_ok() || algorithm.ledger().stats().connections.open > 0 {
        assert!(begin.elapsed() < PATIENCE, "still there");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
