//! JSON Schemas (2020-12), compiled once with everything they refer to.
//!
//! Every `$ref` is followed here, by this gateway's own rules, and the schemas on the way become the `$defs` of one that
//! refers to nothing else. So faults have their places in the files, `$id` moves nothing, and the library resolves nothing
//! itself. Patterns run on an engine whose time is linear in the text (no look-around, no back-references), and are
//! bounded in size; `format` asserts.

use super::values::Kinds;
use super::{Place, escaped, faults, find, follow};
use crate::diag::{Code, Diagnostic, Diagnostics};
use crate::error::FieldFault;
use crate::manifest::node::Value as Written;
use crate::manifest::{Manifest, Node, Spanned};
use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// Bytes that a compiled pattern may take.
const PATTERN_SIZE: usize = 1 << 20;
/// Schemas that one schema may consist of.
const MAX_PARTS: usize = 10_000;
/// The only dialect that is read.
const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// A compiled schema.
pub struct Schema {
    validator: Validator,
    kinds: Kinds,
    digest: u64,
}

impl std::fmt::Debug for Schema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Schema").field("kinds", &self.kinds).finish_non_exhaustive()
    }
}

impl Schema {
    /// The schema that a reference in the manifest names; its faults go into `out`.
    pub fn check(
        reference: &Spanned<String>,
        manifest: &Manifest,
        out: &mut Diagnostics,
    ) -> Option<Arc<Schema>> {
        let place = find(manifest, reference, out)?;
        Schema::compile(place, manifest, out).map(Arc::new)
    }

    /// Compiles the schema at a place.
    pub(super) fn compile<'m>(
        place: Place<'m>,
        manifest: &'m Manifest,
        out: &mut Diagnostics,
    ) -> Option<Schema> {
        let before = out.counts().0;
        let mut gathered = Gathered::new(manifest, out);
        gathered.number(place);
        let mut definitions = Map::new();
        let mut state = DefaultHasher::new();
        let mut at = 0;
        while let Some(part) = gathered.parts.get(at).copied() {
            part.node.digest(&mut state);
            let value = gathered.rewritten(part, Position::Schema);
            if gathered.out.counts().0 == before {
                gathered.sound(part, &value);
            }
            definitions.insert(at.to_string(), value);
            at += 1;
        }
        let parts = std::mem::take(&mut gathered.parts);
        if out.counts().0 > before {
            return None;
        }
        let kinds = Kinds::of(&definitions["0"], &definitions);
        let whole = json!({ "$schema": DIALECT, "$ref": "#/$defs/0", "$defs": definitions });
        let built = jsonschema::options()
            .with_draft(Draft::Draft202012)
            .should_validate_formats(true)
            .with_pattern_options(
                PatternOptions::regex().size_limit(PATTERN_SIZE).dfa_size_limit(PATTERN_SIZE),
            )
            .offline()
            .build(&whole);
        match built {
            Ok(validator) => Some(Schema { validator, kinds, digest: state.finish() }),
            Err(error) => {
                let path = match error.instance_path().as_str() {
                    "" => error.schema_path().as_str(),
                    path => path,
                };
                let (part, node) = culprit(&parts, path).unwrap_or((place, place.node));
                let message = format!("this schema cannot be compiled: {}", short(&error));
                out.push(
                    Diagnostic::error(Code::BAD_DOCUMENT, node.span, message).help(format!(
                        "see {}; patterns have neither look-around nor back-references, so that their time is bounded",
                        part.document.name
                    )),
                );
                None
            }
        }
    }

    /// What is wrong with a value, `limit` faults at most; none if it fits.
    pub fn faults(&self, value: &Value, limit: usize) -> Vec<FieldFault> {
        if self.validator.is_valid(value) {
            return Vec::new();
        }
        let mut found = Vec::new();
        for error in self.validator.iter_errors(value) {
            faults::tell(&error, limit, &mut found);
            if found.len() >= limit {
                break;
            }
        }
        found
    }

    /// Whether a value fits.
    pub fn accepts(&self, value: &Value) -> bool {
        self.validator.is_valid(value)
    }

    /// What values it may take, as far as that matters for reading one from a text.
    pub(super) fn kinds(&self) -> &Kinds {
        &self.kinds
    }

    /// Hash of what it says, with what it refers to.
    pub fn digest(&self) -> u64 {
        self.digest
    }
}

