//! What two revisions of a manifest differ in, in terms of access: for reload receipts and `voicegate diff`.

use crate::check::Checked;
use crate::check::chains::Link;
use crate::check::routes::{CheckedRoute, Ending};
use crate::manifest::Node;
use crate::manifest::node::Value;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

/// The differences.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diff {
    /// Routes only in the new one.
    pub added: Vec<String>,
    /// Routes only in the old one.
    pub removed: Vec<String>,
    /// Routes that say something else now, and what.
    pub changed: Vec<(String, Vec<String>)>,
    /// Routes in both that anybody may call now and could not before.
    pub lost_auth: Vec<String>,
    /// Routes that need a caller's identity now and did not before.
    pub gained_auth: Vec<String>,
    /// Routes in both that are the same.
    pub unchanged: usize,
}

impl Diff {
    /// Compares two revisions.
    pub fn between(old: &Checked, new: &Checked) -> Self {
        let by_key = |checked: &Checked| -> HashMap<String, Arc<CheckedRoute>> {
            checked.routes().iter().map(|route| (route.key(), route.clone())).collect()
        };
        let before = by_key(old);
        let after = by_key(new);
        let mut diff = Diff::default();
        for route in new.routes() {
            match before.get(&route.key()) {
                None => diff.added.push(describe(route)),
                Some(known) if known.fingerprint == route.fingerprint => diff.unchanged += 1,
                Some(known) => {
                    match (known.needs_auth(), route.needs_auth()) {
                        (true, false) => diff.lost_auth.push(route.key()),
                        (false, true) => diff.gained_auth.push(route.key()),
                        _ => {}
                    }
                    diff.changed.push((route.key(), changes(known, route)));
                }
            }
        }
        diff.removed = old
            .routes()
            .iter()
            .filter(|route| !after.contains_key(&route.key()))
            .map(|r| describe(r))
            .collect();
        diff
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }

    /// `+added ~changed −removed`, and who lost or gained auth: the middle of a reload's receipt.
    pub fn summary(&self) -> String {
        let mut text = format!("+{} ~{} −{}", self.added.len(), self.changed.len(), self.removed.len());
        for (what, routes) in [("lost auth", &self.lost_auth), ("gained auth", &self.gained_auth)] {
            if !routes.is_empty() {
                let _ = write!(text, "; {what}: {}", routes.join(", "));
            }
        }
        text
    }

    /// One line a difference, for people.
    pub fn report(&self) -> String {
        let mut text = String::new();
        for route in &self.lost_auth {
            let _ = writeln!(text, "! {route}: anybody may call it now");
        }
        for route in &self.gained_auth {
            let _ = writeln!(text, "! {route}: callers must say who they are now");
        }
        for route in &self.added {
            let _ = writeln!(text, "+ {route}");
        }
        for (route, what) in &self.changed {
            let _ = writeln!(text, "~ {route}");
            for change in what {
                let _ = writeln!(text, "    {change}");
            }
        }
        for route in &self.removed {
            let _ = writeln!(text, "- {route}");
        }
        text
    }
}

fn describe(route: &CheckedRoute) -> String {
    let access = if route.needs_auth() { "needs auth" } else { "public" };
    format!("{} ({access}, {})", route.key(), ending(route))
}

/// Where a route ends, in a few words.
pub fn ending(route: &CheckedRoute) -> String {
    match &route.ending {
        Ending::Native(native) => format!("handler {}", native.operation.name),
        Ending::Target(target) => {
            // Parameters stand for themselves.
            let values: Vec<String> = route.info.params.iter().map(|name| format!(":{name}")).collect();
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            target.describe(&route.info.template, &values)
        }
    }
}

fn changes(old: &CheckedRoute, new: &CheckedRoute) -> Vec<String> {
    let mut all = Vec::new();
    let (from, to) = (ending(old), ending(new));
    if from != to {
        all.push(format!("target: {from} → {to}"));
    }
    let find = |route: &'_ CheckedRoute, link: &Link| {
        route
            .links
            .iter()
            .find(|other| other.name == link.name)
            .map(|other| (other.fingerprint, text(&other.body)))
    };
    for link in new.links.iter() {
        let now = text(&link.body);
        match find(old, link) {
            None => all.push(format!(
                "stage {}: added{}",
                link.name,
                if now.is_empty() { now } else { format!(" ({now})") }
            )),
            Some((fingerprint, _)) if fingerprint == link.fingerprint => {}
            Some((_, before)) if before == now => {
                all.push(format!("stage {}: its policy {now} changed", link.name))
            }
            Some((_, before)) => all.push(format!("stage {}: {before} → {now}", link.name)),
        }
    }
    for link in old.links.iter().filter(|link| find(new, link).is_none()) {
        all.push(format!("stage {}: removed", link.name));
    }
    if old.public != new.public {
        all.push(format!("public: {} → {}", old.public, new.public));
    }
    match (&old.maintenance, &new.maintenance) {
        (None, Some(_)) => all.push("maintenance: switched off".to_owned()),
        (Some(_), None) => all.push("maintenance: over".to_owned()),
        _ => {}
    }
    if all.is_empty() {
        all.push("other settings of it, or of its upstream or version".to_owned());
    }
    all
}

/// A stage's body in one line; expanded values are not shown.
pub fn text(node: &Node) -> String {
    match &node.value {
        Value::Null => String::new(),
        _ if node.expanded => "${…}".to_owned(),
        Value::Seq(items) => format!("[{}]", items.iter().map(text).collect::<Vec<_>>().join(", ")),
        Value::Map(entries) => {
            let parts: Vec<_> =
                entries.iter().map(|(key, value)| format!("{}: {}", key.text, text(value))).collect();
            parts.join(", ")
        }
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        Value::Str(value) => value.clone(),
    }
}
