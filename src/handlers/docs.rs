//! `gateway.docs`: the documentation in a browser. The reference (Scalar, with Swagger UI as second choice), an answer as
//! it streams, a console for WebSockets, the catalogues of error and diagnostic codes, and what changed between revisions.
//!
//! Everything stands below the route that the manifest gives it, and names its neighbours relative to itself: it works
//! wherever it is put, behind a proxy that takes a prefix away too. Nothing is loaded from elsewhere, and the policy of its
//! pages says so to browsers; what a manifest's descriptions say is text (SECURITY rule 25).

mod assets;
pub mod catalogue;

use crate::error::{GatewayError, Kind};
use crate::exchange::Exchange;
use crate::state::Shared;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, ETAG, IF_NONE_MATCH, REFERRER_POLICY};
use http::header::{X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS};
use http::{HeaderName, HeaderValue, StatusCode};
use poem::{Body, IntoResponse, Request, Response};
use poem_openapi::payload::Payload;
use poem_openapi::registry::{MetaSchema, MetaSchemaRef};
use poem_openapi::{ApiResponse, OpenApi};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::sync::Arc;

/// What pages may do. Scripts are files of ours, and nothing is built from text. Styles may stand inline: Scalar and Swagger
/// UI write `style` attributes and elements of their own, and with no foreign address to load from they can tell nobody
/// anything.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                      font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Only the console of voice uses any of it.
const PERMISSIONS: &str = "camera=(), geolocation=(), payment=(), usb=(), microphone=(self)";

/// The group.
#[derive(Debug)]
pub struct DocsApi {
    shared: Arc<Shared>,
}

impl DocsApi {
    /// For a process.
    pub fn new(shared: Arc<Shared>) -> Self {
        DocsApi { shared }
    }
}

/// Answers of `gateway.docs`.
#[derive(ApiResponse)]
enum DocsResponse {
    /// A page, or a file that one of them needs.
    #[oai(status = 200)]
    Page(Page),
    /// The caller's copy is current.
    #[oai(status = 304)]
    Known(Page),
}

/// Whatever is at an address below the documentation.
struct Page(Response);

impl Payload for Page {
    const CONTENT_TYPE: &'static str = "text/html; charset=utf-8";

    fn schema_ref() -> MetaSchemaRef {
        MetaSchemaRef::Inline(Box::new(MetaSchema::new("string")))
    }
}

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        self.0
    }
}

#[OpenApi]
impl DocsApi {
    /// The documentation of this API, for browsers
    #[oai(path = "/gateway/docs", method = "get", operation_id = "gateway.docs")]
    async fn docs(&self, request: &Request) -> poem::Result<DocsResponse> {
        let exchange = Exchange::of(request);
        let (home, page) = place(exchange);
        if let Some(file) = page.strip_prefix("assets/") {
            let file = assets::serve(file, request.headers());
            return Ok(DocsResponse::Page(Page(file.ok_or(GatewayError::from(Kind::NotFound))?)));
        }
        if let Some(name) = page.strip_prefix("openapi/") {
            let document = Page(document(&self.shared, name, request)?);
            return Ok(match document.0.status() {
                StatusCode::NOT_MODIFIED => DocsResponse::Known(document),
                _ => DocsResponse::Page(document),
            });
        }
        let text: Cow<'static, str> = match page {
            "" => include_str!("../../assets/docs/index.html").into(),
            "swagger" => include_str!("../../assets/docs/swagger.html").into(),
            "errors" => catalogue::errors_page().into(),
            "diagnostics" => catalogue::diagnostics_page().into(),
            "changelog" => catalogue::changelog_page(&self.shared.changelog).into(),
            "changelog.json" => {
                let text = self.shared.changelog.json().to_string();
                let body = Response::builder()
                    .content_type("application/json")
                    .header(CACHE_CONTROL, "no-cache")
                    .body(text);
                return Ok(DocsResponse::Page(Page(body)));
            }
            _ => return Err(GatewayError::from(Kind::NotFound).into()),
        };
        // From `/docs` its neighbours are `docs/…`, from `/docs/errors` they are at its side.
        let last = home.rsplit('/').next().unwrap_or_default();
        let base = if page.is_empty() { format!("{last}/") } else { String::new() };
        let text = text
            .replace("{base}", &catalogue::escape(&base))
            .replace("{reference}", &catalogue::escape(&format!("../{last}")))
            .replace("{home}", &catalogue::escape(home))
            .replace("{revision}", &assets::REVISION);
        let page = Page(html(text, request));
        Ok(match page.0.status() {
            StatusCode::NOT_MODIFIED => DocsResponse::Known(page),
            _ => DocsResponse::Page(page),
        })
    }
}

/// Where the documentation stands in this gateway, and which of its pages is asked for.
fn place(exchange: &Exchange) -> (&str, &str) {
    let path = exchange.path.trim_end_matches('/');
    let beneath = exchange.route().is_some_and(|route| route.template.contains("/*"));
    let rest = exchange.route().map_or(0, |route| route.params.len()).checked_sub(1);
    match rest.filter(|_| beneath).and_then(|index| exchange.param_nth(index)) {
        Some(page) => (path.strip_suffix(page).unwrap_or(path).trim_end_matches('/'), page),
        None => (path, ""),
    }
}

/// A document of the revision that serves, beside the pages that show it.
fn document(shared: &Shared, name: &str, request: &Request) -> Result<Response, GatewayError> {
    let published = shared.documents.load();
    let newer = super::documents::newer(request.uri().query())?;
    let rendering = published.as_ref().and_then(|published| published.get(name, newer));
    let rendering = rendering.ok_or(GatewayError::from(Kind::NotFound))?;
    let known = request.headers().get(IF_NONE_MATCH).is_some_and(|known| known == rendering.etag.as_str());
    let kind = if name.ends_with(".yaml") { "application/yaml" } else { "application/json" };
    let mut response = match known {
        true => Response::builder().status(StatusCode::NOT_MODIFIED).finish(),
        false => Response::builder().content_type(kind).body(Body::from(rendering.body.clone())),
    };
    let headers = response.headers_mut();
    headers.extend(HeaderValue::try_from(&rendering.etag).ok().map(|etag| (ETAG, etag)));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// A page, with what browsers shall hold it to.
fn html(text: String, request: &Request) -> Response {
    let etag: String = Sha256::digest(&text).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let etag = format!("\"{etag}\"");
    let known = request.headers().get(IF_NONE_MATCH).is_some_and(|known| known == etag.as_str());
    let mut response = match known {
        true => Response::builder().status(StatusCode::NOT_MODIFIED).finish(),
        false => Response::builder().content_type(Page::CONTENT_TYPE).body(text),
    };
    let headers = response.headers_mut();
    headers.extend(HeaderValue::try_from(etag).ok().map(|etag| (ETAG, etag)));
    let fixed = [
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("permissions-policy"), PERMISSIONS),
    ];
    headers.extend(fixed.map(|(name, value)| (name, HeaderValue::from_static(value))));
    response
}
