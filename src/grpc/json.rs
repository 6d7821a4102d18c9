//! Messages as JSON (proto3 JSON mapping): reading what callers send, and writing what services answer.
//!
//! A body is read in one pass. Only where that fails it is read once more beside the descriptor, to name every fault with
//! its place; values are never quoted, they may be passwords.

use crate::error::FieldFault;
use prost_reflect::{
    DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, SerializeOptions, Value,
};
use serde_json::{Map, Value as Json};

/// Faults that one answer names.
const MOST_FAULTS: usize = 20;

/// Reads a message.
///
/// # Errors
/// Every fault, with its JSON Pointer.
pub fn read(descriptor: &MessageDescriptor, text: &[u8]) -> Result<DynamicMessage, Vec<FieldFault>> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    DynamicMessage::deserialize_with_options(descriptor.clone(), &mut json, &options)
        .and_then(|message| json.end().map(|()| message))
        .map_err(|_| faults_of(descriptor, text))
}

/// Reads the value of one field, as a body that a field takes.
///
/// # Errors
/// Every fault, with its JSON Pointer in the value.
pub fn read_field(field: &FieldDescriptor, text: &[u8]) -> Result<Value, Vec<FieldFault>> {
    if let (Kind::Message(inner), false) = (field.kind(), field.is_list() || field.is_map()) {
        return read(&inner, text).map(Value::Message);
    }
    let value = parse(text).map_err(|fault| vec![fault])?;
    let mut faults = Vec::new();
    field_faults(field, &value, &mut String::new(), &mut faults);
    if !faults.is_empty() {
        return Err(faults);
    }
    let message = whole(field.parent_message(), alone(field, value));
    Ok(message.map_or_else(|| field.default_value(), |message| message.get_field(field).into_owned()))
}

/// How messages are written.
#[derive(Debug, Clone)]
pub struct Style {
    options: SerializeOptions,
    /// Whether fields have the proto's own names.
    pub proto_names: bool,
    /// Whether fields stand there at their default value too.
    pub defaults: bool,
}

impl Style {
    /// With the proto's own names or those of proto3 JSON, and with fields at their default value or without.
    pub fn new(proto_names: bool, defaults: bool) -> Self {
        let options =
            SerializeOptions::new().use_proto_field_name(proto_names).skip_default_fields(!defaults);
        Style { options, proto_names, defaults }
    }

    /// Appends a message, or one field of it, as JSON.
    ///
    /// # Errors
    /// Where a well-known type holds what it may not (a timestamp out of its range).
    pub fn write(
        &self,
        message: &DynamicMessage,
        only: Option<&FieldDescriptor>,
        out: &mut Vec<u8>,
    ) -> Result<(), serde_json::Error> {
        let plain = |message: &DynamicMessage, out: &mut Vec<u8>| {
            message.serialize_with_options(&mut serde_json::Serializer::new(out), &self.options)
        };
        let Some(field) = only else { return plain(message, out) };
        let value = message.get_field(field);
        if let (Value::Message(inner), false) = (&*value, field.is_list() || field.is_map()) {
            return plain(inner, out);
        }
        // Lists, maps and scalars have no serializer of their own: cut the field out of a message that has only it.
        let mut single = DynamicMessage::new(field.parent_message().clone());
        single.set_field(field, value.into_owned());
        let options = self.options.clone().skip_default_fields(false);
        let mut whole = single.serialize_with_options(serde_json::value::Serializer, &options)?;
        let name = if self.proto_names { field.name() } else { field.json_name() };
        let value = whole.as_object_mut().and_then(|fields| fields.remove(name)).unwrap_or_default();
        serde_json::to_writer(out, &value)
    }
}

/// What is wrong with a body that could not be read.
fn faults_of(descriptor: &MessageDescriptor, text: &[u8]) -> Vec<FieldFault> {
    let value = match parse(text) {
        Ok(value) => value,
        Err(fault) => return vec![fault],
    };
    let mut faults = Vec::new();
    message_faults(descriptor, &value, &mut String::new(), &mut faults);
    if faults.is_empty() {
        let what = descriptor.name();
        faults.push(malformed("", format!("is not a {what}"), format!("不是 {what}")));
    }
    faults
}

fn parse(text: &[u8]) -> Result<Json, FieldFault> {
    serde_json::from_slice(text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let en = format!("the body is not JSON: see line {line}, column {column}");
        FieldFault::new("", "json", en, format!("请求体不是有效的 JSON（第 {line} 行第 {column} 列）"))
    })
}

fn malformed(pointer: &str, en: String, zh: String) -> FieldFault {
    FieldFault::new(pointer.to_owned(), "malformed", en, zh)
}

