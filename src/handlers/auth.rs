//! `auth.*`: registering, logging in, tokens, passwords. The rules are [`crate::accounts`]'.

use super::input::{Input, Optional};
use crate::accounts::{Accounts, Credentials, Registration, Session};
use crate::error::{GatewayError, Kind};
use crate::exchange::Exchange;
use crate::identity::{Identity, Proof};
use crate::stores::User;
use crate::tokens::{TicketError, Tokens};
use http::HeaderMap;
use poem::Request;
use poem_openapi::payload::Json;
use poem_openapi::types::Any;
use poem_openapi::{ApiResponse, Object, OpenApi};
use std::sync::Arc;
use std::time::SystemTime;

/// The group.
pub struct AuthApi {
    accounts: Arc<Accounts>,
    tokens: Arc<Tokens>,
}

impl AuthApi {
    /// Over the process's accounts and tokens.
    pub fn new(accounts: Arc<Accounts>, tokens: Arc<Tokens>) -> Self {
        AuthApi { accounts, tokens }
    }
}

/// Front ends that a token may be made for, by `X-Channel`.
const CHANNELS: &[&str] = &["web", "mobile", "wechat", "desktop", "extension", "admin", "portal"];

/// Who registers.
#[derive(Object)]
struct RegisterRequest {
    /// 3 to 50 letters, digits and underscores.
    username: String,
    /// For links to a new password.
    email: String,
    /// At least 8 characters with lower case, upper case and a digit, as shipped; at most 72 bytes.
    password: String,
}

/// Who logs in.
#[derive(Object)]
struct LoginRequest {
    /// Whatever the case.
    username: String,
    /// As typed.
    password: String,
    /// Tenant of the user; without, the default one.
    tenant_id: Option<String>,
}

/// A refresh token to be exchanged.
#[derive(Object)]
struct RefreshRequest {
    /// As given by the last login or refresh; works once. Sent again, it ends the login, unless the manifest gives
    /// tabs that refresh together some seconds (`auth.refresh_grace`).
    refresh_token: String,
}

/// A refresh token to be ended.
#[derive(Object)]
struct LogoutRequest {
    /// As given by the last login or refresh.
    refresh_token: String,
}

/// A change of one's own password.
#[derive(Object)]
struct PasswordChangeRequest {
    /// The one that is valid now.
    old_password: String,
    /// The one that shall be.
    new_password: String,
}

/// Who wants a link to a new password.
#[derive(Object)]
struct PasswordForgotRequest {
    /// As registered.
    email: String,
    /// Tenant of the user; without, the default one.
    tenant_id: Option<String>,
}

/// A new password by a link.
#[derive(Object)]
struct PasswordResetRequest {
    /// From the link; works once.
    token: String,
    /// The one that shall be.
    password: String,
}

/// The end of one's own account.
#[derive(Object)]
struct DeleteAccountRequest {
    /// The one that is valid now; not needed where none was set (WeChat).
    password: Option<String>,
}

/// A mini program's login.
#[derive(Object)]
struct WechatLoginRequest {
    /// From `wx.login`.
    code: String,
    /// Accepted from older front ends; nothing of it is kept.
    user_info: Option<Any<serde_json::Value>>,
    /// Tenant of the user; without, the default one.
    tenant_id: Option<String>,
}

/// What a login gives.
#[derive(Object)]
struct TokenResponse {
    /// JWT for `Authorization: Bearer`.
    access_token: String,
    /// For `auth.refresh`; works once.
    refresh_token: String,
    /// Lifetime of the access token in seconds.
    expires_in: i64,
    /// Whose they are.
    user: UserInfo,
}

/// What opens one WebSocket.
#[derive(Object)]
struct TicketResponse {
    /// To be sent as `?ticket=` with the request that opens the WebSocket; works once.
    ticket: String,
    /// How long it can be used, in seconds.
    expires_in: i64,
}

/// A user, in short.
#[derive(Object)]
struct UserInfo {
    /// UUID.
    id: String,
    /// As registered.
    username: String,
    /// As registered; empty where none is known (WeChat).
    email: String,
}

/// A user, as it sees itself.
#[derive(Object)]
struct Me {
    /// UUID.
    id: String,
    /// As registered.
    username: String,
    /// As registered; empty where none is known (WeChat).
    email: String,
    /// Empty for the default one.
    tenant_id: String,
    /// Role's name.
    role: String,
    /// When it was registered, RFC 3339 in UTC.
    created_at: String,
    /// Last login, RFC 3339 in UTC.
    last_login_at: Option<String>,
}

