//! Errors as gRPC callers read them: the one table from HTTP to gRPC, and the form on the wire.
//!
//! A gRPC caller is told of an error by a 200 whose head carries `grpc-status`, `grpc-message` and nothing else
//! (*trailers-only*), a gRPC-Web caller by the same in a frame of the body, because browsers show no trailers. Which
//! form a request's errors have is decided by its `Content-Type`, see [`Form::of`].

use super::{GatewayError, Kind, Lang};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use h2::Reason;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
use poem::Response;
use std::fmt::Write as _;
pub use tonic::Code;

/// Header and trailer with the status.
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// Header and trailer with the text, percent-encoded.
pub const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
/// When to try again, in milliseconds.
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How an exchange's errors look.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Form {
    /// `application/problem+json`.
    #[default]
    Problem,
    /// gRPC over HTTP/2, with the caller's content type.
    Grpc(HeaderValue),
    /// gRPC-Web, in bytes.
    Web(HeaderValue),
    /// gRPC-Web, in base64.
    WebText(HeaderValue),
}

impl Form {
    /// The form for a request. gRPC itself needs HTTP/2: over HTTP/1.1 nobody can have asked for it.
    pub fn of(headers: &HeaderMap, version: Version) -> Form {
        let Some(kind) = headers.get(CONTENT_TYPE) else { return Form::Problem };
        match flavour(kind.as_bytes()) {
            Some(Flavour::Grpc) if version == Version::HTTP_2 => Form::Grpc(kind.clone()),
            Some(Flavour::Web) => Form::Web(kind.clone()),
            Some(Flavour::WebText) => Form::WebText(kind.clone()),
            _ => Form::Problem,
        }
    }
}

/// What a content type of gRPC's is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// `application/grpc`, `application/grpc+proto`.
    Grpc,
    /// `application/grpc-web`.
    Web,
    /// `application/grpc-web-text`.
    WebText,
}

/// The flavour of a content type, if it is one of gRPC's.
pub fn flavour(content_type: &[u8]) -> Option<Flavour> {
    let essence = content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let name = essence.split(|byte| *byte == b'+').next().unwrap_or_default();
    // Most requests end here.
    let rest = name
        .get(..16)
        .filter(|start| start.eq_ignore_ascii_case(b"application/grpc"))
        .map(|_| &name[16..])?;
    match rest {
        b"" => Some(Flavour::Grpc),
        _ if rest.eq_ignore_ascii_case(b"-web") => Some(Flavour::Web),
        _ if rest.eq_ignore_ascii_case(b"-web-text") => Some(Flavour::WebText),
        _ => None,
    }
}

/// The gRPC code for an error of the gateway's.
pub fn code_of(kind: Kind) -> Code {
    match kind {
        // No such method, as a server would say it.
        Kind::NotFound | Kind::MethodNotAllowed => Code::Unimplemented,
        Kind::AccountExists => Code::AlreadyExists,
        Kind::AccountLocked => Code::FailedPrecondition,
        _ => match kind.status().as_u16() {
            401 => Code::Unauthenticated,
            403 => Code::PermissionDenied,
            404 | 410 => Code::NotFound,
            409 => Code::Aborted,
            413 | 429 | 431 => Code::ResourceExhausted,
            408 | 504 => Code::DeadlineExceeded,
            499 => Code::Cancelled,
            501 => Code::Unimplemented,
            502 | 503 => Code::Unavailable,
            400..=499 => Code::InvalidArgument,
            _ => Code::Internal,
        },
    }
}

/// The gRPC code for an answer that has none (gRPC, `http-grpc-status-mapping.md`).
pub fn code_of_status(status: StatusCode) -> Code {
    match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502..=504 => Code::Unavailable,
        _ => Code::Unknown,
    }
}

