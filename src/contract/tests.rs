//! Each rule, shown by the smallest documents that differ in it.

use super::*;
use crate::diag::Format;
use proptest::prelude::*;

const TODAY: &str = "2026-06-15";

/// A document with these paths.
fn document(paths: Value) -> Value {
    json!({
        "openapi": "3.1.0",
        "info": { "title": "T", "version": "1" },
        "paths": paths,
        "components": { "schemas": { "Named": { "type": "object", "properties": { "n": { "type": "string" } } } } },
    })
}

/// A document with one operation.
fn operation(operation: Value) -> Value {
    document(json!({ "/things": { "post": operation } }))
}

fn plain(extra: Value) -> Value {
    let mut operation_ =
        json!({ "operationId": "things.make", "responses": { "200": { "description": "" } } });
    operation_.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    operation(operation_)
}

fn request(schema: Value) -> Value {
    plain(json!({ "requestBody": { "content": { "application/json": { "schema": schema } } } }))
}

fn response(schema: Value) -> Value {
    plain(
        json!({ "responses": { "200": { "description": "", "content": { "application/json": { "schema": schema } } } } }),
    )
}

fn rules_of(old: &Value, new: &Value) -> Vec<String> {
    compare(old, new, TODAY)
        .iter()
        .map(|change| format!("{}{}", if change.rule.breaking { "!" } else { "" }, change.rule.name))
        .collect()
}

