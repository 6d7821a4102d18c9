//! What stores promise about sessions, messages and the deletion of users.

use super::turns::{ended, piece, turn};
use super::*;

/// The owner that a user is.
pub(super) fn owner(user: &User) -> Owner {
    Owner { tenant_id: user.tenant_id.as_str().into(), user_id: user.id.as_str().into() }
}

/// A session that is made at `seconds`.
pub(super) async fn session(bed: &Bed, owner: &Owner, id: &str, seconds: i64) -> ChatSession {
    match bed.store.create_session(owner, id, "New Chat", None, at(seconds)).await.unwrap() {
        Once::Done(session) => session,
        other => panic!("{other:?}"),
    }
}

/// A key for one request.
pub(super) fn retry(key: u32, request: u32) -> RetryKey {
    RetryKey { key: hash(key), request: hash(request), expires_at: at(1000) }
}

/// Says something in a session, and has it answered.
pub(super) async fn talk(bed: &Bed, owner: &Owner, session: &str, name: &str, seconds: i64) {
    let turn = turn(session, name);
    let begun = bed.store.begin_turn(owner, &turn, None, at(seconds)).await.unwrap();
    let Once::Done(begun) = begun else { panic!("{begun:?}") };
    bed.store.finish_turn(&begun, &ended(&format!("answer {name}")), at(seconds)).await.unwrap();
}

/// The contents of a session, page by page.
pub(super) async fn contents(bed: &Bed, owner: &Owner, session: &str, order: Order) -> Vec<String> {
    let mut all = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let page = bed.store.messages(owner, session, order, 2, cursor.as_deref()).await.unwrap();
        all.extend(page.items.into_iter().map(|message| message.content));
        cursor = page.next;
        if cursor.is_none() {
            return all;
        }
    }
}

fn gone<T: std::fmt::Debug>(answer: Stored<T>) {
    assert!(matches!(answer, Err(StoreError::NotFound)), "{answer:?}");
}

async fn a_session_is_made_renamed_and_deleted(bed: &Bed) {
    let owner = owner(&bed.user("ada").await);
    let made = session(bed, &owner, "s1", 5).await;
    let expected = ChatSession {
        id: "s1".to_owned(),
        title: "New Chat".to_owned(),
        created_at: at(5),
        updated_at: at(5),
    };
    assert_eq!(made, expected);
    assert_eq!(bed.store.session(&owner, "s1").await.unwrap(), made);
    let renamed = bed.store.rename_session(&owner, "s1", "Größe 😀", at(9)).await.unwrap();
    assert_eq!(renamed, ChatSession { title: "Größe 😀".to_owned(), updated_at: at(9), ..made });
    assert_eq!(bed.store.session(&owner, "s1").await.unwrap(), renamed);
    bed.store.rename_session(&owner, "s1", "late", at(7)).await.unwrap();
    assert_eq!(
        bed.store.session(&owner, "s1").await.unwrap().updated_at,
        at(9),
        "time does not run backwards"
    );

    bed.store.delete_session(&owner, "s1", at(10)).await.unwrap();
    gone(bed.store.session(&owner, "s1").await);
    gone(bed.store.rename_session(&owner, "s1", "x", at(11)).await);
    gone(bed.store.delete_session(&owner, "s1", at(11)).await);
    gone(bed.store.messages(&owner, "s1", Order::OldestFirst, 5, None).await);
    gone(bed.store.begin_turn(&owner, &turn("s1", "t"), None, at(11)).await);
    gone(bed.store.ask_to_stop(&owner, "s1", None).await);
    assert_eq!(bed.store.sessions(&owner, 5, None).await.unwrap().items, []);
    if let Some(count) = bed.count("sessions").await {
        assert_eq!(count, 1, "its rows stay");
    }
    let again = bed.store.create_session(&owner, "s1", "x", None, at(12)).await;
    assert!(matches!(again, Err(StoreError::Conflict("id"))), "{again:?}");
}

