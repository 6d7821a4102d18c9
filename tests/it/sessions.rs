//! Sessions through the front door, on both databases: the flows of a front end, retries, other people's sessions,
//! exports, and the end of an account.

use crate::harness::gateway::Builder;
use crate::harness::{Answer, Client, Database, Gateway, eventually, on_both};
use serde_json::{Value, json};
use sqlx::{Connection, SqliteConnection};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};
use voicegate::stores::{MessageStatus, NewTurn, NewUser, Once, Owner, TurnEnd};

const MANIFEST: &str = r#"
auth: { password: { bcrypt_cost: 4 } }
roles:
  user: { allow: ["session:*"] }
  reader: { allow: ["session:read"] }
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
      - { route: GET /auth/me, handler: auth.me, chain: account }
      - { route: DELETE /auth/me, handler: auth.delete, chain: account }
      - { route: POST /sessions, handler: sessions.create }
      - { route: GET /sessions, handler: sessions.list }
      - { route: GET /sessions/export, handler: sessions.export }
      - { route: GET /sessions/:id, handler: sessions.get }
      - { route: PATCH /sessions/:id, handler: sessions.update }
      - { route: DELETE /sessions/:id, handler: sessions.delete }
      - { route: GET /sessions/:id/messages, handler: sessions.messages }
"#;

const PASSWORD: &str = "Correct1horse";
const SOON: Duration = Duration::from_secs(10);

/// A gateway on a database of its own.
struct Bed {
    gateway: Gateway,
    url: String,
    postgres: Option<Database>,
}

impl Bed {
    async fn sqlite() -> Self {
        let gateway = builder().start().await;
        let url = format!("sqlite://{}", gateway.path("gateway.db").display());
        Bed { gateway, url, postgres: None }
    }

    async fn postgres() -> Self {
        Bed::on(Database::fresh().await).await
    }

    async fn on(database: Database) -> Self {
        let gateway = builder().flag("--database-url", database.url()).start().await;
        Bed { gateway, url: database.url().to_owned(), postgres: Some(database) }
    }

    /// Another replica on the same database.
    async fn another(&self) -> Gateway {
        builder().flag("--database-url", &self.url).start().await
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

    async fn register(&self, name: &str) -> User {
        register(&self.gateway.client, name).await
    }

    /// A user of a tenant, with a role: registration makes none.
    async fn user_in(&self, tenant: &str, name: &str, role: &str) -> User {
        let shared = self.gateway.live().shared();
        let new = NewUser {
            id: uuid::Uuid::new_v4().to_string(),
            tenant_id: tenant.to_owned(),
            username: name.to_owned(),
            email: None,
            password_hash: None,
            role: role.to_owned(),
            openid: None,
        };
        let user = shared.store.create_user(new, SystemTime::now()).await.unwrap();
        let token = shared.tokens.issue(&user, Some("web"), SystemTime::now()).token;
        User { id: user.id, client: self.gateway.client.clone(), bearer: format!("Bearer {token}") }
    }

    /// Has something said and answered in a session.
    async fn talk(&self, user: &User, session: &str, words: &str) {
        let store = &self.gateway.live().shared().store;
        let now = SystemTime::now();
        let turn = NewTurn {
            id: uuid::Uuid::now_v7().to_string(),
            session_id: session.to_owned(),
            message_id: uuid::Uuid::now_v7().to_string(),
            query: words.to_owned(),
            replica: "test".to_owned(),
            alive_until: now + SOON,
        };
        let owner = Owner { tenant_id: "".into(), user_id: user.id.as_str().into() };
        let Once::Done(turn) = store.begin_turn(&owner, &turn, None, now).await.unwrap() else {
            panic!("no key, no retry")
        };
        let content = format!("about {words}");
        let end = TurnEnd { content, status: MessageStatus::Complete, total_tokens: Some(2) };
        store.finish_turn(&turn, &end, now).await.unwrap();
    }

    /// Runs `voicegate` on the database: exit code, stdout, stderr.
    fn voicegate(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_voicegate"))
            .args(arguments)
            .env_clear()
            .env("DATABASE_URL", &self.url)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }
}

fn builder() -> Builder {
    // Replicas share the secret, so that one's tokens count at the other.
    Gateway::with(MANIFEST).flag("--jwt-secret", "a secret of more than thirty-two bytes")
}

/// Somebody with a token.
struct User {
    id: String,
    client: Client,
    bearer: String,
}

impl User {
    async fn send(&self, method: &str, path: &str, more: &[(&str, &str)], body: Value) -> Answer {
        let mut headers = vec![("authorization", &*self.bearer)];
        headers.extend_from_slice(more);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        if !body.is_empty() {
            headers.push(("content-type", "application/json"));
        }
        self.client.send(method, &format!("/api/v01{path}"), &headers, &body).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], Value::Null).await
    }

    async fn create(&self, title: &str) -> String {
        let made = self.send("POST", "/sessions", &[], json!({ "title": title })).await;
        assert_eq!(made.status, 201, "{}", made.text());
        text(&made.json(), "session_id").to_owned()
    }

    /// Titles of the caller's sessions, page by page.
    async fn titles(&self, limit: usize) -> Vec<String> {
        let mut all = Vec::new();
        let mut path = format!("/sessions?limit={limit}");
        loop {
            let page = self.get(&path).await;
            assert_eq!(page.status, 200, "{}", page.text());
            let page = page.json();
            let sessions = page["sessions"].as_array().unwrap();
            assert!(sessions.len() <= limit);
            all.extend(sessions.iter().map(|one| text(one, "title").to_owned()));
            let Some(cursor) = page["next_cursor"].as_str() else { return all };
            path = format!("/sessions?limit={limit}&cursor={cursor}");
        }
    }
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_else(|| panic!("no {key} in {value}"))
}