/// That something was taken in hand.
#[derive(Object)]
struct Accepted {
    /// `accepted`.
    status: String,
}

/// A new user's tokens.
#[derive(ApiResponse)]
enum RegisterResponse {
    /// Registered and logged in.
    #[oai(status = 201)]
    Created(Json<TokenResponse>, #[oai(header = "Cache-Control")] String),
}

/// Tokens.
#[derive(ApiResponse)]
enum SessionResponse {
    /// Logged in.
    #[oai(status = 200)]
    Ok(Json<TokenResponse>, #[oai(header = "Cache-Control")] String),
}

/// A ticket.
#[derive(ApiResponse)]
enum TicketMade {
    /// Made.
    #[oai(status = 200)]
    Ok(Json<TicketResponse>, #[oai(header = "Cache-Control")] String),
}

/// The caller.
#[derive(ApiResponse)]
enum MeResponse {
    /// The caller's account.
    #[oai(status = 200)]
    Ok(Json<Me>, #[oai(header = "Cache-Control")] String),
}

/// Nothing to say.
#[derive(ApiResponse)]
enum DoneResponse {
    /// Done.
    #[oai(status = 204)]
    Done,
}

/// Answer to everybody who asks for a link.
#[derive(ApiResponse)]
enum AcceptedResponse {
    /// If the address is somebody's, a link is on its way.
    #[oai(status = 202)]
    Accepted(Json<Accepted>),
}

#[OpenApi]
impl AuthApi {
    /// Register and log in
    #[oai(path = "/auth/register", method = "post", operation_id = "auth.register")]
    async fn register(
        &self,
        request: &Request,
        body: Input<RegisterRequest, true>,
    ) -> poem::Result<RegisterResponse> {
        let RegisterRequest { username, email, password } = body.0;
        let asked = Registration { username, email, password };
        let session = self.accounts.register(asked, channel(request.headers())).await?;
        Ok(RegisterResponse::Created(Json(session.into()), no_store()))
    }

    /// Log in with a password
    #[oai(path = "/auth/login", method = "post", operation_id = "auth.login")]
    async fn login(&self, request: &Request, body: Input<LoginRequest>) -> poem::Result<SessionResponse> {
        let LoginRequest { username, password, tenant_id } = body.0;
        let asked = Credentials { username, password, tenant_id };
        let session = self.accounts.login(asked, channel(request.headers())).await?;
        Ok(SessionResponse::Ok(Json(session.into()), no_store()))
    }

    /// Exchange a refresh token for new tokens
    #[oai(path = "/auth/refresh", method = "post", operation_id = "auth.refresh")]
    async fn refresh(&self, body: Input<RefreshRequest>) -> poem::Result<SessionResponse> {
        let session = self.accounts.refresh(&body.0.refresh_token).await?;
        Ok(SessionResponse::Ok(Json(session.into()), no_store()))
    }

    /// End this session
    #[oai(path = "/auth/logout", method = "post", operation_id = "auth.logout")]
    async fn logout(&self, request: &Request, body: Input<LogoutRequest>) -> poem::Result<DoneResponse> {
        let identity = Exchange::of(request).identity();
        self.accounts.logout(identity.map(Arc::as_ref), Some(&body.0.refresh_token)).await?;
        Ok(DoneResponse::Done)
    }

    /// The caller's own account
    #[oai(path = "/auth/me", method = "get", operation_id = "auth.me")]
    async fn me(&self, request: &Request) -> poem::Result<MeResponse> {
        let user = self.accounts.me(caller(request)?).await?;
        Ok(MeResponse::Ok(Json(user.into()), no_store()))
    }

    /// Delete the caller's account with all that belongs to it; ends every session
    #[oai(path = "/auth/me", method = "delete", operation_id = "auth.delete")]
    async fn delete(
        &self,
        request: &Request,
        body: Optional<DeleteAccountRequest>,
    ) -> poem::Result<DoneResponse> {
        let password = body.0.and_then(|body| body.password);
        self.accounts.delete_own(caller(request)?, password).await?;
        Ok(DoneResponse::Done)
    }

