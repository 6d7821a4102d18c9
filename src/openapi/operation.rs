//! One operation of an OpenAPI document: its parameters, its body, its answers.
//!
//! Parameters are single values, or lists as `a=1&a=2`, `a=1,2` (OpenAPI 3.1, section 4.8.12.3: `form` and `simple`), or
//! JSON in a `content`. Objects spread over a query are refused when the manifest is checked. Cookies are not looked at,
//! nor the headers that OpenAPI tells to ignore. Bodies and answers that are not JSON are not looked into. Longer than most:
//! what one object of the specification says is read in one place.

use super::names::PathNames;
use super::schema::Schema;
use super::{Place, dereferenced, find};
use crate::diag::{Code, Diagnostic, Diagnostics, did_you_mean};
use crate::error::FieldFault;
use crate::manifest::documents::parts;
use crate::manifest::node::Value as Written;
use crate::manifest::{Manifest, Spanned};
use http::{HeaderName, StatusCode};
use serde_json::Value;
use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// Methods that a path of an OpenAPI document may have.
const METHODS: [&str; 8] = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];
/// Headers that no parameter describes.
const IGNORED: [&str; 3] = ["accept", "content-type", "authorization"];

/// An operation, with its schemas compiled.
#[derive(Debug)]
pub struct Operation {
    /// What callers give beside the body.
    pub parameters: Vec<Parameter>,
    /// The body, if it describes one.
    pub body: Option<Content>,
    answers: Vec<(Statuses, Content)>,
    digest: u64,
}

/// Where a parameter stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// In the path.
    Path,
    /// In the query.
    Query,
    /// In a header.
    Header(HeaderName),
}

/// One parameter.
#[derive(Debug)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub source: Source,
    required: bool,
    shape: Shape,
    schema: Schema,
}

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// As one text.
    One,
    /// As several parameters of one name.
    Repeated,
    /// As one text with commas.
    Commas,
    /// As JSON.
    Json,
}

/// What a body may be, by its media type.
#[derive(Debug)]
pub struct Content {
    /// Whether it must be there.
    pub required: bool,
    kinds: Vec<(String, Option<Schema>)>,
}

/// What a description says of a body.
#[derive(Debug)]
pub enum Answered<'a> {
    /// This is its schema.
    Described(&'a Schema),
    /// Such a body is right, and nothing more is said of it, or nothing that can be held against it here.
    Unlooked,
    /// There is no such body.
    Unknown,
}

/// Statuses that an answer is described for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Statuses {
    One(u16),
    Class(u16),
    Rest,
}

/// Why an answer is not as described.
#[derive(Debug)]
pub enum Broken {
    /// Its status is not described.
    Status,
    /// Its media type is not described.
    Type,
}

impl Operation {
    /// The operation that a route's `docs.openapi` names; its faults go into `out`. `method` is the route's (`ANY` for
    /// any), `params` are the names of its path's parameters, `names` what it calls the operation's.
    pub fn check(
        reference: &Spanned<String>,
        method: Option<&str>,
        params: &[String],
        names: &PathNames,
        manifest: &Manifest,
        out: &mut Diagnostics,
    ) -> Option<Arc<Operation>> {
        let before = out.counts().0;
        let (file, pointer) = parts(&reference.value);
        let (above, name) = pointer.rsplit_once('/').unwrap_or(("", pointer));
        let item = Spanned { value: format!("{file}#{above}"), span: reference.span };
        let item = find(manifest, &item, out)?;
        let item = dereferenced(manifest, item, out)?;
        version(item, reference, out);
        let known = item.entries().map(|(key, _)| key).filter(|key| METHODS.contains(key));
        let Some(operation) = item.get(name).filter(|_| METHODS.contains(&name)) else {
            let known: Vec<&str> = known.collect();
            let message = format!("`#{pointer}` is no operation");
            let help = match did_you_mean(name, known.iter().copied()) {
                Some(help) if !known.is_empty() => format!("it ends in a method: {help}"),
                _ => "write `file.yaml#/paths/~1a~1path/get`; a `/` in a path is written `~1`".to_owned(),
            };
            out.push(Diagnostic::error(Code::BAD_REFERENCE, reference.span, message).help(help));
            return None;
        };
        if let Some(method) = method.filter(|method| *method != "ANY" && !method.eq_ignore_ascii_case(name)) {
            let message = format!("the route takes {method}, the operation is {}", name.to_ascii_uppercase());
            out.push(
                Diagnostic::error(Code::BAD_REFERENCE, reference.span, message)
                    .help("name the operation that this route answers"),
            );
        }
        let mut reading = Reading { manifest, reference, names, out };
        reading.formed(operation);
        let parameters = reading.parameters(item, operation, params);
        let body = operation.get("requestBody").filter(|body| matches!(body.node.value, Written::Map(_)));
        let body = body.and_then(|body| reading.body(body));
        let answers = operation.get("responses").map(|all| reading.answers(all)).unwrap_or_default();
        if out.counts().0 > before {
            return None;
        }
        let mut state = DefaultHasher::new();
        operation.node.digest(&mut state);
        for parameter in &parameters {
            (&parameter.name, parameter.required, parameter.schema.digest()).hash(&mut state);
        }
        let contents = body.iter().chain(answers.iter().map(|(_, content)| content));
        for (kind, schema) in contents.flat_map(|content| &content.kinds) {
            (kind, schema.as_ref().map(Schema::digest)).hash(&mut state);
        }
        Some(Arc::new(Operation { parameters, body, answers, digest: state.finish() }))
    }

