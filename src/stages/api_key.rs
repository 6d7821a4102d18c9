//! `api_key`: takes an API key instead of a token.
//!
//! The key comes in `X-API-Key`, or in the header that `header:` names, and is looked up by its SHA-256; the key
//! itself is never kept. Its permissions are the caller's scopes, and all that `rbac` goes by. No key, an unknown one, one
//! that is over or taken back: 401 `invalid_api_key`. What was looked up is remembered for a second, so that a key
//! taken back stops within that time; while the database is away, keys that are not remembered get 503.
//!
//! With `optional: true` callers without a key go on, to `auth` further in: so one route takes either. Who brings both is
//! known by the key; a bad key is refused, and not made up for by a good token.
//!
//! The header is taken off the request: upstreams learn who calls, not by which key.

use super::{Body, BuildCx, Facts, Layer, Next, Probe, Stage, StageCx, StageDecl, Verdict, sealed};
use crate::diag::{Code, Diagnostic};
use crate::error::Kind;
use crate::exchange::Exchange;
use crate::identity::{Identity, Proof};
use crate::manifest::Spanned;
use crate::openapi::{Alternative, OperationDoc};
use crate::state::Shared;
use crate::stores::{ApiKey as Row, StoreError};
use crate::tokens::cache::Cache;
use http::HeaderName;
use poem::{Endpoint, Request, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Takes an API key instead of a token.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// Header that carries the key (default `X-API-Key`).
    pub header: Option<Spanned<String>>,
    /// Whether callers without a key go on, to be asked for a token by `auth` behind it (default false).
    #[serde(default)]
    pub optional: bool,
}

/// How long a key is good after it was taken back.
const REMEMBERED: Duration = Duration::from_secs(1);
/// Keys that one route remembers.
const CAPACITY: usize = 256;
/// Longer texts are not looked up.
const LONGEST: usize = 512;
static X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

impl StageDecl for ApiKey {
    const NAME: &'static str = "api_key";
    const ABOUT: &'static str = "Takes an API key instead of a token";
    const BODY: Body = Body::Optional;

    fn check(self, cx: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        let header = match &self.header {
            None => X_API_KEY.clone(),
            Some(name) => match name.parse() {
                Ok(header) => header,
                Err(_) => {
                    cx.out.push(
                        Diagnostic::error(Code::BAD_VALUE, name.span, "this is not a header name")
                            .help("a header name is letters, digits and hyphens"),
                    );
                    return None;
                }
            },
        };
        Some(Arc::new(Checked { header, optional: self.optional }))
    }
}

struct Checked {
    header: HeaderName,
    optional: bool,
}

impl Checked {
    /// What the way is called in the description: each header is one of its own.
    fn scheme(&self) -> Cow<'static, str> {
        if self.header == X_API_KEY {
            return "api_key".into();
        }
        let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        format!("api_key_{}", self.header.as_str().chars().map(word).collect::<String>()).into()
    }
}

impl Stage for Checked {
    fn name(&self) -> &'static str {
        ApiKey::NAME
    }

    fn layer(&self, cx: &BuildCx<'_>) -> Layer {
        let (header, optional) = (self.header.clone(), self.optional);
        let shared = cx.shared.clone();
        Layer::Around(Box::new(move |next| {
            sealed(Gate { header, optional, shared, known: Cache::new(CAPACITY), next })
        }))
    }

    fn facts(&self) -> Facts {
        Facts { lets_strangers_pass: self.optional, ..Facts::default() }
    }

    fn document(&self, op: &mut OperationDoc) {
        let scheme = serde_json::json!({ "type": "apiKey", "in": "header", "name": self.header.as_str() });
        let mut ways = vec![Alternative { name: self.scheme(), scheme: Some(scheme) }];
        if self.optional {
            ways.push(Alternative { name: "".into(), scheme: None });
        }
        op.requires(ways);
        op.refuses(&[Kind::InvalidApiKey, Kind::StoreUnavailable], "");
    }

    fn explain(&self, probe: &Probe<'_>) -> Verdict {
        match probe.headers.contains_key(&self.header) {
            true => Verdict::Passes("if the key is good".to_owned()),
            false if self.optional => {
                Verdict::Passes("no key: who calls is for others to find out".to_owned())
            }
            false => Verdict::Refuses(401, format!("no `{}`", self.header)),
        }
    }
}

struct Gate {
    header: HeaderName,
    optional: bool,
    shared: Arc<Shared>,
    known: Cache<Arc<Identity>>,
    next: Next,
}

impl Endpoint for Gate {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let exchange = Exchange::of(&request).clone();
        let key = request.headers_mut().remove(&self.header);
        if key.is_none() && self.optional {
            return self.next.call(request).await;
        }
        let key = key.filter(|key| !key.is_empty() && key.len() <= LONGEST).ok_or_else(refused)?;
        let hash: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        exchange.identified(self.caller(&hash, exchange.at).await?);
        self.next.call(request).await
    }
}

