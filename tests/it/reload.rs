//! DESIGN section 6: a change of the manifest is taken over whole or not at all, and nobody in between notices.

use crate::harness::gateway::Builder;
use crate::harness::{Client, Gateway, Kept, Process, Scripted, eventually};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use voicegate::demo::Demo;

/// A change is served within 2 s; the rest is for slow machines.
const SERVED: Duration = Duration::from_millis(3500);

/// Only the operating system's word of changes counts: there is no polling in a test's time.
const NO_POLL: (&str, &str) = ("--reload-poll", "1h");

const TOKEN: &[(&str, &str)] = &[("authorization", "Bearer admin-secret")];

/// A manifest with one route that answers this text.
fn saying(text: &str) -> String {
    format!("routes: [{{ route: GET /a, public: true, respond: {{ text: {text} }} }}]\n")
}

async fn says(gateway: &Gateway, path: &str, text: &str) {
    eventually(&format!("{path} says {text}"), SERVED, || async {
        let answer = gateway.client.get(path).await;
        answer.status == 200 && answer.text() == text
    })
    .await;
}

async fn refused(gateway: &Gateway) {
    eventually("the change is refused", SERVED, || async { verbose(gateway).await["config"] == "refused" })
        .await;
}

async fn verbose(gateway: &Gateway) -> Value {
    gateway.admin.get("/readyz?verbose").await.json()
}

async fn metric(admin: &Client, series: &str) -> f64 {
    let text = admin.get("/metrics").await.text().to_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().unwrap()
}

async fn reload(gateway: &Gateway) -> Value {
    gateway.admin.send("POST", "/admin/api/reload", TOKEN, "").await.json()
}

/// A gateway whose manifest is a link to a file in another folder that is not watched: it reloads when asked.
fn unwatched(manifest: &str) -> (Builder, tempfile::TempDir) {
    let elsewhere = tempfile::tempdir().unwrap();
    let builder = Gateway::with(manifest).flag(NO_POLL.0, NO_POLL.1);
    let link = builder.folder().join("routes.yaml");
    std::fs::rename(&link, elsewhere.path().join("routes.yaml")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("routes.yaml"), link).unwrap();
    (builder, elsewhere)
}

fn write(path: &Path, manifest: &str) {
    std::fs::write(path, format!("version: 1\n{manifest}")).unwrap();
}

#[tokio::test]
async fn a_file_written_in_place_is_served() {
    let gateway = Gateway::with(&saying("one")).flag(NO_POLL.0, NO_POLL.1).start().await;
    gateway.rewrite(&saying("two"));
    says(&gateway, "/a", "two").await;
}

#[tokio::test]
async fn a_file_renamed_over_the_old_one_is_served() {
    let gateway = Gateway::with(&saying("one")).flag(NO_POLL.0, NO_POLL.1).start().await;
    for text in ["two", "three"] {
        write(&gateway.path(".routes.yaml.swp"), &saying(text));
        std::fs::rename(gateway.path(".routes.yaml.swp"), gateway.path("routes.yaml")).unwrap();
        says(&gateway, "/a", text).await;
    }
}

#[tokio::test]
async fn a_config_map_that_swaps_its_folder_link_is_served() {
    let builder = Gateway::with(&saying("one")).flag(NO_POLL.0, NO_POLL.1);
    let folder = builder.folder().to_owned();
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, folder.join(name)).unwrap();
    // As the kubelet lays it out: routes.yaml -> ..data/routes.yaml, ..data -> ..TIMESTAMP.
    std::fs::create_dir(folder.join("..1")).unwrap();
    std::fs::rename(folder.join("routes.yaml"), folder.join("..1/routes.yaml")).unwrap();
    link("..1", "..data");
    link("..data/routes.yaml", "routes.yaml");
    let gateway = builder.start().await;
    for (number, text) in [(2, "two"), (3, "three")] {
        let fresh = format!("..{number}");
        std::fs::create_dir(folder.join(&fresh)).unwrap();
        write(&folder.join(&fresh).join("routes.yaml"), &saying(text));
        link(&fresh, "..data_tmp");
        std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
        std::fs::remove_dir_all(folder.join(format!("..{}", number - 1))).unwrap();
        says(&gateway, "/a", text).await;
    }
}