fn message_faults(
    descriptor: &MessageDescriptor,
    value: &Json,
    at: &mut String,
    faults: &mut Vec<FieldFault>,
) {
    if is_well_known(descriptor) {
        if whole(descriptor, value.clone()).is_none() {
            faults.push(wrong_type(at, form_of(descriptor)));
        }
        return;
    }
    let Json::Object(fields) = value else {
        faults.push(wrong_type(at, "an object"));
        return;
    };
    let mut chosen: Vec<(String, String)> = Vec::new();
    for (name, value) in fields {
        if faults.len() >= MOST_FAULTS {
            return;
        }
        let before = at.len();
        push(at, name);
        let field = descriptor.get_field_by_json_name(name).or_else(|| descriptor.get_field_by_name(name));
        match field {
            None => faults.push(FieldFault::new(
                at.clone(),
                "unknown_field",
                "is not a field of this call",
                "不是该接口的字段",
            )),
            Some(_) if value.is_null() => {}
            Some(field) => {
                if let Some(oneof) = field.containing_oneof().filter(|oneof| oneof.fields().len() > 1) {
                    if let Some((_, other)) = chosen.iter().find(|(known, _)| known == oneof.name()) {
                        let en = format!("excludes `{other}`: only one of them may be there");
                        faults.push(FieldFault::new(
                            at.clone(),
                            "excluded",
                            en,
                            format!("与 `{other}` 互斥"),
                        ));
                    }
                    chosen.push((oneof.name().to_owned(), name.clone()));
                }
                field_faults(&field, value, at, faults);
            }
        }
        at.truncate(before);
    }
}

fn field_faults(field: &FieldDescriptor, value: &Json, at: &mut String, faults: &mut Vec<FieldFault>) {
    let before = at.len();
    if field.is_map() {
        let Json::Object(entries) = value else {
            faults.push(wrong_type(at, "an object"));
            return;
        };
        let Kind::Message(entry) = field.kind() else { return };
        for (key, value) in entries {
            push(at, key);
            single_faults(&entry.map_entry_value_field(), value, at, faults);
            at.truncate(before);
        }
        if faults.is_empty() && whole(field.parent_message(), alone(field, value.clone())).is_none() {
            faults.push(wrong_type(at, "an object whose keys fit"));
        }
    } else if field.is_list() {
        let Json::Array(items) = value else {
            faults.push(wrong_type(at, "a list"));
            return;
        };
        for (index, item) in items.iter().enumerate() {
            if faults.len() >= MOST_FAULTS {
                return;
            }
            push(at, &index.to_string());
            match field.kind() {
                Kind::Message(inner) => message_faults(&inner, item, at, faults),
                _ if whole(field.parent_message(), alone(field, Json::Array(vec![item.clone()])))
                    .is_none() =>
                {
                    faults.push(wrong_type(at, kind_words(&field.kind())));
                }
                _ => {}
            }
            at.truncate(before);
        }
    } else {
        single_faults(field, value, at, faults);
    }
}

fn single_faults(field: &FieldDescriptor, value: &Json, at: &mut String, faults: &mut Vec<FieldFault>) {
    match field.kind() {
        Kind::Message(inner) => message_faults(&inner, value, at, faults),
        _ if whole(field.parent_message(), alone(field, value.clone())).is_none() => {
            faults.push(wrong_type(at, kind_words(&field.kind())));
        }
        _ => {}
    }
}

/// An object with this field alone.
fn alone(field: &FieldDescriptor, value: Json) -> Json {
    Json::Object(Map::from_iter([(field.json_name().to_owned(), value)]))
}

fn whole(descriptor: &MessageDescriptor, value: Json) -> Option<DynamicMessage> {
    DynamicMessage::deserialize(descriptor.clone(), value).ok()
}

fn is_well_known(descriptor: &MessageDescriptor) -> bool {
    descriptor.package_name() == "google.protobuf"
}

/// What the JSON of a well-known type looks like.
pub(super) fn form_of(descriptor: &MessageDescriptor) -> &'static str {
    match descriptor.name() {
        "Timestamp" => "a time as RFC 3339 has it, such as `2026-01-31T12:00:00Z`",
        "Duration" => "a duration in seconds, such as `1.5s`",
        "FieldMask" => "names of fields, separated by commas",
        "ListValue" => "a list",
        "BoolValue" => "true or false",
        "StringValue" => "a string",
        "BytesValue" => "base64",
        "Int32Value" | "UInt32Value" | "Int64Value" | "UInt64Value" => "a whole number",
        "DoubleValue" | "FloatValue" => "a number",
        "NullValue" => "null",
        "Value" => "JSON",
        _ => "an object",
    }
}

/// What a value of this kind looks like.
pub(super) fn kind_words(kind: &Kind) -> &'static str {
    match kind {
        Kind::Double | Kind::Float => "a number",
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => "a whole number of 32 bits",
        Kind::Uint32 | Kind::Fixed32 => "a whole number of 32 bits, 0 or more",
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => "a whole number of 64 bits, as a number or a string",
        Kind::Uint64 | Kind::Fixed64 => "a whole number of 64 bits, 0 or more, as a number or a string",
        Kind::Bool => "true or false",
        Kind::String => "a string",
        Kind::Bytes => "base64",
        Kind::Message(descriptor) => form_of(descriptor),
        Kind::Enum(_) => "a name of its enum",
    }
}

