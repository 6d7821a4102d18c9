//! SQLite's log (WAL), folded into its file behind everybody's back.
//!
//! SQLite would do it within the commit that made the log a thousand pages long: some 10 ms of copying, for which the
//! next writer waits, and on a shared core the streams. A thread of the lowest priority does it here. It is late where
//! the cores are busy, and nobody waits for it: the log only grows a little longer.

use super::faults::fault;
use super::sqlite::go_behind;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// How often the log is folded.
const EVERY: Duration = Duration::from_secs(1);
/// Pages of 4 KiB from which the log shall begin anew.
const LONG: i64 = 4096;
/// Pages from which whoever commits folds the log, should this here come to nothing.
pub(super) const TOO_LONG: i64 = 16 * LONG;

/// What its thread is called.
pub(super) const FOLDER: &str = "sqlite-folder";
/// The lowest priority there is.
pub(super) const NICE: i32 = 19;

/// Folds a log until it is dropped.
pub(super) struct Folder {
    connection: SqlitePool,
    task: JoinHandle<()>,
}

impl Folder {
    /// For a file in WAL mode; `writer` is the pool of the only connection of this process that writes to it.
    pub(super) fn start(pool: SqlitePoolOptions, file: SqliteConnectOptions, writer: SqlitePool) -> Self {
        let connection = pool
            .max_connections(1)
            .after_connect(|_, _| {
                go_behind(FOLDER, NICE);
                Box::pin(async { Ok(()) })
            })
            .connect_lazy_with(file.thread_name(|_| FOLDER.to_owned()));
        let task = tokio::spawn(keep(connection.clone(), writer));
        Folder { connection, task }
    }

    /// Ends it, and its connection.
    pub(super) async fn close(&self) {
        self.task.abort();
        self.connection.close().await;
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep(folder: SqlitePool, writer: SqlitePool) {
    let mut tick = interval_at(Instant::now() + EVERY, EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut works = true;
    loop {
        tick.tick().await;
        works = match shorten(&folder, &writer).await {
            Ok(()) => true,
            Err(error) => {
                if works {
                    let error = fault(error);
                    tracing::warn!(%error, "SQLite's log cannot be folded into its file now; it grows meanwhile");
                }
                false
            }
        };
    }
}

/// Folds the log, and lets it begin anew where it has become long.
async fn shorten(folder: &SqlitePool, writer: &SqlitePool) -> sqlx::Result<()> {
    // It begins anew with the first commit that finds all of it folded. Where others commit all the time none would,
    // unless the writer itself folds the little that came since.
    if fold(folder).await? >= LONG {
        fold(writer).await?;
    }
    Ok(())
}

/// Copies the log's pages into the file, those that no reader stands in the way of; how many pages the log has.
async fn fold(connection: &SqlitePool) -> sqlx::Result<i64> {
    let (_busy, pages, _folded): (i64, i64, i64) =
        sqlx::query_as("PRAGMA wal_checkpoint(PASSIVE)").fetch_one(connection).await?;
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx::sqlite::{SqliteConnection, SqliteJournalMode};
    use sqlx::{Connection, Row};
    use std::path::Path;

    async fn pool(file: &Path) -> SqlitePool {
        let options = SqliteConnectOptions::new().filename(file).create_if_missing(true);
        let options = options.journal_mode(SqliteJournalMode::Wal).pragma("wal_autocheckpoint", "0");
        SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap()
    }

    /// Commits that many pages.
    async fn write(writer: &SqlitePool, pages: i64) {
        sqlx::query("INSERT INTO t VALUES (zeroblob($1))").bind(pages * 4096).execute(writer).await.unwrap();
    }

    #[tokio::test]
    async fn what_the_log_holds_is_brought_into_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.db");
        let writer = pool(&file).await;
        sqlx::query("CREATE TABLE t (x)").execute(&writer).await.unwrap();
        write(&writer, 8).await;
        let options = SqliteConnectOptions::new().filename(&file);
        let folding = Folder::start(SqlitePoolOptions::new(), options, writer.clone());
        // The file alone, as a disk would hold it without its log.
        let alone = folder.path().join("b.db");
        for attempt in 0.. {
            std::fs::copy(&file, &alone).unwrap();
            let mut copy = SqliteConnection::connect(&format!("sqlite://{}", alone.display())).await.unwrap();
            let there = sqlx::query("SELECT length(x) FROM t").fetch_optional(&mut copy).await;
            copy.close().await.unwrap();
            if matches!(there, Ok(Some(row)) if row.get::<i64, _>(0) == 8 * 4096) {
                break;
            }
            assert!(attempt < 200, "nobody folds the log");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        folding.close().await;
    }

    #[tokio::test]
    async fn a_long_log_begins_anew_although_somebody_wrote_while_it_was_folded() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.db");
        let (writer, folding) = (pool(&file).await, pool(&file).await);
        sqlx::query("CREATE TABLE t (x)").execute(&writer).await.unwrap();
        let log = || std::fs::metadata(folder.path().join("a.db-wal")).unwrap().len();
        write(&writer, LONG).await;
        let long = log();
        fold(&folding).await.unwrap();
        // The folding above is over before this comes, as it is when others commit all the time.
        write(&writer, 8).await;
        shorten(&folding, &writer).await.unwrap();
        write(&writer, LONG / 2).await;
        assert!(log() <= long + 16 * 4200, "{long} bytes became {}", log());
    }
}
