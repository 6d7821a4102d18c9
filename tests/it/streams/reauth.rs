//! A stream ends with its caller's time (SECURITY rule 12): after a logout, an expired token, a key taken back.

use super::*;
use std::path::Path;

/// Further routes of the manifest.
const ACCOUNTS: &str = r#"
  - { route: POST /auth/register, handler: auth.register, chain: all, public: true }
  - { route: POST /auth/login, handler: auth.login, chain: all, public: true }
  - { route: POST /auth/logout, handler: auth.logout, chain: own }
"#;

/// As [`streaming`], but only for users of the gateway's own, who are in this folder.
async fn streaming_to_users(url: &str, auth: &str, folder: &Path) -> Gateway {
    let manifest = manifest(url, "")
        .replace("chains: { ", "chains: { own: [{ chain: all }, auth], ")
        .replace("chain: all, public: true", "chain: own");
    let auth = format!("auth: {{ password: {{ bcrypt_cost: 4 }}, {auth} }}\n");
    Gateway::with(&(auth + &manifest + ACCOUNTS))
        .flag("--jwt-secret", "a secret of more than thirty-two bytes")
        .flag("--database-url", &format!("sqlite://{}", folder.join("users.db").display()))
        .start()
        .await
}

struct Login {
    bearer: String,
    refresh_token: String,
}

/// Registers somebody and logs in.
async fn somebody(gateway: &Gateway) -> Login {
    let body = r#"{"username": "ada", "email": "ada@example.com", "password": "Correct1horse"}"#;
    let answer = gateway.client.post("/auth/register", body).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    login(gateway).await
}

async fn login(gateway: &Gateway) -> Login {
    let body = r#"{"username": "ada", "password": "Correct1horse"}"#;
    let answer = gateway.client.post("/auth/login", body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let said = answer.json();
    Login {
        bearer: format!("Bearer {}", said["access_token"].as_str().unwrap()),
        refresh_token: said["refresh_token"].as_str().unwrap().to_owned(),
    }
}

async fn ask_as(gateway: &Gateway, who: &Login, switches: &str) -> Open {
    let headers = [JSON, ("authorization", &*who.bearer)];
    gateway.client.open("POST", &format!("/chat?{switches}"), &headers, QUESTION).await
}

#[tokio::test]
async fn a_logout_at_another_replica_ends_the_streams_of_that_login() {
    let demo = Demo::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let gateway = streaming_to_users(&demo.url(), "", folder.path()).await;
    let elsewhere = streaming_to_users(&demo.url(), "", folder.path()).await;
    let leaves = somebody(&gateway).await;
    let stays = login(&gateway).await;
    assert_eq!(ask(&gateway.client, "").await.status, 401);
    let stalled = "delay=0ms&stall_after=1";
    let mut quiet = ask_as(&gateway, &leaves, stalled).await;
    let mut busy = ask_as(&gateway, &leaves, "delay=5ms&tokens=100000&split=1").await;
    let mut other = ask_as(&gateway, &stays, stalled).await;
    for open in [&mut quiet, &mut busy, &mut other] {
        until(open, "\"type\":\"token\"").await;
    }
    let headers = [JSON, ("authorization", &*leaves.bearer)];
    let body = format!("{{\"refresh_token\": \"{}\"}}", leaves.refresh_token);
    let answer = elsewhere.client.send("POST", "/auth/logout", &headers, &body).await;
    assert!(answer.status.is_success(), "{}", answer.text());
    let begun = Instant::now();
    for open in [quiet, busy] {
        let (text, clean) = open.rest().await;
        let goodbye = "event: reauth\ndata: {\"type\":\"reauth\",\"code\":\"token_revoked\"}\n\n";
        let events = text.strip_suffix(goodbye).unwrap_or_else(|| panic!("{text}"));
        assert!(clean && (events.is_empty() || events.ends_with("\n\n")), "{events}");
    }
    eventually("the upstream stops", AT_ONCE, async || demo.stats().streams.aborted == 2).await;
    assert!(begun.elapsed() < AT_ONCE);
    assert_eq!(demo.stats().streams.running, 1, "the other login's goes on");
    let ended = "voicegate_streams_ended_total{end=\"reauth\",path=\"/chat\"}";
    eventually("both are counted", PATIENCE, async || gateway.metric(ended).await == 2.0).await;
    drop(other);
}

#[tokio::test]
async fn a_token_that_expires_ends_its_stream() {
    let demo = Demo::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let gateway = streaming_to_users(&demo.url(), "access_ttl: 3s", folder.path()).await;
    let who = somebody(&gateway).await;
    let begun = Instant::now();
    let mut open = ask_as(&gateway, &who, "delay=0ms&stall_after=1").await;
    until(&mut open, "\"type\":\"token\"").await;
    let (text, clean) = open.rest().await;
    assert!(
        clean && text == "event: reauth\ndata: {\"type\":\"reauth\",\"code\":\"token_expired\"}\n\n",
        "{text}"
    );
    assert!(begun.elapsed() < Duration::from_secs(3) + AT_ONCE);
    eventually("the upstream stops", AT_ONCE, async || demo.stats().streams.aborted == 1).await;
}

#[tokio::test]
async fn an_api_key_that_is_taken_back_ends_its_streams() {
    let demo = Demo::start().await.unwrap();
    let manifest = manifest(&demo.url(), "")
        .replace("chains: { ", "chains: { keyed: [{ chain: all }, api_key], ")
        .replace("chain: all, public: true", "chain: keyed");
    let gateway = Gateway::with(&manifest).start().await;
    let admin = async |path: &str, body: &str| {
        let headers = [JSON, ("authorization", "Bearer admin-secret")];
        let answer = gateway.admin.send("POST", path, &headers, body).await;
        assert!(answer.status.is_success(), "{}", answer.text());
        answer
    };
    let key = admin("/admin/api/keys", r#"{"name": "a robot", "permissions": ["*"]}"#).await.json();
    let headers = [JSON, ("x-api-key", key["secret"].as_str().unwrap())];
    let mut open = gateway.client.open("POST", "/chat?delay=0ms&stall_after=1", &headers, QUESTION).await;
    until(&mut open, "\"type\":\"token\"").await;
    admin(&format!("/admin/api/keys/{}/revoke", key["id"].as_str().unwrap()), "").await;
    let begun = Instant::now();
    let (text, clean) = open.rest().await;
    assert!(clean && text.contains("\"code\":\"token_revoked\""), "{text}");
    assert!(begun.elapsed() < AT_ONCE);
}
