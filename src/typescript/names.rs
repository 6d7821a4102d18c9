//! Names and texts of a document as TypeScript can hold them.

/// Names of types that the file uses or has itself: a component of such a name gets a `_`.
pub(super) const TAKEN: &[&str] = &[
    "ApiError",
    "Array",
    "ArrayBuffer",
    "AsyncGenerator",
    "AsyncIterable",
    "Blob",
    "BodyInit",
    "Boolean",
    "CallOptions",
    "Client",
    "ClientOptions",
    "Date",
    "Error",
    "Events",
    "FieldError",
    "FormData",
    "Function",
    "Headers",
    "Map",
    "Math",
    "Number",
    "Object",
    "Omit",
    "Op",
    "Partial",
    "ProblemDetails",
    "Promise",
    "Raw",
    "ReadableStream",
    "Record",
    "Request",
    "RequestInit",
    "Response",
    "ResultOf",
    "ServerEvent",
    "Set",
    "Socket",
    "StreamError",
    "String",
    "TextDecoder",
    "TokenStore",
    "Tokens",
    "TypeError",
    "Uint8Array",
    "WebSocket",
];

/// A name of a type: letters and digits, each word's first letter large.
pub(super) fn type_name(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    let mut large = true;
    for c in text.chars() {
        match c {
            c if c.is_ascii_alphanumeric() => {
                name.push(if large { c.to_ascii_uppercase() } else { c });
                large = false;
            }
            _ => large = true,
        }
    }
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        name.insert(0, 'T');
    }
    name
}

/// A name of a method or group: letters and digits, the first letter small.
pub(super) fn member_name(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    let mut large = false;
    for c in text.chars() {
        match c {
            c if c.is_ascii_alphanumeric() => {
                name.push(if large { c.to_ascii_uppercase() } else { c });
                large = false;
            }
            _ => large = !name.is_empty(),
        }
    }
    if name.starts_with(|c: char| c.is_ascii_uppercase()) {
        name[..1].make_ascii_lowercase();
    }
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        name.insert(0, '_');
    }
    // What every object has, or what a promise is told by.
    if ["then", "constructor", "prototype", "toString", "valueOf", "hasOwnProperty"].contains(&name.as_str())
    {
        name.push('_');
    }
    name
}

/// A string literal.
pub(super) fn string(text: &str) -> String {
    // JSON's are JavaScript's (ECMA-262, since 2019).
    serde_json::Value::from(text).to_string()
}

/// A key of an object type: quoted where it must be.
pub(super) fn key(text: &str) -> String {
    let plain = !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$');
    if plain { text.to_owned() } else { string(text) }
}

/// A text that can stand in a comment, in one line.
pub(super) fn comment(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").replace("*/", "*\u{200b}/").replace(|c: char| c.is_control(), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_document_says_is_a_name() {
        for (text, kind, member) in [
            ("LoginRequest", "LoginRequest", "loginRequest"),
            ("password_change", "PasswordChange", "passwordChange"),
            (
                "voicehelper.documents.v1.Document",
                "VoicehelperDocumentsV1Document",
                "voicehelperDocumentsV1Document",
            ),
            ("3d-model", "T3dModel", "_3dModel"),
            ("then", "Then", "then_"),
            ("文件", "T", "_"),
            ("a\"; alert(1); \"", "AAlert1", "aAlert1"),
        ] {
            assert_eq!((type_name(text).as_str(), member_name(text).as_str()), (kind, member), "{text}");
        }
        assert_eq!(key("a-b"), "\"a-b\"");
        assert_eq!(key("a_b"), "a_b");
        assert_eq!(string("a\"\n"), r#""a\"\n""#);
    }

    #[test]
    fn no_text_ends_a_comment() {
        assert!(!comment("a */ alert(1) /* b").contains("*/"));
        assert_eq!(comment("a\n  b\u{7}"), "a b");
    }
}
