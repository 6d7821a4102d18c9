//! What is sent again, to whom, and what never is.

use super::{Actor, Does, before};
use crate::harness::eventually;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(5);

/// Nothing that a test would have to count besides.
const FREE: &str = "budget: 100%, min_retries: 100, backoff: { base: 1ms }";

#[tokio::test]
async fn a_get_goes_to_another_server() {
    for does in [Does::Refuses, Does::Resets] {
        let (bad, good) = (Actor::start("bad", does).await, Actor::start("good", Does::Answers).await);
        let gateway = before(&[&bad, &good], &format!("retry: {{ {FREE} }}")).await;
        for _ in 0..10 {
            let answer = gateway.client.get("/a").await;
            assert_eq!((answer.status.as_u16(), answer.text()), (200, "good"), "{does:?}");
        }
        assert!(bad.seen() > 0 && good.seen() == 10, "{does:?}: {} {}", bad.seen(), good.seen());
    }
}

#[tokio::test]
async fn a_refused_connection_is_tried_elsewhere_whatever_the_method() {
    let good = Actor::start("good", Does::Answers).await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateway = crate::harness::Gateway::with(&format!(
        "upstreams: {{ back: {{ targets: [{{ url: \"http://{nobody}\" }}, {}], retry: {{ {FREE} }} }} }}\n\
         routes:\n  - {{ route: ANY /*path, upstream: back, chain: [], public: true }}\n",
        good.target()
    ))
    .start()
    .await;
    for _ in 0..6 {
        assert_eq!(gateway.client.post("/a", "{\"n\":1}").await.text(), "good");
    }
    assert_eq!(good.bodies(), ["{\"n\":1}"; 6], "nothing of a body was lost on the way");
    assert!(
        gateway.metric("voicegate_upstream_retries_total{reason=\"connect\",upstream=\"back\"}").await > 0.0
    );
}

#[tokio::test]
async fn a_post_is_never_sent_twice_without_a_key() {
    for (does, status) in [(Does::Resets, 502), (Does::Refuses, 503)] {
        let (one, two) = (Actor::start("one", does).await, Actor::start("two", does).await);
        let gateway = before(&[&one, &two], &format!("retry: {{ attempts: 5, {FREE} }}")).await;
        for asked in 1..=4 {
            let answer = gateway.client.post("/a", "{}").await;
            assert_eq!(answer.status, status, "{does:?}");
            assert_eq!(one.seen() + two.seen(), asked, "{does:?}");
        }
    }
}

#[tokio::test]
async fn a_post_with_a_key_is_and_with_its_whole_body() {
    let (bad, good) = (Actor::start("bad", Does::Resets).await, Actor::start("good", Does::Answers).await);
    let gateway = before(&[&bad, &good], &format!("retry: {{ {FREE} }}")).await;
    let body = "x".repeat(50_000);
    for _ in 0..4 {
        let headers = [("idempotency-key", "a")];
        assert_eq!(gateway.client.send("POST", "/a", &headers, &body).await.text(), "good");
    }
    assert!(!bad.bodies().is_empty());
    assert!(bad.bodies().iter().chain(&good.bodies()).all(|sent| *sent == body));
    let large = "x".repeat(70_000);
    let refused = {
        let gateway = before(&[&bad], &format!("retry: {{ {FREE} }}")).await;
        let before = bad.seen();
        let answer = gateway.client.send("POST", "/a", &[("idempotency-key", "a")], &large).await;
        assert_eq!(answer.status, 502);
        bad.seen() - before
    };
    assert_eq!(refused, 1, "a body that is not kept is sent once");
}

#[tokio::test]
async fn the_last_answer_is_what_callers_get() {
    let one = Actor::start("one", Does::Refuses).await;
    let gateway = before(&[&one], &format!("retry: {{ attempts: 3, {FREE} }}")).await;
    let answer = gateway.client.get("/a").await;
    assert_eq!((answer.status.as_u16(), answer.text()), (503, "busy"), "it is passed as it came");
    assert_eq!(one.seen(), 3);
    assert_eq!(one.sockets.connections(), 1, "what is thrown away is read, and its connection goes on");
}

