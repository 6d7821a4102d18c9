//! A schema as it counts for callers: references followed, `allOf` taken together, choices told apart.
//!
//! A [`Schema`] is a conjunction of places in a document, so that `allOf`, `$ref` with keys beside it and a field that two
//! parts describe are the same thing. [`Shape`] is what the parts say together.

use super::place::{Place, find};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Parts that a schema may have; more are left out, so that documents which refer to themselves come to an end.
const MAX_PARTS: usize = 64;
/// Variants that a schema may have before choices within them stay undecided: choices multiply.
const MAX_VARIANTS: usize = 64;
/// What is said where nothing is said.
static ANYTHING: Value = Value::Bool(true);

/// All of these at once.
#[derive(Debug, Clone)]
pub(super) struct Schema<'d> {
    document: &'d Value,
    parts: Vec<Place<'d>>,
    /// Parts whose `oneOf` or `anyOf` was decided.
    decided: BTreeSet<String>,
}

/// What is said of objects' further fields.
#[derive(Debug, Clone)]
pub(super) enum Additional<'d> {
    Any,
    None,
    Of(Schema<'d>),
}

/// What a schema says, without its choices.
#[derive(Debug)]
pub(super) struct Shape<'d> {
    /// Types it allows, `number` being `integer` too; none where it does not say.
    pub(super) types: Option<BTreeSet<&'d str>>,
    /// Values it allows, without `null`.
    pub(super) values: Option<Vec<&'d Value>>,
    /// Whether null is one of them.
    pub(super) null: bool,
    pub(super) fields: BTreeMap<&'d str, Schema<'d>>,
    pub(super) required: BTreeSet<&'d str>,
    pub(super) additional: Additional<'d>,
    pub(super) items: Option<Schema<'d>>,
    pub(super) first_items: Vec<Schema<'d>>,
    /// What an encoded text holds.
    pub(super) content: Option<Schema<'d>>,
    /// The narrowest of each bound.
    pub(super) bounds: BTreeMap<&'static str, f64>,
    /// What can only be the same or not: patterns, formats, conditions.
    pub(super) exact: BTreeMap<&'static str, Vec<&'d Value>>,
    pub(super) default: Option<&'d Value>,
    pub(super) deprecated: bool,
}

/// Bounds from below.
pub(super) const LOWER: [&str; 5] = ["minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"];
/// Bounds from above.
const UPPER: [&str; 5] = ["maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"];
/// Keys that are compared as they stand.
const EXACT: [&str; 18] = [
    "pattern",
    "format",
    "multipleOf",
    "uniqueItems",
    "contentMediaType",
    "contentEncoding",
    "not",
    "if",
    "then",
    "else",
    "patternProperties",
    "propertyNames",
    "contains",
    "minContains",
    "maxContains",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedProperties",
];

impl<'d> Schema<'d> {
    pub(super) fn new(document: &'d Value, place: Place<'d>) -> Self {
        Schema { document, parts: vec![place], decided: BTreeSet::new() }
    }

    /// The schema of anything, standing where another one does.
    pub(super) fn anything(at: &str) -> Self {
        Schema::new(&ANYTHING, Place { value: &ANYTHING, at: at.to_owned() })
    }

    /// Where it stands.
    pub(super) fn at(&self) -> &str {
        self.parts.first().map_or("", |part| &part.at)
    }

    /// Where what it says stands: where it leads, if it is a reference and nothing else.
    pub(super) fn target(&self) -> String {
        let Some(mut place) = self.parts.first().cloned() else { return String::new() };
        for _ in 0..16 {
            let only = place.value.as_object().is_some_and(|map| map.len() == 1);
            match place.value["$ref"].as_str().filter(|_| only).and_then(|to| find(self.document, to)) {
                Some(next) => place = next,
                None => break,
            }
        }
        place.at
    }

    /// Tells it from all others of its document: where its parts lead.
    pub(super) fn key(&self) -> String {
        let parts = self.expanded();
        let mut parts: Vec<&str> = parts
            .iter()
            .filter(|part| {
                part.value.get("$ref").is_none() || part.value.as_object().is_some_and(|map| map.len() > 1)
            })
            .map(|part| part.at.as_str())
            .collect();
        parts.sort_unstable();
        let mut key = parts.join(" ");
        for decided in &self.decided {
            key.push('!');
            key.push_str(decided);
        }
        key
    }

