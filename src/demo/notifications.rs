//! The stand-in notification service: `WS /ws` tells a user what is new, `POST /notifications` makes something new.
//!
//! A socket's user is who the gateway says (`X-User-ID`; without, `anonymous`). It hears `hello` with `user_id` and
//! `unread`, a `notification` now and then, and what `POST /notifications {title, body?, user_id?}` says to the user, or
//! without `user_id` to everybody; that call answers `{id, delivered}`. `{type: ping}` is answered by `pong`, `{type: ack, id}` by
//! `acked`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc::Sender;

use super::algorithm::Clock;
use super::reply::{Refusal, parse, timestamp};
use super::socket::{Actor, Heard};

/// Every open socket.
#[derive(Debug)]
pub(super) struct Notifications {
    clock: Clock,
    made: AtomicU64,
    listeners: Mutex<Vec<Listener>>,
}

#[derive(Debug)]
struct Listener {
    number: u64,
    user: String,
    inbox: Sender<Value>,
}

/// One user's socket.
pub(super) struct Bell {
    service: Arc<Notifications>,
    number: u64,
    user: String,
}

/// The body of `POST /notifications`.
#[derive(Deserialize)]
struct Told {
    title: String,
    #[serde(default)]
    body: String,
    user_id: Option<String>,
}

impl Notifications {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, made: AtomicU64::new(0), listeners: Mutex::default() }
    }

    fn book(&self) -> MutexGuard<'_, Vec<Listener>> {
        // Every statement leaves the list whole.
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `POST /notifications`.
    pub(super) fn tell(&self, body: &[u8]) -> Result<Value, Refusal> {
        let told: Told = parse(body)?;
        if told.title.trim().is_empty() {
            return Err(Refusal::invalid("title is empty"));
        }
        let notification = self.notification(&told.title, &told.body);
        let listeners = self.book();
        let meant = listeners.iter().filter(|one| told.user_id.as_ref().is_none_or(|user| *user == one.user));
        let delivered = meant.filter(|one| one.inbox.try_send(notification.clone()).is_ok()).count();
        Ok(json!({ "id": notification["id"], "delivered": delivered }))
    }

    fn notification(&self, title: &str, body: &str) -> Value {
        let number = self.made.fetch_add(1, Relaxed) + 1;
        json!({ "type": "notification", "id": format!("n-{number}"), "title": title, "body": body,
                "created_at": timestamp((self.clock)()) })
    }
}

impl Bell {
    pub(super) fn new(service: Arc<Notifications>, user: String, inbox: Sender<Value>) -> Self {
        let number = service.made.fetch_add(1, Relaxed);
        service.book().push(Listener { number, user: user.clone(), inbox });
        Self { service, number, user }
    }
}

impl Actor for Bell {
    fn open(&mut self) -> Vec<Value> {
        let at = timestamp((self.service.clock)());
        vec![json!({ "type": "hello", "user_id": self.user, "unread": 0, "timestamp": at })]
    }

    fn hear(&mut self, heard: Heard) -> Vec<Value> {
        let message = match &heard {
            Heard::Text(text) => serde_json::from_str(text).unwrap_or(Value::Null),
            Heard::Binary(_) => Value::Null,
        };
        match message["type"].as_str() {
            Some("ping") => vec![json!({ "type": "pong" })],
            Some("ack") => vec![json!({ "type": "acked", "id": message["id"] })],
            _ => {
                vec![json!({ "type": "error", "code": "unknown_type", "error": "type must be ping or ack" })]
            }
        }
    }

    fn tick(&mut self) -> Vec<Value> {
        vec![self.service.notification("Still here", "The demo says this now and then")]
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.service.book().retain(|one| one.number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::channel;

    #[test]
    fn users_hear_what_is_meant_for_them() {
        let service = Arc::new(Notifications::new(jiff::Timestamp::now));
        let (to_ann, mut ann_hears) = channel(4);
        let (to_ben, mut ben_hears) = channel(4);
        let mut ann = Bell::new(service.clone(), "ann".into(), to_ann);
        let ben = Bell::new(service.clone(), "ben".into(), to_ben);
        assert_eq!(ann.open()[0]["user_id"], "ann");
        let told = service.tell(br#"{"title": "Hi", "user_id": "ann"}"#).unwrap();
        assert_eq!(told["delivered"], 1);
        assert_eq!(ann_hears.try_recv().unwrap()["title"], "Hi");
        assert!(ben_hears.try_recv().is_err());
        assert_eq!(service.tell(br#"{"title": "All"}"#).unwrap()["delivered"], 2);
        drop(ben);
        assert_eq!(service.tell(br#"{"title": "All"}"#).unwrap()["delivered"], 1);
        assert_eq!(ann.hear(Heard::Text(r#"{"type": "ack", "id": "n-1"}"#.into()))[0]["type"], "acked");
        assert_eq!(ann.hear(Heard::Binary("x".into()))[0]["code"], "unknown_type");
        assert!(service.tell(br#"{"title": " "}"#).is_err());
    }
}
