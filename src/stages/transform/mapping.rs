//! One side's mapping: checked once, applied to many bodies.

use super::super::headers::{Side, changeable};
use super::path::{self, Path};
use crate::diag::{Code, Diagnostic, Diagnostics, Span};
use crate::expr::{Expression, Failed, Place, Scope, Uses};
use crate::manifest::node::Node;
use crate::manifest::{List, Spanned, Table};
use http::{HeaderMap, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

/// Changes to one JSON body, in the order of these keys. Fields are named by dotted paths: `user.name`,
/// `items[].price` for every item of a list, `a\.b` for a name with a dot in it.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mapping {
    /// What the body is when it comes (default `json`).
    pub from: Option<Format>,
    /// Field whose value takes the whole body's place, where it is there (default none).
    pub unwrap: Option<Spanned<String>>,
    /// Old field to new field; all at once, so that two may change places. Through lists only within their items.
    #[serde(default)]
    pub rename: Table<Spanned<String>>,
    /// Fields that are taken away.
    #[serde(default)]
    pub drop: List<String>,
    /// Values of fields that are missing.
    #[serde(default)]
    pub default: Table<Node>,
    /// Fields computed by CEL expressions over `body`, `request`, `route`, `claims` and, in responses, `response`. All see
    /// the body as it was before any of them. One that fails refuses a request with 400, and leaves its field out of a
    /// response.
    #[serde(default)]
    pub set: Table<Spanned<String>>,
    /// Headers that take a field's value, if it is a text, a number or a boolean, and otherwise are taken away.
    #[serde(default)]
    pub to_headers: Table<Spanned<String>>,
    /// Fields that take a header's value, where there is one.
    #[serde(default)]
    pub from_headers: Table<Spanned<String>>,
    /// Field that the whole body becomes (default none).
    pub wrap: Option<Spanned<String>>,
    /// What the body is when it goes on (default `json`).
    pub to: Option<Format>,
}

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `application/json`.
    #[default]
    Json,
    /// `application/x-www-form-urlencoded`: flat fields, repeated for lists.
    Form,
}

/// A mapping that is sound.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) from: Format,
    pub(super) to: Format,
    unwrap: Option<Path>,
    rename: Vec<(Path, Path)>,
    drop: Vec<Path>,
    default: Vec<(Path, Value)>,
    set: Vec<(Path, Expression)>,
    pub(super) to_headers: Vec<(HeaderName, Path)>,
    from_headers: Vec<(Path, HeaderName)>,
    wrap: Option<Path>,
}

impl Compiled {
    /// Is it sound? Reports every fault.
    pub(super) fn check(typed: &Mapping, side: Side, out: &mut Diagnostics) -> Compiled {
        let place = match side {
            Side::Request => Place::Request,
            Side::Response => Place::Response,
        };
        let one = |text: &Option<Spanned<String>>, key: &str, out: &mut Diagnostics| {
            let text = text.as_ref()?;
            single(text, text.span, key, out)
        };
        let unwrap = one(&typed.unwrap, "unwrap", out);
        let rename = renames(&typed.rename, out);
        let drop = typed.drop.0.iter().filter_map(|text| named(text, text.span, out)).collect();
        let mut default = Vec::new();
        for (key, value) in &typed.default.0 {
            default.extend(named(&key.text, key.span, out).map(|path| (path, value.to_json())));
        }
        let mut set: Vec<(Path, Expression)> = Vec::new();
        let mut written: Vec<(Path, Span)> = Vec::new();
        for (key, text) in &typed.set.0 {
            let path = single(&key.text, key.span, "set", out);
            let expression = Expression::check(text, place, out);
            written.extend(path.clone().map(|path| (path, key.span)));
            set.extend(path.zip(expression));
        }
        let mut to_headers = Vec::new();
        for (key, text) in &typed.to_headers.0 {
            let name =
                changeable(&key.text, key.span, side, out).filter(|name| target(name, key.span, side, out));
            to_headers.extend(name.zip(single(text, text.span, "to_headers", out)));
        }
        let mut from_headers = Vec::new();
        for (key, name) in &typed.from_headers.0 {
            let path = single(&key.text, key.span, "from_headers", out);
            written.extend(path.clone().map(|path| (path, key.span)));
            from_headers.extend(path.zip(source(name, side, out)));
        }
        once(&written, "is written twice", "one would replace the other: keep one of them", out);
        let wrap = one(&typed.wrap, "wrap", out);
        let (from, to) = (typed.from.unwrap_or_default(), typed.to.unwrap_or_default());
        Compiled { from, to, unwrap, rename, drop, default, set, to_headers, from_headers, wrap }
    }

