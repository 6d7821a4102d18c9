//! Bodies mapped on their way, and stages that run on a condition.

use crate::harness::scripted::{Body, body};
use crate::harness::{Gateway, Scripted, eventually};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const JSON: (&str, &str) = ("content-type", "application/json");

/// A service that answers what it was sent as `{"head": …, "body": …, "internal": …}`.
async fn mirror() -> Scripted {
    Scripted::start(|head, sent| {
        let headers: serde_json::Map<String, Value> = head
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().into()))
            .collect();
        let text = String::from_utf8(sent.to_vec()).unwrap();
        let sent = serde_json::from_str(&text).unwrap_or(Value::String(text));
        let answer = json!({ "data": { "head": headers, "body": sent, "internal": "cost" } });
        let status = if head.uri.path() == "/fails" { 409 } else { 200 };
        Response::builder()
            .status(status)
            .header("content-type", "application/json")
            .body(body(answer.to_string()))
            .unwrap()
    })
    .await
}

/// A gateway whose routes under `/` go to `service` through one stage.
async fn through(service: &Scripted, stage: &str) -> Gateway {
    Gateway::with(&manifest(&service.url(), stage)).start().await
}

fn manifest(url: &str, stage: &str) -> String {
    format!(
        "upstreams: {{ it: {{ targets: [{{ url: \"{url}\" }}] }} }}\n\
         routes:\n  - {{ route: ANY /*path, upstream: it, public: true, chain: [{stage}] }}\n"
    )
}

#[tokio::test]
async fn a_body_goes_through_both_mappings() {
    let service = mirror().await;
    let stage = "{ body_limit: 1MiB }, { transform: { \
        request: { rename: { name: user.name }, drop: [debug], default: { lang: zh }, \
                   set: { via: \"request.method + ' ' + request.path\" }, to_headers: { X-Account: account } }, \
        response: { unwrap: data, drop: [internal], set: { status: response.status } } } }";
    let gateway = through(&service, stage).await;
    let sent = r#"{"name": "ada", "debug": true, "account": "a1"}"#;
    let headers = [JSON, ("x-account", "forged"), ("accept-encoding", "gzip"), ("content-md5", "old")];
    let answer = gateway.client.send("POST", "/users", &headers, sent).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let got = answer.json();
    let mapped = json!({ "account": "a1", "user": { "name": "ada" }, "lang": "zh", "via": "POST /users" });
    assert_eq!(got["body"], mapped);
    assert_eq!((&got["status"], &got["internal"]), (&json!(200), &Value::Null));
    let head = &got["head"];
    assert_eq!(head["x-account"], "a1");
    assert_eq!(head["content-length"], mapped.to_string().len().to_string());
    assert_eq!((&head["accept-encoding"], &head["content-md5"]), (&Value::Null, &Value::Null));
    assert_eq!(answer.header("content-length").unwrap(), answer.text().len().to_string());
    let failed = gateway.client.send("POST", "/fails", &headers, sent).await;
    assert_eq!((failed.status.as_u16(), &failed.json()["data"]["internal"]), (409, &json!("cost")));
}

#[tokio::test]
async fn a_body_that_cannot_be_mapped_is_refused_and_not_sent() {
    let service = mirror().await;
    let gateway = through(&service, "{ transform: { request: { drop: [a] }, max_size: 1KiB } }").await;
    let big = format!("\"{}\"", "x".repeat(2000));
    let deep = "[".repeat(10_000) + &"]".repeat(10_000);
    let nested = "[".repeat(40) + &"]".repeat(40);
    for (headers, sent, status) in [
        (&[JSON][..], big.as_str(), 413),
        (&[JSON], &deep, 413),
        (&[JSON], &nested, 400),
        (&[JSON], "{", 400),
        (&[("content-type", "text/plain")], "{}", 415),
        (&[JSON, ("content-encoding", "gzip")], "{}", 415),
    ] {
        let answer = gateway.client.send("POST", "/", headers, sent).await;
        assert_eq!(answer.status, status, "{}", answer.text());
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    }
    assert_eq!(service.heads().len(), 0);
    assert_eq!(gateway.client.get("/").await.status, 200, "what has no body passes");
}

#[tokio::test]
async fn a_form_reaches_the_service_as_json_and_json_as_a_form() {
    let service = mirror().await;
    let gateway =
        through(&service, "{ transform: { request: { from: form, set: { n: 'int(body.n)' } } } }").await;
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let answer = gateway.client.send("POST", "/", &form, "n=5&tag=a&tag=b").await.json();
    assert_eq!(answer["data"]["body"], json!({ "n": 5, "tag": ["a", "b"] }));
    assert_eq!(answer["data"]["head"]["content-type"], "application/json");
    let gateway = through(&service, "{ transform: { request: { to: form } } }").await;
    let answer = gateway.client.send("POST", "/", &[JSON], r#"{"n": 5, "tag": ["a", "b c"]}"#).await.json();
    assert_eq!(answer["data"]["body"], "n=5&tag=a&tag=b+c");
}

/// A service that streams what the test feeds it.
async fn streaming() -> (Scripted, tokio::sync::mpsc::UnboundedSender<&'static str>) {
    let (feed, pieces) = tokio::sync::mpsc::unbounded_channel::<&'static str>();
    let pieces = Arc::new(Mutex::new(Some(pieces)));
    let service = Scripted::start(move |_, _| {
        let mut pieces = pieces.lock().unwrap().take().expect("one stream");
        let frames = futures_util::stream::poll_fn(move |cx| {
            pieces.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(Bytes::from(piece)))))
        });
        let body: Body = StreamBody::new(frames).boxed();
        Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
    })
    .await;
    (service, feed)
}

