//! `voicegate client ts`: a typed client of the API, from what a manifest serves or from an OpenAPI document.

use super::document::{self, DocumentArg};
use super::{FINDINGS, OK, USAGE, print, say};
use crate::typescript;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Arguments of `client`.
#[derive(Debug, Args)]
pub(super) struct Client {
    #[command(subcommand)]
    language: Language,
}

#[derive(Debug, Subcommand)]
enum Language {
    /// Writes one TypeScript file for browsers, Node and mini programs; it needs nothing at run time
    Ts(Ts),
}

#[derive(Debug, Args)]
struct Ts {
    #[command(flatten)]
    document: DocumentArg,

    /// Where to write it; without, to stdout
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) fn run(command: &Client) -> u8 {
    let Language::Ts(ts) = &command.language;
    let document = match document::read(&ts.document) {
        Ok(document) => document,
        Err(code) => return code,
    };
    let text = match typescript::client(&document) {
        Ok(text) => text,
        Err(error) => {
            say(&format!("no client can be written: {error}"));
            return FINDINGS;
        }
    };
    let Some(out) = &ts.out else {
        print(&text);
        return OK;
    };
    match std::fs::write(out, &text) {
        Ok(()) => {
            say(&format!("wrote {} ({} bytes)", out.display(), text.len()));
            OK
        }
        Err(error) => {
            say(&format!("cannot write {}: {error}", out.display()));
            USAGE
        }
    }
}
