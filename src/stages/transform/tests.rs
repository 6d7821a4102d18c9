use super::super::testing::{around, check, code, fed, request, send, target};
use super::*;
use http_body_util::BodyExt;
use serde_json::json;

/// Sends a request with a body and gives what the target was sent: headers and body.
async fn sent(stage: &str, headers: &[(&str, &str)], body: &str) -> Result<(HeaderMap, Value), (u16, Value)> {
    let echo = target(|request| async move {
        let headers = request.headers().clone();
        let body = request.into_body().into_string().await?;
        let mut response = Response::builder().body(body);
        *response.headers_mut() = headers;
        Ok(response)
    });
    let next = around(stage, echo);
    let mut request = request(Method::POST, headers);
    request.set_body(body.to_owned());
    let response = send(&next, request).await;
    let status = response.status();
    let headers = response.headers().clone();
    let text = response.into_body().into_string().await.unwrap();
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    if status.is_success() { Ok((headers, body)) } else { Err((status.as_u16(), body)) }
}

const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");

async fn mapped(mapping: &str, body: Value) -> Value {
    let stage = format!("transform: {{ request: {mapping} }}");
    let (headers, mapped) = sent(&stage, &[JSON, ("x-from", "head")], &body.to_string()).await.unwrap();
    assert_eq!(headers["content-length"], mapped.to_string().len().to_string().as_str());
    mapped
}

#[tokio::test]
async fn each_key_does_what_it_says() {
    for (mapping, body, wanted) in [
        ("{ unwrap: data.inner }", json!({ "data": { "inner": [1] } }), json!([1])),
        ("{ unwrap: data }", json!({ "other": 1 }), json!({ "other": 1 })),
        ("{ wrap: a.b }", json!([1]), json!({ "a": { "b": [1] } })),
        ("{ rename: { a: b, b: a } }", json!({ "a": 1, "b": 2 }), json!({ "b": 1, "a": 2 })),
        ("{ rename: { a: x.y, z: w } }", json!({ "a": 1 }), json!({ "x": { "y": 1 } })),
        ("{ rename: { a: a.b } }", json!({ "a": 1 }), json!({ "a": { "b": 1 } })),
        (
            "{ rename: { \"rows[].a\": \"rows[].b.c\" } }",
            json!({ "rows": [{ "a": 1 }, {}, { "a": 2, "d": 3 }] }),
            json!({ "rows": [{ "b": { "c": 1 } }, {}, { "d": 3, "b": { "c": 2 } }] }),
        ),
        (
            "{ drop: [secret, \"rows[].k\", none.deep] }",
            json!({ "secret": 1, "rows": [{ "k": 1, "l": 2 }], "none": 3 }),
            json!({ "rows": [{ "l": 2 }], "none": 3 }),
        ),
        (
            "{ default: { a: 1, b.c: [x], \"[].n\": 0 } }",
            json!({ "a": null, "b": {} }),
            json!({ "a": null, "b": { "c": ["x"] } }),
        ),
        ("{ default: { \"[].n\": 0 } }", json!([{}, { "n": 1 }, 2]), json!([{ "n": 0 }, { "n": 1 }, 2])),
        (
            "{ set: { total: 'body.a + body.b', a: 'body.b', path: request.path } }",
            json!({ "a": 1, "b": 2 }),
            json!({ "a": 2, "b": 2, "total": 3, "path": "/t" }),
        ),
        (
            "{ from_headers: { a.b: X-From, c: X-None } }",
            json!({ "c": 1 }),
            json!({ "c": 1, "a": { "b": "head" } }),
        ),
        (
            "{ unwrap: d, rename: { a: b }, drop: [c], default: { e: 1 }, set: { f: 'body.b + body.e' }, wrap: all }",
            json!({ "d": { "a": 1, "c": 2 }, "lost": true }),
            json!({ "all": { "b": 1, "e": 1, "f": 2 } }),
        ),
        (
            "{ rename: { 'user\\.name': user.name } }",
            json!({ "user.name": "x" }),
            json!({ "user": { "name": "x" } }),
        ),
    ] {
        assert_eq!(mapped(mapping, body).await, wanted, "{mapping}");
    }
}

