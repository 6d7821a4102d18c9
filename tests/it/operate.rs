//! What operators see: probes, metrics, the admin API, health, request ids and the access log.

use crate::harness::scripted::body;
use crate::harness::{Answer, Gateway, Process, RedisServer, Scripted, eventually};
use http::Response;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use voicegate::demo::Demo;

const SOON: Duration = Duration::from_secs(10);

const MANIFEST: &str = r#"
info: { title: Test, version: v9 }
chains: { c: [access_log, recovery, request_id, metrics] }
versions:
  - name: v1
    prefix: /api/v1
    chain: c
    routes:
      - { route: "GET /things/:id", public: true, respond: { text: thing } }
      - { route: POST /things, public: true, respond: { status: 201 } }
routes:
  - { route: GET /health, chain: [request_id], public: true, handler: gateway.health }
"#;

async fn post(gateway: &Gateway, path: &str, token: Option<&str>) -> Answer {
    let header = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<_> = header.iter().map(|value| ("authorization", value.as_str())).collect();
    gateway.admin.send("POST", path, &headers, "").await
}

async fn metrics(gateway: &Gateway) -> String {
    gateway.admin.get("/metrics").await.text().to_owned()
}

#[tokio::test]
async fn probes_answer_on_the_admin_listener() {
    let gateway = Gateway::with(MANIFEST).start().await;
    for (path, text) in [("/livez", "live\n"), ("/readyz", "ready\n")] {
        let answer = gateway.admin.get(path).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, text), "{path}");
        assert_eq!(gateway.client.get(path).await.status, 404, "{path} is the operators' own");
    }
}

