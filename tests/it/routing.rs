//! Which route takes a request, and what a request gets that no route takes.

use crate::harness::{Answer, Gateway, Scripted};

/// A gateway whose routes answer with their own names. `path` may carry a method.
async fn named(routes: &[&str]) -> Gateway {
    let lines: String = routes
        .iter()
        .map(|route| {
            format!("  - {{ route: \"{route}\", public: true, respond: {{ text: \"{route}\" }} }}\n")
        })
        .collect();
    Gateway::with(&format!("routes:\n{lines}")).start().await
}

async fn taken(gateway: &Gateway, path: &str) -> String {
    let answer = gateway.client.get(path).await;
    if answer.status == 200 { answer.text().to_owned() } else { answer.status.as_u16().to_string() }
}

async fn send(gateway: &Gateway, method: &str, path: &str) -> Answer {
    gateway.client.send(method, path, &[], "").await
}

#[tokio::test]
async fn static_beats_param_beats_wildcard() {
    let gateway = named(&["GET /s/*rest", "GET /s/:id", "GET /s/new", "GET /s/:id/edit"]).await;
    for (path, route) in [
        ("/s/new", "GET /s/new"),
        ("/s/newer", "GET /s/:id"),
        ("/s/7/edit", "GET /s/:id/edit"),
        ("/s/7/other", "GET /s/*rest"),
        ("/s/new/edit", "GET /s/:id/edit"),
        ("/s/new/x", "GET /s/*rest"),
        ("/s/", "GET /s/*rest"),
        ("/s", "404"),
    ] {
        assert_eq!(taken(&gateway, path).await, route, "{path}");
    }
}

#[tokio::test]
async fn a_method_that_the_special_route_lacks_goes_on_to_the_general_one() {
    let gateway = named(&["GET /s/new", "POST /s/:id", "ANY /s/*rest"]).await;
    assert_eq!(send(&gateway, "POST", "/s/new").await.text(), "POST /s/:id");
    assert_eq!(send(&gateway, "DELETE", "/s/new").await.text(), "ANY /s/*rest");
}

#[tokio::test]
async fn a_single_method_beats_any() {
    let gateway = named(&["ANY /a", "PUT /a"]).await;
    for (method, route) in [("PUT", "PUT /a"), ("GET", "ANY /a"), ("OPTIONS", "ANY /a"), ("PURGE", "ANY /a")]
    {
        assert_eq!(send(&gateway, method, "/a").await.text(), route, "{method}");
    }
}

#[tokio::test]
async fn head_follows_get_without_a_body() {
    let gateway = named(&["GET /a", "POST /b"]).await;
    let head = send(&gateway, "HEAD", "/a").await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), Some("6"), "as GET would have: {head:?}");
    assert_eq!(send(&gateway, "HEAD", "/b").await.status, 405);
}

#[tokio::test]
async fn options_is_answered_with_what_the_path_serves() {
    let gateway = named(&["GET /a", "POST /a", "GET /b"]).await;
    let answer = send(&gateway, "OPTIONS", "/a").await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (204, 0));
    assert_eq!(answer.header("allow"), Some("GET, HEAD, POST, OPTIONS"));
    assert_eq!(send(&gateway, "OPTIONS", "/nowhere").await.status, 404);
}

#[tokio::test]
async fn an_unknown_method_is_refused_with_what_the_path_serves() {
    let gateway = named(&["GET /a", "PUT /a"]).await;
    let answer = send(&gateway, "DELETE", "/a").await;
    assert_eq!(answer.status, 405);
    assert_eq!(answer.code(), "method_not_allowed");
    assert_eq!(answer.header("allow"), Some("GET, HEAD, PUT, OPTIONS"));
}

#[tokio::test]
async fn an_unknown_path_is_answered_in_the_callers_language() {
    let gateway = named(&["GET /a"]).await;
    for (language, text) in [
        ("en", "There is nothing at this address"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "资源不存在"),
        ("fr", "There is nothing at this address"),
    ] {
        let answer = gateway.client.send("GET", "/nowhere", &[("accept-language", language)], "").await;
        assert_eq!(answer.status, 404);
        assert_eq!(answer.code(), "not_found");
        assert_eq!(answer.json()["error"], text, "{language}");
    }
}

const HOSTS: &str = r#"
routes:
  - { route: GET /a, public: true, respond: { text: any } }
  - { route: GET /a, public: true, host: api.example.com, respond: { text: exact } }
  - { route: GET /a, public: true, host: "*.example.com", respond: { text: suffix } }
  - { route: GET /a, public: true, host: "*.eu.example.com", respond: { text: longer } }
  - { route: GET /any-host, public: true, respond: { text: any } }
