//! Values read from texts: parameters arrive as text, their schemas speak of numbers and lists.

use serde_json::{Map, Value};

/// How far references and combinations are looked through for types.
const MAX_DEPTH: usize = 16;

/// The types that a schema lets through, as far as its keywords name them; none named means text.
#[derive(Debug, Clone, Default)]
pub(super) struct Kinds {
    pub(super) string: bool,
    pub(super) number: bool,
    pub(super) boolean: bool,
    pub(super) null: bool,
    pub(super) array: bool,
    pub(super) object: bool,
    /// The types of a list's items.
    pub(super) items: Option<Box<Kinds>>,
}

impl Kinds {
    /// Of a schema whose references lead into `definitions` alone.
    pub(super) fn of(schema: &Value, definitions: &Map<String, Value>) -> Self {
        let mut kinds = Kinds::default();
        kinds.gather(schema, definitions, MAX_DEPTH);
        kinds
    }

    fn gather(&mut self, schema: &Value, definitions: &Map<String, Value>, depth: usize) {
        let (Value::Object(schema), Some(depth)) = (schema, depth.checked_sub(1)) else { return };
        match schema.get("type") {
            Some(Value::String(name)) => self.note(name),
            Some(Value::Array(names)) => {
                names.iter().filter_map(Value::as_str).for_each(|name| self.note(name));
            }
            _ => {}
        }
        let values = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
        for value in values.chain(schema.get("const")).filter(|_| !schema.contains_key("type")) {
            self.note(match value {
                Value::Number(_) => "number",
                Value::Bool(_) => "boolean",
                Value::Null => "null",
                _ => "string",
            });
        }
        let target = schema.get("$ref").and_then(|target| target.as_str()?.strip_prefix("#/$defs/"));
        if let Some(target) = target.and_then(|name| definitions.get(name)) {
            self.gather(target, definitions, depth);
        }
        for key in ["allOf", "anyOf", "oneOf"] {
            for part in schema.get(key).and_then(Value::as_array).into_iter().flatten() {
                self.gather(part, definitions, depth);
            }
        }
        if let Some(items) = schema.get("items") {
            self.items.get_or_insert_default().gather(items, definitions, depth);
        }
    }

    fn note(&mut self, name: &str) {
        match name {
            "string" => self.string = true,
            "number" | "integer" => self.number = true,
            "boolean" => self.boolean = true,
            "null" => self.null = true,
            "array" => self.array = true,
            "object" => self.object = true,
            _ => {}
        }
    }

    /// A text as the value it stands for: a number where numbers may stand and it is one, and so on; else itself.
    pub(super) fn read(&self, text: &str) -> Value {
        if self.number
            && let Ok(number) = text.parse::<serde_json::Number>()
        {
            return Value::Number(number);
        }
        match text {
            "true" | "false" if self.boolean => Value::Bool(text == "true"),
            "" if self.null && !self.string => Value::Null,
            _ => Value::String(text.to_owned()),
        }
    }

    /// Texts as a list of such values.
    pub(super) fn read_list<'a>(&self, texts: impl Iterator<Item = &'a str>) -> Value {
        match &self.items {
            Some(items) => texts.map(|text| items.read(text)).collect(),
            None => texts.map(|text| Value::String(text.to_owned())).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(schema: Value, text: &str) -> Value {
        Kinds::of(&schema, &Map::new()).read(text)
    }

    #[test]
    fn texts_become_what_the_schema_speaks_of() {
        assert_eq!(read(json!({ "type": "integer" }), "12"), json!(12));
        assert_eq!(read(json!({ "type": "integer" }), "007"), json!("007"), "no number of JSON");
        assert_eq!(read(json!({ "type": "string" }), "12"), json!("12"));
        assert_eq!(read(json!({ "type": ["boolean", "null"] }), ""), json!(null));
        assert_eq!(read(json!({ "anyOf": [{ "type": "boolean" }] }), "true"), json!(true));
        assert_eq!(read(json!({ "enum": [1, 2] }), "2"), json!(2));
        assert_eq!(read(json!({}), "2"), json!("2"));
        let list = Kinds::of(&json!({ "type": "array", "items": { "type": "number" } }), &Map::new());
        assert_eq!(list.read_list(["1", "x"].into_iter()), json!([1, "x"]));
    }

    #[test]
    fn references_are_looked_through_and_circles_end() {
        let definitions = json!({ "0": { "$ref": "#/$defs/1" }, "1": { "type": "integer", "allOf": [{ "$ref": "#/$defs/0" }] } });
        let Value::Object(definitions) = definitions else { unreachable!() };
        assert_eq!(Kinds::of(&definitions["0"], &definitions).read("3"), json!(3));
    }
}
