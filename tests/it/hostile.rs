//! Hostile input through every native operation, on both databases: nothing fails for it, nothing of anybody else
//! changes, and what is stored comes back byte for byte. All SQL has parameters; this shows it.

use crate::harness::scripted::body;
use crate::harness::{Answer, Client, Database, Gateway, Scripted, on_both};
use http::Response;
use serde_json::{Value, json};
use sqlx::{Connection, SqliteConnection};

const MANIFEST: &str = r#"
auth: { password: { bcrypt_cost: 4 } }
upstreams: { algo: { targets: [{ url: "${ALGO}" }] } }
roles:
  user: { allow: ["session:*", "chat:*"] }
chains:
  open: [recovery, request_id]
  account: [{ chain: open }, auth]
  protected: [{ chain: account }, rbac, tenant]
versions:
  - name: v01
    prefix: /api/v01
    chain: protected
    routes:
      - { route: POST /auth/register, handler: auth.register, chain: open, public: true }
      - { route: POST /auth/login, handler: auth.login, chain: open, public: true }
      - { route: POST /auth/refresh, handler: auth.refresh, chain: open, public: true }
      - { route: POST /auth/logout, handler: auth.logout, chain: account }
      - { route: GET /auth/me, handler: auth.me, chain: account }
      - { route: DELETE /auth/me, handler: auth.delete, chain: account }
      - { route: POST /auth/password/change, handler: auth.password_change, chain: account }
      - { route: POST /auth/password/forgot, handler: auth.password_forgot, chain: open, public: true }
      - { route: POST /auth/password/reset, handler: auth.password_reset, chain: open, public: true }
      - { route: POST /auth/wechat/login, handler: auth.wechat_login, chain: open, public: true }
      - { route: POST /sessions, handler: sessions.create }
      - { route: GET /sessions, handler: sessions.list }
      - { route: GET /sessions/export, handler: sessions.export }
      - { route: GET /sessions/:id, handler: sessions.get }
      - { route: PATCH /sessions/:id, handler: sessions.update }
      - { route: DELETE /sessions/:id, handler: sessions.delete }
      - { route: GET /sessions/:id/messages, handler: sessions.messages }
      - { route: POST /chat/stream, handler: chat.stream, upstream: algo, path: /v01/query/stream }
      - { route: POST /chat/cancel, handler: chat.cancel, upstream: algo, path: /api/v1/chat/cancel }
"#;

const PASSWORD: &str = "Correct1horse";

/// What a service would say to any question.
const ANSWER: &str = "data: {\"type\":\"start\",\"session_id\":\"s\"}\n\ndata: {\"type\":\"token\",\"content\":\"yes\"}\n\n\
                      data: {\"type\":\"end\",\"total_tokens\":1}\n\n";

fn texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "'",
        "\"",
        "`",
        "''; DROP TABLE users; --",
        "'); DELETE FROM sessions; --",
        "' OR '1'='1",
        "' OR 1=1 -- ",
        "\" OR \"\"=\"",
        "admin'/*",
        "bob' UNION SELECT id, password_hash FROM users --",
        "1; UPDATE users SET role='admin' WHERE username='ann'",
        "x' AND (SELECT pg_sleep(30)) IS NULL --",
        "x'; ATTACH DATABASE '/tmp/x' AS x; --",
        "$1",
        "?1",
        ":name @p0 $$tag$$",
        "\\'; SELECT 1; \\",
        "%",
        "_",
        "%' ESCAPE '\\",
        "%s%n%x {0} {} ${jndi:ldap://x} {{7*7}}",
        "<script>alert(1)</script>",
        "a\u{0}b",
        "a\r\nb\tc",
        "\u{feff}zero\u{200b}width",
        "＇；ＤＲＯＰ ＴＡＢＬＥ",
        "ʼ OR 1=1",
        "𝕬𝖉𝖒𝖎𝖓 🙂 é e\u{301}",
        "\u{202e}rtl",
        "null",
        "NaN",
        "0x31",
        "00000000-0000-0000-0000-000000000000",
        "../../etc/passwd",
        "",
        " ",
    ]
    .map(str::to_owned)
    .into();
    texts.push("'".repeat(5000));
    texts.push("長".repeat(3000));
    texts
}

/// What stands where a text should.
fn odd_values() -> Vec<Value> {
    vec![
        Value::Null,
        json!(1),
        json!(-1.5e300),
        json!(true),
        json!(["a"]),
        json!({ "$ne": "" }),
        json!([[[{}]]]),
    ]
}

