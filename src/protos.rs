//! Descriptors of gRPC services, from `.proto` files (compiled here, without `protoc`) or from a descriptor set.
//!
//! Includes are looked up where people keep protos: `openapi/protos` beside the manifest, the folders of the files that
//! are named, and the manifest's own folder. The well-known types and `google/api/{http,annotations}.proto` need no file:
//! the former come with the compiler, the latter are built in where no folder has them. Every place that was looked at
//! is told, found or not, so that a reload notices what changes or turns up there.

use prost_reflect::DescriptorPool;
use protox::file::{File, FileResolver, GoogleFileResolver};
use protox::{Compiler, Error};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Largest `.proto` file and descriptor set that is read.
const MAX_BYTES: u64 = 16 << 20;
/// Files that one upstream's descriptors may consist of.
const MAX_FILES: usize = 1000;

/// Where people keep protos, beside the manifest.
pub const FOLDER: &str = "openapi/protos";

/// Definitions that annotated protos import, where no folder has them.
const BUILT_IN: [(&str, &str); 2] = [
    ("google/api/http.proto", include_str!("../openapi/protos/google/api/http.proto")),
    ("google/api/annotations.proto", include_str!("../openapi/protos/google/api/annotations.proto")),
];

/// What reading brought.
#[derive(Debug)]
pub struct Read {
    /// The descriptors, or why there are none.
    pub descriptors: Result<DescriptorPool, Trouble>,
    /// Every file that was looked for.
    pub looked_for: BTreeSet<PathBuf>,
}

/// Why there are no descriptors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// With file, line and column where the fault is in a proto.
    pub message: String,
    /// Whether a file is not where it was looked for.
    pub missing: bool,
}

impl Trouble {
    /// About a file that could not be read.
    fn unread(path: &Path, why: &dyn Display) -> Self {
        Trouble { message: format!("cannot read {}: {why}", shown(path)), missing: true }
    }
}

/// A path as people name it: without a leading `./`.
fn shown(path: &Path) -> String {
    path.strip_prefix(".").unwrap_or(path).display().to_string()
}

/// Compiles files; paths are relative to `folder`, the manifest's.
pub fn compile(files: &[String], folder: &Path) -> Read {
    let mut roots = vec![folder.join(FOLDER)];
    for file in files {
        let root = folder.join(file).parent().unwrap_or(folder).to_owned();
        if !roots.contains(&root) && !root.starts_with(&roots[0]) {
            roots.push(root);
        }
    }
    if !roots.contains(&folder.to_owned()) {
        roots.push(folder.to_owned());
    }
    let looked_for: Rc<RefCell<BTreeSet<PathBuf>>> = Rc::default();
    let found: Rc<RefCell<BTreeSet<PathBuf>>> = Rc::default();
    let search = roots.clone();
    let resolver = Folders { roots, looked_for: looked_for.clone(), found: found.clone() };
    let mut compiler = Compiler::with_file_resolver(resolver);
    compiler.include_imports(true).include_source_info(true);
    let mut compile = || {
        for file in files {
            let path = folder.join(file);
            looked_for.borrow_mut().insert(path.clone());
            let real = path.canonicalize().map_err(|error| Trouble::unread(&path, &error))?;
            // What another file imports was compiled already, by the name that it goes by there.
            if !found.borrow().contains(&real) {
                compiler.open_file(&path).map_err(|error| told(&error, &search))?;
            }
        }
        Ok(())
    };
    let descriptors = compile().map(|()| compiler.descriptor_pool());
    drop(compiler);
    let looked_for = looked_for.take();
    Read { descriptors, looked_for }
}

/// Reads a `google.protobuf.FileDescriptorSet`, as `protoc --include_imports --descriptor_set_out` writes it.
pub fn read_set(path: &Path) -> Read {
    let read = || {
        let meta = std::fs::metadata(path).map_err(|error| Trouble::unread(path, &error))?;
        if !meta.is_file() || meta.len() > MAX_BYTES {
            let limit = format!("it is not a file of at most {} MiB", MAX_BYTES >> 20);
            return Err(Trouble::unread(path, &limit));
        }
        let bytes = std::fs::read(path).map_err(|error| Trouble::unread(path, &error))?;
        DescriptorPool::decode(bytes.as_slice()).map_err(|error| Trouble {
            message: format!("{} is not a whole descriptor set: {error}", shown(path)),
            missing: false,
        })
    };
    Read { descriptors: read(), looked_for: BTreeSet::from([path.to_owned()]) }
}

/// With line and column, which only the debug form has, and the file where it was found.
fn told(error: &Error, search: &[PathBuf]) -> Trouble {
    let text = format!("{error:?}");
    let place = error.file().and_then(|name| {
        let path = search.iter().map(|root| root.join(name)).find(|path| path.is_file())?;
        Some(format!("{}{}", shown(&path), text.strip_prefix(name)?))
    });
    Trouble { message: place.unwrap_or(text), missing: error.is_file_not_found() || error.is_io() }
}

