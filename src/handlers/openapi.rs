//! `gateway.openapi`: the documents of this API, for programs.

use crate::error::{GatewayError, Kind};
use crate::exchange::Exchange;
use crate::state::Shared;
use http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, HeaderValue, StatusCode};
use poem::{Body, IntoResponse, Request, Response};
use poem_openapi::payload::Payload;
use poem_openapi::registry::{MetaSchema, MetaSchemaRef};
use poem_openapi::{ApiResponse, OpenApi};
use std::sync::Arc;

/// The group.
pub(super) struct OpenApiApi {
    shared: Arc<Shared>,
}

impl OpenApiApi {
    /// For a process.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        OpenApiApi { shared }
    }
}

/// Answers of `gateway.openapi`.
#[derive(ApiResponse)]
enum DocumentResponse {
    /// The document.
    #[oai(status = 200)]
    Document(DocumentPayload),
    /// The caller's copy is current.
    #[oai(status = 304)]
    Known(DocumentPayload),
}

/// A document, as JSON or YAML.
struct DocumentPayload(Response);

impl Payload for DocumentPayload {
    const CONTENT_TYPE: &'static str = "application/json";

    fn schema_ref() -> MetaSchemaRef {
        MetaSchemaRef::Inline(Box::new(MetaSchema::new("object")))
    }
}

impl IntoResponse for DocumentPayload {
    fn into_response(self) -> Response {
        self.0
    }
}

#[OpenApi]
impl OpenApiApi {
    /// The OpenAPI document of this API, of all versions (`all.json`) or of one (`v01.json`, `v01.yaml`)
    #[oai(path = "/gateway/openapi", method = "get", operation_id = "gateway.openapi")]
    async fn document(&self, request: &Request) -> poem::Result<DocumentResponse> {
        let exchange = Exchange::of(request);
        let name = exchange.param_nth(0).unwrap_or("all.json");
        let response = document(&self.shared, name, request.headers())?;
        Ok(match response.status() {
            StatusCode::NOT_MODIFIED => DocumentResponse::Known(DocumentPayload(response)),
            _ => DocumentResponse::Document(DocumentPayload(response)),
        })
    }
}

/// A document of the manifest that serves, or that the caller has it already.
///
/// # Errors
/// 404 if there is none of this name.
pub(super) fn document(shared: &Shared, name: &str, headers: &HeaderMap) -> Result<Response, GatewayError> {
    let documents = shared.documents.load();
    let document = documents.get(name).ok_or(GatewayError::from(Kind::NotFound))?;
    let known = headers.get(IF_NONE_MATCH).and_then(|known| known.to_str().ok());
    let etag = document.etag.to_str().unwrap_or_default();
    let known =
        known.is_some_and(|list| list.split(',').any(|one| one.trim().trim_start_matches("W/") == etag));
    let mut response = match known {
        true => Response::builder().status(StatusCode::NOT_MODIFIED).finish(),
        false => {
            Response::builder().content_type(document.media_type).body(Body::from(document.body.clone()))
        }
    };
    let headers = response.headers_mut();
    headers.insert(ETAG, document.etag.clone());
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    Ok(response)
}
