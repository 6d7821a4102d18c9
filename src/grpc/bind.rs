//! Fields that take text: from the path and from the query.

use super::json::{kind_words, wrong_type};
use crate::diag::did_you_mean;
use crate::error::FieldFault;
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};

/// Base64 in either alphabet (RFC 4648, sections 4 and 5), padded or not.
const PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, PADDING);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, PADDING);

/// A field, possibly of a message in a message, that text can be read into.
#[derive(Debug, Clone)]
pub(super) struct FieldPath {
    /// Messages on the way.
    outer: Vec<FieldDescriptor>,
    leaf: FieldDescriptor,
}

/// Why there is no such field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoField {
    /// No field of this name; perhaps another was meant.
    Unknown { message: String, name: String, help: Option<String> },
    /// There is one, but not for text.
    NotText { name: String, what: &'static str },
}

impl FieldPath {
    /// Finds `name` or `outer.name`; every part as the proto or as JSON names it.
    pub(super) fn find(message: &MessageDescriptor, path: &str) -> Result<Self, NoField> {
        let mut at = message.clone();
        let mut outer = Vec::new();
        let mut parts = path.split('.').peekable();
        while let Some(name) = parts.next() {
            let field = at.get_field_by_name(name).or_else(|| at.get_field_by_json_name(name));
            let Some(field) = field else {
                let names: Vec<String> = at.fields().map(|field| field.name().to_owned()).collect();
                let help = did_you_mean(name, names.iter().map(String::as_str));
                return Err(NoField::Unknown {
                    message: at.full_name().to_owned(),
                    name: name.to_owned(),
                    help,
                });
            };
            let not_text = |what| Err(NoField::NotText { name: path.to_owned(), what });
            if parts.peek().is_none() {
                return match field.kind() {
                    _ if field.is_map() => not_text("a map"),
                    Kind::Message(inner) if !is_text(&inner) => not_text("a message"),
                    _ => Ok(FieldPath { outer, leaf: field }),
                };
            }
            match field.kind() {
                Kind::Message(inner) if !field.is_list() && !field.is_map() => {
                    outer.push(field);
                    at = inner;
                }
                _ => return not_text("not a message that has fields"),
            }
        }
        Err(NoField::NotText { name: path.to_owned(), what: "not a name" })
    }

    /// The field itself.
    pub(super) fn leaf(&self) -> &FieldDescriptor {
        &self.leaf
    }

    /// Whether it takes several values.
    pub(super) fn is_list(&self) -> bool {
        self.leaf.is_list()
    }

    /// Whether it is this field of the message, or inside it.
    pub(super) fn is_within(&self, field: &FieldDescriptor) -> bool {
        self.outer.first().unwrap_or(&self.leaf) == field
    }

    /// Whether both are the same field.
    pub(super) fn same(&self, other: &FieldPath) -> bool {
        self.leaf == other.leaf && self.outer == other.outer
    }

    /// Reads text into it; into a list as one more item.
    ///
    /// # Errors
    /// The fault, without a place: fields of paths and queries have none in the body.
    pub(super) fn set(&self, message: &mut DynamicMessage, text: &str) -> Result<(), FieldFault> {
        let kind = self.leaf.kind();
        let Some(value) = parse(&kind, text) else {
            return Err(wrong_type("", kind_words(&kind)));
        };
        let mut at = message;
        for field in &self.outer {
            let Value::Message(inner) = at.get_field_mut(field) else {
                return Err(wrong_type("", "a field"));
            };
            at = inner;
        }
        if self.leaf.is_list() {
            if let Value::List(items) = at.get_field_mut(&self.leaf) {
                items.push(value);
            }
        } else {
            at.set_field(&self.leaf, value);
        }
        Ok(())
    }
}

/// Well-known types whose JSON is a text or a scalar.
fn is_text(message: &MessageDescriptor) -> bool {
    let name = message.full_name();
    name.strip_prefix("google.protobuf.")
        .is_some_and(|name| matches!(name, "Timestamp" | "Duration" | "FieldMask") || name.ends_with("Value"))
        && !matches!(name, "google.protobuf.Value" | "google.protobuf.ListValue")
}

