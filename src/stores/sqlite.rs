//! The store in one SQLite file: nothing to install, one machine.
//!
//! WAL, so that readers and the writer do not wait for each other. One connection writes, and its transactions begin
//! IMMEDIATE: writers queue in the pool under a deadline instead of failing half way with SQLITE_BUSY. Another process
//! on the same file (`voicegate admin`) is waited for.
//!
//! Another thread brings what the log holds into the file: [`super::fold`].
//!
//! `synchronous = FULL` for the writer: a kill -9 leaves no half transaction in any mode, but under NORMAL a power cut
//! may take the last commits back, and a used refresh token or a revocation must not come back to life. Writes here
//! are logins and messages of people, not requests: one fsync each is affordable. What running answers said so far is
//! there for a process that is killed, and needs none.

use super::bell::Bell;
use super::faults::{fault, migration_fault, within};
use super::fold::{Folder, TOO_LONG};
use super::portable::{bring_up, portable_store};
use super::rows::{UserRow, text};
use super::*;
use sqlx::migrate::Migrator;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, Connection, Sqlite, Transaction};
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

pub(super) static MIGRATIONS: Migrator = Migrator {
    // A newer replica may have brought the schema further; migrations only ever add.
    ignore_missing: true,
    ..sqlx::migrate!("migrations/sqlite")
};

/// Running answers that are saved by one statement.
const AT_ONCE: usize = 8;
/// How long others go first before the next, and how long all these rests may be together: less than a checkpoint's interval.
const REST: Duration = Duration::from_millis(10);
const RESTS: Duration = Duration::from_millis(600);

/// What the writer's thread is called; the kernel keeps 15 characters.
const WRITER: &str = "sqlite-writer";
/// How far its priority lies below that of whoever passes requests on, where they share a core.
const NICE: i32 = 5;

/// A store in a file, or in memory.
pub(super) struct SqliteStore {
    /// One connection.
    writer: SqlitePool,
    /// Several; in memory, the writer's own.
    readers: SqlitePool,
    /// Whether the writer does without fsync until somebody else takes it.
    hasty: Arc<AtomicBool>,
    /// None in memory.
    folder: Option<Folder>,
    call: Duration,
    migrate: Duration,
    bell: Bell,
}

impl SqliteStore {
    /// Opens the file of a URL, or makes it.
    pub(super) async fn open(url: &str, limits: &StoreLimits) -> Stored<Self> {
        let options = SqliteConnectOptions::from_str(url)
            .map_err(|error| StoreError::Failed(format!("DATABASE_URL {url}: {error}")))?
            .busy_timeout(limits.statement_timeout)
            .foreign_keys(true);
        let pool = SqlitePoolOptions::new()
            .acquire_timeout(limits.acquire_timeout)
            .max_lifetime(None)
            .idle_timeout(None)
            // A file does not hang up.
            .test_before_acquire(false);
        let in_memory = url.contains(":memory:") || url.contains("mode=memory");
        if in_memory {
            // It lives as long as its only connection.
            let only = pool.max_connections(1).connect_with(options).await.map_err(fault)?;
            return Ok(Self::new(only.clone(), only, Arc::default(), None, limits));
        }

        let unopened = |why: &dyn std::fmt::Display| {
            StoreError::Failed(format!(
                "DATABASE_URL {url}: cannot open {}: {why}; does its folder exist, and may this user write there?",
                options.get_filename().display()
            ))
        };
        make_private(options.get_filename()).map_err(|error| unopened(&error))?;
        let writing =
            options.clone().journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
        switch_to_wal(&writing, limits.call_timeout).await.map_err(|error| unopened(&error))?;
        let writing =
            writing.thread_name(|_| WRITER.to_owned()).pragma("wal_autocheckpoint", TOO_LONG.to_string());
        let hasty = Arc::<AtomicBool>::default();
        let was_hasty = hasty.clone();
        let careful = pool.clone().before_acquire(move |connection, _| {
            let was = was_hasty.swap(false, Ordering::Relaxed);
            Box::pin(async move {
                if was {
                    sqlx::query("PRAGMA synchronous = FULL").execute(connection).await?;
                }
                Ok(true)
            })
        });
        let writer = careful.max_connections(1).connect_with(writing).await;
        let writer = writer.map_err(|error| unopened(&error))?;
        go_behind(WRITER, NICE);
        let folder = Folder::start(pool.clone(), options.clone(), writer.clone());
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        let readers = pool
            .max_connections(limits.max_connections.clamp(1, cores.max(2)))
            .connect_lazy_with(options.clone().pragma("query_only", "ON"));
        Ok(Self::new(writer, readers, hasty, Some(folder), limits))
    }

    fn new(
        writer: SqlitePool,
        readers: SqlitePool,
        hasty: Arc<AtomicBool>,
        folder: Option<Folder>,
        limits: &StoreLimits,
    ) -> Self {
        SqliteStore {
            writer,
            readers,
            hasty,
            folder,
            call: limits.call_timeout,
            migrate: limits.migrate_timeout,
            bell: Bell::default(),
        }
    }