"#;

#[tokio::test]
async fn the_most_special_host_takes_a_request() {
    let gateway = Gateway::with(HOSTS).start().await;
    for (host, taker) in [
        ("api.example.com", "exact"),
        ("www.example.com", "suffix"),
        ("www.eu.example.com", "longer"),
        ("example.com", "any"),
        ("badexample.com", "any"),
        ("other.org", "any"),
    ] {
        assert_eq!(gateway.client.for_host(host).get("/a").await.text(), taker, "{host}");
    }
}

#[tokio::test]
async fn a_host_is_compared_without_case_and_port() {
    let gateway = Gateway::with(HOSTS).start().await;
    for host in ["API.Example.COM", "api.example.com:8443", "Api.Example.com:80"] {
        assert_eq!(gateway.client.for_host(host).get("/a").await.text(), "exact", "{host}");
    }
}

#[tokio::test]
async fn a_host_without_the_path_goes_on_to_routes_of_any_host() {
    let gateway = Gateway::with(HOSTS).start().await;
    assert_eq!(gateway.client.for_host("api.example.com").get("/any-host").await.text(), "any");
}

#[tokio::test]
async fn a_host_is_known_over_http2_too() {
    let gateway = Gateway::with(HOSTS).start().await;
    let answer = gateway.client.for_host("api.example.com").send_h2("GET", "/a", &[], "").await;
    assert_eq!(answer.text(), "exact");
}

#[tokio::test]
async fn header_and_query_predicates_choose_the_narrowest_route() {
    let gateway = Gateway::with(
        r#"
routes:
  - { route: GET /a, public: true, respond: { text: plain } }
  - { route: GET /a, public: true, match: { headers: { X-Beta: "1" } }, respond: { text: beta } }
  - { route: GET /a, public: true, match: { query: { v: "*" } }, respond: { text: some v } }
  - { route: GET /a, public: true, match: { query: { v: "2" } }, respond: { text: v2 } }
  - { route: GET /a, public: true, match: { headers: { X-Beta: "1" }, query: { v: "2" } }, respond: { text: both } }
"#,
    )
    .start()
    .await;
    for (path, beta, taker) in [
        ("/a", None, "plain"),
        ("/a", Some("0"), "plain"),
        ("/a", Some("1"), "beta"),
        ("/a?v=1", None, "some v"),
        ("/a?v=", None, "some v"),
        ("/a?w=2", None, "plain"),
        ("/a?v=2", None, "v2"),
        ("/a?v=%32", None, "v2"),
        ("/a?v=2", Some("1"), "both"),
    ] {
        let headers: Vec<_> = beta.map(|value| ("x-beta", value)).into_iter().collect();
        let answer = gateway.client.send("GET", path, &headers, "").await;
        assert_eq!(answer.text(), taker, "{path} {beta:?}");
    }
}

#[tokio::test]
async fn a_path_whose_predicates_do_not_hold_is_not_found() {
    let gateway = Gateway::with(
        "routes: [{ route: GET /a, public: true, match: { headers: { X-Beta: \"1\" } }, respond: {} }]",
    )
    .start()
    .await;
    assert_eq!(gateway.client.get("/a").await.status, 404);
}

const VERSIONS: &str = r#"
versions:
  - name: v1
    prefix: /api/v1
    deprecated: { since: 2026-06-01, sunset: 2027-06-01, successor: v2 }
    routes: [{ route: GET /a, public: true, respond: { text: one } }]
  - { name: v2, prefix: /api/v2, routes: [{ route: GET /a, public: true, respond: { text: two } }] }
"#;

#[tokio::test]
async fn routes_of_a_version_stand_under_its_prefix() {
    let gateway = Gateway::with(VERSIONS).start().await;
    assert_eq!(taken(&gateway, "/api/v1/a").await, "one");
    assert_eq!(taken(&gateway, "/api/v2/a").await, "two");
    assert_eq!(taken(&gateway, "/a").await, "404");
}

#[tokio::test]
async fn a_deprecated_version_says_since_when_until_when_and_what_follows() {
    let gateway = Gateway::with(VERSIONS).start().await;
    let old = gateway.client.get("/api/v1/a").await;
    assert_eq!(old.header("deprecation"), Some("@1780272000"));
    assert_eq!(old.header("sunset"), Some("Tue, 01 Jun 2027 00:00:00 GMT"));
    assert_eq!(old.header("link"), Some("</api/v2>; rel=\"successor-version\""));
    let new = gateway.client.get("/api/v2/a").await;
    assert!(["deprecation", "sunset", "link"].iter().all(|name| new.header(name).is_none()), "{new:?}");
}

