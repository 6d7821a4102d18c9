//! `metrics`: counts requests by method, route template and status, and how long they took.
//!
//! Counted when the exchange is over, so that a stream's duration is its whole length. The label `path` is the
//! route's template, never the path that came. The counters are prepared when the route is built; routes with the same
//! template share them, also with the table that a reload replaces. Requests that match no route pass no chain: the door
//! counts them. Leave the stage out of a chain to switch it off.

use super::{Body, BuildCx, Hook, Layer, Stage, StageCx, StageDecl, Stop};
use crate::exchange::Exchange;
use crate::telemetry::RouteMetrics;
use poem::Request;
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;

/// The body of `metrics`: it has no keys.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Metrics {}

impl StageDecl for Metrics {
    const NAME: &'static str = "metrics";
    const ABOUT: &'static str = "Counts requests and durations by route, for Prometheus";
    const BODY: Body = Body::Optional;

    fn check(self, _: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        Some(Arc::new(self))
    }
}

impl Stage for Metrics {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn layer(&self, cx: &BuildCx<'_>) -> Layer {
        Layer::Hook(Box::new(Counting(cx.shared.telemetry.route(cx.route))))
    }
}

struct Counting(Arc<RouteMetrics>);

impl Hook for Counting {
    fn request(&self, exchange: &Arc<Exchange>, _: &mut Request) -> Result<(), Stop> {
        exchange.observe(self.0.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::{Diagnostics, FileId, SourceFile, Span};
    use crate::exchange::RouteInfo;
    use crate::exchange::tests::exchange;
    use crate::manifest::model::StageUse;
    use crate::manifest::node::{self, Key};
    use crate::manifest::{Manifest, Node};
    use crate::settings::Settings;
    use crate::state::Shared;
    use crate::telemetry::Telemetry;
    use clap::Parser;
    use http::Method;
    use poem::Response;
    use poem::endpoint::make_sync;
    use std::hash::DefaultHasher;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        settings: Settings,
    }

    fn stage(body: &str) -> Option<Arc<dyn Stage>> {
        let mut out = Diagnostics::new();
        let span = Span::new(FileId(0), 0, 0);
        let body = match body {
            "" => Node::null(span),
            text => node::parse(FileId(0), &SourceFile::new("m.yaml", text), &mut out)?,
        };
        let name = Key { text: "metrics".into(), span };
        let manifest = Manifest::default();
        let mut cx = StageCx { manifest: &manifest, span, out: &mut out, references: DefaultHasher::new() };
        super::super::find("metrics")?.check(&StageUse { name, body }, &mut cx)
    }

    #[tokio::test]
    async fn an_exchange_is_counted_by_template_once_it_is_over() {
        let settings = Cli::try_parse_from(["x"]).unwrap().settings;
        let backends = crate::state::tests::backends(&settings);
        let closing = tokio::sync::watch::channel(false).1;
        let shared = Shared::new(settings, Arc::new(Telemetry::default()), closing, backends);
        let route = Arc::new(RouteInfo {
            method: "GET".into(),
            template: "/a/:id".into(),
            host: None,
            version: None,
            params: vec!["id".into()],
        });
        let layer = stage("").unwrap().layer(&BuildCx {
            route: &route,
            identity: 0,
            streams: false,
            websocket: false,
            operation: None,
            described: None,
            shared: &shared,
        });
        let target = super::super::sealed(make_sync(|_| Response::from("body")));
        let chain = super::super::fold(vec![layer], target);

        let exchange = exchange(Method::GET, "/a/7");
        let mut request = Request::builder().finish();
        request.set_data(exchange.clone());
        let response = chain.call(request).await.unwrap();
        exchange.set_status(response.status().as_u16());
        let counted = r#"http_requests_total{method="GET",path="/a/:id",status="200"} 1"#;
        let shown = || shared.telemetry.render().lines().any(|line| line == counted);
        assert!(!shown(), "its body may still be on the way");
        drop(exchange);
        assert!(shown(), "{}", shared.telemetry.render());
    }

    #[test]
    fn it_has_no_keys() {
        assert!(stage("{}").is_some());
        assert!(stage("buckets: [1]").is_none());
    }
}
