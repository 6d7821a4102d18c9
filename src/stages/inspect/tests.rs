use super::super::testing::{check, code, fed, fold_around, request, send, target};
use super::*;
use crate::exchange::RouteInfo;
use crate::state::tests::shared;
use http::Method;
use http_body_util::BodyExt as _;
use http_body_util::combinators::BoxBody;
use proptest::prelude::*;
use std::sync::Mutex;
use std::time::{Duration, Instant};

type Sent = Arc<Mutex<Option<(http::HeaderMap, Bytes)>>>;

/// The stage round a target that keeps what it gets; and the process, for its metrics.
fn around(stage: &str) -> (Next, Sent, Arc<crate::state::Shared>) {
    let sent = Sent::default();
    let keep = sent.clone();
    let next = target(move |request: Request| {
        let keep = keep.clone();
        async move {
            let headers = request.headers().clone();
            let body = request.into_body().into_bytes().await?;
            *keep.lock().unwrap() = Some((headers, body));
            Ok(Response::default())
        }
    });
    let (shared, _) = shared(&[]);
    (fold_around(&check(stage, "").sound(), &shared, next), sent, shared)
}

fn posted(kind: &str, body: impl Into<poem::Body>) -> Request {
    let mut request = request(Method::POST, &[("content-type", kind)]);
    request.set_body(body.into());
    request
}

fn asked(query: &str) -> Request {
    let mut request = request(Method::GET, &[]);
    *request.uri_mut() = format!("/t?{query}").parse().unwrap();
    request
}

const SQL: &str = "1' OR '1'='1";
const XSS: &str = "<script>alert(1)</script>";

#[tokio::test]
async fn findings_are_reported_and_pass() {
    let (next, sent, shared) = around("inspect");
    let body = serde_json::json!({ "messages": [{ "content": SQL }, { "content": XSS }] }).to_string();
    assert_eq!(send(&next, posted("application/json", body.clone())).await.status(), 200);
    assert_eq!(sent.lock().unwrap().take().unwrap().1, body, "untouched");
    let metrics = shared.telemetry.render();
    for kind in ["sql", "xss"] {
        let series =
            format!("voicegate_inspect_findings_total{{action=\"report\",kind=\"{kind}\",path=\"/t\"}} 1");
        assert!(metrics.contains(&series), "{series}: {metrics}");
    }
}

#[tokio::test]
async fn what_looks_like_an_attack_is_refused_without_an_echo() {
    let (next, sent, _) = around("inspect: { action: refuse }");
    let encoded = url::form_urlencoded::byte_serialize(SQL.as_bytes()).collect::<String>();
    let json = |value: serde_json::Value| posted("application/json", value.to_string());
    let hostile = [
        asked(&format!("q={encoded}")),
        asked(&format!("{encoded}=q")),
        posted("application/x-www-form-urlencoded", format!("a=b&q={encoded}")),
        json(serde_json::json!(XSS)),
        json(serde_json::json!({ "a": [[{ "b": SQL }]] })),
        json(serde_json::json!({ SQL: 1 })),
        // Which of the two a service takes, nobody knows.
        posted("application/json", format!("{{\"a\": \"{XSS}\", \"a\": \"fine\"}}")),
        posted("application/merge-patch+json", serde_json::json!({ "a": XSS }).to_string()),
    ];
    for (index, request) in hostile.into_iter().enumerate() {
        let response = send(&next, request).await;
        assert_eq!(response.status(), 403, "{index}");
        let body = response.into_body().into_string().await.unwrap();
        assert!(body.contains("\"suspicious_input\"") && !body.contains("script") && !body.contains("OR"));
        assert!(sent.lock().unwrap().is_none(), "{index} reached the service");
    }
    // The last is why the default is to report.
    for (text, status) in
        [("Tell me about JSON", 200), ("你好，世界", 200), ("O'Brien", 200), ("3 < 4 && 5 > 4", 403)]
    {
        let response = send(&next, json(serde_json::json!({ "query": text }))).await;
        assert_eq!(response.status(), status, "{text}");
    }
}

