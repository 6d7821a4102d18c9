//! Replicas that share one PostgreSQL and one Redis behave as one, and lose nothing when one of them dies.

mod chat;

use crate::accounts::{PASSWORD, admin, login, me, post, post_as, register, text};
use crate::harness::gateway::Builder;
use crate::harness::{Answer, Client, Database, Gateway, Kept, Process, RedisServer, eventually};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const MANIFEST: &str = r#"
auth: { password: { bcrypt_cost: 4 } }
rate_limits: { own: { limit: 100, per: 10m, by: [user] } }
roles:
  admin: { allow: ["*"] }
  user: { allow: ["session:*"] }
chains:
  open: [recovery, request_id]
  own: [{ chain: open }, auth]
versions:
  - name: v01
    prefix: /api/v01
    chain: own
    routes:
      - { route: POST /auth/register, handler: auth.register, chain: open, public: true }
      - { route: POST /auth/login, handler: auth.login, chain: open, public: true }
      - { route: POST /auth/refresh, handler: auth.refresh, chain: open, public: true }
      - { route: POST /auth/logout, handler: auth.logout }
      - { route: GET /auth/me, handler: auth.me }
      - { route: GET /reports, with: { rbac: "report:read" }, respond: { text: report } }
      - { route: GET /counted, with: { rate_limit: own }, respond: { text: counted } }
"#;

const SECRET: &str = "0123456789abcdef0123456789abcdef-shared";

/// How late the word of a revocation may be: the promised second, and some for a machine that is busy with other tests.
const WORD: Duration = Duration::from_secs(3);

/// What replicas share.
pub struct Stores {
    database: Database,
    pub(crate) redis: RedisServer,
}

impl Stores {
    pub async fn start() -> Self {
        Stores { database: Database::fresh().await, redis: RedisServer::start() }
    }

    /// A replica, once it has found Redis.
    async fn replica(&self) -> Gateway {
        self.replica_of(Gateway::with(MANIFEST)).await
    }

    /// As [`replica`](Self::replica), of something else.
    pub async fn replica_of(&self, builder: Builder) -> Gateway {
        let gateway = builder
            .flag("--database-url", self.database.url())
            .flag("--redis-url", &self.redis.url())
            .flag("--jwt-secret", SECRET)
            .start()
            .await;
        let shared = gateway.live().shared().shared.clone();
        eventually("Redis is there", Duration::from_secs(20), async || shared.ping().await.is_ok()).await;
        gateway
    }

    /// A replica that is a process and can be killed.
    async fn process(&self) -> Process {
        self.process_of(MANIFEST, &[]).await
    }

    /// As [`process`](Self::process), of another manifest and with further flags.
    async fn process_of(&self, manifest: &str, more: &[&str]) -> Process {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("routes.yaml"), format!("version: 1\n{manifest}")).unwrap();
        let environment =
            [("DATABASE_URL", self.database.url()), ("REDIS_URL", &self.redis.url()), ("JWT_SECRET", SECRET)];
        Process::serve_in(folder, more, &environment).await
    }
}

async fn get(client: &Client, path: &str, token: &str) -> Answer {
    client.send("GET", path, &[("authorization", &format!("Bearer {token}"))], "").await
}

/// Waits until a replica refuses a token as revoked.
async fn refused(client: &Client, token: &str) {
    eventually("the word is there", WORD, async || me(client, token).await.status == 401).await;
    assert_eq!(me(client, token).await.code(), "token_revoked");
}

