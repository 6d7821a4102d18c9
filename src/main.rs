//! The `voicegate` command.
#![forbid(unsafe_code)]

/// The fastest for requests, and not the largest for streams (decision 14).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    voicegate::cli::run()
}