#[tokio::test]
async fn a_kind_that_is_not_looked_for_passes() {
    let (next, _, _) = around("inspect: { look_for: [xss], action: refuse }");
    let json = |text: &str| posted("application/json", serde_json::json!({ "a": text }).to_string());
    assert_eq!(send(&next, json(SQL)).await.status(), 200);
    assert_eq!(send(&next, json(XSS)).await.status(), 403);
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_or_reported() {
    let (refusing, _, _) = around("inspect: { action: refuse }");
    let (reporting, sent, shared) = around("inspect");
    assert_eq!(send(&refusing, posted("application/json", "{nonsense")).await.status(), 400);
    assert_eq!(send(&reporting, posted("application/json", "{nonsense")).await.status(), 200);
    assert_eq!(sent.lock().unwrap().take().unwrap().1, "{nonsense");
    let coded = || {
        let headers = [("content-type", "application/json"), ("content-encoding", "gzip")];
        let mut request = request(Method::POST, &headers);
        request.set_body("\u{1f}x");
        request
    };
    assert_eq!(send(&refusing, coded()).await.status(), 415);
    assert_eq!(send(&reporting, coded()).await.status(), 200);
    let series = "voicegate_inspect_findings_total{action=\"report\",kind=\"unreadable\",path=\"/t\"} 2";
    assert!(shared.telemetry.render().contains(series));
}

#[tokio::test]
async fn sizes_and_depths_are_bounded_without_a_length_too() {
    let (next, _, _) = around("inspect: { max_size: 64B, max_depth: 3 }");
    let (feed, body) = fed();
    for _ in 0..5 {
        feed.send(Ok("                ".into())).unwrap();
    }
    let response = send(&next, posted("application/json", body)).await;
    assert_eq!((response.status().as_u16(), code(response).await.as_str()), (413, "payload_too_large"));
    assert_eq!(send(&next, posted("application/json", "[[[1]]]")).await.status(), 200);
    let response = send(&next, posted("application/json", "[[[[1]]]]")).await;
    assert_eq!((response.status().as_u16(), code(response).await.as_str()), (400, "validation_failed"));
    let form = format!("a={}", "b".repeat(64));
    assert_eq!(send(&next, posted("application/x-www-form-urlencoded", form)).await.status(), 413);
    assert_eq!(send(&next, posted("application/octet-stream", vec![0; 1 << 16])).await.status(), 200);
}

#[tokio::test]
async fn named_fields_are_made_harmless() {
    let (next, sent, _) = around("inspect: { action: refuse, sanitize: [bio, posts.text] }");
    let body = serde_json::json!({
        "bio": "<b onclick=\"x()\">Ann</b><script>alert(1)</script>",
        "posts": [{ "text": "<img src=x onerror=alert(1)>" }, { "text": "a & b" }],
        "n": 12345678901234567890u64,
    });
    let mut request = posted("application/json", body.to_string());
    request.headers_mut().insert("content-digest", http::HeaderValue::from_static("sha-256=:x:"));
    assert_eq!(send(&next, request).await.status(), 200, "what is made harmless is no finding");
    let (headers, body) = sent.lock().unwrap().take().unwrap();
    assert_eq!(
        body,
        r#"{"bio":"<b>Ann</b>","posts":[{"text":"<img src=\"x\">"},{"text":"a & b"}],"n":12345678901234567890}"#
    );
    assert_eq!(headers["content-length"], body.len().to_string());
    assert!(!headers.contains_key("content-digest"));
    let response = send(&next, posted("application/json", r#"{"other": "<script>a</script>"}"#)).await;
    assert_eq!(response.status(), 403, "other fields are as ever");
    for untouched in [r#"{ "bio": "a < b, fine" }"#, r#"{ "bio": 1 }"#, r#"["bio"]"#] {
        send(&next, posted("application/json", untouched)).await;
        let (_, body) = sent.lock().unwrap().take().unwrap();
        let is_same = body == untouched;
        assert_eq!(is_same, !untouched.contains('<'), "{untouched}");
    }
    // The one that is read is clean, the other one is not: only one goes on.
    send(&next, posted("application/json", r#"{"bio": "<script>a</script>", "bio": "fine"}"#)).await;
    assert_eq!(sent.lock().unwrap().take().unwrap().1, r#"{"bio":"fine"}"#);
    let deep = serde_json::json!({ "bio": "<div>".repeat(20_000) }).to_string();
    let begun = Instant::now();
    assert_eq!(send(&next, posted("application/json", deep)).await.status(), 200);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let (_, body) = sent.lock().unwrap().take().unwrap();
    assert!(!body.windows(4).any(|window| window == b"<div"), "it became plain text");
}

#[tokio::test]
async fn uploads_and_streams_are_not_held_back() {
    // The target echoes what comes as events, piece by piece.
    let echo = sealed(poem::endpoint::make(|request: Request| async move {
        Ok::<_, poem::Error>(Response::builder().content_type("text/event-stream").body(request.into_body()))
    }));
    let (shared, _) = shared(&[]);
    let next = fold_around(&check("inspect: { action: refuse }", "").sound(), &shared, echo);
    let (feed, body) = fed();
    let response = send(&next, posted("multipart/form-data; boundary=x", body)).await;
    let mut body: BoxBody<Bytes, std::io::Error> = response.into_body().into();
    for piece in ["<script>", SQL] {
        feed.send(Ok(piece.into())).unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), piece);
    }
}

#[test]
fn mistakes_are_told() {
    let faults = check("inspect: { action: shout, max_depth: 200, sanitize: [a..b] }", "").faults;
    assert_eq!(faults.len(), 3, "{faults:?}");
}

#[test]
fn a_route_without_bodies_has_no_use_for_their_limits() {
    let route = RouteInfo::unmatched();
    let fit = |protocol| Fit { route: &route, described: None, streams: false, protocol };
    let stage = check("inspect: { sanitize: [bio] }", "").sound();
    assert!(
        stage.misfit(&fit(Protocol::Websocket)).is_some() && stage.misfit(&fit(Protocol::Grpc)).is_some()
    );
    assert!(stage.misfit(&fit(Protocol::Http)).is_none());
    assert!(check("inspect", "").sound().misfit(&fit(Protocol::Websocket)).is_none());
}

#[test]
fn places_show_nothing_that_could_be_a_payload() {
    let mut scan = Scan::new(Patterns { xss: true, sql: true });
    let body = serde_json::json!({ "a b": { "list": [0, { "text": SQL }] } }).to_string();
    scan.json(body.as_bytes(), &Fields::default());
    let places: Vec<_> = scan.findings().map(|(what, finding)| (what, finding.place.clone())).collect();
    assert_eq!(places, [(What::Sql, "body/*/list/1/text".to_owned())]);
    let mut scan = Scan::new(Patterns { xss: true, sql: true });
    scan.text("query", "a\nb", XSS);
    assert_eq!(scan.findings().next().unwrap().1.place, "query.*");
}

#[test]
fn long_texts_are_looked_through_in_bounded_time() {
    let begun = Instant::now();
    for unit in ["a.b", "<div>", "{`", "/*", "@a"] {
        let mut scan = Scan::new(Patterns { xss: true, sql: true });
        scan.text("query", "q", &unit.repeat((64 << 10) / unit.len()));
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let mut scan = Scan::new(Patterns { xss: true, sql: false });
    scan.text("query", "q", &format!("{} {XSS}", "word ".repeat(3000)));
    assert_eq!(scan.findings().count(), 1, "at the end, too");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_input_panics(text in "(['\"`<>=/*#;(){}$@&%\\\\a-z0-9 \u{0}-\u{1f}é中]|--|/\\*|<script|union|select|javascript:|&#x|0x|q'|\\$\\$){0,60}") {
        let mut scan = Scan::new(Patterns { xss: true, sql: true });
        scan.text("query", "q", &text);
        prop_assert!(scan.findings().all(|(what, _)| what != What::Unreadable), "the library panicked: {text:?}");
        let body = serde_json::json!({ "a": text.clone() });
        let fields = Fields::new(["a"].into_iter());
        scan.json(body.to_string().as_bytes(), &fields);
        if let Some(cleaned) = fields.clean(body, 1) {
            let again: serde_json::Value = serde_json::from_slice(&cleaned).unwrap();
            prop_assert!(fields.clean(again, 1).is_none(), "what is harmless stays as it is: {text:?}");
        }
    }
}