/// A gateway on a database of its own.
struct Bed {
    gateway: Gateway,
    url: String,
    postgres: Option<Database>,
    _service: Scripted,
}

impl Bed {
    async fn sqlite() -> Self {
        Bed::on(None).await
    }

    async fn postgres() -> Self {
        Bed::on(Some(Database::fresh().await)).await
    }

    async fn on(postgres: Option<Database>) -> Self {
        let service = Scripted::start(|head, _| {
            let (kind, text) = match head.uri.path() {
                "/v01/query/stream" => ("text/event-stream", ANSWER),
                _ => ("application/json", "{}"),
            };
            Response::builder().header("content-type", kind).body(body(text)).unwrap()
        })
        .await;
        let mut builder = Gateway::with(MANIFEST).var("ALGO", service.url());
        if let Some(database) = &postgres {
            builder = builder.flag("--database-url", database.url());
        }
        let gateway = builder.start().await;
        let url = format!("sqlite://{}", gateway.path("gateway.db").display());
        Bed { gateway, url, postgres, _service: service }
    }

    async fn number(&self, sql: &'static str) -> i64 {
        match &self.postgres {
            Some(database) => database.number(sql).await,
            None => {
                let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
                sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap()
            }
        }
    }

    async fn register(&self, name: &str) -> Caller {
        let body = json!({ "username": name, "email": format!("{name}@example.com"), "password": PASSWORD });
        let answer = self.gateway.client.post("/api/v01/auth/register", &body.to_string()).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        Caller::new(&self.gateway.client, &answer.json())
    }
}

/// Somebody with a token.
struct Caller {
    client: Client,
    id: String,
    bearer: String,
    refresh: String,
}

impl Caller {
    fn new(client: &Client, said: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{said}")).to_owned();
        Caller {
            client: client.clone(),
            id: text(&said["user"]["id"]),
            bearer: format!("Bearer {}", text(&said["access_token"])),
            refresh: text(&said["refresh_token"]),
        }
    }

    /// Sends; whatever comes of it, the gateway does not fail.
    async fn send(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.send_with(method, path, &[], body).await
    }

    async fn send_with(&self, method: &str, path: &str, more: &[(&str, &str)], body: &Value) -> Answer {
        let mut headers = vec![("authorization", &*self.bearer), ("content-type", "application/json")];
        headers.extend_from_slice(more);
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.client.send(method, &format!("/api/v01{path}"), &headers, &text).await;
        let status = answer.status.as_u16();
        assert!(
            status < 500 || status == 503 && path.contains("wechat"),
            "{method} {path} {body}: {answer:?}"
        );
        answer
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &Value::Null).await
    }

    /// Everything that is theirs.
    async fn snapshot(&self) -> Value {
        let sessions = self.get("/sessions").await.json();
        let mut messages = Vec::new();
        for session in sessions["sessions"].as_array().unwrap() {
            let id = session["session_id"].as_str().unwrap();
            messages.push(self.get(&format!("/sessions/{id}/messages")).await.json());
        }
        json!({ "me": self.get("/auth/me").await.json(), "sessions": sessions, "messages": messages })
    }
}

/// A text as it stands in a path or a query.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// The calls with a body, and the fields that texts go into. `{session}` is a session of the caller's.
fn calls(session: &str, refresh: &str) -> Vec<(&'static str, String, Value, Vec<&'static str>)> {
    let call = |method, path: &str, body: Value, fields: &[&'static str]| {
        (method, path.to_owned(), body, fields.to_vec())
    };
    vec![
        call(
            "POST",
            "/auth/login",
            json!({ "username": "nobody", "password": "x" }),
            &["username", "password", "tenant_id"],
        ),
        call("POST", "/auth/refresh", json!({ "refresh_token": "x" }), &["refresh_token"]),
        call("POST", "/auth/password/forgot", json!({ "email": "x@example.com" }), &["email", "tenant_id"]),
        call("POST", "/auth/password/reset", json!({ "token": "x", "password": PASSWORD }), &["token"]),
        call("POST", "/auth/wechat/login", json!({ "code": "x" }), &["code", "tenant_id"]),
        call(
            "POST",
            "/auth/password/change",
            json!({ "old_password": "x", "new_password": PASSWORD }),
            &["old_password"],
        ),
        call("POST", "/chat/cancel", json!({ "session_id": "x" }), &["session_id"]),
        call("POST", "/chat/stream", json!({ "query": "x", "session_id": refresh }), &["session_id"]),
        call("DELETE", "/auth/me", json!({ "password": "x" }), &["password"]),
        call("PATCH", &format!("/sessions/{session}"), json!({ "title": "x" }), &["title"]),
    ]
}

