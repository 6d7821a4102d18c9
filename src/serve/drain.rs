//! How the gateway stops: first nothing new, then streams say goodbye, then whatever is left is cut.
//!
//! One [`Drain`] is shared by every listener and every long-lived body. Its stage only ever moves forward.
use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::sync::watch;

/// How long what was sent before the drain gets to be seen: the event loop tells of it a little later.
pub(super) const LAST_CALL: Duration = Duration::from_millis(20);

/// How far the end has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// Business as usual.
    #[default]
    Serving,
    /// No new connections; each connection ends with the requests it is working on (GOAWAY, `Connection: close`).
    Draining,
    /// Streams and sockets send their notice and finish now.
    Closing,
    /// The grace is over: what is still open is dropped.
    Cut,
}

/// When the later stages begin, counted from the start of draining.
#[derive(Clone, Copy, Debug)]
pub struct Grace {
    /// How long streams may go on undisturbed.
    pub close_after: Duration,
    /// How long anything may go on; the setting `SHUTDOWN_GRACE`.
    pub cut_after: Duration,
}

/// The handle that moves the stages and that everything else watches. Clones share one state.
#[derive(Clone, Debug)]
pub struct Drain {
    // Beside the channel, so that a stream body can look at it for each frame without a lock.
    now: Arc<AtomicU8>,
    stage: watch::Sender<Stage>,
}

/// The stages as one connection sees them: cheap to poll each time its task runs.
pub(super) struct Signal {
    probe: watch::Receiver<Stage>,
    next: BoxFuture<'static, watch::Receiver<Stage>>,
    registered: Option<Waker>,
    seen: Stage,
}

impl Default for Drain {
    fn default() -> Self {
        Self { now: Arc::default(), stage: watch::Sender::new(Stage::Serving) }
    }
}

impl Drain {
    /// A gateway that serves.
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes through all stages and returns when the grace is over. Dropping the future stops the clock, not the
    /// stage that was reached; callers race it with the listeners, which return as soon as nothing is open.
    pub async fn run(&self, grace: Grace) {
        let begun = tokio::time::Instant::now();
        self.advance(Stage::Draining);
        tokio::time::sleep_until(begun + grace.close_after.min(grace.cut_after)).await;
        self.advance(Stage::Closing);
        tokio::time::sleep_until(begun + grace.cut_after).await;
        self.advance(Stage::Cut);
    }

    /// Moves on to `stage`. A stage that has passed already is left alone.
    pub fn advance(&self, stage: Stage) {
        self.stage.send_if_modified(|current| {
            let moves = stage > *current;
            if moves {
                *current = stage;
                self.now.store(stage as u8, Ordering::Release);
            }
            moves
        });
    }

    /// Where the drain stands: one atomic load.
    pub fn stage(&self) -> Stage {
        match self.now.load(Ordering::Acquire) {
            0 => Stage::Serving,
            1 => Stage::Draining,
            2 => Stage::Closing,
            _ => Stage::Cut,
        }
    }

    /// Whether readiness should say no and nothing new should begin.
    pub fn is_draining(&self) -> bool {
        self.stage() >= Stage::Draining
    }

    /// Whether streams should finish now.
    pub fn is_closing(&self) -> bool {
        self.stage() >= Stage::Closing
    }

    /// Waits until `stage` is reached. The future owns what it needs, so a stream body can hold it.
    pub fn reached(&self, stage: Stage) -> impl Future<Output = ()> + Send + 'static {
        let mut watched = self.stage.subscribe();
        async move {
            if watched.wait_for(|current| *current >= stage).await.is_err() {
                // Every handle is gone, so nobody can ever ask for the end.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until streams should finish; what a stream body selects on.
    pub fn closing(&self) -> impl Future<Output = ()> + Send + 'static {
        self.reached(Stage::Closing)
    }

    pub(super) fn signal(&self) -> Signal {
        let mut probe = self.stage.subscribe();
        let seen = *probe.borrow_and_update();
        Signal { next: next_change(probe.clone()), probe, registered: None, seen }
    }
}

impl Signal {
    /// The current stage; the task is woken when it changes.
    ///
    /// A future of the channel takes a lock that all connections share each time it is polled, and a connection is
    /// polled for every packet. So it is polled once to leave the waker there, and then only if the stage changed.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Stage {
        let known = self.registered.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if known && !self.probe.has_changed().unwrap_or(false) {
            return self.seen;
        }
        while let Poll::Ready(mut changed) = self.next.as_mut().poll(cx) {
            self.seen = *changed.borrow_and_update();
            self.probe = changed.clone();
            self.next = next_change(changed);
        }
        self.registered = Some(cx.waker().clone());
        self.seen
    }

    /// Waits until nothing new should begin and what had come by then has been seen.
    pub(super) async fn last_call(&mut self) {
        std::future::poll_fn(
            |cx| if self.poll(cx) >= Stage::Draining { Poll::Ready(()) } else { Poll::Pending },
        )
        .await
    }
}

fn next_change(mut watched: watch::Receiver<Stage>) -> BoxFuture<'static, watch::Receiver<Stage>> {
    Box::pin(async move {
        if watched.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        watched
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stages_follow_the_grace_and_never_go_back() {
        let drain = Drain::new();
        let begun = tokio::time::Instant::now();
        let grace = Grace { close_after: Duration::from_millis(30), cut_after: Duration::from_millis(90) };
        let (closing, cut) = (drain.closing(), drain.reached(Stage::Cut));
        let watcher = async {
            closing.await;
            assert!(drain.is_closing() && begun.elapsed() >= grace.close_after);
            cut.await;
            assert!(begun.elapsed() >= grace.cut_after);
        };
        tokio::join!(drain.run(grace), watcher);
        drain.advance(Stage::Draining);
        assert_eq!(drain.stage(), Stage::Cut);
    }

    #[tokio::test]
    async fn a_signal_sees_every_change_though_it_polls_rarely() {
        let drain = Drain::new();
        let mut signal = drain.signal();
        let seen = tokio::spawn(async move {
            let mut seen = vec![];
            std::future::poll_fn(|cx| {
                let stage = signal.poll(cx);
                if seen.last() != Some(&stage) {
                    seen.push(stage);
                }
                if stage == Stage::Cut { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            seen
        });
        for stage in [Stage::Draining, Stage::Closing, Stage::Cut] {
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            drain.advance(stage);
        }
        let all = [Stage::Serving, Stage::Draining, Stage::Closing, Stage::Cut];
        assert_eq!(seen.await.unwrap(), all);
    }

    #[tokio::test]
    async fn a_late_signal_knows_the_stage() {
        let drain = Drain::new();
        drain.advance(Stage::Closing);
        drain.signal().last_call().await;
        assert!(drain.is_closing() && drain.is_draining());
    }
}