/// A value of the wrong type at a pointer.
pub(super) fn wrong_type(at: &str, form: &str) -> FieldFault {
    FieldFault::new(at.to_owned(), "type", format!("must be {form}"), format!("类型错误：{form}"))
}

/// Goes on to a member (RFC 6901).
pub(super) fn push(at: &mut String, name: &str) {
    at.push('/');
    for c in name.chars() {
        match c {
            '~' => at.push_str("~0"),
            '/' => at.push_str("~1"),
            c => at.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::testing::pool;

    fn read_as(name: &str, text: &str) -> Result<DynamicMessage, Vec<(String, &'static str)>> {
        let descriptor = pool().get_message_by_name(name).unwrap();
        read(&descriptor, text.as_bytes()).map_err(|faults| {
            faults.into_iter().map(|fault| (fault.pointer.into_owned(), fault.code)).collect()
        })
    }

    #[test]
    fn messages_go_there_and_back() {
        let text = r#"{"id":"a","count":"9007199254740993","at":"2026-01-31T12:00:00Z","color":"RED","raw":"AQI=",
            "tags":["x"],"labels":{"k":"v"},"inner":{"display_name":"n"},"extra":{"a":[1,null]},"wait":"1.500s","size":5}"#;
        let message = read_as("test.All", text).unwrap();
        let mut out = Vec::new();
        Style::new(false, false).write(&message, None, &mut out).unwrap();
        let mut wanted: Json = serde_json::from_str(text).unwrap();
        wanted["inner"] = serde_json::json!({ "displayName": "n" });
        // `Struct` knows numbers with a point only.
        wanted["extra"] = serde_json::json!({ "a": [1.0, null] });
        assert_eq!(serde_json::from_slice::<Json>(&out).unwrap(), wanted);

        let (mut names, mut defaults) = (Vec::new(), Vec::new());
        let empty = read_as("test.Inner", "{}").unwrap();
        Style::new(true, true).write(&empty, None, &mut names).unwrap();
        Style::new(false, true).write(&empty, None, &mut defaults).unwrap();
        assert_eq!(names, br#"{"display_name":"","numbers":[]}"#);
        assert_eq!(defaults, br#"{"displayName":"","numbers":[]}"#);
    }

    #[test]
    fn one_field_can_be_the_body() {
        let message =
            read_as("test.All", r#"{"tags":["x","y"],"inner":{"displayName":"n"},"count":7}"#).unwrap();
        let written = |name: &str| {
            let field = pool().get_message_by_name("test.All").unwrap().get_field_by_name(name).unwrap();
            let mut out = Vec::new();
            Style::new(false, false).write(&message, Some(&field), &mut out).unwrap();
            let again = read_field(&field, &out).unwrap();
            assert_eq!(again, *message.get_field(&field));
            String::from_utf8(out).unwrap()
        };
        assert_eq!(written("tags"), r#"["x","y"]"#);
        assert_eq!(written("inner"), r#"{"displayName":"n"}"#);
        assert_eq!(written("count"), r#""7""#);
        let tags = pool().get_message_by_name("test.All").unwrap().get_field_by_name("tags").unwrap();
        assert_eq!(read_field(&tags, b"[1]").unwrap_err()[0].pointer, "/0");
        assert_eq!(read_field(&tags, br#"["a"],"id":"b""#).unwrap_err()[0].code, "json");
    }

    #[test]
    fn every_fault_is_named_with_its_place_and_no_value() {
        let text = r#"{"id":5,"nope":1,"inner":{"numbers":[1,"x"],"a/b":2},"labels":{"k":1},"color":"MAUVE",
            "at":"yesterday","left":"a","right":"b","tags":"t"}"#;
        let mut faults = read_as("test.All", text).unwrap_err();
        faults.sort();
        let mut wanted = [
            ("/at", "type"),
            ("/color", "type"),
            ("/id", "type"),
            ("/inner/a~1b", "unknown_field"),
            ("/inner/numbers/1", "type"),
            ("/labels/k", "type"),
            ("/nope", "unknown_field"),
            ("/right", "excluded"),
            ("/tags", "type"),
        ]
        .map(|(pointer, code)| (pointer.to_owned(), code));
        wanted.sort();
        assert_eq!(faults, wanted);
        assert_eq!(read_as("test.All", "[]").unwrap_err(), [(String::new(), "type")]);
        assert_eq!(read_as("test.All", "{").unwrap_err(), [(String::new(), "json")]);
        assert_eq!(read_as("test.All", "{} {}").unwrap_err(), [(String::new(), "json")]);
        assert_eq!(read_as("test.All", "").unwrap_err(), [(String::new(), "json")]);
        let many = format!("{{{}}}", (0..100).map(|n| format!("\"u{n}\":1")).collect::<Vec<_>>().join(","));
        assert_eq!(read_as("test.All", &many).unwrap_err().len(), MOST_FAULTS);
        assert!(read_as("test.All", &"[".repeat(100_000)).is_err(), "depth is bounded");
    }
}