async fn what_is_anothers_is_not_found(bed: &Bed) {
    let ada = owner(&bed.user("ada").await);
    let eve = owner(&bed.user("eve").await);
    let elsewhere = Owner { tenant_id: "acme".into(), ..ada.clone() };
    session(bed, &ada, "s1", 1).await;
    talk(bed, &ada, "s1", "a", 2).await;
    let Once::Done(running) =
        bed.store.begin_turn(&ada, &turn("s1", "b"), Some(&retry(1, 1)), at(3)).await.unwrap()
    else {
        panic!("not begun")
    };
    for stranger in [&eve, &elsewhere] {
        gone(bed.store.session(stranger, "s1").await);
        gone(bed.store.rename_session(stranger, "s1", "mine", at(4)).await);
        gone(bed.store.delete_session(stranger, "s1", at(4)).await);
        gone(bed.store.messages(stranger, "s1", Order::OldestFirst, 5, None).await);
        gone(bed.store.messages(stranger, "s1", Order::NewestFirst, 5, None).await);
        gone(bed.store.message(stranger, "s1", "a").await);
        gone(bed.store.begin_turn(stranger, &turn("s1", "c"), None, at(4)).await);
        gone(bed.store.begin_turn(stranger, &turn("s1", "b"), Some(&retry(1, 1)), at(4)).await);
        gone(bed.store.ask_to_stop(stranger, "s1", None).await);
        gone(bed.store.ask_to_stop(stranger, "s1", Some("b")).await);
        assert_eq!(bed.store.sessions(stranger, 5, None).await.unwrap().items, []);
    }
    // Nobody is in a tenant where he is not.
    gone(bed.store.create_session(&elsewhere, "s2", "x", None, at(4)).await);
    gone(bed.store.create_session(&elsewhere, "s2", "x", Some(&retry(9, 9)), at(4)).await);
    let nobody = Owner { user_id: "nobody".into(), ..ada.clone() };
    gone(bed.store.create_session(&nobody, "s2", "x", None, at(4)).await);
    gone(bed.store.create_session(&nobody, "s2", "x", Some(&retry(9, 9)), at(4)).await);
    // A message is found in its own session only.
    session(bed, &ada, "s3", 4).await;
    gone(bed.store.message(&ada, "s3", "a").await);
    assert_eq!(bed.store.message(&ada, "s1", "a").await.unwrap().content, "answer a");

    assert_eq!(bed.store.session(&ada, "s1").await.unwrap().title, "New Chat");
    assert!(bed.store.turn_runs(&ada, &running.session_id, &running.id).await.unwrap());
    assert_eq!(
        bed.store.keep_turns("r1", &[], at(20)).await.unwrap(),
        [] as [String; 0],
        "nobody stopped it"
    );
}

async fn pages_of_sessions_are_stable_while_sessions_come_and_go(bed: &Bed) {
    let ada = owner(&bed.user("ada").await);
    let eve = owner(&bed.user("eve").await);
    let mut made = Vec::new();
    for number in 0..7 {
        // Several in one moment: the time alone does not order them.
        made.push(session(bed, &ada, &format!("s{number}"), number / 3).await);
        session(bed, &eve, &format!("e{number}"), number / 3).await;
    }
    made.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
    let mut seen = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let page = bed.store.sessions(&ada, 3, cursor.as_deref()).await.unwrap();
        seen.extend(page.items);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
        session(bed, &ada, &format!("new{}", seen.len()), 100).await;
        // What was said in one does not move it.
        bed.store.rename_session(&ada, &seen[0].id, "New Chat", at(100)).await.unwrap();
        bed.store.rename_session(&ada, "s0", "New Chat", at(0)).await.unwrap();
    }
    assert_eq!(seen, made, "every one once, newest first");
    assert_eq!(bed.store.sessions(&ada, 0, None).await.unwrap().items.len(), 1, "a page holds at least one");
    for nonsense in ["x", "", "1", "' OR 1=1 --.x", "0.\0"] {
        let page = bed.store.sessions(&ada, 3, Some(nonsense)).await;
        assert!(matches!(page, Err(StoreError::BadCursor)), "{nonsense:?}: {page:?}");
    }
}

