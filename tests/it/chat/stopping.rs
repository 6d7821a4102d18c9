//! Answers that somebody stops, by asking for it or by taking away what they belong to.

use super::*;

on_both!(
    an_answer_can_be_stopped,
    what_is_anothers_cannot_be_stopped,
    a_session_that_is_deleted_takes_its_answer_along,
    an_account_that_is_deleted_leaves_no_answer,
);

async fn an_answer_can_be_stopped(bed: Bed) {
    let ann = bed.register("ann").await;
    let session = ann.create().await;
    let mut one = ann.ask("/chat/stream", &session, "delay=0ms&stall_after=4").await;
    let mut two = ann.ask("/chat/finish", &session, "delay=0ms&stall_after=2").await;
    let ids = [&one, &two].map(|open| open.headers["x-stream-id"].to_str().unwrap().to_owned());
    let said_by_one = said(&until(&mut one, ":5\n").await);
    let said_by_two = said(&until(&mut two, ":3\n").await);

    let stopped = ann.cancel(&session, Some(&ids[0])).await;
    assert_eq!(stopped.status, 200, "{}", stopped.text());
    let expected = json!({ "session_id": session, "status": "cancelled", "stream_ids": [ids[0]] });
    assert_eq!(stopped.json(), expected);
    let row = async |id: &str| ann.history(&session).await.into_iter().find(|row| row.id == id).unwrap();
    assert_eq!(row(&ids[0]).await.is(), ("assistant", "cancelled", &*said_by_one), "already there");
    let (text, clean) = one.rest().await;
    let last = events(&text).pop().unwrap();
    assert_eq!(
        (clean, last.data, last.id),
        (true, json!({ "type": "cancelled" }), Some(format!("{}:6", ids[0])))
    );
    assert_eq!(bed.model.streams().running, 1, "the other goes on");

    let stopped = ann.cancel(&session, None).await;
    assert_eq!((stopped.status.as_u16(), &stopped.json()["stream_ids"]), (200, &json!([ids[1]])));
    assert_eq!(row(&ids[1]).await.is(), ("assistant", "cancelled", &*said_by_two));
    assert!(two.rest().await.0.contains("\"cancelled\""));
    eventually("the model is let go", AT_ONCE, async || bed.model.streams().running == 0).await;
    let told: Vec<_> = bed.model.asked().into_iter().filter(|call| call.path.ends_with("/cancel")).collect();
    assert_eq!(told.len(), 1, "its own endpoint was told of the session, not of one answer among others");
    assert_eq!(told[0].path, "/api/v1/chat/cancel");
    assert_eq!(told[0].body, json!({ "session_id": session }));

    for stream in [None, Some(&*ids[0]), Some("unknown"), Some("")] {
        let nothing = ann.cancel(&session, stream).await;
        assert_eq!((nothing.status.as_u16(), nothing.code().as_str()), (404, "not_running"), "{stream:?}");
    }
    assert_eq!(ann.history(&session).await.len(), 4);
    assert_eq!(bed.model.asked().len(), 3, "nothing runs, nobody is told");
}

async fn what_is_anothers_cannot_be_stopped(bed: Bed) {
    let (ann, eve) = (bed.register("ann").await, bed.register("eve").await);
    let stranger = bed.user_in("acme", "ann").await;
    let session = ann.create().await;
    let mut open = ann.ask("/chat/stream", &session, "delay=0ms&stall_after=1").await;
    let stream = open.headers["x-stream-id"].to_str().unwrap().to_owned();
    until(&mut open, "\"token\"").await;
    for user in [&eve, &stranger] {
        for stream in [None, Some(&*stream)] {
            let absent = user.cancel(&uuid::Uuid::new_v4().to_string(), stream).await;
            let refused = user.cancel(&session, stream).await;
            assert_eq!(refused.status, 404);
            assert_eq!(refused.code(), absent.code());
        }
        // Nor by a session of their own.
        let own = user.create().await;
        assert_eq!(user.cancel(&own, Some(&stream)).await.code(), "not_running");
    }
    assert_eq!((bed.model.streams().running, bed.model.asked().len()), (1, 1));
    assert_eq!(ann.cancel(&session, None).await.status, 200);
}

async fn a_session_that_is_deleted_takes_its_answer_along(bed: Bed) {
    let ann = bed.register("ann").await;
    let session = ann.create().await;
    let mut open = ann.ask("/chat/finish", &session, "delay=0ms&stall_after=1").await;
    until(&mut open, "\"token\"").await;
    assert_eq!(ann.send("DELETE", &format!("/sessions/{session}"), &[], Value::Null).await.status, 204);
    eventually("the model is stopped", AT_ONCE, async || bed.model.streams().aborted == 1).await;
    let (text, clean) = open.rest().await;
    assert!(clean && text.contains("\"cancelled\""), "{text}");
    eventually("nothing runs", PATIENCE, async || bed.number("SELECT COUNT(*) FROM turns").await == 0).await;
}

async fn an_account_that_is_deleted_leaves_no_answer(bed: Bed) {
    let ann = bed.register("ann").await;
    let session = ann.create().await;
    let mut read = ann.ask("/chat/stream", &session, "delay=0ms&stall_after=1").await;
    let mut left = ann.ask("/chat/finish", &session, "delay=20ms&tokens=100000").await;
    until(&mut read, "\"token\"").await;
    until(&mut left, "\"token\"").await;
    drop(left);
    let gone = ann.send("DELETE", "/auth/me", &[], json!({ "password": bed::PASSWORD })).await;
    assert_eq!(gone.status, 204, "{}", gone.text());
    let (text, clean) = read.rest().await;
    let last = events(&text).pop().unwrap().data;
    assert!(clean && (last["type"] == "reauth" || last["type"] == "cancelled"), "{text}");
    let turns = &bed.gateway.live().shared().turns;
    eventually("nobody's answers are not written on", PATIENCE / 4, async || {
        turns.running() == 0 && bed.model.streams().aborted == 2
    })
    .await;
    for sql in
        ["SELECT COUNT(*) FROM messages", "SELECT COUNT(*) FROM turns", "SELECT COUNT(*) FROM sessions"]
    {
        assert_eq!(bed.number(sql).await, 0, "{sql}");
    }
}
