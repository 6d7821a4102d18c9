//! All that a user has said and was told, as one JSON document:
//! `{user: {…}, exported_at, sessions: [{…, messages: […]}]}`. Written page by page: never whole in memory, and what a
//! slow reader has not taken yet is not read.

use super::sessions::{author_word, fault, status_word, timestamp};
use crate::error::GatewayError;
use crate::stores::{AnyStore, ChatSession, Message, Order, Owner, Page, StoreError, User};
use bytes::Bytes;
use futures_util::{Stream, stream};
use serde_json::json;
use std::time::SystemTime;

/// Sessions that are read at a time.
const SESSIONS: u32 = 100;
/// Messages that are read at a time.
const MESSAGES: u32 = 50;

/// An export under way.
pub struct Export {
    store: AnyStore,
    owner: Owner,
    /// What stands before the sessions.
    head: Option<String>,
    /// Sessions still to be written, the next one last.
    sessions: Vec<ChatSession>,
    /// Where the next page of sessions begins, if there is one.
    next: Option<String>,
    /// The session whose messages are being written, and where the next page of them begins.
    open: Option<(String, String)>,
    /// Whether a session was written.
    begun: bool,
    over: bool,
}

impl Export {
    /// Begins one, and reads so much that what follows is not likely to fail.
    ///
    /// # Errors
    /// The store's.
    pub async fn begin(store: AnyStore, user: &User, now: SystemTime) -> Result<Self, GatewayError> {
        let about = json!({
            "id": user.id,
            "username": user.username,
            "email": user.email,
            "tenant_id": user.tenant_id,
            "role": user.role,
            "created_at": timestamp(user.created_at),
            "last_login_at": user.last_login_at.map(timestamp),
        });
        let head = format!("{{\"user\":{about},\"exported_at\":\"{}\",\"sessions\":[", timestamp(now));
        let owner = Owner { tenant_id: user.tenant_id.as_str().into(), user_id: user.id.as_str().into() };
        let mut export = Export {
            store,
            owner,
            head: Some(head),
            sessions: Vec::new(),
            next: None,
            open: None,
            begun: false,
            over: false,
        };
        export.turn_over(None).await?;
        Ok(export)
    }