    /// Forgets a few lockouts that are over.
    const FORGET_LOCKOUTS: &str = "DELETE FROM lockouts WHERE name_hash IN \
         (SELECT name_hash FROM lockouts WHERE forget_at <= $1 ORDER BY forget_at LIMIT 8)";

    /// Asks the turns of a session (or one of them) to stop.
    const STOP_TURNS: &str =
        "UPDATE turns SET stop_asked = TRUE WHERE session_id = $1 AND ($2 IS NULL OR id = $2) RETURNING id";

    /// Removes sessions of a user, with what hangs on them.
    const REMOVE_SESSIONS: &str =
        "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE user_id = $1 LIMIT $2)";

    fn reader(&self) -> &SqlitePool {
        &self.readers
    }

    fn writer(&self) -> &SqlitePool {
        &self.writer
    }

    async fn begin(&self) -> sqlx::Result<Transaction<'static, Sqlite>> {
        self.writer.begin_with("BEGIN IMMEDIATE").await
    }

    /// The writer, without fsync. Whoever takes it next has it with.
    async fn hasty_writer(&self) -> sqlx::Result<PoolConnection<Sqlite>> {
        let mut writer = self.writer.acquire().await?;
        self.hasty.store(true, Ordering::Relaxed);
        sqlx::query("PRAGMA synchronous = NORMAL").execute(&mut *writer).await?;
        Ok(writer)
    }

    async fn one_user<'q>(
        &self,
        query: sqlx::query::QueryAs<'q, Sqlite, UserRow, sqlx::sqlite::SqliteArguments>,
    ) -> Stored<User> {
        within(self.call, query.fetch_one(self.reader())).await.map(User::from)
    }

    /// Adds a revocation; its serial number. There is one writer: numbers appear in their order.
    async fn add_revocation(&self, subject: &str, not_after: i64, expires_at: i64) -> sqlx::Result<i64> {
        sqlx::query_scalar(
            "INSERT INTO revocations (subject, not_after, expires_at) VALUES ($1, $2, $3) RETURNING serial",
        )
        .bind(subject)
        .bind(not_after)
        .bind(expires_at)
        .fetch_one(&self.writer)
        .await
    }

    /// Keeps a replica's turns alive and what they said; which of them shall stop. A few answers at a time, with rests: SQLite
    /// writes on the cores that pass streams on, and there is one writer, for whom others wait.
    async fn keep(&self, replica: &str, said: &[Piece], alive_until: i64) -> sqlx::Result<Vec<(String,)>> {
        sqlx::query("UPDATE turns SET alive_until = $2 WHERE replica = $1")
            .bind(replica)
            .bind(alive_until)
            .execute(&mut *self.hasty_writer().await?)
            .await?;
        let mut lost = Vec::new();
        let rest = REST.min(RESTS / said.len().div_ceil(AT_ONCE).max(1) as u32);
        for (number, group) in said.chunks(AT_ONCE).enumerate() {
            if number > 0 {
                tokio::time::sleep(rest).await;
            }
            let values: Vec<String> = (0..group.len() * 3)
                .step_by(3)
                .map(|before| format!("(${}, ${}, ${})", before + 2, before + 3, before + 4))
                .collect();
            // A call that was given up may yet come behind the one that repeats it: the longer text is the later.
            let sql = format!(
                "WITH v (id, place, said) AS (VALUES {}) INSERT INTO turn_pieces (turn_id, at_byte, said) \
                 SELECT v.id, v.place, v.said FROM v JOIN turns ON turns.id = v.id AND turns.replica = $1 WHERE TRUE \
                 ON CONFLICT (turn_id, at_byte) DO UPDATE SET said = excluded.said \
                 WHERE length(excluded.said) > length(turn_pieces.said) RETURNING turn_id",
                values.join(", ")
            );
            // Numbers and commas alone are put together here.
            let mut query = sqlx::query_as(AssertSqlSafe(sql)).bind(replica);
            for piece in group {
                query = query.bind(&piece.turn).bind(piece.place()).bind(text(&piece.text));
            }
            let mut writer = self.hasty_writer().await?;
            let kept: Vec<(String,)> = query.fetch_all(&mut *writer).await?;
            let kept = |turn: &str| kept.iter().any(|(id,)| id == turn);
            for Piece { turn, .. } in group.iter().filter(|piece| !kept(&piece.turn)) {
                let sql = "SELECT 1 FROM turns WHERE id = $1 UNION ALL SELECT 1 FROM messages WHERE id = $1";
                if sqlx::query(sql).bind(turn).fetch_optional(&mut *writer).await?.is_none() {
                    lost.push((turn.clone(),));
                }
            }
        }
        let mut stop: Vec<(String,)> =
            sqlx::query_as("SELECT id FROM turns WHERE replica = $1 AND stop_asked ORDER BY id")
                .bind(replica)
                .fetch_all(&self.writer)
                .await?;
        stop.append(&mut lost);
        Ok(stop)
    }
}

