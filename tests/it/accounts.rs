//! The seed's account flows through the front door, over a real store; and what administrators do about them.

use crate::harness::load::within;
use crate::harness::{Answer, Client, Gateway, Load, Scripted};
use serde_json::{Value, json};
use std::process::{Command, Stdio};
use std::time::Duration;
use voicegate::demo::Demo;

const MANIFEST: &str = r#"
auth: { refresh_grace: 0s, password: { bcrypt_cost: 4 } }
chains:
  open: [recovery, request_id]
  own: [{ chain: open }, auth]
versions:
  - name: v01
    prefix: /api/v01
    chain: open
    routes:
      - { route: POST /auth/register, handler: auth.register, public: true }
      - { route: POST /auth/login, handler: auth.login, public: true }
      - { route: POST /auth/refresh, handler: auth.refresh, public: true }
      - { route: POST /auth/logout, handler: auth.logout, chain: own }
      - { route: GET /auth/me, handler: auth.me, chain: own }
      - { route: POST /auth/password/change, handler: auth.password_change, chain: own }
      - { route: POST /auth/wechat/login, handler: auth.wechat_login, public: true }
      - { route: GET /hello, public: true, respond: { text: hello } }
"#;

pub const PASSWORD: &str = "Correct1horse";

pub async fn post(client: &Client, path: &str, body: Value) -> Answer {
    client.post(&format!("/api/v01/auth/{path}"), &body.to_string()).await
}

pub async fn post_as(client: &Client, token: &str, path: &str, body: Value) -> Answer {
    let bearer = format!("Bearer {token}");
    let headers = [("content-type", "application/json"), ("authorization", &*bearer)];
    client.send("POST", path, &headers, &body.to_string()).await
}

pub async fn me(client: &Client, token: &str) -> Answer {
    client.send("GET", "/api/v01/auth/me", &[("authorization", &format!("Bearer {token}"))], "").await
}

pub async fn login(client: &Client, name: &str, password: &str) -> Answer {
    post(client, "login", json!({ "username": name, "password": password })).await
}

pub async fn register(client: &Client, name: &str) -> Value {
    let body = json!({ "username": name, "email": format!("{name}@example.com"), "password": PASSWORD });
    let answer = post(client, "register", body).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.json()
}

pub fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_else(|| panic!("no {key} in {value}"))
}

pub async fn admin(gateway: &Gateway, method: &str, path: &str, body: Value) -> Answer {
    admin_as(gateway, "admin-secret", method, path, body).await
}

