//! `voicegate completions`: completions for a shell.

use super::{Cli, OK, print};
use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

pub(super) fn run(command: &Completions) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(command.shell, &mut Cli::command(), "voicegate", &mut script);
    print(&String::from_utf8_lossy(&script));
    OK
}
