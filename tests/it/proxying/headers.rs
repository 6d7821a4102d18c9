//! What an upstream is told of a request, and callers of an answer: paths, identities, hops, traces.

use super::{passing, through};
use crate::harness::{Gateway, Scripted, Sockets, Wire};
use http::HeaderMap;

/// What arrived of a request with these headers, by a caller that the gateway trusts or not.
async fn arriving(headers: &[(&str, &str)], trusted: bool) -> HeaderMap {
    let upstream = Scripted::saying("ok").await;
    let mut builder = through("request_id", &upstream.url(), "");
    if trusted {
        builder = builder.flag("--trusted-proxies", "127.0.0.1");
    }
    let gateway = builder.start().await;
    assert_eq!(gateway.client.send("GET", "/", headers, "").await.status, 200);
    upstream.heads().remove(0).headers
}

/// The request target that arrived for each of these, with routes that rewrite.
async fn targets(asked: &[&str]) -> Vec<String> {
    let upstream = Scripted::saying("ok").await;
    let manifest = format!(
        "upstreams: {{ back: {{ targets: [{{ url: \"{}\" }}] }} }}\nroutes:\n\
         \x20 - {{ route: GET /sessions/:id/items/:item, upstream: back, path: '/v1/{{item}}/of/{{id}}', public: true }}\n\
         \x20 - {{ route: GET /files/*path, upstream: back, path: '/store/{{path}}', public: true }}\n\
         \x20 - {{ route: GET /fixed, upstream: back, path: /elsewhere, public: true }}\n\
         \x20 - {{ route: GET /as/it/is, upstream: back, public: true }}\n",
        upstream.url()
    );
    let gateway = Gateway::with(&manifest).start().await;
    for path in asked {
        assert_eq!(gateway.client.get(path).await.status, 200, "{path}");
    }
    upstream.heads().iter().map(|head| head.uri.to_string()).collect()
}

#[tokio::test]
async fn a_path_is_rewritten_with_its_parameters() {
    assert_eq!(
        targets(&["/sessions/a%20b/items/7", "/files/x/y/z.txt", "/fixed", "/as/it/is"]).await,
        ["/v1/7/of/a%20b", "/store/x/y/z.txt", "/elsewhere", "/as/it/is"]
    );
}

#[tokio::test]
async fn a_query_is_kept_as_it_came() {
    assert_eq!(
        targets(&["/fixed?b=2&a=1&a=%2F", "/as/it/is?x=a+b", "/files/f?q"]).await,
        ["/elsewhere?b=2&a=1&a=%2F", "/as/it/is?x=a+b", "/store/f?q"]
    );
}

#[tokio::test]
async fn tokens_in_a_query_do_not_reach_the_upstream() {
    let asked =
        ["/as/it/is?token=hush", "/as/it/is?a=1&access_token=hush&b=2", "/fixed?token=hush&a=1&token=x"];
    let arrived = targets(&asked).await;
    assert_eq!(arrived, ["/as/it/is", "/as/it/is?a=1&b=2", "/elsewhere?a=1"]);
}

#[tokio::test]
async fn the_upstream_is_asked_by_its_own_host_and_told_the_callers() {
    let upstream = Scripted::saying("ok").await;
    let gateway = passing(&upstream.url()).await;
    gateway.client.for_host("api.example").get("/").await;
    let head = &upstream.heads()[0];
    assert_eq!(head.headers["host"], upstream.address.to_string());
    assert_eq!(head.headers["x-forwarded-host"], "api.example");
    assert_eq!(head.headers["x-forwarded-for"], "127.0.0.1");
    assert_eq!(head.headers["x-forwarded-proto"], "http");
}

const FORGED: [(&str, &str); 6] = [
    ("x-forwarded-for", "203.0.113.9"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "evil.example"),
    ("x-forwarded-port", "1"),
    ("forwarded", "for=203.0.113.9"),
    ("x-real-ip", "203.0.113.9"),
];

