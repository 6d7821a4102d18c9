//! A gateway from start to end: both listeners, the watcher, signals, and the way down.

use super::accept::{self, Connections, Limits, Summary, bind, serve};
use super::admin::Admin;
use super::drain::{Drain, Grace};
use super::gateway::Gateway;
use super::live::{Live, Unsound};
use super::memory;
use super::pulse::{self, Pulse};
use super::sweep;
use super::tls::{TlsError, TlsSettings};
use super::watch;
use crate::accounts::SetupError;
use crate::settings::{DoorSettings, Settings};
use crate::shared::{self, SharedError, SharedLimits};
use crate::state::{Backends, Shared};
use crate::stores::{self, AnyStore, StoreError, StoreLimits};
use crate::telemetry::Telemetry;
use crate::tokens::keys::{KeyError, Keys};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch as channel;
use tokio::time::{Instant, timeout_at};

/// How often certificate files are looked at.
const CERTIFICATES: Duration = Duration::from_secs(10);
/// Part of the grace that streams get for saying goodbye.
const GOODBYE: Duration = Duration::from_secs(2);
/// How long the last spans may take.
const FLUSH: Duration = Duration::from_secs(2);
/// Connections of the admin listener.
const ADMIN_CONNECTIONS: usize = 64;

/// A gateway that is up.
pub struct Running {
    /// Where callers reach it.
    pub address: SocketAddr,
    /// Where operators reach it.
    pub admin_address: SocketAddr,
    /// The live table.
    pub live: Arc<Live>,
    drain: Drain,
    closing: channel::Sender<bool>,
    settings: Settings,
    telemetry: Arc<Telemetry>,
    public: tokio::task::JoinHandle<Summary>,
    admin: tokio::task::JoinHandle<Summary>,
    admin_drain: Drain,
    watcher: tokio::task::JoinHandle<()>,
    revocations: tokio::task::JoinHandle<()>,
    turns: tokio::task::JoinHandle<()>,
    pulse: tokio::task::JoinHandle<()>,
    memory: tokio::task::JoinHandle<()>,
    sweeper: tokio::task::JoinHandle<()>,
    store: AnyStore,
}