async fn hostile_texts_stay_texts(bed: Bed) {
    let bob = bed.register("bob").await;
    let kept = bob.send("POST", "/sessions", &json!({ "title": "of bob's" })).await.json();
    let kept = kept["session_id"].as_str().unwrap().to_owned();
    let asked = bob.send("POST", "/chat/stream", &json!({ "query": "of bob's", "session_id": kept })).await;
    assert_eq!(asked.status, 200, "{}", asked.text());
    let before = bob.snapshot().await;
    let ann = bed.register("ann").await;
    bed.register("carl").await;
    let own = ann.send("POST", "/sessions", &json!({ "title": "own" })).await.json();
    let own = own["session_id"].as_str().unwrap().to_owned();
    let mut stored = 0;
    for text in &texts() {
        // Names: most are refused. One that is taken logs in as itself.
        let new = json!({ "username": text, "email": "new@example.com", "password": PASSWORD });
        let made = ann.send("POST", "/auth/register", &new).await;
        if made.status == 201 {
            let same = Caller::new(&bed.gateway.client, &made.json());
            assert_eq!(same.get("/auth/me").await.json()["username"], *text);
            assert_ne!(same.id, bob.id);
            let gone = same.send("DELETE", "/auth/me", &json!({ "password": PASSWORD })).await;
            assert_eq!(gone.status, 204, "{}", gone.text());
        }
        for (method, path, body, fields) in calls(&own, "none") {
            for field in fields {
                let mut body = body.clone();
                body[field] = json!(text);
                let answer = ann.send(method, &path, &body).await;
                let is_other = path == "/auth/login" && answer.status == 200;
                assert!(!is_other, "{field} {text:?} logs in: {}", answer.text());
            }
        }
        let login = json!({ "username": "carl", "password": PASSWORD });
        let carl = ann.send("POST", "/auth/login", &login).await;
        assert_eq!(carl.status, 200, "{}", carl.text());
        let carl = Caller::new(&bed.gateway.client, &carl.json());
        carl.send("POST", "/auth/logout", &json!({ "refresh_token": text })).await;
        // Titles come back as they went.
        let made = ann.send("POST", "/sessions", &json!({ "title": text })).await;
        if made.status == 201 {
            let said = made.json();
            let path = format!("/sessions/{}", said["session_id"].as_str().unwrap());
            let renamed = ann.send("PATCH", &path, &json!({ "title": text })).await;
            if renamed.status == 200 {
                // Titles lose the space around them.
                assert_eq!(renamed.json()["title"], *text.trim());
                assert_eq!(ann.get(&path).await.json()["title"], *text.trim(), "byte for byte");
                stored += 1;
            }
            let asked = json!({ "query": text, "session_id": said["session_id"] });
            if ann.send("POST", "/chat/stream", &asked).await.status == 200 {
                let messages = ann.get(&format!("{path}/messages")).await.json();
                assert_eq!(messages["messages"][0]["content"], *text, "byte for byte");
                stored += 1;
            }
            assert_eq!(ann.send("DELETE", &path, &Value::Null).await.status, 204);
        }
        // Ids, queries and headers.
        let id = encoded(text);
        for (method, path) in [
            ("GET", format!("/sessions/{id}")),
            ("PATCH", format!("/sessions/{id}")),
            ("DELETE", format!("/sessions/{id}")),
            ("GET", format!("/sessions/{id}/messages")),
            ("GET", format!("/sessions/{kept}?x={id}")),
        ] {
            let body = if method == "PATCH" { json!({ "title": "mine" }) } else { Value::Null };
            let answer = ann.send(method, &path, &body).await;
            // An empty id is the list.
            assert!(id.is_empty() || answer.status.is_client_error(), "{method} {text:?}: {answer:?}");
        }
        for query in ["limit", "cursor", "format", "after"] {
            ann.get(&format!("/sessions?{query}={id}")).await;
            ann.get(&format!("/sessions/{own}/messages?{query}={id}")).await;
            ann.get(&format!("/sessions/export?{query}={id}")).await;
        }
        if !text.is_empty() && text.bytes().all(|byte| (b' '..0x7f).contains(&byte)) && text.len() < 1000 {
            let question = json!({ "query": "again", "session_id": own });
            for header in ["idempotency-key", "last-event-id"] {
                ann.send_with("POST", "/chat/stream", &[(header, text)], &question).await;
            }
        }
    }
    assert!(stored > 40, "{stored} texts were stored");
    for value in odd_values() {
        for (method, path, body, fields) in calls(&own, "none") {
            for field in fields {
                let mut body = body.clone();
                body[field] = value.clone();
                let answer = ann.send(method, &path, &body).await;
                // A number or a boolean is read as its text, which is a wrong one.
                let is_fine = !value.is_array() && !value.is_object();
                assert!(is_fine || answer.status.is_client_error(), "{path} {field} {value}: {answer:?}");
            }
        }
        for path in ["/auth/register", "/sessions", "/chat/stream"] {
            ann.send("POST", path, &value).await;
            ann.send("POST", path, &json!({ "title": value, "username": value, "query": value })).await;
        }
    }
    assert_eq!(bob.snapshot().await, before, "nothing of bob's changed");
    assert_eq!(ann.get("/auth/me").await.json()["role"], "user");
    assert_eq!(
        bed.number("SELECT count(*) FROM users WHERE deleted_at IS NULL").await,
        3,
        "no row appeared or vanished"
    );
    assert_eq!(bed.number("SELECT count(*) FROM users WHERE role <> 'user'").await, 0);
    let again = json!({ "refresh_token": bob.refresh });
    assert_eq!(bob.send("POST", "/auth/refresh", &again).await.status, 200, "bob is still logged in");
}

