//! Shared state in Redis: one server (`redis://`, `rediss://`), or a Cluster (several URLs, or `redis-cluster://`).
//!
//! One connection, on which every command is pipelined, made and kept by a task of its own: whoever asks while there
//! is none is told at once, nobody waits for connecting. Every call has a deadline of 50 ms. Decisions are one script each
//! (`EVALSHA`, with the script's text where the server does not know it), on one hash-tagged key, by Redis's own
//! clock. Word of revocations comes on a connection of its own for each channel.

use super::memory::{BACKLOG, locked};
use super::{Decision, Lease, Limit, SharedError, SharedState};
use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use futures_util::StreamExt as _;
use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, ErrorKind, FromRedisValue, IntoConnectionInfo as _,
    RedisError, RedisResult, Script, ServerErrorKind,
};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, SystemTime};
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

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

static HIT: LazyLock<(Script, &str)> = LazyLock::new(|| script(include_str!("lua/hit.lua")));
static ACQUIRE: LazyLock<(Script, &str)> = LazyLock::new(|| script(include_str!("lua/acquire.lua")));
static RENEW: LazyLock<(Script, &str)> = LazyLock::new(|| script(include_str!("lua/renew.lua")));

fn script(text: &'static str) -> (Script, &'static str) {
    (Script::new(text), text)
}

/// Shared state in Redis.
pub struct Redis {
    link: Arc<Link>,
    channels: Mutex<HashMap<String, broadcast::Sender<String>>>,
    tasks: Mutex<Vec<AbortHandle>>,
}

/// What the background tasks and the calls share.
struct Link {
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
enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Drop for Redis {
    fn drop(&mut self) {
        for task in locked(&self.tasks).drain(..) {
            task.abort();
        }
    }
}

impl Redis {
    /// Begins to connect; returns at once. `deadline` is how long a call may take. Needs a Tokio runtime.
    ///
    /// # Errors
    /// [`SharedError::Url`] for a URL that is not one. It is never shown: it may hold a password.
    pub fn open(url: &str, deadline: Duration) -> Result<Self, SharedError> {
        let link = Arc::new(Link {
            target: target(url, deadline)?,
            deadline,
            connection: ArcSwapOption::empty(),
            broken: Notify::new(),
            connected: watch::Sender::new(false),
            subscriptions: AtomicU32::new(0),
        });
        let keeper = tokio::spawn(keep(link.clone())).abort_handle();
        Ok(Redis { link, channels: Mutex::default(), tasks: Mutex::new(vec![keeper]) })
    }

    /// Waits until there is a connection, for so long at most; whether there is.
    pub async fn connected(&self, within: Duration) -> bool {
        let mut connected = self.link.connected.subscribe();
        timeout(within, connected.wait_for(|connected| *connected)).await.is_ok()
    }

    /// Runs a command within the deadline.
    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, SharedError> {
        self.in_time(async |connection| connection.query(command).await).await
    }

    /// Runs a script on one key within the deadline.
    async fn run<T: FromRedisValue>(
        &self,
        (script, text): &(Script, &str),
        key: &str,
        arguments: &[&[u8]],
    ) -> Result<T, SharedError> {
        let command = |name: &str, script: &str| {
            let mut command = Cmd::with_capacity(4 + arguments.len(), 128 + key.len());
            command.arg(name).arg(script).arg(1).arg(key);
            for argument in arguments {
                command.arg(*argument);
            }
            command
        };
        let known = command("EVALSHA", script.get_hash());
        self.in_time(async |connection| match connection.query(&known).await {
            // The server keeps a script once it has seen its text.
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                connection.query(&command("EVAL", text)).await
            }
            answer => answer,
        })
        .await
    }

    async fn in_time<T>(
        &self,
        call: impl AsyncFnOnce(&Connection) -> RedisResult<T>,
    ) -> Result<T, SharedError> {
        let Some(connection) = self.link.connection.load_full() else {
            return Err(SharedError::Unavailable("there is no connection to Redis".to_owned()));
        };
        let deadline = self.link.deadline;
        match timeout(deadline, call(&connection)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                if error.is_unrecoverable_error() {
                    self.link.broken.notify_one();
                }
                Err(SharedError::Unavailable(error.to_string()))
            }
            Err(_) => Err(SharedError::Unavailable(format!(
                "Redis did not answer within {} ms",
                deadline.as_millis()
            ))),
        }
    }
}

