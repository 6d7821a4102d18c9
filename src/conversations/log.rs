//! The events of one turn, kept so that any number of readers, early or late, get all of them.

use crate::exchange::End;
use bytes::{Bytes, BytesMut};
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

/// Room taken at a time, so that events of a few dozen bytes share it.
const CHUNK: usize = 4096;

/// The events of one turn. Written by its task, read by [`poll_event`](Log::poll_event). The lock is held for an append or a look,
/// and shared by the writer and its readers only.
#[derive(Debug)]
pub(super) struct Log {
    /// What ids begin with.
    name: String,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    events: Vec<Bytes>,
    size: u64,
    room: BytesMut,
    end: Option<End>,
    waiting: Vec<Waker>,
}

impl Log {
    /// Of a turn.
    pub(super) fn new(name: &str) -> Self {
        Log { name: name.to_owned(), inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Adds an event, given by its lines; it gets its id. As it will be sent.
    pub(super) fn append(&self, lines: &[u8]) -> Bytes {
        let mut inner = self.lock();
        let number = inner.events.len() + 1;
        let length = lines.len() + self.name.len() + 32;
        let room = &mut inner.room;
        if room.capacity() < length {
            *room = BytesMut::with_capacity(length.max(CHUNK));
        }
        room.extend_from_slice(lines);
        if !lines.ends_with(b"\n") && !lines.ends_with(b"\r") {
            room.extend_from_slice(b"\n");
        }
        // Behind the event's own fields: of several ids the last counts.
        let _ = write!(room, "id: {}:{number}\n\n", self.name);
        let event = room.split().freeze();
        inner.size += event.len() as u64;
        inner.events.push(event.clone());
        let waiting = std::mem::take(&mut inner.waiting);
        drop(inner);
        waiting.into_iter().for_each(Waker::wake);
        event
    }

    /// Nothing follows.
    pub(super) fn close(&self, end: End) {
        let mut inner = self.lock();
        inner.end.get_or_insert(end);
        let waiting = std::mem::take(&mut inner.waiting);
        drop(inner);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// The event behind `read` of them; `Err` with how the turn ended where there is none any more.
    pub(super) fn poll_event(&self, read: usize, cx: &mut Context<'_>) -> Poll<Result<Bytes, End>> {
        let mut inner = self.lock();
        if let Some(event) = inner.events.get(read) {
            return Poll::Ready(Ok(event.clone()));
        }
        if let Some(end) = inner.end {
            return Poll::Ready(Err(end));
        }
        if !inner.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            inner.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Bytes of all events.
    pub(super) fn size(&self) -> u64 {
        self.lock().size
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.lock().events.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::sync::Arc;

    #[tokio::test]
    async fn every_reader_gets_every_event_with_its_id() {
        let log = Arc::new(Log::new("t"));
        log.append(b"data: 1\n");
        let read = |log: Arc<Log>, from: usize| async move {
            let mut all = String::new();
            let mut at = from;
            loop {
                match poll_fn(|cx| log.poll_event(at, cx)).await {
                    Ok(event) => all.push_str(std::str::from_utf8(&event).unwrap()),
                    Err(end) => return (all, end),
                }
                at += 1;
            }
        };
        let early = tokio::spawn(read(log.clone(), 0));
        tokio::task::yield_now().await;
        log.append(b"data: 2");
        log.close(End::Complete);
        log.close(End::UpstreamBroke);
        let whole = "data: 1\nid: t:1\n\ndata: 2\nid: t:2\n\n".to_owned();
        assert_eq!(early.await.unwrap(), (whole, End::Complete));
        let late = read(log.clone(), 1).await;
        assert_eq!(late, ("data: 2\nid: t:2\n\n".to_owned(), End::Complete));
        assert_eq!(log.len(), 2);
    }
}
