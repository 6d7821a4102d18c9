//! A gauge that goes up and down, such as open connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// How many there are now. Read when metrics are scraped.
#[derive(Debug, Default)]
pub struct Level(AtomicI64);

/// One of them; gone when dropped, whichever way its task ends.
#[derive(Debug)]
#[must_use = "the level falls again when this is dropped"]
pub struct Held(Arc<Level>);

impl Level {
    /// One more, until the answer is dropped.
    pub fn hold(self: &Arc<Self>) -> Held {
        self.0.fetch_add(1, Ordering::Relaxed);
        Held(self.clone())
    }

    /// So many.
    pub fn set(&self, count: i64) {
        self.0.store(count, Ordering::Relaxed);
    }

    /// One more.
    pub fn up(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less.
    pub fn down(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many there are now.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.down();
    }
}