/// What is found in a request and in a response where a schema changes; `!` before what is breaking.
#[test]
fn schemas_are_judged_by_the_direction_of_their_values() {
    let s = || json!({ "type": "string" });
    let object = |fields: Value| json!({ "type": "object", "properties": fields });
    let reference = json!({ "$ref": "#/components/schemas/Named" });
    for (old, new, in_request, in_response) in [
        (s(), json!({ "type": ["string", "null"] }), "request-type-widened", "!response-type-widened"),
        (json!({ "type": ["string", "null"] }), s(), "!request-type-narrowed", "response-type-narrowed"),
        (s(), json!({ "type": "integer" }), "!request-type-changed", "!response-type-changed"),
        (
            json!({ "type": "number" }),
            json!({ "type": "integer" }),
            "!request-type-narrowed",
            "response-type-narrowed",
        ),
        (
            json!({ "type": "integer" }),
            json!({ "type": "number" }),
            "request-type-widened",
            "!response-type-widened",
        ),
        (json!({}), s(), "!request-type-narrowed", "response-type-narrowed"),
        (s(), json!({}), "request-type-widened", "!response-type-widened"),
        (
            json!({ "enum": ["a", "b"] }),
            json!({ "enum": ["a"] }),
            "!request-enum-narrowed",
            "response-enum-narrowed",
        ),
        (
            json!({ "enum": ["a"] }),
            json!({ "enum": ["a", "b"] }),
            "request-enum-widened",
            "!response-enum-widened",
        ),
        (
            json!({ "const": "a" }),
            json!({ "enum": ["a", "b"] }),
            "request-enum-widened",
            "!response-enum-widened",
        ),
        (s(), json!({ "type": "string", "enum": ["a"] }), "!request-enum-narrowed", "response-enum-narrowed"),
        (object(json!({})), object(json!({ "a": s() })), "request-field-added", "response-field-added"),
        (object(json!({ "a": s() })), object(json!({})), "!request-field-removed", "!response-field-removed"),
        (
            object(json!({})),
            json!({ "type": "object", "properties": { "a": s() }, "required": ["a"] }),
            "!request-field-added-required",
            "response-field-added-required",
        ),
        (
            object(json!({ "a": s() })),
            json!({ "type": "object", "properties": { "a": s() }, "required": ["a"] }),
            "!request-field-became-required",
            "response-field-became-required",
        ),
        (
            json!({ "type": "object", "properties": { "a": s() }, "required": ["a"] }),
            object(json!({ "a": s() })),
            "request-field-became-optional",
            "!response-field-became-optional",
        ),
        (
            object(json!({ "a": s() })),
            object(json!({ "a": { "type": "string", "deprecated": true } })),
            "request-field-deprecated",
            "response-field-deprecated",
        ),
        (
            s(),
            json!({ "type": "string", "maxLength": 5 }),
            "!request-constraint-tightened",
            "response-constraint-tightened",
        ),
        (
            json!({ "type": "string", "maxLength": 5 }),
            json!({ "type": "string", "maxLength": 9 }),
            "request-constraint-loosened",
            "!response-constraint-loosened",
        ),
        (
            json!({ "type": "integer", "minimum": 1 }),
            json!({ "type": "integer", "minimum": 2 }),
            "!request-constraint-tightened",
            "response-constraint-tightened",
        ),
        (
            json!({ "type": "string", "pattern": "a" }),
            json!({ "type": "string", "pattern": "b" }),
            "!request-constraint-changed",
            "!response-constraint-changed",
        ),
        (
            json!({ "type": "integer", "default": 1 }),
            json!({ "type": "integer", "default": 2 }),
            "!request-default-changed",
            "response-default-changed",
        ),
        (
            reference.clone(),
            json!({ "oneOf": [reference, s()] }),
            "request-variant-added",
            "!response-variant-added",
        ),
        (
            json!({ "anyOf": [s(), { "type": "integer" }] }),
            s(),
            "!request-variant-removed",
            "response-variant-removed",
        ),
        (
            json!({ "oneOf": [object(json!({ "type": { "const": "a" } })), object(json!({ "type": { "const": "b" } }))] }),
            json!({ "oneOf": [object(json!({ "type": { "const": "b" }, "x": s() })), object(json!({ "type": { "const": "a" } }))] }),
            "request-field-added",
            "response-field-added",
        ),
        (
            json!({ "type": "object" }),
            json!({ "type": "object", "additionalProperties": false }),
            "!request-additional-fields-refused",
            "response-additional-fields-refused",
        ),
        (
            json!({ "type": "object", "additionalProperties": false }),
            json!({ "type": "object" }),
            "request-additional-fields-allowed",
            "response-additional-fields-allowed",
        ),
        (
            json!({ "type": "object", "additionalProperties": s() }),
            json!({ "type": "object", "additionalProperties": { "type": ["string", "null"] } }),
            "request-type-widened",
            "!response-type-widened",
        ),
        (
            json!({ "type": "array", "items": { "enum": ["a", "b"] } }),
            json!({ "type": "array", "items": { "enum": ["a"] } }),
            "!request-enum-narrowed",
            "response-enum-narrowed",
        ),
        // What a reference or `allOf` says is what counts, not how it is written.
        (reference.clone(), object(json!({ "n": s() })), "", ""),
        (object(json!({ "n": s() })), json!({ "allOf": [{ "type": "object" }, reference] }), "", ""),
        (json!({ "anyOf": [s(), { "type": "null" }] }), json!({ "type": ["string", "null"] }), "", ""),
        (
            json!({ "anyOf": [reference, { "type": "null" }] }),
            reference.clone(),
            "!request-type-narrowed",
            "response-type-narrowed",
        ),
        (
            json!({ "enum": ["a", null] }),
            json!({ "enum": ["a"] }),
            "!request-type-narrowed",
            "response-type-narrowed",
        ),
        (json!({ "type": "string", "description": "x" }), s(), "", ""),
        (json!({ "type": "string", "minLength": 0 }), s(), "", ""),
        // Where nothing is said of the items, they may be anything.
        (
            json!({ "type": "array" }),
            json!({ "type": "array", "items": s() }),
            "!request-type-narrowed",
            "response-type-narrowed",
        ),
        (
            json!({ "type": "array", "items": s() }),
            json!({ "type": "array" }),
            "request-type-widened",
            "!response-type-widened",
        ),
        (s(), json!({ "type": "array", "items": s() }), "!request-type-changed", "!response-type-changed"),
        (
            object(json!({})),
            json!({ "type": "object", "properties": {}, "required": ["a"] }),
            "!request-field-became-required",
            "response-field-became-required",
        ),
        (
            json!({ "type": "object" }),
            json!({ "type": "object", "unevaluatedProperties": false }),
            "!request-constraint-tightened",
            "response-constraint-tightened",
        ),
        // Choices within choices are choices.
        (
            json!({ "oneOf": [{ "oneOf": [s(), { "type": "integer" }] }, { "type": "boolean" }] }),
            json!({ "oneOf": [s(), { "oneOf": [{ "type": "integer", "minimum": 1 }, { "type": "boolean" }] }] }),
            "!request-constraint-tightened",
            "response-constraint-tightened",
        ),
        (
            json!({ "oneOf": [{ "oneOf": [s(), { "type": "integer" }] }, { "type": "boolean" }] }),
            json!({ "oneOf": [{ "oneOf": [s()] }, { "type": "boolean" }] }),
            "!request-variant-removed",
            "response-variant-removed",
        ),
    ] {
        for (make, expected) in [(request as fn(Value) -> Value, in_request), (response, in_response)] {
            let found = rules_of(&make(old.clone()), &make(new.clone())).join(" ");
            assert_eq!(found, expected, "{old} -> {new}");
        }
    }
}

