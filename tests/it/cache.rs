//! `cache`: answers from memory through the front door, with an upstream that counts what reaches it.

use crate::harness::scripted::body;
use crate::harness::{Answer, Gateway, Scripted, eventually};
use http::Response;
use http::request::Parts;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::watch;

const SOON: Duration = Duration::from_secs(10);

/// A service that answers its count and what it was asked, with headers that the query names (`?cache-control=…`),
/// slowly while its gate is shut.
struct Counting {
    service: Scripted,
}

impl Counting {
    async fn start() -> Self {
        let count = Arc::new(AtomicUsize::new(0));
        let service = Scripted::start(move |head: &Parts, _| {
            let number = count.fetch_add(1, Ordering::SeqCst) + 1;
            let query = head.uri.query().unwrap_or_default();
            let mut response = Response::builder();
            let mut text = format!("{number} {}", head.uri);
            for (name, value) in url_pairs(query) {
                match name.as_str() {
                    "status" => response = response.status(value.parse::<u16>().unwrap()),
                    "size" => text = "x".repeat(value.parse().unwrap()),
                    // Still good, for whoever has it.
                    "etag" if head.headers.get("if-none-match").is_some_and(|tag| *tag == *value) => {
                        return Response::builder().status(304).header("etag", value).body(body("")).unwrap();
                    }
                    "q" | "u" => {}
                    name => response = response.header(name, value),
                }
            }
            response.body(body(text)).unwrap()
        })
        .await;
        Counting { service }
    }

    fn calls(&self) -> usize {
        self.service.heads().len()
    }
}

fn url_pairs(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.replace("%20", " ").replace("%22", "\""))).collect()
}

/// A gateway with one route `GET /t` that keeps answers as `cache` says.
fn manifest(cache: &str, url: &str) -> String {
    format!(
        "upstreams: {{ back: {{ targets: [{{ url: \"{url}\" }}], connect_timeout: 500ms }} }}\n\
         routes:\n\
         \x20 - {{ route: GET /t, upstream: back, public: true, chain: [{{ cache: {cache} }}] }}\n\
         \x20 - {{ route: GET /t/:id, upstream: back, public: true, chain: [{{ cache: {cache} }}] }}\n"
    )
}

async fn caching(cache: &str, url: &str) -> Gateway {
    Gateway::with(&manifest(cache, url)).start().await
}

fn said(answer: &Answer) -> &str {
    answer.header("cache-status").expect("every answer says what became of it")
}

async fn result(gateway: &Gateway, result: &str) -> f64 {
    gateway.metric(&format!("voicegate_cache_requests_total{{path=\"/t\",result=\"{result}\"}}")).await
}

#[tokio::test]
async fn a_copy_is_given_out_while_it_is_fresh() {
    let back = Counting::start().await;
    let gateway = caching("30s", &back.service.url()).await;
    let first = gateway.client.get("/t?q=a&x-a=b").await;
    assert_eq!(said(&first), "voicegate; fwd=uri-miss; stored");
    let second = gateway.client.get("/t?q=a&x-a=b").await;
    assert_eq!((second.status.as_u16(), second.text()), (200, first.text()));
    assert_eq!(second.header("x-a"), Some("b"));
    assert!(said(&second).starts_with("voicegate; hit; ttl="), "{}", said(&second));
    assert!(second.header("age").unwrap().parse::<u64>().unwrap() < 10);
    assert_ne!(gateway.client.get("/t?q=b&x-a=b").await.text(), first.text(), "another query");
    let head = gateway.client.send("HEAD", "/t?q=a&x-a=b", &[], "").await;
    assert_eq!(head.header("content-length"), Some(first.text().len().to_string().as_str()));
    assert!(head.body.is_empty() && said(&head).contains("hit"));
    assert_eq!(back.calls(), 2);
    assert_eq!((result(&gateway, "hit").await, result(&gateway, "miss").await), (2.0, 2.0));
    assert_eq!(gateway.metric("voicegate_cache_entries").await, 2.0);
}

