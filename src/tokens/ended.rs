//! The end of a caller's time, as something to wait for.

use super::TokenError;
use super::revocations::{Revoked, Subject};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Resolves when a caller is revoked, or after `left` (never, without one).
pub(super) fn ended(
    revoked: Arc<Revoked>,
    who: Subject,
    left: Option<Duration>,
) -> impl Future<Output = TokenError> + Send + Sync + 'static {
    // An end that the clock cannot say is none.
    let end = left.and_then(|left| Instant::now().checked_add(left));
    async move {
        if left == Some(Duration::ZERO) {
            return TokenError::Expired;
        }
        tokio::select! {
            () = over(end) => TokenError::Expired,
            () = revoked.covering(&who) => TokenError::Revoked,
        }
    }
}

async fn over(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{SECRET, backends, identity, tokens, user};
    use super::super::{Keys, Tokens};
    use super::*;
    use crate::identity::{Identity, Proof};
    use futures_util::FutureExt as _;
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake, Waker};
    use std::time::SystemTime;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_secs(5);

    fn somebody(id: &str) -> Identity {
        Identity {
            token_id: Some(format!("login of {id}")),
            issued_at: Some(SystemTime::now() - SOON),
            ..identity(id, "t", "user")
        }
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn it_is_over_when_its_time_is() {
        let tokens = tokens();
        let until = |end| Identity { expires_at: Some(end), ..somebody("u") };
        let now = SystemTime::now();
        assert_eq!(tokens.ended(&until(now)).now_or_never(), Some(TokenError::Expired));
        let begun = Instant::now();
        let ended = tokens.ended(&until(SystemTime::now() + Duration::from_millis(40)));
        assert_eq!(timeout(SOON, ended).await.unwrap(), TokenError::Expired);
        assert!(begun.elapsed() >= Duration::from_millis(35), "{:?}", begun.elapsed());
        for far in [Some(now + Duration::from_secs(200 * 365 * 86_400)), None] {
            let ended = tokens.ended(&Identity { expires_at: far, ..somebody("u") });
            assert!(timeout(Duration::from_millis(20), ended).await.is_err());
        }
    }

    #[tokio::test]
    async fn it_is_over_when_it_is_revoked() {
        let tokens = tokens();
        let (one, other) = (somebody("one"), somebody("other"));
        let key = Identity { proof: Proof::ApiKey, token_id: None, ..somebody(&Identity::of_key("5")) };
        let mut ends = [&one, &other, &key].map(|who| Box::pin(tokens.ended(who)));
        assert!(ends.iter_mut().all(|end| end.now_or_never().is_none()));
        let now = SystemTime::now();
        tokens.revoke_login(&one, now).await.unwrap();
        let [first, second, third] = &mut ends;
        assert_eq!(first.now_or_never(), Some(TokenError::Revoked));
        assert_eq!((second.now_or_never(), third.now_or_never()), (None, None));
        tokens.revoke_user("other", now).await.unwrap();
        assert_eq!((second.now_or_never(), third.now_or_never()), (Some(TokenError::Revoked), None));
        tokens.revoke_user(&Identity::of_key("5"), now).await.unwrap();
        assert_eq!(third.now_or_never(), Some(TokenError::Revoked));
        assert_eq!(tokens.ended(&one).now_or_never(), Some(TokenError::Revoked), "before it was asked");
    }

    #[tokio::test]
    async fn what_comes_between_asking_and_polling_counts() {
        let tokens = tokens();
        let ended = tokens.ended(&somebody("u"));
        tokens.revoke_user("u", SystemTime::now()).await.unwrap();
        assert_eq!(ended.now_or_never(), Some(TokenError::Revoked));
    }

    #[tokio::test]
    async fn one_logout_wakes_few_of_many_and_nothing_else_wakes_any() {
        let tokens = tokens();
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let mut cx = Context::from_waker(&waker);
        let people: Vec<_> = (0..1000).map(|number| somebody(&number.to_string())).collect();
        let mut ends: Vec<_> = people.iter().map(|who| Box::pin(tokens.ended(who))).collect();
        assert!(ends.iter_mut().all(|end| end.poll_unpin(&mut cx).is_pending()));
        let now = SystemTime::now();
        tokens.revoke_login(&people[7], now).await.unwrap();
        // About 16 of a thousand share a shard.
        assert!((1..=60).contains(&wakes.0.swap(0, Ordering::Relaxed)));
        assert!(ends[7].poll_unpin(&mut cx).is_ready());
        drop(ends.remove(7));
        assert!(ends.iter_mut().all(|end| end.poll_unpin(&mut cx).is_pending()));
        tokens.load_revocations(now).await.unwrap();
        tokens.load_revocations(now).await.unwrap();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0, "what is known already is no news");
    }

    #[tokio::test]
    async fn another_replicas_word_wakes_it() {
        let (store, shared) = backends();
        let keys = || Keys::new(SECRET.as_bytes(), &[]);
        let there = Tokens::new(keys(), store.clone(), shared.clone(), 8);
        // One hears what is told but reads another store, the other reads the store and hears nothing.
        let hears = Tokens::new(keys(), backends().0, shared, 8);
        let reads = Tokens::new(keys(), store, backends().1, 8);
        let followers = [tokio::spawn(hears.follow()), tokio::spawn(reads.follow())];
        tokio::task::yield_now().await;
        let now = SystemTime::now();
        let issued = there.issue(&user("u", "t", "user"), None, now);
        let identity = there.verify(&issued.token, now).unwrap();
        let mut both = pin!(futures_util::future::join(hears.ended(&identity), reads.ended(&identity)));
        assert!((&mut both).now_or_never().is_none());
        there.revoke_login(&identity, now).await.unwrap();
        let ended = timeout(SOON, both).await.expect("within a second, and some for a slow machine");
        assert_eq!(ended, (TokenError::Revoked, TokenError::Revoked));
        followers.into_iter().for_each(|follower| follower.abort());
    }
}
