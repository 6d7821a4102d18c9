//! Who may call: tokens, roles, tenants and keys, through the front door.

use crate::harness::scripted::body;
use crate::harness::{Answer, Client, Gateway, Scripted};
use http::Response;
use sha2::{Digest, Sha256};
use std::time::{Duration, SystemTime};
use voicegate::stores::{ApiKey, User};

const MANIFEST: &str = r#"
upstreams: { app: { targets: [{ url: "${APP}" }] } }
roles:
  admin: { allow: ["*"] }
  user: { inherits: guest, allow: ["session:*"] }
  guest: { allow: ["public:read"] }
chains:
  open: [request_id]
  protected: [request_id, auth, rbac, tenant]
versions:
  - name: v1
    prefix: /api/v1
    chain: protected
    routes:
      - { route: ANY /sessions, upstream: app, path: /echo }
      - { route: GET /tenants/:tenant_id/sessions, upstream: app, path: /echo, with: { rbac: "session:read" } }
      - { route: GET /reports, upstream: app, path: /echo }
      - { route: GET /open, upstream: app, path: /echo, chain: open, public: true }
      - { route: GET /robots, upstream: app, path: /echo, chain: [api_key, { rbac: "robot:read" }, tenant] }
"#;

async fn started(auth: &str, flags: &[(&str, &str)]) -> (Gateway, Scripted) {
    let app = Scripted::start(|_, _| Response::new(body("{}"))).await;
    let mut builder =
        Gateway::with(&format!("{auth}\n{MANIFEST}")).var("APP", format!("http://{}", app.address));
    for (name, value) in flags {
        builder = builder.flag(name, value);
    }
    (builder.start().await, app)
}

fn user(role: &str) -> User {
    User {
        id: "u-1".into(),
        tenant_id: "acme".into(),
        username: "ann".into(),
        email: None,
        password_hash: None,
        role: role.into(),
        openid: None,
        disabled: false,
        created_at: SystemTime::now(),
        last_login_at: None,
    }
}

pub fn token(gateway: &Gateway, role: &str, ago: Duration) -> String {
    gateway.live().shared().tokens.issue(&user(role), Some("web"), SystemTime::now() - ago).token
}

async fn get(client: &Client, path: &str, token: &str) -> Answer {
    client.send("GET", path, &[("authorization", &format!("Bearer {token}"))], "").await
}

const AGO: Duration = Duration::ZERO;

#[tokio::test]
async fn strangers_get_401_with_a_code_for_each_reason() {
    let (gateway, app) = started("", &[]).await;
    let client = &gateway.client;
    let answer = client.get("/api/v1/sessions").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (401, "no_token"));
    assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    assert_eq!(answer.json()["error"], "No token provided");
    let answer = client.send("GET", "/api/v1/sessions", &[("accept-language", "zh")], "").await;
    assert_eq!(answer.json()["error"], "未提供令牌");
    let answer = get(client, "/api/v1/sessions", "nonsense").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (401, "invalid_token"));
    let old = token(&gateway, "user", Duration::from_secs(25 * 3600));
    assert_eq!(get(client, "/api/v1/sessions", &old).await.code(), "token_expired");
    let good = token(&gateway, "user", AGO);
    assert_eq!(get(client, "/api/v1/sessions", &good).await.status, 200);
    let tokens = &gateway.live().shared().tokens;
    tokens.revoke_user("u-1", SystemTime::now()).await.unwrap();
    let answer = get(client, "/api/v1/sessions", &good).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (401, "token_revoked"));
    assert_eq!(answer.json()["error"], "Token has been revoked");
    assert_eq!(app.heads().len(), 1, "nothing of the refused reached the service");
}

