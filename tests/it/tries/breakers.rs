//! Breakers: when they open, who probes, and what they outlive.

use super::{Actor, Does, before, manifest};
use crate::harness::{Gateway, eventually};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(5);
const QUICK: &str = "breaker: { min_requests: 5, open_for: 300ms }";

/// Whether the gateway asks nobody.
async fn refuses(gateway: &Gateway) -> bool {
    let answer = gateway.client.get("/a").await;
    answer.text().contains("upstream_unavailable")
}

/// Asks until the breaker is open.
async fn opened(gateway: &Gateway, actor: &Actor) {
    actor.now(Does::Refuses);
    eventually("the breaker opens", SOON, async || refuses(gateway).await).await;
}

async fn state(gateway: &Gateway) -> String {
    gateway.admin.get("/admin/api/breakers").await.json()["breakers"][0]["state"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_upstream_that_fails_is_left_alone_for_a_while() {
    let actor = Actor::start("back", Does::Answers).await;
    let gateway = before(&[&actor], "breaker: { min_requests: 5, open_for: 60s }").await;
    opened(&gateway, &actor).await;
    let seen = actor.seen();
    let answer = gateway.client.get("/a").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "upstream_unavailable"));
    let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((50..=60).contains(&wait), "until the next probe: {wait}");
    assert_eq!(answer.json()["retry_after"], wait);
    assert_eq!(actor.seen(), seen, "nothing was sent");
    assert_eq!(state(&gateway).await, "open");
    let series = "voicegate_upstream_breaker_state{target=\"\",upstream=\"back\"}";
    assert_eq!(gateway.metric(series).await, 2.0);
    let checks = &gateway.admin.get("/readyz?verbose").await.json()["checks"];
    assert_eq!(checks["back_service"], "unhealthy");
}

#[tokio::test]
async fn of_fifty_at_a_half_open_breaker_exactly_one_reaches_the_upstream() {
    let actor = Actor::start("back", Does::Answers).await;
    let gateway = before(&[&actor], QUICK).await;
    opened(&gateway, &actor).await;
    actor.now(Does::Holds);
    let seen = actor.seen();
    tokio::time::sleep(Duration::from_millis(350)).await;
    let asked: Vec<_> = (0..50)
        .map(|_| {
            let client = gateway.client.clone();
            tokio::spawn(async move { client.get("/a").await.status.as_u16() })
        })
        .collect();
    let refused = "http_requests_total{method=\"GET\",path=\"/*path\",status=\"503\"}";
    let before = gateway.metric(refused).await;
    eventually("everybody else is refused", SOON, async || {
        asked.iter().filter(|task| task.is_finished()).count() == 49
    })
    .await;
    assert_eq!(actor.seen(), seen + 1, "one probe ({before} were refused before)");
    assert_eq!(state(&gateway).await, "half_open");
    actor.let_go(1);
    let mut statuses = Vec::new();
    for task in asked {
        statuses.push(task.await.unwrap());
    }
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1);
    assert_eq!(state(&gateway).await, "closed");
    actor.now(Does::Answers);
    assert_eq!(gateway.client.get("/a").await.status, 200);
}

#[tokio::test]
async fn a_probe_that_fails_opens_it_again() {
    let actor = Actor::start("back", Does::Answers).await;
    let gateway = before(&[&actor], QUICK).await;
    opened(&gateway, &actor).await;
    let seen = actor.seen();
    eventually("a probe goes out", SOON, async || {
        gateway.client.get("/a").await;
        actor.seen() > seen
    })
    .await;
    assert_eq!(actor.seen(), seen + 1);
    let answer = gateway.client.get("/a").await;
    assert_eq!(answer.code(), "upstream_unavailable");
    assert_eq!(actor.seen(), seen + 1);
}