/// Where a value of a schema stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Position {
    /// It is a schema (or a list of them).
    Schema,
    /// It is a mapping from any names to schemas.
    Named,
}

/// Keys whose values map names to schemas.
const NAMED: [&str; 5] = ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"];
/// Keys whose values are data, whatever they look like.
const DATA: [&str; 5] = ["const", "enum", "default", "example", "examples"];

/// The schemas on the way, each once.
pub(super) struct Gathered<'m, 'o> {
    manifest: &'m Manifest,
    out: &'o mut Diagnostics,
    pub(super) parts: Vec<Place<'m>>,
    index: HashMap<*const Node, usize>,
}

impl<'m, 'o> Gathered<'m, 'o> {
    /// None yet.
    pub(super) fn new(manifest: &'m Manifest, out: &'o mut Diagnostics) -> Self {
        Gathered { manifest, out, parts: Vec::new(), index: HashMap::new() }
    }

    /// A schema's value, with its references changed to `#/$defs/N`, N being the place in `parts`.
    pub(super) fn schema(&mut self, place: Place<'m>) -> Value {
        self.rewritten(place, Position::Schema)
    }

    /// What a value is, or what its `$ref` leads to.
    pub(super) fn dereferenced(&mut self, place: Place<'m>) -> Option<Place<'m>> {
        super::dereferenced(self.manifest, place, self.out)
    }

    /// Takes a schema in; its place in `parts`.
    pub(super) fn number(&mut self, place: Place<'m>) -> usize {
        let parts = &mut self.parts;
        *self.index.entry(std::ptr::from_ref(place.node)).or_insert_with(|| {
            parts.push(place);
            parts.len() - 1
        })
    }

    /// The schema as JSON, its references changed to those of the whole.
    fn rewritten(&mut self, place: Place<'m>, position: Position) -> Value {
        match &place.node.value {
            Written::Map(entries) => {
                let mut map = Map::with_capacity(entries.len());
                for (key, node) in entries {
                    let inner = place.at(node);
                    let value = match (position, key.text.as_str()) {
                        (Position::Named, _) => self.rewritten(inner, Position::Schema),
                        (_, "$ref") if node.as_str().is_some() => self.reference(inner),
                        (_, "$dynamicRef" | "$recursiveRef") => {
                            let message = format!("`{}` is not read here", key.text);
                            self.out.push(
                                Diagnostic::error(Code::BAD_DOCUMENT, key.span, message)
                                    .help("write `$ref` and a JSON Pointer"),
                            );
                            continue;
                        }
                        (Position::Schema, "discriminator") => self.discriminator(inner),
                        (_, "$schema") => {
                            self.dialect(node);
                            continue;
                        }
                        (_, "$id" | "$anchor" | "$dynamicAnchor") => continue,
                        (_, name) if DATA.contains(&name) => node.to_json(),
                        (_, name) if NAMED.contains(&name) => self.rewritten(inner, Position::Named),
                        _ => self.rewritten(inner, Position::Schema),
                    };
                    map.insert(key.text.clone(), value);
                }
                Value::Object(map)
            }
            Written::Seq(items) => {
                items.iter().map(|node| self.rewritten(place.at(node), Position::Schema)).collect()
            }
            _ => place.node.to_json(),
        }
    }

    /// What tells alternatives apart (OpenAPI 3.1, section 4.8.25): its mapping refers to them, or names components.
    fn discriminator(&mut self, place: Place<'m>) -> Value {
        let mut said = place.node.to_json();
        for (value, to) in place.get("mapping").into_iter().flat_map(Place::entries) {
            let Some(text) = to.node.as_str() else { continue };
            let named = !text.contains(['#', '/', '.']);
            let text = if named { format!("#/components/schemas/{text}") } else { text.to_owned() };
            said["mapping"][value] = self.refer(to, &text);
        }
        said
    }

    fn reference(&mut self, place: Place<'m>) -> Value {
        self.refer(place, place.node.as_str().unwrap_or_default())
    }

    fn refer(&mut self, place: Place<'m>, text: &str) -> Value {
        let Some(target) = follow(self.manifest, place.document, text, place.node.span, self.out) else {
            return Value::Null;
        };
        if self.says_nothing(target) {
            let message = "these references lead to one another, and none of them says anything";
            self.out.push(
                Diagnostic::error(Code::CYCLE, place.node.span, message).help("name the schema itself"),
            );
            return Value::Null;
        }
        if self.parts.len() >= MAX_PARTS {
            let message = format!("a schema consists of at most {MAX_PARTS} schemas");
            self.out.push(Diagnostic::error(Code::BOUNDS, place.node.span, message));
            return Value::Null;
        }
        format!("#/$defs/{}", self.number(target)).into()
    }

    /// Whether a schema is a reference and nothing else, and so is what it leads to, back to itself.
    fn says_nothing(&self, place: Place<'m>) -> bool {
        let mut seen = Vec::new();
        let mut place = place;
        loop {
            let only = matches!(&place.node.value, Written::Map(entries) if entries.len() == 1);
            let Some(text) = place.node.get("$ref").and_then(Node::as_str).filter(|_| only) else {
                return false;
            };
            if seen.iter().any(|known| std::ptr::eq(*known, place.node)) {
                return true;
            }
            seen.push(place.node);
            let next = follow(self.manifest, place.document, text, place.node.span, &mut Diagnostics::new());
            let Some(next) = next else { return false };
            place = next;
        }
    }

    fn dialect(&mut self, node: &Node) {
        let known = node.as_str().is_some_and(|text| text.trim_end_matches('#') == DIALECT);
        if !known {
            self.out.push(
                Diagnostic::error(
                    Code::BAD_DOCUMENT,
                    node.span,
                    "this dialect of JSON Schema is not read here",
                )
                .help(format!("write the schema for {DIALECT}, or leave `$schema` out")),
            );
        }
    }

    /// Is one part a schema by its own dialect? Reports where it is not.
    fn sound(&mut self, place: Place<'m>, value: &Value) {
        if let Err(error) = jsonschema::draft202012::meta::validate(value) {
            let node = descend(place.node, error.instance_path().as_str()).unwrap_or(place.node);
            let message = format!("this is no JSON Schema: {}", short(&error));
            self.out.push(Diagnostic::error(Code::BAD_DOCUMENT, node.span, message).help(
                "see JSON Schema 2020-12; what OpenAPI 3.0 wrote as `nullable` is `type: [string, \"null\"]`",
            ));
        }
    }
}

/// The part and the node in it that a path of the whole schema leads to.
fn culprit<'m>(parts: &[Place<'m>], path: &str) -> Option<(Place<'m>, &'m Node)> {
    let inside = path.split_once("/$defs/")?.1;
    let (number, rest) = inside.split_once('/').unwrap_or((inside, ""));
    let part = *parts.get(number.parse::<usize>().ok()?)?;
    let node = descend(part.node, &format!("/{rest}"));
    Some((part, node.unwrap_or(part.node)))
}

/// The node that a JSON Pointer leads to, or the last on the way.
fn descend<'m>(node: &'m Node, pointer: &str) -> Option<&'m Node> {
    let mut node = node;
    for token in pointer.split('/').skip(1) {
        let key = token.replace("~1", "/").replace("~0", "~");
        let next = match &node.value {
            Written::Seq(items) => key.parse::<usize>().ok().and_then(|index| items.get(index)),
            _ => node.get(&key),
        };
        match next {
            Some(next) => node = next,
            None => break,
        }
    }
    Some(node)
}

/// The library's sentence, cut where it quotes a whole document.
fn short(error: &jsonschema::ValidationError<'_>) -> String {
    let text = error.to_string();
    match text.char_indices().nth(160) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// The pointer of a field below another.
pub(super) fn below(pointer: &str, key: &str) -> String {
    format!("{pointer}/{}", escaped(key))
}

impl Hash for Schema {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}