#[test]
fn operations_and_what_is_around_schemas_are_judged() {
    let parameter = |extra: Value| {
        let mut parameter = json!({ "name": "q", "in": "query", "schema": { "type": "string" } });
        parameter.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        plain(json!({ "parameters": [parameter] }))
    };
    let none = plain(json!({}));
    let body = |required: bool| {
        plain(json!({ "requestBody": { "required": required, "content": { "application/json": {} } } }))
    };
    let media = |names: &[&str]| {
        let content: serde_json::Map<_, _> =
            names.iter().map(|name| ((*name).to_owned(), json!({}))).collect();
        (
            plain(json!({ "requestBody": { "content": content } })),
            plain(json!({ "responses": { "200": { "description": "", "content": content } } })),
        )
    };
    let (json_in, json_out) = media(&["application/json"]);
    let refusal = |codes: &[&str]| {
        let schema = json!({ "type": "object", "properties": { "code": { "enum": codes } } });
        let refused =
            json!({ "description": "", "content": { "application/problem+json": { "schema": schema } } });
        plain(json!({ "responses": { "200": { "description": "" }, "409": refused } }))
    };
    let (any_in, any_out) = media(&["application/*"]);
    let (both_in, both_out) = media(&["application/json; charset=utf-8", "text/plain"]);
    let statuses = |names: &[&str]| {
        let all: serde_json::Map<_, _> =
            names.iter().map(|name| ((*name).to_owned(), json!({ "description": "" }))).collect();
        plain(json!({ "responses": all }))
    };
    let header = |required: bool| {
        plain(
            json!({ "responses": { "200": { "description": "", "headers": { "X-A": { "required": required, "schema": {} } } } } }),
        )
    };
    let with = |extra: Value| plain(extra);
    let bearer = json!([{ "bearer": [] }]);
    for (old, new, expected) in [
        (document(json!({})), none.clone(), "operation-added"),
        (none.clone(), document(json!({})), "!operation-removed"),
        (
            none.clone(),
            document(json!({ "/other": { "put": none["paths"]["/things"]["post"] } })),
            "!operation-moved",
        ),
        (
            with(json!({ "deprecated": true, "x-sunset": "2026-06-01" })),
            document(json!({})),
            "operation-removed-after-sunset",
        ),
        (
            with(json!({ "deprecated": true, "x-sunset": "2026-07-01" })),
            document(json!({})),
            "!operation-removed",
        ),
        (none.clone(), with(json!({ "operationId": "other" })), "!operation-id-changed"),
        (none.clone(), with(json!({ "deprecated": true })), "operation-deprecated"),
        (with(json!({ "deprecated": true })), none.clone(), "operation-undeprecated"),
        (none.clone(), with(json!({ "x-sunset": "2027-01-01" })), "sunset-set"),
        (
            with(json!({ "x-sunset": "2027-01-01" })),
            with(json!({ "x-sunset": "2026-12-01" })),
            "!sunset-sooner",
        ),
        (
            with(json!({ "x-sunset": "2027-01-01" })),
            with(json!({ "x-sunset": "2027-02-01" })),
            "sunset-later",
        ),
        (none.clone(), parameter(json!({})), "parameter-added"),
        (none.clone(), parameter(json!({ "required": true })), "!parameter-added-required"),
        (parameter(json!({})), none.clone(), "!parameter-removed"),
        (parameter(json!({})), parameter(json!({ "required": true })), "!parameter-became-required"),
        (parameter(json!({ "required": true })), parameter(json!({})), "parameter-became-optional"),
        (parameter(json!({})), parameter(json!({ "style": "pipeDelimited" })), "!parameter-style-changed"),
        (parameter(json!({})), parameter(json!({ "style": "form", "explode": true })), ""),
        (
            parameter(json!({})),
            parameter(json!({ "schema": { "type": "integer" } })),
            "!request-type-changed",
        ),
        (none.clone(), body(false), "request-body-added"),
        (none.clone(), body(true), "!request-body-added-required"),
        (body(true), none.clone(), "!request-body-removed"),
        (body(false), body(true), "!request-body-became-required"),
        (body(true), body(false), "request-body-became-optional"),
        (json_in.clone(), both_in.clone(), "request-content-type-added"),
        (both_in, json_in.clone(), "!request-content-type-removed"),
        (json_out.clone(), both_out.clone(), "response-content-type-added"),
        (both_out, json_out.clone(), "!response-content-type-removed"),
        (statuses(&["200"]), statuses(&["200", "202"]), "response-status-added"),
        (statuses(&["200", "202"]), statuses(&["200"]), "!response-status-removed"),
        (statuses(&["200", "202"]), statuses(&["2XX"]), "response-status-added"),
        (statuses(&["200"]), statuses(&["200", "404"]), "error-status-added"),
        (statuses(&["200", "404"]), statuses(&["200"]), "error-status-removed"),
        // A code that callers do not know is like a status that they do not know.
        (refusal(&["a"]), refusal(&["a", "b"]), "refusal-enum-widened"),
        (refusal(&["a", "b"]), refusal(&["a"]), "response-enum-narrowed"),
        // What is said of any other status is of refusals, where successes are described.
        (
            statuses(&["204", "default"]),
            statuses(&["200", "default"]),
            "!response-status-removed response-status-added",
        ),
        (statuses(&["200", "default"]), statuses(&["default"]), ""),
        (statuses(&["200", "default"]), statuses(&["200"]), "error-status-removed"),
        (statuses(&["200", "409", "default"]), statuses(&["200", "default"]), "error-status-removed"),
        (statuses(&["2XX"]), statuses(&["200"]), "response-status-added"),
        (
            statuses(&["2XX", "default"]),
            statuses(&["404"]),
            "!response-status-removed error-status-removed error-status-added",
        ),
        (any_in.clone(), json_in.clone(), "!request-content-type-removed request-content-type-added"),
        (json_in.clone(), any_in, "request-content-type-added"),
        (any_out.clone(), json_out.clone(), "response-content-type-added"),
        (json_out.clone(), any_out, "!response-content-type-removed response-content-type-added"),
        (header(true), header(false), "!response-header-became-optional"),
        (header(false), none.clone(), "response-header-removed"),
        (header(true), none.clone(), "!required-response-header-removed"),
        (none.clone(), header(true), "response-header-added"),
        (none.clone(), with(json!({ "security": bearer })), "!auth-added"),
        (with(json!({ "security": bearer })), none.clone(), "auth-removed"),
        (
            with(json!({ "security": bearer })),
            with(json!({ "security": [{ "bearer": [] }, { "key": [] }] })),
            "auth-scheme-added",
        ),
        (
            with(json!({ "security": [{ "bearer": [] }, { "key": [] }] })),
            with(json!({ "security": bearer })),
            "!auth-scheme-removed",
        ),
        (
            with(json!({ "security": bearer })),
            with(json!({ "security": [{ "bearer": [] }, {}] })),
            "auth-removed",
        ),
        (none.clone(), with(json!({ "x-permission": "a:b" })), "!permission-added"),
        (with(json!({ "x-permission": "a:b" })), none.clone(), "permission-removed"),
        (
            with(json!({ "x-permission": "a:b" })),
            with(json!({ "x-permission": "a:c" })),
            "!permission-changed",
        ),
        (with(json!({ "x-roles": ["a", "b"] })), with(json!({ "x-roles": ["a"] })), "!roles-narrowed"),
        (with(json!({ "x-roles": ["a"] })), with(json!({ "x-roles": ["a", "b"] })), "roles-widened"),
        (none.clone(), with(json!({ "x-body-limit": "1MiB" })), "!limit-added"),
        (with(json!({ "x-body-limit": "1MiB" })), none.clone(), "limit-removed"),
        (
            with(json!({ "x-body-limit": "1MiB" })),
            with(json!({ "x-body-limit": "512KiB" })),
            "!limit-lowered",
        ),
        (with(json!({ "x-timeout": "30s" })), with(json!({ "x-timeout": "1m" })), "limit-raised"),
        (
            with(json!({ "x-rate-limit": { "limit": 10, "per": "1m" } })),
            with(json!({ "x-rate-limit": { "limit": 10, "per": "2m" } })),
            "!limit-lowered",
        ),
        (
            with(json!({ "x-rate-limit": { "limit": 10, "per": "1m" } })),
            with(json!({ "x-rate-limit": { "limit": 1, "per": "1s" } })),
            "!limit-changed",
        ),
        (
            with(json!({ "x-rate-limit": { "limit": 10, "per": "1m" } })),
            with(json!({ "x-rate-limit": [{ "limit": 10, "per": "1m" }, { "limit": 100, "per": "1h" }] })),
            "!limit-added",
        ),
        (
            with(json!({ "x-timeout": "30s" })),
            with(json!({ "x-timeout": { "when": "request.path == '/x'", "value": "10s" } })),
            "!limit-lowered",
        ),
        (
            with(json!({ "x-sunset": "Fri, 01 Jan 2027 00:00:00 GMT" })),
            with(json!({ "x-sunset": "Tue, 01 Dec 2026 00:00:00 GMT" })),
            "!sunset-sooner",
        ),
        (
            with(json!({ "x-websocket": { "max_rate": 200, "takeover": true, "max_bytes_rate": null } })),
            with(json!({ "x-websocket": { "max_rate": 100, "takeover": false, "max_bytes_rate": null } })),
            "!limit-lowered",
        ),
        (
            with(json!({ "x-rate-limit": [{ "policy": "a", "limit": 10, "per": "1m" }] })),
            with(json!({ "x-rate-limit": [{ "policy": "a", "limit": 20, "per": "1m" }] })),
            "limit-raised",
        ),
        (
            with(json!({ "x-rate-limit": [{ "policy": "a", "limit": 10, "per": "1m", "by": "user" }] })),
            with(json!({ "x-rate-limit": [{ "policy": "a", "limit": 10, "per": "1m", "by": "ip" }] })),
            "!limit-changed",
        ),
        (
            with(
                json!({ "x-websocket": { "send": { "enum": ["a", "b"] }, "receive": { "enum": ["a", "b"] } } }),
            ),
            with(json!({ "x-websocket": { "send": { "enum": ["a"] }, "receive": { "enum": ["a"] } } })),
            "!request-enum-narrowed response-enum-narrowed",
        ),
        // Neither names of parameters in paths nor texts are the contract.
        (
            document(
                json!({ "/a/{id}": { "get": { "summary": "x", "parameters": [{ "name": "id", "in": "path", "required": true, "schema": {} }] } } }),
            ),
            document(
                json!({ "/a/{key}": { "get": { "summary": "y", "parameters": [{ "name": "key", "in": "path", "required": true, "schema": {} }] } } }),
            ),
            "",
        ),
    ] {
        assert_eq!(rules_of(&old, &new).join(" "), expected, "{} -> {}", old["paths"], new["paths"]);
    }
}

