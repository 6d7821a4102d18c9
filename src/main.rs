//! The `voicegate` command.
fn main() {}
