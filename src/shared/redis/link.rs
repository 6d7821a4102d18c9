//! The connection to Redis: what a URL stands for, made and kept by tasks of its own, and heard channels.

use super::super::SharedError;
use arc_swap::ArcSwapOption;
use futures_util::StreamExt as _;
use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, FromRedisValue, IntoConnectionInfo as _, RedisError,
    RedisResult,
};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::{sleep, timeout};

/// How often everything that waits in this process gets its turn before a deadline that is over counts. Two or three
/// rounds take an answer from the socket to its call; an idle process does all of them in microseconds.
const ROUNDS: u32 = 8;
/// How long connecting may take, in the background.
const CONNECT: Duration = Duration::from_secs(2);
/// How often the connection is tried when nothing says that it broke.
const CHECK: Duration = Duration::from_secs(1);
/// Silent checks after which it is made anew.
const MISSES: u32 = 3;
/// Between attempts to connect.
const RETRY: Duration = Duration::from_millis(250);
/// Commands that may wait to be written.
const PIPELINE: usize = 4096;

/// What the background tasks and the calls share.
pub(super) struct Link {
    target: Target,
    /// How long a call may take (SECURITY rule 17).
    deadline: Duration,
    connection: ArcSwapOption<Connection>,
    /// A call found the connection broken.
    broken: Notify,
    connected: watch::Sender<bool>,
    subscriptions: AtomicU32,
}

enum Target {
    Single(Box<Client>),
    Cluster { client: Box<ClusterClient>, nodes: Vec<Client> },
}

#[derive(Clone)]
pub(super) enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Link {
    /// To whatever a URL stands for; [`keep`](Self::keep) makes the connection.
    ///
    /// # Errors
    /// [`SharedError::Url`].
    pub(super) fn to(url: &str, deadline: Duration) -> Result<Self, SharedError> {
        Ok(Link {
            target: target(url, deadline)?,
            deadline,
            connection: ArcSwapOption::empty(),
            broken: Notify::new(),
            connected: watch::Sender::new(false),
            subscriptions: AtomicU32::new(0),
        })
    }

    /// Waits until there is a connection, for so long at most; whether there is.
    pub(super) async fn connected(&self, within: Duration) -> bool {
        let mut connected = self.connected.subscribe();
        timeout(within, connected.wait_for(|connected| *connected)).await.is_ok()
    }

    /// Connections in use.
    pub(super) fn connections(&self) -> u32 {
        u32::from(self.connection.load().is_some()) + self.subscriptions.load(Ordering::Relaxed)
    }

    /// Does something over the connection, within the deadline.
    pub(super) async fn in_time<T>(
        &self,
        call: impl AsyncFnOnce(&Connection) -> RedisResult<T>,
    ) -> Result<T, SharedError> {
        let Some(connection) = self.connection.load_full() else {
            return Err(SharedError::Unavailable("there is no connection to Redis".to_owned()));
        };
        match answered(call(&connection), self.deadline).await {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) => {
                if error.is_unrecoverable_error() {
                    self.broken.notify_one();
                }
                Err(SharedError::Unavailable(error.to_string()))
            }
            None => Err(SharedError::Unavailable(format!(
                "Redis did not answer within {} ms",
                self.deadline.as_millis()
            ))),
        }
    }

    /// Makes the connection, looks after it, and makes it anew when it broke, for ever.
    pub(super) async fn keep(self: Arc<Self>) {
        loop {
            if let Ok(Ok(connection)) = timeout(CONNECT, self.target.connect()).await {
                self.connection.store(Some(Arc::new(connection.clone())));
                self.connected.send_replace(true);
                self.attend(&connection).await;
                self.connection.store(None);
                self.connected.send_replace(false);
            }
            sleep(RETRY).await;
        }
    }

    /// Returns when the connection is of no more use.
    async fn attend(&self, connection: &Connection) {
        let ping = redis::cmd("PING");
        let mut misses = 0;
        while misses < MISSES {
            // Waits no longer when a call found it broken.
            let _ = timeout(CHECK, self.broken.notified()).await;
            match timeout(CHECK, connection.query::<redis::Value>(&ping)).await {
                Ok(Ok(_)) => misses = 0,
                Ok(Err(error)) if error.is_unrecoverable_error() => return,
                // Busy, loading, or silent.
                Ok(Err(_)) | Err(_) => misses += 1,
            }
        }
    }

    /// Hears a channel, for ever.
    pub(super) async fn listen(self: Arc<Self>, channel: String, sender: broadcast::Sender<String>) {
        let mut attempt = 0;
        loop {
            let connecting = async {
                let mut heard = self.target.listener(attempt).get_async_pubsub().await?;
                heard.subscribe(&channel).await?;
                RedisResult::Ok(heard)
            };
            if let Ok(Ok(heard)) = timeout(CONNECT, connecting).await {
                self.subscriptions.fetch_add(1, Ordering::Relaxed);
                let (mut sink, mut messages) = heard.split();
                loop {
                    match timeout(CHECK, messages.next()).await {
                        Ok(Some(message)) => {
                            if let Ok(text) = message.get_payload() {
                                // Nobody listens: nobody needs it.
                                let _ = sender.send(text);
                            }
                        }
                        Ok(None) => break,
                        // Silence may be a connection that is gone without a word.
                        Err(_) => match timeout(CHECK, sink.ping_message::<redis::Value>("")).await {
                            Ok(Ok(_)) => {}
                            _ => break,
                        },
                    }
                }
                self.subscriptions.fetch_sub(1, Ordering::Relaxed);
            }
            attempt += 1;
            sleep(RETRY).await;
        }
    }
}

