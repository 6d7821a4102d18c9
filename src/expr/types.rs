//! Types of an expression's parts, and of what can be called.

/// The type of a part, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    /// Not known before a request comes.
    Any,
    Null,
    Bool,
    Int,
    UInt,
    Double,
    Text,
    /// Of anything.
    List,
    /// Of texts.
    Texts,
    /// With any fields.
    Object,
    /// Texts by names that only requests have.
    Lookup,
    /// A variable with fields of its own.
    Variable(&'static str),
}

impl Type {
    pub(super) fn words(self) -> &'static str {
        match self {
            Type::Any => "anything",
            Type::Null => "null",
            Type::Bool => "true or false",
            Type::Int | Type::UInt => "a whole number",
            Type::Double => "a number",
            Type::Text => "a text",
            Type::List | Type::Texts => "a list",
            Type::Object | Type::Lookup | Type::Variable(_) => "an object",
        }
    }

    pub(super) fn is_number(self) -> bool {
        matches!(self, Type::Int | Type::UInt | Type::Double)
    }

    pub(super) fn is_whole(self) -> bool {
        matches!(self, Type::List | Type::Texts | Type::Object | Type::Lookup | Type::Variable(_))
    }

    /// Whether something of this type may stand where `wanted` is needed.
    pub(super) fn may_be(self, wanted: Type) -> bool {
        self == Type::Any
            || self == wanted
            || wanted == Type::List && self == Type::Texts
            || wanted == Type::Any
    }

    /// Whether `==` of the two can ever hold.
    pub(super) fn may_equal(self, other: Type) -> bool {
        self == Type::Any
            || other == Type::Any
            || self == other
            || self.is_number() && other.is_number()
            || self == Type::Null
            || other == Type::Null
    }

    /// The type of what is one of the two.
    pub(super) fn either(self, other: Type) -> Type {
        if self == other { self } else { Type::Any }
    }
}

/// The type of a variable's field.
pub(super) fn field(variable: &str, name: &str) -> Type {
    match (variable, name) {
        ("route", "params") | ("request", "query" | "headers") | ("response", "headers") => Type::Lookup,
        ("request", "secure") => Type::Bool,
        ("claims", "scopes") => Type::Texts,
        ("response", "status") => Type::Int,
        _ => Type::Text,
    }
}

/// Functions on a value: name, of which types, with which arguments.
pub(super) const METHODS: &[(&str, &[Type], &[Type])] = &[
    ("size", &[Type::Text, Type::List, Type::Object], &[]),
    ("contains", &[Type::Text], &[Type::Text]),
    ("startsWith", &[Type::Text], &[Type::Text]),
    ("endsWith", &[Type::Text], &[Type::Text]),
    ("matches", &[Type::Text], &[Type::Text]),
    ("lowerAscii", &[Type::Text], &[]),
    ("upperAscii", &[Type::Text], &[]),
    ("trim", &[Type::Text], &[]),
];
/// Macros, which are written out before they come here unless their form is wrong.
pub(super) const MACROS: [&str; 6] = ["has", "all", "exists", "exists_one", "map", "filter"];
/// Functions by themselves: name, of which types.
pub(super) const FUNCTIONS: &[(&str, &[Type])] = &[
    ("size", &[Type::Text, Type::List, Type::Object]),
    ("string", &[Type::Text, Type::Bool, Type::Int, Type::UInt, Type::Double]),
    ("int", &[Type::Text, Type::Int, Type::UInt, Type::Double]),
    ("double", &[Type::Text, Type::Int, Type::UInt, Type::Double]),
];

/// The type of what a function gives.
pub(super) fn result(function: &str) -> Type {
    match function {
        "size" | "int" => Type::Int,
        "double" => Type::Double,
        "string" | "lowerAscii" | "upperAscii" | "trim" => Type::Text,
        _ => Type::Bool,
    }
}