async fn register(client: &Client, name: &str) -> User {
    let body = json!({ "username": name, "email": format!("{name}@example.com"), "password": PASSWORD });
    let answer = client.post("/api/v01/auth/register", &body.to_string()).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let said = answer.json();
    User {
        id: text(&said["user"], "id").to_owned(),
        client: client.clone(),
        bearer: format!("Bearer {}", text(&said, "access_token")),
    }
}

on_both!(
    a_front_end_keeps_its_sessions,
    what_is_anothers_looks_like_what_never_was,
    a_retry_makes_no_second_session,
    everything_is_exported,
    an_account_ends_with_all_that_belongs_to_it,
    operators_export_and_delete_by_command,
);

async fn a_front_end_keeps_its_sessions(bed: Bed) {
    let ann = bed.register("ann").await;
    let made = ann.send("POST", "/sessions", &[], Value::Null).await;
    assert_eq!((made.status.as_u16(), text(&made.json(), "title")), (201, "New Chat"));
    let first = text(&made.json(), "session_id").to_owned();
    for number in 1..7 {
        ann.create(&number.to_string()).await;
    }
    // Those of one millisecond come in any order, but in the same on every page.
    let whole = ann.titles(100).await;
    assert_eq!(ann.titles(2).await, whole);
    let mut sorted = whole.clone();
    sorted.sort();
    assert_eq!(sorted, ["1", "2", "3", "4", "5", "6", "New Chat"]);

    let path = format!("/sessions/{first}");
    let renamed = ann.send("PATCH", &path, &[], json!({ "title": " Größe 😀 " })).await;
    assert_eq!((renamed.status.as_u16(), text(&renamed.json(), "title")), (200, "Größe 😀"));
    assert_eq!(ann.get(&path).await.json(), renamed.json());
    let refused = ann.send("PATCH", &path, &[], json!({ "title": "x".repeat(201) })).await;
    assert_eq!(
        (refused.code().as_str(), &refused.json()["errors"][0]["pointer"]),
        ("validation_failed", &json!("/title"))
    );
    for bad in ["/sessions?limit=0", "/sessions?limit=101", "/sessions?cursor=nonsense"] {
        let refused = ann.get(bad).await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (400, "validation_failed"), "{bad}");
        assert_eq!(refused.json()["errors"].as_array().unwrap().len(), 1, "{bad}");
    }

    for words in ["one", "two", "three"] {
        bed.talk(&ann, &first, words).await;
    }
    let said = async |query: &str| -> (Vec<String>, Value) {
        let page = ann.get(&format!("{path}/messages{query}")).await.json();
        let messages = page["messages"].as_array().unwrap().iter();
        (messages.map(|one| text(one, "content").to_owned()).collect(), page["next_cursor"].clone())
    };
    let all = ["one", "about one", "two", "about two", "three", "about three"];
    assert_eq!(said("").await, (all.map(str::to_owned).to_vec(), Value::Null));
    let (newest, cursor) = said("?order=desc&limit=2").await;
    assert_eq!(newest, ["about three", "three"]);
    // What is said meanwhile is on a page that is past.
    bed.talk(&ann, &first, "four").await;
    let cursor = cursor.as_str().unwrap();
    assert_eq!(said(&format!("?order=desc&limit=2&cursor={cursor}")).await.0, ["about two", "two"]);

    assert_eq!(ann.send("DELETE", &path, &[], Value::Null).await.status, 204);
    assert_eq!(ann.get(&path).await.code(), "not_found");
    assert_eq!(ann.get(&format!("{path}/messages")).await.status, 404);
    assert_eq!(ann.titles(100).await.len(), 6);

    // Roles: whoever may only read does not write.
    let reader = bed.user_in("", "reader", "reader").await;
    assert_eq!(reader.get("/sessions").await.status, 200);
    assert_eq!(reader.send("POST", "/sessions", &[], Value::Null).await.code(), "permission_denied");
    assert_eq!(bed.gateway.client.get("/api/v01/sessions").await.code(), "no_token");
}

