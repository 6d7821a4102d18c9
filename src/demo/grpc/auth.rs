//! `voicehelper.auth.v1.Auth`: accounts, and access tokens that the gateway accepts because they share its secret.
//!
//! Passwords are kept as hashes with a salt, but quick ones: this is a stand-in that forgets everything at its end.

use super::caller::Caller;
use super::faults;
use super::proto::auth::auth_server::Auth;
use super::proto::auth::{
    Account, LoginRequest, LogoutRequest, MeRequest, RefreshRequest, RegisterRequest, TokenResponse, UserInfo,
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

/// Lifetime of an access token, in seconds.
const LIFETIME: i32 = 24 * 3600;

/// The service.
pub(super) struct AuthService {
    key: EncodingKey,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    /// By name in lower case.
    users: BTreeMap<String, User>,
    /// Refresh token to name.
    logins: BTreeMap<String, String>,
}

#[derive(Clone)]
struct User {
    account: Account,
    salt: Uuid,
    hash: [u8; 32],
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Auth for AuthService {
    async fn register(&self, request: Request<RegisterRequest>) -> Answer<TokenResponse> {
        let RegisterRequest { username, email, password } = request.into_inner();
        let mut wrong = Vec::new();
        let spelt = username.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !(3..=50).contains(&username.len()) || !spelt {
            wrong.push(("username", "3 to 50 letters, digits and underscores"));
        }
        if !email.contains('@') {
            wrong.push(("email", "an e-mail address"));
        }
        let has = |wanted: fn(&u8) -> bool| password.as_bytes().iter().any(wanted);
        if password.len() < 8
            || !(has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase) && has(u8::is_ascii_digit))
        {
            wrong.push(("password", "at least 8 characters with lower case, upper case and a digit"));
        }
        if !wrong.is_empty() {
            return Err(faults::invalid_all(&wrong));
        }
        let mut book = self.lock();
        let name = username.to_ascii_lowercase();
        if book.users.contains_key(&name) {
            return Err(faults::because(
                Code::AlreadyExists,
                "ACCOUNT_EXISTS",
                "username or e-mail is taken",
            ));
        }
        let salt = Uuid::new_v4();
        let account = Account {
            id: Uuid::new_v4().to_string(),
            username,
            email,
            role: "user".to_owned(),
            created_at: jiff::Timestamp::now().to_string(),
            ..Default::default()
        };
        let user = User { account, salt, hash: hash(salt, &password) };
        book.users.insert(name.clone(), user);
        self.tokens(&mut book, &name)
    }

    async fn login(&self, request: Request<LoginRequest>) -> Answer<TokenResponse> {
        let LoginRequest { username, password, .. } = request.into_inner();
        let name = username.to_ascii_lowercase();
        let mut book = self.lock();
        let user = book.users.get_mut(&name).filter(|user| user.hash == hash(user.salt, &password));
        let Some(user) = user else {
            let text = "user name or password is wrong";
            return Err(faults::because(Code::Unauthenticated, "INVALID_CREDENTIALS", text));
        };
        user.account.last_login_at = Some(jiff::Timestamp::now().to_string());
        self.tokens(&mut book, &name)
    }

    async fn refresh(&self, request: Request<RefreshRequest>) -> Answer<TokenResponse> {
        let mut book = self.lock();
        let name = book.logins.remove(&request.get_ref().refresh_token).ok_or_else(not_a_login)?;
        self.tokens(&mut book, &name)
    }

    async fn logout(&self, request: Request<LogoutRequest>) -> Answer<()> {
        let gone = self.lock().logins.remove(&request.get_ref().refresh_token);
        gone.map(|_| Response::new(())).ok_or_else(not_a_login)
    }

    async fn me(&self, request: Request<MeRequest>) -> Answer<Account> {
        let caller = Caller::of(&request)?;
        let book = self.lock();
        let found = book.users.values().find(|user| user.account.id == caller.user_id);
        let found = found.ok_or_else(|| faults::not_found("user", &caller.user_id))?;
        Ok(Response::new(found.account.clone()))
    }
}

impl AuthService {
    /// Nobody is registered yet; `secret` signs access tokens (HS256).
    pub(super) fn new(secret: &[u8]) -> Self {
        Self { key: EncodingKey::from_secret(secret), book: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tokens(&self, book: &mut Book, name: &str) -> Answer<TokenResponse> {
        let account = &book.users[name].account;
        let now = jiff::Timestamp::now().as_second();
        let claims = json!({
            "iss": "voicehelper-api",
            "sub": account.id,
            "jti": Uuid::new_v4().to_string(),
            "token_use": "access",
            "iat": now,
            "exp": now + i64::from(LIFETIME),
            "user_id": account.id,
            "tenant_id": account.tenant_id,
            "role": account.role,
        });
        let access_token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.key)
            .map_err(|_| Status::internal("the token could not be signed"))?;
        let user = UserInfo {
            id: account.id.clone(),
            username: account.username.clone(),
            email: account.email.clone(),
        };
        let refresh_token = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        book.logins.insert(refresh_token.clone(), name.to_owned());
        Ok(Response::new(TokenResponse {
            access_token,
            refresh_token,
            expires_in: LIFETIME,
            user: Some(user),
        }))
    }
}

fn not_a_login() -> Status {
    faults::because(Code::Unauthenticated, "INVALID_REFRESH_TOKEN", "the refresh token is not valid")
}

fn hash(salt: Uuid, password: &str) -> [u8; 32] {
    Sha256::new().chain_update(salt.as_bytes()).chain_update(password).finalize().into()
}
