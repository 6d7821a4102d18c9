//! Connections a user: `per_user`, and `takeover`, by which the newest takes the place of the old one.
//!
//! A seat is a slot in shared state. With `takeover`, whoever finds it taken tells every replica so; the one that has the
//! old connection closes it, which gives the slot back. One that does not answer within [`PATIENCE`] is dead, and its
//! slot runs out by itself. Of two that come at the same time the later wins, for only who has a seat can lose it.

use crate::error::{GatewayError, Kind};
use crate::exchange::{Exchange, RouteInfo};
use crate::shared::{AnyShared, Slot};
use crate::ws::SocketLimits;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Where replicas tell each other who came.
const CHANNEL: &str = "websockets";
/// How long the old connection may take to go.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks whether it is gone.
const AGAIN: Duration = Duration::from_millis(50);

/// The seats of one route.
pub(super) struct Seats {
    shared: AnyShared,
    slots: u32,
    takeover: bool,
    prefix: String,
    taken: Arc<Taken>,
    follower: OnceLock<AbortHandle>,
    /// What tells these seats' holders from those of other replicas and other revisions.
    own: String,
    holders: AtomicU64,
}

/// Whose seat can be taken over here, by key: the holder, and how to tell it.
#[derive(Default)]
struct Taken(Mutex<HashMap<String, (String, oneshot::Sender<()>)>>);

/// One connection's seat; dropping it gives it back.
pub(super) struct Seat {
    _slot: Option<Slot>,
    /// Key and holder, where it can be taken over.
    known: Option<(String, String)>,
    seats: Arc<Seats>,
}

impl Seats {
    /// Those of a route, where it bounds them.
    pub(super) fn new(limits: &SocketLimits, route: &RouteInfo, shared: &AnyShared) -> Option<Arc<Self>> {
        let host = route.host.as_deref().unwrap_or_default();
        let prefix = format!("sockets:{} {host}{}:", route.method, route.template);
        Some(Arc::new(Seats {
            shared: shared.clone(),
            slots: limits.per_user?,
            takeover: limits.takeover,
            prefix,
            taken: Arc::default(),
            follower: OnceLock::new(),
            own: uuid::Uuid::new_v4().to_string(),
            holders: AtomicU64::new(0),
        }))
    }

    /// A seat for this caller; and what comes when another takes it over.
    ///
    /// # Errors
    /// [`Kind::TooManyConcurrent`] where all are taken.
    pub(super) async fn take(
        self: &Arc<Self>,
        exchange: &Exchange,
    ) -> Result<(Seat, Option<oneshot::Receiver<()>>), GatewayError> {
        let key = self.key(exchange);
        if self.takeover {
            return Ok(self.take_over(key).await);
        }
        let slot = match Slot::take(&self.shared, key, self.slots).await {
            Ok(Some(slot)) => Some(slot),
            Ok(None) => {
                let again = Some(Duration::from_secs(1));
                return Err(GatewayError { retry_after: again, ..Kind::TooManyConcurrent.into() });
            }
            Err(error) => {
                tracing::debug!(%error, "connections of a user cannot be counted");
                None
            }
        };
        Ok((Seat { _slot: slot, known: None, seats: self.clone() }, None))
    }

    async fn take_over(self: &Arc<Self>, key: String) -> (Seat, Option<oneshot::Receiver<()>>) {
        self.follower.get_or_init(|| self.follow());
        let holder = format!("{}.{:020}", self.own, self.holders.fetch_add(1, Ordering::Relaxed));
        let patience = Instant::now() + PATIENCE;
        let slot = loop {
            self.taken.replace(&key, &holder);
            if let Err(error) = self.shared.publish(CHANNEL, &format!("{holder} {key}")).await {
                tracing::debug!(%error, "other replicas cannot be told who came");
            }
            match Slot::take(&self.shared, key.clone(), self.slots).await {
                Ok(Some(slot)) => break Some(slot),
                Ok(None) if Instant::now() < patience => tokio::time::sleep(AGAIN).await,
                Ok(None) | Err(_) => break None,
            }
        };
        let (tell, told) = oneshot::channel();
        self.taken.lock().insert(key.clone(), (holder.clone(), tell));
        (Seat { _slot: slot, known: Some((key, holder)), seats: self.clone() }, Some(told))
    }

    /// Hears who came elsewhere.
    fn follow(&self) -> AbortHandle {
        let (mut told, taken) = (self.shared.subscribe(CHANNEL), self.taken.clone());
        let following = tokio::spawn(async move {
            loop {
                match told.recv().await {
                    Ok(message) => {
                        if let Some((holder, key)) = message.split_once(' ') {
                            taken.replace(key, holder);
                        }
                    }
                    // Whoever was told of waits and says it again.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                }
            }
        });
        following.abort_handle()
    }

    /// The caller's key: who it is, or where it calls from where nobody knows. Users' names do not stand in it.
    fn key(&self, exchange: &Exchange) -> String {
        let mut digest = Sha256::new();
        match exchange.identity() {
            Some(caller) => {
                digest.update([b'u']);
                digest.update((caller.tenant_id.len() as u64).to_be_bytes());
                digest.update(caller.tenant_id.as_bytes());
                digest.update(caller.user_id.as_bytes());
            }
            None => digest.update(exchange.client_ip.to_string().as_bytes()),
        }
        let mut key = self.prefix.clone();
        for byte in &digest.finalize()[..16] {
            let _ = write!(key, "{byte:02x}");
        }
        key
    }
}

impl Drop for Seats {
    fn drop(&mut self) {
        if let Some(follower) = self.follower.get() {
            follower.abort();
        }
    }
}

impl Taken {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, (String, oneshot::Sender<()>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whoever has this seat that somebody else came.
    fn replace(&self, key: &str, newcomer: &str) {
        let mut all = self.lock();
        if all.get(key).is_some_and(|(holder, _)| comes_after(newcomer, holder))
            && let Some((_, tell)) = all.remove(key)
        {
            let _ = tell.send(());
        }
    }
}

/// Whether somebody came after a holder: of those of one place the later did (word of an earlier one may be late), and
/// word from elsewhere was said when the holder was there.
fn comes_after(newcomer: &str, holder: &str) -> bool {
    match (newcomer.rsplit_once('.'), holder.rsplit_once('.')) {
        (Some((here, newcomer)), Some((there, holder))) if here == there => newcomer > holder,
        _ => true,
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some((key, own)) = &self.known {
            let mut all = self.seats.taken.lock();
            if all.get(key).is_some_and(|(holder, _)| holder == own) {
                all.remove(key);
            }
        }
    }
}
