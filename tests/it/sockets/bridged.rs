//! `bridge: websocket` before what the gateway does itself: chats, and gRPC methods that stream.

use super::bed::*;
use crate::chat::bed::{Bed, User};
use crate::harness::client::PATIENCE;
use crate::harness::{Gateway, Wire, eventually};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use voicegate::demo::Demo;

const AT_ONCE: Duration = Duration::from_millis(1800);

async fn said(wire: &mut Wire) -> Value {
    match next(wire).await {
        Came::Text(text) => serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text:?} is no JSON")),
        other => panic!("{other:?} is no text"),
    }
}

/// Reads up to the first message of this type, or with a code.
async fn said_of(wire: &mut Wire, wanted: &str) -> Value {
    loop {
        let said = said(wire).await;
        if said["type"] == wanted || said["code"] == wanted {
            return said;
        }
    }
}

async fn socket(user: &User, path: &str) -> Wire {
    let path = format!("/api/v01{path}");
    open_with(user.client.address(), &path, &[("Authorization", &user.bearer)]).await
}

fn question(session: &str, query: &str) -> Vec<u8> {
    frame(TEXT, json!({ "session_id": session, "query": query }).to_string())
}

#[tokio::test]
async fn a_chat_is_held_over_one_socket() {
    let bed = Bed::sqlite().await;
    let ann = bed.register("ann").await;
    let session = ann.create().await;
    // What tells one request apart is not what tells its messages apart.
    let headers =
        [("Authorization", &*ann.bearer), ("Idempotency-Key", "\"one\""), ("Last-Event-ID", "gone:1")];
    let mut wire = open_with(ann.client.address(), "/api/v01/chat/socket", &headers).await;
    for turn in 1..=2 {
        let query = format!("delay=0ms&tokens={turn}");
        wire.send(question(&session, &query)).await;
        assert_eq!(said(&mut wire).await, json!({ "type": "start", "session_id": session }));
        let mut answer = String::new();
        let end = loop {
            let said = said(&mut wire).await;
            match said["type"].as_str() {
                Some("token") => answer.push_str(said["content"].as_str().unwrap()),
                _ => break said,
            }
        };
        assert_eq!((&end["type"], &end["total_tokens"]), (&json!("end"), &json!(turn)));
        let rows = ann.history(&session).await;
        assert_eq!(rows.len(), 2 * turn, "{rows:?}");
        assert_eq!(rows[2 * turn - 2].is(), ("user", "complete", &*query));
        assert_eq!(rows[2 * turn - 1].is(), ("assistant", "complete", &*answer));
    }
    let asked = bed.model.asked();
    assert_eq!(asked.len(), 2);
    assert!(asked[0].head.starts_with("post /v01/query/stream "), "{}", asked[0].head);
    assert!(asked[0].head.contains(&format!("x-user-id: {}\r\n", ann.id)), "{}", asked[0].head);
    assert!(!asked[0].head.contains("authorization") && !asked[0].head.contains("sec-websocket"));
}

#[tokio::test]
async fn what_a_chat_refuses_is_said_and_the_socket_goes_on() {
    let bed = Bed::sqlite().await;
    let (ann, eve) = (bed.register("ann").await, bed.register("eve").await);
    let (session, hers) = (ann.create().await, eve.create().await);
    let mut wire = socket(&ann, "/chat/socket").await;
    for (asked, status, code) in [
        (question(&hers, "hello"), 404, "not_found"),
        (question(&session, " "), 400, "validation_failed"),
        (frame(TEXT, "hello"), 400, ""),
    ] {
        wire.send(asked).await;
        let said = said(&mut wire).await;
        assert_eq!(said["status"], status, "{said}");
        assert!(code.is_empty() || said["code"] == code, "{said}");
    }
    assert_eq!(bed.model.asked().len(), 0);

    wire.send(question(&session, "delay=20ms&tokens=100000")).await;
    said_of(&mut wire, "token").await;
    wire.send(question(&session, "tokens=1")).await;
    assert_eq!(said_of(&mut wire, "still_running").await["status"], 409);
    said_of(&mut wire, "token").await;
    assert_eq!(bed.model.asked().len(), 1);
    assert_eq!(ann.cancel(&session, None).await.status, 200);
    said_of(&mut wire, "cancelled").await;
    wire.send(question(&session, "delay=0ms&tokens=1")).await;
    said_of(&mut wire, "end").await;
}

#[tokio::test]
async fn who_leaves_a_chat_leaves_it_as_on_disconnect_says() {
    let bed = Bed::sqlite().await;
    let ann = bed.register("ann").await;
    for (path, query, status) in [
        ("/chat/socket", "delay=20ms&tokens=100000", "interrupted"),
        ("/chat/socket/finish", "delay=20ms&tokens=30", "complete"),
    ] {
        let session = ann.create().await;
        let mut wire = socket(&ann, path).await;
        wire.send(question(&session, query)).await;
        said_of(&mut wire, "token").await;
        drop(wire);
        eventually("the answer is kept", PATIENCE, async || ann.history(&session).await.len() == 2).await;
        let rows = ann.history(&session).await;
        assert_eq!((rows[1].role.as_str(), rows[1].status.as_str()), ("assistant", status));
    }
    let streams = bed.model.streams();
    assert_eq!((streams.aborted, streams.finished, streams.running), (1, 1, 0));
}

