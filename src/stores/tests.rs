//! One contract over every backend: SQLite in a file, SQLite in memory, and a PostgreSQL that the tests start.
//!
//! The promises stand in `tests/*.rs`, each a function over a [`Bed`]; [`contract!`] makes of each a test a backend.
//! What only one backend can promise (files, servers that go away) stands with the beds that it needs.

mod conversations;
mod keys;
mod lockouts;
mod on_postgres;
mod on_sqlite;
mod revocations;
mod tokens;
mod turns;
mod users;

use super::testing::{Server, shared_server};
use super::*;
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};
use tempfile::TempDir;

/// Migrations that a new database needs.
const MIGRATIONS: usize = 3;

/// A database of a test's own, brought up to date, and a store on it.
struct Bed {
    store: AnyStore,
    url: String,
    _folder: Option<TempDir>,
}

/// Limits that let the tests of a binary share one server, and their failures come soon.
fn limits() -> StoreLimits {
    StoreLimits { max_connections: 20, ..StoreLimits::default() }
}

impl Bed {
    async fn sqlite_file() -> Bed {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("test.db").display());
        Bed::on(url, Some(folder)).await
    }

    async fn sqlite_memory() -> Bed {
        Bed::on("sqlite::memory:".to_owned(), None).await
    }

    async fn postgres() -> Bed {
        Bed::on(fresh_database(shared_server()).await, None).await
    }

    async fn on(url: String, folder: Option<TempDir>) -> Bed {
        let store = open(&url, &limits()).await.unwrap();
        assert_eq!(store.migrate().await.unwrap(), MIGRATIONS);
        Bed { store, url, _folder: folder }
    }

    /// Another store on the same database, as another replica has it; none in memory, which is not shared.
    async fn another(&self) -> Option<AnyStore> {
        if self.url.contains(":memory:") {
            return None;
        }
        Some(open(&self.url, &limits()).await.unwrap())
    }

    /// Rows of a table, seen from outside; none in memory.
    async fn count(&self, table: &str) -> Option<i64> {
        let sql = AssertSqlSafe(format!("SELECT COUNT(*) FROM {table}"));
        if self.url.contains(":memory:") {
            return None;
        }
        if self.url.starts_with("sqlite") {
            let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
            return Some(sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap());
        }
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        Some(sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap())
    }

    /// Changes something behind the store's back; whether it could: in memory there is no way in.
    async fn run(&self, sql: &'static str) -> bool {
        if self.url.contains(":memory:") {
            return false;
        }
        if self.url.starts_with("sqlite") {
            let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
            sqlx::query(sql).execute(&mut connection).await.unwrap();
        } else {
            let mut connection = PgConnection::connect(&self.url).await.unwrap();
            sqlx::query(sql).execute(&mut connection).await.unwrap();
        }
        true
    }

    /// A user to hang tokens on.
    async fn user(&self, name: &str) -> User {
        self.store.create_user(someone(name), at(0)).await.unwrap()
    }
}

/// An empty database on a server; its URL.
async fn fresh_database(server: &Server) -> String {
    let name = Server::fresh_name();
    let mut connection = PgConnection::connect(&server.url("postgres")).await.unwrap();
    sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut connection).await.unwrap();
    server.url(&name)
}

