//! `voicegate catalogue`: the codes of errors or of diagnostics, as Markdown.

use super::{OK, print};
use crate::handlers::docs::catalogue::{diagnostics_markdown, errors_markdown};
use clap::{Args, ValueEnum};

/// Arguments of `catalogue`.
#[derive(Debug, Args)]
pub(super) struct Catalogue {
    /// Which codes
    codes: Codes,
}

/// A catalogue.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Codes {
    /// What callers may be told
    Errors,
    /// What may be wrong with a manifest
    Diagnostics,
}

pub(super) fn run(command: &Catalogue) -> u8 {
    print(&match command.codes {
        Codes::Errors => errors_markdown(),
        Codes::Diagnostics => diagnostics_markdown(),
    });
    OK
}
