//! From a tree to typed structures, reporting every fault and not only the first.
//!
//! serde stops at its first error. So a value that fails is remembered and the structure is read again
//! without it, until nothing new fails; unknown keys never reach serde at all (the list of a structure's
//! fields is known when it asks for them). [`List`](super::List) and [`Table`](super::Table) read each of their items on its own, so a
//! second reading is as large as one item. Messages never repeat a value: the excerpt shows it as written.
//!
//! Types meet the tree through ordinary derives with `#[serde(deny_unknown_fields)]`; [`Spanned`](super::Spanned) and [`Node`]
//! fields know their place. Longer than most files: serde wants one implementation for each shape a value can have.

use super::node::{Key, Node, Value};
use crate::diag::{Code, Diagnostic, Diagnostics, Span, did_you_mean};
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, Visitor};
use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

/// Reads `node` as a `T`. Faults go into `out`; `None` if the value itself is unusable.
///
/// `Some` does not mean that there was no fault: faulty optional keys and list items are left out of it.
pub fn decode<T: DeserializeOwned>(node: &Node, out: &mut Diagnostics) -> Option<T> {
    let outer = FAULTS.with_borrow_mut(std::mem::take);
    let result = decode_inner(node);
    let found = FAULTS.with_borrow_mut(|faults| std::mem::replace(faults, outer));
    out.append(found);
    result
}

/// Reads one value likewise; where that fails, [`reported`] is the error to return.
pub(super) fn nested<T: DeserializeOwned>(node: &Node) -> Option<T> {
    decode_inner(node)
}

/// The error of a value whose faults are reported already.
pub(super) fn reported<E: de::Error>() -> E {
    E::custom(REPORTED)
}

/// Never seen by anybody: [`Session::report`] knows it.
const REPORTED: &str = "reported already";

thread_local! {
    /// Faults of the [`decode`] that is under way on this thread; nested items add to the same.
    static FAULTS: RefCell<Diagnostics> = RefCell::default();
    /// A [`Node`] on its way through serde to the field that asked for it.
    static HANDOVER: RefCell<Option<Node>> = const { RefCell::new(None) };
}

/// The node that a field's `Deserialize` asked for under the name [`NODE`].
pub(super) fn handed_over() -> Option<Node> {
    HANDOVER.take()
}

pub(super) fn decode_inner<T: DeserializeOwned>(node: &Node) -> Option<T> {
    let session = Session::default();
    loop {
        match T::deserialize(NodeDe { node, session: &session }) {
            Ok(value) => return Some(value),
            Err(Fail::Poisoned) => {}
            Err(fail) => {
                session.report(fail, node, node.span);
                return None;
            }
        }
        if session.poisoned.borrow().contains(&std::ptr::from_ref(node)) {
            return None;
        }
    }
}

#[derive(Default)]
struct Session {
    /// Values already reported; read over in the next round.
    poisoned: RefCell<HashSet<*const Node>>,
}

impl Session {
    /// Turns a bare error into a fault at `span`, and marks the value.
    fn report(&self, fail: Fail, node: &Node, span: Span) {
        let fault = match fail {
            Fail::Poisoned => return,
            Fail::Custom(message) if message == REPORTED => {
                self.poisoned.borrow_mut().insert(node);
                return;
            }
            Fail::Type { expected } if node.expanded => Diagnostic::error(
                Code::BAD_VALUE,
                span,
                format!("expected {expected}; the expanded value is not"),
            ),
            Fail::Type { expected } => {
                let found = node.kind();
                Diagnostic::error(Code::BAD_VALUE, span, format!("expected {expected}, found {found}"))
            }
            Fail::Variant { name, known } => {
                let help = did_you_mean(&name, known.iter().copied());
                let shown = if node.expanded { "the expanded value" } else { &*format!("`{name}`") };
                Diagnostic::error(Code::BAD_VALUE, span, format!("{shown} is not one of the choices here"))
                    .maybe_help(help)
            }
            Fail::Missing { field } => {
                Diagnostic::error(Code::MISSING_KEY, span, format!("key `{field}` is missing"))
            }
            Fail::Custom(message) => Diagnostic::error(Code::BAD_VALUE, span, message),
        };
        FAULTS.with_borrow_mut(|faults| faults.push(fault));
        self.poisoned.borrow_mut().insert(node);
    }

    fn is_poisoned(&self, node: &Node) -> bool {
        self.poisoned.borrow().contains(&std::ptr::from_ref(node))
    }
}

/// Why a reading stopped.
#[derive(Debug)]
enum Fail {
    /// Reported already.
    Poisoned,
    Type {
        expected: String,
    },
    Variant {
        name: String,
        known: &'static [&'static str],
    },
    Missing {
        field: &'static str,
    },
    Custom(String),
}

impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for Fail {}

impl de::Error for Fail {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Fail::Custom(message.to_string())
    }

    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Fail::Type { expected: in_words(&expected.to_string()) }
    }

    fn invalid_value(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Fail::Custom(format!("expected {}", in_words(&expected.to_string())))
    }

    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> Self {
        Fail::Variant { name: variant.to_owned(), known }
    }

    fn missing_field(field: &'static str) -> Self {
        Fail::Missing { field }
    }
}

/// serde's own words for what it wants, in the manifest's.
fn in_words(expected: &str) -> String {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, not negative".to_owned(),
        "i8" | "i16" | "i32" | "i64" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a string" => "a text".to_owned(),
        "a boolean" => "`true` or `false`".to_owned(),
        "a sequence" => "a list".to_owned(),
        text if text.starts_with("struct ") || text == "a map" => "a mapping".to_owned(),
        text if text.starts_with("enum ") || text.starts_with("string or map") => {
            "one of the choices".to_owned()
        }
        text => text.to_owned(),
    }
}

struct NodeDe<'n> {
    node: &'n Node,
    session: &'n Session,
}

/// Magic names by which [`Spanned`](super::Spanned) and [`Node`] ask for their place.
pub(super) const SPANNED: &str = "$voicegate::Spanned";
/// As [`SPANNED`], for a whole tree.
pub(super) const NODE: &str = "$voicegate::Node";

impl<'n> NodeDe<'n> {
    fn mismatch<'de, V: Visitor<'de>>(&self, visitor: &V) -> Fail {
        Fail::Type { expected: in_words(&(visitor as &dyn de::Expected).to_string()) }
    }

    /// The text as a number or boolean if it came from a variable, which has no other way to be one.
    fn scalar<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
        match &self.node.value {
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::Int(i) => visitor.visit_i64(*i),
            Value::Float(f) => visitor.visit_f64(*f),
            Value::Str(text) if self.node.expanded => {
                if let Ok(i) = text.parse::<i64>() {
                    visitor.visit_i64(i)
                } else if let Ok(f) = text.parse::<f64>() {
                    visitor.visit_f64(f)
                } else if let Ok(b) = text.parse::<bool>() {
                    visitor.visit_bool(b)
                } else {
                    Err(self.mismatch(&visitor))
                }
            }
            _ => Err(self.mismatch(&visitor)),
        }
    }

    fn entries<'de, V: Visitor<'de>>(&self, visitor: &V) -> Result<&'n [(Key, Node)], Fail> {
        match &self.node.value {
            Value::Map(entries) => Ok(entries),
            _ => Err(self.mismatch(visitor)),
        }
    }

    fn map<'de, V: Visitor<'de>>(
        self,
        visitor: V,
        fields: Option<&'static [&'static str]>,
    ) -> Result<V::Value, Fail> {
        let entries = self.entries(&visitor)?;
        if let Some(fields) = fields {
            for (key, _) in entries.iter().filter(|(key, _)| !fields.contains(&key.text.as_str())) {
                let fault = Diagnostic::error(
                    Code::UNKNOWN_KEY,
                    key.span,
                    format!("key `{}` is not known here", key.text),
                )
                .maybe_help(did_you_mean(&key.text, fields.iter().copied()));
                FAULTS.with_borrow_mut(|faults| faults.push(fault));
            }
        }
        let result =
            visitor.visit_map(MapDe { entries: entries.iter(), fields, value: None, session: self.session });
        match result {
            // A required key that is there but faulty was reported where it stands.
            Err(Fail::Missing { field })
                if entries
                    .iter()
                    .any(|(key, value)| key.text == field && self.session.is_poisoned(value)) =>
            {
                self.session.poisoned.borrow_mut().insert(self.node);
                Err(Fail::Poisoned)
            }
            other => other,
        }
    }
}