    fn and(&mut self, other: Schema<'d>) {
        self.parts.extend(other.parts);
    }

    /// Its parts with all that they refer to.
    fn expanded(&self) -> Vec<Place<'d>> {
        let mut all = Vec::new();
        let mut seen = BTreeSet::new();
        let mut open: Vec<Place<'d>> = self.parts.iter().rev().cloned().collect();
        while let Some(part) = open.pop() {
            if all.len() >= MAX_PARTS || !seen.insert(part.at.clone()) {
                continue;
            }
            if let Some(all_of) = part.get("allOf") {
                open.extend(all_of.items().into_iter().rev());
            }
            if let Some(reference) = part.value["$ref"].as_str() {
                open.extend(find(self.document, reference));
            }
            all.push(part);
        }
        all
    }

    /// What it can be, null apart: itself, or each of its choices together with what holds for all; choices within them too.
    pub(super) fn variants(&self) -> (bool, Vec<Schema<'d>>) {
        let Some((mut null, mut open)) = self.choices() else {
            return (self.shape().null, vec![self.clone()]);
        };
        let mut variants = Vec::new();
        while let Some(variant) = open.pop_front() {
            let room = variants.len() + open.len() < MAX_VARIANTS;
            match variant.choices().filter(|_| room) {
                Some((nullable, within)) => {
                    null |= nullable;
                    within.into_iter().rev().for_each(|choice| open.push_front(choice));
                }
                None => variants.push(variant),
            }
        }
        (null, variants)
    }

    /// The first of its choices, decided; whether null is one of them.
    fn choices(&self) -> Option<(bool, VecDeque<Schema<'d>>)> {
        let parts = self.expanded();
        let undecided = |part: &&Place<'_>| !self.decided.contains(&part.at);
        let (at, list) = parts.iter().filter(undecided).find_map(|part| {
            let list = part.get("oneOf").or_else(|| part.get("anyOf"))?;
            Some((part.at.clone(), list))
        })?;
        let mut decided = self.decided.clone();
        decided.insert(at);
        let (mut null, mut variants) = (false, VecDeque::new());
        for choice in list.items() {
            if choice.value["type"] == "null" {
                null = true;
                continue;
            }
            // The choice is first: a variant is named by it.
            let mut parts = vec![choice];
            parts.extend(self.parts.iter().cloned());
            let variant = Schema { document: self.document, parts, decided: decided.clone() };
            null |= variant.shape().values_null();
            variants.push_back(variant);
        }
        Some((null, variants))
    }

    /// What tells one variant from the others: the component it is, or the one value of a field that is always the same.
    pub(super) fn name(&self) -> String {
        let first = self.parts.first();
        if let Some(reference) = first.and_then(|part| part.value["$ref"].as_str()) {
            return reference.rsplit('/').next().unwrap_or(reference).to_owned();
        }
        let shape = self.shape();
        for (name, field) in &shape.fields {
            if let Some([value]) = field.shape().values.as_deref() {
                return format!("{name}: {value}");
            }
        }
        if let Some(title) = first.and_then(|part| part.value["title"].as_str()) {
            return title.to_owned();
        }
        match (&shape.values, &shape.types) {
            (Some(values), _) => values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | "),
            (None, Some(types)) => types.iter().copied().collect::<Vec<_>>().join(" | "),
            (None, None) => "anything".to_owned(),
        }
    }

    /// Everything that it says.
    pub(super) fn shape(&self) -> Shape<'d> {
        let mut shape = Shape::default();
        for part in self.expanded() {
            shape.take(self.document, &part);
        }
        let typed_null = shape.types.as_mut().is_none_or(|types| types.remove("null"));
        let listed_null = shape.values.as_mut().is_none_or(|values| {
            let before = values.len();
            values.retain(|value| !value.is_null());
            values.len() < before
        });
        shape.null = typed_null && listed_null;
        shape
    }
}

