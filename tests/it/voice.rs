//! Voice through the shipped manifest, with the demo behind it: uploads, speech, tickets and sockets.

use crate::accounts::{PASSWORD, login, me, register, text};
use crate::harness::client::PATIENCE;
use crate::harness::{Gateway, Process, Sockets, Wire, eventually};
use crate::replicas::Stores;
use crate::shipped::shipped;
use crate::sockets::bed::{self, BINARY, Came, TEXT, frame};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
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

/// What comes next as JSON; pings are passed over.
async fn hears(wire: &mut Wire) -> Value {
    loop {
        match bed::next(wire).await {
            Came::Text(text) => return serde_json::from_str(&text).unwrap(),
            Came::Frame(bed::PING, _) => {}
            other => panic!("no text: {other:?}"),
        }
    }
}

async fn says(wire: &mut Wire, message: Value) {
    assert!(wire.send(frame(TEXT, message.to_string())).await);
}

/// A ticket of whoever has this token.
async fn ticket(gateway: &Gateway, bearer: &str) -> String {
    let made = gateway.client.send("POST", "/api/v01/auth/ws-ticket", &[("authorization", bearer)], "").await;
    assert_eq!(
        (made.status.as_u16(), made.header("cache-control")),
        (200, Some("no-store")),
        "{}",
        made.text()
    );
    text(&made.json(), "ticket").to_owned()
}

#[tokio::test]
async fn every_service_behind_a_socket_talks_whichever_way_the_token_came() {
    let demo = Demo::start().await.unwrap();
    let gateway = shipped(&demo).await;
    let bearer = bearer(&gateway).await;
    let token = bearer.strip_prefix("Bearer ").unwrap();
    let address = gateway.client.address();

    // Header: a voice session, with audio as JSON and as it is.
    let mut voice = bed::open_with(address, "/api/v2/voice/stream", &[("Authorization", &bearer)]).await;
    says(&mut voice, json!({ "type": "voice_start", "session_id": "s" })).await;
    let started = hears(&mut voice).await;
    assert_eq!(
        (&started["type"], &started["config"]["sample_rate"]),
        (&json!("session_started"), &json!(16000))
    );
    says(&mut voice, json!({ "type": "voice_audio", "session_id": "s", "data": "AAAA".repeat(3200) })).await;
    assert_eq!(hears(&mut voice).await["type"], "asr_partial");
    voice.send(frame(BINARY, vec![0; 9600 * 3])).await;
    let heard = [hears(&mut voice).await, hears(&mut voice).await];
    assert_eq!(heard.map(|event| event["type"].clone()), ["asr_final", "answer"]);
    says(&mut voice, json!({ "type": "voice_stop" })).await;
    assert_eq!(hears(&mut voice).await["audio_bytes"], 4 * 9600);
    says(&mut voice, json!({ "type": "voice_audio", "data": "" })).await;
    assert_eq!(hears(&mut voice).await["code"], "not_started");
    voice.send(bed::close(1000, "bye")).await;
    assert_eq!(bed::next(&mut voice).await, Came::Close(Some(1000), "bye".to_owned()));

    // Subprotocol: the dialect of older front ends. Only the gateway's own is echoed.
    let offer = format!("voicegate.v1, bearer.{token}");
    let (mut older, head) =
        bed::ask(address, "/api/v2/voice/ws", &[("Sec-WebSocket-Protocol", &offer)]).await;
    assert!(head.starts_with("HTTP/1.1 101 ") && !head.contains(token), "{head}");
    assert_eq!(bed::header(&head, "sec-websocket-protocol"), Some("voicegate.v1"));
    assert_eq!(bed::header(&head, "x-new-token"), None);
    assert_eq!(hears(&mut older).await["type"], "connected");
    says(&mut older, json!({ "type": "ping" })).await;
    assert_eq!(hears(&mut older).await["type"], "pong");

    // Query: two peers.
    let signaling = format!("/api/v2/webrtc/signaling?token={token}");
    let (mut ann, mut ben) =
        (bed::open_with(address, &signaling, &[]).await, bed::open_with(address, &signaling, &[]).await);
    says(&mut ann, json!({ "type": "join", "room": "r" })).await;
    assert_eq!(hears(&mut ann).await["type"], "joined");
    says(&mut ben, json!({ "type": "join", "room": "r" })).await;
    assert_eq!(hears(&mut ben).await["peers"], json!(["peer-1"]));
    assert_eq!(hears(&mut ann).await["type"], "peer_joined");
    says(&mut ann, json!({ "type": "offer", "sdp": "v=0" })).await;
    assert_eq!(hears(&mut ben).await, json!({ "type": "offer", "sdp": "v=0", "from": "peer-1" }));
    drop(ben);
    assert_eq!(hears(&mut ann).await["type"], "peer_left");

    // Ticket: notifications, for whom it was made.
    let path = format!("/api/v2/notifications?ticket={}", ticket(&gateway, &bearer).await);
    let mut bell = bed::open_with(address, &path, &[]).await;
    let user = hears(&mut bell).await["user_id"].clone();
    let account = me(&gateway.client, token).await.json();
    assert_eq!(user, account["id"]);
    let told = json!({ "title": "Hi", "user_id": user }).to_string();
    let service = crate::harness::Client::new(demo.addr());
    assert_eq!(service.post("/notifications", &told).await.json()["delivered"], 1);
    assert_eq!(hears(&mut bell).await["title"], "Hi");
    assert_eq!(bed::refused(address, &path, &[]).await, (401, "invalid_ticket".to_owned()), "it was used");

    // Cookies come with a browser's every socket: the page must be one of ours.
    let cookie = format!("access_token={token}");
    let from = |origin| [("Cookie", cookie.as_str()), ("Origin", origin)];
    let foreign = bed::refused(address, "/api/v2/notifications", &from("https://evil.example")).await;
    assert_eq!(foreign, (403, "origin_not_allowed".to_owned()));
    bed::open_with(address, "/api/v2/notifications", &from("http://localhost:3000")).await;
}