struct Folders {
    roots: Vec<PathBuf>,
    looked_for: Rc<RefCell<BTreeSet<PathBuf>>>,
    found: Rc<RefCell<BTreeSet<PathBuf>>>,
}

impl FileResolver for Folders {
    /// Name that a file would be imported by.
    fn resolve_path(&self, path: &Path) -> Option<String> {
        let inside = self.roots.iter().find_map(|root| path.strip_prefix(root).ok())?;
        Some(inside.to_str()?.replace(std::path::MAIN_SEPARATOR, "/"))
    }

    fn open_file(&self, name: &str) -> Result<File, Error> {
        let plain = Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if !plain {
            return Err(Error::file_not_found(name));
        }
        for root in &self.roots {
            let path = root.join(name);
            self.looked_for.borrow_mut().insert(path.clone());
            let Ok(meta) = std::fs::metadata(&path) else { continue };
            if self.found.borrow().len() >= MAX_FILES || meta.len() > MAX_BYTES {
                let limits = format!("{name}: at most {MAX_FILES} files of {} MiB are read", MAX_BYTES >> 20);
                return Err(Error::new(limits));
            }
            self.found.borrow_mut().extend(path.canonicalize());
            return File::open(name, &path);
        }
        if let Some((_, source)) = BUILT_IN.iter().find(|(known, _)| *known == name) {
            return File::from_source(name, source);
        }
        GoogleFileResolver::new().open_file(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    fn names(files: &[&str]) -> Vec<String> {
        files.iter().map(|&file| file.to_owned()).collect()
    }

    #[test]
    fn imports_are_found_beside_the_file_and_below_the_manifest() {
        let folder = folder(&[
            ("p/a.proto", "syntax = 'proto3'; import 'b.proto'; import 'shared/c.proto'; import 'google/api/annotations.proto';
                import 'google/protobuf/timestamp.proto'; message A { B b = 1; C c = 2; google.protobuf.Timestamp at = 3; }"),
            ("p/b.proto", "syntax = 'proto3'; message B {}"),
            ("openapi/protos/shared/c.proto", "syntax = 'proto3'; message C {}"),
        ]);
        let read = compile(&names(&["p/a.proto", "p/b.proto"]), folder.path());
        let pool = read.descriptors.unwrap();
        assert!(["A", "B", "C"].iter().all(|name| pool.get_message_by_name(name).is_some()));
        assert!(read.looked_for.contains(&folder.path().join("p/b.proto")));
        assert!(
            read.looked_for.contains(&folder.path().join("openapi/protos/b.proto")),
            "it may turn up there"
        );
    }

    #[test]
    fn faults_say_where() {
        let folder = folder(&[
            ("a.proto", "syntax = 'proto3';\nmessage A { B b = 1; }\n"),
            ("b.proto", "syntax = 'proto3';\nmessage {}\n"),
            ("c.proto", "syntax = 'proto3';\nimport 'nowhere.proto';\n"),
            ("d/e.proto", "nothing"),
            ("up.proto", "syntax = 'proto3';\nimport '../a.proto';\n"),
        ]);
        let why = |file: &str| {
            let trouble = compile(&names(&[file]), folder.path()).descriptors.unwrap_err();
            let begin = format!("{}/", folder.path().display());
            (trouble.message.replace(&begin, ""), trouble.missing)
        };
        let said = |file: &str, wanted: &str, missing: bool| {
            let (message, is_missing) = why(file);
            assert!(message.starts_with(wanted) && is_missing == missing, "{message}");
        };
        said("a.proto", "a.proto:2:13: name 'B' is not defined", false);
        said("b.proto", "b.proto:2:9: expected an identifier", false);
        said("c.proto", "c.proto:2:1: import 'nowhere.proto' not found", true);
        said("d/e.proto", "d/e.proto:1:1: expected", false);
        said("up.proto", "up.proto:2:8: ", false);
        said("none.proto", "cannot read none.proto: No such file", true);
    }

    #[test]
    fn sets_are_read_whole_or_not_at_all() {
        let set = include_bytes!(concat!(env!("OUT_DIR"), "/services.binpb"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("all.binpb");
        std::fs::write(&path, set).unwrap();
        let pool = read_set(&path).descriptors.unwrap();
        assert!(pool.get_service_by_name("voicehelper.documents.v1.Documents").is_some());
        std::fs::write(&path, &set[..set.len() / 2]).unwrap();
        assert!(read_set(&path).descriptors.unwrap_err().message.contains("not a whole descriptor set"));
    }
}