macro_rules! numbers {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
            self.scalar(visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for NodeDe<'_> {
    type Error = Fail;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Str(text) => visitor.visit_str(text),
            Value::Seq(_) => self.deserialize_seq(visitor),
            Value::Map(_) => self.map(visitor, None),
            _ => self.scalar(visitor),
        }
    }

    numbers! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 deserialize_f32 deserialize_f64
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
        match &self.node.value {
            Value::Str(text) => visitor.visit_str(text),
            _ => Err(self.mismatch(&visitor)),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fail> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
        match &self.node.value {
            Value::Seq(items) => visitor.visit_seq(SeqDe { items: items.iter(), session: self.session }),
            _ => Err(self.mismatch(&visitor)),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fail> {
        self.map(visitor, None)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fail> {
        self.map(visitor, Some(fields))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Fail> {
        match name {
            SPANNED => visitor.visit_seq(SpannedDe { de: Some(self), step: 0 }),
            NODE => {
                HANDOVER.set(Some(self.node.clone()));
                visitor.visit_unit()
            }
            _ => self.deserialize_seq(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fail> {
        match &self.node.value {
            Value::Str(name) => visitor.visit_enum(EnumDe { name, body: None, session: self.session }),
            Value::Map(entries) if entries.len() == 1 => {
                let (key, body) = &entries[0];
                visitor.visit_enum(EnumDe { name: &key.text, body: Some(body), session: self.session })
            }
            _ => Err(Fail::Type { expected: "one of the choices".to_owned() }),
        }
    }

    serde::forward_to_deserialize_any! {
        char bytes byte_buf unit unit_struct tuple ignored_any
    }
}

struct MapDe<'n> {
    entries: std::slice::Iter<'n, (Key, Node)>,
    fields: Option<&'static [&'static str]>,
    value: Option<&'n Node>,
    session: &'n Session,
}

impl<'de> de::MapAccess<'de> for MapDe<'_> {
    type Error = Fail;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fail> {
        for (key, value) in self.entries.by_ref() {
            let known = self.fields.is_none_or(|fields| fields.contains(&key.text.as_str()));
            if known && !self.session.is_poisoned(value) {
                self.value = Some(value);
                let node = Node { span: key.span, value: Value::Str(key.text.clone()), expanded: false };
                return seed.deserialize(NodeDe { node: &node, session: self.session }).map(Some);
            }
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Fail> {
        let node =
            self.value.take().ok_or_else(|| Fail::Custom("a value was asked for before its key".into()))?;
        item(node, self.session, seed)
    }
}

struct SeqDe<'n> {
    items: std::slice::Iter<'n, Node>,
    session: &'n Session,
}

impl<'de> de::SeqAccess<'de> for SeqDe<'_> {
    type Error = Fail;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Fail> {
        let session = self.session;
        match self.items.find(|node| !session.is_poisoned(node)) {
            Some(node) => item(node, session, seed).map(Some),
            None => Ok(None),
        }
    }
}

/// Reads one value; an error that has no place yet gets this one.
fn item<'de, S: DeserializeSeed<'de>>(node: &Node, session: &Session, seed: S) -> Result<S::Value, Fail> {
    seed.deserialize(NodeDe { node, session }).map_err(|fail| {
        session.report(fail, node, node.span);
        Fail::Poisoned
    })
}

struct EnumDe<'n> {
    name: &'n str,
    body: Option<&'n Node>,
    session: &'n Session,
}

impl<'de> de::EnumAccess<'de> for EnumDe<'_> {
    type Error = Fail;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Fail> {
        let name: de::value::StrDeserializer<'_, Fail> = de::IntoDeserializer::into_deserializer(self.name);
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> de::VariantAccess<'de> for EnumDe<'_> {
    type Error = Fail;

    fn unit_variant(self) -> Result<(), Fail> {
        match self.body {
            None => Ok(()),
            Some(_) => Err(Fail::Custom(format!("`{}` takes no value", self.name))),
        }
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Fail> {
        match self.body {
            Some(body) => item(body, self.session, seed),
            None => Err(Fail::Custom(format!("`{0}` needs a value: `{{ {0}: … }}`", self.name))),
        }
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fail> {
        match self.body {
            Some(node) => NodeDe { node, session: self.session }.deserialize_seq(visitor),
            None => Err(Fail::Custom(format!("`{}` needs a list", self.name))),
        }
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fail> {
        match self.body {
            Some(node) => NodeDe { node, session: self.session }.map(visitor, Some(fields)),
            None => Err(Fail::Custom(format!("`{}` needs a mapping", self.name))),
        }
    }
}

/// Hands a [`Spanned`](super::Spanned) its parts: file, start, length, value.
struct SpannedDe<'n> {
    de: Option<NodeDe<'n>>,
    step: u8,
}

impl<'de> de::SeqAccess<'de> for SpannedDe<'_> {
    type Error = Fail;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Fail> {
        let Some(de) = &self.de else { return Ok(None) };
        let span = de.node.span;
        let number = |n: u32| de::IntoDeserializer::<Fail>::into_deserializer(n);
        self.step += 1;
        match self.step {
            1 => seed.deserialize(number(u32::from(span.file.0))).map(Some),
            2 => seed.deserialize(number(span.start)).map(Some),
            3 => seed.deserialize(number(span.len)).map(Some),
            _ => match self.de.take() {
                Some(de) => seed.deserialize(de).map(Some),
                None => Ok(None),
            },
        }
    }
}

#[cfg(test)]
mod tests;
