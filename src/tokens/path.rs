//! Paths into a provider's claims: the plain part of JSONPath (RFC 9535) that names one value.

use serde_json::Value;

/// `$.realm_access.roles[0]`, `$['https://example.com/role']`: names and indices, no searching.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClaimPath(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Step {
    Name(String),
    Index(usize),
}

impl ClaimPath {
    /// Reads one; `None` if it is anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let mut rest = text.trim().strip_prefix('$')?;
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if let Some(behind) = rest.strip_prefix('.') {
                let end = behind.find(['.', '[']).unwrap_or(behind.len());
                let name = &behind[..end];
                let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-');
                if name.is_empty() || !name.chars().all(plain) {
                    return None;
                }
                steps.push(Step::Name(name.to_owned()));
                rest = &behind[end..];
            } else {
                let inside = rest.strip_prefix('[')?;
                let quote = inside.chars().next().filter(|c| matches!(c, '\'' | '"'));
                if let Some(quote) = quote {
                    let (name, behind) = inside[1..].split_once(quote)?;
                    steps.push(Step::Name(name.to_owned()));
                    rest = behind.strip_prefix(']')?;
                } else {
                    let (index, behind) = inside.split_once(']')?;
                    steps.push(Step::Index(index.parse().ok()?));
                    rest = behind;
                }
            }
        }
        (!steps.is_empty()).then_some(ClaimPath(steps))
    }

    /// What stands there.
    pub fn find<'v>(&self, claims: &'v Value) -> Option<&'v Value> {
        self.0.iter().try_fold(claims, |value, step| match step {
            Step::Name(name) => value.get(name),
            Step::Index(index) => value.get(index),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_value_is_found_or_none() {
        let claims = json!({ "realm": { "roles": ["a", "b"] }, "https://e.com/role": "c" });
        for (path, wanted) in [
            ("$.realm.roles[1]", Some("b")),
            ("$['https://e.com/role']", Some("c")),
            ("$[\"realm\"].roles[0]", Some("a")),
            ("$.realm.roles[2]", None),
            ("$.realm.none", None),
        ] {
            let found = ClaimPath::parse(path).unwrap();
            assert_eq!(found.find(&claims).and_then(Value::as_str), wanted, "{path}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in ["", "$", "a.b", "$.", "$..a", "$.a[", "$.a[x]", "$.a[*]", "$['a]", "$.*", "$a"] {
            assert_eq!(ClaimPath::parse(bad), None, "{bad}");
        }
    }
}
