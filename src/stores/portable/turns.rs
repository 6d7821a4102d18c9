//! Turns, in words both databases understand.
//!
//! A turn is locked after its session, always in that order, so that calls do not wait for each other in a ring; where
//! one transaction locks several sessions, in the order of their ids.

/// Dead turns that one transaction closes at most.
pub(in crate::stores) const RECOVER_BATCH: usize = 100;

/// Writes an assistant's message into a session and removes its turn, where the session is still there.
///
/// `$conflict` says what happens where the message exists.
macro_rules! close_turn {
    ($tx:expr, $session:expr, $id:expr, $content:expr, $status:expr, $tokens:expr, $now:expr, $conflict:literal) => {{
        let number: Option<(i64,)> = sqlx::query_as(
            "UPDATE sessions SET last_message = last_message + 1, \
             updated_at = CASE WHEN updated_at > $2 THEN updated_at ELSE $2 END WHERE id = $1 RETURNING last_message",
        )
        .bind($session)
        .bind($now)
        .fetch_optional(&mut *$tx)
        .await?;
        if let Some((number,)) = number {
            sqlx::query(concat!(
                "INSERT INTO messages (id, session_id, number, author, content, status, total_tokens, created_at) \
                 VALUES ($1, $2, $3, 'assistant', $4, $5, $6, $7) ON CONFLICT (id) DO ",
                $conflict
            ))
            .bind($id)
            .bind($session)
            .bind(number)
            .bind($content)
            .bind($status)
            .bind($tokens)
            .bind($now)
            .execute(&mut *$tx)
            .await?;
        }
        number.is_some()
    }};
}
pub(in crate::stores) use close_turn;

