//! `tenant`: confines the call to the caller's tenant.
//!
//! The tenant is what the caller's token or key says. A request that names another, by `X-Tenant-ID` or by the path
//! parameter `:tenant_id`, is refused with 403 `tenant_mismatch`; naming the same one is fine and without effect.
//! Upstreams learn the tenant from the identity alone. Which rows a native operation sees is decided by the same
//! identity, where it asks the store.

use super::{Body, BuildCx, Hook, Layer, Stage, StageCx, StageDecl, Stop};
use crate::error::Kind;
use crate::exchange::Exchange;
use crate::openapi::OperationDoc;
use http::HeaderName;
use poem::Request;
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;

/// Confines the call to the caller's tenant.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tenant {}

static X_TENANT_ID: HeaderName = HeaderName::from_static("x-tenant-id");
const PARAMETER: &str = "tenant_id";

impl StageDecl for Tenant {
    const NAME: &'static str = "tenant";
    const ABOUT: &'static str = "Confines the call to the caller's tenant";
    const BODY: Body = Body::Optional;

    fn check(self, _: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        Some(Arc::new(self))
    }
}

impl Stage for Tenant {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn document(&self, op: &mut OperationDoc) {
        op.refuses(&[Kind::TenantMismatch], "`X-Tenant-ID` or `tenant_id` names another");
    }

    fn layer(&self, cx: &BuildCx<'_>) -> Layer {
        Layer::Hook(Box::new(Confined {
            parameter: cx.route.params.iter().position(|name| name == PARAMETER),
        }))
    }
}

struct Confined {
    /// Which path parameter names a tenant.
    parameter: Option<usize>,
}

impl Hook for Confined {
    fn request(&self, exchange: &Arc<Exchange>, request: &mut Request) -> Result<(), Stop> {
        let Some(caller) = exchange.identity() else { return Err(Stop::Error(Kind::NoToken.into())) };
        let theirs = caller.tenant_id.as_bytes();
        let in_headers =
            request.headers().get_all(&X_TENANT_ID).iter().all(|named| named.as_bytes() == theirs);
        let in_path = self.parameter.is_none_or(|index| {
            exchange.param_nth(index).is_some_and(|named| decoded(named).eq(theirs.iter().copied()))
        });
        match in_headers && in_path {
            true => Ok(()),
            false => Err(Stop::Error(Kind::TenantMismatch.into())),
        }
    }
}

/// A segment of a normalised path, its escapes undone.
fn decoded(segment: &str) -> impl Iterator<Item = u8> {
    let bytes = segment.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        let byte = *bytes.get(at)?;
        let escape = (byte == b'%').then(|| segment.get(at + 1..at + 3)).flatten();
        let value = escape.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        at += if value.is_some() { 3 } else { 1 };
        Some(value.unwrap_or(byte))
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{answering, check, code, fold_around, request_as, send};
    use super::*;
    use crate::state::tests::shared;
    use crate::tokens::testing::identity;
    use http::Method;
    use poem::Response;

    async fn asked(headers: &[(&str, &str)]) -> String {
        let (shared, _close) = shared(&[]);
        let next = fold_around(&check("tenant", "").sound(), &shared, answering(Response::default));
        let response = send(&next, request_as(Method::GET, headers, identity("u", "acme", "user"))).await;
        match response.status().as_u16() {
            200 => "passes".to_owned(),
            _ => code(response).await,
        }
    }

    #[tokio::test]
    async fn another_tenant_is_refused() {
        assert_eq!(asked(&[]).await, "passes");
        assert_eq!(asked(&[("x-tenant-id", "acme")]).await, "passes");
        assert_eq!(asked(&[("x-tenant-id", "other")]).await, "tenant_mismatch");
        assert_eq!(asked(&[("x-tenant-id", "acme"), ("x-tenant-id", "other")]).await, "tenant_mismatch");
        assert_eq!(asked(&[("x-tenant-id", "")]).await, "tenant_mismatch");
    }

    #[test]
    fn escapes_name_the_same_tenant() {
        let text = |segment| String::from_utf8(decoded(segment).collect()).unwrap();
        assert_eq!(text("a%20b"), "a b");
        assert_eq!(text("acme"), "acme");
        assert_eq!(text("a%2"), "a%2");
    }
}