#[tokio::test]
async fn a_probe_whose_caller_leaves_gives_its_place_back() {
    let actor = Actor::start("back", Does::Answers).await;
    let gateway = before(&[&actor], QUICK).await;
    opened(&gateway, &actor).await;
    actor.now(Does::Holds);
    tokio::time::sleep(Duration::from_millis(350)).await;
    let seen = actor.seen();
    let caller = tokio::spawn({
        let client = gateway.client.clone();
        async move { client.get("/a").await }
    });
    eventually("the probe is under way", SOON, async || actor.seen() > seen).await;
    caller.abort();
    actor.now(Does::Answers);
    eventually("the next caller is the probe", SOON, async || gateway.client.get("/a").await.status == 200)
        .await;
    assert_eq!(state(&gateway).await, "closed");
}

#[tokio::test]
async fn callers_faults_and_departures_open_nothing() {
    let actor = Actor::start("back", Does::Holds).await;
    let gateway = before(&[&actor], QUICK).await;
    for _ in 0..10 {
        let seen = actor.seen();
        let caller = tokio::spawn({
            let client = gateway.client.clone();
            async move { client.get("/a").await }
        });
        eventually("it has arrived", SOON, async || actor.seen() > seen).await;
        caller.abort();
    }
    actor.now(Does::Answers);
    assert_eq!(gateway.client.get("/a").await.status, 200);
    assert_eq!(state(&gateway).await, "closed");
}

#[tokio::test]
async fn answers_that_break_off_open_it_too() {
    let actor = Actor::start("back", Does::BreaksOff).await;
    let gateway = before(&[&actor], QUICK).await;
    eventually("the breaker opens", SOON, async || {
        let open = gateway.client.open("GET", "/a", &[], "").await;
        let refused = open.status == 503;
        open.rest().await;
        refused
    })
    .await;
}

#[tokio::test]
async fn slow_answers_open_it_too() {
    let actor = Actor::start("back", Does::Holds).await;
    let gateway = before(&[&actor], "breaker: { min_requests: 3, slow_call: 50ms, open_for: 60s }").await;
    for _ in 0..3 {
        let seen = actor.seen();
        let caller = tokio::spawn({
            let client = gateway.client.clone();
            async move { client.get("/a").await.status.as_u16() }
        });
        eventually("it has arrived", SOON, async || actor.seen() > seen).await;
        tokio::time::sleep(Duration::from_millis(80)).await;
        actor.let_go(1);
        assert_eq!(caller.await.unwrap(), 200);
    }
    assert_eq!(gateway.client.get("/a").await.code(), "upstream_unavailable");
}

#[tokio::test]
async fn one_bad_target_is_passed_over_and_the_others_serve() {
    let (bad, good, fine) = (
        Actor::start("bad", Does::Resets).await,
        Actor::start("good", Does::Answers).await,
        Actor::start("fine", Does::Answers).await,
    );
    let keys = "breaker: { min_requests: 5, failure_ratio: 0.5, open_for: 60s }";
    let gateway = before(&[&bad, &good, &fine], keys).await;
    let mut failed = 0;
    for _ in 0..60 {
        failed += usize::from(gateway.client.get("/a").await.status != 200);
    }
    assert!(failed <= 5, "{failed}");
    assert_eq!(bad.seen(), failed);
    for _ in 0..30 {
        assert_eq!(gateway.client.get("/a").await.status, 200);
    }
}

#[tokio::test]
async fn all_targets_broken_is_a_503_and_the_admin_closes_them() {
    let (one, two) = (Actor::start("one", Does::Refuses).await, Actor::start("two", Does::Refuses).await);
    let keys = "breaker: { min_requests: 4, open_for: 60s }";
    let gateway =
        Gateway::with(&manifest(&[&one, &two], keys)).flag("--admin-token", "a-token").start().await;
    eventually("everything is open", SOON, async || refuses(&gateway).await).await;
    one.now(Does::Answers);
    two.now(Does::Answers);
    let reset = "/admin/api/breakers/reset";
    let headers = [("authorization", "Bearer a-token"), ("content-type", "application/json")];
    assert_eq!(gateway.admin.send("POST", reset, &headers[1..], "{\"upstream\":\"back\"}").await.status, 403);
    assert_eq!(gateway.admin.send("POST", reset, &headers, "{\"upstream\":\"nobody\"}").await.status, 404);
    let answer = gateway.admin.send("POST", reset, &headers, "{\"upstream\":\"back\"}").await;
    assert_eq!(answer.json()["closed"], 3, "the upstream's and two targets': {}", answer.text());
    assert_eq!(gateway.client.get("/a").await.status, 200);
}

