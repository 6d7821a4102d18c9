//! The `voicegate` command.
#![forbid(unsafe_code)]

/// The smallest for streams, and among the fastest for requests (decision 14).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    voicegate::cli::run()
}
