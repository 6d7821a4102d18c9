//! `access_log`: one structured line a request, when it is over.
//!
//! The line tells request id, route, status, how it ended, bytes, durations and upstream; of the query it tells
//! nothing, because tokens may stand there. It comes after the last byte, so that a stream's line has its whole
//! length. `sample` thins out the lines of a busy route; faults of the server are always told. Leave the stage out of a
//! chain to switch it off, or set `LOG_LEVEL=info,access=off` for all routes.

use super::{Body, BuildCx, Hook, Layer, Stage, StageCx, StageDecl, Stop};
use crate::exchange::{Exchange, Observer};
use crate::telemetry::AccessLog as Log;
use crate::units::Percent;
use poem::Request;
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;

/// The body of `access_log`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AccessLog {
    /// Share of requests that get a line (default `100%`); those that end with 5xx always do.
    #[serde(default = "all")]
    sample: Percent,
}

fn all() -> Percent {
    Percent(1.0)
}

impl StageDecl for AccessLog {
    const NAME: &'static str = "access_log";
    const ABOUT: &'static str = "Logs one structured line a request, when it is over";
    const BODY: Body = Body::Optional;

    fn check(self, _: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        Some(Arc::new(self))
    }
}

impl Stage for AccessLog {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn layer(&self, cx: &BuildCx<'_>) -> Layer {
        let log = cx.shared.telemetry.access_log().clone();
        let share = self.sample.0;
        let observer: Arc<dyn Observer> = if share < 1.0 { Arc::new(Sampled { log, share }) } else { log };
        Layer::Hook(Box::new(Observed(observer)))
    }

    fn is_common(&self) -> bool {
        true
    }
}

/// Writes lines of a share of exchanges.
struct Sampled {
    log: Arc<Log>,
    share: f64,
}

impl Observer for Sampled {
    fn finished(&self, exchange: &Exchange) {
        if exchange.is_fault() || rand::random::<f64>() < self.share {
            self.log.finished(exchange);
        }
    }
}

/// Has the exchange tell an observer of its end.
struct Observed(Arc<dyn Observer>);

impl Hook for Observed {
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
    use crate::telemetry::testing::logged;
    use clap::Parser;
    use http::Method;
    use std::hash::DefaultHasher;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        settings: Settings,
    }

    fn stage(body: &str) -> Result<Arc<dyn Stage>, String> {
        let mut out = Diagnostics::new();
        let span = Span::new(FileId(0), 0, 0);
        let body = match body {
            "" => Node::null(span),
            text => node::parse(FileId(0), &SourceFile::new("m.yaml", text), &mut out).unwrap(),
        };
        let name = Key { text: "access_log".into(), span };
        let manifest = Manifest::default();
        let mut cx = StageCx { manifest: &manifest, span, out: &mut out, references: DefaultHasher::new() };
        let found = super::super::find("access_log").unwrap().check(&StageUse { name, body }, &mut cx);
        found.ok_or_else(|| out.iter().map(|d| d.message.clone()).collect())
    }

    /// What is logged of exchanges that end with these statuses.
    fn lines(body: &str, statuses: &[u16]) -> String {
        let stage = stage(body).unwrap();
        logged(|telemetry: Telemetry| {
            let settings = Cli::try_parse_from(["x"]).unwrap().settings;
            let backends = crate::state::tests::backends(&settings);
            let closing = tokio::sync::watch::channel(false).1;
            let shared = Shared::new(settings, Arc::new(telemetry), closing, backends);
            let route = Arc::new(RouteInfo {
                method: "GET".into(),
                template: "/a".into(),
                host: None,
                version: None,
                params: Vec::new(),
            });
            let Layer::Hook(hook) = stage.layer(&BuildCx {
                route: &route,
                identity: 0,
                streams: false,
                websocket: false,
                operation: None,
                described: None,
                shared: &shared,
            }) else {
                panic!("it never waits");
            };
            for status in statuses {
                let exchange = exchange(Method::GET, "/a");
                let mut request = Request::builder().uri_str("/a?token=hush").finish();
                assert!(hook.request(&exchange, &mut request).is_ok());
                exchange.set_status(*status);
            }
        })
    }

    #[test]
    fn every_request_has_a_line_without_its_query() {
        let text = lines("", &[200, 404, 500]);
        assert_eq!(text.lines().count(), 3);
        assert!(text.contains("\"path\":\"/a\"") && !text.contains("hush"), "{text}");
    }

    #[test]
    fn a_sample_of_none_still_tells_faults() {
        let text = lines("sample: 0%", &[200, 404, 500]);
        assert_eq!(text.lines().count(), 1);
        assert!(text.contains("\"status\":500"));
    }

    #[test]
    fn a_sample_is_a_share() {
        let count = lines("sample: 50%", &[200; 2000]).lines().count();
        assert!((800..1200).contains(&count), "{count}");
    }

    #[test]
    fn unknown_keys_and_bad_shares_are_faults() {
        assert!(stage("smaple: 1%").is_err());
        assert!(stage("sample: 200%").is_err());
        assert!(stage("sample: 10%").is_ok());
    }
}
