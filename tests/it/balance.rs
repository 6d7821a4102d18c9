//! Which server takes a request: keys, health checks, ejections, drained targets, through a whole gateway.

use crate::harness::{Gateway, Sockets, eventually};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use voicegate::demo::Demo;

const SOON: Duration = Duration::from_secs(10);

/// A server that says its name, as late as it is told to.
struct Named {
    server: Sockets,
    delay: Arc<AtomicU64>,
    asked: Arc<AtomicUsize>,
}

impl Named {
    async fn start(name: &'static str) -> Self {
        let (delay, asked) = (Arc::<AtomicU64>::default(), Arc::<AtomicUsize>::default());
        let (wait, count) = (delay.clone(), asked.clone());
        let server = Sockets::start(move |_, mut wire| {
            let (wait, count) = (wait.clone(), count.clone());
            async move {
                while wire.head().await.is_some() {
                    count.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(wait.load(Ordering::SeqCst))).await;
                    let length = name.len();
                    wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}")).await;
                }
            }
        })
        .await;
        Named { server, delay, asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn address(url: &str) -> &str {
    url.trim_start_matches("http://")
}

fn manifest(urls: &[&str], keys: &str) -> String {
    let targets: Vec<String> = urls.iter().map(|url| format!("{{ url: \"{url}\" }}")).collect();
    format!(
        "upstreams: {{ app: {{ targets: [{}], {keys} }} }}\n\
         routes:\n\
         \x20 - {{ route: GET /health, chain: [request_id], public: true, handler: gateway.health }}\n\
         \x20 - {{ route: ANY /s/:session_id, chain: [metrics], public: true, upstream: app, path: / }}\n\
         \x20 - {{ route: ANY /*path, chain: [metrics], public: true, upstream: app }}\n",
        targets.join(", ")
    )
}

async fn servers(gateway: &Gateway) -> Vec<serde_json::Value> {
    let answer = gateway.admin.get("/admin/api/upstreams").await.json();
    answer["upstreams"][0]["servers"].as_array().unwrap().clone()
}

/// Answers and how long they took, of a few callers for a while.
async fn load(gateway: &Gateway, callers: usize, time: Duration) -> Vec<(u16, Duration)> {
    let calls = (0..callers).map(|_| {
        let client = gateway.client.clone();
        tokio::spawn(async move {
            let (begun, mut seen) = (Instant::now(), Vec::new());
            while begun.elapsed() < time {
                let asked = Instant::now();
                let status = client.get("/x").await.status.as_u16();
                seen.push((status, asked.elapsed()));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            seen
        })
    });
    let mut all = Vec::new();
    for call in calls.collect::<Vec<_>>() {
        all.extend(call.await.unwrap());
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_dies_and_one_slows_down_and_both_come_back() {
    let dying = Demo::start().await.unwrap();
    let (slow, well) = (Named::start("slow").await, Named::start("well").await);
    let at = dying.addr();
    let urls = [dying.url(), slow.server.url(), well.server.url()];
    // What a demo answers to `/x` is a 404: an answer like any other.
    let gateway = Gateway::with(&manifest(
        &[&urls[0], &urls[1], &urls[2]],
        "outlier: { interval: 2s, eject_for: 300ms, max_eject_for: 300ms, min_requests: 5 }",
    ))
    .start()
    .await;
    load(&gateway, 4, Duration::from_millis(300)).await;
    dying.stop(Duration::ZERO).await;
    slow.delay.store(1_000, Ordering::SeqCst);
    let out = async || {
        let servers = servers(&gateway).await;
        let out = |n: usize| !servers[n]["ejected"].is_null() || servers[n]["on_trial"] == true;
        (out(0), out(1), out(2))
    };
    let during = load(&gateway, 8, Duration::from_millis(2_500)).await;
    assert!(during.iter().any(|(status, _)| *status == 502), "the one that died was noticed by somebody");
    eventually("both are ejected", SOON, async || {
        load(&gateway, 4, Duration::from_millis(100)).await;
        out().await == (true, true, false)
    })
    .await;
    let health = gateway.client.get("/health").await.json();
    assert_eq!(health["checks"]["app_service"].as_str(), Some("degraded"), "{health}");
    let ejections = |target: &str, reason: &str| {
        format!(
            "voicegate_upstream_ejections_total{{reason=\"{reason}\",target=\"{}\",upstream=\"app\"}}",
            address(target)
        )
    };
    assert!(gateway.metric(&ejections(&urls[0], "consecutive_failures")).await >= 1.0);
    assert!(gateway.metric(&ejections(&urls[1], "slow")).await >= 1.0);

    let after = load(&gateway, 4, Duration::from_millis(1_200)).await;
    let trouble =
        after.iter().filter(|(status, took)| *status == 502 || *took > Duration::from_millis(500)).count();
    // One request a trial: no more than four of each in this time.
    assert!(trouble <= 12 && after.len() > 50, "{trouble} of {}", after.len());

    slow.delay.store(0, Ordering::SeqCst);
    let _alive = Demo::start_at(at).await.unwrap();
    eventually("both are back", SOON, async || {
        load(&gateway, 4, Duration::from_millis(100)).await;
        out().await == (false, false, false)
    })
    .await;
}

#[tokio::test]
async fn the_same_key_goes_to_the_same_server() {
    let (one, two) = (Named::start("one").await, Named::start("two").await);
    let urls = [one.server.url(), two.server.url()];
    for (by, header) in [("session", "x-session-id"), ("header.X-Device", "x-device")] {
        let gateway = Gateway::with(&manifest(&[&urls[0], &urls[1]], &format!("balance: {{ hash: {by} }}")))
            .start()
            .await;
        let mut seen = HashSet::new();
        for key in 0..16 {
            let key = format!("conversation-{key}");
            let home = gateway.client.send("GET", "/x", &[(header, &key)], "").await.text().to_owned();
            for _ in 0..3 {
                let again = gateway.client.send("GET", "/x", &[(header, &key)], "").await;
                assert_eq!(again.text(), home, "{by} {key}");
            }
            if by == "session" {
                let (path, query) = (format!("/s/{key}"), format!("/y?session_id={key}"));
                assert_eq!(gateway.client.get(&path).await.text(), home, "by the path");
                assert_eq!(gateway.client.get(&query).await.text(), home, "by the query");
            }
            seen.insert(home);
        }
        assert_eq!(seen.len(), 2, "{by}: sixteen keys have more than one home");
    }
}

#[tokio::test]
async fn a_target_is_drained_and_put_back_by_the_admin_api() {
    let (one, two) = (Named::start("one").await, Named::start("two").await);
    let urls = [one.server.url(), two.server.url()];
    let (first, both) = (address(&urls[0]), [&*urls[0], &*urls[1]]);
    let gateway = Gateway::with(&manifest(&both, "")).start().await;
    let call = async |act: &str, token: &str| {
        let path = format!("/admin/api/upstreams/app/targets/{first}/{act}");
        gateway.admin.send("POST", &path, &[("authorization", token)], "").await
    };
    let token = "Bearer admin-secret";
    assert_eq!(call("drain", "Bearer nobody").await.status, 403);

    one.delay.store(300, Ordering::SeqCst);
    let running = [gateway.client.clone(), gateway.client.clone()];
    let running = running.map(|client| tokio::spawn(async move { client.get("/x").await.text().to_owned() }));
    eventually("both have one", SOON, async || one.asked() == 1 && two.asked() == 1).await;
    let drained = call("drain", token).await;
    assert_eq!((drained.status.as_u16(), &drained.json()["in_flight"]), (200, &1.into()));
    let mut ended = Vec::new();
    for answer in running {
        ended.push(answer.await.unwrap());
    }
    assert!(ended.contains(&"one".to_owned()), "what it had went on: {ended:?}");

    let only_two = async || {
        for _ in 0..6 {
            assert_eq!(gateway.client.get("/x").await.text(), "two");
        }
    };
    only_two().await;
    assert_eq!(servers(&gateway).await[0]["drained"], true);
    let series = |state: &str| {
        format!("voicegate_upstream_endpoints{{state=\"{state}\",target=\"{first}\",upstream=\"app\"}}")
    };
    assert_eq!(gateway.metric(&series("drained")).await, 1.0);
    assert_eq!(gateway.metric(&series("taking")).await, 0.0);

    gateway.rewrite(&manifest(&both, "connect_timeout: 2s"));
    assert_eq!(
        gateway.admin.send("POST", "/admin/api/reload", &[("authorization", token)], "").await.json()["result"],
        "serves"
    );
    only_two().await;

    assert_eq!(call("undrain", token).await.json()["drained"], false);
    one.delay.store(0, Ordering::SeqCst);
    let mut seen = HashSet::new();
    for _ in 0..6 {
        seen.insert(gateway.client.get("/x").await.text().to_owned());
    }
    assert_eq!(seen.len(), 2);
    let missing = "/admin/api/upstreams/app/targets/nobody:1/drain";
    assert_eq!(gateway.admin.send("POST", missing, &[("authorization", token)], "").await.status, 404);
    assert_eq!(gateway.admin.get(missing).await.status, 405);
}

#[tokio::test]
async fn a_server_that_takes_no_connections_fails_its_tcp_check() {
    let (one, two) = (Demo::start().await.unwrap(), Named::start("two").await);
    let keys = "health: { tcp: true, interval: 50ms, timeout: 40ms, unhealthy_after: 2 }, outlier: { enabled: false }";
    let gateway = Gateway::with(&manifest(&[&one.url(), &two.server.url()], keys)).start().await;
    let conditions = async |one: &str, two: &str| {
        let servers = servers(&gateway).await;
        servers[0]["condition"] == one && servers[1]["condition"] == two
    };
    eventually("both are up", SOON, async || conditions("up", "up").await).await;
    one.stop(Duration::ZERO).await;
    eventually("one is down", SOON, async || conditions("down", "up").await).await;
    assert_eq!(two.asked(), 0, "nobody sent it a request");
    for _ in 0..4 {
        assert_eq!(gateway.client.get("/x").await.text(), "two");
    }
}
