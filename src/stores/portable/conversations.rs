//! Sessions and messages, in words both databases understand.
//!
//! Whoever writes into a session changes its row first: that locks it, proves whose it is, and gives the message its
//! number. So numbers appear in their order, and a cursor never passes one that is still to come.

/// The columns of a session, after what precedes them and before what follows.
macro_rules! with_session {
    ($before:literal, $after:literal) => {
        concat!($before, " id, title, created_at, updated_at ", $after)
    };
}
pub(in crate::stores) use with_session;

/// `SELECT` of messages of a session `$1` that is the owner's (`$2`, `$3`) and not deleted, with what follows `AND`.
macro_rules! select_message {
    ($rest:literal) => {
        concat!(
            "SELECT m.id, m.number, m.author, m.content, m.status, m.total_tokens, m.created_at \
             FROM messages m JOIN sessions s ON s.id = m.session_id \
             WHERE m.session_id = $1 AND s.user_id = $2 AND s.tenant_id = $3 AND s.deleted_at IS NULL AND ",
            $rest
        )
    };
}
pub(in crate::stores) use select_message;

/// Keeps a retry key in the transaction of what it names. `None` if the key is new (or there is none); else what the
/// key stands for: request, session, turn. Of parallel calls with one key, the primary key lets one insert; the others
/// wait for it and find its row.
macro_rules! claim {
    ($tx:expr, $owner:expr, $operation:literal, $retry:expr, $session:expr, $turn:expr, $now:expr) => {
        match $retry {
            None => None,
            Some(retry) => {
                let done = sqlx::query(
                    // One that is over is as good as none.
                    "INSERT INTO retry_keys \
                     (user_id, tenant_id, operation, key_hash, request, expires_at, session_id, turn_id) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
                     ON CONFLICT (user_id, tenant_id, operation, key_hash) DO UPDATE \
                     SET request = excluded.request, expires_at = excluded.expires_at, \
                     session_id = excluded.session_id, turn_id = excluded.turn_id \
                     WHERE retry_keys.expires_at <= $9",
                )
                .bind(&*$owner.user_id)
                .bind(&*$owner.tenant_id)
                .bind($operation)
                .bind(&retry.key[..])
                .bind(&retry.request[..])
                .bind(crate::stores::rows::millis(retry.expires_at))
                .bind($session)
                .bind($turn)
                .bind($now)
                .execute(&mut *$tx)
                .await?;
                if done.rows_affected() > 0 {
                    None
                } else {
                    let before: (Vec<u8>, String, String) = sqlx::query_as(
                        "SELECT request, session_id, turn_id FROM retry_keys \
                         WHERE user_id = $1 AND tenant_id = $2 AND operation = $3 AND key_hash = $4",
                    )
                    .bind(&*$owner.user_id)
                    .bind(&*$owner.tenant_id)
                    .bind($operation)
                    .bind(&retry.key[..])
                    .fetch_one(&mut *$tx)
                    .await?;
                    Some((before.0 == retry.request, before.1, before.2))
                }
            }
        }
    };
}
pub(in crate::stores) use claim;

