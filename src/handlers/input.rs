//! A JSON body whose every fault is named: what handlers take instead of poem-openapi's `Json`.
//!
//! poem-openapi stops at the first fault and quotes the value. [`Input`] documents itself like `Json`, but on failure
//! compares the body with the type's own schema and refuses with one [`FieldFault`] a field, with its JSON Pointer and
//! without the value. With `STRICT`, fields that the type does not have are faults too (SECURITY rule 9). [`Optional`] is a
//! body that may be left out.

use crate::error::{FieldFault, GatewayError};
use poem::{FromRequest, Request, RequestBody};
use poem_openapi::payload::{Json, Payload};
use poem_openapi::registry::{MetaRequest, MetaSchemaRef, Registry};
use poem_openapi::types::{ParseFromJSON, Type};
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};
use serde_json::{Map, Value};

/// A JSON body. With `STRICT`, unknown fields are refused.
pub(super) struct Input<T, const STRICT: bool = false>(pub T);

impl<'a, T: ParseFromJSON, const STRICT: bool> ApiExtractor<'a> for Input<T, STRICT> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];

    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        <Json<T> as ApiExtractor>::request_meta()
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        check_type::<T>(request)?;
        let text = <Vec<u8> as FromRequest>::from_request(request, body).await?;
        Ok(Input(read::<T>(&text, STRICT)?))
    }
}

/// A JSON body that may be left out.
pub(super) struct Optional<T>(pub Option<T>);

impl<'a, T: ParseFromJSON> ApiExtractor<'a> for Optional<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];

    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        let meta = <Json<T> as ApiExtractor>::request_meta();
        meta.map(|meta| MetaRequest { required: false, ..meta })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let text = <Vec<u8> as FromRequest>::from_request(request, body).await?;
        if text.is_empty() {
            return Ok(Optional(None));
        }
        check_type::<T>(request)?;
        Ok(Optional(Some(read::<T>(&text, false)?)))
    }
}

/// Refuses what does not say that it is JSON.
fn check_type<T: ParseFromJSON>(request: &Request) -> poem::Result<()> {
    use poem_openapi::error::ContentTypeError;
    match request.content_type() {
        Some(given) if <Json<T> as Payload>::check_content_type(given) => Ok(()),
        Some(given) => Err(ContentTypeError::NotSupported { content_type: given.to_owned() }.into()),
        None => Err(ContentTypeError::ExpectContentType.into()),
    }
}

/// Reads a body as `T`.
///
/// # Errors
/// 400 with a fault for each field.
pub(crate) fn read<T: ParseFromJSON>(text: &[u8], strict: bool) -> Result<T, GatewayError> {
    let value: Value = serde_json::from_slice(text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let en = format!("the body is not JSON: see line {line}, column {column}");
        one(FieldFault::new("", "json", en, format!("请求体不是有效的 JSON（第 {line} 行第 {column} 列）")))
    })?;
    let Value::Object(fields) = value else {
        return Err(one(FieldFault::new(
            "",
            "object",
            "the body must be a JSON object",
            "请求体必须是 JSON 对象",
        )));
    };
    // poem-openapi reads `false` and `1` as texts; what the description calls a text is one.
    let coerced = || fields.values().any(|value| value.is_boolean() || value.is_number());
    if strict || coerced() {
        let faults = faults::<T>(&fields, strict);
        if !faults.is_empty() {
            return Err(GatewayError::invalid(faults));
        }
    }
    T::parse_from_json(Some(Value::Object(fields))).map_err(|_| {
        // The value was used up; reading it again costs only those who sent a wrong one.
        let fields: Map<String, Value> = serde_json::from_slice(text).unwrap_or_default();
        let mut found = faults::<T>(&fields, false);
        if found.is_empty() {
            found.push(FieldFault::new(
                "",
                "malformed",
                "the body is not what this call reads",
                "请求体格式错误",
            ));
        }
        GatewayError::invalid(found)
    })
}

fn one(fault: FieldFault) -> GatewayError {
    GatewayError::invalid(vec![fault])
}

/// What the schema of `T` says against these fields.
fn faults<T: Type>(fields: &Map<String, Value>, strict: bool) -> Vec<FieldFault> {
    let mut registry = Registry::new();
    T::register(&mut registry);
    let Some(schema) = registry.schemas.get(T::name().as_ref()) else { return Vec::new() };
    let mut faults = Vec::new();
    for (name, property) in &schema.properties {
        let wanted = match property {
            MetaSchemaRef::Inline(schema) => schema.ty,
            MetaSchemaRef::Reference(_) => "object",
        };
        match fields.get(*name) {
            None | Some(Value::Null) if schema.required.contains(name) => {
                faults.push(FieldFault::new(pointer(name), "required", "is required", "为必填项"));
            }
            Some(value) if !value.is_null() && !wanted.is_empty() && !is_a(value, wanted) => {
                let en = format!("must be of type {wanted}");
                faults.push(FieldFault::new(pointer(name), "type", en, format!("类型必须为 {wanted}")));
            }
            _ => {}
        }
    }
    let known = |name: &str| schema.properties.iter().any(|(known, _)| *known == name);
    for name in fields.keys().filter(|name| strict && !known(name)) {
        faults.push(FieldFault::new(
            pointer(name),
            "unknown_field",
            "is not a field of this call",
            "不是该接口的字段",
        ));
    }
    faults
}

fn is_a(value: &Value, ty: &str) -> bool {
    match ty {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => true,
    }
}

/// JSON Pointer of a top-level field (RFC 6901, section 3).
fn pointer(name: &str) -> String {
    format!("/{}", name.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Lang;
    use poem_openapi::Object;

    #[derive(Debug, Object)]
    struct Sample {
        name: String,
        age: Option<u32>,
    }

    fn refused(text: &str, strict: bool) -> Vec<(String, &'static str)> {
        let error = read::<Sample>(text.as_bytes(), strict).unwrap_err();
        error.errors.into_iter().map(|fault| (fault.pointer.into_owned(), fault.code)).collect()
    }

    #[test]
    fn every_fault_is_named_with_its_place() {
        assert_eq!(
            refused(r#"{"age": "old", "a/b": 1}"#, true),
            [("/name".into(), "required"), ("/age".into(), "type"), ("/a~1b".into(), "unknown_field")]
        );
        assert_eq!(refused(r#"{"name": null}"#, false), [("/name".into(), "required")]);
        assert_eq!(refused("{", false), [(String::new(), "json")]);
        assert_eq!(refused("[1]", false), [(String::new(), "object")]);
        assert_eq!(refused(r#"{"name": "x", "age": -1}"#, false), [(String::new(), "malformed")]);
        let read = read::<Sample>(br#"{"name": "x", "more": 1}"#, false).unwrap();
        assert_eq!((read.name.as_str(), read.age), ("x", None));
    }

    #[tokio::test]
    async fn the_value_is_not_quoted() {
        let error = read::<Sample>(br#"{"name": {"secret": "hunter2"}}"#, false).unwrap_err();
        let body = error.respond("id", Lang::En).into_body().into_string().await.unwrap();
        assert!(!body.contains("hunter2"), "{body}");
        assert!(body.contains(r#""pointer":"/name""#), "{body}");
    }
}
