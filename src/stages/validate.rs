//! `validate`: requests are as their route describes them.
//!
//! Against the operation that the route's `docs.openapi` names (path, query, headers and JSON body), or, with a
//! schema of its own (`validate: schemas/chat.yaml#/Chat`), the JSON body alone. What does not fit is a 400
//! `validation_failed` with every fault in `errors`, up to `max_faults`: the place, the rule, never the value. A body of a
//! type that is not described is a 415. Values in path, query and headers are texts: they are read as the schema's types.
//! What is described as other than JSON (uploads, forms) passes unread.
//!
//! Answers are looked at in development by default (`ENVIRONMENT`), and only reported: their bytes pass as they come, and
//! what was wrong is logged and counted when the last of them is gone. With `response: refuse` a JSON answer is held back
//! until it is whole, and a wrong one becomes a 502; the checks refuse that on routes that stream. Event streams and
//! other types are never looked into. Off by leaving it out.

mod answers;
mod requests;
#[cfg(test)]
mod tests;

use super::json_body::{Bounds, DEEPEST};
use super::{
    Body as Form, BuildCx, Facts, Fit, Layer, Misfit, Probe, Stage, StageCx, StageDecl, Verdict, sealed,
};
use crate::diag::{Code, Diagnostic};
use crate::error::Kind;
use crate::manifest::Spanned;
use crate::manifest::model::Protocol;
use crate::openapi::OperationDoc;
use crate::openapi::{Operation, Schema};
use crate::settings::Environment;
use crate::telemetry::Throttle;
use crate::units::Size;
use answers::Answers;
use requests::{Checker, Wanted};
use schemars::JsonSchema;
use serde::Deserialize;
use std::hash::Hash as _;
use std::sync::Arc;

/// Faults that an answer lists, where the manifest says nothing.
const MAX_FAULTS: usize = 20;

/// Refuses requests that are not as their route describes them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Validate {
    /// A JSON Schema for the body: `file.yaml#/json/pointer`, the file relative to this one (default: the operation that
    /// the route's `docs.openapi` names, with its parameters).
    pub schema: Option<Spanned<String>>,
    /// What becomes of answers that are not as the operation describes them (default: `report` in development, else
    /// `off`).
    pub response: Option<Spanned<OnResponse>>,
    /// Faults that an answer lists at most (default 20).
    pub max_faults: Option<Spanned<u32>>,
    /// JSON bodies larger than this are refused with 413 (default `1MiB`).
    pub max_size: Option<Size>,
    /// JSON bodies nested deeper than this are refused (default 32; 120 at most).
    pub max_depth: Option<Spanned<u32>>,
}

/// What becomes of answers that are not as described.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnResponse {
    /// They are not looked at.
    Off,
    /// They pass; it is logged and counted.
    Report,
    /// They are held back until they are whole, and become a 502.
    Refuse,
}

impl StageDecl for Validate {
    const NAME: &'static str = "validate";
    const ABOUT: &'static str = "Refuses requests that are not as their route describes them";
    const BODY: Form = Form::OptionalBare("schema");

    fn check(self, cx: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        let bounds = bounds(self.max_size, self.max_depth.as_ref(), cx);
        let max_faults = match &self.max_faults {
            Some(most) if most.value == 0 => {
                cx.out.push(
                    Diagnostic::error(Code::BAD_VALUE, most.span, "a refusal lists at least one fault")
                        .help("write 1 or more"),
                );
                1
            }
            Some(most) => most.value as usize,
            None => MAX_FAULTS,
        };
        let response = self.response.as_ref().map(|response| response.value);
        let schema = match &self.schema {
            Some(reference) => {
                if let Some(response) = self.response.as_ref().filter(|it| it.value != OnResponse::Off) {
                    let message = "`response` does not apply beside a schema of the request's body";
                    cx.out.push(
                        Diagnostic::error(Code::MISPLACED, response.span, message)
                            .help("answers are described by an operation: use `docs.openapi` of the route, or remove it"),
                    );
                }
                let schema = Schema::check(reference, cx.manifest, cx.out)?;
                schema.digest().hash(&mut cx.references);
                Some(schema)
            }
            None => None,
        };
        Some(Arc::new(Checked { schema, response, max_faults, bounds }))
    }
}

/// What a body may cost, as the manifest says it.
pub(super) fn bounds(
    max_size: Option<Size>,
    max_depth: Option<&Spanned<u32>>,
    cx: &mut StageCx<'_>,
) -> Bounds {
    let usual = Bounds::default();
    if let Some(depth) = max_depth.filter(|depth| depth.value == 0 || depth.value > DEEPEST) {
        cx.out.push(
            Diagnostic::error(Code::BAD_VALUE, depth.span, "this is no depth that JSON can be read to")
                .help(format!("write a number from 1 to {DEEPEST}")),
        );
    }
    Bounds {
        max_size: max_size.unwrap_or(usual.max_size),
        max_depth: max_depth.map_or(usual.max_depth, |depth| depth.value),
    }
}

