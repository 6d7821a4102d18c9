//! The ingestion tasks of the demo: made by `POST /ingest`, done after [`TASK_TIME`] by the clock alone (`now` is an
//! argument everywhere), kept until
//! [`MAX_TASKS`] newer ones exist.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::reply::Refusal;

/// How long a task takes.
const TASK_TIME: Duration = Duration::from_secs(3);

/// How many tasks are remembered; the oldest is forgotten first.
const MAX_TASKS: usize = 1000;

/// The tasks by number.
#[derive(Debug, Default)]
pub(super) struct Tasks(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    made: u64,
    tasks: BTreeMap<u64, Task>,
}

#[derive(Debug)]
struct Task {
    started: Instant,
    cancelled: bool,
}

impl Tasks {
    /// Makes a task and answers its state: `{task_id, status, progress}`.
    pub(super) fn start(&self, now: Instant) -> Value {
        let mut book = self.book();
        book.made += 1;
        let number = book.made;
        let task = Task { started: now, cancelled: false };
        let state = task.state(number, now);
        book.tasks.insert(number, task);
        if book.tasks.len() > MAX_TASKS {
            book.tasks.pop_first();
        }
        state
    }

    /// The state of a task; 404 when unknown.
    pub(super) fn get(&self, id: &str, now: Instant) -> Result<Value, Refusal> {
        let number = number(id)?;
        self.book().tasks.get(&number).map(|task| task.state(number, now)).ok_or_else(unknown)
    }

    /// Cancels a task; 404 when it is unknown or over.
    pub(super) fn cancel(&self, id: &str, now: Instant) -> Result<Value, Refusal> {
        let number = number(id)?;
        let mut book = self.book();
        let task = book.tasks.get_mut(&number).filter(|task| task.runs(now)).ok_or_else(unknown)?;
        task.cancelled = true;
        Ok(task.state(number, now))
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Every statement leaves the book whole, so a panic elsewhere can't have harmed it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Task {
    fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    fn runs(&self, now: Instant) -> bool {
        !self.cancelled && self.elapsed(now) < TASK_TIME
    }

    fn state(&self, number: u64, now: Instant) -> Value {
        let progress = (self.elapsed(now).as_secs_f64() / TASK_TIME.as_secs_f64()).min(1.0);
        let status = match (self.cancelled, self.runs(now)) {
            (true, _) => "cancelled",
            (false, true) => "running",
            (false, false) => "completed",
        };
        json!({ "task_id": format!("task-{number}"), "status": status, "progress": (progress * 100.0).round() / 100.0 })
    }
}

fn number(id: &str) -> Result<u64, Refusal> {
    id.strip_prefix("task-").and_then(|number| number.parse().ok()).ok_or_else(unknown)
}

fn unknown() -> Refusal {
    Refusal::not_found("no such task, or it is over")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_runs_its_time_and_can_be_cancelled_until_then() {
        let tasks = Tasks::default();
        let begin = Instant::now();
        assert_eq!(tasks.start(begin)["task_id"], "task-1");
        tasks.start(begin);
        let half_way = begin + TASK_TIME / 2;
        let half = tasks.get("task-1", half_way).unwrap();
        assert_eq!((&half["status"], &half["progress"]), (&json!("running"), &json!(0.5)));
        assert_eq!(tasks.cancel("task-2", half_way).unwrap()["status"], "cancelled");
        assert!(tasks.cancel("task-2", half_way).is_err(), "cancelled twice");
        let end = begin + TASK_TIME;
        assert_eq!(tasks.get("task-1", end).unwrap()["status"], "completed");
        assert_eq!(tasks.get("task-2", end).unwrap()["status"], "cancelled");
        assert!(tasks.cancel("task-1", end).is_err(), "cancelled after its end");
        for id in ["task-9", "9", "task-", "task-x"] {
            assert!(tasks.get(id, end).is_err(), "{id}");
        }
    }

    #[test]
    fn only_so_many_are_remembered() {
        let tasks = Tasks::default();
        let now = Instant::now();
        for _ in 0..=MAX_TASKS {
            tasks.start(now);
        }
        assert!(tasks.get("task-1", now).is_err());
        assert!(tasks.get("task-2", now).is_ok());
    }
}
