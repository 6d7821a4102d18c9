//! OpenAPI documents for commands that read them: from a file, as JSON or YAML.

use super::{USAGE, say};
use clap::Args;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Which document.
#[derive(Debug, Args)]
pub(super) struct DocumentArg {
    /// An OpenAPI document, as JSON or YAML
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
}

/// The document; says on stderr why there is none.
pub(super) fn read(argument: &DocumentArg) -> Result<Value, u8> {
    file(&argument.from)
}

/// The API that a file describes.
pub(super) fn any(path: &Path) -> Result<Value, u8> {
    let document = file(path)?;
    if document["openapi"].as_str().is_some_and(|version| version.starts_with("3.")) {
        return Ok(document);
    }
    say(&format!("{}: is no OpenAPI document of version 3", path.display()));
    Err(USAGE)
}

/// What a file holds, which may be JSON or YAML.
pub(super) fn file(path: &Path) -> Result<Value, u8> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        say(&format!("cannot read {}: {error}", path.display()));
        USAGE
    })?;
    parse(&text).map_err(|error| {
        say(&format!("{}: {error}", path.display()));
        USAGE
    })
}

/// JSON is YAML too, but its own parser keeps every number as it stands.
fn parse(text: &str) -> Result<Value, String> {
    let json = match serde_json::from_str(text) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    if text.trim_start().starts_with(['{', '[']) {
        return Err(format!("is no JSON: {json}"));
    }
    serde_saphyr::from_str(text).map_err(|error| format!("is neither JSON nor YAML: {error}"))
}