/// The gRPC code for a stream that was reset (gRPC, `PROTOCOL-HTTP2.md`, Errors).
pub fn code_of_reset(reason: Reason) -> Code {
    match reason {
        Reason::REFUSED_STREAM => Code::Unavailable,
        Reason::CANCEL => Code::Cancelled,
        Reason::ENHANCE_YOUR_CALM => Code::ResourceExhausted,
        Reason::INADEQUATE_SECURITY => Code::PermissionDenied,
        _ => Code::Internal,
    }
}

/// The HTTP status that says about the same, for meters that know classes only.
pub fn http_of(code: Code) -> u16 {
    match code {
        Code::Ok => 200,
        Code::Cancelled => 499,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
        Code::Unauthenticated => 401,
        Code::PermissionDenied => 403,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted => 409,
        Code::ResourceExhausted => 429,
        Code::Unknown | Code::Internal | Code::DataLoss => 500,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::DeadlineExceeded => 504,
    }
}

/// The status in a head or in trailers; one that is no number of gRPC's counts as unknown.
pub fn status_in(headers: &HeaderMap) -> Option<Code> {
    headers.get(GRPC_STATUS).map(|status| Code::from_bytes(status.as_bytes()))
}

/// A text as `grpc-message` carries it: printable ASCII, the rest percent-encoded.
pub fn percent_encoded(text: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => {
                // Writing into a String cannot fail.
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    HeaderValue::from_str(&encoded).unwrap_or(HeaderValue::from_static(""))
}

/// Trailers of a call that ends with this code and text.
pub fn trailers(code: Code, message: &str) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(3);
    trailers.insert(GRPC_STATUS, HeaderValue::from(code as i32));
    if !message.is_empty() {
        trailers.insert(GRPC_MESSAGE, percent_encoded(message));
    }
    trailers
}

/// Trailers as gRPC-Web has them: a frame of the body (`PROTOCOL-WEB.md`).
pub fn web_frame(trailers: &HeaderMap) -> Bytes {
    let mut frame = vec![0x80, 0, 0, 0, 0];
    for (name, value) in trailers {
        for part in [name.as_str().as_bytes(), b":", value.as_bytes(), b"\r\n"] {
            frame.extend_from_slice(part);
        }
    }
    let length = (frame.len() - 5) as u32;
    frame[1..5].copy_from_slice(&length.to_be_bytes());
    frame.into()
}

/// Bytes as `application/grpc-web-text` has them.
pub fn web_text(bytes: &[u8]) -> Bytes {
    STANDARD.encode(bytes).into()
}

impl GatewayError {
    /// The gRPC code it has for callers that read one.
    pub fn grpc_code(&self) -> Code {
        self.grpc.unwrap_or_else(|| code_of(self.kind))
    }

    /// What it has to say, in one line.
    pub fn grpc_message(&self, lang: Lang) -> String {
        let text = self.kind.text(lang);
        match &self.detail {
            Some(detail) => format!("{text}: {detail}"),
            None => text.to_owned(),
        }
    }

    /// As the trailers of a call.
    pub fn grpc_trailers(&self, request_id: &str, lang: Lang) -> HeaderMap {
        let mut metadata = trailers(self.grpc_code(), &self.grpc_message(lang));
        if let Some(after) = self.retry_after {
            metadata.insert(PUSHBACK, HeaderValue::from(after.as_millis() as u64));
        }
        if let Ok(id) = HeaderValue::from_str(request_id) {
            metadata.insert(X_REQUEST_ID, id);
        }
        metadata
    }

    /// As a finished response in one of gRPC's forms; `None` where the form is another.
    pub(super) fn respond_grpc(&self, form: &Form, request_id: &str, lang: Lang) -> Option<Response> {
        let metadata = self.grpc_trailers(request_id, lang);
        let (kind, body) = match form {
            Form::Problem => return None,
            Form::Grpc(kind) => (kind, None),
            Form::Web(kind) => (kind, Some(web_frame(&metadata))),
            Form::WebText(kind) => (kind, Some(web_text(&web_frame(&metadata)))),
        };
        let mut response = Response::default();
        match body {
            Some(frame) => response.set_body(frame),
            None => *response.headers_mut() = metadata,
        }
        response.headers_mut().insert(CONTENT_TYPE, kind.clone());
        Some(response)
    }
}