#[tokio::test]
async fn sockets_of_chats_are_sockets_like_any_other() {
    let bed = Bed::sqlite().await;
    let ann = bed.register("ann").await;
    let address = ann.client.address();
    let path = "/api/v01/chat/socket";
    assert_eq!(refused(address, path, &[]).await, (401, "no_token".to_owned()));
    let evil = [("Authorization", &*ann.bearer), ("Origin", "https://evil.example")];
    assert_eq!(refused(address, path, &evil).await, (403, "origin_not_allowed".to_owned()));
    // Whoever may only read opens none, though it is opened with GET.
    let reader = bed.user_as("default", "reader", "reader").await;
    let reading = [("Authorization", &*reader.bearer)];
    assert_eq!(refused(address, path, &reading).await, (403, "permission_denied".to_owned()));

    let session = ann.create().await;
    let mut wire = socket(&ann, "/chat/socket").await;
    let again = refused(address, path, &[("Authorization", &*ann.bearer)]).await;
    assert_eq!(again.0, 429, "{again:?}");
    wire.send(question(&session, "delay=20ms&tokens=100000")).await;
    said_of(&mut wire, "token").await;
    let refresh = json!({ "refresh_token": ann.refresh_token });
    assert_eq!(ann.send("POST", "/auth/logout", &[], refresh).await.status, 204);
    let last = loop {
        match next(&mut wire).await {
            Came::Text(_) => {}
            other => break other,
        }
    };
    assert!(matches!(last, Came::Close(Some(4401), _)), "{last:?}");
    eventually("the model is stopped", AT_ONCE, async || bed.model.streams().aborted == 1).await;

    let eve = bed.register("eve").await;
    let mut wire = socket(&eve, "/chat/socket").await;
    let url = bed.model.url();
    let without = crate::chat::bed::manifest(&url, "1h").replace("GET /chat/socket,", "GET /chat/elsewhere,");
    bed.gateway.rewrite(&without);
    let last = next(&mut wire).await;
    assert!(matches!(last, Came::Close(Some(1012), _)), "{last:?}");
}

#[tokio::test]
async fn messages_of_a_grpc_stream_are_messages() {
    let demo = Demo::start().await.unwrap();
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi/protos/documents.proto");
    let service = "voicehelper.documents.v1.Documents";
    for source in ["protos: [documents.proto]", "reflection: true"] {
        let manifest = format!(
            "upstreams: {{ documents: {{ protocol: grpc, targets: [{{ url: \"{}\" }}], {source} }} }}\n\
             routes:\n\
             \x20 - {{ route: POST /register, handler: auth.register, public: true, chain: [] }}\n\
             \x20 - {{ route: POST /documents, chain: [auth], upstream: documents, grpc: {service}/Create }}\n\
             \x20 - {{ route: GET /watch, chain: [auth], upstream: documents, grpc: {service}/Watch, bridge: websocket }}\n",
            demo.url()
        );
        let gateway = Gateway::with(&manifest)
            .file("documents.proto", &std::fs::read_to_string(&proto).unwrap())
            .start()
            .await;
        let ann = r#"{"username": "ann", "email": "ann@example.com", "password": "Gateway1"}"#;
        let bearer = gateway.client.post("/register", ann).await.json()["access_token"].clone();
        let bearer = format!("Bearer {}", bearer.as_str().unwrap());
        let headers = [("authorization", &*bearer), ("content-type", "application/json")];
        let make = async |title: &str| {
            let body = json!({ "title": title }).to_string();
            gateway.client.send("POST", "/documents", &headers, &body).await.status
        };
        eventually("it has told of itself", PATIENCE, async || make("One").await == 200).await;
        let mut wire = open_with(gateway.client.address(), "/watch", &headers[..1]).await;
        wire.send(frame(TEXT, r#"{"existng": true}"#)).await;
        let refused = said(&mut wire).await;
        assert_eq!((&refused["status"], &refused["errors"][0]["pointer"]), (&400.into(), &"/existng".into()));
        wire.send(frame(TEXT, r#"{"existing": true, "max_events": 2}"#)).await;
        assert_eq!(said(&mut wire).await["document"]["title"], "One");
        assert_eq!(make("Two").await, 200);
        assert_eq!(said(&mut wire).await["document"]["title"], "Two");
        assert_eq!(said(&mut wire).await, json!({}), "the call's end");
        wire.send(frame(TEXT, r#"{"existing": true}"#)).await;
        said(&mut wire).await;
        assert_eq!(demo.watchers(), 1);
        drop(wire);
        eventually("the service's work ends", AT_ONCE, async || demo.watchers() == 0).await;
    }
}
