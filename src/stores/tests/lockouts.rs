//! What stores promise about failed logins (SECURITY rule 8). The arithmetic has its own tests in `lockout.rs`.

use super::*;

const FREE: LockState = LockState { failures: 0, locked_until: None };

/// A failure under the limit of three within a minute, which locks for five minutes.
async fn fail(bed: &Bed, tenant: &str, name: &str, now: i64) -> LockState {
    bed.store.note_failure(tenant, name, 3, secs(60), secs(300), at(now)).await.unwrap()
}

async fn state(bed: &Bed, tenant: &str, name: &str, now: i64) -> LockState {
    bed.store.lock_state(tenant, name, at(now)).await.unwrap()
}

async fn the_third_failure_locks_for_a_while(bed: &Bed) {
    assert_eq!(state(bed, "", "unknown", 0).await, FREE, "nobody needs to exist");
    assert_eq!(fail(bed, "", "unknown", 0).await, LockState { failures: 1, locked_until: None });
    assert_eq!(fail(bed, "", "unknown", 10).await, LockState { failures: 2, locked_until: None });
    let locked = LockState { failures: 3, locked_until: Some(at(320)) };
    assert_eq!(fail(bed, "", "unknown", 20).await, locked);
    assert_eq!(state(bed, "", "unknown", 319).await, locked);
    assert_eq!(fail(bed, "", "unknown", 200).await, locked, "failing on does not lengthen it");
    assert_eq!(state(bed, "", "unknown", 320).await, FREE);
    assert_eq!(fail(bed, "", "unknown", 320).await, LockState { failures: 1, locked_until: None }, "anew");
}

async fn failures_slide_out_of_the_window(bed: &Bed) {
    fail(bed, "", "a", 0).await;
    fail(bed, "", "a", 30).await;
    assert_eq!(state(bed, "", "a", 60).await.failures, 2, "as old as the window still counts");
    assert_eq!(state(bed, "", "a", 61).await.failures, 1);
    assert_eq!(fail(bed, "", "a", 61).await, LockState { failures: 2, locked_until: None });
    assert_eq!(fail(bed, "", "a", 90).await, LockState { failures: 3, locked_until: Some(at(390)) });
}

async fn names_count_whatever_their_case_and_tenants_apart(bed: &Bed) {
    fail(bed, "t", "Jürgen", 0).await;
    fail(bed, "t", "JÜRGEN", 0).await;
    assert_eq!(state(bed, "t", "jürgen", 0).await.failures, 2);
    assert_eq!(state(bed, "", "jürgen", 0).await, FREE);
    assert_eq!(state(bed, "tj", "ürgen", 0).await, FREE);
}

async fn unlocking_forgets_everything(bed: &Bed) {
    for _ in 0..3 {
        fail(bed, "", "Ä", 0).await;
    }
    fail(bed, "", "b", 0).await;
    bed.store.unlock("", "ä").await.unwrap();
    assert_eq!(state(bed, "", "Ä", 0).await, FREE);
    assert_eq!(state(bed, "", "b", 0).await.failures, 1);
    bed.store.unlock("", "never seen").await.unwrap();
}

async fn a_limit_of_none_never_locks(bed: &Bed) {
    for now in 0..5 {
        let state = bed.store.note_failure("", "a", 0, secs(60), secs(60), at(now)).await.unwrap();
        assert_eq!(state, LockState { failures: now as u32 + 1, locked_until: None });
    }
}

async fn parallel_failures_all_count(bed: &Bed) {
    let calls = (0..9).map(|_| {
        let store = Arc::clone(&bed.store);
        tokio::spawn(async move {
            store.note_failure("", "a", 10, secs(60), secs(300), at(0)).await.unwrap().failures
        })
    });
    let mut counts: Vec<u32> =
        futures_util::future::join_all(calls).await.into_iter().map(Result::unwrap).collect();
    counts.sort_unstable();
    assert_eq!(counts, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let tenth = bed.store.note_failure("", "a", 10, secs(60), secs(300), at(1)).await.unwrap();
    assert_eq!(tenth.locked_until, Some(at(301)));
}

async fn names_of_strangers_do_not_pile_up(bed: &Bed) {
    for number in 0..20 {
        fail(bed, "", &format!("stranger {number}"), 0).await;
    }
    // Long after: each failure takes some old ones with it.
    for number in 0..4 {
        fail(bed, "", &format!("later {number}"), 10_000).await;
    }
    if let Some(rows) = bed.count("lockouts").await {
        assert_eq!(rows, 4);
    }
}

async fn hostile_names_count_like_others(bed: &Bed) {
    let long = "x".repeat(1 << 20);
    for text in HOSTILE.into_iter().chain([&*long]) {
        assert_eq!(fail(bed, text, text, 0).await.failures, 1, "{text:.40}");
        assert_eq!(fail(bed, text, text, 0).await.failures, 2, "{text:.40}");
        bed.store.unlock(text, text).await.unwrap();
        assert_eq!(state(bed, text, text, 0).await, FREE);
    }
}

contract!(
    the_third_failure_locks_for_a_while,
    failures_slide_out_of_the_window,
    names_count_whatever_their_case_and_tenants_apart,
    unlocking_forgets_everything,
    a_limit_of_none_never_locks,
    parallel_failures_all_count,
    names_of_strangers_do_not_pile_up,
    hostile_names_count_like_others,
);
