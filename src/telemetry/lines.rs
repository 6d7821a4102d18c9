//! Where log lines go: a bounded buffer that one thread empties into stderr.
//!
//! Whoever logs copies its line into memory and goes on; a stderr that nobody reads stops only the writer. Lines
//! that do not fit any more are dropped and counted, and the log says so as soon as it flows again. The buffer is
//! split in shards, so that two threads that log at once need not wait for each other.

use super::write;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock, TryLockError};
use std::thread::{self, Thread};
use std::time::{Duration, SystemTime};

/// How long the writer waits for more lines once there is one.
const LINGER: Duration = Duration::from_millis(5);
/// How long the writer waits before it tries a stderr again that takes nothing now.
const RETRY: Duration = Duration::from_millis(5);
/// How long the end of the process waits for the last lines to be written.
const FLUSH: Duration = Duration::from_secs(2);

/// Takes finished lines.
#[derive(Debug)]
pub struct Lines {
    shards: [Mutex<Vec<u8>>; 4],
    /// Bytes taken and not yet written.
    queued: AtomicUsize,
    limit: usize,
    dropped: AtomicU64,
    /// Whether the writer was told that there is something.
    pending: AtomicBool,
    closing: AtomicBool,
    writer: OnceLock<Thread>,
}

/// Keeps lines flowing. When it is dropped, what is queued is written first.
#[derive(Debug)]
pub(super) struct Writer {
    lines: Arc<Lines>,
    done: mpsc::Receiver<()>,
}

impl Lines {
    /// Swallows everything, for tests and commands that do not log.
    pub fn nowhere() -> Arc<Self> {
        Arc::new(Self::with_limit(0))
    }

    fn with_limit(limit: usize) -> Self {
        Lines {
            shards: Default::default(),
            queued: AtomicUsize::new(0),
            limit,
            dropped: AtomicU64::new(0),
            pending: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            writer: OnceLock::new(),
        }
    }

