//! What a database's error means to the callers of a store.
//!
//! `Unavailable` is what passes when the database is back or has room again; `Failed` needs a human. Neither holds a
//! bound value or a password: drivers put none into their messages, and what PostgreSQL adds as detail is left out.

use super::{StoreError, Stored};
use sqlx::migrate::MigrateError;
use std::time::Duration;

/// Runs one call under its deadline.
pub(super) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = sqlx::Result<T>> + Send,
) -> Stored<T> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map_err(fault),
        Err(_) => Err(StoreError::Unavailable(format!("no answer within {limit:?}"))),
    }
}

/// Sorts an error of the driver's.
pub(super) fn fault(error: sqlx::Error) -> StoreError {
    use sqlx::Error as E;
    match error {
        E::RowNotFound => StoreError::NotFound,
        E::Database(ref refusal) => {
            if refusal.is_unique_violation() {
                // PostgreSQL names the index, SQLite the columns.
                return StoreError::Conflict(taken(refusal.constraint().unwrap_or(refusal.message())));
            }
            if refusal.is_foreign_key_violation() {
                return StoreError::NotFound;
            }
            let code = refusal.code().unwrap_or_default();
            if is_passing(&code) {
                StoreError::Unavailable(refusal.message().to_owned())
            } else {
                StoreError::Failed(format!("{} ({code})", refusal.message()))
            }
        }
        E::PoolTimedOut => StoreError::Unavailable(
            "no connection in time: the server is down or unreachable, or every connection of the pool is busy".to_owned(),
        ),
        E::PoolClosed => StoreError::Unavailable("the store is closed".to_owned()),
        E::Io(_) | E::Tls(_) | E::WorkerCrashed | E::BeginFailed => StoreError::Unavailable(error.to_string()),
        other => StoreError::Failed(other.to_string()),
    }
}

/// Sorts an error of a migration.
pub(super) fn migration_fault(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(error) => fault(error),
        MigrateError::ExecuteMigration(error, version) => match fault(error) {
            StoreError::Unavailable(why) => StoreError::Unavailable(format!("migration {version}: {why}")),
            other => StoreError::Failed(format!("migration {version}: {other}")),
        },
        other => StoreError::Failed(other.to_string()),
    }
}

/// Which unique value was taken.
fn taken(constraint: &str) -> &'static str {
    const NAMES: [(&str, &str); 7] = [
        ("username", "username"),
        ("email", "email"),
        ("openid", "openid"),
        ("refresh_families", "family"),
        ("token", "token"),
        ("key_hash", "key"),
        ("", "id"),
    ];
    NAMES.iter().find(|(mark, _)| constraint.contains(mark)).map_or("id", |(_, name)| name)
}

/// Whether a database's code says that it is busy, full, going down, coming up, or standing by.
fn is_passing(code: &str) -> bool {
    // PostgreSQL has five characters (SQLSTATE), SQLite an extended result code.
    if code.len() == 5 {
        let class = &code[..2];
        return matches!(class, "08" | "53" | "57")
            // Serialisation failure, deadlock, lock not available; read only: a standby, until it is promoted.
            || matches!(code, "40001" | "40P01" | "55P03" | "25006");
    }
    const BUSY: u32 = 5;
    const LOCKED: u32 = 6;
    const FULL: u32 = 13;
    const CANTOPEN: u32 = 14;
    code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, BUSY | LOCKED | FULL | CANTOPEN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passing_troubles_are_told_from_lasting_ones() {
        for code in ["57014", "57P01", "53300", "08006", "40P01", "25006", "5", "261", "6", "13", "14"] {
            assert!(is_passing(code), "{code}");
        }
        for code in ["42P01", "42601", "22021", "1", "8", "11", "1555", ""] {
            assert!(!is_passing(code), "{code}");
        }
    }

    #[test]
    fn both_ways_to_name_a_taken_value_are_understood() {
        assert_eq!(taken("users_username"), "username");
        assert_eq!(taken("UNIQUE constraint failed: users.tenant_id, users.email_norm"), "email");
        assert_eq!(taken("users_openid"), "openid");
        assert_eq!(taken("users_pkey"), "id");
        assert_eq!(taken("UNIQUE constraint failed: refresh_families.id"), "family");
        assert_eq!(taken("refresh_tokens_pkey"), "token");
        assert_eq!(taken("api_keys_key_hash_key"), "key");
    }
}
