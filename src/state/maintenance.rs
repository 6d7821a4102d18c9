//! Routes that are switched off: what they answer meanwhile, and what operators switched by the admin API.
//!
//! The admin API's word goes before the manifest's until it is lifted, and outlasts reloads; it is this process's own.
//! What is said of a route goes before what is said of its version, and that before what is said of all.

use crate::error::{GatewayError, Kind};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use poem::Response;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// When callers shall try again, where nobody says.
pub const RETRY: Duration = Duration::from_secs(60);

/// What is answered instead of what is switched off.
#[derive(Debug, Clone)]
pub struct Closed {
    /// The answer; without one, 503 `maintenance` in the common form.
    pub reply: Option<Reply>,
    /// When to try again.
    pub retry_after: Duration,
}

/// A fixed answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Closed {
    /// The declared answer.
    ///
    /// # Errors
    /// [`Kind::Maintenance`], where none is declared, or the caller reads errors of another form (`common` is false).
    pub fn answer(&self, common: bool) -> Result<Response, GatewayError> {
        let Some(reply) = self.reply.as_ref().filter(|_| common) else {
            return Err(GatewayError { retry_after: Some(self.retry_after), ..Kind::Maintenance.into() });
        };
        let mut response = Response::builder().status(reply.status).body(reply.body.clone());
        *response.headers_mut() = reply.headers.clone();
        if !response.headers().contains_key(RETRY_AFTER) {
            response.headers_mut().insert(RETRY_AFTER, self.retry_after.as_secs().max(1).into());
        }
        Ok(response)
    }

    /// Feeds what it says to a route's identity.
    pub fn identify(&self, mut state: &mut dyn Hasher) {
        self.retry_after.hash(&mut state);
        if let Some(reply) = &self.reply {
            (reply.status, &reply.body).hash(&mut state);
            for (name, value) in &reply.headers {
                (name, value).hash(&mut state);
            }
        }
    }
}

/// What is switched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// One route, by its method, host and path: `GET /api/v01/sessions/:id`.
    Route(String),
    /// A version, by its name.
    Version(String),
    /// Every route.
    All,
}

/// An operator's word.
#[derive(Debug, Clone)]
pub struct Switch {
    /// Of what.
    pub scope: Scope,
    /// What is answered instead; none keeps it open whatever the manifest says.
    pub closed: Option<Arc<Closed>>,
    /// Why.
    pub reason: Option<String>,
    /// Who said so.
    pub by: String,
    /// When.
    pub since: SystemTime,
}

/// What operators switched.
#[derive(Debug, Default)]
pub struct Switches {
    /// None while there is nothing: then a request costs one look at it.
    current: ArcSwapOption<Vec<Switch>>,
    /// Held by whoever changes it.
    changes: Mutex<()>,
}

impl Switches {
    /// Whether nothing is switched: what else is asked of a route need not be looked up then.
    pub fn is_empty(&self) -> bool {
        self.current.load().is_none()
    }

    /// What was said of a route last, if anything was: by its name, its version's, or of all, in this order.
    pub fn of(&self, route: &str, version: Option<&str>) -> Option<Option<Arc<Closed>>> {
        let switches = self.current.load();
        let switches = switches.as_ref()?;
        let find = |wanted: &dyn Fn(&Scope) -> bool| switches.iter().find(|switch| wanted(&switch.scope));
        find(&|scope| matches!(scope, Scope::Route(name) if name == route))
            .or_else(|| {
                find(&|scope| matches!(scope, Scope::Version(name) if Some(name.as_str()) == version))
            })
            .or_else(|| find(&|scope| *scope == Scope::All))
            .map(|switch| switch.closed.clone())
    }

    /// From now on this counts, instead of what was said of the same before.
    pub fn set(&self, switch: Switch) {
        self.change(|switches| {
            switches.retain(|known| known.scope != switch.scope);
            switches.push(switch);
        });
    }

    /// The manifest's word counts again: for this, or for everything. What was lifted.
    pub fn lift(&self, scope: Option<&Scope>) -> Vec<Switch> {
        let mut lifted = Vec::new();
        self.change(|switches| {
            lifted =
                switches.extract_if(.., |switch| scope.is_none_or(|scope| switch.scope == *scope)).collect();
        });
        lifted
    }

    /// All, oldest first.
    pub fn list(&self) -> Vec<Switch> {
        self.current.load().as_ref().map(|switches| (**switches).clone()).unwrap_or_default()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Switch>)) {
        let _one_at_a_time = self.changes.lock().unwrap_or_else(|poison| poison.into_inner());
        let mut switches = self.list();
        change(&mut switches);
        self.current.store((!switches.is_empty()).then(|| Arc::new(switches)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn switch(scope: Scope, closed: bool) -> Switch {
        let closed = closed.then(|| Arc::new(Closed { reply: None, retry_after: RETRY }));
        Switch { scope, closed, reason: None, by: "test".to_owned(), since: SystemTime::UNIX_EPOCH }
    }

    #[test]
    fn the_narrower_word_counts_until_it_is_lifted() {
        let switches = Switches::default();
        let state = || switches.of("GET /a", Some("v1")).map(|closed| closed.is_some());
        assert_eq!(state(), None);
        switches.set(switch(Scope::All, true));
        assert_eq!(state(), Some(true));
        switches.set(switch(Scope::Version("v1".to_owned()), false));
        assert_eq!(state(), Some(false));
        assert!(switches.of("GET /b", None).unwrap().is_some());
        switches.set(switch(Scope::Route("GET /a".to_owned()), true));
        assert_eq!(state(), Some(true));
        switches.set(switch(Scope::Route("GET /a".to_owned()), false));
        assert_eq!((state(), switches.list().len()), (Some(false), 3));
        assert_eq!(switches.lift(Some(&Scope::Version("v1".to_owned()))).len(), 1);
        assert_eq!(switches.lift(None).len(), 2);
        assert_eq!(state(), None);
    }
}