    /// Takes a line with its line break, or drops it if there is no room.
    pub fn append(&self, line: &[u8]) {
        if self.queued.fetch_add(line.len(), Ordering::Relaxed) + line.len() > self.limit {
            self.queued.fetch_sub(line.len(), Ordering::Relaxed);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.put(line);
        if !self.pending.swap(true, Ordering::AcqRel)
            && let Some(writer) = self.writer.get()
        {
            writer.unpark();
        }
    }

    /// How many lines were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Copies a line into the first shard that nobody copies into now. Shards are held for a copy only, so that
    /// lines of different threads keep their order unless they come at the very same time.
    fn put(&self, line: &[u8]) {
        for shard in &self.shards {
            match shard.try_lock() {
                Ok(mut buffer) => return buffer.extend_from_slice(line),
                Err(TryLockError::Poisoned(buffer)) => return buffer.into_inner().extend_from_slice(line),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        lock(&self.shards[self.shards.len() - 1]).extend_from_slice(line);
    }

    /// Moves what is queued into `batch`.
    fn take(&self, batch: &mut Vec<u8>) {
        for shard in &self.shards {
            let mut buffer = lock(shard);
            if batch.is_empty() {
                std::mem::swap(&mut *buffer, batch);
            } else {
                batch.append(&mut buffer);
            }
        }
    }
}

impl Writer {
    /// Starts the thread. `limit` is in bytes; `out` may block.
    ///
    /// Fails if the system gives no thread.
    pub(super) fn start(out: impl Write + Send + 'static, limit: usize, json: bool) -> io::Result<Writer> {
        let lines = Arc::new(Lines::with_limit(limit));
        let (finished, done) = mpsc::channel();
        let theirs = lines.clone();
        let thread = thread::Builder::new().name("log".into()).spawn(move || {
            run(&theirs, out, json);
            let _ = finished.send(());
        })?;
        let _ = lines.writer.set(thread.thread().clone());
        // A line taken before the thread was known did not wake it.
        thread.thread().unpark();
        Ok(Writer { lines, done })
    }

    /// Where lines go in.
    pub(super) fn lines(&self) -> &Arc<Lines> {
        &self.lines
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.lines.closing.store(true, Ordering::Release);
        if let Some(writer) = self.lines.writer.get() {
            writer.unpark();
        }
        // A stderr that takes nothing must not keep the process from ending.
        if let Err(RecvTimeoutError::Timeout) = self.done.recv_timeout(FLUSH) {
            self.lines.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The writer's thread.
fn run(lines: &Lines, mut out: impl Write, json: bool) {
    let mut batch = Vec::new();
    let mut reported = 0;
    loop {
        let closing = lines.closing.load(Ordering::Acquire);
        if !lines.pending.load(Ordering::Acquire) && !closing {
            thread::park();
            continue;
        }
        if !closing {
            // Lets more lines come, for one write instead of many. Closing cuts it short.
            thread::park_timeout(LINGER);
        }
        lines.pending.store(false, Ordering::Release);
        lines.take(&mut batch);
        let taken = batch.len();
        let dropped = lines.dropped();
        if dropped > reported {
            say_dropped(&mut batch, dropped - reported, json);
            reported = dropped;
        }
        if let Err(lost) = write_all(&mut out, &batch) {
            lines.dropped.fetch_add(lost, Ordering::Relaxed);
        }
        lines.queued.fetch_sub(taken, Ordering::Relaxed);
        batch.clear();
        batch.shrink_to(1 << 16);
        if closing {
            return;
        }
    }
}

/// Writes everything; otherwise says how many lines are lost.
fn write_all(out: &mut impl Write, mut bytes: &[u8]) -> Result<(), u64> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(count_lines(bytes)),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::park_timeout(RETRY),
            Err(_) => return Err(count_lines(bytes)),
        }
    }
    out.flush().map_err(|_| 0)
}

fn count_lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

fn say_dropped(batch: &mut Vec<u8>, count: u64, json: bool) {
    const WHY: &str = "log lines were dropped: stderr is read too slowly for what is logged";
    if json {
        batch.extend_from_slice(b"{\"time\":\"");
        write::time(batch, SystemTime::now());
        batch.extend_from_slice(b"\",\"level\":\"warn\",\"target\":\"log\",\"message\":\"");
        batch.extend_from_slice(WHY.as_bytes());
        batch.extend_from_slice(b"\",\"count\":");
        write::number(batch, count);
        batch.extend_from_slice(b"}\n");
    } else {
        write::time(batch, SystemTime::now());
        batch.extend_from_slice(b"  WARN log: ");
        batch.extend_from_slice(WHY.as_bytes());
        batch.extend_from_slice(b" count=");
        write::number(batch, count);
        batch.push(b'\n');
    }
}

fn lock(shard: &Mutex<Vec<u8>>) -> std::sync::MutexGuard<'_, Vec<u8>> {
    shard.lock().unwrap_or_else(|poison| poison.into_inner())
}

#[cfg(test)]
mod tests {
    use super::super::testing::Kept;
    use super::*;
    use std::time::Instant;

    /// Takes nothing until it is let.
    struct Stuck(mpsc::Receiver<()>, Kept, mpsc::Sender<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.2.send(());
            let _ = self.0.recv();
            self.1.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_come_out_whole_and_all_from_many_threads() {
        let kept = Kept::default();
        let writer = Writer::start(kept.clone(), 1 << 20, true).unwrap();
        thread::scope(|scope| {
            for thread in 0..4 {
                let lines = writer.lines().clone();
                scope.spawn(move || {
                    for n in 0..500 {
                        lines.append(format!("<{thread} {n}>\n").as_bytes());
                    }
                });
            }
        });
        drop(writer);
        let text = kept.text();
        assert_eq!(text.lines().count(), 2000);
        assert!(text.lines().all(|line| line.starts_with('<') && line.ends_with('>')));
    }

    #[test]
    fn a_line_comes_out_promptly_without_a_flush() {
        let kept = Kept::default();
        let writer = Writer::start(kept.clone(), 1000, true).unwrap();
        let start = Instant::now();
        writer.lines().append(b"hello\n");
        while kept.text().is_empty() {
            assert!(start.elapsed() < Duration::from_secs(5), "the writer sleeps");
            thread::yield_now();
        }
    }

    #[test]
    fn a_stuck_stderr_blocks_nobody_and_what_is_dropped_is_said() {
        let (let_go, gate) = mpsc::channel();
        let (entered, inside) = mpsc::channel();
        let kept = Kept::default();
        let writer = Writer::start(Stuck(gate, kept.clone(), entered), 100, true).unwrap();
        let lines = writer.lines().clone();
        lines.append(b"first\n");
        inside.recv().unwrap();
        for _ in 0..1000 {
            lines.append(b"0123456789abcdef\n");
        }
        assert_eq!(lines.dropped(), 995, "94 bytes hold five lines of 17");
        drop(let_go);
        drop(writer);
        let text = kept.text();
        assert_eq!(text.matches("0123456789abcdef\n").count(), 5);
        let said = text.lines().find(|line| line.contains("dropped")).unwrap();
        let said: serde_json::Value = serde_json::from_str(said).unwrap();
        assert_eq!(said["count"], 995);
    }

    #[test]
    fn the_end_does_not_wait_for_a_stuck_stderr() {
        let (_let_go, gate) = mpsc::channel();
        let (entered, inside) = mpsc::channel();
        let writer = Writer::start(Stuck(gate, Kept::default(), entered), 100, true).unwrap();
        writer.lines().append(b"x\n");
        inside.recv().unwrap();
        let start = Instant::now();
        drop(writer);
        assert!(start.elapsed() < FLUSH * 2);
    }
}
