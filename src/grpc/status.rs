//! What a failed call means to a caller that speaks HTTP and JSON: status, and a body in the common form.
//!
//! `error` is the service's own text where the fault is the caller's; what a service says of faults of its own is logged
//! and not sent. `code` is the service's reason (`google.rpc.ErrorInfo`) in lower case where it gives one, else the gRPC
//! code's name; what is wrong with single fields (`google.rpc.BadRequest`) stands in `errors`, whatever else is meant for
//! programs in `details`.

use super::Call;
use super::wire::rpc;
use crate::error::grpc::http_of;
use crate::error::{Lang, further, type_of};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode};
use poem::Response;
use prost::{Message, Name};
use prost_types::Any;
use serde_json::{Value as Json, json};
use std::time::Duration;
use tonic::Code;

/// Longest details that are read, encoded.
const MAX_DETAILS: usize = 16 << 10;

/// A call that failed.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    code: Code,
    message: String,
    details: Vec<Any>,
}

/// How a call ended, by the head or the trailers of its response; `None` where they do not say.
pub fn ended(headers: &HeaderMap) -> Option<Result<(), Failure>> {
    let code = Code::from_bytes(headers.get("grpc-status")?.as_bytes());
    if code == Code::Ok {
        return Some(Ok(()));
    }
    let message = headers.get("grpc-message").map(|text| unescape(text.as_bytes())).unwrap_or_default();
    let details = headers.get("grpc-status-details-bin").filter(|bytes| bytes.len() <= MAX_DETAILS);
    let details = details.and_then(|text| {
        let text = text.as_bytes();
        let bytes = BASE64_STANDARD.decode(text).or_else(|_| BASE64_STANDARD_NO_PAD.decode(text)).ok()?;
        rpc::Status::decode(bytes.as_slice()).ok()
    });
    Some(Err(Failure { code, message, details: details.map(|status| status.details).unwrap_or_default() }))
}

