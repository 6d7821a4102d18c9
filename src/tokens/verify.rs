//! Is this token what it claims to be? The one place that decides (SECURITY rule 6, RFC 8725).
//!
//! The header's `alg` only chooses *which* keys are tried, never how: HS256 means our secrets and nothing else,
//! asymmetric ones mean the key set of the provider that `iss` names, where each key is pinned to its algorithms. `none`
//! is no algorithm here. Keys that a token brings along (`jwk`, `jku`, `x5c`, `x5u`) and extensions (`crit`) refuse it.

use super::TokenError;
use super::claims::{Claims, LEAST_ROLE, hashed_id, in_time, seconds, sendable};
use super::jwks::{KeySet, KeySets};
use super::keys::Keys;
use super::policy::{AuthPolicy, Claim, ProviderPolicy};
use crate::identity::{Identity, Proof};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation, decode, decode_header};
use serde_json::Value;
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

/// Longer texts are not looked at.
const LONGEST: usize = 8 * 1024;

/// Why a token does not count.
pub(super) enum Failure {
    Token(TokenError),
    /// Its provider may have a new key by now.
    UnknownKey(Arc<KeySet>),
}

impl From<TokenError> for Failure {
    fn from(error: TokenError) -> Self {
        Failure::Token(error)
    }
}

const INVALID: Failure = Failure::Token(TokenError::Invalid);

/// Only the signature: claims are checked here, by the given clock.
pub(super) fn signature_only(algorithms: &[Algorithm]) -> Validation {
    let mut validation = Validation::new(Algorithm::HS256);
    validation.algorithms = algorithms.to_vec();
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation
}

static OURS: LazyLock<Validation> = LazyLock::new(|| signature_only(&[Algorithm::HS256]));

/// The caller, if the token is good now; revocations are not asked.
pub(super) fn verify(
    keys: &Keys,
    sets: &KeySets,
    policy: &AuthPolicy,
    token: &str,
    hash: u128,
    now: SystemTime,
) -> Result<Identity, Failure> {
    if token.len() > LONGEST {
        return Err(INVALID);
    }
    let header = decode_header(token).map_err(|_| INVALID)?;
    if !plain(&header) {
        return Err(INVALID);
    }
    match header.alg {
        Algorithm::HS256 => Ok(ours(keys.candidates(), policy, token, hash, now)?),
        Algorithm::HS384 | Algorithm::HS512 => Err(INVALID),
        _ => theirs(sets, policy, &header, token, hash, now),
    }
}

/// Nothing in it asks to be trusted or understood.
fn plain(header: &Header) -> bool {
    let brings = header.jku.is_some()
        || header.jwk.is_some()
        || header.x5u.is_some()
        || header.x5c.is_some()
        || header.crit.is_some()
        || header.enc.is_some()
        || header.zip.is_some();
    let typ = header.typ.as_deref();
    !brings && typ.is_none_or(|typ| ["jwt", "at+jwt"].iter().any(|known| typ.eq_ignore_ascii_case(known)))
}

fn ours(
    candidates: &[DecodingKey],
    policy: &AuthPolicy,
    token: &str,
    hash: u128,
    now: SystemTime,
) -> Result<Identity, TokenError> {
    for key in candidates {
        let claims = match decode::<Claims>(token, key, &OURS) {
            Ok(data) => data.claims,
            Err(error) if matches!(error.kind(), ErrorKind::InvalidSignature) => continue,
            Err(_) => return Err(TokenError::Invalid),
        };
        if claims.iss != policy.issuer {
            return Err(TokenError::Invalid);
        }
        let time = in_time(claims.exp, claims.nbf, now);
        let identity = claims.identity(hash)?;
        return time.map(|()| identity);
    }
    Err(TokenError::Invalid)
}

fn theirs(
    sets: &KeySets,
    policy: &AuthPolicy,
    header: &Header,
    token: &str,
    hash: u128,
    now: SystemTime,
) -> Result<Identity, Failure> {
    if policy.providers.is_empty() {
        return Err(INVALID);
    }
    // Who it says it is from only chooses the keys that must have signed it.
    let said: Value = jsonwebtoken::dangerous::insecure_decode(token).map_err(|_| INVALID)?.claims;
    let issuer = said.get("iss").and_then(Value::as_str).ok_or(INVALID)?;
    let provider = policy.providers.iter().find(|provider| provider.issuer == issuer).ok_or(INVALID)?;
    let set = sets.of(&provider.jwks).ok_or(INVALID)?;
    let keys = set.keys();
    let Some(key) = keys.choose(header.kid.as_deref(), header.alg) else {
        return Err(Failure::UnknownKey(set));
    };
    let claims: Value = decode(token, &key.key, &key.validation).map_err(|_| INVALID)?.claims;
    Ok(provided(provider, &claims, hash, now)?)
}

/// The caller that a provider's claims, whose signature is good, tell of.
fn provided(
    provider: &ProviderPolicy,
    claims: &Value,
    hash: u128,
    now: SystemTime,
) -> Result<Identity, TokenError> {
    let number = |name: &str| match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or(TokenError::Invalid),
    };
    if claims.get("iss").and_then(Value::as_str) != Some(&provider.issuer) {
        return Err(TokenError::Invalid);
    }
    let exp = number("exp")?.ok_or(TokenError::Invalid)?;
    in_time(exp, number("nbf")?, now)?;
    // Identity and refresh tokens of providers that say so (Cognito, Keycloak).
    let says = |name: &str, wanted: &str| {
        claims.get(name).is_none_or(|value| value.as_str().is_some_and(|v| v.eq_ignore_ascii_case(wanted)))
    };
    if !says("token_use", "access") || !says("typ", "bearer") {
        return Err(TokenError::Invalid);
    }
    let meant = match (claims.get("aud"), &provider.audience) {
        (None, None) => true,
        (Some(Value::String(one)), Some(wanted)) => one == wanted,
        (Some(Value::Array(all)), Some(wanted)) => all.iter().any(|one| one.as_str() == Some(wanted)),
        // RFC 7519, section 4.1.3: for somebody, and nobody said that it is us.
        _ => false,
    };
    if !meant {
        return Err(TokenError::Invalid);
    }
    let mapped = |wanted: Claim| {
        let path = provider.claims.iter().find(|(claim, _)| *claim == wanted)?;
        path.1.find(claims)
    };
    let text = |wanted: Claim| mapped(wanted).and_then(Value::as_str).filter(|text| !text.is_empty());
    let subject = claims.get("sub").and_then(Value::as_str).filter(|sub| !sub.is_empty());
    let subject = subject.ok_or(TokenError::Invalid)?;
    let maps_user = provider.claims.iter().any(|(claim, _)| *claim == Claim::User);
    let user_id = if maps_user { text(Claim::User).ok_or(TokenError::Invalid)? } else { subject };
    sendable(Identity {
        user_id: user_id.into(),
        tenant_id: text(Claim::Tenant).unwrap_or_default().into(),
        role: text(Claim::Role).unwrap_or(LEAST_ROLE).into(),
        scopes: match mapped(Claim::Scopes) {
            Some(Value::String(words)) => words.split_ascii_whitespace().map(str::to_owned).collect(),
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => Vec::new(),
        },
        channel: text(Claim::Channel).map(str::to_owned),
        openid: text(Claim::Openid).map(str::to_owned),
        // Their ids are not ours: two issuers may use the same one.
        token_id: Some(hashed_id(hash)),
        issued_at: number("iat")?.map(seconds),
        expires_at: Some(seconds(exp)),
        proof: Proof::Provider,
    })
}
