//! Events of streams and frames of WebSockets as unions that are told apart: an event by its name (`x-event`, or `event` of
//! an `itemSchema`) and by what its data says, a frame by what it says itself.

use super::names;
use super::types::{Types, is_binary, union};
use serde_json::Value;

/// What the runtime makes an exception of, or deals with itself: nobody gets to read it.
const UNREAD: [&str; 2] = ["error", "reauth"];
/// References and choices on the way to an alternative.
const MAX_DEPTH: usize = 8;

/// One kind of data.
struct Kind<'d> {
    /// Names of its events; none where nobody said.
    events: Vec<String>,
    data: &'d Value,
}

/// The type of a stream's events. Its schema describes events (`{event, data, id}`) or their data alone.
pub(super) fn all<'d>(types: &mut Types<'d>, schema: &'d Value) -> String {
    let mut kinds = Vec::new();
    gather(types, schema, &[], 0, &mut kinds);
    // By name, in order.
    let mut events: Vec<(Option<String>, Vec<String>)> = Vec::new();
    for Kind { events: names, data } in kinds {
        let kind = types
            .resolved(data)
            .map_or("", |data| data["properties"]["type"]["const"].as_str().unwrap_or_default());
        let unread = |name: &str| UNREAD.contains(&name);
        if unread(kind) || !names.is_empty() && names.iter().all(|name| unread(name)) {
            continue;
        }
        let of = types.of(data);
        let of = if ["unknown", "string"].contains(&of.as_str()) { "any".to_owned() } else { of };
        let read: Vec<Option<String>> = match names.is_empty() {
            true => vec![None],
            false => names.into_iter().filter(|name| !unread(name)).map(Some).collect(),
        };
        for name in read {
            match events.iter_mut().find(|(known, _)| *known == name) {
                Some((_, all)) => all.push(of.clone()),
                None => events.push((name, vec![of.clone()])),
            }
        }
    }
    let one = |(name, data): (Option<String>, Vec<String>)| match name {
        None => format!("ServerEvent<{}>", union(data)),
        Some(name) => format!("ServerEvent<{}, {}>", union(data), names::string(&name)),
    };
    // Anything under any name is all there is to say.
    let anything = events.iter().any(|(name, data)| name.is_none() && data.iter().any(|data| data == "any"));
    match anything || events.is_empty() {
        true => "ServerEvent<any>".to_owned(),
        false => union(events.into_iter().map(one).collect()),
    }
}

fn gather<'d>(types: &Types<'d>, schema: &'d Value, above: &[String], depth: usize, out: &mut Vec<Kind<'d>>) {
    let Some(resolved) = types.resolved(schema) else { return };
    if depth > MAX_DEPTH {
        return;
    }
    let mut events = names_in(&schema["x-event"]);
    if events.is_empty() {
        events = names_in(&resolved["x-event"]);
    }
    let named = !events.is_empty();
    if !named {
        events = above.to_vec();
    }
    if let Some(items) = resolved.get("items") {
        return gather(types, items, &events, depth + 1, out);
    }
    let properties = &resolved["properties"];
    let whole = properties
        .get("data")
        .filter(|data| data.get("contentSchema").is_some() || properties.get("event").is_some());
    if let Some(data) = whole.filter(|_| above.is_empty() && !named) {
        let name = &properties["event"];
        let said = [&name["const"], &name["enum"]].into_iter().map(names_in).find(|names| !names.is_empty());
        let data = data.get("contentSchema").unwrap_or(data);
        return gather(types, data, &said.unwrap_or_default(), depth + 1, out);
    }
    let choices = ["oneOf", "anyOf"].iter().find_map(|key| resolved[*key].as_array());
    match choices.filter(|_| !named) {
        Some(choices) => choices.iter().for_each(|choice| gather(types, choice, &events, depth + 1, out)),
        None => out.push(Kind { events, data: schema }),
    }
}

/// A name, or a list of them.
fn names_in(value: &Value) -> Vec<String> {
    match value {
        Value::String(name) => vec![name.clone()],
        Value::Array(all) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// The type of a WebSocket's frames one way; binary ones are `bytes`.
pub(super) fn frames<'d>(types: &mut Types<'d>, schema: &'d Value, bytes: &str) -> String {
    let one = std::slice::from_ref(schema);
    let all = schema["oneOf"].as_array().map_or(one, Vec::as_slice);
    let kinds = all.iter().map(|frame| match frame.as_object().is_some_and(is_binary) {
        true => bytes.to_owned(),
        false => types.of(frame),
    });
    match union(kinds.collect()) {
        unknown if unknown == "unknown" => "any".to_owned(),
        known => known,
    }
}
