//! What stores promise about users.

use super::*;

async fn users_are_found_by_what_names_them(bed: &Bed) {
    let new = NewUser {
        email: Some("Ada@Example.org".to_owned()),
        password_hash: Some("$2b$12$x".to_owned()),
        openid: Some("o-1".to_owned()),
        ..in_tenant("acme", "Ada")
    };
    let id = new.id.clone();
    let made = bed.store.create_user(new, at(5)).await.unwrap();
    assert_eq!(
        made,
        User {
            id: id.clone(),
            tenant_id: "acme".to_owned(),
            username: "Ada".to_owned(),
            email: Some("Ada@Example.org".to_owned()),
            password_hash: Some("$2b$12$x".to_owned()),
            role: "user".to_owned(),
            openid: Some("o-1".to_owned()),
            disabled: false,
            created_at: at(5),
            last_login_at: None,
        }
    );
    assert_eq!(bed.store.user(&id).await.unwrap(), made);
    assert_eq!(bed.store.user_by_name("acme", "aDA").await.unwrap(), made);
    assert_eq!(bed.store.user_by_email("acme", "ADA@example.ORG").await.unwrap(), made);
    assert_eq!(bed.store.user_by_openid("acme", "o-1").await.unwrap(), made);
    // Another tenant's is absent; openids are exact.
    assert!(matches!(bed.store.user_by_name("", "Ada").await, Err(StoreError::NotFound)));
    assert!(matches!(bed.store.user_by_email("other", "ada@example.org").await, Err(StoreError::NotFound)));
    assert!(matches!(bed.store.user_by_openid("other", "o-1").await, Err(StoreError::NotFound)));
    assert!(matches!(bed.store.user_by_openid("acme", "O-1").await, Err(StoreError::NotFound)));
}

async fn names_are_unique_in_their_tenant_whatever_the_case(bed: &Bed) {
    for (first, second) in
        [("alice", "ALICE"), ("Jürgen", "JÜRGEN"), ("ЖЕНЯ", "женя"), ("Σοφός", "ΣΟΦΌΣ"), ("王小明", "王小明")]
    {
        bed.store.create_user(in_tenant("a", first), at(0)).await.unwrap();
        let again = bed.store.create_user(in_tenant("a", second), at(0)).await;
        assert!(matches!(again, Err(StoreError::Conflict("username"))), "{second}: {again:?}");
        assert_eq!(bed.store.user_by_name("a", second).await.unwrap().username, first);
        bed.store.create_user(in_tenant("b", second), at(0)).await.unwrap();
    }
}

async fn a_conflict_says_what_is_taken(bed: &Bed) {
    let full = |name: &str, email: &str, openid: &str| NewUser {
        email: Some(email.to_owned()),
        openid: Some(openid.to_owned()),
        ..someone(name)
    };
    let first = full("a", "A@ä.example", "o1");
    bed.store.create_user(first.clone(), at(0)).await.unwrap();
    let email = bed.store.create_user(full("b", "a@Ä.example", "o2"), at(0)).await;
    assert!(matches!(email, Err(StoreError::Conflict("email"))), "{email:?}");
    let openid = bed.store.create_user(full("b", "b@x", "o1"), at(0)).await;
    assert!(matches!(openid, Err(StoreError::Conflict("openid"))), "{openid:?}");
    let id = bed.store.create_user(NewUser { id: first.id, ..full("b", "b@x", "o2") }, at(0)).await;
    assert!(matches!(id, Err(StoreError::Conflict("id"))), "{id:?}");
    // Having none is no conflict.
    bed.store.create_user(someone("c"), at(0)).await.unwrap();
    bed.store.create_user(someone("d"), at(0)).await.unwrap();
}

async fn of_parallel_registrations_one_wins(bed: &Bed) {
    let tries = (0..12).map(|number| {
        let store = Arc::clone(&bed.store);
        let name = if number % 2 == 0 { "Ärger" } else { "äRGER" };
        tokio::spawn(async move { store.create_user(someone(name), at(0)).await })
    });
    let results: Vec<_> =
        futures_util::future::join_all(tries).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(
        results.iter().all(|result| matches!(result, Ok(_) | Err(StoreError::Conflict("username")))),
        "{results:?}"
    );
}

