//! Operations of two documents: which are gone, and of the others, what they take and answer.

use super::compare::{Seen, compare as schemas};
use super::place::Place;
use super::rules::{self, Way};
use super::schema::Schema;
use super::{Findings, access, answers};
use serde_json::Value;
use std::collections::BTreeMap;

/// Methods of a path item that are operations.
const METHODS: [&str; 9] = ["get", "put", "post", "delete", "options", "head", "patch", "trace", "query"];

/// An operation and where it stands.
pub(super) struct Operation<'d> {
    pub(super) document: &'d Value,
    /// `POST /api/v01/chat/stream`.
    pub(super) shown: String,
    path: &'d str,
    item: Place<'d>,
    pub(super) place: Place<'d>,
}

impl<'d> Operation<'d> {
    pub(super) fn get(&self, key: &str) -> &'d Value {
        self.place.value.get(key).unwrap_or(&Value::Null)
    }

    /// Parameters by place and name: those of the path are told by their position, whatever they are called.
    fn parameters(&self) -> BTreeMap<(String, String), Place<'d>> {
        let mut all = BTreeMap::new();
        for from in [&self.item, &self.place] {
            for parameter in from.get("parameters").iter().flat_map(Place::items) {
                let Some(parameter) = parameter.followed(self.document) else { continue };
                let text = |key: &str| parameter.value[key].as_str().unwrap_or_default();
                let name = match text("in") {
                    "path" => {
                        names(self.path).position(|name| name == text("name")).unwrap_or_default().to_string()
                    }
                    "header" => text("name").to_ascii_lowercase(),
                    _ => text("name").to_owned(),
                };
                if text("in") != "header"
                    || !["accept", "authorization", "content-type"].contains(&name.as_str())
                {
                    all.insert((text("in").to_owned(), name), parameter);
                }
            }
        }
        all
    }
}

/// Names of a path's parameters, in order.
fn names(path: &str) -> impl Iterator<Item = &str> {
    path.split('{').skip(1).filter_map(|rest| rest.split('}').next())
}

/// A path whose parameters have no names.
fn nameless(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut inside = false;
    for c in path.chars() {
        match c {
            '{' => {
                inside = true;
                out.push_str("{}");
            }
            '}' => inside = false,
            c if !inside => out.push(c),
            _ => {}
        }
    }
    out
}

