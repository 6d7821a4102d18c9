//! Operations as methods: what a caller passes, what comes back, and one row that says how it is done.

use super::events;
use super::names;
use super::types::{Types, union};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Methods of a path item that are operations.
const METHODS: [&str; 8] = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];

/// One method of the client.
pub(super) struct Operation {
    /// Dotted and unique: `auth.login`.
    pub(super) name: String,
    /// What it resolves to.
    pub(super) answer: Answer,
    method: String,
    path: String,
    summary: String,
    deprecated: Option<String>,
    /// Parameters of the path, in its order: name and type.
    places: Vec<(String, String)>,
    body: Option<Body>,
    query: Fields,
    headers: Fields,
    /// Whether a token may be sent.
    token: bool,
    /// The only thing its body must have is a refresh token, which the client holds.
    takes_refresh_token: bool,
    gives_tokens: bool,
}

/// What a method gives.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Nothing,
    Json(String),
    Text,
    Bytes,
    Events(String),
    /// Nobody says what it is.
    Any,
    /// What comes and what is sent.
    Socket(String, String),
}

struct Body {
    kind: BodyKind,
    media: String,
    schema: String,
    required: bool,
}

#[derive(PartialEq, Eq)]
enum BodyKind {
    Json,
    Form,
    Raw,
    /// Nobody says what it is.
    Any,
}

/// Named parameters, by name: type and whether it is required.
type Fields = BTreeMap<String, (String, bool)>;

/// Every operation, in the document's order.
pub(super) fn all<'d>(document: &'d Value, types: &mut Types<'d>) -> Vec<Operation> {
    let mut all = Vec::new();
    let mut taken = BTreeSet::new();
    let paths = document["paths"].as_object();
    for (path, item) in paths.into_iter().flatten() {
        let Some(item) = types.resolved(item) else { continue };
        for method in METHODS {
            if let Some(operation) = item.get(method) {
                all.push(one(document, types, (path, method), item, operation, &mut taken));
            }
        }
    }
    without_version(&mut all);
    // A method cannot be a group as well: `a` beside `a.b`.
    let groups: BTreeSet<String> = all
        .iter()
        .flat_map(|one| {
            one.name.match_indices('.').map(|(at, _)| one.name[..at].to_owned()).collect::<Vec<_>>()
        })
        .collect();
    for operation in &mut all {
        while groups.contains(&operation.name) {
            operation.name.push('_');
        }
    }
    all
}

/// In a document of one version its name says nothing: `v01.auth.login` is `auth.login`.
fn without_version(all: &mut [Operation]) {
    let is_version = |tag: &str| tag.starts_with('v') && tag[1..].starts_with(|c: char| c.is_ascii_digit());
    let first = all.first().and_then(|operation| operation.name.split_once('.'));
    let Some(prefix) = first.map(|(first, _)| format!("{first}.")).filter(|first| is_version(first)) else {
        return;
    };
    if all.iter().all(|operation| operation.name.starts_with(&prefix)) {
        all.iter_mut().for_each(|operation| drop(operation.name.drain(..prefix.len())));
    }
}

/// The dotted name of an operation. What the gateway answers itself is called as its handler is, below its version; what
/// an upstream answers as its path is: `v2_get_voice_stream` is `v2.voice.getStream`.
fn name_of(operation: &Value, path: &str, method: &str) -> String {
    let id = operation["operationId"].as_str().unwrap_or_default();
    let tag = operation["tags"][0].as_str().unwrap_or_default();
    if let Some(handler) = operation["x-handler"].as_str() {
        let outside = tag.is_empty() || handler.starts_with(&format!("{tag}."));
        return if outside { handler.to_owned() } else { format!("{tag}.{handler}") };
    }
    if id.is_empty() {
        return format!("{method}_{path}");
    }
    let own = id.strip_prefix(tag).and_then(|rest| rest.strip_prefix('_')).filter(|_| !tag.is_empty());
    let (prefix, own) = own.map_or(("", id), |own| (tag, own));
    let words =
        own.strip_prefix(method).and_then(|rest| rest.strip_prefix('_')).filter(|_| !prefix.is_empty());
    match words.map(|words| words.split_once('_').unwrap_or((words, ""))) {
        Some((group, rest)) => format!("{prefix}.{group}.{method}_{rest}"),
        None if prefix.is_empty() => own.to_owned(),
        None => format!("{prefix}.{}", own.replacen('_', ".", 1)),
    }
}

