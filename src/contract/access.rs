//! Who may call an operation, how often and how much, and until when: what the gateway's stages say of themselves.

use super::changelog::date;
use super::operations::Operation;
use super::place::escaped;
use super::{Findings, rules, shown};
use crate::units::{Dur, Size};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Extensions that limit callers: by a number, a duration or a size, the larger the better.
fn is_limit(name: &str) -> bool {
    ["limit", "timeout", "concurrency", "max"].iter().any(|word| name.contains(word))
}

/// Fields of `x-stream` and `x-websocket` that limit callers.
const LIMITS: [&str; 9] = [
    "first_event",
    "idle",
    "max",
    "max_size",
    "resume_for",
    "max_message",
    "max_rate",
    "max_bytes_rate",
    "per_user",
];

/// What differs.
pub(super) fn compare(old: &Operation<'_>, new: &Operation<'_>, out: &mut Findings) {
    security(old, new, out);
    permissions(old, new, out);
    roles(old, new, out);
    limits(old, new, out);
    lifetime(old, new, out);
}

/// The day from which an operation may be gone, `2027-06-01`.
pub(super) fn sunset(operation: &Operation<'_>) -> Option<String> {
    let direct = operation.get("x-sunset").as_str();
    let text = direct.or_else(|| operation.get("x-deprecated")["sunset"].as_str())?;
    // As the `Sunset` header has it (RFC 8594), or as a date.
    Some(httpdate::parse_http_date(text).map_or_else(|_| text.to_owned(), date))
}

/// Schemes of each way to say who is calling, with their scopes.
type Ways<'d> = BTreeSet<BTreeMap<&'d str, BTreeSet<&'d str>>>;

fn ways<'d>(operation: &Operation<'d>) -> Ways<'d> {
    let own = Some(operation.get("security")).filter(|security| security.is_array());
    let all = own.or_else(|| operation.document.get("security")).and_then(Value::as_array);
    let one = |way: &'d Value| {
        let schemes = way.as_object().into_iter().flatten();
        let scopes =
            |value: &'d Value| value.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        schemes.map(|(name, value)| (name.as_str(), scopes(value))).collect()
    };
    all.into_iter().flatten().map(one).collect()
}

/// What a way's scheme is, without what is only said of it.
fn scheme<'d>(operation: &Operation<'d>, name: &str) -> Option<BTreeMap<&'d str, &'d Value>> {
    let known = operation.document["components"]["securitySchemes"].get(name)?.as_object()?;
    let counts = |key: &str| !["description", "bearerFormat"].contains(&key) && !key.starts_with("x-");
    Some(known.iter().map(|(key, value)| (key.as_str(), value)).filter(|(key, _)| counts(key)).collect())
}

fn security(old: &Operation<'_>, new: &Operation<'_>, out: &mut Findings) {
    let (before, now) = (ways(old), ways(new));
    let names = |ways: &Ways<'_>| -> BTreeSet<String> {
        ways.iter().flat_map(BTreeMap::keys).map(|name| (*name).to_owned()).collect()
    };
    for name in names(&before).intersection(&names(&now)) {
        if let (Some(was), Some(is)) = (scheme(old, name), scheme(new, name))
            && was != is
        {
            let at = format!("/components/securitySchemes/{}", escaped(name));
            out.add(rules::SCHEME_CHANGED, &at, format!("{name} is given in another way"));
        }
    }
    let open = |ways: &Ways<'_>| ways.is_empty() || ways.iter().any(BTreeMap::is_empty);
    let at = format!("{}/security", new.place.at);
    match (open(&before), open(&now)) {
        (true, false) => out.add(rules::AUTH_ADDED, &at, "callers must say who they are now".to_owned()),
        (false, true) => out.add(rules::AUTH_REMOVED, &at, "anybody may call it now".to_owned()),
        (true, true) => {}
        (false, false) => {
            let listed = |way: &BTreeMap<&str, BTreeSet<&str>>| {
                let one = |(name, scopes): (&&str, &BTreeSet<&str>)| match scopes.len() {
                    0 => (*name).to_owned(),
                    _ => format!("{name} ({})", scopes.iter().copied().collect::<Vec<_>>().join(", ")),
                };
                way.iter().map(one).collect::<Vec<_>>().join(" and ")
            };
            for way in before.difference(&now) {
                out.add(rules::SCHEME_REMOVED, &at, format!("{} does not do any more", listed(way)));
            }
            for way in now.difference(&before) {
                out.add(rules::SCHEME_ADDED, &at, format!("{} will do", listed(way)));
            }
        }
    }
}

