//! What is revoked, known in this process: every request asks, so asking takes no lock and no trip.
//!
//! The store holds the truth. A task reads what is new there ([`follow`]); word from other replicas over shared state
//! only makes it sooner. So a replica is at most [`PATIENCE`] and one query behind, and while the store is away it
//! goes by what it knows.

use super::claims::since_epoch;
use crate::identity::Identity;
use crate::shared::AnyShared;
use crate::stores::{AnyStore, Revocation, Stored};
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Notify;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::futures::Notified;

/// Where replicas tell each other.
pub(super) const CHANNEL: &str = "voicegate:revocations";
/// What a subject that is a user begins with.
pub(super) const USER: &str = "user:";
/// How often the store is asked although nobody said anything.
const PATIENCE: Duration = Duration::from_millis(500);
/// Between two readings, however often word comes: a hundred logouts a second are not to be a hundred queries of every
/// replica.
const BREATH: Duration = Duration::from_millis(100);
/// Serial numbers are given out before they are committed: what has come is read again for this long.
const SETTLING: Duration = Duration::from_secs(10);
/// How often what is over is forgotten here, and in the store.
const SWEEP: Duration = Duration::from_secs(600);
/// After a failure.
const RETRY: Duration = Duration::from_millis(500);
const SHARDS: usize = 64;

/// A set of revocations. Each change copies one shard; readers never wait.
#[derive(Default)]
pub(super) struct Revoked {
    tokens: Shards,
    users: Shards,
}

struct Shards {
    shards: [ArcSwap<HashMap<Box<str>, Span>>; SHARDS],
    /// Told of each change of its shard, so that one logout wakes few of the thousands that wait.
    news: [Notify; SHARDS],
    hasher: RandomState,
    /// Never less than there are.
    count: AtomicUsize,
}

/// What of an identity a revocation can name.
pub(super) struct Subject {
    token_id: Box<str>,
    user_id: Arc<str>,
    issued_at: Option<SystemTime>,
}

impl Subject {
    pub(super) fn of(identity: &Identity) -> Self {
        Subject {
            // No revocation is of an empty name.
            token_id: identity.token_id.as_deref().unwrap_or_default().into(),
            user_id: identity.user_id.clone(),
            issued_at: identity.issued_at,
        }
    }
}

/// Until when tokens count as revoked, and until when this must be known; milliseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Span {
    not_after: i64,
    until: i64,
}

impl Revoked {
    /// Whether a caller's token is revoked: by itself, by the login it stems from, or with all of the user's. An API
    /// key is a user of its own here ([`Identity::of_key`]).
    pub(super) fn covers(&self, identity: &Identity) -> bool {
        self.names(identity.token_id.as_deref(), &identity.user_id, identity.issued_at)
    }

    fn names(&self, token_id: Option<&str>, user_id: &str, issued_at: Option<SystemTime>) -> bool {
        let by_token = || token_id.is_some_and(|id| self.tokens.find(id).is_some());
        let by_user = || {
            self.users.find(user_id).is_some_and(|span| {
                // A token that does not say when it was signed may be from before.
                issued_at.is_none_or(|at| since_epoch(at).as_millis() as i64 <= span.not_after)
            })
        };
        by_token() || by_user()
    }

    /// Resolves when [`covers`](Self::covers) holds of a caller. Woken by what is added to its shards alone, and
    /// looks once each time.
    pub(super) async fn covering(&self, who: &Subject) {
        loop {
            // Before looking, so that nothing is added unnoticed in between.
            let (token, user) = (self.tokens.changed(&who.token_id), self.users.changed(&who.user_id));
            if self.names(Some(&who.token_id), &who.user_id, who.issued_at) {
                return;
            }
            tokio::select! {
                () = token => {}
                () = user => {}
            }
        }
    }

