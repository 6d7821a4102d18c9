//! Readers who leave, and who come back.

use super::*;
use std::time::Instant;

on_both!(
    whoever_leaves_stops_the_model,
    whoever_leaves_before_the_first_word_stops_the_model_too,
    an_answer_that_shall_finish_finishes_without_its_reader,
    whoever_comes_back_gets_what_was_missed,
);

async fn whoever_leaves_stops_the_model(bed: Bed) {
    let ann = bed.register("ann").await;
    for (number, query) in ["delay=0ms&stall_after=7", "delay=20ms&tokens=100000"].iter().enumerate() {
        let session = ann.create().await;
        let mut open = ann.ask("/chat/stream", &session, query).await;
        let text = until(&mut open, "\"token\"").await;
        let left = Instant::now();
        drop(open);
        let aborted = number as u64 + 1;
        eventually("the model is stopped", AT_ONCE, async || bed.model.streams().aborted == aborted).await;
        let row = answer(&ann, &session).await;
        assert!(left.elapsed() < AT_ONCE + Duration::from_secs(1));
        assert_eq!((row.role.as_str(), row.status.as_str()), ("assistant", "interrupted"));
        assert!(row.content.starts_with(&said(&text)), "{row:?}");
        assert_ne!(row.content, "");
    }
    assert_eq!(bed.number("SELECT COUNT(*) FROM turns").await, 0);
    assert_eq!(bed.number("SELECT COUNT(*) FROM messages").await, 4);
}

async fn whoever_leaves_before_the_first_word_stops_the_model_too(bed: Bed) {
    let ann = bed.register("ann").await;
    let session = ann.create().await;
    let waiting = tokio::spawn({
        let (ann, session) = (ann.at(&ann.client), session.clone());
        async move { ann.ask("/chat/stream", &session, "hang=1").await.status }
    });
    eventually("the model is asked", PATIENCE, async || bed.model.streams().running == 1).await;
    waiting.abort();
    eventually("the model is stopped", AT_ONCE, async || bed.model.streams().aborted == 1).await;
    assert_eq!(answer(&ann, &session).await.is(), ("assistant", "interrupted", ""));
}

async fn an_answer_that_shall_finish_finishes_without_its_reader(bed: Bed) {
    let ann = bed.register("ann").await;
    let session = ann.create().await;
    let mut open = ann.ask("/chat/finish", &session, "delay=20ms&tokens=30").await;
    until(&mut open, "\"token\"").await;
    drop(open);
    let row = answer(&ann, &session).await;
    assert_eq!((row.status.as_str(), row.total_tokens), ("complete", Some(30)));
    assert_eq!((bed.model.streams().finished, bed.model.streams().aborted), (1, 0));
}

#[tokio::test]
async fn an_answer_without_a_reader_keeps_its_place() {
    let bed = Bed::sqlite().await;
    let ann = bed.register("ann").await;
    let session = ann.create().await;
    let mut open = ann.ask("/chat/single", &session, "delay=20ms&tokens=60").await;
    until(&mut open, "\"token\"").await;
    drop(open);
    // It is written on, and so counts, though nobody reads.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let body = json!({ "session_id": session, "query": "tokens=1" });
    let refused = ann.send("POST", "/chat/single", &[], body.clone()).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (429, "too_many_concurrent"));
    eventually("its place is free", PATIENCE, async || {
        ann.send("POST", "/chat/single", &[], body.clone()).await.status == 200
    })
    .await;
}

