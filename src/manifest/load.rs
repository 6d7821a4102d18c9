//! Reads `routes.yaml`, what it includes and the documents that it refers to, and merges their sections. Longer than
//! most: every file that counts for the manifest's hash is read here.

use super::decode;
use super::documents::{self, Document as Described, Documents, Found};
use super::env::{self, Lookup, Secrets};
use super::model::{
    Auth, Cors, Document, Info, RateLimit, Role, Route, RouteTest, StageUse, Upstream, Version,
};
use super::node::{self, MAX_FILE_BYTES, Node};
use super::{List, Spanned, Table};
use crate::diag::{Code, Diagnostic, Diagnostics, FileId, SourceFile, Sources, Span};
use crate::protos;
use prost_reflect::DescriptorPool;
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Files a manifest may consist of.
const MAX_FILES: usize = 1000;

/// All sections of all files, as typed: nothing is resolved yet.
#[derive(Debug, Clone, Default)]
pub struct Manifest {
    /// Title and version of the API.
    pub info: Option<Info>,
    /// Upstreams by name.
    pub upstreams: Table<Upstream>,
    /// Tokens and passwords.
    pub auth: Option<Spanned<Auth>>,
    /// Rate-limit policies by name.
    pub rate_limits: Table<RateLimit>,
    /// Roles by name.
    pub roles: Table<Role>,
    /// CORS policies by name.
    pub cors: Table<Cors>,
    /// Chains by name.
    pub chains: Table<List<StageUse>>,
    /// Versions, in order.
    pub versions: Vec<Spanned<Version>>,
    /// Routes outside any version.
    pub routes: Vec<Spanned<Route>>,
    /// Tests outside any version or route.
    pub tests: Vec<Spanned<RouteTest>>,
    /// Folder of each file, by [`FileId`]: what paths inside it are relative to.
    pub folders: Vec<PathBuf>,
    /// Documents that it refers to.
    pub documents: Documents,
    /// Descriptors of each upstream that names protos or a descriptor set which could be read.
    pub descriptors: HashMap<String, DescriptorPool>,
    /// What each route says, without where it says it, by its place: see [`Manifest::digest`].
    digests: HashMap<Span, u64>,
    /// Texts that variables were replaced in: faults must not show them.
    pub secrets: Secrets,
}

/// What reading brought.
#[derive(Debug)]
pub struct Loaded {
    /// The manifest, as far as it could be read; usable only if `diagnostics` has no error.
    pub manifest: Manifest,
    /// The files, for excerpts.
    pub sources: Sources,
    /// Every fault found.
    pub diagnostics: Diagnostics,
    /// Hash over the names and contents of all files, in hex.
    pub content_hash: String,
    /// Every file that was read or looked for.
    pub files: Vec<PathBuf>,
    /// Folders in which a change may matter, those of include patterns too.
    pub folders: BTreeSet<PathBuf>,
}

/// Reads a manifest from disk; `lookup` gives the variables of `${…}`.
///
/// Never fails: what is wrong is in [`Loaded::diagnostics`].
pub fn load(root: &Path, lookup: &Lookup<'_>) -> Loaded {
    let mut loader = Loader {
        lookup,
        sources: Sources::default(),
        out: Diagnostics::new(),
        manifest: Manifest::default(),
        seen: HashMap::new(),
        first: HashMap::new(),
        hash: Sha256::new(),
        files: Vec::new(),
        folders: BTreeSet::new(),
    };
    loader.folders.insert(folder_of(root));
    loader.file(root, None);
    loader.documents();
    loader.descriptors();
    loader.out.redact(&loader.manifest.secrets);
    loader.out.sort();
    Loaded {
        manifest: loader.manifest,
        sources: loader.sources,
        diagnostics: loader.out,
        content_hash: loader.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
        files: loader.files,
        folders: loader.folders,
    }
}

struct Loader<'a> {
    lookup: &'a Lookup<'a>,
    sources: Sources,
    out: Diagnostics,
    manifest: Manifest,
    /// Files by their real path: each is read once.
    seen: HashMap<PathBuf, ()>,
    /// Where each section's name was first defined.
    first: HashMap<(&'static str, String), Span>,
    hash: Sha256,
    files: Vec<PathBuf>,
    folders: BTreeSet<PathBuf>,
}