#[tokio::test]
async fn events_are_mapped_live() {
    let (service, feed) = streaming().await;
    let manifest = manifest(
        &service.url(),
        "{ transform: { response: { drop: [cost], set: { who: \"request.headers['x-who']\" } } } }",
    );
    let manifest = manifest.replace("upstream: it,", "upstream: it, protocol: sse,");
    let gateway = Gateway::with(&manifest).start().await;
    let open = gateway.client.open("GET", "/", &[("x-who", "ada")], "");
    feed.send("id: 1\nevent: delta\ndata: {\"text\": \"a\", \"cost\": 3}\n\n").unwrap();
    let mut open = open.await;
    let first = open.piece().await.unwrap().unwrap();
    // The second is not sent before the first is here.
    assert_eq!(first, "id: 1\nevent: delta\ndata: {\"text\":\"a\",\"who\":\"ada\"}\n\n");
    for (piece, wanted) in [
        (": still here\n\n", ": still here\n\n"),
        ("data: {\"cost\":\ndata: 4}\n\ndata: [DONE]\n\n", "data: {\"who\":\"ada\"}\n\ndata: [DONE]\n\n"),
    ] {
        feed.send(piece).unwrap();
        assert_eq!(open.piece().await.unwrap().unwrap(), wanted);
    }
    drop(feed);
    assert_eq!(open.rest().await, (String::new(), true));
}

#[tokio::test]
async fn an_answer_that_cannot_be_mapped_is_a_502() {
    let service = Scripted::start(|_, _| {
        Response::builder().header("content-type", "application/json").body(body("{\"secret\": ")).unwrap()
    })
    .await;
    let gateway = through(&service, "{ transform: { response: { drop: [secret] } } }").await;
    let answer = gateway.client.get("/").await;
    assert_eq!((answer.status.as_u16(), answer.code()), (502, "upstream_bad_response".to_owned()));
}

#[tokio::test]
async fn a_condition_decides_whether_a_stage_runs_and_a_reload_changes_it() {
    let service = mirror().await;
    let stage = |path: &str| {
        format!("{{ rate_limit: {{ limit: 1, per: 1h, when: \"request.path.startsWith('{path}')\" }} }}")
    };
    let gateway = through(&service, &stage("/limited")).await;
    let statuses = async |path: &str| {
        let first = gateway.client.get(path).await.status.as_u16();
        [first, gateway.client.get(path).await.status.as_u16()]
    };
    assert_eq!(statuses("/free").await, [200, 200]);
    assert_eq!(statuses("/limited").await, [200, 429]);
    gateway.rewrite(&manifest(&service.url(), &stage("/free")));
    eventually("the new condition holds", Duration::from_secs(4), async || gateway.revision() == 2).await;
    assert_eq!(statuses("/limited").await, [200, 200]);
    assert_eq!(gateway.client.get("/free").await.status, 429, "the counter is the route's, and goes on");
}

#[tokio::test]
async fn a_condition_that_cannot_be_decided_lets_the_stage_run() {
    let service = mirror().await;
    let stage = "{ ip_filter: { deny: [127.0.0.1], when: \"request.headers['x-mode'] != 'open'\" } }";
    let gateway = through(&service, stage).await;
    let with =
        async |mode: &str| gateway.client.send("GET", "/", &[("x-mode", mode)], "").await.status.as_u16();
    assert_eq!((with("open").await, with("other").await), (200, 403));
    assert_eq!(gateway.client.get("/").await.status, 403, "leaving the header out is no way round");
    let errors = "voicegate_expression_errors_total{stage=\"ip_filter\"}";
    assert_eq!(gateway.metric(errors).await, 1.0);
}

#[tokio::test]
async fn a_conditional_auth_protects_where_its_condition_holds() {
    let service = mirror().await;
    let manifest = manifest(&service.url(), "{ auth: { when: \"!request.path.startsWith('/open')\" } }");
    let gateway =
        Gateway::with(&manifest).flag("--jwt-secret", "a secret of more than thirty-two bytes").start().await;
    assert_eq!(gateway.client.get("/open/a").await.status, 200);
    assert_eq!(gateway.client.get("/closed").await.status, 401);
    // The condition sees the one spelling of the path that everything else goes by.
    assert_eq!(gateway.client.get("/%6fpen/a").await.status, 200);
    assert_eq!(gateway.client.get("/open%2f..%2fclosed").await.status, 400);
    assert_eq!(gateway.client.get("/open/../closed").await.status, 400);
}

#[tokio::test]
async fn a_header_of_the_body_is_not_taken_from_who_sends_none() {
    let service = mirror().await;
    let gateway =
        through(&service, "{ transform: { request: { to_headers: { X-Account: account } } } }").await;
    let request = Request::post(format!("http://{}/", gateway.client.address()))
        .header("x-account", "forged")
        .body(Full::new(Bytes::new()))
        .unwrap();
    let answer = gateway.client.try_send(request).await.unwrap();
    assert_eq!(answer.json()["data"]["head"]["x-account"], Value::Null, "{}", answer.text());
}
