//! What SQLite and PostgreSQL say in the same words: written once, stamped out for both; a file for each group of traits.
//!
//! Macros, because a function that is generic over the database needs a bound for every type it binds. The store they
//! are used on gives `reader()`, `writer()` (pools), `begin()` (a transaction that may write), `call` (the deadline of
//! a call), and what the two databases say in different words: `bell`, `add_revocation()`, `keep()`, and the statements
//! `FORGET_LOCKOUTS`, `STOP_TURNS` and `REMOVE_SESSIONS`.

pub(super) mod conversations;
pub(super) mod keys;
pub(super) mod lockouts;
pub(super) mod tokens;
pub(super) mod turns;
pub(super) mod users;

/// Rows that one statement of a sweep removes at most: none holds a lock for long.
pub(super) const SWEEP_BATCH: i64 = 5_000;

/// Rows that one page holds at most.
pub(super) const PAGE: u32 = 1_000;

/// Runs a statement that must change a row: `NotFound` if it changed none.
macro_rules! change {
    ($store:expr, $sql:expr $(, $value:expr)*) => {
        crate::stores::faults::within($store.call, async {
            match sqlx::query($sql)$(.bind($value))*.execute($store.writer()).await?.rows_affected() {
                0 => Err(sqlx::Error::RowNotFound),
                _ => Ok(()),
            }
        })
        .await
    };
}
pub(super) use change;

/// Runs a `DELETE` of at most [`SWEEP_BATCH`] rows (its last parameter) until none is left; how many there were.
macro_rules! sweep {
    ($store:expr, $sql:expr, $value:expr) => {{
        let mut gone = 0;
        loop {
            let batch = crate::stores::faults::within($store.call, async {
                let done = sqlx::query($sql)
                    .bind($value)
                    .bind(crate::stores::portable::SWEEP_BATCH)
                    .execute($store.writer())
                    .await?;
                Ok(done.rows_affected())
            })
            .await?;
            gone += batch;
            if batch < crate::stores::portable::SWEEP_BATCH as u64 {
                break gone;
            }
        }
    }};
}
pub(super) use sweep;

/// Implements every trait but `Store` for a backend.
macro_rules! portable_store {
    ($store:ty) => {
        crate::stores::portable::users::portable_users!($store);
        crate::stores::portable::tokens::portable_tokens!($store);
        crate::stores::portable::lockouts::portable_lockouts!($store);
        crate::stores::portable::keys::portable_keys!($store);
        crate::stores::portable::conversations::portable_conversations!($store);
        crate::stores::portable::turns::portable_turns!($store);
    };
}
pub(super) use portable_store;

/// A page of rows that were asked for with one more than `limit`, which tells whether there is another page.
pub(super) fn page<R, T>(
    mut rows: Vec<R>,
    limit: usize,
    cursor: impl FnOnce(&R) -> String,
    item: impl Fn(R) -> super::Stored<T>,
) -> super::Stored<super::Page<T>> {
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(cursor);
    Ok(super::Page { items: rows.into_iter().map(item).collect::<super::Stored<_>>()?, next })
}

/// Brings the schema up to date on one connection, under the backend's lock for migrations; how many ran.
pub(super) async fn bring_up<C: sqlx::migrate::Migrate>(
    migrations: &sqlx::migrate::Migrator,
    connection: &mut C,
) -> Result<usize, sqlx::migrate::MigrateError> {
    // Taken before counting, so that what another replica runs meanwhile is not counted as ours. The lock may be taken
    // twice by one connection.
    connection.lock().await?;
    connection.ensure_migrations_table(&migrations.table_name).await?;
    let before = connection.list_applied_migrations(&migrations.table_name).await?.len();
    migrations.run_direct(None, connection, false).await?;
    let after = connection.list_applied_migrations(&migrations.table_name).await?.len();
    connection.unlock().await?;
    Ok(after - before)
}
