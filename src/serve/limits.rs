//! What one listener and each of its connections may take, with the defaults.
use std::time::Duration;

/// What a connection may take. Every field has a setting behind it; `Default` is fit for the open internet.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections, upgraded ones included. 10 000; see [`Limits::within_file_limit`].
    pub max_connections: usize,
    /// From the opening of a connection, or the first byte of a later request, to the end of the head. 10 s.
    pub header_timeout: Duration,
    /// Between two requests; in HTTP/2, without a stream. 75 s, longer than common proxies keep theirs.
    pub keep_alive_timeout: Duration,
    /// For the whole TLS handshake. 10 s.
    pub handshake_timeout: Duration,
    /// For a peer to take any of the bytes that wait for it, per connection and per HTTP/2 stream. 30 s.
    pub write_stall: Duration,
    /// Bytes of a head, request line included. 32 KiB; more is 431.
    pub max_header_bytes: usize,
    /// Fields of an HTTP/1 head. 100; more is 431.
    pub max_headers: usize,
    /// Bytes buffered for reading and for writing on an HTTP/1 connection. 64 KiB, at least 8 KiB.
    pub h1_buffer_bytes: usize,
    /// Concurrent streams of an HTTP/2 connection. 256.
    pub h2_max_streams: u32,
    /// Streams reset by the peer before we looked at them; more ends the connection (CVE-2023-44487). 20.
    pub h2_max_reset_streams: usize,
    /// Streams that we reset for faults of the peer; more ends the connection (CVE-2025-8671). 256.
    pub h2_max_local_resets: usize,
    /// Bytes buffered for writing per HTTP/2 stream. 64 KiB.
    pub h2_send_buffer_bytes: usize,
    /// Bytes of request bodies that may wait for us, per HTTP/2 stream. 256 KiB.
    pub h2_stream_window_bytes: u32,
    /// Bytes of request bodies that may wait for us, per HTTP/2 connection. 1 MiB.
    pub h2_connection_window_bytes: u32,
    /// How often an HTTP/2 peer is asked for a sign of life. 20 s.
    pub h2_ping_interval: Duration,
    /// How long it may take to give one. 10 s.
    pub h2_ping_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            header_timeout: Duration::from_secs(10),
            keep_alive_timeout: Duration::from_secs(75),
            handshake_timeout: Duration::from_secs(10),
            write_stall: Duration::from_secs(30),
            max_header_bytes: 32 << 10,
            max_headers: 100,
            h1_buffer_bytes: 64 << 10,
            h2_max_streams: 256,
            h2_max_reset_streams: 20,
            h2_max_local_resets: 256,
            h2_send_buffer_bytes: 64 << 10,
            h2_stream_window_bytes: 256 << 10,
            h2_connection_window_bytes: 1 << 20,
            h2_ping_interval: Duration::from_secs(20),
            h2_ping_timeout: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// Lowers `max_connections` so that it fits the process's limit of open files, where that is known (Linux): half
    /// of what is left after 128 for stores, logs and the like, because a proxied request needs a second socket.
    pub fn within_file_limit(mut self) -> Self {
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
        if let Some(fit) = open_files(&limits).map(|files| (files.saturating_sub(128) / 2).max(16))
            && fit < self.max_connections
        {
            let (wanted, files) =
                (self.max_connections, self.max_connections.saturating_mul(2).saturating_add(128));
            tracing::info!(
                wanted,
                possible = fit,
                "the limit of open files allows fewer connections than are set; raise it to {files} (ulimit -n, LimitNOFILE)"
            );
            self.max_connections = fit;
        }
        self
    }
}

/// Makes the kernel's table of open files as large as so many connections need, or as the limit of open files lets it be. Else it
/// grows when a file does not fit, to twice its size, and then whoever opens that file waits until every core has passed
/// through the scheduler (`synchronize_rcu` in the kernel's `expand_fdtable`, for processes of several threads): 10 to 30 ms in
/// which one worker did nothing else, at each doubling. A table never shrinks. To be called before there is a second thread.
pub fn reserve_files(max_connections: usize) {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let needed = max_connections.saturating_mul(2).saturating_add(128);
    let last = needed.min(open_files(&limits).unwrap_or(needed)).saturating_sub(1);
    // A copy of what is open at the table's end, closed again at once. If that may not be, the table grows as it does.
    if let Ok(last) = i32::try_from(last) {
        drop(rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), last));
    }
}

/// The soft limit in the text of `/proc/self/limits`; none if it is unlimited or not there.
fn open_files(limits: &str) -> Option<usize> {
    limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_table_of_files_is_there_before_it_is_needed() {
        let size = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
            size.trim().parse::<usize>().unwrap()
        };
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        reserve_files(300);
        assert!(size() >= open_files(&limits).unwrap_or(728).min(728), "{}", size());
    }

    #[test]
    fn the_cap_fits_the_limit_of_open_files() {
        let text = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 524288               files\n";
        assert_eq!(open_files(text), Some(1024));
        assert_eq!(open_files("Max open files unlimited unlimited files"), None);
        assert_eq!(open_files(""), None);
        let limits = Limits { max_connections: usize::MAX, ..Limits::default() };
        if std::path::Path::new("/proc/self/limits").exists() {
            assert!(limits.within_file_limit().max_connections < usize::MAX);
        }
    }
}
