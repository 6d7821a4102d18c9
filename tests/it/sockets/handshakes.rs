//! Who may connect, what the upstream is told, and what a caller gets where no socket comes of it.

use super::bed::*;
use super::{gateway, manifest};
use crate::harness::{Gateway, Sockets, eventually};
use std::time::{Duration, Instant};

#[tokio::test]
async fn what_is_no_handshake_is_told_so_before_anything_is_dialled() {
    let echo = Echo::start().await;
    let gateway = gateway(&echo.url(), "").start().await;
    let plain = gateway.client.get("/ws").await;
    assert_eq!((plain.status.as_u16(), plain.code()), (426, "upgrade_required".to_owned()));
    assert_eq!(plain.header("upgrade"), Some("websocket"));
    assert_eq!(plain.header("sec-websocket-version"), Some("13"));
    let old = refused(gateway.client.address(), "/ws", &[("Sec-WebSocket-Version", "8")]).await;
    assert_eq!(old, (426, "upgrade_required".to_owned()));
    let bad = refused(gateway.client.address(), "/ws", &[("Sec-WebSocket-Key", "short")]).await;
    assert_eq!(bad, (400, "bad_request".to_owned()));
    let body = refused(gateway.client.address(), "/ws", &[("Content-Length", "3")]).await;
    assert_eq!(body, (400, "invalid_framing".to_owned()));
    let second = gateway.client.send_h2("GET", "/ws", &[], "").await;
    assert_eq!((second.status.as_u16(), second.code()), (426, "upgrade_required".to_owned()));
    assert_eq!(echo.connections(), 0);
}

#[tokio::test]
async fn pages_of_other_origins_are_refused_before_anything_is_dialled() {
    let echo = Echo::start().await;
    let listed = gateway(&echo.url(), "origins: app").start().await;
    let same = gateway(&echo.url(), "").start().await;
    let own = format!("http://{}", same.client.address());
    for (gateway, origin) in [
        (&listed, "https://evil.example"),
        (&listed, "null"),
        (&listed, "https://app.example.evil"),
        (&same, "https://app.example"),
    ] {
        let said = refused(gateway.client.address(), "/ws", &[("Origin", origin)]).await;
        assert_eq!(said, (403, "origin_not_allowed".to_owned()), "{origin}");
    }
    assert_eq!(echo.connections(), 0);
    for (gateway, origin) in [(&listed, "https://app.example"), (&same, &own)] {
        let mut wire = open_with(gateway.client.address(), "/ws", &[("Origin", origin)]).await;
        echoes(&mut wire, "hello").await;
    }
    open(&listed, "/ws").await;
}

