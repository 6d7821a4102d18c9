//! The command line. One file per subcommand; stdout is data, stderr is talk; exit 0 fine, 1 findings, 2 usage.

mod admin;
mod catalogue;
mod check;
mod client;
mod completions;
mod database;
mod diff;
mod document;
mod explain;
mod openapi;
mod routes;
mod schema;
mod serve;

use crate::check::{self as checks, Outcome};
use crate::diag::Palette;
use crate::manifest;
use clap::{Args, Parser, Subcommand};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The VoiceHelper backend gateway: one YAML manifest declares what is served, and the server does it.
#[derive(Debug, Parser)]
#[command(name = "voicegate", version, arg_required_else_help = true, subcommand_required = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves the manifest, and reloads it when it changes
    Serve(Box<serve::Serve>),
    /// Says everything that is wrong with a manifest
    Check(check::Check),
    /// Lists the routes as compiled
    Routes(routes::Routes),
    /// Says what would happen to a request, stage by stage, without sending it
    Explain(explain::Explain),
    /// Says what differs between two manifests, in terms of access
    Diff(diff::DiffArgs),
    /// Writes a typed client of the API
    Client(client::Client),
    /// Prints the JSON Schema of manifests
    Schema,
    /// Prints all error codes or all diagnostic codes, as Markdown
    Catalogue(catalogue::Catalogue),
    /// Prints the API's description: OpenAPI, or AsyncAPI for WebSockets
    Openapi(openapi::OpenApi),
    /// Brings the database's schema up to date; `serve` does so by itself
    Migrate(database::DatabaseArgs),
    /// Makes the first administrator, unlocks names, gives roles, exports and deletes users
    Admin(admin::Admin),
    /// Prints completions for a shell
    Completions(completions::Completions),
}

/// Fine.
const OK: u8 = 0;
/// There are findings.
const FINDINGS: u8 = 1;
/// It was not asked rightly, or could not be done at all.
const USAGE: u8 = 2;

/// Which manifest, for commands that only read it.
#[derive(Debug, Args)]
struct ConfigArg {
    /// The manifest
    #[arg(long, env = "VOICEGATE_CONFIG", default_value = "routes.yaml", value_name = "FILE")]
    config: PathBuf,
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let code = match cli.command {
        Command::Serve(command) => serve::run(*command),
        Command::Check(command) => check::run(&command),
        Command::Routes(command) => routes::run(&command),
        Command::Explain(command) => explain::run(&command),
        Command::Diff(command) => diff::run(&command),
        Command::Client(command) => client::run(&command),
        Command::Schema => schema::run(),
        Command::Catalogue(command) => catalogue::run(&command),
        Command::Openapi(command) => openapi::run(&command),
        Command::Migrate(command) => database::migrate(&command),
        Command::Admin(command) => admin::run(command),
        Command::Completions(command) => completions::run(&command),
    };
    ExitCode::from(code)
}

/// Reads and checks a manifest with this process's environment.
fn read(config: &Path, strict: bool) -> Outcome {
    checks::check(manifest::load(config, &|name| std::env::var(name).ok()), strict)
}

/// Reads a manifest that must be sound; says on stderr why it is not.
fn sound(config: &Path) -> Result<checks::Checked, u8> {
    let outcome = read(config, false);
    if let Some(checked) = outcome.checked {
        return Ok(checked);
    }
    let report = crate::diag::render(
        &outcome.diagnostics,
        &outcome.sources,
        crate::diag::Format::Human,
        palette(&std::io::stderr()),
    );
    say(&format!("{report}\n{} is not sound", config.display()));
    Err(FINDINGS)
}

fn palette(stream: &impl IsTerminal) -> Palette {
    let wanted = std::env::var_os("NO_COLOR").is_none();
    if wanted && stream.is_terminal() { Palette::Colour } else { Palette::Plain }
}

/// Data, to stdout. A reader that stopped reading is no fault.
fn print(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// Talk, to stderr.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