/// Implements `Turns` for a backend.
macro_rules! portable_turns {
    ($store:ty) => {
        const _: () = {
            use crate::stores::faults::within;
            use crate::stores::portable::conversations::claim;
            use crate::stores::portable::sweep;
            use crate::stores::portable::turns::{RECOVER_BATCH, close_turn};
            use crate::stores::rows::{keyed, millis, status_name, storable, text};
            use crate::stores::*;

            #[async_trait]
            impl Turns for $store {
                async fn begin_turn(
                    &self,
                    owner: &Owner,
                    turn: &NewTurn,
                    retry: Option<&RetryKey>,
                    now: SystemTime,
                ) -> Stored<Once<TurnRef>> {
                    keyed([&*turn.session_id, &*owner.user_id, &*owner.tenant_id])?;
                    storable([&*turn.id, &*turn.message_id, &*turn.replica])?;
                    let now = millis(now);
                    within(self.call, async {
                        let mut tx = self.begin().await?;
                        let (number,): (i64,) = sqlx::query_as(
                            "UPDATE sessions SET last_message = last_message + 1, \
                             updated_at = CASE WHEN updated_at > $4 THEN updated_at ELSE $4 END \
                             WHERE id = $1 AND user_id = $2 AND tenant_id = $3 AND deleted_at IS NULL \
                             AND EXISTS (SELECT 1 FROM users WHERE id = $2 AND deleted_at IS NULL) \
                             RETURNING last_message",
                        )
                        .bind(&turn.session_id)
                        .bind(&*owner.user_id)
                        .bind(&*owner.tenant_id)
                        .bind(now)
                        .fetch_one(&mut *tx)
                        .await?;
                        let before = claim!(tx, owner, "turn", retry, &turn.session_id, &turn.id, now);
                        if let Some((same, session_id, id)) = before {
                            tx.rollback().await?;
                            return Ok(if same { Once::Before(TurnRef { id, session_id }) } else { Once::Mismatch });
                        }
                        sqlx::query(
                            "INSERT INTO messages (id, session_id, number, author, content, status, created_at) \
                             VALUES ($1, $2, $3, 'user', $4, 'complete', $5)",
                        )
                        .bind(&turn.message_id)
                        .bind(&turn.session_id)
                        .bind(number)
                        .bind(text(&turn.query))
                        .bind(now)
                        .execute(&mut *tx)
                        .await?;
                        sqlx::query(
                            "INSERT INTO turns (id, session_id, replica, alive_until, started_at) \
                             VALUES ($1, $2, $3, $4, $5)",
                        )
                        .bind(&turn.id)
                        .bind(&turn.session_id)
                        .bind(&turn.replica)
                        .bind(millis(turn.alive_until))
                        .bind(now)
                        .execute(&mut *tx)
                        .await?;
                        tx.commit().await?;
                        Ok(Once::Done(TurnRef { id: turn.id.clone(), session_id: turn.session_id.clone() }))
                    })
                    .await
                }

                async fn keep_turns(
                    &self,
                    replica: &str,
                    said: &[Piece],
                    alive_until: SystemTime,
                ) -> Stored<Vec<String>> {
                    storable([replica].into_iter().chain(said.iter().map(|piece| piece.turn.as_str())))?;
                    let stop = within(self.call, self.keep(replica, said, millis(alive_until))).await?;
                    Ok(stop.into_iter().map(|(id,)| id).collect())
                }

                async fn finish_turn(&self, turn: &TurnRef, end: &TurnEnd, now: SystemTime) -> Stored<()> {
                    storable([&*turn.id, &*turn.session_id])?;
                    let tokens = end.total_tokens.map(|tokens| i64::try_from(tokens).unwrap_or(i64::MAX));
                    within(self.call, async {
                        let mut tx = self.begin().await?;
                        // Of a message that was put there meanwhile, place and time stay: nothing moves.
                        let there = close_turn!(
                            tx,
                            &turn.session_id,
                            &turn.id,
                            text(&end.content),
                            status_name(end.status),
                            tokens,
                            millis(now),
                            "UPDATE SET content = excluded.content, status = excluded.status, \
                             total_tokens = excluded.total_tokens \
                             WHERE messages.session_id = excluded.session_id AND messages.author = 'assistant'"
                        );
                        if there {
                            sqlx::query("DELETE FROM turns WHERE id = $1").bind(&turn.id).execute(&mut *tx).await?;
                        }
                        tx.commit().await
                    })
                    .await
                }

                async fn ask_to_stop(
                    &self,
                    owner: &Owner,
                    session_id: &str,
                    turn: Option<&str>,
                ) -> Stored<Vec<String>> {
                    keyed([session_id].into_iter().chain(turn))?;
                    // A session never changes its owner.
                    self.session(owner, session_id).await?;
                    let asked: Vec<(String,)> = within(self.call, async {
                        sqlx::query_as(Self::STOP_TURNS)
                            .bind(session_id)
                            .bind(turn)
                            .fetch_all(self.writer())
                            .await
                    })
                    .await?;
                    Ok(asked.into_iter().map(|(id,)| id).collect())
                }

                async fn turn_runs(&self, owner: &Owner, session_id: &str, id: &str) -> Stored<bool> {
                    if id.contains('\0') || session_id.contains('\0') {
                        return Ok(false);
                    }
                    let row: Option<(String,)> = within(self.call, async {
                        let sql = "SELECT t.id FROM turns t JOIN sessions s ON s.id = t.session_id \
                                   WHERE t.id = $1 AND s.id = $2 AND s.tenant_id = $3 AND s.user_id = $4";
                        sqlx::query_as(sql)
                            .bind(id)
                            .bind(session_id)
                            .bind(&*owner.tenant_id)
                            .bind(&*owner.user_id)
                            .fetch_optional(self.reader())
                            .await
                    })
                    .await?;
                    Ok(row.is_some())
                }

                async fn recover_turns(&self, replica: &str, now: SystemTime) -> Stored<u64> {
                    storable([replica])?;
                    let now = millis(now);
                    let dead: Vec<(String, String)> = within(self.call, async {
                        sqlx::query_as(
                            "SELECT session_id, id FROM turns WHERE replica = $1 OR alive_until < $2 \
                             ORDER BY session_id, id",
                        )
                        .bind(replica)
                        .bind(now)
                        .fetch_all(self.reader())
                        .await
                    })
                    .await?;
                    let mut closed = 0;
                    for batch in dead.chunks(RECOVER_BATCH) {
                        closed += within(self.call, async {
                            let mut tx = self.begin().await?;
                            let mut closed = 0;
                            for (session_id, id) in batch {
                                sqlx::query("UPDATE sessions SET updated_at = updated_at WHERE id = $1")
                                    .bind(session_id)
                                    .execute(&mut *tx)
                                    .await?;
                                // Asked again with the session locked: it may have ended, or its replica be back.
                                let said: Option<(String,)> = sqlx::query_as(
                                    "UPDATE turns SET alive_until = alive_until \
                                     WHERE id = $1 AND (replica = $2 OR alive_until < $3) RETURNING said",
                                )
                                .bind(id)
                                .bind(replica)
                                .bind(now)
                                .fetch_optional(&mut *tx)
                                .await?;
                                let Some((mut said,)) = said else { continue };
                                let pieces: Vec<(String,)> = sqlx::query_as(
                                    "SELECT said FROM turn_pieces WHERE turn_id = $1 ORDER BY at_byte",
                                )
                                .bind(id)
                                .fetch_all(&mut *tx)
                                .await?;
                                said.extend(pieces.into_iter().map(|(piece,)| piece));
                                sqlx::query("DELETE FROM turns WHERE id = $1").bind(id).execute(&mut *tx).await?;
                                let status = status_name(MessageStatus::Interrupted);
                                let tokens = None::<i64>;
                                if close_turn!(tx, session_id, id, said, status, tokens, now, "NOTHING") {
                                    closed += 1;
                                }
                            }
                            tx.commit().await?;
                            Ok(closed)
                        })
                        .await?;
                    }
                    Ok(closed)
                }

                async fn sweep_retry_keys(&self, now: SystemTime) -> Stored<u64> {
                    let now = millis(now);
                    Ok(sweep!(
                        self,
                        "DELETE FROM retry_keys WHERE (user_id, tenant_id, operation, key_hash) IN \
                         (SELECT user_id, tenant_id, operation, key_hash FROM retry_keys \
                         WHERE expires_at <= $1 LIMIT $2)",
                        now
                    ))
                }
            }
        };
    };
}
pub(in crate::stores) use portable_turns;