#[tokio::test]
async fn the_upstream_gets_a_handshake_of_the_gateways_own_and_no_secret() {
    let echo = Echo::start().await;
    let gateway = gateway(&echo.url(), "").start().await;
    let (mut wire, head) = ask(
        gateway.client.address(),
        "/ws?a=1&token=s3cret&ticket=s3cret",
        &[
            ("Sec-WebSocket-Protocol", "voicegate.v1, bearer.s3cret"),
            ("X-User-ID", "root"),
            ("X_User_Role", "admin"),
        ],
    )
    .await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(header(&head, "sec-websocket-protocol"), Some("voicegate.v1"), "{head}");
    assert_eq!(header(&head, "sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert!(header(&head, "x-request-id").is_some() && !head.contains("s3cret"), "{head}");
    echoes(&mut wire, "hello").await;
    let asked = echo.heads().pop().unwrap();
    assert!(asked.starts_with("GET /up?a=1 HTTP/1.1\r\n"), "{asked}");
    assert!(!asked.contains("s3cret") && !asked.contains(KEY) && !asked.contains("root"), "{asked}");
    assert!(!asked.to_ascii_lowercase().contains("x_user_role"), "{asked}");
    assert_eq!(header(&asked, "sec-websocket-protocol"), None, "{asked}");
    assert_eq!(header(&asked, "x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(header(&asked, "x-request-id"), header(&head, "x-request-id"));
}

#[tokio::test]
async fn a_subprotocol_is_the_upstreams_choice() {
    let echo = Echo::saying("Sec-WebSocket-Protocol: soap\r\n").await;
    let gateway = gateway(&echo.url(), "").start().await;
    let offer = [("Sec-WebSocket-Protocol", "chat, voicegate.v1, bearer.x, soap")];
    let (_wire, head) = ask(gateway.client.address(), "/ws", &offer).await;
    assert_eq!(header(&head, "sec-websocket-protocol"), Some("soap"), "{head}");
    assert_eq!(header(&echo.heads()[0], "sec-websocket-protocol"), Some("chat, soap"));
    let not_offered = refused(gateway.client.address(), "/ws", &[("Sec-WebSocket-Protocol", "chat")]).await;
    assert_eq!(not_offered, (502, "upstream_bad_response".to_owned()));
}

#[tokio::test]
async fn what_else_an_upstream_answers_goes_back() {
    let upstream = Sockets::saying(
        "HTTP/1.1 401 Unauthorized\r\nContent-Length: 6\r\nX-Why: nobody\r\nUpgrade: websocket\r\n\r\nnobody",
    )
    .await;
    let gateway = gateway(&upstream.url(), "").start().await;
    let (mut wire, head) = ask(gateway.client.address(), "/ws", &[]).await;
    assert!(head.starts_with("HTTP/1.1 401 "), "{head}");
    assert_eq!((header(&head, "x-why"), header(&head, "upgrade")), (Some("nobody"), None));
    assert_eq!(wire.bytes(6).await, b"nobody");
    // The caller's connection is an ordinary one still.
    wire.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(wire.answer().await.text(), "ok");
}

#[tokio::test]
async fn an_upstream_that_cannot_be_had_is_said_as_elsewhere() {
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let dead = gateway(&format!("http://{closed}"), "").start().await;
    let said = refused(dead.client.address(), "/ws", &[]).await;
    assert_eq!(said, (502, "upstream_unreachable".to_owned()));
    let wrong = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: bm90IGFuIGFuc3dlcg==\r\n\r\n";
    for (answer, code) in [
        (wrong, "upstream_bad_response"),
        ("nonsense\r\n\r\n", "upstream_bad_response"),
        ("", "upstream_reset"),
    ] {
        let upstream = Sockets::saying_last(answer).await;
        let gateway = gateway(&upstream.url(), "").start().await;
        let said = refused(gateway.client.address(), "/ws", &[]).await;
        assert_eq!(said, (502, code.to_owned()), "{answer}");
    }
    let silent = Sockets::start(|_, mut wire| async move { drop(wire.rest().await) }).await;
    let limits = "targets: [{ url";
    let impatient =
        manifest(&silent.url(), "").replace(limits, "timeouts: { first_byte: 300ms }, targets: [{ url");
    let late = Gateway::with(&impatient).start().await;
    let said = refused(late.client.address(), "/ws", &[]).await;
    assert_eq!(said, (504, "upstream_timeout".to_owned()));
}

#[tokio::test]
async fn nothing_of_the_callers_is_sent_before_the_upstreams_101() {
    let early = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = early.clone();
    let upstream = Sockets::start(move |_, mut wire| {
        let seen = seen.clone();
        async move {
            // Everything that comes before the answer.
            let head = wire.until("\r\n\r\n").await;
            let more = tokio::time::timeout(Duration::from_millis(300), wire.some()).await;
            seen.lock().unwrap().push((head, more.ok()));
            wire.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
            wire.rest().await;
        }
    })
    .await;
    let gateway = gateway(&upstream.url(), "").start().await;
    let mut wire = crate::harness::Wire::connect(gateway.client.address()).await;
    let smuggled = "GET /admin HTTP/1.1\r\nHost: a\r\n\r\n";
    let head = format!(
        "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {KEY}\r\n\r\n{smuggled}"
    );
    wire.send(head).await;
    assert_eq!(wire.answer().await.status, 403);
    // What came behind the head is the next request to the gateway, and no route takes it.
    assert_eq!(wire.answer().await.status, 404);
    let seen = early.lock().unwrap();
    assert!(seen.len() == 1 && seen[0].1.is_none() && !seen[0].0.contains("admin"), "{seen:?}");
}

#[tokio::test]
async fn what_comes_along_with_a_head_is_not_lost() {
    let upstream = Sockets::start(|_, mut wire| async move {
        // Its first frame stands behind its 101, in the same packet.
        let greeting = said(TEXT, "welcome");
        let seen = std::sync::Mutex::default();
        shake_with(&mut wire, "", &seen, &greeting).await;
        let Came::Text(text) = next(&mut wire).await else { panic!("no text") };
        wire.send(said(TEXT, text)).await;
        wire.rest().await;
    })
    .await;
    let gateway = gateway(&upstream.url(), "").start().await;
    let mut wire = crate::harness::Wire::connect(gateway.client.address()).await;
    let head = format!(
        "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {KEY}\r\n\r\n"
    );
    // And so does the caller's, which could not wait.
    wire.send([head.as_bytes(), &frame(TEXT, "hello")].concat()).await;
    assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 101 "));
    assert_eq!(next(&mut wire).await, Came::Text("welcome".to_owned()));
    assert_eq!(next(&mut wire).await, Came::Text("hello".to_owned()));
}

#[tokio::test]
async fn both_connections_may_be_tls() {
    let echo = Echo::start().await;
    let made = rcgen::generate_simple_self_signed(["gateway.test".to_owned()]).unwrap();
    let builder = gateway(&echo.url(), "")
        .file("tls/cert.pem", &made.cert.pem())
        .file("tls/key.pem", &made.signing_key.serialize_pem());
    let (cert, key) = (builder.folder().join("tls/cert.pem"), builder.folder().join("tls/key.pem"));
    let (cert, key) = (cert.to_str().unwrap().to_owned(), key.to_str().unwrap().to_owned());
    // Its callers come over TLS: one of them is another gateway.
    let inner = builder.flag("--tls-cert", &cert).flag("--tls-key", &key).start().await;
    let url = format!("https://127.0.0.1:{}", inner.client.address().port());
    let tls = format!("tls: {{ ca: \"{cert}\", server_name: gateway.test }}, targets: [{{ url");
    let outer = manifest(&url, "").replace("targets: [{ url", &tls).replace("path: /up", "path: /ws");
    let outer = Gateway::with(&outer).start().await;
    let mut wire = open(&outer, "/ws").await;
    echoes(&mut wire, "hello").await;
    let large = vec![7; 500_000];
    wire.send(frame(BINARY, &large)).await;
    assert_eq!(next(&mut wire).await, Came::Frame(BINARY, large));
    wire.send(close(4000, "bye")).await;
    assert_eq!(next(&mut wire).await, Came::Close(Some(4000), "bye".to_owned()));
    assert_eq!(next(&mut wire).await, Came::End);
}

#[tokio::test]
async fn a_socket_takes_a_slot_of_the_upstreams_and_gives_it_back() {
    let echo = Echo::start().await;
    let narrow = manifest(&echo.url(), "")
        .replace("targets: [{ url", "max_connections: 2, connect_timeout: 200ms, targets: [{ url");
    let gateway = Gateway::with(&narrow).start().await;
    let mut one = open(&gateway, "/ws").await;
    let two = open(&gateway, "/ws").await;
    let said = refused(gateway.client.address(), "/ws", &[]).await;
    assert_eq!(said, (503, "upstream_saturated".to_owned()));
    drop(two);
    let begun = Instant::now();
    eventually("the slot is free", Duration::from_secs(3), async || {
        ask(gateway.client.address(), "/ws", &[]).await.1.starts_with("HTTP/1.1 101 ")
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(2));
    echoes(&mut one, "still here").await;
}
