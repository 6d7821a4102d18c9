//! Answers over two replicas: read on one what the other is writing, stopped from either, closed when one dies.

use super::{SECRET, Stores};
use crate::accounts::{register, text};
use crate::harness::client::Open;
use crate::harness::gateway::Builder;
use crate::harness::{Client, Database, Gateway, Sockets, Wire, eventually};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

const SOON: Duration = Duration::from_secs(15);
const STREAM: &str = "/api/v01/chat/stream";
const CANCEL: &str = "/api/v01/chat/cancel";
/// Tokens of an answer.
const TOKENS: usize = 20;
const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\
                    connection: close\r\n\r\n";

fn manifest(model: &Model, stream: &str) -> String {
    format!(
        r#"
auth: {{ password: {{ bcrypt_cost: 4 }} }}
upstreams: {{ model: {{ targets: [{{ url: "{}" }}] }} }}
roles: {{ user: {{ allow: ["session:*", "chat:*"] }} }}
chains:
  open: [recovery, request_id]
  own: [{{ chain: open }}, auth]
versions:
  - name: v01
    prefix: /api/v01
    chain: own
    routes:
      - {{ route: POST /auth/register, handler: auth.register, chain: open, public: true }}
      - {{ route: POST /sessions, handler: sessions.create }}
      - {{ route: GET /sessions/:id/messages, handler: sessions.messages }}
      - {{ route: POST /chat/stream, handler: chat.stream, upstream: model, path: /ask, stream: {{ {stream} }},
           with: {{ concurrency: {{ limit: 3, by: [user] }} }} }}
      - {{ route: POST /chat/cancel, handler: chat.cancel, upstream: model, path: /cancel }}
"#,
        model.sockets.url()
    )
}

/// An upstream that says as many tokens of each answer as it was allowed to.
struct Model {
    sockets: Sockets,
    allowed: watch::Sender<usize>,
    /// Whom the gateway left in the middle.
    left: Arc<AtomicUsize>,
}

impl Model {
    async fn start() -> Self {
        let (allowed, left) = (watch::Sender::new(0), Arc::new(AtomicUsize::new(0)));
        let sockets = {
            let (allowed, left) = (allowed.clone(), left.clone());
            Sockets::start(move |_, wire| answer(wire, allowed.subscribe(), left.clone())).await
        };
        Model { sockets, allowed, left }
    }

    /// Lets it say so many tokens; with all of them, the end too.
    fn say(&self, tokens: usize) {
        self.allowed.send_replace(tokens);
    }

    fn left(&self) -> usize {
        self.left.load(Ordering::SeqCst)
    }
}

