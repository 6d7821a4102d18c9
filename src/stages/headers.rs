//! `headers`: sets, adds and removes headers of requests and responses.
//!
//! On the way in for what stands further in and the upstream, on the way out for the caller, errors included.
//! `remove` comes first, then `set` (replaces), then `add` (keeps what is there); each mapping in its own order.
//!
//! Refused, because somebody else decides them: hop-by-hop headers (RFC 9110, section 7.6.1), `Host`,
//! `Content-Length`, and in requests the identity headers `X-User-*` and `X-Tenant-*`, which only the gateway's own
//! authentication may set (SECURITY rule 4). Off by leaving it out.

use super::{Body, BuildCx, Hook, Layer, Stage, StageCx, StageDecl, Stop};
use crate::diag::{Code, Diagnostic, Diagnostics, Span};
use crate::exchange::Exchange;
use crate::manifest::{List, Spanned, Table};
use http::{HeaderMap, HeaderName, HeaderValue};
use poem::{Request, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;

/// Changes headers; removes first, then sets, then adds.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Headers {
    /// Of the request, before what stands further in sees it.
    pub request: Option<HeaderChanges>,
    /// Of the response, on its way to the caller.
    pub response: Option<HeaderChanges>,
}

/// Changes to a message's headers (default none).
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HeaderChanges {
    /// Headers that get this value instead of any other.
    #[serde(default)]
    pub set: Table<Spanned<String>>,
    /// Headers that get this value beside what they have.
    #[serde(default)]
    pub add: Table<Spanned<String>>,
    /// Headers that are taken away.
    #[serde(default)]
    pub remove: List<String>,
}

/// The same, parsed.
#[derive(Debug, Default, PartialEq)]
struct Changes {
    remove: Vec<HeaderName>,
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Side {
    Request,
    Response,
}

impl StageDecl for Headers {
    const NAME: &'static str = "headers";
    const ABOUT: &'static str = "Sets, adds and removes headers of requests and responses";
    const BODY: Body = Body::Optional;

    fn check(self, cx: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        let before = cx.out.counts().0;
        let request = Changes::parse(self.request.unwrap_or_default(), Side::Request, cx.out);
        let response = Changes::parse(self.response.unwrap_or_default(), Side::Response, cx.out);
        if cx.out.counts().0 == before && request == Changes::default() && response == Changes::default() {
            cx.out.push(
                Diagnostic::error(Code::MISSING_KEY, cx.span, "stage `headers` changes nothing")
                    .help("write `headers: { response: { set: { X-Name: value } } }`"),
            );
            return None;
        }
        Some(Arc::new(Compiled(Arc::new(Both { request, response }))))
    }
}

impl Changes {
    fn parse(typed: HeaderChanges, side: Side, out: &mut Diagnostics) -> Self {
        let remove =
            typed.remove.0.iter().filter_map(|name| changeable(name, name.span, side, out)).collect();
        let mut pairs = |table: &Table<Spanned<String>>| {
            let mut parsed = Vec::with_capacity(table.0.len());
            for (key, value) in &table.0 {
                let name = changeable(&key.text, key.span, side, out);
                let value = header_value(value, out);
                parsed.extend(name.zip(value));
            }
            parsed
        };
        Changes { set: pairs(&typed.set), add: pairs(&typed.add), remove }
    }

    fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
    }
}

fn header_value(value: &Spanned<String>, out: &mut Diagnostics) -> Option<HeaderValue> {
    let parsed = HeaderValue::from_str(value.trim()).ok();
    if parsed.is_none() {
        out.push(
            Diagnostic::error(Code::BAD_VALUE, value.span, "this is not a header value")
                .help("a header value is text on one line, without control characters"),
        );
    }
    parsed
}

