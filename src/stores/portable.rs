//! What SQLite and PostgreSQL say in the same words: written once here, stamped out for both by [`portable_store!`].
//!
//! A macro, because a function that is generic over the database needs a bound for every type it binds. The store it
//! is used on gives `reader()`, `writer()` (pools), `begin()` (a transaction that may write), `call` (the deadline of
//! a call), `bell`, `add_revocation()` and the statement `FORGET_LOCKOUTS`.
//!
//! Long, because the words of six traits stand together: who changes a table sees every statement on it.
//!
//! A family is locked after its token, always in that order, so that calls do not wait for each other in a ring.

/// Rows that one statement of a sweep removes at most: none holds a lock for long.
pub(super) const SWEEP_BATCH: i64 = 5_000;

/// Revocations that one call hands out at most.
pub(super) const REVOCATIONS: i64 = 1_000;

/// Users that one page holds at most.
pub(super) const PAGE: u32 = 1_000;

/// `SELECT` of users that are not deleted, with what follows `AND`.
macro_rules! select_user {
    ($rest:literal) => {
        concat!(
            "SELECT id, tenant_id, username, email, password_hash, role, openid, disabled, created_at, last_login_at \
             FROM users WHERE deleted_at IS NULL AND ",
            $rest
        )
    };
}
pub(super) use select_user;