#[tokio::test]
async fn headers_are_made_of_the_body_alone() {
    let stage =
        "transform: { request: { to_headers: { X-Account: account.id, X-Level: level, X-Bad: bad } } }";
    let forged = [JSON, ("x-account", "forged"), ("x-level", "forged"), ("x-bad", "forged")];
    let (headers, _) =
        sent(stage, &forged, r#"{"account":{"id":"a1"},"level":3,"bad":"a\r\nb: c"}"#).await.unwrap();
    assert_eq!((&headers["x-account"], &headers["x-level"]), (&"a1".parse().unwrap(), &"3".parse().unwrap()));
    assert!(!headers.contains_key("x-bad"), "what no header can hold is left out");
    let (headers, _) = sent(stage, &forged, "{}").await.unwrap();
    assert!(!headers.contains_key("x-account") && !headers.contains_key("x-level"));
    let (headers, _) = sent(stage, &forged, "").await.unwrap();
    assert!(!headers.contains_key("x-account"), "without a body too");
}

#[tokio::test]
async fn requests_that_cannot_be_mapped_are_refused() {
    let stage = "transform: { request: { set: { n: 'body.m + 1', who: claims.user_id } }, max_size: 64B, max_depth: 3 }";
    let refused = async |headers: &[(&str, &str)], body: &str| {
        let (status, body) = sent(stage, headers, body).await.unwrap_err();
        (status, body["code"].as_str().unwrap().to_owned(), body["errors"].clone())
    };
    assert_eq!(refused(&[("content-type", "text/plain")], "{}").await.0, 415);
    assert_eq!(refused(&[], "{}").await.0, 415);
    assert_eq!(refused(&[JSON, ("content-encoding", "gzip")], "{}").await.0, 415);
    assert_eq!(refused(&[JSON], &format!("\"{}\"", "x".repeat(63))).await.0, 413);
    let (status, code, errors) = refused(&[JSON], "[[[[1]]]]").await;
    assert_eq!((status, code.as_str(), &errors[0]["code"]), (400, "validation_failed", &json!("depth")));
    assert_eq!(refused(&[JSON], "{not").await.2[0]["code"], "json");
    let (status, _, errors) = refused(&[JSON], r#"{"m":"x","who":"root"}"#).await;
    assert_eq!(status, 400);
    assert_eq!(errors[0]["pointer"], "/n");
    assert_eq!(
        errors[1]["detail"], "it cannot be computed from this request: there is no `user_id`",
        "who calls is not what the body says"
    );
}

#[tokio::test]
async fn forms_become_json_and_back() {
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let stage = "transform: { request: { from: form, rename: { 'user\\.name': user.name } } }";
    let (headers, body) = sent(stage, &form, "a=1&a=2&user.name=J+B").await.unwrap();
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(body, json!({ "a": ["1", "2"], "user": { "name": "J B" } }));
    assert_eq!(sent(stage, &[JSON], "{}").await.unwrap_err().0, 415);
    let stage = "transform: { request: { to: form, drop: [x] } }";
    let (headers, body) = sent(stage, &[JSON], r#"{"a":[1,true],"b":"ü &","x":{}}"#).await.unwrap();
    assert_eq!(headers["content-type"], "application/x-www-form-urlencoded");
    assert_eq!(body, json!("a=1&a=true&b=%C3%BC+%26"));
    let (status, body) = sent(stage, &[JSON], r#"{"a":{"b":1}}"#).await.unwrap_err();
    assert_eq!((status, &body["errors"][0]["pointer"]), (400, &json!("/a")));
}

/// What a caller gets of an answer.
async fn answered(
    stage: &str,
    method: Method,
    answer: impl Fn() -> Response + Send + Sync + 'static,
) -> Response {
    let next = around(
        stage,
        target(move |request| {
            for name in ["accept-encoding", "range"] {
                assert!(!request.headers().contains_key(name), "{name}");
            }
            let answer = answer();
            async move { Ok(answer) }
        }),
    );
    send(&next, request(method, &[("accept-encoding", "gzip"), ("range", "bytes=0-1"), ("x-q", "asked")]))
        .await
}

const OUT: &str = "transform: { response: { drop: [secret], set: { status: response.status, q: \"request.headers['x-q']\", none: body.none.x } }, max_size: 256B }";

fn json_answer(status: u16, body: &'static str) -> Response {
    Response::builder()
        .status(StatusCode::from_u16(status).unwrap())
        .content_type("application/json")
        .header("etag", "\"a\"")
        .header("content-md5", "x")
        .header("content-length", body.len())
        .body(body)
}

#[tokio::test]
async fn responses_are_mapped() {
    let response = answered(OUT, Method::GET, || json_answer(201, r#"{"secret":1,"kept":2,"none":3}"#)).await;
    assert_eq!(response.header("etag"), Some("W/\"a\""));
    assert_eq!(response.header("content-md5"), None);
    let length: usize = response.header("content-length").unwrap().parse().unwrap();
    let body = response.into_body().into_string().await.unwrap();
    assert_eq!(body.len(), length);
    // `none` had no `x`: the field is left out, and does not pass as it was.
    assert_eq!(body, r#"{"kept":2,"none":3,"status":201,"q":"asked"}"#.replace(r#""none":3,"#, ""));
}

#[tokio::test]
async fn what_is_nothing_to_map_passes_unchanged() {
    let secret = r#"{"secret":1}"#;
    let failed = answered(OUT, Method::GET, move || json_answer(404, secret)).await;
    assert_eq!(failed.into_body().into_string().await.unwrap(), secret, "only what succeeded is mapped");
    let text = || Response::builder().content_type("text/html").body("<secret>");
    let text = answered(OUT, Method::GET, text).await;
    assert_eq!(text.into_body().into_string().await.unwrap(), "<secret>");
    let head = answered(OUT, Method::HEAD, move || json_answer(200, secret)).await;
    assert_eq!((head.status().as_u16(), head.header("content-length")), (200, None));
    let none =
        || Response::builder().status(StatusCode::NO_CONTENT).content_type("application/json").finish();
    assert_eq!(answered(OUT, Method::GET, none).await.status(), 204);
    let ours = || GatewayError::new(Kind::Overloaded, "busy").respond("r", crate::error::Lang::En);
    assert_eq!(code(answered(OUT, Method::GET, ours).await).await, "overloaded");
}

#[tokio::test]
async fn what_cannot_be_mapped_does_not_pass() {
    let long = || {
        let text = format!("\"{}\"", "x".repeat(300));
        Response::builder().content_type("application/json").body(text)
    };
    assert_eq!(answered(OUT, Method::GET, long).await.status(), 502);
    assert_eq!(answered(OUT, Method::GET, || json_answer(200, "{no")).await.status(), 502);
    assert_eq!(answered(OUT, Method::GET, || json_answer(206, "{}")).await.status(), 502);
    let coded = || {
        let mut response = json_answer(200, "{}");
        response.headers_mut().insert("content-encoding", HeaderValue::from_static("gzip"));
        response
    };
    let response = answered(OUT, Method::GET, coded).await;
    assert_eq!(response.status(), 502);
    assert_eq!(code(response).await, "upstream_bad_response");
}

/// A stage's events, piece by piece.
async fn events(stage: &str, pieces: &[&str]) -> Vec<String> {
    let (feed, body) = fed();
    let body = std::sync::Mutex::new(Some(body));
    let next = around(
        stage,
        super::super::testing::answering(move || {
            let body = body.lock().unwrap().take().unwrap();
            Response::builder().content_type("text/event-stream").header("content-length", "9").body(body)
        }),
    );
    let response = send(&next, request(Method::GET, &[("x-q", "asked")])).await;
    assert_eq!(response.header("content-length"), None);
    let mut body: BoxBody<Bytes, io::Error> = response.into_body().into();
    let mut seen = Vec::new();
    for piece in pieces {
        feed.send(Ok(Bytes::copy_from_slice(piece.as_bytes()))).unwrap();
        // What is held back is not ready, however often it is asked for.
        let polled = futures_util::poll!(body.frame());
        seen.push(match polled {
            std::task::Poll::Ready(Some(Ok(frame))) => {
                String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
            }
            std::task::Poll::Ready(Some(Err(error))) => format!("error: {error}"),
            _ => String::new(),
        });
    }
    seen
}

const EVENTS: &str = "transform: { response: { drop: [secret], rename: { text: content }, set: { q: \"request.headers['x-q']\" } }, max_size: 100B, max_depth: 2 }";

#[tokio::test]
async fn events_are_mapped_one_by_one_as_they_come() {
    for (pieces, wanted) in [
        (
            vec!["id: 7\nevent: delta\ndata: {\"text\":\"a\",\"secret\":1}\n\n", ": heartbeat\n\n"],
            vec!["id: 7\nevent: delta\ndata: {\"content\":\"a\",\"q\":\"asked\"}\n\n", ": heartbeat\n\n"],
        ),
        (
            vec!["data: {\"te", "xt\":1}\n", "\ndata: [DONE]\n\ndata: 5\n\n"],
            vec!["", "", "data: {\"content\":1,\"q\":\"asked\"}\n\ndata: [DONE]\n\ndata: 5\n\n"],
        ),
        (
            vec![": c\r\ndata: {\"text\":\r\ndata:  1}\r\nretry: 5\r\n\r\n"],
            vec![": c\r\ndata: {\"content\":1,\"q\":\"asked\"}\r\nretry: 5\r\n\r\n"],
        ),
        (vec!["data: {\"text\":1}\r\r", "\n"], vec!["data: {\"content\":1,\"q\":\"asked\"}\r\r", "\n"]),
        (vec!["data: {no}\n\n"], vec!["data: {no}\n\n"]),
        (vec!["event: ping\n\n"], vec!["event: ping\n\n"]),
        (vec!["data: {\"a\":[[1]]}\n\n", "data: 1\n\n"], vec!["", "data: 1\n\n"]),
        (vec![sse_notice()], vec![sse_notice()]),
    ] {
        assert_eq!(events(EVENTS, &pieces).await, wanted, "{pieces:?}");
    }
    let long = format!("data: {{\"text\":\"{}", "x".repeat(100));
    assert_eq!(events(EVENTS, &[&long]).await, ["error: an event is too large to be mapped"]);
}

fn sse_notice() -> &'static str {
    crate::sse::TOO_LONG
}

#[test]
fn mistakes_in_mappings_show() {
    let found = |mapping: &str| {
        let faults = check(&format!("transform: {{ {mapping} }}"), "").faults;
        assert_eq!(faults.len(), 1, "{mapping}: {faults:#?}");
        faults.into_iter().next().unwrap()
    };
    for (mapping, wanted) in [
        ("request: {}", "VG012 stage `transform` changes nothing"),
        ("request: { drop: [\"a..b\"] }", "VG094 this is not the path of a field: a name in it is empty"),
        ("request: { drop: [\"a[0]\"] }", "VG094 this is not the path of a field: write `[]`"),
        ("request: { drop: [\"a[]\"] }", "VG094 this names every item of a list"),
        ("request: { unwrap: \"a[]\" }", "VG094 `unwrap` takes one field"),
        ("request: { set: { \"a[].b\": \"1\" } }", "VG094 `set` takes one field"),
        ("request: { rename: { a: x, b: x } }", "VG094 `/x` would be two fields"),
        ("request: { rename: { a: x, b: x.y } }", "VG094 `/x/y` would be two fields"),
        ("request: { rename: { a: x, a.b: y } }", "VG094 `/a/b` is renamed twice"),
        ("request: { rename: { a: a } }", "VG094 this field keeps its name"),
        ("request: { rename: { \"a[].b\": c } }", "VG094 a field of a list's items stays in its item"),
        ("request: { set: { a: \"1\" }, from_headers: { a: X-A } }", "VG094 `/a` is written twice"),
        ("request: { set: { a: bdy.x } }", "VG091 variable `bdy` is not known here [did you mean `body`?]"),
        ("request: { set: { a: response.status } }", "VG091 variable `response` is not known here"),
        ("request: { to_headers: { X-User-ID: a } }", "VG011 this header says who the caller is"),
        ("request: { to_headers: { X-Forwarded-For: a } }", "VG011 this header does not come from a body"),
        ("response: { to_headers: { Transfer-Encoding: a } }", "VG011 this header belongs to one connection"),
        ("response: { to_headers: { Content-Type: a } }", "VG011 this header does not come from a body"),
        ("request: { from_headers: { a: X-User-Role } }", "VG011 this header is the caller's own word"),
        ("request: { to: xml, wrap: a }", "VG011 `xml` is not one of the choices here"),
        ("request: { wrap: a }, max_depth: 500", "VG011 a depth is 1 to 120"),
    ] {
        let fault = found(mapping);
        assert!(fault.contains(wanted), "{mapping}: {fault}");
    }
}