/// The name, unless it is none, or not the manifest's to change.
pub(super) fn changeable(text: &str, span: Span, side: Side, out: &mut Diagnostics) -> Option<HeaderName> {
    let mut fault = |message: &str, help: &str| {
        out.push(Diagnostic::error(Code::BAD_VALUE, span, message).help(help));
        None
    };
    let Ok(name) = text.parse::<HeaderName>() else {
        return fault("this is not a header name", "a header name is letters, digits and hyphens");
    };
    // Services behind may read `X_User.ID` as `X-User-ID`.
    let folded = name.as_str().replace(['_', '.'], "-");
    match folded.as_str() {
        "connection"
        | "keep-alive"
        | "proxy-authenticate"
        | "proxy-authorization"
        | "proxy-connection"
        | "te"
        | "trailer"
        | "transfer-encoding"
        | "upgrade" => {
            fault("this header belongs to one connection", "the gateway sets hop-by-hop headers itself")
        }
        "host" | "content-length" => {
            fault("this header follows from the message", "the gateway sets it itself")
        }
        _ if side == Side::Request && (folded.starts_with("x-user-") || folded.starts_with("x-tenant-")) => {
            fault(
                "this header says who the caller is",
                "only authentication sets identity headers; upstreams believe them",
            )
        }
        _ => Some(name),
    }
}

#[derive(Debug)]
struct Both {
    request: Changes,
    response: Changes,
}

struct Compiled(Arc<Both>);

impl Stage for Compiled {
    fn name(&self) -> &'static str {
        Headers::NAME
    }

    fn layer(&self, _: &BuildCx<'_>) -> Layer {
        Layer::Hook(Box::new(Compiled(self.0.clone())))
    }

    fn is_common(&self) -> bool {
        true
    }
}

impl Hook for Compiled {
    fn request(&self, _: &Arc<Exchange>, request: &mut Request) -> Result<(), Stop> {
        self.0.request.apply(request.headers_mut());
        Ok(())
    }

    fn response(&self, _: &Arc<Exchange>, response: &mut Response) {
        self.0.response.apply(response.headers_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{around, check, request, send, target};
    use super::*;
    use http::Method;

    fn texts(headers: &HeaderMap, name: &str) -> Vec<String> {
        headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn removes_then_sets_then_adds() {
        let next = around(
            "headers: { request: { set: { X-B: two }, add: { X-A: last, X-C: more }, remove: [X-A] }, response: { set: { Server: gate }, remove: [X-Powered-By] } }",
            target(|request| async move {
                let seen = |name| texts(request.headers(), name).join("|");
                let text = format!("{};{};{}", seen("x-a"), seen("x-b"), seen("x-c"));
                Ok(Response::builder().header("server", "x").header("x-powered-by", "y").body(text))
            }),
        );
        let headers = [("x-a", "first"), ("x-b", "one"), ("x-b", "uno"), ("x-c", "some")];
        let response = send(&next, request(Method::GET, &headers)).await;
        assert_eq!(texts(response.headers(), "server"), ["gate"]);
        assert_eq!(response.header("x-powered-by"), None);
        assert_eq!(response.into_body().into_string().await.unwrap(), "last;two;some|more");
    }

    #[test]
    fn what_is_not_the_manifests_is_refused() {
        let stage = "\
headers:
  request:
    set: { Host: a, X_User.ID: root, Connection: close, \"a b\": c, Fine: \"a\\nb\" }
    add: { Transfer-Encoding: chunked }
    remove: [X-Tenant-ID, Content-Length]
  response: { set: { X-User-Name: allowed }, remove: [Upgrade] }
";
        let faults = check(stage, "").faults;
        assert_eq!(
            faults,
            [
                "s:3:12 VG011 this header follows from the message [the gateway sets it itself]",
                "s:3:21 VG011 this header says who the caller is [only authentication sets identity headers; upstreams believe them]",
                "s:3:38 VG011 this header belongs to one connection [the gateway sets hop-by-hop headers itself]",
                "s:3:57 VG011 this is not a header name [a header name is letters, digits and hyphens]",
                "s:3:73 VG011 this is not a header value [a header value is text on one line, without control characters]",
                "s:4:12 VG011 this header belongs to one connection [the gateway sets hop-by-hop headers itself]",
                "s:5:14 VG011 this header says who the caller is [only authentication sets identity headers; upstreams believe them]",
                "s:5:27 VG011 this header follows from the message [the gateway sets it itself]",
                "s:6:55 VG011 this header belongs to one connection [the gateway sets hop-by-hop headers itself]",
            ]
        );
    }

    #[test]
    fn nothing_to_do_is_a_fault() {
        let faults = check("headers: { request: {} }", "").faults;
        assert_eq!(faults.len(), 1);
        assert!(faults[0].contains("VG012"), "{faults:?}");
    }
}
