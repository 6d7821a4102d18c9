//! What is said of one operation: its target, its stages and its `docs:` each add their part.
//!
//! Whoever does something says so itself: a stage that refuses with 429 calls [`OperationDoc::refuses`], and nobody writes
//! that down a second time. What only holds under a condition (`when:`) is said under [`OperationDoc::only_where`].

use super::Operation;
use super::events::{EVENT, EVENT_STREAM, variants};
use crate::error::Kind;
use crate::exchange::RouteInfo;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method};
use schemars::JsonSchema;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Media type of errors that the gateway itself makes.
const PROBLEM: &str = "application/problem+json";

/// An operation as it is being described.
pub struct OperationDoc {
    /// The route.
    pub route: Arc<RouteInfo>,
    /// The method: one of those it takes, where that is `ANY`.
    pub method: Method,
    /// The native operation that answers, such as `auth.login`, if one does.
    pub handler: Option<&'static str>,
    /// Whether callers open a WebSocket.
    pub websocket: bool,
    /// Whether `docs.openapi` or the operation itself says what it answers.
    pub described: bool,
    /// What `docs.openapi` names, to hold fixed answers against.
    pub imported: Option<Arc<Operation>>,
    summary: Option<String>,
    paragraphs: Vec<String>,
    parameters: Vec<Value>,
    body: Option<Value>,
    answers: BTreeMap<String, Value>,
    refusals: BTreeMap<u16, Vec<Refusal>>,
    /// Where, name, header.
    headers: Vec<(On, &'static str, Value)>,
    security: Vec<Required>,
    extensions: BTreeMap<&'static str, Value>,
    deprecated: bool,
    condition: Option<String>,
    /// Schemas for `components/schemas`, by name.
    pub schemas: BTreeMap<String, Value>,
}

/// Why a request is refused.
struct Refusal {
    kind: Kind,
    why: String,
}

/// Which answers carry a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// All of them.
    Every,
    /// Those of the target, not the gateway's refusals.
    Success,
    /// Those of one status.
    Status(u16),
}

/// One way of saying who is calling.
#[derive(Debug, Clone, PartialEq)]
pub struct Alternative {
    /// Name of the security scheme.
    pub name: Cow<'static, str>,
    /// The scheme, as `components/securitySchemes` holds it; none where nobody need say anything.
    pub scheme: Option<Value>,
}

/// What one stage asks of who is calling.
struct Required {
    alternatives: Vec<Alternative>,
    /// Whether it asks only those who have not said who they are yet.
    unless_known: bool,
}

/// A finished description.
pub struct Described {
    /// The operation object, without `operationId` and `tags`.
    pub operation: Value,
    /// Security schemes that it names.
    pub schemes: Vec<(String, Value)>,
}

impl OperationDoc {
    /// Nothing is said yet.
    pub fn new(route: Arc<RouteInfo>, method: Method) -> Self {
        OperationDoc {
            route,
            method,
            handler: None,
            websocket: false,
            described: false,
            imported: None,
            summary: None,
            paragraphs: Vec::new(),
            parameters: Vec::new(),
            body: None,
            answers: BTreeMap::new(),
            refusals: BTreeMap::new(),
            headers: Vec::new(),
            security: Vec::new(),
            extensions: BTreeMap::new(),
            deprecated: false,
            condition: None,
            schemas: BTreeMap::new(),
        }
    }

    /// One line; the last one counts.
    pub fn summary(&mut self, text: impl Into<String>) {
        self.summary = Some(text.into());
    }

    /// A paragraph of the description (CommonMark).
    pub fn note(&mut self, text: impl Into<String>) {
        let text = self.conditioned(text.into());
        if !self.paragraphs.contains(&text) {
            self.paragraphs.push(text);
        }
    }

    /// A parameter object; stands for an earlier one of the same name and place.
    pub fn parameter(&mut self, parameter: Value) {
        let same = |known: &Value| known["name"] == parameter["name"] && known["in"] == parameter["in"];
        match self.parameters.iter_mut().find(|known| same(known)) {
            Some(known) => *known = parameter,
            None => self.parameters.push(parameter),
        }
    }

