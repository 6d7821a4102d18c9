//! What is written for a document, piece by piece. That it compiles and works is shown by the integration tests.

use super::*;
use serde_json::json;

/// The client of a document with these paths and schemas.
fn written(paths: Value, schemas: Value) -> String {
    let document = json!({ "openapi": "3.1.0", "info": { "title": "T", "version": "1" }, "paths": paths, "components": { "schemas": schemas } });
    let text = client(&document).unwrap();
    assert_eq!(text, client(&document).unwrap(), "the same each time");
    text.strip_suffix(RUNTIME).unwrap().to_owned()
}

fn returning(schema: Value) -> Value {
    json!({ "/x": { "get": { "operationId": "x", "responses": { "200": { "content": { "application/json": { "schema": schema } } } } } } })
}

#[test]
fn schemas_are_types() {
    for (schema, expected) in [
        (json!({}), "unknown"),
        (json!(true), "unknown"),
        (json!(false), "never"),
        (json!({ "type": "string" }), "string"),
        (json!({ "type": ["string", "null"] }), "string | null"),
        (json!({ "type": "string", "nullable": true }), "string | null"),
        (json!({ "type": "integer" }), "number"),
        (json!({ "enum": ["a", 1, null, true] }), "\"a\" | 1 | null | true"),
        (json!({ "const": "a\"b" }), "\"a\\\"b\""),
        (json!({ "type": "array", "items": { "type": ["string", "null"] } }), "(string | null)[]"),
        (json!({ "type": "array" }), "unknown[]"),
        (
            json!({ "prefixItems": [{ "type": "string" }, { "type": "number" }], "items": false }),
            "[string, number]",
        ),
        (json!({ "type": "object" }), "Record<string, unknown>"),
        (json!({ "additionalProperties": { "type": "number" } }), "Record<string, number>"),
        (json!({ "type": "object", "additionalProperties": false }), "Record<string, never>"),
        (
            json!({ "properties": { "a": { "type": "string" }, "b-c": {} }, "required": ["a"] }),
            "{ a: string; \"b-c\"?: unknown }",
        ),
        (
            json!({ "properties": { "a": {} }, "additionalProperties": true }),
            "{ a?: unknown; [more: string]: unknown }",
        ),
        (json!({ "anyOf": [{ "type": "string" }, { "type": "null" }] }), "string | null"),
        (
            json!({ "allOf": [{ "$ref": "#/components/schemas/A" }, { "properties": { "b": { "type": "string" } } }] }),
            "A & { b?: string }",
        ),
        (
            json!({ "oneOf": [{ "$ref": "#/components/schemas/A" }, { "$ref": "#/components/schemas/client" }], "properties": { "k": {} } }),
            "(A | Client_) & { k?: unknown }",
        ),
        (json!({ "$ref": "#/components/schemas/A", "description": "x" }), "A"),
        (json!({ "$ref": "#/components/schemas/nowhere" }), "unknown"),
        (json!({ "$ref": "https://elsewhere.example/x" }), "unknown"),
        (json!({ "type": "string", "format": "binary" }), "Blob"),
    ] {
        let text = written(
            returning(schema.clone()),
            json!({ "A": { "type": "string" }, "client": { "type": "number" } }),
        );
        assert!(
            text.contains(&format!("x(options?: CallOptions): Promise<{expected}>;")),
            "{schema}:\n{text}"
        );
    }
}

#[test]
fn only_what_is_used_is_declared_and_nothing_ends_a_comment() {
    let text = written(
        returning(json!({ "$ref": "#/components/schemas/Node" })),
        json!({
            "Unused": { "type": "string" },
            "Node": { "type": "object", "description": "a */ b", "required": ["next"], "properties": {
                "next": { "$ref": "#/components/schemas/Node" },
                "old": { "type": "string", "deprecated": true, "description": "Was." } } },
        }),
    );
    let expected = "/** a *\u{200b}/ b */\nexport interface Node {\n  next: Node;\n  /** Was. @deprecated */\n  old?: string;\n}\n";
    assert!(text.contains(expected), "{text}");
    assert!(!text.contains("Unused"));
}

