//! Compiles `openapi/protos/` into Rust (no `protoc` needed): the services that the demo plays, and the public
//! definitions that the gateway itself reads (`google.api.http`, `google.rpc.Status`).

use std::path::{Path, PathBuf};
use std::{env, error::Error, fs};

const PROTOS: &str = "openapi/protos";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTOS}");
    let files = [
        "documents.proto",
        "sessions.proto",
        "auth.proto",
        "google/rpc/code.proto",
        "google/rpc/status.proto",
        "google/rpc/error_details.proto",
    ];
    let mut compiler = protox::Compiler::new([Path::new(PROTOS)])?;
    compiler.include_imports(true).include_source_info(true).open_files(files)?;
    // With its annotations, which the typed form loses: for server reflection.
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    fs::write(out.join("services.binpb"), compiler.encode_file_descriptor_set())?;
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    // Doc comments of protos are not Rust's: indented lines would be run as tests.
    tonic_prost_build::configure()
        .build_transport(false)
        .disable_comments(["."])
        .emit_rerun_if_changed(false)
        .compile_fds_with_config(compiler.file_descriptor_set(), config)?;
    Ok(())
}
