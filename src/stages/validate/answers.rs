//! What goes out: answers against what the operation says of them.

use crate::error::{FieldFault, Kind};
use crate::exchange::Exchange;
use crate::openapi::{Answered, Broken, Operation, Schema};
use crate::stages::json_body::{Bounds, Unread, essence, is_coded, parse, whole};
use crate::telemetry::{Throttle, ValidationMetrics};
use bytes::Bytes;
use http::{Method, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::BoxBody;
use poem::Response;
use std::fmt::Write as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Judges answers of one route.
pub(super) struct Answers {
    pub(super) operation: Arc<Operation>,
    pub(super) refuses: bool,
    pub(super) bounds: Bounds,
    pub(super) max_faults: usize,
    pub(super) metrics: Arc<ValidationMetrics>,
    pub(super) throttle: Throttle,
}

impl Answers {
    /// Looks at an answer, or sees to it that its body is looked at on its way out.
    pub(super) async fn look_at(
        self: &Arc<Self>,
        mut response: Response,
        exchange: &Arc<Exchange>,
    ) -> Response {
        let status = response.status();
        let kind = String::from_utf8_lossy(essence(response.headers())).into_owned();
        // What failed, here or there, is not what the operation describes.
        let is_failure = status.is_server_error() || kind == "application/problem+json";
        let has_none = exchange.method == Method::HEAD
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if is_failure || has_none || is_coded(response.headers()) {
            return response;
        }
        let schema = match self.operation.answer(status, &kind) {
            Ok(Answered::Described(schema)) => schema,
            Ok(_) => return response,
            Err(broken) => {
                let why = match broken {
                    Broken::Status => "its status is not described",
                    Broken::Type => "its content type is not described",
                };
                return if self.found(exchange, status, why) { self.refusal(exchange) } else { response };
            }
        };
        let body: BoxBody<Bytes, io::Error> = response.take_body().into();
        if !self.refuses {
            let length = body.size_hint().exact();
            let watch = Watch { answers: self.clone(), exchange: exchange.clone(), status, kind, length };
            response.set_body(BoxBody::new(Watched {
                body,
                pieces: Vec::new(),
                size: 0,
                watch: Some(watch),
            }));
            return response;
        }
        match whole(body, self.bounds.max_size).await {
            Ok(bytes) => {
                if let Some(why) = self.wrong(&bytes, schema)
                    && self.found(exchange, status, &why)
                {
                    return self.refusal(exchange);
                }
                response.set_body(bytes);
                response
            }
            Err(Unread::TooLarge) => {
                self.found(exchange, status, "it is larger than `max_size`");
                self.refusal(exchange)
            }
            Err(Unread::Broke(error)) => {
                tracing::warn!(request_id = exchange.request_id(), %error, "an answer broke off");
                exchange.refuse(&Kind::UpstreamReset.into())
            }
        }
    }

    /// Why a body is not as described, for the log; nothing of what it says.
    fn wrong(&self, bytes: &[u8], schema: &Schema) -> Option<String> {
        match parse(bytes, &self.bounds) {
            Err(not) => Some(not.to_string()),
            Ok(value) => {
                let faults = schema.faults(&value, self.max_faults);
                (!faults.is_empty()).then(|| listed(&faults))
            }
        }
    }

    /// Counts and logs that an answer is not as described; whether it is refused for that.
    fn found(&self, exchange: &Exchange, status: StatusCode, why: &str) -> bool {
        self.metrics.response();
        if let Some(left_out) = self.throttle.pass() {
            tracing::warn!(
                request_id = exchange.request_id(),
                route = exchange.route().map_or("", |route| route.template.as_str()),
                status = status.as_u16(),
                why,
                left_out,
                "an answer is not as its operation describes it"
            );
        }
        self.refuses
    }

    fn refusal(&self, exchange: &Exchange) -> Response {
        exchange.refuse(&Kind::UpstreamBadResponse.into())
    }
}

/// Faults in one line.
fn listed(faults: &[FieldFault]) -> String {
    let mut text = String::new();
    for fault in faults {
        let _ = write!(text, "{}`{}` {}", if text.is_empty() { "" } else { "; " }, fault.pointer, fault.en);
    }
    text
}

/// What to do once a body is whole.
struct Watch {
    answers: Arc<Answers>,
    exchange: Arc<Exchange>,
    status: StatusCode,
    kind: String,
    length: Option<u64>,
}

/// A body that passes as it comes, and is judged when its last byte is gone.
struct Watched {
    body: BoxBody<Bytes, io::Error>,
    pieces: Vec<Bytes>,
    size: u64,
    watch: Option<Watch>,
}

impl Watched {
    fn judge(&mut self) {
        let Some(watch) = self.watch.take() else { return };
        let bytes = match self.pieces.as_slice() {
            [one] => one.clone(),
            pieces => pieces.concat().into(),
        };
        self.pieces = Vec::new();
        if let Ok(Answered::Described(schema)) = watch.answers.operation.answer(watch.status, &watch.kind)
            && let Some(why) = watch.answers.wrong(&bytes, schema)
        {
            watch.answers.found(&watch.exchange, watch.status, &why);
        }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let poll = Pin::new(&mut self.body).poll_frame(cx);
        let this = &mut *self;
        match &poll {
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(data), Some(watch)) = (frame.data_ref(), &this.watch) {
                    this.size += data.len() as u64;
                    let is_last =
                        watch.length.is_some_and(|length| this.size >= length) || this.body.is_end_stream();
                    if this.size > watch.answers.bounds.max_size.0 {
                        // Too large to be kept: it passes unjudged.
                        this.watch = None;
                        this.pieces = Vec::new();
                    } else {
                        this.pieces.push(data.clone());
                        if is_last {
                            this.judge();
                        }
                    }
                }
            }
            Poll::Ready(None) => this.judge(),
            // What broke off is told by others.
            Poll::Ready(Some(Err(_))) => this.watch = None,
            Poll::Pending => {}
        }
        poll
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
