//! `voicegate diff OLD NEW`: what differs between two manifests, in terms of access; with `--api`, what callers see change.

use super::check::FormatArg;
use super::{FINDINGS, OK, document, print, say, sound};
use crate::compile::diff::Diff;
use crate::compile::document::newer;
use crate::contract::{self, changelog, report};
use clap::Args;
use serde_json::Value;
use std::path::PathBuf;
use std::time::SystemTime;

/// Arguments of `diff`.
#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    /// The manifest as it was; with `--api`, an OpenAPI document will do
    old: PathBuf,
    /// The manifest as it will be; with `--api`, an OpenAPI document will do
    new: PathBuf,

    /// Says what callers see change, and exits with 1 where that breaks them
    #[arg(long)]
    api: bool,

    /// For people, for machines, or for GitHub's annotations
    #[arg(long, requires = "api", default_value = "human", value_name = "FORMAT")]
    format: FormatArg,
}

pub(super) fn run(command: &DiffArgs) -> u8 {
    if command.api {
        return api(command);
    }
    let (old, new) = match (sound(&command.old), sound(&command.new)) {
        (Ok(old), Ok(new)) => (old, new),
        _ => return super::USAGE,
    };
    let diff = Diff::between(&old, &new);
    print(&diff.report());
    say(&format!("{}; {} unchanged", diff.summary(), diff.unchanged));
    if diff.is_empty() { OK } else { FINDINGS }
}

fn api(command: &DiffArgs) -> u8 {
    let (old, new) = match (document::any(&command.old), document::any(&command.new)) {
        (Ok(old), Ok(new)) => (old, new),
        _ => return super::USAGE,
    };
    let (old, new) = (alike(&old, &new), alike(&new, &old));
    let changes = contract::compare(&old, &new, &changelog::date(SystemTime::now()));
    print(&report::render(&changes, command.format.into()));
    say(&report::summary(&changes));
    if contract::counts(&changes).0 == 0 { OK } else { FINDINGS }
}

/// A document in the version of the other, where that is newer: streams are described in other words since 3.2.
fn alike(document: &Value, other: &Value) -> Value {
    let is_newer = |document: &Value| document["openapi"].as_str().is_some_and(|version| version >= "3.2");
    match is_newer(other) && !is_newer(document) {
        true => newer(document),
        false => document.clone(),
    }
}
