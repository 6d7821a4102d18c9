//! A gateway with chats on a database of its own, the model behind it, and people who ask.

use crate::harness::client::Open;
use crate::harness::gateway::Builder;
use crate::harness::{Answer, Client, Database, Gateway, Model};
use serde_json::{Value, json};
use sqlx::{Connection, SqliteConnection};
use std::time::SystemTime;
use voicegate::stores::NewUser;

pub const PASSWORD: &str = "Correct1horse";

/// Routes of the tests; `access_ttl` is how long a token lives.
pub fn manifest(upstream: &str, access_ttl: &str) -> String {
    let mut text = format!(
        r#"
auth: {{ password: {{ bcrypt_cost: 4 }}, access_ttl: {access_ttl} }}
upstreams: {{ algo: {{ targets: [{{ url: "{upstream}" }}] }} }}
roles:
  user: {{ allow: ["session:*", "chat:*"] }}
  reader: {{ allow: ["session:*", "chat:read"] }}
chains:
  open: [recovery, request_id, metrics]
  account: [{{ chain: open }}, auth]
  protected: [{{ chain: account }}, rbac, tenant]
versions:
  - name: v01
    prefix: /api/v01
    chain: protected
    routes:
      - {{ route: POST /auth/register, handler: auth.register, chain: open, public: true }}
      - {{ route: POST /auth/login, handler: auth.login, chain: open, public: true }}
      - {{ route: POST /auth/logout, handler: auth.logout, chain: account }}
      - {{ route: DELETE /auth/me, handler: auth.delete, chain: account }}
      - {{ route: POST /sessions, handler: sessions.create }}
      - {{ route: DELETE /sessions/:id, handler: sessions.delete }}
      - {{ route: GET /sessions/:id/messages, handler: sessions.messages }}
      - {{ route: POST /chat/cancel, handler: chat.cancel, upstream: algo, path: /api/v1/chat/cancel }}
"#
    );
    for (name, stream, more) in [
        ("stream", "", ""),
        ("limited", "", ", with: { concurrency: { limit: 3, by: [user] } }"),
        ("finish", "on_disconnect: finish", ""),
        ("single", "on_disconnect: finish", ", with: { concurrency: { limit: 1, by: [user] } }"),
        ("brief", "on_disconnect: finish, resume_for: 300ms", ""),
        ("hasty", "first_event: 400ms, idle: 400ms, heartbeat: 100ms", ""),
        ("short", "max: 700ms", ""),
        ("small", "max_size: 2KiB", ""),
    ] {
        text.push_str(&format!(
            "      - {{ route: POST /chat/{name}, handler: chat.stream, upstream: algo, \
             path: /v01/query/stream, stream: {{ {stream} }}{more} }}\n"
        ));
    }
    for (name, stream) in [("socket", ""), ("socket/finish", "on_disconnect: finish")] {
        text.push_str(&format!(
            "      - {{ route: GET /chat/{name}, handler: chat.stream, upstream: algo, path: /v01/query/stream, \
             stream: {{ {stream} }}, bridge: websocket, websocket: {{ per_user: 1 }} }}\n"
        ));
    }
    text
}

/// A gateway, its database and its model.
pub struct Bed {
    pub gateway: Gateway,
    pub model: Model,
    url: String,
    pub postgres: Option<Database>,
}

impl Bed {
    pub async fn sqlite() -> Self {
        Bed::made(None, "1h").await
    }

    pub async fn postgres() -> Self {
        Bed::on(Database::fresh().await).await
    }

    pub async fn on(database: Database) -> Self {
        Bed::made(Some(database), "1h").await
    }

    /// Whose tokens live so long.
    pub async fn with_tokens_for(access_ttl: &str) -> Self {
        Bed::made(None, access_ttl).await
    }

    async fn made(postgres: Option<Database>, access_ttl: &str) -> Self {
        let model = Model::start().await;
        let mut builder = builder(&model.url(), access_ttl);
        if let Some(database) = &postgres {
            builder = builder.flag("--database-url", database.url());
        }
        let gateway = builder.start().await;
        let url = match &postgres {
            Some(database) => database.url().to_owned(),
            None => format!("sqlite://{}", gateway.path("gateway.db").display()),
        };
        Bed { gateway, model, url, postgres }
    }

    /// The number that a query finds.
    pub async fn number(&self, sql: &'static str) -> i64 {
        match &self.postgres {
            Some(database) => database.number(sql).await,
            None => {
                let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
                sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap()
            }
        }
    }

    pub async fn register(&self, name: &str) -> User {
        User::register(&self.gateway.client, name).await
    }

    /// A user of a tenant: registration makes none.
    pub async fn user_in(&self, tenant: &str, name: &str) -> User {
        self.user_as(tenant, name, "user").await
    }

    /// A user of a role.
    pub async fn user_as(&self, tenant: &str, name: &str, role: &str) -> User {
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
        User {
            id: user.id,
            client: self.gateway.client.clone(),
            bearer: format!("Bearer {token}"),
            refresh_token: String::new(),
        }
    }
}