#[tokio::test]
async fn a_strangers_word_on_where_it_came_from_is_replaced() {
    let arrived = arriving(&FORGED, false).await;
    assert_eq!(arrived["x-forwarded-for"], "127.0.0.1");
    assert_eq!(arrived["x-forwarded-proto"], "http");
    assert_ne!(arrived["x-forwarded-host"], "evil.example");
    for gone in ["x-forwarded-port", "forwarded", "x-real-ip"] {
        assert!(!arrived.contains_key(gone), "{gone}");
    }
}

#[tokio::test]
async fn a_trusted_proxys_word_is_kept_and_continued() {
    let arrived = arriving(&FORGED, true).await;
    assert_eq!(arrived["x-forwarded-for"], "203.0.113.9, 127.0.0.1");
    assert_eq!(arrived["x-forwarded-proto"], "https");
    assert_eq!(arrived["x-forwarded-host"], "evil.example");
}

#[tokio::test]
async fn identities_of_the_callers_making_go_in_every_spelling() {
    let forged = [
        ("X-User-ID", "1"),
        ("x_user_id", "1"),
        ("X.User.Role", "admin"),
        ("x-USER", "1"),
        ("X-Tenant-ID", "1"),
        ("x_tenant.name", "1"),
        ("x-username", "kept"),
    ];
    // Trust in a proxy is about addresses, never about identities.
    for trusted in [false, true] {
        let arrived = arriving(&forged, trusted).await;
        let left: Vec<_> = arrived.keys().filter(|name| name.as_str() != "x-username").collect();
        assert!(!left.iter().any(|name| name.as_str().contains("user")), "{left:?}");
        assert!(!left.iter().any(|name| name.as_str().contains("tenant")), "{left:?}");
        assert_eq!(arrived["x-username"], "kept", "a name of its own, not an identity");
    }
}

