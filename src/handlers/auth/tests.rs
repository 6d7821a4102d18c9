//! Every answer of every operation, over the store in memory.

use super::*;
use crate::accounts::testing::House;
use crate::exchange::tests::exchange;
use crate::settings::Environment;
use crate::shared::{AnyShared, Memory};
use crate::tokens::keys::Keys;
use crate::tokens::testing::{SECRET, backends};
use http::{Method, StatusCode};
use poem::endpoint::BoxEndpoint;
use poem::{Endpoint, IntoEndpoint, Response};
use poem_openapi::OpenApiService;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Front {
    house: House,
    tokens: Arc<Tokens>,
    service: BoxEndpoint<'static, Response>,
}

struct Said {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Said {
    fn text(&self, key: &str) -> &str {
        self.body[key].as_str().unwrap_or_else(|| panic!("no {key} in {}", self.body))
    }

    /// Code and status of an error, `pointer: code` of its field faults.
    fn refused(&self) -> (u16, String, Vec<String>) {
        let faults = self.body["errors"].as_array().cloned().unwrap_or_default();
        let faults = faults.iter().map(|fault| {
            assert!(fault["detail"].as_str().is_some_and(|text| !text.is_empty()), "{fault}");
            format!("{}: {}", fault["pointer"].as_str().unwrap(), fault["code"].as_str().unwrap())
        });
        (self.status, self.text("code").to_owned(), faults.collect())
    }
}

impl Front {
    fn new() -> Self {
        Front::over(House::with(&[]))
    }

    fn over(house: House) -> Self {
        Front::with_tokens(house, Arc::new(Memory::new()))
    }

