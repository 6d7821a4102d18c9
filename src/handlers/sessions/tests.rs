//! Every answer of every operation, over a store in memory.

use super::*;
use crate::accounts::testing::Plain;
use crate::error::{GatewayError, Lang};
use crate::exchange::tests::exchange;
use crate::identity::{Identity, Proof};
use crate::settings::{Environment, Settings};
use crate::stores::{MessageStatus, NewTurn, NewUser, Once, StoreLimits, TurnEnd, open};
use crate::tokens::testing::identity;
use clap::Parser;
use http::{HeaderMap, Method};
use poem::endpoint::BoxEndpoint;
use poem::{Endpoint, IntoEndpoint, Response};
use poem_openapi::OpenApiService;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
}

struct Front {
    store: AnyStore,
    service: BoxEndpoint<'static, Response>,
    seconds: Arc<AtomicU64>,
}

struct Said {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    fn string(&self, key: &str) -> String {
        self.json()[key].as_str().unwrap_or_else(|| panic!("no {key} in {}", self.text)).to_owned()
    }

    /// Status, code, and the codes of field faults.
    fn refused(&self) -> (u16, String, Vec<String>) {
        let faults = self.json()["errors"].as_array().cloned().unwrap_or_default();
        let faults = faults.iter().map(|fault| {
            format!("{}: {}", fault["pointer"].as_str().unwrap(), fault["code"].as_str().unwrap())
        });
        (self.status, self.string("code"), faults.collect())
    }
}

fn ann() -> Identity {
    identity("ann", "", "user")
}

impl Front {
    async fn new() -> Self {
        let store = open("sqlite::memory:", &StoreLimits::default()).await.unwrap();
        store.migrate().await.unwrap();
        let settings = Cli::parse_from(["test", "--idempotency-ttl=1h"]).settings;
        let seconds = Arc::new(AtomicU64::new(1_700_000_000));
        let ticking = seconds.clone();
        let clock: Clock =
            Arc::new(move || SystemTime::UNIX_EPOCH + Duration::from_secs(ticking.load(Ordering::Relaxed)));
        let authority = Arc::new(Plain::default());
        let accounts = Accounts::new(
            store.clone(),
            authority,
            &settings.accounts,
            Environment::Development,
            clock.clone(),
        );
        let api = SessionsApi::new(
            store.clone(),
            Arc::new(accounts.unwrap()),
            &settings.conversations,
            clock.clone(),
        );
        let front = Front { store, service: OpenApiService::new(api, "test", "1").into_endpoint(), seconds };
        for (name, tenant) in [("ann", ""), ("eve", ""), ("zoe", "acme")] {
            let user = NewUser {
                id: name.to_owned(),
                tenant_id: tenant.to_owned(),
                username: name.to_owned(),
                email: None,
                password_hash: None,
                role: "user".to_owned(),
                openid: None,
            };
            front.store.create_user(user, clock()).await.unwrap();
        }
        front
    }