#[tokio::test]
async fn upstreams_learn_who_calls_from_the_token_alone() {
    let (gateway, app) = started("", &[]).await;
    let good = token(&gateway, "user", AGO);
    let bearer = format!("Bearer {good}");
    let forged = [
        ("authorization", bearer.as_str()),
        ("x-user-id", "root"),
        ("X_User_Role", "admin"),
        ("x-user-role", "admin"),
        ("connection", "x-user-id, x-tenant-id"),
    ];
    assert_eq!(gateway.client.send("GET", "/api/v1/sessions", &forged, "").await.status, 200);
    let head = app.heads().pop().unwrap();
    let all = |name: &str| -> Vec<String> {
        head.headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(all("x-user-id"), ["u-1"]);
    assert_eq!(all("x-tenant-id"), ["acme"]);
    assert_eq!(all("x-user-role"), ["user"]);
    assert!(all("x_user_role").is_empty());
    let forged = [("x-user-id", "root"), ("x-tenant-id", "acme"), ("x-user-role", "admin")];
    assert_eq!(gateway.client.send("GET", "/api/v1/open", &forged, "").await.status, 200);
    let head = app.heads().pop().unwrap();
    for (name, _) in forged {
        assert!(!head.headers.contains_key(name), "{name} on a public route");
    }
}

#[tokio::test]
async fn a_token_may_stand_in_query_and_cookie_and_stays_here() {
    let (gateway, app) = started("", &[]).await;
    let good = token(&gateway, "user", AGO);
    let answer = gateway.client.get(&format!("/api/v1/sessions?a=1&token={good}&b=2")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(app.heads().pop().unwrap().uri.to_string(), "/echo?a=1&b=2");
    let cookie = format!("theme=dark; access_token={good}");
    assert_eq!(gateway.client.send("GET", "/api/v1/sessions", &[("cookie", &cookie)], "").await.status, 200);
    let (strict, _app) = started("auth: { token_from: [header] }", &[]).await;
    let good = token(&strict, "user", AGO);
    assert_eq!(strict.client.get(&format!("/api/v1/sessions?token={good}")).await.code(), "no_token");
    assert_eq!(get(&strict.client, "/api/v1/sessions", &good).await.status, 200);
}

#[tokio::test]
async fn roles_and_tenants_are_held() {
    let (gateway, _app) = started("", &[]).await;
    let client = &gateway.client;
    let user = token(&gateway, "user", AGO);
    let answer = get(client, "/api/v1/reports", &user).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (403, "permission_denied"));
    assert_eq!(answer.json()["error"], "Permission denied");
    assert_eq!(get(client, "/api/v1/reports", &token(&gateway, "admin", AGO)).await.status, 200);
    assert_eq!(
        get(client, "/api/v1/sessions", &token(&gateway, "guest", AGO)).await.code(),
        "permission_denied"
    );
    assert_eq!(
        get(client, "/api/v1/sessions", &token(&gateway, "made-up", AGO)).await.code(),
        "permission_denied"
    );
    assert_eq!(get(client, "/api/v1/tenants/acme/sessions", &user).await.status, 200);
    assert_eq!(get(client, "/api/v1/tenants/other/sessions", &user).await.code(), "tenant_mismatch");
    let bearer = format!("Bearer {user}");
    let other = [("authorization", bearer.as_str()), ("x-tenant-id", "other")];
    let answer = client.send("GET", "/api/v1/sessions", &other, "").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (403, "tenant_mismatch"));
}

#[tokio::test]
async fn a_token_near_its_end_brings_another() {
    let (gateway, _app) = started("", &[]).await;
    let fresh = get(&gateway.client, "/api/v1/sessions", &token(&gateway, "user", AGO)).await;
    assert_eq!(fresh.header("x-new-token"), None);
    let ending = token(&gateway, "user", Duration::from_secs(23 * 3600 + 60));
    let answer = get(&gateway.client, "/api/v1/sessions", &ending).await;
    let renewed = answer.header("x-new-token").unwrap();
    let answer = get(&gateway.client, "/api/v1/sessions", renewed).await;
    assert_eq!((answer.status.as_u16(), answer.header("x-new-token")), (200, None));
}

#[tokio::test]
async fn keys_of_robots_have_their_permissions_and_no_more() {
    let (gateway, app) = started("", &[]).await;
    let store = &gateway.live().shared().store;
    let key = |id: &str, permission: &str| ApiKey {
        id: id.into(),
        name: "a robot".into(),
        tenant_id: "acme".into(),
        created_by: "u-1".into(),
        permissions: vec![permission.into()],
        created_at: SystemTime::now(),
        expires_at: None,
        revoked: false,
    };
    let hash = |secret: &str| -> [u8; 32] { Sha256::digest(secret).into() };
    store.create_api_key(key("1", "robot:*"), &hash("good-key")).await.unwrap();
    store.create_api_key(key("2", "other:*"), &hash("other-key")).await.unwrap();
    let asked = async |secret: &'static str| {
        gateway.client.send("GET", "/api/v1/robots", &[("x-api-key", secret)], "").await
    };
    assert_eq!(asked("good-key").await.status, 200);
    let head = app.heads().pop().unwrap();
    assert_eq!(head.headers["x-user-id"], "key-1");
    assert_eq!(head.headers["x-tenant-id"], "acme");
    assert!(!head.headers.contains_key("x-api-key") && !head.headers.contains_key("x-user-role"));
    assert_eq!(asked("other-key").await.code(), "permission_denied");
    assert_eq!(asked("unknown").await.code(), "invalid_api_key");
    store.revoke_api_key("1").await.unwrap();
    crate::harness::eventually("a key that was taken back stops", Duration::from_secs(4), || async {
        asked("good-key").await.status == 401
    })
    .await;
}

