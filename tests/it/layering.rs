//! The layering of the house, read from the `use crate::` lines: each row imports only rows above it.

use std::collections::BTreeMap;
use std::path::Path;

/// From the ground up; names in one row never import each other, but for the pairs below.
const ROWS: &[&[&str]] = &[
    &["ids", "diag", "units", "path", "protos", "typescript"],
    &["error", "identity", "contract"],
    &["exchange", "settings"],
    &["telemetry"],
    &["manifest"],
    &["stores", "shared", "shed", "sse", "ws", "multipart", "expr", "openapi", "copies"],
    &["tokens"],
    &["accounts", "conversations"],
    &["state"],
    &["endpoint", "grpc"],
    &["upstream"],
    &["stages", "targets", "handlers"],
    &["check"],
    &["compile"],
    &["serve"],
    &["demo"],
    &["cli"],
];

fn row(module: &str) -> usize {
    ROWS.iter()
        .position(|row| row.contains(&module))
        .unwrap_or_else(|| panic!("module `{module}` is in no row: add it to ROWS and to ARCHITECTURE.md"))
}

fn walk(folder: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, visit);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            visit(&path);
        }
    }
}

#[test]
fn each_row_imports_only_rows_above() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut faults = Vec::new();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    walk(&source, &mut |path| {
        let inside = path.strip_prefix(&source).unwrap();
        let module = inside.components().next().unwrap().as_os_str().to_string_lossy();
        let module = module.trim_end_matches(".rs");
        if module == "lib" || module == "main" {
            return;
        }
        let own = row(module);
        *seen.entry(module.to_owned()).or_default() += 1;
        let text = std::fs::read_to_string(path).unwrap();
        // Tests at a file's end may use what they like.
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        if inside.to_string_lossy().contains("test") {
            return;
        }
        for (number, line) in code.lines().enumerate() {
            for (at, _) in line.match_indices("crate::") {
                if line.trim_start().starts_with("//") {
                    continue;
                }
                let name: String =
                    line[at + 7..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                if name == module || name.is_empty() || name == "cli" && module == "main" {
                    continue;
                }
                if row(&name) >= own {
                    faults.push(format!("{}:{}: {module} imports {name}", inside.display(), number + 1));
                }
            }
        }
    });
    assert!(faults.is_empty(), "imports against the layering:\n{}", faults.join("\n"));
    assert!(seen.len() > 10, "the walk found the house: {seen:?}");
}
