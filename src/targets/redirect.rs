//! `redirect:`, to a path or a URL.
//!
//! `{name}` may stand in the path only, and the path is refused if a value bends it: nobody can make the gateway
//! send a caller to another host. The request's query goes along unless the target has one of its own.

use super::template::{Template, without_secrets};
use super::{Target, TargetCx};
use crate::diag::{Code, Diagnostic, Diagnostics};
use crate::endpoint::{Next, sealed};
use crate::error::{GatewayError, Kind};
use crate::exchange::Exchange;
use crate::manifest::Spanned;
use crate::manifest::model::Redirect;
use crate::openapi::OperationDoc;
use http::header::LOCATION;
use http::{HeaderValue, StatusCode};
use poem::{Endpoint, Request, Response};
use std::sync::Arc;

/// A checked redirect.
#[derive(Debug, Clone)]
pub(super) struct Move {
    status: StatusCode,
    to: Arc<To>,
}

#[derive(Debug)]
struct To {
    /// `https://host`, or nothing.
    origin: String,
    path: Template,
    /// Query and fragment, with their `?` and `#`.
    rest: String,
}

/// Is it sound? Reports every fault.
pub(super) fn check(decl: &Spanned<Redirect>, params: &[String], out: &mut Diagnostics) -> Option<Move> {
    let status =
        match &decl.status {
            None => StatusCode::PERMANENT_REDIRECT,
            Some(status) => match (status.value, StatusCode::from_u16(status.value)) {
                (301 | 302 | 303 | 307 | 308, Ok(code)) => code,
                (other, _) => {
                    let message = format!("{other} is not a redirect");
                    out.push(Diagnostic::error(Code::BAD_VALUE, status.span, message).help(
                        "use 308 or 301 for good, 307 or 302 for now, 303 to answer a POST with a page",
                    ));
                    return None;
                }
            },
        };
    let to = &decl.to;
    let text = to.value.as_str();
    let path_at = match text.find("://") {
        Some(scheme) if matches!(&text[..scheme], "http" | "https") => {
            text[scheme + 3..].find(['/', '?', '#']).map_or(text.len(), |at| scheme + 3 + at)
        }
        _ => 0,
    };
    let rest_at = text[path_at..].find(['?', '#']).map_or(text.len(), |at| path_at + at);
    let (origin, path, rest) = (&text[..path_at], &text[path_at..rest_at], &text[rest_at..]);
    let outside = format!("{origin}{rest}");
    let sound = match origin {
        "" => true,
        origin => url::Url::parse(origin).is_ok_and(|url| url.has_host() && url.username().is_empty()),
    };
    if !sound || !outside.bytes().all(|b| b.is_ascii_graphic()) || outside.contains(['{', '}']) {
        out.push(
            Diagnostic::error(Code::BAD_VALUE, to.span, "this is nowhere to redirect to")
                .help("write a path (`/new/{id}`) or a URL (`https://host/new/{id}`); parameters stand in the path only"),
        );
        return None;
    }
    let path = Template::check(to, path_at, if path.is_empty() { "/" } else { path }, params, out)?;
    let to = To { origin: origin.to_owned(), path, rest: rest.to_owned() };
    Some(Move { status, to: Arc::new(to) })
}

impl Move {
    fn location<'v>(&self, value: impl Fn(usize) -> Option<&'v str>, query: Option<&str>) -> Option<String> {
        let path = self.to.path.render(value)?;
        let mut location = format!("{}{path}", self.to.origin);
        let query = query.map(without_secrets).unwrap_or_default();
        match self.to.rest.strip_prefix('?') {
            None if !query.is_empty() => {
                location.push('?');
                location.push_str(&query);
            }
            _ => {}
        }
        location.push_str(&self.to.rest);
        Some(location)
    }
}

impl Target for Move {
    fn document(&self, op: &mut OperationDoc) {
        // Where it leads is in the header: the document names no other host.
        let location = serde_json::json!({ "description": "Where to go.", "schema": { "type": "string" } });
        let answer = serde_json::json!({ "description": "A redirect.", "headers": { "Location": location } });
        op.answers(self.status.as_u16().to_string(), answer);
    }

    fn build(&self, _: &TargetCx<'_>) -> Next {
        sealed(self.clone())
    }

    fn describe(&self, _: &str, values: &[&str]) -> String {
        match self.location(|index| values.get(index).copied(), None) {
            Some(location) => format!("redirect {} {location}", self.status.as_u16()),
            None => "refused: the path makes no target that can be sent (400)".to_owned(),
        }
    }
}

impl Endpoint for Move {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let exchange = Exchange::of(&request);
        let location = self
            .location(|index| exchange.param_nth(index), request.uri().query())
            .and_then(|location| HeaderValue::try_from(location).ok())
            .ok_or_else(|| GatewayError::from(Kind::InvalidPath))?;
        Ok(Response::builder().status(self.status).header(LOCATION, location).finish())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Bench, faults};
    use super::*;
    use http::Method;

    async fn location(route: &str, path: &str) -> (u16, Option<String>) {
        let response = Bench::new(route).call(Method::GET, path, &[]).await;
        (response.status().as_u16(), response.header("location").map(str::to_owned))
    }

    #[tokio::test]
    async fn redirects_carry_parameters_and_query() {
        let to = |status, text: &str| (status, Some(text.to_owned()));
        assert_eq!(
            location("{ route: GET /a/:id, redirect: \"/b/{id}\" }", "/a/7?x=1&token=t").await,
            to(308, "/b/7?x=1")
        );
        assert_eq!(
            location("{ route: GET /a, redirect: \"https://h.example?x=2\" }", "/a?y=1").await,
            to(308, "https://h.example/?x=2")
        );
        assert_eq!(
            location(
                "{ route: GET /a/*p, redirect: { to: \"https://h:1/b/{p}#f\", status: 302 } }",
                "/a/x/y?q"
            )
            .await,
            to(302, "https://h:1/b/x/y?q#f")
        );
        assert_eq!(location("{ route: GET /a/*p, redirect: \"/b/{p}/c\" }", "/a/").await, (400, None));
    }

    #[test]
    fn nowhere_to_go_is_a_fault() {
        for to in
            ["//evil", "ftp://h/", "x", "https://{id}/", "https://", "/a?x={id}", "https://u@h/", "\"/a b\""]
        {
            assert_eq!(
                faults(&format!("{{ route: GET /a/:id, redirect: \"{}\" }}", to.trim_matches('"'))),
                [Code::BAD_VALUE],
                "{to}"
            );
        }
        assert_eq!(faults("{ route: GET /a, redirect: { to: /b, status: 304 } }"), [Code::BAD_VALUE]);
        assert_eq!(faults("{ route: GET /a, redirect: \"/b/{id}\" }"), [Code::UNKNOWN_PARAMETER]);
    }
}
