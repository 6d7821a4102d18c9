//! `mirror:`, copies of requests for another upstream, whose answers nobody reads.
//!
//! The caller never waits for a copy and never learns of it: copies go out on tasks of their own, with a deadline each
//! and no more than `max_concurrent` at a time; what would be more is left out and counted. A request with a body is
//! copied when its body has gone to the real upstream, whole and small enough: pieces are shared on their way, not
//! copied, and nothing is read sooner or later for it. Together that bounds what copies hold to `max_concurrent`
//! bodies of `max_body`.
//!
//! A copy has the path and the headers that the real upstream gets, identity and all, and `X-Mirrored: true`. It is
//! sent once, observed by nobody, and counts for no limit of the route.

use super::template::Template;
use super::{Misfit, Target, TargetCx, forward, known, proxy};
use crate::diag::{Code, Diagnostic, Diagnostics};
use crate::endpoint::{Next, sealed};
use crate::error::GatewayError;
use crate::exchange::{Exchange, RouteInfo};
use crate::manifest::model::{Protocol, Route, UpstreamProtocol};
use crate::manifest::{Manifest, Spanned};
use crate::openapi::OperationDoc;
use crate::state::Shared;
use crate::telemetry::{MirrorMetrics, Mirrored};
use crate::upstream::{SendOptions, Upstream};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRAILER, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use poem::{Endpoint, Request, Response};
use std::hash::Hasher;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

static X_MIRRORED: HeaderName = HeaderName::from_static("x-mirrored");

const MAX_CONCURRENT: u32 = 100;
const MAX_BODY: u64 = 64 << 10;
const TIMEOUT: Duration = Duration::from_secs(5);
/// How much of an answer is read so that its connection can be used again; a longer one costs it.
const DRAINED: usize = 64 << 10;

/// A target whose requests are mirrored.
struct Seen {
    inner: Arc<dyn Target>,
    upstream: Arc<str>,
    /// URLs of its servers, for people.
    servers: Vec<String>,
    path: Option<Arc<Template>>,
    terms: Terms,
}

/// What is mirrored, and how much of it.
#[derive(Debug, Clone, Copy)]
struct Terms {
    /// 0 to 1.
    share: f64,
    max_concurrent: u32,
    max_body: u64,
    timeout: Duration,
}

/// The target, with copies for another upstream where the route says so. Reports every fault of that.
pub(super) fn check(
    route: &Spanned<Route>,
    params: &[String],
    inner: Option<Arc<dyn Target>>,
    manifest: &Manifest,
    out: &mut Diagnostics,
) -> Option<Arc<dyn Target>> {
    let Some(decl) = &route.mirror else { return inner };
    let before = out.counts().0;
    let what = match route.protocol.as_ref().map(|protocol| protocol.value) {
        _ if route.grpc.is_some() => Some("calls"),
        Some(Protocol::Grpc) => Some("calls"),
        Some(Protocol::Websocket) => Some("WebSockets"),
        _ => None,
    };
    if let Some(what) = what {
        let message = format!("`mirror` does not copy {what}");
        out.push(
            Diagnostic::error(Code::MISPLACED, decl.span, message)
                .help("remove it: copies are of single requests, over HTTP"),
        );
    }
    let name = &decl.upstream;
    let upstream = known(name, manifest, out)?;
    let split = route.split.iter().flat_map(|split| &split.to.0).map(|share| &share.upstream);
    if let Some(same) = route.upstream.iter().chain(split).find(|other| other.value == name.value) {
        out.push(
            Diagnostic::error(
                Code::MIRROR,
                name.span,
                format!("`{}` gets these requests already", name.value),
            )
            .help("name an upstream of its own for the copies")
            .note(same.span, "it is named here"),
        );
    }
    if what.is_none() && upstream.decl.protocol.as_ref().is_some_and(|it| it.value == UpstreamProtocol::Grpc)
    {
        let message = format!("upstream `{}` speaks gRPC, this route does not", name.value);
        out.push(
            Diagnostic::error(Code::PROTOCOL_MISMATCH, name.span, message)
                .help("name an upstream that speaks HTTP"),
        );
    }
    if decl.share.value.0 <= 0.0 {
        out.push(
            Diagnostic::error(Code::MIRROR, decl.share.span, "a share of 0% copies nothing")
                .help("raise it, or remove `mirror`"),
        );
    }
    if let Some(max) = decl.max_concurrent.as_ref().filter(|max| max.value == 0) {
        out.push(
            Diagnostic::error(Code::MIRROR, max.span, "with no copy at a time nothing is copied")
                .help("write at least 1, or remove `mirror`"),
        );
    }
    // A fault in it was reported with the target.
    let path = route
        .path
        .as_ref()
        .map(|path| Template::check(path, 0, &path.value, params, &mut Diagnostics::new()));
    if out.counts().0 > before {
        return None;
    }
    let seen = Seen {
        inner: inner?,
        upstream: name.value.as_str().into(),
        servers: proxy::servers(&upstream),
        path: match path {
            Some(path) => Some(Arc::new(path?)),
            None => None,
        },
        terms: Terms {
            share: decl.share.value.0,
            max_concurrent: decl.max_concurrent.as_ref().map_or(MAX_CONCURRENT, |max| max.value),
            max_body: decl.max_body.as_ref().map_or(MAX_BODY, |size| size.value.0),
            timeout: decl.timeout.map_or(TIMEOUT, |timeout| timeout.0),
        },
    };
    Some(Arc::new(seen))
}

