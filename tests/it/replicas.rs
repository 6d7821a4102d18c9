//! Replicas that share one PostgreSQL and one Redis behave as one, and lose nothing when one of them dies.

use crate::harness::{Database, Gateway};

const HELLO: &str = "routes: [{ route: GET /hello, public: true, respond: { text: hello } }]\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_together_on_an_empty_database_both_come_up() {
    let database = Database::fresh().await;
    let starts = (0..4).map(|_| Gateway::with(HELLO).flag("--database-url", database.url()).start());
    let gateways = futures_util::future::join_all(starts).await;
    for gateway in &gateways {
        assert_eq!(gateway.client.get("/hello").await.text(), "hello");
        assert_eq!(gateway.live().shared().store.backend(), "postgres");
    }
    let twice = "SELECT COUNT(*) - COUNT(DISTINCT version) FROM _sqlx_migrations";
    assert_eq!(database.number(twice).await, 0);
    assert!(database.number("SELECT COUNT(*) FROM _sqlx_migrations WHERE success").await > 0);
}