#[tokio::test]
async fn respond_sends_json_text_headers_and_status() {
    let gateway = Gateway::with(
        r#"
routes:
  - { route: GET /json, public: true, respond: { status: 418, json: { b: 1, a: [true, null, "x"] } } }
  - { route: GET /text, public: true, respond: { text: "grüß", headers: { X-A: "1", Content-Type: text/markdown } } }
  - { route: GET /empty, public: true, respond: { status: 204 } }
"#,
    )
    .start()
    .await;
    let json = gateway.client.get("/json").await;
    assert_eq!((json.status.as_u16(), json.header("content-type")), (418, Some("application/json")));
    assert_eq!(json.text(), r#"{"b":1,"a":[true,null,"x"]}"#, "in the manifest's order");
    let text = gateway.client.get("/text").await;
    assert_eq!((text.text(), text.header("x-a")), ("grüß", Some("1")));
    assert_eq!(text.header("content-type"), Some("text/markdown"));
    let empty = gateway.client.get("/empty").await;
    assert_eq!((empty.status.as_u16(), empty.body.len()), (204, 0));
}

#[tokio::test]
async fn redirect_puts_parameters_into_the_path_and_keeps_the_query() {
    let gateway = Gateway::with(
        r#"
routes:
  - { route: "GET /old/:id", public: true, redirect: "/new/{id}" }
  - { route: "GET /files/*path", public: true, redirect: { to: "https://files.example.com/{path}", status: 302 } }
"#,
    )
    .start()
    .await;
    let old = gateway.client.get("/old/7?q=1").await;
    assert_eq!((old.status.as_u16(), old.header("location")), (308, Some("/new/7?q=1")));
    let files = gateway.client.get("/files/a/b.txt").await;
    assert_eq!(
        (files.status.as_u16(), files.header("location")),
        (302, Some("https://files.example.com/a/b.txt"))
    );
}

#[tokio::test]
async fn an_encoded_path_means_its_normal_form() {
    let gateway = named(&["GET /a/b", "GET /文档", "GET /tilde/~x"]).await;
    for (path, route) in [
        ("/%61/b", "GET /a/b"),
        ("/a/%62", "GET /a/b"),
        ("/%E6%96%87%E6%A1%A3", "GET /文档"),
        ("/%e6%96%87%e6%a1%a3", "GET /文档"),
        ("/tilde/%7Ex", "GET /tilde/~x"),
    ] {
        assert_eq!(taken(&gateway, path).await, route, "{path}");
    }
}

/// A chain of `headers` stages that add their names to `X-Order` on the way in, in front of an upstream.
fn adds(name: &str) -> String {
    format!("{{ headers: {{ request: {{ add: {{ X-Order: {name} }} }} }} }}")
}

fn order(upstream: &Scripted) -> Vec<String> {
    let heads = upstream.heads();
    let last = heads.last().unwrap();
    last.headers.get_all("x-order").iter().map(|value| value.to_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn nested_chains_expand_where_they_stand() {
    let upstream = Scripted::saying("ok").await;
    let gateway = Gateway::with(&format!(
        "upstreams: {{ up: {{ targets: [{{ url: \"{url}\" }}] }} }}\n\
         chains:\n  inner: [{b}, {c}]\n  outer: [{a}, {{ chain: inner }}, {d}]\n\
         routes: [{{ route: GET /a, chain: outer, public: true, upstream: up }}]",
        url = upstream.url(),
        a = adds("a"),
        b = adds("b"),
        c = adds("c"),
        d = adds("d"),
    ))
    .start()
    .await;
    assert_eq!(gateway.client.get("/a").await.text(), "ok");
    assert_eq!(order(&upstream), ["a", "b", "c", "d"]);
}

const WITH: &str = r#"
chains:
  plain: [request_id, security_headers]
  c: [{ headers: { response: { set: { X-Who: chain }, add: { X-Chain: yes } } } }, request_id]
"#;

#[tokio::test]
async fn with_replaces_the_body_of_a_stage_that_the_chain_has() {
    let routes = r#"
routes:
  - { route: GET /chain, chain: c, public: true, respond: {} }
  - { route: GET /with, chain: c, public: true, respond: {}, with: { headers: { response: { set: { X-Who: route } } } } }
"#;
    let gateway = Gateway::with(&format!("{WITH}{routes}")).start().await;
    let chain = gateway.client.get("/chain").await;
    assert_eq!((chain.header("x-who"), chain.header("x-chain")), (Some("chain"), Some("yes")));
    let with = gateway.client.get("/with").await;
    assert_eq!((with.header("x-who"), with.header("x-chain")), (Some("route"), None), "replaced, not merged");
}

#[tokio::test]
async fn with_replaces_in_place_and_adds_innermost() {
    // On the way out the outermost stage has the last word: request_id sets X-Request-ID over what stands further in.
    let set = "with: { headers: { response: { set: { X-Request-ID: mine } } } }";
    let gateway = Gateway::with(&format!(
        "{WITH}routes:\n  \
         - {{ route: GET /outside, chain: c, public: true, respond: {{}}, {set} }}\n  \
         - {{ route: GET /innermost, chain: plain, public: true, respond: {{}}, {set} }}\n",
    ))
    .start()
    .await;
    let outside = gateway.client.get("/outside").await;
    assert_eq!(
        outside.header("x-request-id"),
        Some("mine"),
        "replaced where the chain has it: outside request_id"
    );
    let innermost = gateway.client.get("/innermost").await;
    assert_ne!(innermost.header("x-request-id"), Some("mine"), "added further in than request_id");
    assert!(innermost.header("x-request-id").is_some());
}

#[tokio::test]
async fn a_catch_all_never_takes_over_a_native_path() {
    let upstream = Scripted::saying("theirs").await;
    let gateway = Gateway::with(&format!(
        "upstreams: {{ up: {{ targets: [{{ url: \"{}\" }}] }} }}\n\
         routes:\n  \
         - {{ route: GET /health, public: true, handler: gateway.health }}\n  \
         - {{ route: \"ANY /*rest\", public: true, upstream: up }}\n",
        upstream.url()
    ))
    .start()
    .await;
    assert_eq!(gateway.client.get("/other").await.text(), "theirs");
    assert!(gateway.client.get("/health").await.json()["checks"].is_object());
    let post = send(&gateway, "POST", "/health").await;
    assert_eq!((post.status.as_u16(), post.header("allow")), (405, Some("GET, HEAD, OPTIONS")));
    assert_eq!(gateway.client.get("/%68ealth").await.json()["status"], "healthy", "in any spelling");
}

#[tokio::test]
async fn routes_whose_chains_are_alike_stay_routes_of_their_own() {
    let upstream = Scripted::saying("hello").await;
    let gateway = Gateway::with(&format!(
        r#"upstreams: {{ up: {{ targets: [{{ url: "{url}" }}] }}, same: {{ targets: [{{ url: "{url}" }}] }} }}
chains: {{ c: [request_id, security_headers] }}
versions:
  - name: v1
    prefix: /v1
    chain: c
    deprecated: {{ since: 2026-06-01 }}
    routes:
      - {{ route: "POST /a/:id", public: true, upstream: up }}
      - {{ route: "POST /b/:name", public: true, upstream: up }}
  - name: v2
    prefix: /v2
    chain: c
    routes:
      - {{ route: "POST /a/:id", public: true, upstream: up }}
      - {{ route: "POST /b/:id", public: true, upstream: up, path: "/other/{{id}}" }}
      - {{ route: "POST /c/:id", public: true, upstream: up, with: {{ body_limit: 4B }} }}
      - {{ route: "POST /d/:id", public: true, upstream: same }}
      - {{ route: "POST /e/:id", public: true, upstream: up, maintenance: {{}} }}
"#,
        url = upstream.url()
    ))
    .start()
    .await;
    for (path, status, deprecated, there) in [
        ("/v1/a/7", 200, true, Some("/v1/a/7")),
        ("/v1/b/8", 200, true, Some("/v1/b/8")),
        ("/v2/a/7", 200, false, Some("/v2/a/7")),
        ("/v2/b/7", 200, false, Some("/other/7")),
        ("/v2/c/7", 413, false, None),
        ("/v2/d/7", 200, false, Some("/v2/d/7")),
        ("/v2/e/7", 503, false, None),
    ] {
        let before = upstream.heads().len();
        let answer = gateway.client.send("POST", path, &[], "12345678").await;
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert_eq!(answer.header("deprecation").is_some(), deprecated, "{path}: {answer:?}");
        assert!(answer.header("x-content-type-options").is_some(), "{path}: {answer:?}");
        let heads = upstream.heads();
        assert_eq!(heads.get(before).map(|head| head.uri.path()), there, "{path}");
    }
}