async fn what_is_anothers_looks_like_what_never_was(bed: Bed) {
    let ann = bed.register("ann").await;
    let id = ann.create("hers").await;
    bed.talk(&ann, &id, "secret").await;
    let colleague = bed.register("eve").await;
    let stranger = bed.user_in("acme", "ann", "user").await;
    let absent = uuid::Uuid::new_v4().to_string();
    for other in [&colleague, &stranger] {
        for (method, rest, body) in [
            ("GET", "", Value::Null),
            ("GET", "/messages", Value::Null),
            ("PATCH", "", json!({ "title": "mine" })),
            ("DELETE", "", Value::Null),
        ] {
            let ask = async |id: &str| {
                let answer = other.send(method, &format!("/sessions/{id}{rest}"), &[], body.clone()).await;
                assert_eq!(answer.code(), "not_found", "{method} {rest}");
                let mut body = answer.json();
                body["request_id"] = Value::Null;
                let names: Vec<_> = answer.headers.keys().map(|name| name.as_str().to_owned()).collect();
                (names, body)
            };
            assert_eq!(ask(&id).await, ask(&absent).await, "{method} {rest}");
        }
        assert_eq!(other.titles(10).await, [] as [&str; 0]);
        assert_eq!(other.get("/sessions/export").await.json()["sessions"], json!([]));
    }
    assert_eq!(ann.titles(10).await, ["hers"]);
}

async fn a_retry_makes_no_second_session(bed: Bed) {
    let ann = bed.register("ann").await;
    let other = bed.another().await;
    let key = [("idempotency-key", "\"8e03978e-40d5-43dd-bc93-6894a57f9324\"")];
    let body = json!({ "title": "once" });
    // All at once, on two replicas.
    let tries = (0..8).map(|number| {
        let client = if number % 2 == 0 { ann.client.clone() } else { other.client.clone() };
        let user = User { id: ann.id.clone(), client, bearer: ann.bearer.clone() };
        let body = body.clone();
        async move { user.send("POST", "/sessions", &key, body).await }
    });
    let answers = futures_util::future::join_all(tries).await;
    for answer in &answers {
        assert_eq!((answer.status.as_u16(), answer.text()), (201, answers[0].text()));
    }
    assert_eq!(ann.titles(100).await, ["once"]);
    let reused = ann.send("POST", "/sessions", &key, json!({ "title": "twice" })).await;
    assert_eq!((reused.status.as_u16(), reused.code().as_str()), (422, "idempotency_key_reused"));
    let eve = bed.register("eve").await;
    let hers = eve.send("POST", "/sessions", &key, body).await;
    assert_eq!(hers.status, 201);
    assert_ne!(hers.text(), answers[0].text(), "keys are their owner's");
    for bad in ["", "a b", &"x".repeat(256)] {
        let refused = ann.send("POST", "/sessions", &[("idempotency-key", bad)], Value::Null).await;
        assert_eq!(refused.code(), "validation_failed", "{bad:?}");
    }
    assert_eq!(ann.titles(100).await, ["once"]);
}

async fn everything_is_exported(bed: Bed) {
    let ann = bed.register("ann").await;
    for number in 0..110 {
        ann.create(&number.to_string()).await;
    }
    let talkative = ann.create("talkative").await;
    for number in 0..60 {
        bed.talk(&ann, &talkative, &format!("\"{number}\" 字")).await;
    }
    let answer = ann.get("/sessions/export").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-disposition"), Some("attachment; filename=\"sessions.json\""));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("content-length"), None, "written as it is read");
    let document = answer.json();
    let keys: Vec<_> = document.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["user", "exported_at", "sessions"]);
    assert_eq!(document["user"]["email"], "ann@example.com");
    let sessions = document["sessions"].as_array().unwrap();
    let titles: Vec<_> = sessions.iter().map(|one| text(one, "title")).collect();
    assert_eq!(titles, ann.titles(100).await);
    assert_eq!(titles.len(), 111);
    let session = sessions.iter().find(|one| one["session_id"] == *talkative).unwrap();
    let messages = session["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 120);
    assert_eq!(messages[118]["content"], "\"59\" 字");
    assert_eq!(messages[119]["content"], "about \"59\" 字");
    assert_eq!(messages[119]["total_tokens"], 2);
    assert!(!answer.text().contains("$2b$"), "no password's hash");
    let unknown = bed.gateway.client.get("/api/v01/sessions/export").await;
    assert_eq!(unknown.code(), "no_token");
}

