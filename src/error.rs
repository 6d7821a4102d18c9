//! Errors that callers see.
//!
//! Everything the gateway itself refuses or fails at becomes a [`GatewayError`]: a [`Kind`] (stable code, status,
//! text in two languages) and what is particular to the case. It travels as poem's `Err` or as a finished response;
//! [`respond`](GatewayError::respond) is the one place where it becomes bytes: `application/problem+json`
//! (RFC 9457) with the seed's `error`, `code` and `request_id`, or [`grpc`]'s forms for those who call that way. Which error goes where: a stage or target that
//! refuses returns a `GatewayError`; faults of the manifest are [`crate::diag`]; faults of start-up are
//! their own enums, beside the code that meets them. Clients get less than logs: causes are logged, never sent.

mod further;
pub mod grpc;

pub use further::{FURTHER, Further, further};

use crate::units::Size;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode};
use poem::Response;
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// A language that error texts exist in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lang {
    /// English.
    #[default]
    En,
    /// Chinese, in the seed's own wording.
    Zh,
}

impl Lang {
    /// The better of the two by `Accept-Language` (RFC 9110, section 12.5.4); English where it does not say.
    pub fn of(headers: &HeaderMap) -> Self {
        let Some(accept) = headers.get(http::header::ACCEPT_LANGUAGE).and_then(|v| v.to_str().ok()) else {
            return Lang::En;
        };
        let (mut en, mut zh) = (0.0f32, 0.0f32);
        for range in accept.split(',').take(20) {
            let (tag, parameters) = range.split_once(';').unwrap_or((range, ""));
            let weight = match parameters.trim().strip_prefix("q=") {
                Some(q) => q.trim().parse().unwrap_or(0.0),
                None => 1.0,
            };
            let primary = tag.trim().split('-').next().unwrap_or_default();
            if primary.eq_ignore_ascii_case("zh") {
                zh = zh.max(weight);
            } else if primary.eq_ignore_ascii_case("en") || primary == "*" {
                en = en.max(weight);
            }
        }
        if zh > en { Lang::Zh } else { Lang::En }
    }
}

macro_rules! kinds {
    ($($(#[doc = $cause:literal])+ $(#[cure = $cure:literal])? $name:ident = $status:literal $code:literal: $en:literal, $zh:literal;)*) => {
        /// What went wrong, in general. The list of all error codes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Kind { $($(#[doc = $cause])+ $name,)* }

        impl Kind {
            /// Every kind, in order.
            pub const ALL: &[Kind] = &[$(Kind::$name,)*];

            /// The stable code in snake case.
            pub fn code(self) -> &'static str {
                match self { $(Kind::$name => $code,)* }
            }

            /// The HTTP status.
            pub fn status(self) -> StatusCode {
                let number: u16 = match self { $(Kind::$name => $status,)* };
                StatusCode::from_u16(number).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }

            /// The text for people.
            pub fn text(self, lang: Lang) -> &'static str {
                match (self, lang) { $((Kind::$name, Lang::En) => $en, (Kind::$name, Lang::Zh) => $zh,)* }
            }

            /// What brings it about, for the catalogue.
            pub fn cause(self) -> &'static str {
                match self { $(Kind::$name => concat!($($cause),+).trim_ascii(),)* }
            }

            /// What the caller, or whoever runs the gateway, can do about it, for the catalogue.
            pub fn cure(self) -> &'static str {
                match self { $(Kind::$name => concat!("" $(, $cure)?),)* }
            }
        }
    };
}