fn refused() -> poem::Error {
    crate::error::GatewayError::from(Kind::InvalidApiKey).into()
}

impl Gate {
    async fn caller(&self, hash: &[u8; 32], now: SystemTime) -> poem::Result<Arc<Identity>> {
        let mut half = [0; 16];
        half.copy_from_slice(&hash[..16]);
        let half = u128::from_le_bytes(half);
        if let Some(known) = self.known.get(half, now) {
            return Ok(known);
        }
        let row = match self.shared.store.api_key(hash, now).await {
            Ok(row) => row,
            Err(StoreError::NotFound) => return Err(refused()),
            Err(error) => {
                tracing::warn!(%error, "an API key cannot be looked up");
                return Err(crate::error::GatewayError::from(Kind::StoreUnavailable).into());
            }
        };
        let over = row.expires_at.is_some_and(|end| end <= now);
        if row.revoked || over {
            return Err(refused());
        }
        let until = row.expires_at.map_or(now + REMEMBERED, |end| end.min(now + REMEMBERED));
        let caller = Arc::new(identity(row));
        self.known.put(half, until, now, caller.clone());
        Ok(caller)
    }
}

/// Who calls by a key: the key itself, in its tenant, without a role.
fn identity(row: Row) -> Identity {
    Identity {
        user_id: Identity::of_key(&row.id).into(),
        tenant_id: row.tenant_id.into(),
        role: "".into(),
        scopes: row.permissions,
        channel: None,
        openid: None,
        token_id: None,
        issued_at: Some(row.created_at),
        expires_at: row.expires_at,
        proof: Proof::ApiKey,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check, code, exchange_of, fold_around, request, send, target};
    use super::*;
    use crate::state::tests::shared;
    use http::Method;

    fn row(id: &str, expires_at: Option<SystemTime>) -> Row {
        Row {
            id: id.into(),
            name: "a robot".into(),
            tenant_id: "acme".into(),
            created_by: "u".into(),
            permissions: vec!["document:read".into()],
            created_at: SystemTime::UNIX_EPOCH,
            expires_at,
            revoked: false,
        }
    }

    #[tokio::test]
    async fn a_key_is_a_caller_with_its_permissions() {
        let (shared, _close) = shared(&[]);
        let now = SystemTime::now();
        let put = async |key: &str, row: Row| {
            shared.store.create_api_key(row, &Sha256::digest(key).into()).await.unwrap();
        };
        put("good", row("1", None)).await;
        put("over", row("2", Some(now - Duration::from_secs(1)))).await;
        let inner = target(|request| async move {
            assert!(!request.headers().contains_key("x-api-key"), "the key stays here");
            Ok(Response::default())
        });
        let next = fold_around(&check("api_key", "").sound(), &shared, inner);
        for bad in [None, Some(""), Some("unknown"), Some("over")] {
            let headers: Vec<_> = bad.map(|key| ("x-api-key", key)).into_iter().collect();
            let response = send(&next, request(Method::GET, &headers)).await;
            assert_eq!(
                (response.status().as_u16(), code(response).await),
                (401, "invalid_api_key".into()),
                "{bad:?}"
            );
        }
        let good = request(Method::GET, &[("x-api-key", "good")]);
        let exchange = exchange_of(&good);
        assert_eq!(send(&next, good).await.status(), 200);
        let caller = exchange.identity().unwrap();
        assert_eq!((&*caller.user_id, &*caller.tenant_id, &*caller.role), ("key-1", "acme", ""));
        assert_eq!(
            (caller.scopes.as_slice(), caller.proof),
            (&["document:read".to_owned()][..], Proof::ApiKey)
        );
    }

    #[tokio::test]
    async fn an_optional_key_may_be_left_out_and_must_be_good() {
        let (shared, _close) = shared(&[]);
        shared.store.create_api_key(row("1", None), &Sha256::digest("good").into()).await.unwrap();
        let inner = target(|request| async move {
            let known = Exchange::of(&request).identity().is_some();
            Ok(Response::builder().body(known.to_string()))
        });
        let next = fold_around(&check("api_key: { optional: true }", "").sound(), &shared, inner);
        for (key, wanted) in [(None, (200, "false")), (Some("good"), (200, "true"))] {
            let headers: Vec<_> = key.map(|key| ("x-api-key", key)).into_iter().collect();
            let response = send(&next, request(Method::GET, &headers)).await;
            let status = response.status().as_u16();
            assert_eq!((status, &*response.into_body().into_string().await.unwrap()), wanted, "{key:?}");
        }
        for bad in ["", "unknown"] {
            let response = send(&next, request(Method::GET, &[("x-api-key", bad)])).await;
            assert_eq!(code(response).await, "invalid_api_key", "{bad:?}");
        }
    }

    #[test]
    fn the_header_may_have_another_name() {
        assert!(check("api_key: { header: X-Key }", "").stage.is_some());
        assert_eq!(check("api_key: { header: \"a b\" }", "").faults.len(), 1);
    }
}