    /// Whether it changes nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.from == self.to
            && self.unwrap.is_none()
            && self.wrap.is_none()
            && self.rename.is_empty()
            && self.drop.is_empty()
            && self.default.is_empty()
            && self.set.is_empty()
            && self.to_headers.is_empty()
            && self.from_headers.is_empty()
    }

    /// What its expressions look at.
    pub(super) fn uses(&self) -> Uses {
        let none = Uses::default();
        self.set.iter().map(|(_, expression)| expression.uses()).fold(none, |all, one| Uses {
            headers: all.headers || one.headers,
            query: all.query || one.query,
            claims: all.claims || one.claims,
            live: all.live || one.live,
        })
    }

    /// Maps a body; gives the headers that it makes, `None` for those that must go. `scope` is what expressions see
    /// beside it, and `headers` are those of the same message. Expressions that fail are told to `failed` with their
    /// field, which is then not in the body.
    pub(super) fn apply(
        &self,
        body: &mut Value,
        scope: &Scope<'_>,
        headers: &HeaderMap,
        failed: &mut dyn FnMut(&Path, &Expression, Failed),
    ) -> Vec<(HeaderName, Option<HeaderValue>)> {
        if let Some(inner) = self.unwrap.as_ref().and_then(|path| path.take(body)) {
            *body = inner;
        }
        self.renamed(body);
        for path in &self.drop {
            let (lists, names) = path.split();
            path::each(lists, body, &mut |value| drop(path::take(names, value)));
        }
        for (path, default) in &self.default {
            let (lists, names) = path.split();
            path::each(lists, body, &mut |value| path::supply(names, value, default));
        }
        let computed: Vec<_> = self
            .set
            .iter()
            .map(|(path, expression)| {
                let scope = Scope { body: Some(body), ..*scope };
                (path, expression.value(&scope).map_err(|error| failed(path, expression, error)))
            })
            .collect();
        for (path, value) in computed {
            match value {
                Ok(value) => path.put(body, value),
                // What stood there was not computed, and may be anybody's word.
                Err(()) => drop(path.take(body)),
            }
        }
        let told =
            self.to_headers.iter().map(|(name, path)| (name.clone(), path.find(body).and_then(header)));
        let told = told.collect();
        for (path, name) in &self.from_headers {
            let value = headers.get(name).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
            if let Some(value) = value {
                path.put(body, Value::String(value.to_owned()));
            }
        }
        if let Some(path) = &self.wrap {
            let inner = body.take();
            path.put(body, inner);
        }
        told
    }

    /// Moves fields, all at once: first every old one is taken, then every new one put.
    fn renamed(&self, body: &mut Value) {
        let plain = self.rename.iter().filter(|(old, _)| !old.has_lists());
        let taken: Vec<_> = plain.map(|(old, new)| (new, old.take(body))).collect();
        for (new, value) in taken {
            if let Some(value) = value {
                new.put(body, value);
            }
        }
        for (old, new) in self.rename.iter().filter(|(old, _)| old.has_lists()) {
            let ((lists, from), (_, to)) = (old.split(), new.split());
            path::each(lists, body, &mut |item| {
                if let Some(value) = path::take(from, item) {
                    path::put(to, item, value);
                }
            });
        }
    }
}

