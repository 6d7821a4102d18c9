//! What the process has and every routing table shares: settings, telemetry, and what is known of its health.

use crate::accounts::{Accounts, SetupError};
use crate::contract::changelog::Changelog;
use crate::conversations::Turns;
use crate::openapi::Published;
use crate::settings::Settings;
use crate::shared::AnyShared;
use crate::stores::AnyStore;
use crate::telemetry::Telemetry;
use crate::tokens::Tokens;
use crate::tokens::keys::Keys;
use arc_swap::ArcSwapOption;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;
use tokio::sync::watch;

/// What the process has.
pub struct Shared {
    /// Settings, as the process was started with.
    pub settings: Settings,
    /// Metrics and traces.
    pub telemetry: Arc<Telemetry>,
    /// Durable rows.
    pub store: AnyStore,
    /// What replicas share.
    pub shared: AnyShared,
    /// Access tokens.
    pub tokens: Arc<Tokens>,
    /// Users: who may log in, and how.
    pub accounts: Arc<Accounts>,
    /// Answers that are being written.
    pub turns: Arc<Turns>,
    /// Whether traffic should come here, and why not.
    pub readiness: Readiness,
    /// Who can say how the things behind the gateway are.
    pub health: HealthBoard,
    /// The API's descriptions, of the revision that serves; none before there is one.
    pub documents: ArcSwapOption<Published>,
    /// What callers saw change between the revisions that were served.
    pub changelog: Changelog,
    /// Turns true when streams must end: the last part of a shutdown.
    pub closing: watch::Receiver<bool>,
}

/// What was opened before the process can serve.
pub struct Backends {
    /// Durable rows.
    pub store: AnyStore,
    /// What replicas share.
    pub shared: AnyShared,
    /// Access tokens, over both.
    pub tokens: Arc<Tokens>,
    /// Users, over the store and the tokens.
    pub accounts: Arc<Accounts>,
}

impl Backends {
    /// Tokens signed with these keys, over these backends.
    ///
    /// # Errors
    /// Where a setting of mail or WeChat is malformed.
    pub fn new(
        store: AnyStore,
        shared: AnyShared,
        keys: Keys,
        settings: &Settings,
    ) -> Result<Self, SetupError> {
        let tokens = Tokens::new(keys, store.clone(), shared.clone(), settings.token_cache);
        let clock = Arc::new(SystemTime::now);
        let environment = settings.environment;
        let accounts = Accounts::new(store.clone(), tokens.clone(), &settings.accounts, environment, clock)?;
        Ok(Backends { store, shared, tokens, accounts: Arc::new(accounts) })
    }
}

impl Shared {
    /// For a process that starts now; `closing` is turned true by whoever shuts it down.
    pub fn new(
        settings: Settings,
        telemetry: Arc<Telemetry>,
        closing: watch::Receiver<bool>,
        backends: Backends,
    ) -> Arc<Self> {
        let Backends { store, shared, tokens, accounts } = backends;
        let turns =
            Turns::new(store.clone(), shared.clone(), settings.conversations.clone(), closing.clone());
        Arc::new(Shared {
            settings,
            telemetry,
            store,
            shared,
            tokens,
            accounts,
            turns,
            readiness: Readiness::default(),
            health: HealthBoard::default(),
            documents: ArcSwapOption::empty(),
            changelog: Changelog::default(),
            closing,
        })
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Whether traffic should come here.
#[derive(Debug, Default)]
pub struct Readiness {
    draining: AtomicBool,
    /// Whether an operator went back behind what the files say.
    rolled_back: AtomicBool,
    revision: ArcSwapOption<Revision>,
    last_failure: ArcSwapOption<ReloadFailure>,
}

/// A manifest revision that serves.
#[derive(Debug, Clone)]
pub struct Revision {
    /// Counts from 1.
    pub number: u64,
    /// Hash over all files, in hex.
    pub hash: String,
    /// The API's own version, `info.version`.
    pub api_version: String,
    /// When it began to serve.
    pub since: SystemTime,
    /// Number of its routes.
    pub routes: usize,
}

/// Why the newest manifest does not serve.
#[derive(Debug, Clone)]
pub struct ReloadFailure {
    /// When it was refused.
    pub at: SystemTime,
    /// The rendered diagnostics.
    pub report: String,
    /// Hash of the refused files.
    pub hash: String,
}

impl Readiness {
    /// The revision that serves, if any does yet.
    pub fn revision(&self) -> Option<Arc<Revision>> {
        self.revision.load_full()
    }

    /// Why the newest manifest does not serve, if that is so.
    pub fn last_failure(&self) -> Option<Arc<ReloadFailure>> {
        self.last_failure.load_full()
    }

    /// Notes a revision that serves from now on.
    pub fn serves(&self, revision: Revision) {
        self.revision.store(Some(Arc::new(revision)));
        self.recovered();
    }

    /// Notes an earlier revision that serves again, whatever the files say; if they were refused, they still are.
    pub fn rolled_back(&self, revision: Revision) {
        self.revision.store(Some(Arc::new(revision)));
        self.rolled_back.store(true, Ordering::Relaxed);
    }

    /// Whether an earlier revision serves than the files say.
    pub fn is_rolled_back(&self) -> bool {
        self.rolled_back.load(Ordering::Relaxed)
    }

    /// Notes that a manifest was refused; the old one serves on.
    pub fn refused(&self, failure: ReloadFailure) {
        self.last_failure.store(Some(Arc::new(failure)));
    }

    /// Notes that the files are those of the serving revision again.
    pub fn recovered(&self) {
        self.rolled_back.store(false, Ordering::Relaxed);
        self.last_failure.store(None);
    }

    /// From now on traffic should go elsewhere.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether the process is going down.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether traffic should come here.
    pub fn is_ready(&self) -> bool {
        !self.is_draining() && self.revision.load().is_some()
    }
}

/// Who can say how the things behind the gateway are.
#[derive(Default)]
pub struct HealthBoard {
    sources: Mutex<Vec<Arc<dyn HealthSource>>>,
}

/// Something whose health is reported by `/health`.
pub trait HealthSource: Send + Sync {
    /// Name (such as `algo_service`) and state of each thing it watches. Must not block.
    fn checks(&self) -> Vec<(String, CheckState)>;
}

/// State of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CheckState {
    /// Works.
    Healthy,
    /// Not asked yet.
    Unknown,
    /// Works in part.
    Degraded,
    /// Does not work.
    Unhealthy,
}

impl CheckState {
    /// The word in answers.
    pub fn word(self) -> &'static str {
        match self {
            CheckState::Healthy => "healthy",
            CheckState::Unknown => "unknown",
            CheckState::Degraded => "degraded",
            CheckState::Unhealthy => "unhealthy",
        }
    }
}

