use super::super::testing::{check, fold_around, request, request_as, send, target};
use super::*;
use crate::identity::{Identity, Proof};
use crate::state::tests::shared;
use std::sync::atomic::{AtomicUsize, Ordering};

fn caller(user: &str, role: &str) -> Identity {
    Identity {
        user_id: user.into(),
        tenant_id: "t".into(),
        role: role.into(),
        scopes: Vec::new(),
        channel: None,
        openid: None,
        token_id: None,
        issued_at: None,
        expires_at: None,
        proof: Proof::Token,
    }
}

/// The stage round a target that answers its count and to whom.
fn counting(stage: &str) -> Next {
    let (shared, closing) = shared(&[]);
    // Dropped, it would say that the process goes down.
    std::mem::forget(closing);
    let count = AtomicUsize::new(0);
    let next = target(move |request| {
        let number = count.fetch_add(1, Ordering::SeqCst) + 1;
        let user =
            Exchange::of(&request).identity().map_or_else(String::new, |user| user.user_id.to_string());
        async move { Ok(Response::builder().body(format!("{number} {user}"))) }
    });
    fold_around(&check(stage, "").sound(), &shared, next)
}

async fn text(next: &Next, request: Request) -> String {
    send(next, request).await.into_body().into_string().await.unwrap()
}

#[tokio::test]
async fn users_never_share() {
    let next = counting("cache: { ttl: 30s, by: [user] }");
    let as_user =
        async |user: &str, role: &str| text(&next, request_as(Method::GET, &[], caller(user, role))).await;
    assert_eq!(as_user("a", "user").await, "1 a");
    assert_eq!(as_user("b", "user").await, "2 b");
    assert_eq!(as_user("a", "admin").await, "3 a", "another role sees other things");
    assert_eq!(text(&next, request(Method::GET, &[])).await, "4 ", "nobody is no user");
    assert_eq!((as_user("a", "user").await, as_user("b", "user").await), ("1 a".into(), "2 b".into()));
}

#[tokio::test]
async fn what_is_not_said_to_be_for_all_is_not_given_to_another() {
    let next = counting("cache: 30s");
    for number in 1..=2 {
        let asked = request_as(Method::GET, &[], caller("a", "user"));
        assert_eq!(text(&next, asked).await, format!("{number} a"));
    }
    let next = counting("cache: { ttl: 30s, shared: true }");
    assert_eq!(text(&next, request_as(Method::GET, &[], caller("a", "user"))).await, "1 a");
    assert_eq!(text(&next, request_as(Method::GET, &[], caller("b", "user"))).await, "1 a");
}

#[tokio::test]
async fn a_panic_behind_it_ends_one_request_only() {
    let (shared, _closing) = shared(&[]);
    let count = AtomicUsize::new(0);
    let next = target(move |_| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        async move {
            assert!(number > 0, "the first call panics, as this test wants");
            Ok(Response::default())
        }
    });
    let next = fold_around(&check("cache: 30s", "").sound(), &shared, next);
    assert_eq!(send(&next, request(Method::GET, &[])).await.status(), 500);
    assert_eq!(send(&next, request(Method::GET, &[])).await.status(), 200);
}

#[test]
fn a_query_keeps_what_counts_as_it_was_written() {
    let names = ["q".to_owned(), "a b".to_owned()];
    let cases = [
        ("q=1", None),
        ("q=1&a+b=2&a%20b=3", None),
        ("q=1&x=2", Some("q=1")),
        ("x=2", Some("")),
        ("x&q&q=%31&qq=1", Some("q&q=%31")),
        ("x=1;q=2", Some("")),
        ("", Some("")),
    ];
    for (query, expected) in cases {
        assert_eq!(narrowed(query, &names).as_deref(), expected, "{query}");
    }
}

#[test]
fn the_contract_is_understood_and_mistakes_show() {
    check("cache: { ttl: 30s, by: [query.q, user], stale_while_revalidate: 60s, max_size: 1MiB }", "")
        .sound();
    check("cache: 30s", "").sound();
    for (faulty, count) in [
        ("cache", 1),
        ("cache: { tll: 30s }", 1),
        ("cache: { ttl: 30s, by: [phone, header.] }", 2),
        ("cache: { ttl: 30s, by: [body.q], max_size: 0B }", 2),
        ("cache: { ttl: 30s, by: [user], shared: true }", 1),
    ] {
        let found = check(faulty, "").faults;
        assert!(found.len() >= count, "{faulty}: {found:#?}");
    }
}

#[test]
fn it_says_whom_it_keeps_answers_for() {
    for (stage, keeps) in [
        ("cache: 30s", Keeps::ForWhoeverAsks),
        ("cache: { ttl: 30s, by: [tenant] }", Keeps::ForWhoeverAsks),
        ("cache: { ttl: 30s, by: [tenant], shared: true }", Keeps::ForAll),
        ("cache: { ttl: 30s, by: [user] }", Keeps::ForEach("user")),
    ] {
        assert_eq!(check(stage, "").sound().facts().keeps_answers, Some(keeps), "{stage}");
    }
}