/// A field's value as a header's.
fn header(value: &Value) -> Option<HeaderValue> {
    match value {
        Value::String(text) => HeaderValue::from_str(text).ok(),
        Value::Bool(_) | Value::Number(_) => HeaderValue::from_str(&value.to_string()).ok(),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn field(text: &str, span: Span, out: &mut Diagnostics) -> Option<Path> {
    match Path::parse(text) {
        Ok(path) => Some(path),
        Err(why) => {
            let message = format!("this is not the path of a field: {why}");
            out.push(
                Diagnostic::error(Code::MAPPING, span, message)
                    .help("write `user.name`, `items[].price`, or `a\\.b` for a name with a dot"),
            );
            None
        }
    }
}

/// A path that ends in a name.
fn named(text: &str, span: Span, out: &mut Diagnostics) -> Option<Path> {
    let path = field(text, span, out)?;
    if path.split().1.is_empty() {
        out.push(
            Diagnostic::error(Code::MAPPING, span, "this names every item of a list, and no field")
                .help("name the list itself, or a field of its items"),
        );
        return None;
    }
    Some(path)
}

/// A path to one field.
fn single(text: &str, span: Span, key: &str, out: &mut Diagnostics) -> Option<Path> {
    let path = field(text, span, out)?;
    if path.has_lists() {
        out.push(
            Diagnostic::error(Code::MAPPING, span, format!("`{key}` takes one field, and this is many"))
                .help("paths through lists are for `rename`, `drop` and `default`"),
        );
        return None;
    }
    Some(path)
}

fn renames(typed: &Table<Spanned<String>>, out: &mut Diagnostics) -> Vec<(Path, Path)> {
    let mut pairs = Vec::new();
    let (mut olds, mut news) = (Vec::new(), Vec::new());
    for (key, text) in &typed.0 {
        let (old, new) = (field(&key.text, key.span, out), field(text, text.span, out));
        let Some((old, new)) = old.zip(new) else { continue };
        if old.split().0 != new.split().0
            || old.has_lists() && (old.split().1.is_empty() || new.split().1.is_empty())
        {
            out.push(
                Diagnostic::error(Code::MAPPING, text.span, "a field of a list's items stays in its item")
                    .help("both paths go through the same lists: `items[].a: items[].b`"),
            );
            continue;
        }
        if old == new {
            out.push(
                Diagnostic::error(Code::MAPPING, text.span, "this field keeps its name")
                    .help("remove it from `rename`"),
            );
            continue;
        }
        olds.push((old.clone(), key.span));
        news.push((new.clone(), text.span));
        pairs.push((old, new));
    }
    once(&olds, "is renamed twice", "one lies in the other: move the outer one, or the inner one", out);
    once(&news, "would be two fields", "one would replace the other: choose another name", out);
    pairs
}

/// A fault for every path that leads into another of them, or is the same.
fn once(paths: &[(Path, Span)], what: &str, help: &str, out: &mut Diagnostics) {
    for (at, (path, span)) in paths.iter().enumerate() {
        if let Some((_, first)) = paths[..at].iter().find(|(other, _)| path.overlaps(other)) {
            out.push(
                Diagnostic::error(Code::MAPPING, *span, format!("`{path}` {what}"))
                    .help(help)
                    .note(*first, "the other stands here"),
            );
        }
    }
}

/// Whether a header may be made of what a body says, beyond what [`changeable`] lets through.
fn target(name: &HeaderName, span: Span, side: Side, out: &mut Diagnostics) -> bool {
    let help = match name.as_str() {
        "content-type" | "content-encoding" => "it follows from the body, and the gateway sets it itself",
        name if side == Side::Request && crate::expr::is_hearsay(name) => {
            "it says where the caller is, which the gateway found out itself"
        }
        _ => return true,
    };
    let message = "this header does not come from a body";
    out.push(Diagnostic::error(Code::BAD_VALUE, span, message).help(help));
    false
}

/// A header that a field may be made of.
fn source(name: &Spanned<String>, side: Side, out: &mut Diagnostics) -> Option<HeaderName> {
    let mut fault = |message: &str, help: &str| {
        out.push(Diagnostic::error(Code::BAD_VALUE, name.span, message).help(help));
        None
    };
    match name.parse::<HeaderName>() {
        Err(_) => fault("this is not a header name", "a header name is letters, digits and hyphens"),
        Ok(parsed) if side == Side::Request && crate::expr::is_hearsay(parsed.as_str()) => fault(
            "this header is the caller's own word",
            "use `set` with `claims` or `request.ip`, which the gateway itself found out",
        ),
        Ok(parsed) => Some(parsed),
    }
}