    /// A parameter of the path, under the name that the document's path has; one that nobody described is a text.
    pub fn path_parameter(&mut self, own: &str, name: &str, rest: bool) {
        let known = self.parameters.iter_mut().find(|known| known["in"] == "path" && known["name"] == own);
        let parameter = match known {
            Some(known) => known,
            None => {
                let new = json!({ "name": own, "in": "path", "schema": { "type": "string" } });
                self.parameters.push(new);
                let last = self.parameters.len() - 1;
                &mut self.parameters[last]
            }
        };
        parameter["name"] = name.into();
        parameter["required"] = true.into();
        if rest {
            parameter["description"] = "The rest of the path, slashes included; may be empty.".into();
        }
    }

    /// The request body object.
    pub fn body(&mut self, body: Value) {
        self.body = Some(body);
    }

    /// The request body object, if one was described.
    pub fn body_mut(&mut self) -> Option<&mut Value> {
        self.body.as_mut()
    }

    /// Whether requests with this method have a body.
    pub fn has_body(&self) -> bool {
        !self.websocket && matches!(self.method, Method::POST | Method::PUT | Method::PATCH)
            || self.body.is_some()
    }

    /// What the target answers with a status (`200`, `2XX`, `default`), a response object.
    pub fn answers(&mut self, status: impl Into<String>, response: Value) {
        self.answers.insert(status.into(), response);
    }

    /// What the target answers, to be changed.
    pub fn answers_mut(&mut self) -> &mut BTreeMap<String, Value> {
        &mut self.answers
    }

    /// The target's event streams may hold these events too: each the names it has, and the schema of its data.
    pub fn events(&mut self, more: &[(&str, Value)]) {
        let more: Vec<Value> = more
            .iter()
            .map(|(event, schema)| {
                let mut schema = schema.clone();
                schema[EVENT] = (*event).into();
                schema
            })
            .collect();
        self.may_hold(more);
    }

    /// The gateway's own notices may end the target's event streams.
    pub fn notices<T: JsonSchema>(&mut self, name: &str) {
        self.schemas.extend(variants::<T>(name, "type"));
        self.may_hold(vec![json!({ "$ref": format!("#/components/schemas/{name}") })]);
    }

    fn may_hold(&mut self, more: Vec<Value>) {
        for answer in self.answers.values_mut() {
            let Some(media) = answer.get_mut("content").and_then(|all| all.get_mut(EVENT_STREAM)) else {
                continue;
            };
            let schema = media.get_mut("schema").map_or(json!({}), Value::take);
            // What is not described may be anything, a notice too.
            let key = if schema.as_object().is_some_and(|map| map.contains_key("anyOf")) || is_any(&schema) {
                "anyOf"
            } else {
                "oneOf"
            };
            let mut all = match schema {
                Value::Object(mut map) if map.len() == 1 && map.contains_key(key) => {
                    match map.shift_remove(key) {
                        Some(Value::Array(all)) => all,
                        _ => Vec::new(),
                    }
                }
                one => vec![one],
            };
            all.extend(more.iter().cloned());
            media["schema"] = json!({ key: all });
        }
    }

    /// Nobody has said what the target answers: then it may be anything.
    pub fn answers_something(&mut self) {
        if self.answers.is_empty() {
            self.answers("2XX", json!({ "description": "Whatever the service behind it answers." }));
        }
    }

    /// The gateway refuses with these errors; `why` in a few words that go on from "…: ".
    pub fn refuses(&mut self, kinds: &[Kind], why: &str) {
        for kind in kinds {
            let why = match &self.condition {
                Some(condition) if why.is_empty() => format!("only where `{condition}`"),
                Some(condition) => format!("{why} (only where `{condition}`)"),
                None => why.to_owned(),
            };
            let known = self.refusals.entry(kind.status().as_u16()).or_default();
            if !known.iter().any(|refusal| refusal.kind == *kind && refusal.why == why) {
                known.push(Refusal { kind: *kind, why });
            }
        }
    }

    /// Answers carry a header. It is not required: what holds under a condition only is described alike.
    pub fn header(&mut self, on: On, name: &'static str, about: &str, schema: Value) {
        self.headers.push((on, name, json!({ "description": about, "schema": schema })));
    }

    /// Who is calling must be said in one of these ways, beside what was required before.
    pub fn requires(&mut self, alternatives: Vec<Alternative>) {
        self.require(alternatives, false);
    }

    /// Who is calling must be said in one of these ways, where it was not said before.
    pub fn requires_unless_known(&mut self, alternatives: Vec<Alternative>) {
        self.require(alternatives, true);
    }

