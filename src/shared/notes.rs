//! Notes in memory: each is taken once, or runs out.
//!
//! Bounded: there are [`MOST_NOTES`] at most. What is over goes when there is no more room; who still finds none is
//! told so, rather than that a note of somebody else's goes.

use super::memory::locked;
use super::{MOST_NOTES, SharedError};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// While it is full, what is over goes so often.
const SWEEP: Duration = Duration::from_millis(500);

/// Notes of this process.
#[derive(Default)]
pub(super) struct Notes(Mutex<Board>);

#[derive(Default)]
struct Board {
    /// By key, each with its end.
    notes: HashMap<String, (Bytes, Instant)>,
    /// When what was over went the last time, because it was full.
    swept: Option<Instant>,
}

impl Notes {
    /// Keeps a note.
    ///
    /// # Errors
    /// [`SharedError::Unavailable`] where there is no room.
    pub(super) fn leave(
        &self,
        key: &str,
        note: &[u8],
        ttl: Duration,
        now: Instant,
    ) -> Result<(), SharedError> {
        let mut board = locked(&self.0);
        let Board { notes, swept } = &mut *board;
        let full = notes.len() >= MOST_NOTES;
        // About to grow, or full: then not with every note, so that nobody waits for it long.
        if !full && notes.len() == notes.capacity() || full && swept.is_none_or(|at| now >= at + SWEEP) {
            notes.retain(|_, (_, ends)| *ends > now);
            if notes.len() < notes.capacity() / 4 {
                notes.shrink_to_fit();
            }
            *swept = full.then_some(now);
        }
        if notes.len() >= MOST_NOTES {
            return Err(SharedError::Unavailable(format!("{MOST_NOTES} notes wait to be taken")));
        }
        notes.insert(key.to_owned(), (Bytes::copy_from_slice(note), now + ttl));
        Ok(())
    }

    /// Takes a note, unless its time is over.
    pub(super) fn take(&self, key: &str, now: Instant) -> Option<Bytes> {
        let (note, ends) = locked(&self.0).notes.remove(key)?;
        (ends > now).then_some(note)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_bounded_and_takes_nothing_from_others() {
        let (notes, now) = (Notes::default(), Instant::now());
        let ttl = Duration::from_secs(30);
        notes.leave("first", b"1", ttl, now).unwrap();
        let left = (0..2 * MOST_NOTES).filter(|n| notes.leave(&n.to_string(), b"", ttl, now).is_ok());
        assert_eq!(left.count(), MOST_NOTES - 1);
        assert_eq!(notes.take("first", now).as_deref(), Some(&b"1"[..]));
        let later = now + ttl;
        assert_eq!(notes.take("1", later), None, "its time is over");
        for key in ["x", "y", "z"] {
            notes.leave(key, b"2", ttl, later).unwrap();
        }
        assert_eq!(locked(&notes.0).notes.len(), 3, "what is over makes room");
        assert!(locked(&notes.0).notes.capacity() < MOST_NOTES / 2);
    }
}
