//! Every turn of this process, and its word to the others.
//!
//! A turn's row is opened before the upstream is asked and closed with the assistant's message. In between, once a
//! second, one call for all of them saves what was said and says that this replica is alive; the same call brings back
//! which of them somebody on another replica wants stopped. A replica that dies leaves rows that nobody vouches for any
//! more: whoever notices first closes them as interrupted with what was saved. A process that starts in the place of
//! one that died (same host, same port) does so at once.

use super::fault;
use super::mirror::{Kept, Numbered, mirror};
use super::tail::Tail;
use super::turn::{Answer, Ending, Stop, Turn, TurnLimits, read_out, refused};
use crate::error::{GatewayError, Kind};
use crate::exchange::End;
use crate::manifest::model::OnDisconnect;
use crate::settings::ConversationSettings;
use crate::shared::AnyShared;
use crate::stores::{AnyStore, MessageStatus, NewTurn, Once, Owner, RetryKey, StoreError, TurnRef};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, sleep, timeout};
use uuid::Uuid;

/// Channel on which replicas ask each other to stop a turn; the database brings it too, a little later.
const STOP: &str = "turns.stop";
/// How long readers wait for the last event while the message cannot be stored.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long somebody who stops a turn waits until it is over.
const STOPPING: Duration = Duration::from_secs(3);
/// Between attempts to store a message, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How often, and how far apart, a retry looks for what its first request began.
const AGAIN: u32 = 10;
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How often turns of dead replicas are looked for, in checkpoints.
const RECOVER_EVERY: u32 = 5;

/// A question.
#[derive(Debug, Clone)]
pub struct Question {
    /// Who asks.
    pub owner: Owner,
    /// In which session.
    pub session_id: String,
    /// What.
    pub query: String,
    /// Recognises a retry.
    pub retry: Option<RetryKey>,
}

/// What stopping came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// The turns.
    pub turns: Vec<String>,
    /// Whether all of them are over already.
    pub over: bool,
}

/// Every turn of this process.
pub struct Turns {
    pub(super) store: AnyStore,
    pub(super) shared: AnyShared,
    settings: ConversationSettings,
    replica: OnceLock<String>,
    turns: Mutex<HashMap<String, Known>>,
    /// Number of turns whose message is not stored yet.
    running: watch::Sender<usize>,
    closing: watch::Receiver<bool>,
}

struct Known {
    turn: Arc<Turn>,
    /// Since when it is over.
    over: Option<Instant>,
}

impl std::fmt::Debug for Turns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turns").field("running", &*self.running.borrow()).finish_non_exhaustive()
    }
}

/// Counts a turn as running until its message is stored.
struct Running(Arc<Turns>);

