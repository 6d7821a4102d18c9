//! A target on the bench: one route over one upstream called `algo`, without door, table or chain.

use super::{Found, Target, TargetCx, check};
use crate::diag::{Code, Diagnostics, FileId, SourceFile};
use crate::endpoint::Next;
use crate::exchange::tests::exchange;
use crate::exchange::{Exchange, Params, RouteInfo};
use crate::identity::Identity;
use crate::manifest::decode::decode;
use crate::manifest::model::{self, Route};
use crate::manifest::{Manifest, Spanned, Table, node};
use crate::state::Shared;
use crate::state::tests::shared;
use crate::upstream::{Upstream, UpstreamSpec};
use http::Method;
use poem::{Body, Request, Response};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::watch;

/// The upstream where a test does not care.
const NOWHERE: &str = "{ targets: [{ url: \"http://127.0.0.1:9\" }] }";

pub(super) struct Bench {
    next: Next,
    target: Arc<dyn Target>,
    info: Arc<RouteInfo>,
    pub(super) upstream: Arc<Upstream>,
    pub(super) shared: Arc<Shared>,
    pub(super) close: watch::Sender<bool>,
}

fn read<T: serde::de::DeserializeOwned>(yaml: &str, out: &mut Diagnostics) -> T {
    let file = SourceFile::new("m.yaml", yaml);
    let node = node::parse(FileId(0), &file, out).unwrap_or_else(|| panic!("{yaml}: {out:?}"));
    decode(&node, out).unwrap_or_else(|| panic!("{yaml}: {out:?}"))
}

fn checked(
    upstream: &str,
    route: &str,
) -> (Manifest, Spanned<Route>, Vec<String>, Option<Found>, Diagnostics) {
    let mut out = Diagnostics::new();
    let upstreams: Table<model::Upstream> = read(&format!("{{ algo: {upstream} }}"), &mut out);
    let mut manifest = Manifest::default();
    manifest.upstreams.0.extend(upstreams.0);
    let route: Spanned<Route> = read(route, &mut out);
    let params: Vec<String> =
        route.route.split('/').filter_map(|part| part.strip_prefix([':', '*'])).map(str::to_owned).collect();
    let found = check(&route, &params, &manifest, &mut out);
    (manifest, route, params, found, out)
}

/// Codes of the faults of a route, in the order they were found.
pub(super) fn faults(route: &str) -> Vec<Code> {
    let (.., found, out) = checked(NOWHERE, route);
    assert_eq!(found.is_some(), out.is_empty(), "{out:?}");
    out.iter().map(|fault| fault.code).collect()
}

impl Bench {
    pub(super) fn new(route: &str) -> Self {
        Self::over(NOWHERE, route)
    }

    /// With the upstream at these URLs and defaults.
    pub(super) fn at(url: &str, route: &str) -> Self {
        Self::over(&format!("{{ targets: [{{ url: \"{url}\" }}] }}"), route)
    }

    pub(super) fn over(upstream: &str, route: &str) -> Self {
        let (manifest, route, params, found, mut out) = checked(upstream, route);
        let Some(Found::Target(target)) = found else { panic!("{out:?}") };
        let (shared, close) = shared(&[]);
        let (key, decl) = &manifest.upstreams.0[0];
        let spec = UpstreamSpec::check(key, decl, &manifest, &mut out).unwrap_or_else(|| panic!("{out:?}"));
        let upstream = Upstream::new(Arc::new(spec), &shared);
        let (method, template) = route.route.split_once(' ').unwrap();
        let info = Arc::new(RouteInfo {
            method: method.to_owned(),
            template: template.to_owned(),
            host: None,
            version: None,
            params,
        });
        let upstreams = HashMap::from([(Arc::from("algo"), upstream.clone())]);
        let next = target.build(&TargetCx {
            route: &info,
            shared: &shared,
            upstreams: &upstreams,
            presence: &Arc::default(),
            identity: 1,
        });
        Bench { next, target, info, upstream, shared, close }
    }

    pub(super) fn target(&self) -> &dyn Target {
        &*self.target
    }

    pub(super) async fn call(&self, method: Method, uri: &str, headers: &[(&'static str, &str)]) -> Response {
        self.send(method, uri, headers, Body::empty()).await.1
    }

    pub(super) async fn send(
        &self,
        method: Method,
        uri: &str,
        headers: &[(&'static str, &str)],
        body: impl Into<Body>,
    ) -> (Arc<Exchange>, Response) {
        self.send_as(None, method, uri, headers, body).await
    }

    /// As somebody whom a stage has found out.
    pub(super) async fn send_as(
        &self,
        caller: Option<Identity>,
        method: Method,
        uri: &str,
        headers: &[(&'static str, &str)],
        body: impl Into<Body>,
    ) -> (Arc<Exchange>, Response) {
        let path = uri.split('?').next().unwrap();
        let exchange = exchange(method.clone(), path);
        exchange.matched(self.info.clone().into(), self.ranges(path));
        caller.into_iter().for_each(|caller| exchange.identified(Arc::new(caller)));
        let mut request = Request::builder().method(method).uri_str(uri).body(body);
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        request.set_data(exchange.clone());
        (exchange, self.next.call(request).await.unwrap())
    }

    /// Where the pattern's parameters stand in a path that matches it.
    fn ranges(&self, path: &str) -> Params {
        let mut at = 0;
        let mut ranges = Params::new();
        for part in self.info.template.split('/').skip(1) {
            at += 1;
            let rest = &path[at..];
            let len = if part.starts_with('*') { rest.len() } else { rest.find('/').unwrap_or(rest.len()) };
            if part.starts_with([':', '*']) {
                ranges.push((at as u32, (at + len) as u32));
            }
            at += len;
        }
        ranges
    }
}
