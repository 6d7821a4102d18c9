//! How often and from where: `rate_limit`, `concurrency`, `ip_filter`, in memory and over replicas that share a Redis.

use crate::access::token;
use crate::harness::load::within;
use crate::harness::{Answer, Gateway, Load, RedisServer, Scripted, eventually, gateway::Builder};
use futures_util::future::join_all;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const WITHIN: Duration = Duration::from_secs(20);

/// A route that anybody may call as often as `stage` lets them.
fn limited(stage: &str) -> String {
    format!(
        "rate_limits: {{ default: {{ limit: 100, per: 10m, by: [ip, route] }} }}\n\
         routes: [{{ route: GET /a, chain: [{stage}], public: true, respond: {{ status: 200, text: hello }} }},\n\
         {{ route: GET /b, chain: [{{ rate_limit: default }}], public: true, respond: {{ status: 200, text: hello }} }}]\n"
    )
}

/// Sends so many requests at a time; how many passed, and one that did not.
async fn passed(gateways: &[&Gateway], count: usize) -> (usize, Option<Answer>) {
    let requests = (0..count).map(|number| gateways[number % gateways.len()].client.get("/a"));
    let answers = join_all(requests).await;
    let passed = answers.iter().filter(|answer| answer.status == 200).count();
    (passed, answers.into_iter().find(|answer| answer.status != 200))
}

