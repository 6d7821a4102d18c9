//! OpenAPI documents for commands that read them: from a file, as JSON or YAML, or of what a manifest serves.

use super::{ConfigArg, USAGE, say, sound};
use crate::check::Checked;
use crate::compile::document::openapi;
use clap::Args;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Which document.
#[derive(Debug, Args)]
pub(super) struct DocumentArg {
    #[command(flatten)]
    config: ConfigArg,

    /// An OpenAPI document, as JSON or YAML, instead of what a manifest serves
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,

    /// What is described: `all`, or one version such as `v01`
    #[arg(long, value_name = "NAME", default_value = "all", conflicts_with = "from")]
    document: String,
}

/// The document; says on stderr why there is none.
pub(super) fn read(argument: &DocumentArg) -> Result<Value, u8> {
    if let Some(from) = &argument.from {
        return file(from);
    }
    let checked = sound(&argument.config.config)?;
    api(&checked, &argument.document).ok_or_else(|| {
        say(&format!("{}: has no version `{}`", argument.config.config.display(), argument.document));
        USAGE
    })
}

/// The API that a file describes: a document, or a manifest that must be sound.
pub(super) fn any(path: &Path) -> Result<Value, u8> {
    let document = file(path)?;
    if document["openapi"].as_str().is_some_and(|version| version.starts_with("3.")) {
        return Ok(document);
    }
    if let Some(kind) = ["openapi", "swagger", "asyncapi"].iter().find(|kind| document.get(kind).is_some()) {
        let version = &document[*kind];
        say(&format!("{}: OpenAPI 3 is read here, not `{kind}: {version}`", path.display()));
        return Err(USAGE);
    }
    let checked = sound(path).map_err(|_| USAGE)?;
    Ok(api(&checked, "all").unwrap_or_default())
}

/// The document of everything (`all`) or of one version; none if there is no such version.
fn api(checked: &Checked, name: &str) -> Option<Value> {
    let known = name == "all" || checked.about().versions.iter().any(|version| version.name == name);
    known.then(|| openapi(checked, Some(name).filter(|name| *name != "all")))
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
