//! The last good answer, given again: to the same GET of the same caller.
//!
//! Kept while it passes, piece by piece; nobody waits for it. Whose answer it is, is part of the key: the caller's
//! identity, or where nobody is known all that could be a credential. Only what says that it is `public` is for
//! everybody. What its upstream forbids to keep, or to give out without asking again (RFC 9111, sections 3 and 4.2.4), is
//! not kept.

use crate::copies::{Copies, Copy, Epoch, Key, age_value};
use crate::exchange::Exchange;
use crate::targets::TargetCx;
use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, AGE, AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, COOKIE, HOST,
    RANGE, SET_COOKIE, TRAILER, VARY,
};
use http::{HeaderMap, HeaderName, Method, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::BoxBody;
use poem::{Request, Response};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

static X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Answers kept for a route.
pub(super) struct Keeper {
    copies: Arc<Copies>,
    /// The route's identity: changed, its copies are others.
    identity: u64,
    route: Arc<str>,
    /// How old they may be.
    age: Duration,
    max_size: u64,
}

/// A request whose answer is kept, or was.
pub(super) struct Asked {
    /// What the caller alone may see.
    own: Key,
    /// What everybody may see.
    public: Key,
    headers: HeaderMap,
    epoch: Epoch,
    known: bool,
}

impl Keeper {
    pub(super) fn new(cx: &TargetCx<'_>, age: Duration, max_size: u64) -> Self {
        let route = cx.route;
        let label = match &route.host {
            Some(host) => format!("{} {host}{}", route.method, route.template),
            None => format!("{} {}", route.method, route.template),
        };
        let copies = cx.shared.copies.clone();
        let max_size = max_size.min(copies.largest() as u64);
        Keeper { copies, identity: cx.identity, route: label.into(), age, max_size }
    }

    /// What is kept for a request, if its answers are kept at all.
    pub(super) fn asked(&self, exchange: &Exchange, request: &Request) -> Option<Asked> {
        let headers = request.headers();
        if *request.method() != Method::GET || headers.contains_key(RANGE) {
            return None;
        }
        let host = headers.get(HOST).map(|host| host.as_bytes());
        let host = host.or_else(|| request.uri().authority().map(|host| host.as_str().as_bytes()));
        let key = Key::of("stale", self.identity)
            .maybe(host)
            .with(&[u8::from(exchange.secure)])
            .with(exchange.path.as_bytes())
            .maybe(request.uri().query().map(str::as_bytes));
        let public = key.clone().with(b"public").end();
        let own = match exchange.identity() {
            Some(caller) => {
                let key =
                    key.with(b"caller").with(caller.tenant_id.as_bytes()).with(caller.user_id.as_bytes());
                let key =
                    key.with(caller.role.as_bytes()).maybe(caller.channel.as_deref().map(str::as_bytes));
                caller.scopes.iter().fold(key, |key, scope| key.with(scope.as_bytes()))
            }
            None => [&AUTHORIZATION, &COOKIE, &X_API_KEY].iter().fold(key.with(b"anybody"), |key, name| {
                let all = headers.get_all(*name);
                let key = key.with(&(all.iter().count() as u64).to_le_bytes());
                all.iter().fold(key, |key, value| key.with(value.as_bytes()))
            }),
        };
        Some(Asked {
            own: own.end(),
            public,
            headers: headers.clone(),
            epoch: self.copies.epoch(),
            known: exchange.identity().is_some(),
        })
    }

    /// The last good answer, if it is young enough; with its age.
    pub(super) fn last(&self, asked: &Asked) -> Option<Response> {
        let now = Instant::now();
        let young =
            |key: &Key| self.copies.get(key, &asked.headers, now).filter(|copy| copy.age(now) <= self.age);
        let copy = young(&asked.own).or_else(|| young(&asked.public))?;
        let mut response = Response::builder().status(copy.status).body(copy.body.clone());
        *response.headers_mut() = copy.headers.clone();
        response.headers_mut().insert(AGE, age_value(copy.age(now)));
        Some(response)
    }

    /// A good answer on its way out; kept when it has passed whole, if it may be.
    pub(super) fn keep(
        self: &Arc<Self>,
        asked: Asked,
        exchange: &Exchange,
        mut response: Response,
    ) -> Response {
        let Some(vary) = may_keep(response.status(), response.headers(), asked.known) else {
            return response;
        };
        let body: BoxBody<Bytes, io::Error> = response.take_body().into();
        if body.size_hint().lower() > self.max_size {
            response.set_body(body);
            return response;
        }
        let mut headers = response.headers().clone();
        for name in [&SET_COOKIE, &CONTENT_LENGTH, &TRAILER, &AGE] {
            headers.remove(name);
        }
        let age = response.headers().get(AGE).and_then(|age| age.to_str().ok()?.trim().parse().ok());
        let copy = Copy {
            status: response.status(),
            headers,
            body: Bytes::new(),
            vary,
            path: exchange.path.as_str().into(),
            route: self.route.clone(),
            at: Instant::now(),
            age: Duration::from_secs(age.unwrap_or(0)),
            fresh: self.age,
            stale: Duration::ZERO,
        };
        let key = if says(response.headers(), "public") { asked.public } else { asked.own };
        let keeping = Keeping { keeper: self.clone(), key, asked: asked.headers, epoch: asked.epoch, copy };
        if body.is_end_stream() {
            keeping.whole(Vec::new(), 0);
            response.set_body(body);
        } else {
            response.set_body(BoxBody::new(Passing {
                body,
                pieces: Vec::new(),
                len: 0,
                keeping: Some(keeping),
            }));
        }
        response
    }
}

/// Whether an answer may be kept, and which headers of the request it depends on. `known`: whether it is known whose it
/// is.
fn may_keep(status: StatusCode, headers: &HeaderMap, known: bool) -> Option<Arc<[HeaderName]>> {
    let forbidden = ["no-store", "no-cache", "must-revalidate", "proxy-revalidate"];
    let good =
        matches!(status, StatusCode::OK | StatusCode::NON_AUTHORITATIVE_INFORMATION | StatusCode::NO_CONTENT);
    if !good
        || headers.contains_key(SET_COOKIE)
        || forbidden.iter().any(|word| says(headers, word))
        || !known && says(headers, "private")
    {
        return None;
    }
    let mut vary = Vec::new();
    for name in headers.get_all(VARY).iter().flat_map(|value| value.as_bytes().split(|b| *b == b',')) {
        match name.trim_ascii() {
            b"*" => return None,
            b"" => {}
            name => vary.push(HeaderName::from_bytes(name).ok()?),
        }
    }
    if headers.contains_key(CONTENT_ENCODING) {
        // Whoever codes bodies without saying so would have others read what they cannot.
        vary.push(ACCEPT_ENCODING);
    }
    vary.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    vary.dedup();
    Some(vary.into())
}

/// Whether `Cache-Control` has a directive, with or without a value.
fn says(headers: &HeaderMap, directive: &str) -> bool {
    headers.get_all(CACHE_CONTROL).iter().any(|value| {
        value.as_bytes().split(|b| *b == b',').any(|one| {
            let name = one.split(|b| *b == b'=').next().unwrap_or_default();
            name.trim_ascii().eq_ignore_ascii_case(directive.as_bytes())
        })
    })
}

/// An answer before all of it has come.
struct Keeping {
    keeper: Arc<Keeper>,
    key: Key,
    asked: HeaderMap,
    epoch: Epoch,
    copy: Copy,
}

impl Keeping {
    fn whole(self, pieces: Vec<Bytes>, len: usize) {
        let mut body = Vec::with_capacity(len);
        pieces.iter().for_each(|piece| body.extend_from_slice(piece));
        let copy = Copy { body: body.into(), ..self.copy };
        self.keeper.copies.put(&self.key, &self.asked, copy, self.epoch);
    }
}

/// A body on its way to the caller.
struct Passing {
    body: BoxBody<Bytes, io::Error>,
    pieces: Vec<Bytes>,
    len: usize,
    /// Gone when the answer is kept, or will not be.
    keeping: Option<Keeping>,
}

impl Body for Passing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let Poll::Ready(frame) = &polled else { return polled };
        let Some(keeping) = self.keeping.take() else { return polled };
        let whole = match frame {
            None => true,
            Some(Ok(frame)) if frame.is_data() => {
                let data = frame.data_ref().cloned().unwrap_or_default();
                self.len += data.len();
                self.pieces.push(data);
                if self.len as u64 > keeping.keeper.max_size {
                    self.pieces = Vec::new();
                    return polled;
                }
                // Whoever sends it on may not ask again.
                self.body.is_end_stream()
            }
            // Broken off, or with trailers, which are not kept.
            Some(_) => {
                self.pieces = Vec::new();
                return polled;
            }
        };
        match whole {
            true => keeping.whole(std::mem::take(&mut self.pieces), self.len),
            false => self.keeping = Some(keeping),
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn kept(status: u16, fields: &[(&'static str, &'static str)], known: bool) -> Option<Vec<String>> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let names = may_keep(StatusCode::from_u16(status).unwrap(), &headers, known)?;
        Some(names.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_may_not_be_given_again_is_not_kept() {
        assert_eq!(kept(200, &[], false), Some(vec![]));
        assert_eq!(kept(200, &[("cache-control", "private, max-age=0")], true), Some(vec![]));
        for (status, field, known) in [
            (404, ("x", "y"), true),
            (206, ("x", "y"), true),
            (200, ("set-cookie", "a=b"), true),
            (200, ("cache-control", "max-age=1, No-Store"), true),
            (200, ("cache-control", "no-cache"), true),
            (200, ("cache-control", "must-revalidate"), true),
            (200, ("cache-control", "private"), false),
            (200, ("vary", "*"), true),
        ] {
            assert_eq!(kept(status, &[field], known), None, "{status} {field:?}");
        }
        let coded = [("vary", "Accept, origin"), ("content-encoding", "gzip")];
        let names: Vec<_> = ["accept", "accept-encoding", "origin"].map(str::to_owned).into();
        assert_eq!(kept(200, &coded, false), Some(names));
    }
}
