//! The folder of a demo run: its database, and the shipped manifest where none is at hand.
//!
//! It goes with the process. A killed process leaves it: the next demo removes what nobody holds. Who holds a folder is
//! told by a lock on a file in it, which the kernel gives up with the process, whatever number or container that had.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

const PREFIX: &str = "voicegate-demo-";
const LOCK: &str = "lock";

/// The shipped manifest, for a demo that is started anywhere.
const SHIPPED: &[(&str, &str)] = &[
    ("routes.yaml", include_str!("../../routes.yaml")),
    ("policies/auth.yaml", include_str!("../../policies/auth.yaml")),
    ("policies/rbac.yaml", include_str!("../../policies/rbac.yaml")),
    ("policies/chains.yaml", include_str!("../../policies/chains.yaml")),
    ("policies/cors.yaml", include_str!("../../policies/cors.yaml")),
    ("policies/rate-limits.yaml", include_str!("../../policies/rate-limits.yaml")),
    ("openapi/upstreams/algo.yaml", include_str!("../../openapi/upstreams/algo.yaml")),
    ("openapi/upstreams/voice.yaml", include_str!("../../openapi/upstreams/voice.yaml")),
    ("openapi/upstreams/speech.yaml", include_str!("../../openapi/upstreams/speech.yaml")),
    ("openapi/upstreams/webrtc.yaml", include_str!("../../openapi/upstreams/webrtc.yaml")),
    ("openapi/upstreams/notifications.yaml", include_str!("../../openapi/upstreams/notifications.yaml")),
    ("openapi/protos/documents.proto", include_str!("../../openapi/protos/documents.proto")),
];

/// A folder that is removed when it is dropped.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes one in `parent` that only this user may read, and removes what killed demos of this user left there.
    ///
    /// # Errors
    /// The operating system's, where it cannot be made.
    pub fn make(parent: &Path) -> io::Result<Self> {
        let id = uuid::Uuid::new_v4();
        // Not under its name before it is locked: another demo that starts now would take it for left behind.
        let unnamed = parent.join(format!(".{PREFIX}{id}"));
        fs::DirBuilder::new().mode(0o700).create(&unnamed)?;
        let named = parent.join(format!("{PREFIX}{id}"));
        let locked = File::create(unnamed.join(LOCK)).and_then(|lock| {
            lock.try_lock().map_err(io::Error::from)?;
            fs::rename(&unnamed, &named)?;
            Ok(lock)
        });
        let folder = match locked {
            Ok(lock) => Folder { path: named, _lock: lock },
            Err(error) => {
                let _ = fs::remove_dir_all(&unnamed);
                return Err(error);
            }
        };
        // What cannot be removed is as it was.
        let _ = folder.remove_abandoned(parent);
        Ok(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the shipped manifest into it; returns where.
    ///
    /// # Errors
    /// The operating system's.
    pub fn write_manifest(&self) -> io::Result<PathBuf> {
        for (name, text) in SHIPPED {
            let path = self.path.join(name);
            fs::create_dir_all(path.parent().unwrap_or(&self.path))?;
            fs::write(path, text)?;
        }
        Ok(self.path.join("routes.yaml"))
    }

    fn remove_abandoned(&self, parent: &Path) -> io::Result<()> {
        let me = fs::symlink_metadata(&self.path)?.uid();
        for entry in fs::read_dir(parent)?.flatten() {
            let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX))
                && fs::symlink_metadata(entry.path()).is_ok_and(|about| about.is_dir() && about.uid() == me);
            if ours && abandoned(&entry.path()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Whether nobody holds it. A folder without a lock file is not a demo's.
fn abandoned(folder: &Path) -> bool {
    match File::open(folder.join(LOCK)).map(|lock| lock.try_lock()) {
        Ok(Ok(())) => true,
        Ok(Err(TryLockError::WouldBlock | TryLockError::Error(_))) | Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_killed_demos_leave_goes_and_what_runs_stays() {
        let temporary = tempfile::tempdir().unwrap();
        let names = || -> Vec<_> {
            fs::read_dir(temporary.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
        };
        let folder = |name: &str| {
            let path = temporary.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let killed = folder("voicegate-demo-killed");
        fs::write(killed.join(LOCK), "").unwrap();
        let (foreign, unlocked) = (folder("foreign"), folder("voicegate-demo-somebody's"));
        fs::write(foreign.join(LOCK), "").unwrap();
        std::os::unix::fs::symlink(&foreign, temporary.path().join("voicegate-demo-link")).unwrap();

        let first = Folder::make(temporary.path()).unwrap();
        assert!(!killed.exists() && foreign.join(LOCK).exists() && unlocked.exists());
        assert_eq!(fs::metadata(first.path()).unwrap().mode() & 0o777, 0o700);
        let manifest = first.write_manifest().unwrap();
        let second = Folder::make(temporary.path()).unwrap();
        assert!(manifest.exists(), "the first one runs");
        let all = names().len();
        drop(first);
        drop(second);
        assert_eq!(names().len(), all - 2);
    }
}
