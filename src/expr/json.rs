//! JSON in expressions: seen without a copy on the way in, written anew on the way out.
//!
//! Texts borrow; lists and objects are views of what was parsed, and going through one charges the meter.

use super::Failed;
use super::functions::{charge, take};
use cel::ExecutionError;
use cel::common::traits::{Container, Indexer, Iterable, Iterator as Items, Sizer};
use cel::common::types::{
    CelBool, CelDouble, CelInt, CelNull, CelString, CelUInt, Kind, LIST_TYPE, MAP_TYPE, Type,
};
use cel::common::value::{CowVal, Val};
use serde_json::{Map, Number, Value};
use std::sync::OnceLock;

/// A value as expressions see it.
pub(super) fn seen<'b, 'r: 'b>(value: &'r Value) -> CowVal<'b, 'r> {
    CowVal::Owned(boxed(value))
}

fn boxed<'r>(value: &'r Value) -> Box<dyn Val + 'r> {
    match value {
        Value::Null => Box::new(CelNull),
        Value::Bool(truth) => Box::new(CelBool::from(*truth)),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => Box::new(CelInt::from(whole)),
            (None, Some(whole)) => Box::new(CelUInt::from(whole)),
            (None, None) => Box::new(CelDouble::from(number.as_f64().unwrap_or(f64::NAN))),
        },
        Value::String(text) => Box::new(CelString::from(text.as_str())),
        Value::Array(items) => Box::new(List { items, shown: OnceLock::new() }),
        Value::Object(fields) => Box::new(Object { fields, names: OnceLock::new() }),
    }
}

/// A JSON array.
#[derive(Debug)]
struct List<'r> {
    items: &'r [Value],
    /// Its items, once somebody went through them.
    shown: OnceLock<Vec<Box<dyn Val + 'r>>>,
}

/// A JSON object.
#[derive(Debug)]
struct Object<'r> {
    fields: &'r Map<String, Value>,
    /// Its names, once somebody went through them.
    names: OnceLock<Vec<Box<dyn Val + 'r>>>,
}

/// Goes through what was shown.
struct Shown<'b, 'r>(std::slice::Iter<'b, Box<dyn Val + 'r>>);

impl<'b, 'r: 'w, 'w> Items<'b, 'w> for Shown<'b, 'r> {
    fn next(&mut self) -> Option<&'b (dyn Val + 'w)> {
        // One that is cut short counts as nothing, whatever it gives: the meter tells.
        if !take(1) {
            return None;
        }
        self.0.next().map(|item| &**item as &(dyn Val + 'w))
    }
}

impl<'r> Val for List<'r> {
    fn get_type(&self) -> &Type {
        &LIST_TYPE
    }

    fn cel_type() -> &'static Type {
        &LIST_TYPE
    }

    fn as_container(&self) -> Option<&dyn Container> {
        Some(self)
    }

    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn as_iterable<'b, 'v>(&'b self) -> Option<&'b (dyn Iterable + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn as_sizer(&self) -> Option<&dyn Sizer> {
        Some(self)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(List { items: self.items, shown: OnceLock::new() })
    }
}

impl Container for List<'_> {
    fn contains(&self, wanted: &dyn Val) -> Result<bool, ExecutionError> {
        charge(self.items.len())?;
        Ok(self.items.iter().any(|item| boxed(item).equals(wanted)))
    }
}

impl<'r> Indexer for List<'r> {
    fn get<'b, 'v>(&'b self, index: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        let place = match (index.downcast_ref::<CelInt>(), index.downcast_ref::<CelUInt>()) {
            (Some(place), _) => usize::try_from(*place.inner()).ok(),
            (None, Some(place)) => usize::try_from(*place.inner()).ok(),
            (None, None) => {
                let got = index.get_type().name().to_owned();
                return Err(ExecutionError::UnexpectedType { got, want: "int".to_owned() });
            }
        };
        let item = place.and_then(|place| self.items.get(place));
        item.map(|item| CowVal::Owned(boxed(item)))
            .ok_or_else(|| ExecutionError::IndexOutOfBounds(cel::Value::Null))
    }

    fn steal<'v>(self: Box<Self>, index: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.get(index).map(CowVal::into_owned)
    }
}

