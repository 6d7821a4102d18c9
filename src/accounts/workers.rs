//! Threads that hash passwords, behind everything else the process does.
//!
//! Hashing keeps a core busy for a tenth of a second, and there are as many workers as cores. On threads like any
//! other they would take turns with those that serve requests, which then wait for milliseconds. These have a
//! lower priority of the operating system's: they take what nobody else needs, and step aside at once.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tokio::sync::oneshot;

/// Of the 20 steps that Linux gives anybody: a tenth of an ordinary thread's weight, where both want the core.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

type Job = Box<dyn FnOnce() + Send>;

/// A fixed number of threads, started at the first job. They end with this.
pub(super) struct Workers {
    count: usize,
    jobs: OnceLock<Sender<Job>>,
}

impl Workers {
    /// So many threads, at least one.
    pub(super) fn new(count: usize) -> Self {
        Workers { count: count.max(1), jobs: OnceLock::new() }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Runs a job as soon as a thread is free, also if nobody waits for it any more. `None` if it broke off.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (done, result) = oneshot::channel();
        let job: Job = Box::new(move || drop(done.send(work())));
        // The threads listen as long as this stands.
        self.jobs.get_or_init(|| start(self.count)).send(job).ok()?;
        result.await.ok()
    }
}

fn start(count: usize) -> Sender<Job> {
    let (jobs, taken) = channel();
    let taken = Arc::new(Mutex::new(taken));
    for number in 0..count {
        let taken = taken.clone();
        let thread = std::thread::Builder::new().name(format!("passwords-{number}"));
        if let Err(error) = thread.spawn(move || work(&taken)) {
            tracing::error!(%error, "no thread could be started that hashes passwords");
        }
    }
    jobs
}

fn work(jobs: &Mutex<Receiver<Job>>) {
    step_back();
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        // Whoever waits for it learns that it broke off; the thread goes on.
        let _ = catch_unwind(AssertUnwindSafe(job));
    }
}

/// Lowers this thread's priority. Elsewhere than on Linux that would be the whole process's.
fn step_back() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::getpriority_process(None)
        .and_then(|own| rustix::process::setpriority_process(None, (own + NICE).min(19)))
    {
        tracing::debug!(%error, "hashing keeps its priority");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_job_that_breaks_off_takes_no_thread_with_it() {
        let workers = Workers::new(1);
        assert_eq!(workers.run(|| -> u8 { panic!("a test's own") }).await, None);
        assert_eq!(workers.run(|| 7).await, Some(7));
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn they_step_back_and_nobody_else_does() {
        let own = || rustix::process::getpriority_process(None).unwrap();
        let before = own();
        let theirs = Workers::new(2).run(own).await.unwrap();
        assert_eq!((theirs, own()), ((before + NICE).min(19), before));
    }
}