    fn require(&mut self, mut alternatives: Vec<Alternative>, unless_known: bool) {
        if self.condition.is_some() {
            alternatives.push(Alternative { name: "".into(), scheme: None });
        }
        self.security.push(Required { alternatives, unless_known });
    }

    /// An extension (`x-…`). Under a condition it says so. A second one of the same name, such as another rate limit, makes
    /// a list of them; a list joins the list.
    pub fn extension(&mut self, name: &'static str, mut value: Value) {
        present(&mut value);
        let value = match (&self.condition, value) {
            (None, value) => value,
            (Some(condition), Value::Array(items)) if items.iter().all(Value::is_object) => {
                let conditioned = items.into_iter().map(|mut item| {
                    item["when"] = condition.as_str().into();
                    item
                });
                conditioned.collect()
            }
            (Some(condition), value) => json!({ "when": condition, "value": value }),
        };
        let list = |value: Value| match value {
            Value::Array(items) => items,
            one => vec![one],
        };
        match self.extensions.remove(name) {
            Some(known) if known != value => {
                let mut all = list(known);
                list(value).into_iter().for_each(|one| {
                    if !all.contains(&one) {
                        all.push(one);
                    }
                });
                self.extensions.insert(name, all.into());
            }
            _ => drop(self.extensions.insert(name, value)),
        }
    }

    /// Callers should go elsewhere.
    pub fn deprecated(&mut self) {
        self.deprecated = true;
    }

    /// What `say` says holds only where a condition (a CEL expression) does.
    pub fn only_where(&mut self, condition: &str, say: impl FnOnce(&mut Self)) {
        let before = self.condition.replace(condition.to_owned());
        say(self);
        self.condition = before;
    }

    fn conditioned(&self, text: String) -> String {
        match &self.condition {
            Some(condition) => format!("Where `{condition}`: {text}"),
            None => text,
        }
    }

    /// Everything that was said, as an operation object.
    pub fn finish(mut self) -> Described {
        let mut operation = Map::new();
        operation.extend(self.summary.take().map(|text| ("summary".to_owned(), text.into())));
        if !self.paragraphs.is_empty() {
            operation.insert("description".to_owned(), self.paragraphs.join("\n\n").into());
        }
        if self.deprecated {
            operation.insert("deprecated".to_owned(), true.into());
        }
        if !self.parameters.is_empty() {
            operation.insert("parameters".to_owned(), std::mem::take(&mut self.parameters).into());
        }
        operation.extend(self.body.take().map(|body| ("requestBody".to_owned(), body)));
        operation.insert("responses".to_owned(), self.responses());
        let (security, schemes) = security(&self.security);
        operation.insert("security".to_owned(), security);
        operation.extend(self.extensions.into_iter().map(|(name, value)| (name.to_owned(), value)));
        Described { operation: operation.into(), schemes }
    }

    /// The target's answers and the gateway's refusals, by status.
    fn responses(&mut self) -> Value {
        let mut all = std::mem::take(&mut self.answers);
        let mut told: Vec<u16> = Vec::new();
        for (status, refusals) in &self.refusals {
            let refused = refused(refusals);
            told.push(*status);
            match all.get_mut(&status.to_string()) {
                // The target answers with this status too, in its own form.
                Some(known) => {
                    let own = known["description"].as_str().unwrap_or_default().to_owned();
                    let by_gateway = refused["description"].as_str().unwrap_or_default();
                    known["description"] = format!("{own} Or, by the gateway: {by_gateway}").into();
                    // One that has the common form already may say more than the gateway's own codes.
                    if known["content"].get(PROBLEM).is_none() {
                        known["content"][PROBLEM] = refused["content"][PROBLEM].clone();
                    }
                }
                None => {
                    let mut refused = refused;
                    // A range the target answers with includes this one.
                    let range = all.get(&format!("{}XX", status / 100));
                    for (kind, media) in
                        range.and_then(|range| range["content"].as_object()).into_iter().flatten()
                    {
                        if refused["content"].get(kind).is_none() {
                            refused["content"][kind] = media.clone();
                        }
                    }
                    all.insert(status.to_string(), refused);
                }
            }
        }
        for (on, name, header) in &self.headers {
            for (status, response) in &mut all {
                let refusal = status.parse().is_ok_and(|status| told.contains(&status) && status >= 400);
                let wanted = match on {
                    On::Every => true,
                    On::Success => !refusal && status != "default",
                    On::Status(only) => status == &only.to_string(),
                };
                if wanted && response.get("$ref").is_none() {
                    response["headers"][*name] = header.clone();
                }
            }
        }
        Value::Object(all.into_iter().collect())
    }
}

