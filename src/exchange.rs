//! One request and its answer, from the first byte in to the last byte out.
//!
//! The [`Exchange`] is made at the door, travels in the request's extensions, and ends when its last holder is
//! dropped: after the response body's last byte, or when the client leaves. Only then its [`Observer`]s (access
//! log, metrics, traces) learn of it, so that nobody counts a stream as done when its headers are.

use crate::error::grpc::{Code, Form, http_of};
use crate::error::{GatewayError, Lang};
use crate::identity::Identity;
use http::Method;
use poem::{Request, Response};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

/// What is known of a route when it is compiled; shared by all its exchanges.
#[derive(Debug)]
pub struct RouteInfo {
    /// Method as declared: `GET`, `ANY`.
    pub method: String,
    /// Pattern with its prefix, such as `/api/v01/sessions/:id`: the label in metrics and logs.
    pub template: String,
    /// Host it answers for, if not any.
    pub host: Option<String>,
    /// Version it belongs to.
    pub version: Option<String>,
    /// Names of its path parameters, in order.
    pub params: Vec<String>,
}

impl RouteInfo {
    /// Stands for the route of requests that no route takes.
    pub fn unmatched() -> Self {
        RouteInfo {
            method: "ANY".to_owned(),
            template: "unmatched".to_owned(),
            host: None,
            version: None,
            params: Vec::new(),
        }
    }
}

/// A route as exchanges hold it. How many do is counted apart from what it says: every exchange writes that count and few
/// read on, so the counts of many routes had better be near each other.
#[derive(Debug, Clone)]
pub struct RouteRef(Arc<Counted>);

#[derive(Debug)]
struct Counted(Arc<RouteInfo>);

impl RouteRef {
    /// What it says.
    pub fn info(&self) -> &Arc<RouteInfo> {
        &self.0.0
    }
}

impl From<Arc<RouteInfo>> for RouteRef {
    fn from(info: Arc<RouteInfo>) -> Self {
        RouteRef(Arc::new(Counted(info)))
    }
}

/// How an exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum End {
    /// Still under way, or the client left before the response began.
    ClientLeft = 0,
    /// Every byte was handed to the connection.
    Complete = 1,
    /// The upstream broke off after the response had begun.
    UpstreamBroke = 2,
    /// A limit of the stream (idle, maximal length) ended it.
    StreamLimit = 3,
    /// The gateway went down.
    Shutdown = 4,
    /// The caller's token expired or was revoked.
    Reauth = 5,
    /// A newer connection of the same caller's took its place.
    Replaced = 6,
    /// A reload removed its route.
    RouteRemoved = 7,
}

impl End {
    /// The word for logs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            End::ClientLeft => "client_left",
            End::Complete => "complete",
            End::UpstreamBroke => "upstream_broke",
            End::StreamLimit => "stream_limit",
            End::Shutdown => "shutdown",
            End::Reauth => "reauth",
            End::Replaced => "replaced",
            End::RouteRemoved => "route_removed",
        }
    }

    fn of(number: u8) -> Self {
        match number {
            1 => End::Complete,
            2 => End::UpstreamBroke,
            3 => End::StreamLimit,
            4 => End::Shutdown,
            5 => End::Reauth,
            6 => End::Replaced,
            7 => End::RouteRemoved,
            _ => End::ClientLeft,
        }
    }
}

/// Learns of an exchange when it is over.
pub trait Observer: Send + Sync {
    /// Called once, on whichever task held the exchange last. Must not block.
    fn finished(&self, exchange: &Exchange);
}

/// Where a request was sent.
#[derive(Debug, Clone)]
pub struct UpstreamNote {
    /// The upstream's name.
    pub upstream: Arc<str>,
    /// The server, `host:port`.
    pub target: Arc<str>,
}

/// What answered instead of an upstream that could not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Degraded {
    /// A fixed answer.
    Respond = 1,
    /// Another upstream.
    Upstream = 2,
    /// A copy of an earlier answer.
    Stale = 3,
}

impl Degraded {
    /// Every kind, in order.
    pub const ALL: &[Degraded] = &[Degraded::Respond, Degraded::Upstream, Degraded::Stale];

    /// The word for headers, logs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Degraded::Respond => "respond",
            Degraded::Upstream => "upstream",
            Degraded::Stale => "stale",
        }
    }
}