/// Gives the threads of that name a priority that many steps lower. Where the system has no such thing, they keep theirs.
pub(super) fn go_behind(name: &str, steps: i32) {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return };
    for thread in threads.flatten() {
        let called = std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
        let id = thread.file_name().to_string_lossy().parse().ok().and_then(rustix::process::Pid::from_raw);
        if called.trim_end() == name
            && let Some(id) = id
        {
            // Linux takes a thread's id for the thread alone.
            let own = rustix::process::getpriority_process(None);
            let set =
                own.and_then(|own| rustix::process::setpriority_process(Some(id), (own + steps).min(19)));
            if let Err(error) = set {
                tracing::debug!(%error, name, "a thread of SQLite's keeps its priority");
            }
        }
    }
}

portable_store!(SqliteStore);

#[async_trait]
impl Store for SqliteStore {
    fn backend(&self) -> &'static str {
        "sqlite"
    }

    async fn migrate(&self) -> Stored<usize> {
        // SQLite has no lock for migrations of sqlx's; one write transaction around all of them is one.
        let run = async {
            let mut tx = self.begin().await?;
            let ran = bring_up(&MIGRATIONS, &mut *tx).await?;
            tx.commit().await?;
            Ok(ran)
        };
        match tokio::time::timeout(self.migrate, run).await {
            Ok(done) => done.map_err(migration_fault),
            Err(_) => {
                Err(StoreError::Unavailable(format!("migrations did not end within {:?}", self.migrate)))
            }
        }
    }

    async fn ping(&self) -> Stored<()> {
        within(Duration::from_secs(1), async {
            sqlx::query("SELECT 1").execute(&self.readers).await?;
            Ok(())
        })
        .await
    }

    fn connections(&self) -> (u32, u32) {
        let pools = [&self.writer, &self.readers];
        // In memory both are one.
        let distinct = if std::ptr::eq(self.writer.options(), self.readers.options()) { 1 } else { 2 };
        pools.into_iter().take(distinct).fold((0, 0), |(busy, idle), pool| {
            let resting = pool.num_idle() as u32;
            (busy + pool.size().saturating_sub(resting), idle + resting)
        })
    }

    async fn close(&self) {
        let closing = async {
            if let Some(folder) = &self.folder {
                folder.close().await;
            }
            self.readers.close().await;
            // Last: the last connection folds the WAL into the file.
            self.writer.close().await;
        };
        // A call that hangs does not keep the process from ending; the WAL is read at the next start.
        let _ = tokio::time::timeout(self.call, closing).await;
    }
}

/// Makes the file readable by its owner only, if it is missing: it holds password hashes. SQLite gives the WAL the
/// same mode.
fn make_private(file: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(file) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Puts the file into WAL mode, which is kept in it. SQLite does not wait for others here, whatever the busy timeout,
/// so that processes that start together on a new file would trip each other: try again for `patience`.
async fn switch_to_wal(options: &SqliteConnectOptions, patience: Duration) -> sqlx::Result<()> {
    let start = Instant::now();
    loop {
        match SqliteConnection::connect_with(options).await {
            Ok(connection) => return connection.close().await,
            Err(error) if start.elapsed() < patience && is_locked(&error) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

fn is_locked(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|refusal| refusal.code());
    code.and_then(|code| code.parse::<u32>().ok()).is_some_and(|code| matches!(code & 0xff, 5 | 6))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_answers_said_so_far_does_without_fsync() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("a.db").display());
        let store = SqliteStore::open(&url, &StoreLimits::default()).await.unwrap();
        let level = async |writer: &mut SqliteConnection| -> i64 {
            sqlx::query_scalar("PRAGMA synchronous").fetch_one(writer).await.unwrap()
        };
        const NORMAL: i64 = 1;
        const FULL: i64 = 2;
        assert_eq!(level(&mut *store.writer.acquire().await.unwrap()).await, FULL);
        assert_eq!(level(&mut *store.hasty_writer().await.unwrap()).await, NORMAL);
        assert_eq!(level(&mut *store.begin().await.unwrap()).await, FULL);
        // Whoever had it gives up in the middle.
        drop(tokio::time::timeout(Duration::ZERO, store.hasty_writer()).await);
        assert_eq!(level(&mut *store.writer.acquire().await.unwrap()).await, FULL);
    }

    #[tokio::test]
    async fn the_writer_goes_behind_and_nobody_else_does() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("a.db").display());
        let _store = SqliteStore::open(&url, &StoreLimits::default()).await.unwrap();
        let own = rustix::process::getpriority_process(None).unwrap();
        let mut writers = 0;
        for thread in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
            // Other tests' threads come and go.
            let Ok(called) = std::fs::read_to_string(thread.path().join("comm")) else { continue };
            if called.trim_end() == WRITER {
                let id = thread.file_name().to_string_lossy().parse().unwrap();
                let id = rustix::process::Pid::from_raw(id).unwrap();
                writers +=
                    usize::from(rustix::process::getpriority_process(Some(id)) == Ok((own + NICE).min(19)));
            }
        }
        assert!(writers > 0);
    }
}
