//! What a caller offers in `Sec-WebSocket-Protocol` (RFC 6455, section 11.3.4).
//!
//! A browser cannot set a header of its own on a WebSocket, so a token may come as one more subprotocol:
//! `voicegate.v1, bearer.<jwt>`. A token is never echoed, forwarded or logged (SECURITY rule 10).

use http::header::SEC_WEBSOCKET_PROTOCOL;
use http::{HeaderMap, HeaderValue};

/// The gateway's own subprotocol: what it selects where a token came beside it and the upstream selects none.
pub const SUBPROTOCOL: &str = "voicegate.v1";

/// What stands before a token.
const BEARER: &str = "bearer.";

/// Subprotocols offered, without those that are tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer<'a> {
    /// The first token, if one came.
    pub token: Option<&'a str>,
    /// The others, in the caller's order.
    pub names: Vec<&'a str>,
}

impl<'a> Offer<'a> {
    /// Of a request's headers. Values that are not text offer nothing.
    pub fn of(headers: &'a HeaderMap) -> Self {
        let mut offer = Offer::default();
        let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
        let names = values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
        for name in names.map(str::trim).filter(|name| !name.is_empty()) {
            match name.strip_prefix(BEARER) {
                Some(token) => offer.token = offer.token.or(Some(token)),
                None => offer.names.push(name),
            }
        }
        offer
    }

    /// Whether the caller knows the gateway's own subprotocol.
    pub fn knows_ours(&self) -> bool {
        self.names.contains(&SUBPROTOCOL)
    }

    /// What an upstream may see: without tokens and without the gateway's own. `None` where nothing is left.
    pub fn forwarded(&self) -> Option<HeaderValue> {
        let names: Vec<_> = self.names.iter().copied().filter(|name| *name != SUBPROTOCOL).collect();
        // Its parts were a header's text, so the whole is one.
        (!names.is_empty()).then(|| HeaderValue::from_str(&names.join(", ")).ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_token_is_found_and_goes_no_further() {
        let headers = headers(&["chat, voicegate.v1", "bearer.a.b.c , bearer.d,,soap"]);
        let offer = Offer::of(&headers);
        assert_eq!(offer.token, Some("a.b.c"));
        assert_eq!(offer.names, ["chat", "voicegate.v1", "soap"]);
        assert!(offer.knows_ours());
        assert_eq!(offer.forwarded().unwrap(), "chat, soap");
    }

    #[test]
    fn nothing_is_offered_where_nothing_is_left() {
        assert_eq!(Offer::of(&headers(&["voicegate.v1, bearer.x"])).forwarded(), None);
        assert_eq!(Offer::of(&HeaderMap::new()), Offer::default());
    }
}