/// Operations by method and path.
fn all(document: &Value) -> BTreeMap<(String, &'static str), Operation<'_>> {
    let mut all = BTreeMap::new();
    let root = Place { value: document, at: String::new() };
    for (path, item) in root.get("paths").iter().flat_map(Place::entries) {
        let Some(item) = item.followed(document) else { continue };
        for method in METHODS {
            if let Some(place) = item.get(method) {
                let shown = format!("{} {path}", method.to_ascii_uppercase());
                let operation = Operation { document, shown, path, item: item.clone(), place };
                all.insert((nameless(path), method), operation);
            }
        }
    }
    all
}

pub(super) fn compare(old: &Value, new: &Value, today: &str, out: &mut Findings) {
    calls(old, new, out);
    let (before, now) = (all(old), all(new));
    let same_components =
        old.get("components") == new.get("components") && old.get("security") == new.get("security");
    for (key, old) in &before {
        out.operation.clone_from(&old.shown);
        if let Some(new) = now.get(key) {
            if !(same_components && old.place.value == new.place.value && old.item.value == new.item.value) {
                out.operation.clone_from(&new.shown);
                operation(old, new, out);
            }
            continue;
        }
        let id = old.get("operationId");
        let moved = now
            .iter()
            .find(|(key, new)| !id.is_null() && new.get("operationId") == id && !before.contains_key(*key));
        if let Some((_, new)) = moved {
            out.add(rules::OPERATION_MOVED, &new.place.at, format!("it is at {} now", new.shown));
            operation(old, new, out);
            continue;
        }
        let sunset = access::sunset(old);
        match sunset.filter(|day| *old.get("deprecated") == true && day.as_str() < today) {
            Some(day) => {
                out.add(rules::OPERATION_SUNSET, &old.place.at, format!("it is gone, as announced for {day}"))
            }
            None => out.add(rules::OPERATION_REMOVED, &old.place.at, "it is gone".to_owned()),
        }
    }
    for (key, new) in &now {
        let id = new.get("operationId");
        let moved = |(known, old): (&(String, &str), &Operation<'_>)| {
            !id.is_null() && old.get("operationId") == id && !now.contains_key(known)
        };
        if !before.contains_key(key) && !before.iter().any(|(known, old)| moved((known, old))) {
            out.operation.clone_from(&new.shown);
            out.add(rules::OPERATION_ADDED, &new.place.at, "it is new".to_owned());
        }
    }
}

/// Routes that gRPC passes through: no operations, only named (`x-grpc`).
fn calls(old: &Value, new: &Value, out: &mut Findings) {
    let all = |document: &Value| -> Vec<String> {
        let routes = document["x-grpc"].as_array().into_iter().flatten();
        routes.filter_map(|call| call["route"].as_str()).map(str::to_owned).collect()
    };
    let (before, now) = (all(old), all(new));
    for (these, those, rule, sentence) in [
        (&before, &now, rules::OPERATION_REMOVED, "gRPC does not pass any more"),
        (&now, &before, rules::OPERATION_ADDED, "gRPC passes now"),
    ] {
        for route in these.iter().filter(|route| !those.contains(route)) {
            out.operation.clone_from(route);
            out.add(rule, "/x-grpc", sentence.to_owned());
        }
    }
}

fn operation(old: &Operation<'_>, new: &Operation<'_>, out: &mut Findings) {
    let mut seen = Seen::default();
    let (id, was) = (new.get("operationId"), old.get("operationId"));
    if let (Some(id), Some(was)) = (id.as_str(), was.as_str())
        && id != was
    {
        out.add(rules::OPERATION_ID, &new.place.at, format!("its id is `{id}`, was `{was}`"));
    }
    access::compare(old, new, out);
    parameters(old, new, &mut seen, out);
    body(old, new, &mut seen, out);
    answers::compare(old, new, &mut seen, out);
    frames(old, new, &mut seen, out);
}

/// What is said over a WebSocket, each way.
fn frames(old: &Operation<'_>, new: &Operation<'_>, seen: &mut Seen, out: &mut Findings) {
    for (key, way, what) in [
        ("send", Way::Request, "what callers send over the socket"),
        ("receive", Way::Response, "what callers hear over the socket"),
    ] {
        let (before, now) = (old.place.get("x-websocket"), new.place.get("x-websocket"));
        let (before, now) = (before.and_then(|it| it.get(key)), now.and_then(|it| it.get(key)));
        if let (Some(before), Some(now)) = (before, now) {
            let (before, now) = (Schema::new(old.document, before), Schema::new(new.document, now));
            schemas(&before, &now, way, what, seen, out);
        }
    }
}

fn parameters(old: &Operation<'_>, new: &Operation<'_>, seen: &mut Seen, out: &mut Findings) {
    let (before, now) = (old.parameters(), new.parameters());
    let what = |place: &Place<'_>| {
        let text = |key: &str| place.value[key].as_str().unwrap_or_default().to_owned();
        format!("{} parameter `{}`", text("in"), text("name"))
    };
    for (key, old_place) in &before {
        let Some(new_place) = now.get(key) else {
            // A parameter of the path cannot be gone while the path is the same: it was not described.
            if key.0 != "path" {
                out.add(rules::PARAMETER_REMOVED, &old_place.at, format!("{} is gone", what(old_place)));
            }
            continue;
        };
        match (required(old_place), required(new_place)) {
            (false, true) => out.add(
                rules::PARAMETER_REQUIRED,
                &new_place.at,
                format!("{} is required now", what(new_place)),
            ),
            (true, false) => {
                out.add(
                    rules::PARAMETER_OPTIONAL,
                    &new_place.at,
                    format!("{} may be left out now", what(new_place)),
                );
            }
            _ => {}
        }
        if style(old_place.value) != style(new_place.value) {
            out.add(
                rules::PARAMETER_STYLE,
                &new_place.at,
                format!("{} is written in another way", what(new_place)),
            );
        }
        if let (Some(before), Some(now)) = (schema(old.document, old_place), schema(new.document, new_place))
        {
            schemas(&before, &now, Way::Request, &what(new_place), seen, out);
        }
    }
    for (key, place) in &now {
        if before.contains_key(key) || key.0 == "path" {
            continue;
        }
        match required(place) {
            true => out.add(
                rules::PARAMETER_ADDED_REQUIRED,
                &place.at,
                format!("{} is new, and required", what(place)),
            ),
            false => {
                out.add(rules::PARAMETER_ADDED, &place.at, format!("{} is new, and optional", what(place)))
            }
        }
    }
}

