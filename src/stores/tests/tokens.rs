//! What stores promise about refresh tokens (SECURITY rule 7).

use super::*;

async fn family(bed: &Bed, user: &User, name: &str, token: u32) {
    bed.store.begin_family(&user.id, name, &hash(token), at(100), at(0)).await.unwrap();
}

async fn rotate(bed: &Bed, token: u32, next: u32, now: i64) -> Rotation {
    rotate_within(bed, token, next, 0, now).await
}

async fn rotate_within(bed: &Bed, token: u32, next: u32, grace: u64, now: i64) -> Rotation {
    let grace = Duration::from_secs(grace);
    bed.store.rotate(&hash(token), &hash(next), at(now + 100), grace, at(now)).await.unwrap()
}

fn named(user: &User, family: &str) -> Family {
    Family { id: family.to_owned(), user_id: user.id.clone() }
}

fn rotated(user: &User, family: &str) -> Rotation {
    Rotation::Rotated(named(user, family))
}

fn repeated(user: &User, family: &str) -> Rotation {
    Rotation::Repeated(named(user, family))
}

fn reused(user: &User, family: &str) -> Rotation {
    Rotation::Reused(named(user, family))
}

async fn tokens_rotate_along_their_family(bed: &Bed) {
    let user = bed.user("a").await;
    family(bed, &user, "f", 1).await;
    for token in 1..6 {
        assert_eq!(rotate(bed, token, token + 1, i64::from(token)).await, rotated(&user, "f"));
    }
}

async fn reuse_ends_the_family_and_only_it(bed: &Bed) {
    let user = bed.user("a").await;
    family(bed, &user, "f", 1).await;
    family(bed, &user, "g", 10).await;
    assert_eq!(rotate(bed, 1, 2, 1).await, rotated(&user, "f"));
    assert_eq!(rotate(bed, 1, 3, 2).await, reused(&user, "f"));
    assert_eq!(rotate(bed, 2, 4, 3).await, Rotation::Refused, "the good one went with it");
    assert_eq!(rotate(bed, 1, 5, 4).await, Rotation::Refused, "the alarm is raised once");
    assert_eq!(rotate(bed, 3, 6, 4).await, Rotation::Refused, "nothing was put in a reused one's place");
    assert_eq!(rotate(bed, 10, 11, 4).await, rotated(&user, "g"));
}

async fn unknown_and_expired_tokens_are_refused(bed: &Bed) {
    let user = bed.user("a").await;
    family(bed, &user, "f", 1).await;
    assert_eq!(rotate(bed, 99, 2, 1).await, Rotation::Refused);
    assert_eq!(rotate(bed, 1, 2, 100).await, Rotation::Refused, "over at the moment it expires");
    assert_eq!(rotate(bed, 1, 2, 99).await, rotated(&user, "f"), "being refused uses nothing up");
    assert_eq!(rotate(bed, 1, 3, 150).await, reused(&user, "f"), "reuse counts after expiry too");
}

async fn a_used_token_is_taken_again_within_the_grace(bed: &Bed) {
    let user = bed.user("a").await;
    family(bed, &user, "f", 1).await;
    assert_eq!(rotate_within(bed, 1, 2, 10, 5).await, rotated(&user, "f"));
    assert_eq!(rotate_within(bed, 1, 3, 10, 6).await, repeated(&user, "f"));
    assert_eq!(rotate_within(bed, 1, 4, 10, 15).await, repeated(&user, "f"), "its last moment");
    // What was given works once each, with a grace of its own.
    assert_eq!(rotate_within(bed, 2, 12, 10, 15).await, rotated(&user, "f"));
    assert_eq!(rotate_within(bed, 3, 13, 10, 15).await, rotated(&user, "f"));
    assert_eq!(rotate_within(bed, 4, 14, 10, 15).await, rotated(&user, "f"));
    assert_eq!(rotate_within(bed, 4, 15, 10, 16).await, repeated(&user, "f"));
    // Repeating does not make the grace longer; after it, all that came of it ends.
    assert_eq!(rotate_within(bed, 1, 5, 10, 16).await, reused(&user, "f"));
    for token in [12, 13, 14, 15, 4] {
        assert_eq!(rotate_within(bed, token, 99, 10, 16).await, Rotation::Refused, "{token}");
    }
}