/// What an extension lists: a value, or several.
fn listed(value: &Value) -> BTreeSet<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match value {
        Value::Null => BTreeSet::new(),
        Value::Array(all) => all.iter().map(text).collect(),
        one => BTreeSet::from([text(one)]),
    }
}

fn permissions(old: &Operation<'_>, new: &Operation<'_>, out: &mut Findings) {
    let (before, now) = (listed(old.get("x-permission")), listed(new.get("x-permission")));
    let at = format!("{}/x-permission", new.place.at);
    let names =
        |set: &BTreeSet<String>| set.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" and ");
    if before == now {
    } else if now.is_subset(&before) {
        out.add(rules::PERMISSION_REMOVED, &at, format!("it needs no {} any more", names(&(&before - &now))));
    } else if before.is_subset(&now) {
        out.add(rules::PERMISSION_ADDED, &at, format!("it needs {} now", names(&(&now - &before))));
    } else {
        out.add(rules::PERMISSION_CHANGED, &at, format!("it needs {}, was {}", names(&now), names(&before)));
    }
}

fn roles(old: &Operation<'_>, new: &Operation<'_>, out: &mut Findings) {
    if old.get("x-roles").is_null() || new.get("x-roles").is_null() {
        return;
    }
    let (before, now) = (listed(old.get("x-roles")), listed(new.get("x-roles")));
    let at = format!("{}/x-roles", new.place.at);
    let names = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(", ");
    let (gone, came) = (&before - &now, &now - &before);
    if !gone.is_empty() {
        out.add(
            rules::ROLES_NARROWED,
            &at,
            format!("these roles may not call it any more: {}", names(&gone)),
        );
    }
    if !came.is_empty() {
        out.add(rules::ROLES_WIDENED, &at, format!("these roles may call it now: {}", names(&came)));
    }
}

/// Limits by their names, with what stands there.
fn limits_of<'d>(operation: &Operation<'d>) -> BTreeMap<String, &'d Value> {
    let mut all = BTreeMap::new();
    for (name, value) in operation.place.value.as_object().into_iter().flatten() {
        if ["x-stream", "x-websocket"].contains(&name.as_str()) {
            for field in LIMITS {
                named(&format!("{name} {field}"), &value[field], &mut all);
            }
        } else if name.starts_with("x-") && is_limit(name) {
            named(name, value, &mut all);
        }
    }
    all
}

/// Each limit of a list is one of its own, told by its name if it has one; so is each field of what has no limit and window.
fn named<'d>(name: &str, value: &'d Value, out: &mut BTreeMap<String, &'d Value>) {
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                match item["name"].as_str().or(item["policy"].as_str()) {
                    Some(own) => named(&format!("{name} {own}"), item, out),
                    None if index == 0 => named(name, item, out),
                    None => named(&format!("{name} {}", index + 1), item, out),
                }
            }
        }
        Value::Object(map) if map.contains_key("limit") => drop(out.insert(name.to_owned(), value)),
        Value::Object(map) => {
            for (key, value) in map {
                if !["name", "policy", "when", "by"].contains(&key.as_str()) {
                    named(
                        &if key == "value" { name.to_owned() } else { format!("{name} {key}") },
                        value,
                        out,
                    );
                }
            }
        }
        Value::Null => {}
        _ => drop(out.insert(name.to_owned(), value)),
    }
}

