//! What operations say in the same words is said once: headers and refusals that two of them have stand under `components`,
//! and the operations refer to them.
//!
//! A header keeps its name; where two differ under one name, the second stays where it is. A refusal is named after its
//! status (`Unauthorized`), the next of that status `Unauthorized2`, in the order of the document; one of several statuses
//! is a `Failure`. Successes stay where they are: they are what an operation is about.

use http::StatusCode;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// What operations refer to, for `components`.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Under `components/headers`.
    pub(super) headers: Map<String, Value>,
    /// Under `components/responses`.
    pub(super) responses: Map<String, Value>,
}

/// Takes out of the operations what more than one of their answers says.
pub(super) fn share(paths: &mut Map<String, Value>) -> Shared {
    let mut shared = Shared::default();
    let mut counts: HashMap<(String, Value), usize> = HashMap::new();
    each_response(paths, |_, response| {
        for (name, header) in response["headers"].as_object().into_iter().flatten() {
            *counts.entry((name.clone(), header.clone())).or_default() += 1;
        }
    });
    each_response(paths, |_, response| {
        for (name, header) in response.get_mut("headers").and_then(Value::as_object_mut).into_iter().flatten()
        {
            let common = counts.get(&(name.clone(), header.clone())).is_some_and(|count| *count > 1);
            if !common || header.get("$ref").is_some() {
                continue;
            }
            let known = shared.headers.entry(name.clone()).or_insert_with(|| header.clone());
            if known == header {
                *header = json!({ "$ref": format!("#/components/headers/{name}") });
            }
        }
    });
    let mut statuses: HashMap<Value, Vec<String>> = HashMap::new();
    each_response(paths, |status, response| {
        if refusal(status) && response.get("$ref").is_none() {
            statuses.entry(response.clone()).or_default().push(status.to_owned());
        }
    });
    statuses.retain(|_, statuses| statuses.len() > 1);
    let mut names: HashMap<Value, String> = HashMap::new();
    each_response(paths, |status, response| {
        let Some(statuses) = statuses.get(response).filter(|_| refusal(status)) else { return };
        let name = names.entry(response.clone()).or_insert_with(|| {
            let one = statuses.iter().all(|other| other == status);
            let name = if one { named(status) } else { "Failure".to_owned() };
            let name = free(&name, &shared.responses);
            shared.responses.insert(name.clone(), response.clone());
            name
        });
        *response = json!({ "$ref": format!("#/components/responses/{name}") });
    });
    shared
}

/// Every answer of every operation, with its status.
fn each_response(paths: &mut Map<String, Value>, mut see: impl FnMut(&str, &mut Value)) {
    let operations = paths.values_mut().filter_map(Value::as_object_mut).flat_map(Map::values_mut);
    for responses in operations.filter_map(|operation| operation.get_mut("responses")?.as_object_mut()) {
        responses.iter_mut().for_each(|(status, response)| see(status, response));
    }
}

fn refusal(status: &str) -> bool {
    status.starts_with(['4', '5'])
}

/// `Unauthorized` for 401.
fn named(status: &str) -> String {
    match status {
        "4XX" => return "ClientError".to_owned(),
        "5XX" => return "ServerError".to_owned(),
        _ => {}
    }
    let reason = status.parse().ok().and_then(|status: StatusCode| status.canonical_reason());
    match reason {
        Some(reason) => reason.chars().filter(char::is_ascii_alphanumeric).collect(),
        None => format!("Status{status}"),
    }
}

/// The name, or with the next number that is free.
fn free(name: &str, taken: &Map<String, Value>) -> String {
    let numbered = (2..).map(|number| format!("{name}{number}"));
    let mut names = std::iter::once(name.to_owned()).chain(numbered);
    names.find(|name| !taken.contains_key(name)).unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(operations: &[Value]) -> Map<String, Value> {
        let paths = operations.iter().enumerate();
        paths
            .map(|(at, responses)| (format!("/{at}"), json!({ "get": { "responses": responses } })))
            .collect()
    }

    #[test]
    fn what_two_operations_say_alike_is_said_once() {
        let refused = |text: &str| json!({ "description": text, "headers": { "A": { "description": "a" } } });
        let mut said = paths(&[
            json!({ "200": { "description": "ok" }, "401": refused("no"), "429": refused("slow") }),
            json!({ "200": { "description": "ok" }, "401": refused("no"), "429": refused("slower") }),
            json!({ "401": refused("never") }),
            json!({ "401": refused("never"), "499": refused("b"), "4XX": refused("c") }),
            json!({ "499": refused("b"), "4XX": refused("c") }),
            json!({ "409": refused("d"), "500": refused("d") }),
        ]);
        let shared = share(&mut said);
        let names: Vec<&String> = shared.responses.keys().collect();
        assert_eq!(names, ["Unauthorized", "Unauthorized2", "Status499", "ClientError", "Failure"]);
        assert_eq!(shared.headers, *json!({ "A": { "description": "a" } }).as_object().unwrap());
        let header = json!({ "A": { "$ref": "#/components/headers/A" } });
        assert_eq!(shared.responses["Unauthorized"], json!({ "description": "no", "headers": header }));
        let first = &said["/0"]["get"]["responses"];
        assert_eq!(first["401"], json!({ "$ref": "#/components/responses/Unauthorized" }));
        assert_eq!(first["429"], json!({ "description": "slow", "headers": header }));
        assert_eq!(first["200"], json!({ "description": "ok" }));
    }

    #[test]
    fn a_header_of_another_kind_stays_where_it_is() {
        let with = |header: &str| json!({ "200": { "description": "", "headers": { "Age": { "description": header } } } });
        let mut said = paths(&[with("a"), with("a"), with("b"), with("b")]);
        let shared = share(&mut said);
        assert_eq!(shared.headers["Age"]["description"], "a");
        assert_eq!(said["/3"]["get"]["responses"], with("b"));
    }
}