/// Why a gateway did not come up.
#[derive(Debug)]
pub enum StartError {
    /// The manifest is not sound.
    Unsound(Unsound),
    /// An address cannot be listened on.
    Listen(std::io::Error),
    /// The certificate cannot be used.
    Tls(TlsError),
    /// The admin token cannot be read.
    AdminToken(String),
    /// Mail or WeChat cannot be set up.
    Accounts(SetupError),
    /// Tokens cannot be signed.
    Keys(KeyError),
    /// The database cannot be used.
    Store(StoreError),
    /// What replicas share cannot be reached.
    SharedState(SharedError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Unsound(unsound) => {
                let (errors, warnings) = unsound.counts;
                write!(f, "{}\n{errors} errors, {warnings} warnings: not started", unsound.report)
            }
            StartError::Listen(error) => write!(f, "{error}"),
            StartError::Tls(error) => write!(f, "{error}"),
            StartError::AdminToken(text) => f.write_str(text),
            StartError::Accounts(error) => write!(f, "{error}"),
            StartError::Keys(error) => write!(f, "{error}"),
            StartError::Store(error) => write!(f, "DATABASE_URL: {error}"),
            StartError::SharedState(error) => write!(f, "REDIS_URL: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

/// Starts a gateway. Returns when both listeners answer. `variables` go before the environment's in the manifest's
/// `${…}`.
///
/// # Errors
/// [`StartError`]; nothing is left running then.
pub async fn start(
    settings: Settings,
    telemetry: Arc<Telemetry>,
    variables: BTreeMap<String, String>,
) -> Result<Running, StartError> {
    let tls = match (&settings.tls_cert, &settings.tls_key) {
        (Some(certificate), Some(key)) => Some(TlsSettings::load(certificate, key).map_err(StartError::Tls)?),
        _ => None,
    };
    let admin_token = admin_token(&settings)?;
    let (closing, closed) = channel::channel(false);
    let backends = open(&settings).await?;
    let store = backends.store.clone();
    let shared = Shared::new(settings.clone(), telemetry.clone(), closed, backends);
    show_connections(&shared);
    let config = settings.config.clone();
    let loading = {
        let shared = shared.clone();
        tokio::task::spawn_blocking(move || Live::start(&config, variables, &shared))
    };
    let live = match loading.await {
        Ok(live) => live.map_err(StartError::Unsound)?,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    };
    let listener = bind(settings.listen_address()).map_err(StartError::Listen)?;
    let admin_listener = bind(settings.admin_listen).map_err(StartError::Listen)?;
    let address = listener.local_addr().map_err(StartError::Listen)?;
    let admin_address = admin_listener.local_addr().map_err(StartError::Listen)?;
    // Whoever was bound to this address before is gone: what it left open is nobody's.
    let turns = shared.turns.clone();
    turns.take_over(replica(&settings, address)).await.map_err(StartError::Store)?;
    let turns = tokio::spawn(turns.keep());
    if let Some(tls) = &tls {
        tokio::spawn(tls.clone().keep_fresh(CERTIFICATES));
    }
    let (drain, admin_drain) = (Drain::new(), Drain::new());
    let connections = Connections::shown_by(telemetry.connections().clone());
    let limits = limits(&settings.door).within_file_limit();
    let public = spawn(listener, Gateway::new(live.clone()), limits.clone(), tls, &drain, connections);
    let admin_limits = Limits { max_connections: ADMIN_CONNECTIONS, ..limits };
    let service = Admin::new(live.clone(), admin_token.as_deref());
    let admin = spawn(admin_listener, service, admin_limits, None, &admin_drain, Connections::new());
    let watcher = tokio::spawn(watch::watch(live.clone(), settings.reload_poll.0));
    let revocations = tokio::spawn(live.shared().tokens.follow());
    let stores = Arc::new(Pulse::of(store.clone(), live.shared().shared.clone()));
    stores.ask().await;
    live.shared().health.add(stores.clone());
    let pulse = tokio::spawn(async move { stores.follow(pulse::EVERY).await });
    let memory = tokio::spawn(memory::watch(live.shared().pressure.clone()));
    let sweeper = tokio::spawn(sweep::run(store.clone(), settings.sweep_interval.0));
    Ok(Running {
        address,
        admin_address,
        live,
        drain,
        closing,
        settings,
        telemetry,
        public,
        admin,
        admin_drain,
        watcher,
        revocations,
        turns,
        pulse,
        memory,
        sweeper,
        store,
    })
}

/// Opens what must be there before anything is served, and reads what is revoked.
async fn open(settings: &Settings) -> Result<Backends, StartError> {
    let keys = Keys::from_settings(settings).map_err(StartError::Keys)?;
    let store = stores::open(settings.database().reveal(), &StoreLimits::from(&settings.stores))
        .await
        .map_err(StartError::Store)?;
    store.migrate().await.map_err(StartError::Store)?;
    let redis = settings.redis();
    let limits = SharedLimits::from(&settings.stores);
    let shared = shared::open(redis.as_ref().map(|url| url.reveal()), &limits)
        .await
        .map_err(StartError::SharedState)?;
    let backends = Backends::new(store, shared, keys, settings).map_err(StartError::Accounts)?;
    backends.tokens.load_revocations(SystemTime::now()).await.map_err(StartError::Store)?;
    Ok(backends)
}

/// Lets metrics show the connections to the stores.
fn show_connections(shared: &Shared) {
    let store = shared.store.clone();
    shared.telemetry.show_database(store.backend(), move || store.connections());
    let state = shared.shared.clone();
    if state.backend() == "redis" {
        shared.telemetry.show_redis(move || state.connections());
    }
}

fn spawn<S: accept::Service>(
    listener: TcpListener,
    service: S,
    limits: Limits,
    tls: Option<TlsSettings>,
    drain: &Drain,
    connections: Connections,
) -> tokio::task::JoinHandle<Summary> {
    tokio::spawn(serve(listener, service, limits, tls, drain.clone(), connections))
}

fn limits(door: &DoorSettings) -> Limits {
    Limits {
        max_connections: door.max_connections,
        header_timeout: door.header_timeout.0,
        keep_alive_timeout: door.keep_alive.0,
        write_stall: door.write_timeout.0,
        max_header_bytes: door.max_header_size.0 as usize,
        h2_max_streams: door.max_h2_streams,
        ..Limits::default()
    }
}

/// How rows name this process: what one in its place will be called too.
fn replica(settings: &Settings, address: SocketAddr) -> String {
    settings.conversations.replica.clone().unwrap_or_else(|| {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname");
        let host = host.ok().or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
        format!("{}:{}", host.trim(), address.port())
    })
}

fn admin_token(settings: &Settings) -> Result<Option<String>, StartError> {
    // An environment that sets the variable to nothing sets no token.
    if let Some(token) = settings.admin_token.as_ref().filter(|token| !token.reveal().is_empty()) {
        return Ok(Some(token.reveal().to_owned()));
    }
    let Some(path) = &settings.admin_token_file else { return Ok(None) };
    let token = std::fs::read_to_string(path).map_err(|error| {
        StartError::AdminToken(format!("cannot read the admin token from {}: {error}", path.display()))
    })?;
    match token.trim() {
        "" => Err(StartError::AdminToken(format!("{} holds no admin token: it is empty", path.display()))),
        token => Ok(Some(token.to_owned())),
    }
}

impl Running {
    /// Goes down in order: readiness says no, nothing new is accepted, what is in flight goes on, streams say goodbye
    /// in the last part of `SHUTDOWN_GRACE`, and what is left then is cut. Returns the number of cut connections.
    pub async fn shut_down(self) -> usize {
        let grace = self.settings.shutdown_grace.0;
        let shared = self.live.shared().clone();
        shared.readiness.drain();
        if let Some(delay) = self.settings.drain_delay {
            tracing::info!(delay = %delay, "not ready any more; still accepting");
            tokio::time::sleep(delay.0).await;
        }
        tracing::info!(grace = %self.settings.shutdown_grace, "draining");
        let begun = Instant::now();
        self.watcher.abort();
        let close_after = grace.saturating_sub(GOODBYE.min(grace / 2));
        let stages = self.drain.clone();
        let closing = self.closing.clone();
        let mark = self.drain.closing();
        let bell = tokio::spawn(async move {
            mark.await;
            closing.send_replace(true);
        });
        let clock = tokio::spawn(async move { stages.run(Grace { close_after, cut_after: grace }).await });
        let cut = self.public.await.map_or(0, |summary| summary.cut);
        clock.abort();
        bell.abort();
        // Answers that nobody reads just now may go on for as long as streams may.
        let _ = timeout_at(begun + close_after, shared.turns.idle()).await;
        self.closing.send_replace(true);
        if timeout_at(begun + grace, shared.turns.idle()).await.is_err() {
            tracing::error!(
                turns = shared.turns.running(),
                "answers could not be stored before the grace was over"
            );
        }
        self.turns.abort();
        let left = grace.saturating_sub(begun.elapsed());
        if tokio::time::timeout(left, shared.accounts.links_sent()).await.is_err() {
            tracing::warn!("the grace was over before every link to a new password was sent");
        }
        // The admin listener answers until the end, so that operators can watch.
        let ending = self.admin_drain.clone();
        let short = Grace { close_after: Duration::ZERO, cut_after: Duration::from_millis(200) };
        let admin_clock = tokio::spawn(async move { ending.run(short).await });
        let _ = self.admin.await;
        admin_clock.abort();
        self.revocations.abort();
        self.pulse.abort();
        self.memory.abort();
        self.sweeper.abort();
        self.store.close().await;
        self.telemetry.shutdown(FLUSH).await;
        match cut {
            0 => tracing::info!("stopped: everything in flight finished"),
            cut => tracing::warn!(cut, "stopped: the grace was over before everything finished"),
        }
        cut
    }
}

/// The signals a gateway listens to. Watch them before anybody may think that it is up: until then they kill.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// From now on signals wait to be heard. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// The operating system's.
    pub fn watch() -> std::io::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// Runs a gateway until SIGTERM or SIGINT; SIGHUP reloads.
pub async fn until_told(running: Running, signals: Signals) -> usize {
    let Signals { mut terminate, mut interrupt, mut hangup } = signals;
    loop {
        tokio::select! {
            _ = terminate.recv() => break tracing::info!("SIGTERM"),
            _ = interrupt.recv() => break tracing::info!("SIGINT"),
            _ = hangup.recv() => {
                watch::reload_now(&running.live, "SIGHUP").await;
            }
        }
    }
    // A second signal means it.
    tokio::select! {
        cut = running.shut_down() => cut,
        _ = terminate.recv() => 1,
        _ = interrupt.recv() => 1,
    }
}