async fn admin_as(gateway: &Gateway, token: &str, method: &str, path: &str, body: Value) -> Answer {
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", &*bearer)];
    let body = if body.is_null() { String::new() } else { body.to_string() };
    gateway.admin.send(method, &format!("/admin/api/{path}"), &headers, &body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_seeds_flow_by_hand() {
    let gateway = Gateway::with(MANIFEST).start().await;
    let client = &gateway.client;
    let said = register(client, "ann").await;
    assert_eq!(said["expires_in"], 86400);
    let headers = [("content-type", "application/json"), ("accept-language", "zh")];
    let body = json!({ "username": "Ann", "email": "other@example.com", "password": PASSWORD }).to_string();
    let again = client.send("POST", "/api/v01/auth/register", &headers, &body).await;
    assert_eq!((again.status.as_u16(), again.json()["error"].as_str()), (409, Some("用户名或邮箱已存在")));

    let mine = me(client, text(&said, "access_token")).await;
    assert_eq!((mine.status.as_u16(), mine.json()["username"].as_str()), (200, Some("ann")));

    let renewed = post(client, "refresh", json!({ "refresh_token": text(&said, "refresh_token") })).await;
    assert_eq!(renewed.status, 200);
    let renewed = renewed.json();
    let reused = post(client, "refresh", json!({ "refresh_token": text(&said, "refresh_token") })).await;
    assert_eq!((reused.status.as_u16(), reused.code().as_str()), (401, "invalid_refresh_token"));
    let dead = post(client, "refresh", json!({ "refresh_token": text(&renewed, "refresh_token") })).await;
    assert_eq!(dead.status, 401, "the family is dead");
    assert_eq!(me(client, text(&renewed, "access_token")).await.code(), "token_revoked");

    let session = login(client, "ann", PASSWORD).await.json();
    let token = text(&session, "access_token");
    let body = json!({ "refresh_token": text(&session, "refresh_token") });
    assert_eq!(post_as(client, token, "/api/v01/auth/logout", body).await.status, 204);
    assert_eq!(me(client, token).await.code(), "token_revoked");

    for _ in 0..5 {
        assert_eq!(login(client, "ann", "wrong").await.code(), "invalid_credentials");
    }
    let locked = login(client, "ann", PASSWORD).await;
    assert_eq!((locked.status.as_u16(), locked.code().as_str()), (423, "account_locked"));
    assert!(locked.header("retry-after").unwrap().parse::<u32>().unwrap() > 800);
}

async fn refresh(client: &Client, said: &Value) -> Answer {
    post(client, "refresh", json!({ "refresh_token": text(said, "refresh_token") })).await
}

/// Presents one refresh token twenty times at once.
async fn refreshed_at_once(client: &Client, said: &Value) -> Vec<Answer> {
    let refreshes: Vec<_> = (0..20)
        .map(|_| {
            let (client, said) = (client.clone(), said.clone());
            tokio::spawn(async move { refresh(&client, &said).await })
        })
        .collect();
    let mut answers = Vec::new();
    for refresh in refreshes {
        answers.push(refresh.await.unwrap());
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_refreshes_at_once_all_get_tokens_and_the_login_goes_on() {
    let gateway = Gateway::with(&MANIFEST.replace("refresh_grace: 0s", "refresh_grace: 10s")).start().await;
    let client = &gateway.client;
    let said = register(client, "ann").await;
    for answer in refreshed_at_once(client, &said).await {
        assert_eq!(answer.status, 200, "{}", answer.text());
        let next = refresh(client, &answer.json()).await;
        assert_eq!(next.status, 200, "what it got works: {}", next.text());
        assert_eq!(me(client, text(&next.json(), "access_token")).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_grace_one_of_twenty_gets_tokens() {
    let gateway = Gateway::with(MANIFEST).start().await;
    let said = register(&gateway.client, "ann").await;
    let answers = refreshed_at_once(&gateway.client, &said).await;
    let count = |status: u16| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((count(200), count(401)), (1, 19), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reuse_after_the_grace_ends_everything_of_the_login() {
    let gateway = Gateway::with(&MANIFEST.replace("refresh_grace: 0s", "refresh_grace: 300ms")).start().await;
    let client = &gateway.client;
    let elsewhere = register(client, "ann").await;
    let first = login(client, "ann", PASSWORD).await.json();
    let second = refresh(client, &first).await.json();
    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    let third = refresh(client, &second).await.json();
    assert_eq!(refresh(client, &first).await.code(), "invalid_refresh_token");
    for said in [&second, &third] {
        assert_eq!(refresh(client, said).await.code(), "invalid_refresh_token", "the family is dead");
    }
    for said in [&first, &second, &third] {
        assert_eq!(me(client, text(said, "access_token")).await.code(), "token_revoked");
    }
    assert_eq!(me(client, text(&elsewhere, "access_token")).await.status, 200, "another login goes on");
    assert_eq!(refresh(client, &elsewhere).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_ends_the_tokens_of_every_refresh_before_it() {
    let gateway = Gateway::with(MANIFEST).start().await;
    let client = &gateway.client;
    let elsewhere = register(client, "ann").await;
    let first = login(client, "ann", PASSWORD).await.json();
    let second = refresh(client, &first).await.json();
    let third = refresh(client, &second).await.json();
    for said in [&first, &second, &third] {
        assert_eq!(me(client, text(said, "access_token")).await.status, 200);
    }
    // With the oldest access token, and the newest refresh token.
    let body = json!({ "refresh_token": text(&third, "refresh_token") });
    let token = text(&first, "access_token");
    assert_eq!(post_as(client, token, "/api/v01/auth/logout", body).await.status, 204);
    for said in [&first, &second, &third] {
        assert_eq!(me(client, text(said, "access_token")).await.code(), "token_revoked");
    }
    assert_eq!(me(client, text(&elsewhere, "access_token")).await.status, 200, "another login goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_login_right_after_everything_was_revoked_is_good() {
    let gateway = Gateway::with(MANIFEST).start().await;
    let client = &gateway.client;
    let said = register(client, "ann").await;
    let body = json!({ "old_password": PASSWORD, "new_password": "Battery2staple" });
    let changed = post_as(client, text(&said, "access_token"), "/api/v01/auth/password/change", body).await;
    assert_eq!(changed.status, 204, "{}", changed.text());
    assert_eq!(me(client, text(&said, "access_token")).await.code(), "token_revoked");
    let said = login(client, "ann", "Battery2staple").await.json();
    assert_eq!(me(client, text(&said, "access_token")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_logins_at_once_leave_other_routes_alone() {
    let upstream = Scripted::saying("hello").await;
    let manifest = MANIFEST
        .replace("bcrypt_cost: 4", "bcrypt_cost: 8")
        .replace("respond: { text: hello }", "upstream: hello");
    let manifest = format!("{manifest}upstreams: {{ hello: {{ targets: [{{ url: \"${{U}}\" }}] }} }}\n");
    let gateway = Gateway::with(&manifest)
        .var("U", upstream.url())
        .flag("--password-workers", "1")
        .flag("--password-queue", "8")
        .start()
        .await;
    let load = Load::start(&gateway.client, 4, "/api/v01/hello", &[]);
    load.goes_on_for(50).await;
    let logins: Vec<_> = (0..300)
        .map(|n| {
            let client = gateway.client.clone();
            tokio::spawn(async move { login(&client, &format!("user{n}"), PASSWORD).await })
        })
        .collect();
    let (mut compared, mut refused) = (0, 0);
    // None hangs: the client gives up on an answer that does not come.
    for login in logins {
        let answer = login.await.unwrap();
        match answer.status.as_u16() {
            401 => compared += 1,
            503 => {
                assert_eq!(answer.code(), "overloaded");
                let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
                assert_eq!(answer.json()["retry_after"], wait);
                refused += 1;
            }
            status => panic!("{status}: {}", answer.text()),
        }
    }
    assert!(compared >= 9 && refused > 0, "{compared} compared, {refused} sent away");
    let seen = load.end().await;
    assert!(seen.iter().all(|one| one.status == 200));
    let slowest = within(1.0, seen);
    assert!(slowest < Duration::from_secs(1), "a proxied route answered after {slowest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wechat_users_log_in() {
    let demo = Demo::start().await.unwrap();
    let gateway = Gateway::with(MANIFEST)
        .flag("--wechat-app-id", "wx-demo")
        .flag("--wechat-app-secret", "demo")
        .flag("--wechat-api-url", &demo.url())
        .start()
        .await;
    let said = post(&gateway.client, "wechat/login", json!({ "code": "ann.1" })).await;
    assert_eq!(said.status, 200, "{}", said.text());
    assert_eq!(me(&gateway.client, text(&said.json(), "access_token")).await.status, 200);
    let refused = post(&gateway.client, "wechat/login", json!({ "code": "invalid" })).await;
    assert_eq!(refused.code(), "invalid_wechat_code");
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_manage_users() {
    let roles = "roles: { editor: { allow: ['document:*'] } }\n";
    let gateway = Gateway::with(&format!("{roles}{MANIFEST}")).start().await;
    let client = &gateway.client;
    let said = register(client, "ann").await;
    let (token, id) = (text(&said, "access_token"), text(&said["user"], "id"));

    for token in ["", "wrong", token] {
        let refused = admin_as(&gateway, token, "GET", "users", Value::Null).await;
        assert_eq!(refused.code(), "permission_denied");
    }
    let users = admin(&gateway, "GET", "users?limit=10", Value::Null).await.json();
    assert_eq!(
        (users["users"][0]["username"].as_str(), users["users"][0]["role"].as_str()),
        (Some("ann"), Some("user"))
    );
    assert!(users["users"][0].get("password_hash").is_none());

    let faulty = admin(&gateway, "POST", &format!("users/{id}/role"), json!({ "role": "a b" })).await;
    assert_eq!(
        (faulty.code().as_str(), faulty.json()["errors"][0]["pointer"].as_str()),
        ("validation_failed", Some("/role"))
    );
    let unknown = admin(&gateway, "POST", &format!("users/{id}/role"), json!({ "role": "editr" })).await;
    assert_eq!(unknown.status, 400);
    let fault = &unknown.json()["errors"][0];
    assert_eq!((text(fault, "pointer"), text(fault, "code")), ("/role", "role_unknown"));
    assert_eq!(text(fault, "detail"), "must be a role that the manifest defines; did you mean `editor`?");
    assert_eq!(me(client, token).await.status, 200, "nothing was changed");
    let role = admin(&gateway, "POST", &format!("users/{id}/role"), json!({ "role": "editor" })).await;
    assert_eq!(role.status, 204);
    let role = admin(&gateway, "POST", &format!("users/{id}/role"), json!({ "role": "admin" })).await;
    assert_eq!(role.status, 204);
    assert_eq!(me(client, token).await.code(), "token_revoked", "a role change ends sessions");
    let said = login(client, "ann", PASSWORD).await.json();
    let ann = text(&said, "access_token");
    assert_eq!(
        admin_as(&gateway, ann, "GET", "users", Value::Null).await.status,
        200,
        "an admin's own token counts"
    );

    let bob = register(client, "bob").await;
    let (bobs, bob_id) = (text(&bob, "access_token"), text(&bob["user"], "id"));
    assert_eq!(
        admin_as(&gateway, ann, "POST", &format!("users/{bob_id}/disable"), Value::Null).await.status,
        204
    );
    assert_eq!(me(client, bobs).await.code(), "token_revoked");
    assert_eq!(login(client, "bob", PASSWORD).await.code(), "account_disabled");
    assert_eq!(admin(&gateway, "POST", &format!("users/{bob_id}/enable"), Value::Null).await.status, 204);
    let bob = login(client, "bob", PASSWORD).await.json();
    assert_eq!(admin(&gateway, "POST", &format!("users/{bob_id}/revoke"), Value::Null).await.status, 204);
    assert_eq!(me(client, text(&bob, "access_token")).await.code(), "token_revoked");

    for _ in 0..5 {
        login(client, "bob", "wrong").await;
    }
    assert_eq!(login(client, "bob", PASSWORD).await.status, 423);
    assert_eq!(admin(&gateway, "POST", &format!("users/{bob_id}/unlock"), Value::Null).await.status, 204);
    assert_eq!(login(client, "bob", PASSWORD).await.status, 200);
    assert_eq!(admin(&gateway, "POST", "users/nobody/disable", Value::Null).await.code(), "not_found");
    let wrong = admin(&gateway, "GET", &format!("users/{bob_id}/disable"), Value::Null).await;
    assert_eq!((wrong.status.as_u16(), wrong.header("allow")), (405, Some("POST")));
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_manage_api_keys() {
    let gateway = Gateway::with(
        r#"
chains:
  keyed: [recovery, request_id, api_key]
routes:
  - { route: GET /hello, chain: keyed, respond: { text: hello } }
"#,
    )
    .start()
    .await;
    let faulty = json!({ "name": "", "permissions": ["nonsense"], "owner": "me" });
    let refused = admin(&gateway, "POST", "keys", faulty).await;
    assert_eq!(refused.json()["errors"][0]["pointer"], "/owner");
    let asked = json!({ "name": "nightly", "permissions": ["document:read"] });
    let created = admin(&gateway, "POST", "keys", asked).await;
    assert_eq!(created.status, 201, "{}", created.text());
    let created = created.json();
    let key = [("x-api-key", text(&created, "secret"))];
    assert_eq!(gateway.client.send("GET", "/hello", &key, "").await.status, 200);
    let keys = admin(&gateway, "GET", "keys", Value::Null).await.json();
    assert_eq!(keys["keys"][0]["name"], "nightly");
    assert!(keys["keys"][0].get("secret").is_none());
    let id = text(&created, "id");
    assert_eq!(admin(&gateway, "POST", &format!("keys/{id}/revoke"), Value::Null).await.status, 204);
    crate::harness::eventually("the key is refused", std::time::Duration::from_secs(60), || async {
        gateway.client.send("GET", "/hello", &key, "").await.status == 401
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_administrator_is_made_by_command() {
    let gateway = Gateway::with(MANIFEST).start().await;
    let database = format!("sqlite://{}", gateway.path("gateway.db").display());
    let voicegate = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_voicegate"))
            .args(arguments)
            .env_clear()
            .env("DATABASE_URL", &database)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    assert_eq!(voicegate(&["migrate"]).0, 0);
    let (code, password, _) = voicegate(&["admin", "create", "root", "--email", "root@example.com"]);
    assert_eq!(code, 0);
    let said = login(&gateway.client, "root", password.trim()).await.json();
    let root = text(&said, "access_token").to_owned();
    assert_eq!(admin_as(&gateway, &root, "GET", "users", Value::Null).await.status, 200);
    assert_eq!(
        voicegate(&["admin", "create", "root", "--email", "root@example.com"]).0,
        1,
        "it is there already"
    );

    for _ in 0..5 {
        login(&gateway.client, "root", "wrong").await;
    }
    assert_eq!(login(&gateway.client, "root", password.trim()).await.status, 423);
    assert_eq!(voicegate(&["admin", "unlock", "ROOT"]).0, 0);
    assert_eq!(login(&gateway.client, "root", password.trim()).await.status, 200);

    assert_eq!(voicegate(&["admin", "role", "root", "user"]).0, 0);
    crate::harness::eventually(
        "a running gateway learns of it",
        std::time::Duration::from_secs(5),
        || async { me(&gateway.client, &root).await.status == 401 },
    )
    .await;
    assert_eq!(voicegate(&["admin", "role", "nobody", "user"]).0, 1);

    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/routes.yaml");
    let told = voicegate(&["admin", "role", "root", "guest", "--config", shipped]);
    assert_eq!((told.0, told.2.contains("warning")), (0, false), "{}", told.2);
    let told = voicegate(&["admin", "role", "root", "gest", "--config", shipped]);
    assert_eq!((told.0, told.2.contains("did you mean `guest`?")), (1, true), "{}", told.2);
    let told = voicegate(&["admin", "role", "root", "guest", "--config", "nowhere.yaml"]);
    assert_eq!((told.0, told.2.contains("nothing was changed")), (1, true), "{}", told.2);
    let told = voicegate(&["admin", "role", "root", "gest"]);
    assert_eq!((told.0, told.2.contains("warning: no manifest was asked")), (0, true), "{}", told.2);
}
