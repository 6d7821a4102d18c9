//! `WS /api/v1/webrtc/signaling`: two peers of a room find each other.
//!
//! | caller | service |
//! |---|---|
//! | `{type: join, room, peer_id?}` | `joined` with `room`, `peer_id`, `peers`; the other gets `peer_joined` |
//! | `{type: offer\|answer\|candidate, …}` | goes to the other as it is, with `from`; error `no_peer` where there is none |
//! | `{type: leave}`, or the socket's end | `left`; the other gets `peer_left` |
//!
//! A room has two places and is there while somebody is in it. Faults are `{type: error, code, error}`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::sync::mpsc::Sender;

use super::socket::{Actor, Heard};

/// Rooms at once.
const MAX_ROOMS: usize = 1000;
/// Peers in a room.
const PLACES: usize = 2;
/// The longest name of a room or peer, in characters.
const MAX_NAME: usize = 128;

/// Every room that somebody is in.
#[derive(Debug, Default)]
pub(super) struct Rooms(Mutex<HashMap<String, Vec<Peer>>>);

#[derive(Debug)]
struct Peer {
    id: String,
    inbox: Sender<Value>,
}

/// One caller.
pub(super) struct Signaling {
    rooms: Arc<Rooms>,
    inbox: Sender<Value>,
    /// Room and own id, once joined.
    place: Option<(String, String)>,
}

impl Rooms {
    fn book(&self) -> MutexGuard<'_, HashMap<String, Vec<Peer>>> {
        // Every statement leaves the rooms whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Signaling {
    pub(super) fn new(rooms: Arc<Rooms>, inbox: Sender<Value>) -> Self {
        Self { rooms, inbox, place: None }
    }

    fn join(&mut self, message: &Value) -> Result<Value, (&'static str, &'static str)> {
        let name = |value: &Value| {
            let name = value.as_str().filter(|name| !name.is_empty() && name.chars().count() <= MAX_NAME);
            name.map(str::to_owned).ok_or(("bad_name", "room and peer_id are texts of 1 to 128 characters"))
        };
        if self.place.is_some() {
            return Err(("already_joined", "leave the room first"));
        }
        let room = name(&message["room"])?;
        let mut rooms = self.rooms.book();
        if !rooms.contains_key(&room) && rooms.len() >= MAX_ROOMS {
            return Err(("too_many_rooms", "try again later"));
        }
        let others = rooms.get(&room).map(Vec::as_slice).unwrap_or_default();
        if others.len() >= PLACES {
            return Err(("room_full", "two peers are in this room"));
        }
        let id = match &message["peer_id"] {
            Value::Null => (1..)
                .map(|number| format!("peer-{number}"))
                .find(|id| others.iter().all(|peer| peer.id != *id)),
            given => Some(name(given)?),
        };
        let id = id.unwrap_or_default();
        if others.iter().any(|peer| peer.id == id) {
            return Err(("peer_id_taken", "the other peer has this id"));
        }
        let ids: Vec<&str> = others.iter().map(|peer| peer.id.as_str()).collect();
        let joined = json!({ "type": "joined", "room": room, "peer_id": id, "peers": ids });
        tell(others, &json!({ "type": "peer_joined", "room": room, "peer_id": id }));
        let inbox = self.inbox.clone();
        rooms.entry(room.clone()).or_default().push(Peer { id: id.clone(), inbox });
        self.place = Some((room, id));
        Ok(joined)
    }

    fn relay(&self, mut message: Value) -> Result<(), (&'static str, &'static str)> {
        let (room, id) = self.place.as_ref().ok_or(NOT_JOINED)?;
        message["from"] = id.as_str().into();
        let rooms = self.rooms.book();
        let mut others = rooms.get(room).into_iter().flatten().filter(|peer| peer.id != *id);
        let other = others.next().ok_or(("no_peer", "nobody else is in this room"))?;
        other.inbox.try_send(message).map_err(|_| ("peer_slow", "the other peer does not read"))
    }

    fn leave(&mut self) -> Option<Value> {
        let (room, id) = self.place.take()?;
        let mut rooms = self.rooms.book();
        if let Some(peers) = rooms.get_mut(&room) {
            peers.retain(|peer| peer.id != id);
            tell(peers, &json!({ "type": "peer_left", "room": room, "peer_id": id }));
            if peers.is_empty() {
                rooms.remove(&room);
            }
        }
        Some(json!({ "type": "left", "room": room, "peer_id": id }))
    }
}

