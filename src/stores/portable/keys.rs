//! API keys, in words both databases understand.

/// `SELECT` of API keys, with what follows.
macro_rules! select_key {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, tenant_id, created_by, permissions, created_at, expires_at, revoked FROM api_keys ",
            $rest
        )
    };
}
pub(in crate::stores) use select_key;

/// Implements `ApiKeys` for a backend.
macro_rules! portable_keys {
    ($store:ty) => {
        const _: () = {
            use crate::stores::faults::within;
            use crate::stores::portable::change;
            use crate::stores::portable::keys::select_key;
            use crate::stores::rows::{ApiKeyRow, keyed, millis, storable};
            use crate::stores::*;

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
    };
}
pub(in crate::stores) use portable_keys;