kinds! {
    /// The request cannot be understood.
    #[cure = "Compare the request with the documentation of its route; `detail` says what could not be read."]
    BadRequest = 400 "bad_request": "The request is malformed", "请求格式错误";
    /// The path has no single reading: dot segments, `//`, an encoded slash, a bad percent escape, or invalid UTF-8.
    #[cure = "Send each path segment percent-encoded once, and no empty or dot segments."]
    InvalidPath = 400 "invalid_path": "The request path is not acceptable", "请求路径无效";
    /// Where the request ends could be read in two ways: `Content-Length` and `Transfer-Encoding` contradict each other or are malformed.
    #[cure = "Send one correct `Content-Length` or `Transfer-Encoding: chunked`, never both; a proxy in between may have added one."]
    InvalidFraming = 400 "invalid_framing": "The request's length is ambiguous", "请求长度标识无效";
    /// The request's target is not a path.
    #[cure = "Send the path in origin form, such as `GET /path`."]
    InvalidTarget = 400 "invalid_target": "The request target is not acceptable", "请求目标无效";
    /// Host and authority disagree or are malformed.
    #[cure = "Send one `Host` header, equal to `:authority` over HTTP/2."]
    InvalidHost = 400 "invalid_host": "The request's host is not acceptable", "请求主机无效";
    /// No route takes this path, or what it names does not exist for this caller.
    #[cure = "Look the path up in the documentation; `voicegate explain METHOD PATH` says which route takes it."]
    NotFound = 404 "not_found": "There is nothing at this address", "资源不存在";
    /// The path exists, the method does not.
    #[cure = "Use one of the methods in the `Allow` header."]
    MethodNotAllowed = 405 "method_not_allowed": "This method is not allowed here", "不支持该请求方法";
    /// What is called here speaks HTTP/2 only.
    #[cure = "Call it with a gRPC client, over HTTP/2."]
    Http2Required = 426 "http2_required": "This is called over HTTP/2 only", "此接口仅支持 HTTP/2";
    /// The request body took too long to come.
    #[cure = "Send the body without long pauses; on slow networks send it in pieces."]
    RequestTimeout = 408 "request_timeout": "The request took too long to arrive", "请求接收超时";
    /// The body is larger than the route allows.
    #[cure = "Send less; `detail` says the limit, the route's `body_limit` sets it."]
    PayloadTooLarge = 413 "payload_too_large": "The request body is too large", "请求内容过大";
    /// The URI is longer than allowed.
    #[cure = "Move long values from the query into the body."]
    UriTooLong = 414 "uri_too_long": "The request URI is too long", "请求地址过长";
    /// Headers are larger or more than allowed.
    #[cure = "Send fewer or shorter headers; often cookies have piled up."]
    HeadersTooLarge = 431 "headers_too_large": "The request headers are too large", "请求头过大";
    /// The route is a WebSocket, the request is not.
    #[cure = "Open it with a WebSocket client."]
    UpgradeRequired = 426 "upgrade_required": "This is a WebSocket: connect with version 13 over HTTP/1.1", "此接口仅支持 WebSocket 连接";
    /// A route that asks who is calling was not told.
    #[cure = "Log in and send `Authorization: Bearer <access_token>`."]
    NoToken = 401 "no_token": "No token provided", "未提供令牌";
    /// The token is not valid here.
    #[cure = "Log in again; a token of another environment, or one that was changed on its way, is never valid."]
    InvalidToken = 401 "invalid_token": "Invalid token", "令牌无效";
    /// The token's time is over.
    #[cure = "Ask for a new one with the refresh token, or log in again; take `X-New-Token` over where answers carry it."]
    TokenExpired = 401 "token_expired": "Token has expired", "令牌已过期";
    /// The token was taken back.
    #[cure = "Log in again: a logout, a new password or an administrator ended this session."]
    TokenRevoked = 401 "token_revoked": "Token has been revoked", "令牌已被撤销";
    /// The ticket was used, its time is over, or it never was one.
    #[cure = "Ask for a new ticket just before the WebSocket is opened, and use it once."]
    InvalidTicket = 401 "invalid_ticket": "This ticket was used already or is over, ask for another one", "票据无效或已使用，请重新获取";
    /// The API key is missing, unknown, over, or was taken back.
    #[cure = "Send a valid key; whoever runs the gateway hands out new ones."]
    InvalidApiKey = 401 "invalid_api_key": "Invalid API key", "API 密钥无效";
    /// The request names another tenant than the caller's.
    #[cure = "Leave the tenant out of the request, or send the caller's own."]
    TenantMismatch = 403 "tenant_mismatch": "This is not your tenant", "租户不匹配";
    /// The caller's origin is not allowed (CORS preflight).
    #[cure = "Add the page's exact origin to the route's `cors` policy."]
    OriginNotAllowed = 403 "origin_not_allowed": "This origin may not call this route", "不允许的跨域来源";
    /// The caller's address is not allowed.
    #[cure = "Call from an allowed address, or have it added to the route's `ip_filter`; behind a proxy set TRUSTED_PROXIES."]
    AddressNotAllowed = 403 "address_not_allowed": "This address may not call here", "该地址无权访问";
    /// The caller calls too often.
    #[cure = "Wait as long as `Retry-After` says, and slow down; the `RateLimit` headers say how much is left."]
    RateLimited = 429 "rate_limited": "Too many requests", "请求过于频繁，请稍后重试";
    /// The caller has too many calls under way.
    #[cure = "Let a running request end, or stop it, before the next one."]
    TooManyConcurrent = 429 "too_many_concurrent": "Too many requests at the same time", "并发请求过多，请稍后重试";
    /// The request looks like an attack to the route's `inspect` stage.
    #[cure = "Send the text in another form; if it is harmless, whoever runs the gateway can exempt the field."]
    Suspicious = 403 "suspicious_input": "The request looks like an attack", "请求包含可疑内容";
    /// The caller's role has no permission for this.
    #[cure = "Ask for a role with this permission; the documentation of the route names both."]
    Forbidden = 403 "permission_denied": "Permission denied", "权限不足";
    /// A fault of the gateway itself.
    #[cure = "Try again later; tell whoever runs the gateway the `request_id`: the log has the cause."]
    Internal = 500 "internal_error": "Something went wrong here", "服务器内部错误";
    /// No server of the upstream could be reached.
    #[cure = "Try again shortly; operators see in `/health` and the metrics which server does not answer."]
    UpstreamUnreachable = 502 "upstream_unreachable": "The service behind this route cannot be reached", "后端服务不可用";
    /// The upstream broke the connection before it answered.
    #[cure = "Try again if the request may be carried out twice."]
    UpstreamReset = 502 "upstream_reset": "The service behind this route broke off", "后端服务连接中断";
    /// The upstream's answer is not acceptable HTTP.
    #[cure = "Tell whoever runs the service behind the gateway; the log has the fault."]
    UpstreamBadResponse = 502 "upstream_bad_response": "The service behind this route answered badly", "后端服务响应无效";
    /// The gateway takes no more work for now.
    #[cure = "Wait as long as `Retry-After` says and try again."]
    Overloaded = 503 "overloaded": "Too busy, try again shortly", "服务繁忙，请稍后重试";
    /// The route is switched off for maintenance, by the manifest or by an operator.
    #[cure = "Wait as long as `Retry-After` says where it is there; whoever runs the gateway switches the route on again."]
    Maintenance = 503 "maintenance": "This is switched off for maintenance, try again later", "系统维护中，请稍后重试";
    /// Every connection to the upstream is in use.
    #[cure = "Wait as long as `Retry-After` says and try again; operators may raise `max_connections`."]
    UpstreamSaturated = 503 "upstream_saturated": "The service behind this route is busy, try again shortly", "后端服务繁忙，请稍后重试";
    /// The upstream failed too often of late: its breaker is open, and it is left alone for a while.
    #[cure = "Wait as long as `Retry-After` says and try again; operators see in `/health` and the log why the service fails."]
    UpstreamUnavailable = 503 "upstream_unavailable": "The service behind this route is failing, try again shortly", "后端服务暂时不可用，请稍后重试";
    /// The gateway is going down.
    #[cure = "Try again at once on a new connection."]
    ShuttingDown = 503 "shutting_down": "Going down, try again shortly", "服务正在关闭，请稍后重试";
    /// The database, or the state that replicas share, does not answer.
    #[cure = "Try again shortly; operators look at the database and Redis."]
    StoreUnavailable = 503 "store_unavailable": "Something this needs is not available, try again shortly", "依赖的服务暂不可用，请稍后重试";
    /// The upstream did not answer in time.
    #[cure = "Try again later; operators look at the service's latency and the route's deadlines."]
    UpstreamTimeout = 504 "upstream_timeout": "The service behind this route did not answer in time", "后端服务响应超时";
    /// The route's own deadline passed.
    #[cure = "Ask for less at once; the route's `timeout` sets the limit."]
    DeadlineExceeded = 504 "deadline_exceeded": "The request took too long", "请求处理超时";
    /// Fields break their rules; `errors` says which.
    #[cure = "Mend the fields that `errors[]` points to; each says its rule."]
    Invalid = 400 "validation_failed": "Some fields are not acceptable", "请求参数无效";
    /// A link or code of single use is unknown, used or over.
    #[cure = "Ask for a new link."]
    LinkSpent = 400 "link_invalid": "This link was used already or is over", "链接无效或已过期";
    /// Unknown name or wrong password; nobody learns which.
    #[cure = "Check name and password; after some failures the name is locked for a while."]
    WrongCredentials = 401 "invalid_credentials": "Wrong username or password", "用户名或密码错误";
    /// The refresh token is unknown, used, over or ended.
    #[cure = "Log in again; a refresh token is used once, its second use ends all of its family."]
    RefreshRefused = 401 "invalid_refresh_token": "The refresh token is not valid, log in again", "刷新令牌无效，请重新登录";
    /// WeChat does not know the login code.
    #[cure = "Call `wx.login` again and send the new code within five minutes."]
    WechatRefused = 401 "invalid_wechat_code": "WeChat does not accept this login code", "微信登录凭证无效";
    /// The account may not log in.
    #[cure = "Ask an administrator to enable the account."]
    AccountDisabled = 403 "account_disabled": "This account is disabled", "账户已被禁用";
    /// No answer is being written.
    #[cure = "Nothing is left to do: the answer is complete, or never began."]
    NotRunning = 404 "not_running": "No answer is being written there", "当前没有正在生成的回答";
    /// A retry came while its first request is under way and its answer cannot be read along.
    #[cure = "Wait until the first request ends, then retry with the same key."]
    StillRunning = 409 "still_running": "This request is under way already", "该请求正在处理中";
    /// An answer was stopped before it began.
    #[cure = "Ask again if the answer is still wanted."]
    TurnCancelled = 409 "turn_cancelled": "This answer was stopped", "回答已被取消";
    /// A stream's events are not kept any more.
    #[cure = "Read the session's messages instead: what was said is saved there."]
    StreamGone = 410 "stream_gone": "This stream cannot be resumed", "该数据流已无法恢复";
    /// Username or e-mail are taken.
    #[cure = "Choose another name, or log in."]
    AccountExists = 409 "account_exists": "Username or e-mail is taken", "用户名或邮箱已存在";
    /// An `Idempotency-Key` was used for another request.
    #[cure = "Make a new key for every new request; reuse one for a retry of the same request only."]
    IdempotencyKeyReused = 422 "idempotency_key_reused": "This idempotency key was used for another request", "幂等键已用于其他请求";
    /// The body is of a type that is not read here.
    #[cure = "Send the content type that the documentation of the route names."]
    UnsupportedMediaType = 415 "unsupported_media_type": "This content type is not read here", "不支持的内容类型";
    /// Too many failed logins.
    #[cure = "Wait as long as `Retry-After` says, or ask an administrator to unlock the name."]
    AccountLocked = 423 "account_locked": "Too many failed logins, the account is locked for a while", "登录失败次数过多，账户已被锁定";
    /// WeChat does not answer, or answers badly.
    #[cure = "Try again shortly; operators check WECHAT_API_URL and the network."]
    WechatUnreachable = 502 "wechat_unreachable": "WeChat cannot be reached", "微信服务不可用";
    /// No mail server is set up, so that nobody gets a link to a new password.
    #[cure = "Ask an administrator for a new password; operators set SMTP_URL."]
    MailUnavailable = 503 "mail_unavailable": "No e-mail can be sent from here, ask whoever runs this service for a new password", "邮件服务未配置，请联系管理员重置密码";
    /// Something this call needs (such as WeChat) is away or not set up.
    #[cure = "Try again later; operators look in the log for what is not set up."]
    Unavailable = 503 "unavailable": "This is not available for the moment", "服务暂时不可用，请稍后重试";
}

