//! `${VAR}`, `${VAR:-default}`, `${VAR:?message}` in values; `$${` is a literal `${`.
//!
//! Replaced after parsing, inside one value: a variable can't add keys or break the file. What was replaced is
//! marked, so that no message ever shows it.

use super::node::{Node, Value};
use crate::diag::{Code, Diagnostic, Diagnostics, Span};
use std::collections::HashMap;

/// Where variables are looked up; tests pass their own.
pub type Lookup<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Texts that variables were replaced in, and what they were replaced by, by the text's place.
pub type Secrets = HashMap<Span, Vec<String>>;

/// Replaces every expression in the texts below `node`. Keys are left as they are. What a text became is noted in
/// `secrets`, so that faults about it can be kept from showing it.
pub fn expand(node: &mut Node, lookup: &Lookup<'_>, secrets: &mut Secrets, out: &mut Diagnostics) {
    match &mut node.value {
        Value::Str(text) if text.contains("${") => {
            let replaced = text.replace("$${", "").contains("${");
            let mut values = Vec::new();
            *text = substitute(text, node.span, lookup, &mut values, out);
            node.expanded = replaced;
            if replaced {
                values.insert(0, text.clone());
                secrets.insert(node.span, values);
            }
        }
        Value::Seq(items) => items.iter_mut().for_each(|item| expand(item, lookup, secrets, out)),
        Value::Map(entries) => entries.iter_mut().for_each(|(_, value)| expand(value, lookup, secrets, out)),
        _ => {}
    }
}

fn substitute(
    text: &str,
    span: Span,
    lookup: &Lookup<'_>,
    values: &mut Vec<String>,
    out: &mut Diagnostics,
) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            result.push_str(&rest[..at]);
            result.push('{');
            rest = &rest[at + 2..];
            continue;
        }
        result.push_str(&rest[..at]);
        let Some(end) = rest[at..].find('}') else {
            out.push(
                Diagnostic::error(Code::ENV_SYNTAX, span, "`${` is not closed")
                    .help("write `${VAR}`, `${VAR:-default}` or `${VAR:?message}`; `$${` for a literal `${`"),
            );
            return result;
        };
        match evaluate(&rest[at + 2..at + end], span, lookup) {
            Ok(value) => {
                result.push_str(&value);
                values.push(value);
            }
            Err(fault) => out.push(*fault),
        }
        rest = &rest[at + end + 1..];
    }
    result.push_str(rest);
    result
}

fn evaluate(expression: &str, span: Span, lookup: &Lookup<'_>) -> Result<String, Box<Diagnostic>> {
    let (name, rest) = match expression.find(':') {
        Some(at) => expression.split_at(at),
        None => (expression, ""),
    };
    let valid = !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !valid {
        let fault = Diagnostic::error(Code::ENV_SYNTAX, span, "the name in `${…}` is not a variable's name");
        return Err(Box::new(fault.help("letters, digits and `_`; not starting with a digit")));
    }
    // Like a shell's `:-` and `:?`, an empty variable counts as unset.
    let value = lookup(name).filter(|v| rest.is_empty() || !v.is_empty());
    match (value, rest.get(..2), rest.get(2..)) {
        (Some(value), None | Some(":-" | ":?"), _) => Ok(value),
        (None, Some(":-"), Some(default)) => Ok(default.to_owned()),
        (None, Some(":?"), Some(message)) => Err(Box::new(
            Diagnostic::error(Code::ENV_UNSET, span, format!("environment variable `{name}` is not set"))
                .help(if message.is_empty() { "set it and try again" } else { message }),
        )),
        (None, None, _) => Err(Box::new(
            Diagnostic::error(Code::ENV_UNSET, span, format!("environment variable `{name}` is not set"))
                .help(format!("set it, or give a default: `${{{name}:-…}}`")),
        )),
        _ => Err(Box::new(
            Diagnostic::error(
                Code::ENV_SYNTAX,
                span,
                format!("what follows `{name}` in `${{…}}` is not understood"),
            )
            .help("write `${VAR}`, `${VAR:-default}` or `${VAR:?message}`"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::FileId;

    fn run(text: &str) -> (String, bool, Vec<Code>) {
        let span = Span::new(FileId(0), 0, 0);
        let mut node = Node { span, value: Value::Str(text.to_owned()), expanded: false };
        let mut out = Diagnostics::new();
        let lookup = |name: &str| match name {
            "A" => Some("x".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        expand(&mut node, &lookup, &mut Secrets::new(), &mut out);
        let codes = out.iter().map(|d| d.code).collect();
        (node.as_str().unwrap().to_owned(), node.expanded, codes)
    }

    #[test]
    fn the_three_forms() {
        assert_eq!(run("a${A}b${A}"), ("axbx".into(), true, vec![]));
        assert_eq!(run("${B:-http://h:1}"), ("http://h:1".into(), true, vec![]));
        assert_eq!(run("${EMPTY:-d}${EMPTY}"), ("d".into(), true, vec![]));
        assert_eq!(run("${B}").2, [Code::ENV_UNSET]);
        assert_eq!(run("${B:?say so} ${EMPTY:?}").2, [Code::ENV_UNSET, Code::ENV_UNSET]);
    }

    #[test]
    fn literals_and_mistakes() {
        assert_eq!(run("$${A} $.a {id}"), ("${A} $.a {id}".into(), false, vec![]));
        assert_eq!(run("${A").2, [Code::ENV_SYNTAX]);
        assert_eq!(run("${}").2, [Code::ENV_SYNTAX]);
        assert_eq!(run("${A:+b}").2, [Code::ENV_SYNTAX]);
    }
}
