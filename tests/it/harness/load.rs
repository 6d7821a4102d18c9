//! Callers that ask again and again on connections they keep, and what they saw.

use super::{Client, Kept, eventually};
use http::StatusCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// One request and its answer.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    pub begun: Instant,
    pub took: Duration,
    pub status: StatusCode,
}

/// Callers under way.
pub struct Load {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Seen>>>,
    callers: Vec<JoinHandle<()>>,
}

impl Load {
    /// So many callers, each of which asks for `path` as soon as it was answered.
    pub fn start(client: &Client, callers: usize, path: &'static str, headers: &[(&str, &str)]) -> Self {
        let (stop, seen): (Arc<AtomicBool>, Arc<Mutex<Vec<Seen>>>) = Default::default();
        let headers: Vec<(String, String)> =
            headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let caller = |_| {
            let (client, stop, seen, headers) = (client.clone(), stop.clone(), seen.clone(), headers.clone());
            tokio::spawn(async move {
                let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (&**n, &**v)).collect();
                let mut connection = Kept::open(&client).await;
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let answer = connection.send_with("GET", path, &headers, "").await.unwrap();
                    let one = Seen { begun, took: begun.elapsed(), status: answer.status };
                    seen.lock().unwrap().push(one);
                }
            })
        };
        let callers = (0..callers).map(caller).collect();
        Load { stop, seen, callers }
    }

    /// Waits for so many answers to requests from now on.
    pub async fn goes_on_for(&self, answers: usize) {
        let now = Instant::now();
        eventually("the load goes on", Duration::from_secs(60), async || {
            let seen = self.seen.lock().unwrap();
            seen.iter().rev().filter(|one| one.begun >= now).take(answers).count() == answers
        })
        .await;
    }

    /// Lets the last answers come; everything that was seen.
    pub async fn end(self) -> Vec<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.unwrap();
        }
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

/// The time within which this share of the answers came.
pub fn within(share: f64, seen: impl IntoIterator<Item = Seen>) -> Duration {
    let mut times: Vec<Duration> = seen.into_iter().map(|one| one.took).collect();
    times.sort();
    times[((times.len() - 1) as f64 * share) as usize]
}
