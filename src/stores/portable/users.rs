//! Users, in words both databases understand.

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
pub(in crate::stores) use select_user;

/// Implements `Users` for a backend.
macro_rules! portable_users {
    ($store:ty) => {
        const _: () = {
            use crate::stores::faults::within;
            use crate::stores::portable::{PAGE, SWEEP_BATCH, change, page, sweep};
            use crate::stores::portable::users::select_user;
            use crate::stores::rows::{Cursor, UserRow, keyed, made, millis, storable};
            use crate::stores::*;

            impl $store {
                /// Removes a deleted user's rows: the many in batches, the rest with the user's own.
                async fn remove_rows_of(&self, id: &str) -> Stored<()> {
                    sweep!(
                        self,
                        "DELETE FROM messages WHERE id IN (SELECT m.id FROM messages m \
                         JOIN sessions s ON s.id = m.session_id WHERE s.user_id = $1 LIMIT $2)",
                        id
                    );
                    sweep!(self, Self::REMOVE_SESSIONS, id);
                    within(self.call, async {
                        let sql = "DELETE FROM users WHERE id = $1 AND deleted_at IS NOT NULL";
                        sqlx::query(sql).bind(id).execute(self.writer()).await?;
                        Ok(())
                    })
                    .await
                }
            }

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
                    let rows: Vec<UserRow> = within(self.call, async {
                        sqlx::query_as(select_user!(
                            "(created_at, id) < ($1, $2) ORDER BY created_at DESC, id DESC LIMIT $3"
                        ))
                        .bind(after.created_at)
                        .bind(after.id)
                        .bind(limit as i64 + 1)
                        .fetch_all(self.reader())
                        .await
                    })
                    .await?;
                    let cursor = |row: &UserRow| Cursor { created_at: row.created_at, id: row.id.clone() }.text();
                    page(rows, limit, cursor, |row| Ok(row.into()))
                }

                async fn delete_user(&self, id: &str, now: SystemTime) -> Stored<()> {
                    keyed([id])?;
                    within(self.call, async {
                        let mut tx = self.begin().await?;
                        // From here on there is no such user; what follows may take its time, and be taken up again.
                        let sql = "UPDATE users SET deleted_at = COALESCE(deleted_at, $2) WHERE id = $1";
                        let found = sqlx::query(sql).bind(id).bind(millis(now)).execute(&mut *tx).await?;
                        if found.rows_affected() == 0 {
                            return Err(sqlx::Error::RowNotFound);
                        }
                        // The admin API writes `user ID` for who made a key.
                        sqlx::query(
                            "UPDATE api_keys SET revoked = TRUE \
                             WHERE created_by IN ($1, 'user ' || $1) AND NOT revoked",
                        )
                        .bind(id)
                        .execute(&mut *tx)
                        .await?;
                        tx.commit().await
                    })
                    .await?;
                    self.remove_rows_of(id).await
                }

                async fn sweep_deleted_users(&self) -> Stored<u64> {
                    let rows: Vec<(String,)> = within(self.call, async {
                        sqlx::query_as("SELECT id FROM users WHERE deleted_at IS NOT NULL LIMIT $1")
                            .bind(SWEEP_BATCH)
                            .fetch_all(self.reader())
                            .await
                    })
                    .await?;
                    for (id,) in &rows {
                        self.remove_rows_of(id).await?;
                    }
                    Ok(rows.len() as u64)
                }
            }
        };
    };
}
pub(in crate::stores) use portable_users;
