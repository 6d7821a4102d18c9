//! What tests of stages share: a stage from its YAML, a chain round a target, a request through it.

use super::{BuildCx, Layer, Next, Stage, StageCx, find, fold, sealed};
use crate::diag::{Diagnostics, SourceFile, Sources};
use crate::exchange::{Exchange, RouteInfo, tests::exchange};
use crate::identity::Identity;
use crate::manifest::decode::decode;
use crate::manifest::model::{Document, StageUse};
use crate::manifest::{Manifest, node};
use crate::state::Shared;
use crate::state::tests::shared;
use bytes::Bytes;
use http::Method;
use poem::{Body, Request, Response};
use std::future::Future;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

/// A stage as checked, and what was found.
pub(super) struct Checked {
    pub(super) stage: Option<Arc<dyn Stage>>,
    /// `line:column code message [help]`, in order; lines count from the stage.
    pub(super) faults: Vec<String>,
    /// Hash over what the body and its references say.
    pub(super) digest: u64,
}

impl Checked {
    /// The stage, which has no fault.
    pub(super) fn sound(self) -> Arc<dyn Stage> {
        assert_eq!(self.faults, Vec::<String>::new());
        self.stage.expect("without a fault there is a stage")
    }
}

/// Checks `stage`, one item of a chain such as `cors: default`, beside the sections of `manifest`.
pub(super) fn check(stage: &str, manifest: &str) -> Checked {
    let mut out = Diagnostics::new();
    let mut sources = Sources::default();
    let file = sources.add(SourceFile::new("s", stage));
    let tree = node::parse(file, sources.get(file).unwrap(), &mut out).unwrap();
    let stage: StageUse = decode(&tree, &mut out).unwrap();
    let file = sources.add(SourceFile::new("m", manifest));
    let tree = node::parse(file, sources.get(file).unwrap(), &mut out).unwrap();
    let document: Document = match tree.value {
        node::Value::Null => Document::default(),
        _ => decode(&tree, &mut out).unwrap(),
    };
    let mut manifest = Manifest::default();
    manifest.cors = document.cors;
    manifest.rate_limits = document.rate_limits;
    manifest.roles = document.roles;
    manifest.auth = document.auth;
    manifest.versions = document.versions.0;
    let kind = find(&stage.name.text).unwrap();
    let references = DefaultHasher::new();
    let mut cx = StageCx { manifest: &manifest, span: stage.name.span, out: &mut out, references };
    let checked = kind.check(&stage, &mut cx);
    let digest = cx.references.finish();
    out.sort();
    let faults = out
        .iter()
        .map(|d| {
            let help = d.help.as_ref().map(|help| format!(" [{help}]")).unwrap_or_default();
            format!("{} {} {}{help}", sources.place(d.span.unwrap()), d.code, d.message)
        })
        .collect();
    Checked { stage: checked, faults, digest }
}

/// Builds a stage for a route of this method.
pub(super) fn build(stage: &Arc<dyn Stage>, method: &str, streams: bool) -> Layer {
    let route = RouteInfo {
        method: method.into(),
        template: "/t".into(),
        host: None,
        version: None,
        params: Vec::new(),
    };
    let (shared, _) = shared(&[]);
    let route = Arc::new(route);
    stage.layer(&BuildCx {
        route: &route,
        identity: 0,
        streams,
        websocket: false,
        operation: None,
        described: None,
        shared: &shared,
    })
}

/// A stage of a `GET` route round a target, in a process whose state is at hand.
pub(super) fn fold_around(stage: &Arc<dyn Stage>, shared: &Arc<Shared>, target: Next) -> Next {
    let route = RouteInfo {
        method: "GET".into(),
        template: "/t".into(),
        host: None,
        version: None,
        params: Vec::new(),
    };
    fold_around_route(stage, shared, route, target)
}

/// Likewise, of a route on which callers open WebSockets.
pub(super) fn fold_around_websocket(stage: &Arc<dyn Stage>, shared: &Arc<Shared>, target: Next) -> Next {
    let route = Arc::new(RouteInfo { method: "GET".into(), template: "/t".into(), ..RouteInfo::unmatched() });
    let cx = BuildCx {
        route: &route,
        identity: 0,
        streams: false,
        websocket: true,
        shared,
        operation: None,
        described: None,
    };
    fold(vec![stage.layer(&cx)], target)
}

/// Likewise, of any route.
pub(super) fn fold_around_route(
    stage: &Arc<dyn Stage>,
    shared: &Arc<Shared>,
    route: RouteInfo,
    target: Next,
) -> Next {
    let route = Arc::new(route);
    let cx = BuildCx {
        route: &route,
        identity: 0,
        streams: false,
        websocket: false,
        shared,
        operation: None,
        described: None,
    };
    fold(vec![stage.layer(&cx)], target)
}

/// A request of somebody who is known.
pub(super) fn request_as(method: Method, headers: &[(&str, &str)], caller: Identity) -> Request {
    let request = request(method, headers);
    Exchange::of(&request).identified(Arc::new(caller));
    request
}

/// The stage of one line round a target, for a `GET` route that does not stream.
pub(super) fn around(stage: &str, target: Next) -> Next {
    fold(vec![build(&check(stage, "").sound(), "GET", false)], target)
}

