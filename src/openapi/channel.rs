//! What goes over a WebSocket, by the description of whoever stands behind the gateway: a channel of an AsyncAPI 3
//! document (<https://www.asyncapi.com/docs/reference/specification/v3.0.0>).
//!
//! The document speaks for the service: what its operations `receive` callers send, what they `send` callers hear. Each
//! payload is a JSON Schema, and each example must fit it. Headers, traits, bindings and security are the service's own
//! business. What comes of it has the form of a [`Bundle`], so that it is imported as operations are.

use super::bundle::{Bundled, name_of};
use super::schema::{Gathered, Schema};
use super::{Bundle, Place, dereferenced, find, follow};
use crate::diag::{Code, Diagnostic, Diagnostics, did_you_mean};
use crate::manifest::documents::parts;
use crate::manifest::{Manifest, Spanned};
use serde_json::{Map, Value, json};

/// What a message object says that callers are told too.
const TOLD: [&str; 4] = ["name", "title", "summary", "description"];
/// Media type of messages of which nothing is said.
const JSON: &str = "application/json";

/// A message of a channel.
struct Message<'m> {
    /// Its key among the channel's.
    key: &'m str,
    /// The message object.
    place: Place<'m>,
}

impl Bundle {
    /// The channel that a route's `docs.asyncapi` names, as `{ send: [MESSAGE …], receive: [MESSAGE …] }` as callers see it;
    /// a message is `{ key, name?, title?, summary?, description?, contentType, payload, examples? }`. Its faults go into
    /// `out`.
    pub fn of_channel(
        reference: &Spanned<String>,
        manifest: &Manifest,
        out: &mut Diagnostics,
    ) -> Option<Bundle> {
        let before = out.counts().0;
        let place = find(manifest, reference, out)?;
        version(place, reference, out);
        if out.counts().0 > before {
            return None;
        }
        let named = place.at(&place.document.root).get("channels");
        let known: Vec<_> = named.into_iter().flat_map(Place::entries).collect();
        let Some((name, _)) = known.iter().find(|(_, known)| std::ptr::eq(known.node, place.node)).copied()
        else {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            let (_, pointer) = parts(&reference.value);
            let last = pointer.rsplit('/').next().unwrap_or_default();
            let help =
                did_you_mean(last, names).unwrap_or_else(|| "write `file.yaml#/channels/name`".to_owned());
            let message = format!("`#{pointer}` is no channel");
            out.push(Diagnostic::error(Code::BAD_REFERENCE, reference.span, message).help(help));
            return None;
        };
        let channel = dereferenced(manifest, place, out)?;
        let (sent, received) =
            (messages(manifest, channel, "receive", out), messages(manifest, channel, "send", out));
        if sent.is_empty() && received.is_empty() && out.counts().0 == before {
            let message = format!("no operation says who sends the messages of the channel `{name}`");
            out.push(
                Diagnostic::error(Code::BAD_DOCUMENT, place.node.span, message)
                    .help("add `operations:` with `action: receive` (what callers send) and `action: send`"),
            );
        }
        for message in sent.iter().chain(&received) {
            sound(manifest, message, out);
        }
        if out.counts().0 > before {
            return None;
        }
        Some(bundle(manifest, name, &sent, &received))
    }
}

/// The messages of all operations on a channel that do this, in order.
fn messages<'m>(
    manifest: &'m Manifest,
    channel: Place<'m>,
    action: &str,
    out: &mut Diagnostics,
) -> Vec<Message<'m>> {
    let root = channel.at(&channel.document.root);
    let mut all: Vec<Message<'m>> = Vec::new();
    let known: Vec<_> = channel.get("messages").into_iter().flat_map(Place::entries).collect();
    for (_, operation) in root.get("operations").into_iter().flat_map(Place::entries) {
        let Some(operation) = dereferenced(manifest, operation, out) else { continue };
        let Some(of) = operation.get("channel").and_then(|of| dereferenced(manifest, of, out)) else {
            continue;
        };
        let does = operation.node.get("action").and_then(|node| node.as_str());
        if !std::ptr::eq(of.node, channel.node) || does != Some(action) {
            continue;
        }
        let keys: Vec<&'m str> = match operation.get("messages") {
            None => known.iter().map(|(key, _)| *key).collect(),
            Some(chosen) => chosen.items().filter_map(|one| key(manifest, one, &known, out)).collect(),
        };
        for key in keys {
            let Some((key, place)) = known.iter().find(|(name, _)| *name == key).copied() else { continue };
            if all.iter().any(|message| message.key == key) {
                continue;
            }
            all.extend(dereferenced(manifest, place, out).map(|place| Message { key, place }));
        }
    }
    all
}

/// The key of a message that an operation chooses: it must be one of its channel's (section "Operation Object").
fn key<'m>(
    manifest: &'m Manifest,
    chosen: Place<'m>,
    known: &[(&'m str, Place<'m>)],
    out: &mut Diagnostics,
) -> Option<&'m str> {
    let reference = chosen.node.get("$ref");
    let text = reference.and_then(|node| node.as_str()).unwrap_or_default();
    let span = reference.unwrap_or(chosen.node).span;
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    let place = match text {
        "" => None,
        text => Some(follow(manifest, chosen.document, text, span, out)?),
    };
    let found =
        known.iter().find(|(_, known)| place.is_some_and(|place| std::ptr::eq(place.node, known.node)));
    if found.is_none() {
        let last = text.rsplit('/').next().unwrap_or_default();
        // The right key of another channel is no slip of the pen.
        let near = did_you_mean(last, names.iter().copied()).filter(|_| !names.contains(&last));
        let help = near.unwrap_or_else(|| {
            "refer to it where the channel lists it: `#/channels/name/messages/key`".to_owned()
        });
        let message = "this is no message of the operation's channel";
        out.push(Diagnostic::error(Code::BAD_REFERENCE, span, message).help(help));
    }
    found.map(|(key, _)| *key)
}