impl Default for Shape<'_> {
    fn default() -> Self {
        Shape {
            types: None,
            values: None,
            null: true,
            fields: BTreeMap::new(),
            required: BTreeSet::new(),
            additional: Additional::Any,
            items: None,
            first_items: Vec::new(),
            content: None,
            bounds: BTreeMap::new(),
            exact: BTreeMap::new(),
            default: None,
            deprecated: false,
        }
    }
}

impl<'d> Shape<'d> {
    /// Whether it names a type.
    pub(super) fn is(&self, kind: &str) -> bool {
        self.types.as_ref().is_some_and(|types| types.contains(kind))
    }

    /// Whether null was named, not only not forbidden.
    fn values_null(&self) -> bool {
        self.null && (self.types.is_some() || self.values.is_some())
    }

    fn take(&mut self, document: &'d Value, part: &Place<'d>) {
        let schema = |place: Place<'d>| Schema::new(document, place);
        if let Some(types) = types_of(part.value) {
            self.types = Some(match self.types.take() {
                Some(known) => known.intersection(&types).copied().collect(),
                None => types,
            });
        }
        let listed = part.value.get("const").map(|value| vec![value]);
        let listed = listed.or_else(|| Some(part.value.get("enum")?.as_array()?.iter().collect()));
        if let Some(values) = listed {
            self.values = Some(match self.values.take() {
                Some(known) => known.into_iter().filter(|value| values.contains(value)).collect(),
                None => values,
            });
        }
        for (name, place) in part.get("properties").iter().flat_map(Place::entries) {
            match self.fields.get_mut(name) {
                Some(known) => known.and(schema(place)),
                None => drop(self.fields.insert(name, schema(place))),
            }
        }
        let required = part.value["required"].as_array().into_iter().flatten();
        self.required.extend(required.filter_map(Value::as_str));
        match part.get("additionalProperties") {
            None => {}
            Some(place) if place.value == &Value::Bool(true) => {}
            Some(place) if place.value == &Value::Bool(false) => self.additional = Additional::None,
            Some(place) => match &mut self.additional {
                Additional::None => {}
                Additional::Any => self.additional = Additional::Of(schema(place)),
                Additional::Of(known) => known.and(schema(place)),
            },
        }
        for (slot, key) in [(&mut self.items, "items"), (&mut self.content, "contentSchema")] {
            match (slot, part.get(key)) {
                (Some(known), Some(place)) => known.and(schema(place)),
                (slot, Some(place)) => *slot = Some(schema(place)),
                _ => {}
            }
        }
        if let Some(first) = part.get("prefixItems") {
            self.first_items = first.items().into_iter().map(schema).collect();
        }
        self.bound(part.value);
        for key in EXACT {
            let idle = Value::Bool(key == "unevaluatedProperties");
            if let Some(value) = part.value.get(key).filter(|value| **value != idle) {
                let known = self.exact.entry(key).or_default();
                if !known.contains(&value) {
                    known.push(value);
                }
            }
        }
        self.default = self.default.or(part.value.get("default"));
        self.deprecated |= part.value["deprecated"] == true;
    }

    fn bound(&mut self, value: &Value) {
        for key in LOWER {
            // None at all is what lengths begin with.
            let bound = value
                .get(key)
                .and_then(Value::as_f64)
                .filter(|n| *n > 0.0 || !key.starts_with("min") || key == "minimum");
            if let Some(bound) = bound {
                let known = self.bounds.entry(key).or_insert(bound);
                *known = known.max(bound);
            }
        }
        for key in UPPER {
            if let Some(bound) = value.get(key).and_then(Value::as_f64) {
                let known = self.bounds.entry(key).or_insert(bound);
                *known = known.min(bound);
            }
        }
    }
}

/// The types that a part names; those of 3.0 with `nullable` too.
fn types_of(value: &Value) -> Option<BTreeSet<&str>> {
    let mut types: BTreeSet<&str> = match value.get("type")? {
        Value::String(one) => BTreeSet::from([one.as_str()]),
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        _ => return None,
    };
    if types.contains("number") {
        types.insert("integer");
    }
    if value["nullable"] == true {
        types.insert("null");
    }
    Some(types)
}
