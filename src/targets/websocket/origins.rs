//! Whose pages may connect (SECURITY rule 12). A browser lets any page open a WebSocket anywhere and says only in
//! `Origin` whose it is, so this stands where CORS stands for other requests.
//!
//! With a policy, its origins may, exactly, and nobody else's; a page of the gateway's own host has to be listed too.
//! Without one, pages of the host that was called may. Who sends no `Origin` is no browser, and may in both cases.

use crate::manifest::model::Cors;
use http::header::{HOST, ORIGIN};
use http::{HeaderMap, HeaderValue};
use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};

/// Origins that may connect.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Origins {
    /// Those of the host that was called.
    Same,
    /// Every one.
    Any,
    /// These.
    Listed(BTreeSet<Box<[u8]>>),
}

impl Origins {
    /// Those of a policy, whose own faults are told by its own check.
    pub(super) fn of(policy: &Cors) -> Self {
        let mut origins = policy.origins.0.iter().map(|origin| origin.value.as_str());
        match origins.clone().any(|origin| origin == "*") {
            true => Origins::Any,
            false => Origins::Listed(origins.by_ref().map(|origin| origin.as_bytes().into()).collect()),
        }
    }

    /// Feeds what they are to the route's identity.
    pub(super) fn identify(&self, state: &mut dyn Hasher) {
        let mut state = state;
        self.hash(&mut state);
    }

    /// Whether a request may connect.
    pub(super) fn allow(&self, headers: &HeaderMap) -> bool {
        let mut origins = headers.get_all(ORIGIN).iter();
        let Some(origin) = origins.next() else { return true };
        if origins.next().is_some() {
            return false;
        }
        match self {
            Origins::Any => true,
            Origins::Listed(listed) => listed.contains(origin.as_bytes()),
            Origins::Same => headers.get(HOST).is_some_and(|host| is_of(origin, host)),
        }
    }
}

/// Whether an origin is a page's of this host. Its scheme does not count: what stands before the gateway may end TLS.
fn is_of(origin: &HeaderValue, host: &HeaderValue) -> bool {
    let (Ok(origin), Ok(host)) = (origin.to_str(), host.to_str()) else { return false };
    let (default, rest) = match (origin.strip_prefix("http://"), origin.strip_prefix("https://")) {
        (Some(rest), _) => (":80", rest),
        (_, Some(rest)) => (":443", rest),
        (None, None) => return false,
    };
    // A browser leaves out the scheme's own port in both.
    let host = host.strip_suffix(default).unwrap_or(host);
    !rest.is_empty() && rest.strip_suffix(default).unwrap_or(rest).eq_ignore_ascii_case(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(origins: &[&'static str], host: &'static str) -> HeaderMap {
        let origins = origins.iter().map(|origin| (ORIGIN, HeaderValue::from_static(origin)));
        origins.chain([(HOST, HeaderValue::from_static(host))]).collect()
    }

    #[test]
    fn without_a_policy_pages_of_the_same_host_may() {
        for (origin, host, may) in [
            ("http://a.example", "a.example", true),
            ("https://a.example", "A.example", true),
            ("https://a.example", "a.example:443", true),
            ("http://a.example:8080", "a.example:8080", true),
            ("http://a.example:8080", "a.example", false),
            ("https://a.example", "a.example:80", false),
            ("https://b.example", "a.example", false),
            ("https://a.example.evil", "a.example", false),
            ("null", "a.example", false),
            ("http://", "", false),
            ("ftp://a.example", "a.example", false),
        ] {
            assert_eq!(Origins::Same.allow(&headers(&[origin], host)), may, "{origin} at {host}");
        }
        assert!(Origins::Same.allow(&headers(&[], "a.example")), "no browser");
    }

    #[test]
    fn with_a_policy_its_origins_may_and_no_other() {
        let listed = Origins::Listed([Box::from(&b"https://app.example"[..])].into());
        assert!(listed.allow(&headers(&["https://app.example"], "a.example")));
        assert!(!listed.allow(&headers(&["https://a.example"], "a.example")));
        assert!(!listed.allow(&headers(&["HTTPS://app.example"], "a.example")));
        assert!(listed.allow(&headers(&[], "a.example")));
        let two = ["https://app.example", "https://app.example"];
        assert!(
            !listed.allow(&headers(&two, "a.example")) && !Origins::Any.allow(&headers(&two, "a.example"))
        );
    }
}