impl Target for Seen {
    fn build(&self, cx: &TargetCx<'_>) -> Next {
        let upstream = cx.upstreams.get(&self.upstream).cloned();
        let mirror = Arc::new(Mirror {
            upstream: upstream.expect("the checks saw that this upstream is defined"),
            path: self.path.clone(),
            shared: cx.shared.clone(),
            terms: self.terms,
            under_way: AtomicU32::new(0),
            metrics: cx.shared.telemetry.mirror(&self.upstream),
        });
        sealed(Running { next: self.inner.build(cx), mirror, draw: rand::random })
    }

    fn document(&self, op: &mut OperationDoc) {
        self.inner.document(op);
    }

    fn streams(&self) -> bool {
        self.inner.streams()
    }

    fn misfit(&self, route: &RouteInfo) -> Option<Misfit> {
        self.inner.misfit(route)
    }

    fn longest_stream(&self) -> Option<Duration> {
        self.inner.longest_stream()
    }

    fn counts_callers(&self) -> bool {
        self.inner.counts_callers()
    }

    fn identify(&self, state: &mut dyn Hasher) {
        self.inner.identify(state);
    }

    fn upstream(&self) -> Option<&str> {
        self.inner.upstream()
    }

    fn describe(&self, path: &str, values: &[&str]) -> String {
        let share = self.terms.share * 100.0;
        let urls = proxy::urls(&self.servers, self.path.as_deref(), path, values);
        format!("{}; {share}% mirrored to {}: {urls}", self.inner.describe(path, values), self.upstream)
    }
}

/// The other upstream, with what is under way there.
struct Mirror {
    upstream: Arc<Upstream>,
    path: Option<Arc<Template>>,
    shared: Arc<Shared>,
    terms: Terms,
    under_way: AtomicU32,
    metrics: MirrorMetrics,
}

/// A mirrored target that runs.
struct Running {
    next: Next,
    mirror: Arc<Mirror>,
    /// From 0 to 1.
    draw: fn() -> f64,
}

impl Endpoint for Running {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        if (self.draw)() < self.mirror.terms.share {
            Copy::begin(&self.mirror, &mut request);
        }
        self.next.call(request).await
    }
}

