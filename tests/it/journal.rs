//! What the log tells of accounts: the link to a new password in development, who did what, and what cannot be done.

use crate::harness::client::PATIENCE;
use crate::harness::{Answer, Client, Process, eventually};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

const MANIFEST: &str = r#"
auth: { refresh_grace: 0s, password: { bcrypt_cost: 4 } }
chains:
  open: [recovery, request_id]
  own: [{ chain: open }, auth]
versions:
  - name: v01
    prefix: /auth
    chain: open
    routes:
      - { route: POST /register, handler: auth.register, public: true }
      - { route: POST /login, handler: auth.login, public: true }
      - { route: POST /refresh, handler: auth.refresh, public: true }
      - { route: POST /logout, handler: auth.logout, chain: own }
      - { route: GET /me, handler: auth.me, chain: own }
      - { route: POST /password/change, handler: auth.password_change, chain: own }
      - { route: POST /password/forgot, handler: auth.password_forgot, public: true }
      - { route: POST /password/reset, handler: auth.password_reset, public: true }
"#;

const PASSWORD: &str = "Correct1horse";
const NEW_PASSWORD: &str = "Battery2staple";

async fn post(client: &Client, path: &str, body: Value) -> Answer {
    client.post(&format!("/auth/{path}"), &body.to_string()).await
}

async fn post_as(client: &Client, token: &str, path: &str, body: Value) -> Answer {
    let bearer = format!("Bearer {token}");
    let headers = [("content-type", "application/json"), ("authorization", &*bearer)];
    client.send("POST", path, &headers, &body.to_string()).await
}

async fn register(client: &Client, name: &str) -> Value {
    let body = json!({ "username": name, "email": format!("{name}@example.com"), "password": PASSWORD });
    let answer = post(client, "register", body).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.json()
}

async fn login(client: &Client, name: &str, password: &str) -> Answer {
    post(client, "login", json!({ "username": name, "password": password })).await
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_else(|| panic!("no {key} in {value}"))
}

#[tokio::test]
async fn a_forgotten_password_is_set_anew_by_the_link_in_the_log() {
    let mut process = Process::serve(MANIFEST, &[]).await;
    let client = process.client.clone();
    let said = register(&client, "ann").await;
    let forgot = async |email: &str| post(&client, "password/forgot", json!({ "email": email })).await;
    let (unknown, known) = (forgot("bob@example.com").await, forgot("ANN@example.com").await);
    assert_eq!((known.status.as_u16(), known.text()), (202, unknown.text()), "nobody learns whose it is");
    let line = process.line(|line| line["link"].is_string()).await;
    assert_eq!(line["username"], "ann");
    let (page, token) = text(&line, "link").split_once("#token=").unwrap();
    assert_eq!(page, "http://localhost:3000/reset-password");

    let reset = async |password: &str| {
        post(&client, "password/reset", json!({ "token": token, "password": password })).await
    };
    assert_eq!(reset("weak").await.code(), "validation_failed", "and the link is not used up");
    for _ in 0..5 {
        login(&client, "ann", "wrong").await;
    }
    assert_eq!(login(&client, "ann", PASSWORD).await.status, 423);
    assert_eq!(reset(NEW_PASSWORD).await.status, 204);
    assert_eq!(reset("Third3password").await.code(), "link_invalid");
    let headers = [("authorization", &*format!("Bearer {}", text(&said, "access_token")))];
    let me = client.send("GET", "/auth/me", &headers, "").await;
    assert_eq!(me.code(), "token_revoked", "every session is over");
    let refresh = json!({ "refresh_token": text(&said, "refresh_token") });
    assert_eq!(post(&client, "refresh", refresh).await.status, 401);
    assert_eq!(login(&client, "ann", PASSWORD).await.status, 401);
    assert_eq!(login(&client, "ann", NEW_PASSWORD).await.status, 200, "and the name is unlocked");
}

#[tokio::test]
async fn in_production_without_a_mail_server_it_is_said_once_and_whoever_asks_is_told() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("routes.yaml"), format!("version: 1\n{MANIFEST}")).unwrap();
    let process = Process::serve_in(folder, &[], &[("ENVIRONMENT", "production")]).await;
    register(&process.client, "ann").await;
    for email in ["ann@example.com", "nobody@example.com"] {
        let refused = post(&process.client, "password/forgot", json!({ "email": email })).await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (503, "mail_unavailable"));
    }
    let lines = process.log();
    let said: Vec<_> = lines.iter().filter(|line| line.to_string().contains("SMTP_URL")).collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(said[0]["level"], "warn", "{said:?}");
}

/// A mail server that takes one message, but reads nothing of it before it may; gives what it was sent.
async fn slow_mail_server() -> (String, oneshot::Sender<()>, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("smtp://{}", listener.local_addr().unwrap());
    let (go_on, may) = oneshot::channel::<()>();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        may.await.unwrap();
        stream.write_all(b"220 test\r\n").await.unwrap();
        let (mut heard, mut answered, mut inside) = (String::new(), 0, false);
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            heard.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
            while let Some(end) = heard[answered..].find(if inside { "\r\n.\r\n" } else { "\r\n" }) {
                let line = &heard[answered..answered + end];
                let answer = if line == "DATA" { "354 go on\r\n" } else { "250 fine\r\n" };
                answered += end + if inside { 5 } else { 2 };
                inside = answer.starts_with("354");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
        heard
    });
    (url, go_on, server)
}