async fn of_twenty_parallel_rotations_one_rotates(bed: &Bed) {
    let user = bed.user("a").await;
    for round in 0..3 {
        let outcomes = at_once(bed, &user, round, Duration::ZERO).await;
        let name = format!("f{round}");
        let count = |wanted: &Rotation| outcomes.iter().filter(|outcome| *outcome == wanted).count();
        assert_eq!(count(&rotated(&user, &name)), 1, "{outcomes:?}");
        assert_eq!(count(&reused(&user, &name)), 1, "{outcomes:?}");
        assert_eq!(count(&Rotation::Refused), 18, "{outcomes:?}");
        for number in 1..=20 {
            let next = rotate(bed, first_of(round) + number, 9, 2).await;
            assert_eq!(next, Rotation::Refused, "the family is dead");
        }
    }
}

async fn within_the_grace_the_others_repeat(bed: &Bed) {
    let user = bed.user("a").await;
    for round in 0..3 {
        let outcomes = at_once(bed, &user, round, Duration::from_secs(1)).await;
        let name = format!("f{round}");
        let count = |wanted: &Rotation| outcomes.iter().filter(|outcome| *outcome == wanted).count();
        assert_eq!(count(&rotated(&user, &name)), 1, "{outcomes:?}");
        assert_eq!(count(&repeated(&user, &name)), 19, "{outcomes:?}");
        for number in 1..=20 {
            let token = first_of(round) + number;
            assert_eq!(rotate(bed, token, token + 100, 2).await, rotated(&user, &name));
        }
    }
}

fn first_of(round: u32) -> u32 {
    1000 * (round + 1)
}

/// What comes of presenting the first token of a family twenty times at once; the next ones are numbered after it.
async fn at_once(bed: &Bed, user: &User, round: u32, grace: Duration) -> Vec<Rotation> {
    let first = first_of(round);
    family(bed, user, &format!("f{round}"), first).await;
    // On PostgreSQL and on a file, over two replicas.
    let replicas = [Some(Arc::clone(&bed.store)), bed.another().await];
    let replicas: Vec<AnyStore> = replicas.into_iter().flatten().collect();
    let calls = (1..=20).map(|number| {
        let store = Arc::clone(&replicas[number as usize % replicas.len()]);
        tokio::spawn(async move {
            store.rotate(&hash(first), &hash(first + number), at(100), grace, at(1)).await.unwrap()
        })
    });
    futures_util::future::join_all(calls).await.into_iter().map(Result::unwrap).collect()
}

async fn a_logout_ends_the_family_of_its_token(bed: &Bed) {
    let user = bed.user("a").await;
    family(bed, &user, "f", 1).await;
    family(bed, &user, "g", 10).await;
    assert_eq!(rotate(bed, 1, 2, 1).await, rotated(&user, "f"));
    assert_eq!(bed.store.end_family_of(&hash(99), at(2)).await.unwrap(), None);
    // A used token will do: the client may have the old one only.
    assert_eq!(bed.store.end_family_of(&hash(1), at(2)).await.unwrap(), Some(named(&user, "f")));
    assert_eq!(
        bed.store.end_family_of(&hash(2), at(3)).await.unwrap(),
        Some(named(&user, "f")),
        "twice is fine"
    );
    assert_eq!(rotate(bed, 2, 3, 3).await, Rotation::Refused);
    assert_eq!(rotate(bed, 1, 3, 3).await, Rotation::Refused, "an ended family raises no alarm");
    assert_eq!(rotate(bed, 10, 11, 3).await, rotated(&user, "g"));
}

async fn a_logout_beside_a_rotation_wins(bed: &Bed) {
    let user = bed.user("a").await;
    for round in 0..10 {
        let first = 100 * (round + 1);
        family(bed, &user, &format!("f{round}"), first).await;
        let grace = Duration::from_secs((round % 2).into());
        let (rotating, ending) = (Arc::clone(&bed.store), Arc::clone(&bed.store));
        let rotating = tokio::spawn(async move {
            rotating.rotate(&hash(first), &hash(first + 1), at(100), grace, at(1)).await.unwrap()
        });
        let ending = tokio::spawn(async move { ending.end_family_of(&hash(first), at(1)).await.unwrap() });
        rotating.await.unwrap();
        ending.await.unwrap();
        assert_eq!(rotate(bed, first + 1, first + 2, 2).await, Rotation::Refused);
        assert_eq!(rotate_within(bed, first, first + 2, 10, 2).await, Rotation::Refused, "no grace is left");
    }
}