    async fn send(
        &self,
        caller: Option<Identity>,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Said {
        let exchange = exchange(method.clone(), path);
        if let Some(caller) = caller {
            exchange.identified(Arc::new(caller));
        }
        let mut request = poem::Request::builder().method(method).uri_str(path);
        if !body.is_empty() && headers.iter().all(|(name, _)| *name != "content-type") {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(body.to_owned());
        request.set_data(exchange.clone());
        let response = match self.service.call(request).await {
            Ok(response) => response,
            Err(error) => GatewayError::of(&error).respond("request", Lang::En),
        };
        let (parts, body) = response.into_parts();
        Said {
            status: parts.status.as_u16(),
            headers: parts.headers,
            text: body.into_string().await.unwrap(),
        }
    }

    async fn get(&self, path: &str) -> Said {
        self.send(Some(ann()), Method::GET, path, &[], "").await
    }

    async fn create(&self, key: &str, body: &str) -> Said {
        let headers: Vec<_> =
            Some(("idempotency-key", key)).into_iter().filter(|_| !key.is_empty()).collect();
        self.send(Some(ann()), Method::POST, "/sessions", &headers, body).await
    }

    async fn rename(&self, id: &str, body: &str) -> Said {
        self.send(Some(ann()), Method::PATCH, &format!("/sessions/{id}"), &[], body).await
    }

    fn pass(&self, seconds: u64) {
        self.seconds.fetch_add(seconds, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_session_is_made_in_the_seeds_form() {
    let front = Front::new().await;
    for body in ["", "{}", "{\"title\": null}", "{\"title\": \"  \"}"] {
        let made = front.create("", body).await;
        assert_eq!((made.status, made.string("title").as_str()), (201, "New Chat"), "{body}");
        assert_eq!(made.headers["cache-control"], "no-store");
        let keys: Vec<_> = made.json().as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["session_id", "title", "created_at", "updated_at"]);
        assert_eq!(made.string("created_at"), "2023-11-14T22:13:20.000Z");
    }
    assert_eq!(front.create("", r#"{"title": " Größe "}"#).await.string("title"), "Größe");
    let long = json!({ "title": "x".repeat(201) }).to_string();
    let refused = front.create("", &long).await.refused();
    assert_eq!(refused, (400, "validation_failed".to_owned(), vec!["/title: length".to_owned()]));
    assert_eq!(front.create("", r#"{"title": {}}"#).await.refused().2, ["/title: type"]);
    assert_eq!(front.create("", "[]").await.refused().2, [": object"]);
    let plain = [("content-type", "text/plain")];
    assert_eq!(front.send(Some(ann()), Method::POST, "/sessions", &plain, "x").await.status, 415);
}

#[tokio::test]
async fn a_retry_answers_the_same_session_and_status() {
    let front = Front::new().await;
    let first = front.create("k1", r#"{"title": "one"}"#).await;
    front.pass(60);
    for body in [r#"{"title": "one"}"#, r#"{"title": " one "}"#] {
        let again = front.create("k1", body).await;
        assert_eq!((again.status, again.text), (201, first.text.clone()));
    }
    let other = front.create("k1", r#"{"title": "two"}"#).await;
    assert_eq!(other.refused(), (422, "idempotency_key_reused".to_owned(), vec![]));
    assert_ne!(front.create("k2", r#"{"title": "one"}"#).await.text, first.text);
    assert_eq!(front.get("/sessions").await.json()["sessions"].as_array().unwrap().len(), 2);
    front.pass(3600);
    assert_eq!(front.create("k1", r#"{"title": "two"}"#).await.status, 201, "the key is forgotten");
    for bad in ["a b", &"x".repeat(256)] {
        assert_eq!(front.create(bad, "").await.refused().2, [": idempotency_key"], "{bad}");
    }
}

#[tokio::test]
async fn sessions_are_listed_page_by_page() {
    let front = Front::new().await;
    for number in 0..25 {
        front.pass(1);
        front.create("", &json!({ "title": number.to_string() }).to_string()).await;
    }
    let titles = |page: &Value| -> Vec<String> {
        let sessions = page["sessions"].as_array().unwrap();
        sessions.iter().map(|one| one["title"].as_str().unwrap().to_owned()).collect()
    };
    let first = front.get("/sessions").await.json();
    assert_eq!((titles(&first).len(), titles(&first)[0].as_str()), (20, "24"));
    let cursor = first["next_cursor"].as_str().unwrap().to_owned();
    let rest = front.get(&format!("/sessions?limit=100&cursor={cursor}")).await.json();
    assert_eq!(titles(&rest), ["4", "3", "2", "1", "0"]);
    assert_eq!(rest["next_cursor"], Value::Null);
    for bad in ["limit=0", "limit=101", "limit=x", "limit=-1", "limit=99999999999"] {
        let refused = front.get(&format!("/sessions?{bad}")).await.refused();
        assert_eq!((refused.0, refused.1.as_str(), refused.2.len()), (400, "validation_failed", 1), "{bad}");
    }
    for path in ["/sessions?cursor=x", "/sessions?cursor="] {
        assert_eq!(front.get(path).await.refused().2, [": cursor"], "{path}");
    }
}

#[tokio::test]
async fn a_session_is_renamed_and_deleted() {
    let front = Front::new().await;
    let id = front.create("", "").await.string("session_id");
    front.pass(5);
    let renamed = front.rename(&id, r#"{"title": "Besser"}"#).await;
    assert_eq!((renamed.status, renamed.string("title").as_str()), (200, "Besser"));
    assert_eq!(renamed.string("updated_at"), "2023-11-14T22:13:25.000Z");
    assert_eq!(front.get(&format!("/sessions/{id}")).await.text, renamed.text);
    for (body, fault) in [
        ("{}", "/title: required"),
        (r#"{"title": " "}"#, "/title: length"),
        (r#"{"title": "a\nb"}"#, "/title: control_character"),
    ] {
        assert_eq!(front.rename(&id, body).await.refused().2, [fault]);
    }
    let path = format!("/sessions/{id}");
    let deleted = front.send(Some(ann()), Method::DELETE, &path, &[], "").await;
    assert_eq!((deleted.status, deleted.text.as_str()), (204, ""));
    for said in [
        front.get(&path).await,
        front.get(&format!("{path}/messages")).await,
        front.rename(&id, r#"{"title": "x"}"#).await,
        front.send(Some(ann()), Method::DELETE, &path, &[], "").await,
        front.get("/sessions/never-was").await,
    ] {
        assert_eq!(said.refused(), (404, "not_found".to_owned(), vec![]));
    }
}

#[tokio::test]
async fn messages_are_read_in_both_orders_and_exported() {
    let front = Front::new().await;
    let id = front.create("", "").await.string("session_id");
    let owner = owner(&ann());
    for number in 0..3 {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_100 + number);
        let turn = NewTurn {
            id: format!("a{number}"),
            session_id: id.clone(),
            message_id: format!("q{number}"),
            query: format!("Q{number}"),
            replica: "r".to_owned(),
            alive_until: now,
        };
        let Once::Done(turn) = front.store.begin_turn(&owner, &turn, None, now).await.unwrap() else {
            panic!("no key, no retry")
        };
        let status = [MessageStatus::Complete, MessageStatus::Interrupted, MessageStatus::Cancelled];
        let end = TurnEnd {
            content: format!("A{number}"),
            status: status[number as usize],
            total_tokens: (number == 0).then_some(7),
        };
        front.store.finish_turn(&turn, &end, now).await.unwrap();
    }
    let contents = |page: &Value| -> Vec<String> {
        let messages = page["messages"].as_array().unwrap();
        messages.iter().map(|one| one["content"].as_str().unwrap().to_owned()).collect()
    };
    let path = format!("/sessions/{id}/messages");
    let all = front.get(&path).await.json();
    assert_eq!(contents(&all), ["Q0", "A0", "Q1", "A1", "Q2", "A2"]);
    assert_eq!(
        all["messages"][1],
        json!({
            "id": "a0", "role": "assistant", "content": "A0", "status": "complete",
            "created_at": "2023-11-14T22:15:00.000Z", "total_tokens": 7
        })
    );
    assert_eq!(all["messages"][3]["status"], "interrupted");
    assert!(all["messages"][0].get("total_tokens").is_none());
    let newest = front.get(&format!("{path}?order=desc&limit=4")).await.json();
    assert_eq!(contents(&newest), ["A2", "Q2", "A1", "Q1"]);
    let cursor = newest["next_cursor"].as_str().unwrap();
    let older = front.get(&format!("{path}?order=desc&cursor={cursor}")).await.json();
    assert_eq!(contents(&older), ["A0", "Q0"]);
    for bad in ["order=up", "limit=0"] {
        assert_eq!(front.get(&format!("{path}?{bad}")).await.refused().2, [": parameter"], "{bad}");
    }
    assert_eq!(front.get(&format!("{path}?cursor=x")).await.refused().2, [": cursor"]);

    let export = front.get("/export/sessions").await;
    assert_eq!(export.status, 200);
    assert_eq!(export.headers["content-type"], "application/json");
    assert_eq!(export.headers["content-disposition"], "attachment; filename=\"sessions.json\"");
    let document = export.json();
    assert_eq!(document["user"]["username"], "ann");
    // What is exported of a session and of a message is what callers are told of them.
    let mut session = front.get(&format!("/sessions/{id}")).await.json();
    session["messages"] = all["messages"].clone();
    assert_eq!(document["sessions"], json!([session]));
}

#[tokio::test]
async fn what_is_anothers_looks_like_what_never_was() {
    let front = Front::new().await;
    let id = front.create("", "").await.string("session_id");
    let elsewhere = identity("ann", "acme", "user");
    for stranger in [identity("eve", "", "admin"), identity("zoe", "acme", "user"), elsewhere] {
        for (method, path, body) in [
            (Method::GET, "", ""),
            (Method::PATCH, "", r#"{"title": "mine"}"#),
            (Method::DELETE, "", ""),
            (Method::GET, "/messages", ""),
        ] {
            let ask = async |id: &str| {
                let path = format!("/sessions/{id}{path}");
                front.send(Some(stranger.clone()), method.clone(), &path, &[], body).await
            };
            let (hidden, absent) = (ask(&id).await, ask("never-was").await);
            assert_eq!((hidden.status, hidden.text), (404, absent.text), "{method} {path}");
        }
        let list = front.send(Some(stranger), Method::GET, "/sessions", &[], "").await;
        assert_eq!(list.json()["sessions"], json!([]));
    }
    assert_eq!(front.get(&format!("/sessions/{id}")).await.string("title"), "New Chat");
}

#[tokio::test]
async fn only_users_of_this_gateway_have_sessions() {
    let front = Front::new().await;
    let robot = Identity { proof: Proof::ApiKey, ..identity("key-1", "", "") };
    let guest = Identity { proof: Proof::Provider, ..ann() };
    for (method, path) in [
        (Method::POST, "/sessions"),
        (Method::GET, "/sessions"),
        (Method::GET, "/sessions/x"),
        (Method::DELETE, "/sessions/x"),
        (Method::GET, "/sessions/x/messages"),
        (Method::GET, "/export/sessions"),
    ] {
        let nobody = front.send(None, method.clone(), path, &[], "").await;
        assert_eq!(nobody.refused(), (401, "no_token".to_owned(), vec![]), "{method} {path}");
        for caller in [robot.clone(), guest.clone()] {
            let refused = front.send(Some(caller), method.clone(), path, &[], "").await;
            assert_eq!(refused.refused().1, "permission_denied", "{method} {path}");
        }
    }
    // Whose account is gone, but whose token is not heard of yet.
    let gone = front.send(Some(identity("gone", "", "user")), Method::POST, "/sessions", &[], "").await;
    assert_eq!(gone.refused().1, "invalid_token");
    let gone = front.send(Some(identity("gone", "", "user")), Method::GET, "/export/sessions", &[], "").await;
    assert_eq!(gone.refused().1, "invalid_token");
}

#[tokio::test]
async fn a_store_that_is_away_is_said_and_may_be_tried_again() {
    let front = Front::new().await;
    front.store.close().await;
    for said in [
        front.create("k", "").await,
        front.get("/sessions").await,
        front.get("/sessions/x").await,
        front.rename("x", r#"{"title": "x"}"#).await,
        front.send(Some(ann()), Method::DELETE, "/sessions/x", &[], "").await,
        front.get("/sessions/x/messages").await,
        front.get("/export/sessions").await,
    ] {
        assert_eq!(said.refused(), (503, "store_unavailable".to_owned(), vec![]));
        assert!(said.headers.contains_key("retry-after"));
    }
}