fn one<'d>(
    document: &'d Value,
    types: &mut Types<'d>,
    (path, method): (&str, &str),
    item: &'d Value,
    operation: &'d Value,
    taken: &mut BTreeSet<String>,
) -> Operation {
    let mut name = name_of(operation, path, method);
    name = name.split('.').map(names::member_name).collect::<Vec<_>>().join(".");
    while !taken.insert(name.clone()) {
        name.push('_');
    }
    let (mut named, mut query, mut headers) = (BTreeMap::new(), Fields::new(), Fields::new());
    for parameter in [item, operation].into_iter().flat_map(|from| from["parameters"].as_array()).flatten() {
        let Some(parameter) = types.resolved(parameter) else { continue };
        let text = parameter["name"].as_str().unwrap_or_default().to_owned();
        let schema = parameter
            .get("schema")
            .or_else(|| parameter["content"].as_object()?.values().next()?.get("schema"));
        let schema = schema.map_or("unknown".to_owned(), |schema| types.of(schema));
        let required = parameter["required"] == true;
        match parameter["in"].as_str() {
            Some("path") => drop(named.insert(text, schema)),
            Some("query") => drop(query.insert(text, (schema, required))),
            // Those that open a WebSocket are the browser's.
            Some("header") if ["connection", "upgrade"].contains(&text.to_ascii_lowercase().as_str()) => {}
            Some("header") if text.to_ascii_lowercase().starts_with("sec-websocket-") => {}
            Some("header") => drop(headers.insert(text, (schema, required))),
            _ => {}
        }
    }
    let (path, places) = template(path, &named, operation);
    let body = operation.get("requestBody").and_then(|body| types.resolved(body));
    let required = body.and_then(|body| required_fields(types, body));
    let body = body.and_then(|body| body_of(types, body));
    let (answer, gives_tokens) = answer_of(types, operation);
    // An operation of which nothing is known may take a body.
    let sends = ["post", "put", "patch"].contains(&method) && answer == Answer::Any;
    let unknown =
        || Body { kind: BodyKind::Any, media: String::new(), schema: "unknown".to_owned(), required: false };
    let body = body.or_else(|| sends.then(unknown));
    let security = operation.get("security").or(document.get("security")).and_then(Value::as_array);
    Operation {
        answer,
        method: method.to_ascii_uppercase(),
        path,
        summary: names::comment(
            operation["summary"].as_str().or(operation["description"].as_str()).unwrap_or_default(),
        ),
        deprecated: (operation["deprecated"] == true).then(|| deprecation(operation)),
        places,
        token: security
            .is_some_and(|ways| ways.iter().any(|way| way.as_object().is_some_and(|way| !way.is_empty()))),
        takes_refresh_token: required.is_some_and(|names| names == ["refresh_token"]),
        body,
        query,
        headers,
        gives_tokens,
        name,
    }
}

/// The path as the client fills it, `{+name}` where it is the rest of a path, and its parameters in order.
fn template(
    path: &str,
    named: &BTreeMap<String, String>,
    operation: &Value,
) -> (String, Vec<(String, String)>) {
    let mut places: Vec<(String, String)> = Vec::new();
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, (inside, after))) =
        rest.split_once('{').and_then(|(b, r)| Some((b, r.split_once('}')?)))
    {
        let name = inside.trim_start_matches(['*', '+']).trim_end_matches('*');
        let many = inside != name || operation["x-rest-parameter"] == name;
        let _ = write!(out, "{before}{{{}{name}}}", if many { "+" } else { "" });
        let mut argument = names::member_name(name);
        while places.iter().any(|(known, _)| *known == argument) || is_reserved(&argument) {
            argument.push('_');
        }
        let kind = named.get(name).filter(|kind| *kind != "unknown").cloned();
        places.push((argument, kind.unwrap_or_else(|| "string".to_owned())));
        rest = after;
    }
    out.push_str(rest);
    (out, places)
}

/// Names that no parameter of a method may have, or that it has for something else.
fn is_reserved(name: &str) -> bool {
    const WORDS: &[&str] = &[
        "body",
        "options",
        "arguments",
        "await",
        "break",
        "case",
        "catch",
        "class",
        "const",
        "continue",
        "debugger",
        "default",
        "delete",
        "do",
        "else",
        "enum",
        "eval",
        "export",
        "extends",
        "false",
        "finally",
        "for",
        "function",
        "if",
        "implements",
        "import",
        "in",
        "instanceof",
        "interface",
        "let",
        "new",
        "null",
        "package",
        "private",
        "protected",
        "public",
        "return",
        "static",
        "super",
        "switch",
        "this",
        "throw",
        "true",
        "try",
        "typeof",
        "var",
        "void",
        "while",
        "with",
        "yield",
    ];
    WORDS.contains(&name)
}

fn required_fields<'d>(types: &Types<'d>, body: &'d Value) -> Option<Vec<&'d str>> {
    let (_, content) = body["content"].as_object()?.iter().find(|(media, _)| is_json(media))?;
    let schema = types.resolved(content.get("schema")?)?;
    Some(schema["required"].as_array()?.iter().filter_map(Value::as_str).collect())
}