/// What comes of a call within the deadline.
///
/// In a process that has more to do than it can, the deadline may be over while the answer waits here to be read. That
/// is not Redis's fault, and taking it for one would make every limit inexact just when it is needed: so, once the
/// deadline is over, the tasks that wait get their turn, the one that reads from Redis among them, before it counts.
async fn answered<T>(call: impl Future<Output = T>, deadline: Duration) -> Option<T> {
    let mut call = pin!(call);
    if let Ok(answer) = timeout(deadline, call.as_mut()).await {
        return Some(answer);
    }
    for _ in 0..ROUNDS {
        tokio::task::yield_now().await;
        if let Poll::Ready(answer) = futures_util::poll!(call.as_mut()) {
            return Some(answer);
        }
    }
    None
}

impl Connection {
    pub(super) async fn query<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        match self.clone() {
            Connection::Single(mut connection) => command.query_async(&mut connection).await,
            Connection::Cluster(mut connection) => command.query_async(&mut connection).await,
        }
    }
}

impl Target {
    async fn connect(&self) -> RedisResult<Connection> {
        match self {
            Target::Single(client) => {
                // The deadline of a call is kept by whoever calls.
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(CONNECT))
                    .set_response_timeout(None)
                    .set_pipeline_buffer_size(PIPELINE);
                client.get_multiplexed_async_connection_with_config(&config).await.map(Connection::Single)
            }
            Target::Cluster { client, .. } => client.get_async_connection().await.map(Connection::Cluster),
        }
    }

    /// The server to hear from; any of a Cluster's will do.
    fn listener(&self, attempt: usize) -> &Client {
        match self {
            Target::Single(client) => client,
            Target::Cluster { nodes, .. } => &nodes[attempt % nodes.len()],
        }
    }
}

/// Reads the URLs.
fn target(text: &str, deadline: Duration) -> Result<Target, SharedError> {
    let unusable = |_: RedisError| SharedError::Url;
    let cluster =
        text.contains(',') || text.contains("redis-cluster://") || text.contains("rediss-cluster://");
    let infos: Vec<ConnectionInfo> = text
        .split(',')
        .map(|one| {
            let one =
                one.trim().replace("redis-cluster://", "redis://").replace("rediss-cluster://", "rediss://");
            one.into_connection_info().map_err(unusable)
        })
        .collect::<Result<_, _>>()?;
    if text.contains("rediss") {
        // The client brings no cryptography. Whoever installed a provider first is as good.
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    }
    let nodes = infos
        .iter()
        .map(|info| Client::open(info.clone()).map_err(unusable))
        .collect::<Result<Vec<_>, _>>()?;
    match <[Client; 1]>::try_from(nodes) {
        Ok([client]) if !cluster => Ok(Target::Single(Box::new(client))),
        nodes => {
            let nodes = nodes.map_or_else(|nodes| nodes, Vec::from);
            let client = ClusterClient::builder(infos)
                .connection_timeout(CONNECT)
                .response_timeout(deadline)
                .retries(1)
                .build()
                .map_err(unusable)?;
            Ok(Target::Cluster { client: Box::new(client), nodes })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const DEADLINE: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn an_answer_that_waits_in_a_process_that_was_busy_counts() {
        let (say, heard) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            // Work that lets nobody else run until the deadline is over; then word goes from task to task.
            let begun = Instant::now();
            while begun.elapsed() < 2 * DEADLINE {
                std::hint::spin_loop();
            }
            tokio::task::yield_now().await;
            tokio::spawn(async { say.send("here") });
        });
        assert_eq!(answered(heard, DEADLINE).await, Some(Ok("here")));
    }

    #[tokio::test]
    async fn silence_is_no_answer() {
        let begun = Instant::now();
        assert_eq!(answered(std::future::pending::<()>(), DEADLINE).await, None);
        assert!((DEADLINE..20 * DEADLINE).contains(&begun.elapsed()));
    }

    #[test]
    fn urls_are_one_server_or_a_cluster_and_never_shown() {
        let is_cluster = |url: &str| matches!(target(url, DEADLINE), Ok(Target::Cluster { .. }));
        assert!(!is_cluster("redis://:hush@127.0.0.1:6379/2"));
        assert!(!is_cluster("rediss://127.0.0.1"));
        assert!(is_cluster("redis://127.0.0.1:7000, redis://127.0.0.1:7001"));
        assert!(is_cluster("redis-cluster://127.0.0.1:7000"));
        assert!(is_cluster("rediss-cluster://user:hush@127.0.0.1:7000"));
        for bad in ["", "hush", "http://hush", "redis://:hush@", "redis://a,hush"] {
            let Err(error) = target(bad, DEADLINE) else { panic!("{bad} is taken for a URL") };
            assert!(!error.to_string().contains("hush"), "{error}");
        }
    }
}