/// What `type` of a problem begins with where no page describes the codes: they are named all the same.
const CODES: &str = "urn:voicegate:error:";

/// `type` of a problem with this code: where the catalogue has it, if this gateway serves one and it is no code of a
/// service's own.
pub fn type_of(code: &str, catalogue: Option<&str>) -> String {
    let known = Kind::ALL.iter().any(|kind| kind.code() == code) || further(code).is_some();
    format!("{}{code}", catalogue.filter(|_| known).unwrap_or(CODES))
}

/// On a response: the gateway itself made it, as an error of this kind in the common form.
#[derive(Debug, Clone, Copy)]
pub struct MadeHere(pub Kind);

/// What a caller is told.
#[derive(Debug, Clone)]
pub struct GatewayError {
    /// What went wrong, in general.
    pub kind: Kind,
    /// What is particular to this case; safe to send.
    pub detail: Option<Cow<'static, str>>,
    /// When to try again; sent in whole seconds, at least one.
    pub retry_after: Option<Duration>,
    /// Value of `Allow`, for 405.
    pub allow: Option<HeaderValue>,
    /// Whether the connection cannot be used any further.
    pub close: bool,
    /// What is wrong with single fields of the body.
    pub errors: Vec<FieldFault>,
    /// What gRPC callers are told instead of the kind's own code.
    pub grpc: Option<grpc::Code>,
}