#[tokio::test]
async fn verbose_readiness_tells_revision_config_and_checks() {
    let gateway = Gateway::with(MANIFEST).start().await;
    let ready = gateway.admin.get("/readyz?verbose").await.json();
    assert_eq!(ready["status"], "ready");
    assert_eq!(ready["draining"], false);
    assert_eq!(ready["config"], "current");
    assert_eq!(ready["last_reload_failure"], Value::Null);
    assert_eq!(ready["checks"], serde_json::json!({ "database": "healthy" }));
    let revision = &ready["revision"];
    assert_eq!((&revision["number"], &revision["routes"]), (&1.into(), &3.into()));
    assert_eq!(revision["api_version"], "v9");
    assert_eq!(revision["hash"].as_str().unwrap().len(), 12);
    revision["since"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
}

#[tokio::test]
async fn readiness_says_no_while_draining_and_liveness_still_yes() {
    let demo = Demo::start().await.unwrap();
    let mut gateway = Gateway::with(&format!(
        "upstreams: {{ algo: {{ targets: [{{ url: \"{}\" }}] }} }}\n\
         routes: [{{ route: POST /query, public: true, upstream: algo }}]",
        demo.url()
    ))
    .flag("--shutdown-grace", "10s")
    .start()
    .await;
    let waiting = tokio::spawn({
        let client = gateway.client.clone();
        async move { client.post("/query?first=2s", r#"{"query": "a"}"#).await }
    });
    eventually("the request is in flight", SOON, || async { demo.stats().unanswered == 1 }).await;
    let ending = tokio::spawn(gateway.take().shut_down());
    let ready = || gateway.admin.get("/readyz");
    eventually("readiness says no", SOON, || async { ready().await.status == 503 }).await;
    assert_eq!(ready().await.text(), "not ready\n");
    let verbose = gateway.admin.get("/readyz?verbose").await;
    assert_eq!((verbose.status.as_u16(), &verbose.json()["draining"]), (503, &true.into()));
    assert_eq!(gateway.admin.get("/livez").await.status, 200);
    assert_eq!(waiting.await.unwrap().status, 200);
    assert_eq!(ending.await.unwrap(), 0, "nothing was cut");
}

#[tokio::test]
async fn requests_are_counted_by_method_template_and_status() {
    let gateway = Gateway::with(MANIFEST).start().await;
    for path in ["/api/v1/things/1", "/api/v1/things/2", "/nowhere/1", "/nowhere/2"] {
        gateway.client.get(path).await;
    }
    gateway.client.post("/api/v1/things", "").await;
    gateway.client.send("DELETE", "/api/v1/things", &[], "").await;
    let text = metrics(&gateway).await;
    let counted: BTreeSet<&str> =
        text.lines().filter(|line| line.starts_with("http_requests_total{")).collect();
    let wanted = BTreeSet::from([
        r#"http_requests_total{method="GET",path="/api/v1/things/:id",status="200"} 2"#,
        r#"http_requests_total{method="POST",path="/api/v1/things",status="201"} 1"#,
        r#"http_requests_total{method="GET",path="unmatched",status="404"} 2"#,
        r#"http_requests_total{method="DELETE",path="unmatched",status="405"} 1"#,
    ]);
    assert_eq!(counted, wanted);
}

#[tokio::test]
async fn durations_are_a_histogram_whose_percentiles_can_be_read() {
    let gateway = Gateway::with(MANIFEST).start().await;
    gateway.client.get("/api/v1/things/1").await;
    let text = metrics(&gateway).await;
    assert!(text.contains("# TYPE http_request_duration_seconds histogram\n"));
    let of = r#"method="GET",path="/api/v1/things/:id""#;
    assert!(text.contains(&format!("http_request_duration_seconds_count{{{of}}} 1\n")), "{text}");
    let buckets =
        text.lines().filter(|line| line.starts_with(&format!("http_request_duration_seconds_bucket{{{of}")));
    assert!(buckets.count() >= 15);
}

#[tokio::test]
async fn metrics_tell_of_the_manifest_the_process_and_connections() {
    let gateway = Gateway::with(MANIFEST).start().await;
    let answer = gateway.admin.get("/metrics").await;
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = answer.text();
    for series in [
        "voicegate_config_revision 1",
        "voicegate_config_healthy 1",
        r#"voicegate_config_reloads_total{result="success"} 1"#,
        "voicegate_config_last_success_timestamp_seconds ",
        "voicegate_config_load_seconds ",
        "voicegate_connections_open ",
        "voicegate_log_lines_dropped_total ",
        "process_resident_memory_bytes ",
        "process_open_fds ",
        "process_cpu_seconds_total ",
        "process_start_time_seconds ",
        "tokio_tasks_alive ",
    ] {
        assert!(text.lines().any(|line| line.starts_with(series)), "no {series} in\n{text}");
    }
}

#[tokio::test]
async fn metrics_tell_of_upstreams_and_streams() {
    let demo = Demo::start().await.unwrap();
    let gateway = Gateway::with(&format!(
        "upstreams: {{ algo: {{ targets: [{{ url: \"{}\" }}], health: {{ path: /health, interval: 50ms, timeout: 40ms }} }} }}\n\
         routes:\n  \
         - {{ route: POST /query, public: true, upstream: algo }}\n  \
         - {{ route: POST /chat, public: true, upstream: algo, path: /api/v1/chat/stream, protocol: sse }}\n",
        demo.url()
    ))
    .start()
    .await;
    assert_eq!(gateway.client.post("/query", r#"{"query": "a"}"#).await.status, 200);
    let ask = r#"{"query": "a", "session_id": "s"}"#;
    gateway.client.post("/chat?delay=0ms&tokens=5", ask).await;
    let open = gateway.client.open("POST", "/chat?stall_after=1", &[], ask).await;
    let target = demo.addr();
    let wanted = [
        format!(r#"voicegate_upstream_requests_total{{result="2xx",target="{target}",upstream="algo"}} 3"#),
        format!(r#"voicegate_upstream_healthy{{target="{target}",upstream="algo"}} 1"#),
        format!(r#"voicegate_upstream_connections{{state="active",target="{target}",upstream="algo"}} 1"#),
        r#"voicegate_upstream_duration_seconds_count{upstream="algo"} 3"#.to_owned(),
        r#"voicegate_streams_open{path="/chat"} 1"#.to_owned(),
        r#"voicegate_streams_ended_total{end="complete",path="/chat"} 1"#.to_owned(),
    ];
    for series in wanted {
        eventually(&series, SOON, || async { metrics(&gateway).await.lines().any(|line| line == series) })
            .await;
    }
    drop(open);
    let left = r#"voicegate_streams_ended_total{end="client_left",path="/chat"} 1"#;
    eventually(left, SOON, || async { metrics(&gateway).await.lines().any(|line| line == left) }).await;
}

#[tokio::test]
async fn the_admin_api_shows_revision_routes_and_upstreams() {
    let upstream = Scripted::saying("ok").await;
    let gateway = Gateway::with(&format!(
        "upstreams: {{ up: {{ targets: [{{ url: \"{}\" }}] }} }}\n{}\n  \
         - {{ route: GET /up, public: true, upstream: up }}\n",
        upstream.url(),
        MANIFEST.trim_end()
    ))
    .start()
    .await;
    gateway.client.get("/up").await;
    let revision = gateway.admin.get("/admin/api/revision").await.json();
    assert_eq!((&revision["revision"]["number"], &revision["earlier"]), (&1.into(), &serde_json::json!([])));
    assert!(revision["config"].as_str().unwrap().ends_with("routes.yaml"));
    let routes = gateway.admin.get("/admin/api/routes").await.json();
    let find = |path: &str| {
        let mut all = routes["routes"].as_array().unwrap().iter();
        all.find(|route| route["path"] == path).unwrap_or_else(|| panic!("{path} in {routes}")).clone()
    };
    let things = find("/api/v1/things/:id");
    assert_eq!(
        (&things["method"], &things["version"], &things["public"]),
        (&"GET".into(), &"v1".into(), &true.into())
    );
    assert_eq!(things["chain"], serde_json::json!(["access_log", "recovery", "request_id", "metrics"]));
    assert_eq!(find("/health")["target"], "handler gateway.health");
    assert_eq!(find("/up")["target"], format!("{}/up", upstream.url()));
    let upstreams = gateway.admin.get("/admin/api/upstreams").await.json();
    let up = &upstreams["upstreams"][0];
    assert_eq!((&up["name"], &up["available"]), (&"up".into(), &true.into()), "{upstreams}");
    assert_eq!(up["servers"][0]["address"], upstream.address.to_string());
}

#[tokio::test]
async fn calls_that_change_something_need_the_admin_token() {
    let gateway = Gateway::with(MANIFEST).start().await;
    for path in ["/admin/api/reload", "/admin/api/rollback"] {
        for token in [None, Some("wrong"), Some(""), Some("admin-secret-and-more")] {
            let answer = post(&gateway, path, token).await;
            assert_eq!(
                (answer.status.as_u16(), answer.code().as_str()),
                (403, "permission_denied"),
                "{path} {token:?}"
            );
        }
    }
    assert_eq!(gateway.revision(), 1, "nothing happened");
    let answer = post(&gateway, "/admin/api/reload", Some("admin-secret")).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["result"]), (200, &"serves".into()));
}

#[tokio::test]
async fn without_a_configured_token_nothing_can_be_changed() {
    let started = Gateway::with(MANIFEST).flag("--admin-token", "").start().await;
    for token in [None, Some(""), Some("admin-secret")] {
        let answer = post(&started, "/admin/api/reload", token).await;
        assert_eq!(answer.status, 403, "{token:?}");
        assert_eq!(answer.code(), "permission_denied");
        let detail = answer.json()["detail"].clone();
        assert!(detail.as_str().unwrap().contains("ADMIN_TOKEN"), "{detail}");
    }
}

#[tokio::test]
async fn unknown_admin_paths_and_methods_are_refused_in_the_common_form() {
    let gateway = Gateway::with(MANIFEST).start().await;
    for path in ["/", "/admin", "/admin/api/nothing", "/livez/x", "/api/v1/things/1"] {
        let answer = gateway.admin.get(path).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (404, "not_found"), "{path}");
    }
    for (method, path, allow) in [
        ("POST", "/livez", "GET, HEAD"),
        ("DELETE", "/metrics", "GET, HEAD"),
        ("POST", "/admin/api/upstreams", "GET, HEAD"),
        ("GET", "/admin/api/reload", "POST"),
        ("GET", "/admin/api/rollback", "POST"),
    ] {
        let answer = gateway.admin.send(method, path, &[("accept-language", "zh")], "").await;
        assert_eq!(
            (answer.status.as_u16(), answer.code().as_str()),
            (405, "method_not_allowed"),
            "{method} {path}"
        );
        assert_eq!(answer.header("allow"), Some(allow), "{method} {path}");
        assert_eq!(answer.json()["error"], "不支持该请求方法");
    }
}

#[tokio::test]
async fn health_has_the_seeds_form() {
    let gateway = Gateway::with(MANIFEST).start().await;
    let answer = gateway.client.get("/health").await;
    assert_eq!(answer.status, 200);
    let health = answer.json();
    let keys: Vec<_> = health.as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["status", "version", "checks", "timestamp"]);
    assert_eq!((&health["status"], &health["version"]), (&"healthy".into(), &"v9".into()));
    health["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
}

/// A service whose health is this status.
async fn ailing(status: &Arc<AtomicU16>) -> Scripted {
    let status = status.clone();
    Scripted::start(move |_, _| {
        Response::builder().status(status.load(Ordering::SeqCst)).body(body("")).unwrap()
    })
    .await
}

#[tokio::test]
async fn health_follows_the_services_behind_the_gateway() {
    let (one, two) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicU16::new(200)));
    let services = (ailing(&one).await, ailing(&two).await);
    let gateway = Gateway::with(&format!(
        "upstreams:\n  algo:\n    targets: [{{ url: \"{}\" }}, {{ url: \"{}\" }}]\n    \
         health: {{ path: /health, interval: 20ms, timeout: 15ms, unhealthy_after: 2 }}\n\
         routes:\n  - {{ route: GET /health, public: true, handler: gateway.health }}\n  \
         - {{ route: GET /a, public: true, upstream: algo }}\n",
        services.0.url(),
        services.1.url()
    ))
    .start()
    .await;
    for (first, second, overall, service) in [
        (200, 200, "healthy", "healthy"),
        (500, 200, "degraded", "degraded"),
        (500, 503, "degraded", "unhealthy"),
        (200, 200, "healthy", "healthy"),
    ] {
        one.store(first, Ordering::SeqCst);
        two.store(second, Ordering::SeqCst);
        eventually(&format!("algo_service is {service} with {first} and {second}"), SOON, || async {
            let health = gateway.client.get("/health").await;
            assert_eq!(health.status, 200, "the gateway itself works");
            let health = health.json();
            health["checks"]["algo_service"] == service && health["status"] == overall
        })
        .await;
    }
}

#[tokio::test]
async fn health_and_metrics_show_the_stores() {
    let mut redis = RedisServer::start();
    let gateway = Gateway::with(MANIFEST).flag("--redis-url", &redis.url()).start().await;
    let health = async || {
        let answer = gateway.client.get("/health").await;
        assert_eq!(answer.status, 200, "the gateway itself works");
        answer.json()
    };
    for (overall, state, next) in [
        ("healthy", "healthy", RedisServer::kill as fn(&mut RedisServer)),
        ("degraded", "unhealthy", RedisServer::restart),
        ("healthy", "healthy", |_| ()),
    ] {
        eventually(&format!("redis is {state}"), SOON, || async {
            let health = health().await;
            assert_eq!(health["checks"]["database"], "healthy");
            health["checks"]["redis"] == state && health["status"] == overall
        })
        .await;
        let live = gateway.admin.get("/livez").await;
        assert_eq!(live.status, 200, "whatever the stores do");
        let connections = gateway.metric("redis_connections{state=\"active\"}").await;
        assert_eq!(connections >= 1.0, state == "healthy", "{connections}");
        next(&mut redis);
    }
    let database = |state: &str| format!("db_connections{{pool=\"sqlite\",state=\"{state}\"}}");
    let open = gateway.metric(&database("active")).await + gateway.metric(&database("idle")).await;
    assert!(open >= 1.0, "{open}");

    let alone = Gateway::with(MANIFEST).start().await;
    let checks = &alone.client.get("/health").await.json()["checks"];
    assert_eq!(checks, &serde_json::json!({ "database": "healthy" }), "asked before it listens");
    assert!(!alone.admin.get("/metrics").await.text().contains("redis_connections"));
}

#[tokio::test]
async fn a_request_id_is_taken_over_and_told() {
    let gateway = Gateway::with(MANIFEST).start().await;
    let path = "/api/v1/things/1";
    let given = gateway.client.send("GET", path, &[("x-request-id", "abc-123")], "").await;
    assert_eq!(given.header("x-request-id"), Some("abc-123"));
    let made = |answer: &Answer| answer.header("x-request-id").unwrap().to_owned();
    let (first, second) = (made(&gateway.client.get(path).await), made(&gateway.client.get(path).await));
    assert!(first.len() == 36 && first != second, "{first} {second}");
    let long = "x".repeat(200);
    for bad in ["a b", "a\"b", &long] {
        let answer = gateway.client.send("GET", path, &[("x-request-id", bad)], "").await;
        assert_eq!(made(&answer).len(), 36, "{bad}");
    }
}

#[tokio::test]
async fn an_error_names_the_request_id_that_the_caller_gave() {
    let gateway = Gateway::with(MANIFEST).start().await;
    let answer = gateway.client.send("GET", "/nowhere", &[("x-request-id", "abc-123")], "").await;
    assert_eq!(answer.code(), "not_found");
    assert_eq!(answer.json()["request_id"], "abc-123");
    assert_eq!(answer.header("x-request-id"), Some("abc-123"));
}

async fn access_of(process: &Process, request_id: &str) -> Value {
    let find = || process.access().into_iter().find(|line| line["request_id"] == request_id);
    eventually("the request is logged", SOON, || std::future::ready(find().is_some())).await;
    find().unwrap()
}

#[tokio::test]
async fn the_access_log_has_one_line_a_request() {
    let upstream = Scripted::saying("hello").await;
    let process = Process::serve(
        &format!(
            "upstreams: {{ up: {{ targets: [{{ url: \"{}\" }}] }} }}\nchains: {{ c: [access_log, request_id] }}\n\
             versions:\n  - {{ name: v1, prefix: /v1, chain: c, routes: [{{ route: \"POST /up/:id\", public: true, upstream: up }}] }}\n",
            upstream.url()
        ),
        &[],
    )
    .await;
    let path = "/v1/up/7?token=hush&q=secret";
    process.client.send("POST", path, &[("x-request-id", "one")], "12345678").await;
    process.client.send("GET", "/nowhere?token=hush", &[("x-request-id", "two")], "").await;
    let (one, two) = (access_of(&process, "one").await, access_of(&process, "two").await);
    assert_eq!(process.access().len(), 2);
    for (field, value) in [
        ("level", Value::from("info")),
        ("method", "POST".into()),
        ("route", "/v1/up/:id".into()),
        ("path", "/v1/up/7".into()),
        ("version", "v1".into()),
        ("status", 200.into()),
        ("end", "complete".into()),
        ("bytes_in", 8.into()),
        ("bytes_out", 5.into()),
        ("client", "127.0.0.1".into()),
        ("upstream", "up".into()),
        ("upstream_target", upstream.address.to_string().into()),
    ] {
        assert_eq!(one[field], value, "{field} of {one}");
    }
    assert!(
        one["duration_ms"].is_number() && one["first_byte_ms"].is_number() && one["upstream_ms"].is_number()
    );
    assert_eq!(one["trace_id"].as_str().unwrap().len(), 32);
    one["time"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert_eq!((&two["status"], &two["route"]), (&404.into(), &Value::Null));
    assert!(
        !process.stderr().contains("hush") && !process.stderr().contains("secret"),
        "{}",
        process.stderr()
    );
}

#[tokio::test]
async fn what_a_caller_sends_cannot_forge_a_log_line() {
    let process = Process::serve(
        "chains: { c: [access_log, request_id] }\nroutes: [{ route: \"ANY /*p\", chain: c, public: true, respond: {} }]",
        &[],
    )
    .await;
    for (number, path) in
        ["/a%22,%22status%22:999", "/b%1b[31m", "/c%0a%7b%22level%22:1%7d", "/d%e2%80%a8e"].iter().enumerate()
    {
        let id = format!("id-{number}");
        process.client.send("GET", path, &[("x-request-id", &id)], "").await;
    }
    // Paths with control characters may also be refused; then they are logged as refused.
    eventually("all four are logged", SOON, || std::future::ready(process.access().len() == 4)).await;
    let text = process.stderr();
    assert!(!text.contains('\u{1b}') && !text.contains('\u{2028}'), "{text}");
    assert!(text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{text}");
    assert!(process.access().iter().all(|line| line["status"] != 999));
}