/// A place among the copies under way.
struct Place(Arc<Mirror>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Place {
    fn take(mirror: &Arc<Mirror>) -> Option<Place> {
        // Counts first, so that there are never more than may be.
        let place = Place(mirror.clone());
        (mirror.under_way.fetch_add(1, Ordering::Relaxed) < mirror.terms.max_concurrent).then_some(place)
    }
}

/// A copy before it is sent.
struct Copy {
    place: Place,
    exchange: Arc<Exchange>,
    /// Its body is still to come.
    request: http::Request<BoxBody<Bytes, io::Error>>,
}

impl Copy {
    /// Copies a request: at once if it has no body, else when its body has passed.
    fn begin(mirror: &Arc<Mirror>, request: &mut Request) {
        let Some(place) = Place::take(mirror) else {
            mirror.metrics.count(Mirrored::Dropped);
            return;
        };
        let body: BoxBody<Bytes, io::Error> = request.take_body().into();
        if body.size_hint().lower() > mirror.terms.max_body {
            mirror.metrics.count(Mirrored::TooLarge);
            request.set_body(body);
            return;
        }
        let copy = Copy::of(place, request);
        match copy {
            // What cannot be sent on is refused by the target too.
            Err(_) => request.set_body(body),
            Ok(copy) if body.is_end_stream() => {
                request.set_body(body);
                copy.send(Bytes::new());
            }
            Ok(copy) => {
                let seen = Some(Passed { copy: Some(copy), pieces: Vec::new(), len: 0 });
                request.set_body(BoxBody::new(Passing { body, seen }));
            }
        }
    }

    /// A request's head as the upstream is to see it.
    fn of(place: Place, request: &Request) -> Result<Self, GatewayError> {
        let mirror = &place.0;
        let real = Exchange::of(request);
        let exchange = real.follow_up(real.method.clone());
        let mut twin = Request::builder()
            .method(request.method().clone())
            .uri(request.uri().clone())
            .version(request.version())
            .finish();
        *twin.headers_mut() = request.headers().clone();
        let trusted = mirror.shared.settings.trusts(real.peer.ip());
        let mut request = forward::request(&exchange, twin, mirror.path.as_deref(), trusted)?;
        let headers = request.headers_mut();
        for of_the_body in [CONTENT_LENGTH, TRANSFER_ENCODING, TRAILER] {
            headers.remove(of_the_body);
        }
        headers.insert(&X_MIRRORED, HeaderValue::from_static("true"));
        Ok(Copy { place, exchange, request })
    }

    /// Sends it with this body, on a task of its own.
    fn send(mut self, body: Bytes) {
        if !body.is_empty() {
            self.request.headers_mut().insert(CONTENT_LENGTH, body.len().into());
        }
        let body = match body.is_empty() {
            true => BoxBody::new(Empty::new().map_err(|never| match never {})),
            false => BoxBody::new(Full::new(body).map_err(|never| match never {})),
        };
        let request = self.request.map(|_| body);
        let (place, exchange) = (self.place, self.exchange);
        tokio::spawn(async move {
            let mirror = &place.0;
            let answer = async {
                let options = SendOptions {
                    once: true,
                    first_byte: Some(mirror.terms.timeout),
                    ..SendOptions::default()
                };
                let response = mirror.upstream.send(&exchange, request, &options).await?;
                drain(response.into_body()).await;
                Ok::<_, GatewayError>(())
            };
            let result = match tokio::time::timeout(mirror.terms.timeout, answer).await {
                Ok(Ok(())) => Mirrored::Answered,
                Ok(Err(_)) | Err(_) => Mirrored::Failed,
            };
            mirror.metrics.count(result);
        });
    }
}

/// Reads a little of an answer, and throws it away.
async fn drain(mut body: crate::upstream::UpstreamBody) {
    let mut left = DRAINED;
    while let Some(Ok(frame)) = body.frame().await {
        let len = frame.data_ref().map_or(0, Bytes::len);
        let Some(rest) = left.checked_sub(len) else { return };
        left = rest;
    }
}

/// What has passed of a body.
struct Passed {
    /// Gone when it was sent.
    copy: Option<Copy>,
    pieces: Vec<Bytes>,
    len: u64,
}

impl Passed {
    /// The body has passed whole.
    fn whole(mut self) {
        if let Some(copy) = self.copy.take() {
            let body = match self.pieces.len() {
                1 => self.pieces.swap_remove(0),
                _ => self.pieces.concat().into(),
            };
            copy.send(body);
        }
    }

    /// It will not be sent.
    fn give_up(mut self, why: Mirrored) {
        if let Some(copy) = self.copy.take() {
            copy.place.0.metrics.count(why);
        }
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        if let Some(copy) = self.copy.take() {
            copy.place.0.metrics.count(Mirrored::Cut);
        }
    }
}

/// A body on its way to the real upstream.
struct Passing {
    body: BoxBody<Bytes, io::Error>,
    /// Gone when the copy is sent or given up.
    seen: Option<Passed>,
}

impl Body for Passing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let Poll::Ready(frame) = &polled else { return polled };
        let Some(mut seen) = self.seen.take() else { return polled };
        match frame {
            None => seen.whole(),
            Some(Err(_)) => seen.give_up(Mirrored::Cut),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    seen.len += data.len() as u64;
                    seen.pieces.push(data.clone());
                }
                let most = seen.copy.as_ref().map_or(0, |copy| copy.place.0.terms.max_body);
                if seen.len > most {
                    seen.give_up(Mirrored::TooLarge);
                } else if self.body.is_end_stream() {
                    // Whoever sends it may not ask again.
                    seen.whole();
                } else {
                    self.seen = Some(seen);
                }
            }
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