#[tokio::test]
async fn a_link_that_is_being_sent_is_sent_before_the_process_ends() {
    let (url, go_on, server) = slow_mail_server().await;
    let mut process = Process::serve(MANIFEST, &["--smtp-url", &url]).await;
    register(&process.client, "ann").await;
    let asked = post(&process.client, "password/forgot", json!({ "email": "ann@example.com" })).await;
    assert_eq!(asked.status, 202);
    process.signal("TERM");
    process.line(|line| line["message"] == "draining").await;
    // Nothing else holds it up: without waiting for the link it would be gone long before.
    tokio::time::sleep(Duration::from_millis(500)).await;
    go_on.send(()).unwrap();
    assert_eq!(process.ended(Duration::from_secs(10)).await.code(), Some(0));
    let mail = server.await.unwrap();
    assert!(mail.contains("To: ann@example.com") && mail.contains("\r\n.\r\n"), "all of it: {mail}");
}

#[tokio::test]
async fn a_mail_server_that_hangs_does_not_outlast_the_grace() {
    let (url, _never, _server) = slow_mail_server().await;
    let mut process = Process::serve(MANIFEST, &["--smtp-url", &url, "--shutdown-grace", "1s"]).await;
    register(&process.client, "ann").await;
    post(&process.client, "password/forgot", json!({ "email": "ann@example.com" })).await;
    process.signal("TERM");
    process.line(|line| line["message"] == "draining").await;
    assert_eq!(process.ended(Duration::from_secs(6)).await.code(), Some(0));
    let lost = "the grace was over before every link to a new password was sent";
    assert_eq!(process.events(lost).len(), 1);
}

/// Lines of the audit so far: by whom, what, on what, with what.
fn audit(process: &Process) -> Vec<[String; 4]> {
    let lines = process.log();
    let audited = lines.iter().filter(|line| line["target"] == "voicegate::audit");
    audited.map(|line| ["by", "action", "subject", "value"].map(|key| text(line, key).to_owned())).collect()
}

#[tokio::test]
async fn who_did_what_to_an_account_is_audited() {
    let process = Process::serve(MANIFEST, &[]).await;
    let (client, admin) = (&process.client, &process.admin);
    let said = register(client, "ann").await;
    let (ann, token) = (text(&said["user"], "id").to_owned(), text(&said, "access_token"));
    let administer = async |path: &str, body: Value| {
        let answer = post_as(admin, "admin-secret", &format!("/admin/api/{path}"), body).await;
        assert!(answer.status.is_success(), "{path}: {}", answer.text());
        answer
    };
    let of_ann = |act: &str| format!("users/{ann}/{act}");

    let refresh = json!({ "refresh_token": text(&said, "refresh_token") });
    assert_eq!(post(client, "refresh", refresh.clone()).await.status, 200);
    assert_eq!(post(client, "refresh", refresh).await.status, 401);
    assert_eq!(post_as(client, token, "/auth/logout", json!({ "refresh_token": "x" })).await.status, 401);
    let said = login(client, "ann", PASSWORD).await.json();
    let change = json!({ "old_password": PASSWORD, "new_password": NEW_PASSWORD });
    let token = text(&said, "access_token");
    assert_eq!(post_as(client, token, "/auth/password/change", change).await.status, 204);
    let said = login(client, "ann", NEW_PASSWORD).await.json();
    let body = json!({ "refresh_token": text(&said, "refresh_token") });
    let logout = post_as(client, text(&said, "access_token"), "/auth/logout", body).await;
    assert_eq!(logout.status, 204);
    for _ in 0..5 {
        assert_eq!(login(client, "ann", "Hunter2hunter").await.status, 401);
    }
    administer(&of_ann("unlock"), json!({})).await;
    administer(&of_ann("role"), json!({ "role": "admin" })).await;
    administer(&of_ann("disable"), json!({})).await;
    administer(&of_ann("enable"), json!({})).await;
    administer(&of_ann("revoke"), json!({})).await;
    let asked = json!({ "name": "nightly", "permissions": ["document:read"] });
    let key = administer("keys", asked).await.json();
    administer(&format!("keys/{}/revoke", text(&key, "id")), json!({})).await;

    let (ann, key_id) = (&*ann, text(&key, "id"));
    eventually("the log is written", PATIENCE, || {
        std::future::ready(audit(&process).last().is_some_and(|line| line[1] == "revoke_key"))
    })
    .await;
    let told = audit(&process);
    let reused = told.iter().find(|line| line[1] == "refresh_token_reused").expect("reuse is told");
    let login = &*reused[3];
    uuid::Uuid::parse_str(login).expect("the login that was ended");
    let wanted = [
        [ann, "register", ann, "web"],
        ["somebody", "refresh_token_reused", ann, login],
        [ann, "login", ann, "web"],
        [ann, "change_password", ann, ""],
        [ann, "login", ann, "web"],
        [ann, "logout", ann, ""],
        ["somebody", "lock", "ann", ""],
        ["admin token", "unlock", "ann", ""],
        ["admin token", "set_role", ann, "admin"],
        ["admin token", "disable", ann, ""],
        ["admin token", "enable", ann, ""],
        ["admin token", "revoke_sessions", ann, ""],
        ["admin token", "create_key", key_id, "nightly"],
        ["admin token", "revoke_key", key_id, ""],
    ];
    assert_eq!(told, wanted.map(|line| line.map(str::to_owned)));
    let all = process.stderr();
    for secret in [PASSWORD, NEW_PASSWORD, "Hunter2hunter", text(&key, "secret"), token] {
        assert!(!all.contains(secret), "{secret} is in the log");
    }
}
