//! Native chats through the front door: what a person asked and what the model said is in the history once, however the
//! turn ends.

pub mod bed;
mod ends;
mod leaving;
mod outages;
mod stopping;

use crate::harness::client::PATIENCE;
use crate::harness::{eventually, on_both};
use bed::{Bed, Row, User, events, said, until};
use serde_json::{Value, json};
use std::time::Duration;

/// Within a second, on a busy machine.
const AT_ONCE: Duration = Duration::from_millis(1800);

on_both!(
    a_question_is_answered_and_kept,
    what_is_anothers_is_not_found_and_not_asked,
    a_question_has_its_bounds,
    two_requests_with_one_key_are_one_turn,
    a_person_has_three_streams_at_a_time,
);

async fn a_question_is_answered_and_kept(bed: Bed) {
    let ann = bed.register("ann").await;
    let session = ann.create().await;
    let mut open = ann.ask("/chat/stream", &session, "delay=2ms&tokens=12").await;
    assert_eq!(open.status, 200);
    assert_eq!(open.headers["content-type"], "text/event-stream");
    assert_eq!(open.headers["cache-control"], "no-cache");
    assert_eq!(open.headers["x-accel-buffering"], "no");
    let stream = open.headers["x-stream-id"].to_str().unwrap().to_owned();
    let text = until(&mut open, "\"end\"").await;
    // At this moment, not a little later.
    let rows = ann.history(&session).await;
    assert_eq!(open.rest().await, (String::new(), true), "nothing follows");

    let events = events(&text);
    let kinds: Vec<&str> = events.iter().map(|event| event.data["type"].as_str().unwrap()).collect();
    assert_eq!((kinds[0], kinds[13], kinds.len()), ("start", "end", 14), "{text}");
    assert!(kinds[1..13].iter().all(|kind| *kind == "token"), "{text}");
    assert_eq!(events[0].data["session_id"], *session);
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event.id.as_deref(), Some(&*format!("{stream}:{}", number + 1)), "{text}");
    }
    assert_eq!(rows.len(), 2, "{rows:?}");
    assert_eq!(rows[0].is(), ("user", "complete", "delay=2ms&tokens=12"));
    assert_eq!(rows[1].is(), ("assistant", "complete", &*said(&text)));
    assert_eq!((rows[1].id.as_str(), rows[1].total_tokens), (&*stream, Some(12)));
    assert_ne!(said(&text), "");
    let asked = bed.model.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].path, "/v01/query/stream");
    assert_eq!(asked[0].body, json!({ "query": "delay=2ms&tokens=12", "session_id": session }));
    assert!(asked[0].head.contains(&format!("x-user-id: {}\r\n", ann.id)), "{}", asked[0].head);
    assert!(!asked[0].head.contains("authorization"), "{}", asked[0].head);
    assert_eq!(bed.number("SELECT COUNT(*) FROM turns").await, 0);
}

async fn what_is_anothers_is_not_found_and_not_asked(bed: Bed) {
    let ann = bed.register("ann").await;
    let hers = ann.create().await;
    let gone = ann.create().await;
    assert_eq!(ann.send("DELETE", &format!("/sessions/{gone}"), &[], Value::Null).await.status, 204);
    let colleague = bed.register("eve").await;
    let stranger = bed.user_in("acme", "ann").await;
    let absent = uuid::Uuid::new_v4().to_string();
    let like_absence = async |user: &User, session: &str| {
        let mut seen = Vec::new();
        for session in [session, &absent] {
            let body = json!({ "session_id": session, "query": "hello" });
            let answer = user.send("POST", "/chat/stream", &[], body).await;
            assert_eq!((answer.status.as_u16(), answer.code().as_str()), (404, "not_found"));
            let mut body = answer.json();
            body["request_id"] = Value::Null;
            let names: Vec<_> = answer.headers.keys().map(|name| name.as_str().to_owned()).collect();
            seen.push((names, body));
        }
        assert_eq!(seen[0], seen[1]);
    };
    like_absence(&colleague, &hers).await;
    like_absence(&stranger, &hers).await;
    like_absence(&ann, &gone).await;
    like_absence(&ann, &"x".repeat(5000)).await;
    assert_eq!(bed.model.asked().len(), 0);
    assert_eq!(bed.number("SELECT COUNT(*) FROM messages").await, 0);
}