impl Loader<'_> {
    /// Reads one file and what it includes. `from` is the include that names it; the root has none.
    fn file(&mut self, path: &Path, from: Option<Span>) {
        if self.files.len() >= MAX_FILES {
            if let Some(span) = from {
                self.out.push(Diagnostic::error(
                    Code::BOUNDS,
                    span,
                    format!("a manifest consists of at most {MAX_FILES} files"),
                ));
            }
            return;
        }
        self.files.push(path.to_owned());
        let text = match read(path) {
            Ok(text) => text,
            Err(why) => {
                // Without this, the files that could be read would count as all of them.
                self.hash.update(path.as_os_str().as_encoded_bytes());
                self.hash.update(&why);
                let message = format!("cannot read {}: {why}", path.display());
                let fault = match from {
                    Some(span) => Diagnostic::error(Code::UNREADABLE, span, message),
                    None => Diagnostic::global(Code::UNREADABLE, message)
                        .help("name the manifest with --config FILE or VOICEGATE_CONFIG"),
                };
                self.out.push(fault);
                return;
            }
        };
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if self.seen.insert(real, ()).is_some() {
            return;
        }
        let name = shown(path);
        self.hash.update((name.len() as u64).to_le_bytes());
        self.hash.update(&name);
        self.hash.update((text.len() as u64).to_le_bytes());
        self.hash.update(&text);
        let source = SourceFile::new(name, text);
        let id = self.sources.add(source.clone());
        self.manifest.folders.push(folder_of(path));
        let Some(mut tree) = node::parse(id, &source, &mut self.out) else { return };
        env::expand(&mut tree, self.lookup, &mut self.manifest.secrets, &mut self.out);
        if tree.value == node::Value::Null {
            tree.value = node::Value::Map(Vec::new());
        }
        self.digest_routes(&tree);
        let Some(document) = decode::decode::<Document>(&tree, &mut self.out) else { return };
        self.format_version(&document, id, from.is_none() && tree.get("version").is_none());
        let includes = self.merge(document);
        for include in includes.0 {
            self.include(path, &include);
        }
    }

    /// Reads the documents that the manifest refers to, and those that they refer to.
    fn documents(&mut self) {
        let mut wanted = documents::named(&self.manifest);
        while let Some(path) = wanted.pop() {
            if self.manifest.documents.has(&path) {
                continue;
            }
            let found = self.document(&path);
            if let Found::Document(document) = &found {
                wanted.extend(documents::referred(document));
            }
            self.manifest.documents.add(path, found);
        }
    }

    fn document(&mut self, path: &Path) -> Found {
        if self.files.len() >= MAX_FILES {
            return Found::Unreadable(format!("a manifest consists of at most {MAX_FILES} files"));
        }
        self.files.push(path.to_owned());
        let folder = folder_of(path);
        if folder.is_dir() {
            self.folders.insert(folder);
        }
        let name = shown(path);
        self.hash.update(&name);
        let text = match read(path) {
            Ok(text) => text,
            Err(why) => {
                self.hash.update(&why);
                return Found::Unreadable(why);
            }
        };
        self.hash.update((text.len() as u64).to_le_bytes());
        self.hash.update(&text);
        let source = SourceFile::new(name.clone(), text);
        let id = self.sources.add(source.clone());
        self.manifest.folders.push(folder_of(path));
        match node::parse(id, &source, &mut self.out) {
            Some(root) => Found::Document(Arc::new(Described { path: path.to_owned(), name, root })),
            None => Found::Malformed,
        }
    }

    /// Reads the protos and descriptor sets that upstreams name: they are part of the manifest as includes are.
    fn descriptors(&mut self) {
        let mut read = Vec::new();
        for (key, upstream) in &self.manifest.upstreams.0 {
            if let Some(files) = &upstream.protos {
                let names: Vec<String> = files.0.iter().map(|file| file.value.clone()).collect();
                let span = files.0.first().map_or(key.span, |file| file.span);
                read.push((key.text.clone(), span, protos::compile(&names, self.manifest.folder(span))));
            } else if let Some(set) = &upstream.descriptors {
                let path = self.manifest.folder(set.span).join(&set.value);
                read.push((key.text.clone(), set.span, protos::read_set(&path)));
            }
        }
        for (name, span, protos::Read { descriptors, looked_for }) in read {
            for file in looked_for {
                let content = std::fs::read(&file).unwrap_or_default();
                self.hash.update(file.as_os_str().as_encoded_bytes());
                self.hash.update((content.len() as u64).to_le_bytes());
                self.hash.update(&content);
                let folder = folder_of(&file);
                if folder.is_dir() {
                    self.folders.insert(folder);
                }
                self.files.push(file);
            }
            match descriptors {
                Ok(pool) => drop(self.manifest.descriptors.insert(name, pool)),
                Err(trouble) => {
                    let help = trouble.missing.then(|| {
                        let folder = protos::FOLDER;
                        format!(
                            "paths are relative to the file they stand in; imports are looked up in {folder}, beside the files that are named, and beside the manifest"
                        )
                    });
                    self.out
                        .push(Diagnostic::error(Code::DESCRIPTORS, span, trouble.message).maybe_help(help));
                }
            }
        }
    }

    /// Notes what routes say, so that a reload can tell which of them changed.
    fn digest_routes(&mut self, tree: &Node) {
        let items = |node: Option<&Node>| match node.map(|n| &n.value) {
            Some(node::Value::Seq(items)) => items.clone(),
            _ => Vec::new(),
        };
        let mut note = |node: &Node| {
            let mut state = DefaultHasher::new();
            node.digest(&mut state);
            self.manifest.digests.insert(node.span, state.finish());
        };
        items(tree.get("routes")).iter().for_each(&mut note);
        for version in items(tree.get("versions")) {
            items(version.get("routes")).iter().for_each(&mut note);
        }
    }

    fn format_version(&mut self, document: &Document, file: FileId, missing: bool) {
        match &document.version {
            Some(version) if version.value == 1 => {}
            Some(version) => self.out.push(
                Diagnostic::error(
                    Code::FORMAT_VERSION,
                    version.span,
                    format!("format version {} is not known", version.value),
                )
                .help("this gateway reads `version: 1`"),
            ),
            None if missing => self.out.push(
                Diagnostic::error(Code::MISSING_KEY, Span::new(file, 0, 0), "key `version` is missing")
                    .help("begin the manifest with `version: 1`"),
            ),
            None => {}
        }
    }

    /// Adds a file's sections and returns what it includes.
    fn merge(&mut self, document: Document) -> List<String> {
        let Document {
            info,
            include,
            upstreams,
            auth,
            rate_limits,
            roles,
            cors,
            chains,
            versions,
            routes,
            tests,
            ..
        } = document;
        if let Some(info) = info
            && self.claim("section", "info", info.span)
        {
            self.manifest.info = Some(info.value);
        }
        if let Some(auth) = auth
            && self.claim("section", "auth", auth.span)
        {
            self.manifest.auth = Some(auth);
        }
        for version in versions.0 {
            if self.claim("version", &version.name.value.clone(), version.name.span) {
                self.manifest.versions.push(version);
            }
        }
        self.manifest.routes.extend(routes.0);
        self.manifest.tests.extend(tests.0);
        macro_rules! tables {
            ($($field:ident: $what:literal),*) => {
                $(for (key, value) in $field.0 {
                    if self.claim($what, &key.text, key.span) {
                        self.manifest.$field.0.push((key, value));
                    }
                })*
            };
        }
        tables!(upstreams: "upstream", rate_limits: "rate limit", roles: "role", cors: "CORS policy", chains: "chain");
        include
    }

    /// Whether this is the first definition of a name; a second is a fault.
    fn claim(&mut self, what: &'static str, name: &str, span: Span) -> bool {
        if let Some(first) = self.first.get(&(what, name.to_owned())) {
            self.out.push(
                Diagnostic::error(Code::DEFINED_TWICE, span, format!("{what} `{name}` is defined twice"))
                    .help("keep one of the two, or give it another name")
                    .note(*first, "first defined here"),
            );
            return false;
        }
        self.first.insert((what, name.to_owned()), span);
        true
    }

    fn include(&mut self, from: &Path, pattern: &Spanned<String>) {
        let full = folder_of(from).join(&pattern.value);
        if let Some(fixed) = fixed_folder(&full) {
            self.folders.insert(fixed);
        }
        // A file that the pattern matches may turn up in any of these.
        let folders = glob::glob(&folder_of(&full).to_string_lossy()).into_iter().flatten();
        self.folders.extend(folders.filter_map(Result::ok).filter(|path| path.is_dir()).take(MAX_FILES));
        let matches: Vec<PathBuf> = match glob::glob(&full.to_string_lossy()) {
            Ok(paths) => paths.filter_map(Result::ok).filter(|p| p.is_file()).collect(),
            Err(error) => {
                let message = format!("the include pattern is malformed: {}", error.msg);
                self.out.push(Diagnostic::error(Code::INCLUDE, pattern.span, message));
                return;
            }
        };
        if matches.is_empty() {
            self.out.push(
                Diagnostic::error(Code::INCLUDE, pattern.span, "the include matches no file")
                    .help(format!("patterns are relative to {}", shown(&folder_of(from)))),
            );
        }
        for path in matches {
            self.folders.insert(folder_of(&path));
            self.file(&path, Some(pattern.span));
        }
    }
}

