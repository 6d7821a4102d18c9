//! What stores promise about revocations, and word of them.

use super::*;
use std::time::Instant;

async fn revocations_come_in_the_order_of_their_numbers(bed: &Bed) {
    let first = bed.store.revoke("jti-1", at(1), at(100)).await.unwrap();
    let second = bed.store.revoke("user:u", at(2), at(50)).await.unwrap();
    let third = bed.store.revoke("jti-1", at(3), at(100)).await.unwrap();
    assert!(first.serial < second.serial && second.serial < third.serial);
    let (not_after, expires) = (1_700_000_002_000, 1_700_000_050_000);
    assert_eq!((second.not_after_ms, second.expires_at_ms), (not_after, expires));

    let all = bed.store.revocations_since(0, at(10)).await.unwrap();
    assert_eq!(all, [first.clone(), second.clone(), third.clone()]);
    assert_eq!(bed.store.revocations_since(first.serial, at(10)).await.unwrap(), [second, third.clone()]);
    assert_eq!(bed.store.revocations_since(third.serial, at(10)).await.unwrap(), []);
    assert_eq!(bed.store.revocations_since(0, at(50)).await.unwrap(), [first, third], "those that count");
}

async fn a_thousand_come_at_once(bed: &Bed) {
    for batch in 0..21 {
        let calls = (0..50)
            .map(|number| bed.store.revoke(Box::leak(format!("{batch}-{number}").into()), at(0), at(9)));
        futures_util::future::try_join_all(calls).await.unwrap();
    }
    let page = bed.store.revocations_since(0, at(1)).await.unwrap();
    assert_eq!(page.len(), 1000);
    let rest = bed.store.revocations_since(page[999].serial, at(1)).await.unwrap();
    assert_eq!(rest.len(), 50);
}

async fn a_reader_that_follows_misses_none(bed: &Bed) {
    const WRITERS: usize = 8;
    const EACH: usize = 25;
    let replicas = [Some(Arc::clone(&bed.store)), bed.another().await];
    let replicas: Vec<AnyStore> = replicas.into_iter().flatten().collect();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = Arc::clone(&replicas[writer % replicas.len()]);
            tokio::spawn(async move {
                for number in 0..EACH {
                    store.revoke(&format!("{writer}-{number}"), at(0), at(9)).await.unwrap();
                }
            })
        })
        .collect();
    let mut seen = Vec::new();
    let mut last = 0;
    let start = Instant::now();
    while seen.len() < WRITERS * EACH {
        for revocation in bed.store.revocations_since(last, at(1)).await.unwrap() {
            assert!(revocation.serial > last, "ascending");
            last = revocation.serial;
            seen.push(revocation.subject);
        }
        let late = start.elapsed() > secs(30);
        assert!(!late, "{} of {} seen: a number appeared after a higher one", seen.len(), WRITERS * EACH);
    }
    futures_util::future::try_join_all(writers).await.unwrap();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), WRITERS * EACH, "each once");
}

async fn word_wakes_whoever_waits(bed: &Bed) {
    let wait = |store: AnyStore| tokio::spawn(async move { store.revocations_changed(secs(60)).await });
    let waiting = [wait(Arc::clone(&bed.store)), wait(Arc::clone(&bed.store))];
    // Until both wait, and after: a ring before the wait is not lost on the first of them.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let start = Instant::now();
    bed.store.revoke("x", at(0), at(9)).await.unwrap();
    for waiter in waiting {
        waiter.await.unwrap();
    }
    assert!(start.elapsed() < secs(5), "{:?}", start.elapsed());

    bed.store.revoke("y", at(0), at(9)).await.unwrap();
    let start = Instant::now();
    bed.store.revocations_changed(secs(60)).await;
    assert!(start.elapsed() < secs(5), "what came before the wait is not slept through");
}

async fn patience_ends_a_wait(bed: &Bed) {
    // Word that came at the start (a listener rings when it begins to hear) is used up first.
    let start = Instant::now();
    for _ in 0..5 {
        bed.store.revocations_changed(Duration::from_millis(20)).await;
    }
    assert!(start.elapsed() < secs(5));
}

async fn a_sweep_forgets_what_is_over_and_no_number_comes_twice(bed: &Bed) {
    bed.store.revoke("a", at(0), at(10)).await.unwrap();
    let newest = bed.store.revoke("b", at(0), at(20)).await.unwrap();
    assert_eq!(bed.store.sweep_revocations(at(9)).await.unwrap(), 0);
    assert_eq!(bed.store.sweep_revocations(at(10)).await.unwrap(), 1);
    assert_eq!(bed.store.sweep_revocations(at(99)).await.unwrap(), 1);
    assert_eq!(bed.store.revocations_since(0, at(0)).await.unwrap(), []);
    let next = bed.store.revoke("c", at(0), at(100)).await.unwrap();
    assert!(next.serial > newest.serial, "a reader that saw {} would miss {}", newest.serial, next.serial);
}

async fn hostile_subjects_are_only_texts(bed: &Bed) {
    for text in HOSTILE.into_iter().filter(|text| !text.contains('\0')) {
        let made = bed.store.revoke(text, at(0), at(9)).await.unwrap();
        assert_eq!(bed.store.revocations_since(made.serial - 1, at(0)).await.unwrap(), [made]);
    }
}

contract!(
    revocations_come_in_the_order_of_their_numbers,
    a_thousand_come_at_once,
    a_reader_that_follows_misses_none,
    word_wakes_whoever_waits,
    patience_ends_a_wait,
    a_sweep_forgets_what_is_over_and_no_number_comes_twice,
    hostile_subjects_are_only_texts,
);
