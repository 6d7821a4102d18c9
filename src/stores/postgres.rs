//! The store in PostgreSQL, where replicas share one.
//!
//! A pool with a deadline for getting a connection; a statement timeout that the server keeps, so that a query does
//! not outlive the call that gave up on it; migrations under an advisory lock. Word of revocations comes by
//! LISTEN/NOTIFY on a connection of its own. While that is away, waiters fall back on their patience: word makes
//! revocations faster, it is never what they depend on.

use super::bell::Bell;
use super::faults::{fault, migration_fault, within};
use super::portable::{bring_up, portable_store};
use super::rows::{UserRow, text};
use super::*;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPool, PgPoolOptions};
use sqlx::{Connection, Executor, Postgres, Transaction};
use std::borrow::Cow;
use std::io::ErrorKind;
use std::str::FromStr;
use tokio::task::AbortHandle;
use tracing::warn;
use url::Url;

pub(super) static MIGRATIONS: Migrator = Migrator {
    // A newer replica may have brought the schema further; migrations only ever add.
    ignore_missing: true,
    ..sqlx::migrate!("migrations/postgres")
};

/// Where word of revocations is told.
const CHANNEL: &str = "voicegate_revocations";

/// Silence after which the listener asks whether its connection still lives.
const SILENCE: Duration = Duration::from_secs(15);

/// Pauses between attempts to listen: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// A store on a server.
pub(super) struct PostgresStore {
    pool: PgPool,
    /// Without a statement timeout: for migrations.
    patient: PgConnectOptions,
    /// Host, port and database, for errors.
    server: String,
    call: Duration,
    migrate: Duration,
    bell: Arc<Bell>,
    listening: AbortHandle,
}

impl PostgresStore {
    /// Reads the URL and prepares the pool; nothing is connected yet.
    pub(super) fn open(url: &str, limits: &StoreLimits) -> Stored<Self> {
        let patient = parse(url)?;
        let server = format!(
            "postgres://{}@{}:{}/{}",
            patient.get_username(),
            patient.get_host(),
            patient.get_port(),
            patient.get_database().unwrap_or(patient.get_username()),
        );
        let quick = patient.clone().options([
            ("statement_timeout", limits.statement_timeout.as_millis().max(1)),
            // A transaction whose call was given up must not hold its locks.
            ("idle_in_transaction_session_timeout", limits.call_timeout.as_millis().max(1)),
        ]);
        let pool = PgPoolOptions::new()
            .max_connections(limits.max_connections.max(1))
            .acquire_timeout(limits.acquire_timeout)
            .connect_lazy_with(quick);
        let bell = Arc::new(Bell::default());
        let listening = tokio::spawn(listen(patient.clone(), limits.acquire_timeout, Arc::clone(&bell)));
        Ok(PostgresStore {
            pool,
            patient,
            server,
            call: limits.call_timeout,
            migrate: limits.migrate_timeout,
            bell,
            listening: listening.abort_handle(),
        })
    }

    /// Forgets a few lockouts that are over, but for those that are being counted on right now.
    const FORGET_LOCKOUTS: &str = "DELETE FROM lockouts WHERE name_hash IN (SELECT name_hash FROM lockouts \
         WHERE forget_at <= $1 ORDER BY forget_at LIMIT 8 FOR UPDATE SKIP LOCKED)";

    /// Asks the turns of a session (or one of them) to stop. Several turns are locked in the order of their ids,
    /// everywhere, so that calls do not wait for each other in a ring; several sessions too.
    const STOP_TURNS: &str = "UPDATE turns SET stop_asked = TRUE WHERE id IN (SELECT id FROM turns \
         WHERE session_id = $1 AND ($2::text IS NULL OR id = $2) ORDER BY id FOR UPDATE) RETURNING id";

    /// Removes sessions of a user, with what hangs on them.
    const REMOVE_SESSIONS: &str = "DELETE FROM sessions WHERE id IN \
         (SELECT id FROM sessions WHERE user_id = $1 ORDER BY id LIMIT $2 FOR UPDATE)";

    fn reader(&self) -> &PgPool {
        &self.pool
    }

    fn writer(&self) -> &PgPool {
        &self.pool
    }