/// A regular file's text without its byte-order mark; the error says why not.
fn read(path: &Path) -> Result<String, String> {
    let meta = std::fs::metadata(path).map_err(|e| e.to_string())?;
    if !meta.is_file() {
        return Err("it is not a file".to_owned());
    }
    if meta.len() > MAX_FILE_BYTES as u64 {
        return Err(format!("it is larger than {} MiB", MAX_FILE_BYTES >> 20));
    }
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    let text = String::from_utf8(bytes)
        .map_err(|e| format!("byte {} is not UTF-8", e.utf8_error().valid_up_to()))?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// The folder a file is in; `.` for a bare name.
fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The part of a pattern before its first wildcard, which can be watched.
fn fixed_folder(pattern: &Path) -> Option<PathBuf> {
    let mut fixed = PathBuf::new();
    for part in folder_of(pattern).components() {
        if part.as_os_str().to_string_lossy().contains(['*', '?', '[']) {
            break;
        }
        fixed.push(part);
    }
    fixed.is_dir().then_some(fixed)
}

/// A path as people name it: without a leading `./`.
fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    text.strip_prefix("./").map(str::to_owned).unwrap_or(text)
}

impl Manifest {
    /// The folder that paths written at `span` are relative to.
    pub fn folder(&self, span: Span) -> &Path {
        self.folders.get(span.file.0 as usize).map_or(Path::new("."), PathBuf::as_path)
    }

