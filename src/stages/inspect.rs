//! `inspect`: looks for attacks in what callers send, and makes HTML in named fields harmless.
//!
//! Looked at are path parameters, names and values of the query, names and values of forms, and texts and keys of JSON
//! bodies: all of them, a key that stands twice too, since nobody knows which of the two a service takes; long texts piece by piece, which bounds the time. Headers and
//! cookies are not, nor bodies of other types: those (uploads, sound) pass untouched and unread, bounded by `body_limit`
//! alone. Patterns are those of libinjection.
//!
//! It reports by default: people write about SQL and HTML in chats, and what looks like an attack mostly is none.
//! Services must be safe by themselves (the gateway's own SQL is parameterised); this shows who is trying. A finding is
//! logged, once a second and kind, with its place and never its text, and counted. `action: refuse` answers 403
//! `suspicious_input`, and also refuses bodies that cannot be read: malformed JSON (400) and compressed ones (415).
//!
//! Sizes and depths are limits, not findings: beyond `max_size` is a 413, beyond `max_depth` a 400, whatever the action.
//! `sanitize` names fields of JSON bodies (dotted; lists are gone through) whose HTML keeps only harmless elements; the
//! body goes on rewritten where that changed anything. Off by leaving it out.

mod sanitize;
mod scan;
#[cfg(test)]
mod tests;

use super::json_body::{Bounds, NotRead, essence, is_coded, is_json, parse, read};
use super::validate::bounds;
use super::{
    Body as Form, BuildCx, Fit, Layer, Misfit, Next, Probe, Stage, StageCx, StageDecl, Verdict, sealed,
};
use crate::diag::{Code, Diagnostic};
use crate::error::{GatewayError, Kind};
use crate::exchange::Exchange;
use crate::manifest::model::Protocol;
use crate::manifest::{List, Spanned};
use crate::openapi::OperationDoc;
use crate::telemetry::{InspectMetrics, Throttle};
use crate::units::Size;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderName, TRANSFER_ENCODING};
use percent_encoding::percent_decode_str;
use poem::{Endpoint, Request, Response};
use sanitize::Fields;
use scan::{Finding, Patterns, Scan, What};
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;

/// Bodies beyond this are looked through on the blocking pool: it takes milliseconds.
const INLINE: usize = 4 << 10;
/// Headers that vouch for a body as it came.
const DIGESTS: [&str; 4] = ["content-digest", "repr-digest", "digest", "content-md5"];

/// Looks for attacks in what callers send.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Inspect {
    /// Attacks looked for (default both).
    #[serde(default)]
    pub look_for: List<Attack>,
    /// What happens when one is found (default `report`, because chat text looks like SQL).
    pub action: Option<Action>,
    /// Fields whose HTML is made harmless, by dotted paths (default none).
    #[serde(default)]
    pub sanitize: List<String>,
    /// JSON and form bodies larger than this are refused with 413 (default `1MiB`).
    pub max_size: Option<Size>,
    /// JSON nested deeper than this is refused with 400 (default 32; 120 at most).
    pub max_depth: Option<Spanned<u32>>,
}

/// A kind of attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Attack {
    /// Scripts in text.
    Xss,
    /// SQL in text.
    Sql,
}

/// What happens when an attack is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is logged and counted; the request goes on.
    Report,
    /// The request is refused with 403.
    Refuse,
}

impl StageDecl for Inspect {
    const NAME: &'static str = "inspect";
    const ABOUT: &'static str = "Looks for attacks in what callers send";
    const BODY: Form = Form::Optional;

    fn check(self, cx: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        let of_bodies = !self.sanitize.0.is_empty() || self.max_size.is_some() || self.max_depth.is_some();
        for field in &self.sanitize.0 {
            if field.value.split('.').any(str::is_empty) {
                cx.out.push(
                    Diagnostic::error(Code::BAD_VALUE, field.span, "this is no path of a field")
                        .help("write keys with dots between them, such as `profile.bio`"),
                );
            }
        }
        let wants =
            |attack| self.look_for.0.is_empty() || self.look_for.0.iter().any(|it| it.value == attack);
        let bounds = bounds(self.max_size, self.max_depth.as_ref(), cx);
        let fields = Fields::new(self.sanitize.0.iter().map(|field| field.value.as_str()));
        let patterns = Patterns { xss: wants(Attack::Xss), sql: wants(Attack::Sql) };
        let action = self.action.unwrap_or(Action::Report);
        Some(Arc::new(Checked { look: Arc::new(Look { patterns, fields, bounds }), action, of_bodies }))
    }
}

struct Checked {
    look: Arc<Look>,
    action: Action,
    /// Whether it says anything of bodies.
    of_bodies: bool,
}