async fn every_family_of_a_user_ends_and_no_other(bed: &Bed) {
    let (user, other) = (bed.user("a").await, bed.user("b").await);
    family(bed, &user, "f", 1).await;
    family(bed, &user, "g", 2).await;
    family(bed, &other, "h", 3).await;
    assert_eq!(bed.store.end_families(&user.id, at(1)).await.unwrap(), 2);
    assert_eq!(bed.store.end_families(&user.id, at(1)).await.unwrap(), 0);
    assert_eq!(rotate(bed, 1, 11, 2).await, Rotation::Refused);
    assert_eq!(rotate(bed, 2, 12, 2).await, Rotation::Refused);
    assert_eq!(rotate(bed, 3, 13, 2).await, rotated(&other, "h"));
}

async fn a_family_needs_its_user_and_a_new_token(bed: &Bed) {
    let nobody = bed.store.begin_family("none", "f", &hash(1), at(100), at(0)).await;
    assert!(matches!(nobody, Err(StoreError::NotFound)), "{nobody:?}");
    let user = bed.user("a").await;
    family(bed, &user, "f", 1).await;
    let again = bed.store.begin_family(&user.id, "f", &hash(2), at(100), at(0)).await;
    assert!(matches!(again, Err(StoreError::Conflict("family"))), "{again:?}");
    let taken = bed.store.begin_family(&user.id, "g", &hash(1), at(100), at(0)).await;
    assert!(matches!(taken, Err(StoreError::Conflict("token"))), "{taken:?}");
    assert_eq!(bed.store.end_families(&user.id, at(1)).await.unwrap(), 1, "no half of `g` stayed");
    // A rotation that cannot put the next one in its place uses nothing up.
    family(bed, &user, "h", 5).await;
    let clash = bed.store.rotate(&hash(5), &hash(1), at(100), Duration::ZERO, at(1)).await;
    assert!(matches!(clash, Err(StoreError::Conflict("token"))), "{clash:?}");
    assert_eq!(rotate(bed, 5, 6, 1).await, rotated(&user, "h"));
}

async fn a_sweep_takes_what_is_over_and_keeps_what_detects_reuse(bed: &Bed) {
    let user = bed.user("a").await;
    family(bed, &user, "expired", 1).await;
    family(bed, &user, "ended", 2).await;
    bed.store.end_family_of(&hash(2), at(10)).await.unwrap();
    family(bed, &user, "alive", 3).await;
    assert_eq!(rotate(bed, 3, 4, 50).await, rotated(&user, "alive"));
    // Both first tokens of the others end at 100, the living one at 150.
    assert_eq!(bed.store.sweep_refresh_tokens(at(10)).await.unwrap(), 0);
    assert_eq!(bed.store.sweep_refresh_tokens(at(11)).await.unwrap(), 1, "the ended one");
    assert_eq!(bed.store.sweep_refresh_tokens(at(100)).await.unwrap(), 0);
    assert_eq!(rotate(bed, 3, 9, 99).await, reused(&user, "alive"), "a used token is remembered");
    assert_eq!(bed.store.sweep_refresh_tokens(at(1_000)).await.unwrap(), 3);
    assert_eq!(bed.store.sweep_refresh_tokens(at(1_000)).await.unwrap(), 0);
    if let (Some(tokens), Some(families)) =
        (bed.count("refresh_tokens").await, bed.count("refresh_families").await)
    {
        assert_eq!((tokens, families), (0, 0));
    }
}

contract!(
    tokens_rotate_along_their_family,
    reuse_ends_the_family_and_only_it,
    unknown_and_expired_tokens_are_refused,
    a_used_token_is_taken_again_within_the_grace,
    of_twenty_parallel_rotations_one_rotates,
    within_the_grace_the_others_repeat,
    a_logout_ends_the_family_of_its_token,
    a_logout_beside_a_rotation_wins,
    every_family_of_a_user_ends_and_no_other,
    a_family_needs_its_user_and_a_new_token,
    a_sweep_takes_what_is_over_and_keeps_what_detects_reuse,
);
