//! What changed between two OpenAPI documents of an API, and whether callers that worked may fail.
//!
//! [`compare()`] gives a [`Change`] for each difference: a rule with a name that stays, the operations it is about, a place in
//! the document and a sentence. What is allowed to be otherwise, texts and examples, is none. Documents that are equal have
//! no changes, and a change in a component is one change, however many operations use it.

mod access;
mod answers;
pub mod changelog;
mod compare;
mod operations;
mod place;
pub mod report;
mod rules;
mod schema;

pub use rules::Rule;

use serde_json::{Value, json};
use std::collections::HashMap;

/// Longest value that a sentence shows, in characters.
const MAX_SHOWN: usize = 60;

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its kind.
    pub rule: Rule,
    /// Operations it is about, as `POST /api/v01/chat/stream`.
    pub operations: Vec<String>,
    /// Where it stands: a JSON Pointer into the new document, or into the old one if it is gone.
    pub pointer: String,
    /// What changed, for people.
    pub sentence: String,
}

impl Change {
    /// As machines read it.
    pub fn json(&self) -> Value {
        json!({
            "rule": self.rule.name,
            "breaking": self.rule.breaking,
            "operations": self.operations,
            "pointer": self.pointer,
            "message": self.sentence,
        })
    }
}

/// What callers see change from `old` to `new`, breaking changes first. `today` is a date such as `2027-06-01`: an
/// operation may go when the day it was to go is over.
pub fn compare(old: &Value, new: &Value, today: &str) -> Vec<Change> {
    let mut findings = Findings::default();
    if old != new {
        operations::compare(old, new, today, &mut findings);
    }
    let mut changes = findings.changes;
    changes.sort_by_key(|change| !change.rule.breaking);
    changes
}

/// How many of them are breaking, and how many are not.
pub fn counts(changes: &[Change]) -> (usize, usize) {
    let breaking = changes.iter().filter(|change| change.rule.breaking).count();
    (breaking, changes.len() - breaking)
}

/// Changes as they are found.
#[derive(Debug, Default)]
struct Findings {
    /// The operation that is looked at.
    operation: String,
    changes: Vec<Change>,
    /// Where in `changes` each rule, place and sentence stands.
    known: HashMap<(&'static str, String, String), usize>,
}

impl Findings {
    fn add(&mut self, rule: Rule, at: &str, sentence: String) {
        let operation = self.operation.clone();
        let key = (rule.name, at.to_owned(), sentence);
        if let Some(known) = self.known.get(&key) {
            let operations = &mut self.changes[*known].operations;
            if operations.last() != Some(&operation) {
                operations.push(operation);
            }
            return;
        }
        let sentence = key.2.clone();
        self.known.insert(key, self.changes.len());
        self.changes.push(Change { rule, operations: vec![operation], pointer: at.to_owned(), sentence });
    }
}

/// A value in a sentence.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(MAX_SHOWN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests;