fn parse(kind: &Kind, text: &str) -> Option<Value> {
    Some(match kind {
        Kind::Double => Value::F64(text.parse().ok()?),
        Kind::Float => Value::F32(text.parse().ok()?),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(text.parse().ok()?),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(text.parse().ok()?),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(text.parse().ok()?),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(text.parse().ok()?),
        Kind::Bool => Value::Bool(text.parse().ok()?),
        Kind::String => Value::String(text.to_owned()),
        Kind::Bytes => Value::Bytes(STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text)).ok()?.into()),
        Kind::Enum(names) => Value::EnumNumber(match names.get_value_by_name(text) {
            Some(value) => value.number(),
            None => text.parse().ok()?,
        }),
        Kind::Message(inner) => {
            if inner.name().ends_with("Value") {
                let mut wrapper = DynamicMessage::new(inner.clone());
                let value = inner.get_field_by_name("value")?;
                wrapper.set_field(&value, parse(&value.kind(), text)?);
                return Some(Value::Message(wrapper));
            }
            let json = serde_json::Value::String(text.to_owned());
            Value::Message(DynamicMessage::deserialize(inner.clone(), json).ok()?)
        }
    })
}

/// A part of a path without its escapes.
pub(super) fn unescape(text: &str) -> Option<std::borrow::Cow<'_, str>> {
    if !text.contains('%') {
        return Some(text.into());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, behind) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = behind;
    }
    Some(String::from_utf8(bytes).ok()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::testing::pool;

    fn all() -> MessageDescriptor {
        pool().get_message_by_name("test.All").unwrap()
    }

    #[test]
    fn text_becomes_what_the_field_is() {
        let mut message = DynamicMessage::new(all());
        let pairs = [
            ("id", "a b"),
            ("count", "-9007199254740993"),
            ("at", "2026-01-31T12:00:00Z"),
            ("color", "RED"),
            ("raw", "_-8"),
            ("tags", "x"),
            ("tags", "y"),
            ("inner.displayName", "n"),
            ("inner.numbers", "7"),
            ("wait", "1.5s"),
            ("size", "5"),
            ("flag", "true"),
        ];
        for (name, text) in pairs {
            FieldPath::find(&all(), name).unwrap().set(&mut message, text).unwrap();
        }
        let json = serde_json::to_value(&message).unwrap();
        let wanted = serde_json::json!({
            "id": "a b", "count": "-9007199254740993", "at": "2026-01-31T12:00:00Z", "color": "RED", "raw": "/+8=",
            "tags": ["x", "y"], "inner": { "displayName": "n", "numbers": [7] }, "wait": "1.500s", "size": 5, "flag": true,
        });
        assert_eq!(json, wanted);
        for (name, text) in
            [("count", "1.5"), ("at", "now"), ("color", "MAUVE"), ("raw", "!"), ("flag", "1"), ("size", "x")]
        {
            let fault = FieldPath::find(&all(), name).unwrap().set(&mut message, text).unwrap_err();
            assert!(fault.code == "type" && !fault.en.contains(text), "{name}: {fault:?}");
        }
    }

    #[test]
    fn what_takes_no_text_is_no_target() {
        let why = |name: &str| FieldPath::find(&all(), name).unwrap_err();
        assert!(matches!(why("idd"), NoField::Unknown { help: Some(help), .. } if help.contains("`id`")));
        assert!(matches!(why("inner.nam"), NoField::Unknown { message, .. } if message == "test.Inner"));
        for name in ["inner", "labels", "extra", "inners.displayName", "id.x"] {
            assert!(matches!(why(name), NoField::NotText { .. }), "{name}");
        }
        assert_eq!(unescape("a%20%C3%A9").unwrap(), "a é");
        assert!(unescape("%C3").is_none() && unescape("%2").is_none());
    }
}