#[test]
fn what_stands_beside_operations_is_judged_too() {
    let keyed = |header: &str| {
        let mut document = plain(json!({ "security": [{ "key": [] }] }));
        let scheme = json!({ "type": "apiKey", "in": "header", "name": header, "description": header });
        document["components"]["securitySchemes"] = json!({ "key": scheme });
        document
    };
    assert_eq!(rules_of(&keyed("X-A"), &keyed("X-B")), ["!auth-scheme-changed"]);
    let calling = |routes: &[&str]| {
        let mut document = plain(json!({}));
        document["x-grpc"] = routes.iter().map(|route| json!({ "route": route })).collect();
        document
    };
    let changes =
        compare(&calling(&["ANY /a/*m", "ANY /b/*m"]), &calling(&["ANY /b/*m", "ANY /c/*m"]), TODAY);
    let said: Vec<_> =
        changes.iter().map(|change| (change.rule.name, change.operations[0].as_str())).collect();
    assert_eq!(said, [("operation-removed", "ANY /a/*m"), ("operation-added", "ANY /c/*m")]);
}

#[test]
fn a_change_in_a_component_is_one_change_of_all_who_use_it() {
    let answers = json!({ "200": { "description": "", "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Named" } } } } });
    let old = document(
        json!({ "/a": { "get": { "responses": answers } }, "/b": { "get": { "responses": answers } } }),
    );
    let mut new = old.clone();
    new["components"]["schemas"]["Named"]["properties"]["n"]["type"] = json!("integer");
    let changes = compare(&old, &new, TODAY);
    assert_eq!(changes.len(), 1, "{changes:#?}");
    assert_eq!(changes[0].operations, ["GET /a", "GET /b"]);
    assert_eq!(changes[0].pointer, "/components/schemas/Named/properties/n");
    assert_eq!(changes[0].sentence, "`n` is integer, was string");
    let human = report::render(&changes, Format::Human);
    assert_eq!(
        human,
        "breaking[response-type-changed] GET /a, GET /b: `n` is integer, was string\n  --> #/components/schemas/Named/properties/n\n"
    );
    let github = report::render(&changes, Format::Github);
    assert!(
        github.starts_with("::error title=response-type-changed::GET /a, GET /b: `n` is integer"),
        "{github}"
    );
    let machine: Value = serde_json::from_str(&report::render(&changes, Format::Json)).unwrap();
    assert_eq!(
        (&machine["breaking"], &machine["changes"][0]["rule"]),
        (&json!(1), &json!("response-type-changed"))
    );
}

