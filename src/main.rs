//! The `voicegate` command.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    voicegate::cli::run()
}
