//! Getting an answer that is not in memory: once for all who ask for it at a time, or in the background while a stale copy
//! is given out.

use super::answers::{self, Read};
use super::fills::{Fill, Part, State};
use super::rules::{self, Times, Unkept};
use super::{Asked, Caching, conditions};
use crate::copies::{Copies, Copy, Epoch, Found, Key};
use crate::endpoint::Next;
use crate::error::Kind;
use crate::exchange::Exchange;
use crate::telemetry::CacheResult;
use http::{HeaderMap, Method, StatusCode};
use poem::{Request, Response};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{oneshot, watch};

/// How long it is remembered that answers cannot be kept, so that nobody waits for another's; less if `ttl` is.
const REMEMBERED: Duration = Duration::from_secs(10);

/// What fetching needs beside the request.
pub(super) struct Fetcher {
    pub(super) times: Times,
    /// Largest body that is kept.
    pub(super) max_size: usize,
    /// How long a call may take that nobody waits for.
    pub(super) refresh: Duration,
    /// The route, `METHOD /pattern`.
    pub(super) route: Arc<str>,
    pub(super) copies: Arc<Copies>,
    pub(super) closing: watch::Receiver<bool>,
}

/// One call for an answer.
struct Call {
    /// As it came, but for what made it conditional.
    request: Request,
    /// Of a copy that may still be good.
    old: Option<Arc<Copy>>,
    /// The key without its variant.
    primary: Key,
    personal: bool,
}

/// What a call brought to the request that made it.
enum Fetched {
    /// A copy: for it, and for others.
    Copy {
        copy: Arc<Copy>,
        /// Whether it is in the store.
        stored: bool,
        /// Whether the one before is still good.
        revalidated: bool,
    },
    /// An answer for nobody else.
    Passed(Response),
}

impl Caching {
    /// Fetches an answer, or waits for the one that an identical request fetches.
    pub(super) async fn fetch(
        &self,
        asked: Asked,
        found: Found,
        request: Request,
        exchange: &Arc<Exchange>,
    ) -> poem::Result<Response> {
        let why = match (&found.copy, found.varies) {
            (Some(_), _) => "fwd=stale",
            (None, true) => "fwd=vary-miss",
            (None, false) => "fwd=uri-miss",
        };
        let deadline = tokio::time::Instant::now() + self.wait;
        let mut key = found.key;
        loop {
            let mut told = match self.fills.join(key) {
                Part::Leads(fill) => return self.lead(asked, found, request, exchange, fill, why).await,
                Part::Follows(told) => told,
            };
            let news =
                tokio::time::timeout_at(deadline, told.wait_for(|state| !matches!(state, State::Waiting)));
            let state = match news.await {
                Ok(Ok(state)) => state.clone(),
                Ok(Err(_)) => State::Again,
                Err(_) => State::Alone,
            };
            match state {
                State::Shared(copy, variant) => {
                    let mine = match copy.vary.is_empty() {
                        true => asked.key,
                        false => asked.key.variant(&copy.vary, request.headers()),
                    };
                    if mine == variant {
                        self.metrics.request(CacheResult::Coalesced);
                        let now = Instant::now();
                        let mut response = answers::of_copy(&copy, request.method(), request.headers(), now);
                        answers::say_forwarded(&mut response, &format!("{why}; collapsed"));
                        return Ok(response);
                    }
                    // Only now it is known that answers depend on a header, and mine is another.
                    key = mine;
                }
                State::Again | State::Waiting => {}
                State::Alone => return self.pass(request, CacheResult::Miss, why).await,
            }
        }
    }

    /// Makes the call that others may wait for.
    async fn lead(
        &self,
        asked: Asked,
        found: Found,
        request: Request,
        exchange: &Arc<Exchange>,
        fill: Fill,
        why: &str,
    ) -> poem::Result<Response> {
        self.metrics.request(CacheResult::Miss);
        let (method, headers) = (request.method().clone(), request.headers().clone());
        let inside = exchange.follow_up(Method::GET);
        // Held for as long as this caller stays.
        let _waits = fill.follow();
        let (sender, fetched) = oneshot::channel();
        let call = Call::new(request, found.copy, &asked, inside.clone());
        tokio::spawn(self.fetcher.clone().run(call, self.next.clone(), fill, Some(sender)));
        let fetched = fetched.await;
        if let Some(note) = inside.upstream() {
            exchange.sent_to(note.clone());
        }
        if let Some(kind) = inside.degraded() {
            exchange.set_degraded(kind);
        }
        if let Some(took) = inside.upstream_time() {
            exchange.upstream_answered(took);
        }
        Ok(match fetched {
            Ok(Fetched::Copy { copy, stored, revalidated }) => {
                let mut response = answers::of_copy(&copy, &method, &headers, Instant::now());
                let status = if revalidated { "; fwd-status=304" } else { "" };
                let stored = if stored { "; stored" } else { "" };
                answers::say_forwarded(&mut response, &format!("{why}{status}{stored}"));
                response
            }
            Ok(Fetched::Passed(mut response)) => {
                answers::say_forwarded(&mut response, why);
                response
            }
            // The process goes down, or the call panicked: that is in the log.
            Err(_) if *self.fetcher.closing.borrow() => exchange.refuse(&Kind::ShuttingDown.into()),
            Err(_) => exchange.refuse(&Kind::Internal.into()),
        })
    }

