//! How a socket ends: by either end, by the caller's token, by a reload, by a shutdown; and what the log says of it.

use super::bed::*;
use super::{gateway, manifest};
use crate::harness::wire::Finish;
use crate::harness::{Client, Gateway, Process, Sockets, Wire, eventually};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// What is promised within a second may take a slow machine a little longer.
const AT_ONCE: Duration = Duration::from_millis(1500);

/// An upstream that tells what it hears, and does what it is told.
struct Puppet {
    sockets: Sockets,
    wires: tokio::sync::Mutex<mpsc::UnboundedReceiver<Wire>>,
}

impl Puppet {
    async fn start() -> Self {
        let (tell, wires) = mpsc::unbounded_channel();
        let sockets = Sockets::start(move |_, mut wire| {
            let tell = tell.clone();
            async move {
                if shake(&mut wire, "", &Mutex::default()).await {
                    let _ = tell.send(wire);
                }
            }
        })
        .await;
        Puppet { sockets, wires: tokio::sync::Mutex::new(wires) }
    }

    /// The upstream's end of the socket that was opened last.
    async fn wire(&self) -> Wire {
        self.wires.lock().await.recv().await.unwrap()
    }
}

async fn pair(puppet: &Puppet, gateway: &Gateway) -> (Wire, Wire) {
    let caller = open(gateway, "/ws").await;
    (caller, puppet.wire().await)
}

fn told(code: u16, reason: &str) -> Came {
    Came::Close(Some(code), reason.to_owned())
}

#[tokio::test]
async fn a_caller_who_leaves_takes_the_upstream_along() {
    let puppet = Puppet::start().await;
    let gateway = gateway(&puppet.sockets.url(), "").start().await;
    let (caller, mut upstream) = pair(&puppet, &gateway).await;
    let begun = Instant::now();
    drop(caller);
    assert_eq!(next(&mut upstream).await, Came::End, "no Close is made up");
    let (caller, mut upstream) = pair(&puppet, &gateway).await;
    caller.reset();
    assert_eq!(next(&mut upstream).await, Came::End);
    assert!(begun.elapsed() < AT_ONCE);
    let left = "voicegate_websockets_ended_total{end=\"client_left\",path=\"/ws\"}";
    drop(upstream);
    eventually("both are counted", AT_ONCE * 3, async || gateway.metric(left).await == 2.0).await;
    assert_eq!(gateway.metric("voicegate_websockets_open{path=\"/ws\"}").await, 0.0);
}

#[tokio::test]
async fn a_caller_of_an_upstream_that_leaves_is_told_1011() {
    let puppet = Puppet::start().await;
    let gateway = gateway(&puppet.sockets.url(), "").start().await;
    for resets in [false, true] {
        let (mut caller, mut upstream) = pair(&puppet, &gateway).await;
        upstream.send(said(TEXT, "last words")).await;
        assert_eq!(next(&mut caller).await, Came::Text("last words".to_owned()));
        let begun = Instant::now();
        if resets {
            upstream.reset()
        } else {
            drop(upstream)
        }
        assert_eq!(next(&mut caller).await, told(1011, "upstream_broke"));
        caller.send(close(1011, "")).await;
        assert_eq!(next(&mut caller).await, Came::End);
        assert!(begun.elapsed() < AT_ONCE, "it ends with the answer: {:?}", begun.elapsed());
    }
    // Inside a frame there is no place for a Close: its caller must not take one for the frame's end.
    let (mut caller, mut upstream) = pair(&puppet, &gateway).await;
    upstream.send(&said(BINARY, [1; 100])[..50]).await;
    assert_eq!(caller.bytes(50).await.len(), 50);
    drop(upstream);
    let (rest, _) = caller.rest().await;
    assert!(rest.is_empty(), "{rest:?}");
    let broke = "voicegate_websockets_ended_total{end=\"upstream_broke\",path=\"/ws\"}";
    eventually("all are counted", AT_ONCE * 3, async || gateway.metric(broke).await == 3.0).await;
}

#[tokio::test]
async fn a_close_and_its_answer_pass_whoever_says_it_first() {
    let puppet = Puppet::start().await;
    let gateway = gateway(&puppet.sockets.url(), "").start().await;
    let (mut caller, mut upstream) = pair(&puppet, &gateway).await;
    upstream.send(said(CLOSE, [0x0f, 0xa0, b'b', b'y', b'e'])).await;
    assert_eq!(next(&mut caller).await, told(4000, "bye"));
    caller.send(close(4000, "bye")).await;
    assert_eq!(next(&mut upstream).await, told(4000, "bye"));
    drop(upstream);
    assert_eq!(next_or_finish(&mut caller).await, Err(Finish::Closed));
    // An end that never answers is waited for, but not for ever: the caller has gone, so little is left.
    let (mut caller, mut upstream) = pair(&puppet, &gateway).await;
    caller.send(close(1000, "")).await;
    assert_eq!(next(&mut upstream).await, told(1000, ""));
    drop(caller);
    assert_eq!(next(&mut upstream).await, Came::End);
    let done = "voicegate_websockets_ended_total{end=\"complete\",path=\"/ws\"}";
    eventually("both are counted", 3 * AT_ONCE, async || gateway.metric(done).await == 2.0).await;
}