impl HealthBoard {
    /// Adds somebody who knows.
    pub fn add(&self, source: Arc<dyn HealthSource>) {
        self.sources.lock().unwrap_or_else(|poison| poison.into_inner()).push(source);
    }

    /// Everything that is known, by name.
    pub fn checks(&self) -> BTreeMap<String, CheckState> {
        let sources = self.sources.lock().unwrap_or_else(|poison| poison.into_inner()).clone();
        sources.iter().flat_map(|source| source.checks()).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::shared::SharedLimits;
    use crate::stores::StoreLimits;
    use clap::Parser;
    use std::time::Duration;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        settings: Settings,
    }

    /// What a process started with these flags has, and the switch that says it goes down.
    pub(crate) fn shared(flags: &[&str]) -> (Arc<Shared>, watch::Sender<bool>) {
        let (close, closing) = watch::channel(false);
        let settings = Cli::parse_from(std::iter::once(&"test").chain(flags)).settings;
        let backends = backends(&settings);
        (Shared::new(settings, Arc::default(), closing, backends), close)
    }

    /// Stores that know next to nothing, and tokens over them.
    pub(crate) fn backends(settings: &Settings) -> Backends {
        let (store, _) = crate::tokens::testing::backends();
        let shared: AnyShared = Arc::new(crate::shared::Memory::default());
        let keys = Keys::new(crate::tokens::testing::SECRET.as_bytes(), &[]);
        Backends::new(store, shared, keys, settings).unwrap()
    }

    #[test]
    fn limits_of_stores_are_as_documented() {
        let parse = |flags: &[&str]| Cli::parse_from(std::iter::once(&"test").chain(flags)).settings;
        let settings = parse(&[]).stores;
        assert_eq!(StoreLimits::from(&settings), StoreLimits::default());
        assert_eq!(SharedLimits::from(&settings), SharedLimits::default());
        let settings = parse(&[
            "--db-max-connections=7",
            "--db-acquire-timeout=1s",
            "--db-statement-timeout=4s",
            "--db-call-timeout=6s",
            "--redis-timeout=20ms",
            "--limiter-keys=50000",
        ]);
        let second = Duration::from_secs(1);
        let limits = StoreLimits {
            max_connections: 7,
            acquire_timeout: second,
            statement_timeout: 4 * second,
            call_timeout: 6 * second,
            ..StoreLimits::default()
        };
        assert_eq!(StoreLimits::from(&settings.stores), limits);
        let limits = SharedLimits { timeout: Duration::from_millis(20), keys: 50_000 };
        assert_eq!(SharedLimits::from(&settings.stores), limits);
        assert!(Cli::try_parse_from(["test", "--db-max-connections=0"]).is_err());
    }
}
