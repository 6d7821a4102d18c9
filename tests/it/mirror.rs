//! `mirror:`, through the front door: copies that nobody waits for.

use crate::harness::scripted::body;
use crate::harness::{Gateway, Scripted, eventually};
use bytes::Bytes;
use http::Response;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

/// A service that remembers bodies.
async fn recording() -> (Scripted, Arc<Mutex<Vec<Bytes>>>) {
    let bodies: Arc<Mutex<Vec<Bytes>>> = Arc::default();
    let seen = bodies.clone();
    let service = Scripted::start(move |_, sent| {
        seen.lock().unwrap().push(sent);
        Response::new(body("shadow"))
    })
    .await;
    (service, bodies)
}

async fn mirrored(real: &str, shadow: &str, mirror: &str, route: &str) -> Gateway {
    Gateway::with(&format!(
        "upstreams:\n  real: {{ targets: [{{ url: \"{real}\" }}] }}\n  shadow: {{ targets: [{{ url: \"{shadow}\" }}] }}\n\
         routes:\n  - {{ route: ANY /a/:id, public: true, chain: [request_id, metrics], upstream: real, mirror: {{ upstream: shadow, {mirror} }}, {route} }}\n"
    ))
    .start()
    .await
}

fn result(word: &str) -> String {
    format!("voicegate_mirrored_total{{result=\"{word}\",upstream=\"shadow\"}}")
}

async fn counted(gateway: &Gateway, word: &str, wanted: f64) {
    eventually(&format!("{wanted} {word}"), Duration::from_secs(10), || async {
        gateway.metric(&result(word)).await == wanted
    })
    .await;
}

#[tokio::test]
async fn a_copy_is_what_the_real_upstream_gets() {
    let real = Scripted::saying("real").await;
    let (shadow, bodies) = recording().await;
    let gateway =
        mirrored(&real.url(), &shadow.url(), "share: 100%, max_body: 1KiB", "path: \"/x/{id}\"").await;
    let headers = [("x-user-id", "mallory"), ("x-app", "1"), ("x-request-id", "r-1")];
    assert_eq!(gateway.client.send("GET", "/a/7?q=1&token=t", &headers, "").await.text(), "real");
    assert_eq!(gateway.client.send("POST", "/a/8", &headers, "hello").await.text(), "real");
    counted(&gateway, "answered", 2.0).await;
    let (mut copies, originals) = (shadow.heads(), real.heads());
    // A copy without body is under way at once, the other one when its body has passed.
    copies.sort_by_key(|head| head.method.to_string());
    for (copy, original) in copies.iter().zip(&originals) {
        assert_eq!((&copy.method, &copy.uri), (&original.method, &original.uri));
        assert_eq!(copy.headers["x-mirrored"], "true");
        assert!(!original.headers.contains_key("x-mirrored"));
        assert!(!copy.headers.contains_key("x-user-id"), "nobody's identity but the gateway's word");
        for name in ["x-app", "x-forwarded-for", "x-request-id"] {
            assert_eq!(copy.headers[name], original.headers[name], "{name}");
        }
    }
    assert_eq!(*bodies.lock().unwrap(), ["", "hello"]);
    // Larger than is copied, whether its length is known or not.
    assert_eq!(gateway.client.send("POST", "/a/9", &[], &"x".repeat(4000)).await.text(), "real");
    counted(&gateway, "too_large", 1.0).await;
    assert_eq!(shadow.heads().len(), 2);
    let series = "http_requests_total{method=\"POST\",path=\"/a/:id\",status=\"200\"}";
    assert_eq!(gateway.metric(series).await, 2.0, "copies count for nothing");
}

#[tokio::test]
async fn a_black_hole_slows_nobody_and_holds_nothing() {
    let real = Scripted::saying("real").await;
    // Accepts by its backlog, and never reads.
    let hole = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", hole.local_addr().unwrap());
    let mirror = "share: 100%, max_concurrent: 5, timeout: 500ms";
    let gateway = mirrored(&real.url(), &url, mirror, "").await;
    let bare = Gateway::with(&format!(
        "upstreams: {{ real: {{ targets: [{{ url: \"{}\" }}] }} }}\nroutes:\n  - {{ route: ANY /a/:id, public: true, upstream: real }}\n",
        real.url()
    ))
    .start()
    .await;
    let median = |gateway: Gateway| async move {
        let mut took = Vec::new();
        for _ in 0..60 {
            let began = Instant::now();
            assert_eq!(gateway.client.post("/a/1", "hello").await.text(), "real");
            took.push(began.elapsed());
        }
        took.sort();
        (gateway, took[took.len() / 2])
    };
    let (_bare, without) = median(bare).await;
    let (gateway, with) = median(gateway).await;
    assert!(with < without * 4 + Duration::from_millis(20), "{with:?} with a mirror, {without:?} without");
    // Every copy is accounted for: what was let in has failed by its deadline, the rest was left out.
    eventually("all copies are over", Duration::from_secs(10), || async {
        gateway.metric(&result("failed")).await + gateway.metric(&result("dropped")).await == 60.0
    })
    .await;
    let failed = gateway.metric(&result("failed")).await;
    assert!(failed >= 5.0, "{failed}");
    assert!(gateway.metric(&result("dropped")).await >= 1.0, "no more than five at a time");
    // Places are given back.
    gateway.client.get("/a/1").await;
    counted(&gateway, "failed", failed + 1.0).await;
}

#[tokio::test]
async fn a_share_is_a_share_and_a_reload_changes_it() {
    let (real, shadow) = (Scripted::saying("real").await, Scripted::saying("shadow").await);
    let gateway = mirrored(&real.url(), &shadow.url(), "share: 50%", "").await;
    for _ in 0..200 {
        gateway.client.get("/a/1").await;
    }
    eventually("copies came", Duration::from_secs(5), || async { shadow.heads().len() >= 60 }).await;
    assert!(shadow.heads().len() <= 140, "{} of 200 is not half", shadow.heads().len());
    gateway.rewrite(&format!(
        "upstreams:\n  real: {{ targets: [{{ url: \"{}\" }}] }}\nroutes:\n  - {{ route: ANY /a/:id, public: true, upstream: real }}\n",
        real.url()
    ));
    eventually("the reload", Duration::from_secs(5), || async { gateway.revision() == 2 }).await;
    let before = shadow.heads().len();
    for _ in 0..20 {
        gateway.client.get("/a/1").await;
    }
    assert!(shadow.heads().len() <= before + 1, "but for one that was on its way");
}

#[tokio::test]
async fn a_caller_who_leaves_is_not_copied() {
    use tokio::io::AsyncWriteExt as _;
    let (real, shadow) = (Scripted::saying("real").await, Scripted::saying("shadow").await);
    let gateway = mirrored(&real.url(), &shadow.url(), "share: 100%", "").await;
    let mut caller = tokio::net::TcpStream::connect(gateway.client.address()).await.unwrap();
    caller.write_all(b"POST /a/1 HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nonly this").await.unwrap();
    eventually("it is on its way", Duration::from_secs(5), || async { real.connections() == 1 }).await;
    drop(caller);
    counted(&gateway, "cut", 1.0).await;
    assert!(shadow.heads().is_empty());
}