struct Checked {
    schema: Option<Arc<Schema>>,
    response: Option<OnResponse>,
    max_faults: usize,
    bounds: Bounds,
}

impl Checked {
    /// What becomes of answers on a route.
    fn on_response(&self, environment: Environment) -> OnResponse {
        match (self.response, environment) {
            _ if self.schema.is_some() => OnResponse::Off,
            (Some(said), _) => said,
            (None, Environment::Development) => OnResponse::Report,
            (None, Environment::Production) => OnResponse::Off,
        }
    }
}

impl Stage for Checked {
    fn name(&self) -> &'static str {
        Validate::NAME
    }

    fn layer(&self, cx: &BuildCx<'_>) -> Layer {
        let metrics = Arc::new(cx.shared.telemetry.validation(cx.route));
        let wanted = match (&self.schema, cx.described) {
            (Some(schema), _) => Wanted::Schema(schema.clone()),
            (None, Some(operation)) => Wanted::of(operation, cx.route),
            // Such a route does not pass the checks.
            (None, None) => Wanted::Nothing,
        };
        let answers = match (self.on_response(cx.shared.settings.environment), cx.described) {
            (OnResponse::Off, _) | (_, None) => None,
            (how, Some(operation)) => Some(Arc::new(Answers {
                operation: operation.clone(),
                refuses: how == OnResponse::Refuse,
                bounds: self.bounds,
                max_faults: self.max_faults,
                metrics: metrics.clone(),
                throttle: Throttle::default(),
            })),
        };
        let (bounds, max_faults) = (self.bounds, self.max_faults);
        Layer::Around(Box::new(move |next| {
            sealed(Checker { wanted, answers, bounds, max_faults, metrics, next })
        }))
    }

    fn facts(&self) -> Facts {
        let holds = self.response == Some(OnResponse::Refuse);
        Facts {
            buffers_response: holds.then_some("`response: refuse` waits for the whole answer"),
            ..Facts::default()
        }
    }

    fn misfit(&self, fit: &Fit<'_>) -> Option<Misfit> {
        let has_body = !matches!(fit.route.method.as_str(), "GET" | "HEAD" | "OPTIONS");
        let describes_body =
            fit.described.and_then(|operation| operation.body.as_ref()).is_some_and(|it| it.describes_json());
        let looks_into = self.schema.is_some() || describes_body;
        Some(match fit.protocol {
            _ if self.schema.is_none() && fit.described.is_none() => Misfit {
                code: Code::NO_DESCRIPTION,
                message: "`validate` does not know what this route takes",
                help: "name its operation (`docs: { openapi: file.yaml#/paths/… }`), or a schema: \
                       `with: { validate: file.yaml#/Name }`",
            },
            Protocol::Grpc => Misfit {
                code: Code::MISPLACED,
                message: "`validate` reads JSON, and this route speaks gRPC",
                help: "give it a chain without `validate`: its messages have types of their own",
            },
            Protocol::Websocket if looks_into => Misfit {
                code: Code::MISPLACED,
                message: "`validate` reads a body, and a WebSocket has none",
                help: "leave the schema out, or describe parameters alone",
            },
            _ if self.schema.is_some() && !has_body => Misfit {
                code: Code::MISPLACED,
                message: "a schema of the request's body does not apply to this method",
                help: "remove it, or describe the route's parameters by `docs.openapi`",
            },
            _ if fit.streams && self.response == Some(OnResponse::Report) => Misfit {
                code: Code::MISPLACED,
                message: "`validate` does not look into event streams",
                help: "write `response: off` for this route, or leave it out",
            },
            _ => return None,
        })
    }

    fn document(&self, op: &mut OperationDoc) {
        op.refuses(&[Kind::Invalid], "parameters and body are held against what is described here");
        if op.has_body() {
            op.refuses(&[Kind::UnsupportedMediaType, Kind::PayloadTooLarge], "");
        }
    }

    fn explain(&self, _: &Probe<'_>) -> Verdict {
        let by = if self.schema.is_some() { "the body, by its schema" } else { "by the described operation" };
        Verdict::Passes(by.to_owned())
    }
}

impl Wanted {
    fn of(operation: &Arc<Operation>, route: &crate::exchange::RouteInfo) -> Self {
        let indices = operation.parameters.iter();
        let indices = indices.map(|it| route.params.iter().position(|name| *name == it.name)).collect();
        Wanted::Operation(operation.clone(), indices)
    }
}