/// A target that answers what `answer` makes of the request.
pub(super) fn target<F, Fut>(answer: F) -> Next
where
    F: Fn(Request) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = poem::Result<Response>> + Send + 'static,
{
    sealed(poem::endpoint::make(answer))
}

/// A target that gives the same answer again and again.
pub(super) fn answering(answer: impl Fn() -> Response + Send + Sync + 'static) -> Next {
    target(move |_| {
        let response = answer();
        async move { Ok(response) }
    })
}

/// A request with its exchange.
pub(super) fn request(method: Method, headers: &[(&str, &str)]) -> Request {
    let mut request = Request::builder().method(method.clone()).uri_str("/t");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.finish();
    request.set_data(exchange(method, "/t"));
    request
}

/// The exchange that [`request`] made.
pub(super) fn exchange_of(request: &Request) -> Arc<Exchange> {
    Exchange::of(request).clone()
}

/// Sends a request through.
pub(super) async fn send(next: &Next, request: Request) -> Response {
    next.call(request).await.expect("errors are finished responses")
}

/// A body fed piece by piece from the test; it has no length.
pub(super) fn fed() -> (tokio::sync::mpsc::UnboundedSender<std::io::Result<Bytes>>, Body) {
    let (feed, mut pieces) = tokio::sync::mpsc::unbounded_channel();
    let body = Body::from_bytes_stream(futures_util::stream::poll_fn(move |cx| pieces.poll_recv(cx)));
    (feed, body)
}

/// The code in an error's body.
pub(super) async fn code(response: Response) -> String {
    let body: serde_json::Value =
        serde_json::from_str(&response.into_body().into_string().await.unwrap()).unwrap();
    body["code"].as_str().unwrap().to_owned()
}

mod tests {
    use super::super::{Hook, Mark, Stop};
    use super::*;
    use http_body_util::BodyExt;
    use http_body_util::combinators::BoxBody;
    use std::sync::Mutex;

    /// Writes down when it is entered and left, and what it remembered.
    struct Noting(Mark, Arc<Mutex<Vec<String>>>);

    impl Hook for Noting {
        fn enter(&self, _: &Arc<Exchange>, _: &mut Request) -> Result<Mark, Stop> {
            self.1.lock().unwrap().push(format!("in {}", self.0));
            match self.0 {
                99 => Err(Stop::Answer(Box::new(
                    Response::builder().status(http::StatusCode::CONFLICT).finish(),
                ))),
                number => Ok(number * 10),
            }
        }

        fn leave(&self, _: &Arc<Exchange>, mark: Mark, _: &mut Response) {
            self.1.lock().unwrap().push(format!("out {} {mark}", self.0));
        }
    }

    async fn walked(numbers: &[Mark]) -> (u16, Vec<String>) {
        let notes = Arc::new(Mutex::new(Vec::new()));
        let layers = numbers
            .iter()
            .map(|number| Layer::Hook(Box::new(Noting(*number, notes.clone())) as Box<dyn Hook>));
        let next = fold(layers.collect(), answering(Response::default));
        let status = send(&next, request(Method::GET, &[])).await.status().as_u16();
        let notes = notes.lock().unwrap().clone();
        (status, notes)
    }

    #[tokio::test]
    async fn hooks_run_as_listed_and_back_with_what_they_remembered() {
        let numbers: Vec<Mark> = (1..=20).collect();
        let (status, notes) = walked(&numbers).await;
        let inwards = numbers.iter().map(|number| format!("in {number}"));
        let outwards = numbers.iter().rev().map(|number| format!("out {number} {}", number * 10));
        assert_eq!(notes, inwards.chain(outwards).collect::<Vec<_>>());
        assert_eq!(status, 200);
    }

    #[tokio::test]
    async fn a_hook_that_stops_is_seen_by_the_outer_ones_only() {
        let (status, notes) = walked(&[1, 2, 99, 4]).await;
        assert_eq!(notes, ["in 1", "in 2", "in 99", "out 2 20", "out 1 10"]);
        assert_eq!(status, 409);
    }

    #[tokio::test]
    async fn an_event_stream_passes_the_whole_chain_at_once() {
        let chain = [
            "recovery",
            "cors: { origins: [\"https://a.example\"] }",
            "request_id",
            "security_headers",
            "headers: { response: { set: { X-A: b } } }",
            "timeout: 1h",
            "body_limit: 1MiB",
            "compress: { min_size: 1B }",
        ];
        for streams in [true, false] {
            let (feed, body) = fed();
            let body = Mutex::new(Some(body));
            let events = answering(move || {
                let body = body.lock().unwrap().take().unwrap();
                Response::builder().content_type("text/event-stream").body(body)
            });
            let layers = chain.iter().map(|stage| build(&check(stage, "").sound(), "POST", streams));
            let next = fold(layers.collect(), events);
            let headers = [("accept-encoding", "gzip, br, zstd"), ("origin", "https://a.example")];
            let response = send(&next, request(Method::POST, &headers)).await;
            for name in ["x-request-id", "x-a", "x-frame-options", "access-control-allow-origin"] {
                assert!(response.headers().contains_key(name), "{name}");
            }
            let mut body: BoxBody<Bytes, std::io::Error> = response.into_body().into();
            for event in ["data: 1\n\n", "data: 2\n\n"] {
                feed.send(Ok(event.into())).unwrap();
                assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), event);
            }
            drop(feed);
            assert!(body.frame().await.is_none());
        }
    }
}
