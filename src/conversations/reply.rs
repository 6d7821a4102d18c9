//! What the model says, gathered from the events it is told in.
//!
//! Forms as in the seed: `{"type":"start"}`, `{"type":"token","content"}`, `{"type":"end","total_tokens"}`,
//! `{"type":"error"}`. Events of other forms pass to the caller and say nothing here.

use crate::sse::fields;
use serde::Deserialize;
use std::borrow::Cow;

/// What was said so far.
#[derive(Debug, Default)]
pub(super) struct Reply {
    text: String,
    tokens: u64,
    total: Option<u64>,
}

/// What one event means for the turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// It goes on.
    GoesOn,
    /// It said something more.
    Says,
    /// The reply is whole.
    Ends,
    /// The upstream says that it failed.
    Fails,
}

#[derive(Deserialize)]
struct Data<'d> {
    #[serde(rename = "type", borrow)]
    kind: Option<Cow<'d, str>>,
    #[serde(borrow)]
    content: Option<Cow<'d, str>>,
    total_tokens: Option<u64>,
}

impl Reply {
    /// Takes in an event.
    pub(super) fn take(&mut self, event: &[u8]) -> Meaning {
        let mut lines = fields(event, "data");
        let Some(first) = lines.next() else { return Meaning::GoesOn };
        // One line, nearly always.
        let data = match lines.next() {
            None => Cow::Borrowed(first),
            Some(second) => {
                let mut whole = format!("{first}\n{second}");
                for line in lines {
                    whole.push('\n');
                    whole.push_str(line);
                }
                Cow::Owned(whole)
            }
        };
        let Ok(said) = serde_json::from_str::<Data<'_>>(&data) else { return Meaning::GoesOn };
        match said.kind.as_deref() {
            Some("end" | "done") => {
                self.total = said.total_tokens;
                Meaning::Ends
            }
            Some("error") => Meaning::Fails,
            // As in the original, whatever has content says something.
            Some("token") | None => match said.content.as_deref() {
                Some(content) => {
                    self.text.push_str(content);
                    self.tokens += 1;
                    Meaning::Says
                }
                None => Meaning::GoesOn,
            },
            Some(_) => Meaning::GoesOn,
        }
    }

    /// The text so far.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Its tokens: as the upstream says, else as many as came.
    pub(super) fn tokens(&self) -> u64 {
        self.total.unwrap_or(self.tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_gathered_from_the_seed_s_events() {
        let mut reply = Reply::default();
        assert_eq!(reply.take(br#"data: {"type": "start", "session_id": "x"}"#), Meaning::GoesOn);
        assert_eq!(reply.take("data: {\"type\":\"token\",\"content\":\"你\"}\n".as_bytes()), Meaning::Says);
        assert_eq!(reply.take(br#"data: {"content":"\n\"ok\""}"#), Meaning::Says);
        assert_eq!((reply.text(), reply.tokens()), ("你\n\"ok\"", 2));
        assert_eq!(reply.take(br#"data: {"type":"end","total_tokens":50}"#), Meaning::Ends);
        assert_eq!(reply.tokens(), 50);
    }

    #[test]
    fn what_is_no_token_says_nothing() {
        let mut reply = Reply::default();
        for event in
            ["data: [DONE]", "event: x", "data: {\"type\":\"tool\",\"content\":\"no\"}", "data: 1", ""]
        {
            assert_eq!(reply.take(event.as_bytes()), Meaning::GoesOn, "{event}");
        }
        assert_eq!(
            reply.take(b"event: error\ndata: {\"type\":\"error\",\ndata: \"code\":1}"),
            Meaning::Fails
        );
        assert_eq!((reply.text(), reply.tokens()), ("", 0));
    }
}
