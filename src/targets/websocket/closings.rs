//! Why the gateway itself closes a WebSocket, for who has to tell one reason from another: what upstreams close with
//! passes as it is.

use crate::ws::SocketLimits;
use crate::ws::frame::CloseCode;
use serde_json::{Value, json};

/// Code, reason as it is sent, and what it means to the caller.
const CLOSINGS: [(CloseCode, &str, &str); 12] = [
    (CloseCode::GOING_AWAY, "shutting_down", "The gateway goes down: connect anew."),
    (CloseCode::GOING_AWAY, "idle", "Nothing was heard for `idle`, not even a pong."),
    (CloseCode::PROTOCOL, "bad_length", "A frame's length is none that may be."),
    (CloseCode::NOT_READ, "text_only", "Binary messages are not read here."),
    (CloseCode::POLICY, "rate_limited", "More came in a second than `max_rate` or `max_bytes_rate` allows."),
    (CloseCode::TOO_BIG, "message_too_big", "A message is larger than `max_message`."),
    (CloseCode::BROKE, "upstream_broke", "The service broke off: connect anew, a little later."),
    (CloseCode::RESTART, "route_removed", "This is not served any more."),
    (CloseCode::REAUTH, "token_expired", "The token has expired: connect with another."),
    (CloseCode::REAUTH, "token_revoked", "The token was revoked: log in anew."),
    (CloseCode::REPLACED, "replaced", "The same user has connected again: do not reconnect by yourself."),
    (CloseCode::NOT_TEXT, "", "A text message is not UTF-8."),
];

/// Those that callers of a route may meet. Only a `bridge` reads messages itself.
pub(super) fn document(limits: &SocketLimits, bridge: bool) -> Value {
    let met = CLOSINGS.iter().filter(|(code, ..)| match *code {
        CloseCode::NOT_READ | CloseCode::NOT_TEXT => bridge,
        CloseCode::POLICY => limits.max_rate.is_some() || limits.max_bytes_rate.is_some(),
        CloseCode::REPLACED => limits.takeover,
        _ => true,
    });
    met.map(|(code, reason, about)| json!({ "code": code.0, "reason": reason, "description": about }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_that_is_sent_is_described() {
        let source = [include_str!("tunnel.rs"), include_str!("bridge.rs")].concat();
        for (_, reason, _) in CLOSINGS.iter().filter(|(_, reason, _)| !reason.is_empty()) {
            assert!(source.contains(&format!("\"{reason}\"")), "{reason} is never sent");
        }
        let sent = source.split("CloseCode::").skip(1).filter_map(|rest| {
            let (name, rest) = rest.split_once([',', ')'])?;
            let reason = rest.trim_start().strip_prefix('"')?.split('"').next()?;
            Some((name, reason)).filter(|(_, reason)| !reason.is_empty())
        });
        let sent: Vec<_> = sent.collect();
        assert!(sent.len() >= 8, "{sent:?}");
        for (name, reason) in sent {
            assert!(CLOSINGS.iter().any(|(_, known, _)| *known == reason), "{name} {reason}");
        }
    }
}
