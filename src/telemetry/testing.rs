//! For tests of what logs: telemetry whose access log ends in a string.

use super::lines::Writer;
use super::logs::{AccessLevels, Style};
use super::{AccessLog, Lines, Telemetry};
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

/// Keeps what is written.
#[derive(Clone, Default)]
pub(super) struct Kept(Arc<Mutex<Vec<u8>>>);

impl Kept {
    pub(super) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What goes into the access log, as JSON lines, while `run` runs.
pub(crate) fn logged(run: impl FnOnce(Telemetry)) -> String {
    let levels = AccessLevels { info: true, warn: true };
    access(true, levels, |log| {
        run(Telemetry::with("0", log, Lines::nowhere(), &|_| None).unwrap());
    })
}

/// What goes into an access log while `run` runs.
pub(super) fn access(json: bool, levels: AccessLevels, run: impl FnOnce(AccessLog)) -> String {
    let kept = Kept::default();
    let writer = Writer::start(kept.clone(), 1 << 20, json).unwrap();
    run(AccessLog::to(writer.lines().clone(), Style { json, colour: false }, levels));
    drop(writer);
    kept.text()
}
