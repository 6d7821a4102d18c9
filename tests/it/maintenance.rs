//! `maintenance:` and the admin calls that switch routes off and on.

use crate::access::token;
use crate::harness::scripted::body;
use crate::harness::{Answer, Gateway, Scripted, eventually};
use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use std::io;
use std::time::Duration;

async fn service() -> Scripted {
    Scripted::start(|head, _| match head.uri.path() {
        "/v2/stream" => {
            let mut response = Response::new(ticking());
            response.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
            response
        }
        _ => Response::new(body("served")),
    })
    .await
}

fn ticking() -> crate::harness::scripted::Body {
    let (sender, receiver) = tokio::sync::mpsc::channel::<io::Result<Frame<Bytes>>>(1);
    tokio::spawn(async move {
        while sender.send(Ok(Frame::data(Bytes::from_static(b"data: tick\n\n")))).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async {
        Some((receiver.recv().await?, receiver))
    });
    BodyExt::boxed(StreamBody::new(pieces))
}

fn manifest(url: &str, of_version: &str, of_route: &str) -> String {
    format!(
        "upstreams: {{ app: {{ targets: [{{ url: \"{url}\" }}] }} }}\n\
         cors: {{ default: {{ origins: [\"https://app.example\"] }} }}\n\
         roles: {{ user: {{ allow: [\"*\"] }} }}\n\
         versions:\n  - name: v1\n    prefix: /v1\n    chain: [{{ cors: default }}, request_id, metrics, auth]\n    {of_version}\n\
         \x20   routes: [{{ route: GET /a, upstream: app }}, {{ route: GET /b, upstream: app, {of_route} }}]\n\
         \x20 - name: v2\n    prefix: /v2\n    chain: [request_id]\n\
         \x20   routes:\n      - {{ route: GET /c, upstream: app, public: true }}\n      - {{ route: GET /stream, upstream: app, public: true, protocol: sse }}\n\
         routes: [{{ route: GET /health, handler: gateway.health, public: true }}]\n"
    )
}

async fn admin(gateway: &Gateway, method: &str, query: &str, body: &str) -> Answer {
    let headers = [("authorization", "Bearer admin-secret")];
    gateway.admin.send(method, &format!("/admin/api/maintenance{query}"), &headers, body).await
}

async fn reloaded(gateway: &Gateway, manifest: &str) {
    let next = gateway.revision() + 1;
    gateway.rewrite(manifest);
    eventually("the reload", Duration::from_secs(5), || async { gateway.revision() == next }).await;
}

#[tokio::test]
async fn the_manifest_switches_a_version_off_and_a_route_differently() {
    let app = service().await;
    let off = "maintenance: { retry_after: 10m }";
    let own = "maintenance: { respond: { status: 410, json: { error: moved } } }";
    let gateway = Gateway::with(&manifest(&app.url(), "", "")).start().await;
    let bearer = format!("Bearer {}", token(&gateway, "user", Duration::ZERO));
    let headers = [("authorization", &*bearer), ("origin", "https://app.example")];
    assert_eq!(gateway.client.send("GET", "/v1/a", &headers, "").await.text(), "served");
    reloaded(&gateway, &manifest(&app.url(), off, own)).await;
    // Before auth, behind CORS and the request's id.
    for headers in [&headers[..], &headers[1..]] {
        let answer = gateway.client.send("GET", "/v1/a", headers, "").await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "maintenance"));
        assert_eq!(answer.header("retry-after"), Some("600"));
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"));
        assert!(answer.header("x-request-id").is_some());
    }
    let answer = gateway.client.send("GET", "/v1/a", &[("accept-language", "zh")], "").await;
    assert_eq!(answer.json()["error"], "系统维护中，请稍后重试");
    let answer = gateway.client.get("/v1/b").await;
    assert_eq!((answer.status.as_u16(), answer.json()["error"].as_str()), (410, Some("moved")));
    assert_eq!(answer.header("retry-after"), Some("60"));
    assert_eq!(gateway.client.get("/v2/c").await.text(), "served");
    assert_eq!(gateway.client.get("/v1/unknown").await.status, 404);
    let preflight = [headers[1], ("access-control-request-method", "GET")];
    assert_eq!(gateway.client.send("OPTIONS", "/v1/a", &preflight, "").await.status.as_u16() / 100, 2);
    assert_eq!(app.heads().len(), 2, "nothing of it reached the service");
    let series = "http_requests_total{method=\"GET\",path=\"/v1/a\",status=\"503\"}";
    assert_eq!(gateway.metric(series).await, 3.0);
    reloaded(&gateway, &manifest(&app.url(), "", "")).await;
    assert_eq!(gateway.client.send("GET", "/v1/a", &headers, "").await.text(), "served");
}