#[tokio::test]
async fn what_belongs_to_the_callers_connection_stays_there() {
    let hop = [
        ("connection", "keep-alive, X-Secret, x-user-id"),
        ("x-secret", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-authorization", "Basic eA=="),
        ("proxy-connection", "keep-alive"),
        ("te", "gzip"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABkAAQ"),
        ("x-kept", "1"),
    ];
    let arrived = arriving(&hop, false).await;
    for (gone, _) in hop.iter().filter(|(name, _)| *name != "x-kept") {
        assert!(!arrived.contains_key(*gone), "{gone}: {arrived:?}");
    }
    assert_eq!(arrived["x-kept"], "1");
}

#[tokio::test]
async fn connection_cannot_name_away_what_the_gateway_says() {
    let arrived = arriving(
        &[("connection", "x-forwarded-for, x-request-id, host, traceparent, content-length")],
        false,
    )
    .await;
    for name in ["x-forwarded-for", "x-request-id", "host", "traceparent"] {
        assert!(arrived.contains_key(name), "{name}: {arrived:?}");
    }
}

#[tokio::test]
async fn what_belongs_to_the_upstreams_connection_stays_there() {
    let upstream = Sockets::saying(
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive, x-internal\r\nx-internal: 1\r\n\
         keep-alive: timeout=5\r\nproxy-authenticate: Basic\r\nupgrade: h2c\r\nx-kept: 1\r\n\
         set-cookie: a=1\r\nset-cookie: b=2\r\n\r\nok",
    )
    .await;
    let gateway = passing(&upstream.url()).await;
    let answer = gateway.client.get("/").await;
    for gone in ["connection", "x-internal", "keep-alive", "proxy-authenticate", "upgrade"] {
        assert_eq!(answer.header(gone), None, "{gone}");
    }
    assert_eq!(answer.header("x-kept"), Some("1"));
    assert_eq!(answer.headers.get_all("set-cookie").iter().count(), 2, "repeated headers stay repeated");
}

#[tokio::test]
async fn a_request_id_is_one_for_caller_and_upstream() {
    let upstream = Scripted::saying("ok").await;
    let gateway = through("request_id", &upstream.url(), "").start().await;
    let own = gateway.client.send("GET", "/", &[("x-request-id", "order-66")], "").await;
    assert_eq!(own.header("x-request-id"), Some("order-66"));
    let made = gateway.client.get("/").await;
    let heads = upstream.heads();
    assert_eq!(heads[0].headers["x-request-id"], "order-66");
    assert_eq!(made.header("x-request-id"), heads[1].headers["x-request-id"].to_str().ok());
    assert_eq!(made.header("x-request-id").unwrap().len(), 36, "a UUID");
}

#[tokio::test]
async fn a_request_id_that_could_break_a_log_is_replaced() {
    let arrived = arriving(&[("x-request-id", "a\" b"), ("X_Request_ID", "forged")], false).await;
    assert_eq!(arrived["x-request-id"].len(), 36);
    assert!(!arrived.contains_key("x_request_id"));
}

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test]
async fn a_callers_trace_is_continued_with_a_span_of_the_gateways() {
    let arrived = arriving(&[("traceparent", PARENT), ("tracestate", "vendor=1")], false).await;
    let sent = arrived["traceparent"].to_str().unwrap();
    assert!(sent.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && sent.ends_with("-01"), "{sent}");
    assert!(!sent.contains("b7ad6b7169203331"), "the parent is the gateway now: {sent}");
    assert_eq!(arrived["tracestate"], "vendor=1");
}

#[tokio::test]
async fn a_trace_that_cannot_be_continued_is_begun_anew_without_its_state() {
    for bad in ["garbage", "00-00000000000000000000000000000000-b7ad6b7169203331-01"] {
        let arrived = arriving(&[("traceparent", bad), ("tracestate", "vendor=1")], false).await;
        assert_eq!(arrived["traceparent"].len(), 55);
        assert_ne!(arrived["traceparent"], bad);
        assert!(!arrived.contains_key("tracestate"), "it belongs to the trace that was dropped");
    }
}

#[tokio::test]
async fn a_method_override_is_just_a_header() {
    let upstream = Scripted::saying("ok").await;
    let gateway = passing(&upstream.url()).await;
    gateway.client.send("GET", "/", &[("x-http-method-override", "DELETE")], "").await;
    assert_eq!(upstream.heads()[0].method, "GET");
}

#[tokio::test]
async fn an_absolute_target_arrives_as_a_path() {
    let upstream = Scripted::saying("ok").await;
    let gateway = passing(&upstream.url()).await;
    let mut caller = Wire::connect(gateway.client.address()).await;
    caller.send("GET http://api.example/a?b=1 HTTP/1.1\r\nhost: api.example\r\n\r\n").await;
    assert_eq!(caller.answer().await.status, 200);
    assert_eq!(upstream.heads()[0].uri.to_string(), "/a?b=1");
}

#[tokio::test]
async fn identities_do_not_come_in_behind_the_body_either() {
    let upstream = Sockets::start(|_, mut wire| async move {
        let head = wire.head().await.unwrap();
        let sent = wire.until("0\r\n").await + &wire.until("\r\n\r\n").await;
        let seen = format!("{head}{sent}");
        wire.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{seen}", seen.len())).await;
    })
    .await;
    let gateway = passing(&upstream.url()).await;
    let mut caller = Wire::connect(gateway.client.address()).await;
    let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\
                trailer: X-User-ID, x_tenant_id, X-Forwarded-For\r\ntrailer: x-sum, traceparent\r\n\r\n";
    caller.send(head).await;
    let forged =
        "x-user-id: forged\r\nx_tenant_id: forged\r\nx-forwarded-for: forged\r\ntraceparent: forged\r\n";
    caller.send(format!("2\r\nhi\r\n0\r\n{forged}x-sum: up\r\n\r\n")).await;
    let answer = caller.answer().await;
    let seen = answer.text();
    assert!(seen.contains("x-sum: up\r\n") && seen.contains("trailer: x-sum\r\n"), "{seen}");
    assert!(!seen.contains("forged") && !seen.contains("x-user-id"), "{seen}");
}
