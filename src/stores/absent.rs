//! Conversations for stores of tests that have none.

/// Implements `Conversations` and `Turns` for a store that knows no session.
macro_rules! no_conversations {
    ($store:ty) => {
        const _: () = {
            use crate::stores::*;

            fn none<T>() -> Stored<T> {
                Err(StoreError::NotFound)
            }

            #[async_trait]
            impl Conversations for $store {
                async fn create_session(
                    &self,
                    _: &Owner,
                    _: &str,
                    _: &str,
                    _: Option<&RetryKey>,
                    _: SystemTime,
                ) -> Stored<Once<ChatSession>> {
                    none()
                }
                async fn session(&self, _: &Owner, _: &str) -> Stored<ChatSession> {
                    none()
                }
                async fn sessions(&self, _: &Owner, _: u32, _: Option<&str>) -> Stored<Page<ChatSession>> {
                    none()
                }
                async fn rename_session(
                    &self,
                    _: &Owner,
                    _: &str,
                    _: &str,
                    _: SystemTime,
                ) -> Stored<ChatSession> {
                    none()
                }
                async fn delete_session(&self, _: &Owner, _: &str, _: SystemTime) -> Stored<()> {
                    none()
                }
                async fn messages(
                    &self,
                    _: &Owner,
                    _: &str,
                    _: Order,
                    _: u32,
                    _: Option<&str>,
                ) -> Stored<Page<Message>> {
                    none()
                }
                async fn message(&self, _: &Owner, _: &str, _: &str) -> Stored<Message> {
                    none()
                }
            }

            #[async_trait]
            impl Turns for $store {
                async fn begin_turn(
                    &self,
                    _: &Owner,
                    _: &NewTurn,
                    _: Option<&RetryKey>,
                    _: SystemTime,
                ) -> Stored<Once<TurnRef>> {
                    none()
                }
                async fn keep_turns(&self, _: &str, _: &[Piece], _: SystemTime) -> Stored<Vec<String>> {
                    Ok(Vec::new())
                }
                async fn finish_turn(&self, _: &TurnRef, _: &TurnEnd, _: SystemTime) -> Stored<()> {
                    Ok(())
                }
                async fn ask_to_stop(&self, _: &Owner, _: &str, _: Option<&str>) -> Stored<Vec<String>> {
                    none()
                }
                async fn turn_runs(&self, _: &Owner, _: &str, _: &str) -> Stored<bool> {
                    Ok(false)
                }
                async fn recover_turns(&self, _: &str, _: SystemTime) -> Stored<u64> {
                    Ok(0)
                }
                async fn sweep_retry_keys(&self, _: SystemTime) -> Stored<u64> {
                    Ok(0)
                }
            }
        };
    };
}
pub(crate) use no_conversations;
