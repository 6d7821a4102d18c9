//! What the gateway itself says in an event stream, as a type: the texts that are sent are written out beside it, so that
//! saying them costs nothing, and the tests hold them to be the same.

use schemars::JsonSchema;
use serde::Serialize;

/// An event of the gateway's own. Nothing follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Notice {
    /// The gateway ends the stream: what came is not whole.
    #[schemars(extend("x-event" = "error"))]
    Error {
        /// Why.
        code: Broken,
    },
    /// The token that the stream was opened with is over.
    #[schemars(extend("x-event" = "reauth"))]
    Reauth {
        /// Whether another token is enough, or another login is needed.
        code: Over,
    },
}

/// Why a stream is not whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Broken {
    /// The upstream broke off.
    UpstreamInterrupted,
    /// No event came for too long.
    StreamIdle,
    /// The stream lasted too long.
    StreamTooLong,
    /// The gateway goes down.
    ShuttingDown,
}

/// Why a caller's time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Over {
    /// The token has expired: come back with another.
    TokenExpired,
    /// The token was revoked: come back after another login.
    TokenRevoked,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Kind, further};
    use crate::sse;

    #[test]
    fn what_is_sent_is_what_the_type_says() {
        for (text, notice) in [
            (sse::INTERRUPTED, Notice::Error { code: Broken::UpstreamInterrupted }),
            (sse::IDLE, Notice::Error { code: Broken::StreamIdle }),
            (sse::TOO_LONG, Notice::Error { code: Broken::StreamTooLong }),
            (sse::SHUTTING_DOWN, Notice::Error { code: Broken::ShuttingDown }),
            (sse::TOKEN_EXPIRED, Notice::Reauth { code: Over::TokenExpired }),
            (sse::TOKEN_REVOKED, Notice::Reauth { code: Over::TokenRevoked }),
        ] {
            let name = if matches!(notice, Notice::Error { .. }) { "error" } else { "reauth" };
            assert_eq!(text, format!("event: {name}\ndata: {}\n\n", serde_json::to_string(&notice).unwrap()));
            let said = serde_json::to_value(notice).unwrap();
            let code = said["code"].as_str().unwrap();
            let explained = Kind::ALL.iter().any(|kind| kind.code() == code) || further(code).is_some();
            assert!(explained, "{code} is not in the catalogue");
        }
    }
}
