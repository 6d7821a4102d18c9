//! The table that is live, and how another takes its place: load, check, compile everything, then swap one pointer.
//!
//! Requests in flight finish on the table they began with. Whatever fails keeps the running table, says why with the
//! same diagnostics as `voicegate check`, and shows in readiness, the admin API and a metric.

use crate::check::{self, Checked, Outcome};
use crate::compile::diff::Diff;
use crate::compile::{Parts, RoutingTable, compile, document};
use crate::contract::report;
use crate::diag::{Format, Palette, render};
use crate::handlers::Handlers;
use crate::manifest::{self, Loaded};
use crate::state::{ReloadFailure, Revision, Shared};
use crate::upstream::Registry;
use arc_swap::{ArcSwap, Guard};
use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

/// The live table with all it takes to replace it.
pub struct Live {
    table: ArcSwap<RoutingTable>,
    parts: Parts,
    config: PathBuf,
    /// Variables that go before the environment's.
    variables: BTreeMap<String, String>,
    /// What the watcher looks at. Not behind the lock of `newest`, which is held for a whole reload.
    watched: ArcSwap<Watched>,
    /// Held by whoever reloads: one at a time.
    newest: Mutex<Newest>,
    /// What served before, newest last, for rollback. Not the tables: they would keep their upstreams running.
    history: Mutex<Vec<(Revision, Arc<Checked>)>>,
}

/// What the newest reading of the manifest touched.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    /// Files of the manifest, found or not.
    pub files: Vec<PathBuf>,
    /// Folders in which a change may matter.
    pub folders: BTreeSet<PathBuf>,
}

/// What was read last.
#[derive(Debug)]
struct Newest {
    /// Hash over the files, served or refused.
    hash: String,
    /// Number of the newest revision.
    number: u64,
}

/// What came of a reload.
#[derive(Debug, Clone)]
pub enum Reloaded {
    /// The files say what is served already.
    Unchanged,
    /// A new revision serves.
    Serves {
        /// It.
        revision: Revision,
        /// What it differs in.
        diff: Diff,
        /// How long loading, checking and compiling took.
        took: Duration,
    },
    /// The manifest was refused; the old one serves on.
    Refused {
        /// The rendered diagnostics.
        report: String,
        /// Number of errors.
        errors: usize,
    },
}

/// Why the process cannot start.
#[derive(Debug)]
pub struct Unsound {
    /// The rendered diagnostics.
    pub report: String,
    /// Number of errors and of warnings.
    pub counts: (usize, usize),
}

/// How many earlier revisions can be gone back to.
const HISTORY: usize = 10;

/// Reads the manifest with the given variables, then the environment's.
fn read(config: &Path, variables: &BTreeMap<String, String>) -> Loaded {
    manifest::load(config, &|name| variables.get(name).cloned().or_else(|| std::env::var(name).ok()))
}

impl Live {
    /// Loads the first revision. `variables` go before the environment's in `${…}`.
    ///
    /// # Errors
    /// The diagnostics, if the manifest is not sound.
    pub fn start(
        config: &Path,
        variables: BTreeMap<String, String>,
        shared: &Arc<Shared>,
    ) -> Result<Arc<Self>, Unsound> {
        let begun = Instant::now();
        let loaded = read(config, &variables);
        let watched = Watched { files: loaded.files.clone(), folders: loaded.folders.clone() };
        let newest = Newest { hash: loaded.content_hash.clone(), number: 1 };
        let outcome = check::check(loaded, false);
        let report = report_of(&outcome);
        let Some(checked) = outcome.checked else {
            return Err(Unsound { report, counts: outcome.diagnostics.counts() });
        };
        if !outcome.diagnostics.is_empty() {
            tracing::warn!("the manifest has warnings:\n{report}");
        }
        let upstreams = Registry::new();
        shared.health.add(upstreams.clone());
        let parts = Parts { shared: shared.clone(), handlers: Handlers::new(shared), upstreams };
        let table = compile(Arc::new(checked), &parts, None);
        shared.documents.store(table.documents().cloned());
        let live = Live {
            table: ArcSwap::from_pointee(table),
            parts,
            config: config.to_owned(),
            variables,
            watched: ArcSwap::from_pointee(watched),
            newest: Mutex::new(newest),
            history: Mutex::default(),
        };
        let revision = live.announce(1, begun.elapsed());
        live.shared().changelog.begin(1, &revision.api_version, revision.since);
        let routes = revision.routes;
        tracing::info!(
            revision = 1,
            hash = short(&revision.hash),
            routes,
            ms = millis(begun.elapsed()),
            "serving"
        );
        Ok(Arc::new(live))
    }

