//! What a call takes and gives, for the API's description.

use super::{BodyRule, CREDENTIALS, Call};
use crate::grpc::call::rule::Part;
use crate::grpc::comments;
use crate::grpc::json::Style;
use crate::grpc::schema::Schemas;
use crate::openapi::{EVENT, EVENT_STREAM, OperationDoc};
use http::StatusCode;
use prost_reflect::Kind;
use serde_json::{Value, json};

/// Statuses that a failed call may have (google.rpc.Code).
const FAILED: [u16; 11] = [400, 401, 403, 404, 409, 429, 499, 500, 501, 503, 504];

impl Call {
    /// Says its parameters, its body and its answers.
    pub fn document(&self, style: &Style, status: StatusCode, op: &mut OperationDoc) {
        comments::on(&self.method.parent_file(), self.method.path())
            .into_iter()
            .for_each(|text| op.note(text));
        self.parameters(style.proto_names, op);
        let mut schemas = std::mem::take(&mut op.schemas);
        let mut input = Schemas { style, input: true, out: &mut schemas };
        let body = match &self.body {
            BodyRule::Nothing => None,
            BodyRule::Whole => Some(input.message(&self.input)),
            BodyRule::Field(field) => Some(input.field(field)),
        };
        let mut output = Schemas { style, input: false, out: &mut schemas };
        let answer = match &self.response_body {
            None => output.message(&self.output),
            Some(field) => output.field(field),
        };
        op.schemas = schemas;
        if let Some(schema) = body {
            let content = match self.takes_stream {
                true => json!({ "application/x-ndjson": { "schema": schema }, "application/json": {
                    "schema": { "anyOf": [schema, { "type": "array", "items": schema }] } } }),
                false => json!({ "application/json": { "schema": schema } }),
            };
            op.body(json!({ "content": content }));
        }
        let mut said = json!({ "description": "The answer of the service." });
        if self.gives_stream {
            said["description"] =
                "Its messages, one by one: events, or lines by `Accept: application/x-ndjson`.".into();
            let mut event = answer.clone();
            event[EVENT] = "message".into();
            said["content"] = json!({
                EVENT_STREAM: { "schema": event },
                "application/x-ndjson": { "schema": answer },
            });
        } else if status != StatusCode::NO_CONTENT {
            said["content"] = json!({ "application/json": { "schema": answer } });
        }
        op.answers(status.as_u16().to_string(), said);
        let problem =
            json!({ "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } });
        for status in FAILED {
            let about = "The service refuses, or fails; `code` and `error` are its own.";
            op.answers(status.to_string(), json!({ "description": about, "content": problem }));
        }
    }

    /// Fields that the path takes, and those that the query may bring.
    fn parameters(&self, proto_names: bool, op: &mut OperationDoc) {
        let names = op.route.params.clone();
        for variable in &self.variables {
            for part in &variable.parts {
                let Part::Param(index) = part else { continue };
                let Some(name) = names.get(*index) else { continue };
                let whole = variable.parts.len() == 1;
                let schema =
                    if whole { text(&variable.field.leaf().kind()) } else { json!({ "type": "string" }) };
                let mut parameter = json!({ "name": name, "in": "path", "required": true, "schema": schema });
                let field = variable.field.leaf();
                if let Some(comment) = comments::on(&field.parent_file(), field.path()).filter(|_| whole) {
                    parameter["description"] = comment.into();
                }
                op.parameter(parameter);
            }
        }
        if matches!(self.body, BodyRule::Whole) {
            return;
        }
        for field in self.input.fields() {
            let taken = self.variables.iter().any(|variable| variable.field.is_within(&field))
                || matches!(&self.body, BodyRule::Field(body) if *body == field)
                || CREDENTIALS.contains(&field.name());
            // Fields of messages can be given as `outer.inner`; that is said nowhere.
            if taken || field.is_map() || matches!(field.kind(), Kind::Message(_)) {
                continue;
            }
            let name = if proto_names { field.name() } else { field.json_name() };
            let one = text(&field.kind());
            let schema = if field.is_list() { json!({ "type": "array", "items": one }) } else { one };
            let mut parameter = json!({ "name": name, "in": "query", "schema": schema });
            if let Some(comment) = comments::on(&field.parent_file(), field.path()) {
                parameter["description"] = comment.into();
            }
            op.parameter(parameter);
        }
    }
}

/// A value that is read from a text.
fn text(kind: &Kind) -> Value {
    match kind {
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Enum(kind) => {
            let names: Vec<String> = kind.values().map(|value| value.name().to_owned()).collect();
            // By name or by number.
            let number = json!({ "type": "integer", "minimum": i32::MIN, "maximum": i32::MAX });
            json!({ "anyOf": [{ "type": "string", "enum": names }, number] })
        }
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            json!({ "type": "integer", "minimum": i32::MIN, "maximum": i32::MAX })
        }
        Kind::Uint32 | Kind::Fixed32 => json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX }),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => json!({ "type": "integer", "format": "int64" }),
        Kind::Uint64 | Kind::Fixed64 => json!({ "type": "integer", "format": "uint64", "minimum": 0 }),
        Kind::Double | Kind::Float => json!({ "type": "number" }),
        _ => json!({ "type": "string" }),
    }
}
