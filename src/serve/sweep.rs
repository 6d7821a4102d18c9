//! Removes rows that say nothing any more, every ten minutes as shipped: refresh tokens, keys of retries, and what is
//! left of accounts whose deletion broke off. (Revocations are swept by who follows them.)
//!
//! Every replica does it; what one removed, the others do not find. A little more or less than the interval is waited,
//! so that replicas which started together do not all ask at once.

use crate::stores::{AnyStore, Stored};
use rand::Rng as _;
use std::time::{Duration, SystemTime};

/// How long refresh tokens are kept when they are over: who presents a used one that is over by then is still caught.
const KEEP_TOKENS: Duration = Duration::from_secs(24 * 3600);
/// Part of the interval by which a pause is shorter or longer.
const JITTER: f64 = 0.2;
/// No pause is shorter.
const LEAST: Duration = Duration::from_secs(1);

/// Sweeps for ever.
pub(super) async fn run(store: AnyStore, interval: Duration) {
    loop {
        let factor = rand::rng().random_range(1.0 - JITTER..1.0 + JITTER);
        tokio::time::sleep(interval.max(LEAST).mul_f64(factor)).await;
        sweep(&store, SystemTime::now()).await;
    }
}

/// Sweeps once. A part that fails is logged and keeps no other from being swept.
async fn sweep(store: &AnyStore, now: SystemTime) {
    let tokens_over = now.checked_sub(KEEP_TOKENS).unwrap_or(SystemTime::UNIX_EPOCH);
    report("refresh tokens", store.sweep_refresh_tokens(tokens_over).await);
    report("retry keys", store.sweep_retry_keys(now).await);
    report("deleted accounts", store.sweep_deleted_users().await);
}

fn report(what: &'static str, swept: Stored<u64>) {
    match swept {
        Ok(0) => {}
        Ok(count) => tracing::debug!(what, count, "rows that are over were removed"),
        Err(error) => {
            tracing::warn!(what, %error, "rows that are over cannot be removed; the next sweep tries again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stores::{NewUser, Once, Owner, RetryKey, StoreLimits, open};

    #[tokio::test]
    async fn what_is_over_goes_and_what_counts_stays() {
        let store = open("sqlite::memory:", &StoreLimits::default()).await.unwrap();
        store.migrate().await.unwrap();
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        let user = NewUser {
            id: "u".to_owned(),
            tenant_id: String::new(),
            username: "u".to_owned(),
            email: None,
            password_hash: None,
            role: "user".to_owned(),
            openid: None,
        };
        store.create_user(user, now).await.unwrap();
        // The first is over long since, the second not yet.
        store.begin_family("u", "old", &[1; 32], now - 2 * KEEP_TOKENS, now - 3 * KEEP_TOKENS).await.unwrap();
        store.begin_family("u", "new", &[2; 32], now + hour, now).await.unwrap();
        let owner = Owner { tenant_id: "".into(), user_id: "u".into() };
        let make = async |number: u8, expires_at| {
            let retry = RetryKey { key: [number; 32], request: [number; 32], expires_at };
            store.create_session(&owner, &format!("s{number}"), "t", Some(&retry), now - hour).await.unwrap()
        };
        make(1, now).await;
        make(2, now + hour).await;

        sweep(&store, now).await;
        assert_eq!(store.sweep_refresh_tokens(now - KEEP_TOKENS).await.unwrap(), 0, "nothing was left");
        assert_eq!(store.sweep_retry_keys(now).await.unwrap(), 0);
        assert!(store.end_family_of(&[2; 32], now).await.unwrap().is_some(), "what counts is still there");
        assert!(matches!(make(2, now + hour).await, Once::Before(_)));

        // A store that is away is no reason to stop.
        store.close().await;
        sweep(&store, now).await;
    }
}