#[tokio::test]
async fn a_change_that_nobody_tells_of_is_found_by_looking() {
    let (builder, elsewhere) = unwatched(&saying("one"));
    let gateway = builder.flag("--reload-poll", "100ms").start().await;
    write(&elsewhere.path().join("routes.yaml"), &saying("two"));
    says(&gateway, "/a", "two").await;
}

#[tokio::test]
async fn a_change_in_an_included_file_is_served() {
    let gateway = Gateway::with("include: [more/a.yaml]")
        .file("more/a.yaml", &saying("one"))
        .flag(NO_POLL.0, NO_POLL.1)
        .start()
        .await;
    std::fs::write(gateway.path("more/a.yaml"), saying("two")).unwrap();
    says(&gateway, "/a", "two").await;
}

#[tokio::test]
async fn a_new_file_that_an_include_matches_is_served() {
    let gateway = Gateway::with("include: [more/*.yaml]")
        .file("more/a.yaml", &saying("one"))
        .flag(NO_POLL.0, NO_POLL.1)
        .start()
        .await;
    let more = "routes: [{ route: GET /b, public: true, respond: { text: new } }]";
    std::fs::write(gateway.path("more/b.yaml"), more).unwrap();
    says(&gateway, "/b", "new").await;
    std::fs::remove_file(gateway.path("more/b.yaml")).unwrap();
    eventually("the removed file's route is gone", SERVED, || async {
        gateway.client.get("/b").await.status == 404
    })
    .await;
}

