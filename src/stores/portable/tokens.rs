//! Refresh tokens, revocations and resets, in words both databases understand.
//!
//! A family is locked after its token, always in that order, so that calls do not wait for each other in a ring.

/// Revocations that one call hands out at most.
pub(in crate::stores) const REVOCATIONS: i64 = 1_000;

/// Implements `RefreshTokens`, `Revocations` and `Resets` for a backend.
macro_rules! portable_tokens {
    ($store:ty) => {
        const _: () = {
            use crate::stores::faults::within;
            use crate::stores::portable::{change, sweep};
            use crate::stores::portable::tokens::REVOCATIONS;
            use crate::stores::rows::{keyed, millis, storable};
            use crate::stores::*;

            #[async_trait]
            impl RefreshTokens for $store {
                async fn begin_family(
                    &self,
                    user_id: &str,
                    family: &str,
                    token_hash: &[u8; 32],
                    expires_at: SystemTime,
                    now: SystemTime,
                ) -> Stored<()> {
                    keyed([user_id])?;
                    storable([family])?;
                    let (expires_at, now) = (millis(expires_at), millis(now));
                    within(self.call, async {
                        let mut tx = self.begin().await?;
                        sqlx::query(
                            "INSERT INTO refresh_families (id, user_id, created_at, expires_at) VALUES ($1, $2, $3, $4)",
                        )
                        .bind(family)
                        .bind(user_id)
                        .bind(now)
                        .bind(expires_at)
                        .execute(&mut *tx)
                        .await?;
                        sqlx::query(
                            "INSERT INTO refresh_tokens (token_hash, family, issued_at, expires_at) VALUES ($1, $2, $3, $4)",
                        )
                        .bind(&token_hash[..])
                        .bind(family)
                        .bind(now)
                        .bind(expires_at)
                        .execute(&mut *tx)
                        .await?;
                        tx.commit().await
                    })
                    .await
                }

                async fn rotate(
                    &self,
                    token_hash: &[u8; 32],
                    next_hash: &[u8; 32],
                    next_expires_at: SystemTime,
                    grace: Duration,
                    now: SystemTime,
                ) -> Stored<Rotation> {
                    let (next_expires_at, now) = (millis(next_expires_at), millis(now));
                    let grace = grace.as_millis().min(i64::MAX as u128) as i64;
                    within(self.call, async {
                        let mut tx = self.begin().await?;
                        // The decision. Of parallel calls one finds `used_at` empty; the others wait for it, then do not.
                        let used = sqlx::query(
                            "UPDATE refresh_tokens SET used_at = $2 \
                             WHERE token_hash = $1 AND used_at IS NULL AND expires_at > $2 \
                             AND family IN (SELECT id FROM refresh_families WHERE ended_at IS NULL)",
                        )
                        .bind(&token_hash[..])
                        .bind(now)
                        .execute(&mut *tx)
                        .await?;
                        let first = used.rows_affected() == 1;
                        let mut family: Option<(String, String)> = None;
                        if first || grace > 0 {
                            // A family that was ended is asked for again, with its row locked: a logout between the two
                            // statements wins.
                            let since = if first { now } else { now.saturating_sub(grace) };
                            family = sqlx::query_as(
                                "UPDATE refresh_families SET expires_at = $2 WHERE ended_at IS NULL AND id IN \
                                 (SELECT family FROM refresh_tokens WHERE token_hash = $1 AND used_at >= $3) \
                                 RETURNING id, user_id",
                            )
                            .bind(&token_hash[..])
                            .bind(next_expires_at)
                            .bind(since)
                            .fetch_optional(&mut *tx)
                            .await?;
                        }
                        let Some((id, user_id)) = family else {
                            if first {
                                tx.rollback().await?;
                                return Ok(Rotation::Refused);
                            }
                            // Whoever presents a used token shows that two hold it: the family ends. Also after it would
                            // have expired, for its successors may be in a thief's hands. Only the call that ends the
                            // family says so: replaying one stale token does not raise the alarm again and again.
                            let reused: Option<(String, String)> = sqlx::query_as(
                                "UPDATE refresh_families SET ended_at = $2 WHERE ended_at IS NULL AND id IN \
                                 (SELECT family FROM refresh_tokens WHERE token_hash = $1 AND used_at IS NOT NULL) \
                                 RETURNING id, user_id",
                            )
                            .bind(&token_hash[..])
                            .bind(now)
                            .fetch_optional(&mut *tx)
                            .await?;
                            tx.commit().await?;
                            return Ok(reused.map_or(Rotation::Refused, |(id, user_id)| {
                                Rotation::Reused(Family { id, user_id })
                            }));
                        };
                        sqlx::query(
                            "INSERT INTO refresh_tokens (token_hash, family, issued_at, expires_at) VALUES ($1, $2, $3, $4)",
                        )
                        .bind(&next_hash[..])
                        .bind(&id)
                        .bind(now)
                        .bind(next_expires_at)
                        .execute(&mut *tx)
                        .await?;
                        tx.commit().await?;
                        let family = Family { id, user_id };
                        Ok(if first { Rotation::Rotated(family) } else { Rotation::Repeated(family) })
                    })
                    .await
                }

                async fn end_family_of(&self, token_hash: &[u8; 32], now: SystemTime) -> Stored<Option<Family>> {
                    let family: Option<(String, String)> = within(self.call, async {
                        sqlx::query_as(
                            "UPDATE refresh_families SET ended_at = COALESCE(ended_at, $2) \
                             WHERE id IN (SELECT family FROM refresh_tokens WHERE token_hash = $1) RETURNING id, user_id",
                        )
                        .bind(&token_hash[..])
                        .bind(millis(now))
                        .fetch_optional(self.writer())
                        .await
                    })
                    .await?;
                    Ok(family.map(|(id, user_id)| Family { id, user_id }))
                }

                async fn end_families(&self, user_id: &str, now: SystemTime) -> Stored<u64> {
                    keyed([user_id])?;
                    within(self.call, async {
                        let sql = "UPDATE refresh_families SET ended_at = $2 WHERE user_id = $1 AND ended_at IS NULL";
                        let done = sqlx::query(sql).bind(user_id).bind(millis(now)).execute(self.writer()).await?;
                        Ok(done.rows_affected())
                    })
                    .await
                }

                async fn sweep_refresh_tokens(&self, before: SystemTime) -> Stored<u64> {
                    let before = millis(before);
                    let gone = sweep!(
                        self,
                        "DELETE FROM refresh_tokens WHERE token_hash IN (SELECT t.token_hash FROM refresh_tokens t \
                         JOIN refresh_families f ON f.id = t.family WHERE t.expires_at < $1 OR f.ended_at < $1 LIMIT $2)",
                        before
                    );
                    sweep!(
                        self,
                        "DELETE FROM refresh_families WHERE id IN (SELECT f.id FROM refresh_families f \
                         WHERE (f.expires_at < $1 OR f.ended_at < $1) \
                         AND NOT EXISTS (SELECT 1 FROM refresh_tokens t WHERE t.family = f.id) LIMIT $2)",
                        before
                    );
                    Ok(gone)
                }
            }

            #[async_trait]
            impl Revocations for $store {
                async fn revoke(
                    &self,
                    subject: &str,
                    not_after: SystemTime,
                    expires_at: SystemTime,
                ) -> Stored<Revocation> {
                    storable([subject])?;
                    let (not_after_ms, expires_at_ms) = (millis(not_after), millis(expires_at));
                    let serial =
                        within(self.call, self.add_revocation(subject, not_after_ms, expires_at_ms)).await?;
                    self.bell.ring();
                    Ok(Revocation { serial, subject: subject.to_owned(), not_after_ms, expires_at_ms })
                }

                async fn revocations_since(&self, serial: i64, now: SystemTime) -> Stored<Vec<Revocation>> {
                    let rows: Vec<(i64, String, i64, i64)> = within(self.call, async {
                        sqlx::query_as(
                            "SELECT serial, subject, not_after, expires_at FROM revocations \
                             WHERE serial > $1 AND expires_at > $2 ORDER BY serial LIMIT $3",
                        )
                        .bind(serial)
                        .bind(millis(now))
                        .bind(REVOCATIONS)
                        .fetch_all(self.reader())
                        .await
                    })
                    .await?;
                    Ok(rows
                        .into_iter()
                        .map(|(serial, subject, not_after_ms, expires_at_ms)| Revocation {
                            serial,
                            subject,
                            not_after_ms,
                            expires_at_ms,
                        })
                        .collect())
                }

                async fn revocations_changed(&self, patience: Duration) {
                    self.bell.wait(patience).await;
                }

                async fn sweep_revocations(&self, now: SystemTime) -> Stored<u64> {
                    let now = millis(now);
                    Ok(sweep!(
                        self,
                        "DELETE FROM revocations WHERE serial IN \
                         (SELECT serial FROM revocations WHERE expires_at <= $1 LIMIT $2)",
                        now
                    ))
                }
            }

            #[async_trait]
            impl Resets for $store {
                async fn create_reset(&self, user_id: &str, hash: &[u8; 32], expires_at: SystemTime) -> Stored<()> {
                    keyed([user_id])?;
                    let sql = "INSERT INTO password_resets (user_id, token_hash, expires_at) VALUES ($1, $2, $3) \
                               ON CONFLICT (user_id) DO UPDATE \
                               SET token_hash = excluded.token_hash, expires_at = excluded.expires_at";
                    change!(self, sql, user_id, &hash[..], millis(expires_at))
                }

                async fn consume_reset(&self, hash: &[u8; 32], now: SystemTime) -> Stored<Option<String>> {
                    let user: Option<(String,)> = within(self.call, async {
                        sqlx::query_as(
                            "DELETE FROM password_resets WHERE token_hash = $1 AND expires_at > $2 RETURNING user_id",
                        )
                        .bind(&hash[..])
                        .bind(millis(now))
                        .fetch_optional(self.writer())
                        .await
                    })
                    .await?;
                    Ok(user.map(|(id,)| id))
                }
            }
        };
    };
}
pub(in crate::stores) use portable_tokens;