/// One request and its answer.
pub struct Exchange {
    /// When the request's head had come, on the monotonic clock.
    pub started: Instant,
    /// When it had come, on the wall.
    pub at: SystemTime,
    /// The other end of the connection.
    pub peer: SocketAddr,
    /// The caller as far as trusted proxies vouch for it.
    pub client_ip: IpAddr,
    /// Whether the connection is TLS, or a trusted proxy says that the caller's was.
    pub secure: bool,
    /// The method.
    pub method: Method,
    /// The normalised path: the one string that is matched, authorised, limited, logged and forwarded.
    pub path: String,
    /// The caller's language for error texts.
    pub lang: Lang,
    /// The route, once found.
    route: OnceLock<(RouteRef, Params)>,
    identity: OnceLock<Arc<Identity>>,
    request_id: OnceLock<String>,
    trace: OnceLock<Arc<dyn Traced>>,
    upstream: Mutex<Option<UpstreamNote>>,
    tries: AtomicU8,
    degraded: AtomicU8,
    form: OnceLock<Form>,
    deadline: OnceLock<Instant>,
    catalogue: OnceLock<&'static str>,
    is_call: AtomicBool,
    grpc_status: AtomicU8,
    observers: Mutex<Vec<Arc<dyn Observer>>>,
    status: AtomicU16,
    end: AtomicU8,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    first_byte_micros: AtomicU64,
    upstream_micros: AtomicU64,
}

/// No gRPC status is known.
const NO_GRPC: u8 = u8::MAX;

/// Ranges of the path that its parameters take, in the order of [`RouteInfo::params`].
pub type Params = Vec<(u32, u32)>;

/// The exchange's place in a distributed trace.
pub trait Traced: Send + Sync {
    /// Value of `traceparent` for the upstream (W3C Trace Context).
    fn traceparent(&self) -> http::HeaderValue;
    /// The trace id in hex, for logs.
    fn trace_id(&self) -> String;
}

/// What the door knows of a request.
#[derive(Debug)]
pub struct Arrival {
    /// The other end of the connection.
    pub peer: SocketAddr,
    /// The caller as far as trusted proxies vouch for it.
    pub client_ip: IpAddr,
    /// Whether the caller's connection is TLS.
    pub secure: bool,
    /// The method.
    pub method: Method,
    /// The normalised path.
    pub path: String,
    /// The caller's language.
    pub lang: Lang,
}

impl Exchange {
    /// Begins now.
    pub fn begin(arrival: Arrival) -> Arc<Self> {
        Arc::new(Exchange {
            started: Instant::now(),
            at: SystemTime::now(),
            peer: arrival.peer,
            client_ip: arrival.client_ip,
            secure: arrival.secure,
            method: arrival.method,
            path: arrival.path,
            lang: arrival.lang,
            route: OnceLock::new(),
            identity: OnceLock::new(),
            request_id: OnceLock::new(),
            trace: OnceLock::new(),
            upstream: Mutex::default(),
            tries: AtomicU8::new(0),
            degraded: AtomicU8::new(0),
            form: OnceLock::new(),
            deadline: OnceLock::new(),
            catalogue: OnceLock::new(),
            is_call: AtomicBool::new(false),
            grpc_status: AtomicU8::new(NO_GRPC),
            observers: Mutex::new(Vec::new()),
            status: AtomicU16::new(0),
            end: AtomicU8::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            first_byte_micros: AtomicU64::new(0),
            upstream_micros: AtomicU64::new(0),
        })
    }

    /// One more request of the same caller's on the same route, as another says a message as a request of its own. Nobody
    /// observes it.
    pub fn follow_up(&self, method: Method) -> Arc<Self> {
        let next = Exchange::begin(Arrival {
            peer: self.peer,
            client_ip: self.client_ip,
            secure: self.secure,
            method,
            path: self.path.clone(),
            lang: self.lang,
        });
        next.adopt_request_id(self.request_id().to_owned());
        if let Some((info, params)) = self.route.get() {
            next.matched(info.clone(), params.clone());
        }
        if let Some(identity) = self.identity() {
            next.identified(identity.clone());
        }
        if let Some(catalogue) = self.catalogue.get() {
            next.errors_described_at(catalogue);
        }
        if let Some(trace) = self.trace() {
            next.set_trace(trace.clone());
        }
        next
    }

    /// The exchange a request belongs to.
    pub fn of(request: &Request) -> &Arc<Exchange> {
        request.data::<Arc<Exchange>>().expect("the door puts an exchange into every request")
    }

    /// Its id, made on first use (UUID v4) unless the caller's was taken over.
    pub fn request_id(&self) -> &str {
        self.request_id.get_or_init(|| uuid::Uuid::new_v4().to_string())
    }

    /// Takes over an id of the caller's; without effect once one is in use.
    pub fn adopt_request_id(&self, id: String) {
        let _ = self.request_id.set(id);
    }