async fn on(redis: &RedisServer, manifest: Builder) -> Gateway {
    let gateway = manifest.flag("--redis-url", &redis.url()).start().await;
    eventually("Redis is there", WITHIN, async || gateway.live().shared().shared.ping().await.is_ok()).await;
    gateway
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_memory_exactly_the_limit_passes() {
    let gateway = Gateway::with(&limited("{ rate_limit: default }")).start().await;
    let (count, refused) = passed(&[&gateway], 300).await;
    assert_eq!(count, 100);
    assert_eq!(refused.unwrap().code(), "rate_limited");
    let rejections = "voicegate_rate_limit_rejections_total{limit=\"default\"}";
    assert_eq!(gateway.metric(rejections).await, 200.0);
    assert_eq!(gateway.client.get("/b").await.status, 200, "another route counts for itself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_on_one_redis_count_as_one() {
    let redis = RedisServer::start();
    let one = on(&redis, Gateway::with(&limited("{ rate_limit: default }"))).await;
    let two = on(&redis, Gateway::with(&limited("{ rate_limit: default }"))).await;
    let (count, _) = passed(&[&one, &two], 300).await;
    assert_eq!(count, 100);
    assert_eq!(one.client.get("/a").await.status, 429);
    assert_eq!(two.client.get("/a").await.status, 429);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_say_where_their_caller_stands() {
    let gateway = Gateway::with(&limited("{ rate_limit: { limit: 2, per: 1m } }")).start().await;
    let first = gateway.client.get("/a").await;
    for (name, value) in [
        ("x-ratelimit-limit", "2"),
        ("x-ratelimit-remaining", "1"),
        ("x-ratelimit-reset", "60"),
        ("ratelimit-policy", "\"2-per-1m\";q=2;w=60"),
        ("ratelimit", "\"2-per-1m\";r=1;t=60"),
    ] {
        assert_eq!(first.header(name), Some(value), "{name}");
    }
    assert_eq!(gateway.client.send("HEAD", "/a", &[], "").await.status, 200);
    for (language, text) in [("en", "Too many requests"), ("zh-CN", "请求过于频繁，请稍后重试")] {
        let refused = gateway.client.send("GET", "/a", &[("accept-language", language)], "").await;
        assert_eq!(refused.status, 429);
        assert_eq!(refused.code(), "rate_limited");
        assert_eq!(refused.json()["error"], text);
        let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=90).contains(&wait), "{wait}");
        assert_eq!(refused.json()["retry_after"], wait);
        assert_eq!(refused.header("x-ratelimit-remaining"), Some("0"));
    }
    assert_eq!(gateway.client.send("OPTIONS", "/a", &[], "").await.status, 429, "OPTIONS is no way round");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_go_on_across_reloads_that_leave_their_policy_alone() {
    let manifest = limited("{ rate_limit: default }");
    let gateway = Gateway::with(&manifest).start().await;
    assert_eq!(passed(&[&gateway], 100).await.0, 100);
    gateway.rewrite(&manifest.replace("hello", "bye"));
    eventually("the change is served", WITHIN, async || gateway.revision() == 2).await;
    assert_eq!(gateway.client.get("/a").await.status, 429);
    assert_eq!(gateway.client.get("/b").await.text(), "bye");
    gateway.rewrite(&manifest.replace("limit: 100", "limit: 101"));
    eventually("the change is served", WITHIN, async || gateway.revision() == 3).await;
    assert_eq!(gateway.client.get("/a").await.status, 200, "a changed policy counts anew");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_hangs_or_is_gone_does_not_stop_traffic() {
    let mut redis = RedisServer::start();
    let gateway = on(&redis, Gateway::with(&limited("{ rate_limit: default }"))).await;
    assert_eq!(passed(&[&gateway], 60).await.0, 60);
    redis.signal("STOP");
    // The first to notice wait for the deadline of 50 ms; the others do not wait at all.
    assert_eq!(gateway.client.get("/a").await.status, 200);
    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(gateway.client.get("/a").await.status, 200);
    }
    assert!(begun.elapsed() < Duration::from_millis(20 * 50), "{:?}", begun.elapsed());
    assert_eq!(passed(&[&gateway], 200).await.0, 79, "this process counts alone");
    redis.signal("CONT");
    eventually("Redis decides again", WITHIN, async || gateway.client.get("/a").await.status == 200).await;
    // 60 before, one that asked; perhaps one that was sent while it hung and counted when it woke.
    let rest = passed(&[&gateway], 200).await.0;
    assert!((38..=39).contains(&rest), "{rest}");
    redis.kill();
    assert_eq!(passed(&[&gateway], 50).await.0, 0, "alone again, and the window is not over");
    assert_eq!(gateway.client.get("/b").await.status, 200);
    redis.restart();
    eventually("a new Redis is found", WITHIN, async || gateway.client.get("/a").await.status == 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_hangs_under_load_costs_callers_next_to_nothing() {
    let manifest = "auth: { password: { bcrypt_cost: 4 } }\n\
        rate_limits: { many: { limit: 1000000, per: 10m, by: [user] }, login: { limit: 20, per: 10m, by: [ip] } }\n\
        routes:\n\
        - { route: GET /own, chain: [auth, { rate_limit: many }], respond: { status: 200, text: hello } }\n\
        - { route: POST /login, chain: [{ rate_limit: login }], public: true, handler: auth.login }\n";
    let secret = "0123456789abcdef0123456789abcdef-shared";
    let redis = RedisServer::start();
    let one = on(&redis, Gateway::with(manifest).flag("--jwt-secret", secret)).await;
    let other = on(&redis, Gateway::with(manifest).flag("--jwt-secret", secret)).await;
    let names = AtomicUsize::new(0);
    let login = async |gateway: &Gateway| {
        let name = names.fetch_add(1, Ordering::Relaxed);
        let body = format!(r#"{{"username":"user{name}","password":"Wrong1horse"}}"#);
        match gateway.client.post("/login", &body).await.status.as_u16() {
            401 => true,
            429 => false,
            status => panic!("{status}"),
        }
    };
    // One after the other: the queue of the password workers is not what is asked about here.
    let logins = async |gateways: &[&Gateway], count: usize| {
        let mut passed = 0;
        for number in 0..count {
            passed += usize::from(login(gateways[number % gateways.len()]).await);
        }
        passed
    };
    assert_eq!(logins(&[&one, &other], 8).await, 8, "of twenty");

    let bearer = format!("Bearer {}", token(&one, "user", Duration::ZERO));
    let load = Load::start(&one.client, 8, "/own", &[("authorization", &bearer)]);
    load.goes_on_for(3000).await;
    let stopped = Instant::now();
    redis.signal("STOP");
    load.goes_on_for(100).await;
    // The other notices by a request of another limit, so that none of the login's waits at Redis.
    let noticing = other.client.send("GET", "/own", &[("authorization", &bearer)], "").await;
    assert_eq!(noticing.status, 200);
    assert_eq!(logins(&[&one], 20).await, 10, "alone, a limit that guards credentials holds at half");
    assert_eq!(logins(&[&other], 20).await, 10);
    load.goes_on_for(3000).await;
    let seen = load.end().await;
    redis.signal("CONT");

    assert!(seen.iter().all(|one| one.status == 200), "protected traffic goes on");
    let (mut during, before): (Vec<_>, Vec<_>) =
        seen.into_iter().partition(|one| one.begun + one.took > stopped);
    let (usual, p99) = (within(0.5, before.clone()), within(0.99, before));
    let p99_during = within(0.99, during.clone());
    // That nobody waits is seen in the beginning: each who did would have waited 50 ms.
    during.sort_by_key(|one| one.begun);
    let first = within(0.5, during.into_iter().take(400));
    assert!(p99_during <= p99 + Duration::from_millis(100), "p99 {p99:?}, {p99_during:?} while Redis hangs");
    assert!(
        first <= usual + Duration::from_millis(25),
        "usually {usual:?}, {first:?} when Redis began to hang"
    );

    for gateway in [&one, &other] {
        eventually("Redis decides again", WITHIN, async || login(gateway).await).await;
    }
    assert_eq!(logins(&[&one, &other], 30).await, 10, "of twenty, but for eight and two");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_starts_without_its_redis() {
    let manifest = limited("{ rate_limit: default }");
    let gateway = Gateway::with(&manifest).flag("--redis-url", "redis://:hush@127.0.0.1:1").start().await;
    assert_eq!(passed(&[&gateway], 150).await.0, 100);
    let Err(refused) = Gateway::with(&manifest).flag("--redis-url", "hush").try_start().await else {
        panic!("that is no URL");
    };
    assert!(refused.to_string().contains("REDIS_URL") && !refused.to_string().contains("hush"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_are_counted_by_name_and_arrive_whole() {
    let upstream = Scripted::start(|_, body| http::Response::new(crate::harness::scripted::body(body))).await;
    let manifest = "rate_limits: { login: { limit: 1, per: 1m, by: [ip, body.username] } }\n\
        upstreams: { u: { targets: [{ url: \"${U}\" }] } }\n\
        routes: [{ route: POST /login, chain: [{ rate_limit: login }], public: true, upstream: u }]\n";
    let gateway = Gateway::with(manifest).var("U", upstream.url()).start().await;
    let alice = r#"{"username":"alice","password":"secret"}"#;
    let first = gateway.client.post("/login", alice).await;
    assert_eq!((first.status.as_u16(), first.text()), (200, alice));
    assert_eq!(gateway.client.post("/login", alice).await.status, 429);
    assert_eq!(gateway.client.post("/login", &alice.replace("alice", "ALICE")).await.status, 429);
    assert_eq!(gateway.client.post("/login", &alice.replace("alice", "bob")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_under_way_are_bounded_over_replicas_and_given_back() {
    let demo = voicegate::demo::Demo::start().await.unwrap();
    let manifest = "upstreams: { algo: { targets: [{ url: \"${U}\" }] } }\n\
        routes: [{ route: POST /stream, chain: [{ concurrency: { limit: 3, by: [user] } }], public: true,\n\
          upstream: algo, path: /api/v1/chat/stream, protocol: sse }]\n";
    let redis = RedisServer::start();
    let one = on(&redis, Gateway::with(manifest).var("U", demo.url())).await;
    let two = on(&redis, Gateway::with(manifest).var("U", demo.url())).await;
    let ask = r#"{"query":"Tell me about gateways","session_id":"s"}"#;
    let open = async |gateway: &Gateway| {
        gateway.client.open("POST", "/stream?tokens=2000", &[("content-type", "application/json")], ask).await
    };
    let (first, second, third) = (open(&one).await, open(&two).await, open(&one).await);
    assert_eq!([first.status, second.status, third.status], [200; 3]);
    let refused = two.client.post("/stream", ask).await;
    assert_eq!(refused.code(), "too_many_concurrent");
    assert!(refused.header("retry-after").is_some());
    // One leaves, and its slot is free.
    drop(first);
    eventually("a slot is free", WITHIN, async || open(&two).await.status == 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_pass_by_address() {
    let manifest = "routes:\n\
        - { route: GET /in, chain: [{ ip_filter: { allow: [10.0.0.0/8] } }], public: true, respond: { status: 200 } }\n\
        - { route: GET /out, chain: [{ ip_filter: { deny: [10.0.0.0/8] } }], public: true, respond: { status: 200 } }\n";
    let gateway = Gateway::with(manifest).flag("--trusted-proxies", "127.0.0.1").start().await;
    let from = async |path: &str, address: &str| {
        gateway.client.send("GET", path, &[("x-forwarded-for", address)], "").await
    };
    assert_eq!(from("/in", "10.1.2.3").await.status, 200);
    assert_eq!(from("/in", "::ffff:10.1.2.3").await.status, 200);
    assert_eq!(from("/in", "192.0.2.1").await.code(), "address_not_allowed");
    assert_eq!(from("/out", "10.1.2.3").await.status, 403);
    assert_eq!(from("/out", "192.0.2.1").await.status, 200);
}