    async fn begin(&self) -> sqlx::Result<Transaction<'static, Postgres>> {
        self.pool.begin().await
    }

    async fn one_user<'q>(
        &self,
        query: sqlx::query::QueryAs<'q, Postgres, UserRow, sqlx::postgres::PgArguments>,
    ) -> Stored<User> {
        within(self.call, query.fetch_one(self.reader())).await.map(User::from)
    }

    /// Adds a revocation and tells every replica, in one statement; its serial number. The row that gives the numbers
    /// stays locked until the commit, so that they appear in their order and no reader skips one.
    async fn add_revocation(&self, subject: &str, not_after: i64, expires_at: i64) -> sqlx::Result<i64> {
        let (serial, _told): (i64, String) = sqlx::query_as(
            "WITH next AS (UPDATE revocation_serial SET last = last + 1 RETURNING last) \
             INSERT INTO revocations (serial, subject, not_after, expires_at) \
             SELECT last, $1, $2, $3 FROM next RETURNING serial, pg_notify($4, '')::text",
        )
        .bind(subject)
        .bind(not_after)
        .bind(expires_at)
        .bind(CHANNEL)
        .fetch_one(&self.pool)
        .await?;
        Ok(serial)
    }

    /// Keeps a replica's turns alive and what they said; which of them shall stop. One statement, however many.
    async fn keep(&self, replica: &str, said: &[Piece], alive_until: i64) -> sqlx::Result<Vec<(String,)>> {
        let ids: Vec<&str> = said.iter().map(|piece| piece.turn.as_str()).collect();
        let places: Vec<i64> = said.iter().map(Piece::place).collect();
        let contents: Vec<Cow<'_, str>> = said.iter().map(|piece| text(&piece.text)).collect();
        sqlx::query_as(
            "WITH said AS (SELECT * FROM UNNEST($2::text[], $3::bigint[], $4::text[]) AS s (id, place, content)), \
             own AS MATERIALIZED (SELECT id FROM turns WHERE replica = $1 ORDER BY id FOR UPDATE), \
             pieces AS (INSERT INTO turn_pieces (turn_id, at_byte, said) \
             SELECT said.id, said.place, said.content FROM said JOIN own ON own.id = said.id \
             ON CONFLICT (turn_id, at_byte) DO UPDATE SET said = EXCLUDED.said \
             WHERE length(EXCLUDED.said) > length(turn_pieces.said)), \
             kept AS (UPDATE turns SET alive_until = $5 FROM own WHERE turns.id = own.id \
             RETURNING turns.id, turns.stop_asked) \
             SELECT id FROM kept WHERE stop_asked UNION ALL \
             SELECT id FROM said WHERE NOT EXISTS (SELECT 1 FROM turns WHERE turns.id = said.id) \
             AND NOT EXISTS (SELECT 1 FROM messages WHERE messages.id = said.id) \
             ORDER BY id",
        )
        .bind(replica)
        .bind(ids)
        .bind(places)
        .bind(contents)
        .bind(alive_until)
        .fetch_all(&self.pool)
        .await
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

portable_store!(PostgresStore);

#[async_trait]
impl Store for PostgresStore {
    fn backend(&self) -> &'static str {
        "postgres"
    }

    async fn migrate(&self) -> Stored<usize> {
        // A connection of its own: it may wait for another replica longer than a statement may, and whatever happens
        // the advisory lock goes with it.
        let run = async {
            let mut connection = PgConnection::connect_with(&self.patient).await?;
            let ran = bring_up(&MIGRATIONS, &mut connection).await;
            // The lock goes either way.
            let _ = connection.close().await;
            ran
        };
        let done = tokio::time::timeout(self.migrate, run).await;
        let why = match done {
            Ok(Ok(ran)) => return Ok(ran),
            Ok(Err(error)) => migration_fault(error),
            Err(_) => StoreError::Unavailable(format!("migrations did not end within {:?}", self.migrate)),
        };
        Err(match why {
            StoreError::Unavailable(why) => StoreError::Unavailable(format!("{}: {why}", self.server)),
            StoreError::Failed(why) => StoreError::Failed(format!("{}: {why}", self.server)),
            other => other,
        })
    }

    async fn ping(&self) -> Stored<()> {
        within(Duration::from_secs(1), async {
            sqlx::query("SELECT 1").execute(&self.pool).await?;
            Ok(())
        })
        .await
    }

    fn connections(&self) -> (u32, u32) {
        let resting = self.pool.num_idle() as u32;
        (self.pool.size().saturating_sub(resting), resting)
    }

    async fn close(&self) {
        self.listening.abort();
        // A call that hangs does not keep the process from ending.
        let _ = tokio::time::timeout(self.call, self.pool.close()).await;
    }
}