/// A gateway's tickets, and a socket behind them.
fn with_sockets(url: &str, ttl: &str) -> String {
    format!(
        r#"
auth: {{ ticket_ttl: {ttl}, password: {{ bcrypt_cost: 4 }} }}
upstreams: {{ voice: {{ targets: [{{ url: "{url}" }}] }} }}
chains:
  open: [recovery, request_id]
  own: [{{ chain: open }}, auth]
versions:
  - name: v01
    prefix: /api/v01
    chain: own
    routes:
      - {{ route: POST /auth/register, handler: auth.register, chain: open, public: true }}
      - {{ route: POST /auth/login, handler: auth.login, chain: open, public: true }}
      - {{ route: POST /auth/logout, handler: auth.logout }}
      - {{ route: GET /auth/me, handler: auth.me }}
      - {{ route: POST /auth/ws-ticket, handler: auth.ticket }}
      - {{ route: GET /talk, upstream: voice, path: /api/v1/voice/stream, protocol: websocket }}
"#
    )
}

/// Status and code of a handshake with a ticket; 101 without a code.
async fn tried(gateway: &Gateway, ticket: &str) -> (u16, String) {
    bed::refused(gateway.client.address(), &format!("/api/v01/talk?ticket={ticket}"), &[]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_counts_once_at_whichever_replica_and_ends_with_its_login() {
    let demo = Demo::start().await.unwrap();
    let manifest = with_sockets(&demo.url(), "30s");
    let mut stores = Stores::start().await;
    let one = stores.replica_of(Gateway::with(&manifest)).await;
    let other = stores.replica_of(Gateway::with(&manifest)).await;
    register(&one.client, "ann").await;
    let session = login(&one.client, "ann", PASSWORD).await.json();
    let bearer = format!("Bearer {}", text(&session, "access_token"));

    let first = ticket(&one, &bearer).await;
    let tries = (0..50).map(|number| tried(if number % 2 == 0 { &one } else { &other }, &first));
    let answers = join_all(tries).await;
    let opened = answers.iter().filter(|(status, _)| *status == 101).count();
    let spent = answers.iter().filter(|answer| **answer == (401, "invalid_ticket".to_owned())).count();
    assert_eq!((opened, spent), (1, 49), "{answers:?}");

    // Taken at the one, good at the other; what it opened ends with the login, and so does a ticket that is left.
    let path = format!("/api/v01/talk?ticket={}", ticket(&one, &bearer).await);
    let left = ticket(&one, &bearer).await;
    let mut open = bed::open_with(other.client.address(), &path, &[]).await;
    says(&mut open, json!({ "type": "voice_start" })).await;
    assert_eq!(hears(&mut open).await["type"], "session_started");
    let refresh = json!({ "refresh_token": session["refresh_token"] }).to_string();
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    assert_eq!(one.client.send("POST", "/api/v01/auth/logout", &headers, &refresh).await.status, 204);
    let ended = bed::next(&mut open).await;
    assert!(matches!(ended, Came::Close(Some(4401), _)), "{ended:?}");
    assert_eq!(tried(&other, &left).await, (401, "token_revoked".to_owned()));

    // Without Redis there are none, which is said at once.
    let session = login(&one.client, "ann", PASSWORD).await.json();
    let bearer = format!("Bearer {}", text(&session, "access_token"));
    stores.redis.kill();
    let begun = Instant::now();
    for _ in 0..5 {
        let path = "/api/v01/auth/ws-ticket";
        let refused = one.client.send("POST", path, &[("authorization", &bearer)], "").await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (503, "store_unavailable"));
        assert_eq!(refused.header("retry-after"), Some("1"));
        assert_eq!(tried(&other, &left).await, (503, "store_unavailable".to_owned()));
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    // A token needs no Redis.
    bed::open_with(other.client.address(), "/api/v01/talk", &[("Authorization", &bearer)]).await;
}

#[tokio::test]
async fn a_ticket_runs_out() {
    let demo = Demo::start().await.unwrap();
    let gateway = Gateway::with(&with_sockets(&demo.url(), "300ms")).start().await;
    register(&gateway.client, "ann").await;
    let session = login(&gateway.client, "ann", PASSWORD).await.json();
    let bearer = format!("Bearer {}", text(&session, "access_token"));
    let (soon, late) = (ticket(&gateway, &bearer).await, ticket(&gateway, &bearer).await);
    assert_eq!(tried(&gateway, &soon).await.0, 101);
    tokio::time::sleep(Duration::from_millis(350)).await;
    assert_eq!(tried(&gateway, &late).await, (401, "invalid_ticket".to_owned()));
}

#[tokio::test]
async fn no_token_or_ticket_is_written_down() {
    let process =
        Process::serve_in(tempfile::tempdir().unwrap(), &["--demo"], &[("LOG_LEVEL", "debug")]).await;
    let said = process.client.post("/api/v01/auth/register", ANN).await.json();
    let token = text(&said, "access_token");
    let bearer = format!("Bearer {token}");
    let made = process
        .client
        .send("POST", "/api/v01/auth/ws-ticket", &[("authorization", &bearer)], "")
        .await
        .json();
    let ticket = text(&made, "ticket");
    let (address, offer) = (process.client.address(), format!("voicegate.v1, bearer.{token}"));
    let path = |query: &str| format!("/api/v2/notifications?{query}");
    for (path, headers) in [
        (path(&format!("token={token}")), vec![]),
        (path(&format!("ticket={ticket}")), vec![]),
        (path("a=1"), vec![("Sec-WebSocket-Protocol", offer.as_str())]),
    ] {
        let mut open = bed::open_with(address, &path, &headers).await;
        hears(&mut open).await;
        open.send(bed::close(1000, "")).await;
        bed::next(&mut open).await;
    }
    // Refused ones neither.
    let spent = bed::ask(address, &path(&format!("ticket={ticket}")), &[]).await;
    assert!(spent.1.starts_with("HTTP/1.1 401 ") && !spent.1.contains(ticket), "{}", spent.1);
    bed::refused(address, &path(&format!("token={token}x")), &[]).await;
    let lines = || process.stderr().matches("/api/v2/notifications").count();
    eventually("the sockets are in the log", Duration::from_secs(10), || async { lines() >= 5 }).await;
    let log = process.stderr();
    let signature = token.rsplit('.').next().unwrap();
    for secret in [token, ticket, signature, "bearer."] {
        assert!(!log.contains(secret), "{secret}: {log}");
    }
}
