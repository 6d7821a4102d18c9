//! `voicegate openapi`: the API's description, made offline as the gateway serves it.

use super::{ConfigArg, OK, USAGE, print, say, sound};
use crate::compile::document::{asyncapi::asyncapi, newer, openapi};
use crate::openapi::yaml;
use clap::{Args, ValueEnum};

/// Arguments of `openapi`.
#[derive(Debug, Args)]
pub(super) struct OpenApi {
    #[command(flatten)]
    config: ConfigArg,

    /// `all`, a version's name (such as `v01`), or `asyncapi`
    #[arg(long, default_value = "all", value_name = "NAME")]
    document: String,

    /// How it is written
    #[arg(long, default_value = "json", value_name = "FORMAT")]
    format: FormatArg,

    /// Version of OpenAPI; in 3.2 streams say what their events are
    #[arg(long = "version", default_value = "3.1", value_name = "VERSION")]
    spec: SpecArg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormatArg {
    Json,
    Yaml,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SpecArg {
    #[value(name = "3.1")]
    Old,
    #[value(name = "3.2")]
    New,
}

pub(super) fn run(command: &OpenApi) -> u8 {
    let checked = match sound(&command.config.config) {
        Ok(checked) => checked,
        Err(code) => return code,
    };
    let versions: Vec<&str> = checked.about().versions.iter().map(|version| version.name.as_str()).collect();
    let document = match command.document.as_str() {
        "asyncapi" => asyncapi(&checked),
        "all" => openapi(&checked, None),
        name if versions.contains(&name) => openapi(&checked, Some(name)),
        name => {
            let known = versions.join(", ");
            say(&format!("there is no document `{name}`; known: all, asyncapi, {known}"));
            return USAGE;
        }
    };
    let document = match command.spec {
        SpecArg::New if command.document != "asyncapi" => newer(&document),
        _ => document,
    };
    match command.format {
        FormatArg::Json => print(&format!("{document:#}\n")),
        FormatArg::Yaml => print(&yaml(&document)),
    }
    OK
}