    /// What it says of an answer with a status and a media type (without parameters).
    ///
    /// # Errors
    /// If it knows no such answer.
    pub fn answer(&self, status: StatusCode, essence: &str) -> Result<Answered<'_>, Broken> {
        let code = status.as_u16();
        let fits = |wanted: Statuses| match wanted {
            Statuses::One(one) => one == code,
            Statuses::Class(class) => class == code / 100,
            Statuses::Rest => true,
        };
        let content = self.answers.iter().find(|(statuses, _)| fits(*statuses));
        let (_, content) = content.ok_or(Broken::Status)?;
        match content.of(essence) {
            Answered::Unknown if essence.is_empty() && content.kinds.is_empty() => Ok(Answered::Unlooked),
            Answered::Unknown => Err(Broken::Type),
            known => Ok(known),
        }
    }

    /// Hash of what it says, with what it refers to.
    pub fn digest(&self) -> u64 {
        self.digest
    }
}

impl Parameter {
    /// What is wrong with it, `limit` faults at most. `texts` are its values as they came, decoded; none if it is
    /// missing.
    pub fn faults(&self, texts: &[Cow<'_, str>], limit: usize) -> Vec<FieldFault> {
        let kinds = self.schema.kinds();
        let word = match &self.source {
            Source::Path => "path",
            Source::Query => "query",
            Source::Header(_) => "header",
        };
        let whole = |code, en: &'static str, zh: &'static str| vec![FieldFault::new("", code, en, zh)];
        let found = match (texts, self.shape) {
            ([], _) if self.required => whole("required", "is required", "为必填项"),
            ([], _) => Vec::new(),
            (texts, Shape::Repeated) => {
                self.schema.faults(&kinds.read_list(texts.iter().map(AsRef::as_ref)), limit)
            }
            ([_, _, ..], _) => whole("repeated", "must stand only once", "只能出现一次"),
            ([text], Shape::Commas) => {
                self.schema.faults(&kinds.read_list(text.split(',').map(str::trim)), limit)
            }
            ([text], Shape::Json) => match serde_json::from_str(text) {
                Ok(value) => self.schema.faults(&value, limit),
                Err(_) => whole("json", "must be JSON", "必须是有效的 JSON"),
            },
            ([text], Shape::One) => {
                let value = kinds.read(text);
                match value {
                    // Where a text is allowed too, a number may have been meant as one.
                    Value::Number(_) if kinds.string && !self.schema.accepts(&value) => {
                        self.schema.faults(&Value::String(text.to_string()), limit)
                    }
                    value => self.schema.faults(&value, limit),
                }
            }
        };
        let name = format!("{word}.{}", self.name);
        found.into_iter().map(|fault| fault.of_parameter(name.clone())).collect()
    }
}

impl Content {
    /// What it says of a body of this media type (without parameters).
    pub fn of(&self, essence: &str) -> Answered<'_> {
        let fits = |wanted: &str| {
            wanted.eq_ignore_ascii_case(essence)
                || wanted == "*/*"
                || wanted.strip_suffix("/*").is_some_and(|wanted| {
                    essence.split_once('/').is_some_and(|(kind, _)| kind.eq_ignore_ascii_case(wanted))
                })
        };
        match self.kinds.iter().find(|(wanted, _)| fits(wanted)) {
            Some((_, Some(schema))) if is_json(essence) => Answered::Described(schema),
            Some(_) => Answered::Unlooked,
            None => Answered::Unknown,
        }
    }

