//! Two schemas compared, in the direction in which their values go.

use super::rules::{self, Both, Way};
use super::schema::{Additional, LOWER, Schema, Shape};
use super::{Findings, shown};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// How deep fields are followed.
const MAX_DEPTH: usize = 40;

/// Pairs of schemas that were compared for one operation already, or are being compared.
#[derive(Debug, Default)]
pub(super) struct Seen(BTreeSet<(String, String, Way)>);

/// Says what differs between two schemas. `what` names them in a sentence: "the body", "`limit`".
pub(super) fn compare(
    old: &Schema<'_>,
    new: &Schema<'_>,
    way: Way,
    what: &str,
    seen: &mut Seen,
    out: &mut Findings,
) {
    Comparison { way, seen, out }.schemas(old, new, what, 0);
}

struct Comparison<'a> {
    way: Way,
    seen: &'a mut Seen,
    out: &'a mut Findings,
}

impl Comparison<'_> {
    fn say(&mut self, rule: Both, at: &str, sentence: String) {
        self.out.add(rule.going(self.way), at, sentence);
    }

    fn schemas(&mut self, old: &Schema<'_>, new: &Schema<'_>, what: &str, depth: usize) {
        if depth > MAX_DEPTH || !self.seen.0.insert((old.key(), new.key(), self.way)) {
            return;
        }
        let ((null_before, before), (null_now, now)) = (old.variants(), new.variants());
        let (one_before, one_now) = (before.len() == 1, now.len() == 1);
        let says = |variants: &[Schema<'_>]| {
            let shape = variants.first().map(Schema::shape);
            shape.is_some_and(|shape| shape.types.is_some() || shape.values.is_some())
        };
        if null_before != null_now && says(&before) && says(&now) {
            match null_now {
                true => self.say(rules::TYPE_WIDENED, new.at(), format!("{what} may be null now")),
                false => self.say(rules::TYPE_NARROWED, new.at(), format!("{what} may not be null any more")),
            }
        }
        if let ([old], [new]) = (before.as_slice(), now.as_slice()) {
            self.shapes(old, new, what, depth);
            return;
        }
        let mut gone: Vec<(String, &Schema<'_>)> =
            before.iter().map(|variant| (variant.name(), variant)).collect();
        let mut came: Vec<(String, &Schema<'_>)> = Vec::new();
        for variant in &now {
            let name = variant.name();
            match gone.iter().position(|(known, _)| *known == name) {
                Some(at) => {
                    let (_, known) = gone.remove(at);
                    self.shapes(known, variant, what, depth);
                }
                None => came.push((name, variant)),
            }
        }
        // One that was renamed; but not where a choice began or ended.
        if one_before == one_now && gone.len() == 1 && came.len() == 1 {
            self.shapes(gone[0].1, came[0].1, what, depth);
            return;
        }
        for (name, variant) in came {
            self.say(rules::VARIANT_ADDED, variant.at(), format!("{what} may be {name} now"));
        }
        for (name, variant) in gone {
            self.say(rules::VARIANT_REMOVED, variant.at(), format!("{what} may not be {name} any more"));
        }
    }

    fn shapes(&mut self, old: &Schema<'_>, new: &Schema<'_>, what: &str, depth: usize) {
        let at = &new.target();
        let (old, new) = (old.shape(), new.shape());
        self.types(&old, &new, at, what);
        self.values(&old, &new, at, what);
        self.bounds(&old.bounds, &new.bounds, at, what);
        self.exact(&old.exact, &new.exact, at, what);
        self.fields(&old, &new, at, what, depth);
        if old.default != new.default && (old.default.is_some() || new.default.is_some()) {
            let said = |value: Option<&Value>| value.map_or("none".to_owned(), shown);
            let sentence =
                format!("the default of {what} was {}, is {}", said(old.default), said(new.default));
            self.say(rules::DEFAULT_CHANGED, at, sentence);
        }
        if !old.deprecated && new.deprecated {
            self.say(rules::FIELD_DEPRECATED, at, format!("{what} is deprecated"));
        }
        let lists = old.is("array") && new.is("array");
        self.inner(&old.items, &new.items, lists, &format!("an item of {what}"), depth);
        let texts = old.is("string") && new.is("string");
        self.inner(&old.content, &new.content, texts, &format!("the content of {what}"), depth);
        for (index, (old, new)) in old.first_items.iter().zip(&new.first_items).enumerate() {
            self.schemas(old, new, &format!("item {index} of {what}"), depth + 1);
        }
        if old.first_items.len() != new.first_items.len() {
            let sentence =
                format!("{what} begins with {} items, was {}", new.first_items.len(), old.first_items.len());
            self.say(rules::CONSTRAINT_CHANGED, at, sentence);
        }
    }

    /// What is within a list or a text. Where one side says nothing of it and both have it (`alike`), it may be anything.
    fn inner(
        &mut self,
        old: &Option<Schema<'_>>,
        new: &Option<Schema<'_>>,
        alike: bool,
        what: &str,
        depth: usize,
    ) {
        match (old, new) {
            (Some(old), Some(new)) => self.schemas(old, new, what, depth + 1),
            (None, Some(new)) if alike => self.schemas(&Schema::anything(new.at()), new, what, depth + 1),
            (Some(old), None) if alike => self.schemas(old, &Schema::anything(old.at()), what, depth + 1),
            _ => {}
        }
    }

    fn types(&mut self, old: &Shape<'_>, new: &Shape<'_>, at: &str, what: &str) {
        let list = |types: &BTreeSet<&str>| {
            let integers = types.contains("number");
            let named = types.iter().filter(|kind| !(integers && **kind == "integer"));
            named.copied().collect::<Vec<_>>().join(" or ")
        };
        match (&old.types, &new.types) {
            (None, None) => {}
            (Some(old), Some(new)) if old == new => {}
            (None, Some(new)) => {
                self.say(rules::TYPE_NARROWED, at, format!("{what} must be {} now", list(new)))
            }
            (Some(old), None) => {
                self.say(rules::TYPE_WIDENED, at, format!("{what} may be anything, was {}", list(old)))
            }
            (Some(old), Some(new)) => {
                let rule = match (new.is_subset(old), old.is_subset(new)) {
                    (true, _) => rules::TYPE_NARROWED,
                    (_, true) => rules::TYPE_WIDENED,
                    _ => rules::TYPE_CHANGED,
                };
                self.say(rule, at, format!("{what} is {}, was {}", list(new), list(old)));
            }
        }
    }

    fn values(&mut self, old: &Shape<'_>, new: &Shape<'_>, at: &str, what: &str) {
        let list = |values: &[&Value]| values.iter().map(|value| shown(value)).collect::<Vec<_>>().join(", ");
        match (&old.values, &new.values) {
            (None, None) => {}
            (None, Some(new)) => {
                self.say(rules::ENUM_NARROWED, at, format!("{what} must be one of {} now", list(new)));
            }
            (Some(_), None) => self.say(rules::ENUM_WIDENED, at, format!("{what} may be other values too")),
            (Some(old), Some(new)) => {
                let only = |these: &[&Value], those: &[&Value]| {
                    let only: Vec<&Value> =
                        these.iter().filter(|value| !those.contains(value)).copied().collect();
                    (!only.is_empty()).then(|| list(&only))
                };
                if let Some(gone) = only(old, new) {
                    self.say(rules::ENUM_NARROWED, at, format!("{what} may not be {gone} any more"));
                }
                if let Some(came) = only(new, old) {
                    self.say(rules::ENUM_WIDENED, at, format!("{what} may be {came} now"));
                }
            }
        }
    }

    fn bounds(&mut self, old: &BTreeMap<&str, f64>, new: &BTreeMap<&str, f64>, at: &str, what: &str) {
        let keys: BTreeSet<&str> = old.keys().chain(new.keys()).copied().collect();
        for key in keys {
            let tighter = |old: f64, new: f64| if LOWER.contains(&key) { new > old } else { new < old };
            let (rule, sentence) = match (old.get(key), new.get(key)) {
                (Some(old), Some(new)) if old == new => continue,
                (Some(old), Some(new)) => {
                    let tighter = tighter(*old, *new);
                    let rule = if tighter { rules::CONSTRAINT_TIGHTENED } else { rules::CONSTRAINT_LOOSENED };
                    (rule, format!("`{key}` of {what} is {new}, was {old}"))
                }
                (None, Some(new)) => (rules::CONSTRAINT_TIGHTENED, format!("`{key}` of {what} is {new} now")),
                (Some(old), None) => {
                    (rules::CONSTRAINT_LOOSENED, format!("`{key}` of {what} is gone, was {old}"))
                }
                (None, None) => continue,
            };
            self.say(rule, at, sentence);
        }
    }

    fn exact(
        &mut self,
        old: &BTreeMap<&str, Vec<&Value>>,
        new: &BTreeMap<&str, Vec<&Value>>,
        at: &str,
        what: &str,
    ) {
        let keys: BTreeSet<&str> = old.keys().chain(new.keys()).copied().collect();
        for key in keys {
            let (rule, verb) = match (old.get(key), new.get(key)) {
                (Some(old), Some(new)) if old == new => continue,
                (None, _) => (rules::CONSTRAINT_TIGHTENED, "is new"),
                (_, None) => (rules::CONSTRAINT_LOOSENED, "is gone"),
                _ => (rules::CONSTRAINT_CHANGED, "is another"),
            };
            self.say(rule, at, format!("`{key}` of {what} {verb}"));
        }
    }

    fn fields(&mut self, old: &Shape<'_>, new: &Shape<'_>, at: &str, what: &str, depth: usize) {
        for (name, before) in &old.fields {
            let Some(now) = new.fields.get(name) else {
                self.say(rules::FIELD_REMOVED, before.at(), format!("field `{name}` of {what} is gone"));
                continue;
            };
            match (old.required.contains(name), new.required.contains(name)) {
                (false, true) => self.say(
                    rules::FIELD_REQUIRED,
                    now.at(),
                    format!("field `{name}` of {what} is required now"),
                ),
                (true, false) => {
                    self.say(
                        rules::FIELD_OPTIONAL,
                        now.at(),
                        format!("field `{name}` of {what} may be left out now"),
                    );
                }
                _ => {}
            }
            self.schemas(before, now, &format!("`{name}`"), depth + 1);
        }
        for (name, now) in &new.fields {
            if !old.fields.contains_key(name) {
                let (rule, how) = match new.required.contains(name) {
                    true => (rules::FIELD_ADDED_REQUIRED, "required"),
                    false => (rules::FIELD_ADDED, "optional"),
                };
                self.say(rule, now.at(), format!("field `{name}` of {what} is new, and {how}"));
            }
        }
        // Fields that must be there and are described nowhere.
        let nameless = |name: &&&str| !old.fields.contains_key(**name) && !new.fields.contains_key(**name);
        for name in new.required.difference(&old.required).filter(nameless) {
            self.say(rules::FIELD_REQUIRED, at, format!("field `{name}` of {what} is required now"));
        }
        for name in old.required.difference(&new.required).filter(nameless) {
            self.say(rules::FIELD_OPTIONAL, at, format!("field `{name}` of {what} may be left out now"));
        }
        match (&old.additional, &new.additional) {
            (Additional::Of(old), Additional::Of(new)) => {
                self.schemas(old, new, &format!("a further field of {what}"), depth + 1);
            }
            (Additional::None, Additional::None) | (Additional::Any, Additional::Any) => {}
            (Additional::Any, _) | (Additional::Of(_), Additional::None) => {
                self.say(rules::CLOSED, at, format!("{what} takes fewer further fields than before"));
            }
            (Additional::None, _) | (Additional::Of(_), Additional::Any) => {
                self.say(rules::OPENED, at, format!("{what} takes more further fields than before"));
            }
        }
    }
}