const NOT_JOINED: (&str, &str) = ("not_joined", "join a room first");

/// Who does not read loses it.
fn tell(peers: &[Peer], message: &Value) {
    for peer in peers {
        let _ = peer.inbox.try_send(message.clone());
    }
}

impl Actor for Signaling {
    fn hear(&mut self, heard: Heard) -> Vec<Value> {
        let Heard::Text(text) = heard else {
            return vec![fault("bad_message", "messages are JSON texts")];
        };
        let Ok(message) = serde_json::from_str::<Value>(&text) else {
            return vec![fault("bad_message", "this is not JSON")];
        };
        let said = match message["type"].as_str() {
            Some("join") => self.join(&message).map(Some),
            Some("offer" | "answer" | "candidate") => self.relay(message).map(|()| None),
            Some("leave") => self.leave().map(Some).ok_or(NOT_JOINED),
            _ => Err(("unknown_type", "type must be join, offer, answer, candidate or leave")),
        };
        said.unwrap_or_else(|(code, error)| Some(fault(code, error))).into_iter().collect()
    }
}

impl Drop for Signaling {
    fn drop(&mut self) {
        self.leave();
    }
}

fn fault(code: &str, error: &str) -> Value {
    json!({ "type": "error", "code": code, "error": error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::{Receiver, channel};

    fn peer(rooms: &Arc<Rooms>) -> (Signaling, Receiver<Value>) {
        let (sender, inbox) = channel(4);
        (Signaling::new(rooms.clone(), sender), inbox)
    }

    fn say(peer: &mut Signaling, message: Value) -> Vec<Value> {
        peer.hear(Heard::Text(message.to_string()))
    }

    #[test]
    fn two_peers_find_each_other_and_no_third() {
        let rooms = Arc::new(Rooms::default());
        let ((mut ann, mut to_ann), (mut ben, mut to_ben), (mut cat, _)) =
            (peer(&rooms), peer(&rooms), peer(&rooms));
        let join = json!({ "type": "join", "room": "r" });
        assert_eq!(say(&mut ann, json!({ "type": "offer" }))[0]["code"], "not_joined");
        assert_eq!(say(&mut ann, join.clone())[0]["peer_id"], "peer-1");
        assert_eq!(say(&mut ann, json!({ "type": "offer" }))[0]["code"], "no_peer");
        let joined = say(&mut ben, json!({ "type": "join", "room": "r", "peer_id": "ben" }));
        assert_eq!(joined, [json!({ "type": "joined", "room": "r", "peer_id": "ben", "peers": ["peer-1"] })]);
        assert_eq!(to_ann.try_recv().unwrap()["type"], "peer_joined");
        assert_eq!(say(&mut cat, join)[0]["code"], "room_full");
        assert_eq!(
            say(&mut ann, json!({ "type": "offer", "sdp": "v=0", "from": "forged" })),
            Vec::<Value>::new()
        );
        assert_eq!(to_ben.try_recv().unwrap(), json!({ "type": "offer", "sdp": "v=0", "from": "peer-1" }));
        drop(ben);
        assert_eq!(to_ann.try_recv().unwrap(), json!({ "type": "peer_left", "room": "r", "peer_id": "ben" }));
        assert_eq!(say(&mut ann, json!({ "type": "leave" }))[0]["type"], "left");
        assert!(rooms.book().is_empty(), "no room is kept for nobody");
    }

    #[test]
    fn faults_are_told() {
        let rooms = Arc::new(Rooms::default());
        let (mut ann, _inbox) = peer(&rooms);
        for (message, code) in [
            (json!({ "type": "join" }), "bad_name"),
            (json!({ "type": "join", "room": "r", "peer_id": "" }), "bad_name"),
            (json!({ "type": "leave" }), "not_joined"),
            (json!({ "type": "dance" }), "unknown_type"),
            (json!([]), "unknown_type"),
        ] {
            assert_eq!(say(&mut ann, message)[0]["code"], code);
        }
        assert_eq!(ann.hear(Heard::Binary("x".into()))[0]["code"], "bad_message");
        assert!(rooms.book().is_empty());
    }
}