    /// Change the caller's password; ends every session
    #[oai(path = "/auth/password/change", method = "post", operation_id = "auth.password_change")]
    async fn password_change(
        &self,
        request: &Request,
        body: Input<PasswordChangeRequest>,
    ) -> poem::Result<DoneResponse> {
        let PasswordChangeRequest { old_password, new_password } = body.0;
        self.accounts.change_password(caller(request)?, old_password, new_password).await?;
        Ok(DoneResponse::Done)
    }

    /// Ask for a link to a new password by e-mail
    #[oai(path = "/auth/password/forgot", method = "post", operation_id = "auth.password_forgot")]
    async fn password_forgot(&self, body: Input<PasswordForgotRequest>) -> poem::Result<AcceptedResponse> {
        let PasswordForgotRequest { email, tenant_id } = body.0;
        self.accounts.forgot_password(email, tenant_id)?;
        Ok(AcceptedResponse::Accepted(Json(Accepted { status: "accepted".to_owned() })))
    }

    /// Set a new password by a link; ends every session
    #[oai(path = "/auth/password/reset", method = "post", operation_id = "auth.password_reset")]
    async fn password_reset(&self, body: Input<PasswordResetRequest>) -> poem::Result<DoneResponse> {
        let PasswordResetRequest { token, password } = body.0;
        self.accounts.reset_password(&token, password).await?;
        Ok(DoneResponse::Done)
    }

    /// Ask for a ticket that opens one WebSocket
    #[oai(path = "/auth/ws-ticket", method = "post", operation_id = "auth.ticket")]
    async fn ticket(&self, request: &Request) -> poem::Result<TicketMade> {
        // Whoever was let in, by whatever proof: tokens of other issuers cannot be put into a header either.
        let identity = Exchange::of(request).identity().ok_or(GatewayError::from(Kind::NoToken))?;
        let made = self.tokens.issue_ticket(identity).await.map_err(no_ticket)?;
        let made = TicketResponse { ticket: made.ticket, expires_in: made.expires_in.as_secs() as i64 };
        Ok(TicketMade::Ok(Json(made), no_store()))
    }

    /// Log in with WeChat
    #[oai(path = "/auth/wechat/login", method = "post", operation_id = "auth.wechat_login")]
    async fn wechat_login(&self, body: Input<WechatLoginRequest>) -> poem::Result<SessionResponse> {
        let WechatLoginRequest { code, user_info: _, tenant_id } = body.0;
        let session = self.accounts.wechat_login(&code, tenant_id.as_deref()).await?;
        Ok(SessionResponse::Ok(Json(session.into()), no_store()))
    }
}

fn no_ticket(error: TicketError) -> GatewayError {
    tracing::warn!(%error, "a ticket could not be made");
    Kind::StoreUnavailable.into()
}

/// The front end that tokens are made for: `X-Channel` where it names one, else `web`.
fn channel(headers: &HeaderMap) -> &'static str {
    let named = headers.get("x-channel").and_then(|value| value.to_str().ok());
    CHANNELS.iter().find(|known| named == Some(known)).copied().unwrap_or("web")
}

/// The caller, who must be a user of this gateway with a token of its own.
pub(super) fn caller(request: &Request) -> Result<&Identity, GatewayError> {
    match Exchange::of(request).identity() {
        Some(identity) if identity.proof == Proof::Token => Ok(identity),
        Some(_) => Err(GatewayError::new(Kind::Forbidden, "this call is for users who logged in here")),
        None => Err(Kind::NoToken.into()),
    }
}

/// Answers with tokens or personal data are nobody's to keep (RFC 6749, section 5.1).
pub(super) fn no_store() -> String {
    "no-store".to_owned()
}

impl From<Session> for TokenResponse {
    fn from(session: Session) -> Self {
        let User { id, username, email, .. } = session.user;
        TokenResponse {
            access_token: session.access_token,
            refresh_token: session.refresh_token,
            expires_in: session.expires_in.as_secs() as i64,
            user: UserInfo { id, username, email: email.unwrap_or_default() },
        }
    }
}

impl From<User> for Me {
    fn from(user: User) -> Self {
        Me {
            id: user.id,
            username: user.username,
            email: user.email.unwrap_or_default(),
            tenant_id: user.tenant_id,
            role: user.role,
            created_at: timestamp(user.created_at),
            last_login_at: user.last_login_at.map(timestamp),
        }
    }
}

fn timestamp(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map(|at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
