//! `respond:`, a fixed answer, made once at load.

use super::{Target, TargetCx};
use crate::diag::{Code, Diagnostic, Diagnostics, Span};
use crate::endpoint::{Next, sealed};
use crate::manifest::Spanned;
use crate::manifest::model::Respond;
use crate::openapi::{Answered, OperationDoc, example_of};
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use poem::{Endpoint, Request, Response};
use serde_json::{Value, json};
use std::hash::{Hash, Hasher};

/// A checked fixed answer.
#[derive(Debug, Clone)]
pub struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    /// Is it sound? Reports every fault.
    pub fn check(decl: &Spanned<Respond>, out: &mut Diagnostics) -> Option<Answer> {
        Self::check_with(decl, 200, out)
    }

    /// Is it sound? Where it does not say its status, this is it, from 200 to 599. Reports every fault.
    pub fn check_with(decl: &Spanned<Respond>, default: u16, out: &mut Diagnostics) -> Option<Answer> {
        let before = out.counts().0;
        let bad = |span: Span, message: String| Diagnostic::error(Code::BAD_VALUE, span, message);
        let status = match &decl.status {
            None => StatusCode::from_u16(default).unwrap_or(StatusCode::OK),
            Some(status) => match StatusCode::from_u16(status.value) {
                Ok(code) if (200..600).contains(&status.value) => code,
                _ => {
                    out.push(
                        bad(status.span, format!("{} is not a status to answer with", status.value))
                            .help("use a status from 200 to 599"),
                    );
                    StatusCode::OK
                }
            },
        };
        let mut headers = HeaderMap::new();
        let body = match (&decl.json, &decl.text) {
            (Some(json), Some(text)) => {
                out.push(
                    bad(text.span, "an answer has one body".to_owned())
                        .help("keep `json` or `text`")
                        .note(json.span, "`json` is the other"),
                );
                Bytes::new()
            }
            (Some(json), None) => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                json.to_json().to_string().into()
            }
            (None, Some(text)) => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
                text.value.clone().into()
            }
            (None, None) => Bytes::new(),
        };
        if let (204 | 205 | 304, false, Some(declared)) = (status.as_u16(), body.is_empty(), &decl.status) {
            out.push(
                bad(declared.span, format!("an answer with status {status} has no body"))
                    .help("remove the body, or use another status"),
            );
        }
        for (key, value) in &decl.headers.0 {
            let Ok(name) = HeaderName::try_from(key.text.as_str()) else {
                out.push(bad(key.span, format!("`{}` cannot be a header's name", key.text)));
                continue;
            };
            if [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE].contains(&name) {
                out.push(
                    bad(key.span, format!("`{name}` belongs to the connection and is set by the gateway"))
                        .help("remove it"),
                );
                continue;
            }
            match HeaderValue::try_from(value.value.as_str()) {
                Ok(value) => {
                    headers.insert(name, value);
                }
                Err(_) => out.push(bad(value.span, "a header's value is one line of text".to_owned())),
            }
        }
        (out.counts().0 == before).then_some(Answer { status, headers, body })
    }

    /// Status, headers and body.
    pub fn into_parts(self) -> (StatusCode, HeaderMap, Bytes) {
        (self.status, self.headers, self.body)
    }

    /// For people.
    pub fn in_words(&self) -> String {
        format!("respond {}", self.status.as_u16())
    }

    /// Feeds what it says to a route's identity.
    pub fn identify(&self, mut state: &mut dyn Hasher) {
        (self.status, &self.body).hash(&mut state);
        for (name, value) in &self.headers {
            (name, value).hash(&mut state);
        }
    }

    /// The answer as a response.
    pub fn response(&self) -> Response {
        let mut response = Response::builder().status(self.status).body(self.body.clone());
        *response.headers_mut() = self.headers.clone();
        response
    }
}

impl Answer {
    /// Its status, as a number.
    pub fn answers_with(&self) -> u16 {
        self.status.as_u16()
    }

