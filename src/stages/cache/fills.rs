//! Calls under way whose answers others wait for: identical requests share one.
//!
//! A call runs on a task of its own, so that a caller who leaves does not take it from those who wait for it. It goes on
//! for as long as anybody waits, and a refresh for as long as it may; then the upstream is stopped like by any
//! caller who leaves. The lock is held for a look into a map, and only by requests that must be fetched.

use crate::copies::{Copy, Key};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;

/// Calls under way, by what they are for.
#[derive(Default)]
pub(super) struct Fills {
    open: Mutex<HashMap<Key, Arc<watch::Sender<State>>>>,
}

/// What those who wait learn.
#[derive(Clone, Default)]
pub(super) enum State {
    /// Nothing yet.
    #[default]
    Waiting,
    /// The answer is for everybody who asks like this; the key is that of its variant.
    Shared(Arc<Copy>, Key),
    /// It is not: each asks alone.
    Alone,
    /// It failed: one of them may try again.
    Again,
}

/// What a request does about a call.
pub(super) enum Part {
    /// It makes it.
    Leads(Fill),
    /// Somebody makes it already.
    Follows(watch::Receiver<State>),
}

/// A call under way. Over when it is dropped, whatever the reason.
pub(super) struct Fill {
    fills: Arc<Fills>,
    key: Key,
    told: Arc<watch::Sender<State>>,
}

impl Fills {
    /// Takes part in the call for a key.
    pub(super) fn join(self: &Arc<Self>, key: Key) -> Part {
        let mut open = self.lock();
        if let Some(told) = open.get(&key) {
            return Part::Follows(told.subscribe());
        }
        let told = Arc::new(watch::Sender::new(State::Waiting));
        open.insert(key, told.clone());
        Part::Leads(Fill { fills: self.clone(), key, told })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<watch::Sender<State>>>> {
        self.open.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    #[cfg(test)]
    pub(super) fn under_way(&self) -> usize {
        self.lock().len()
    }
}

impl Fill {
    /// What the call is for.
    pub(super) fn key(&self) -> Key {
        self.key
    }

    /// Waits for it like those who follow.
    pub(super) fn follow(&self) -> watch::Receiver<State> {
        self.told.subscribe()
    }

    /// Tells those who wait, and lets those who come now begin anew.
    pub(super) fn tell(&self, state: State) {
        self.close();
        self.told.send_replace(state);
    }

    /// Comes back when nobody waits any more; nobody can begin to wait then.
    pub(super) async fn abandoned(&self) {
        loop {
            self.told.closed().await;
            let mut open = self.fills.lock();
            // Whoever joins holds the lock.
            if self.told.receiver_count() == 0 {
                remove(&mut open, self);
                return;
            }
        }
    }

    fn close(&self) {
        remove(&mut self.fills.lock(), self);
    }
}

/// Takes a call out, if it still is the one for its key.
fn remove(open: &mut HashMap<Key, Arc<watch::Sender<State>>>, fill: &Fill) {
    if open.get(&fill.key).is_some_and(|told| Arc::ptr_eq(told, &fill.told)) {
        open.remove(&fill.key);
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        self.close();
        self.told.send_if_modified(|state| {
            let silent = matches!(state, State::Waiting);
            if silent {
                *state = State::Again;
            }
            silent
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn key(number: u64) -> Key {
        Key::of("test", number).end()
    }

    fn leads(fills: &Arc<Fills>, number: u64) -> Fill {
        match fills.join(key(number)) {
            Part::Leads(fill) => fill,
            Part::Follows(_) => panic!("somebody leads already"),
        }
    }

    fn follows(fills: &Arc<Fills>, number: u64) -> watch::Receiver<State> {
        match fills.join(key(number)) {
            Part::Follows(told) => told,
            Part::Leads(_) => panic!("nobody leads"),
        }
    }

    #[tokio::test]
    async fn one_leads_and_the_others_learn() {
        let fills = Arc::<Fills>::default();
        let fill = leads(&fills, 1);
        let mut told = follows(&fills, 1);
        let other = leads(&fills, 2);
        fill.tell(State::Alone);
        assert!(matches!(
            *told.wait_for(|state| !matches!(state, State::Waiting)).await.unwrap(),
            State::Alone
        ));
        let next = leads(&fills, 1);
        drop(fill);
        assert_eq!(fills.under_way(), 2, "a call that is over does not end its successor");
        drop((next, other));
        assert_eq!(fills.under_way(), 0);
    }

    #[tokio::test]
    async fn a_call_that_is_cut_lets_another_try() {
        let fills = Arc::<Fills>::default();
        let fill = leads(&fills, 1);
        let mut told = follows(&fills, 1);
        drop(fill);
        assert!(matches!(
            *told.wait_for(|state| !matches!(state, State::Waiting)).await.unwrap(),
            State::Again
        ));
        leads(&fills, 1);
    }

    #[tokio::test]
    async fn a_call_is_abandoned_when_the_last_one_has_left() {
        let fills = Arc::<Fills>::default();
        let fill = leads(&fills, 1);
        let (leader, follower) = (fill.follow(), follows(&fills, 1));
        drop(leader);
        let within = Duration::from_millis(20);
        assert!(tokio::time::timeout(within, fill.abandoned()).await.is_err(), "somebody waits");
        drop(follower);
        fill.abandoned().await;
        leads(&fills, 1);
    }
}
