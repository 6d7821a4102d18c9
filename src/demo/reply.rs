//! How the demo services answer: the body type, JSON answers, JSON errors, and the reading of JSON requests.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The largest request body that is read, in bytes; `/echo` alone has no limit.
pub(super) const MAX_BODY: usize = 1024 * 1024;

/// The body of an answer. Its error makes hyper break the connection off.
pub(super) type Body = UnsyncBoxBody<Bytes, Cut>;

/// The deliberate death of a stream (the `fail_after` switch).
#[derive(Debug, thiserror::Error)]
#[error("the stream was cut, as its fail_after switch asked for")]
pub(super) struct Cut;

/// A request that is refused, as the caller reads it: `{"error", "code", "status"}`.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) error: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, error: impl Into<String>) -> Self {
        Self { status, code, error: error.into() }
    }

    pub(super) fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", error)
    }

    pub(super) fn invalid(error: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", error)
    }

    pub(super) fn not_found(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", error)
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let body = json!({ "error": self.error, "code": self.code, "status": self.status.as_u16() });
        json_response(self.status, &body)
    }
}

/// A 405 with the `Allow` header that RFC 9110 §15.5.6 demands.
pub(super) fn method_not_allowed(allow: &'static str) -> Response<Body> {
    let refusal = Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!("this path answers {allow} only"),
    );
    let mut response = refusal.into_response();
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

pub(super) fn json_response(status: StatusCode, body: &impl Serialize) -> Response<Body> {
    let text = serde_json::to_vec(body).expect("values built here have string keys and no failing Serialize");
    let mut response =
        Response::new(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// How the services write a point in time: RFC 3339 in UTC, to the millisecond.
pub(super) fn timestamp(at: Timestamp) -> String {
    format!("{at:.3}")
}

/// The whole body, up to [`MAX_BODY`]: 413 beyond, 400 when it breaks off.
pub(super) async fn read(body: Incoming) -> Result<Bytes, Refusal> {
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("the body is longer than {MAX_BODY} bytes"),
        )),
        Err(error) => Err(Refusal::bad_request(format!("the body broke off: {error}"))),
    }
}

/// The body as `T`, which must be an object: 400 when it is no JSON, 422 when it is JSON of another shape.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| Refusal::bad_request(format!("the body is not JSON: {error}")))?;
    if !value.is_object() {
        // Without this, serde would take a list for a struct's fields in their order.
        return Err(Refusal::invalid("the body must be a JSON object"));
    }
    T::deserialize(value).map_err(|error| Refusal::invalid(error.to_string()))
}