/// A media type without its parameters.
fn essence(media: &str) -> &str {
    media.split(';').next().unwrap_or(media).trim()
}

fn is_json(media: &str) -> bool {
    let media = essence(media);
    media == "application/json" || media.ends_with("+json") && media != "application/problem+json"
}

fn body_of<'d>(types: &mut Types<'d>, body: &'d Value) -> Option<Body> {
    let content = body["content"].as_object()?;
    let find = |wanted: &dyn Fn(&str) -> bool| content.iter().find(|(media, _)| wanted(media));
    let required = body["required"] == true;
    if let Some((media, value)) = find(&is_json) {
        let schema = value.get("schema").map_or("unknown".to_owned(), |schema| types.of(schema));
        return Some(Body { kind: BodyKind::Json, media: essence(media).to_owned(), schema, required });
    }
    if let Some((_, value)) = find(&|media| essence(media) == "multipart/form-data") {
        let schema = value.get("schema").map_or("unknown".to_owned(), |schema| types.of(schema));
        let schema = if schema == "unknown" {
            "FormData".to_owned()
        } else {
            union(vec![schema, "FormData".to_owned()])
        };
        return Some(Body { kind: BodyKind::Form, media: String::new(), schema, required });
    }
    let (media, _) = content.iter().next()?;
    Some(Body {
        kind: BodyKind::Raw,
        media: essence(media).to_owned(),
        schema: "BodyInit".to_owned(),
        required,
    })
}

/// What a success gives, and whether that holds tokens.
fn answer_of<'d>(types: &mut Types<'d>, operation: &'d Value) -> (Answer, bool) {
    let Some(responses) = operation["responses"].as_object() else { return (Answer::Nothing, false) };
    if responses.contains_key("101") {
        let socket = operation.get("x-websocket");
        let mut frames = |key: &str, bytes: &str| {
            socket
                .and_then(|socket| socket.get(key))
                .map_or("any".to_owned(), |all| events::frames(types, all, bytes))
        };
        let (receive, send) = (frames("receive", "ArrayBuffer"), frames("send", "BufferSource | Blob"));
        return (Answer::Socket(receive, send), false);
    }
    let mut statuses: Vec<&String> = responses.keys().filter(|status| status.starts_with('2')).collect();
    let described = !statuses.is_empty();
    if !described {
        statuses = responses.keys().filter(|status| *status == "default").collect();
    }
    let mut contents = Vec::new();
    let mut empty = false;
    for status in statuses {
        let response = types.resolved(&responses[status]);
        match response
            .and_then(|response| response["content"].as_object())
            .filter(|content| !content.is_empty())
        {
            Some(content) => contents.extend(content),
            None => empty = true,
        }
    }
    let find =
        |wanted: &dyn Fn(&str) -> bool| contents.iter().find(|(media, _)| wanted(essence(media))).copied();
    if let Some((_, value)) = find(&|media| media == "text/event-stream") {
        let schema = value.get("itemSchema").or(value.get("schema"));
        let all = schema.map_or("ServerEvent<any>".to_owned(), |schema| events::all(types, schema));
        return (Answer::Events(all), false);
    }
    let json: Vec<&Value> =
        contents.iter().filter(|(media, _)| is_json(media)).map(|(_, value)| *value).collect();
    if !json.is_empty() {
        let has = |schema: &Value, name: &str| schema["properties"].get(name).is_some();
        let schemas: Vec<&Value> = json.iter().filter_map(|value| value.get("schema")).collect();
        let tokens = schemas.iter().filter_map(|schema| types.resolved(schema));
        let tokens =
            tokens.into_iter().any(|schema| has(schema, "access_token") && has(schema, "refresh_token"));
        let mut kinds: Vec<String> = schemas.into_iter().map(|schema| types.of(schema)).collect();
        if empty {
            kinds.push("undefined".to_owned());
        }
        return (Answer::Json(union(kinds)), tokens);
    }
    match contents.first() {
        None if !described => (Answer::Any, false),
        None => (Answer::Nothing, false),
        Some((media, _)) if *media == "*/*" => (Answer::Any, false),
        Some((media, _)) if media.starts_with("text/") => (Answer::Text, false),
        Some(_) => (Answer::Bytes, false),
    }
}

fn deprecation(operation: &Value) -> String {
    let sunset = operation["x-sunset"]
        .as_str()
        .map(|date| format!(" It may be gone from {date} on."))
        .unwrap_or_default();
    names::comment(&format!("@deprecated{sunset}"))
}

