//! A PostgreSQL that the tests of this binary share, and a database of its own for each test.

#[path = "../../../src/stores/testing.rs"]
mod server;

use server::{Server, shared_server};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// An empty database.
pub struct Database {
    url: String,
    /// Only where the test may stop it; else the shared one.
    own: Option<Server>,
}

impl Database {
    /// On the shared server, which the first who asks starts.
    pub async fn fresh() -> Self {
        let server: &Server = tokio::task::spawn_blocking(shared_server).await.unwrap();
        Database { url: create_on(server).await, own: None }
    }

    /// On a server of its own, which can be stopped. That takes a second or two: prefer [`Database::fresh`].
    pub async fn alone() -> Self {
        let server = tokio::task::spawn_blocking(Server::start).await.unwrap();
        Database { url: create_on(&server).await, own: Some(server) }
    }

    /// As `DATABASE_URL` takes it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The number that a query from outside finds.
    pub async fn number(&self, sql: &'static str) -> i64 {
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap()
    }

    /// Stops the server, as for a restart: clients are cut off.
    pub fn stop(&self) {
        self.server().stop();
    }

    /// Starts it again.
    pub fn resume(&self) {
        assert!(self.server().resume(), "it came up before");
    }

    fn server(&self) -> &Server {
        self.own.as_ref().expect("only a server of the test's own is stopped")
    }
}

async fn create_on(server: &Server) -> String {
    let name = Server::fresh_name();
    let mut connection = PgConnection::connect(&server.url("postgres")).await.unwrap();
    let sql = AssertSqlSafe(format!("CREATE DATABASE {name}"));
    sqlx::query(sql).execute(&mut connection).await.unwrap();
    server.url(&name)
}