#[test]
fn operations_are_methods() {
    let ok = json!({ "200": { "description": "" } });
    for (path, method, operation, signature, row) in [
        (
            "/s/{id}/m/{delete}",
            "get",
            json!({ "operationId": "sessions.get_one", "responses": ok }),
            "getOne(id: string, delete_: string, options?: CallOptions): Promise<void>;",
            r#"["GET", "/s/{id}/m/{delete}", ""]"#,
        ),
        (
            "/q",
            "get",
            json!({ "operationId": "q", "parameters": [
                { "name": "q", "in": "query", "required": true, "schema": { "type": "string" } },
                { "name": "X-A", "in": "header", "schema": { "type": "string" } }], "responses": ok }),
            "q(options: CallOptions & { query: { q: string } } & { headers?: { \"X-A\"?: string } }): Promise<void>;",
            r#"["GET", "/q", ""]"#,
        ),
        (
            "/raw",
            "post",
            json!({ "operationId": "raw", "security": [{}, { "bearer": [] }],
                "requestBody": { "required": true, "content": { "application/x-ndjson": {} } },
                "responses": { "200": { "content": { "text/plain": {} } } } }),
            "raw(body: BodyInit, options?: CallOptions): Promise<string>;",
            r#"["POST", "/raw", "arT", "application/x-ndjson"]"#,
        ),
        (
            "/ws",
            "get",
            json!({ "operationId": "ws", "security": [{ "bearer": [] }], "responses": { "101": {} } }),
            "ws(options?: CallOptions & { protocols?: string[] }): Promise<Socket<any, any>>;",
            r#"["GET", "/ws", "aw"]"#,
        ),
        (
            "/e",
            "get",
            json!({ "operationId": "e", "responses": { "200": { "content": { "text/event-stream": { "itemSchema": {
                "type": "object", "properties": { "event": {}, "data": { "contentSchema": { "type": "number" } } } } } } } } }),
            "e(options?: CallOptions): Events<ServerEvent<number>>;",
            r#"["GET", "/e", "s"]"#,
        ),
        (
            "/any",
            "post",
            json!({ "operationId": "any", "responses": { "200": { "content": { "*/*": {} } } } }),
            "any(body?: unknown, options?: CallOptions): Promise<any>;",
            r#"["POST", "/any", "uU"]"#,
        ),
        (
            "/rest/{path}",
            "get",
            json!({ "operationId": "rest", "x-rest-parameter": "path", "responses": ok }),
            "rest(path: string, options?: CallOptions): Promise<void>;",
            r#"["GET", "/rest/{+path}", ""]"#,
        ),
        (
            "/files/{path*}",
            "get",
            json!({ "responses": { "200": { "content": { "image/png": {} } } }, "deprecated": true, "x-sunset": "2027-01-01" }),
            "getFilesPath(path: string, options?: CallOptions): Promise<Blob>;",
            r#"["GET", "/files/{+path}", "B"]"#,
        ),
    ] {
        let text = written(json!({ path: { method: operation } }), json!({}));
        assert!(text.contains(signature), "{signature}\n{text}");
        assert!(text.contains(row), "{row}\n{text}");
    }
}

#[test]
fn names_stay_apart() {
    let operation = |id: &str| json!({ "operationId": id, "responses": {} });
    let paths = json!({ "/a": { "get": operation("a") }, "/b": { "get": operation("a.b") }, "/c": { "get": operation("a.b"), "post": operation("v2.a.b") } });
    let text = written(paths, json!({}));
    for row in [
        "\"a_\": [\"GET\", \"/a\"",
        "\"a.b\": [\"GET\", \"/b\"",
        "\"a.b_\": [\"GET\", \"/c\"",
        "\"v2.a.b\": [\"POST\"",
    ] {
        assert!(text.contains(row), "{row}\n{text}");
    }
}

#[test]
fn names_are_those_of_handlers_and_paths_below_their_version() {
    let operation = |id: &str, tag: &str, handler: Option<&str>| {
        let mut operation = json!({ "operationId": id, "tags": [tag], "responses": {} });
        if let Some(handler) = handler {
            operation["x-handler"] = handler.into();
        }
        operation
    };
    let mut document = json!({ "openapi": "3.1.0", "paths": { "/a": {
        "get": operation("v2_auth_me", "v2", Some("auth.me")),
        "put": operation("v2_put_health", "v2", None),
        "post": operation("v2_post_voice_stream", "v2", None) } } });
    // In a document of one version its name is left out.
    let one = client(&document).unwrap();
    for name in ["auth.me", "health.put", "voice.postStream"] {
        assert!(one.contains(&format!("  \"{name}\": [")), "{name}: {one}");
    }
    document["paths"]["/b"]["get"] = operation("gateway_health", "gateway", Some("gateway.health"));
    document["paths"]["/b"]["put"] = operation("things.make", "", None);
    let all = client(&document).unwrap();
    for name in ["v2.auth.me", "v2.health.put", "v2.voice.postStream", "gateway.health", "things.make"] {
        assert!(all.contains(&format!("  \"{name}\": [")), "{name}: {all}");
    }
}

#[test]
fn only_openapi_becomes_a_client() {
    for document in
        [json!({}), json!({ "swagger": "2.0", "paths": {} }), json!({ "openapi": "3.1.0" }), json!([])]
    {
        assert!(matches!(client(&document), Err(Unusable::NotOpenApi)), "{document}");
    }
    assert!(matches!(client(&json!({ "openapi": "3.1.0", "paths": {} })), Err(Unusable::Empty)));
}