async fn pages_of_messages_are_stable_while_people_talk(bed: &Bed) {
    let ada = owner(&bed.user("ada").await);
    session(bed, &ada, "s1", 0).await;
    session(bed, &ada, "s2", 0).await;
    assert_eq!(contents(bed, &ada, "s1", Order::OldestFirst).await, [] as [String; 0]);
    for name in ["a", "b", "c"] {
        // All in one millisecond, and with another session in between.
        talk(bed, &ada, "s1", name, 1).await;
        talk(bed, &ada, "s2", &format!("other {name}"), 1).await;
    }
    let all = ["query a", "answer a", "query b", "answer b", "query c", "answer c"];
    assert_eq!(contents(bed, &ada, "s1", Order::OldestFirst).await, all);
    let backwards: Vec<&str> = all.into_iter().rev().collect();
    assert_eq!(contents(bed, &ada, "s1", Order::NewestFirst).await, backwards);

    let newest = bed.store.messages(&ada, "s1", Order::NewestFirst, 2, None).await.unwrap();
    let oldest = bed.store.messages(&ada, "s1", Order::OldestFirst, 4, None).await.unwrap();
    talk(bed, &ada, "s1", "d", 0).await;
    let older = bed.store.messages(&ada, "s1", Order::NewestFirst, 9, newest.next.as_deref()).await.unwrap();
    let texts: Vec<_> = older.items.iter().map(|message| &*message.content).collect();
    assert_eq!(texts, backwards[2..], "what comes meanwhile is on a page that is past");
    let newer = bed.store.messages(&ada, "s1", Order::OldestFirst, 9, oldest.next.as_deref()).await.unwrap();
    let texts: Vec<_> = newer.items.iter().map(|message| &*message.content).collect();
    assert_eq!(
        texts,
        ["query c", "answer c", "query d", "answer d"],
        "what comes meanwhile is still to come"
    );
    assert_eq!(newer.next, None);
    for nonsense in ["x", "", "1.5", "' OR 1=1 --", "\0"] {
        let page = bed.store.messages(&ada, "s1", Order::OldestFirst, 3, Some(nonsense)).await;
        assert!(matches!(page, Err(StoreError::BadCursor)), "{nonsense:?}: {page:?}");
    }
}

async fn a_retry_makes_no_second_session(bed: &Bed) {
    let ada = owner(&bed.user("ada").await);
    let eve = owner(&bed.user("eve").await);
    let make = |owner: &Owner, id: &'static str, retry: RetryKey, seconds: i64| {
        let owner = owner.clone();
        async move { bed.store.create_session(&owner, id, "t", Some(&retry), at(seconds)).await.unwrap() }
    };
    let Once::Done(first) = make(&ada, "s1", retry(1, 1), 1).await else { panic!("not made") };
    assert_eq!(make(&ada, "s2", retry(1, 1), 2).await, Once::Before(first.clone()));
    assert_eq!(make(&ada, "s2", retry(1, 2), 2).await, Once::Mismatch);
    assert!(matches!(make(&eve, "s3", retry(1, 1), 2).await, Once::Done(_)), "keys are their owner's");
    assert!(matches!(make(&ada, "s4", retry(2, 1), 2).await, Once::Done(_)), "another key");
    let ids = |page: Page<ChatSession>| page.items.into_iter().map(|one| one.id).collect::<Vec<_>>();
    assert_eq!(ids(bed.store.sessions(&ada, 9, None).await.unwrap()), ["s4", "s1"]);
    // A retry of what was renamed and deleted since is still a retry.
    bed.store.rename_session(&ada, "s1", "renamed", at(3)).await.unwrap();
    bed.store.delete_session(&ada, "s1", at(3)).await.unwrap();
    let before = make(&ada, "s2", retry(1, 1), 4).await;
    assert_eq!(before, Once::Before(ChatSession { title: "renamed".to_owned(), updated_at: at(3), ..first }));
    // A key that failed to make something is not used up.
    let taken = bed.store.create_session(&ada, "s4", "t", Some(&retry(5, 5)), at(4)).await;
    assert!(matches!(taken, Err(StoreError::Conflict("id"))), "{taken:?}");
    assert!(matches!(make(&ada, "s5", retry(5, 5), 4).await, Once::Done(_)));
    // One that is over is as good as none, swept or not.
    assert!(matches!(
        make(&ada, "s6", RetryKey { expires_at: at(2000), ..retry(1, 7) }, 1000).await,
        Once::Done(_)
    ));
    assert_eq!(bed.store.sweep_retry_keys(at(1000)).await.unwrap(), 3);
    assert_eq!(bed.store.sweep_retry_keys(at(1000)).await.unwrap(), 0);
    assert_eq!(make(&ada, "s7", retry(1, 8), 1001).await, Once::Mismatch);
    assert!(matches!(make(&eve, "s8", retry(1, 1), 1001).await, Once::Done(_)));
}

