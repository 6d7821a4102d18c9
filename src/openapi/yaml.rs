//! JSON values as YAML 1.2, for documents that people read. Texts that YAML could read as anything else are quoted as JSON
//! quotes them, which YAML reads alike.

use serde_json::Value;
use std::fmt::Write as _;

/// Characters that a list of single values may have in one line.
const LINE: usize = 80;

/// A value as a YAML document.
pub fn yaml(value: &Value) -> String {
    let mut out = String::new();
    block(value, 0, &mut out);
    if !out.ends_with('\n') {
        out.push('\n');
    }
    out.trim_start_matches('\n').to_owned()
}

/// Writes a value behind `key:` or `-`, which stand in the line already.
fn block(value: &Value, depth: usize, out: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                indent(depth, out);
                entry(key, value, depth, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            if let Some(line) = in_a_line(items) {
                let _ = write!(out, " {line}");
                return;
            }
            for item in items {
                indent(depth, out);
                out.push('-');
                match item {
                    // Its first key stands beside the dash.
                    Value::Object(map) if !map.is_empty() => {
                        for (at, (key, value)) in map.iter().enumerate() {
                            match at {
                                0 => out.push(' '),
                                _ => indent(depth + 1, out),
                            }
                            entry(key, value, depth + 1, out);
                        }
                    }
                    item => block(item, depth + 1, out),
                }
            }
        }
        Value::String(string) => {
            let _ = write!(out, " {}", text(string));
        }
        other => {
            let _ = write!(out, " {other}");
        }
    }
}

fn entry(key: &str, value: &Value, depth: usize, out: &mut String) {
    out.push_str(&text(key));
    out.push(':');
    block(value, depth + 1, out);
}

/// A list of single values as `[a, b]`, if that is short.
fn in_a_line(items: &[Value]) -> Option<String> {
    let mut line = String::from("[");
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            line.push_str(", ");
        }
        match item {
            Value::Object(map) if !map.is_empty() => return None,
            Value::Array(items) if !items.is_empty() => return None,
            // What would end it early.
            Value::String(string) if string.contains(['[', ']', '{', '}', ',']) => {
                line.push_str(&item.to_string());
            }
            Value::String(string) => line.push_str(&text(string)),
            other => line.push_str(&other.to_string()),
        }
        if line.len() > LINE {
            return None;
        }
    }
    line.push(']');
    Some(line)
}

fn indent(depth: usize, out: &mut String) {
    out.push('\n');
    for _ in 0..depth {
        out.push_str("  ");
    }
}

/// A text, plain where that is safe.
fn text(text: &str) -> String {
    let first = text.bytes().next().unwrap_or(b' ');
    let plain = (first.is_ascii_alphabetic() || matches!(first, b'/' | b'$' | b'_'))
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b" _-./$(){},'=+@;".contains(&b))
        && !text.ends_with(' ')
        && !RESERVED.contains(&text.to_ascii_lowercase().as_str());
    match plain {
        true => text.to_owned(),
        false => Value::from(text).to_string(),
    }
}

/// Words that some reader of YAML takes for something else than text.
const RESERVED: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn yaml_says_what_json_says() {
        let value = json!({
            "openapi": "3.1.0",
            "paths": { "/a/{id}": { "get": { "summary": "Ask: \"now\"\nor later", "tags": [], "on": true } } },
            "list": [{ "a": 1, "b": [1.5, null] }, [["x"], "no"], "- y", " z", "1e3", "#c", "a: b", "a #b", "{x}"],
            "empty": {}, "": "", "null": "null", "é": "中文",
            "short": ["a", 1, "b, c", "[d]", {}, [], null], "long": ["x".repeat(50), "y".repeat(50)],
        });
        let written = yaml(&value);
        let read: Value = serde_saphyr::from_str(&written).unwrap();
        assert_eq!(read, value, "{written}");
    }
}