    /// The next piece of the document; none after the last.
    ///
    /// # Errors
    /// The store's; the document is then not whole and must not look so.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, GatewayError> {
        if self.over {
            return Ok(None);
        }
        let mut text = self.head.take().unwrap_or_default();
        if let Some((id, cursor)) = self.open.take() {
            match self.store.messages(&self.owner, &id, Order::OldestFirst, MESSAGES, Some(&cursor)).await {
                Ok(page) => self.write(&mut text, id, page, false),
                // Deleted meanwhile.
                Err(StoreError::NotFound) => text.push_str("]}"),
                Err(error) => return Err(fault(error)),
            }
            return Ok(Some(text.into()));
        }
        if self.sessions.is_empty()
            && let Some(cursor) = self.next.take()
        {
            self.turn_over(Some(cursor)).await?;
        }
        match self.sessions.pop() {
            Some(session) => self.session(&mut text, session).await?,
            None => {
                self.over = true;
                text.push_str("]}\n");
            }
        }
        Ok(Some(text.into()))
    }

    /// Its pieces, as a body.
    pub fn pieces(self) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static {
        stream::try_unfold(self, |mut export| async {
            let piece = export.piece().await.map_err(|error| {
                tracing::error!(%error, "an export broke off");
                std::io::Error::other(error)
            })?;
            Ok(piece.map(|piece| (piece, export)))
        })
    }

    /// Reads a page of sessions.
    async fn turn_over(&mut self, cursor: Option<String>) -> Result<(), GatewayError> {
        let page = self.store.sessions(&self.owner, SESSIONS, cursor.as_deref()).await.map_err(fault)?;
        self.sessions = page.items;
        self.sessions.reverse();
        self.next = page.next;
        Ok(())
    }

    /// Writes a session with its first messages; nothing where it was deleted meanwhile.
    async fn session(&mut self, text: &mut String, session: ChatSession) -> Result<(), GatewayError> {
        let page =
            match self.store.messages(&self.owner, &session.id, Order::OldestFirst, MESSAGES, None).await {
                Ok(page) => page,
                Err(StoreError::NotFound) => return Ok(()),
                Err(error) => return Err(fault(error)),
            };
        if std::mem::replace(&mut self.begun, true) {
            text.push(',');
        }
        let about = json!({
            "session_id": session.id,
            "title": session.title,
            "created_at": timestamp(session.created_at),
            "updated_at": timestamp(session.updated_at),
        });
        let about = about.to_string();
        text.push_str(about.strip_suffix('}').unwrap_or(&about));
        text.push_str(",\"messages\":[");
        self.write(text, session.id, page, true);
        Ok(())
    }

    /// Writes messages of a session, and closes it where there are no more.
    fn write(&mut self, text: &mut String, id: String, page: Page<Message>, first: bool) {
        for (number, message) in page.items.into_iter().enumerate() {
            if number > 0 || !first {
                text.push(',');
            }
            let mut about = json!({
                "id": message.id,
                "role": author_word(message.author),
                "content": message.content,
                "status": status_word(message.status),
                "created_at": timestamp(message.created_at),
            });
            if let Some(tokens) = message.total_tokens {
                about["total_tokens"] = tokens.into();
            }
            text.push_str(&about.to_string());
        }
        match page.next {
            Some(next) => self.open = Some((id, next)),
            None => text.push_str("]}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stores::{MessageStatus, NewTurn, NewUser, Once, StoreLimits, TurnEnd, open};
    use serde_json::Value;
    use std::time::Duration;

    async fn say(store: &AnyStore, owner: &Owner, session: &str, number: usize, now: SystemTime) {
        let turn = NewTurn {
            id: format!("{session}-a{number}"),
            session_id: session.to_owned(),
            message_id: format!("{session}-q{number}"),
            query: format!("Frage \"{number}\"\n"),
            replica: "r".to_owned(),
            alive_until: now,
        };
        let Once::Done(turn) = store.begin_turn(owner, &turn, None, now).await.unwrap() else {
            panic!("no key, no retry")
        };
        let end = TurnEnd {
            content: format!("Antwort {number}"),
            status: MessageStatus::Interrupted,
            total_tokens: (number > 0).then_some(3),
        };
        store.finish_turn(&turn, &end, now).await.unwrap();
    }

    async fn exported(store: &AnyStore, user: &User, now: SystemTime) -> (Value, usize) {
        let mut export = Export::begin(store.clone(), user, now).await.unwrap();
        let (mut all, mut largest) = (Vec::new(), 0);
        while let Some(piece) = export.piece().await.unwrap() {
            largest = largest.max(piece.len());
            all.extend_from_slice(&piece);
        }
        assert!(export.piece().await.unwrap().is_none());
        (serde_json::from_slice(&all).unwrap(), largest)
    }

    #[tokio::test]
    async fn everything_is_there_once_and_in_order_however_many_pages_it_takes() {
        let store = open("sqlite::memory:", &StoreLimits::default()).await.unwrap();
        store.migrate().await.unwrap();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds);
        let new = |id: &str| NewUser {
            id: id.to_owned(),
            tenant_id: "acme".to_owned(),
            username: id.to_owned(),
            email: None,
            password_hash: Some("$2b$secret".to_owned()),
            role: "user".to_owned(),
            openid: None,
        };
        let user = store.create_user(new("ann"), at(0)).await.unwrap();
        let (empty, _) = exported(&store, &user, at(1)).await;
        assert_eq!(empty["sessions"], json!([]));
        assert_eq!(empty["exported_at"], "2023-11-14T22:13:21.000Z");

        let eve = store.create_user(new("eve"), at(0)).await.unwrap();
        let owner = |user: &User| Owner {
            tenant_id: user.tenant_id.as_str().into(),
            user_id: user.id.as_str().into(),
        };
        let (ann, eve) = (owner(&user), owner(&eve));
        let total = SESSIONS as u64 + 30;
        for number in 0..total {
            let id = format!("s{number}");
            store.create_session(&ann, &id, &format!("Titel {number}"), None, at(number)).await.unwrap();
        }
        store.create_session(&eve, "hers", "x", None, at(1)).await.unwrap();
        say(&store, &eve, "hers", 1, at(2)).await;
        let turns = MESSAGES as usize + 7;
        for number in 0..turns {
            say(&store, &ann, "s7", number, at(number as u64)).await;
        }
        say(&store, &ann, "s8", 1, at(3)).await;
        store.delete_session(&ann, "s9", at(4)).await.unwrap();

        let (document, largest) = exported(&store, &user, at(5)).await;
        assert_eq!(document["user"]["username"], "ann");
        assert!(document["user"].get("password_hash").is_none() && !document.to_string().contains("secret"));
        let sessions = document["sessions"].as_array().unwrap();
        let ids: Vec<_> = sessions.iter().map(|one| one["session_id"].as_str().unwrap().to_owned()).collect();
        let expected: Vec<_> =
            (0..total).rev().filter(|number| *number != 9).map(|number| format!("s{number}")).collect();
        assert_eq!(ids, expected);
        let of = |id: &str| {
            let session = sessions.iter().find(|one| one["session_id"] == id).unwrap();
            session["messages"].as_array().unwrap().clone()
        };
        assert_eq!(of("s8").len(), 2);
        assert_eq!(of("s10").len(), 0);
        let messages = of("s7");
        let texts: Vec<_> = messages.iter().map(|one| one["content"].as_str().unwrap().to_owned()).collect();
        let expected: Vec<_> = (0..turns)
            .flat_map(|number| [format!("Frage \"{number}\"\n"), format!("Antwort {number}")])
            .collect();
        assert_eq!(texts, expected);
        let keys: Vec<_> = messages[3].as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["id", "role", "content", "status", "created_at", "total_tokens"]);
        assert!(messages[1].get("total_tokens").is_none());
        assert!(largest < 20_000, "a piece is a page: {largest}");
    }

    #[tokio::test]
    async fn an_export_that_breaks_off_does_not_look_whole() {
        use futures_util::StreamExt as _;
        let store = open("sqlite::memory:", &StoreLimits::default()).await.unwrap();
        store.migrate().await.unwrap();
        let user = crate::tokens::testing::user("ann", "", "user");
        let export = Export::begin(store.clone(), &user, SystemTime::now()).await.unwrap();
        let whole: Vec<_> = export.pieces().collect().await;
        assert!(whole.iter().all(Result::is_ok));
        let mut export = Export::begin(store.clone(), &user, SystemTime::now()).await.unwrap();
        export.next = Some("0.x".to_owned());
        store.close().await;
        let pieces: Vec<_> = export.pieces().collect().await;
        assert!(pieces.last().unwrap().is_err());
        assert!(Export::begin(store, &user, SystemTime::now()).await.is_err());
    }
}