    /// Hash of what the route at a place says; variables replaced.
    pub fn digest(&self, span: Span) -> u64 {
        self.digests.get(&span).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    fn codes(loaded: &Loaded) -> Vec<String> {
        loaded.diagnostics.iter().map(|d| format!("{} {}", d.code, d.message)).collect()
    }

    #[test]
    fn sections_of_included_files_are_merged() {
        let dir = write(&[
            (
                "routes.yaml",
                "version: 1\ninclude: ['policies/*.yaml']\nroutes: [{ route: GET /a, respond: {} }]\n",
            ),
            ("policies/a.yaml", "cors: { default: { origins: [] } }\n"),
            ("policies/b.yaml", "chains: { c: [auth] }\nroutes: [{ route: GET /b, respond: {} }]\n"),
        ]);
        let loaded = load(&dir.path().join("routes.yaml"), &|_| None);
        assert_eq!(codes(&loaded), Vec::<String>::new());
        assert_eq!(loaded.manifest.routes.len(), 2);
        assert!(loaded.manifest.cors.get("default").is_some());
        assert_eq!(loaded.files.len(), 3);
        assert!(loaded.folders.contains(&dir.path().join("policies")));
    }

    #[test]
    fn a_name_defined_twice_is_an_error_across_files() {
        let dir = write(&[
            (
                "routes.yaml",
                "version: 1\ninclude: ['p.yaml']\ncors: { a: {} }\ninfo: { title: t, version: v }\n",
            ),
            ("p.yaml", "cors: { a: {} }\ninfo: { title: t, version: v }\n"),
        ]);
        let loaded = load(&dir.path().join("routes.yaml"), &|_| None);
        assert_eq!(
            codes(&loaded),
            ["VG008 CORS policy `a` is defined twice", "VG008 section `info` is defined twice"]
        );
    }

    #[test]
    fn includes_may_be_circular_but_not_empty() {
        let dir = write(&[("routes.yaml", "version: 1\ninclude: [routes.yaml, nothing/*.yaml]\n")]);
        let loaded = load(&dir.path().join("routes.yaml"), &|_| None);
        assert_eq!(codes(&loaded), ["VG005 the include matches no file"]);
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let dir = write(&[("latin.yaml", ""), ("empty.yaml", "# nothing\n")]);
        std::fs::write(dir.path().join("latin.yaml"), b"a: \xff").unwrap();
        assert!(codes(&load(&dir.path().join("none.yaml"), &|_| None))[0].starts_with("VG004 cannot read"));
        assert!(codes(&load(dir.path(), &|_| None))[0].ends_with("it is not a file"));
        assert!(codes(&load(&dir.path().join("latin.yaml"), &|_| None))[0].ends_with("byte 3 is not UTF-8"));
        assert_eq!(
            codes(&load(&dir.path().join("empty.yaml"), &|_| None)),
            ["VG012 key `version` is missing"]
        );
    }

    #[test]
    fn the_hash_follows_the_content() {
        let dir = write(&[("a.yaml", "version: 1\n")]);
        let path = dir.path().join("a.yaml");
        let before = load(&path, &|_| None).content_hash;
        assert_eq!(before, load(&path, &|_| None).content_hash);
        std::fs::write(&path, "version: 1 \n").unwrap();
        assert_ne!(before, load(&path, &|_| None).content_hash);
    }
}
