//! Forms (`application/x-www-form-urlencoded`, WHATWG URL, section 5) as JSON, and back.
//!
//! A name that stands once is a text, one that repeats a list of texts; names with dots stay as they are (`rename` gives
//! them structure: `a\.b: a.b`). Back goes what is flat: texts, numbers, booleans and lists of them; null is left out.

use super::super::json_body::NotRead;
use serde_json::{Map, Value};
use url::form_urlencoded::{Serializer, parse};

/// What a form says its type is.
pub(super) const TYPE: &str = "application/x-www-form-urlencoded";
/// Fields of a form.
const MOST: u64 = 10_000;

/// A form as an object.
///
/// # Errors
/// If it has more fields than any form.
pub(super) fn read(text: &[u8]) -> Result<Value, NotRead> {
    let mut fields: Map<String, Value> = Map::new();
    for (at, (name, value)) in parse(text).enumerate() {
        if at as u64 == MOST {
            return Err(NotRead::TooMany(MOST));
        }
        let value = Value::String(value.into_owned());
        match fields.get_mut(name.as_ref()) {
            None => {
                fields.insert(name.into_owned(), value);
            }
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
        }
    }
    Ok(Value::Object(fields))
}

/// An object as a form.
///
/// # Errors
/// The name of a field that is not flat; empty if the whole is no object.
pub(super) fn write(value: &Value) -> Result<String, String> {
    let fields = value.as_object().ok_or_else(String::new)?;
    let mut form = Serializer::new(String::new());
    for (name, value) in fields {
        let values = match value {
            Value::Array(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        for value in values {
            match value {
                Value::Null => {}
                Value::String(text) => {
                    form.append_pair(name, text);
                }
                Value::Bool(_) | Value::Number(_) => {
                    form.append_pair(name, &value.to_string());
                }
                Value::Array(_) | Value::Object(_) => return Err(name.clone()),
            }
        }
    }
    Ok(form.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn forms_become_objects_and_back() {
        let value = read("a=1&b=x%20y&a=2&user.name=%C3%BC&empty=&flag".as_bytes()).unwrap();
        assert_eq!(value, json!({ "a": ["1", "2"], "b": "x y", "user.name": "ü", "empty": "", "flag": "" }));
        assert_eq!(write(&value).unwrap(), "a=1&a=2&b=x+y&user.name=%C3%BC&empty=&flag=");
        assert_eq!(write(&json!({ "n": 1.5, "t": true, "no": null })).unwrap(), "n=1.5&t=true");
        assert_eq!(write(&json!({ "o": { "a": 1 } })), Err("o".into()));
        assert_eq!(write(&json!([1])), Err(String::new()));
        assert!(read("a&".repeat(10_001).as_bytes()).is_err());
    }
}
