//! What operations answer: statuses, what their bodies are, headers.

use super::compare::Seen;
use super::operations::{Operation, media, required, schema};
use super::place::Place;
use super::rules::{self, Way};
use super::{Findings, compare::compare as schemas};
use serde_json::Value;
use std::collections::BTreeMap;

pub(super) fn compare(old: &Operation<'_>, new: &Operation<'_>, seen: &mut Seen, out: &mut Findings) {
    let (before, now) = (old.place.get("responses"), new.place.get("responses"));
    let all = |place: &Option<Place<'_>>| -> Vec<String> {
        let entries = place.as_ref().map(|place| place.entries()).unwrap_or_default();
        entries.into_iter().map(|(status, _)| status.to_owned()).collect()
    };
    let (old_statuses, new_statuses) = (all(&before), all(&now));
    for (status, place) in before.iter().flat_map(Place::entries) {
        let matching = matching(status, now.as_ref());
        if matching.is_empty() {
            let rule = if is_error(status) { rules::ERROR_REMOVED } else { rules::STATUS_REMOVED };
            out.add(rule, &place.at, format!("it does not answer {} any more", said(status)));
        }
        let Some(before) = place.followed(old.document) else { continue };
        for now in matching.into_iter().filter_map(|place| place.followed(new.document)) {
            response((old.document, &before), (new.document, &now), status, seen, out);
        }
    }
    for status in new_statuses.iter().filter(|status| !old_statuses.contains(status)) {
        let rule = if is_error(status) { rules::ERROR_ADDED } else { rules::STATUS_ADDED };
        let at = now.as_ref().and_then(|now| now.get(status)).map(|place| place.at).unwrap_or_default();
        out.add(rule, &at, format!("it may answer {} now", said(status)));
    }
}

fn response<'d>(
    (old, before): (&'d Value, &Place<'d>),
    (new, now): (&'d Value, &Place<'d>),
    status: &str,
    seen: &mut Seen,
    out: &mut Findings,
) {
    let medias = (rules::RESPONSE_MEDIA_ADDED, rules::RESPONSE_MEDIA_REMOVED);
    let what = match status {
        "default" => "any other answer (`default`)".to_owned(),
        status => format!("the answer {status}"),
    };
    let way = if is_error(status) { Way::Refusal } else { Way::Response };
    media((old, before), (new, now), (way, medias, &what), seen, out);
    let headers = |place: &Place<'d>| -> BTreeMap<String, Place<'d>> {
        let entries = place.get("headers").map(|headers| headers.entries()).unwrap_or_default();
        entries.into_iter().map(|(name, place)| (name.to_ascii_lowercase(), place)).collect()
    };
    let (before, now) = (headers(before), headers(now));
    for (name, place) in &before {
        let Some(other) = now.get(name) else {
            let promised = place.clone().followed(old).as_ref().is_some_and(required);
            let rule = if promised { rules::REQUIRED_HEADER_REMOVED } else { rules::HEADER_REMOVED };
            out.add(rule, &place.at, format!("header `{name}` of {what} is gone"));
            continue;
        };
        let (place, other) = (place.clone().followed(old), other.clone().followed(new));
        let (Some(place), Some(other)) = (place, other) else { continue };
        if required(&place) && !required(&other) {
            let sentence = format!("header `{name}` of {what} may be missing now");
            out.add(rules::HEADER_OPTIONAL, &other.at, sentence);
        }
        if let (Some(before), Some(now)) = (schema(old, &place), schema(new, &other)) {
            schemas(&before, &now, Way::Response, &format!("header `{name}`"), seen, out);
        }
    }
    for (name, place) in now.iter().filter(|(name, _)| !before.contains_key(*name)) {
        out.add(rules::HEADER_ADDED, &place.at, format!("header `{name}` of {what} is new"));
    }
}

/// Whether it is a refusal; so is what `default` stands for beside successes that are described.
fn is_error(status: &str) -> bool {
    status.starts_with(['4', '5']) || status == "default"
}

/// What a document says of a status of another: of the status itself, of its range, of those in it, or of all others. A
/// refusal that is only among all others now is one that is gone.
fn matching<'d>(status: &str, responses: Option<&Place<'d>>) -> Vec<Place<'d>> {
    let Some(responses) = responses else { return Vec::new() };
    let class = status.get(..1).unwrap_or_default();
    let range = format!("{class}XX");
    if let Some(one) = [status, range.as_str()].into_iter().find_map(|name| responses.get(name)) {
        return vec![one];
    }
    let entries = responses.entries();
    let succeeds = entries.iter().any(|(status, _)| status.starts_with('2'));
    let within = entries.into_iter().filter(|(other, _)| status == range && other.starts_with(class));
    let within: Vec<Place<'d>> = within.map(|(_, place)| place).collect();
    match within.is_empty() && !is_error(status) && !succeeds {
        true => responses.get("default").into_iter().collect(),
        false => within,
    }
}

/// A status in a sentence.
fn said(status: &str) -> &str {
    if status == "default" { "with any other status (`default`)" } else { status }
}
