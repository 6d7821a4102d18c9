//! JSON values as YAML 1.2, for documents that people read. Texts that YAML could read as anything else are quoted as JSON
//! quotes them, which YAML reads alike.

use serde_json::Value;
use std::fmt::Write as _;

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
                out.push_str(&text(key));
                out.push(':');
                block(value, depth + 1, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                indent(depth, out);
                out.push('-');
                block(item, depth + 1, out);
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
        });
        let written = yaml(&value);
        let read: Value = serde_saphyr::from_str(&written).unwrap();
        assert_eq!(read, value, "{written}");
    }
}
