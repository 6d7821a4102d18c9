//! What ends a long connection from outside: the gateway goes down, or the caller's time is over (SECURITY rule 12).
//!
//! A connection asks with each event it passes on, so asking must not touch a lock that all of them share: the word is
//! polled only when it was woken itself, which rings a bell of the connection's own.

use crate::exchange::End;
use crate::identity::Identity;
use crate::state::Shared;
use crate::tokens::TokenError;
use futures_util::task::AtomicWaker;
use futures_util::{FutureExt as _, future};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use tokio::sync::watch;

/// Why a connection has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    /// The gateway goes down.
    Shutdown,
    /// The caller's token or key has expired or was revoked.
    Reauth(TokenError),
}

impl Leave {
    /// As logs and metrics call it.
    pub(super) fn end(self) -> End {
        match self {
            Leave::Shutdown => End::Shutdown,
            Leave::Reauth(_) => End::Reauth,
        }
    }
}

/// Waits for a reason to end one connection.
pub(super) struct Notice<W = Leave> {
    // Gone once it has come.
    word: Option<Pin<Box<dyn Future<Output = W> + Send + Sync>>>,
    bell: Arc<Bell>,
    // The bell as the word sees it.
    rings: Waker,
}

pin_project_lite::pin_project! {
    /// The first of two words to come. `select!` in an `async` block would keep each of them twice.
    pub(super) struct Either<A, B> {
        #[pin]
        one: A,
        #[pin]
        other: B,
    }
}

impl<A, B> Either<A, B> {
    /// Of the two, `one` counts where both have come.
    pub(super) fn new(one: A, other: B) -> Self {
        Either { one, other }
    }
}

impl<W, A: Future<Output = W>, B: Future<Output = W>> Future for Either<A, B> {
    type Output = W;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<W> {
        let this = self.project();
        match this.one.poll(cx) {
            Poll::Ready(word) => Poll::Ready(word),
            Poll::Pending => this.other.poll(cx),
        }
    }
}

/// When a connection of this caller's has to end, if anybody knows who it is.
pub(super) fn leave(
    shared: &Shared,
    caller: Option<&Identity>,
) -> impl Future<Output = Leave> + Send + Sync + 'static {
    let down = closed(shared.closing.clone()).map(|()| Leave::Shutdown);
    match caller {
        None => future::Either::Left(down),
        Some(caller) => {
            future::Either::Right(Either::new(shared.tokens.ended(caller).map(Leave::Reauth), down))
        }
    }
}

struct Bell {
    rung: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl Notice {
    /// For a connection of this caller's, if anybody knows who it is.
    pub(super) fn new(shared: &Shared, caller: Option<&Identity>) -> Self {
        Notice::of(leave(shared, caller))
    }
}

impl<W> Notice<W> {
    /// For a connection that this word ends.
    pub(super) fn of(word: impl Future<Output = W> + Send + Sync + 'static) -> Self {
        // Not polled yet: it may have come already.
        let bell = Arc::new(Bell { rung: AtomicBool::new(true), task: AtomicWaker::new() });
        Notice { word: Some(Box::pin(word)), rings: bell.clone().into(), bell }
    }

    /// The word, if it has come; once. Wakes nobody: for a task that is awake and will ask again.
    pub(super) fn heard(&mut self) -> Option<W> {
        if !self.bell.rung.load(Ordering::Relaxed) || !self.bell.rung.swap(false, Ordering::Acquire) {
            return None;
        }
        let word = self.word.as_mut()?;
        match word.as_mut().poll(&mut Context::from_waker(&self.rings)) {
            Poll::Ready(leave) => {
                self.word = None;
                Some(leave)
            }
            Poll::Pending => None,
        }
    }

    /// The word, if it has come; once. Otherwise wakes the task when it may have.
    pub(super) fn listen(&mut self, cx: &Context<'_>) -> Option<W> {
        // Before looking, so that no ring is lost.
        self.bell.task.register(cx.waker());
        self.heard()
    }
}

/// Resolves when the gateway goes down.
async fn closed(mut closing: watch::Receiver<bool>) {
    if closing.wait_for(|closing| *closing).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::shared;
    use crate::tokens::testing::identity;
    use std::sync::atomic::AtomicUsize;
    use std::time::SystemTime;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn somebody() -> Identity {
        Identity { issued_at: Some(SystemTime::now()), ..identity("u", "t", "user") }
    }

    #[tokio::test]
    async fn the_word_is_polled_when_it_was_woken_and_not_before() {
        let polls = Arc::new(AtomicUsize::new(0));
        let (tell, mut told) = tokio::sync::mpsc::channel(1);
        let counted = polls.clone();
        let word = std::future::poll_fn(move |cx| {
            counted.fetch_add(1, Ordering::Relaxed);
            told.poll_recv(cx).map(Option::unwrap)
        });
        let mut notice = Notice::of(word);
        let (one, two) = (Arc::new(Count::default()), Arc::new(Count::default()));
        for task in [&one, &two] {
            let waker = Waker::from(task.clone());
            for _ in 0..100 {
                assert_eq!(notice.heard(), None);
                assert_eq!(notice.listen(&Context::from_waker(&waker)), None);
            }
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1, "the first time alone");
        tell.send(Leave::Shutdown).await.unwrap();
        let wakes = [&one, &two].map(|task| task.0.load(Ordering::Relaxed));
        assert_eq!(wakes, [0, 1], "whoever listened last");
        assert_eq!(notice.heard(), Some(Leave::Shutdown));
        assert_eq!(notice.heard(), None, "it comes once");
    }

    #[tokio::test]
    async fn a_caller_ends_and_the_gateway_does() {
        let (shared, close) = shared(&[]);
        let who = somebody();
        let mut known = Notice::new(&shared, Some(&who));
        let mut unknown = Notice::new(&shared, None);
        let mut stays = Notice::new(&shared, Some(&Identity { user_id: "v".into(), ..somebody() }));
        for notice in [&mut known, &mut unknown, &mut stays] {
            assert_eq!(notice.heard(), None);
        }
        shared.tokens.revoke_user("u", SystemTime::now()).await.unwrap();
        assert_eq!(known.heard(), Some(Leave::Reauth(TokenError::Revoked)));
        assert_eq!((unknown.heard(), stays.heard()), (None, None));
        close.send(true).unwrap();
        assert_eq!((unknown.heard(), stays.heard()), (Some(Leave::Shutdown), Some(Leave::Shutdown)));
        let mut late = Notice::new(&shared, Some(&who));
        assert_eq!(late.heard(), Some(Leave::Reauth(TokenError::Revoked)), "before it began");
    }
}
