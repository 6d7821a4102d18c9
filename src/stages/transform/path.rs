//! Where a field stands: `user.name`, `items[].price`, `[].id`, `a\.b` for a name with a dot in it.

use serde_json::{Map, Value};

/// Names on the way to a field.
pub(super) const LONGEST: usize = 16;

/// The way to a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Path(pub(super) Vec<Step>);

/// One step of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// To the field of this name.
    Name(String),
    /// To every item of a list.
    Each,
}

impl Path {
    /// Reads a path.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Path, &'static str> {
        let mut steps = Vec::new();
        let mut names = vec![String::new()];
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            let last = names.last_mut().expect("there is always one");
            match character {
                '\\' => match characters.next() {
                    Some(escaped @ ('.' | '\\' | '[' | ']')) => {
                        // Kept apart from what they mean unescaped.
                        last.push('\u{0}');
                        last.push(escaped);
                    }
                    _ => return Err("a backslash stands before a dot, a bracket or another backslash"),
                },
                '.' => names.push(String::new()),
                '\u{0}' => return Err("it holds a control character"),
                other => last.push(other),
            }
        }
        for (at, written) in names.iter().enumerate() {
            let mut name = written.as_str();
            let mut lists = 0;
            while let Some(before) = name.strip_suffix("[]") {
                (name, lists) = (before, lists + 1);
            }
            let plain = name.replace("\u{0}[", "").replace("\u{0}]", "");
            if plain.contains(['[', ']']) {
                return Err(
                    "write `[]` behind a name for every item of its list; items have no numbers here",
                );
            }
            if name.is_empty() && !(at == 0 && lists > 0) {
                return Err("a name in it is empty");
            }
            if !name.is_empty() {
                steps.push(Step::Name(name.replace('\u{0}', "")));
            }
            steps.extend(std::iter::repeat_n(Step::Each, lists));
        }
        match steps.len() > LONGEST {
            true => Err("it has more than 16 steps"),
            false => Ok(Path(steps)),
        }
    }

    /// Whether it goes through lists.
    pub(super) fn has_lists(&self) -> bool {
        self.0.contains(&Step::Each)
    }

    /// The part up to its last list (none if it has no list), and the names behind.
    pub(super) fn split(&self) -> (&[Step], &[Step]) {
        let at = self.0.iter().rposition(|step| *step == Step::Each).map_or(0, |at| at + 1);
        self.0.split_at(at)
    }

    /// Whether one of the two leads into the other, or they are the same.
    pub(super) fn overlaps(&self, other: &Path) -> bool {
        self.0.iter().zip(&other.0).all(|(a, b)| a == b)
    }

    /// The one field it names, if it is there. Not through lists.
    pub(super) fn find<'v>(&self, root: &'v Value) -> Option<&'v Value> {
        self.0.iter().try_fold(root, |value, step| match step {
            Step::Name(name) => value.as_object()?.get(name),
            Step::Each => None,
        })
    }

    /// Takes the one field it names away. Not through lists.
    pub(super) fn take(&self, root: &mut Value) -> Option<Value> {
        take(&self.0, root)
    }

    /// Puts a value at the one field it names; what stands in the way gives way. Not through lists.
    pub(super) fn put(&self, root: &mut Value, value: Value) {
        put(&self.0, root, value);
    }
}

/// Calls `change` on every value that the steps lead to.
pub(super) fn each(steps: &[Step], value: &mut Value, change: &mut dyn FnMut(&mut Value)) {
    match steps.split_first() {
        None => change(value),
        Some((Step::Name(name), rest)) => {
            if let Some(field) = value.as_object_mut().and_then(|fields| fields.get_mut(name)) {
                each(rest, field, change);
            }
        }
        Some((Step::Each, rest)) => {
            for item in value.as_array_mut().into_iter().flatten() {
                each(rest, item, change);
            }
        }
    }
}

/// Takes a field away, by names only.
pub(super) fn take(steps: &[Step], value: &mut Value) -> Option<Value> {
    match steps {
        [Step::Name(name)] => value.as_object_mut()?.shift_remove(name),
        [Step::Name(name), rest @ ..] => take(rest, value.as_object_mut()?.get_mut(name)?),
        _ => None,
    }
}

/// Puts a value at a field, by names only; what stands in the way gives way.
pub(super) fn put(steps: &[Step], into: &mut Value, value: Value) {
    let [Step::Name(name), rest @ ..] = steps else {
        *into = value;
        return;
    };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    let Some(fields) = into.as_object_mut() else { return };
    match rest {
        [] => {
            fields.insert(name.clone(), value);
        }
        rest => put(rest, fields.entry(name.clone()).or_insert(Value::Null), value),
    }
}

/// Puts a value at a field that is missing, by names only, unless something else stands in the way.
pub(super) fn supply(steps: &[Step], into: &mut Value, value: &Value) {
    let ([Step::Name(name), rest @ ..], Some(fields)) = (steps, into.as_object_mut()) else { return };
    match (rest, fields.get_mut(name)) {
        ([], Some(_)) => {}
        (rest, Some(field)) => supply(rest, field, value),
        (rest, None) => put(rest, fields.entry(name.clone()).or_insert(Value::Null), value.clone()),
    }
}

impl std::fmt::Display for Path {
    /// As a JSON Pointer (RFC 6901); `*` for every item.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|step| match step {
            Step::Name(name) => write!(f, "/{}", name.replace('~', "~0").replace('/', "~1")),
            Step::Each => f.write_str("/*"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_are_read() {
        for (text, pointer) in [
            ("a.b", "/a/b"),
            ("items[].price", "/items/*/price"),
            ("[].id", "/*/id"),
            ("grid[][]", "/grid/*/*"),
            (r"a\.b.c", "/a.b/c"),
            (r"a\[\]", "/a[]"),
            ("a/b.~", "/a~1b/~0"),
        ] {
            assert_eq!(Path::parse(text).unwrap().to_string(), pointer, "{text}");
        }
        for text in ["", "a..b", ".a", "a.", "a[0]", "a[", "a.[].b", r"a\b", "a[]b", &"a.".repeat(17)] {
            assert!(Path::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn fields_are_taken_put_and_supplied() {
        let path = |text: &str| Path::parse(text).unwrap();
        let mut value = json!({ "a": { "b": 1, "c": 2 }, "t": "x" });
        assert_eq!(path("a.b").take(&mut value), Some(json!(1)));
        assert_eq!(path("a.b").take(&mut value), None);
        path("n.m.o").put(&mut value, json!(3));
        path("t.u").put(&mut value, json!(4));
        assert_eq!(value, json!({ "a": { "c": 2 }, "t": { "u": 4 }, "n": { "m": { "o": 3 } } }));
        supply(&path("a.c").0, &mut value, &json!(9));
        supply(&path("a.d.e").0, &mut value, &json!(9));
        supply(&path("a.c.x").0, &mut value, &json!(9));
        assert_eq!(value["a"], json!({ "c": 2, "d": { "e": 9 } }));
    }
}