/// How a parameter's lists and objects are written, with the defaults of OpenAPI.
fn style(parameter: &Value) -> (&str, bool) {
    let default =
        if ["query", "cookie"].iter().any(|place| parameter["in"] == *place) { "form" } else { "simple" };
    let style = parameter["style"].as_str().unwrap_or(default);
    (style, parameter["explode"].as_bool().unwrap_or(style == "form"))
}

/// The schema of a parameter, a header or a body: its own, or that of its content.
pub(super) fn schema<'d>(document: &'d Value, place: &Place<'d>) -> Option<Schema<'d>> {
    let place = place.get("schema").or_else(|| place.get("itemSchema")).or_else(|| {
        let (_, content) = place.get("content")?.entries().into_iter().next()?;
        content.get("schema")
    })?;
    Some(Schema::new(document, place))
}

/// Whether a parameter, a body or a header must be there.
pub(super) fn required(place: &Place<'_>) -> bool {
    place.value["required"] == true
}

/// Contents by their media types without parameters.
fn contents<'d>(place: &Place<'d>) -> BTreeMap<&'d str, Place<'d>> {
    let entries = place.get("content").map(|content| content.entries()).unwrap_or_default();
    entries
        .into_iter()
        .map(|(media, place)| (media.split(';').next().unwrap_or(media).trim(), place))
        .collect()
}

fn body(old: &Operation<'_>, new: &Operation<'_>, seen: &mut Seen, out: &mut Findings) {
    let before = old.place.get("requestBody").and_then(|place| place.followed(old.document));
    let now = new.place.get("requestBody").and_then(|place| place.followed(new.document));
    let (before, now) = match (before, now) {
        (None, None) => return,
        (Some(before), None) => {
            out.add(rules::BODY_REMOVED, &before.at, "it takes no body any more".to_owned());
            return;
        }
        (None, Some(now)) => {
            match required(&now) {
                true => out.add(rules::BODY_ADDED_REQUIRED, &now.at, "it needs a body now".to_owned()),
                false => out.add(rules::BODY_ADDED, &now.at, "it takes a body now".to_owned()),
            }
            return;
        }
        (Some(before), Some(now)) => (before, now),
    };
    match (required(&before), required(&now)) {
        (false, true) => out.add(rules::BODY_REQUIRED, &now.at, "the body is required now".to_owned()),
        (true, false) => out.add(rules::BODY_OPTIONAL, &now.at, "the body may be left out now".to_owned()),
        _ => {}
    }
    let medias = (rules::REQUEST_MEDIA_ADDED, rules::REQUEST_MEDIA_REMOVED);
    media((old.document, &before), (new.document, &now), (Way::Request, medias, "the body"), seen, out);
}

/// What the contents of a body or a response differ in.
pub(super) fn media<'d>(
    (old, before): (&'d Value, &Place<'d>),
    (new, now): (&'d Value, &Place<'d>),
    (way, (added, removed), what): (Way, (rules::Rule, rules::Rule), &str),
    seen: &mut Seen,
    out: &mut Findings,
) {
    let (before, now) = (contents(before), contents(now));
    // Who takes anything takes this; who may answer anything may answer this.
    let included = |name: &str| match way {
        Way::Request => now.keys().any(|range| includes(range, name)),
        Way::Response | Way::Refusal => now.keys().any(|one| includes(name, one)),
    };
    for (name, place) in &before {
        match now.get(name) {
            None if included(name) => {}
            None => out.add(removed, &place.at, format!("{what} is not {name} any more")),
            Some(other) => {
                if let (Some(before), Some(now)) = (schema(old, place), schema(new, other)) {
                    schemas(&before, &now, way, what, seen, out);
                }
            }
        }
    }
    for (name, place) in now.iter().filter(|(name, _)| !before.contains_key(*name)) {
        out.add(added, &place.at, format!("{what} may be {name} now"));
    }
}

/// Whether a range of media types (`audio/*`, `*/*`) has one of them in it.
fn includes(range: &str, media: &str) -> bool {
    let beginning = range.strip_suffix('*').map(|beginning| beginning.trim_start_matches("*/"));
    beginning.is_some_and(|beginning| media.starts_with(beginning))
}