#[test]
fn schemas_that_hold_themselves_come_to_an_end() {
    let schema = json!({ "type": "object", "properties": {
        "next": { "oneOf": [{ "$ref": "#/components/schemas/Tree" }, { "type": "null" }] },
        "all": { "allOf": [{ "$ref": "#/components/schemas/Tree" }] },
        "leaf": { "type": "string" } } });
    let mut old = request(json!({ "$ref": "#/components/schemas/Tree" }));
    old["components"]["schemas"]["Tree"] = schema;
    old["components"]["schemas"]["Loop"] = json!({ "$ref": "#/components/schemas/Loop" });
    let mut new = old.clone();
    new["components"]["schemas"]["Tree"]["properties"]["leaf"]["maxLength"] = json!(3);
    assert_eq!(rules_of(&old, &new), ["!request-constraint-tightened"]);
    // Choices that multiply, and choices that are themselves.
    let two =
        json!({ "oneOf": [{ "title": "a" }, { "title": "b" }, { "$ref": "#/components/schemas/Named" }] });
    let many = request(json!({ "allOf": vec![two; 30] }));
    let mut fewer = many.clone();
    fewer["components"]["schemas"]["Named"]["required"] = json!(["n"]);
    assert!(rules_of(&many, &fewer).contains(&"!request-field-became-required".to_owned()));
}