    /// Fetches a new copy in the background, unless somebody does already.
    pub(super) fn refresh(&self, asked: Asked, found: &Found, request: Request) {
        let Part::Leads(fill) = self.fills.join(found.key) else { return };
        let inside = Exchange::of(&request).follow_up(Method::GET);
        let call = Call::new(request, found.copy.clone(), &asked, inside);
        tokio::spawn(self.fetcher.clone().run(call, self.next.clone(), fill, None));
    }
}

impl Call {
    fn new(mut request: Request, old: Option<Arc<Copy>>, asked: &Asked, inside: Arc<Exchange>) -> Self {
        let old = old.filter(|copy| copy.has_validator());
        request.set_method(Method::GET);
        conditions::ask(request.headers_mut(), old.as_deref());
        request.set_data(inside);
        Call { request, old, primary: asked.key, personal: asked.personal }
    }
}

impl Fetcher {
    /// Makes a call for as long as somebody waits for it; one that nobody waited for from the start, for as long as a
    /// refresh may take.
    async fn run(
        self: Arc<Self>,
        call: Call,
        next: Arc<Next>,
        fill: Fill,
        leader: Option<oneshot::Sender<Fetched>>,
    ) {
        let mut closing = self.closing.clone();
        let background = leader.is_none();
        let over = async {
            match background {
                true => {
                    tokio::time::sleep(self.refresh).await;
                    tracing::warn!(route = &*self.route, "a stale answer could not be fetched anew in time");
                }
                false => fill.abandoned().await,
            }
        };
        tokio::select! {
            fetched = self.make(call, &next, &fill) => {
                if let Some(leader) = leader {
                    // Whoever left needs no answer.
                    let _ = leader.send(fetched);
                }
            }
            () = over => {}
            _ = closing.wait_for(|closing| *closing) => {}
        }
    }

    async fn make(&self, call: Call, next: &Next, fill: &Fill) -> Fetched {
        let Call { request, old, primary, personal } = call;
        let exchange = Exchange::of(&request).clone();
        let mut asked_with = request.headers().clone();
        if old.is_some() {
            conditions::ask(&mut asked_with, None);
        }
        let epoch = self.copies.epoch();
        let mut response = match next.call(request).await {
            Ok(response) => response,
            Err(error) => error.into_response(),
        };
        let (now, wall) = (Instant::now(), SystemTime::now());
        let revalidated = old.filter(|_| response.status() == StatusCode::NOT_MODIFIED);
        let (status, headers) = match &revalidated {
            Some(old) => (old.status, rules::freshened(&old.headers, response.headers())),
            None => (response.status(), response.headers().clone()),
        };
        let lifetime = match rules::lifetime(self.times, status, &headers, personal, wall) {
            Ok(lifetime) => lifetime,
            Err(why) => {
                return match revalidated {
                    // Good for this once, and nothing for the store.
                    Some(old) => {
                        let copy = Copy { headers, at: now, ..Copy::clone(&old) };
                        self.share_not(fill, why);
                        self.copies.forget(&fill.key());
                        Fetched::Copy { copy: Arc::new(copy), stored: false, revalidated: true }
                    }
                    None => {
                        self.share_not(fill, why);
                        Fetched::Passed(response)
                    }
                };
            }
        };
        let body = match &revalidated {
            Some(old) => old.body.clone(),
            None => match answers::read(response.take_body(), self.max_size).await {
                Ok(Read::Whole(body)) => body,
                Ok(Read::Passed(body)) => {
                    self.share_not(fill, Unkept::Ever);
                    response.set_body(body);
                    return Fetched::Passed(response);
                }
                Err(_) => {
                    fill.tell(State::Again);
                    return Fetched::Passed(exchange.refuse(&Kind::UpstreamReset.into()));
                }
            },
        };
        let copy = Copy {
            status,
            headers: rules::kept_headers(&headers),
            body,
            vary: rules::varies(&headers).unwrap_or_default(),
            path: exchange.path.as_str().into(),
            route: self.route.clone(),
            at: now,
            age: lifetime.age,
            fresh: lifetime.fresh,
            stale: lifetime.stale,
        };
        self.share(fill, primary, &asked_with, copy, epoch, revalidated.is_some())
    }

    /// Keeps an answer, and tells those who wait for it.
    fn share(
        &self,
        fill: &Fill,
        primary: Key,
        asked_with: &HeaderMap,
        copy: Copy,
        epoch: Epoch,
        revalidated: bool,
    ) -> Fetched {
        let variant = match copy.vary.is_empty() {
            true => primary,
            false => primary.variant(&copy.vary, asked_with),
        };
        let (copy, stored) = self.copies.put(&primary, asked_with, copy, epoch);
        fill.tell(State::Shared(copy.clone(), variant));
        Fetched::Copy { copy, stored, revalidated }
    }

    /// Tells those who wait that this answer is not for them.
    fn share_not(&self, fill: &Fill, why: Unkept) {
        match why {
            Unkept::Now => fill.tell(State::Again),
            Unkept::Ever => {
                let until = Instant::now() + REMEMBERED.min(self.times.ttl);
                self.copies.pass(fill.key(), until);
                fill.tell(State::Alone);
            }
        }
    }
}
