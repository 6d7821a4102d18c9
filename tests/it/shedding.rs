//! Too much to do: what is beyond is answered 503 at once, what runs goes on, health always answers.

use crate::harness::client::{Open, PATIENCE};
use crate::harness::{Answer, Client, Gateway, Sockets, Wire, eventually};
use crate::sockets::bed::{Echo, ask as ask_socket, open as open_socket};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// A service whose answers wait at a gate.
struct Slow {
    service: Sockets,
    gate: Arc<Semaphore>,
}

impl Slow {
    async fn start() -> Self {
        let gate = Arc::new(Semaphore::new(0));
        let opened = gate.clone();
        let service = Sockets::start(move |_, mut wire| {
            let gate = opened.clone();
            async move {
                while let Some(head) = wire.head().await {
                    if head.contains("/stream") {
                        wire.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 20\r\n\r\ndata: 1\n\n").await;
                        gate.acquire().await.unwrap().forget();
                        wire.send("data: end\n\n").await;
                        continue;
                    }
                    // The head first: the answer is over when its body is.
                    if head.contains("/head-first") {
                        wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n").await;
                        gate.acquire().await.unwrap().forget();
                        wire.send("ok").await;
                        continue;
                    }
                    if !head.contains("/quick") {
                        gate.acquire().await.unwrap().forget();
                    }
                    wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                }
            }
        })
        .await;
        Slow { service, gate }
    }

    fn url(&self) -> String {
        self.service.url()
    }

    fn lets(&self, answers: usize) {
        self.gate.add_permits(answers);
    }
}

/// A request that waits for its answer.
fn waiting(client: &Client, path: &'static str) -> tokio::task::JoinHandle<Answer> {
    let client = client.clone();
    tokio::spawn(async move { client.get(path).await })
}

/// The 503 of whoever is shed, in the common form and at once.
async fn shed(client: &Client, method: &str, path: &str) -> Answer {
    let began = Instant::now();
    let answer = client.send(method, path, &[], "").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "overloaded"), "{path}");
    let after: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!(after >= 1 && answer.json()["retry_after"] == after, "{answer:?}");
    assert!(began.elapsed() < Duration::from_secs(1), "nobody queues: {:?}", began.elapsed());
    answer
}

async fn pressure(gateway: &Gateway) -> serde_json::Value {
    gateway.admin.get("/readyz?verbose").await.json()["pressure"].clone()
}