#[tokio::test]
async fn a_try_that_hangs_ends_and_another_server_answers() {
    let (slow, good) = (Actor::start("slow", Does::Holds).await, Actor::start("good", Does::Answers).await);
    let gateway = before(&[&slow, &good], &format!("retry: {{ per_try: 100ms, {FREE} }}")).await;
    let began = Instant::now();
    for _ in 0..4 {
        assert_eq!(gateway.client.get("/a").await.text(), "good");
    }
    assert!(slow.seen() > 0 && began.elapsed() < SOON);
}

#[tokio::test]
async fn a_total_deadline_holds_over_all_tries() {
    let slow = Actor::start("slow", Does::Holds).await;
    let keys = format!("timeouts: {{ total: 500ms }}, retry: {{ attempts: 10, per_try: 200ms, {FREE} }}");
    let gateway = before(&[&slow], &keys).await;
    let began = Instant::now();
    let answer = gateway.client.get("/a").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (504, "upstream_timeout"));
    assert!(began.elapsed() >= Duration::from_millis(400) && began.elapsed() < SOON, "{:?}", began.elapsed());
    assert!((2..=3).contains(&slow.seen()), "{}", slow.seen());
}

#[tokio::test]
async fn a_dying_upstream_gets_at_most_a_fifth_more() {
    const ASKED: usize = 300;
    let load = async |keys: &str| {
        let dying = Actor::start("dying", Does::Refuses).await;
        let gateway = before(&[&dying], keys).await;
        for _ in 0..ASKED {
            assert_eq!(gateway.client.get("/a").await.status, 503);
        }
        let left_out = "voicegate_upstream_retry_budget_exhausted_total{upstream=\"back\"}";
        (dying.seen(), gateway.metric(left_out).await)
    };
    let (without, _) =
        load("retry: { attempts: 3, budget: 100%, min_retries: 10000, backoff: { base: 1ms } }").await;
    assert_eq!(without, 3 * ASKED, "as often as asked, where nothing bounds it");
    let (with, left_out) = load("retry: { attempts: 3, budget: 20%, backoff: { base: 1ms } }").await;
    assert!(with > ASKED && with <= ASKED * 12 / 10, "{with} requests for {ASKED}");
    assert!(left_out > 0.0);
}

#[tokio::test]
async fn a_hedge_answers_while_the_first_is_waited_for() {
    let (slow, good) = (Actor::start("slow", Does::Holds).await, Actor::start("good", Does::Answers).await);
    let keys = format!("retry: {{ hedge: {{ after: 50ms }}, {FREE} }}");
    let gateway = before(&[&slow, &good], &keys).await;
    let began = Instant::now();
    for _ in 0..6 {
        assert_eq!(gateway.client.get("/a").await.text(), "good");
    }
    assert!(began.elapsed() < SOON && slow.seen() > 0);
    let hedged = gateway.metric("voicegate_upstream_retries_total{reason=\"hedge\",upstream=\"back\"}").await;
    assert_eq!(hedged as usize, slow.seen());
    eventually("the tries that lost are hung up on", SOON, async || {
        gateway
            .metric(&format!(
                "voicegate_upstream_connections{{state=\"active\",target=\"{}\",upstream=\"back\"}}",
                slow.sockets.address
            ))
            .await
            == 0.0
    })
    .await;
    let seen = good.seen();
    let post = gateway.client.post("/a", "{}");
    let held = tokio::time::timeout(Duration::from_millis(300), post).await;
    if held.is_err() {
        assert_eq!(good.seen(), seen, "a POST is not hedged");
    }
}

#[tokio::test]
async fn retries_are_in_the_metrics_and_nobody_retries_what_is_not_named() {
    let bad = Actor::start("bad", Does::Resets).await;
    let gateway = before(&[&bad], &format!("retry: {{ on: [connect, 503], {FREE} }}")).await;
    assert_eq!(gateway.client.get("/a").await.status, 502);
    assert_eq!(bad.seen(), 1, "`reset` is not named");
    bad.now(Does::Refuses);
    assert_eq!(gateway.client.get("/a").await.status, 503);
    assert_eq!(bad.seen(), 3);
    let again = gateway.metric("voicegate_upstream_retries_total{reason=\"503\",upstream=\"back\"}").await;
    assert_eq!(again, 1.0);
}