    /// Says that it stands in for what was described before, while that cannot answer.
    pub fn stand_in(&self, op: &mut OperationDoc) {
        op.answers_something();
        let content = self.content();
        let fits = op.imported.as_deref().zip(content.as_ref()).is_some_and(|(imported, (kind, body))| {
            matches!(imported.answer(self.status, kind), Ok(Answered::Described(schema)) if schema.accepts(body))
        });
        let status = self.status.as_u16().to_string();
        let answers = op.answers_mut();
        let range = answers.get("2XX").filter(|_| self.status.is_success()).cloned();
        match (answers.contains_key(&status), range) {
            (true, _) => {}
            // The service may answer with this status too, and with anything: only words can say both.
            (false, Some(mut range)) if range.get("content").is_none() => {
                let own = range["description"].as_str().unwrap_or_default();
                let fixed = match self.content() {
                    Some((kind, example)) => {
                        format!("{status} with a fixed answer ({kind}), `{}`", brief(&example))
                    }
                    None => format!("{status} without a body"),
                };
                range["description"] = format!("{own} While it cannot: {fixed}.").into();
                answers.insert("2XX".to_owned(), range);
                return;
            }
            (false, Some(range)) => drop(answers.insert(status.clone(), range)),
            (false, None) => {
                let about = "A fixed answer, while the service cannot answer.";
                answers.insert(status, self.described(about));
                return;
            }
        }
        // What is said elsewhere cannot be added to.
        let known = answers.get_mut(&status).filter(|known| known.get("$ref").is_none());
        let Some(known) = known else { return };
        let own = known["description"].as_str().unwrap_or_default();
        known["description"] = format!("{own} While the service cannot answer: a fixed answer.").into();
        if let Some((kind, example)) = content.filter(|_| !fits) {
            let content = &mut known["content"][kind];
            match content.get_mut("schema").map(Value::take) {
                Some(schema) => content["schema"] = json!({ "anyOf": [schema, shape(&example)] }),
                None => *content = json!({ "example": example }),
            }
        }
    }

    /// Media type and body, if it has one that says what it is.
    fn content(&self) -> Option<(&str, Value)> {
        example_of(&self.headers, &self.body)
    }

    /// As a response object.
    fn described(&self, about: &str) -> Value {
        let mut answer = json!({ "description": about });
        if let Some((kind, example)) = self.content() {
            answer["content"] = json!({ kind: { "example": example } });
        }
        answer
    }
}

/// Characters of a fixed answer that are shown where its kind cannot be told apart from the service's own.
const SHOWN: usize = 200;

/// A value in few characters.
fn brief(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    // What would end the code it stands in.
    let text = text.replace(['`', '\n', '\r'], " ");
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// A schema that a value meets.
fn shape(value: &Value) -> Value {
    let kind = match value {
        Value::Object(_) => "object",
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Number(_) => "number",
        Value::Bool(_) => "boolean",
        Value::Null => "null",
    };
    json!({ "type": kind, "examples": [value] })
}

impl Target for Answer {
    fn document(&self, op: &mut OperationDoc) {
        let answer = self.described("A fixed answer.");
        op.answers(self.status.as_u16().to_string(), answer);
    }

    fn build(&self, _: &TargetCx<'_>) -> Next {
        sealed(self.clone())
    }

    fn answers(&self) -> Option<u16> {
        Some(self.status.as_u16())
    }

    fn describe(&self, _: &str, _: &[&str]) -> String {
        self.in_words()
    }
}

impl Endpoint for Answer {
    type Output = Response;

    async fn call(&self, _: Request) -> poem::Result<Response> {
        Ok(self.response())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Bench, faults};
    use super::*;
    use http::Method;

    #[tokio::test]
    async fn the_answer_is_as_written() {
        let bench = Bench::new(
            "{ route: GET /a, respond: { status: 503, json: { error: busy, n: [1, 2.5, null] }, headers: { Retry-After: \"5\" } } }",
        );
        let response = bench.call(Method::GET, "/a", &[]).await;
        assert_eq!(response.status(), 503);
        assert_eq!(response.header("content-type"), Some("application/json"));
        assert_eq!(response.header("retry-after"), Some("5"));
        let body = response.into_body().into_string().await.unwrap();
        assert_eq!(body, r#"{"error":"busy","n":[1,2.5,null]}"#);
        let bench =
            Bench::new("{ route: GET /a, respond: { text: hi, headers: { content-type: text/html } } }");
        let response = bench.call(Method::GET, "/a", &[]).await;
        assert_eq!((response.status().as_u16(), response.header("content-type")), (200, Some("text/html")));
        assert_eq!(bench.target().describe("/a", &[]), "respond 200");
    }

    #[test]
    fn faults_are_found_together() {
        let route = "{ route: GET /a, respond: { status: 99, json: 1, text: a, headers: { \"a b\": c, Content-Length: \"1\", x: \"a\\nb\" } } }";
        assert_eq!(faults(route), [Code::BAD_VALUE; 5]);
        assert_eq!(faults("{ route: GET /a, respond: { status: 204, text: a } }"), [Code::BAD_VALUE]);
        assert_eq!(faults("{ route: GET /a, respond: { status: 204 } }"), []);
    }
}
