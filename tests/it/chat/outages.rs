//! Whatever dies in the middle of an answer: the gateway, in order or at once, or its database.

use super::*;
use crate::harness::{Client, Database, Model, Process};
use bed::manifest;
use sqlx::{Connection, SqliteConnection};
use std::path::Path;
use std::time::Instant;

/// The real binary on a database that outlives it.
async fn process(model: &Model, data: &Path, more: &[&str]) -> Process {
    let folder = tempfile::tempdir().unwrap();
    let routes = format!("version: 1\n{}", manifest(&model.url(), "1h"));
    std::fs::write(folder.path().join("routes.yaml"), routes).unwrap();
    let url = format!("sqlite://{}", data.join("gateway.db").display());
    let environment = [("DATABASE_URL", &*url), ("REPLICA", "gateway-0"), ("TURN_CHECKPOINT", "200ms")];
    Process::serve_in(folder, more, &environment).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_outlive_a_gateway_that_is_told_to_stop() {
    let (model, data) = (Model::start().await, tempfile::tempdir().unwrap());
    let mut gateway = process(&model, data.path(), &["--shutdown-grace=3s"]).await;
    let ann = User::register(&gateway.client, "ann").await;
    let (read, left) = (ann.create().await, ann.create().await);
    let open = ann.ask("/chat/stream", &read, "delay=20ms&tokens=100000").await;
    let mut leaves = ann.ask("/chat/finish", &left, "delay=20ms&tokens=40").await;
    until(&mut leaves, "\"token\"").await;
    drop(leaves);
    let begun = Instant::now();
    gateway.signal("TERM");
    let (text, clean) = open.rest().await;
    let last = events(&text).pop().unwrap().data;
    assert_eq!((clean, last), (true, json!({ "type": "error", "code": "shutting_down" })), "{text}");
    assert!(begun.elapsed() >= Duration::from_secs(1), "it went on for as long as it could");
    assert_eq!(gateway.ended(Duration::from_secs(6)).await.code(), Some(0), "{}", gateway.stderr());
    assert!(!gateway.stderr().contains("could not be stored"), "{}", gateway.stderr());

    let after = process(&model, data.path(), &[]).await;
    assert!(!after.stderr().contains("marked as interrupted"), "nothing was left open");
    let ann = ann.at(&after.client);
    assert_eq!(answer(&ann, &read).await.is(), ("assistant", "interrupted", &*said(&text)));
    let finished = answer(&ann, &left).await;
    assert_eq!((finished.status.as_str(), finished.total_tokens), ("complete", Some(40)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_outlive_a_gateway_that_is_killed() {
    let (model, data) = (Model::start().await, tempfile::tempdir().unwrap());
    let mut gateway = process(&model, data.path(), &[]).await;
    let ann = User::register(&gateway.client, "ann").await;
    let session = ann.create().await;
    let mut open = ann.ask("/chat/stream", &session, "delay=20ms&tokens=100000").await;
    let stream = open.headers["x-stream-id"].to_str().unwrap().to_owned();
    // What was said a second before is saved, even by a slow machine.
    let early = until(&mut open, ":20\n").await;
    let since = Instant::now();
    let mut late = String::new();
    while since.elapsed() < Duration::from_secs(1) {
        late.push_str(std::str::from_utf8(&open.piece().await.unwrap().unwrap()).unwrap());
    }
    gateway.signal("KILL");
    gateway.ended(Duration::from_secs(5)).await;
    let (rest, clean) = open.rest().await;
    assert!(!clean, "a cut is no end");
    let heard = format!("{early}{late}{rest}");
    let heard = &heard[..heard.rfind("\n\n").unwrap() + 2];
    eventually("the model is let go", AT_ONCE, async || model.streams().aborted == 1).await;

    let after = process(&model, data.path(), &[]).await;
    // It was marked before anybody was served.
    let rows = ann.at(&after.client).history(&session).await;
    assert_eq!(rows.len(), 2, "{rows:?}");
    assert_eq!(rows[0].is(), ("user", "complete", "delay=20ms&tokens=100000"));
    assert_eq!((rows[1].id.as_str(), rows[1].status.as_str()), (&*stream, "interrupted"));
    assert!(rows[1].content.starts_with(&said(&early)), "at least what was said a second before");
    let words = said(heard);
    let both = words.len().min(rows[1].content.len());
    assert_eq!(rows[1].content[..both], words[..both], "and nothing else");
    assert_eq!(after.events("answers that an earlier process had begun are marked as interrupted").len(), 1);

    let url = format!("sqlite://{}", data.path().join("gateway.db").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    let sound: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut database).await.unwrap();
    let open: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM turns").fetch_one(&mut database).await.unwrap();
    assert_eq!((sound.as_str(), open), ("ok", 0));
    let again = ann.at(&after.client).ask("/chat/stream", &session, "tokens=1&delay=0ms").await;
    assert!(again.rest().await.0.contains("\"end\""), "and it goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_outlives_a_database_that_goes_away() {
    let bed = Bed::on(Database::alone().await).await;
    let ann = bed.register("ann").await;
    let session = ann.create().await;
    let mut open = ann.ask("/chat/stream", &session, "delay=50ms&tokens=30").await;
    let mut text = until(&mut open, "\"token\"").await;
    let database = bed.postgres.as_ref().unwrap();
    database.stop();
    let refused = json!({ "session_id": session, "query": "another" });
    let refused = ann.send("POST", "/chat/stream", &[], refused).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (503, "store_unavailable"));
    let (rest, clean) = open.rest().await;
    text.push_str(&rest);
    let end = events(&text).pop().unwrap().data;
    assert_eq!(
        (clean, end),
        (true, json!({ "type": "end", "total_tokens": 30 })),
        "the reader is not kept waiting"
    );
    assert_eq!(bed.gateway.live().shared().turns.running(), 1, "but it is not given up");
    database.resume();
    let row = answer_after(&ann.client, &ann, &session).await;
    assert_eq!(row.is(), ("assistant", "complete", &*said(&text)));
    eventually("nothing runs", PATIENCE, async || bed.gateway.live().shared().turns.running() == 0).await;
}

/// The answer, from a gateway whose database has just come back.
async fn answer_after(client: &Client, user: &User, session: &str) -> Row {
    let path = format!("/api/v01/sessions/{session}/messages");
    let headers = [("authorization", &*user.bearer)];
    eventually("the database is back", PATIENCE, async || {
        client.send("GET", &path, &headers, "").await.status == 200
    })
    .await;
    answer(user, session).await
}
