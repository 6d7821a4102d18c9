//! How a gateway goes down: readiness first, then nothing new, what is in flight finishes, and nothing outlives the
//! grace.

use crate::harness::{Client, Gateway, Kept, Process, eventually};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use voicegate::demo::Demo;

const SOON: Duration = Duration::from_secs(10);

/// What a slow machine may need beyond the time that is claimed.
const SLACK: Duration = Duration::from_secs(3);

const ASK: &str = r#"{"query": "Tell me", "session_id": "s"}"#;

fn manifest(demo: &Demo) -> String {
    format!(
        "upstreams: {{ algo: {{ targets: [{{ url: \"{}\" }}] }} }}\nroutes:\n  \
         - {{ route: GET /a, public: true, respond: {{ text: ok }} }}\n  \
         - {{ route: POST /query, public: true, upstream: algo }}\n  \
         - {{ route: POST /chat, public: true, upstream: algo, path: /api/v1/chat/stream, protocol: sse }}\n",
        demo.url()
    )
}

async fn refuses_newcomers(client: &Client) {
    eventually("newcomers are refused", SOON, || async {
        TcpStream::connect(client.address()).await.is_err()
    })
    .await;
}

/// A request in flight whose answer takes so long.
async fn slow(client: &Client, demo: &Demo, millis: u64) -> tokio::task::JoinHandle<(u16, String)> {
    let client = client.clone();
    let task = tokio::spawn(async move {
        let path = format!("/query?first={millis}ms");
        let answer = client.post(&path, r#"{"query": "a"}"#).await;
        (answer.status.as_u16(), answer.text().to_owned())
    });
    eventually("the request is in flight", SOON, || async { demo.stats().unanswered == 1 }).await;
    task
}

#[tokio::test]
async fn a_request_in_flight_finishes() {
    let demo = Demo::start().await.unwrap();
    let gateway = Gateway::with(&manifest(&demo)).flag("--shutdown-grace", "20s").start().await;
    let request = slow(&gateway.client, &demo, 700).await;
    let begun = Instant::now();
    assert_eq!(gateway.shut_down().await, 0, "nothing is cut");
    let (status, text) = request.await.unwrap();
    assert!(status == 200 && text.contains("answer"), "{status} {text}");
    assert!(begun.elapsed() < Duration::from_secs(10), "it ends with the last request, not with the grace");
}

#[tokio::test]
async fn a_gateway_without_work_stops_at_once() {
    let demo = Demo::start().await.unwrap();
    let gateway = Gateway::with(&manifest(&demo)).start().await;
    let mut idle = Kept::open(&gateway.client).await;
    assert_eq!(idle.send("GET", "/a").await.unwrap().status, 200);
    let begun = Instant::now();
    assert_eq!(gateway.shut_down().await, 0);
    assert!(begun.elapsed() < SLACK, "idle connections hold nothing up: {:?}", begun.elapsed());
}

#[tokio::test]
async fn readiness_says_no_before_newcomers_are_refused() {
    let demo = Demo::start().await.unwrap();
    let mut gateway = Gateway::with(&manifest(&demo)).flag("--drain-delay", "700ms").start().await;
    let begun = Instant::now();
    let ending = tokio::spawn(gateway.take().shut_down());
    eventually("readiness says no", SOON, || async { gateway.admin.get("/readyz").await.status == 503 })
        .await;
    if begun.elapsed() < Duration::from_millis(500) {
        assert_eq!(gateway.client.get("/a").await.status, 200, "newcomers are still served");
    }
    refuses_newcomers(&gateway.client).await;
    assert!(begun.elapsed() >= Duration::from_millis(690));
    ending.await.unwrap();
}

#[tokio::test]
async fn newcomers_are_refused_while_what_is_in_flight_goes_on() {
    let demo = Demo::start().await.unwrap();
    let mut gateway = Gateway::with(&manifest(&demo)).start().await;
    let request = slow(&gateway.client, &demo, 1500).await;
    let ending = tokio::spawn(gateway.take().shut_down());
    refuses_newcomers(&gateway.client).await;
    assert_eq!(demo.stats().unanswered, 1, "the old request is still on its way");
    assert_eq!(request.await.unwrap().0, 200);
    assert_eq!(ending.await.unwrap(), 0);
}

#[tokio::test]
async fn a_kept_connection_is_told_to_close_with_its_last_answer() {
    let demo = Demo::start().await.unwrap();
    let mut gateway = Gateway::with(&manifest(&demo)).start().await;
    let client = gateway.client.clone();
    let open =
        tokio::spawn(
            async move { client.open("POST", "/query?first=700ms", &[], r#"{"query": "a"}"#).await },
        );
    eventually("the request is in flight", SOON, || async { demo.stats().unanswered == 1 }).await;
    let ending = tokio::spawn(gateway.take().shut_down());
    let answer = open.await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers.get("connection").map(|v| v.as_bytes()), Some(&b"close"[..]));
    answer.rest().await;
    assert_eq!(ending.await.unwrap(), 0);
}

#[tokio::test]
async fn a_stream_ends_with_its_notice_inside_the_grace() {
    let demo = Demo::start().await.unwrap();
    let gateway = Gateway::with(&manifest(&demo)).flag("--shutdown-grace", "2s").start().await;
    let stream = gateway.client.open("POST", "/chat?delay=20ms&tokens=100000", &[], ASK).await;
    let begun = Instant::now();
    let (cut, (text, clean)) = tokio::join!(gateway.shut_down(), stream.rest());
    assert!(clean, "a clean end");
    let notice = "event: error\ndata: {\"type\":\"error\",\"code\":\"shutting_down\"}\n\n";
    assert!(text.ends_with(notice), "{}", &text[text.len().saturating_sub(300)..]);
    assert_eq!(cut, 0);
    // With 2 s of grace, streams go on undisturbed for the first second.
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(2) + SLACK);
    eventually("the upstream's stream is stopped", SOON, || async { demo.stats().streams.running == 0 })
        .await;
}

#[tokio::test]
async fn a_stream_that_ends_by_itself_inside_the_grace_ends_whole() {
    let demo = Demo::start().await.unwrap();
    let gateway = Gateway::with(&manifest(&demo)).flag("--shutdown-grace", "20s").start().await;
    let stream = gateway.client.open("POST", "/chat?delay=10ms&tokens=30", &[], ASK).await;
    let (cut, (text, clean)) = tokio::join!(gateway.shut_down(), stream.rest());
    assert!(clean && text.contains("event: done") && !text.contains("shutting_down"), "{text}");
    assert_eq!((cut, demo.stats().streams.finished), (0, 1));
}

#[tokio::test]
async fn a_hung_request_is_cut_when_the_grace_is_over() {
    let demo = Demo::start().await.unwrap();
    let gateway = Gateway::with(&manifest(&demo)).flag("--shutdown-grace", "500ms").start().await;
    let client = gateway.client.clone();
    let hung = tokio::spawn(async move {
        client.try_send(client.request("POST", "/query?hang=1", &[], r#"{"query": "a"}"#)).await
    });
    eventually("the request is in flight", SOON, || async { demo.stats().unanswered == 1 }).await;
    let begun = Instant::now();
    assert_eq!(gateway.shut_down().await, 1, "one connection is cut");
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(490) && took < Duration::from_millis(500) + SLACK, "{took:?}");
    assert!(hung.await.unwrap().is_err(), "the caller sees a broken connection, not half an answer");
}

#[tokio::test]
async fn the_process_exits_with_0_on_sigterm_and_on_sigint() {
    let demo = Demo::start().await.unwrap();
    for signal in ["TERM", "INT"] {
        let mut process = Process::serve(&manifest(&demo), &[]).await;
        assert_eq!(process.client.get("/a").await.status, 200);
        process.signal(signal);
        assert_eq!(process.ended(SLACK).await.code(), Some(0), "{signal}");
    }
}

#[tokio::test]
async fn the_process_finishes_a_request_in_flight_after_sigterm() {
    let demo = Demo::start().await.unwrap();
    let mut process = Process::serve(&manifest(&demo), &[]).await;
    let request = slow(&process.client, &demo, 700).await;
    process.signal("TERM");
    refuses_newcomers(&process.client).await;
    assert_eq!(request.await.unwrap().0, 200);
    assert_eq!(process.ended(SLACK).await.code(), Some(0));
}

#[tokio::test]
async fn the_process_exits_within_the_grace_though_a_request_hangs() {
    let demo = Demo::start().await.unwrap();
    let mut process = Process::serve(&manifest(&demo), &["--shutdown-grace=500ms"]).await;
    let client = process.client.clone();
    let hung = tokio::spawn(async move {
        client.try_send(client.request("POST", "/query?hang=1", &[], r#"{"query": "a"}"#)).await
    });
    eventually("the request is in flight", SOON, || async { demo.stats().unanswered == 1 }).await;
    process.signal("TERM");
    process.ended(Duration::from_millis(500) + SLACK).await;
    assert!(hung.await.unwrap().is_err());
}

#[tokio::test]
async fn a_second_sigterm_ends_the_process_at_once() {
    let demo = Demo::start().await.unwrap();
    let mut process = Process::serve(&manifest(&demo), &["--shutdown-grace=60s"]).await;
    let client = process.client.clone();
    let hung = tokio::spawn(async move {
        client.try_send(client.request("POST", "/query?hang=1", &[], r#"{"query": "a"}"#)).await
    });
    eventually("the request is in flight", SOON, || async { demo.stats().unanswered == 1 }).await;
    process.signal("TERM");
    refuses_newcomers(&process.client).await;
    process.signal("TERM");
    process.ended(SLACK).await;
    assert!(hung.await.unwrap().is_err());
}