async fn an_account_ends_with_all_that_belongs_to_it(bed: Bed) {
    let (ann, eve) = (bed.register("ann").await, bed.register("eve").await);
    let other = bed.another().await;
    let elsewhere = User { id: ann.id.clone(), client: other.client.clone(), bearer: ann.bearer.clone() };
    for user in [&ann, &eve] {
        let key = [("idempotency-key", "k")];
        let made = user.send("POST", "/sessions", &key, Value::Null).await.json();
        bed.talk(user, text(&made, "session_id"), "hello").await;
    }
    assert_eq!(elsewhere.titles(10).await.len(), 1);

    let wrong = ann.send("DELETE", "/auth/me", &[], json!({ "password": "wrong" })).await;
    assert_eq!(wrong.code(), "invalid_credentials");
    let missing = ann.send("DELETE", "/auth/me", &[], Value::Null).await;
    assert_eq!(missing.json()["errors"][0]["pointer"], "/password");
    assert_eq!(ann.titles(10).await.len(), 1, "nothing was deleted");
    let deleted = ann.send("DELETE", "/auth/me", &[], json!({ "password": PASSWORD })).await;
    assert_eq!((deleted.status.as_u16(), deleted.text()), (204, ""));

    assert_eq!(ann.get("/auth/me").await.code(), "token_revoked");
    assert_eq!(ann.get("/sessions").await.code(), "token_revoked");
    eventually("the other replica hears of it", SOON, || async {
        elsewhere.get("/sessions").await.status == 401
    })
    .await;
    let login = json!({ "username": "ann", "password": PASSWORD }).to_string();
    assert_eq!(ann.client.post("/api/v01/auth/login", &login).await.code(), "invalid_credentials");
    for (sql, left) in [
        ("SELECT COUNT(*) FROM users", 1),
        ("SELECT COUNT(*) FROM sessions", 1),
        ("SELECT COUNT(*) FROM messages", 2),
        ("SELECT COUNT(*) FROM retry_keys", 1),
        ("SELECT COUNT(*) FROM refresh_families", 1),
    ] {
        assert_eq!(bed.number(sql).await, left, "{sql}");
    }
    let again = bed.register("ANN").await;
    assert_ne!(again.id, ann.id, "the name is free");
    assert_eq!(again.titles(10).await, [] as [&str; 0]);
    assert_eq!(eve.titles(10).await.len(), 1);
}

async fn operators_export_and_delete_by_command(bed: Bed) {
    let ann = bed.register("ann").await;
    let id = ann.create("hers").await;
    bed.talk(&ann, &id, "hello").await;
    let (code, document, _) = bed.voicegate(&["admin", "export", "ANN"]);
    assert_eq!(code, 0);
    let mut document: Value = serde_json::from_str(&document).unwrap();
    let mut own = ann.get("/sessions/export").await.json();
    document["exported_at"] = Value::Null;
    own["exported_at"] = Value::Null;
    assert_eq!(document, own, "the same document");
    let (code, nothing, why) = bed.voicegate(&["admin", "export", "nobody"]);
    assert_eq!((code, nothing.as_str()), (1, ""));
    assert!(why.contains("--tenant"), "{why}");

    let (code, _, why) = bed.voicegate(&["admin", "delete", "ann"]);
    assert_eq!(code, 2, "there is nobody to ask");
    assert!(why.contains("--yes"), "{why}");
    assert_eq!(ann.titles(10).await, ["hers"]);
    assert_eq!(bed.voicegate(&["admin", "delete", "ann", "--tenant", "acme", "--yes"]).0, 1);
    let (code, _, said) = bed.voicegate(&["admin", "delete", "ann", "--yes"]);
    assert_eq!(code, 0, "{said}");
    eventually("a running gateway learns of it", SOON, || async { ann.get("/sessions").await.status == 401 })
        .await;
    assert_eq!(bed.number("SELECT COUNT(*) FROM messages").await, 0);
    assert_eq!(bed.voicegate(&["admin", "delete", "ann", "--yes"]).0, 1, "it is gone");
    bed.register("ann").await;
}

/// SECURITY rule 17: what needs the database says so while it is away, and recovery needs no restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_outlive_a_database_that_goes_away() {
    let bed = Bed::on(Database::alone().await).await;
    let ann = bed.register("ann").await;
    let id = ann.create("kept").await;
    let database = bed.postgres.as_ref().unwrap();
    database.stop();
    for answer in [ann.get("/sessions").await, ann.get(&format!("/sessions/{id}/messages")).await] {
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "store_unavailable"));
        assert!(answer.header("retry-after").is_some());
    }
    database.resume();
    eventually("it works again", SOON, || async { ann.get("/sessions").await.status == 200 }).await;
    assert_eq!(ann.titles(10).await, ["kept"]);
}
