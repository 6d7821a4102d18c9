//! The events of an answer, as a type: what the gateway says in place of an upstream is written by it, and callers are
//! told of all of them by it.

use crate::sse::Over;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;

/// An event of an answer. Go by `type`, and pass over types that you do not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ChatEvent {
    /// The answer begins.
    #[schemars(extend("x-event" = "message"))]
    Start {
        /// The session it belongs to.
        session_id: String,
    },
    /// The next piece of the answer.
    #[schemars(extend("x-event" = "message"))]
    Token {
        /// The piece.
        content: String,
    },
    /// The answer is whole, and stored. Nothing follows.
    #[schemars(extend("x-event" = "message"))]
    End {
        /// How many tokens there were.
        total_tokens: u64,
    },
    /// Somebody stopped the answer; what was said is stored. Nothing follows.
    #[schemars(extend("x-event" = "message"))]
    Cancelled {},
    /// The answer failed; what was said is stored. Nothing follows.
    #[schemars(extend("x-event" = ["error", "message"]))]
    Error {
        /// Why, in a word that stays.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schemars(with = "String")]
        #[serde(default)]
        code: Option<String>,
        /// Why, for people, where the service behind it says so.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schemars(with = "String")]
        #[serde(default)]
        error: Option<String>,
    },
    /// The caller's token is over; the answer goes on, and can be read on with another (`Last-Event-ID`).
    #[schemars(extend("x-event" = "reauth"))]
    Reauth {
        /// Whether another token is enough, or another login is needed.
        code: Over,
    },
}

impl ChatEvent {
    /// That an answer failed, for a reason of the gateway's own.
    pub(super) fn failed(code: &str) -> Self {
        ChatEvent::Error { code: Some(code.to_owned()), error: None }
    }

    /// Its lines, under an id.
    pub(super) fn numbered(&self, id: &str) -> Bytes {
        // Texts and numbers under texts.
        let data = serde_json::to_string(self).unwrap_or_default();
        Bytes::from(format!("data: {data}\nid: {id}\n\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::turn::{CANCELLED, TOO_LARGE};
    use super::*;

    #[test]
    fn what_is_written_out_is_what_the_type_says() {
        let data = |event: &ChatEvent| format!("data: {}\n", serde_json::to_string(event).unwrap());
        assert_eq!(CANCELLED, data(&ChatEvent::Cancelled {}));
        assert_eq!(TOO_LARGE, format!("event: error\n{}", data(&ChatEvent::failed("stream_too_large"))));
        let start = ChatEvent::Start { session_id: "s".to_owned() };
        assert_eq!(start.numbered("t:1"), "data: {\"type\":\"start\",\"session_id\":\"s\"}\nid: t:1\n\n");
    }
}