async fn of_parallel_retries_one_is_the_first(bed: &Bed) {
    let ada = owner(&bed.user("ada").await);
    for round in 0..5 {
        let tries = (0..8).map(|number| {
            let (store, ada) = (Arc::clone(&bed.store), ada.clone());
            tokio::spawn(async move {
                let id = format!("s{round}-{number}");
                store.create_session(&ada, &id, "t", Some(&retry(round, round)), at(1)).await.unwrap()
            })
        });
        let all: Vec<_> =
            futures_util::future::join_all(tries).await.into_iter().map(Result::unwrap).collect();
        let done: Vec<_> =
            all.iter().filter_map(|one| if let Once::Done(it) = one { Some(it) } else { None }).collect();
        assert_eq!(done.len(), 1, "{all:?}");
        for one in &all {
            let (Once::Done(session) | Once::Before(session)) = one else { panic!("{one:?}") };
            assert_eq!(session, done[0]);
        }
    }
    assert_eq!(bed.store.sessions(&ada, 100, None).await.unwrap().items.len(), 5);
}

async fn a_deleted_user_leaves_nothing(bed: &Bed) {
    let user = bed.user("ada").await;
    let (ada, eve) = (owner(&user), owner(&bed.user("eve").await));
    for (owner, name) in [(&ada, "a"), (&eve, "e")] {
        session(bed, owner, name, 1).await;
        talk(bed, owner, name, &format!("{name}1"), 1).await;
        let running = turn(name, &format!("{name}2"));
        bed.store.begin_turn(owner, &running, Some(&retry(1, 1)), at(2)).await.unwrap();
    }
    bed.store.begin_family(&user.id, "family", &hash(1), at(100), at(1)).await.unwrap();
    bed.store.create_reset(&user.id, &hash(2), at(100)).await.unwrap();
    let key = |id: &str, created_by: &str| ApiKey {
        id: id.to_owned(),
        name: "k".to_owned(),
        tenant_id: String::new(),
        created_by: created_by.to_owned(),
        permissions: vec!["*".to_owned()],
        created_at: at(1),
        expires_at: None,
        revoked: false,
    };
    let makers = [user.id.clone(), format!("user {}", user.id), format!("user {}", eve.user_id)];
    for (number, maker) in (0..).zip(&makers) {
        bed.store.create_api_key(key(&format!("k{number}"), maker), &hash(10 + number)).await.unwrap();
    }

    bed.store.delete_user(&user.id, at(5)).await.unwrap();
    gone(bed.store.user(&user.id).await);
    gone(bed.store.session(&ada, "a").await);
    gone(bed.store.create_session(&ada, "a9", "x", None, at(6)).await);
    gone(bed.store.delete_user(&user.id, at(6)).await);
    gone(bed.store.delete_user("nobody", at(6)).await);
    gone(bed.store.delete_user("a\0", at(6)).await);
    let rotation = bed.store.rotate(&hash(1), &hash(3), at(100), Duration::ZERO, at(6)).await.unwrap();
    assert_eq!(rotation, Rotation::Refused);
    assert_eq!(bed.store.consume_reset(&hash(2), at(6)).await.unwrap(), None);
    gone(bed.store.api_key(&hash(10), at(6)).await);
    gone(bed.store.api_key(&hash(11), at(6)).await);
    bed.store.api_key(&hash(12), at(6)).await.unwrap();
    assert!(!bed.store.turn_runs(&ada, "a2", "a2").await.unwrap());

    for (table, left) in [
        ("users", 1),
        ("sessions", 1),
        ("messages", 3),
        ("turns", 1),
        ("retry_keys", 1),
        ("refresh_families", 0),
        ("refresh_tokens", 0),
        ("password_resets", 0),
    ] {
        if let Some(count) = bed.count(table).await {
            assert_eq!(count, left, "{table}");
        }
    }
    let again = bed.user("ADA").await;
    assert_ne!(again.id, user.id, "the name is free");
    assert_eq!(contents(bed, &eve, "e", Order::OldestFirst).await, ["query e1", "answer e1", "query e2"]);
}