/// What is wrong with one field of a request's body, or with a parameter. One of the `errors` of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldFault {
    /// The parameter that it is about, such as `query.limit` or `path.id`; the body if none.
    pub parameter: Option<Cow<'static, str>>,
    /// Where it stands in there (JSON Pointer, RFC 6901); empty for the whole.
    pub pointer: Cow<'static, str>,
    /// The broken rule, stable, in snake case.
    pub code: &'static str,
    /// The rule for people, in English. Never the value: it may be a password.
    pub en: Cow<'static, str>,
    /// The same in Chinese.
    pub zh: Cow<'static, str>,
}

impl FieldFault {
    /// A fault of the field at a pointer.
    pub fn new(
        pointer: impl Into<Cow<'static, str>>,
        code: &'static str,
        en: impl Into<Cow<'static, str>>,
        zh: impl Into<Cow<'static, str>>,
    ) -> Self {
        FieldFault { parameter: None, pointer: pointer.into(), code, en: en.into(), zh: zh.into() }
    }

    /// The same fault, of a parameter instead of the body.
    #[must_use]
    pub fn of_parameter(self, name: impl Into<Cow<'static, str>>) -> Self {
        FieldFault { parameter: Some(name.into()), ..self }
    }

    fn json(&self, lang: Lang) -> serde_json::Value {
        let text = match lang {
            Lang::En => &self.en,
            Lang::Zh => &self.zh,
        };
        let mut fault = serde_json::json!({ "pointer": self.pointer, "code": self.code, "detail": text });
        if let Some(parameter) = &self.parameter {
            fault["parameter"] = parameter.as_ref().into();
        }
        fault
    }
}

