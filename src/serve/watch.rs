//! Notices that the manifest changed: watches the folders, and looks at the contents in between.
//!
//! Folders are watched and not files, because editors rename and ConfigMaps swap symlinks. Watching can miss things
//! (network file systems, exhausted inotify), so contents are polled too. A change is taken once the files have stood
//! still for a moment, so that a half-written file is not served.

use super::live::{Live, Reloaded, Watched};
use notify::{RecursiveMode, Watcher};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// The files must read the same twice, this far apart.
const STILL: Duration = Duration::from_millis(100);
/// Files that never stand still are taken all the same after this long.
const PATIENCE: Duration = Duration::from_secs(3);

/// Reloads whenever the files change. Runs until dropped.
pub async fn watch(live: Arc<Live>, poll: Duration) {
    let changed = Arc::new(Notify::new());
    let mut eyes = Eyes::new(changed.clone());
    // Nothing was looked at yet: what changed while the gateway started is taken at once.
    let mut seen = [0; 32];
    loop {
        // Before a folder was watched, something may have changed in it unnoticed.
        if !eyes.follow(&live.watched().folders) {
            tokio::select! {
                () = changed.notified() => {}
                () = sleep(poll) => {}
            }
        }
        let now = look(&live).await;
        if now == seen {
            continue;
        }
        seen = settled(&live, now).await;
        let live = live.clone();
        // A panic in there is logged by the runtime; the table stays as it is.
        let reloaded = tokio::task::spawn_blocking(move || live.reload("the files changed", false)).await;
        if let Err(error) = reloaded {
            tracing::error!(%error, "a reload failed; the running table stays");
        }
    }
}

/// Reloads by request (SIGHUP, admin API), whether the files changed or not.
pub async fn reload_now(live: &Arc<Live>, why: &'static str) -> Option<Reloaded> {
    let live = live.clone();
    tokio::task::spawn_blocking(move || live.reload(why, true)).await.ok()
}

/// Waits until the files stand still, and returns what they are then.
async fn settled(live: &Arc<Live>, mut now: [u8; 32]) -> [u8; 32] {
    let patience = Instant::now() + PATIENCE;
    while Instant::now() < patience {
        sleep(STILL).await;
        let next = look(live).await;
        if next == now {
            return now;
        }
        now = next;
    }
    now
}

async fn look(live: &Arc<Live>) -> [u8; 32] {
    let watched = live.watched();
    tokio::task::spawn_blocking(move || fingerprint(&watched)).await.unwrap_or_default()
}

/// Hash over the files' contents and over the names in the folders, where an include may match something new: files of
/// the kinds that the manifest consists of, and folders.
fn fingerprint(watched: &Watched) -> [u8; 32] {
    let mut hash = Sha256::new();
    for file in &watched.files {
        match std::fs::read(file) {
            Ok(content) => {
                hash.update((content.len() as u64).to_le_bytes());
                hash.update(content);
            }
            Err(error) => hash.update(error.to_string()),
        }
    }
    let mut kinds: BTreeSet<Option<&OsStr>> = watched.files.iter().map(|file| file.extension()).collect();
    kinds.extend(["yaml", "yml"].map(|kind| Some(OsStr::new(kind))));
    for folder in &watched.folders {
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| kinds.contains(&path.extension()) || path.is_dir())
            .filter_map(|path| Some(path.file_name()?.to_owned()))
            .collect();
        names.sort();
        for name in names {
            hash.update(name.as_encoded_bytes());
            hash.update([0]);
        }
    }
    hash.finalize().into()
}

/// The operating system's word of changes, if it can be had.
struct Eyes {
    watcher: Option<notify::RecommendedWatcher>,
    on: BTreeSet<PathBuf>,
}

impl Eyes {
    fn new(changed: Arc<Notify>) -> Self {
        let told = move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| !event.kind.is_access()) {
                changed.notify_one();
            }
        };
        let watcher = notify::recommended_watcher(told)
            .map_err(
                |error| tracing::warn!(%error, "folders cannot be watched; changes are noticed by polling"),
            )
            .ok();
        Eyes { watcher, on: BTreeSet::new() }
    }

    /// Watches these folders and no others; whether there is one that was not watched before.
    fn follow(&mut self, folders: &BTreeSet<PathBuf>) -> bool {
        let Some(watcher) = &mut self.watcher else { return false };
        for gone in self.on.difference(folders) {
            // A folder that was removed is not watched any more anyway.
            let _ = watcher.unwatch(gone);
        }
        self.on.retain(|folder| folders.contains(folder));
        let mut more = false;
        for folder in folders {
            if self.on.contains(folder) {
                continue;
            }
            match watcher.watch(folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    more |= self.on.insert(folder.clone());
                }
                Err(error) => tracing::debug!(%error, folder = %folder.display(), "cannot watch; polling"),
            }
        }
        more
    }
}