    /// What the process has.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.parts.shared
    }

    /// The table, for one request.
    pub fn table(&self) -> Guard<Arc<RoutingTable>> {
        self.table.load()
    }

    /// Upstreams that run.
    pub fn upstreams(&self) -> &Arc<Registry> {
        &self.parts.upstreams
    }

    /// The manifest's path.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// What the newest reading touched.
    pub fn watched(&self) -> Arc<Watched> {
        self.watched.load_full()
    }

    /// Earlier revisions that can be gone back to, newest last.
    pub fn history(&self) -> Vec<Revision> {
        self.past().iter().map(|(revision, _)| revision.clone()).collect()
    }

    /// Reads the manifest again and serves it if it is sound. `why` is said in the log. Blocks: call it on the
    /// blocking pool. With `force`, files that were served or refused already are taken again.
    pub fn reload(&self, why: &str, force: bool) -> Reloaded {
        let mut newest = self.lock();
        let begun = Instant::now();
        let loaded = read(&self.config, &self.variables);
        let known = loaded.content_hash == newest.hash;
        let watched = Watched { files: loaded.files.clone(), folders: loaded.folders.clone() };
        self.watched.store(Arc::new(watched));
        if known && !force {
            return Reloaded::Unchanged;
        }
        newest.hash.clone_from(&loaded.content_hash);
        let serving = self.table.load_full();
        if loaded.content_hash == serving.checked().hash() && !force {
            // Somebody undid a refused change.
            self.shared().readiness.recovered();
            self.shared().telemetry.reload_recovered();
            tracing::info!(why, "the manifest is again the one that serves");
            return Reloaded::Unchanged;
        }
        self.take(loaded, &serving, &mut newest.number, why, begun)
    }

    fn take(
        &self,
        loaded: Loaded,
        serving: &Arc<RoutingTable>,
        number: &mut u64,
        why: &str,
        begun: Instant,
    ) -> Reloaded {
        let hash = loaded.content_hash.clone();
        let outcome = check::check(loaded, false);
        let report = report_of(&outcome);
        let Some(checked) = outcome.checked else {
            let errors = outcome.diagnostics.counts().0;
            tracing::error!(why, errors, "the new manifest is refused, the old one serves on:\n{report}");
            self.shared().telemetry.reload_failed();
            self.shared().readiness.refused(ReloadFailure {
                at: SystemTime::now(),
                report: report.clone(),
                hash,
            });
            return Reloaded::Refused { report, errors };
        };
        if !outcome.diagnostics.is_empty() {
            tracing::warn!("the new manifest has warnings:\n{report}");
        }
        let diff = Diff::between(serving.checked(), &checked);
        let table = compile(Arc::new(checked), &self.parts, Some(serving));
        *number += 1;
        if serving.checked().hash() != hash {
            // The same files taken again are nothing to go back to.
            self.remember(serving.checked().clone());
        }
        self.put_up(table);
        let took = begun.elapsed();
        let revision = self.announce(*number, took);
        let api = self.note(&revision, serving.checked());
        let routes = revision.routes;
        let (hash, changes, ms) = (short(&revision.hash), diff.summary(), millis(took));
        tracing::info!(why, revision = *number, hash, routes, changes, api, ms, "reloaded");
        Reloaded::Serves { revision, diff, took }
    }

    /// From now on this table serves.
    fn put_up(&self, table: RoutingTable) {
        let table = Arc::new(table);
        let before = self.table.swap(table.clone());
        self.shared().documents.store(table.documents().cloned());
        before.retire(&table);
    }

    /// Serves the revision before the current one again, until the files change.
    pub fn rollback(&self) -> Option<Revision> {
        let mut newest = self.lock();
        let (_, checked) = self.past().pop()?;
        let as_on_disk = checked.hash() == newest.hash;
        let serving = self.table.load_full();
        self.put_up(compile(checked, &self.parts, Some(&serving)));
        newest.number += 1;
        let revision = self.revision(newest.number);
        // What the files say is as good or as bad as before.
        self.shared().telemetry.reload_rolled_back(revision.number);
        self.shared().readiness.rolled_back(revision.clone());
        if as_on_disk {
            self.shared().readiness.recovered();
            self.shared().telemetry.reload_recovered();
        }
        let api = self.note(&revision, serving.checked());
        tracing::warn!(revision = revision.number, hash = short(&revision.hash), api, "rolled back");
        Some(revision)
    }

    /// Says everywhere that the current table serves.
    fn announce(&self, number: u64, took: Duration) -> Revision {
        let revision = self.revision(number);
        self.shared().readiness.serves(revision.clone());
        self.shared().telemetry.reload_succeeded(number, took);
        revision
    }

    /// Writes into the changelog what callers see change from what served before; says it in short.
    fn note(&self, revision: &Revision, before: &Checked) -> String {
        // They have every version that there is.
        let [before, document] =
            [before, self.table.load().checked()].map(|checked| document::openapi(checked, None));
        let entry = self.shared().changelog.record(revision.number, &before, &document, revision.since);
        report::summary(&entry.changes)
    }

    /// The current table's, beginning now.
    fn revision(&self, number: u64) -> Revision {
        let table = self.table.load();
        let checked = table.checked();
        Revision {
            number,
            hash: checked.hash().to_owned(),
            api_version: checked.api_version().to_owned(),
            since: SystemTime::now(),
            routes: checked.routes().len(),
        }
    }

    fn remember(&self, checked: Arc<Checked>) {
        if let Some(revision) = self.shared().readiness.revision() {
            let mut past = self.past();
            past.push(((*revision).clone(), checked));
            if past.len() > HISTORY {
                past.remove(0);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Newest> {
        self.newest.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn past(&self) -> std::sync::MutexGuard<'_, Vec<(Revision, Arc<Checked>)>> {
        self.history.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

fn report_of(outcome: &Outcome) -> String {
    let palette = if std::io::stderr().is_terminal() { Palette::Colour } else { Palette::Plain };
    render(&outcome.diagnostics, &outcome.sources, Format::Human, palette)
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

/// The part of a hash that people compare.
pub fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}
