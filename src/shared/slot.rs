//! A slot that is kept up for as long as its holder lives: what bounds how much of something is under way.

use super::{AnyShared, Lease, SharedError};
use std::time::{Duration, SystemTime};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long a slot is held without a word from its holder.
const TTL: Duration = Duration::from_secs(30);
/// How often the holder says a word.
const RENEW: Duration = Duration::from_secs(10);

/// One of a bounded number of slots. Dropping it gives it back; that of a replica that died runs out after half a
/// minute.
#[derive(Debug)]
pub struct Slot(#[expect(dead_code, reason = "its drop is the message")] oneshot::Sender<()>);

impl Slot {
    /// Takes one of `slots` slots of a key; `None` where all are taken. Whoever stops waiting leaves none taken.
    ///
    /// # Errors
    /// Where shared state cannot be reached at all.
    pub async fn take(shared: &AnyShared, key: String, slots: u32) -> Result<Option<Slot>, SharedError> {
        let (held, gone) = oneshot::channel();
        let (tell, told) = oneshot::channel();
        // A task of its own, so that a caller who leaves while a slot is being taken does not keep it.
        tokio::spawn(hold(shared.clone(), key, slots, tell, gone));
        let taken = told.await.unwrap_or(Ok(false))?;
        Ok(taken.then_some(Slot(held)))
    }
}

/// Takes a slot, says whether it has one, and keeps it until `gone`.
async fn hold(
    shared: AnyShared,
    key: String,
    slots: u32,
    tell: oneshot::Sender<Result<bool, SharedError>>,
    mut gone: oneshot::Receiver<()>,
) {
    let mut lease: Lease = match shared.acquire(&key, slots, TTL, SystemTime::now()).await {
        Ok(Some(lease)) => {
            // Who left meanwhile is found gone below.
            let _ = tell.send(Ok(true));
            lease
        }
        Ok(None) => return drop(tell.send(Ok(false))),
        Err(error) => return drop(tell.send(Err(error))),
    };
    while timeout(RENEW, &mut gone).await.is_err() {
        // Shared state may have forgotten it (it was restarted); while it is away there is nobody to tell.
        if let Ok(false) = shared.renew(&lease, TTL, SystemTime::now()).await
            && let Ok(Some(anew)) = shared.acquire(&key, slots, TTL, SystemTime::now()).await
        {
            lease = anew;
        }
    }
    if let Err(error) = shared.release(&lease).await {
        tracing::debug!(%error, "a slot could not be given back: it runs out by itself");
    }
}