impl Failure {
    /// A failure that the service did not explain.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Failure { code, message: message.into(), details: Vec::new() }
    }

    /// Its gRPC code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// What the service says, for logs.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The HTTP status that says about the same (google.rpc.Code).
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(http_of(self.code)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// Whether it is a fault of the service's, whose text is not the caller's business.
    pub fn is_ours(&self) -> bool {
        matches!(self.code, Code::Unknown | Code::Internal | Code::DataLoss | Code::Unimplemented)
    }

    /// When to try again, where the service says so or its code asks for it.
    pub fn retry_after(&self) -> Option<Duration> {
        let said = self.detail::<rpc::RetryInfo>().and_then(|info| info.retry_delay);
        match said {
            Some(delay) => Duration::try_from(delay).ok(),
            None if matches!(self.code, Code::Unavailable | Code::ResourceExhausted) => {
                Some(Duration::from_secs(1))
            }
            None => None,
        }
    }

    /// The body of its answer: an object in the common form (RFC 9457). `call` knows the fields by the caller's names,
    /// `catalogue` is where error codes are described.
    pub fn problem(
        &self,
        call: &Call,
        proto_names: bool,
        request_id: &str,
        lang: Lang,
        catalogue: Option<&str>,
    ) -> Json {
        let name = self.name();
        let reason = self.detail::<rpc::ErrorInfo>().and_then(|info| stable(&info.reason));
        let violations = self.detail::<rpc::BadRequest>().map(|bad| bad.field_violations).unwrap_or_default();
        let code = match reason {
            Some(reason) => reason,
            None if !violations.is_empty() => "validation_failed".to_owned(),
            None => name.0.to_owned(),
        };
        let general = match lang {
            Lang::En => name.1,
            Lang::Zh => name.2,
        };
        let localized = self.detail::<rpc::LocalizedMessage>().filter(|text| {
            let zh = text.locale.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("zh"));
            zh == (lang == Lang::Zh)
        });
        let text = match localized {
            Some(localized) => localized.message,
            None if self.is_ours() || self.message.is_empty() => general.to_owned(),
            None => self.message.clone(),
        };
        let mut body = json!({
            "error": text,
            "code": code,
            "request_id": request_id,
            "status": self.status().as_u16(),
            "type": type_of(&code, catalogue),
            "title": general,
            "grpc_status": self.code as i32,
        });
        if !violations.is_empty() {
            let fault = |violation: &rpc::bad_request::FieldViolation| {
                json!({
                    "pointer": call.pointer(&violation.field, proto_names),
                    "code": stable(&violation.reason).unwrap_or_else(|| "invalid".to_owned()),
                    "detail": violation.description,
                })
            };
            body["errors"] = violations.iter().map(fault).collect();
        }
        let details: Vec<Json> = self.details.iter().filter_map(for_programs).collect();
        if !details.is_empty() {
            body["details"] = details.into();
        }
        if let Some(seconds) = self.retry_seconds() {
            body["retry_after"] = seconds.into();
        }
        body
    }

    /// As a finished response.
    pub fn respond(
        &self,
        call: &Call,
        proto_names: bool,
        request_id: &str,
        lang: Lang,
        catalogue: Option<&str>,
    ) -> Response {
        let body = self.problem(call, proto_names, request_id, lang, catalogue).to_string();
        let mut response = Response::builder().status(self.status()).body(body);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_seconds() {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if self.code == Code::Unauthenticated {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }

    fn retry_seconds(&self) -> Option<u64> {
        self.retry_after().map(|after| after.as_secs_f64().ceil().max(1.0) as u64)
    }

    /// The first detail of a type.
    fn detail<M: Message + Name + Default>(&self) -> Option<M> {
        let found = self.details.iter().find(|any| is::<M>(any))?;
        M::decode(found.value.as_slice()).ok()
    }

    /// The code's name, and what it says in English and Chinese.
    fn name(&self) -> (&'static str, &'static str, &'static str) {
        let word = match self.code {
            Code::Ok => return ("ok", "All is well", "成功"),
            // Refusals of the gateway's are called so too.
            Code::DeadlineExceeded => {
                return ("deadline_exceeded", "The request took too long", "请求处理超时");
            }
            Code::NotFound => return ("not_found", "There is nothing like that", "资源不存在"),
            Code::PermissionDenied => return ("permission_denied", "Permission denied", "权限不足"),
            Code::Unavailable => {
                return ("unavailable", "This is not available for the moment", "服务暂时不可用，请稍后重试");
            }
            Code::Cancelled => "cancelled",
            Code::Unknown => "unknown",
            Code::InvalidArgument => "invalid_argument",
            Code::AlreadyExists => "already_exists",
            Code::ResourceExhausted => "resource_exhausted",
            Code::FailedPrecondition => "failed_precondition",
            Code::Aborted => "aborted",
            Code::OutOfRange => "out_of_range",
            Code::Unimplemented => "unimplemented",
            Code::Internal => "internal",
            Code::DataLoss => "data_loss",
            Code::Unauthenticated => "unauthenticated",
        };
        further(word).map_or((word, word, word), |known| (known.code, known.en, known.zh))
    }
}

fn is<M: Name>(any: &Any) -> bool {
    any.type_url.rsplit('/').next() == Some(M::full_name().as_str())
}

/// `UPPER_SNAKE` as a code of ours.
fn stable(reason: &str) -> Option<String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (!reason.is_empty() && reason.len() <= 64 && reason.bytes().all(fits))
        .then(|| reason.to_ascii_lowercase())
}

