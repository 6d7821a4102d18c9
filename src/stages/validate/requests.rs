//! What comes in: parameters and body against what is wanted.

use super::answers::Answers;
use crate::endpoint::Next;
use crate::error::{FieldFault, GatewayError, Kind};
use crate::exchange::Exchange;
use crate::openapi::{Answered, Operation, Schema, Source};
use crate::stages::json_body::{Bounds, essence, is_json, read_json};
use crate::telemetry::ValidationMetrics;
use http::Method;
use percent_encoding::percent_decode_str;
use poem::{Endpoint, Request, Response};
use std::borrow::Cow;
use std::sync::Arc;

/// What a request must be like.
pub(super) enum Wanted {
    /// Its body is JSON that fits.
    Schema(Arc<Schema>),
    /// All of it is as an operation says. With the index of each parameter among those of the route's path.
    Operation(Arc<Operation>, Box<[Option<usize>]>),
    /// Anything.
    Nothing,
}

/// The stage as it runs.
pub(super) struct Checker {
    pub(super) wanted: Wanted,
    pub(super) answers: Option<Arc<Answers>>,
    pub(super) bounds: Bounds,
    pub(super) max_faults: usize,
    pub(super) metrics: Arc<ValidationMetrics>,
    pub(super) next: Next,
}

impl Endpoint for Checker {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        if let Err(refusal) = self.check(&mut request).await {
            self.metrics.request();
            return Err(refusal.into());
        }
        let Some(answers) = &self.answers else { return self.next.call(request).await };
        let exchange = Exchange::of(&request).clone();
        let response = self.next.call(request).await?;
        Ok(answers.look_at(response, &exchange).await)
    }
}

impl Checker {
    async fn check(&self, request: &mut Request) -> Result<(), GatewayError> {
        let faults = match &self.wanted {
            Wanted::Nothing => Vec::new(),
            // A route for any method takes those without a body too.
            Wanted::Schema(_)
                if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) =>
            {
                Vec::new()
            }
            Wanted::Schema(schema) => {
                if !is_json(request.headers()) {
                    return Err(wrong_type("application/json"));
                }
                self.body_faults(request, Some(schema), true, self.max_faults).await?
            }
            Wanted::Operation(operation, indices) => {
                let mut faults = self.parameter_faults(request, operation, indices);
                let left = self.max_faults.saturating_sub(faults.len());
                if left > 0 {
                    faults.extend(self.described_body_faults(request, operation, left).await?);
                }
                faults
            }
        };
        if faults.is_empty() { Ok(()) } else { Err(GatewayError::invalid(faults)) }
    }

    fn parameter_faults(
        &self,
        request: &Request,
        operation: &Operation,
        indices: &[Option<usize>],
    ) -> Vec<FieldFault> {
        let exchange = Exchange::of(request);
        let query = request.uri().query().unwrap_or_default();
        let mut faults = Vec::new();
        for (parameter, index) in operation.parameters.iter().zip(indices) {
            let texts: Vec<Cow<'_, str>> = match &parameter.source {
                Source::Path => {
                    let text = index.and_then(|index| exchange.param_nth(index));
                    text.map(|text| percent_decode_str(text).decode_utf8_lossy()).into_iter().collect()
                }
                Source::Query => url::form_urlencoded::parse(query.as_bytes())
                    .filter(|(name, _)| *name == parameter.name)
                    .map(|(_, value)| value)
                    .collect(),
                Source::Header(name) => {
                    let values = request.headers().get_all(name).iter();
                    values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect()
                }
            };
            let left = self.max_faults.saturating_sub(faults.len());
            if left == 0 {
                break;
            }
            faults.extend(parameter.faults(&texts, left));
        }
        faults
    }

    async fn described_body_faults(
        &self,
        request: &mut Request,
        operation: &Operation,
        limit: usize,
    ) -> Result<Vec<FieldFault>, GatewayError> {
        let Some(content) = &operation.body else { return Ok(Vec::new()) };
        let body = request.take_body();
        let is_empty = body.is_empty();
        request.set_body(body);
        if is_empty {
            return Ok(if content.required { vec![missing()] } else { Vec::new() });
        }
        let essence = String::from_utf8_lossy(essence(request.headers())).into_owned();
        match content.of(&essence) {
            Answered::Described(schema) => {
                self.body_faults(request, Some(schema), content.required, limit).await
            }
            Answered::Unlooked => Ok(Vec::new()),
            Answered::Unknown => Err(wrong_type(&content.kinds())),
        }
    }

    async fn body_faults(
        &self,
        request: &mut Request,
        schema: Option<&Schema>,
        required: bool,
        limit: usize,
    ) -> Result<Vec<FieldFault>, GatewayError> {
        Ok(match (read_json(request, &self.bounds).await?, schema) {
            (Some(value), Some(schema)) => schema.faults(&value, limit),
            (None, _) if required => vec![missing()],
            _ => Vec::new(),
        })
    }
}

fn missing() -> FieldFault {
    FieldFault::new("", "required", "the body is missing", "请求体不能为空")
}

fn wrong_type(kinds: &str) -> GatewayError {
    GatewayError::new(Kind::UnsupportedMediaType, format!("Send the body as {kinds}"))
}
