//! Schemas as types. What TypeScript cannot say (lengths, patterns, `not`) is left to the server.

use super::names::{self, TAKEN};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// How deep schemas without a name may nest; what is deeper is `unknown`.
const MAX_DEPTH: usize = 48;
/// Longest comment, in characters.
const MAX_COMMENT: usize = 300;

/// The named types of a file: what operations mention, and what that mentions.
pub(super) struct Types<'d> {
    document: &'d Value,
    /// Name of each `$ref` that was met.
    names: BTreeMap<String, String>,
    taken: BTreeSet<String>,
    declared: BTreeMap<String, String>,
}

impl<'d> Types<'d> {
    /// None yet.
    pub(super) fn new(document: &'d Value) -> Self {
        let taken = TAKEN.iter().map(|name| (*name).to_owned()).collect();
        Types { document, names: BTreeMap::new(), taken, declared: BTreeMap::new() }
    }

    /// What a `$ref` leads to, over a few hops; the value itself if it is none, nothing if it leads nowhere.
    pub(super) fn resolved(&self, value: &'d Value) -> Option<&'d Value> {
        let mut value = value;
        for _ in 0..16 {
            match value["$ref"].as_str() {
                None => return Some(value),
                Some(reference) => value = self.find(reference)?,
            }
        }
        None
    }

    fn find(&self, reference: &str) -> Option<&'d Value> {
        let pointer = reference.strip_prefix('#')?;
        let pointer = percent_encoding::percent_decode_str(pointer).decode_utf8().ok()?;
        self.document.pointer(&pointer)
    }

    /// The type of a schema, to be used where a type can stand.
    pub(super) fn of(&mut self, schema: &'d Value) -> String {
        self.at(schema, 0)
    }

    /// All declarations, by name.
    pub(super) fn declarations(&self) -> String {
        self.declared.values().map(String::as_str).collect()
    }

