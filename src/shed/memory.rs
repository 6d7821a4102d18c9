//! How much memory the process may take, and from which marks on it takes less work.

use crate::settings::MemoryMark;
use std::path::{Path, PathBuf};

/// The marks that memory is measured by, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// From here on new streams and routes of low priority are shed.
    pub soft: u64,
    /// From here on everything but health is.
    pub hard: u64,
}

impl Marks {
    /// The marks of a setting. A share is of `limit`; without a limit there is no mark. The hard mark is an eighth
    /// above the soft one (80 %: 90 %), but below the limit.
    pub fn of(setting: MemoryMark, limit: Option<u64>) -> Option<Marks> {
        let soft = match setting {
            MemoryMark::Off => return None,
            MemoryMark::Share(share) => (limit? as f64 * share.0) as u64,
            MemoryMark::Size(size) => size.0,
        };
        let below = limit.map_or(u64::MAX, |limit| limit - limit / 20).max(soft);
        Some(Marks { soft, hard: soft.saturating_add(soft / 8).min(below) })
    }
}

/// Memory the control group of this process may take (Linux), the narrowest of its parents'; none if that is not
/// bounded or not known.
pub fn limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    limit_in(Path::new("/sys/fs/cgroup"), &groups)
}

/// `groups` is the text of `/proc/self/cgroup` (cgroups(7)). In a container its paths may be those of the host, which are
/// not there: then the mount's own files tell.
fn limit_in(mount: &Path, groups: &str) -> Option<u64> {
    let limits = groups.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (controllers, path) = (fields.nth(1).unwrap_or_default(), fields.next().unwrap_or_default());
        let (root, file) = match controllers {
            "" => (mount.to_owned(), "memory.max"),
            names if names.split(',').any(|name| name == "memory") => {
                (mount.join("memory"), "memory.limit_in_bytes")
            }
            _ => return Vec::new(),
        };
        let mut folder = root.join(path.trim_start_matches('/'));
        let mut found = Vec::new();
        while folder.starts_with(&root) {
            found.extend(bytes_in(folder.join(file)));
            if !folder.pop() {
                break;
            }
        }
        found
    });
    limits.min()
}

/// A number of bytes; none where it is not there, `max`, or so large that it means the same.
fn bytes_in(file: PathBuf) -> Option<u64> {
    let bytes: u64 = std::fs::read_to_string(file).ok()?.trim().parse().ok()?;
    (bytes < 1 << 60).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Percent, Size};
    use std::fs;

    const GIB: u64 = 1 << 30;

    #[test]
    fn marks_are_a_share_of_the_limit_or_a_size() {
        let share = |share| MemoryMark::Share(Percent(share));
        assert_eq!(Marks::of(MemoryMark::Off, Some(GIB)), None);
        assert_eq!(Marks::of(share(0.8), None), None);
        let marks = Marks::of(share(0.8), Some(1000)).unwrap();
        assert_eq!((marks.soft, marks.hard), (800, 900));
        let marks = Marks::of(share(0.9), Some(1000)).unwrap();
        assert_eq!((marks.soft, marks.hard), (900, 950), "the hard mark is below the limit");
        let marks = Marks::of(share(1.0), Some(1000)).unwrap();
        assert_eq!((marks.soft, marks.hard), (1000, 1000));
        let marks = Marks::of(MemoryMark::Size(Size(GIB)), None).unwrap();
        assert_eq!((marks.soft, marks.hard), (GIB, GIB + GIB / 8));
    }

    #[test]
    fn the_narrowest_group_tells() {
        let folder = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let of = |groups: &str| limit_in(folder.path(), groups);
        assert_eq!(of("0::/pod/gate\n"), None);
        put("pod/gate/memory.max", "max\n");
        assert_eq!(of("0::/pod/gate\n"), None);
        put("pod/memory.max", "4096\n");
        assert_eq!(of("0::/pod/gate\n"), Some(4096));
        put("pod/gate/memory.max", "8192\n");
        assert_eq!(of("0::/pod/gate\n"), Some(4096));
        put("memory.max", "1024\n");
        assert_eq!(of("0::/of/the/host\n"), Some(1024));
        // The first version: one hierarchy for each controller, and a number for none.
        put("memory/memory.limit_in_bytes", "9223372036854771712\n");
        let groups = "11:cpu,cpuacct:/docker/1\n7:memory:/docker/1\n";
        assert_eq!(of(groups), None);
        put("memory/docker/1/memory.limit_in_bytes", "2048\n");
        assert_eq!(of(groups), Some(2048));
    }
}
