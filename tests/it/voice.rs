//! Voice through the shipped manifest, with the demo behind it: uploads, speech, tickets and sockets.

use crate::harness::client::PATIENCE;
use crate::harness::{Gateway, Sockets, Wire, eventually};
use crate::shipped::shipped;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use voicegate::demo::Demo;

const ANN: &str = r#"{"username": "ann", "email": "ann@example.com", "password": "Gateway1"}"#;
const FORM: (&str, &str) = ("content-type", "multipart/form-data; boundary=b-1");

/// The header of a new user.
async fn bearer(gateway: &Gateway) -> String {
    let said = gateway.client.post("/api/v01/auth/register", ANN).await;
    assert_eq!(said.status, 201, "{}", said.text());
    format!("Bearer {}", said.json()["access_token"].as_str().unwrap())
}

/// A form with one part.
fn form(head: &str, content: &str) -> String {
    format!("--b-1\r\nContent-Disposition: form-data; {head}\r\n\r\n{content}\r\n--b-1--\r\n")
}

const WAV: &str = "name=\"audio\"; filename=\"a.wav\"\r\nContent-Type: audio/wav";

#[tokio::test]
async fn recordings_become_text_if_they_are_recordings() {
    let demo = Demo::start().await.unwrap();
    let gateway = shipped(&demo).await;
    let bearer = bearer(&gateway).await;
    let token = ("authorization", bearer.as_str());
    let transcribe = "/api/v01/voice/transcribe";
    let content = "x".repeat(100_000);
    let answer = gateway.client.send("POST", transcribe, &[token, FORM], &form(WAV, &content)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let told = answer.json();
    assert_eq!((&told["bytes"], &told["content_type"]), (&100_000.into(), &"audio/wav".into()));
    assert!(
        told["text"].is_string() && told["confidence"].is_f64() && told["language"].is_string(),
        "{told}"
    );
    let path = "/api/v2/voice/query?language=en-US";
    let answer = gateway.client.send("POST", path, &[token, FORM], &form(WAV, &content)).await;
    assert_eq!(answer.json()["query"], "What is the weather like today");

    let html = "name=\"audio\"\r\nContent-Type: text/html";
    for (headers, body, status, code) in [
        (&[FORM][..], form(WAV, "x"), 401, "no_token"),
        (&[token, FORM], form(html, "x"), 415, "unsupported_media_type"),
        (&[token, FORM], form("name=\"other\"", "x"), 400, "bad_request"),
        (&[token, FORM], form(WAV, "x").replace("\r\n--b-1--", "\n--b-1--"), 400, "bad_request"),
        (&[token, ("content-type", "audio/wav")], "x".to_owned(), 415, "unsupported_media_type"),
    ] {
        let refused = gateway.client.send("POST", transcribe, headers, &body).await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (status, code), "{body}");
    }
    // Announced as too large, and found to be so on the way.
    let mut caller = Wire::connect(gateway.client.address()).await;
    let head = format!(
        "POST {transcribe} HTTP/1.1\r\nhost: a\r\nauthorization: {bearer}\r\n{}: {}\r\n",
        FORM.0, FORM.1
    );
    caller.send(format!("{head}content-length: {}\r\n\r\n", 26 << 20)).await;
    let refused = caller.answer().await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (413, "payload_too_large"));
    let mut caller = Wire::connect(gateway.client.address()).await;
    caller.send(format!("{head}transfer-encoding: chunked\r\n\r\n")).await;
    caller.send_chunk(format!("--b-1\r\nContent-Disposition: form-data; {WAV}\r\n\r\n").as_bytes()).await;
    let megabyte = vec![b'x'; 1 << 20];
    for _ in 0..26 {
        if !caller.press(&megabyte).await {
            break;
        }
    }
    let refused = caller.answer().await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (413, "payload_too_large"));
    eventually("no request is left at the service", Duration::from_secs(10), || async {
        demo.stats().unanswered == 0
    })
    .await;
}

#[tokio::test]
async fn an_upload_is_on_its_way_before_it_ends_and_breaks_off_at_a_part_that_may_not_come() {
    let (seen, mut sees) = watch::channel(String::new());
    let seen = Arc::new(seen);
    let upstream = Sockets::start(move |_, mut wire| {
        let seen = seen.clone();
        async move {
            loop {
                let bytes = wire.some_or_end().await;
                seen.send_modify(|all| all.push_str(if bytes.is_empty() { "(end)" } else { &bytes }));
                if bytes.is_empty() {
                    return;
                }
            }
        }
    })
    .await;
    let manifest = format!(
        "upstreams: {{ voice: {{ targets: [{{ url: \"{}\" }}] }} }}\n\
         chains: {{ form: [{{ body_limit: 1MiB }}, {{ upload: {{ parts: {{ audio: [audio/*] }} }} }}] }}\n\
         routes: [{{ route: POST /up, public: true, upstream: voice, chain: form }}]\n",
        upstream.url()
    );
    let gateway = Gateway::with(&manifest).start().await;
    let mut caller = Wire::connect(gateway.client.address()).await;
    let (name, value) = FORM;
    caller
        .send(format!(
            "POST /up HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n{name}: {value}\r\n\r\n"
        ))
        .await;
    let begin = format!("--b-1\r\nContent-Disposition: form-data; {WAV}\r\n\r\nfirst words");
    caller.send_chunk(begin.as_bytes()).await;
    let arrived = sees.wait_for(|all| all.contains("first words"));
    tokio::time::timeout(PATIENCE, arrived).await.expect("it is passed on before it ends").unwrap();
    let html =
        "\r\n--b-1\r\nContent-Disposition: form-data; name=audio\r\nContent-Type: text/html\r\n\r\nsecret";
    caller.send_chunk(html.as_bytes()).await;
    let refused = caller.answer().await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (415, "unsupported_media_type"));
    let all = tokio::time::timeout(PATIENCE, sees.wait_for(|all| all.ends_with("(end)"))).await;
    let all = all.expect("the service sees that it broke off").unwrap().clone();
    assert!(!all.contains("secret") && !all.contains("\r\n0\r\n"), "{all}");
}

#[tokio::test]
async fn a_text_is_spoken_piece_by_piece() {
    let demo = Demo::start().await.unwrap();
    let gateway = shipped(&demo).await;
    let bearer = bearer(&gateway).await;
    let token = ("authorization", bearer.as_str());
    let json = ("content-type", "application/json");
    let path = "/api/v01/voice/synthesize";
    let mut open = gateway.client.open("POST", path, &[token, json], r#"{"text": "Hello there"}"#).await;
    assert_eq!((open.status.as_u16(), open.headers["content-type"].to_str().unwrap()), (200, "audio/wav"));
    let first = open.piece().await.unwrap().unwrap();
    assert!(first.starts_with(b"RIFF"));
    let length = u32::from_le_bytes(first[4..8].try_into().unwrap()) as usize + 8;
    let (mut total, mut pieces) = (first.len(), 1);
    while let Some(piece) = open.piece().await {
        total += piece.unwrap().len();
        pieces += 1;
    }
    assert_eq!(total, length);
    assert!(pieces > 3, "{pieces} pieces");
    let text = ("content-type", "text/plain");
    let refused = gateway.client.send("POST", path, &[token, text], "Hello").await;
    assert_eq!(refused.code(), "unsupported_media_type");
}
