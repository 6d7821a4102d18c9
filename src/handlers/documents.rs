//! `gateway.openapi`: the API's own description, of the revision that serves now.

use crate::error::{FieldFault, GatewayError, Kind};
use crate::exchange::Exchange;
use crate::openapi::Rendering;
use crate::state::Shared;
use bytes::Bytes;
use http::header::IF_NONE_MATCH;
use poem::Request;
use poem_openapi::param::Query;
use poem_openapi::payload::Binary;
use poem_openapi::registry::{MetaSchemaRef, Registry};
use poem_openapi::types::{ParseFromParameter, ParseResult, Type};
use poem_openapi::{ApiResponse, Enum, OpenApi};
use std::borrow::Cow;
use std::sync::Arc;
use url::form_urlencoded;

/// Name of the document where the route has no `:document`.
const ALL: &str = "all.json";
/// Callers keep it and ask whether it is still the one (RFC 9111, section 5.2.2.4).
const CACHE: &str = "no-cache";

/// The group.
pub struct DocumentsApi {
    shared: Arc<Shared>,
}

impl DocumentsApi {
    /// For a process.
    pub fn new(shared: Arc<Shared>) -> Self {
        DocumentsApi { shared }
    }
}

// Only for the description: what callers write is read by `newer`, which says what may stand there.
/// A version of OpenAPI.
#[derive(Enum)]
enum SpecVersion {
    /// OpenAPI 3.1.
    #[oai(rename = "3.1")]
    Old,
    /// OpenAPI 3.2: events of streams are described one by one (`itemSchema`).
    #[oai(rename = "3.2")]
    New,
}

/// A parameter that is described, and read elsewhere.
struct Elsewhere;

impl Type for Elsewhere {
    const IS_REQUIRED: bool = true;
    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        SpecVersion::name()
    }

    fn schema_ref() -> MetaSchemaRef {
        SpecVersion::schema_ref()
    }

    fn register(registry: &mut Registry) {
        SpecVersion::register(registry);
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
        Box::new(std::iter::once(self))
    }
}

impl ParseFromParameter for Elsewhere {
    fn parse_from_parameter(_: &str) -> ParseResult<Self> {
        Ok(Elsewhere)
    }
}

/// Whether a query asks for OpenAPI 3.2 (`version=3.2`).
///
/// # Errors
/// 400 if it names another version than the two that there are.
pub(super) fn newer(query: Option<&str>) -> Result<bool, GatewayError> {
    let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    match pairs.find(|(name, _)| name == "version").as_ref().map(|(_, version)| &**version) {
        None | Some("3.1") => Ok(false),
        Some("3.2") => Ok(true),
        Some(_) => {
            let fault = FieldFault::new("", "enum", "must be 3.1 or 3.2", "必须为 3.1 或 3.2");
            Err(GatewayError::invalid(vec![fault.of_parameter("query.version")]))
        }
    }
}

/// A document.
#[derive(ApiResponse)]
enum DocumentResponse {
    /// The document.
    #[oai(status = 200, content_type = "application/json")]
    Json(Binary<Bytes>, #[oai(header = "ETag")] String, #[oai(header = "Cache-Control")] String),
    /// The document.
    #[oai(status = 200, content_type = "application/yaml")]
    Yaml(Binary<Bytes>, #[oai(header = "ETag")] String, #[oai(header = "Cache-Control")] String),
    /// It is the one that `If-None-Match` names.
    #[oai(status = 304)]
    Same(#[oai(header = "ETag")] String, #[oai(header = "Cache-Control")] String),
}

#[OpenApi]
impl DocumentsApi {
    /// This description: OpenAPI, and AsyncAPI for WebSockets
    ///
    /// Made from the manifest that serves now. `all.json` is everything, `NAME.json` one version (such as `v01.json`),
    /// `asyncapi.json` what is said over WebSockets; each also as `.yaml`.
    #[oai(path = "/gateway/openapi", method = "get", operation_id = "gateway.openapi")]
    async fn document(
        &self,
        request: &Request,
        /// Version of OpenAPI, `3.1` where nothing is said.
        #[oai(name = "version")]
        _version: Query<Option<Elsewhere>>,
    ) -> poem::Result<DocumentResponse> {
        let name = Exchange::of(request).param("document").unwrap_or(ALL);
        let published = self.shared.documents.load();
        let newer = newer(request.uri().query())?;
        let rendering = published.as_ref().and_then(|published| published.get(name, newer));
        let Some(Rendering { body, etag }) = rendering else {
            return Err(GatewayError::from(Kind::NotFound).into());
        };
        let known = request.headers().get_all(IF_NONE_MATCH).iter().any(|value| {
            value.to_str().is_ok_and(|value| {
                value.split(',').map(str::trim).any(|tag| tag == "*" || tag.trim_start_matches("W/") == etag)
            })
        });
        let (etag, cache) = (etag.clone(), CACHE.to_owned());
        Ok(match name.ends_with(".yaml") {
            _ if known => DocumentResponse::Same(etag, cache),
            true => DocumentResponse::Yaml(Binary(body.clone()), etag, cache),
            false => DocumentResponse::Json(Binary(body.clone()), etag, cache),
        })
    }
}
