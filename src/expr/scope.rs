//! What an expression sees of a request: views that look up what is asked for.
//!
//! The evaluator asks for the longest name first (`claims.role` before `claims`), which gives most values without
//! anything between. A caller's own words on who it is are not among the headers, and tokens not in the query
//! (SECURITY rules 4 and 10).

use super::functions::take;
use super::json::seen;
use crate::exchange::Exchange;
use crate::identity::Proof;
use cel::ExecutionError;
use cel::common::traits::{Container, Indexer};
use cel::common::types::{CelBool, CelInt, CelList, CelString, MAP_TYPE, Type};
use cel::common::value::{CowVal, StaticVal, Val};
use cel::context::VariableResolver;
use http::{HeaderMap, StatusCode};
use regex::Regex;
use serde_json::Value;
use std::any::Any;
use std::borrow::Cow;
use std::sync::LazyLock;

/// What an expression may look at.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'r> {
    /// The exchange: route, path, address, identity.
    pub exchange: &'r Exchange,
    /// The request's headers.
    pub headers: &'r HeaderMap,
    /// The request's query, without `?`.
    pub query: Option<&'r str>,
    /// The body under way, in mappings.
    pub body: Option<&'r Value>,
    /// The response's head, in mappings of responses.
    pub response: Option<(StatusCode, &'r HeaderMap)>,
}

/// Query parameters that authentication takes tokens from.
const SECRETS: [&str; 3] = ["token", "access_token", "ticket"];

/// Whether a header is a caller's word on who it is or where it comes from. Names count folded, as services behind
/// may read `X_User.ID` as `X-User-ID`.
pub fn is_hearsay(name: &str) -> bool {
    let folded = name.to_ascii_lowercase().replace(['_', '.'], "-");
    folded == "forwarded"
        || ["x-user", "x-tenant", "x-forwarded", "x-real-ip"].iter().any(|word| {
            folded.strip_prefix(word).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        })
}

/// Names of a variable's fields.
pub(super) fn names(variable: &str) -> &'static [&'static str] {
    match variable {
        "route" => &["method", "template", "host", "version", "params"],
        "request" => &["method", "path", "query", "headers", "ip", "secure"],
        "claims" => &["user_id", "tenant_id", "role", "scopes", "channel", "proof"],
        "response" => &["status", "headers"],
        _ => &[],
    }
}

impl<'r> Scope<'r> {
    /// A field of a variable; `None` where this request has none.
    fn field<'b>(&self, variable: &str, name: &str) -> Option<CowVal<'b, 'r>>
    where
        'r: 'b,
    {
        let text = |text: &'r str| CowVal::owned(CelString::from(text));
        let view = |view: View<'r>| CowVal::owned(view);
        Some(match variable {
            "request" => match name {
                "method" => text(self.exchange.method.as_str()),
                "path" => text(&self.exchange.path),
                "headers" => view(View::Headers(self.headers, true)),
                "query" => view(View::Query(self.query.unwrap_or_default())),
                "ip" => CowVal::owned(CelString::from(self.exchange.client_ip.to_canonical().to_string())),
                "secure" => CowVal::owned(CelBool::from(self.exchange.secure)),
                _ => return None,
            },
            "route" => {
                let route = self.exchange.route()?;
                match name {
                    "method" => text(&route.method),
                    "template" => text(&route.template),
                    "host" => text(route.host.as_deref()?),
                    "version" => text(route.version.as_deref()?),
                    "params" => view(View::Params(self.exchange)),
                    _ => return None,
                }
            }
            "claims" => {
                let caller = self.exchange.identity()?;
                match name {
                    "user_id" => text(&caller.user_id),
                    "tenant_id" => text(&caller.tenant_id),
                    "role" => text(&caller.role),
                    "scopes" => {
                        take(caller.scopes.len());
                        let scopes = caller
                            .scopes
                            .iter()
                            .map(|scope| Box::new(CelString::from(scope.as_str())) as Box<dyn Val + 'r>);
                        CowVal::owned(CelList::from(scopes.collect::<Vec<_>>()))
                    }
                    "channel" => text(caller.channel.as_deref()?),
                    "proof" => text(match caller.proof {
                        Proof::Token => "token",
                        Proof::Provider => "provider",
                        Proof::ApiKey => "api_key",
                    }),
                    _ => return None,
                }
            }
            "response" => {
                let (status, headers) = self.response?;
                match name {
                    "status" => CowVal::owned(CelInt::from(i64::from(status.as_u16()))),
                    "headers" => view(View::Headers(headers, false)),
                    _ => return None,
                }
            }
            _ => return None,
        })
    }
}

/// The variables of one evaluation.
pub(super) struct Variables<'r> {
    pub(super) scope: &'r Scope<'r>,
    /// Patterns of the expression, as `@0`, `@1`, ….
    pub(super) patterns: &'r [Pattern],
}