/// A moment, in seconds after some start; times are given to a store, so that tests need not wait.
fn at(seconds: i64) -> SystemTime {
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    if seconds < 0 {
        start - Duration::from_secs(seconds.unsigned_abs())
    } else {
        start + Duration::from_secs(seconds.unsigned_abs())
    }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A hash that only equals that of the same number.
fn hash(number: u32) -> [u8; 32] {
    let mut hash = [7; 32];
    hash[..4].copy_from_slice(&number.to_le_bytes());
    hash
}

fn someone(name: &str) -> NewUser {
    NewUser {
        id: uuid::Uuid::new_v4().to_string(),
        tenant_id: String::new(),
        username: name.to_owned(),
        email: None,
        password_hash: None,
        role: "user".to_owned(),
        openid: None,
    }
}

fn in_tenant(tenant: &str, name: &str) -> NewUser {
    NewUser { tenant_id: tenant.to_owned(), ..someone(name) }
}

/// Texts that end statements where they are not bound.
const HOSTILE: [&str; 8] = [
    "'; DROP TABLE users; --",
    "\" OR \"\"=\"",
    "x' OR '1'='1",
    "$1",
    "%",
    "_",
    "\\'; SELECT pg_sleep(10); --",
    "a\u{202e}\u{0}b\n\r\t",
];

/// Makes a test a backend of each promise.
macro_rules! contract {
    ($($promise:ident),+ $(,)?) => {
        contract!(@ sqlite_file $($promise)+);
        contract!(@ sqlite_memory $($promise)+);
        contract!(@ postgres $($promise)+);
    };
    (@ $backend:ident $($promise:ident)+) => {
        mod $backend {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    let bed = super::Bed::$backend().await;
                    super::$promise(&bed).await;
                    bed.store.close().await;
                }
            )+
        }
    };
}
use contract;

async fn migrating_twice_runs_nothing(bed: &Bed) {
    assert_eq!(bed.store.migrate().await.unwrap(), 0);
}

async fn stores_that_migrate_together_both_succeed(bed: &Bed) {
    for _ in 0..3 {
        let url = if bed.url.starts_with("postgres") {
            fresh_database(shared_server()).await
        } else if bed.url.contains(":memory:") {
            return;
        } else {
            format!("{}-{}", bed.url, uuid::Uuid::new_v4())
        };
        let replicas = (0..4).map(|_| {
            let url = url.clone();
            tokio::spawn(async move {
                let store = open(&url, &limits()).await.unwrap();
                let ran = store.migrate().await.unwrap();
                store.create_user(someone(&uuid::Uuid::new_v4().to_string()), at(0)).await.unwrap();
                ran
            })
        });
        let ran: Vec<usize> =
            futures_util::future::join_all(replicas).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(ran.iter().sum::<usize>(), MIGRATIONS, "each migration runs once: {ran:?}");
    }
}

async fn a_store_answers_and_counts_its_connections(bed: &Bed) {
    bed.store.ping().await.unwrap();
    let expected = if bed.url.starts_with("sqlite") { "sqlite" } else { "postgres" };
    assert_eq!(bed.store.backend(), expected);
    let (busy, idle) = bed.store.connections();
    assert!(busy + idle >= 1, "{busy} busy, {idle} idle");
}

async fn a_closed_store_is_unavailable(bed: &Bed) {
    bed.store.close().await;
    assert!(matches!(bed.store.ping().await, Err(StoreError::Unavailable(_))));
    assert!(matches!(bed.store.user("x").await, Err(StoreError::Unavailable(_))));
    assert_eq!(bed.store.connections(), (0, 0));
}

contract!(
    migrating_twice_runs_nothing,
    stores_that_migrate_together_both_succeed,
    a_store_answers_and_counts_its_connections,
    a_closed_store_is_unavailable,
);

#[tokio::test]
async fn other_schemes_are_refused_without_saying_what_was_given() {
    for url in ["mysql://u:hunter2@h/d", "hunter2", "", "SQLITE", "hunter2:x"] {
        let Err(error) = open(url, &limits()).await else { panic!("{url} was opened") };
        let error = error.to_string();
        assert!(error.contains("DATABASE_URL") && error.contains("postgres://"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

/// A migration that is added to one folder must be added to the other, and be built in.
#[test]
fn every_migration_is_embedded_for_both() {
    let names = |backend: &str| {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(backend);
        let mut names: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names("sqlite"), names("postgres"));
    assert_eq!(names("sqlite").len(), super::sqlite::MIGRATIONS.iter().count(), "touch src/stores/sqlite.rs");
    assert_eq!(
        names("postgres").len(),
        super::postgres::MIGRATIONS.iter().count(),
        "touch src/stores/postgres.rs"
    );
}
