//! `security_headers`: tells browsers to be careful with what comes from here.
//!
//! Sets the headers that the OWASP REST cheat sheet asks of an API, on errors too, and only where the target did not
//! set them itself. `Strict-Transport-Security` goes out on TLS only, where browsers heed it (RFC 6797, section 7.2).
//! Each header can be replaced, or left out with `off`; all of them by leaving the stage out. Pages that load scripts
//! or styles need their own `content_security_policy`: the default is an API's and loads nothing.

use super::{Body, BuildCx, Hook, Layer, Stage, StageCx, StageDecl};
use crate::diag::{Code, Diagnostic};
use crate::exchange::Exchange;
use crate::manifest::Spanned;
use http::header::{
    CONTENT_SECURITY_POLICY, Entry, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use http::{HeaderName, HeaderValue};
use poem::Response;
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;

/// Sets headers that make browsers careful; each is a value, or `off`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecurityHeaders {
    /// `X-Content-Type-Options` (default `nosniff`).
    pub content_type_options: Option<Spanned<String>>,
    /// `X-Frame-Options` (default `DENY`).
    pub frame_options: Option<Spanned<String>>,
    /// `Referrer-Policy` (default `no-referrer`).
    pub referrer_policy: Option<Spanned<String>>,
    /// `Content-Security-Policy` (default `default-src 'none'; frame-ancestors 'none'`).
    pub content_security_policy: Option<Spanned<String>>,
    /// `Cross-Origin-Resource-Policy` (default `same-origin`); calls that CORS allows are not touched by it.
    pub cross_origin_resource_policy: Option<Spanned<String>>,
    /// `Strict-Transport-Security`, on TLS only (default `max-age=31536000`).
    pub strict_transport_security: Option<Spanned<String>>,
}

const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

impl StageDecl for SecurityHeaders {
    const NAME: &'static str = "security_headers";
    const ABOUT: &'static str = "Sets headers that make browsers careful, where the target sets none";
    const BODY: Body = Body::Optional;

    fn check(self, cx: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        let given = [
            (X_CONTENT_TYPE_OPTIONS, self.content_type_options, "nosniff"),
            (X_FRAME_OPTIONS, self.frame_options, "DENY"),
            (REFERRER_POLICY, self.referrer_policy, "no-referrer"),
            (
                CONTENT_SECURITY_POLICY,
                self.content_security_policy,
                "default-src 'none'; frame-ancestors 'none'",
            ),
            (CROSS_ORIGIN_RESOURCE_POLICY, self.cross_origin_resource_policy, "same-origin"),
        ];
        let always = given
            .into_iter()
            .filter_map(|(name, given, default)| Some((name, value_of(given, default, cx)?)))
            .collect();
        let on_tls = value_of(self.strict_transport_security, "max-age=31536000", cx);
        Some(Arc::new(Compiled(Arc::new(Values { always, on_tls }))))
    }
}

fn value_of(
    given: Option<Spanned<String>>,
    default: &'static str,
    cx: &mut StageCx<'_>,
) -> Option<HeaderValue> {
    let Some(given) = given else { return Some(HeaderValue::from_static(default)) };
    if given.value == "off" {
        return None;
    }
    match HeaderValue::from_str(given.trim()) {
        Ok(value) if !value.is_empty() => Some(value),
        _ => {
            cx.out.push(
                Diagnostic::error(Code::BAD_VALUE, given.span, "this is not a header value")
                    .help("write visible text on one line, or `off`"),
            );
            None
        }
    }
}

#[derive(Debug)]
struct Values {
    always: Vec<(HeaderName, HeaderValue)>,
    on_tls: Option<HeaderValue>,
}

struct Compiled(Arc<Values>);

impl Stage for Compiled {
    fn name(&self) -> &'static str {
        SecurityHeaders::NAME
    }

    fn layer(&self, _: &BuildCx<'_>) -> Layer {
        Layer::Hook(Box::new(Compiled(self.0.clone())))
    }

    fn is_common(&self) -> bool {
        true
    }
}

impl Hook for Compiled {
    fn response(&self, exchange: &Arc<Exchange>, response: &mut Response) {
        let headers = response.headers_mut();
        let on_tls = self.0.on_tls.as_ref().filter(|_| exchange.secure);
        let on_tls = on_tls.map(|value| (&STRICT_TRANSPORT_SECURITY, value));
        let always = self.0.always.iter().map(|(name, value)| (name, value));
        for (name, value) in always.chain(on_tls) {
            if let Entry::Vacant(free) = headers.entry(name) {
                free.insert(value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{answering, around, check, exchange_of, request, send};
    use super::*;
    use crate::error::Lang;
    use crate::exchange::Arrival;
    use http::Method;

    #[tokio::test]
    async fn defaults_are_set_where_nothing_is() {
        let next = around(
            "security_headers",
            answering(|| Response::builder().header("x-frame-options", "SAMEORIGIN").finish()),
        );
        let response = send(&next, request(Method::GET, &[])).await;
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "SAMEORIGIN"),
            ("referrer-policy", "no-referrer"),
            ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            let all: Vec<_> = response.headers().get_all(name).iter().collect();
            assert_eq!(all, [value], "{name}");
        }
        assert_eq!(response.header("strict-transport-security"), None, "not without TLS");
    }

    #[tokio::test]
    async fn tls_gets_hsts() {
        let next = around("security_headers", answering(Response::default));
        let mut secure = request(Method::GET, &[]);
        let plain = exchange_of(&secure);
        secure.set_data(Exchange::begin(Arrival {
            peer: plain.peer,
            client_ip: plain.client_ip,
            secure: true,
            method: Method::GET,
            path: "/t".into(),
            lang: Lang::En,
        }));
        let response = send(&next, secure).await;
        assert_eq!(response.header("strict-transport-security"), Some("max-age=31536000"));
    }

    #[tokio::test]
    async fn each_can_be_replaced_or_left_out() {
        let next = around(
            "security_headers: { frame_options: off, content_security_policy: \"default-src 'self'\" }",
            answering(Response::default),
        );
        let response = send(&next, request(Method::GET, &[])).await;
        assert_eq!(response.header("x-frame-options"), None);
        assert_eq!(response.header("content-security-policy"), Some("default-src 'self'"));
        assert_eq!(response.header("x-content-type-options"), Some("nosniff"));
    }

    #[test]
    fn a_value_must_be_one() {
        let faults =
            check("security_headers: { frame_options: \"\", referrer_policy: \"a\\nb\" }", "").faults;
        assert_eq!(faults.len(), 2, "{faults:?}");
    }
}