async fn hostile_texts_to_the_admin_stay_texts(bed: Bed) {
    let bob = bed.register("bob").await;
    let before = bob.snapshot().await;
    let admin = |method: &'static str, path: String, body: Value| {
        let client = bed.gateway.admin.clone();
        async move {
            let headers = [("authorization", "Bearer admin-secret"), ("content-type", "application/json")];
            let text = if body.is_null() { String::new() } else { body.to_string() };
            let answer = client.send(method, &format!("/admin/api/{path}"), &headers, &text).await;
            assert!(answer.status.as_u16() < 500, "{method} {path} {body}: {answer:?}");
            answer
        }
    };
    let mut keys = 0;
    for text in &texts() {
        let id = encoded(text);
        for act in ["role", "disable", "enable", "unlock", "revoke"] {
            admin("POST", format!("users/{id}/{act}"), json!({ "role": text })).await;
        }
        admin("POST", format!("users/{}/role", bob.id), json!({ "role": text })).await;
        admin("POST", format!("keys/{id}/revoke"), Value::Null).await;
        admin("POST", "unlock".into(), json!({ "username": text, "tenant_id": text })).await;
        for query in ["limit", "cursor"] {
            admin("GET", format!("users?{query}={id}"), Value::Null).await;
        }
        let new = json!({ "name": text, "permissions": ["session:read"], "tenant_id": text });
        let made = admin("POST", "keys".into(), new).await;
        if made.status == 201 {
            keys += 1;
            let (made, all) = (made.json(), admin("GET", "keys".into(), Value::Null).await.json());
            let listed = all["keys"].as_array().unwrap().iter().find(|key| key["id"] == made["id"]).unwrap();
            assert_eq!((&listed["name"], &listed["tenant_id"]), (&made["name"], &made["tenant_id"]));
            assert_eq!(listed["name"], *text, "byte for byte");
        }
        admin("POST", "keys".into(), json!({ "name": "k", "permissions": [text], "expires_at": text })).await;
    }
    assert!(keys > 5, "{keys} keys");
    for value in odd_values() {
        for (path, body) in [
            ("unlock", json!({ "username": value, "tenant_id": value })),
            ("keys", json!({ "name": value, "permissions": value })),
            ("unlock", value.clone()),
        ] {
            let answer = admin("POST", path.into(), body).await;
            assert!(answer.status.is_client_error(), "{path} {value}: {answer:?}");
        }
    }
    assert_eq!(bob.snapshot().await, before, "nothing of bob's changed");
    assert_eq!(bed.number("SELECT count(*) FROM api_keys").await, keys);
    assert_eq!(bed.number("SELECT count(*) FROM users").await, 1);
}

on_both!(hostile_texts_stay_texts, hostile_texts_to_the_admin_stay_texts);