impl Running {
    fn new(turns: &Arc<Turns>) -> Self {
        turns.running.send_modify(|running| *running += 1);
        Running(turns.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.send_modify(|running| *running -= 1);
    }
}

impl Turns {
    /// None yet. `closing` turns true when streams must end.
    pub fn new(
        store: AnyStore,
        shared: AnyShared,
        settings: ConversationSettings,
        closing: watch::Receiver<bool>,
    ) -> Arc<Self> {
        Arc::new(Turns {
            store,
            shared,
            settings,
            replica: OnceLock::new(),
            turns: Mutex::default(),
            running: watch::Sender::new(0),
            closing,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.turns.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// This replica, as rows name it.
    fn replica(&self) -> &str {
        self.replica.get_or_init(|| Uuid::new_v4().to_string())
    }

    fn alive_until(&self, now: SystemTime) -> SystemTime {
        now + self.settings.turn_lease.0
    }

    /// Waits until streams must end.
    pub(super) async fn closes(&self) {
        if self.closing.clone().wait_for(|closing| *closing).await.is_err() {
            // Nobody can ever say so.
            std::future::pending::<()>().await;
        }
    }

    /// Whether a turn of the owner's runs, wherever that is.
    pub(super) async fn runs(&self, owner: &Owner, turn: &TurnRef) -> Result<bool, StoreError> {
        self.store.turn_runs(owner, &turn.session_id, &turn.id).await
    }

    /// How many turns run whose message is not stored yet.
    pub fn running(&self) -> usize {
        *self.running.borrow()
    }

    /// Waits until none runs.
    pub async fn idle(&self) {
        // The sender lives as long as `self` does.
        let _ = self.running.subscribe().wait_for(|running| *running == 0).await;
    }

    /// Stores a question, asks the upstream by `ask`, and gives its events once there are some to come. Whatever
    /// happens to the caller, the turn is brought to an end and stored.
    ///
    /// # Errors
    /// 404 where the session is not the owner's, 422 for a retry key of another question, 409 for a retry whose turn
    /// runs where its events cannot be read, 503 where the store is away, and whatever `ask` says.
    pub async fn ask<F>(
        self: &Arc<Self>,
        question: Question,
        limits: TurnLimits,
        ask: impl FnOnce() -> F + Send + 'static,
    ) -> Result<Tail, GatewayError>
    where
        F: Future<Output = Result<Answer, GatewayError>> + Send + 'static,
    {
        let (tell, told) = oneshot::channel();
        // A task of its own from the first row on: a caller who leaves in the middle must not leave half a turn.
        tokio::spawn(self.clone().run(question, limits, ask, tell));
        // The runtime goes down.
        told.await.unwrap_or_else(|_| Err(Kind::ShuttingDown.into()))
    }

    async fn run<F>(
        self: Arc<Self>,
        question: Question,
        limits: TurnLimits,
        ask: impl FnOnce() -> F + Send + 'static,
        mut tell: oneshot::Sender<Result<Tail, GatewayError>>,
    ) where
        F: Future<Output = Result<Answer, GatewayError>> + Send + 'static,
    {
        let running = Running::new(&self);
        let owner = question.owner.clone();
        let turn = match self.begin(question).await {
            Ok(Once::Done(turn)) => turn,
            Ok(Once::Before(turn)) => {
                drop(running);
                let _ = tell.send(self.again(&owner, &turn, limits).await);
                return;
            }
            Ok(Once::Mismatch) => return drop(tell.send(Err(Kind::IdempotencyKeyReused.into()))),
            Err(error) => return drop(tell.send(Err(error))),
        };
        let turn = Turn::new(turn, owner, limits);
        self.lock().insert(turn.id.clone(), Known { turn: turn.clone(), over: None });
        let tail = Tail::of(&turn, 0);
        let began = Instant::now();
        let leaves = limits.on_disconnect == OnDisconnect::Cancel;
        let asked = tokio::select! {
            biased;
            ending = turn.stopped(self.closing.clone()) => Err((ending, stopped_early(&self.closing))),
            () = tell.closed(), if leaves => Err((
                Ending { status: MessageStatus::Interrupted, end: End::ClientLeft, last: None },
                Kind::ShuttingDown.into(),
            )),
            answer = ask() => answer.map_err(|error| (refused(&error), error)),
        };
        let answer = match asked {
            Ok(answer) => answer,
            Err((ending, error)) => {
                self.finish(&turn, ending, None, running).await;
                let _ = tell.send(Err(error));
                return;
            }
        };
        // Gives the tail back, and so stops the turn, where nobody waits for it any more.
        drop(tell.send(Ok(tail)));
        let mirror = self.mirror(&turn);
        let told = |number, event: Bytes| {
            if let Some(mirror) = &mirror {
                let _ = mirror.send((number, event));
            }
        };
        let stopped = turn.stopped(self.closing.clone());
        let (ending, rest) = turn.read(answer, began, stopped, told).await;
        let storing = self.finish(&turn, ending, mirror, running);
        match rest {
            Some(body) => drop(tokio::join!(storing, read_out(body))),
            None => storing.await,
        }
    }

    async fn begin(&self, question: Question) -> Result<Once<TurnRef>, GatewayError> {
        let Question { owner, session_id, query, retry } = question;
        let now = SystemTime::now();
        let turn = NewTurn {
            id: Uuid::now_v7().to_string(),
            session_id,
            message_id: Uuid::now_v7().to_string(),
            query,
            replica: self.replica().to_owned(),
            alive_until: self.alive_until(now),
        };
        self.store.begin_turn(&owner, &turn, retry.as_ref(), now).await.map_err(fault)
    }

    /// Stores the message, then tells readers the last event. A store that is away is asked again until the process
    /// ends; readers do not wait for that.
    async fn finish(
        self: &Arc<Self>,
        turn: &Arc<Turn>,
        ending: Ending,
        mirror: Option<mpsc::UnboundedSender<Numbered>>,
        running: Running,
    ) {
        let storing = tokio::spawn(self.clone().store(turn.clone(), ending.status, running));
        let _ = timeout(PATIENCE, storing).await;
        if let Some(last) = &ending.last {
            let event = turn.log.append(last);
            if let Some(mirror) = &mirror {
                let _ = mirror.send((turn.log.len() as u64, event));
            }
        }
        turn.log.close(ending.end);
        if let Some(mirror) = mirror {
            // An empty event is no event: it says that nothing follows.
            let _ = mirror.send((turn.log.len() as u64 + 1, Bytes::new()));
        }
        let kept = turn.limits.on_disconnect == OnDisconnect::Finish && !turn.limits.resume_for.is_zero();
        let mut turns = self.lock();
        match turns.get_mut(&turn.id) {
            Some(known) if kept => known.over = Some(Instant::now()),
            _ => drop(turns.remove(&turn.id)),
        }
        bound(&mut turns, self.settings.resume_memory.0);
    }

    async fn store(self: Arc<Self>, turn: Arc<Turn>, status: MessageStatus, running: Running) {
        let end = turn.message(status);
        let row = TurnRef { id: turn.id.clone(), session_id: turn.session_id.clone() };
        let mut wait = RETRY.0;
        loop {
            match self.store.finish_turn(&row, &end, SystemTime::now()).await {
                Ok(()) | Err(StoreError::NotFound) => break,
                Err(error) => {
                    tracing::warn!(turn = %turn.id, %error, again_in = ?wait, "an answer is not stored yet");
                }
            }
            sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        }
        turn.is_stored();
        drop(running);
    }

    /// Copies a turn's events to where other replicas can read them, where that is of use.
    fn mirror(&self, turn: &Turn) -> Option<mpsc::UnboundedSender<Numbered>> {
        if turn.limits.on_disconnect == OnDisconnect::Cancel || self.shared.backend() == "memory" {
            return None;
        }
        // As long as the stream may be, which is bounded.
        let (sender, events) = mpsc::unbounded_channel();
        let row = TurnRef { id: turn.id.clone(), session_id: turn.session_id.clone() };
        let TurnLimits { times, resume_for, .. } = turn.limits;
        let kept = Kept { running: times.max + resume_for, over: resume_for };
        tokio::spawn(mirror(self.shared.clone(), log_key(&turn.owner, &row), kept, events));
        Some(sender)
    }

    /// The events of a turn that was begun by an earlier request with the same retry key.
    async fn again(
        self: &Arc<Self>,
        owner: &Owner,
        turn: &TurnRef,
        limits: TurnLimits,
    ) -> Result<Tail, GatewayError> {
        for _ in 0..AGAIN {
            if let Some(tail) = self.tail(owner, &turn.session_id, &turn.id, 0, limits).await? {
                return Ok(tail);
            }
            match self.store.message(owner, &turn.session_id, &turn.id).await {
                Ok(message) => return Ok(Tail::told_again(turn, &message)),
                // The first request has stored its question, and is about to run.
                Err(StoreError::NotFound) => sleep(LOOK_AGAIN).await,
                Err(error) => return Err(fault(error)),
            }
        }
        let detail =
            "the first request with this Idempotency-Key is under way where its answer cannot be read along";
        Err(GatewayError {
            retry_after: Some(Duration::from_secs(1)),
            ..GatewayError::new(Kind::StillRunning, detail)
        })
    }

    /// The events of a turn behind the one that `id` names (`Last-Event-ID`).
    ///
    /// # Errors
    /// 410 where they are not kept (any more), 503 where that cannot be found out.
    pub async fn resume(
        self: &Arc<Self>,
        owner: &Owner,
        session_id: &str,
        id: &str,
        limits: TurnLimits,
    ) -> Result<Tail, GatewayError> {
        let gone = || GatewayError::new(Kind::StreamGone, "read the session's messages for what was said");
        let (turn, read) = id.split_once(':').ok_or_else(gone)?;
        let read = read.parse().map_err(|_| gone())?;
        self.tail(owner, session_id, turn, read, limits).await?.ok_or_else(gone)
    }

    async fn tail(
        self: &Arc<Self>,
        owner: &Owner,
        session_id: &str,
        turn: &str,
        read: u64,
        limits: TurnLimits,
    ) -> Result<Option<Tail>, GatewayError> {
        let mine = {
            let turns = self.lock();
            let known = turns.get(turn).map(|known| &known.turn);
            // Whoever is not the owner learns nothing, not even that it is there.
            known.filter(|turn| turn.owner == *owner && turn.session_id == session_id).cloned()
        };
        if let Some(turn) = mine {
            return Ok(Some(Tail::of(&turn, usize::try_from(read).unwrap_or(usize::MAX))));
        }
        if limits.on_disconnect == OnDisconnect::Cancel || self.shared.backend() == "memory" {
            return Ok(None);
        }
        let turn = TurnRef { id: turn.to_owned(), session_id: session_id.to_owned() };
        Tail::elsewhere(self, owner, turn, read).await
    }

    /// Stops the turns of a session, or only one of them, wherever they run; waits a little until they are over.
    ///
    /// # Errors
    /// 404 where none runs, 503 where the store is away.
    pub async fn cancel(
        &self,
        owner: &Owner,
        session_id: &str,
        turn: Option<&str>,
    ) -> Result<Stopped, GatewayError> {
        let turns = self.store.ask_to_stop(owner, session_id, turn).await.map_err(fault)?;
        if turns.is_empty() {
            return Err(Kind::NotRunning.into());
        }
        for id in &turns {
            let known = self.lock().get(id).map(|known| known.turn.clone());
            match known {
                Some(turn) => turn.stop(Stop::Cancelled),
                // Only makes it sooner: the database tells its replica too.
                None => drop(self.shared.publish(STOP, id).await),
            }
        }
        let over = timeout(STOPPING, async {
            for id in &turns {
                let known = self.lock().get(id).map(|known| known.turn.clone());
                match known {
                    Some(turn) => turn.until_stored().await,
                    None => {
                        while self.store.turn_runs(owner, session_id, id).await.unwrap_or(true) {
                            sleep(Duration::from_millis(50)).await;
                        }
                    }
                }
            }
        });
        let over = over.await.is_ok();
        Ok(Stopped { turns, over })
    }

    /// Takes the place `replica` (host and port) and closes what an earlier process left open there. Before
    /// anything is served.
    ///
    /// # Errors
    /// The store's.
    pub async fn take_over(&self, replica: String) -> Result<u64, StoreError> {
        let replica = self.replica.get_or_init(|| replica);
        let closed = self.store.recover_turns(replica, SystemTime::now()).await?;
        if closed > 0 {
            tracing::warn!(
                turns = closed,
                "answers that an earlier process had begun are marked as interrupted"
            );
        }
        Ok(closed)
    }

    /// Saves what running turns said, hears who wants them stopped, forgets those that are over, and closes those of
    /// dead replicas; until it is dropped.
    pub async fn keep(self: Arc<Self>) {
        let mut stops = self.shared.subscribe(STOP);
        let mut tick = tokio::time::interval(self.settings.turn_checkpoint.0);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rounds: u32 = 0;
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                Ok(id) = stops.recv() => {
                    self.stop_asked(&id);
                    continue;
                }
            }
            self.checkpoint().await;
            self.forget();
            rounds = rounds.wrapping_add(1);
            if rounds.is_multiple_of(RECOVER_EVERY) {
                match self.store.recover_turns("", SystemTime::now()).await {
                    Ok(0) => {}
                    Ok(turns) => {
                        tracing::warn!(turns, "answers of replicas that died are marked as interrupted")
                    }
                    Err(error) => tracing::debug!(%error, "cannot look for answers of dead replicas"),
                }
            }
        }
    }

    fn stop_asked(&self, id: &str) {
        if let Some(known) = self.lock().get(id) {
            known.turn.stop(Stop::Cancelled);
        }
    }

    async fn checkpoint(&self) {
        let running: Vec<Arc<Turn>> = self
            .lock()
            .values()
            .filter(|known| known.over.is_none())
            .map(|known| known.turn.clone())
            .collect();
        if running.is_empty() {
            return;
        }
        let (mut saying, mut said) = (Vec::new(), Vec::new());
        for (number, turn) in running.into_iter().enumerate() {
            // Copying much must not hold up what passes meanwhile.
            if number % 32 == 31 {
                tokio::task::yield_now().await;
            }
            if let Some(piece) = turn.unsaved() {
                saying.push(turn);
                said.push(piece);
            }
        }
        let until = self.alive_until(SystemTime::now());
        match self.store.keep_turns(self.replica(), &said, until).await {
            Ok(stop) => {
                saying.iter().zip(&said).for_each(|(turn, piece)| turn.is_saved(piece));
                stop.iter().for_each(|id| self.stop_asked(id));
            }
            Err(error) => tracing::debug!(%error, "what running answers said cannot be saved now"),
        }
    }

    /// Turns that were over long enough.
    fn forget(&self) {
        let now = Instant::now();
        self.lock()
            .retain(|_, known| known.over.is_none_or(|over| now < over + known.turn.limits.resume_for));
    }
}

/// Forgets turns that are over, the oldest first, until the rest fits.
fn bound(turns: &mut HashMap<String, Known>, memory: u64) {
    let over = |known: &Known| known.over.is_some().then(|| known.turn.log.size());
    let mut held: u64 = turns.values().filter_map(over).sum();
    while held > memory {
        let oldest = turns.iter().filter_map(|(id, known)| Some((known.over?, id))).min();
        let Some(id) = oldest.map(|(_, id)| id.clone()) else { return };
        if let Some(known) = turns.remove(&id) {
            held -= known.turn.log.size();
        }
    }
}

/// What a caller is told whose turn was stopped before its stream began.
fn stopped_early(closing: &watch::Receiver<bool>) -> GatewayError {
    match *closing.borrow() {
        true => Kind::ShuttingDown.into(),
        false => GatewayError::new(Kind::TurnCancelled, "somebody stopped this answer before it began"),
    }
}

/// Where a turn's events are for other replicas; the tenant's length keeps two owners from sharing a key.
pub(super) fn log_key(owner: &Owner, turn: &TurnRef) -> String {
    let Owner { tenant_id, user_id } = owner;
    let TurnRef { id, session_id } = turn;
    format!("turn:{}:{tenant_id}:{user_id}:{session_id}:{id}", tenant_id.len())
}
