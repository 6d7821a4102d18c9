//! `voicegate check`: every fault of every file, in one run.

use super::{ConfigArg, FINDINGS, OK, palette, print, read, say};
use crate::diag::{Format, render};
use clap::{Args, ValueEnum};
use std::time::Instant;

/// Arguments of `check`.
#[derive(Debug, Args)]
pub(super) struct Check {
    #[command(flatten)]
    config: ConfigArg,

    /// Warnings are errors
    #[arg(long)]
    strict: bool,

    /// For people, for machines, or for GitHub's annotations
    #[arg(long, default_value = "human", value_name = "FORMAT")]
    format: FormatArg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum FormatArg {
    Human,
    Json,
    Github,
}

impl From<FormatArg> for Format {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Human => Format::Human,
            FormatArg::Json => Format::Json,
            FormatArg::Github => Format::Github,
        }
    }
}

pub(super) fn run(command: &Check) -> u8 {
    let begun = Instant::now();
    let outcome = read(&command.config.config, command.strict);
    let took = begun.elapsed();
    let palette = palette(&std::io::stdout());
    print(&render(&outcome.diagnostics, &outcome.sources, command.format.into(), palette));
    let (errors, warnings) = outcome.diagnostics.counts();
    let shown = command.config.config.display();
    match &outcome.checked {
        Some(checked) => {
            let counts = checked.counts();
            say(&format!(
                "ok: {shown}: {} in {}, {}, {}, {}{} ({warnings} warnings) in {:.1} ms",
                many(counts.routes, "route"),
                many(counts.versions, "version"),
                many(counts.upstreams, "upstream"),
                many(counts.chains, "chain"),
                many(counts.files, "file"),
                if counts.tests == 0 {
                    String::new()
                } else {
                    format!(", {} passed", many(counts.tests, "test"))
                },
                took.as_secs_f64() * 1000.0,
            ));
            OK
        }
        None => {
            say(&format!("{shown}: {}, {}", many(errors, "error"), many(warnings, "warning")));
            FINDINGS
        }
    }
}

fn many(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