/// How much a limit allows: the number, and the number in a second.
fn allows(value: &Value) -> Option<(f64, f64)> {
    let limit = number(value.get("limit").unwrap_or(value))?;
    let window = ["per", "window"].into_iter().find_map(|key| value.get(key));
    Some((limit, limit / window.and_then(number).unwrap_or(1.0)))
}

/// A number, a duration in seconds or a size in bytes.
fn number(value: &Value) -> Option<f64> {
    if let Some(number) = value.as_f64() {
        return Some(number);
    }
    let text = value.as_str()?;
    let duration = Dur::parse(text).map(|duration| duration.0.as_secs_f64());
    duration.or_else(|| Size::parse(text).map(|size| size.0 as f64))
}

fn limits(old: &Operation<'_>, new: &Operation<'_>, out: &mut Findings) {
    let (before, now) = (limits_of(old), limits_of(new));
    let at = |name: &str| format!("{}/{}", new.place.at, name.split(' ').next().unwrap_or(name));
    let called = |name: &str| name.trim_start_matches("x-").replace('-', " ");
    for (name, was) in &before {
        let Some(is) = now.get(name) else {
            out.add(rules::LIMIT_REMOVED, &at(name), format!("{} is gone, was {}", called(name), said(was)));
            continue;
        };
        let rule = match (allows(was), allows(is)) {
            _ if said(was) == said(is) => {
                if was.get("by") != is.get("by") {
                    let by = |value: &Value| value.get("by").map_or("all together".to_owned(), plain);
                    let sentence = format!("{} counts by {}, was {}", called(name), by(is), by(was));
                    out.add(rules::LIMIT_CHANGED, &at(name), sentence);
                }
                continue;
            }
            (Some(was), Some(is)) if is == was => continue,
            (Some(was), Some(is)) if is.0 >= was.0 && is.1 >= was.1 => rules::LIMIT_RAISED,
            (Some(was), Some(is)) if is.0 <= was.0 && is.1 <= was.1 => rules::LIMIT_LOWERED,
            _ => rules::LIMIT_CHANGED,
        };
        out.add(rule, &at(name), format!("{} is {}, was {}", called(name), said(is), said(was)));
    }
    for (name, is) in now.iter().filter(|(name, _)| !before.contains_key(*name)) {
        out.add(rules::LIMIT_ADDED, &at(name), format!("{} is new: {}", called(name), said(is)));
    }
}

/// A text as it is, anything else as JSON.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| shown(value), str::to_owned)
}

/// A limit in a sentence.
fn said(value: &Value) -> String {
    let window = ["per", "window"].into_iter().find_map(|key| value.get(key));
    match (value.get("limit"), window) {
        (Some(limit), Some(window)) => format!("{} per {}", plain(limit), plain(window)),
        (Some(limit), None) => plain(limit),
        _ => plain(value),
    }
}

fn lifetime(old: &Operation<'_>, new: &Operation<'_>, out: &mut Findings) {
    let (was, is) = (*old.get("deprecated") == true, *new.get("deprecated") == true);
    let at = &new.place.at;
    match (was, is) {
        (false, true) => out.add(rules::DEPRECATED, at, "it is deprecated".to_owned()),
        (true, false) => out.add(rules::UNDEPRECATED, at, "it is not deprecated any more".to_owned()),
        _ => {}
    }
    match (sunset(old), sunset(new)) {
        (None, Some(day)) => out.add(rules::SUNSET_SET, at, format!("it may be gone from {day} on")),
        (Some(was), Some(is)) if is < was => {
            out.add(rules::SUNSET_SOONER, at, format!("it may be gone from {is} on, was {was}"))
        }
        (Some(was), Some(is)) if is > was => {
            out.add(rules::SUNSET_LATER, at, format!("it stays until {is}, was {was}"))
        }
        (Some(was), None) => out.add(rules::SUNSET_LATER, at, format!("it stays; it was to go on {was}")),
        _ => {}
    }
}
