//! One operation: everybody who has to do with it is asked in turn.

use super::components::Components;
use super::frames::Frames;
use crate::check::Checked;
use crate::check::pattern::{Segment, Want};
use crate::check::routes::{CheckedRoute, Ending};
use crate::error::Kind;
use crate::handlers;
use crate::openapi::{On, OperationDoc, example_of};
use crate::state::maintenance::Closed;
use http::Method;
use serde_json::{Value, json};

/// Its id: version and handler, or version, method and path. Stable as long as those are.
pub(super) fn id(checked: &Checked, route: &CheckedRoute, method: &Method) -> String {
    let version = route.info.version.as_deref();
    let named = checked.about().versions.iter().find(|known| Some(known.name.as_str()) == version);
    let prefix = named.map_or("", |version| version.prefix.trim_end_matches('/'));
    let path = route.info.template.strip_prefix(prefix).unwrap_or(&route.info.template);
    let own = match &route.ending {
        Ending::Native(native) if !route.ending.is_socket() => native.operation.name.to_owned(),
        _ => format!("{} {path}", method.as_str().to_ascii_lowercase()),
    };
    let text = format!("{} {own}", version.unwrap_or_default());
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("_")
}

/// The operation object of a route, for one of its methods. `names` are those of the path's parameters in the document.
pub(super) fn describe(
    route: &CheckedRoute,
    method: &Method,
    names: &[String],
    components: &mut Components,
) -> Value {
    let mut doc = OperationDoc::new(route.info.clone(), method.clone());
    doc.websocket = route.ending.is_socket();
    doc.imported = route.described.clone();
    if let Ending::Native(native) = &route.ending {
        doc.handler = Some(native.operation.name);
        doc.extension("x-handler", native.operation.name.into());
        let known = &handlers::described().operations[native.operation.name];
        take(&mut doc, known);
        doc.refuses(handlers::refusals(native.operation.name), "");
        native.document(&mut doc);
    }
    if let Some(bundle) = &route.docs.bundle {
        let imported = components.adopt(bundle);
        take(&mut doc, &imported);
        doc.described = true;
    }
    route.docs.summary.iter().for_each(|summary| doc.summary(summary.as_str()));
    route.docs.description.iter().for_each(|description| doc.note(description.as_str()));
    if let Ending::Target(target) = &route.ending {
        target.document(&mut doc);
    }
    doc.answers_something();
    if let Some(closed) = &route.maintenance {
        switched_off(closed, &mut doc);
    }
    doc.refuses(&[Kind::BadRequest, Kind::InvalidPath], "");
    for stage in route.links.iter().filter_map(|link| link.stage.as_ref()) {
        stage.document(&mut doc);
    }
    if doc.has_body() && !route.links.iter().any(|link| link.name == "body_limit") {
        doc.refuses(&[Kind::PayloadTooLarge], "more than the gateway takes");
    }
    deprecation(route, &mut doc);
    predicates(route, &mut doc);
    parameters(route, names, &mut doc);
    doc.answers("default", json!({ "$ref": "#/components/responses/Unexpected" }));
    let schemas = std::mem::take(&mut doc.schemas);
    schemas.into_iter().for_each(|(name, schema)| components.schema(name, schema));
    let described = doc.finish();
    described.schemes.into_iter().for_each(|(name, scheme)| components.scheme(name, scheme));
    let mut operation = described.operation;
    if route.ending.is_socket()
        && let Some(frames) = Frames::of(route, components)
    {
        operation["x-websocket"]["send"] = Frames::schema(&frames.send);
        operation["x-websocket"]["receive"] = Frames::schema(&frames.receive);
    }
    operation
}