    /// The media types, for people.
    pub fn kinds(&self) -> String {
        self.kinds.iter().map(|(kind, _)| kind.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// Whether a body may be JSON that is described.
    pub fn describes_json(&self) -> bool {
        self.kinds.iter().any(|(_, schema)| schema.is_some())
    }
}

/// Whether a media type is JSON.
fn is_json(essence: &str) -> bool {
    let essence = essence.to_ascii_lowercase();
    essence == "application/json" || essence.ends_with("+json")
}

/// Reads the parts of an operation.
struct Reading<'m, 'o> {
    manifest: &'m Manifest,
    reference: &'o Spanned<String>,
    names: &'o PathNames,
    out: &'o mut Diagnostics,
}

impl<'m> Reading<'m, '_> {
    fn refuse(&mut self, place: Place<'_>, message: impl Into<String>, help: impl Into<String>) {
        self.out.push(Diagnostic::error(Code::BAD_DOCUMENT, place.node.span, message).help(help));
    }

    /// Is it made as operations are? What is of another kind would be passed over.
    fn formed(&mut self, operation: Place<'_>) {
        let map = |place: &Place<'_>| matches!(place.node.value, Written::Map(_));
        if !map(&operation) {
            self.refuse(operation, "this is no operation", "an operation is a mapping, with `responses`");
        }
        for key in ["requestBody", "responses"] {
            if let Some(place) = operation.get(key).filter(|place| !map(place)) {
                self.refuse(place, format!("`{key}` is no mapping"), "see OpenAPI 3.1, section 4.8.10");
            }
        }
        if let Some(place) = operation.get("parameters")
            && !matches!(place.node.value, Written::Seq(_))
        {
            self.refuse(
                place,
                "`parameters` is no list",
                "write `parameters: [{ name: …, in: …, schema: … }]`",
            );
        }
        for (status, place) in operation.get("responses").into_iter().flat_map(Place::entries) {
            if !status.starts_with("x-") && !map(&place) {
                self.refuse(
                    place,
                    format!("the answer {status} is no mapping"),
                    "write `{ description: … }`",
                );
            }
        }
    }

    fn parameters(&mut self, item: Place<'m>, operation: Place<'m>, params: &[String]) -> Vec<Parameter> {
        let mut all: Vec<(String, String, Place<'m>)> = Vec::new();
        // Those of the operation stand for those of its path.
        let declared = [item, operation].into_iter().filter_map(|place| place.get("parameters"));
        for place in declared.flat_map(Place::items) {
            let Some(place) = dereferenced(self.manifest, place, self.out) else { continue };
            let text =
                |key| place.node.get(key).and_then(|node| node.as_str()).unwrap_or_default().to_owned();
            let (name, within) = (text("name"), text("in"));
            if name.is_empty() || !["path", "query", "header", "cookie"].contains(&within.as_str()) {
                self.refuse(
                    place,
                    "this is no parameter",
                    "it needs `name`, and `in`: path, query, header or cookie",
                );
                continue;
            }
            all.retain(|(known, source, _)| (known, source) != (&name, &within));
            all.push((name, within, place));
        }
        all.into_iter()
            .filter_map(|(name, within, place)| self.parameter(name, &within, place, params))
            .collect()
    }

    fn parameter(
        &mut self,
        name: String,
        within: &str,
        place: Place<'m>,
        params: &[String],
    ) -> Option<Parameter> {
        let name = match within {
            "path" => self.names.ours(&name).to_owned(),
            _ => name,
        };
        let source = match within {
            "path" if !params.contains(&name) => {
                let message =
                    format!("the operation has a path parameter `{name}`, which this route has not");
                let theirs = self.names.theirs.as_ref().filter(|path| path.contains(&format!("{{{name}}}")));
                let by_position = theirs.map(|theirs| {
                    format!(
                        "call it so, or let the path that goes upstream end like `{theirs}`: then its position tells which it is"
                    )
                });
                let similar = did_you_mean(&name, params.iter().map(String::as_str));
                self.out.push(
                    Diagnostic::error(Code::UNKNOWN_PARAMETER, self.reference.span, message)
                        .maybe_help(by_position.or(similar))
                        .note(place.node.span, "described here"),
                );
                return None;
            }
            "path" => Source::Path,
            "query" => Source::Query,
            "header" => match name.parse::<HeaderName>() {
                Ok(header) if IGNORED.contains(&header.as_str()) => return None,
                Ok(header) => Source::Header(header),
                Err(_) => {
                    self.refuse(place, format!("`{name}` is no header's name"), "see RFC 9110, section 5.1");
                    return None;
                }
            },
            _ => return None,
        };
        let required =
            matches!(place.node.get("required").map(|node| &node.value), Some(Written::Bool(true)));
        let (schema, is_json) = match (place.get("schema"), place.get("content")) {
            (Some(schema), _) => (schema, false),
            (None, Some(content)) => (content.entries().find_map(|(_, kind)| kind.get("schema"))?, true),
            (None, None) => return None,
        };
        let schema = Schema::compile(schema, self.manifest, self.out)?;
        let style = place.node.get("style").and_then(|style| style.as_str());
        let explode = match place.node.get("explode").map(|node| &node.value) {
            Some(Written::Bool(explode)) => *explode,
            _ => source == Source::Query,
        };
        let usual = if source == Source::Query { "form" } else { "simple" };
        let shape = match schema.kinds() {
            _ if is_json => Shape::Json,
            kinds if kinds.object || style.is_some_and(|style| style != usual) => {
                self.refuse(
                    place,
                    format!("the parameter `{name}` is written in a way that is not read here"),
                    format!(
                        "single values and lists in the style `{usual}` are read, and JSON in a `content`"
                    ),
                );
                return None;
            }
            kinds if !kinds.array => Shape::One,
            _ if source == Source::Query && explode => Shape::Repeated,
            _ => Shape::Commas,
        };
        Some(Parameter { name, source, required, shape, schema })
    }

    fn body(&mut self, place: Place<'m>) -> Option<Content> {
        let place = dereferenced(self.manifest, place, self.out)?;
        let required =
            matches!(place.node.get("required").map(|node| &node.value), Some(Written::Bool(true)));
        let content = self.content(place, required);
        if content.kinds.is_empty() {
            self.refuse(
                place,
                "this body has no `content`",
                "write `content: { application/json: { schema: … } }`",
            );
        }
        Some(content)
    }

    fn content(&mut self, place: Place<'m>, required: bool) -> Content {
        let mut kinds = Vec::new();
        for (kind, described) in place.get("content").into_iter().flat_map(Place::entries) {
            let essence = kind.split(';').next().unwrap_or_default().trim().to_owned();
            let described = dereferenced(self.manifest, described, self.out);
            // What is no JSON is not looked into, so that nothing of it needs to be sound.
            let schema = described
                .and_then(|it| it.get("schema"))
                .filter(|_| is_json(&essence) || essence.ends_with("/*"));
            let schema = schema.and_then(|schema| Schema::compile(schema, self.manifest, self.out));
            kinds.push((essence, schema));
        }
        // An exact type goes before a range.
        kinds.sort_by_key(|(kind, _)| kind.matches('*').count());
        Content { required, kinds }
    }

    fn answers(&mut self, all: Place<'m>) -> Vec<(Statuses, Content)> {
        let mut answers = Vec::new();
        for (key, place) in all.entries().filter(|(key, _)| !key.starts_with("x-")) {
            let class = key.strip_suffix("XX").or(key.strip_suffix("xx"));
            let statuses = match (class, key) {
                (_, "default") => Some(Statuses::Rest),
                (Some(class), _) => {
                    class.parse().ok().filter(|class| (1..=5).contains(class)).map(Statuses::Class)
                }
                (None, _) => key.parse().ok().filter(|code| (100..600).contains(code)).map(Statuses::One),
            };
            let Some(statuses) = statuses else {
                self.refuse(place, format!("`{key}` is no status"), "write `200`, `4XX` or `default`");
                continue;
            };
            let Some(place) = dereferenced(self.manifest, place, self.out) else { continue };
            answers.push((statuses, self.content(place, false)));
        }
        let order = |statuses: &Statuses| match statuses {
            Statuses::One(_) => 0,
            Statuses::Class(_) => 1,
            Statuses::Rest => 2,
        };
        answers.sort_by_key(|(statuses, _)| order(statuses));
        answers
    }
}

/// The document must be OpenAPI of a version that is read here.
fn version(place: Place<'_>, reference: &Spanned<String>, out: &mut Diagnostics) {
    let said = place.document.root.get("openapi");
    match said.map(|node| (node, node.as_str().unwrap_or_default())) {
        Some((_, text)) if text.starts_with("3.1.") || text.starts_with("3.2.") => {}
        Some((node, _)) => out.push(
            Diagnostic::error(Code::BAD_DOCUMENT, node.span, "this version of OpenAPI is not read here")
                .help("write it for `openapi: 3.1.0`; 3.0 differs in its schemas"),
        ),
        None => {
            let message = format!("{} is no OpenAPI document", place.document.name);
            out.push(
                Diagnostic::error(Code::BAD_DOCUMENT, reference.span, message)
                    .help("it begins with `openapi: 3.1.0`"),
            );
        }
    }
}