#[tokio::test]
async fn a_route_takes_as_many_as_it_says() {
    let slow = Slow::start().await;
    let gateway = Gateway::with(&format!(
        "upstreams: {{ back: {{ targets: [{{ url: \"{}\" }}] }} }}\n\
         chains: {{ all: [access_log, request_id, metrics, shed: 2] }}\n\
         routes:\n  - {{ route: GET /slow, upstream: back, chain: all, public: true }}\n  \
         - {{ route: GET /quick, upstream: back, chain: all, public: true }}\n",
        slow.url()
    ))
    .start()
    .await;
    let first = [waiting(&gateway.client, "/slow"), waiting(&gateway.client, "/slow")];
    eventually("both are under way", PATIENCE, async || slow.service.connections() == 2).await;
    shed(&gateway.client, "GET", "/slow").await;
    let zh = gateway.client.send("GET", "/slow", &[("accept-language", "zh")], "").await;
    assert_eq!(zh.json()["error"], "服务繁忙，请稍后重试");
    assert_eq!(gateway.client.get("/quick").await.text(), "ok", "another route has its own");
    slow.lets(2);
    for answer in first {
        assert_eq!(answer.await.unwrap().text(), "ok");
    }
    slow.lets(1);
    eventually("there is room again", PATIENCE, async || gateway.client.get("/slow").await.status == 200)
        .await;
    // It is counted like any other, and as what it is.
    assert_eq!(gateway.metric(r#"voicegate_shed_total{reason="route",route="/slow"}"#).await, 2.0);
    assert_eq!(gateway.metric(r#"http_requests_total{method="GET",path="/slow",status="503"}"#).await, 2.0);
    assert_eq!(pressure(&gateway).await["shed"]["route"], 2);
    assert_eq!(slow.service.connections(), 3, "none of the shed was sent");
}

#[tokio::test]
async fn an_upstream_takes_as_many_as_it_says_over_all_routes_until_the_last_byte() {
    let slow = Slow::start().await;
    let gateway = Gateway::with(&format!(
        "upstreams:\n  back: {{ targets: [{{ url: \"{0}\" }}], max_in_flight: 2 }}\n  \
         other: {{ targets: [{{ url: \"{0}\" }}] }}\n\
         routes:\n  - {{ route: GET /head-first, upstream: back, chain: [], public: true }}\n  \
         - {{ route: GET /stream, upstream: back, protocol: sse, chain: [], public: true }}\n  \
         - {{ route: GET /quick, upstream: back, chain: [], public: true }}\n  \
         - {{ route: GET /other, upstream: other, path: /quick, chain: [], public: true }}\n",
        slow.url()
    ))
    .start()
    .await;
    let body = gateway.client.open("GET", "/head-first", &[], "").await;
    let mut stream = gateway.client.open("GET", "/stream", &[], "").await;
    assert_eq!(stream.piece().await.unwrap().unwrap(), "data: 1\n\n");
    shed(&gateway.client, "GET", "/quick").await;
    shed(&gateway.client, "GET", "/stream").await;
    assert_eq!(gateway.client.get("/other").await.text(), "ok");
    slow.lets(2);
    assert_eq!(body.rest().await, ("ok".to_owned(), true));
    assert_eq!(stream.rest().await, ("data: end\n\n".to_owned(), true), "what runs was not touched");
    eventually("there is room again", PATIENCE, async || gateway.client.get("/quick").await.status == 200)
        .await;
    // Who leaves gives the place back too.
    let left: Vec<Open> = vec![
        gateway.client.open("GET", "/stream", &[], "").await,
        gateway.client.open("GET", "/stream", &[], "").await,
    ];
    shed(&gateway.client, "GET", "/quick").await;
    drop(left);
    eventually("there is room again", PATIENCE, async || gateway.client.get("/quick").await.status == 200)
        .await;
    assert_eq!(gateway.metric(r#"voicegate_shed_total{reason="upstream",route="/stream"}"#).await, 1.0);
}

#[tokio::test]
async fn sockets_count_for_as_long_as_they_are_open() {
    let upstream = Echo::start().await;
    for (route, at_upstream) in [("shed: 1", ""), ("", ", max_in_flight: 1")] {
        let gateway = Gateway::with(&format!(
            "upstreams: {{ back: {{ targets: [{{ url: \"{}\" }}]{at_upstream} }} }}\n\
             routes:\n  - {{ route: GET /ws, upstream: back, protocol: websocket, \
             chain: [{route}], public: true }}\n",
            upstream.url()
        ))
        .start()
        .await;
        let address = gateway.client.address();
        let socket = open_socket(&gateway, "/ws").await;
        let (_, head) = ask_socket(address, "/ws", &[]).await;
        assert!(head.starts_with("HTTP/1.1 503") && head.to_lowercase().contains("retry-after: 1"), "{head}");
        drop(socket);
        eventually("its place is free", PATIENCE, async || {
            ask_socket(address, "/ws", &[]).await.1.starts_with("HTTP/1.1 101")
        })
        .await;
    }
}

#[tokio::test]
async fn native_operations_and_grpc_calls_are_bounded_too() {
    let gateway = Gateway::with(
        "chains: { all: [request_id, shed: 1] }\n\
         routes:\n  - { route: POST /login, handler: auth.login, chain: all, public: true }\n  \
         - { route: GET /health, handler: gateway.health, chain: [], public: true }\n",
    )
    .start()
    .await;
    // Its body does not come, so it stays under way.
    let mut first = Wire::connect(gateway.client.address()).await;
    first.send("POST /login HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{").await;
    eventually("it is under way", PATIENCE, async || {
        gateway.client.send("POST", "/login", &[("content-type", "application/json")], "{}").await.status
            == 503
    })
    .await;
    shed(&gateway.client, "POST", "/login").await;
    let call = gateway.client.send_h2("POST", "/login", &[("content-type", "application/grpc")], "").await;
    assert_eq!((call.status.as_u16(), call.header("grpc-status")), (200, Some("14")), "{call:?}");
}

#[tokio::test]
async fn the_process_keeps_its_last_places_for_the_more_important() {
    let slow = Slow::start().await;
    let gateway = Gateway::with(&format!(
        "upstreams: {{ back: {{ targets: [{{ url: \"{}\" }}] }} }}\n\
         cors: {{ default: {{ origins: [\"https://app.example\"] }} }}\n\
         chains: {{ all: [access_log, {{ cors: default }}, request_id, metrics, auth] }}\n\
         routes:\n  - {{ route: GET /stream, upstream: back, protocol: sse, chain: [], public: true }}\n  \
         - {{ route: GET /quick, upstream: back, chain: [], public: true }}\n  \
         - {{ route: GET /quick/low, upstream: back, chain: [shed: {{ priority: low }}], public: true }}\n  \
         - {{ route: GET /quick/known, upstream: back, chain: all }}\n  \
         - {{ route: GET /quick/high, upstream: back, chain: [shed: {{ priority: high }}], public: true }}\n  \
         - {{ route: GET /slow, upstream: back, chain: [shed: {{ priority: high }}], public: true }}\n  \
         - {{ route: GET /health, handler: gateway.health, chain: [], public: true }}\n",
        slow.url()
    ))
    .flag("--max-in-flight", "8")
    .start()
    .await;
    let client = &gateway.client;
    let mut streams = Vec::new();
    for _ in 0..6 {
        streams.push(client.open("GET", "/stream", &[], "").await);
    }
    shed(client, "GET", "/stream").await;
    shed(client, "GET", "/quick/low").await;
    assert_eq!(client.get("/quick").await.text(), "ok", "short requests go on after new streams are refused");
    eventually("that one is over", PATIENCE, async || pressure(&gateway).await["in_flight"]["now"] == 6)
        .await;
    let held = [waiting(client, "/slow"), waiting(client, "/slow")];
    eventually("all places are taken", PATIENCE, async || pressure(&gateway).await["in_flight"]["now"] == 8)
        .await;
    shed(client, "GET", "/quick/high").await;
    shed(client, "GET", "/quick").await;
    // What is shed costs little: nobody looked at its token. Websites may read it all the same.
    let answer = client.send("GET", "/quick/known", &[("origin", "https://app.example")], "").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "overloaded"));
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(client.get("/health").await.status, 200);
    assert_eq!(client.get("/nowhere").await.status, 404);
    let status = pressure(&gateway).await;
    assert_eq!((&status["in_flight"]["now"], &status["in_flight"]["max"]), (&8.into(), &8.into()));
    slow.lets(8);
    for stream in streams {
        let (text, clean) = stream.rest().await;
        assert!(clean && text.ends_with("data: end\n\n"), "what runs is kept: {text:?}");
    }
    for answer in held {
        assert_eq!(answer.await.unwrap().text(), "ok");
    }
    eventually("every place is free", PATIENCE, async || pressure(&gateway).await["in_flight"]["now"] == 0)
        .await;
    assert_eq!(
        gateway.metric(r#"http_requests_total{method="GET",path="/quick/known",status="503"}"#).await,
        1.0
    );
}

#[tokio::test]
async fn with_too_little_memory_only_health_and_what_runs_go_on() {
    let slow = Slow::start().await;
    let gateway = Gateway::with(&format!(
        "upstreams: {{ back: {{ targets: [{{ url: \"{}\" }}] }} }}\n\
         routes:\n  - {{ route: GET /stream, upstream: back, protocol: sse, chain: [], public: true }}\n  \
         - {{ route: GET /quick, upstream: back, chain: [], public: true }}\n  \
         - {{ route: GET /health, handler: gateway.health, chain: [], public: true }}\n",
        slow.url()
    ))
    .flag("--shed-memory", "1000GiB")
    .start()
    .await;
    let mut stream = gateway.client.open("GET", "/stream", &[], "").await;
    assert_eq!(stream.piece().await.unwrap().unwrap(), "data: 1\n\n");
    // As if the process had grown; it looks again within a second.
    let grown = |gibibytes: u64| gateway.live().shared().pressure.uses(gibibytes << 30);
    eventually("new streams are shed first", PATIENCE, async || {
        grown(1001);
        // One that is let in, because memory was just looked at, is left again.
        let stream = gateway.client.open("GET", "/stream", &[], "").await.status;
        grown(1001);
        let quick = gateway.client.get("/quick").await.status;
        (stream.as_u16(), quick.as_u16()) == (503, 200)
    })
    .await;
    eventually("then everything is", PATIENCE, async || {
        grown(2000);
        gateway.client.get("/quick").await.header("retry-after") == Some("5")
    })
    .await;
    grown(2000);
    assert_eq!(gateway.client.get("/health").await.status, 200);
    assert_eq!(gateway.admin.get("/readyz").await.status, 200);
    eventually("memory is looked at again", PATIENCE, async || {
        gateway.client.get("/quick").await.status == 200
    })
    .await;
    assert_eq!(pressure(&gateway).await["memory"]["level"], "calm");
    slow.lets(1);
    assert_eq!(stream.rest().await, ("data: end\n\n".to_owned(), true));
}

#[tokio::test]
async fn a_process_above_its_mark_answers_health_and_says_why() {
    let gateway = Gateway::with(
        "routes:\n  - { route: GET /a, respond: { status: 200 }, chain: [], public: true }\n  \
         - { route: GET /health, handler: gateway.health, chain: [], public: true }\n",
    )
    .flag("--shed-memory", "1MiB")
    .start()
    .await;
    eventually("its memory was looked at", PATIENCE, async || gateway.client.get("/a").await.status == 503)
        .await;
    assert_eq!(gateway.client.get("/health").await.status, 200);
    let status = pressure(&gateway).await;
    assert_eq!(status["memory"]["level"], "hard");
    assert!(status["memory"]["used_bytes"].as_u64().unwrap() > 1 << 20, "{status}");
}

/// A service that works on four requests at a time, 20 ms each; the others wait in line.
async fn of_four() -> Sockets {
    let workers = Arc::new(Semaphore::new(4));
    Sockets::start(move |_, mut wire| {
        let workers = workers.clone();
        async move {
            while wire.head().await.is_some() {
                let worker = workers.acquire().await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
                drop(worker);
                wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adaptive_bound_keeps_answers_quick_under_too_much_load() {
    let upstream = of_four().await;
    for (at_upstream, stage) in
        [(", adaptive: { min: 2, window: 50ms }", ""), ("", "shed: { adaptive: { min: 2, window: 50ms } }")]
    {
        let gateway = Gateway::with(&format!(
            "upstreams: {{ back: {{ targets: [{{ url: \"{}\" }}]{at_upstream} }} }}\n\
             routes:\n  - {{ route: GET /, upstream: back, chain: [{stage}], public: true }}\n",
            upstream.url()
        ))
        .start()
        .await;
        let end = Instant::now() + Duration::from_millis(2500);
        let settled = Instant::now() + Duration::from_millis(1000);
        let callers: Vec<_> = (0..40)
            .map(|_| {
                let client = gateway.client.clone();
                tokio::spawn(async move {
                    let mut times = Vec::new();
                    let mut refused = 0;
                    while Instant::now() < end {
                        let began = Instant::now();
                        match client.get("/").await.status.as_u16() {
                            200 if began > settled => times.push(began.elapsed()),
                            200 => {}
                            503 => {
                                refused += 1;
                                tokio::time::sleep(Duration::from_millis(100)).await;
                            }
                            status => panic!("{status}"),
                        }
                    }
                    (times, refused)
                })
            })
            .collect();
        let (mut times, mut refused) = (Vec::new(), 0);
        for caller in callers {
            let (some, count) = caller.await.unwrap();
            times.extend(some);
            refused += count;
        }
        times.sort();
        let median = times[times.len() / 2];
        // With all 40 let in, each would wait for ten rounds: 200 ms.
        assert!(median < Duration::from_millis(120), "{at_upstream}{stage}: {median:?} of {}", times.len());
        assert!(refused > 20, "{refused}");
        // The service is not starved for that: it could do 200 a second.
        assert!(times.len() > 100, "{} in 1.5 s", times.len());
    }
}