async fn a_deletion_that_broke_off_is_ended(bed: &Bed) {
    let user = bed.user("ada").await;
    let ada = owner(&user);
    session(bed, &ada, "s1", 1).await;
    talk(bed, &ada, "s1", "a", 1).await;
    assert_eq!(bed.store.sweep_deleted_users().await.unwrap(), 0);
    if !bed.run("UPDATE users SET deleted_at = 1").await {
        return;
    }
    gone(bed.store.begin_turn(&ada, &turn("s1", "b"), None, at(2)).await);
    assert_eq!(bed.store.sweep_deleted_users().await.unwrap(), 1);
    for table in ["users", "sessions", "messages"] {
        assert_eq!(bed.count(table).await, Some(0), "{table}");
    }
    assert_eq!(bed.store.sweep_deleted_users().await.unwrap(), 0);

    let user = bed.user("ada").await;
    bed.run("UPDATE users SET deleted_at = 1").await;
    bed.store.delete_user(&user.id, at(9)).await.unwrap();
    assert_eq!(bed.count("users").await, Some(0), "called again, it goes on");
}

async fn hostile_texts_are_only_texts(bed: &Bed) {
    let ada = owner(&bed.user("ada").await);
    for (number, text) in HOSTILE.into_iter().enumerate() {
        let id = format!("s{number}");
        gone(bed.store.session(&ada, text).await);
        gone(bed.store.message(&ada, text, text).await);
        gone(bed.store.ask_to_stop(&ada, text, Some(text)).await);
        gone(bed.store.begin_turn(&ada, &turn(text, "t"), None, at(1)).await);
        gone(bed.store.rename_session(&ada, text, "x", at(1)).await);
        gone(bed.store.delete_session(&ada, text, at(1)).await);
        gone(bed.store.messages(&ada, text, Order::OldestFirst, 1, None).await);
        assert!(!bed.store.turn_runs(&ada, text, text).await.unwrap());
        let made = bed.store.create_session(&ada, &id, text, None, at(1)).await;
        if text.contains('\0') {
            assert!(matches!(made, Err(StoreError::Failed(_))), "{made:?}");
            session(bed, &ada, &id, 1).await;
        } else {
            let Once::Done(made) = made.unwrap() else { panic!("no key, no retry") };
            assert_eq!(made.title, text);
        }
        // What was said is kept whatever it is; a NUL, which one backend cannot hold, as a replacement character.
        let name = format!("t{number}");
        let turn = NewTurn { query: text.to_owned(), ..turn(&id, &name) };
        let Once::Done(begun) = bed.store.begin_turn(&ada, &turn, None, at(1)).await.unwrap() else {
            panic!("no key, no retry")
        };
        bed.store.keep_turns("r1", &[piece(&name, 0, text)], at(20)).await.unwrap();
        bed.store.finish_turn(&begun, &ended(text), at(1)).await.unwrap();
        let kept = text.replace('\0', "\u{fffd}");
        assert_eq!(contents(bed, &ada, &id, Order::OldestFirst).await, [kept.clone(), kept]);
    }
}

contract!(
    a_session_is_made_renamed_and_deleted,
    what_is_anothers_is_not_found,
    pages_of_sessions_are_stable_while_sessions_come_and_go,
    pages_of_messages_are_stable_while_people_talk,
    a_retry_makes_no_second_session,
    of_parallel_retries_one_is_the_first,
    a_deleted_user_leaves_nothing,
    a_deletion_that_broke_off_is_ended,
    hostile_texts_are_only_texts,
);
