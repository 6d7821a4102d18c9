//! Golden manifests: each bad one with the message it shows, each good one with its table.
//!
//! `tests/manifests/bad/NAME.yaml` has `NAME.out` beside it, the human form of its faults;
//! `tests/manifests/ok/NAME.yaml` has the output of `routes`; `tests/manifests/described/everything.yaml` has its documents.
//! `UPDATE_GOLDENS=1` writes them; a file without its partner fails.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests").join(name)
}

/// Runs the command in a folder and returns its exit code and stdout.
fn voicegate(folder: &Path, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_voicegate"))
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .env("GOLDEN_SECRET", "hunter2")
        .output()
        .unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

fn names(folder: &Path, extension: &str) -> BTreeSet<String> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect()
}

fn compare(folder: &Path, run: impl Fn(&str) -> (i32, String), wanted_code: i32) -> usize {
    let update = std::env::var_os("UPDATE_GOLDENS").is_some();
    let manifests = names(folder, "yaml");
    let mut faults = Vec::new();
    for name in &manifests {
        let (code, got) = run(&format!("{name}.yaml"));
        let path = folder.join(format!("{name}.out"));
        if update {
            std::fs::write(&path, &got).unwrap();
        }
        let wanted = std::fs::read_to_string(&path).unwrap_or_default();
        if code != wanted_code {
            faults.push(format!("{name}: exit code {code}, wanted {wanted_code}\n{got}"));
        } else if got != wanted {
            faults.push(format!("{name}:\n--- wanted\n{wanted}--- got\n{got}"));
        }
    }
    let orphans: Vec<_> = names(folder, "out").difference(&manifests).cloned().collect();
    assert!(orphans.is_empty(), "outputs without a manifest: {orphans:?}");
    assert!(faults.is_empty(), "{} of {} differ:\n{}", faults.len(), manifests.len(), faults.join("\n"));
    manifests.len()
}

#[test]
fn bad_manifests_show_their_faults() {
    let folder = folder("bad");
    let count = compare(&folder, |name| voicegate(&folder, &["check", "--config", name]), 1);
    assert!(count >= 40, "{count} bad manifests");
    for name in names(&folder, "out") {
        let shown = std::fs::read_to_string(folder.join(format!("{name}.out"))).unwrap();
        assert!(!shown.contains("hunter2"), "{name} shows an expanded value");
    }
}

#[test]
fn good_manifests_compile_to_their_tables() {
    let folder = folder("ok");
    let count = compare(&folder, |name| voicegate(&folder, &["routes", "--config", name]), 0);
    assert!(count >= 8, "{count} good manifests");
    for name in names(&folder, "yaml") {
        let (code, shown) = voicegate(&folder, &["check", "--strict", "--config", &format!("{name}.yaml")]);
        assert_eq!(code, 0, "{name} has warnings:\n{shown}");
    }
}

/// What one manifest is described as: `everything.yaml` has a route for each stage and target that has a say.
#[test]
fn whatever_has_a_say_is_heard_in_the_documents() {
    let folder = folder("described");
    let forms: [(&str, &[&str]); 3] = [
        ("3.1", &["--document", "all"]),
        ("3.2", &["--document", "all", "--version", "3.2"]),
        ("asyncapi", &["--document", "asyncapi"]),
    ];
    let update = std::env::var_os("UPDATE_GOLDENS").is_some();
    for (form, more) in forms {
        let arguments = [&["openapi", "--config", "everything.yaml", "--format", "yaml"], more].concat();
        let (code, got) = voicegate(&folder, &arguments);
        assert_eq!(code, 0, "{form}: {got}");
        let path = folder.join(format!("everything.{form}.out"));
        if update {
            std::fs::write(&path, &got).unwrap();
        }
        let wanted = std::fs::read_to_string(&path).unwrap_or_default();
        let differs = wanted.lines().zip(got.lines()).position(|(wanted, got)| wanted != got);
        let at = differs.unwrap_or_else(|| wanted.lines().count().min(got.lines().count()));
        let line = |text: &str| text.lines().nth(at).unwrap_or("(its end)").to_owned();
        let name = path.display();
        assert!(got == wanted, "{name}:{}: wanted {:?}, got {:?}", at + 1, line(&wanted), line(&got));
        for hidden in [".internal", "internal: [", "secret", "thing_id"] {
            assert!(!got.contains(hidden), "{form} says {hidden}");
        }
    }
    let (code, shown) = voicegate(&folder, &["check", "--strict", "--config", "everything.yaml"]);
    assert_eq!(code, 0, "it has warnings:\n{shown}");
}
