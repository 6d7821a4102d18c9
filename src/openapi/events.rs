//! Event streams: what the data of each kind of event is.
//!
//! A stream's schema is that of an event's data, as OpenAPI 3.1 has it; where there are several, a `oneOf`. Which events
//! bear which data is said at each alternative by [`EVENT`]: a name, or a list of them. `message` is an event without a
//! name (WHATWG HTML, section 9.2.6), and what has no `x-event` may come under any other name. So one description serves
//! OpenAPI 3.1, OpenAPI 3.2 (`itemSchema`), messages of a bridge, and typed clients.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

/// Key of an alternative: names of the events that bear it.
pub const EVENT: &str = "x-event";
/// Media type of event streams.
pub const EVENT_STREAM: &str = "text/event-stream";
/// References and choices on the way to an alternative.
const MAX_DEPTH: usize = 8;

/// One kind of data.
#[derive(Debug, Clone, PartialEq)]
pub struct EventKind {
    /// Names of its events; none where nobody said.
    pub events: Vec<String>,
    /// Its schema.
    pub schema: Value,
}

/// Every kind of data that a stream's schema speaks of, in order. `find` follows a `$ref`.
pub fn alternatives<'d>(schema: &'d Value, find: &dyn Fn(&str) -> Option<&'d Value>) -> Vec<EventKind> {
    let mut all = Vec::new();
    gather(schema, find, 0, &mut all);
    all
}

fn gather<'d>(
    schema: &'d Value,
    find: &dyn Fn(&str) -> Option<&'d Value>,
    depth: usize,
    out: &mut Vec<EventKind>,
) {
    let named = |value: &Value| match &value[EVENT] {
        Value::String(name) => vec![name.clone()],
        Value::Array(names) => names.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    let meant = schema["$ref"].as_str().and_then(find);
    let mut events = named(schema);
    if events.is_empty() {
        events = meant.map(named).unwrap_or_default();
    }
    let choices = ["oneOf", "anyOf"].iter().find_map(|key| meant.unwrap_or(schema)[*key].as_array());
    match choices {
        Some(choices) if events.is_empty() && depth < MAX_DEPTH => {
            choices.iter().for_each(|choice| gather(choice, find, depth + 1, out));
        }
        _ => {
            let mut schema = schema.clone();
            if let Some(map) = schema.as_object_mut() {
                map.shift_remove(EVENT);
            }
            out.push(EventKind { events, schema });
        }
    }
}

/// The variants of an enum with a tag as schemas with names: `name` is any of them, and each is `name` with its tag.
pub fn variants<T: JsonSchema>(name: &str, tag: &str) -> Vec<(String, Value)> {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut whole = settings.into_generator().into_root_schema_for::<T>().to_value();
    let mut all = Vec::new();
    let (mut choices, mut mapping) = (Vec::new(), serde_json::Map::new());
    if let Value::Array(variants) = whole["oneOf"].take() {
        for mut variant in variants {
            let kind = variant["properties"][tag]["const"].as_str().unwrap_or_default().to_owned();
            let own = format!("{name}{}", super::capital(&kind));
            let reference = format!("#/components/schemas/{own}");
            let events = variant.as_object_mut().and_then(|map| map.shift_remove(EVENT));
            choices.push(json!({ "$ref": reference, EVENT: events }));
            mapping.insert(kind, reference.into());
            all.push((own, variant));
        }
    }
    let mut union = json!({ "oneOf": choices });
    if let Some(about) = whole["description"].as_str() {
        union["description"] = about.into();
    }
    union["discriminator"] = json!({ "propertyName": tag, "mapping": mapping });
    all.push((name.to_owned(), union));
    all
}