#[tokio::test]
async fn it_outlives_a_reload_that_does_not_change_its_upstream() {
    let actor = Actor::start("back", Does::Answers).await;
    let keys = "breaker: { min_requests: 5, open_for: 60s }";
    let gateway = before(&[&actor], keys).await;
    opened(&gateway, &actor).await;
    let first = gateway.revision();
    let added = format!(
        "{}  - {{ route: GET /new, respond: {{}}, chain: [], public: true }}\n",
        manifest(&[&actor], keys)
    );
    gateway.rewrite(&added);
    eventually("the route is there", SOON, async || gateway.revision() > first).await;
    assert_eq!(gateway.client.get("/a").await.code(), "upstream_unavailable");
    let second = gateway.revision();
    gateway.rewrite(&manifest(&[&actor], "breaker: { min_requests: 6, open_for: 60s }"));
    eventually("another upstream serves", SOON, async || gateway.revision() > second).await;
    assert_eq!(gateway.client.get("/a").await.text(), "busy", "a changed upstream begins anew");
}

#[tokio::test]
async fn websockets_and_calls_meet_it_too() {
    let actor = Actor::start("back", Does::Answers).await;
    let gateway = Gateway::with(&format!(
        "upstreams: {{ back: {{ targets: [{}], breaker: {{ min_requests: 5, open_for: 60s }} }}, \
         calls: {{ protocol: grpc, targets: [{{ url: \"http://127.0.0.1:1\" }}], \
                   breaker: {{ min_requests: 3, open_for: 60s }} }} }}\n\
         routes:\n  - {{ route: GET /socket, upstream: back, protocol: websocket, chain: [], public: true }}\n\
         \x20 - {{ route: ANY /p.S/*method, upstream: calls, protocol: grpc, chain: [], public: true }}\n\
         \x20 - {{ route: ANY /*path, upstream: back, chain: [], public: true }}\n",
        actor.target()
    ))
    .start()
    .await;
    opened(&gateway, &actor).await;
    let asks = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let answer = gateway.client.send("GET", "/socket", &asks, "").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "upstream_unavailable"));
    let began = Instant::now();
    let call = async || {
        let headers = [("content-type", "application/grpc"), ("te", "trailers")];
        let answer = gateway.client.send_h2("POST", "/p.S/M", &headers, "").await;
        answer.header("grpc-message").unwrap_or_default().to_owned()
    };
    eventually("calls are refused", SOON, async || call().await.contains("failing")).await;
    assert!(began.elapsed() < SOON);
}

#[tokio::test]
async fn one_of_two_that_fails_leaves_the_way_to_the_other_open() {
    let (well, ill) = (Actor::start("well", Does::Answers).await, Actor::start("ill", Does::Refuses).await);
    let gateway =
        before(&[&well, &ill], "breaker: { min_requests: 20, failure_ratio: 0.5, open_for: 60s }").await;
    let mut good = 0;
    for _ in 0..100 {
        let answer = gateway.client.get("/").await;
        assert!(!answer.text().contains("upstream_unavailable"), "after {good} good answers");
        good += usize::from(answer.status == 200);
    }
    let seen = ill.seen();
    assert!(
        (1..=20).contains(&seen) && good == 100 - seen,
        "it is left alone after {seen}, and {good} were good"
    );
    well.now(Does::Refuses);
    let mut last = String::new();
    for _ in 0..200 {
        last = gateway.client.get("/").await.text().to_owned();
    }
    assert!(last.contains("upstream_unavailable"), "both fail: nobody is sent there");
}