impl Operation {
    /// Names of the groups it is in.
    pub(super) fn groups(&self) -> impl Iterator<Item = &str> {
        let groups = self.name.rsplit_once('.').map_or("", |(groups, _)| groups);
        groups.split('.').filter(|group| !group.is_empty())
    }

    /// Its own name.
    pub(super) fn method(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }

    /// Whether it is the operation of this name, in whatever version.
    pub(super) fn is(&self, name: &str) -> bool {
        self.name == name || self.name.ends_with(&format!(".{name}"))
    }

    /// What is said of it.
    pub(super) fn comment(&self) -> String {
        let mut text = format!("{} ({} {})", self.summary, self.method, self.path).trim_start().to_owned();
        if let Some(deprecated) = &self.deprecated {
            let _ = write!(text, " {deprecated}");
        }
        names::comment(&text)
    }

    /// `(id: string, body: Body, options?: CallOptions): Promise<Result>`.
    pub(super) fn signature(&self) -> String {
        let fixed = |fields: &Fields| fields.values().any(|(_, required)| *required);
        let needs_options = fixed(&self.query) || fixed(&self.headers);
        let mut arguments: Vec<String> =
            self.places.iter().map(|(name, kind)| format!("{name}: {kind}")).collect();
        if let Some(body) = &self.body {
            let required = body.required && !self.takes_refresh_token;
            match (required, needs_options) {
                (true, _) => arguments.push(format!("body: {}", body.schema)),
                (false, true) => arguments
                    .push(format!("body: {}", union(vec![body.schema.clone(), "undefined".to_owned()]))),
                (false, false) => arguments.push(format!("body?: {}", body.schema)),
            }
        }
        let mut options = "CallOptions".to_owned();
        for (name, fields) in [("query", &self.query), ("headers", &self.headers)] {
            if !fields.is_empty() {
                let optional = if fixed(fields) { "" } else { "?" };
                let _ =
                    write!(options, " & {{ {name}{optional}: {{ {} }} }}", listed(fields, name == "headers"));
            }
        }
        if matches!(self.answer, Answer::Socket(..)) {
            options.push_str(" & { protocols?: string[] }");
        }
        arguments.push(format!("options{}: {options}", if needs_options { "" } else { "?" }));
        let result = match &self.answer {
            Answer::Nothing => "Promise<void>".to_owned(),
            Answer::Json(kind) => format!("Promise<{kind}>"),
            Answer::Text => "Promise<string>".to_owned(),
            Answer::Bytes => "Promise<Blob>".to_owned(),
            Answer::Any => "Promise<any>".to_owned(),
            Answer::Events(data) => format!("Events<{data}>"),
            Answer::Socket(receive, send) => format!("Promise<Socket<{receive}, {send}>>"),
        };
        format!("({}): {result}", arguments.join(", "))
    }

    /// `["POST", "/api/v01/auth/login", "bt"]`; the letters are read in `runtime.ts`.
    pub(super) fn row(&self) -> String {
        let body = |kind: BodyKind| self.body.as_ref().is_some_and(|body| body.kind == kind);
        let header = |name: &str| self.headers.keys().any(|known| known.eq_ignore_ascii_case(name));
        let letters = [
            ('a', self.token),
            ('b', body(BodyKind::Json)),
            ('f', body(BodyKind::Form)),
            ('r', body(BodyKind::Raw)),
            ('u', body(BodyKind::Any)),
            ('k', header("Idempotency-Key")),
            ('l', header("Last-Event-ID") && matches!(self.answer, Answer::Events(_))),
            ('s', matches!(self.answer, Answer::Events(_))),
            ('w', matches!(self.answer, Answer::Socket(..))),
            ('B', self.answer == Answer::Bytes),
            ('T', self.answer == Answer::Text),
            ('U', self.answer == Answer::Any),
            ('t', self.gives_tokens),
            ('x', self.takes_refresh_token),
            ('o', self.is("auth.logout")),
        ];
        let flags: String = letters.iter().filter(|(_, holds)| *holds).map(|(letter, _)| letter).collect();
        let media = self.body.as_ref().map_or("", |body| body.media.as_str());
        let media = if ["", "application/json"].contains(&media) {
            String::new()
        } else {
            format!(", {}", names::string(media))
        };
        format!(
            "[{}, {}, {}{media}]",
            names::string(&self.method),
            names::string(&self.path),
            names::string(&flags)
        )
    }
}

fn listed(fields: &Fields, text: bool) -> String {
    let one = |(name, (kind, required)): (&String, &(String, bool))| {
        let optional = if *required { "" } else { "?" };
        format!("{}{optional}: {}", names::key(name), if text { "string" } else { kind })
    };
    fields.iter().map(one).collect::<Vec<_>>().join("; ")
}