impl Connection {
    async fn query<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
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

/// Makes the connection, looks after it, and makes it anew when it broke, for ever.
async fn keep(link: Arc<Link>) {
    loop {
        if let Ok(Ok(connection)) = timeout(CONNECT, link.target.connect()).await {
            link.connection.store(Some(Arc::new(connection.clone())));
            link.connected.send_replace(true);
            attend(&link, &connection).await;
            link.connection.store(None);
            link.connected.send_replace(false);
        }
        sleep(RETRY).await;
    }
}

/// Returns when the connection is of no more use.
async fn attend(link: &Link, connection: &Connection) {
    let ping = redis::cmd("PING");
    let mut misses = 0;
    while misses < MISSES {
        // Waits no longer when a call found it broken.
        let _ = timeout(CHECK, link.broken.notified()).await;
        match timeout(CHECK, connection.query::<redis::Value>(&ping)).await {
            Ok(Ok(_)) => misses = 0,
            Ok(Err(error)) if error.is_unrecoverable_error() => return,
            // Busy, loading, or silent.
            Ok(Err(_)) | Err(_) => misses += 1,
        }
    }
}

/// Hears a channel, for ever.
async fn listen(link: Arc<Link>, channel: String, sender: broadcast::Sender<String>) {
    let mut attempt = 0;
    loop {
        let connecting = async {
            let mut heard = link.target.listener(attempt).get_async_pubsub().await?;
            heard.subscribe(&channel).await?;
            RedisResult::Ok(heard)
        };
        if let Ok(Ok(heard)) = timeout(CONNECT, connecting).await {
            link.subscriptions.fetch_add(1, Ordering::Relaxed);
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
            link.subscriptions.fetch_sub(1, Ordering::Relaxed);
        }
        attempt += 1;
        sleep(RETRY).await;
    }
}

/// The key of a limiter's counters; its tag keeps it on one server of a Cluster.
fn limit_key(key: &str) -> String {
    ["voicegate:limit:{", key, "}"].concat()
}

fn lease_key(key: &str) -> String {
    ["voicegate:lease:{", key, "}"].concat()
}

fn channel_name(channel: &str) -> String {
    ["voicegate:", channel].concat()
}

#[async_trait]
impl SharedState for Redis {
    async fn hit(&self, key: &str, limit: Limit, _: SystemTime) -> Result<Decision, SharedError> {
        let (mut most, mut per) = (itoa::Buffer::new(), itoa::Buffer::new());
        // As in memory: counts of 32 bits, windows of 31, so that the script's sums are exact enough.
        let most = most.format(limit.limit.min(u64::from(u32::MAX)));
        let per = per.format(limit.per.as_millis().clamp(1, u128::from(u32::MAX / 2)) as u64);
        let (allowed, remaining, reset, retry): (u8, u64, u64, u64) =
            self.run(&HIT, &limit_key(key), &[most.as_bytes(), per.as_bytes()]).await?;
        Ok(Decision {
            allowed: allowed == 1,
            remaining,
            reset_after: Duration::from_millis(reset),
            retry_after: Duration::from_millis(retry),
        })
    }

    async fn acquire(
        &self,
        key: &str,
        slots: u32,
        ttl: Duration,
        _: SystemTime,
    ) -> Result<Option<Lease>, SharedError> {
        let holder = uuid::Uuid::new_v4().simple().to_string();
        let (slots, ttl) = (slots.to_string(), ttl.as_millis().max(1).to_string());
        let arguments = [slots.as_bytes(), ttl.as_bytes(), holder.as_bytes()];
        let taken: u8 = self.run(&ACQUIRE, &lease_key(key), &arguments).await?;
        Ok((taken == 1).then(|| Lease { key: key.to_owned(), holder }))
    }

    async fn renew(&self, lease: &Lease, ttl: Duration, _: SystemTime) -> Result<bool, SharedError> {
        let ttl = ttl.as_millis().max(1).to_string();
        let held: u8 =
            self.run(&RENEW, &lease_key(&lease.key), &[ttl.as_bytes(), lease.holder.as_bytes()]).await?;
        Ok(held == 1)
    }

    async fn release(&self, lease: &Lease) -> Result<(), SharedError> {
        let mut command = redis::cmd("ZREM");
        command.arg(lease_key(&lease.key)).arg(&lease.holder);
        self.ask(&command).await
    }

    async fn publish(&self, channel: &str, message: &str) -> Result<(), SharedError> {
        let mut command = redis::cmd("PUBLISH");
        command.arg(channel_name(channel)).arg(message);
        self.ask(&command).await
    }

    fn subscribe(&self, channel: &str) -> broadcast::Receiver<String> {
        let mut channels = locked(&self.channels);
        if let Some(sender) = channels.get(channel) {
            return sender.subscribe();
        }
        let sender = broadcast::Sender::new(BACKLOG);
        let receiver = sender.subscribe();
        channels.insert(channel.to_owned(), sender.clone());
        let task = tokio::spawn(listen(self.link.clone(), channel_name(channel), sender));
        locked(&self.tasks).push(task.abort_handle());
        receiver
    }

    async fn ping(&self) -> Result<(), SharedError> {
        self.ask::<redis::Value>(&redis::cmd("PING")).await.map(drop)
    }

    fn backend(&self) -> &'static str {
        "redis"
    }

    fn connections(&self) -> u32 {
        u32::from(self.link.connection.load().is_some()) + self.link.subscriptions.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_one_server_or_a_cluster_and_never_shown() {
        let is_cluster =
            |url: &str| matches!(target(url, Duration::from_millis(50)), Ok(Target::Cluster { .. }));
        assert!(!is_cluster("redis://:hush@127.0.0.1:6379/2"));
        assert!(!is_cluster("rediss://127.0.0.1"));
        assert!(is_cluster("redis://127.0.0.1:7000, redis://127.0.0.1:7001"));
        assert!(is_cluster("redis-cluster://127.0.0.1:7000"));
        assert!(is_cluster("rediss-cluster://user:hush@127.0.0.1:7000"));
        for bad in ["", "hush", "http://hush", "redis://:hush@", "redis://a,hush"] {
            let Err(error) = target(bad, Duration::from_millis(50)) else {
                panic!("{bad} is taken for a URL")
            };
            assert!(!error.to_string().contains("hush"), "{error}");
        }
    }
}