impl From<Kind> for GatewayError {
    fn from(kind: Kind) -> Self {
        let retry_after =
            (kind.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(Duration::from_secs(1));
        GatewayError {
            kind,
            detail: None,
            retry_after,
            allow: None,
            close: false,
            errors: Vec::new(),
            grpc: None,
        }
    }
}

impl GatewayError {
    /// A kind with what is particular to this case. The detail is sent to the caller.
    pub fn new(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        GatewayError { detail: Some(detail.into()), ..kind.into() }
    }

    /// Field faults: 400 `validation_failed`.
    pub fn invalid(errors: Vec<FieldFault>) -> Self {
        GatewayError { errors, ..Kind::Invalid.into() }
    }

    /// As a finished response in the form that the caller reads.
    ///
    /// `request_id` identifies the exchange in logs; `lang` chooses the text; `catalogue` is where this gateway documents
    /// its error codes, up to a code (`/docs/errors#`), if it does.
    pub fn respond_as(
        &self,
        form: &grpc::Form,
        request_id: &str,
        lang: Lang,
        catalogue: Option<&str>,
    ) -> Response {
        self.respond_grpc(form, request_id, lang)
            .unwrap_or_else(|| self.problem(request_id, lang, catalogue.unwrap_or(CODES)))
    }

    /// As a finished response in the common form.
    ///
    /// `request_id` identifies the exchange in logs; `lang` chooses the text.
    pub fn respond(&self, request_id: &str, lang: Lang) -> Response {
        self.problem(request_id, lang, CODES)
    }