/// Registers at one replica, logs in at the other, logs out at the first: the other must learn of it.
async fn logout_is_heard(one: &Gateway, other: &Gateway, name: &str) {
    register(&one.client, name).await;
    let session = login(&other.client, name, PASSWORD).await.json();
    let token = text(&session, "access_token");
    assert_eq!(me(&one.client, token).await.status, 200);
    assert_eq!(me(&other.client, token).await.status, 200);
    let body = json!({ "refresh_token": text(&session, "refresh_token") });
    let left = post_as(&one.client, token, "/api/v01/auth/logout", body.clone()).await;
    assert_eq!(left.status, 204, "{}", left.text());
    assert_eq!(me(&one.client, token).await.code(), "token_revoked", "at once where it was said");
    refused(&other.client, token).await;
    assert_eq!(post(&other.client, "refresh", body).await.code(), "invalid_refresh_token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_together_on_an_empty_database_both_come_up() {
    let database = Database::fresh().await;
    let starts = (0..4).map(|_| Gateway::with(MANIFEST).flag("--database-url", database.url()).start());
    for gateway in join_all(starts).await {
        register(&gateway.client, &format!("at_{}", gateway.client.address().port())).await;
    }
    assert_eq!(database.number("SELECT COUNT(*) FROM users").await, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_has_one_limit_over_all_replicas() {
    let stores = Stores::start().await;
    let (one, other) = (stores.replica().await, stores.replica().await);
    let ann = register(&one.client, "ann").await;
    let ann = text(&ann, "access_token");
    let asked = (0..300).map(|n| get(&[&one, &other][n % 2].client, "/api/v01/counted", ann));
    let answers = join_all(asked).await;
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status != 200).collect();
    assert_eq!(300 - refused.len(), 100);
    assert!(refused.iter().all(|answer| answer.code() == "rate_limited"));
    let bob = register(&other.client, "bob").await;
    let answer = get(&one.client, "/api/v01/counted", text(&bob, "access_token")).await;
    assert_eq!(answer.header("x-ratelimit-remaining"), Some("99"), "another user counts for himself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logout_at_one_replica_is_heard_by_the_other_whatever_becomes_of_redis() {
    let mut stores = Stores::start().await;
    let (one, other) = (stores.replica().await, stores.replica().await);
    logout_is_heard(&one, &other, "ann").await;
    // From here on only PostgreSQL can bring the word.
    stores.redis.signal("STOP");
    logout_is_heard(&one, &other, "bob").await;
    stores.redis.kill();
    logout_is_heard(&other, &one, "eve").await;
}

/// One refresh token, presented twenty times at once at both in turn.
async fn twenty_refreshes(one: &Gateway, other: &Gateway) -> Vec<Answer> {
    let ann = register(&one.client, "ann").await;
    let body = json!({ "refresh_token": text(&ann, "refresh_token") });
    let presented = (0..20).map(|n| {
        let (client, body) = ([one, other][n % 2].client.clone(), body.clone());
        tokio::spawn(async move { post(&client, "refresh", body).await })
    });
    join_all(presented).await.into_iter().map(Result::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_twenty_refreshes_at_once_over_two_replicas_one_gets_tokens_and_all_the_login_ends() {
    let stores = Stores::start().await;
    let (one, other) = (stores.replica().await, stores.replica().await);
    let (won, lost): (Vec<_>, Vec<_>) =
        twenty_refreshes(&one, &other).await.into_iter().partition(|answer| answer.status == 200);
    assert_eq!(won.len(), 1, "{won:?}");
    assert!(lost.iter().all(|answer| answer.code() == "invalid_refresh_token"), "{lost:?}");
    let said = won[0].json();
    for gateway in [&one, &other] {
        refused(&gateway.client, text(&said, "access_token")).await;
        let next =
            post(&gateway.client, "refresh", json!({ "refresh_token": text(&said, "refresh_token") })).await;
        assert_eq!(next.code(), "invalid_refresh_token");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn within_the_grace_twenty_refreshes_at_once_over_two_replicas_all_get_tokens() {
    let stores = Stores::start().await;
    let manifest = MANIFEST.replace("auth: {", "auth: { refresh_grace: 1m,");
    let (one, other) = (
        stores.replica_of(Gateway::with(&manifest)).await,
        stores.replica_of(Gateway::with(&manifest)).await,
    );
    let mut seen = std::collections::HashSet::new();
    for (n, answer) in twenty_refreshes(&one, &other).await.into_iter().enumerate() {
        assert_eq!(answer.status, 200, "{}", answer.text());
        let said = answer.json();
        assert!(seen.insert(text(&said, "refresh_token").to_owned()), "nobody gets another's token");
        // At the replica that did not give it.
        let client = &[&other, &one][n % 2].client;
        assert_eq!(me(client, text(&said, "access_token")).await.status, 200);
        let next = post(client, "refresh", json!({ "refresh_token": text(&said, "refresh_token") })).await;
        assert_eq!(next.status, 200, "what it got works: {}", next.text());
        assert_eq!(me(client, text(&next.json(), "access_token")).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_administrator_does_at_one_replica_counts_at_the_other() {
    let stores = Stores::start().await;
    let (one, other) = (stores.replica().await, stores.replica().await);
    let ann = register(&other.client, "ann").await;
    let (token, id) = (text(&ann, "access_token"), text(&ann["user"], "id"));
    assert_eq!(get(&other.client, "/api/v01/reports", token).await.code(), "permission_denied");

    let asked = json!({ "role": "admin" });
    assert_eq!(admin(&one, "POST", &format!("users/{id}/role"), asked).await.status, 204);
    refused(&other.client, token).await;
    let ann = login(&other.client, "ann", PASSWORD).await.json();
    let token = text(&ann, "access_token");
    assert_eq!(get(&other.client, "/api/v01/reports", token).await.status, 200, "the new role counts");

    assert_eq!(admin(&one, "POST", &format!("users/{id}/disable"), Value::Null).await.status, 204);
    refused(&other.client, token).await;
    assert_eq!(login(&other.client, "ann", PASSWORD).await.code(), "account_disabled");
    let body = json!({ "refresh_token": text(&ann, "refresh_token") });
    assert!(matches!(post(&other.client, "refresh", body).await.status.as_u16(), 401 | 403));
}

/// What a caller was told by the replica that died.
struct Told {
    name: String,
    access_token: String,
    /// Answered, and not presented since.
    refresh_token: Option<String>,
}

/// Registers, logs in and refreshes at a gateway until it is gone; keeps what it was told.
async fn keep_registering(client: Client, who: usize, told: Arc<Mutex<Vec<Told>>>, turns: Arc<AtomicUsize>) {
    let mut connection = Kept::open(&client).await;
    let mut call = async |path: &str, body: Value| {
        let headers = [("content-type", "application/json")];
        let path = format!("/api/v01/auth/{path}");
        connection.send_with("POST", &path, &headers, &body.to_string()).await.ok()
    };
    for turn in 0.. {
        let name = format!("user_{who}_{turn}");
        let body = json!({ "username": name, "email": format!("{name}@example.com"), "password": PASSWORD });
        let Some(answer) = call("register", body).await else { return };
        // A full queue of the password workers is an answer too, and promises nothing.
        if answer.status == 503 {
            continue;
        }
        assert_eq!(answer.status, 201, "{}", answer.text());
        let said = answer.json();
        let kept = |said: &Value| Told {
            name: name.clone(),
            access_token: text(said, "access_token").to_owned(),
            refresh_token: Some(text(said, "refresh_token").to_owned()),
        };
        told.lock().unwrap().push(kept(&said));
        if let Some(answer) = call("login", json!({ "username": name, "password": PASSWORD })).await
            && answer.status == 200
        {
            // Of two sessions this one goes on to be refreshed; a token that was presented promises nothing until the answer.
            let session = answer.json();
            let presented = json!({ "refresh_token": text(&session, "refresh_token") });
            let Some(answer) = call("refresh", presented).await else { return };
            assert_eq!(answer.status, 200, "{}", answer.text());
            told.lock().unwrap().push(kept(&answer.json()));
        }
        turns.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_replica_has_answered_holds_at_the_other() {
    let stores = Stores::start().await;
    let (mut one, other) = (stores.process().await, stores.process().await);
    let ann = register(&one.client, "ann").await;
    let ann = text(&ann, "access_token");
    for _ in 0..60 {
        assert_eq!(get(&one.client, "/api/v01/counted", ann).await.status, 200);
    }
    for _ in 0..4 {
        assert_eq!(login(&one.client, "ann", "wrong").await.code(), "invalid_credentials");
    }

    let (told, turns) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..4)
        .map(|who| tokio::spawn(keep_registering(one.client.clone(), who, told.clone(), turns.clone())))
        .collect();
    eventually("it is busy", Duration::from_secs(30), async || turns.load(Ordering::SeqCst) >= 12).await;
    one.signal("KILL");
    one.ended(Duration::from_secs(20)).await;
    for caller in callers {
        caller.await.unwrap();
    }

    let client = &other.client;
    let mut told = std::mem::take(&mut *told.lock().unwrap());
    assert!(told.len() >= 12);
    for said in &mut told {
        assert_eq!(me(client, &said.access_token).await.status, 200, "{}", said.name);
        let body = json!({ "refresh_token": said.refresh_token.take() });
        let refreshed = post(client, "refresh", body).await;
        assert_eq!(refreshed.status, 200, "{}: {}", said.name, refreshed.text());
        let again = login(client, &said.name, PASSWORD).await;
        assert_eq!(again.status, 200, "{}: {}", said.name, again.text());
    }

    let asked = (0..60).map(|_| get(client, "/api/v01/counted", ann));
    let passed = join_all(asked).await.iter().filter(|answer| answer.status == 200).count();
    assert_eq!(passed, 40, "sixty were counted by the one that died");
    assert_eq!(login(client, "ann", "wrong").await.code(), "invalid_credentials");
    let locked = login(client, "ann", PASSWORD).await;
    assert_eq!(locked.code(), "account_locked", "four failures by one, the fifth by the other");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traffic_outlives_postgres_and_revocations_go_on_when_it_is_back() {
    let stores = Stores { database: Database::alone().await, redis: RedisServer::start() };
    let (one, other) = (stores.replica().await, stores.replica().await);
    let ann = register(&one.client, "ann").await;
    let token = text(&ann, "access_token");
    stores.database.stop();
    let answer = get(&other.client, "/api/v01/counted", token).await;
    assert_eq!(answer.status, 200, "tokens and limits need no database");
    let refused = login(&one.client, "ann", PASSWORD).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    refused.code();
    assert!(refused.header("retry-after").is_some());
    stores.database.resume();
    eventually("logins work again", Duration::from_secs(20), async || {
        login(&other.client, "ann", PASSWORD).await.status == 200
    })
    .await;
    logout_is_heard(&one, &other, "bob").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_both_stores_gone_what_needs_them_is_503_and_the_rest_goes_on() {
    let mut stores = Stores { database: Database::alone().await, redis: RedisServer::start() };
    let gateway = stores.replica().await;
    let client = &gateway.client;
    let ann = register(client, "ann").await;
    let token = text(&ann, "access_token");
    stores.redis.kill();
    stores.database.stop();
    let began = Instant::now();
    assert_eq!(get(client, "/api/v01/counted", token).await.status, 200, "tokens and limits need neither");
    assert_eq!(gateway.admin.get("/livez").await.status, 200, "nor does being alive");
    assert!(began.elapsed() < Duration::from_secs(1), "nobody waits for them: {:?}", began.elapsed());
    for answer in [
        login(client, "ann", PASSWORD).await,
        client
            .post("/api/v01/auth/refresh", &json!({ "refresh_token": ann["refresh_token"] }).to_string())
            .await,
    ] {
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "store_unavailable"));
        assert!(answer.header("retry-after").is_some());
    }
    // Two calls, each with its deadline of five seconds at most.
    assert!(began.elapsed() < Duration::from_secs(13), "{:?}", began.elapsed());
    stores.database.resume();
    stores.redis.restart();
    eventually("logins work again, without a restart", Duration::from_secs(20), async || {
        login(client, "ann", PASSWORD).await.status == 200
    })
    .await;
    assert_eq!(get(client, "/api/v01/counted", token).await.status, 200);
}