impl Stage for Checked {
    fn name(&self) -> &'static str {
        Inspect::NAME
    }

    fn layer(&self, cx: &BuildCx<'_>) -> Layer {
        let action = match self.action {
            Action::Report => "report",
            Action::Refuse => "refuse",
        };
        let route = cx.route.clone();
        let telemetry = &cx.shared.telemetry;
        let notes = What::ALL.map(|what| Note {
            metrics: telemetry.inspect(cx.route, what.word(), action),
            throttle: Throttle::default(),
        });
        let (look, refuses) = (self.look.clone(), self.action == Action::Refuse);
        Layer::Around(Box::new(move |next| sealed(Inspector { look, refuses, action, notes, route, next })))
    }

    fn misfit(&self, fit: &Fit<'_>) -> Option<Misfit> {
        let has_messages = matches!(fit.protocol, Protocol::Websocket | Protocol::Grpc);
        (has_messages && self.of_bodies).then_some(Misfit {
            code: Code::MISPLACED,
            message: "`inspect` reads JSON and forms, and this route has neither",
            help: "leave `sanitize`, `max_size` and `max_depth` out for this route: `with: { inspect: {} }`",
        })
    }

    fn document(&self, op: &mut OperationDoc) {
        if self.action == Action::Refuse {
            op.refuses(&[Kind::Suspicious], "");
        }
    }

    fn explain(&self, _: &Probe<'_>) -> Verdict {
        let Patterns { xss, sql } = self.look.patterns;
        let kinds = [(xss, "xss"), (sql, "sql")].into_iter().filter(|(on, _)| *on).map(|(_, word)| word);
        let does = if self.action == Action::Refuse { "refuses" } else { "reports" };
        Verdict::Passes(format!("{does} {}", kinds.collect::<Vec<_>>().join(", ")))
    }
}

/// What is looked for, and what is done to bodies.
struct Look {
    patterns: Patterns,
    fields: Fields,
    bounds: Bounds,
}

/// What looking through a body brought.
struct Looked {
    scan: Scan,
    /// The body as it goes on, where it changed.
    rewritten: Option<Vec<u8>>,
}

impl Look {
    /// Looks through a JSON body.
    fn json(&self, mut scan: Scan, bytes: &[u8]) -> Result<Looked, NotRead> {
        // Depth and number are bounded before anything is gone through.
        let value = parse(bytes, &self.bounds)?;
        let keys = scan.json(bytes, &self.fields);
        let rewritten = self.fields.clean(value, keys);
        Ok(Looked { scan, rewritten })
    }
}

/// Counts and logs findings of one kind.
struct Note {
    metrics: InspectMetrics,
    throttle: Throttle,
}

/// The stage as it runs.
struct Inspector {
    look: Arc<Look>,
    refuses: bool,
    action: &'static str,
    notes: [Note; 3],
    route: Arc<crate::exchange::RouteInfo>,
    next: Next,
}

impl Endpoint for Inspector {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let exchange = Exchange::of(&request).clone();
        let mut scan = Scan::new(self.look.patterns);
        for (index, name) in self.route.params.iter().enumerate() {
            let text = exchange.param_nth(index).unwrap_or_default();
            scan.text("path", name, &percent_decode_str(text).decode_utf8_lossy());
        }
        scan.pairs("query", request.uri().query().unwrap_or_default().as_bytes());
        self.judge(&exchange, &scan)?;
        let looked = self.body(scan, &mut request).await;
        match looked {
            Ok(scan) => self.judge(&exchange, &scan)?,
            Err(refusal) => return Err(refusal.into()),
        }
        self.next.call(request).await
    }
}

impl Inspector {
    /// Looks through the body, if it is of a kind that is read, and rewrites it where it must be.
    async fn body(&self, scan: Scan, request: &mut Request) -> Result<Scan, GatewayError> {
        let headers = request.headers();
        let (is_json, is_form) =
            (is_json(headers), essence(headers).eq_ignore_ascii_case(b"application/x-www-form-urlencoded"));
        if !is_json && !is_form {
            return Ok(scan);
        }
        let mut scan = scan.again();
        if is_coded(headers) && !self.refuses {
            scan.unreadable("body");
            return Ok(scan);
        }
        let bytes = read(request, self.look.bounds.max_size).await?;
        if bytes.is_empty() {
            return Ok(scan);
        }
        if is_form {
            scan.pairs("form", &bytes);
            return Ok(scan);
        }
        match self.json(scan.clone(), bytes).await {
            Ok(looked) => {
                if let Some(body) = looked.rewritten {
                    let headers = request.headers_mut();
                    headers.insert(CONTENT_LENGTH, body.len().into());
                    headers.remove(TRANSFER_ENCODING);
                    for name in DIGESTS.map(HeaderName::from_static) {
                        headers.remove(name);
                    }
                    request.set_body(body);
                }
                Ok(looked.scan)
            }
            Err(NotRead::Malformed { .. }) if !self.refuses => {
                scan.unreadable("body");
                Ok(scan)
            }
            Err(not) => Err(GatewayError::invalid(vec![not.fault()])),
        }
    }

    async fn json(&self, scan: Scan, bytes: Bytes) -> Result<Looked, NotRead> {
        if bytes.len() <= INLINE {
            return self.look.json(scan, &bytes);
        }
        let look = self.look.clone();
        let looking = tokio::task::spawn_blocking(move || look.json(scan, &bytes)).await;
        looking.unwrap_or(Err(NotRead::Malformed { line: 0, column: 0 }))
    }

    /// Counts and logs what was found; an error if that ends the request.
    fn judge(&self, exchange: &Exchange, scan: &Scan) -> Result<(), GatewayError> {
        let mut refused = false;
        for (what, Finding { place, fingerprint }) in scan.findings() {
            let note = &self.notes[what as usize];
            note.metrics.found();
            refused |= self.refuses;
            if let Some(left_out) = note.throttle.pass() {
                tracing::warn!(
                    request_id = exchange.request_id(),
                    route = self.route.template.as_str(),
                    kind = what.word(),
                    place = place.as_str(),
                    fingerprint = fingerprint.as_str(),
                    action = self.action,
                    left_out,
                    "a request looks like an attack"
                );
            }
        }
        if refused { Err(Kind::Suspicious.into()) } else { Ok(()) }
    }
}