    fn problem(&self, request_id: &str, lang: Lang, catalogue: &str) -> Response {
        let status = self.kind.status();
        let text = self.kind.text(lang);
        let mut body = serde_json::json!({
            "error": text,
            "code": self.kind.code(),
            "request_id": request_id,
            "status": status.as_u16(),
            "type": format!("{catalogue}{}", self.kind.code()),
            "title": text,
        });
        if let Some(detail) = &self.detail {
            body["detail"] = detail.as_ref().into();
        }
        if !self.errors.is_empty() {
            body["errors"] = self.errors.iter().map(|fault| fault.json(lang)).collect();
        }
        let retry_after = self.retry_after.map(|d| d.as_secs_f64().ceil().max(1.0) as u64);
        if let Some(seconds) = retry_after {
            body["retry_after"] = seconds.into();
        }
        let mut response = Response::builder().status(status).body(body.to_string());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if status == StatusCode::UNAUTHORIZED {
            // RFC 9110, section 11.6.1, and RFC 6750, section 3.
            headers.insert(
                WWW_AUTHENTICATE,
                HeaderValue::from_static(match self.kind {
                    Kind::InvalidToken | Kind::TokenExpired | Kind::TokenRevoked => {
                        "Bearer error=\"invalid_token\""
                    }
                    _ => "Bearer",
                }),
            );
        }
        response.set_data(MadeHere(self.kind));
        let headers = response.headers_mut();
        if let Some(allow) = &self.allow {
            headers.insert(ALLOW, allow.clone());
        }
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// What to tell the caller when reading the request's body failed because the gateway cut it: 413 for
    /// [`BodyTooLarge`], 408 for [`BodyTimeout`], or an error of ours as it was raised, anywhere in the chain of
    /// causes. `None` for every other failure.
    ///
    /// For whoever reads a body on its way elsewhere, such as the proxy: such a failure is the caller's, not the
    /// upstream's.
    pub fn from_body_error(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(ours) = error.downcast_ref::<GatewayError>() {
                return Some(ours.clone());
            }
            if let Some(cut) = error.downcast_ref::<BodyTooLarge>() {
                // What is left of it is not read, so nothing can follow it.
                return Some(GatewayError { close: true, ..cut.into() });
            }
            if error.is::<BodyTimeout>() {
                return Some(BodyTimeout.into());
            }
            // `source()` of an io::Error passes over the error it was made of.
            let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
            cause = match inner {
                Some(inner) => Some(inner),
                None => error.source(),
            };
        }
        None
    }

    /// What poem-openapi found wrong with a request, in the common form. Never with its own text about a body: that
    /// quotes the value, which may be a password.
    fn from_parse_error(error: &poem::Error) -> Option<Self> {
        use poem_openapi::error::{ParseParamError, ParsePathError, ParseRequestPayloadError};
        let parameter = |name: &str| {
            let en = format!("the parameter `{name}` is missing, not of its type, or out of range");
            FieldFault::new("", "parameter", en, format!("参数 `{name}` 缺失、类型错误或超出范围"))
        };
        let fault = if let Some(fault) = error.downcast_ref::<ParseParamError>() {
            parameter(fault.name)
        } else if let Some(fault) = error.downcast_ref::<ParsePathError>() {
            parameter(fault.name)
        } else if error.is::<ParseRequestPayloadError>() {
            FieldFault::new("", "malformed", "the body is not what this call reads", "请求体格式错误")
        } else {
            return None;
        };
        Some(GatewayError::invalid(vec![fault]))
    }

    /// The error behind a poem error: ours as it was raised, poem's own by its status.
    pub fn of(error: &poem::Error) -> Self {
        if let Some(ours) = error.downcast_ref::<GatewayError>() {
            return ours.clone();
        }
        if let Some(ours) = GatewayError::from_body_error(error) {
            return ours;
        }
        if let Some(ours) = GatewayError::from_parse_error(error) {
            return ours;
        }
        let kind = match error.status().as_u16() {
            404 => Kind::NotFound,
            405 => Kind::MethodNotAllowed,
            408 => Kind::RequestTimeout,
            413 => Kind::PayloadTooLarge,
            415 => Kind::UnsupportedMediaType,
            400..=499 => Kind::BadRequest,
            503 => Kind::Overloaded,
            _ => Kind::Internal,
        };
        // Texts of client faults say what was wrong with the request; those of server faults may tell too much.
        match kind.status().is_client_error() {
            true => GatewayError::new(kind, error.to_string()),
            false => kind.into(),
        }
    }
}

impl fmt::Display for GatewayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.code())?;
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for GatewayError {}

/// Why a request's body ends early: it grew beyond what the route takes. Travels inside an [`std::io::Error`] to
/// whoever reads the body, who finds it by [`GatewayError::from_body_error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyTooLarge {
    /// Bytes that the route takes.
    pub limit: u64,
}