/// What may stand in a URL's query. What is not known is refused here: the driver would log it, value and all.
const PARAMETERS: [&str; 17] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "user",
];

/// Reads a URL. Errors name what is wrong, never a value.
fn parse(url: &str) -> Stored<PgConnectOptions> {
    let wrong = |why: String| {
        StoreError::Failed(format!("DATABASE_URL: {why}; write postgres://USER:PASSWORD@HOST:PORT/DATABASE"))
    };
    let parsed = Url::parse(url).map_err(|error| wrong(format!("not a URL: {error}")))?;
    if let Some((key, _)) = parsed.query_pairs().find(|(key, _)| !PARAMETERS.contains(&&**key)) {
        return Err(wrong(format!("unknown parameter `{key}`, known are {}", PARAMETERS.join(", "))));
    }
    let options = PgConnectOptions::from_str(url).map_err(|error| match error {
        // May quote the value, but only of what is no secret: sslmode, port, hostaddr; or bad UTF-8.
        sqlx::Error::Configuration(why) => wrong(why.to_string()),
        other => wrong(other.to_string()),
    })?;
    Ok(options)
}

/// Hears of revocations and rings, for as long as the store lives; connects again whenever it has to.
async fn listen(options: PgConnectOptions, patience: Duration, bell: Arc<Bell>) {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .acquire_timeout(patience)
        .connect_lazy_with(options);
    let mut pause = RETRY.0;
    let mut said = false;
    loop {
        let error = match hear(&pool, &bell, &mut pause, &mut said).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        // Once a fall, not once an attempt; calls that fail meanwhile have their own lines.
        if !std::mem::replace(&mut said, true) {
            warn!(error = %fault(error), "not listening for revocations; the database is polled until it is back");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

/// Listens until something fails.
async fn hear(
    pool: &PgPool,
    bell: &Bell,
    pause: &mut Duration,
    said: &mut bool,
) -> sqlx::Result<std::convert::Infallible> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.eager_reconnect(false);
    listener.listen(CHANNEL).await?;
    *pause = RETRY.0;
    *said = false;
    // What was told before, nobody heard.
    bell.ring();
    loop {
        match tokio::time::timeout(SILENCE, listener.try_recv()).await {
            Ok(Ok(Some(_))) => bell.ring(),
            Ok(Ok(None)) => return Err(lost(ErrorKind::ConnectionAborted)),
            Ok(Err(error)) => return Err(error),
            Err(_) => match tokio::time::timeout(SILENCE, listener.execute("SELECT 1")).await {
                Ok(answer) => _ = answer?,
                Err(_) => return Err(lost(ErrorKind::TimedOut)),
            },
        }
    }
}

/// That a connection which was listened on is gone.
fn lost(kind: ErrorKind) -> sqlx::Error {
    sqlx::Error::Io(kind.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_about_a_url_hide_its_password() {
        let urls = [
            "postgres://u:hunter2@h:99999/d",
            "postgres://u:hunter2@[::1/d",
            "postgres://u:hunter2@h/d?sslmode=wrong",
            "postgres://u:hunter2@h/d?pasword=hunter2",
            "postgres://u:hunter2@h/d?password=hunter2&port=x",
        ];
        for url in urls {
            let error = parse(url).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
            assert!(error.contains("DATABASE_URL"), "{error}");
        }
    }

    #[test]
    fn urls_of_libpq_are_read() {
        let options = parse("postgresql://u:p%40ss@db.example:6543/voice?sslmode=disable").unwrap();
        assert_eq!(options.get_host(), "db.example");
        assert_eq!(options.get_port(), 6543);
        assert_eq!(options.get_database(), Some("voice"));
        assert_eq!(options.get_username(), "u");
    }
}