    fn at(&mut self, schema: &'d Value, depth: usize) -> String {
        let Value::Object(map) = schema else {
            return if schema == &Value::Bool(false) { "never" } else { "unknown" }.to_owned();
        };
        if depth > MAX_DEPTH {
            return "unknown".to_owned();
        }
        let mut parts: Vec<String> = Vec::new();
        if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
            parts.push(self.named(reference));
        }
        for key in ["oneOf", "anyOf"] {
            if let Some(Value::Array(choices)) = map.get(key) {
                parts.push(union(choices.iter().map(|choice| self.at(choice, depth + 1)).collect()));
            }
        }
        if let Some(Value::Array(all)) = map.get("allOf") {
            parts.extend(all.iter().map(|one| self.at(one, depth + 1)));
        }
        if parts.is_empty() || says_itself(map) {
            parts.push(self.own(map, depth));
        }
        parts.retain(|part| part != "unknown");
        let mut seen = BTreeSet::new();
        parts.retain(|part| seen.insert(part.clone()));
        let text = match parts.as_slice() {
            [] => "unknown".to_owned(),
            [one] => one.clone(),
            all => all.iter().map(|part| grouped(part)).collect::<Vec<_>>().join(" & "),
        };
        let null = map.get("nullable") == Some(&Value::Bool(true)) && text != "unknown";
        if null { union(vec![text, "null".to_owned()]) } else { text }
    }

    /// What a schema says by its own keys.
    fn own(&mut self, map: &'d Map<String, Value>, depth: usize) -> String {
        if let Some(value) = map.get("const") {
            return literal(value);
        }
        if let Some(Value::Array(values)) = map.get("enum") {
            return union(values.iter().map(literal).collect());
        }
        let kinds: Vec<&str> = match map.get("type") {
            Some(Value::String(kind)) => vec![kind.as_str()],
            Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).collect(),
            _ if map.contains_key("properties") || map.contains_key("additionalProperties") => vec!["object"],
            _ if map.contains_key("items") || map.contains_key("prefixItems") => vec!["array"],
            _ if map.contains_key("contentMediaType") => vec!["string"],
            _ => return "unknown".to_owned(),
        };
        let types = kinds.into_iter().map(|kind| match kind {
            "string" if is_binary(map) => "Blob".to_owned(),
            "string" => "string".to_owned(),
            "integer" | "number" => "number".to_owned(),
            "boolean" => "boolean".to_owned(),
            "null" => "null".to_owned(),
            "array" => self.array(map, depth),
            "object" => self.object(map, depth),
            _ => "unknown".to_owned(),
        });
        union(types.collect())
    }

    fn array(&mut self, map: &'d Map<String, Value>, depth: usize) -> String {
        if let Some(Value::Array(first)) = map.get("prefixItems") {
            let mut items: Vec<String> = first.iter().map(|item| self.at(item, depth + 1)).collect();
            match map.get("items") {
                Some(Value::Bool(false)) => {}
                rest => {
                    let rest = rest.map_or("unknown".to_owned(), |rest| self.at(rest, depth + 1));
                    items.push(format!("...{}[]", grouped(&rest)));
                }
            }
            return format!("[{}]", items.join(", "));
        }
        let item = map.get("items").map_or("unknown".to_owned(), |items| self.at(items, depth + 1));
        format!("{}[]", grouped(&item))
    }

    fn object(&mut self, map: &'d Map<String, Value>, depth: usize) -> String {
        let fields = self.fields(map, depth);
        if fields.is_empty() {
            return match map.get("additionalProperties") {
                Some(Value::Bool(false)) => "Record<string, never>".to_owned(),
                Some(schema) => format!("Record<string, {}>", self.at(schema, depth + 1)),
                None => "Record<string, unknown>".to_owned(),
            };
        }
        let fields: Vec<String> = fields.into_iter().map(|(field, _)| field).collect();
        format!("{{ {} }}", fields.join("; "))
    }

    /// Each field as it is declared, with what is said of it.
    fn fields(&mut self, map: &'d Map<String, Value>, depth: usize) -> Vec<(String, String)> {
        let Some(Value::Object(properties)) = map.get("properties") else { return Vec::new() };
        let required: BTreeSet<&str> = match map.get("required") {
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            _ => BTreeSet::new(),
        };
        let mut fields = Vec::with_capacity(properties.len());
        for (name, schema) in properties {
            let optional = if required.contains(name.as_str()) { "" } else { "?" };
            let field = format!("{}{optional}: {}", names::key(name), self.at(schema, depth + 1));
            fields.push((field, about(schema)));
        }
        if !fields.is_empty()
            && map.get("additionalProperties").is_some_and(|more| more != &Value::Bool(false))
        {
            fields.push(("[more: string]: unknown".to_owned(), String::new()));
        }
        fields
    }

    /// The name of what a `$ref` leads to, which is declared.
    fn named(&mut self, reference: &str) -> String {
        if let Some(known) = self.names.get(reference) {
            return known.clone();
        }
        let Some(schema) = self.find(reference) else { return "unknown".to_owned() };
        let last = reference.rsplit('/').next().unwrap_or_default().replace("~1", "/").replace("~0", "~");
        let mut name = names::type_name(&last);
        while !self.taken.insert(name.clone()) {
            name.push('_');
        }
        self.names.insert(reference.to_owned(), name.clone());
        let declaration = self.declaration(&name, schema);
        self.declared.insert(name.clone(), declaration);
        name
    }

    fn declaration(&mut self, name: &str, schema: &'d Value) -> String {
        let mut out = String::new();
        let comment = about(schema);
        if !comment.is_empty() {
            let _ = writeln!(out, "/** {comment} */");
        }
        let plain = schema.as_object().filter(|map| {
            let kind = map.get("type").and_then(Value::as_str).unwrap_or("object");
            let mixed = ["$ref", "allOf", "oneOf", "anyOf", "enum", "const", "nullable"];
            kind == "object"
                && map.contains_key("properties")
                && !mixed.iter().any(|key| map.contains_key(*key))
        });
        let fields = plain.map(|map| self.fields(map, 0)).unwrap_or_default();
        if fields.is_empty() {
            let _ = writeln!(out, "export type {name} = {};\n", self.at(schema, 0));
            return out;
        }
        let _ = writeln!(out, "export interface {name} {{");
        for (field, comment) in fields {
            if !comment.is_empty() {
                let _ = writeln!(out, "  /** {comment} */");
            }
            let _ = writeln!(out, "  {field};");
        }
        out.push_str("}\n\n");
        out
    }
}

/// Whether a schema says something of its own beside references and choices.
fn says_itself(map: &Map<String, Value>) -> bool {
    let structural = ["const", "enum", "properties", "additionalProperties", "items", "prefixItems"];
    structural.iter().any(|key| map.contains_key(*key))
}

/// Whether a schema is of bytes.
pub(super) fn is_binary(map: &Map<String, Value>) -> bool {
    let says = |key: &str| map.get(key).and_then(Value::as_str);
    says("format") == Some("binary")
        || says("contentMediaType").is_some_and(|kind| {
            says("contentEncoding").is_none() && !kind.starts_with("text/") && !kind.ends_with("json")
        })
}

/// What is said of a schema, for a comment.
fn about(schema: &Value) -> String {
    let mut text =
        names::comment(schema["description"].as_str().or(schema["title"].as_str()).unwrap_or_default());
    if let Some((at, _)) = text.char_indices().nth(MAX_COMMENT) {
        text.truncate(at);
        text.push('…');
    }
    if schema["deprecated"] == true {
        text.push_str(if text.is_empty() { "@deprecated" } else { " @deprecated" });
    }
    text
}

fn literal(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => "unknown".to_owned(),
        Value::String(text) => names::string(text),
        other => other.to_string(),
    }
}

/// One of them, each once.
pub(super) fn union(types: Vec<String>) -> String {
    let mut seen: Vec<String> = Vec::new();
    for one in types {
        if one == "unknown" {
            return one;
        }
        if !seen.contains(&one) {
            seen.push(one);
        }
    }
    if seen.is_empty() { "unknown".to_owned() } else { seen.join(" | ") }
}

/// In brackets where something could bind tighter.
fn grouped(text: &str) -> String {
    if text.contains(" | ") || text.contains(" & ") { format!("({text})") } else { text.to_owned() }
}