/// Is a message sound: has it a payload, and do its examples fit that?
fn sound(manifest: &Manifest, message: &Message<'_>, out: &mut Diagnostics) {
    let place = message.place;
    let Some(payload) = place.get("payload") else {
        let text = format!("the message `{}` has no `payload`", message.key);
        out.push(Diagnostic::error(Code::BAD_DOCUMENT, place.node.span, text).help(
            "say what it is: a JSON Schema, or for bytes `contentType` and `payload: { format: binary }`",
        ));
        return;
    };
    if let Some(format) = payload.node.get("schemaFormat") {
        let text = "payloads are JSON Schemas here; `schemaFormat` is not read";
        out.push(
            Diagnostic::error(Code::BAD_DOCUMENT, format.span, text)
                .help("write the schema itself as `payload`"),
        );
        return;
    }
    let Some(schema) = Schema::compile(payload, manifest, out) else { return };
    if !is_json(content_type(place)) {
        return;
    }
    for example in place.get("examples").into_iter().flat_map(Place::items) {
        let Some(example) = example.get("payload") else { continue };
        for fault in schema.faults(&example.node.to_json(), 1) {
            let text = format!("this example is no `{}`: `{}` {}", message.key, fault.pointer, fault.en);
            out.push(
                Diagnostic::error(Code::BAD_DOCUMENT, example.node.span, text)
                    .help("correct the example, or the `payload` of its message"),
            );
        }
    }
}

/// What a message is written in: its own word, or the document's for all.
fn content_type(message: Place<'_>) -> &str {
    let own = message.node.get("contentType").and_then(|node| node.as_str());
    let of_all = || message.document.root.get("defaultContentType").and_then(|node| node.as_str());
    own.or_else(of_all).unwrap_or(JSON)
}

/// Whether messages of this type are JSON.
pub fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == JSON || essence.ends_with("+json")
}

fn bundle<'m>(
    manifest: &'m Manifest,
    channel: &str,
    sent: &[Message<'m>],
    received: &[Message<'m>],
) -> Bundle {
    // Their faults were told.
    let out = &mut Diagnostics::new();
    let mut gathered = Gathered::new(manifest, out);
    let mut names: Vec<Option<String>> = Vec::new();
    let mut one = |message: &Message<'m>| {
        let mut said = Map::new();
        said.insert("key".to_owned(), message.key.into());
        for key in TOLD {
            if let Some(text) = message.place.node.get(key) {
                said.insert(key.to_owned(), text.to_json());
            }
        }
        said.insert("contentType".to_owned(), content_type(message.place).into());
        let payload = message.place.get("payload").and_then(|payload| gathered.dereferenced(payload));
        let payload = payload.map(|payload| {
            let number = gathered.number(payload);
            names.resize(names.len().max(number + 1), None);
            names[number].get_or_insert_with(|| {
                name_of(payload).unwrap_or_else(|| format!("{channel}.{}", message.key))
            });
            json!({ "$ref": format!("#/$defs/{number}") })
        });
        said.insert("payload".to_owned(), payload.unwrap_or_default());
        let examples: Vec<Value> = message
            .place
            .get("examples")
            .into_iter()
            .flat_map(Place::items)
            .map(|example| example.node.to_json())
            .collect();
        if !examples.is_empty() {
            said.insert("examples".to_owned(), examples.into());
        }
        Value::Object(said)
    };
    let sent: Vec<Value> = sent.iter().map(&mut one).collect();
    let received: Vec<Value> = received.iter().map(&mut one).collect();
    let mut values = Vec::new();
    while let Some(place) = gathered.parts.get(values.len()).copied() {
        values.push(gathered.schema(place));
    }
    names.resize(values.len(), None);
    let schemas = gathered.parts.iter().zip(values).zip(names).map(|((place, value), name)| Bundled {
        name: name.or_else(|| name_of(*place)).unwrap_or_default(),
        file: place.document.path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        at: place.node.span,
        value,
    });
    Bundle { schemas: schemas.collect(), operation: json!({ "send": sent, "receive": received }) }
}

/// The document must be AsyncAPI of a version that is read here.
fn version(place: Place<'_>, reference: &Spanned<String>, out: &mut Diagnostics) {
    let said = place.document.root.get("asyncapi");
    match said.map(|node| (node, node.as_str().unwrap_or_default())) {
        Some((_, text)) if text.starts_with("3.") => {}
        Some((node, _)) => out.push(
            Diagnostic::error(Code::BAD_DOCUMENT, node.span, "this version of AsyncAPI is not read here")
                .help("write it for `asyncapi: 3.0.0`; 2.x says the other way round who sends"),
        ),
        None => {
            let message = format!("{} is no AsyncAPI document", place.document.name);
            out.push(
                Diagnostic::error(Code::BAD_DOCUMENT, reference.span, message)
                    .help("it begins with `asyncapi: 3.0.0`"),
            );
        }
    }
}