    /// The route, once found.
    pub fn route(&self) -> Option<&Arc<RouteInfo>> {
        self.route.get().map(|(info, _)| info.info())
    }

    /// Notes the route and the ranges of its parameters.
    pub fn matched(&self, info: RouteRef, params: Params) {
        let _ = self.route.set((info, params));
    }

    /// A path parameter as it stands in the normalised path (percent-encoded), without the leading slash.
    pub fn param(&self, name: &str) -> Option<&str> {
        let (info, params) = self.route.get()?;
        let index = info.info().params.iter().position(|n| n == name)?;
        self.param_at(params.get(index)?)
    }

    /// A path parameter by its index.
    pub fn param_nth(&self, index: usize) -> Option<&str> {
        self.param_at(self.route.get()?.1.get(index)?)
    }

    fn param_at(&self, range: &(u32, u32)) -> Option<&str> {
        self.path.get(range.0 as usize..range.1 as usize)
    }

    /// Its place in a trace, if one was noted.
    pub fn trace(&self) -> Option<&Arc<dyn Traced>> {
        self.trace.get()
    }

    /// Notes its place in a trace.
    pub fn set_trace(&self, trace: Arc<dyn Traced>) {
        let _ = self.trace.set(trace);
    }

    /// Who is calling, once a stage has found out.
    pub fn identity(&self) -> Option<&Arc<Identity>> {
        self.identity.get()
    }

    /// Notes who is calling; the first to know is right.
    pub fn identified(&self, identity: Arc<Identity>) {
        let _ = self.identity.set(identity);
    }

    /// Where it was sent, if it was; the last place, if there were several.
    pub fn upstream(&self) -> Option<UpstreamNote> {
        self.upstream.lock().unwrap_or_else(|poison| poison.into_inner()).clone()
    }

    /// Notes where it was sent. Nobody else waits for this at the same time.
    pub fn sent_to(&self, note: UpstreamNote) {
        *self.upstream.lock().unwrap_or_else(|poison| poison.into_inner()) = Some(note);
    }

    /// What answered instead of its upstream, if something did.
    pub fn degraded(&self) -> Option<Degraded> {
        let number = self.degraded.load(Ordering::Relaxed);
        Degraded::ALL.iter().copied().find(|kind| *kind as u8 == number)
    }

    /// Notes what answers instead of its upstream. How that one ended is not how the exchange does.
    pub fn set_degraded(&self, kind: Degraded) {
        self.end.store(0, Ordering::Relaxed);
        self.degraded.store(kind as u8, Ordering::Relaxed);
    }

    /// Counts a try at an upstream.
    pub fn tried(&self) {
        self.tries.fetch_add(1, Ordering::Relaxed);
    }

    /// How often an upstream was tried.
    pub fn tries(&self) -> u8 {
        self.tries.load(Ordering::Relaxed)
    }

    /// Notes how long the upstream took to its response's head.
    pub fn upstream_answered(&self, after: Duration) {
        self.upstream_micros.store(micros(after), Ordering::Relaxed);
    }

    /// How long the upstream took to its response's head.
    pub fn upstream_time(&self) -> Option<Duration> {
        nonzero(self.upstream_micros.load(Ordering::Relaxed))
    }

    /// The form that its errors have.
    pub fn form(&self) -> &Form {
        self.form.get().unwrap_or(&Form::Problem)
    }

    /// Notes the form that its errors have, before there is one.
    pub fn speaks(&self, form: Form) {
        let _ = self.form.set(form);
    }

    /// Notes where this gateway describes error codes, up to a code: `type` of its problems leads there.
    pub fn errors_described_at(&self, catalogue: &'static str) {
        let _ = self.catalogue.set(catalogue);
    }

