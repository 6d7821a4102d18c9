//! The process itself: memory, files, processor time, tasks. Read from `/proc` when metrics are scraped, on Linux;
//! elsewhere these metrics are not there.

use super::meters::Meters;

/// Clock ticks a second in `/proc` (`USER_HZ`): 100 on every architecture that Linux runs Rust on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Adds the metrics of the process.
pub(super) fn register(meters: &Meters) {
    meters.gauge("process_resident_memory_bytes", "Resident memory.", |gauge| {
        if let Some(bytes) = read("/proc/self/status").as_deref().and_then(resident_bytes) {
            gauge.observe(bytes, &[]);
        }
    });
    meters.gauge("process_open_fds", "Open file descriptors.", |gauge| {
        if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
            // One of them is the listing itself.
            gauge.observe(entries.count().saturating_sub(1) as f64, &[]);
        }
    });
    meters.count("process_cpu_seconds_total", "Processor time, user and system.", |counter| {
        if let Some(stat) = read("/proc/self/stat").as_deref().and_then(Stat::parse) {
            counter.observe(stat.cpu_seconds, &[]);
        }
    });
    let started = read("/proc/stat")
        .as_deref()
        .and_then(boot_seconds)
        .zip(read("/proc/self/stat").as_deref().and_then(Stat::parse))
        .map(|(boot, stat)| boot + stat.started_after_boot);
    meters.gauge("process_start_time_seconds", "When the process started.", move |gauge| {
        if let Some(seconds) = started {
            gauge.observe(seconds, &[]);
        }
    });
    meters.gauge("tokio_tasks_alive", "Tasks of the runtime.", |gauge| {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            gauge.observe(runtime.metrics().num_alive_tasks() as f64, &[]);
        }
    });
}

/// Resident memory of the process in bytes; none where nobody can say.
pub fn memory_in_use() -> Option<u64> {
    read("/proc/self/status").as_deref().and_then(resident_bytes).map(|bytes| bytes as u64)
}

/// What is read of `/proc/self/stat` (proc(5)).
struct Stat {
    cpu_seconds: f64,
    started_after_boot: f64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The second field is the command in parentheses, and may itself have spaces and parentheses.
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
        let mut seconds = || Some(fields.next()?.parse::<f64>().ok()? / TICKS_PER_SECOND);
        let cpu_seconds = seconds()? + seconds()?;
        let started_after_boot = fields.nth(6)?.parse::<f64>().ok()? / TICKS_PER_SECOND;
        Some(Stat { cpu_seconds, started_after_boot })
    }
}

fn resident_bytes(status: &str) -> Option<f64> {
    let kibibytes = field(status, "VmRSS:")?;
    Some(kibibytes * 1024.0)
}

fn boot_seconds(stat: &str) -> Option<f64> {
    field(stat, "btime ")
}

/// The number behind a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_behind_an_awkward_command() {
        let line = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 12345 1000 200 0";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(stat.cpu_seconds, 3.0);
        assert_eq!(stat.started_after_boot, 123.45);
        assert!(Stat::parse("7 (a)").is_none());
    }

    #[test]
    fn fields_are_found_by_name() {
        assert_eq!(resident_bytes("VmSize:\t 9 kB\nVmRSS:\t 20 kB\n"), Some(20480.0));
        assert_eq!(boot_seconds("cpu 1 2\nbtime 1700000000\n"), Some(1.7e9));
    }
}
