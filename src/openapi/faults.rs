//! What a schema has against a value, told to callers: the rule that is broken and where, never the value.

use super::schema::below;
use crate::error::FieldFault;
use jsonschema::ValidationError;
use jsonschema::error::{TypeKind, ValidationErrorKind as Broken};
use serde_json::Value;

/// Characters of a pointer that are told: keys are the caller's own.
const POINTER: usize = 256;
/// Characters of a rule that are told.
const RULE: usize = 200;

/// Adds what a fault of the library means for callers, until `limit` are there.
pub(super) fn tell(error: &ValidationError<'_>, limit: usize, out: &mut Vec<FieldFault>) {
    let at = error.instance_path().as_str();
    let mut add = |pointer: &str, code: &'static str, en: String, zh: String| {
        if out.len() < limit {
            out.push(FieldFault::new(cut(pointer, POINTER), code, en, zh));
        }
    };
    let mut here = |code, en: String, zh: String| add(at, code, en, zh);
    match error.kind() {
        Broken::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            add(&below(at, name), "required", "is required".into(), "为必填项".into());
        }
        Broken::AdditionalProperties { unexpected } | Broken::UnevaluatedProperties { unexpected } => {
            for name in unexpected {
                add(
                    &below(at, name),
                    "unknown_field",
                    "is not a field of this call".into(),
                    "不是该接口的字段".into(),
                );
            }
        }
        Broken::Type { kind } => {
            let words = match kind {
                TypeKind::Single(kind) => kind.to_string(),
                TypeKind::Multiple(kinds) => {
                    kinds.iter().map(|kind| kind.to_string()).collect::<Vec<_>>().join(" or ")
                }
            };
            here("type", format!("must be of type {words}"), format!("类型必须为 {words}"));
        }
        Broken::Enum { options } => {
            let options = match &**options {
                Value::Array(options) => options.iter().map(Value::to_string).collect::<Vec<_>>().join(", "),
                other => other.to_string(),
            };
            let options = cut(&options, RULE);
            here("enum", format!("must be one of {options}"), format!("必须是以下之一：{options}"));
        }
        Broken::Constant { expected_value } => {
            let value = cut(&expected_value.to_string(), RULE);
            here("const", format!("must be {value}"), format!("必须为 {value}"));
        }
        Broken::MinLength { limit } => here(
            "min_length",
            format!("must have at least {limit} characters"),
            format!("长度不能少于 {limit} 个字符"),
        ),
        Broken::MaxLength { limit } => here(
            "max_length",
            format!("must have at most {limit} characters"),
            format!("长度不能超过 {limit} 个字符"),
        ),
        Broken::Pattern { pattern } => {
            let pattern = cut(pattern, RULE);
            here("pattern", format!("must match {pattern}"), format!("必须匹配 {pattern}"));
        }
        Broken::Format { format } => {
            here("format", format!("must be a valid {format}"), format!("必须是有效的 {format}"));
        }
        Broken::Minimum { limit } => {
            here("minimum", format!("must be at least {limit}"), format!("不能小于 {limit}"));
        }
        Broken::Maximum { limit } => {
            here("maximum", format!("must be at most {limit}"), format!("不能大于 {limit}"));
        }
        Broken::ExclusiveMinimum { limit } => {
            here("exclusive_minimum", format!("must be more than {limit}"), format!("必须大于 {limit}"));
        }
        Broken::ExclusiveMaximum { limit } => {
            here("exclusive_maximum", format!("must be less than {limit}"), format!("必须小于 {limit}"));
        }
        Broken::MultipleOf { multiple_of } => here(
            "multiple_of",
            format!("must be a multiple of {multiple_of}"),
            format!("必须是 {multiple_of} 的倍数"),
        ),
        Broken::MinItems { limit } => {
            here("min_items", format!("must have at least {limit} items"), format!("至少需要 {limit} 项"));
        }
        Broken::MaxItems { limit } => {
            here("max_items", format!("must have at most {limit} items"), format!("最多只能有 {limit} 项"));
        }
        Broken::UniqueItems => {
            here("unique_items", "must not repeat an item".into(), "不能包含重复项".into());
        }
        Broken::MinProperties { limit } => here(
            "min_properties",
            format!("must have at least {limit} fields"),
            format!("至少需要 {limit} 个字段"),
        ),
        Broken::MaxProperties { limit } => here(
            "max_properties",
            format!("must have at most {limit} fields"),
            format!("最多只能有 {limit} 个字段"),
        ),
        Broken::AnyOf { .. } | Broken::OneOfNotValid { .. } => {
            here(
                "any_of",
                "has none of the forms that are allowed here".into(),
                "不符合任何允许的格式".into(),
            );
        }
        Broken::OneOfMultipleValid { .. } => {
            here(
                "one_of",
                "has more than one of the forms that exclude each other here".into(),
                "同时符合多个互斥的格式".into(),
            );
        }
        Broken::FalseSchema => {
            here("not_allowed", "is not allowed here".into(), "此处不允许出现".into());
        }
        Broken::PropertyNames { .. } => {
            here(
                "property_name",
                "has a field whose name is not allowed".into(),
                "包含不允许的字段名".into(),
            );
        }
        // What is left is rare, and the library's own sentence might quote the value.
        other => {
            let rule = cut(other.keyword(), RULE);
            here("invalid", format!("breaks the rule `{rule}`"), format!("不符合规则 `{rule}`"));
        }
    }
}

/// A text, or its beginning.
fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
