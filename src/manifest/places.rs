//! Values that know their place, and collections that survive a faulty item.
//!
//! What the typed sections are made of. They read themselves from the tree of [`decode`](super::decode) only.

use super::decode::{NODE, SPANNED, decode_inner, handed_over};
use super::node::{Key, Node, Value};
use crate::diag::{FileId, Span};
use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, Visitor};
use std::fmt;
use std::marker::PhantomData;

/// A value that knows its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub span: Span,
}

impl<T> std::ops::Deref for Spanned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Spanned<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for V<T> {
            type Value = Spanned<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a manifest value")
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut parts: A) -> Result<Spanned<T>, A::Error> {
                let missing = || de::Error::custom("a part of the place is missing");
                let file = FileId(parts.next_element::<u16>()?.ok_or_else(missing)?);
                let start = parts.next_element()?.ok_or_else(missing)?;
                let len = parts.next_element()?.ok_or_else(missing)?;
                let value = parts.next_element()?.ok_or_else(missing)?;
                Ok(Spanned { value, span: Span { file, start, len } })
            }
        }
        deserializer.deserialize_tuple_struct(SPANNED, 4, V(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a manifest value")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
                handed_over().ok_or_else(|| E::custom("only a manifest can be read into a tree"))
            }
        }
        deserializer.deserialize_tuple_struct(NODE, 0, V)
    }
}

/// A list whose items are read one by one: a faulty one is reported and left out. Nothing counts as empty.
#[derive(Debug, Clone, PartialEq)]
pub struct List<T>(pub Vec<Spanned<T>>);

/// A mapping from names to `T`, read entry by entry like a [`List`]; in file order.
#[derive(Debug, Clone, PartialEq)]
pub struct Table<T>(pub Vec<(Key, T)>);

impl<T> Default for List<T> {
    fn default() -> Self {
        List(Vec::new())
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table(Vec::new())
    }
}

impl<T> Table<T> {
    /// The entry of a name.
    pub fn get(&self, name: &str) -> Option<&T> {
        self.0.iter().find(|(key, _)| key.text == name).map(|(_, value)| value)
    }

    /// The names, in file order.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.0.iter().map(|(key, _)| key.text.as_str())
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let node = Node::deserialize(deserializer)?;
        match node.value {
            Value::Null => Ok(List::default()),
            Value::Seq(_) => Ok(nested_list(&node)),
            _ => Err(de::Error::custom(format_args!("expected a list, found {}", node.kind()))),
        }
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Table<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let node = Node::deserialize(deserializer)?;
        match node.value {
            Value::Null => Ok(Table::default()),
            Value::Map(entries) => Ok(Table(
                entries.into_iter().filter_map(|(key, value)| Some((key, decode_inner(&value)?))).collect(),
            )),
            _ => Err(de::Error::custom(format_args!("expected a mapping, found {}", node.kind()))),
        }
    }
}

/// Reads a list inside another type's own `Deserialize`; faults join those of the reading under way.
pub(super) fn nested_list<T: DeserializeOwned>(node: &Node) -> List<T> {
    let items = match &node.value {
        Value::Seq(items) => items.as_slice(),
        _ => &[],
    };
    List(
        items
            .iter()
            .filter_map(|item| Some(Spanned { span: item.span, value: decode_inner(item)? }))
            .collect(),
    )
}

macro_rules! schema_as {
    ($type:ty, $as:ty) => {
        impl<T: schemars::JsonSchema> schemars::JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> std::borrow::Cow<'static, str> {
                <$as>::schema_name()
            }
            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                generator.subschema_for::<$as>()
            }
        }
    };
}

schema_as!(Spanned<T>, T);
schema_as!(List<T>, Vec<T>);
schema_as!(Table<T>, std::collections::BTreeMap<String, T>);

impl schemars::JsonSchema for Node {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Anything".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!(true)
    }
}
