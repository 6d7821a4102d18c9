//! Shared state in Redis: one server (`redis://`, `rediss://`), or a Cluster (several URLs, or `redis-cluster://`).
//!
//! One connection, on which every command is pipelined, made and kept by a task of its own: whoever asks while there
//! is none is told at once, nobody waits for connecting. Every call has a deadline of 50 ms. Decisions are one script each
//! (`EVALSHA`, with the script's text where the server does not know it), on one hash-tagged key, by Redis's own
//! clock. Word of revocations comes on a connection of its own for each channel. A log of events is a stream; it is never
//! waited for (`XREAD BLOCK`), since everybody else would wait too.

mod link;

use super::memory::{BACKLOG, locked};
use super::{Decision, Lease, Limit, MAX_EVENTS, SharedError, SharedState};
use async_trait::async_trait;
use bytes::Bytes;
use link::Link;
use redis::{Cmd, ErrorKind, FromRedisValue, Script, ServerErrorKind};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, SystemTime};
use tokio::sync::broadcast;
use tokio::task::AbortHandle;

static HIT: LazyLock<(Script, &str)> = LazyLock::new(|| script(include_str!("lua/hit.lua")));
static ACQUIRE: LazyLock<(Script, &str)> = LazyLock::new(|| script(include_str!("lua/acquire.lua")));
static RENEW: LazyLock<(Script, &str)> = LazyLock::new(|| script(include_str!("lua/renew.lua")));
static TAKE: LazyLock<(Script, &str)> = LazyLock::new(|| script(include_str!("lua/take.lua")));
static APPEND: LazyLock<(Script, &str)> = LazyLock::new(|| script(include_str!("lua/append.lua")));

fn script(text: &'static str) -> (Script, &'static str) {
    (Script::new(text), text)
}

/// Shared state in Redis.
pub struct Redis {
    link: Arc<Link>,
    channels: Mutex<HashMap<String, broadcast::Sender<String>>>,
    tasks: Mutex<Vec<AbortHandle>>,
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
        let link = Arc::new(Link::to(url, deadline)?);
        let keeper = tokio::spawn(link.clone().keep()).abort_handle();
        Ok(Redis { link, channels: Mutex::default(), tasks: Mutex::new(vec![keeper]) })
    }

    /// Waits until there is a connection, for so long at most; whether there is.
    pub async fn connected(&self, within: Duration) -> bool {
        self.link.connected(within).await
    }

    /// Runs a command within the deadline.
    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, SharedError> {
        self.link.in_time(async |connection| connection.query(command).await).await
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
        self.link
            .in_time(async |connection| match connection.query(&known).await {
                // The server keeps a script once it has seen its text.
                Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                    connection.query(&command("EVAL", text)).await
                }
                answer => answer,
            })
            .await
    }
}

/// The key of a limiter's counters; its tag keeps it on one server of a Cluster.
fn limit_key(key: &str) -> String {
    ["voicegate:limit:{", key, "}"].concat()
}

fn lease_key(key: &str) -> String {
    ["voicegate:lease:{", key, "}"].concat()
}

fn log_key(log: &str) -> String {
    ["voicegate:log:{", log, "}"].concat()
}

fn note_key(key: &str) -> String {
    ["voicegate:note:{", key, "}"].concat()
}

/// A stream's entry: its id, and the one field and value that [`APPEND`] gives it.
type Entry = (String, (String, Vec<u8>));

fn event((id, (_, event)): Entry) -> Option<(u64, Bytes)> {
    Some((id.split_once('-')?.0.parse().ok()?, event.into()))
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
        let task = tokio::spawn(self.link.clone().listen(channel_name(channel), sender));
        locked(&self.tasks).push(task.abort_handle());
        receiver
    }

    async fn append_events(
        &self,
        log: &str,
        events: &[(u64, Bytes)],
        ttl: Duration,
    ) -> Result<(), SharedError> {
        let (ttl, most) = (ttl.as_millis().max(1).to_string(), MAX_EVENTS.to_string());
        let numbers: Vec<String> = events.iter().map(|(number, _)| number.to_string()).collect();
        let mut arguments = Vec::with_capacity(2 + 2 * events.len());
        arguments.extend([ttl.as_bytes(), most.as_bytes()]);
        arguments
            .extend(numbers.iter().zip(events).flat_map(|(number, (_, event))| [number.as_bytes(), event]));
        self.run::<redis::Value>(&APPEND, &log_key(log), &arguments).await.map(drop)
    }

    async fn read_events(
        &self,
        log: &str,
        after: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Bytes)>, SharedError> {
        let Some(first) = after.checked_add(1) else { return Ok(Vec::new()) };
        let mut command = redis::cmd("XRANGE");
        command.arg(log_key(log)).arg(first).arg("+").arg("COUNT").arg(limit);
        let entries: Vec<Entry> = self.ask(&command).await?;
        Ok(entries.into_iter().filter_map(event).collect())
    }

    async fn leave_note(&self, key: &str, note: &[u8], ttl: Duration) -> Result<(), SharedError> {
        let mut command = redis::cmd("SET");
        command.arg(note_key(key)).arg(note).arg("PX").arg(ttl.as_millis().max(1) as u64);
        self.ask::<redis::Value>(&command).await.map(drop)
    }

    async fn take_note(&self, key: &str) -> Result<Option<Bytes>, SharedError> {
        let note: Option<Vec<u8>> = self.run(&TAKE, &note_key(key), &[]).await?;
        Ok(note.map(Bytes::from))
    }

    async fn ping(&self) -> Result<(), SharedError> {
        self.ask::<redis::Value>(&redis::cmd("PING")).await.map(drop)
    }

    fn backend(&self) -> &'static str {
        "redis"
    }

    fn connections(&self) -> u32 {
        self.link.connections()
    }
}
