//! Codes that are no refusals of the gateway's own: what a failed gRPC call is called where the service gives no reason, and
//! why a stream ended early. Callers meet them as `code` too, so that the catalogue has them.

/// One of these codes.
#[derive(Debug)]
pub struct Further {
    /// The code; stable.
    pub code: &'static str,
    /// Where it is met: an HTTP status, or a stream.
    pub place: &'static str,
    /// For people, in English.
    pub en: &'static str,
    /// For people, in Chinese.
    pub zh: &'static str,
    /// What brings it about.
    pub cause: &'static str,
    /// What the caller, or whoever runs the gateway, can do about it.
    pub cure: &'static str,
}

/// The one of this name.
pub fn further(code: &str) -> Option<&'static Further> {
    FURTHER.iter().find(|further| further.code == code)
}

macro_rules! further {
    ($($code:literal, $place:literal, $en:literal, $zh:literal, $cause:literal, $cure:literal;)*) => {
        /// All of them: first those of gRPC calls, then those of streams.
        pub const FURTHER: &[Further] = &[$(Further {
            code: $code, place: $place, en: $en, zh: $zh, cause: $cause, cure: $cure,
        }),*];
    };
}

further! {
    "cancelled", "499", "The call was cancelled", "调用已取消",
        "The gRPC service behind the route gave the call up.",
        "Call again if the answer is still wanted.";
    "unknown", "500", "The service behind this route failed", "后端服务出错",
        "The gRPC service failed and did not say how.",
        "Try again later; operators look in the service's log for the request id.";
    "invalid_argument", "400", "The request is not acceptable", "请求参数无效",
        "The gRPC service does not take what was sent; `error` is what it says.",
        "Correct the request as `error` and `errors` say.";
    "already_exists", "409", "There is one already", "资源已存在",
        "What was to be made is there already.",
        "Use what is there, or another name.";
    "resource_exhausted", "429", "A limit is reached", "资源已耗尽",
        "A limit of the service's own is reached, not one of the gateway's.",
        "Wait as long as `Retry-After` says, then call again.";
    "failed_precondition", "400", "This cannot be done now", "前置条件不满足",
        "What is there is not in the state that the call needs.",
        "Read it, bring it into that state, and call again.";
    "aborted", "409", "Something else came in between", "操作已中止",
        "Somebody else changed the same thing meanwhile.",
        "Read it anew, and repeat the change.";
    "out_of_range", "400", "There is nothing that far", "超出范围",
        "The call asks for what is behind the end.",
        "Ask for less, or begin anew.";
    "unimplemented", "501", "The service behind this route cannot do that", "后端服务不支持该操作",
        "The gRPC service does not have the method that the route names, or not yet.",
        "Operators compare the route's `grpc:` with the service's version.";
    "internal", "500", "The service behind this route failed", "后端服务出错",
        "The gRPC service failed.",
        "Try again later; operators look in the service's log for the request id.";
    "data_loss", "500", "The service behind this route failed", "后端服务出错",
        "The gRPC service lost what it should have kept.",
        "Operators look in the service's log for the request id.";
    "unauthenticated", "401", "The service does not know who is calling", "未通过身份验证",
        "The gRPC service asks for more than the gateway passes on of the caller.",
        "Log in again; operators look at what the upstream's `forward` passes on.";
    "upstream_interrupted", "in streams", "The service behind the stream broke off", "后端服务中断了数据流",
        "The service ended or lost the connection amid a stream.",
        "What came is not whole: ask again, or go on with `Last-Event-ID` where the operation takes it.";
    "stream_idle", "in streams", "No event came for too long", "数据流长时间没有新事件",
        "The service said nothing for as long as the route's `stream.idle` or `first_event`.",
        "Ask again; operators raise the limit where the service needs longer.";
    "stream_too_long", "in streams", "The stream lasted too long", "数据流超过时长上限",
        "The stream reached the route's `stream.max`.",
        "Open it anew; operators raise the limit where streams shall last longer.";
    "stream_too_large", "in streams", "The answer is too large", "回答超过大小上限",
        "An answer of a chat reached the route's `stream.max_size`; what was said by then is stored.",
        "Ask for less; operators raise the limit.";
    "upstream_closed", "in streams", "The service closed the WebSocket behind the stream", "后端服务已关闭连接",
        "The service closed for a reason other than being done; `close_code` and `reason` are its own.",
        "Go by `reason`; ask again where it says nothing else.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use std::collections::BTreeSet;

    #[test]
    fn each_code_is_explained_once() {
        let codes: BTreeSet<&str> = FURTHER.iter().map(|further| further.code).collect();
        assert_eq!(codes.len(), FURTHER.len());
        assert!(Kind::ALL.iter().all(|kind| !codes.contains(kind.code())));
    }
}
