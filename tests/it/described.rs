//! What streams and sockets really say, held against what the description says of them: nothing else, and all of it.

use crate::accounts::text;
use crate::harness::{Gateway, Wire};
use crate::shipped::shipped;
use crate::sockets::bed::{self, BINARY, Came, TEXT, frame};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use voicegate::demo::Demo;

/// Whether a value is what a schema of a document says, and has no field besides.
fn fits(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let whole = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "components": document["components"],
        "allOf": [schema],
        "unevaluatedProperties": false,
    });
    let validator = jsonschema::options().build(&whole).unwrap();
    let fault = validator.iter_errors(value).next().map(|fault| format!("{fault:.500}"));
    fault.map_or(Ok(()), Err)
}

/// An event as it came.
#[derive(Debug)]
struct Event {
    name: String,
    id: Option<String>,
    data: String,
}

fn events(stream: &str) -> Vec<Event> {
    let blocks = stream.split("\n\n").filter(|block| block.lines().any(|line| !line.starts_with(':')));
    let blocks = blocks.filter(|block| !block.is_empty());
    let parsed = blocks.map(|block| {
        let field = |name: &str| {
            block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
        };
        Event {
            name: field("event").unwrap_or_else(|| "message".to_owned()),
            id: field("id"),
            data: field("data").unwrap(),
        }
    });
    parsed.collect()
}

/// Holds a stream against both descriptions of it; the kinds of events there were.
async fn held(gateway: &Gateway, path: &str, stream: &str) -> BTreeSet<String> {
    let media = |document: &Value| {
        document["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"].clone()
    };
    let old = gateway.client.get("/openapi.json").await.json();
    let new = gateway.client.get("/openapi.json?version=3.2").await.json();
    let item = media(&new)["itemSchema"].clone();
    let mut kinds = BTreeSet::new();
    for event in events(stream) {
        let data: Value = serde_json::from_str(&event.data).unwrap();
        fits(&old, &media(&old)["schema"], &data).unwrap_or_else(|why| panic!("3.1: {event:?}: {why}"));
        let mut whole = json!({ "data": event.data });
        if event.name != "message" {
            whole["event"] = event.name.as_str().into();
        }
        if let Some(id) = &event.id {
            whole["id"] = id.as_str().into();
        }
        fits(&new, &item, &whole).unwrap_or_else(|why| panic!("3.2: {event:?}: {why}"));
        let alternatives = item["oneOf"].as_array().unwrap();
        let mut meant = alternatives.iter().filter(|one| one["properties"]["event"]["const"] == event.name);
        let content = &meant.next().unwrap()["properties"]["data"]["contentSchema"];
        fits(&new, content, &data).unwrap_or_else(|why| panic!("3.2, its data: {event:?}: {why}"));
        kinds.insert(data["type"].as_str().map_or(event.name, str::to_owned));
    }
    kinds
}