impl<'r> Iterable for List<'r> {
    fn iter<'b, 'v>(&'b self) -> Box<dyn Items<'b, 'v> + 'b>
    where
        Self: 'v,
    {
        let shown = self.shown.get_or_init(|| match take(self.items.len()) {
            true => self.items.iter().map(|item| boxed(item)).collect(),
            false => Vec::new(),
        });
        Box::new(Shown(shown.iter()))
    }
}

impl Sizer for List<'_> {
    fn size(&self) -> CelInt {
        CelInt::from(self.items.len() as i64)
    }
}

impl<'r> Val for Object<'r> {
    fn get_type(&self) -> &Type {
        &MAP_TYPE
    }

    fn cel_type() -> &'static Type {
        &MAP_TYPE
    }

    fn as_container(&self) -> Option<&dyn Container> {
        Some(self)
    }

    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn as_iterable<'b, 'v>(&'b self) -> Option<&'b (dyn Iterable + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn as_sizer(&self) -> Option<&dyn Sizer> {
        Some(self)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(Object { fields: self.fields, names: OnceLock::new() })
    }
}

impl Container for Object<'_> {
    fn contains(&self, name: &dyn Val) -> Result<bool, ExecutionError> {
        Ok(name.downcast_ref::<CelString>().is_some_and(|name| self.fields.contains_key(name.inner())))
    }
}

impl<'r> Indexer for Object<'r> {
    fn get<'b, 'v>(&'b self, name: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        let Some(name) = name.downcast_ref::<CelString>() else {
            let got = name.get_type().name().to_owned();
            return Err(ExecutionError::UnexpectedType { got, want: "string".to_owned() });
        };
        let field = self.fields.get(name.inner());
        field
            .map(|field| CowVal::Owned(boxed(field)))
            .ok_or_else(|| ExecutionError::no_such_key(name.inner()))
    }

    fn steal<'v>(self: Box<Self>, name: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.get(name).map(CowVal::into_owned)
    }
}

impl<'r> Iterable for Object<'r> {
    fn iter<'b, 'v>(&'b self) -> Box<dyn Items<'b, 'v> + 'b>
    where
        Self: 'v,
    {
        let fields = self.fields;
        let names = self.names.get_or_init(|| match take(fields.len()) {
            true => fields.keys().map(|name| Box::new(CelString::from(name.as_str())) as Box<_>).collect(),
            false => Vec::new(),
        });
        Box::new(Shown(names.iter()))
    }
}

impl Sizer for Object<'_> {
    fn size(&self) -> CelInt {
        CelInt::from(self.fields.len() as i64)
    }
}

/// What an expression gave, as JSON.
pub(super) fn written(value: &dyn Val) -> Result<Value, Failed> {
    fn charged(steps: usize) -> Result<(), Failed> {
        if take(steps) { Ok(()) } else { Err(Failed::TooCostly) }
    }
    charged(1)?;
    let broken = || Failed::Other("its values do not go together");
    Ok(match value.get_type().kind() {
        Kind::NullType => Value::Null,
        Kind::Boolean => Value::Bool(*value.downcast_ref::<CelBool>().ok_or_else(broken)?.inner()),
        Kind::Int => Value::from(*value.downcast_ref::<CelInt>().ok_or_else(broken)?.inner()),
        Kind::UInt => Value::from(*value.downcast_ref::<CelUInt>().ok_or_else(broken)?.inner()),
        Kind::Double => {
            let number = *value.downcast_ref::<CelDouble>().ok_or_else(broken)?.inner();
            Value::Number(Number::from_f64(number).ok_or(Failed::Other("JSON has no such number"))?)
        }
        Kind::String => {
            let text = value.downcast_ref::<CelString>().ok_or_else(broken)?.inner();
            charged(text.len() / 1024)?;
            Value::String(text.to_owned())
        }
        Kind::List => {
            let mut items = value.as_iterable().ok_or_else(broken)?.iter();
            let mut list = Vec::new();
            while let Some(item) = items.next() {
                list.push(written(item)?);
            }
            Value::Array(list)
        }
        Kind::Map => {
            let fields = value.as_indexer().ok_or_else(broken)?;
            let mut names = value.as_iterable().ok_or_else(broken)?.iter();
            let mut object = Map::new();
            while let Some(name) = names.next() {
                let text = name.downcast_ref::<CelString>();
                let text = text.ok_or(Failed::Other("names of an object are texts"))?.inner().to_owned();
                let field = fields.get(name).map_err(Failed::of)?;
                object.insert(text, written(&*field)?);
            }
            Value::Object(object)
        }
        _ => return Err(Failed::Type(format!("JSON has no {}", value.get_type().name()))),
    })
}
