//! Texts of a request against the patterns, each kind until its first finding.

use super::sanitize::Fields;
use libinjectionrs::{detect_sqli, detect_xss};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::panic::catch_unwind;

/// Bytes that are given to the library at a time. What it does takes time square in the length of some texts.
const PIECE: usize = 2048;
/// Bytes that a piece has in common with the one before.
const OVERLAP: usize = 256;
/// Characters of a key that a log line shows.
const SHOWN: usize = 64;
/// Steps of a path that a log line shows.
const STEPS: usize = 16;

/// What is looked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patterns {
    pub(super) xss: bool,
    pub(super) sql: bool,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Xss = 0,
    Sql = 1,
    /// Something that could not be looked at.
    Unreadable = 2,
}

impl What {
    pub(super) const ALL: [What; 3] = [What::Xss, What::Sql, What::Unreadable];

    /// The word for logs and metrics.
    pub(super) fn word(self) -> &'static str {
        match self {
            What::Xss => "xss",
            What::Sql => "sql",
            What::Unreadable => "unreadable",
        }
    }
}

/// Where, and what kind of SQL; nothing of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) place: String,
    pub(super) fingerprint: String,
}

/// What was found so far.
#[derive(Debug, Clone)]
pub(super) struct Scan {
    patterns: Patterns,
    found: [Option<Finding>; 3],
}

impl Scan {
    pub(super) fn new(patterns: Patterns) -> Self {
        Scan { patterns, found: [const { None }; 3] }
    }

    /// The first finding of each kind.
    pub(super) fn findings(&self) -> impl Iterator<Item = (What, &Finding)> {
        What::ALL.into_iter().filter_map(|what| Some((what, self.found[what as usize].as_ref()?)))
    }

    /// Looks on, after these findings were told, for the kinds that were not found.
    pub(super) fn again(mut self) -> Self {
        self.patterns.xss &= self.found[What::Xss as usize].is_none();
        self.patterns.sql &= self.found[What::Sql as usize].is_none();
        Scan::new(self.patterns)
    }

    /// Notes something that could not be looked at.
    pub(super) fn unreadable(&mut self, place: &str) {
        self.note(What::Unreadable, || place.to_owned(), String::new());
    }

    /// Looks at a value with a name.
    pub(super) fn text(&mut self, within: &str, name: &str, text: &str) {
        self.look(text, true, || format!("{within}.{}", shown(name)));
    }

    /// Looks at the names and values of a query or a form.
    pub(super) fn pairs(&mut self, within: &str, pairs: &[u8]) {
        for (name, value) in url::form_urlencoded::parse(pairs) {
            self.look(&name, true, || format!("{within} (a name)"));
            self.text(within, &name, &value);
        }
    }

    /// Looks at the keys and texts of JSON, those of `cleaned` fields not for scripts; how many keys there are. Its depth
    /// must be bounded.
    pub(super) fn json(&mut self, bytes: &[u8], cleaned: &Fields) -> usize {
        let mut walk = Walk { scan: self, cleaned, path: Vec::new(), keys: 0 };
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        // It was parsed before: it is JSON.
        let _ = Step(&mut walk).deserialize(&mut reader);
        walk.keys
    }

    fn look(&mut self, text: &str, for_scripts: bool, place: impl Fn() -> String) {
        // A word without spaces and signs is no attack, and most values are such words.
        if text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return;
        }
        let wants = |what: What| self.found[what as usize].is_none();
        let (xss, sql) =
            (for_scripts && self.patterns.xss && wants(What::Xss), self.patterns.sql && wants(What::Sql));
        let pieces = || pieces(text.as_bytes());
        // A panic of the library must not cost a request that is only reported on.
        match catch_unwind(|| (xss && pieces().any(is_xss), pieces().filter(|_| sql).find_map(sql_in))) {
            Ok((is_xss, sql)) => {
                if is_xss {
                    self.note(What::Xss, &place, String::new());
                }
                if let Some(fingerprint) = sql {
                    self.note(What::Sql, &place, fingerprint);
                }
            }
            Err(_) => self.note(What::Unreadable, &place, String::new()),
        }
    }

    fn note(&mut self, what: What, place: impl FnOnce() -> String, fingerprint: String) {
        let found = &mut self.found[what as usize];
        if found.is_none() {
            *found = Some(Finding { place: place(), fingerprint });
        }
    }
}

/// A text in pieces of bounded length.
fn pieces(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    (0..text.len().max(1)).step_by(PIECE - OVERLAP).map_while(move |at| {
        let is_new = at == 0 || at + OVERLAP < text.len();
        is_new.then(|| &text[at..(at + PIECE).min(text.len())])
    })
}

fn is_xss(text: &[u8]) -> bool {
    detect_xss(text).is_injection()
}

/// The fingerprint of SQL in a text.
fn sql_in(text: &[u8]) -> Option<String> {
    let result = detect_sqli(text);
    result.is_injection().then(|| result.fingerprint.map(|it| it.to_string()).unwrap_or_default())
}

/// A name for a log line: nothing that could be a payload itself.
fn shown(name: &str) -> &str {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if name.len() <= SHOWN && name.bytes().all(is_plain) { name } else { "*" }
}

/// A step into a JSON body.
pub(super) enum Segment<'de> {
    Key(Cow<'de, str>),
    Index(usize),
}

/// A walk through a JSON text.
struct Walk<'a, 'de> {
    scan: &'a mut Scan,
    cleaned: &'a Fields,
    path: Vec<Segment<'de>>,
    keys: usize,
}

impl Walk<'_, '_> {
    fn text(&mut self, text: &str) {
        let for_scripts = !self.cleaned.hold(&self.path);
        let path = &self.path;
        self.scan.look(text, for_scripts, || pointer(path));
    }

    fn key(&mut self, key: &str) {
        self.keys += 1;
        let path = &self.path;
        self.scan.look(key, true, || format!("{} (a key)", pointer(path)));
    }
}

fn pointer(path: &[Segment<'_>]) -> String {
    let mut text = String::from("body");
    for segment in path.iter().take(STEPS) {
        text.push('/');
        match segment {
            Segment::Key(key) => text.push_str(shown(key)),
            Segment::Index(index) => text.push_str(&index.to_string()),
        }
    }
    text
}

/// Reads one value of the text.
struct Step<'w, 'a, 'de>(&'w mut Walk<'a, 'de>);

impl<'de> DeserializeSeed<'de> for Step<'_, '_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Step<'_, '_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.0.text(text);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let walk = self.0;
        for index in 0.. {
            walk.path.push(Segment::Index(index));
            let item = items.next_element_seed(Step(walk))?;
            walk.path.pop();
            if item.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let walk = self.0;
        while let Some(key) = entries.next_key::<Text<'de>>()? {
            walk.key(&key.0);
            walk.path.push(Segment::Key(key.0));
            entries.next_value_seed(Step(walk))?;
            walk.path.pop();
        }
        Ok(())
    }
}

/// A key, borrowed where it has no escape.
struct Text<'de>(Cow<'de, str>);

impl<'de> serde::Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(V)
    }
}
