//! Copies a turn's events to where other replicas can read them.
//!
//! Readers there look ten times a second, so events are gathered for as long: a running answer is at most ten calls a
//! second to shared state, however fast it is told. The end of it waits for nobody.

use crate::shared::AnyShared;
use bytes::Bytes;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep, timeout_at};

/// How long events are gathered.
const GATHER: Duration = Duration::from_millis(100);
/// Events copied at a time.
const MOST: usize = 256;
/// How often, and how far apart, events are offered to shared state that does not take them.
const ATTEMPTS: u32 = 40;
const RETRY: Duration = Duration::from_millis(250);
/// How long events of an answer that is over stand in shared state at least.
const LIVE: Duration = Duration::from_secs(5);

/// An event by its number; that without bytes is the end.
pub(super) type Numbered = (u64, Bytes);

/// How long events are kept there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    /// While the answer runs.
    pub(super) running: Duration,
    /// Once it is over.
    pub(super) over: Duration,
}

/// Copies events to a log until nobody sends any more.
pub(super) async fn mirror(
    shared: AnyShared,
    log: String,
    kept: Kept,
    mut events: UnboundedReceiver<Numbered>,
) {
    let mut batch = Vec::new();
    while gather(&mut events, &mut batch).await {
        // Once it is over, as long as here; who reads it live still has a moment to see the end.
        let ttl = if is_over(&batch) { kept.over.max(LIVE) } else { kept.running };
        // What may have been appended can be appended again.
        let mut attempts = 0;
        while let Err(error) = shared.append_events(&log, &batch, ttl).await {
            attempts += 1;
            if attempts == ATTEMPTS {
                tracing::warn!(%error, "a running answer cannot be read on other replicas any more");
                return;
            }
            sleep(RETRY).await;
        }
        batch.clear();
    }
}

/// Waits for an event, and for what follows it soon; false where nothing will.
async fn gather(events: &mut UnboundedReceiver<Numbered>, batch: &mut Vec<Numbered>) -> bool {
    if events.recv_many(batch, MOST).await == 0 {
        return false;
    }
    let until = Instant::now() + GATHER;
    while batch.len() < MOST && !is_over(batch) {
        let room = MOST - batch.len();
        if !timeout_at(until, events.recv_many(batch, room)).await.is_ok_and(|count| count > 0) {
            break;
        }
    }
    true
}

fn is_over(batch: &[Numbered]) -> bool {
    batch.last().is_some_and(|(_, event)| event.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::unbounded_channel;

    #[tokio::test]
    async fn events_that_trickle_are_gathered_and_the_end_waits_for_nobody() {
        let (sender, mut events) = unbounded_channel();
        tokio::spawn(async move {
            for number in 1..=50 {
                sender.send((number, Bytes::from_static(b"word"))).unwrap();
                sleep(Duration::from_millis(5)).await;
            }
            sender.send((51, Bytes::new())).unwrap();
            // Held open: what ends the last batch is the end, not that nobody is left to send.
            std::future::pending::<()>().await;
        });
        let (mut told, mut batches, mut batch) = (Vec::new(), 0, Vec::new());
        while !is_over(&told) {
            assert!(gather(&mut events, &mut batch).await);
            batches += 1;
            told.append(&mut batch);
        }
        assert!(told.iter().map(|(number, _)| *number).eq(1..=51), "{told:?}");
        // As many as a hundred milliseconds fit into what the sender took, and one that was begun.
        assert!(batches <= 10, "{batches} calls for 51 events");
    }

    #[tokio::test]
    async fn a_flood_is_copied_in_pieces_and_nothing_follows_who_left() {
        let (sender, mut events) = unbounded_channel();
        for number in 1..=2 * MOST as u64 {
            sender.send((number, Bytes::from_static(b"word"))).unwrap();
        }
        drop(sender);
        let mut batch = Vec::new();
        for _ in 0..2 {
            assert!(gather(&mut events, &mut batch).await);
            assert_eq!(batch.len(), MOST);
            batch.clear();
        }
        assert!(!gather(&mut events, &mut batch).await);
    }
}