async fn answer(mut wire: Wire, mut allowed: watch::Receiver<usize>, left: Arc<AtomicUsize>) {
    let Some(head) = wire.head().await else { return };
    if !head.starts_with("POST /ask ") {
        wire.send("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
        return;
    }
    wire.send(HEAD).await;
    wire.send_chunk(b"data: {\"type\":\"start\",\"session_id\":\"x\"}\n\n").await;
    for number in 0..TOKENS {
        tokio::select! {
            said = allowed.wait_for(|allowed| *allowed > number) => if said.is_err() { return },
            _ = wire.rest() => {
                left.fetch_add(1, Ordering::SeqCst);
                return;
            }
        }
        wire.send_chunk(format!("data: {{\"type\":\"token\",\"content\":\"{number} \"}}\n\n").as_bytes())
            .await;
    }
    wire.send_chunk(format!("data: {{\"type\":\"end\",\"total_tokens\":{TOKENS}}}\n\n").as_bytes()).await;
    wire.send("0\r\n\r\n").await;
}

/// So many tokens, as text.
fn words(tokens: usize) -> String {
    (0..tokens).map(|number| format!("{number} ")).collect()
}

/// Two replicas and the model behind them.
struct Bed {
    one: Gateway,
    other: Gateway,
    model: Model,
    stores: Stores,
}

impl Bed {
    async fn start(stream: &str) -> Self {
        let (stores, model) = (Stores::start().await, Model::start().await);
        let replica = || stores.replica_of(swift(&manifest(&model, stream)));
        let (one, other) = (replica().await, replica().await);
        Bed { one, other, model, stores }
    }
}

/// A gateway that soon hears of what others do and of their death.
fn swift(manifest: &str) -> Builder {
    Gateway::with(manifest)
        .flag("--turn-checkpoint", "200ms")
        .flag("--turn-lease", "2s")
        .flag("--shutdown-grace", "2s")
}

/// A user with a session.
struct User {
    bearer: String,
    session: String,
}

impl User {
    async fn new(client: &Client, name: &str) -> Self {
        let bearer = format!("Bearer {}", text(&register(client, name).await, "access_token"));
        let mut user = User { bearer, session: String::new() };
        user.session = user.session(client).await;
        user
    }

    async fn session(&self, client: &Client) -> String {
        let headers = [("authorization", &*self.bearer), ("content-type", "application/json")];
        let made = client.send("POST", "/api/v01/sessions", &headers, "{}").await;
        assert_eq!(made.status, 201, "{}", made.text());
        text(&made.json(), "session_id").to_owned()
    }

    async fn open(&self, client: &Client, session: &str, last: Option<&str>) -> Stream {
        let mut headers = vec![("authorization", &*self.bearer), ("content-type", "application/json")];
        headers.extend(last.map(|last| ("last-event-id", last)));
        let body = json!({ "session_id": session, "query": "why?" }).to_string();
        Stream { open: client.open("POST", STREAM, &headers, &body).await, told: String::new() }
    }

    async fn ask(&self, client: &Client) -> Stream {
        let stream = self.open(client, &self.session, None).await;
        assert_eq!(stream.open.status, 200);
        stream
    }

    async fn resume(&self, client: &Client, last: &str) -> Stream {
        self.open(client, &self.session, Some(last)).await
    }

    async fn cancel(&self, client: &Client) -> Value {
        let headers = [("authorization", &*self.bearer), ("content-type", "application/json")];
        let body = json!({ "session_id": self.session }).to_string();
        let answer = client.send("POST", CANCEL, &headers, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// Content and status of the assistant's messages.
    async fn answers(&self, client: &Client) -> Vec<(String, String)> {
        let path = format!("/api/v01/sessions/{}/messages", self.session);
        let answer = client.send("GET", &path, &[("authorization", &self.bearer)], "").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let messages = answer.json()["messages"].as_array().unwrap().clone();
        let said =
            |message: &Value| (text(message, "content").to_owned(), text(message, "status").to_owned());
        messages.iter().filter(|message| message["role"] == "assistant").map(said).collect()
    }
}

/// A stream as one reader sees it.
struct Stream {
    open: Open,
    told: String,
}

impl Stream {
    /// Reads until there are so many events.
    async fn events(&mut self, count: usize) {
        while self.told.matches("\n\n").count() < count {
            let piece = self.open.piece().await.unwrap_or_else(|| panic!("it ended: {}", self.told));
            self.told.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
        }
    }

    /// The id of the last event so far.
    fn last_id(&self) -> String {
        self.told.lines().rev().find_map(|line| line.strip_prefix("id: ")).unwrap().to_owned()
    }

    /// Reads to the end, which must be clean: everything it was told.
    async fn all(self) -> String {
        let (rest, clean) = self.open.rest().await;
        assert!(clean, "{}{rest}", self.told);
        self.told + &rest
    }
}

/// Numbers of the events in a stream's text, and the words in it.
fn told(text: &str) -> (Vec<usize>, String) {
    let numbers = text.lines().filter_map(|line| line.strip_prefix("id: ")?.split_once(':')?.1.parse().ok());
    let words = text.lines().filter_map(|line| {
        let data: Value = serde_json::from_str(line.strip_prefix("data: ")?).unwrap();
        (data["type"] == "token").then(|| data["content"].as_str().unwrap().to_owned())
    });
    (numbers.collect(), words.collect())
}

/// Start, tokens and end.
const ALL: usize = TOKENS + 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_one_replica_is_read_to_its_end_on_the_other() {
    let bed = Bed::start("on_disconnect: finish, resume_for: 3s").await;
    let (one, other) = (&bed.one.client, &bed.other.client);
    let (ann, bob) = (User::new(one, "ann").await, User::new(one, "bob").await);
    let mut first = ann.ask(one).await;
    bed.model.say(5);
    first.events(4).await;
    let last = first.last_id();
    let before = std::mem::take(&mut first.told);
    drop(first);
    bed.model.say(8);

    let stranger = bob.open(other, &ann.session, Some(&last)).await;
    assert_eq!(stranger.open.status, 410, "another's answer cannot be read");
    let stranger = bob.resume(other, &last).await;
    assert_eq!(stranger.open.status, 410, "nor by way of a session of one's own");

    let mut back = ann.resume(other, &last).await;
    assert_eq!(back.open.status, 200);
    // What was missed, while the rest is still to come.
    back.events(5).await;
    assert!(bed.model.left() == 0, "who leaves does not stop it");
    for tokens in 9..=TOKENS {
        let seen = back.told.matches("\n\n").count();
        bed.model.say(tokens);
        back.events(seen + 1).await;
    }
    let (numbers, said) = told(&(before.clone() + &back.all().await));
    assert_eq!(numbers, (1..=ALL).collect::<Vec<_>>(), "in order, none twice, none left out");
    assert_eq!(said, words(TOKENS));
    assert_eq!(ann.answers(other).await, [(words(TOKENS), "complete".to_owned())]);

    // It is over, and can still be read for a while.
    let again = ann.resume(other, &last).await;
    assert_eq!(again.open.status, 200);
    let whole = before + &again.all().await;
    assert_eq!(told(&whole).0, (1..=ALL).collect::<Vec<_>>());
    let (id, _) = last.split_once(':').unwrap();
    let nothing = ann.resume(other, &format!("{id}:{ALL}")).await;
    assert_eq!(nothing.open.status, 200);
    assert_eq!(nothing.all().await, "", "nothing was missed");
    for client in [one, other] {
        eventually("it is forgotten everywhere", SOON, async || {
            ann.resume(client, &last).await.open.status == 410
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_reads_on_the_other_replica_is_told_when_that_shuts_down() {
    let mut bed = Bed::start("on_disconnect: finish").await;
    let ann = User::new(&bed.one.client, "ann").await;
    let mut here = ann.ask(&bed.one.client).await;
    bed.model.say(3);
    here.events(4).await;
    let mut there = ann.resume(&bed.other.client, &here.last_id()).await;
    bed.model.say(4);
    there.events(1).await;
    let running = bed.other.take();
    let (told, cut) = tokio::join!(there.all(), running.shut_down());
    assert!(told.contains("shutting_down"), "{told}");
    assert_eq!(cut, 0);
    bed.model.say(TOKENS);
    assert_eq!(self::told(&here.all().await).1, words(TOKENS), "the answer itself goes on");
}

/// Stops on one what the other is writing; how long that took.
async fn cancelled_elsewhere(one: &Client, other: &Client, model: &Model) -> Duration {
    let ann = User::new(one, "ann").await;
    let mut stream = ann.ask(one).await;
    let id = stream.open.headers["x-stream-id"].to_str().unwrap().to_owned();
    model.say(3);
    stream.events(4).await;
    let began = Instant::now();
    let said = ann.cancel(other).await;
    let took = began.elapsed();
    assert_eq!(said["status"], "cancelled", "{said}");
    assert_eq!(said["stream_ids"], json!([id]));
    assert_eq!(ann.answers(other).await, [(words(3), "cancelled".to_owned())]);
    let all = stream.all().await;
    assert!(all.contains(r#"data: {"type":"cancelled"}"#), "{all}");
    assert_eq!(told(&all).0, (1..=5).collect::<Vec<_>>());
    eventually("the upstream was left", SOON, async || model.left() == 1).await;
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_stopped_from_the_other_replica() {
    let (stores, model) = (Stores::start().await, Model::start().await);
    // The database would tell much later.
    let replica = || {
        let builder = Gateway::with(&manifest(&model, "")).flag("--turn-checkpoint", "30s");
        stores.replica_of(builder.flag("--turn-lease", "90s"))
    };
    let (one, other) = (replica().await, replica().await);
    let took = cancelled_elsewhere(&one.client, &other.client, &model).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_an_answer_is_stopped_by_way_of_the_database() {
    let (database, model) = (Database::fresh().await, Model::start().await);
    let replica = || {
        let builder = Gateway::with(&manifest(&model, "")).flag("--turn-checkpoint", "500ms");
        builder.flag("--database-url", database.url()).flag("--jwt-secret", SECRET).start()
    };
    let (one, other) = (replica().await, replica().await);
    let took = cancelled_elsewhere(&one.client, &other.client, &model).await;
    assert!(took < Duration::from_millis(2500), "half a second, and some for a busy machine: {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_a_killed_replica_is_closed_by_the_other_with_what_was_saved() {
    let (stores, model) = (Stores::start().await, Model::start().await);
    let manifest = manifest(&model, "on_disconnect: finish");
    let mut one = stores.process_of(&manifest, &["--turn-checkpoint=200ms", "--turn-lease=2s"]).await;
    let other = stores.replica_of(swift(&manifest)).await;
    let ann = User::new(&other.client, "ann").await;
    let mut stream = ann.ask(&one.client).await;
    model.say(6);
    stream.events(7).await;
    let mut back = ann.resume(&other.client, &stream.last_id()).await;
    assert_eq!(back.open.status, 200);
    model.say(9);
    back.events(3).await;
    eventually("it is saved", SOON, async || {
        stores.database.number("SELECT COUNT(*) FROM turn_pieces WHERE said LIKE '%8 '").await == 1
    })
    .await;
    one.signal("KILL");
    one.ended(SOON).await;
    let killed = Instant::now();
    eventually("it is closed", SOON, async || !ann.answers(&other.client).await.is_empty()).await;
    let took = killed.elapsed();
    assert!(took > Duration::from_secs(1), "not before its replica is taken for dead: {took:?}");
    let rest = back.all().await;
    assert!(rest.contains("event: error") && rest.contains("upstream_interrupted"), "{rest}");
    assert_eq!(told(&rest).0, [8, 9, 10], "nothing more than was written");
    assert_eq!(ann.answers(&other.client).await, [(words(9), "interrupted".to_owned())]);
    assert_eq!(stores.database.number("SELECT COUNT(*) FROM messages WHERE author = 'assistant'").await, 1);
    assert_eq!(stores.database.number("SELECT COUNT(*) FROM turns").await, 0);
    eventually("the upstream is rid of it", SOON, async || model.left() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_has_three_streams_over_all_replicas() {
    let bed = Bed::start("").await;
    let (one, other) = (&bed.one.client, &bed.other.client);
    let ann = User::new(one, "ann").await;
    let mut open = Vec::new();
    for client in [one, other, one] {
        let mut stream = ann.ask(client).await;
        stream.events(1).await;
        open.push(stream);
    }
    for client in [one, other] {
        let fourth = ann.open(client, &ann.session, None).await;
        assert_eq!(fourth.open.status, 429, "before any event");
        assert_eq!(fourth.open.headers["content-type"], "application/problem+json");
    }
    let questions = "SELECT COUNT(*) FROM messages WHERE author = 'user'";
    assert_eq!(bed.stores.database.number(questions).await, 3, "who is refused has asked nothing");
    let bob = User::new(other, "bob").await;
    drop(bob.ask(other).await);
    // One leaves the first replica; there is room at the second.
    drop(open.remove(0));
    eventually("there is room", SOON, async || ann.open(other, &ann.session, None).await.open.status == 200)
        .await;
}