    /// Takes in what the store or another replica says.
    pub(super) fn add(&self, revocations: &[Revocation], now: SystemTime) {
        let now = since_epoch(now).as_millis() as i64;
        let mut tokens = Vec::new();
        let mut users = Vec::new();
        for revocation in revocations.iter().filter(|revocation| revocation.expires_at_ms > now) {
            let span = Span { not_after: revocation.not_after_ms, until: revocation.expires_at_ms };
            match revocation.subject.strip_prefix(USER) {
                Some(user) => users.push((user, span)),
                None => tokens.push((revocation.subject.as_str(), span)),
            }
        }
        self.tokens.add(&tokens);
        self.users.add(&users);
    }

    fn sweep(&self, now: SystemTime) {
        let now = since_epoch(now).as_millis() as i64;
        self.tokens.sweep(now);
        self.users.sweep(now);
    }
}

impl Default for Shards {
    fn default() -> Self {
        Shards {
            shards: std::array::from_fn(|_| ArcSwap::default()),
            news: std::array::from_fn(|_| Notify::new()),
            hasher: RandomState::new(),
            count: AtomicUsize::new(0),
        }
    }
}

impl Shards {
    fn find(&self, name: &str) -> Option<Span> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.shards[self.shard(name)].load().get(name).copied()
    }

    /// Resolves at the next change of the shard that a name belongs to; one that comes before it is polled counts.
    fn changed(&self, name: &str) -> Notified<'_> {
        self.news[self.shard(name)].notified()
    }

    fn shard(&self, name: &str) -> usize {
        self.hasher.hash_one(name) as usize % SHARDS
    }

    fn add(&self, entries: &[(&str, Span)]) {
        let mut by_shard: HashMap<usize, Vec<&(&str, Span)>> = HashMap::new();
        for entry in entries {
            by_shard.entry(self.shard(entry.0)).or_default().push(entry);
        }
        for (shard, entries) in by_shard {
            let news = |map: &HashMap<Box<str>, Span>| {
                entries
                    .iter()
                    .any(|(name, span)| map.get(*name).is_none_or(|known| later(*known, *span) != *known))
            };
            if !news(&self.shards[shard].load()) {
                continue;
            }
            // Counted before they can be found: a set that is not empty is never taken for an empty one.
            self.count.fetch_add(entries.len(), Ordering::AcqRel);
            let mut known = 0;
            self.shards[shard].rcu(|map| {
                let mut map = HashMap::clone(map);
                known = entries.len() + map.len();
                for (name, span) in &entries {
                    map.entry(Box::from(*name))
                        .and_modify(|known| *known = later(*known, *span))
                        .or_insert(*span);
                }
                known -= map.len();
                map
            });
            self.count.fetch_sub(known, Ordering::AcqRel);
            self.news[shard].notify_waiters();
        }
    }

    fn sweep(&self, now: i64) {
        for shard in self.shards.iter().filter(|shard| shard.load().values().any(|span| span.until <= now)) {
            let mut over = 0;
            shard.rcu(|map| {
                let mut map = HashMap::clone(map);
                over = map.len();
                map.retain(|_, span| span.until > now);
                over -= map.len();
                map
            });
            self.count.fetch_sub(over, Ordering::AcqRel);
        }
    }
}

fn later(one: Span, other: Span) -> Span {
    Span { not_after: one.not_after.max(other.not_after), until: one.until.max(other.until) }
}

/// What was read of the store so far.
pub(super) struct Feed {
    /// Everything up to here is known for good.
    settled: i64,
    /// What came lately: highest serial number, and when.
    recent: Vec<(i64, Instant)>,
}

impl Feed {
    pub(super) fn new() -> Self {
        Feed { settled: 0, recent: Vec::new() }
    }

    /// Reads what is new into the set.
    pub(super) async fn read(&mut self, store: &AnyStore, revoked: &Revoked, now: SystemTime) -> Stored<()> {
        while self.recent.first().is_some_and(|(_, came)| came.elapsed() > SETTLING) {
            self.settled = self.recent.remove(0).0;
        }
        let newest = self.recent.last().map_or(self.settled, |(serial, _)| *serial);
        let mut from = self.settled;
        loop {
            let page = store.revocations_since(from, now).await?;
            let Some(last) = page.last().map(|revocation| revocation.serial).filter(|last| *last > from)
            else {
                break;
            };
            revoked.add(&page, now);
            from = last;
        }
        if from > newest {
            self.recent.push((from, Instant::now()));
        }
        Ok(())
    }
}

