//! Changes for people, for machines and for code review.

use super::{Change, counts};
use crate::diag::Format;
use serde_json::json;
use std::fmt::Write as _;

/// Operations that a line names before it only counts them.
const NAMED: usize = 3;

/// Renders changes. An empty text for people and for code review says that there are none.
pub fn render(changes: &[Change], format: Format) -> String {
    match format {
        Format::Human => changes.iter().map(human).collect(),
        Format::Json => {
            let (breaking, harmless) = counts(changes);
            let changes: Vec<_> = changes.iter().map(Change::json).collect();
            format!("{:#}\n", json!({ "breaking": breaking, "harmless": harmless, "changes": changes }))
        }
        Format::Github => changes.iter().map(github).collect(),
    }
}

/// `1 breaking change, 3 harmless ones`.
pub fn summary(changes: &[Change]) -> String {
    let many = |count: usize, what: &str| match count {
        1 => format!("1 {what} change"),
        count => format!("{count} {what} changes"),
    };
    let (breaking, harmless) = counts(changes);
    match (breaking, harmless) {
        (0, 0) => "no changes".to_owned(),
        (0, harmless) => many(harmless, "harmless"),
        (breaking, 0) => many(breaking, "breaking"),
        (breaking, harmless) => format!("{}, {}", many(breaking, "breaking"), many(harmless, "harmless")),
    }
}

/// The operations of a change, as many as a line holds.
pub(super) fn operations(change: &Change) -> String {
    let named: Vec<&str> = change.operations.iter().take(NAMED).map(String::as_str).collect();
    let more = change.operations.len().saturating_sub(NAMED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{more}", named.join(", "))
}

fn word(change: &Change) -> &'static str {
    if change.rule.breaking { "breaking" } else { "harmless" }
}

/// A text that neither acts on a terminal nor begins a line: documents are only quoted.
fn quoted(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

fn human(change: &Change) -> String {
    let mut out = String::new();
    let Change { rule, sentence, pointer, .. } = change;
    let _ = writeln!(out, "{}[{rule}] {}: {}", word(change), quoted(&operations(change)), quoted(sentence));
    let _ = writeln!(out, "  --> #{}", quoted(pointer));
    out
}

fn github(change: &Change) -> String {
    let data = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let level = if change.rule.breaking { "error" } else { "notice" };
    let text = format!("{}: {} (#{})", operations(change), change.sentence, change.pointer);
    format!("::{level} title={}::{}\n", change.rule, data(&text))
}
