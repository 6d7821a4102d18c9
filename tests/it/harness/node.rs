//! Node, with what the tests of the TypeScript client compile with: pinned packages, installed once into `target/node`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The pinned packages, as npm left them.
fn packages() -> &'static Path {
    static PACKAGES: OnceLock<PathBuf> = OnceLock::new();
    PACKAGES.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (from, to) = (root.join("tests/it/typescript"), root.join("target/node"));
        std::fs::create_dir_all(&to).unwrap();
        // Test processes may run at once; one of them installs.
        let lock = std::fs::File::create(to.join("lock")).unwrap();
        lock.lock().unwrap();
        let pinned = std::fs::read(from.join("package-lock.json")).unwrap();
        if std::fs::read(to.join("installed")).is_ok_and(|known| known == pinned) {
            return to;
        }
        for file in ["package.json", "package-lock.json"] {
            std::fs::copy(from.join(file), to.join(file)).unwrap();
        }
        let mut npm = Command::new("npm");
        let npm = npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]).current_dir(&to).output();
        let npm = npm.unwrap_or_else(|error| {
            panic!("`npm` does not start ({error}): install Debian's packages nodejs and npm")
        });
        assert!(npm.status.success(), "npm ci: {}", said(&npm));
        std::fs::write(to.join("installed"), pinned).unwrap();
        to
    })
}

/// The folder of the packages, as `node_modules`.
pub fn modules() -> PathBuf {
    packages().join("node_modules")
}

/// What a program wrote to both of its streams.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a program of the packages, such as `tsc`, in a folder.
pub fn tool(name: &str, folder: &Path, arguments: &[&str]) -> Output {
    let program = packages().join("node_modules/.bin").join(name);
    Command::new(program).args(arguments).current_dir(folder).output().unwrap()
}

/// As strict as `tsc` can be.
const STRICT: &[&str] = &[
    "--strict",
    "--noUncheckedIndexedAccess",
    "--exactOptionalPropertyTypes",
    "--noImplicitOverride",
    "--noImplicitReturns",
    "--noPropertyAccessFromIndexSignature",
    "--noFallthroughCasesInSwitch",
    "--noUnusedLocals",
    "--isolatedModules",
    "--verbatimModuleSyntax",
    "--target",
    "es2020",
    "--lib",
    "es2020,dom",
    "--module",
    "esnext",
    "--moduleResolution",
    "bundler",
    "--typeRoots",
    "none",
];

/// Compiles files of a folder into JavaScript modules beside them; fails with what `tsc` says.
pub fn compile(folder: &Path, files: &[&str]) {
    std::fs::write(folder.join("package.json"), r#"{"type": "module"}"#).unwrap();
    let output = tool("tsc", folder, &[STRICT, &["--removeComments"], files].concat());
    assert!(output.status.success(), "tsc {files:?}: {}", said(&output));
}

/// Runs a script with Node, which may take as long as a test; fails with what it says.
pub async fn run(folder: &Path, script: &str, environment: &[(&str, &str)]) -> String {
    let mut command = Command::new("node");
    command.args(["--experimental-websocket", "--no-warnings", script]).current_dir(folder);
    command.envs(environment.iter().copied());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
    let output = output
        .unwrap_or_else(|error| panic!("`node` does not start ({error}): install Debian's package nodejs"));
    assert!(output.status.success(), "node {script}: {}", said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