/// Takes out what is not set.
fn present(value: &mut Value) {
    match value {
        Value::Object(map) => map.retain(|_, value| !value.is_null()),
        Value::Array(items) => items.iter_mut().for_each(present),
        _ => {}
    }
}

/// Media type and body of a fixed answer, as an example of it; none if it has no body or does not say what it is.
pub fn example_of<'a>(headers: &'a HeaderMap, body: &[u8]) -> Option<(&'a str, Value)> {
    let kind = headers.get(CONTENT_TYPE)?.to_str().ok().filter(|_| !body.is_empty())?;
    let essence = kind.split(';').next().unwrap_or(kind).trim();
    let example = match serde_json::from_slice(body) {
        Ok(json) if essence == "application/json" => json,
        _ => Value::from(String::from_utf8_lossy(body)),
    };
    Some((essence, example))
}

/// Whether a schema holds nothing back.
fn is_any(schema: &Value) -> bool {
    let says = |key: &String| ["title", "description"].contains(&key.as_str());
    schema.as_object().is_none_or(|map| map.keys().all(says))
}

/// One response for all refusals of a status.
fn refused(refusals: &[Refusal]) -> Value {
    let mut kinds: Vec<Kind> = Vec::new();
    let mut lines: Vec<String> = Vec::new();
    // In the order of the catalogue: which stage stands before which makes no other answer.
    let mut refusals: Vec<&Refusal> = refusals.iter().collect();
    refusals.sort_by_key(|refusal| refusal.kind as usize);
    // Where one says why, another of its kind that does not adds nothing.
    let says_why =
        |kind: Kind| refusals.iter().any(|refusal| refusal.kind == kind && !refusal.why.is_empty());
    let refusals: Vec<&Refusal> = refusals
        .iter()
        .copied()
        .filter(|refusal| !refusal.why.is_empty() || !says_why(refusal.kind))
        .collect();
    for Refusal { kind, why } in refusals {
        if !kinds.contains(kind) {
            kinds.push(*kind);
        }
        let text = kind.text(crate::error::Lang::En);
        let line = match why.is_empty() {
            true => format!("`{}`: {text}.", kind.code()),
            false => format!("`{}`: {text}: {why}.", kind.code()),
        };
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    let codes: Vec<&str> = kinds.iter().map(|kind| kind.code()).collect();
    let mut response = json!({
        "description": lines.join(" "),
        "content": { PROBLEM: { "schema": {
            "allOf": [
                { "$ref": "#/components/schemas/Problem" },
                { "type": "object", "properties": { "code": { "enum": codes } } },
            ],
        } } },
    });
    let status = kinds.first().map(|kind| kind.status().as_u16());
    let said = match status {
        Some(429 | 503) => Some(("Retry-After", "Seconds until it is worth trying again.", "integer")),
        Some(401) => Some(("WWW-Authenticate", "How to say who is calling (RFC 6750).", "string")),
        Some(405) => Some(("Allow", "Methods that are served here.", "string")),
        _ => None,
    };
    if let Some((name, about, kind)) = said {
        response["headers"] = json!({ name: { "description": about, "schema": { "type": kind } } });
    }
    response
}

/// Every way of saying all that is required, and the schemes in them.
fn security(required: &[Required]) -> (Value, Vec<(String, Value)>) {
    let mut ways: Vec<Map<String, Value>> = vec![Map::new()];
    let mut schemes: Vec<(String, Value)> = Vec::new();
    for Required { alternatives, unless_known } in required {
        let mut next = Vec::new();
        for way in &ways {
            if *unless_known && !way.is_empty() {
                next.push(way.clone());
                continue;
            }
            for Alternative { name, scheme } in alternatives {
                let mut way = way.clone();
                if let Some(scheme) = scheme {
                    way.insert(name.to_string(), json!([]));
                    if !schemes.iter().any(|(known, _)| known == name) {
                        schemes.push((name.to_string(), scheme.clone()));
                    }
                }
                next.push(way);
            }
        }
        ways = next;
    }
    // Said even where nothing is required: no security at all is `[]`.
    match required.is_empty() {
        true => (json!([]), schemes),
        false => (ways.into_iter().map(Value::Object).collect(), schemes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doc() -> OperationDoc {
        OperationDoc::new(Arc::new(RouteInfo::unmatched()), Method::GET)
    }

    #[test]
    fn refusals_of_one_status_become_one_answer_with_all_its_codes() {
        let mut doc = doc();
        doc.refuses(&[Kind::NoToken, Kind::TokenExpired], "");
        doc.refuses(&[Kind::NoToken], "at this door");
        let said = doc.finish().operation;
        let answer = &said["responses"]["401"];
        let codes = &answer["content"][PROBLEM]["schema"]["allOf"][1]["properties"]["code"]["enum"];
        assert_eq!(codes, &json!(["no_token", "token_expired"]));
        assert_eq!(answer["description"].as_str().unwrap().matches("`no_token`").count(), 1, "{answer}");
        assert_eq!(answer["headers"]["WWW-Authenticate"]["schema"]["type"], "string");
    }

    #[test]
    fn a_target_and_the_gateway_may_answer_with_the_same_status() {
        let mut doc = doc();
        let own = json!({ "description": "Not there.", "content": { "application/json": {} } });
        doc.answers("404", own);
        doc.refuses(&[Kind::NotFound], "");
        let said = doc.finish().operation;
        let content = said["responses"]["404"]["content"].as_object().unwrap();
        assert_eq!(content.keys().collect::<Vec<_>>(), ["application/json", PROBLEM]);
    }

    #[test]
    fn conditions_are_said_in_words_and_leave_the_way_without() {
        let mut doc = doc();
        doc.only_where("request.path == '/x'", |doc| {
            doc.requires(vec![Alternative {
                name: "bearer".into(),
                scheme: Some(json!({ "type": "http" })),
            }]);
            doc.note("It is asked.");
            doc.extension("x-permission", "a:b".into());
        });
        let Described { operation, schemes, .. } = doc.finish();
        assert_eq!(operation["security"], json!([{ "bearer": [] }, {}]));
        assert_eq!(operation["description"], "Where `request.path == '/x'`: It is asked.");
        assert_eq!(operation["x-permission"], json!({ "when": "request.path == '/x'", "value": "a:b" }));
        assert_eq!(schemes.len(), 1);
    }

    #[test]
    fn a_second_extension_of_a_name_joins_the_first() {
        let limit = |name: &str| json!([{ "policy": name, "limit": 5 }]);
        let mut doc = doc();
        doc.extension("x-rate-limit", limit("a"));
        doc.extension("x-rate-limit", limit("b"));
        doc.extension("x-rate-limit", limit("b"));
        doc.only_where("c", |doc| doc.extension("x-rate-limit", limit("d")));
        doc.extension("x-handler", "one".into());
        doc.extension("x-handler", "two".into());
        let said = doc.finish().operation;
        let wanted = json!([
            { "policy": "a", "limit": 5 },
            { "policy": "b", "limit": 5 },
            { "policy": "d", "limit": 5, "when": "c" },
        ]);
        assert_eq!(said["x-rate-limit"], wanted);
        assert_eq!(said["x-handler"], json!(["one", "two"]));
    }

    #[test]
    fn the_order_of_refusals_does_not_matter() {
        let told = |kinds: &[Kind]| {
            let mut doc = doc();
            kinds.iter().for_each(|kind| doc.refuses(&[*kind], ""));
            doc.finish().operation
        };
        let kinds = [Kind::TokenExpired, Kind::NoToken];
        assert_eq!(told(&kinds), told(&[Kind::NoToken, Kind::TokenExpired]));
    }

    #[test]
    fn two_requirements_are_met_together() {
        let mut doc = doc();
        let way = |name: &'static str| Alternative { name: name.into(), scheme: Some(json!({})) };
        doc.requires(vec![way("bearer"), way("cookie")]);
        doc.requires(vec![way("key")]);
        let security = doc.finish().operation["security"].clone();
        assert_eq!(security, json!([{ "bearer": [], "key": [] }, { "cookie": [], "key": [] }]));
    }

    #[test]
    fn whoever_is_known_already_is_not_asked_again() {
        let mut doc = doc();
        let way = |name: &'static str| Alternative { name: name.into(), scheme: Some(json!({})) };
        doc.requires(vec![way("key"), Alternative { name: "".into(), scheme: None }]);
        doc.requires_unless_known(vec![way("bearer"), way("cookie")]);
        let security = doc.finish().operation["security"].clone();
        assert_eq!(security, json!([{ "key": [] }, { "bearer": [] }, { "cookie": [] }]));
    }
}