#[tokio::test]
async fn a_log_line_comes_at_the_end_and_says_how_it_was() {
    let echo = Echo::start().await;
    let mut gateway = Process::serve(&manifest(&echo.url(), ""), &[]).await;
    let mut wire = open_with(gateway.client.address(), "/ws?token=hush", &[]).await;
    echoes(&mut wire, "hello").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!gateway.rest().contains("/ws"), "no line before the end");
    wire.send(close(1000, "")).await;
    assert_eq!(next(&mut wire).await, told(1000, ""));
    assert_eq!(next(&mut wire).await, Came::End);
    drop(wire);
    let line = gateway.line(|line| line["route"] == "/ws").await;
    assert_eq!((&line["status"], &line["end"]), (&101.into(), &"complete".into()), "{line}");
    let (up, down) = (frame(TEXT, "hello").len() + close(1000, "").len(), 7 + 4);
    assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&up.into(), &down.into()), "{line}");
    assert!(line["duration_ms"].as_f64().unwrap() >= 300.0, "{line}");
    assert_eq!(line["upstream"], "echo");
    assert!(!line.to_string().contains("hush"), "{line}");
}

#[tokio::test]
async fn a_shutdown_says_1001_to_both_and_ends_within_the_grace() {
    let puppet = Puppet::start().await;
    let mut gateway = gateway(&puppet.sockets.url(), "").flag("--shutdown-grace", "3s").start().await;
    let (mut caller, mut upstream) = pair(&puppet, &gateway).await;
    // In the middle of a frame, whose end still comes.
    upstream.send(&said(TEXT, "whole")[..4]).await;
    let begun = Instant::now();
    let ending = tokio::spawn(gateway.take().shut_down());
    assert_eq!(next(&mut upstream).await, told(1001, ""));
    upstream.send(&said(TEXT, "whole")[4..]).await;
    upstream.send(said(TEXT, "nobody's")).await;
    assert_eq!(next(&mut caller).await, Came::Text("whole".to_owned()));
    assert_eq!(next(&mut caller).await, told(1001, "shutting_down"));
    upstream.send(said(CLOSE, [0x03, 0xe9])).await;
    caller.send(close(1001, "")).await;
    assert_eq!(next(&mut caller).await, Came::End);
    assert_eq!(next(&mut upstream).await, Came::End);
    assert_eq!(ending.await.unwrap(), 0, "nothing is cut");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn ends_that_do_not_answer_hold_no_shutdown_up() {
    let puppet = Puppet::start().await;
    let mut gateway = gateway(&puppet.sockets.url(), "").flag("--shutdown-grace", "3s").start().await;
    let (_caller, _upstream) = pair(&puppet, &gateway).await;
    let begun = Instant::now();
    assert_eq!(gateway.take().shut_down().await, 0, "the socket ended before the cut");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_reload_leaves_sockets_alone_until_their_route_is_gone() {
    let echo = Echo::start().await;
    let gateway = gateway(&echo.url(), "").start().await;
    let mut wire = open(&gateway, "/ws").await;
    let reload = async |manifest: &str| {
        gateway.rewrite(manifest);
        let said = gateway.live().clone();
        let reloaded = tokio::task::spawn_blocking(move || said.reload("a test", true)).await.unwrap();
        assert!(format!("{reloaded:?}").starts_with("Serves"), "{reloaded:?}");
    };
    // Another route is new.
    let more = manifest(&echo.url(), "") + "  - { route: GET /b, public: true, respond: { text: b } }\n";
    reload(&more).await;
    echoes(&mut wire, "unchanged").await;
    // Its own is another, and so is its upstream.
    let changed =
        manifest(&echo.url(), "max_message: 2MiB").replace("targets:", "max_connections: 9, targets:");
    reload(&changed).await;
    echoes(&mut wire, "changed").await;
    let mut young = open(&gateway, "/ws").await;
    let gone = "routes: [{ route: GET /a, public: true, respond: { text: ok } }]\n";
    let begun = Instant::now();
    reload(gone).await;
    for wire in [&mut wire, &mut young] {
        assert_eq!(next(wire).await, told(1012, "route_removed"));
        wire.send(close(1012, "")).await;
        assert_eq!(next(wire).await, Came::End);
    }
    assert!(begun.elapsed() < AT_ONCE);
    eventually("the upstream is rid of them", AT_ONCE, async || echo.open() == 0).await;
    // A route that comes back is a new one; one that is no socket any more counts as gone.
    reload(&manifest(&echo.url(), "")).await;
    let mut wire = open(&gateway, "/ws").await;
    echoes(&mut wire, "again").await;
    reload(&manifest(&echo.url(), "").replace("protocol: websocket, websocket: {  }", "protocol: http"))
        .await;
    assert_eq!(next(&mut wire).await, told(1012, "route_removed"));
    reload(&manifest(&echo.url(), "")).await;
    echoes(&mut open(&gateway, "/ws").await, "and again").await;
}

/// A gateway for users of its own, who are in this folder.
async fn for_users(url: &str, auth: &str, folder: &Path) -> Gateway {
    let routes = manifest(url, "")
        .replace("chain: all, public: true, upstream", "chain: own, upstream")
        .replace("chains: { ", "chains: { own: [{ chain: all }, auth], ");
    let manifest = format!(
        "auth: {{ password: {{ bcrypt_cost: 4 }}, {auth} }}\n{routes}  \
         - {{ route: POST /auth/register, handler: auth.register, chain: all, public: true }}\n  \
         - {{ route: POST /auth/logout, handler: auth.logout, chain: own }}\n"
    );
    Gateway::with(&manifest)
        .flag("--jwt-secret", "a secret of more than thirty-two bytes")
        .flag("--database-url", &format!("sqlite://{}", folder.join("users.db").display()))
        .start()
        .await
}

/// Registers somebody; the header that proves it, and the refresh token.
async fn register(client: &Client, name: &str) -> (String, String) {
    let body =
        format!(r#"{{"username": "{name}", "email": "{name}@example.com", "password": "Correct1horse"}}"#);
    let answer = client.post("/auth/register", &body).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let said = answer.json();
    let text = |name: &str| said[name].as_str().unwrap().to_owned();
    (format!("Bearer {}", text("access_token")), text("refresh_token"))
}

#[tokio::test]
async fn a_logout_closes_the_users_sockets_with_4401() {
    let echo = Echo::start().await;
    let folder = tempfile::tempdir().unwrap();
    let gateway = for_users(&echo.url(), "", folder.path()).await;
    let address = gateway.client.address();
    let (ada, refresh) = register(&gateway.client, "ada").await;
    let (bob, _) = register(&gateway.client, "bob").await;
    assert_eq!(refused(address, "/ws", &[]).await, (401, "no_token".to_owned()));
    let mut leaves = open_with(address, "/ws", &[("Authorization", &ada)]).await;
    let mut stays = open_with(address, "/ws", &[("Authorization", &bob)]).await;
    echoes(&mut leaves, "hello").await;
    assert!(header(&echo.heads()[0], "x-user-id").is_some());
    let headers = [("content-type", "application/json"), ("authorization", &*ada)];
    let body = format!("{{\"refresh_token\": \"{refresh}\"}}");
    let begun = Instant::now();
    assert!(gateway.client.send("POST", "/auth/logout", &headers, &body).await.status.is_success());
    assert_eq!(next(&mut leaves).await, told(4401, "token_revoked"));
    leaves.send(close(4401, "")).await;
    assert_eq!(next(&mut leaves).await, Came::End);
    assert!(begun.elapsed() < AT_ONCE);
    echoes(&mut stays, "still here").await;
    let ended = "voicegate_websockets_ended_total{end=\"reauth\",path=\"/ws\"}";
    eventually("it is counted", AT_ONCE, async || gateway.metric(ended).await == 1.0).await;
}

#[tokio::test]
async fn a_token_that_expires_closes_its_socket_with_4401() {
    let echo = Echo::start().await;
    let folder = tempfile::tempdir().unwrap();
    let gateway = for_users(&echo.url(), "access_ttl: 2s", folder.path()).await;
    let (ada, _) = register(&gateway.client, "ada").await;
    let begun = Instant::now();
    let mut wire = open_with(gateway.client.address(), "/ws", &[("Authorization", &ada)]).await;
    assert_eq!(next(&mut wire).await, told(4401, "token_expired"));
    assert!(begun.elapsed() < Duration::from_secs(2) + AT_ONCE);
    // Who does not answer is closed all the same.
    assert_eq!(next(&mut wire).await, Came::End);
    assert!(begun.elapsed() < Duration::from_secs(3) + AT_ONCE);
}