#[test]
fn revisions_are_kept_within_bounds_and_shown_safely() {
    let log = changelog::Changelog::default();
    let evil = document(json!({ "/<script>alert(1)</script>": { "get": { "responses": {} } } }));
    log.begin(1, "1.0", std::time::SystemTime::UNIX_EPOCH);
    let mut before = evil;
    for revision in 2..=20 {
        let document = if revision == 19 { plain(json!({})) } else { document(json!({})) };
        log.record(revision, &before, &document, std::time::SystemTime::UNIX_EPOCH);
        before = document;
    }
    let entries = log.entries();
    assert_eq!((entries.len(), entries[0].revision), (changelog::REVISIONS, 20));
    assert_eq!(entries[0].changes[0].rule.name, "operation-removed");
    let html = log.html();
    assert!(
        html.contains(
            "<li class=\"breaking\"><strong>breaking</strong> <code>POST /things</code> it is gone"
        ),
        "{html}"
    );
    assert_eq!(log.json()["revisions"][0]["breaking"], 1);
    let log = changelog::Changelog::default();
    log.begin(1, "<script>", std::time::SystemTime::UNIX_EPOCH);
    let after = document(json!({ "/<script>/{base}": { "get": {} } }));
    log.record(2, &document(json!({})), &after, std::time::SystemTime::UNIX_EPOCH);
    assert!(!log.html().contains("<script>"), "{}", log.html());
    assert!(log.html().contains("GET /&lt;script&gt;/&#123;base&#125;"));
}