#[tokio::test]
async fn what_rfc_9111_forbids_is_never_kept() {
    let back = Counting::start().await;
    let gateway = caching("30s", &back.service.url()).await;
    // Section, query that makes the answer, headers of the request, whether the second is a copy.
    #[expect(clippy::type_complexity, reason = "a table")]
    let cases: &[(&str, &str, &[(&str, &str)], bool)] = &[
        ("4.2.2, the route's ttl", "u=1", &[], true),
        ("5.2.2.5 no-store", "u=2&cache-control=no-store", &[], false),
        ("5.2.2.7 private", "u=3&cache-control=private", &[], false),
        ("5.2.2.4 no-cache", "u=4&cache-control=no-cache", &[], false),
        ("7.3 Set-Cookie", "u=5&set-cookie=a%3Db", &[], false),
        ("4.1 Vary: *", "u=6&vary=*", &[], false),
        ("3, a fault", "u=7&status=500", &[], false),
        ("3, what is not found", "u=8&status=404", &[], true),
        ("5.2.1.5 no-store of the request", "u=9", &[("cache-control", "no-store")], false),
        ("5.2.1.4 no-cache of the request is not obeyed", "u=10", &[("cache-control", "no-cache")], true),
        ("14.2 a part", "u=11", &[("range", "bytes=0-1")], false),
        ("3.5 Authorization", "u=12", &[("authorization", "Bearer x")], false),
        ("3.5, said to be public", "u=13&cache-control=public", &[("authorization", "Bearer x")], true),
        ("a cookie is an identity too", "u=14", &[("cookie", "session=1")], false),
        ("an event stream", "u=15&content-type=text/event-stream", &[], false),
        ("5.3 Expires, passed", "u=16&expires=0", &[], false),
    ];
    for (section, query, headers, kept) in cases {
        let path = format!("/t?{query}");
        let before = back.calls();
        for _ in 0..2 {
            gateway.client.send("GET", &path, headers, "").await;
        }
        let calls = back.calls() - before;
        assert_eq!(calls == 1, *kept, "{section}: {calls} calls for {path}");
    }
}

#[tokio::test]
async fn variants_are_kept_by_what_they_depend_on() {
    let back = Counting::start().await;
    let gateway = caching("30s", &back.service.url()).await;
    let ask = async |language: &str| {
        let headers = [("accept-language", language)];
        gateway.client.send("GET", "/t?vary=Accept-Language", &headers, "").await.text().to_owned()
    };
    let (zh, en) = (ask("zh").await, ask("en").await);
    assert_ne!(zh, en);
    assert_eq!((ask("zh").await, ask("en").await), (zh, en));
    assert_eq!(back.calls(), 2);
}

#[tokio::test]
async fn callers_who_have_it_get_304() {
    let back = Counting::start().await;
    let gateway = caching("30s", &back.service.url()).await;
    let path = "/t?etag=%22a%22&x-a=b";
    let ask = async |tag: &str| gateway.client.send("GET", path, &[("if-none-match", tag)], "").await;
    let first = ask("\"a\"").await;
    assert_eq!(first.status, 304, "fetched whole, and had already");
    assert!(!back.service.heads()[0].headers.contains_key("if-none-match"));
    assert_eq!((first.header("etag"), first.header("x-a"), first.body.len()), (Some("\"a\""), None, 0));
    assert_eq!(ask("\"b\"").await.status, 200);
    assert_eq!(ask("W/\"a\"").await.status, 304);
    assert_eq!(back.calls(), 1);
}

#[tokio::test]
async fn a_stale_copy_is_asked_for_and_may_be_good_still() {
    let back = Counting::start().await;
    let gateway = caching("50ms", &back.service.url()).await;
    let path = "/t?etag=%22a%22";
    let first = gateway.client.get(path).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    let second = gateway.client.get(path).await;
    assert_eq!(said(&second), "voicegate; fwd=stale; fwd-status=304; stored");
    assert_eq!((second.status.as_u16(), second.text()), (200, first.text()));
    assert_eq!(back.service.heads()[1].headers["if-none-match"], "\"a\"");
}