#[tokio::test]
async fn a_refused_manifest_keeps_the_old_table_and_says_why_everywhere() {
    let gateway = Gateway::with(&saying("one")).start().await;
    gateway.rewrite("routes: [{ route: GET /a, public: true, upstream: alog }]");
    refused(&gateway).await;
    assert_eq!(gateway.client.get("/a").await.text(), "one");
    let ready = gateway.admin.get("/readyz?verbose").await;
    assert_eq!(ready.status, 200, "it still serves");
    let ready = ready.json();
    let report = ready["last_reload_failure"]["report"].as_str().unwrap();
    assert!(
        report.contains("upstream `alog` is not defined") && report.contains("routes.yaml:2:"),
        "{report}"
    );
    assert_eq!(ready["revision"]["number"], 1);
    assert_eq!(metric(&gateway.admin, r#"voicegate_config_reloads_total{result="failure"}"#).await, 1.0);
    assert_eq!(metric(&gateway.admin, "voicegate_config_healthy").await, 0.0);
    assert_eq!(metric(&gateway.admin, "voicegate_config_revision").await, 1.0);
}

#[tokio::test]
async fn a_test_that_fails_refuses_a_manifest() {
    let tested = |text: &str, status: u16| {
        format!(
            "tests: [{{ request: GET /a, expect: {{ status: {status} }} }}]\n\
             routes: [{{ route: GET /a, public: true, respond: {{ text: {text} }} }}]"
        )
    };
    let gateway = Gateway::with(&tested("one", 200)).start().await;
    gateway.rewrite(&tested("two", 404));
    refused(&gateway).await;
    assert_eq!(gateway.client.get("/a").await.text(), "one");
    let ready = verbose(&gateway).await;
    let report = ready["last_reload_failure"]["report"].as_str().unwrap();
    let message = "this test fails: it expects 404, and it would pass every stage and be answered 200";
    assert!(report.contains(message) && report.contains("routes.yaml:2:"), "{report}");
    gateway.rewrite(&tested("three", 200));
    says(&gateway, "/a", "three").await;
    let unsound = Gateway::with(&tested("one", 201)).try_start().await;
    assert!(unsound.err().is_some_and(|error| error.to_string().contains("VG114")), "nor does it start");
}

#[tokio::test]
async fn undoing_a_refused_change_recovers() {
    let gateway = Gateway::with(&saying("one")).start().await;
    gateway.rewrite("routes: [{ route: GET /a }]");
    refused(&gateway).await;
    gateway.rewrite(&saying("one"));
    eventually("it is current again", SERVED, || async { verbose(&gateway).await["config"] == "current" })
        .await;
    assert_eq!(metric(&gateway.admin, "voicegate_config_healthy").await, 1.0);
    assert_eq!(gateway.revision(), 1, "the revision that served all the time");
}

#[tokio::test]
async fn a_corrected_change_is_served_after_a_refused_one() {
    let gateway = Gateway::with(&saying("one")).start().await;
    gateway.rewrite("routes: [{ route: GET /a }]");
    refused(&gateway).await;
    gateway.rewrite(&saying("two"));
    says(&gateway, "/a", "two").await;
    assert_eq!(verbose(&gateway).await["last_reload_failure"], Value::Null);
}

#[tokio::test]
async fn an_emptied_a_missing_and_an_unfinished_file_keep_the_old_table() {
    let gateway = Gateway::with(&saying("one")).start().await;
    let path = gateway.path("routes.yaml");
    std::fs::write(&path, "").unwrap();
    refused(&gateway).await;
    assert_eq!(gateway.client.get("/a").await.text(), "one");
    let failures = || metric(&gateway.admin, r#"voicegate_config_reloads_total{result="failure"}"#);
    std::fs::remove_file(&path).unwrap();
    eventually("the missing file is refused", SERVED, || async { failures().await == 2.0 }).await;
    assert_eq!(gateway.client.get("/a").await.text(), "one");
    std::fs::write(&path, "version: 1\nroutes: [{ route: GET /a, pub").unwrap();
    eventually("the unfinished file is refused", SERVED, || async { failures().await == 3.0 }).await;
    assert_eq!(gateway.client.get("/a").await.text(), "one");
    gateway.rewrite(&saying("two"));
    says(&gateway, "/a", "two").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_written_file_is_not_served() {
    let route = |number: u32| format!("  - {{ route: GET /r{number}, public: true, respond: {{}} }}\n");
    // A machine that stalls the writer for as long as files must stand still proves nothing: another try.
    for _ in 0..5 {
        let gateway = Gateway::with(&saying("one")).start().await;
        let path = gateway.path("routes.yaml");
        let mut file = std::fs::File::create(path).unwrap();
        let (mut longest, mut last) = (Duration::ZERO, Instant::now());
        file.write_all(b"version: 1\nroutes:\n").unwrap();
        for number in 0..20 {
            // Each state on the way is a sound manifest.
            file.write_all(route(number).as_bytes()).unwrap();
            longest = longest.max(last.elapsed());
            last = Instant::now();
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        says(&gateway, "/r19", "").await;
        if longest < Duration::from_millis(70) {
            assert_eq!(gateway.revision(), 2, "only the whole file was served");
            return;
        }
    }
}

#[tokio::test]
async fn sighup_reloads_even_if_nothing_changed() {
    let process = Process::serve(&saying("one"), &["--reload-poll=1h"]).await;
    process.signal("HUP");
    eventually("revision 2 serves", SERVED, || async {
        process.admin.get("/admin/api/revision").await.json()["revision"]["number"] == 2
    })
    .await;
    assert_eq!(process.client.get("/a").await.text(), "one");
    eventually("the log says why", SERVED, || async {
        process.events("reloaded").pop().is_some_and(|line| line["why"] == "SIGHUP")
    })
    .await;
}

#[tokio::test]
async fn the_admin_api_reloads_and_answers_with_a_receipt() {
    let route = |path: &str, text: &str| {
        format!("  - {{ route: GET {path}, public: true, respond: {{ text: {text} }} }}\n")
    };
    let before = format!("routes:\n{}{}{}", route("/same", "x"), route("/changes", "x"), route("/goes", "x"));
    let after = format!("routes:\n{}{}{}", route("/same", "x"), route("/changes", "y"), route("/comes", "x"));
    let (builder, elsewhere) = unwatched(&before);
    let gateway = builder.start().await;
    write(&elsewhere.path().join("routes.yaml"), &after);
    let receipt = reload(&gateway).await;
    assert_eq!(receipt["result"], "serves", "{receipt}");
    assert_eq!(receipt["revision"]["number"], 2);
    assert_eq!(receipt["added"], serde_json::json!(["GET /comes (public, respond 200)"]));
    assert_eq!(receipt["changed"], serde_json::json!(["GET /changes"]));
    assert_eq!(receipt["removed"], serde_json::json!(["GET /goes (public, respond 200)"]));
    assert_eq!(receipt["lost_auth"], serde_json::json!([]));
    assert_eq!(receipt["gained_auth"], serde_json::json!([]));
    assert!(receipt["milliseconds"].is_u64());
    assert_eq!(gateway.client.get("/changes").await.text(), "y");
    assert_eq!(gateway.client.get("/goes").await.status, 404);
}

#[tokio::test]
async fn the_admin_api_answers_a_refused_reload_with_its_faults() {
    let (builder, elsewhere) = unwatched(&saying("one"));
    let gateway = builder.start().await;
    write(&elsewhere.path().join("routes.yaml"), "routes: [{ route: GET /a, public: true, upstream: x }]");
    let answer = gateway.admin.send("POST", "/admin/api/reload", TOKEN, "").await;
    assert_eq!(answer.status, 422);
    let body = answer.json();
    assert_eq!((&body["result"], &body["errors"]), (&"refused".into(), &1.into()));
    assert!(body["report"].as_str().unwrap().contains("upstream `x` is not defined"), "{body}");
    assert_eq!(gateway.client.get("/a").await.text(), "one");
}

#[tokio::test]
async fn rollback_serves_the_revision_before_until_the_files_change() {
    let (builder, elsewhere) = unwatched(&saying("one"));
    let gateway = builder.start().await;
    let rollback = || gateway.admin.send("POST", "/admin/api/rollback", TOKEN, "");
    let none = rollback().await;
    assert_eq!((none.status.as_u16(), none.code().as_str()), (404, "not_found"));
    write(&elsewhere.path().join("routes.yaml"), &saying("two"));
    reload(&gateway).await;
    let earlier = gateway.admin.get("/admin/api/revision").await.json()["earlier"].clone();
    assert_eq!(earlier[0]["number"], 1, "{earlier}");
    let back = rollback().await;
    assert_eq!((back.status.as_u16(), &back.json()["revision"]["number"]), (200, &3.into()));
    assert_eq!(gateway.client.get("/a").await.text(), "one");
    write(&elsewhere.path().join("routes.yaml"), &saying("three"));
    reload(&gateway).await;
    assert_eq!(gateway.client.get("/a").await.text(), "three");
}

#[tokio::test]
async fn a_rollback_is_not_undone_by_the_watcher() {
    let gateway = Gateway::with(&saying("one")).flag("--reload-poll", "50ms").start().await;
    gateway.rewrite(&saying("two"));
    says(&gateway, "/a", "two").await;
    gateway.admin.send("POST", "/admin/api/rollback", TOKEN, "").await;
    // Several looks at the files later.
    for _ in 0..10 {
        assert_eq!(gateway.client.get("/a").await.text(), "one");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    gateway.rewrite(&saying("three"));
    says(&gateway, "/a", "three").await;
}

#[tokio::test]
async fn unchanged_routes_keep_their_compiled_form() {
    let route = |path: &str, text: &str| {
        format!("  - {{ route: GET {path}, public: true, respond: {{ text: {text} }} }}\n")
    };
    let gateway = Gateway::with(&format!("routes:\n{}{}", route("/a", "x"), route("/b", "x"))).start().await;
    let before = Arc::clone(&gateway.live().table());
    gateway.rewrite(&format!("routes:\n{}{}{}", route("/new", "x"), route("/a", "x"), route("/b", "y")));
    says(&gateway, "/b", "y").await;
    let after = Arc::clone(&gateway.live().table());
    assert_eq!(before.shares(&after), 1, "/a is the same, /b changed, /new is new");
}

#[tokio::test]
async fn an_upstream_keeps_its_connections_when_a_route_changes_and_opens_new_ones_when_it_changes() {
    let upstream = Scripted::saying("hello").await;
    let manifest = |text: &str, timeout: &str| {
        format!(
            "upstreams: {{ up: {{ targets: [{{ url: \"{}\" }}], connect_timeout: {timeout} }} }}\nroutes:\n  \
             - {{ route: GET /up, public: true, upstream: up }}\n  \
             - {{ route: GET /a, public: true, respond: {{ text: {text} }} }}\n",
            upstream.url()
        )
    };
    let (builder, elsewhere) = unwatched(&manifest("one", "1s"));
    let gateway = builder.start().await;
    let path = elsewhere.path().join("routes.yaml");
    for text in ["one", "two", "three"] {
        write(&path, &manifest(text, "1s"));
        reload(&gateway).await;
        assert_eq!(gateway.client.get("/a").await.text(), text);
        assert_eq!(gateway.client.get("/up").await.text(), "hello");
        assert_eq!(upstream.connections(), 1, "after {text}");
    }
    write(&path, &manifest("three", "2s"));
    reload(&gateway).await;
    gateway.client.get("/up").await;
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn a_route_keeps_its_counters() {
    let manifest = |text: &str| {
        format!("chains: {{ c: [metrics] }}\n{}", saying(text).replace("public", "chain: c, public"))
    };
    let (builder, elsewhere) = unwatched(&manifest("one"));
    let gateway = builder.start().await;
    for (text, count) in [("one", 1.0), ("two", 2.0), ("three", 3.0)] {
        write(&elsewhere.path().join("routes.yaml"), &manifest(text));
        reload(&gateway).await;
        assert_eq!(gateway.client.get("/a").await.text(), text);
        let series = r#"http_requests_total{method="GET",path="/a",status="200"}"#;
        assert_eq!(metric(&gateway.admin, series).await, count);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_that_come_at_once_are_taken_one_after_the_other() {
    let (builder, _elsewhere) = unwatched(&saying("one"));
    let gateway = builder.start().await;
    let requests = (0..8).map(|_| reload(&gateway));
    let receipts = futures_util::future::join_all(requests).await;
    let numbers: BTreeSet<u64> =
        receipts.iter().map(|receipt| receipt["revision"]["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (2..10).collect(), "each got a revision of its own");
    assert_eq!(gateway.revision(), 9);
}

/// Everything about it changes with `number`, but what its callers see.
fn busy(number: u32, demo: &str) -> String {
    format!(
        "upstreams: {{ algo: {{ targets: [{{ url: \"{demo}\" }}], connect_timeout: {timeout}ms }} }}\n\
         chains: {{ c: [recovery, request_id, metrics, {{ headers: {{ response: {{ set: {{ X-N: \"{number}\" }} }} }} }}] }}\n\
         routes:\n  \
         - {{ route: GET /steady, chain: c, public: true, respond: {{ text: steady }} }}\n  \
         - {{ route: ANY /echo, chain: c, public: true, upstream: algo }}\n  \
         - {{ route: POST /query, chain: c, public: true, upstream: algo }}\n  \
         - {{ route: POST /cancel, chain: c, public: true, upstream: algo }}\n  \
         - {{ route: GET /only/{number}, chain: c, public: true, respond: {{}} }}\n  \
         - {{ route: POST /chat, chain: c, public: true, upstream: algo, path: /api/v1/chat/stream, protocol: sse, stream: {{ heartbeat: {heartbeat}s }} }}\n",
        timeout = 1000 + number,
        heartbeat = 10 + number % 5,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_reloads_under_load_touch_no_request_and_no_stream() {
    let demo = Demo::start().await.unwrap();
    let (builder, elsewhere) = unwatched(&busy(0, &demo.url()));
    let gateway = builder.start().await;

    let streams: Vec<_> = (0..4)
        .map(|number| {
            let client = gateway.client.clone();
            tokio::spawn(async move {
                let body = format!(r#"{{"query": "Tell me", "session_id": "s{number}"}}"#);
                let stream = client.open("POST", "/chat?delay=10ms&tokens=100000", &[], &body).await;
                assert_eq!(stream.status, 200);
                stream.rest().await
            })
        })
        .collect();
    let waiting = tokio::spawn({
        let client = gateway.client.clone();
        async move { client.post("/query?first=500ms", r#"{"query": "Tell me"}"#).await }
    });
    eventually("the streams and the waiting request have begun", SERVED, || async {
        demo.stats().streams.running == 4 && demo.stats().unanswered == 1
    })
    .await;

    let stop = Arc::new(AtomicBool::new(false));
    let (served, seen) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let load: Vec<_> = ["/steady", "/echo", "/steady", "/echo"]
        .into_iter()
        .map(|path| {
            let (stop, served, seen) = (stop.clone(), served.clone(), seen.clone());
            let client = gateway.client.clone();
            tokio::spawn(async move {
                let mut connection = Kept::open(&client).await;
                while !stop.load(Ordering::Relaxed) {
                    let answer = connection.send("GET", path).await.expect("no request fails");
                    assert_eq!(answer.status, 200, "{path}: {answer:?}");
                    served.fetch_add(1, Ordering::Relaxed);
                    seen.fetch_max(answer.header("x-n").unwrap().parse().unwrap(), Ordering::Relaxed);
                }
            })
        })
        .collect();

    for number in 1..=100 {
        write(&elsewhere.path().join("routes.yaml"), &busy(number, &demo.url()));
        let receipt = reload(&gateway).await;
        assert_eq!(receipt["result"], "serves", "{receipt}");
    }
    eventually("the newest table is seen by connections opened before", SERVED, || async {
        seen.load(Ordering::Relaxed) == 100
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    for task in load {
        task.await.expect("zero failures");
    }
    assert!(served.load(Ordering::Relaxed) > 100, "that was no load");
    assert_eq!(waiting.await.unwrap().status, 200);

    // All streams have outlived all reloads, and end as whole as they began.
    assert_eq!(demo.stats().streams.running, 4);
    for number in 0..4 {
        let body = format!(r#"{{"session_id": "s{number}"}}"#);
        assert_eq!(gateway.client.post("/cancel", &body).await.status, 200);
    }
    for stream in streams {
        let (text, clean) = stream.await.unwrap();
        assert!(clean);
        let indices = text.lines().filter_map(|line| {
            serde_json::from_str::<Value>(line.strip_prefix("data: ")?).unwrap()["data"]["index"].as_u64()
        });
        let indices: Vec<u64> = indices.collect();
        assert_eq!(indices, (0..indices.len() as u64).collect::<Vec<_>>(), "no token is lost or twice");
        assert!(text.trim_end().lines().rev().nth(1).unwrap().contains("event: cancelled"), "{text}");
    }
}

#[tokio::test]
async fn verbose_readiness_tells_of_a_rollback_until_the_files_are_served_again() {
    let (builder, elsewhere) = unwatched(&saying("one"));
    let gateway = builder.start().await;
    let path = elsewhere.path().join("routes.yaml");
    let rollback = || gateway.admin.send("POST", "/admin/api/rollback", TOKEN, "");
    write(&path, &saying("two"));
    reload(&gateway).await;
    assert_eq!(rollback().await.status, 200);
    let ready = verbose(&gateway).await;
    assert_eq!((&ready["config"], &ready["revision"]["number"]), (&"rolled_back".into(), &3.into()));
    assert_eq!(gateway.metric("voicegate_config_revision").await, 3.0);
    reload(&gateway).await;
    assert_eq!(verbose(&gateway).await["config"], "current");
    // Files that were refused stay refused, whatever serves.
    write(&path, "routes: nonsense");
    reload(&gateway).await;
    assert_eq!(rollback().await.status, 200);
    let ready = verbose(&gateway).await;
    assert_eq!((&ready["config"], gateway.client.get("/a").await.text()), (&"refused".into(), "one"));
    assert!(ready["last_reload_failure"]["report"].as_str().unwrap().contains("VG011"), "{ready}");
    assert_eq!(gateway.metric("voicegate_config_healthy").await, 0.0);
}

#[tokio::test]
async fn reloading_the_same_files_again_keeps_the_way_back() {
    let (builder, elsewhere) = unwatched(&saying("one"));
    let gateway = builder.start().await;
    write(&elsewhere.path().join("routes.yaml"), &saying("two"));
    for _ in 0..12 {
        reload(&gateway).await;
    }
    gateway.admin.send("POST", "/admin/api/rollback", TOKEN, "").await;
    assert_eq!(gateway.client.get("/a").await.text(), "one");
}

#[tokio::test]
async fn an_upstream_that_a_reload_replaced_is_not_asked_for_its_health_any_more() {
    let upstream = Scripted::saying("well").await;
    let manifest = |path: &str| {
        format!(
            "upstreams: {{ up: {{ targets: [{{ url: \"{}\" }}], health: {{ path: {path}, interval: 50ms, timeout: 40ms }} }} }}\n\
             routes: [{{ route: GET /up, public: true, upstream: up }}]\n",
            upstream.url()
        )
    };
    let asked = |path: &str| upstream.heads().iter().filter(|head| head.uri.path() == path).count();
    let (builder, elsewhere) = unwatched(&manifest("/old"));
    let gateway = builder.start().await;
    eventually("the first is asked", SERVED, || async { asked("/old") > 0 }).await;
    write(&elsewhere.path().join("routes.yaml"), &manifest("/new"));
    assert_eq!(reload(&gateway).await["result"], "serves");
    eventually("the second is asked", SERVED, || async { asked("/new") > 1 }).await;
    let (old, new) = (asked("/old"), asked("/new"));
    eventually("the second is asked on", SERVED, || async { asked("/new") > new + 4 }).await;
    assert_eq!(asked("/old"), old, "the first is gone");
}

#[tokio::test]
async fn an_included_file_that_cannot_be_read_is_refused_although_the_others_are_as_before() {
    let gateway = Gateway::with("include: [more/*.yaml]").file("more/a.yaml", &saying("one")).start().await;
    std::fs::write(gateway.path("more/b.yaml"), b"routes: [\xff]").unwrap();
    refused(&gateway).await;
    std::fs::remove_file(gateway.path("more/b.yaml")).unwrap();
    eventually("it recovers", SERVED, || async { verbose(&gateway).await["config"] == "current" }).await;
}

#[tokio::test]
async fn a_deprecated_version_follows_its_successor_to_another_prefix() {
    let manifest = |prefix: &str| {
        format!(
            "versions:\n\
             - {{ name: v1, prefix: /v1, deprecated: {{ since: 2026-06-01, successor: v2 }},\n    \
                 routes: [{{ route: GET /a, public: true, respond: {{ text: a }} }}] }}\n\
             - {{ name: v2, prefix: {prefix}, routes: [] }}\n"
        )
    };
    let (builder, elsewhere) = unwatched(&manifest("/v2"));
    let gateway = builder.start().await;
    write(&elsewhere.path().join("routes.yaml"), &manifest("/next"));
    assert_eq!(reload(&gateway).await["changed"][0], "GET /v1/a");
    let answer = gateway.client.get("/v1/a").await;
    assert_eq!(answer.header("link"), Some("</next>; rel=\"successor-version\""));
}

#[tokio::test]
async fn a_new_file_is_noticed_in_a_new_folder_and_by_any_name_that_an_include_matches() {
    let more =
        |path: &str| format!("routes: [{{ route: GET {path}, public: true, respond: {{ text: new }} }}]");
    let gateway = Gateway::with("include: ['teams/*/routes.yaml', 'parts/*.conf']")
        .file("teams/a/routes.yaml", &more("/a"))
        .file("parts/a.conf", &more("/part/a"))
        .start()
        .await;
    std::fs::create_dir(gateway.path("teams/b")).unwrap();
    std::fs::write(gateway.path("teams/b/routes.yaml"), more("/b")).unwrap();
    says(&gateway, "/b", "new").await;
    std::fs::write(gateway.path("parts/b.conf"), more("/part/b")).unwrap();
    says(&gateway, "/part/b", "new").await;
    // The folder is seen first, and what it will hold later.
    std::fs::create_dir(gateway.path("teams/c")).unwrap();
    eventually("the folder is watched", SERVED, || async {
        gateway.live().watched().folders.contains(&gateway.path("teams/c"))
    })
    .await;
    std::fs::write(gateway.path("teams/c/routes.yaml"), more("/c")).unwrap();
    says(&gateway, "/c", "new").await;
}