fn builder(upstream: &str, access_ttl: &str) -> Builder {
    Gateway::with(&manifest(upstream, access_ttl))
        .flag("--jwt-secret", "a secret of more than thirty-two bytes")
        .flag("--turn-checkpoint", "200ms")
}

/// Somebody with a token.
pub struct User {
    pub id: String,
    pub client: Client,
    pub bearer: String,
    pub refresh_token: String,
}

impl User {
    pub async fn register(client: &Client, name: &str) -> Self {
        let email = format!("{name}@example.com");
        let body = json!({ "username": name, "email": email, "password": PASSWORD });
        let answer = client.post("/api/v01/auth/register", &body.to_string()).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        let said = answer.json();
        User {
            id: text(&said["user"], "id"),
            client: client.clone(),
            bearer: format!("Bearer {}", text(&said, "access_token")),
            refresh_token: text(&said, "refresh_token"),
        }
    }

    /// The same person at another door.
    pub fn at(&self, client: &Client) -> Self {
        User {
            id: self.id.clone(),
            client: client.clone(),
            bearer: self.bearer.clone(),
            refresh_token: self.refresh_token.clone(),
        }
    }

    pub async fn send(&self, method: &str, path: &str, more: &[(&str, &str)], body: Value) -> Answer {
        let mut headers = vec![("authorization", &*self.bearer)];
        headers.extend_from_slice(more);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        if !body.is_empty() {
            headers.push(("content-type", "application/json"));
        }
        self.client.send(method, &format!("/api/v01{path}"), &headers, &body).await
    }

    pub async fn create(&self) -> String {
        let made = self.send("POST", "/sessions", &[], json!({})).await;
        assert_eq!(made.status, 201, "{}", made.text());
        text(&made.json(), "session_id")
    }

    pub async fn open(&self, path: &str, more: &[(&str, &str)], body: &Value) -> Open {
        let mut headers = vec![("authorization", &*self.bearer), ("content-type", "application/json")];
        headers.extend_from_slice(more);
        self.client.open("POST", &format!("/api/v01{path}"), &headers, &body.to_string()).await
    }

    /// Asks a question, which tells the model what to do.
    pub async fn ask(&self, path: &str, session: &str, query: &str) -> Open {
        self.open(path, &[], &json!({ "session_id": session, "query": query })).await
    }

    /// Comes back to a stream.
    pub async fn resume(&self, path: &str, session: &str, last_event: &str) -> Open {
        let body = json!({ "session_id": session, "query": "again" });
        self.open(path, &[("last-event-id", last_event)], &body).await
    }

    pub async fn cancel(&self, session: &str, stream: Option<&str>) -> Answer {
        let mut body = json!({ "session_id": session });
        if let Some(stream) = stream {
            body["stream_id"] = json!(stream);
        }
        self.send("POST", "/chat/cancel", &[], body).await
    }

    /// The messages of a session, oldest first.
    pub async fn history(&self, session: &str) -> Vec<Row> {
        let page = self.send("GET", &format!("/sessions/{session}/messages"), &[], Value::Null).await;
        assert_eq!(page.status, 200, "{}", page.text());
        let page = page.json();
        let rows = page["messages"].as_array().unwrap().iter().map(|row| Row {
            id: text(row, "id"),
            role: text(row, "role"),
            content: text(row, "content"),
            status: text(row, "status"),
            total_tokens: row["total_tokens"].as_u64(),
        });
        rows.collect()
    }
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub id: String,
    pub role: String,
    pub content: String,
    pub status: String,
    pub total_tokens: Option<u64>,
}

impl Row {
    /// Whose, how it ended, and what.
    pub fn is(&self) -> (&str, &str, &str) {
        (&self.role, &self.status, &self.content)
    }
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub id: Option<String>,
    pub data: Value,
}

/// The events of a stream, whole; heartbeats are none.
pub fn events(text: &str) -> Vec<Event> {
    assert!(text.is_empty() || text.ends_with("\n\n"), "half an event: {text:?}");
    let blocks = text.split("\n\n").filter(|block| !block.is_empty() && !block.starts_with(':'));
    let field = |block: &str, name: &str| {
        block.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned()))
    };
    let all = blocks.map(|block| {
        let data = field(block, "data").unwrap_or_else(|| panic!("no data in {block:?}"));
        Event { id: field(block, "id"), data: serde_json::from_str(&data).unwrap() }
    });
    all.collect()
}

/// What the tokens of a stream say together.
pub fn said(text: &str) -> String {
    let tokens = events(text).into_iter().filter(|event| event.data["type"] == "token");
    tokens.map(|event| event.data["content"].as_str().unwrap().to_owned()).collect()
}

/// Reads to the end of the event in which this stands; everything up to there.
pub async fn until(open: &mut Open, wanted: &str) -> String {
    let mut text = String::new();
    loop {
        if let Some(at) = text.find(wanted)
            && text[at..].contains("\n\n")
        {
            return text;
        }
        let piece = open.piece().await.unwrap_or_else(|| panic!("no {wanted:?} in {text:?}"));
        text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
    }
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_else(|| panic!("no {key} in {value}")).to_owned()
}
