//! Lockouts, in words both databases understand.

/// Implements `Lockouts` for a backend.
macro_rules! portable_lockouts {
    ($store:ty) => {
        const _: () = {
            use crate::stores::faults::within;
            use crate::stores::lockout::{Ledger, name_hash};
            use crate::stores::rows::millis;
            use crate::stores::*;

            #[async_trait]
            impl Lockouts for $store {
                async fn lock_state(&self, tenant: &str, name: &str, now: SystemTime) -> Stored<LockState> {
                    let row: Option<(Vec<u8>, i64, Option<i64>)> = within(self.call, async {
                        sqlx::query_as("SELECT failed_at, window_ms, locked_until FROM lockouts WHERE name_hash = $1")
                            .bind(&name_hash(tenant, name)[..])
                            .fetch_optional(self.reader())
                            .await
                    })
                    .await?;
                    let (failed_at, window_ms, locked_until) = row.unwrap_or_default();
                    Ok(Ledger::from_row(&failed_at, window_ms, locked_until).state(now))
                }

                async fn note_failure(
                    &self,
                    tenant: &str,
                    name: &str,
                    limit: u32,
                    window: Duration,
                    lock_for: Duration,
                    now: SystemTime,
                ) -> Stored<LockState> {
                    let key = name_hash(tenant, name);
                    within(self.call, async {
                        // Each new name pays for the removal of a few old ones, so that strangers do not fill the table.
                        sqlx::query(Self::FORGET_LOCKOUTS).bind(millis(now)).execute(self.writer()).await?;
                        let mut tx = self.begin().await?;
                        // An insert that changes nothing where there is a row locks it.
                        let (failed_at, window_ms, locked_until): (Vec<u8>, i64, Option<i64>) = sqlx::query_as(
                            "INSERT INTO lockouts (name_hash, failed_at, window_ms, forget_at) VALUES ($1, $2, 0, 0) \
                             ON CONFLICT (name_hash) DO UPDATE SET name_hash = excluded.name_hash \
                             RETURNING failed_at, window_ms, locked_until",
                        )
                        .bind(&key[..])
                        .bind(&[][..] as &[u8])
                        .fetch_one(&mut *tx)
                        .await?;
                        let mut ledger = Ledger::from_row(&failed_at, window_ms, locked_until);
                        let state = ledger.fail(limit, window, lock_for, now);
                        sqlx::query(
                            "UPDATE lockouts SET failed_at = $2, window_ms = $3, locked_until = $4, forget_at = $5 \
                             WHERE name_hash = $1",
                        )
                        .bind(&key[..])
                        .bind(ledger.times())
                        .bind(ledger.window_ms())
                        .bind(ledger.locked_until())
                        .bind(ledger.forget_at())
                        .execute(&mut *tx)
                        .await?;
                        tx.commit().await?;
                        Ok(state)
                    })
                    .await
                }

                async fn unlock(&self, tenant: &str, name: &str) -> Stored<()> {
                    within(self.call, async {
                        sqlx::query("DELETE FROM lockouts WHERE name_hash = $1")
                            .bind(&name_hash(tenant, name)[..])
                            .execute(self.writer())
                            .await?;
                        Ok(())
                    })
                    .await
                }
            }
        };
    };
}
pub(in crate::stores) use portable_lockouts;