#[tokio::test]
async fn an_operators_word_counts_until_it_is_lifted() {
    let app = service().await;
    let open = manifest(&app.url(), "", "");
    let gateway = Gateway::with(&open).start().await;
    let status = |path: &'static str| {
        let client = gateway.client.clone();
        async move { client.get(path).await.status.as_u16() }
    };
    assert_eq!(
        gateway.admin.post("/admin/api/maintenance", r#"{"all": true, "on": true}"#).await.status,
        403
    );
    let mut stream = gateway.client.open("GET", "/v2/stream", &[], "").await;
    let said = r#"{"version": "v2", "on": true, "retry_after": "5m", "reason": "moving house", "respond": {"status": 503, "json": {"error": "moving"}}}"#;
    let switch = admin(&gateway, "POST", "", said).await;
    assert_eq!(switch.status, 200, "{}", switch.text());
    assert_eq!(
        (switch.json()["by"].as_str(), switch.json()["on"].as_bool()),
        (Some("admin token"), Some(true))
    );
    let answer = gateway.client.get("/v2/c").await;
    assert_eq!((answer.status.as_u16(), answer.json()["error"].as_str()), (503, Some("moving")));
    assert_eq!(answer.header("retry-after"), Some("300"));
    assert_eq!(status("/v2/stream").await, 503, "no new stream");
    stream.piece().await.unwrap().unwrap();
    // Over a reload.
    reloaded(&gateway, &format!("{open}# changed\n")).await;
    assert_eq!(status("/v2/c").await, 503);
    stream.piece().await.unwrap().unwrap();
    // The route's own goes before the version's.
    let route = r#"{"route": "GET /v2/c", "on": false}"#;
    assert_eq!(admin(&gateway, "POST", "", route).await.status, 200);
    assert_eq!((status("/v2/c").await, status("/v2/stream").await), (200, 503));
    let listed = admin(&gateway, "GET", "", "").await.json();
    assert_eq!(listed["switches"].as_array().unwrap().len(), 2);
    assert_eq!(
        (&listed["switches"][0]["version"], &listed["switches"][0]["reason"]),
        (&"v2".into(), &"moving house".into())
    );
    let lifted = admin(&gateway, "DELETE", "?version=v2", "").await.json();
    assert_eq!(lifted["lifted"].as_array().unwrap().len(), 1);
    // Open, whatever the manifest says.
    reloaded(&gateway, &open.replace("    prefix: /v2\n", "    prefix: /v2\n    maintenance: {}\n")).await;
    assert_eq!((status("/v2/c").await, status("/v2/stream").await), (200, 503));
    assert_eq!(
        admin(&gateway, "GET", "", "").await.json()["manifest"],
        serde_json::json!(["GET /v2/c", "GET /v2/stream"])
    );
    admin(&gateway, "DELETE", "", "").await;
    assert_eq!(status("/v2/c").await, 503, "the manifest's word again");
    stream.piece().await.unwrap().unwrap();
}

#[tokio::test]
async fn health_and_the_admin_api_stay_up() {
    let app = service().await;
    let gateway = Gateway::with(&manifest(&app.url(), "", "")).start().await;
    assert_eq!(admin(&gateway, "POST", "", r#"{"all": true, "on": true}"#).await.status, 200);
    assert_eq!(gateway.client.get("/v1/a").await.code(), "maintenance");
    assert_eq!(gateway.client.get("/v2/c").await.code(), "maintenance");
    assert_eq!(gateway.client.get("/health").await.status, 200);
    for path in ["/livez", "/readyz", "/metrics", "/admin/api/maintenance"] {
        assert_eq!(gateway.admin.get(path).await.status, 200, "{path}");
    }
    for (said, status) in [
        (r#"{"route": "GET /health", "on": true}"#, 400),
        (r#"{"route": "GET /nowhere", "on": true}"#, 404),
        (r#"{"version": "v9", "on": true}"#, 404),
        (r#"{"on": true}"#, 400),
        (r#"{"all": true, "version": "v1", "on": true}"#, 400),
        (r#"{"all": true, "on": true, "respond": {"status": 99}}"#, 400),
        (r#"{"all": true, "on": true, "typo": 1}"#, 400),
        ("{", 400),
    ] {
        assert_eq!(admin(&gateway, "POST", "", said).await.status.as_u16(), status, "{said}");
    }
    assert_eq!(admin(&gateway, "PUT", "", "").await.status, 405);
    assert_eq!(admin(&gateway, "DELETE", "?all=true", "").await.status, 200);
    assert_eq!(gateway.client.get("/v2/c").await.text(), "served");
}