/// Keeps the set up to date, for ever.
pub(super) async fn follow(store: AnyStore, shared: AnyShared, revoked: Arc<Revoked>, mut feed: Feed) {
    let mut told = shared.subscribe(CHANNEL);
    let mut away = false;
    let mut swept = Instant::now();
    loop {
        match feed.read(&store, &revoked, SystemTime::now()).await {
            Ok(()) if away => {
                away = false;
                tracing::info!("revocations are read again");
            }
            Ok(()) => {}
            Err(error) => {
                if !away {
                    tracing::warn!(%error, "revocations cannot be read: going by those that are known");
                }
                away = true;
            }
        }
        if swept.elapsed() > SWEEP {
            swept = Instant::now();
            revoked.sweep(SystemTime::now());
            if let Err(error) = store.sweep_revocations(SystemTime::now()).await {
                tracing::warn!(%error, "revocations that are over cannot be removed");
            }
        }
        let pause = async {
            match away {
                true => tokio::time::sleep(RETRY).await,
                false => {
                    // Word that comes meanwhile waits.
                    tokio::time::sleep(BREATH).await;
                    let patience = PATIENCE - BREATH;
                    // The bound holds whatever a backend makes of its own.
                    drop(tokio::time::timeout(patience, store.revocations_changed(patience)).await);
                }
            }
        };
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                word = told.recv() => match word {
                    Ok(text) => match serde_json::from_str::<Revocation>(&text) {
                        Ok(revocation) => revoked.add(&[revocation], SystemTime::now()),
                        Err(_) => tracing::warn!("another replica told of a revocation in a form that is not known"),
                    },
                    Err(RecvError::Lagged(_)) => break,
                    // Nobody can tell any more; the store is asked all the same.
                    Err(RecvError::Closed) => {
                        pause.as_mut().await;
                        break;
                    }
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Proof;
    use std::time::UNIX_EPOCH;

    fn identity(issued_ms: u64) -> Identity {
        Identity {
            user_id: "u".into(),
            tenant_id: "".into(),
            role: "user".into(),
            scopes: Vec::new(),
            channel: None,
            openid: None,
            token_id: Some("t".into()),
            issued_at: Some(UNIX_EPOCH + Duration::from_millis(issued_ms)),
            expires_at: None,
            proof: Proof::Token,
        }
    }

    fn revocation(subject: &str, not_after_ms: i64) -> Revocation {
        Revocation { serial: 1, subject: subject.into(), not_after_ms, expires_at_ms: 10_000 }
    }

    fn at(ms: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(ms)
    }

    #[test]
    fn a_token_or_all_of_a_user_until_a_moment() {
        let revoked = Revoked::default();
        assert!(!revoked.covers(&identity(500)));
        revoked.add(&[revocation("user:u", 500)], at(0));
        assert!(revoked.covers(&identity(500)));
        assert!(!revoked.covers(&identity(501)), "a later login");
        revoked.add(&[revocation("user:u", 400)], at(0));
        assert!(revoked.covers(&identity(500)), "an earlier moment takes nothing back");
        assert!(revoked.covers(&Identity { issued_at: None, ..identity(0) }));
        assert!(!revoked.covers(&Identity { user_id: "v".into(), ..identity(0) }));
        revoked.add(&[revocation("t", 0)], at(0));
        assert!(revoked.covers(&identity(501)));
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let revoked = Revoked::default();
        revoked.add(&[revocation("t", 0)], at(10_000));
        assert!(!revoked.covers(&identity(1)), "over before it came");
        revoked.add(&[revocation("t", 0)], at(0));
        revoked.sweep(at(9_999));
        assert!(revoked.covers(&identity(1)));
        revoked.sweep(at(10_000));
        assert!(!revoked.covers(&identity(1)));
        assert_eq!(revoked.tokens.count.load(Ordering::Relaxed), 0);
    }
}