/// `SELECT` of API keys, with what follows.
macro_rules! select_key {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, tenant_id, created_by, permissions, created_at, expires_at, revoked FROM api_keys ",
            $rest
        )
    };
}
pub(super) use select_key;

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
        #[async_trait]
        impl Users for $store {
            async fn create_user(&self, user: NewUser, now: SystemTime) -> Stored<User> {
                let now = millis(now);
                let optional = [&user.email, &user.password_hash, &user.openid];
                storable(
                    [&user.id, &user.tenant_id, &user.username, &user.role]
                        .into_iter()
                        .chain(optional.into_iter().flatten())
                        .map(String::as_str),
                )?;
                within(self.call, async {
                    sqlx::query(
                        "INSERT INTO users (id, tenant_id, username, username_norm, email, email_norm, \
                         password_hash, role, openid, created_at, updated_at) \
                         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10)",
                    )
                    .bind(&user.id)
                    .bind(&user.tenant_id)
                    .bind(&user.username)
                    .bind(folded(&user.username))
                    .bind(&user.email)
                    .bind(user.email.as_deref().map(folded))
                    .bind(&user.password_hash)
                    .bind(&user.role)
                    .bind(&user.openid)
                    .bind(now)
                    .execute(self.writer())
                    .await
                })
                .await?;
                Ok(made(user, now))
            }

            async fn user(&self, id: &str) -> Stored<User> {
                keyed([id])?;
                self.one_user(sqlx::query_as(select_user!("id = $1")).bind(id)).await
            }

            async fn user_by_name(&self, tenant: &str, username: &str) -> Stored<User> {
                keyed([tenant])?;
                let query = sqlx::query_as(select_user!("tenant_id = $1 AND username_norm = $2"));
                self.one_user(query.bind(tenant).bind(folded(username))).await
            }

            async fn user_by_email(&self, tenant: &str, email: &str) -> Stored<User> {
                keyed([tenant])?;
                let query = sqlx::query_as(select_user!("tenant_id = $1 AND email_norm = $2"));
                self.one_user(query.bind(tenant).bind(folded(email))).await
            }

            async fn user_by_openid(&self, tenant: &str, openid: &str) -> Stored<User> {
                keyed([tenant, openid])?;
                let query = sqlx::query_as(select_user!("tenant_id = $1 AND openid = $2"));
                self.one_user(query.bind(tenant).bind(openid)).await
            }

            async fn note_login(&self, id: &str, now: SystemTime) -> Stored<()> {
                keyed([id])?;
                let sql = "UPDATE users SET last_login_at = $2 WHERE id = $1 AND deleted_at IS NULL";
                change!(self, sql, id, millis(now))
            }

            async fn set_password(&self, id: &str, hash: &str, now: SystemTime) -> Stored<()> {
                keyed([id])?;
                storable([hash])?;
                let sql =
                    "UPDATE users SET password_hash = $2, updated_at = $3 WHERE id = $1 AND deleted_at IS NULL";
                change!(self, sql, id, hash, millis(now))
            }

            async fn set_role(&self, id: &str, role: &str, now: SystemTime) -> Stored<()> {
                keyed([id])?;
                storable([role])?;
                let sql = "UPDATE users SET role = $2, updated_at = $3 WHERE id = $1 AND deleted_at IS NULL";
                change!(self, sql, id, role, millis(now))
            }

            async fn set_disabled(&self, id: &str, disabled: bool, now: SystemTime) -> Stored<()> {
                keyed([id])?;
                let sql = "UPDATE users SET disabled = $2, updated_at = $3 WHERE id = $1 AND deleted_at IS NULL";
                change!(self, sql, id, disabled, millis(now))
            }

            async fn users(&self, limit: u32, cursor: Option<&str>) -> Stored<Page<User>> {
                let limit = limit.clamp(1, PAGE) as usize;
                let after = cursor.map_or_else(|| Ok(Cursor::start()), Cursor::parse)?;
                let mut rows: Vec<UserRow> = within(self.call, async {
                    sqlx::query_as(select_user!(
                        "(created_at, id) < ($1, $2) ORDER BY created_at DESC, id DESC LIMIT $3"
                    ))
                    .bind(after.created_at)
                    .bind(after.id)
                    // One more tells whether there is another page.
                    .bind(limit as i64 + 1)
                    .fetch_all(self.reader())
                    .await
                })
                .await?;
                let more = rows.len() > limit;
                rows.truncate(limit);
                let next = rows
                    .last()
                    .filter(|_| more)
                    .map(|row| Cursor { created_at: row.created_at, id: row.id.clone() }.text());
                Ok(Page { items: rows.into_iter().map(User::from).collect(), next })
            }
        }

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

        #[async_trait]
        impl ApiKeys for $store {
            async fn create_api_key(&self, key: ApiKey, hash: &[u8; 32]) -> Stored<()> {
                let texts = [&key.id, &key.name, &key.tenant_id, &key.created_by];
                storable(texts.into_iter().map(String::as_str))?;
                let permissions = serde_json::to_string(&key.permissions)
                    .map_err(|error| StoreError::Failed(error.to_string()))?;
                let sql = "INSERT INTO api_keys \
                           (id, key_hash, name, tenant_id, created_by, permissions, created_at, expires_at, revoked) \
                           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
                change!(
                    self,
                    sql,
                    &key.id,
                    &hash[..],
                    &key.name,
                    &key.tenant_id,
                    &key.created_by,
                    &permissions,
                    millis(key.created_at),
                    key.expires_at.map(millis),
                    key.revoked
                )
            }

            async fn api_key(&self, hash: &[u8; 32], now: SystemTime) -> Stored<ApiKey> {
                let row: ApiKeyRow = within(self.call, async {
                    sqlx::query_as(select_key!(
                        "WHERE key_hash = $1 AND NOT revoked AND (expires_at IS NULL OR expires_at > $2)"
                    ))
                    .bind(&hash[..])
                    .bind(millis(now))
                    .fetch_one(self.reader())
                    .await
                })
                .await?;
                row.key()
            }

            async fn api_keys(&self) -> Stored<Vec<ApiKey>> {
                let rows: Vec<ApiKeyRow> = within(self.call, async {
                    sqlx::query_as(select_key!("ORDER BY created_at DESC, id DESC"))
                        .fetch_all(self.reader())
                        .await
                })
                .await?;
                rows.into_iter().map(ApiKeyRow::key).collect()
            }

            async fn revoke_api_key(&self, id: &str) -> Stored<()> {
                keyed([id])?;
                change!(self, "UPDATE api_keys SET revoked = TRUE WHERE id = $1", id)
            }
        }
    };
}
pub(super) use portable_store;

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