#[tokio::test]
async fn one_route_takes_a_key_or_a_token() {
    let gateway = Gateway::with(
        r#"
roles: { user: { allow: ["robot:read"] }, guest: { allow: [] } }
routes:
  - { route: GET /robots, chain: [{ api_key: { optional: true } }, auth, rbac], respond: { text: hello } }
"#,
    )
    .start()
    .await;
    let store = &gateway.live().shared().store;
    let key = ApiKey {
        id: "1".into(),
        name: "a robot".into(),
        tenant_id: "acme".into(),
        created_by: "u-1".into(),
        permissions: vec!["robot:read".into()],
        created_at: SystemTime::now(),
        expires_at: None,
        revoked: false,
    };
    store.create_api_key(key, &Sha256::digest("good-key").into()).await.unwrap();
    let bearer = |role| format!("Bearer {}", token(&gateway, role, AGO));
    let (user, guest) = (bearer("user"), bearer("guest"));
    for (headers, wanted) in [
        (&[("x-api-key", "good-key")][..], "hello"),
        (&[("authorization", &*user)], "hello"),
        (&[], "no_token"),
        (&[("authorization", "Bearer x")], "invalid_token"),
        (&[("authorization", &*guest)], "permission_denied"),
        (&[("x-api-key", "bad-key"), ("authorization", &*user)], "invalid_api_key"),
        // The key counts, whatever the token is.
        (&[("x-api-key", "good-key"), ("authorization", "Bearer x")], "hello"),
        (&[("x-api-key", "good-key"), ("authorization", &*guest)], "hello"),
    ] {
        let answer = gateway.client.send("GET", "/robots", headers, "").await;
        let said = if answer.status == 200 { answer.text().to_owned() } else { answer.code() };
        assert_eq!(said, wanted, "{headers:?}");
    }
}

#[tokio::test]
async fn what_is_revoked_stays_so_and_reaches_others() {
    let secret = "a secret of more than thirty-two bytes";
    let file = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}", file.path().join("shared.db").display());
    let flags = [("--jwt-secret", secret), ("--database-url", database.as_str())];
    let (one, _app) = started("", &flags).await;
    let (other, _other_app) = started("", &flags).await;
    let issued = token(&one, "user", AGO);
    assert_eq!(get(&other.client, "/api/v1/sessions", &issued).await.status, 200);
    let tokens = &one.live().shared().tokens;
    let identity = tokens.verify(&issued, SystemTime::now()).unwrap();
    tokens.revoke_login(&identity, SystemTime::now()).await.unwrap();
    assert_eq!(get(&one.client, "/api/v1/sessions", &issued).await.code(), "token_revoked");
    // A second, and some for a slow machine.
    crate::harness::eventually("the other knows", Duration::from_secs(3), || async {
        get(&other.client, "/api/v1/sessions", &issued).await.status == 401
    })
    .await;
    one.shut_down().await;
    let (again, _app) = started("", &flags).await;
    assert_eq!(get(&again.client, "/api/v1/sessions", &issued).await.code(), "token_revoked");
}

#[tokio::test]
async fn a_reload_changes_what_tokens_must_say() {
    let (gateway, _app) = started("", &[]).await;
    let good = token(&gateway, "user", AGO);
    assert_eq!(get(&gateway.client, "/api/v1/sessions", &good).await.status, 200);
    let looser = MANIFEST.replace("\"session:*\"", "\"session:*\", \"report:read\"");
    gateway.rewrite(&looser);
    crate::harness::eventually("the role has more", Duration::from_secs(10), || async {
        get(&gateway.client, "/api/v1/reports", &good).await.status == 200
    })
    .await;
    gateway.rewrite(&format!("auth: {{ issuer: somebody-else }}\n{MANIFEST}"));
    crate::harness::eventually("the issuer is another", Duration::from_secs(10), || async {
        get(&gateway.client, "/api/v1/sessions", &good).await.status == 401
    })
    .await;
    let new = token(&gateway, "user", AGO);
    assert_eq!(get(&gateway.client, "/api/v1/sessions", &new).await.status, 200);
}

#[tokio::test]
async fn production_does_not_start_without_a_good_secret() {
    let start = async |flags: &[(&str, &str)]| {
        let mut builder = Gateway::with("routes: [{ route: GET /, public: true, respond: {} }]");
        for (name, value) in flags {
            builder = builder.flag(name, value);
        }
        builder.try_start().await.err().map(|error| error.to_string())
    };
    let production = ("--environment", "production");
    assert!(start(&[production]).await.unwrap().contains("JWT_SECRET"));
    let short = start(&[production, ("--jwt-secret", "hunter2")]).await.unwrap();
    assert!(short.contains("32") && !short.contains("hunter2"), "{short}");
    assert_eq!(start(&[production, ("--jwt-secret", &"x".repeat(32))]).await, None);
}