async fn whoever_comes_back_gets_what_was_missed(bed: Bed) {
    let (ann, eve) = (bed.register("ann").await, bed.register("eve").await);
    let (session, other) = (ann.create().await, ann.create().await);
    let theirs = eve.create().await;
    let mut open = ann.ask("/chat/brief", &session, "delay=30ms&tokens=40").await;
    let stream = open.headers["x-stream-id"].to_str().unwrap().to_owned();
    until(&mut open, &format!("{stream}:6")).await;
    drop(open);
    let id = |number: usize| format!("{stream}:{number}");

    let refused = async |user: &User, session: &str, id: &str| {
        let body = json!({ "session_id": session, "query": "again" });
        let answer = user.send("POST", "/chat/brief", &[("last-event-id", id)], body).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (410, "stream_gone"), "{id}");
    };
    refused(&eve, &theirs, &id(3)).await;
    refused(&eve, &session, &id(3)).await;
    refused(&ann, &other, &id(3)).await;
    for unknown in ["nonsense", &format!("{}:1", uuid::Uuid::new_v4()), &format!("{stream}:x"), &stream] {
        refused(&ann, &session, unknown).await;
    }

    let missed = ann.resume("/chat/brief", &session, &id(3)).await;
    assert_eq!((missed.status.as_u16(), missed.headers["x-stream-id"].as_bytes()), (200, stream.as_bytes()));
    assert_eq!(ann.history(&session).await.len(), 1, "it runs still: the rest comes live");
    let (text, clean) = missed.rest().await;
    let all = events(&text);
    let ids: Vec<_> = all.iter().map(|event| event.id.clone().unwrap()).collect();
    assert_eq!(ids, (4..=42).map(id).collect::<Vec<_>>(), "start, forty tokens, end, each once");
    assert_eq!((clean, &all.last().unwrap().data["type"]), (true, &json!("end")));
    let row = answer(&ann, &session).await;
    assert_eq!((row.status.as_str(), row.total_tokens), ("complete", Some(40)));

    eventually("it is forgotten", PATIENCE, async || {
        ann.resume("/chat/brief", &session, &id(3)).await.status == 410
    })
    .await;
    refused(&ann, &session, &id(3)).await;
    assert_eq!(bed.model.asked().len(), 1, "no second turn");
    assert_eq!(ann.history(&session).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_over_can_be_read_again_for_a_while() {
    let bed = Bed::sqlite().await;
    let ann = bed.register("ann").await;
    let session = ann.create().await;
    let open = ann.ask("/chat/finish", &session, "delay=0ms&tokens=5").await;
    let stream = open.headers["x-stream-id"].to_str().unwrap().to_owned();
    let (whole, _) = open.rest().await;
    assert_eq!(ann.resume("/chat/finish", &session, &format!("{stream}:0")).await.rest().await.0, whole);
    let end = ann.resume("/chat/finish", &session, &format!("{stream}:6")).await.rest().await.0;
    assert_eq!((events(&end).len(), &events(&end)[0].data["type"]), (1, &json!("end")));
    for far in ["7", "99999"] {
        let beyond = ann.resume("/chat/finish", &session, &format!("{stream}:{far}")).await;
        assert_eq!((beyond.status.as_u16(), beyond.rest().await), (200, (String::new(), true)), "{far}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logout_ends_the_stream() {
    let bed = Bed::sqlite().await;
    let ann = bed.register("ann").await;
    let (session, other) = (ann.create().await, ann.create().await);
    let mut open = ann.ask("/chat/stream", &session, "delay=0ms&stall_after=3").await;
    let mut kept = ann.ask("/chat/finish", &other, "delay=30ms&tokens=30").await;
    let before = until(&mut open, "\"token\"").await;
    until(&mut kept, "\"token\"").await;
    let out = json!({ "refresh_token": ann.refresh_token });
    let answered = ann.send("POST", "/auth/logout", &[], out).await;
    assert!(answered.status.is_success(), "{}", answered.text());
    for open in [open, kept] {
        let (text, clean) = open.rest().await;
        let last = events(&text).pop().unwrap().data;
        assert_eq!((clean, last), (true, json!({ "type": "reauth", "code": "token_revoked" })), "{text}");
    }
    let login = json!({ "username": "ann", "password": bed::PASSWORD }).to_string();
    let login = ann.client.post("/api/v01/auth/login", &login).await.json();
    let back =
        User { bearer: format!("Bearer {}", login["access_token"].as_str().unwrap()), ..ann.at(&ann.client) };
    let row = answer(&back, &session).await;
    assert_eq!(row.status, "interrupted");
    assert!(row.content.starts_with(&said(&before)));
    assert_eq!(answer(&back, &other).await.status, "complete", "it was to finish, whoever reads");
    assert_eq!(bed.model.streams().aborted, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_expires_ends_its_stream() {
    let bed = Bed::with_tokens_for("2s").await;
    let ann = bed.register("ann").await;
    let session = ann.create().await;
    let begun = Instant::now();
    let open = ann.ask("/chat/stream", &session, "delay=0ms&stall_after=3").await;
    let (text, clean) = open.rest().await;
    let last = events(&text).pop().unwrap().data;
    assert_eq!((clean, last), (true, json!({ "type": "reauth", "code": "token_expired" })), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(2) + AT_ONCE);
    let kept = "SELECT COUNT(*) FROM messages WHERE author = 'assistant' AND status = 'interrupted'";
    eventually("what was said is kept", AT_ONCE, async || bed.number(kept).await == 1).await;
}