/// Why a request's body ends early: nothing came of it for too long. Travels like [`BodyTooLarge`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyTimeout;

impl fmt::Display for BodyTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request body did not arrive in time")
    }
}

impl std::error::Error for BodyTimeout {}

impl From<BodyTimeout> for std::io::Error {
    fn from(late: BodyTimeout) -> Self {
        std::io::Error::new(std::io::ErrorKind::TimedOut, late)
    }
}

impl From<BodyTimeout> for GatewayError {
    /// Ends the connection too: what is left of the body may still come.
    fn from(_: BodyTimeout) -> Self {
        let late = GatewayError::new(Kind::RequestTimeout, "The request body did not arrive in time");
        GatewayError { close: true, ..late }
    }
}

impl fmt::Display for BodyTooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the request body is larger than {}", Size(self.limit))
    }
}

impl std::error::Error for BodyTooLarge {}

impl From<BodyTooLarge> for std::io::Error {
    fn from(cut: BodyTooLarge) -> Self {
        std::io::Error::other(cut)
    }
}

impl From<&BodyTooLarge> for GatewayError {
    fn from(cut: &BodyTooLarge) -> Self {
        GatewayError::new(Kind::PayloadTooLarge, format!("The limit here is {}", Size(cut.limit)))
    }
}

impl From<GatewayError> for poem::Error {
    fn from(error: GatewayError) -> Self {
        let status = error.kind.status();
        poem::Error::new(error, status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(value: &'static str) -> Lang {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::ACCEPT_LANGUAGE, HeaderValue::from_static(value));
        Lang::of(&headers)
    }

    #[test]
    fn language_is_negotiated() {
        assert_eq!(accepts("zh-CN,zh;q=0.9,en;q=0.8"), Lang::Zh);
        assert_eq!(accepts("en-GB, zh;q=0.5"), Lang::En);
        assert_eq!(accepts("de"), Lang::En);
        assert_eq!(accepts("zh;q=0"), Lang::En);
        assert_eq!(Lang::of(&HeaderMap::new()), Lang::En);
    }

    #[tokio::test]
    async fn the_body_is_the_contract() {
        let error = GatewayError::new(Kind::Overloaded, "3 of 3 slots taken");
        let response = error.respond("req-1", Lang::Zh);
        assert_eq!(response.status(), 503);
        assert_eq!(response.header("content-type"), Some("application/problem+json"));
        assert_eq!(response.header("retry-after"), Some("1"));
        let body: serde_json::Value =
            serde_json::from_str(&response.into_body().into_string().await.unwrap()).unwrap();
        assert_eq!(body["error"], "服务繁忙，请稍后重试");
        assert_eq!(body["code"], "overloaded");
        assert_eq!(body["request_id"], "req-1");
        assert_eq!(body["status"], 503);
        assert_eq!(body["retry_after"], 1);
        assert_eq!(body["detail"], "3 of 3 slots taken");
    }

    #[test]
    fn a_cut_body_is_found_in_any_chain_of_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("sending failed")]
        struct Sending(#[source] std::io::Error);
        let cut = || std::io::Error::from(BodyTooLarge { limit: 1024 });
        for error in [
            &cut() as &(dyn std::error::Error + 'static),
            &Sending(cut()),
            &std::io::Error::other(Sending(std::io::Error::other(cut()))),
        ] {
            let found = GatewayError::from_body_error(error).unwrap();
            assert_eq!(found.kind, Kind::PayloadTooLarge);
            assert_eq!(found.detail.as_deref(), Some("The limit here is 1KiB"));
        }
        let other = std::io::Error::other(Sending(std::io::ErrorKind::ConnectionReset.into()));
        assert!(GatewayError::from_body_error(&other).is_none());
        let read = poem::Error::from(poem::error::ReadBodyError::Io(cut()));
        assert_eq!(GatewayError::of(&read).kind, Kind::PayloadTooLarge);
    }

    #[test]
    fn codes_are_unique() {
        let mut codes: Vec<_> = Kind::ALL.iter().map(|k| k.code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Kind::ALL.len());
    }

    #[test]
    fn server_faults_tell_callers_nothing() {
        let error = poem::Error::from_string("SELECT secret", StatusCode::INTERNAL_SERVER_ERROR);
        assert!(GatewayError::of(&error).detail.is_none());
    }
}