#[tokio::test]
async fn a_stale_copy_is_given_out_while_one_is_fetched() {
    let back = Counting::start().await;
    let gateway = caching("{ ttl: 50ms, stale_while_revalidate: 1h }", &back.service.url()).await;
    let first = gateway.client.get("/t").await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    let (one, other) = tokio::join!(gateway.client.get("/t"), gateway.client.get("/t"));
    assert_eq!((one.text(), said(&one)), (first.text(), "voicegate; hit; ttl=0"));
    assert!(other.text() == first.text() || back.calls() == 2);
    eventually("the next is the new one", SOON, async || {
        gateway.client.get("/t").await.text() != first.text()
    })
    .await;
    assert!(result(&gateway, "stale").await >= 1.0);
}

/// A service that answers only once it is let, and says how many reached it.
async fn gated(
    respond: fn(usize) -> Response<crate::harness::scripted::Body>,
) -> (Counting, watch::Sender<bool>) {
    let (open, gate) = watch::channel(false);
    let count = AtomicUsize::new(0);
    let service = Scripted::start_slowly(move |_: &Parts| {
        let number = count.fetch_add(1, Ordering::SeqCst) + 1;
        let mut gate = gate.clone();
        async move {
            let _ = gate.wait_for(|open| *open).await;
            respond(number)
        }
    })
    .await;
    (Counting { service }, open)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_identical_requests_are_one_call() {
    let (back, open) = gated(|number| Response::new(body(number.to_string()))).await;
    let gateway = caching("30s", &back.service.url()).await;
    let asking: Vec<_> = (0..100)
        .map(|_| {
            let client = gateway.client.clone();
            tokio::spawn(async move { client.get("/t").await })
        })
        .collect();
    eventually("one call has come", SOON, async || back.calls() == 1).await;
    eventually("the others wait", SOON, async || gateway.live().shared().copies.figures().misses == 100)
        .await;
    open.send(true).unwrap();
    let mut collapsed = 0;
    for asked in asking {
        let answer = asked.await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "1"));
        collapsed += usize::from(said(&answer).ends_with("collapsed"));
    }
    assert_eq!((back.calls(), collapsed), (1, 99));
    assert_eq!((result(&gateway, "miss").await, result(&gateway, "coalesced").await), (1.0, 99.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_wait_get_the_answer_of_one_who_left() {
    let (back, open) = gated(|number| Response::new(body(number.to_string()))).await;
    let gateway = caching("30s", &back.service.url()).await;
    let client = gateway.client.clone();
    let leader = tokio::spawn(async move { client.get("/t").await });
    eventually("the call has come", SOON, async || back.calls() == 1).await;
    let client = gateway.client.clone();
    let follower = tokio::spawn(async move { client.get("/t").await });
    eventually("the other waits", SOON, async || gateway.live().shared().copies.figures().misses == 2).await;
    leader.abort();
    let _ = leader.await;
    // Its end has reached the gateway when the exchange is over.
    tokio::time::sleep(Duration::from_millis(200)).await;
    open.send(true).unwrap();
    assert_eq!(follower.await.unwrap().text(), "1");
    assert_eq!(back.calls(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_nobody_waits_for_is_stopped() {
    let (back, open) = gated(|number| Response::new(body(number.to_string()))).await;
    let gateway = caching("30s", &back.service.url()).await;
    let client = gateway.client.clone();
    let leader = tokio::spawn(async move { client.get("/t").await });
    eventually("the call has come", SOON, async || back.calls() == 1).await;
    leader.abort();
    let _ = leader.await;
    eventually("the upstream sees it", Duration::from_secs(3), async || back.service.given_up() == 1).await;
    open.send(true).unwrap();
    assert_eq!(gateway.client.get("/t").await.text(), "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_for_one_is_fetched_by_each() {
    let (back, open) = gated(|number| {
        Response::builder()
            .header("set-cookie", format!("n={number}"))
            .body(body(number.to_string()))
            .unwrap()
    })
    .await;
    let gateway = caching("30s", &back.service.url()).await;
    let asking: Vec<_> = (0..5)
        .map(|_| {
            let client = gateway.client.clone();
            tokio::spawn(async move { client.get("/t").await })
        })
        .collect();
    eventually("all ask", SOON, async || gateway.live().shared().copies.figures().misses == 5).await;
    open.send(true).unwrap();
    let mut got = Vec::new();
    for asked in asking {
        got.push(asked.await.unwrap().text().to_owned());
    }
    got.sort();
    assert_eq!(got, ["1", "2", "3", "4", "5"]);
    let after = gateway.client.get("/t").await;
    assert_eq!(said(&after), "voicegate; fwd=uri-miss; detail=uncacheable", "nobody waits for another's now");
}

#[tokio::test]
async fn what_is_too_large_passes_whole() {
    let back = Counting::start().await;
    let gateway = caching("{ ttl: 30s, max_size: 1KiB }", &back.service.url()).await;
    for (size, calls) in [(1024, 1), (1025, 2), (3 << 20, 2)] {
        let before = back.calls();
        for _ in 0..2 {
            assert_eq!(gateway.client.get(&format!("/t?size={size}")).await.body.len(), size);
        }
        assert_eq!(back.calls() - before, calls, "{size}");
    }
}

#[tokio::test]
async fn only_what_is_in_the_key_reaches_what_is_behind() {
    let back = Counting::start().await;
    let gateway = caching("{ ttl: 30s, by: [query.q] }", &back.service.url()).await;
    let first = gateway.client.get("/t?q=a&evil=1").await;
    assert_eq!(first.text(), "1 /t?q=a");
    assert_eq!(gateway.client.get("/t?utm=2&q=a").await.text(), first.text());
    assert_eq!(gateway.client.get("/t?q=a&q=b").await.text(), "2 /t?q=a&q=b", "not read as either");
    assert_eq!(gateway.client.get("/t?evil=1").await.text(), "3 /t");
}

#[tokio::test]
async fn operators_purge_by_what_they_name() {
    let back = Counting::start().await;
    let gateway = caching("30s", &back.service.url()).await;
    let fill = async || {
        for path in ["/t", "/t/1", "/t/2?cache-tag=a"] {
            gateway.client.get(path).await;
        }
    };
    let bearer = [("authorization", "Bearer admin-secret")];
    for (what, purged) in [
        (r#"{"path": "/t/1"}"#, 1),
        (r#"{"prefix": "/t"}"#, 3),
        (r#"{"route": "GET /t/:id"}"#, 2),
        (r#"{"tag": "a"}"#, 1),
        (r#"{"all": true}"#, 3),
    ] {
        fill().await;
        let answer = gateway.admin.send("POST", "/admin/api/cache/purge", &bearer, what).await;
        assert_eq!(answer.json()["purged"], purged, "{what}");
    }
    let figures = gateway.admin.get("/admin/api/cache").await.json();
    assert_eq!((&figures["entries"], &figures["purged"]), (&0.into(), &10.into()), "{figures}");
    for vague in ["{}", r#"{"path": "/t", "all": true}"#, r#"{"paht": "/t"}"#] {
        let answer = gateway.admin.send("POST", "/admin/api/cache/purge", &bearer, vague).await;
        assert!(answer.status.is_client_error(), "{vague}: {answer:?}");
    }
    assert_eq!(gateway.admin.post("/admin/api/cache/purge", r#"{"all": true}"#).await.status, 403);
    assert_eq!(gateway.admin.get("/admin/api/cache/purge").await.status, 405);
}

#[tokio::test]
async fn a_reload_keeps_copies_of_routes_that_stay_what_they_are() {
    let back = Counting::start().await;
    let gateway = caching("30s", &back.service.url()).await;
    for path in ["/t", "/t/1"] {
        gateway.client.get(path).await;
    }
    let changed = manifest("30s", &back.service.url())
        .replace("GET /t/:id, upstream: back", "GET /t/:id, upstream: back, path: \"/t/{id}\"");
    gateway.rewrite(&changed);
    eventually("the new one serves", SOON, async || gateway.revision() == 2).await;
    assert!(said(&gateway.client.get("/t").await).contains("hit"));
    assert!(said(&gateway.client.get("/t/1").await).contains("miss"), "another route now");
}
