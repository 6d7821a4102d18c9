//! Which database, for commands that work on it without a gateway; and `voicegate migrate`.

use super::{FINDINGS, OK, USAGE, print, say};
use crate::settings::{OriginalStores, Secret, database};
use crate::stores::{self, AnyStore, StoreError, StoreLimits};
use clap::Args;

/// The database of a command.
#[derive(Debug, Args)]
pub(super) struct DatabaseArgs {
    /// Database: `sqlite://FILE` or `postgres://USER:PASSWORD@HOST/NAME` [default: sqlite://voicegate.db, or what
    /// POSTGRES_HOST, _PORT, _DB, _USER, _PASSWORD and _SSL_MODE say]
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<Secret>,

    #[command(flatten)]
    original: OriginalStores,
}

impl DatabaseArgs {
    /// Opens it and brings its schema up to date; the number of migrations that ran.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn open(&self) -> Result<(AnyStore, usize), StoreError> {
        let url = database(self.database_url.as_ref(), &self.original);
        let store = stores::open(url.reveal(), &StoreLimits::default()).await?;
        let ran = store.migrate().await?;
        Ok((store, ran))
    }
}

pub(super) fn migrate(database: &DatabaseArgs) -> u8 {
    run(async {
        match database.open().await {
            Ok((store, ran)) => {
                print(&format!("{ran} migrations ran; the {} database is up to date\n", store.backend()));
                store.close().await;
                OK
            }
            Err(error) => {
                say(&format!("error: {error}"));
                FINDINGS
            }
        }
    })
}

/// Runs a command that waits for the database.
pub(super) fn run(work: impl Future<Output = u8>) -> u8 {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => {
            say(&format!("error: the runtime cannot start: {error}"));
            USAGE
        }
    }
}