/// Implements `Conversations` for a backend.
macro_rules! portable_conversations {
    ($store:ty) => {
        const _: () = {
            use crate::stores::faults::within;
            use crate::stores::portable::conversations::{claim, select_message, with_session};
            use crate::stores::portable::{PAGE, page};
            use crate::stores::rows::{Cursor, MessageRow, SessionRow, keyed, millis, storable};
            use crate::stores::*;

            #[async_trait]
            impl Conversations for $store {
                async fn create_session(
                    &self,
                    owner: &Owner,
                    id: &str,
                    title: &str,
                    retry: Option<&RetryKey>,
                    now: SystemTime,
                ) -> Stored<Once<ChatSession>> {
                    keyed([&*owner.user_id, &*owner.tenant_id])?;
                    storable([id, title])?;
                    let now = millis(now);
                    within(self.call, async {
                        let mut tx = self.begin().await?;
                        if let Some((same, session, _)) = claim!(tx, owner, "session", retry, id, "", now) {
                            if !same {
                                tx.rollback().await?;
                                return Ok(Once::Mismatch);
                            }
                            // Also one that was deleted since: it is what came of the request.
                            let row: SessionRow = sqlx::query_as(with_session!(
                                "SELECT",
                                "FROM sessions WHERE id = $1 AND user_id = $2 AND tenant_id = $3"
                            ))
                            .bind(session)
                            .bind(&*owner.user_id)
                            .bind(&*owner.tenant_id)
                            .fetch_one(&mut *tx)
                            .await?;
                            tx.rollback().await?;
                            return Ok(Once::Before(row.into()));
                        }
                        let row: SessionRow = sqlx::query_as(with_session!(
                            "INSERT INTO sessions (id, user_id, tenant_id, title, created_at, updated_at) \
                             SELECT $1, id, tenant_id, $4, $5, $5 FROM users \
                             WHERE id = $2 AND tenant_id = $3 AND deleted_at IS NULL RETURNING",
                            ""
                        ))
                        .bind(id)
                        .bind(&*owner.user_id)
                        .bind(&*owner.tenant_id)
                        .bind(title)
                        .bind(now)
                        .fetch_one(&mut *tx)
                        .await?;
                        tx.commit().await?;
                        Ok(Once::Done(row.into()))
                    })
                    .await
                }

                async fn session(&self, owner: &Owner, id: &str) -> Stored<ChatSession> {
                    keyed([id, &*owner.user_id, &*owner.tenant_id])?;
                    let row: SessionRow = within(self.call, async {
                        sqlx::query_as(with_session!(
                            "SELECT",
                            "FROM sessions \
                             WHERE id = $1 AND user_id = $2 AND tenant_id = $3 AND deleted_at IS NULL"
                        ))
                        .bind(id)
                        .bind(&*owner.user_id)
                        .bind(&*owner.tenant_id)
                        .fetch_one(self.reader())
                        .await
                    })
                    .await?;
                    Ok(row.into())
                }

                async fn sessions(
                    &self,
                    owner: &Owner,
                    limit: u32,
                    cursor: Option<&str>,
                ) -> Stored<Page<ChatSession>> {
                    keyed([&*owner.user_id, &*owner.tenant_id])?;
                    let limit = limit.clamp(1, PAGE) as usize;
                    let after = cursor.map_or_else(|| Ok(Cursor::start()), Cursor::parse)?;
                    let rows: Vec<SessionRow> = within(self.call, async {
                        sqlx::query_as(with_session!(
                            "SELECT",
                            "FROM sessions WHERE user_id = $1 AND tenant_id = $2 AND deleted_at IS NULL \
                             AND (created_at, id) < ($3, $4) ORDER BY created_at DESC, id DESC LIMIT $5"
                        ))
                        .bind(&*owner.user_id)
                        .bind(&*owner.tenant_id)
                        .bind(after.created_at)
                        .bind(after.id)
                        .bind(limit as i64 + 1)
                        .fetch_all(self.reader())
                        .await
                    })
                    .await?;
                    let cursor =
                        |row: &SessionRow| Cursor { created_at: row.created_at, id: row.id.clone() }.text();
                    page(rows, limit, cursor, |row| Ok(row.into()))
                }

                async fn rename_session(
                    &self,
                    owner: &Owner,
                    id: &str,
                    title: &str,
                    now: SystemTime,
                ) -> Stored<ChatSession> {
                    keyed([id, &*owner.user_id, &*owner.tenant_id])?;
                    storable([title])?;
                    let row: SessionRow = within(self.call, async {
                        sqlx::query_as(with_session!(
                            "UPDATE sessions SET title = $4, \
                             updated_at = CASE WHEN updated_at > $5 THEN updated_at ELSE $5 END \
                             WHERE id = $1 AND user_id = $2 AND tenant_id = $3 AND deleted_at IS NULL RETURNING",
                            ""
                        ))
                        .bind(id)
                        .bind(&*owner.user_id)
                        .bind(&*owner.tenant_id)
                        .bind(title)
                        .bind(millis(now))
                        .fetch_one(self.writer())
                        .await
                    })
                    .await?;
                    Ok(row.into())
                }

                async fn delete_session(&self, owner: &Owner, id: &str, now: SystemTime) -> Stored<()> {
                    keyed([id, &*owner.user_id, &*owner.tenant_id])?;
                    within(self.call, async {
                        let mut tx = self.begin().await?;
                        let done = sqlx::query(
                            "UPDATE sessions SET deleted_at = $4 \
                             WHERE id = $1 AND user_id = $2 AND tenant_id = $3 AND deleted_at IS NULL",
                        )
                        .bind(id)
                        .bind(&*owner.user_id)
                        .bind(&*owner.tenant_id)
                        .bind(millis(now))
                        .execute(&mut *tx)
                        .await?;
                        if done.rows_affected() == 0 {
                            return Err(sqlx::Error::RowNotFound);
                        }
                        sqlx::query(Self::STOP_TURNS).bind(id).bind(None::<&str>).execute(&mut *tx).await?;
                        tx.commit().await
                    })
                    .await
                }

                async fn messages(
                    &self,
                    owner: &Owner,
                    session_id: &str,
                    order: Order,
                    limit: u32,
                    cursor: Option<&str>,
                ) -> Stored<Page<Message>> {
                    keyed([session_id, &*owner.user_id, &*owner.tenant_id])?;
                    let limit = limit.clamp(1, PAGE) as usize;
                    let (sql, start) = match order {
                        Order::OldestFirst => {
                            (select_message!("m.number > $4 ORDER BY m.number LIMIT $5"), i64::MIN)
                        }
                        Order::NewestFirst => {
                            (select_message!("m.number < $4 ORDER BY m.number DESC LIMIT $5"), i64::MAX)
                        }
                    };
                    let after = match cursor {
                        Some(cursor) => cursor.parse().map_err(|_| StoreError::BadCursor)?,
                        None => start,
                    };
                    let rows: Vec<MessageRow> = within(self.call, async {
                        sqlx::query_as(sql)
                            .bind(session_id)
                            .bind(&*owner.user_id)
                            .bind(&*owner.tenant_id)
                            .bind(after)
                            .bind(limit as i64 + 1)
                            .fetch_all(self.reader())
                            .await
                    })
                    .await?;
                    if rows.is_empty() {
                        // No message, or no session?
                        self.session(owner, session_id).await?;
                    }
                    page(rows, limit, |row| row.number.to_string(), MessageRow::message)
                }

                async fn message(&self, owner: &Owner, session_id: &str, id: &str) -> Stored<Message> {
                    keyed([session_id, id, &*owner.user_id, &*owner.tenant_id])?;
                    let row: MessageRow = within(self.call, async {
                        sqlx::query_as(select_message!("m.id = $4"))
                            .bind(session_id)
                            .bind(&*owner.user_id)
                            .bind(&*owner.tenant_id)
                            .bind(id)
                            .fetch_one(self.reader())
                            .await
                    })
                    .await?;
                    row.message()
                }
            }
        };
    };
}
pub(in crate::stores) use portable_conversations;