/// Takes over what an operation object says. A WebSocket has neither body nor answers of it.
pub(super) fn take(doc: &mut OperationDoc, said: &Value) {
    let text = |key: &str| said[key].as_str().map(str::to_owned);
    text("summary").into_iter().for_each(|summary| doc.summary(summary));
    text("description").into_iter().for_each(|description| doc.note(description));
    let parameters = said["parameters"].as_array().into_iter().flatten();
    for parameter in parameters {
        let mut parameter = parameter.clone();
        // One of the two it has (OpenAPI 3.1, section 4.8.12.2).
        if parameter.get("schema").is_none() && parameter.get("content").is_none() {
            parameter["schema"] = json!({});
        }
        doc.parameter(parameter);
    }
    if doc.websocket {
        return;
    }
    if let Some(body) = said.get("requestBody") {
        doc.body(body.clone());
    }
    let responses = said["responses"].as_object().into_iter().flatten();
    for (status, response) in responses {
        let mut response = response.clone();
        // Every answer has one (OpenAPI 3.1, section 4.8.17), whatever a fragment leaves out.
        if response.is_object() && response.get("description").is_none() {
            response["description"] = "The answer of the service.".into();
        }
        doc.answers(status.as_str(), response);
    }
}

/// The manifest switches it off: whoever calls gets this, whatever else is said.
fn switched_off(closed: &Closed, doc: &mut OperationDoc) {
    doc.note("Switched off for maintenance at present: every call gets the answer for that.");
    doc.extension("x-maintenance", true.into());
    match &closed.reply {
        None => doc.refuses(&[Kind::Maintenance], "for all, at present"),
        Some(reply) => {
            let status = reply.status.as_u16();
            let mut answer = json!({ "description": "The answer while it is switched off." });
            if let Some((kind, example)) = example_of(&reply.headers, &reply.body) {
                answer["content"] = json!({ kind: { "example": example } });
            }
            doc.answers(status.to_string(), answer);
            let about = "Seconds until it is worth trying again.";
            doc.header(On::Status(status), "Retry-After", about, json!({ "type": "integer" }));
        }
    }
}

fn deprecation(route: &CheckedRoute, doc: &mut OperationDoc) {
    let Some(headers) = &route.deprecation else { return };
    doc.deprecated();
    for (name, value) in headers.iter() {
        let value = value.to_str().unwrap_or_default();
        match name.as_str() {
            "deprecation" => {
                let about = "Since when it is deprecated (RFC 9745).";
                doc.header(On::Every, "Deprecation", about, json!({ "type": "string", "examples": [value] }));
            }
            "sunset" => {
                doc.extension("x-sunset", value.into());
                let about = "When it stops working (RFC 8594).";
                doc.header(On::Every, "Sunset", about, json!({ "type": "string", "examples": [value] }));
            }
            _ => {
                let about = "What replaces it.";
                doc.header(On::Every, "Link", about, json!({ "type": "string", "examples": [value] }));
            }
        }
    }
}

/// What a request must have besides method and path.
fn predicates(route: &CheckedRoute, doc: &mut OperationDoc) {
    let schema = |want: &Want| match want {
        Want::Exact(text) => json!({ "type": "string", "const": text }),
        Want::Present => json!({ "type": "string" }),
    };
    for (name, want) in &route.predicates.headers {
        doc.parameter(
            json!({ "name": name.as_str(), "in": "header", "required": true, "schema": schema(want) }),
        );
    }
    for (name, want) in &route.predicates.query {
        doc.parameter(json!({ "name": name, "in": "query", "required": true, "schema": schema(want) }));
    }
    if let Some(host) = &route.info.host {
        doc.extension("x-host", host.as_str().into());
    }
}

/// Parameters of the path: all of them, under the names that the document's path has.
fn parameters(route: &CheckedRoute, names: &[String], doc: &mut OperationDoc) {
    for (own, name) in route.info.params.iter().zip(names) {
        let rest =
            route.pattern.segments.iter().any(|segment| matches!(segment, Segment::Rest(n) if n == own));
        doc.path_parameter(own, name, rest);
    }
}
