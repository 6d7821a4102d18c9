//! Breakers, retries and hedging through a whole gateway, before services that fail as they are told.

mod breakers;
mod retries;

use crate::harness::{Gateway, Sockets, Wire};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;

/// What a service does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Does {
    Answers,
    /// 503.
    Refuses,
    /// Closes with a reset, the request read.
    Resets,
    /// Answers once it is let.
    Holds,
    /// A head that promises more than comes.
    BreaksOff,
}

impl Does {
    const ALL: [Does; 5] = [Does::Answers, Does::Refuses, Does::Resets, Does::Holds, Does::BreaksOff];
}

/// A service that does what it is told, and counts.
struct Actor {
    sockets: Sockets,
    part: Arc<Part>,
}

struct Part {
    name: &'static str,
    does: AtomicU8,
    seen: AtomicUsize,
    bodies: Mutex<Vec<String>>,
    leave: Semaphore,
}

impl Actor {
    async fn start(name: &'static str, does: Does) -> Actor {
        let part = Arc::new(Part {
            name,
            does: AtomicU8::new(does as u8),
            seen: AtomicUsize::new(0),
            bodies: Mutex::default(),
            leave: Semaphore::new(0),
        });
        let played = part.clone();
        let sockets = Sockets::start(move |_, wire| play(played.clone(), wire)).await;
        Actor { sockets, part }
    }

    fn now(&self, does: Does) {
        self.part.does.store(does as u8, SeqCst);
    }

    /// Requests so far.
    fn seen(&self) -> usize {
        self.part.seen.load(SeqCst)
    }

    fn bodies(&self) -> Vec<String> {
        self.part.bodies.lock().unwrap().clone()
    }

    /// Lets so many held requests be answered.
    fn let_go(&self, count: usize) {
        self.part.leave.add_permits(count);
    }

    fn target(&self) -> String {
        format!("{{ url: \"{}\" }}", self.sockets.url())
    }
}

async fn play(part: Arc<Part>, mut wire: Wire) {
    while let Some(head) = wire.head().await {
        let length = head.to_lowercase().lines().find_map(|line| {
            line.strip_prefix("content-length:").and_then(|length| length.trim().parse::<usize>().ok())
        });
        if let Some(length) = length {
            let Some(body) = wire.try_bytes(length).await else { return };
            part.bodies.lock().unwrap().push(String::from_utf8(body).unwrap());
        }
        part.seen.fetch_add(1, SeqCst);
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}", part.name.len(), part.name);
        let sent = match Does::ALL[usize::from(part.does.load(SeqCst))] {
            Does::Answers => wire.send(answer).await,
            Does::Refuses => {
                wire.send("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy").await
            }
            Does::Resets => return wire.reset(),
            Does::Holds => {
                part.leave.acquire().await.unwrap().forget();
                wire.send(answer).await
            }
            Does::BreaksOff => {
                wire.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort").await;
                return;
            }
        };
        if !sent {
            return;
        }
    }
}

/// A gateway that passes everything to these, with these further keys of the upstream.
async fn before(actors: &[&Actor], keys: &str) -> Gateway {
    Gateway::with(&manifest(actors, keys)).start().await
}

fn manifest(actors: &[&Actor], keys: &str) -> String {
    let targets: Vec<String> = actors.iter().map(|actor| actor.target()).collect();
    format!(
        "upstreams: {{ back: {{ targets: [{}], {keys} }} }}\n\
         routes:\n  - {{ route: ANY /*path, upstream: back, chain: [], public: true }}\n",
        targets.join(", ")
    )
}
