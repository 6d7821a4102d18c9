//! `voicegate diff OLD NEW`: what differs between two manifests, in terms of access.

use super::{FINDINGS, OK, print, say, sound};
use crate::compile::diff::Diff;
use clap::Args;
use std::path::PathBuf;

/// Arguments of `diff`.
#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    /// The manifest as it was
    old: PathBuf,
    /// The manifest as it will be
    new: PathBuf,
}

pub(super) fn run(command: &DiffArgs) -> u8 {
    let (old, new) = match (sound(&command.old), sound(&command.new)) {
        (Ok(old), Ok(new)) => (old, new),
        _ => return super::USAGE,
    };
    let diff = Diff::between(&old, &new);
    print(&diff.report());
    say(&format!("{}; {} unchanged", diff.summary(), diff.unchanged));
    if diff.is_empty() { OK } else { FINDINGS }
}
