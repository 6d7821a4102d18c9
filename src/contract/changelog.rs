//! What changed between the revisions that a running gateway served: kept in memory, bounded, shown at `/docs/changelog`.

use super::{Change, compare, counts, report};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

/// Revisions that are remembered.
pub const REVISIONS: usize = 10;
/// Changes of one revision that a page lists.
const LISTED: usize = 200;

/// What became of the API, newest last.
///
/// No document is kept: those of ten thousand routes are 200 MiB. Whoever records a change has both.
#[derive(Debug, Default)]
pub struct Changelog {
    entries: Mutex<VecDeque<Arc<Entry>>>,
}

/// One revision, and what it differs in from the one before.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its number.
    pub revision: u64,
    /// The API's own version, `info.version`.
    pub version: String,
    /// When it began to serve.
    pub since: SystemTime,
    /// Whether none was served before it.
    pub first: bool,
    /// What callers see change; nothing for the first one.
    pub changes: Vec<Change>,
}

impl Changelog {
    /// The first revision, of this version of the API, serves.
    pub fn begin(&self, revision: u64, version: &str, since: SystemTime) {
        let version = version.to_owned();
        self.add(Entry { revision, version, since, first: true, changes: Vec::new() });
    }

    /// From now on `document` is served instead of `before`. Gives what callers see change.
    pub fn record(&self, revision: u64, before: &Value, document: &Value, since: SystemTime) -> Arc<Entry> {
        let changes = compare(before, document, &date(since));
        let version = document["info"]["version"].as_str().unwrap_or_default().to_owned();
        self.add(Entry { revision, version, since, first: false, changes })
    }

    fn add(&self, entry: Entry) -> Arc<Entry> {
        let entry = Arc::new(entry);
        let mut entries = self.lock();
        entries.push_back(entry.clone());
        if entries.len() > REVISIONS {
            entries.pop_front();
        }
        entry
    }

    /// Revisions that are remembered, newest first.
    pub fn entries(&self) -> Vec<Arc<Entry>> {
        self.lock().iter().rev().cloned().collect()
    }

    /// As machines read it, newest first.
    pub fn json(&self) -> Value {
        let entries = self.entries().into_iter().map(|entry| {
            let (breaking, harmless) = counts(&entry.changes);
            json!({
                "revision": entry.revision,
                "version": entry.version,
                "since": timestamp(entry.since),
                "breaking": breaking,
                "harmless": harmless,
                "changes": entry.changes.iter().map(Change::json).collect::<Vec<_>>(),
            })
        });
        json!({ "revisions": entries.collect::<Vec<_>>() })
    }

    /// As a part of a page: headings and lists, without styles or scripts. Classes are `revision`, `breaking`, `harmless`.
    pub fn html(&self) -> String {
        let mut out = String::new();
        for entry in self.entries() {
            let Entry { revision, version, since, first, changes } = &*entry;
            let since = timestamp(*since);
            let _ = write!(
                out,
                "<section class=\"revision\"><h2>Revision {revision} <small>{} · <time datetime=\"{since}\">{since}</time></small></h2>",
                escaped(version)
            );
            if changes.is_empty() {
                let said =
                    if *first { "The first that this gateway served." } else { "Callers see no change." };
                let _ = writeln!(out, "<p>{said}</p></section>");
                continue;
            }
            let _ = write!(out, "<p>{}</p><ul>", report::summary(changes));
            for change in changes.iter().take(LISTED) {
                let class = if change.rule.breaking { "breaking" } else { "harmless" };
                let operations = escaped(&report::operations(change));
                let (rule, sentence) = (change.rule, escaped(&change.sentence));
                let _ = write!(
                    out,
                    "<li class=\"{class}\"><strong>{class}</strong> <code>{operations}</code> {sentence} <small>{rule}</small></li>"
                );
            }
            if let Some(more) = changes.len().checked_sub(LISTED).filter(|more| *more > 0) {
                let _ = write!(out, "<li>and {more} more</li>");
            }
            out.push_str("</ul></section>\n");
        }
        out
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

fn timestamp(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map(|at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()).unwrap_or_default()
}

/// The day of a time in UTC, `2027-06-01`.
pub fn date(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map(|at| at.strftime("%Y-%m-%d").to_string()).unwrap_or_default()
}

/// A text in HTML.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Pages are templates with places in braces.
            '{' => out.push_str("&#123;"),
            '}' => out.push_str("&#125;"),
            c => out.push(c),
        }
    }
    out
}