/// Any schema of a few levels.
fn schemas() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({})),
        Just(json!({ "$ref": "#/components/schemas/Named" })),
        prop::sample::select(vec!["string", "integer", "number", "boolean", "null"])
            .prop_map(|kind| json!({ "type": kind })),
        prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4)
            .prop_map(|values| json!({ "enum": values })),
        (0..9_u8).prop_map(|max| json!({ "type": "string", "maxLength": max })),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let list = || prop::collection::vec(inner.clone(), 1..4);
        prop_oneof![
            inner.clone().prop_map(|items| json!({ "type": "array", "items": items })),
            list().prop_map(|all| json!({ "oneOf": all })),
            list().prop_map(|all| json!({ "anyOf": all })),
            list().prop_map(|all| json!({ "allOf": all })),
            (prop::collection::btree_map("[a-d]", inner.clone(), 0..4), prop::collection::vec("[a-d]", 0..3))
                .prop_map(|(fields, required)| json!({ "type": "object", "properties": fields, "required": required })),
        ]
    })
}

fn breaks(old: &Value, new: &Value) -> bool {
    counts(&compare(old, new, TODAY)).0 > 0
}

proptest! {
    #[test]
    fn nothing_differs_from_itself(schema in schemas()) {
        for make in [request as fn(Value) -> Value, response] {
            let mut other = make(schema.clone());
            // Equal documents are not looked at, so that something must differ.
            other["info"]["title"] = json!("other");
            other["components"]["schemas"]["More"] = json!({});
            prop_assert_eq!(rules_of(&make(schema.clone()), &other), Vec::<String>::new());
        }
    }

    #[test]
    fn an_optional_field_more_breaks_nobody(field in schemas(), fields in prop::collection::btree_map("[a-d]", schemas(), 0..3)) {
        let old = json!({ "type": "object", "properties": fields });
        let mut new = old.clone();
        new["properties"]["extra"] = field;
        prop_assert!(!breaks(&request(old.clone()), &request(new.clone())));
        prop_assert!(!breaks(&response(old), &response(new)));
    }

    #[test]
    fn a_required_field_more_breaks_writers_only(field in schemas()) {
        let old = json!({ "type": "object" });
        let new = json!({ "type": "object", "properties": { "extra": field }, "required": ["extra"] });
        prop_assert!(breaks(&request(old.clone()), &request(new.clone())));
        prop_assert!(!breaks(&response(old), &response(new)));
    }

    /// Whatever a schema is, a choice more is good for writers and bad for readers; and the other way round.
    #[test]
    fn directions_mirror_each_other(schema in schemas()) {
        let (few, many) = (json!({ "oneOf": [schema, { "title": "A", "type": "object", "properties": { "k": { "const": 1 } } }] }), json!({ "oneOf": [
            schema, { "title": "A", "type": "object", "properties": { "k": { "const": 1 } } }, { "type": "object", "properties": { "k": { "const": 2 } } }] }));
        prop_assert!(!breaks(&request(few.clone()), &request(many.clone())));
        prop_assert!(breaks(&request(many.clone()), &request(few.clone())));
        prop_assert!(breaks(&response(few.clone()), &response(many.clone())));
        prop_assert!(!breaks(&response(many), &response(few)));
    }
}