/// A detail that callers may use, and that is not said elsewhere in the body.
fn for_programs(any: &Any) -> Option<Json> {
    let read = any.value.as_slice();
    let value = if is::<rpc::ErrorInfo>(any) {
        let info = rpc::ErrorInfo::decode(read).ok()?;
        if info.metadata.is_empty() && info.domain.is_empty() {
            return None;
        }
        let metadata: serde_json::Map<String, Json> =
            info.metadata.into_iter().map(|(key, value)| (key, value.into())).collect();
        json!({ "reason": info.reason, "domain": info.domain, "metadata": metadata })
    } else if is::<rpc::ResourceInfo>(any) {
        let info = rpc::ResourceInfo::decode(read).ok()?;
        json!({ "resource_type": info.resource_type, "resource_name": info.resource_name, "description": info.description })
    } else if is::<rpc::QuotaFailure>(any) {
        let failure = rpc::QuotaFailure::decode(read).ok()?;
        let all = failure.violations.into_iter();
        let all = all.map(|it| json!({ "subject": it.subject, "description": it.description }));
        json!({ "violations": all.collect::<Vec<_>>() })
    } else if is::<rpc::PreconditionFailure>(any) {
        let failure = rpc::PreconditionFailure::decode(read).ok()?;
        let all = failure.violations.into_iter();
        let all =
            all.map(|it| json!({ "type": it.r#type, "subject": it.subject, "description": it.description }));
        json!({ "violations": all.collect::<Vec<_>>() })
    } else if is::<rpc::Help>(any) {
        let help = rpc::Help::decode(read).ok()?;
        let links =
            help.links.into_iter().map(|link| json!({ "description": link.description, "url": link.url }));
        json!({ "links": links.collect::<Vec<_>>() })
    } else {
        // Said elsewhere, meant for the service's own people, or unknown here.
        return None;
    };
    let mut value = value;
    value["@type"] = any.type_url.as_str().into();
    Some(value)
}

/// `grpc-message` without its escapes; what is no UTF-8 is replaced.
fn unescape(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        let digits = behind.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(escaped) if byte == b'%' => {
                bytes.push(escaped);
                rest = &behind[2..];
            }
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Value of `grpc-timeout`: at most eight digits, in milliseconds or, where they do not suffice, in seconds.
pub fn timeout(left: Duration) -> HeaderValue {
    let millis = left.as_millis().max(1);
    let text = match millis {
        0..=99_999_999 => format!("{millis}m"),
        _ => format!("{}S", left.as_secs().min(99_999_999)),
    };
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("1m"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::Wanted;
    use crate::grpc::testing::pool;

    fn call() -> Call {
        let wanted = Wanted {
            method: "test.Things/Put".into(),
            http: Some(http::Method::POST),
            params: Vec::new(),
            body: None,
            response_body: None,
        };
        Call::bind(pool(), &wanted).unwrap()
    }

    fn any<M: Message + Name>(message: &M) -> Any {
        Any { type_url: format!("type.googleapis.com/{}", M::full_name()), value: message.encode_to_vec() }
    }

    fn trailers(code: i32, message: &str, details: Vec<Any>) -> HeaderMap {
        let status = rpc::Status { code, message: String::new(), details };
        let details = BASE64_STANDARD_NO_PAD.encode(status.encode_to_vec());
        let pairs = [
            ("grpc-status", code.to_string()),
            ("grpc-message", message.into()),
            ("grpc-status-details-bin", details),
        ];
        pairs.into_iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn failure(code: i32, message: &str, details: Vec<Any>) -> Failure {
        ended(&trailers(code, message, details)).unwrap().unwrap_err()
    }

    #[test]
    fn endings_are_read() {
        assert_eq!(ended(&HeaderMap::new()), None);
        assert_eq!(ended(&trailers(0, "", vec![])), Some(Ok(())));
        let failed = failure(5, "100%25 of caf%C3%A9s %zz %", vec![]);
        assert_eq!((failed.code(), failed.message()), (Code::NotFound, "100% of cafés %zz %"));
        assert_eq!(failure(99, "", vec![]).code(), Code::Unknown);
        let mut broken = trailers(5, "x", vec![]);
        broken.insert("grpc-status-details-bin", "!!".parse().unwrap());
        assert_eq!(ended(&broken).unwrap().unwrap_err().details, []);
    }

    #[test]
    fn field_violations_are_errors_by_the_callers_names() {
        let field_violations = vec![rpc::bad_request::FieldViolation {
            field: "inner.display_name".into(),
            description: "must be short".into(),
            reason: "TOO_LONG".into(),
            ..Default::default()
        }];
        let failed = failure(3, "no", vec![any(&rpc::BadRequest { field_violations })]);
        let body = failed.problem(&call(), false, "r1", Lang::En, None);
        assert_eq!(
            (&body["status"], &body["code"], &body["error"]),
            (&400.into(), &"validation_failed".into(), &"no".into())
        );
        let fault = json!({ "pointer": "/inner/displayName", "code": "too_long", "detail": "must be short" });
        assert_eq!(body["errors"], json!([fault]));
        assert_eq!(body["request_id"], "r1");
        let kinds = [
            (8, None, "urn:voicegate:error:resource_exhausted"),
            (8, Some("/docs/errors#"), "/docs/errors#resource_exhausted"),
        ];
        for (code, catalogue, kind) in kinds {
            let body = failure(code, "", vec![]).problem(&call(), false, "r", Lang::En, catalogue);
            assert_eq!((&body["type"], &body["title"]), (&kind.into(), &"A limit is reached".into()));
        }
        // What a service has words of its own for, no catalogue of ours has.
        let info = rpc::ErrorInfo { reason: "NO_SUCH_PAGE".into(), ..Default::default() };
        let body =
            failure(5, "", vec![any(&info)]).problem(&call(), false, "r", Lang::En, Some("/docs/errors#"));
        assert_eq!(body["type"], "urn:voicegate:error:no_such_page");
    }

    #[test]
    fn reasons_delays_and_resources_are_told() {
        let info = rpc::ErrorInfo { reason: "INVALID_CREDENTIALS".into(), ..Default::default() };
        let body = failure(16, "no", vec![any(&info)]).problem(&call(), false, "r", Lang::Zh, None);
        assert_eq!(
            (&body["code"], &body["title"]),
            (&"invalid_credentials".into(), &"未通过身份验证".into())
        );
        let retry_delay = Some(prost_types::Duration { seconds: 2, nanos: 1 });
        let resource = rpc::ResourceInfo { resource_type: "document".into(), ..Default::default() };
        let failed = failure(8, "", vec![any(&rpc::RetryInfo { retry_delay }), any(&resource)]);
        let response = failed.respond(&call(), false, "r", Lang::En, None);
        assert_eq!(
            (response.status().as_u16(), &response.headers()["retry-after"]),
            (429, &HeaderValue::from(3))
        );
        let body = failed.problem(&call(), false, "r", Lang::En, None);
        assert_eq!(body["details"][0]["resource_type"], "document");
        assert_eq!(
            (&body["code"], &body["error"]),
            (&"resource_exhausted".into(), &"A limit is reached".into())
        );
    }

    #[test]
    fn what_services_say_of_their_own_faults_stays_here() {
        let debug = rpc::DebugInfo { detail: "SELECT secret".into(), ..Default::default() };
        for code in [2, 13, 15] {
            let body = failure(code, "SELECT secret", vec![any(&debug)]).problem(
                &call(),
                false,
                "r",
                Lang::En,
                None,
            );
            assert!(!body.to_string().contains("secret") && body["status"] == 500, "{body}");
        }
        let text = rpc::LocalizedMessage { locale: "zh-CN".into(), message: "没有".into() };
        let failed = failure(5, "nothing", vec![any(&text)]);
        assert_eq!(failed.problem(&call(), false, "r", Lang::Zh, None)["error"], "没有");
        assert_eq!(failed.problem(&call(), false, "r", Lang::En, None)["error"], "nothing");
    }

    #[test]
    fn deadlines_have_eight_digits_at_most() {
        assert_eq!(timeout(Duration::from_micros(1500)), "1m");
        assert_eq!(timeout(Duration::ZERO), "1m");
        assert_eq!(timeout(Duration::from_secs(99_999)), "99999000m");
        assert_eq!(timeout(Duration::from_secs(200_000)), "200000S");
    }
}
