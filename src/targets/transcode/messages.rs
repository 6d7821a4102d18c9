//! A stream of gRPC messages as server-sent events or lines of JSON.

use super::Form;
use crate::exchange::{End, Exchange};
use crate::grpc::Call;
use crate::grpc::frame::Decoder;
use crate::grpc::status::{Failure, ended};
use crate::targets::sse::{Events, Words};
use crate::upstream::UpstreamBody;
use bytes::Bytes;
use http_body::{Body, Frame};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tonic::Code;

/// What one piece holds at most, unless a message is larger.
const PIECE: usize = 16 << 10;

pin_project_lite::pin_project! {
    /// The body: whole events or lines. A call that fails ends with an event `error`, one that succeeds with `end`; lines
    /// end with the error's object, or just end.
    pub(super) struct Messages<B = UpstreamBody> {
        // Gone once the call is over; with it goes the stream.
        #[pin]
        upstream: Option<B>,
        decoder: Decoder,
        call: Arc<Call>,
        form: Arc<Form>,
        exchange: Arc<Exchange>,
        words: Words,
    }
}

impl<B> Messages<B> {
    pub(super) fn new(
        body: B,
        call: Arc<Call>,
        form: Arc<Form>,
        exchange: Arc<Exchange>,
        words: Words,
    ) -> Self {
        let decoder = Decoder::new(form.max_message);
        Messages { upstream: Some(body), decoder, call, form, exchange, words }
    }
}

impl<B> Events for Messages<B>
where
    B: Body<Data = Bytes, Error = io::Error>,
{
    /// gRPC says how a call ended.
    fn close_delimited(&self) -> bool {
        false
    }
}

impl<B> Body for Messages<B>
where
    B: Body<Data = Bytes, Error = io::Error>,
{
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut this = self.project();
        let mut out = Vec::new();
        let failure = loop {
            let Some(mut upstream) = this.upstream.as_mut().as_pin_mut() else { return Poll::Ready(None) };
            match fill(this.decoder, this.call, this.form, *this.words, &mut out) {
                Ok(()) if !out.is_empty() => return piece(out),
                Ok(()) => {}
                Err(failure) => break Some(failure),
            }
            match ready!(upstream.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.decoder.push(data),
                    Err(frame) => match frame.trailers_ref().and_then(ended) {
                        Some(Ok(())) if !this.decoder.is_amid() => break None,
                        Some(Err(failure)) => break Some(failure),
                        Some(Ok(())) | None => break Some(silent()),
                    },
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => break Some(silent()),
            }
        };
        this.upstream.set(None);
        if let Some(failure) = &failure {
            this.exchange.ended(End::UpstreamBroke);
            this.exchange.set_grpc_status(failure.code());
            if failure.is_ours() {
                tracing::warn!(
                    request_id = this.exchange.request_id(),
                    method = this.call.path().as_str(),
                    code = %failure.code(),
                    error = failure.message(),
                    "a streaming call failed"
                );
            }
        }
        let (call, exchange) = (this.call, this.exchange);
        let problem = failure.map(|failure| {
            failure.problem(call, this.form.proto_names, exchange.request_id(), exchange.lang).to_string()
        });
        match (problem, *this.words) {
            (Some(problem), Words::Events) => {
                out.extend_from_slice(format!("event: error\ndata: {problem}\n\n").as_bytes());
            }
            (Some(problem), Words::Lines) => out.extend_from_slice(format!("{problem}\n").as_bytes()),
            (None, Words::Events) => out.extend_from_slice(b"event: end\ndata: {}\n\n"),
            (None, Words::Lines) if out.is_empty() => return Poll::Ready(None),
            (None, Words::Lines) => {}
        }
        piece(out)
    }
}

fn piece(out: Vec<u8>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
    Poll::Ready(Some(Ok(Frame::data(out.into()))))
}

/// Writes the messages that have come.
fn fill(decoder: &mut Decoder, call: &Call, form: &Form, words: Words, out: &mut Vec<u8>) -> Result<(), Failure> {
    while out.len() < PIECE {
        let Some(message) = decoder.next().map_err(|error| broken(&error.to_string()))? else { break };
        let before = out.len();
        if words == Words::Events {
            out.extend_from_slice(b"data: ");
        }
        if let Err(error) = call.answer(message, &form.style, out) {
            out.truncate(before);
            return Err(broken(&error));
        }
        out.extend_from_slice(if words == Words::Events { b"\n\n" } else { b"\n" });
    }
    Ok(())
}

fn silent() -> Failure {
    broken("it did not say how the call ended")
}

fn broken(why: &str) -> Failure {
    Failure::new(Code::Internal, why)
}