async fn token(gateway: &Gateway) -> String {
    let said = gateway
        .client
        .post(
            "/api/v01/auth/register",
            r#"{"username": "ann", "email": "ann@example.com", "password": "Gateway1"}"#,
        )
        .await;
    assert_eq!(said.status, 201, "{}", said.text());
    format!("Bearer {}", text(&said.json(), "access_token"))
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn every_event_of_an_answer_is_described() {
    let demo = Demo::start().await.unwrap();
    let gateway = shipped(&demo).await;
    let bearer = token(&gateway).await;
    let headers = [("authorization", &*bearer), ("content-type", "application/json")];
    let session = gateway.client.send("POST", "/api/v01/sessions", &headers, "{}").await;
    let id = text(&session.json(), "session_id").to_owned();
    let question = json!({ "session_id": id, "query": "Tell me" }).to_string();

    for (path, kinds) in [
        ("/api/v01/chat/stream", set(&["start", "token", "end"])),
        ("/api/v2/chat/stream", set(&["thinking", "token", "done"])),
    ] {
        let open = gateway.client.open("POST", path, &headers, &question).await;
        assert_eq!(open.status, 200);
        let (stream, clean) = open.rest().await;
        assert!(clean, "{stream}");
        assert_eq!(held(&gateway, path, &stream).await, kinds);
    }
    for (path, cancel) in
        [("/api/v01/chat/stream", "/api/v01/chat/cancel"), ("/api/v2/chat/stream", "/api/v2/chat/cancel")]
    {
        let mut open = gateway.client.open("POST", path, &headers, &question).await;
        let first = String::from_utf8(open.piece().await.unwrap().unwrap().to_vec()).unwrap();
        let body = json!({ "session_id": id }).to_string();
        let stopped = gateway.client.send("POST", cancel, &headers, &body).await;
        assert_eq!(stopped.status, 200, "{}", stopped.text());
        let (rest, _) = open.rest().await;
        let kinds = held(&gateway, path, &(first + &rest)).await;
        assert!(kinds.contains("cancelled"), "{path}: {kinds:?}");
    }
}

/// A socket, with what the descriptions say of it.
struct Talk {
    wire: Wire,
    asyncapi: Value,
    openapi: Value,
    path: &'static str,
    heard: BTreeSet<String>,
}

impl Talk {
    async fn open(gateway: &Gateway, path: &'static str, bearer: &str) -> Talk {
        let wire = bed::open_with(gateway.client.address(), path, &[("Authorization", bearer)]).await;
        let asyncapi = gateway.client.get("/openapi/asyncapi.json").await.json();
        let openapi = gateway.client.get("/openapi.json").await.json();
        Talk { wire, asyncapi, openapi, path, heard: BTreeSet::new() }
    }

    /// The messages that an operation of its channel has.
    fn messages(&self, action: &str) -> Vec<&Value> {
        let channels = self.asyncapi["channels"].as_object().unwrap();
        let (id, _) = channels.iter().find(|(_, channel)| channel["address"] == self.path).unwrap();
        let channel = format!("#/channels/{id}");
        let mut operations = self.asyncapi["operations"].as_object().unwrap().values();
        let operation =
            operations.find(|one| one["channel"]["$ref"] == *channel && one["action"] == action).unwrap();
        let references = operation["messages"].as_array().unwrap().iter();
        references.map(|one| self.asyncapi.pointer(&one["$ref"].as_str().unwrap()[1..]).unwrap()).collect()
    }

    /// Sends the example of a message.
    async fn says(&mut self, name: &str) {
        let message = self.messages("receive").into_iter().find(|message| message["name"] == name).unwrap();
        let example = message["examples"][0]["payload"].clone();
        fits(&self.asyncapi, &message["payload"], &example).unwrap();
        let handshake = &self.openapi["paths"][self.path]["get"]["x-websocket"];
        let frames = handshake["send"]["oneOf"].as_array().unwrap();
        let fitting = frames.iter().filter(|one| one["$ref"].is_string());
        let fitting = fitting.filter(|one| fits(&self.openapi, one, &example).is_ok()).count();
        assert_eq!(fitting, 1, "{name}: {handshake:#}");
        assert!(self.wire.send(frame(TEXT, example.to_string())).await);
    }

    async fn sends(&mut self, bytes: usize) {
        let binary = |message: &&Value| message["contentType"] == "application/octet-stream";
        assert_eq!(self.messages("receive").iter().filter(|one| binary(one)).count(), 1);
        assert!(self.wire.send(frame(BINARY, vec![0; bytes])).await);
    }

    /// Hears these, each as it is described, and as nothing else is.
    async fn hears(&mut self, names: &[&str]) {
        for name in names {
            let came = loop {
                match bed::next(&mut self.wire).await {
                    Came::Text(text) => break serde_json::from_str::<Value>(&text).unwrap(),
                    Came::Frame(bed::PING, _) => {}
                    other => panic!("no text: {other:?}"),
                }
            };
            let fitting: Vec<&Value> = self
                .messages("send")
                .into_iter()
                .filter(|message| fits(&self.asyncapi, &message["payload"], &came).is_ok())
                .map(|message| &message["name"])
                .collect();
            assert_eq!(fitting, [name], "{came}");
            let receive = &self.openapi["paths"][self.path]["get"]["x-websocket"]["receive"];
            fits(&self.openapi, receive, &came).unwrap();
            self.heard.insert((*name).to_owned());
        }
    }

    /// That everything that may be heard was.
    fn heard_all(&self) {
        let all =
            self.messages("send").into_iter().map(|message| message["name"].as_str().unwrap().to_owned());
        assert_eq!(self.heard, all.collect(), "{}", self.path);
    }
}

#[tokio::test]
async fn every_frame_of_the_shipped_sockets_is_described() {
    let demo = Demo::start().await.unwrap();
    let gateway = shipped(&demo).await;
    let bearer = token(&gateway).await;

    let mut voice = Talk::open(&gateway, "/api/v2/voice/stream", &bearer).await;
    voice.says("voice_start").await;
    voice.hears(&["session_started"]).await;
    voice.says("voice_audio").await;
    voice.sends(9600).await;
    voice.hears(&["asr_partial"]).await;
    voice.sends(3 * 9600).await;
    voice.hears(&["asr_final", "answer"]).await;
    voice.says("voice_stop").await;
    voice.hears(&["session_stopped"]).await;
    voice.says("voice_stop").await;
    voice.hears(&["error"]).await;
    voice.heard_all();

    let mut recording = Talk::open(&gateway, "/api/v2/voice/ws", &bearer).await;
    recording.hears(&["connected"]).await;
    recording.says("ping").await;
    recording.hears(&["pong"]).await;
    recording.says("start_recording").await;
    recording.hears(&["recording_started"]).await;
    recording.says("audio_data").await;
    recording.sends(9600).await;
    recording.hears(&["transcription"]).await;
    recording.sends(3 * 9600).await;
    recording.hears(&["transcription", "response"]).await;
    recording.says("stop_recording").await;
    recording.hears(&["recording_stopped"]).await;
    recording.says("config_update").await;
    recording.hears(&["config_updated"]).await;
    recording.says("stop_recording").await;
    recording.hears(&["error"]).await;
    recording.heard_all();

    let path = "/api/v2/webrtc/signaling";
    let (mut ann, mut ben) =
        (Talk::open(&gateway, path, &bearer).await, Talk::open(&gateway, path, &bearer).await);
    assert!(ben.wire.send(frame(TEXT, r#"{"type": "join", "room": "r-1"}"#)).await);
    ben.hears(&["joined"]).await;
    ann.says("join").await;
    ann.hears(&["joined"]).await;
    ben.hears(&["peer_joined"]).await;
    for name in ["offer", "answer", "candidate"] {
        ann.says(name).await;
        ben.hears(&[name]).await;
    }
    ann.says("leave").await;
    ann.hears(&["left"]).await;
    ben.hears(&["peer_left"]).await;
    ann.says("leave").await;
    ann.hears(&["error"]).await;
    ben.heard.append(&mut ann.heard);
    ben.heard_all();

    let mut news = Talk::open(&gateway, "/api/v2/notifications", &bearer).await;
    news.hears(&["hello"]).await;
    news.says("ping").await;
    news.hears(&["pong"]).await;
    news.says("ack").await;
    news.hears(&["acked"]).await;
    let told = notify(&demo, r#"{"title": "Hi"}"#).await;
    assert_eq!(told["delivered"], 1, "{told}");
    news.hears(&["notification"]).await;
    assert!(news.wire.send(frame(TEXT, "{}")).await);
    news.hears(&["error"]).await;
    news.heard_all();
}

/// Makes a notification for everybody.
async fn notify(demo: &Demo, body: &str) -> Value {
    let address = demo.url().trim_start_matches("http://").parse().unwrap();
    crate::harness::Client::new(address).post("/notifications", body).await.json()
}

#[tokio::test]
async fn a_bridge_passes_what_the_stream_behind_it_says() {
    let demo = Demo::start().await.unwrap();
    let gateway = crate::shipped::shipped_with(&demo, |manifest| {
        let route = "      - { route: GET /chat/socket, handler: chat.stream, upstream: algo, path: /v01/query/stream, bridge: websocket, chain: protected, with: { rbac: \"chat:write\" } }\n";
        manifest.replacen("      - route: POST /chat/cancel", &format!("{route}      - route: POST /chat/cancel"), 1)
    })
    .await;
    let bearer = token(&gateway).await;
    let headers = [("authorization", &*bearer), ("content-type", "application/json")];
    let session = gateway.client.send("POST", "/api/v01/sessions", &headers, "{}").await;
    let id = text(&session.json(), "session_id").to_owned();
    let mut talk = Talk::open(&gateway, "/api/v01/chat/socket", &bearer).await;
    let question = json!({ "session_id": id, "query": "你好" });
    let sent: Vec<Value> = talk.messages("receive").into_iter().cloned().collect();
    fits(&talk.asyncapi, &sent[0]["payload"], &question).unwrap();
    assert!(talk.wire.send(frame(TEXT, question.to_string())).await);
    talk.hears(&["start", "token"]).await;
    assert!(talk.wire.send(frame(TEXT, "no JSON")).await);
    let close = &talk.openapi["paths"][talk.path]["get"]["x-websocket"]["closes"];
    assert!(close.as_array().unwrap().iter().any(|one| one["reason"] == "text_only"), "{close}");
}
