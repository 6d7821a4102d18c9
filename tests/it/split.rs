//! `split:`, through the front door: who goes where, and who may choose.

use crate::access::token;
use crate::harness::{Gateway, Scripted, eventually};
use std::time::{Duration, SystemTime};
use voicegate::stores::User;

async fn two() -> (Scripted, Scripted) {
    (Scripted::saying("a").await, Scripted::saying("b").await)
}

fn manifest(a: &Scripted, b: &Scripted, weight: u32, more: &str) -> String {
    format!(
        "upstreams:\n  a: {{ targets: [{{ url: \"{}\" }}] }}\n  b: {{ targets: [{{ url: \"{}\" }}] }}\n\
         routes:\n  - {{ route: GET /ip, public: true, split: [{{ upstream: a, weight: {weight} }}, {{ upstream: b, weight: 10 }}] }}\n\
         \x20 - route: ANY /user\n    chain: [auth]\n    split:\n      to: [{{ upstream: a, weight: {weight} }}, {{ upstream: b, weight: 10 }}]\n      header: X-Canary\n      cookie: canary\n{more}",
        a.url(),
        b.url()
    )
}

fn of_user(gateway: &Gateway, id: &str) -> String {
    let user = User {
        id: id.into(),
        tenant_id: "".into(),
        username: id.into(),
        email: None,
        password_hash: None,
        role: "user".into(),
        openid: None,
        disabled: false,
        created_at: SystemTime::now(),
        last_login_at: None,
    };
    let issued = gateway.live().shared().tokens.issue(&user, Some("web"), SystemTime::now());
    format!("Bearer {}", issued.token)
}

async fn ask(gateway: &Gateway, bearer: &str, more: &[(&str, &str)]) -> String {
    let headers: Vec<_> = [("authorization", bearer)].into_iter().chain(more.iter().copied()).collect();
    gateway.client.send("GET", "/user", &headers, "").await.text().to_owned()
}

#[tokio::test]
async fn users_stay_where_they_are_and_the_shares_are_right() {
    let (a, b) = two().await;
    let gateway = Gateway::with(&manifest(&a, &b, 90, "")).start().await;
    let twin = Gateway::with(&manifest(&a, &b, 90, "")).start().await;
    let mut canaries = Vec::new();
    for n in 0..300 {
        let id = format!("user-{n}");
        let went = ask(&gateway, &of_user(&gateway, &id), &[]).await;
        if n < 30 {
            assert_eq!(ask(&gateway, &of_user(&gateway, &id), &[]).await, went, "the same again");
            assert_eq!(ask(&twin, &of_user(&twin, &id), &[]).await, went, "on another replica too");
        }
        if went == "b" {
            canaries.push(id);
        }
    }
    // Fixed ids: the number never changes. 10 % of 300 is 30, three standard deviations are 16.
    assert!((14..=46).contains(&canaries.len()), "{} of 300", canaries.len());
    // A reload with a larger share keeps them.
    gateway.rewrite(&manifest(&a, &b, 40, ""));
    eventually("the reload", Duration::from_secs(5), || async { gateway.revision() == 2 }).await;
    for id in &canaries {
        assert_eq!(ask(&gateway, &of_user(&gateway, id), &[]).await, "b", "{id}");
    }
}

#[tokio::test]
async fn a_caller_chooses_by_header_or_cookie_among_the_declared() {
    let (a, b) = two().await;
    let gateway = Gateway::with(&manifest(&a, &b, 90, "")).start().await;
    let bearer = format!("Bearer {}", token(&gateway, "user", Duration::ZERO));
    let own = ask(&gateway, &bearer, &[]).await;
    for name in ["a", "b"] {
        assert_eq!(ask(&gateway, &bearer, &[("x-canary", name)]).await, name);
        let cookie = format!("theme=dark; canary={name}");
        assert_eq!(ask(&gateway, &bearer, &[("cookie", &cookie)]).await, name);
    }
    for unknown in ["c", "http://elsewhere", ""] {
        assert_eq!(ask(&gateway, &bearer, &[("x-canary", unknown)]).await, own, "{unknown:?}");
    }
    let both = [("x-canary", "a"), ("cookie", "canary=b")];
    assert_eq!(ask(&gateway, &bearer, &both).await, "a", "the header goes before the cookie");
    // Without a declared header nobody chooses; strangers go by their address.
    let first = gateway.client.get("/ip").await.text().to_owned();
    for name in ["a", "b"] {
        assert_eq!(gateway.client.send("GET", "/ip", &[("x-canary", name)], "").await.text(), first);
    }
    let metric = |upstream: &str, target: &Scripted| {
        format!(
            "voicegate_upstream_requests_total{{result=\"2xx\",target=\"{}\",upstream=\"{upstream}\"}}",
            target.address
        )
    };
    for (name, service) in [("a", &a), ("b", &b)] {
        let counted = gateway.metric(&metric(name, service)).await;
        assert_eq!(counted, service.heads().len() as f64, "{name}");
    }
}

#[tokio::test]
async fn a_share_has_its_upstreams_fallback() {
    let b = Scripted::saying("b").await;
    let gateway = Gateway::with(&format!(
        "upstreams:\n  a: {{ targets: [{{ url: \"http://127.0.0.1:9\" }}], fallback: {{ upstream: b }} }}\n  b: {{ targets: [{{ url: \"{}\" }}] }}\n\
         routes:\n  - {{ route: GET /a, public: true, split: [{{ upstream: a, weight: 1 }}, {{ upstream: b, weight: 0 }}] }}\n",
        b.url()
    ))
    .start()
    .await;
    let answer = gateway.client.get("/a").await;
    assert_eq!((answer.text(), answer.header("x-degraded")), ("b", Some("upstream")));
}
