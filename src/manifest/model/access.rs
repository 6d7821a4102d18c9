//! Who may call, and how often: `auth`, `roles`, `rate_limits`, `cors`.

use crate::manifest::{List, Spanned, Table};
use crate::units::{Dur, DurOrZero};
use schemars::JsonSchema;
use serde::Deserialize;

/// Tokens, passwords, lockout and other issuers.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// `iss` of the tokens this gateway signs (default `voicehelper-api`).
    pub issuer: Option<Spanned<String>>,
    /// Lifetime of an access token (default `24h`).
    pub access_ttl: Option<Spanned<Dur>>,
    /// Lifetime of a refresh token (default `7d`).
    pub refresh_ttl: Option<Spanned<Dur>>,
    /// For so long a used refresh token is taken again, so that tabs that refresh together all succeed; beyond it, its family ends (default `0s`: at once).
    pub refresh_grace: Option<Spanned<DurOrZero>>,
    /// An access token with less than this left is renewed by `X-New-Token` (default `1h`).
    pub renew_within: Option<Spanned<Dur>>,
    /// How long a ticket for a WebSocket can be used (default `30s`; an hour at most).
    pub ticket_ttl: Option<Spanned<Dur>>,
    /// Where a token may stand, in order of preference (default all three).
    #[serde(default)]
    pub token_from: List<TokenSource>,
    /// When an account is locked after failed logins (default: 5 in 15 minutes, for 15 minutes).
    pub lockout: Option<Lockout>,
    /// What a password must have (default: 8 characters with lower, upper and digit).
    pub password: Option<PasswordRules>,
    /// Other issuers whose tokens are accepted.
    #[serde(default)]
    pub providers: List<Provider>,
}

/// Where a token may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenSource {
    /// `Authorization: Bearer`; where a WebSocket is opened also `bearer.<token>` in `Sec-WebSocket-Protocol`.
    Header,
    /// `?token=`.
    Query,
    /// Cookie `access_token` or `token`.
    Cookie,
}

/// When an account is locked after failed logins.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lockout {
    /// Failures that lock.
    pub failures: Spanned<u32>,
    /// They count this long.
    pub window: Dur,
    /// The lock lasts this long.
    pub lock_for: Dur,
}

/// What a password must have.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PasswordRules {
    /// bcrypt's cost (default 10).
    pub bcrypt_cost: Option<Spanned<u32>>,
    /// Characters at least (default 8).
    pub min_length: Option<Spanned<u32>>,
    /// Classes of characters it needs (default lower, upper and digit).
    #[serde(default)]
    pub require: List<CharacterClass>,
}

/// A class of characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CharacterClass {
    /// a–z.
    Lower,
    /// A–Z.
    Upper,
    /// 0–9.
    Digit,
    /// Anything else.
    Symbol,
}

/// Another issuer whose tokens are accepted, verified by its JWKS.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// Its `iss`.
    pub issuer: Spanned<String>,
    /// Address of its key set.
    pub jwks: Spanned<String>,
    /// `aud` its tokens must carry.
    pub audience: Option<String>,
    /// Claims of ours, as paths into its tokens.
    #[serde(default)]
    pub claims: Table<Spanned<String>>,
}

/// A rate-limit policy: a sliding window.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Requests allowed in a window.
    pub limit: Spanned<u64>,
    /// Length of the window; a day at most.
    pub per: Spanned<Dur>,
    /// What makes callers different: `ip`, `user`, `tenant`, `route`, `header.X`, `query.X`, `body.X` (default `ip`).
    #[serde(default)]
    pub by: List<String>,
}

/// A role and what it may do.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// A role whose permissions this one has too.
    pub inherits: Option<Spanned<String>>,
    /// Permissions `resource:action`; `*` stands for any.
    #[serde(default)]
    pub allow: List<String>,
}

/// A CORS policy (Fetch standard, section 3.2). Origins are an exact list.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cors {
    /// Origins that may call, exactly as a browser sends them (`https://app.example.com`); `*` alone for any, which forbids credentials.
    #[serde(default)]
    pub origins: List<String>,
    /// Methods that may be used (default: those the path serves).
    #[serde(default)]
    pub methods: List<String>,
    /// Request headers that may be sent (default `Authorization`, `Content-Type`, `X-Request-ID`, `Idempotency-Key`, `Last-Event-ID`).
    #[serde(default)]
    pub headers: List<String>,
    /// Response headers that scripts may read.
    #[serde(default)]
    pub expose: List<String>,
    /// Whether cookies and `Authorization` may be sent.
    #[serde(default)]
    pub credentials: bool,
    /// How long a browser may remember a preflight answer (default `10m`).
    pub max_age: Option<Dur>,
}