async fn a_question_has_its_bounds(bed: Bed) {
    let ann = bed.register("ann").await;
    let session = ann.create().await;
    for (query, why) in [("", "required"), (" \n", "required"), (&"中".repeat(2001), "too_long")] {
        let body = json!({ "session_id": session, "query": query });
        let refused = ann.send("POST", "/chat/stream", &[], body).await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (400, "validation_failed"));
        let errors = &refused.json()["errors"];
        assert_eq!((&errors[0]["pointer"], &errors[0]["code"]), (&json!("/query"), &json!(why)));
    }
    let bare = json!({ "session_id": session, "query": "hello" }).to_string();
    let refused = ann.client.post("/api/v01/chat/stream", &bare).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (401, "no_token"));
    assert_eq!(bed.model.asked().len(), 0);
    assert_eq!(ann.history(&session).await, []);

    let longest = "中".repeat(2000);
    let open = ann.ask("/chat/stream", &session, &longest).await;
    assert_eq!(open.status, 200);
    drop(open);
    eventually("it is over", PATIENCE, async || ann.history(&session).await.len() == 2).await;
    assert_eq!(ann.history(&session).await[0].content, longest);
}

async fn two_requests_with_one_key_are_one_turn(bed: Bed) {
    let ann = bed.register("ann").await;
    let session = ann.create().await;
    let key = [("idempotency-key", "\"one\"")];
    let body = json!({ "session_id": session, "query": "delay=20ms&tokens=20" });
    let ask = || ann.open("/chat/stream", &key, &body);
    let (one, two) = tokio::join!(ask(), ask());
    let id = one.headers["x-stream-id"].clone();
    assert_eq!((one.status.as_u16(), two.status.as_u16(), &two.headers["x-stream-id"]), (200, 200, &id));
    let (one, two) = tokio::join!(one.rest(), two.rest());
    assert!(one.1 && two.1);
    assert_eq!(one.0, two.0, "both get all of it");
    assert_eq!(events(&one.0).len(), 22);

    // The events are gone by now, the row tells it.
    let again = ask().await;
    assert_eq!((again.status.as_u16(), &again.headers["x-stream-id"]), (200, &id));
    let (again, clean) = again.rest().await;
    let told = events(&again);
    let kinds: Vec<&Value> = told.iter().map(|event| &event.data["type"]).collect();
    assert_eq!(kinds, ["start", "token", "end"], "{again}");
    assert_eq!((clean, said(&again), &told[2].data["total_tokens"]), (true, said(&one.0), &json!(20)));

    let other = json!({ "session_id": session, "query": "something else" });
    let refused = ann.send("POST", "/chat/stream", &key, other).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (422, "idempotency_key_reused"));
    assert_eq!(ann.history(&session).await.len(), 2);
    assert_eq!(bed.model.asked().len(), 1);
    let eve = bed.register("eve").await;
    let body = json!({ "session_id": eve.create().await, "query": "tokens=1" });
    let hers = eve.open("/chat/stream", &key, &body).await;
    assert_ne!(hers.headers["x-stream-id"], id, "keys are their owner's");
}

async fn a_person_has_three_streams_at_a_time(bed: Bed) {
    let (ann, eve) = (bed.register("ann").await, bed.register("eve").await);
    let session = ann.create().await;
    let mut running = Vec::new();
    for _ in 0..3 {
        let mut open = ann.ask("/chat/limited", &session, "delay=0ms&stall_after=1").await;
        until(&mut open, "token").await;
        running.push(open);
    }
    let body = json!({ "session_id": session, "query": "one more" });
    let refused = ann.send("POST", "/chat/limited", &[], body).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (429, "too_many_concurrent"));
    assert_eq!(bed.model.streams().started, 3);
    let theirs = eve.create().await;
    assert!(eve.ask("/chat/limited", &theirs, "tokens=1").await.rest().await.1);

    drop(running.pop());
    let mut last = None;
    eventually("the place is free again", PATIENCE, async || {
        let open = ann.ask("/chat/limited", &session, "delay=0ms&tokens=1").await;
        let free = open.status == 200;
        last = free.then_some(open);
        free
    })
    .await;
    let (text, clean) = last.unwrap().rest().await;
    assert!(clean && text.contains("\"end\""), "{text}");
    let rows = ann.history(&session).await;
    assert!(!rows.iter().any(|row| row.content == "one more"), "{rows:?}");
}

/// The only answer in a session of one question, when there is one.
async fn answer(user: &User, session: &str) -> Row {
    eventually("the answer is kept", PATIENCE, async || user.history(session).await.len() == 2).await;
    let mut rows = user.history(session).await;
    assert_eq!((rows[0].role.as_str(), rows[0].status.as_str()), ("user", "complete"));
    rows.remove(1)
}