async fn changes_are_kept_and_touch_nothing_else(bed: &Bed) {
    let before = bed.user("eve").await;
    let other = bed.user("mallory").await;
    bed.store.note_login(&before.id, at(10)).await.unwrap();
    bed.store.set_password(&before.id, "$2a$10$new", at(11)).await.unwrap();
    bed.store.set_role(&before.id, "admin", at(12)).await.unwrap();
    bed.store.set_disabled(&before.id, true, at(13)).await.unwrap();
    let after = bed.store.user(&before.id).await.unwrap();
    assert_eq!(
        after,
        User {
            last_login_at: Some(at(10)),
            password_hash: Some("$2a$10$new".to_owned()),
            role: "admin".to_owned(),
            disabled: true,
            ..before.clone()
        }
    );
    bed.store.set_disabled(&before.id, false, at(14)).await.unwrap();
    assert!(!bed.store.user(&before.id).await.unwrap().disabled);
    assert_eq!(bed.store.user(&other.id).await.unwrap(), other);
}

async fn changing_nobody_is_not_found(bed: &Bed) {
    let store = &bed.store;
    assert!(matches!(store.user("none").await, Err(StoreError::NotFound)));
    assert!(matches!(store.note_login("none", at(0)).await, Err(StoreError::NotFound)));
    assert!(matches!(store.set_password("none", "x", at(0)).await, Err(StoreError::NotFound)));
    assert!(matches!(store.set_role("none", "x", at(0)).await, Err(StoreError::NotFound)));
    assert!(matches!(store.set_disabled("none", true, at(0)).await, Err(StoreError::NotFound)));
}

async fn pages_are_stable_while_users_come(bed: &Bed) {
    // Several in one moment: the time alone does not order them.
    let mut made = Vec::new();
    for number in 0..7 {
        made.push(bed.store.create_user(someone(&format!("u{number}")), at(number / 3)).await.unwrap());
    }
    made.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));

    let mut seen = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let page = bed.store.users(3, cursor.as_deref()).await.unwrap();
        seen.extend(page.items);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
        // Whoever comes meanwhile is newer, and on a page that is past.
        bed.store.create_user(someone(&format!("new{}", seen.len())), at(100)).await.unwrap();
    }
    assert_eq!(seen, made, "everyone once, newest first");

    let exact = bed.store.users(9, None).await.unwrap();
    assert_eq!((exact.items.len(), exact.next), (9, None), "a full last page has no next");
    assert_eq!(bed.store.users(0, None).await.unwrap().items.len(), 1, "a page holds at least one");
    assert_eq!(bed.store.users(u32::MAX, None).await.unwrap().items.len(), 9);
    for nonsense in ["x", "", "1", "' OR 1=1 --.x", "0.\0"] {
        let page = bed.store.users(3, Some(nonsense)).await;
        assert!(matches!(page, Err(StoreError::BadCursor)), "{nonsense:?}: {page:?}");
    }
}

async fn hostile_texts_are_only_texts(bed: &Bed) {
    let witness = bed.user("witness").await;
    for text in HOSTILE {
        for found in [
            bed.store.user(text).await,
            bed.store.user_by_name(text, text).await,
            bed.store.user_by_name("", text).await,
            bed.store.user_by_email("", text).await,
            bed.store.user_by_openid("", text).await,
        ] {
            assert!(matches!(found, Err(StoreError::NotFound)), "{text:?}: {found:?}");
        }
        assert!(matches!(bed.store.set_role(text, text, at(0)).await, Err(StoreError::NotFound)), "{text:?}");
        assert!(
            bed.store.set_role(&witness.id, text, at(0)).await.is_ok() != text.contains('\0'),
            "{text:?}"
        );

        let new = NewUser { email: Some(text.to_owned()), ..in_tenant(text, text) };
        let made = bed.store.create_user(new, at(0)).await;
        if text.contains('\0') {
            // One backend could keep it, the other not: neither does.
            assert!(matches!(made, Err(StoreError::Failed(_))), "{made:?}");
        } else {
            let made = made.unwrap();
            assert_eq!(bed.store.user_by_name(text, text).await.unwrap(), made);
            assert_eq!(bed.store.user_by_email(text, text).await.unwrap(), made);
            assert_eq!((&*made.username, &*made.tenant_id), (text, text));
        }
    }
    assert_eq!(bed.store.user_by_name("", "witness").await.unwrap().id, witness.id);
}

contract!(
    users_are_found_by_what_names_them,
    names_are_unique_in_their_tenant_whatever_the_case,
    a_conflict_says_what_is_taken,
    of_parallel_registrations_one_wins,
    changes_are_kept_and_touch_nothing_else,
    changing_nobody_is_not_found,
    pages_are_stable_while_users_come,
    hostile_texts_are_only_texts,
);