    /// Where this gateway describes error codes, up to a code, if it does.
    pub fn catalogue(&self) -> Option<&'static str> {
        self.catalogue.get().copied()
    }

    /// When the route's `timeout` ends it, if it has one.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline.get().copied()
    }

    /// Notes when the route's `timeout` ends it.
    pub fn ends_by(&self, deadline: Instant) {
        let _ = self.deadline.set(deadline);
    }

    /// Whether it is a gRPC call that its target watches to its end: then its bodies may rest, and its deadline is the
    /// target's business.
    pub fn is_call(&self) -> bool {
        self.is_call.load(Ordering::Relaxed)
    }

    /// Notes that a target watches it as a gRPC call.
    pub fn begin_call(&self) {
        self.is_call.store(true, Ordering::Relaxed);
    }

    /// The status of a gRPC call, once it is known.
    pub fn grpc_status(&self) -> Option<Code> {
        match self.grpc_status.load(Ordering::Relaxed) {
            NO_GRPC => None,
            code => Some(Code::from_i32(code.into())),
        }
    }

    /// Notes the status of a gRPC call.
    pub fn set_grpc_status(&self, code: Code) {
        self.grpc_status.store(code as u8, Ordering::Relaxed);
    }

    /// Whether the server's side was at fault, by HTTP's status or gRPC's.
    pub fn is_fault(&self) -> bool {
        self.status() >= 500 || self.grpc_status().is_some_and(|code| http_of(code) >= 500)
    }

    /// Asks to be told when it is over.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        self.observers.lock().unwrap_or_else(|poison| poison.into_inner()).push(observer);
    }

    /// Notes the status that goes out.
    pub fn set_status(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    /// The status that went out; 499 if the client left before there was one.
    pub fn status(&self) -> u16 {
        match self.status.load(Ordering::Relaxed) {
            0 => 499,
            status => status,
        }
    }

    /// Notes how it ended; the first to say so is right.
    pub fn ended(&self, end: End) {
        let _ = self.end.compare_exchange(0, end as u8, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// How it ended.
    pub fn end(&self) -> End {
        End::of(self.end.load(Ordering::Relaxed))
    }

    /// Counts bytes of the request's body.
    pub fn add_bytes_in(&self, count: u64) {
        self.bytes_in.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts bytes of the response's body; the first sets the time to the first byte.
    pub fn add_bytes_out(&self, count: u64) {
        if self.bytes_out.fetch_add(count, Ordering::Relaxed) == 0 {
            self.first_byte_micros.store(micros(self.started.elapsed()), Ordering::Relaxed);
        }
    }

    /// Bytes of the request's body so far.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in.load(Ordering::Relaxed)
    }

    /// Bytes of the response's body so far.
    pub fn bytes_out(&self) -> u64 {
        self.bytes_out.load(Ordering::Relaxed)
    }

    /// From the request's head to the body's first byte out.
    pub fn first_byte(&self) -> Option<Duration> {
        nonzero(self.first_byte_micros.load(Ordering::Relaxed))
    }

    /// A finished error response in the caller's language.
    pub fn refuse(&self, error: &GatewayError) -> Response {
        let form = self.form();
        if *form != Form::Problem {
            self.set_grpc_status(error.grpc_code());
        }
        error.respond_as(form, self.request_id(), self.lang, self.catalogue())
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let observers =
            std::mem::take(&mut *self.observers.lock().unwrap_or_else(|poison| poison.into_inner()));
        for observer in observers {
            observer.finished(self);
        }
    }
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange")
            .field("method", &self.method)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

fn micros(duration: Duration) -> u64 {
    (duration.as_micros() as u64).max(1)
}

fn nonzero(micros: u64) -> Option<Duration> {
    (micros > 0).then(|| Duration::from_micros(micros))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An exchange as the door would begin it, for tests of stages and targets.
    pub(crate) fn exchange(method: Method, path: &str) -> Arc<Exchange> {
        let peer: SocketAddr = ([127, 0, 0, 1], 40000).into();
        Exchange::begin(Arrival {
            peer,
            client_ip: peer.ip(),
            secure: false,
            method,
            path: path.to_owned(),
            lang: Lang::En,
        })
    }

    #[test]
    fn observers_learn_of_the_end_once_and_last() {
        struct Count(AtomicU64);
        impl Observer for Count {
            fn finished(&self, exchange: &Exchange) {
                assert_eq!(exchange.status(), 499, "no status was set");
                assert_eq!(exchange.end(), End::ClientLeft);
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let count = Arc::new(Count(AtomicU64::new(0)));
        let first = exchange(Method::GET, "/a");
        first.observe(count.clone());
        let second = first.clone();
        drop(first);
        assert_eq!(count.0.load(Ordering::Relaxed), 0);
        drop(second);
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn parameters_are_ranges_of_the_path() {
        let one = exchange(Method::GET, "/s/abc/x/y");
        let info = RouteInfo {
            method: "GET".into(),
            template: "/s/:id/*rest".into(),
            host: None,
            version: None,
            params: vec!["id".into(), "rest".into()],
        };
        one.matched(Arc::new(info).into(), vec![(3, 6), (7, 10)]);
        assert_eq!(one.param("id"), Some("abc"));
        assert_eq!(one.param("rest"), Some("x/y"));
        assert_eq!(one.param("none"), None);
    }
}