/// Takes what gRPC-Web has in its last frame out of a head that is all there is of an answer.
pub fn take_status(headers: &mut HeaderMap) -> HeaderMap {
    let mut taken = HeaderMap::new();
    for name in [GRPC_STATUS, GRPC_MESSAGE, GRPC_DETAILS] {
        if let Some(value) = headers.remove(&name) {
            taken.insert(name, value);
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn content_types_are_told_apart() {
        for (text, wanted) in [
            ("application/grpc", Some(Flavour::Grpc)),
            ("application/grpc+proto", Some(Flavour::Grpc)),
            ("Application/gRPC; charset=utf-8", Some(Flavour::Grpc)),
            ("application/grpc-web", Some(Flavour::Web)),
            ("application/grpc-web+proto", Some(Flavour::Web)),
            ("application/grpc-web-text+proto", Some(Flavour::WebText)),
            ("application/grpc-webs", None),
            ("application/grpcx", None),
            ("application/json", None),
            ("", None),
        ] {
            assert_eq!(flavour(text.as_bytes()), wanted, "{text}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        assert_eq!(Form::of(&headers, Version::HTTP_11), Form::Problem);
        assert!(matches!(Form::of(&headers, Version::HTTP_2), Form::Grpc(_)));
    }

    #[test]
    fn every_kind_has_a_code_that_says_the_same() {
        for kind in Kind::ALL {
            let code = code_of(*kind);
            assert_ne!(code, Code::Ok);
            let (here, there) = (kind.status().as_u16(), http_of(code));
            let caller = |status: u16| (400..500).contains(&status);
            let no_method = code == Code::Unimplemented;
            let late = code == Code::DeadlineExceeded;
            assert!(caller(here) == caller(there) || no_method || late, "{kind:?}: {here} {there}");
        }
        let of = |kind: Kind| code_of(kind) as i32;
        assert_eq!(
            [
                of(Kind::NoToken),
                of(Kind::Forbidden),
                of(Kind::NotFound),
                of(Kind::RateLimited),
                of(Kind::PayloadTooLarge),
                of(Kind::BadRequest),
                of(Kind::UpstreamTimeout),
                of(Kind::UpstreamUnreachable),
                of(Kind::Overloaded),
                of(Kind::Internal),
            ],
            [16, 7, 12, 8, 8, 3, 4, 14, 14, 13]
        );
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent_encoded("50% of\nülk~"), "50%25 of%0A%C3%BClk~");
    }

    #[tokio::test]
    async fn an_error_is_all_head_or_one_frame() {
        let error =
            GatewayError { retry_after: Some(Duration::from_millis(1500)), ..Kind::RateLimited.into() };
        let kind = HeaderValue::from_static("application/grpc+proto");
        let response = error.respond_grpc(&Form::Grpc(kind), "r-1", Lang::En).unwrap();
        assert_eq!(response.status(), 200);
        let header = |name: &str| response.header(name).unwrap();
        assert_eq!(header("content-type"), "application/grpc+proto");
        assert_eq!((header("grpc-status"), header("grpc-message")), ("8", "Too many requests"));
        assert_eq!((header("grpc-retry-pushback-ms"), header("x-request-id")), ("1500", "r-1"));
        let kind = HeaderValue::from_static("application/grpc-web-text");
        let response = error.respond_grpc(&Form::WebText(kind), "r-1", Lang::Zh).unwrap();
        assert!(response.header("grpc-status").is_none());
        let text = response.into_body().into_bytes().await.unwrap();
        let frame = STANDARD.decode(text).unwrap();
        assert_eq!(frame[0], 0x80);
        assert_eq!(u32::from_be_bytes(frame[1..5].try_into().unwrap()) as usize, frame.len() - 5);
        assert!(std::str::from_utf8(&frame[5..]).unwrap().contains("grpc-status:8\r\ngrpc-message:%E8"));
    }
}