impl VariableResolver for Variables<'_> {
    fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        let scope: &'b Scope<'b> = self.scope;
        if let Some((variable, field)) = name.split_once('.') {
            return scope.field(variable, field);
        }
        Some(match name {
            "body" => seen(scope.body?),
            "route" => CowVal::owned(View::Variable("route", scope)),
            "request" => CowVal::owned(View::Variable("request", scope)),
            "claims" => CowVal::owned(View::Variable("claims", scope)),
            "response" => CowVal::owned(View::Variable("response", scope)),
            _ => CowVal::Borrowed(self.patterns.get(name.strip_prefix('@')?.parse::<usize>().ok()?)?),
        })
    }
}

/// A part of the request, by names.
#[derive(Debug, Clone, Copy)]
enum View<'r> {
    /// One of the variables.
    Variable(&'static str, &'r Scope<'r>),
    /// Headers; of a request without hearsay.
    Headers(&'r HeaderMap, bool),
    /// Parameters of a query.
    Query(&'r str),
    /// Parameters of a path.
    Params(&'r Exchange),
}

impl<'r> View<'r> {
    fn find<'b>(&self, name: &str) -> Option<CowVal<'b, 'r>>
    where
        'r: 'b,
    {
        match *self {
            View::Variable(variable, scope) => scope.field(variable, name),
            View::Headers(_, true) if is_hearsay(name) => None,
            View::Headers(headers, _) => {
                let mut values = headers.get_all(name).iter();
                let read = |value: &'r http::HeaderValue| std::str::from_utf8(value.as_bytes()).ok();
                let first = read(values.next()?)?;
                let mut rest = values.peekable();
                Some(match rest.peek() {
                    None => CowVal::owned(CelString::from(first)),
                    // As one, which means the same (RFC 9110, section 5.3).
                    Some(_) => {
                        take(headers.get_all(name).iter().map(http::HeaderValue::len).sum::<usize>() / 1024);
                        let all: Option<Vec<&str>> =
                            std::iter::once(Some(first)).chain(rest.map(read)).collect();
                        CowVal::owned(CelString::from(all?.join(", ")))
                    }
                })
            }
            View::Query(query) => {
                if SECRETS.iter().any(|secret| name.eq_ignore_ascii_case(secret)) {
                    return None;
                }
                take(query.len() / 64);
                let mut pairs = url::form_urlencoded::parse(query.as_bytes());
                pairs.find(|(known, _)| known == name).map(|(_, value)| match value {
                    Cow::Borrowed(value) => CowVal::owned(CelString::from(value)),
                    Cow::Owned(value) => CowVal::owned(CelString::from(value)),
                })
            }
            View::Params(exchange) => exchange.param(name).map(|value| CowVal::owned(CelString::from(value))),
        }
    }
}

impl<'r> Val for View<'r> {
    fn get_type(&self) -> &Type {
        &MAP_TYPE
    }

    fn cel_type() -> &'static Type {
        &MAP_TYPE
    }

    fn as_container(&self) -> Option<&dyn Container> {
        Some(self)
    }

    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(*self)
    }
}

impl Container for View<'_> {
    fn contains(&self, name: &dyn Val) -> Result<bool, ExecutionError> {
        Ok(name.downcast_ref::<CelString>().is_some_and(|name| self.find(name.inner()).is_some()))
    }
}

impl<'r> Indexer for View<'r> {
    fn get<'b, 'v>(&'b self, name: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        let name = name.downcast_ref::<CelString>().map(CelString::inner).unwrap_or_default();
        match self.find(name) {
            Some(CowVal::Owned(found)) => Ok(CowVal::Owned(found)),
            _ => Err(ExecutionError::no_such_key(name)),
        }
    }

    fn steal<'v>(self: Box<Self>, name: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.get(name).map(CowVal::into_owned)
    }
}

/// A compiled pattern of `matches`.
#[derive(Debug, Clone)]
pub(super) struct Pattern(pub(super) Regex);

impl Pattern {
    pub(super) fn matches(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

static PATTERN: LazyLock<Type> = LazyLock::new(|| Type::new_unspecified_type("pattern"));

impl Val for Pattern {
    fn get_type(&self) -> &Type {
        &PATTERN
    }

    fn cel_type() -> &'static Type {
        &PATTERN
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(self.clone())
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for Pattern {}
