//! Statuses with details, as services that mean it give them.

use crate::grpc::wire::rpc;
use prost::{Message as _, Name};
use prost_types::Any;
use tonic::{Code, Status};

/// Who speaks in `ErrorInfo`.
const DOMAIN: &str = "demo.voicehelper";

/// One field is wrong: `field` in the proto's words, and what it must be.
pub(super) fn invalid(field: &str, must: &str) -> Status {
    invalid_all(&[(field, must)])
}

/// Fields are wrong.
pub(super) fn invalid_all(fields: &[(&str, &str)]) -> Status {
    let field_violations = fields
        .iter()
        .map(|(field, must)| rpc::bad_request::FieldViolation {
            field: (*field).to_owned(),
            description: format!("must be {must}"),
            ..Default::default()
        })
        .collect();
    let text = format!("`{}` must be {}", fields[0].0, fields[0].1);
    with(Code::InvalidArgument, &text, &[any(&rpc::BadRequest { field_violations })])
}

/// There is no such thing, or it is somebody else's: callers shall not tell the two apart.
pub(super) fn not_found(kind: &str, name: &str) -> Status {
    let about = resource(kind, name);
    with(Code::NotFound, &format!("there is no {kind} {name}"), &[info("NOT_FOUND"), about])
}

/// With a reason for programs.
pub(super) fn because(code: Code, reason: &str, text: &str) -> Status {
    with(code, text, &[info(reason)])
}

/// Try again later.
pub(super) fn later(text: &str, seconds: i64) -> Status {
    let retry_delay = Some(prost_types::Duration { seconds, nanos: 0 });
    with(Code::ResourceExhausted, text, &[info("QUOTA"), any(&rpc::RetryInfo { retry_delay })])
}

fn resource(kind: &str, name: &str) -> Any {
    any(&rpc::ResourceInfo {
        resource_type: kind.to_owned(),
        resource_name: name.to_owned(),
        ..Default::default()
    })
}

fn info(reason: &str) -> Any {
    any(&rpc::ErrorInfo { reason: reason.to_owned(), domain: DOMAIN.to_owned(), ..Default::default() })
}

fn any<M: Name>(message: &M) -> Any {
    Any { type_url: format!("type.googleapis.com/{}", M::full_name()), value: message.encode_to_vec() }
}

fn with(code: Code, text: &str, details: &[Any]) -> Status {
    let status = rpc::Status { code: code as i32, message: text.to_owned(), details: details.to_vec() };
    Status::with_details(code, text, status.encode_to_vec().into())
}
