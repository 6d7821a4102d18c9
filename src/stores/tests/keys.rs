//! What stores promise about password resets and API keys.

use super::*;

async fn a_reset_is_good_once_and_until_it_ends(bed: &Bed) {
    let user = bed.user("a").await;
    bed.store.create_reset(&user.id, &hash(1), at(100)).await.unwrap();
    assert_eq!(bed.store.consume_reset(&hash(9), at(1)).await.unwrap(), None);
    assert_eq!(bed.store.consume_reset(&hash(1), at(100)).await.unwrap(), None, "over");
    assert_eq!(bed.store.consume_reset(&hash(1), at(99)).await.unwrap(), Some(user.id.clone()));
    assert_eq!(bed.store.consume_reset(&hash(1), at(99)).await.unwrap(), None, "used");
}

async fn a_new_reset_voids_the_one_before(bed: &Bed) {
    let (user, other) = (bed.user("a").await, bed.user("b").await);
    bed.store.create_reset(&user.id, &hash(1), at(100)).await.unwrap();
    bed.store.create_reset(&other.id, &hash(3), at(100)).await.unwrap();
    bed.store.create_reset(&user.id, &hash(2), at(100)).await.unwrap();
    assert_eq!(bed.store.consume_reset(&hash(1), at(1)).await.unwrap(), None);
    assert_eq!(bed.store.consume_reset(&hash(2), at(1)).await.unwrap(), Some(user.id));
    assert_eq!(bed.store.consume_reset(&hash(3), at(1)).await.unwrap(), Some(other.id));
    let nobody = bed.store.create_reset("none", &hash(4), at(100)).await;
    assert!(matches!(nobody, Err(StoreError::NotFound)), "{nobody:?}");
}

async fn of_parallel_uses_of_a_reset_one_is_good(bed: &Bed) {
    let user = bed.user("a").await;
    bed.store.create_reset(&user.id, &hash(1), at(100)).await.unwrap();
    let uses = (0..10).map(|_| {
        let store = Arc::clone(&bed.store);
        tokio::spawn(async move { store.consume_reset(&hash(1), at(1)).await.unwrap() })
    });
    let good: Vec<String> =
        futures_util::future::join_all(uses).await.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(good, [user.id]);
}

fn key(id: &str, created: i64) -> ApiKey {
    ApiKey {
        id: id.to_owned(),
        name: format!("key {id}"),
        tenant_id: "acme".to_owned(),
        created_by: "root".to_owned(),
        permissions: vec!["chat:write".to_owned(), "documents:*".to_owned()],
        created_at: at(created),
        expires_at: None,
        revoked: false,
    }
}

async fn keys_are_found_while_they_live(bed: &Bed) {
    let ending = ApiKey { expires_at: Some(at(50)), permissions: vec![], ..key("b", 2) };
    bed.store.create_api_key(key("a", 1), &hash(1)).await.unwrap();
    bed.store.create_api_key(ending.clone(), &hash(2)).await.unwrap();
    bed.store.create_api_key(ApiKey { revoked: true, ..key("c", 2) }, &hash(3)).await.unwrap();
    assert_eq!(bed.store.api_key(&hash(1), at(9)).await.unwrap(), key("a", 1));
    assert_eq!(bed.store.api_key(&hash(2), at(49)).await.unwrap(), ending);
    assert!(matches!(bed.store.api_key(&hash(2), at(50)).await, Err(StoreError::NotFound)));
    assert!(matches!(bed.store.api_key(&hash(3), at(9)).await, Err(StoreError::NotFound)));
    assert!(matches!(bed.store.api_key(&hash(9), at(9)).await, Err(StoreError::NotFound)));
    let ids: Vec<String> = bed.store.api_keys().await.unwrap().into_iter().map(|key| key.id).collect();
    assert_eq!(ids, ["c", "b", "a"], "all of them, newest first");
}

async fn a_key_is_taken_back_and_stays_in_the_list(bed: &Bed) {
    bed.store.create_api_key(key("a", 1), &hash(1)).await.unwrap();
    bed.store.revoke_api_key("a").await.unwrap();
    bed.store.revoke_api_key("a").await.unwrap();
    assert!(matches!(bed.store.revoke_api_key("none").await, Err(StoreError::NotFound)));
    assert!(matches!(bed.store.api_key(&hash(1), at(2)).await, Err(StoreError::NotFound)));
    assert_eq!(bed.store.api_keys().await.unwrap(), [ApiKey { revoked: true, ..key("a", 1) }]);
}

async fn a_key_and_its_id_are_unique(bed: &Bed) {
    bed.store.create_api_key(key("a", 1), &hash(1)).await.unwrap();
    let same_key = bed.store.create_api_key(key("b", 1), &hash(1)).await;
    assert!(matches!(same_key, Err(StoreError::Conflict("key"))), "{same_key:?}");
    let same_id = bed.store.create_api_key(key("a", 1), &hash(2)).await;
    assert!(matches!(same_id, Err(StoreError::Conflict("id"))), "{same_id:?}");
}

async fn hostile_keys_are_only_texts(bed: &Bed) {
    for (number, text) in (0..).zip(HOSTILE) {
        assert!(matches!(bed.store.revoke_api_key(text).await, Err(StoreError::NotFound)), "{text:?}");
        let hostile = ApiKey {
            name: text.to_owned(),
            permissions: vec![text.to_owned(), "\"],[\"*".to_owned()],
            ..key(&format!("k{number}"), 1)
        };
        let made = bed.store.create_api_key(hostile.clone(), &hash(number)).await;
        if text.contains('\0') {
            assert!(matches!(made, Err(StoreError::Failed(_))), "{made:?}");
        } else {
            made.unwrap();
            assert_eq!(bed.store.api_key(&hash(number), at(2)).await.unwrap(), hostile);
        }
    }
}

contract!(
    a_reset_is_good_once_and_until_it_ends,
    a_new_reset_voids_the_one_before,
    of_parallel_uses_of_a_reset_one_is_good,
    keys_are_found_while_they_live,
    a_key_is_taken_back_and_stays_in_the_list,
    a_key_and_its_id_are_unique,
    hostile_keys_are_only_texts,
);
