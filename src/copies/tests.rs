use super::*;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn copy(body: &str, at: Instant) -> Copy {
    Copy {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        body: Bytes::from(body.to_owned()),
        vary: Arc::new([]),
        path: "/t".into(),
        route: "GET /t".into(),
        at,
        age: Duration::ZERO,
        fresh: Duration::from_secs(10),
        stale: Duration::from_secs(5),
    }
}

fn key(text: &str) -> Key {
    Key::of("test", 1).with(text.as_bytes()).end()
}

fn speaks(language: &'static str) -> HeaderMap {
    [(http::header::ACCEPT_LANGUAGE, HeaderValue::from_static(language))].into_iter().collect()
}

fn none() -> HeaderMap {
    HeaderMap::new()
}

#[test]
fn parts_of_a_key_never_read_as_one() {
    let of = |parts: &[&str]| parts.iter().fold(Key::of("k", 1), |key, part| key.with(part.as_bytes())).end();
    assert_eq!(of(&["ab", "c"]), of(&["ab", "c"]));
    assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
    assert_ne!(of(&["ab"]), of(&["ab", ""]));
    assert_ne!(Key::of("k", 1).end(), Key::of("k", 2).end(), "another route");
    assert_ne!(Key::of("k", 1).end(), Key::of("l", 1).end(), "another user of the store");
    assert_ne!(Key::of("k", 1).maybe(None).end(), Key::of("k", 1).maybe(Some(b"")).end());
}

#[test]
fn a_copy_is_fresh_then_stale_then_of_no_use() {
    let now = Instant::now();
    let kept = Copy { age: Duration::from_secs(3), ..copy("a", now) };
    let at = |seconds| now + Duration::from_secs(seconds);
    assert!(kept.is_fresh(at(9)) && !kept.is_fresh(at(10)));
    assert!(kept.may_be_stale(at(14)) && !kept.may_be_stale(at(15)));
    assert_eq!((kept.age(at(9)), kept.left(at(9)), kept.left(at(12))), (Duration::from_secs(12), 1, -2));
}

#[test]
fn what_was_put_in_is_found_and_counted() {
    let (copies, now) = (Copies::default(), Instant::now());
    assert!(copies.get(&key("a"), &none(), now).is_none());
    assert!(copies.put(&key("a"), &none(), copy("a", now), copies.epoch()).1);
    assert_eq!(copies.get(&key("a"), &none(), now).unwrap().body, "a");
    assert!(copies.get(&key("b"), &none(), now).is_none());
    assert!(copies.get(&key("a"), &none(), now + Duration::from_secs(60)).is_some(), "stale ones too");
    let figures = copies.figures();
    assert_eq!((figures.entries, figures.hits, figures.stale, figures.misses), (1, 1, 1, 2));
}

#[test]
fn answers_that_depend_on_headers_are_kept_by_their_values() {
    let (copies, now) = (Copies::default(), Instant::now());
    let vary: Arc<[HeaderName]> = [http::header::ACCEPT_LANGUAGE].into();
    for (language, body) in [("zh", "nihao"), ("en", "hello")] {
        let copy = Copy { vary: vary.clone(), ..copy(body, now) };
        copies.put(&key("a"), &speaks(language), copy, copies.epoch());
    }
    let body = |headers| copies.get(&key("a"), &headers, now).map(|copy| copy.body.clone());
    assert_eq!(body(speaks("zh")).unwrap(), "nihao");
    assert_eq!(body(speaks("en")).unwrap(), "hello");
    assert!(body(speaks("fr")).is_none());
    assert!(body(none()).is_none());
    let found = copies.find(&key("a"), &speaks("fr"), now);
    assert!(found.varies && found.key != key("a"));
}

#[test]
fn bytes_and_number_are_bounded() {
    let now = Instant::now();
    let few = Copies::new(Limits { bytes: 1 << 20, entries: 10 });
    let small = Copies::new(Limits { bytes: 1 << 20, entries: 100_000 });
    let body = "x".repeat(50 << 10);
    for number in 0..1000 {
        few.put(&key(&number.to_string()), &none(), copy("x", now), few.epoch());
        small.put(&key(&number.to_string()), &none(), copy(&body, now), small.epoch());
    }
    let (few, small) = (few.figures(), small.figures());
    assert!(few.entries <= 10 && few.entries > 4, "{few:?}");
    assert!(small.bytes <= 1 << 20 && small.entries >= 15, "{small:?}");
    assert_eq!(small.entries + small.evictions, 1000, "{small:?}");
    let nothing = Copies::new(Limits { bytes: 0, entries: 10 });
    assert!(!nothing.put(&key("a"), &none(), copy("a", now), nothing.epoch()).1);
}

#[test]
fn what_does_not_fit_is_handed_back_and_not_kept() {
    let (copies, now) = (Copies::new(Limits { bytes: 1 << 20, entries: 10 }), Instant::now());
    let (kept, is_kept) = copies.put(&key("a"), &none(), copy(&"x".repeat(2 << 20), now), copies.epoch());
    assert!(!is_kept && kept.body.len() == 2 << 20);
    assert_eq!(copies.figures().entries, 0);
}

#[test]
fn a_purge_takes_what_it_names_and_what_was_under_way() {
    let (copies, now) = (Copies::default(), Instant::now());
    let fill = || {
        for (path, route, tag) in
            [("/a/1", "GET /a/:id", "x, y"), ("/a/2", "GET /a/:id", "y"), ("/b", "GET /b", "z")]
        {
            let mut copy = Copy { path: path.into(), route: route.into(), ..copy("a", now) };
            copy.headers.insert("cache-tag", HeaderValue::from_static(tag));
            copies.put(&key(path), &none(), copy, copies.epoch());
        }
    };
    let some = |text: &str| Some(text.to_owned());
    let cases = [
        (Purge { path: some("/a/1"), ..Purge::default() }, 1),
        (Purge { path: some("/a"), ..Purge::default() }, 0),
        (Purge { prefix: some("/a"), ..Purge::default() }, 2),
        (Purge { route: some("GET /b"), ..Purge::default() }, 1),
        (Purge { route: some("GET /a/:id"), path: some("/a/2"), ..Purge::default() }, 1),
        (Purge { tag: some("y"), ..Purge::default() }, 2),
        (Purge::default(), 3),
    ];
    for (purge, count) in cases {
        fill();
        assert_eq!(copies.purge(&purge), count, "{purge:?}");
        assert_eq!(copies.figures().entries, 3 - count, "{purge:?}");
    }
    let before = copies.epoch();
    copies.purge(&Purge { path: some("/elsewhere"), ..Purge::default() });
    assert!(!copies.put(&key("a"), &none(), copy("old", now), before).1, "fetched before the purge");
    assert!(copies.get(&key("a"), &none(), now).is_none());
}

#[test]
fn a_note_that_nothing_can_be_kept_is_for_a_while() {
    let (copies, now) = (Copies::default(), Instant::now());
    copies.pass(key("a"), now + Duration::from_secs(10));
    assert!(copies.find(&key("a"), &none(), now).passes);
    assert!(!copies.find(&key("a"), &none(), now + Duration::from_secs(10)).passes);
    assert_eq!(copies.figures().entries, 0);
}
