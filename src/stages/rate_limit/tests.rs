use super::super::fold;
use super::super::testing::{answering, around, build, check, request, send, target};
use super::*;
use http::Method;

const POLICIES: &str = "rate_limits: { login: { limit: 5, per: 1m, by: [ip, body.username] } }\n";

fn limited(stage: &str) -> Next {
    around(stage, answering(|| Response::builder().header("x-ratelimit-limit", "theirs").finish()))
}

async fn statuses(next: &Next, count: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..count {
        statuses.push(send(next, request(Method::GET, &[])).await.status().as_u16());
    }
    statuses
}

#[tokio::test]
async fn answers_say_where_the_caller_stands() {
    let next = limited("rate_limit: { limit: 2, per: 1m }");
    let first = send(&next, request(Method::GET, &[])).await;
    let header = |response: &Response, name: &str| response.header(name).unwrap_or_default().to_owned();
    assert_eq!(header(&first, "x-ratelimit-limit"), "2", "the target's own are replaced");
    assert_eq!(header(&first, "x-ratelimit-remaining"), "1");
    assert_eq!(header(&first, "x-ratelimit-reset"), "60");
    assert_eq!(header(&first, "ratelimit-policy"), "\"2-per-1m\";q=2;w=60");
    assert_eq!(header(&first, "ratelimit"), "\"2-per-1m\";r=1;t=60");
    send(&next, request(Method::HEAD, &[])).await;
    let third = send(&next, request(Method::OPTIONS, &[])).await;
    assert_eq!(third.status(), 429, "every method counts");
    assert_eq!(header(&third, "x-ratelimit-remaining"), "0");
    let retry: u64 = header(&third, "retry-after").parse().unwrap();
    assert!((61..=90).contains(&retry), "{retry}");
    let body: serde_json::Value =
        serde_json::from_str(&third.into_body().into_string().await.unwrap()).unwrap();
    assert_eq!(body["code"], "rate_limited");
    assert_eq!(body["error"], "Too many requests");
    assert_eq!(body["retry_after"], retry);
}

#[tokio::test]
async fn several_limits_show_the_tightest_and_each_in_the_fields_that_are_lists() {
    let stages = ["rate_limit: { limit: 5, per: 1m }", "rate_limit: { limit: 2, per: 1h }"];
    for stages in [stages, [stages[1], stages[0]]] {
        // Each built for itself, and so counting for itself, but for the state they share.
        let layers = stages.iter().map(|stage| build(&check(stage, "").sound(), "GET", false)).collect();
        let next = fold(layers, answering(Response::default));
        let response = send(&next, request(Method::GET, &[])).await;
        assert_eq!(response.header("x-ratelimit-limit"), Some("2"));
        assert_eq!(response.header("x-ratelimit-remaining"), Some("1"));
        assert_eq!(response.headers().get_all("ratelimit").iter().count(), 2);
        assert_eq!(response.headers().get_all("ratelimit-policy").iter().count(), 2);
        assert_eq!(statuses(&next, 2).await, [200, 429]);
    }
}

#[tokio::test]
async fn callers_are_told_apart() {
    let next = limited("rate_limit: { limit: 1, per: 1m, by: [header.x-app] }");
    let as_app = async |app: &str| send(&next, request(Method::GET, &[("x-app", app)])).await.status();
    assert_eq!(as_app("a").await, 200);
    assert_eq!(as_app("a").await, 429);
    assert_eq!(as_app("b").await, 200);
}

#[tokio::test]
async fn a_body_is_looked_into_and_goes_on_whole() {
    let next = around(
        "rate_limit: { limit: 1, per: 1m, by: [body.username] }",
        target(|request| async move { Ok(Response::builder().body(request.into_body().into_vec().await?)) }),
    );
    let login = async |body: String| {
        let mut request = request(Method::POST, &[]);
        request.set_body(body);
        let response = send(&next, request).await;
        (response.status().as_u16(), response.into_body().into_string().await.unwrap())
    };
    let alice = r#"{"username": "alice", "password": "x"}"#;
    assert_eq!(login(alice.to_owned()).await, (200, alice.to_owned()));
    assert_eq!(login(alice.to_uppercase().replace("USERNAME", "username")).await.0, 429);
    assert_eq!(login(r#"{"username": "bob"}"#.to_owned()).await.0, 200);
    let long = format!(r#"{{"username": "carol", "x": "{}"}}"#, "x".repeat(BODY));
    assert_eq!(login(long.clone()).await, (200, long.clone()), "by address");
    assert_eq!(login(long).await.0, 429);
}

#[test]
fn a_policy_is_named_or_written_on_the_spot() {
    let found = |stage: &str| check(stage, POLICIES).faults;
    assert_eq!(found("rate_limit: login"), Vec::<String>::new());
    assert_eq!(
        found("rate_limit: { limit: 5, per: 1d, by: [ip, header.X-App, query.q] }"),
        Vec::<String>::new()
    );
    for (faulty, count) in [
        ("rate_limit", 1),
        ("rate_limit: lgoin", 1),
        ("rate_limit: { policy: login, limit: 3 }", 1),
        ("rate_limit: { limit: 3 }", 1),
        ("rate_limit: { limit: 0, per: 1m, by: [phone, header., body.a..b] }", 4),
        ("rate_limit: { limit: 1, per: 25h }", 1),
    ] {
        let faults = found(faulty);
        assert_eq!(faults.len(), count, "{faulty}: {faults:#?}");
    }
}

#[test]
fn a_changed_policy_is_a_changed_stage() {
    let digest = |policy: &str| check("rate_limit: p", &format!("rate_limits: {{ p: {policy} }}\n")).digest;
    assert_eq!(digest("{ limit: 5, per: 1m }"), digest("{ limit: 5, per: 60s, by: [ip] }"));
    assert_ne!(digest("{ limit: 5, per: 1m }"), digest("{ limit: 6, per: 1m }"));
    assert_ne!(digest("{ limit: 5, per: 1m }"), digest("{ limit: 5, per: 1m, by: [user] }"));
}

#[test]
fn names_are_strings_of_structured_fields() {
    assert_eq!(quoted(r#"a "b" \ é"#), r#""a \"b\" \\ ?""#);
}