    /// Tickets are kept in this shared state.
    fn with_tokens(house: House, shared: AnyShared) -> Self {
        let keys = Keys::new(SECRET.as_bytes(), &[]);
        let tokens = Tokens::new(keys, backends().0, shared, 8);
        let service = OpenApiService::new(AuthApi::new(house.accounts.clone(), tokens.clone()), "test", "1");
        Front { house, tokens, service: service.into_endpoint() }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Said {
        let exchange = exchange(method.clone(), path);
        if let Some(token) = token
            && let Some(identity) = self.house.accounts.identify(token)
        {
            exchange.identified(identity);
        }
        let mut request = poem::Request::builder().method(method).uri_str(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(body.to_owned());
        request.set_data(exchange.clone());
        let response = match self.service.call(request).await {
            Ok(response) => response,
            Err(error) => GatewayError::of(&error).respond("request", crate::error::Lang::Zh),
        };
        let (parts, body) = response.into_parts();
        let body = body.into_string().await.unwrap();
        let body = if body.is_empty() { Value::Null } else { serde_json::from_str(&body).unwrap() };
        Said { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    async fn post(&self, path: &str, body: Value) -> Said {
        self.send(Method::POST, path, None, &[("content-type", "application/json")], &body.to_string()).await
    }

    async fn post_as(&self, token: &str, path: &str, body: Value) -> Said {
        let headers = [("content-type", "application/json")];
        self.send(Method::POST, path, Some(token), &headers, &body.to_string()).await
    }

    async fn me(&self, token: &str) -> Said {
        self.send(Method::GET, "/auth/me", Some(token), &[], "").await
    }

    async fn register(&self, name: &str) -> Said {
        let body =
            json!({ "username": name, "email": format!("{name}@example.com"), "password": "Correct1horse" });
        let said = self.post("/auth/register", body).await;
        assert_eq!(said.status, 201, "{}", said.body);
        said
    }

    async fn login(&self, name: &str, password: &str) -> Said {
        self.post("/auth/login", json!({ "username": name, "password": password })).await
    }
}

#[tokio::test]
async fn registering_gives_tokens_in_the_seeds_form() {
    let front = Front::new();
    let said = front.register("ann").await;
    let keys: Vec<_> = said.body.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["access_token", "refresh_token", "expires_in", "user"]);
    assert_eq!(said.body["expires_in"], 86400);
    let user: Vec<_> = said.body["user"].as_object().unwrap().keys().collect();
    assert_eq!(user, ["id", "username", "email"]);
    assert_eq!(said.headers["cache-control"], "no-store");
    let me = front.me(said.text("access_token")).await;
    assert_eq!((me.status, me.text("username"), me.text("role")), (200, "ann", "user"));
    assert_eq!(me.text("tenant_id"), "");
}

#[tokio::test]
async fn a_name_or_address_is_taken_whatever_its_case() {
    let front = Front::new();
    front.register("ann").await;
    for (name, email) in [("ANN", "other@example.com"), ("other", "Ann@Example.com")] {
        let body = json!({ "username": name, "email": email, "password": "Correct1horse" });
        let said = front.post("/auth/register", body).await;
        assert_eq!((said.status, said.text("error")), (409, "用户名或邮箱已存在"));
        assert_eq!(said.text("code"), "account_exists");
    }
}

#[tokio::test]
async fn every_broken_rule_of_a_registration_is_named() {
    let front = Front::new();
    let said =
        front.post("/auth/register", json!({ "username": "a!", "email": "x", "password": "abc" })).await;
    let faults = [
        "/username: username",
        "/email: email",
        "/password: password_too_short",
        "/password: password_needs_upper",
        "/password: password_needs_digit",
    ];
    assert_eq!(said.refused(), (400, "validation_failed".into(), faults.map(String::from).to_vec()));
    let long = "Aa1".repeat(25);
    let said =
        front.post("/auth/register", json!({ "username": "ann", "email": "a@b.cn", "password": long })).await;
    assert_eq!(said.refused().2, ["/password: password_too_long"]);
}

#[tokio::test]
async fn registration_takes_only_its_own_fields() {
    let front = Front::new();
    for field in ["role", "tenant_id", "id", "verified"] {
        let mut body = json!({ "username": "ann", "email": "ann@example.com", "password": "Correct1horse" });
        body[field] = "admin".into();
        let said = front.post("/auth/register", body).await;
        assert_eq!(
            said.refused(),
            (400, "validation_failed".into(), vec![format!("/{field}: unknown_field")])
        );
    }
}

#[tokio::test]
async fn malformed_bodies_are_refused_in_the_common_form() {
    let front = Front::new();
    let said = front.post("/auth/login", json!({ "username": 7 })).await;
    assert_eq!(said.refused().2, ["/username: type", "/password: required"]);
    let json = [("content-type", "application/json")];
    let said = front.send(Method::POST, "/auth/login", None, &json, "{").await;
    assert_eq!(said.refused(), (400, "validation_failed".into(), vec![": json".into()]));
    for headers in [&[][..], &[("content-type", "text/plain")]] {
        let said = front.send(Method::POST, "/auth/login", None, headers, "{}").await;
        assert_eq!(said.refused().0, 415);
    }
}

#[tokio::test]
async fn a_login_says_not_whether_the_name_exists() {
    let front = Front::new();
    front.register("ann").await;
    let said = front.login("Ann", "Correct1horse").await;
    assert_eq!((said.status, said.body["user"]["username"].as_str()), (200, Some("ann")));
    let wrong = front.login("ann", "Correct1hors").await;
    let unknown = front.login("bob", "Correct1horse").await;
    assert_eq!((wrong.status, wrong.text("error")), (401, "用户名或密码错误"));
    assert_eq!(wrong.body, unknown.body);
    let me = front.me(said.text("access_token")).await;
    assert_eq!(me.text("last_login_at"), "2023-11-14T22:13:20Z");
}

#[tokio::test]
async fn an_unknown_user_costs_what_a_wrong_password_costs() {
    let front = Front::new();
    front.house.authority.rules.lock().unwrap().bcrypt_cost = 9;
    front.house.authority.rules.lock().unwrap().lock_failures = 100;
    front.register("ann").await;
    let mut best = [Duration::MAX; 2];
    for _ in 0..5 {
        for (best, name) in best.iter_mut().zip(["ann", "bob"]) {
            let begun = Instant::now();
            assert_eq!(front.login(name, "wrong").await.status, 401);
            *best = begun.elapsed().min(*best);
        }
    }
    let ratio = best[1].as_secs_f64() / best[0].as_secs_f64();
    assert!((0.5..2.0).contains(&ratio), "known and unknown: {best:?}");
}

#[tokio::test]
async fn five_failures_lock_a_name_for_a_quarter_of_an_hour() {
    let front = Front::new();
    front.register("ann").await;
    for name in ["ann", "nobody"] {
        for n in 0..5 {
            let name = if n % 2 == 0 { name.to_owned() } else { name.to_uppercase() };
            assert_eq!(front.login(&name, "wrong").await.status, 401, "failure {n}");
        }
        let said = front.login(name, "Correct1horse").await;
        assert_eq!((said.status, said.text("code")), (423, "account_locked"));
        assert_eq!(said.headers["retry-after"], "900");
        assert_eq!(said.body["retry_after"], 900);
    }
    front.house.pass(899);
    assert_eq!(front.login("ann", "Correct1horse").await.status, 423);
    front.house.pass(1);
    assert_eq!(front.login("ann", "Correct1horse").await.status, 200);
}

#[tokio::test]
async fn a_success_forgets_failures() {
    let front = Front::new();
    front.register("ann").await;
    for _ in 0..3 {
        for _ in 0..4 {
            assert_eq!(front.login("ann", "wrong").await.status, 401);
        }
        assert_eq!(front.login("ann", "Correct1horse").await.status, 200);
    }
}

#[tokio::test]
async fn guesses_sent_at_once_get_no_more_tries() {
    let front = Arc::new(Front::over(House::with(&["--password-workers=1", "--password-queue=100"])));
    front.register("ann").await;
    let guesses: Vec<_> = (0..50)
        .map(|_| {
            let front = front.clone();
            tokio::spawn(async move { front.login("ann", "wrong").await.status })
        })
        .collect();
    let mut tried = 0;
    for guess in guesses {
        tried += usize::from(guess.await.unwrap() == 401);
    }
    // One worker: the lock is asked again behind it. Its turn is given back before the failure is noted, so a few
    // slip through on a busy machine; without the second question all fifty would.
    assert!((5..=10).contains(&tried), "{tried} guesses were compared");
}

#[tokio::test]
async fn disabled_accounts_are_told_only_with_the_right_password() {
    let front = Front::new();
    let said = front.register("ann").await;
    front.house.store.alter("ann", |user| user.disabled = true);
    assert_eq!(front.login("ann", "wrong").await.status, 401);
    assert_eq!(front.login("ann", "Correct1horse").await.refused().1, "account_disabled");
    assert_eq!(front.me(said.text("access_token")).await.refused().1, "account_disabled");
    let refresh = json!({ "refresh_token": said.text("refresh_token") });
    assert_eq!(front.post("/auth/refresh", refresh.clone()).await.refused().1, "account_disabled");
    front.house.store.alter("ann", |user| user.disabled = false);
    assert_eq!(front.post("/auth/refresh", refresh).await.status, 401, "its family was ended");
}

#[tokio::test]
async fn hashes_of_the_original_log_in_and_are_renewed() {
    let front = Front::new();
    front.register("ann").await;
    let original =
        bcrypt::hash_with_result("Original1", 5).unwrap().format_for_version(bcrypt::Version::TwoA);
    front.house.store.alter("ann", |user| user.password_hash = Some(original));
    assert_eq!(front.login("ann", "Original1").await.status, 200);
    front.house.store.alter("ann", |user| {
        assert!(user.password_hash.as_ref().unwrap().starts_with("$2b$04$"), "{:?}", user.password_hash);
    });
    assert_eq!(front.login("ann", "Original1").await.status, 200);
}

#[tokio::test]
async fn too_many_logins_at_once_are_sent_away() {
    let front = Arc::new(Front::over(House::with(&["--password-workers=2", "--password-queue=16"])));
    front.register("ann").await;
    front.house.authority.rules.lock().unwrap().bcrypt_cost = 8;
    let logins: Vec<_> = (0..300)
        .map(|n| {
            let front = front.clone();
            tokio::spawn(async move { front.login(&format!("user{n}"), "Correct1horse").await })
        })
        .collect();
    let (mut compared, mut refused) = (0, 0);
    for login in logins {
        let said = login.await.unwrap();
        match said.status {
            401 => compared += 1,
            503 => {
                assert_eq!(said.text("code"), "overloaded");
                assert!(said.headers.contains_key("retry-after"));
                refused += 1;
            }
            status => panic!("{status}"),
        }
    }
    assert!(compared >= 18, "workers and queue were used: {compared}");
    assert!(refused >= 200, "what is beyond was sent away: {refused}");
}

#[tokio::test]
async fn a_refresh_token_works_once_and_its_reuse_ends_the_login() {
    let front = Front::new();
    let elsewhere = front.register("ann").await;
    let headers = [("content-type", "application/json"), ("x-channel", "desktop")];
    let body = json!({ "username": "ann", "password": "Correct1horse" }).to_string();
    let first = front.send(Method::POST, "/auth/login", None, &headers, &body).await;
    let refresh = |said: &Said| json!({ "refresh_token": said.text("refresh_token") });
    let second = front.post("/auth/refresh", refresh(&first)).await;
    assert_eq!((second.status, second.body["user"]["username"].as_str()), (200, Some("ann")));
    assert_ne!(second.text("refresh_token"), first.text("refresh_token"));
    assert!(second.text("access_token").contains("|desktop|"), "the channel stays: {}", second.body);
    assert_eq!(front.me(second.text("access_token")).await.status, 200);
    let reused = front.post("/auth/refresh", refresh(&first)).await;
    assert_eq!(reused.refused().1, "invalid_refresh_token");
    assert_eq!(front.post("/auth/refresh", refresh(&second)).await.status, 401, "the family is dead");
    assert_eq!(front.me(second.text("access_token")).await.status, 401, "its access tokens are revoked");
    assert_eq!(front.me(first.text("access_token")).await.status, 401, "of every refresh");
    assert_eq!(front.me(elsewhere.text("access_token")).await.status, 200, "other logins go on");
    assert_eq!(front.post("/auth/refresh", json!({ "refresh_token": "vgr_unknown" })).await.status, 401);
}

#[tokio::test]
async fn within_the_grace_a_refresh_token_sent_again_gives_tokens_that_end_together() {
    let front = Front::new();
    front.house.authority.rules.lock().unwrap().refresh_grace = Duration::from_secs(10);
    let first = front.register("ann").await;
    let refresh = |said: &Said| json!({ "refresh_token": said.text("refresh_token") });
    let one = front.post("/auth/refresh", refresh(&first)).await;
    front.house.pass(10);
    let other = front.post("/auth/refresh", refresh(&first)).await;
    assert_eq!((one.status, other.status), (200, 200));
    assert_ne!(one.text("refresh_token"), other.text("refresh_token"));
    let next = front.post("/auth/refresh", refresh(&one)).await;
    assert_eq!(front.post_as(next.text("access_token"), "/auth/logout", refresh(&next)).await.status, 204);
    for said in [&first, &one, &other, &next] {
        assert_eq!(front.me(said.text("access_token")).await.status, 401);
        assert_eq!(front.post("/auth/refresh", refresh(said)).await.status, 401);
    }
}

#[tokio::test]
async fn refresh_tokens_end() {
    let front = Front::new();
    let said = front.register("ann").await;
    front.house.pass(7 * 24 * 3600);
    let body = json!({ "refresh_token": said.text("refresh_token") });
    assert_eq!(front.post("/auth/refresh", body).await.refused().1, "invalid_refresh_token");
}

#[tokio::test]
async fn logout_ends_the_access_token_and_the_family() {
    let front = Front::new();
    let (one, other) = (front.register("ann").await, front.login("ann", "Correct1horse").await);
    let body = json!({ "refresh_token": one.text("refresh_token") });
    assert_eq!(front.post_as(one.text("access_token"), "/auth/logout", body.clone()).await.status, 204);
    assert_eq!(front.me(one.text("access_token")).await.refused().1, "no_token");
    assert_eq!(front.post("/auth/refresh", body).await.status, 401);
    assert_eq!(front.me(other.text("access_token")).await.status, 200, "other sessions go on");
}

#[tokio::test]
async fn a_ticket_is_for_who_asked() {
    let front = Front::new();
    let said = front.register("ann").await;
    let token = said.text("access_token");
    let made = front.send(Method::POST, "/auth/ws-ticket", Some(token), &[], "").await;
    assert_eq!((made.status, &made.body["expires_in"]), (200, &json!(30)), "{}", made.body);
    assert_eq!(made.headers["cache-control"], "no-store");
    // The house has a clock of its own.
    let redeemed = front.tokens.redeem_ticket(made.text("ticket"), SystemTime::UNIX_EPOCH).await.unwrap();
    assert_eq!(&*redeemed.user_id, said.body["user"]["id"].as_str().unwrap());
    let stranger = front.send(Method::POST, "/auth/ws-ticket", None, &[], "").await;
    assert_eq!(stranger.refused(), (401, "no_token".to_owned(), vec![]));
    // Shared state that is away: said, and to be tried again.
    let front = Front::with_tokens(House::with(&[]), backends().1);
    let said = front.register("ann").await;
    let refused = front.send(Method::POST, "/auth/ws-ticket", Some(said.text("access_token")), &[], "").await;
    assert_eq!(refused.refused(), (503, "store_unavailable".to_owned(), vec![]));
}

#[tokio::test]
async fn changing_the_password_needs_the_old_one_and_ends_sessions() {
    let front = Front::new();
    let said = front.register("ann").await;
    let (token, path) = (said.text("access_token"), "/auth/password/change");
    let change = |old: &str, new: &str| json!({ "old_password": old, "new_password": new });
    let nobody = front.post(path, change("Correct1horse", "Battery2staple")).await;
    assert_eq!(nobody.refused().1, "no_token");
    let weak = front.post_as(token, path, change("Correct1horse", "weak")).await;
    assert_eq!(weak.refused().2[0], "/new_password: password_too_short");
    let wrong = front.post_as(token, path, change("wrong", "Battery2staple")).await;
    assert_eq!(wrong.refused().1, "invalid_credentials");
    assert_eq!(front.post_as(token, path, change("Correct1horse", "Battery2staple")).await.status, 204);
    assert_eq!(front.me(token).await.status, 401);
    let refresh = json!({ "refresh_token": said.text("refresh_token") });
    assert_eq!(front.post("/auth/refresh", refresh).await.status, 401);
    assert_eq!(front.login("ann", "Correct1horse").await.status, 401);
    assert_eq!(front.login("ann", "Battery2staple").await.status, 200);
}

#[tokio::test]
async fn guessing_the_old_password_locks_too() {
    let front = Front::new();
    let said = front.register("ann").await;
    let guess = json!({ "old_password": "wrong", "new_password": "Battery2staple" });
    for _ in 0..5 {
        let said = front.post_as(said.text("access_token"), "/auth/password/change", guess.clone()).await;
        assert_eq!(said.status, 401);
    }
    assert_eq!(front.post_as(said.text("access_token"), "/auth/password/change", guess).await.status, 423);
}

#[tokio::test]
async fn an_account_is_deleted_with_its_password_and_its_name_is_free() {
    let front = Front::new();
    let said = front.register("ann").await;
    let token = said.text("access_token");
    let delete = async |body: &str| {
        let headers: &[_] = if body.is_empty() { &[] } else { &[("content-type", "application/json")] };
        front.send(Method::DELETE, "/auth/me", Some(token), headers, body).await
    };
    let nobody = front.send(Method::DELETE, "/auth/me", None, &[], "").await;
    assert_eq!(nobody.refused().1, "no_token");
    for missing in ["", "{}", r#"{"password": null}"#] {
        assert_eq!(delete(missing).await.refused().2, ["/password: required"], "{missing}");
    }
    let long = json!({ "password": "x".repeat(73) }).to_string();
    assert_eq!(delete(&long).await.refused().2, ["/password: password_too_long"]);
    assert_eq!(delete(r#"{"password": "wrong"}"#).await.refused().1, "invalid_credentials");
    assert_eq!(front.me(token).await.status, 200);

    assert_eq!(delete(r#"{"password": "Correct1horse"}"#).await.status, 204);
    assert_eq!(front.me(token).await.status, 401);
    assert_eq!(delete(r#"{"password": "Correct1horse"}"#).await.status, 401);
    let refresh = json!({ "refresh_token": said.text("refresh_token") });
    assert_eq!(front.post("/auth/refresh", refresh).await.status, 401);
    assert_eq!(front.login("ann", "Correct1horse").await.status, 401);
    let again = front.register("ANN").await;
    assert_ne!(again.body["user"]["id"], said.body["user"]["id"]);
}

#[tokio::test]
async fn guessing_at_a_deletion_locks_too() {
    let front = Front::new();
    let said = front.register("ann").await;
    let delete = async |password: &str| {
        let (headers, body) = ([("content-type", "application/json")], json!({ "password": password }));
        let token = Some(said.text("access_token"));
        front.send(Method::DELETE, "/auth/me", token, &headers, &body.to_string()).await.status
    };
    for _ in 0..5 {
        assert_eq!(delete("wrong").await, 401);
    }
    assert_eq!(delete("Correct1horse").await, 423);
    front.house.pass(900);
    assert_eq!(delete("Correct1horse").await, 204);
    // Nothing is left of the lock for whoever takes the name next.
    front.register("ann").await;
    for _ in 0..4 {
        assert_eq!(front.login("ann", "wrong").await.status, 401);
    }
    assert_eq!(front.login("ann", "Correct1horse").await.status, 200);
}

#[tokio::test]
async fn an_account_without_a_password_is_deleted_without_one() {
    let front = Front::new();
    let said = front.register("ann").await;
    front.house.store.alter("ann", |user| user.password_hash = None);
    let token = Some(said.text("access_token"));
    assert_eq!(front.send(Method::DELETE, "/auth/me", token, &[], "").await.status, 204);
    assert_eq!(front.me(said.text("access_token")).await.status, 401);
}

/// Takes one message by SMTP and gives the reset token in it.
async fn mailbox(listener: tokio::net::TcpListener) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.write_all(b"220 test\r\n").await.unwrap();
    let mut heard = String::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer).await.unwrap();
        heard.push_str(&String::from_utf8_lossy(&buffer[..count]));
        if heard.contains("\r\n.\r\n") {
            stream.write_all(b"250 taken\r\n").await.unwrap();
            break;
        }
        let answer = if heard.ends_with("DATA\r\n") { "354 go on\r\n" } else { "250 fine\r\n" };
        if heard.contains("DATA\r\n") && !heard.ends_with("DATA\r\n") {
            continue;
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
    // The text is quoted-printable or base64: undo what matters here.
    let plain = heard.replace("=\r\n", "").replace("=3D", "=");
    let text = match plain.split_once("base64\r\n") {
        Some((_, rest)) => {
            let body =
                rest.split_once("\r\n\r\n").unwrap().1.split("\r\n.\r\n").next().unwrap().replace("\r\n", "");
            String::from_utf8(base64(&body)).unwrap()
        }
        None => plain,
    };
    let at = text.find("vgp_").unwrap_or_else(|| panic!("no token in {text}"));
    text[at..at + 4 + 64].to_owned()
}

/// Base64 (RFC 4648, section 4), for tests alone.
fn base64(text: &str) -> Vec<u8> {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut held, mut out) = (0u32, 0, Vec::new());
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        bits = bits << 6 | digits.iter().position(|digit| *digit == byte).unwrap() as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    out
}

#[tokio::test]
async fn a_forgotten_password_is_set_anew_by_a_link_that_works_once() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("--smtp-url=smtp://{}", listener.local_addr().unwrap());
    let mail = tokio::spawn(mailbox(listener));
    let front = Front::over(House::with(&[&url]));
    let said = front.register("ann").await;
    let unknown = front.post("/auth/password/forgot", json!({ "email": "bob@example.com" })).await;
    let known = front.post("/auth/password/forgot", json!({ "email": "ANN@example.com" })).await;
    assert_eq!((known.status, &known.body), (202, &unknown.body));
    let token = tokio::time::timeout(Duration::from_secs(10), mail).await.unwrap().unwrap();
    let reset = |password: &str| json!({ "token": token, "password": password });
    let weak = front.post("/auth/password/reset", reset("weak")).await;
    assert_eq!(weak.refused().1, "validation_failed", "and the token is not used up");
    for _ in 0..5 {
        front.login("ann", "wrong").await;
    }
    assert_eq!(front.post("/auth/password/reset", reset("Battery2staple")).await.status, 204);
    assert_eq!(front.post("/auth/password/reset", reset("Battery3staple")).await.refused().1, "link_invalid");
    assert_eq!(front.me(said.text("access_token")).await.status, 401);
    assert_eq!(front.login("ann", "Battery2staple").await.status, 200, "and the name is unlocked");
}

#[tokio::test]
async fn links_cannot_be_asked_for_where_no_mail_can_be_sent() {
    let front = Front::over(House::in_environment(&[], Environment::Production));
    let said = front.post("/auth/password/forgot", json!({ "email": "ann@example.com" })).await;
    assert_eq!((said.status, said.text("code")), (503, "mail_unavailable"));
    assert_eq!(said.headers["retry-after"], "3600", "asking again does not help");
}

#[tokio::test]
async fn wechat_users_are_made_at_their_first_login() {
    let demo = crate::demo::Demo::start().await.unwrap();
    let url = format!("--wechat-api-url={}", demo.url());
    let flags = [&url, "--wechat-app-id=wx-demo", "--wechat-app-secret=demo", "--wechat-tenants=school"];
    let front = Front::over(House::with(&flags));
    let login = |code: &str| json!({ "code": code, "user_info": { "nickName": "安" } });
    let first = front.post("/auth/wechat/login", login("ann.1")).await;
    assert_eq!(first.status, 200, "{}", first.body);
    assert_eq!(first.body["user"]["email"], "");
    assert!(first.text("access_token").contains("|wechat|"));
    let second = front.post("/auth/wechat/login", login("ann.2")).await;
    assert_eq!(second.body["user"], first.body["user"]);
    let other = front.post("/auth/wechat/login", login("bob.1")).await;
    assert_ne!(other.body["user"]["id"], first.body["user"]["id"]);
    let refused = front.post("/auth/wechat/login", login("invalid")).await;
    assert_eq!(refused.refused().1, "invalid_wechat_code");
    let tenant = |name: &str| json!({ "code": "ann.3", "tenant_id": name });
    assert_eq!(front.post("/auth/wechat/login", tenant("bank")).await.refused().1, "permission_denied");
    let school = front.post("/auth/wechat/login", tenant("school")).await;
    assert_ne!(school.body["user"]["id"], first.body["user"]["id"]);
    front.house.store.alter(first.body["user"]["username"].as_str().unwrap(), |user| user.disabled = true);
    assert_eq!(front.post("/auth/wechat/login", login("ann.4")).await.refused().1, "account_disabled");
    assert_eq!(front.login(first.body["user"]["username"].as_str().unwrap(), "").await.status, 401);
}

#[tokio::test]
async fn a_store_that_is_away_is_said_and_may_be_tried_again() {
    let front = Front::new();
    let said = front.register("ann").await;
    front.house.store.away.store(true, Ordering::Relaxed);
    let token = said.text("access_token");
    let refresh = json!({ "refresh_token": said.text("refresh_token") });
    for said in [
        front.login("ann", "Correct1horse").await,
        front.post("/auth/refresh", refresh.clone()).await,
        front.post_as(token, "/auth/logout", refresh).await,
        front.me(token).await,
    ] {
        assert_eq!(said.refused(), (503, "store_unavailable".into(), vec![]));
        assert!(said.headers.contains_key("retry-after"));
        assert!(!said.body.to_string().contains("it is away"));
    }
    front.house.store.away.store(false, Ordering::Relaxed);
    assert_eq!(front.login("ann", "Correct1horse").await.status, StatusCode::OK.as_u16());
}
