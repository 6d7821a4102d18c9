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
            let (id, lang, catalogue) = (exchange.request_id(), exchange.lang, exchange.catalogue());
            failure.problem(call, this.form.proto_names, id, lang, catalogue).to_string()
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
fn fill(
    decoder: &mut Decoder,
    call: &Call,
    form: &Form,
    words: Words,
    out: &mut Vec<u8>,
) -> Result<(), Failure> {
    while out.len() < PIECE {
        let Some(message) = decoder.pull().map_err(|error| broken(&error.to_string()))? else { break };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::tests::exchange;
    use crate::grpc::Wanted;
    use crate::grpc::frame::encode;
    use crate::grpc::json::Style;
    use crate::grpc::testing::pool;
    use http::{HeaderMap, StatusCode};
    use http_body_util::{BodyExt as _, StreamBody};
    use prost_reflect::{DynamicMessage, Value};

    fn message(id: &str) -> Bytes {
        let mut message = DynamicMessage::new(pool().get_message_by_name("test.All").unwrap());
        message.set_field_by_name("id", Value::String(id.to_owned()));
        encode(&message)
    }

    fn ending(code: &str) -> Frame<Bytes> {
        Frame::trailers(HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.parse().unwrap())]))
    }

    async fn written(words: Words, pieces: Vec<Frame<Bytes>>) -> (String, Arc<Exchange>) {
        let wanted = Wanted {
            method: "test.Things/Watch".into(),
            http: None,
            params: Vec::new(),
            body: None,
            response_body: None,
        };
        let call = Arc::new(Call::bind(pool(), &wanted).unwrap());
        let style = Style::new(false, false);
        let form = Arc::new(Form { style, proto_names: false, max_message: 100, status: StatusCode::OK });
        let exchange = exchange(http::Method::GET, "/a");
        let body = StreamBody::new(futures_util::stream::iter(pieces.into_iter().map(io::Result::Ok)));
        let text = Messages::new(body, call, form, exchange.clone(), words).collect().await.unwrap();
        (String::from_utf8(text.to_bytes().to_vec()).unwrap(), exchange)
    }

    #[tokio::test]
    async fn messages_are_events_or_lines_and_the_end_is_told() {
        let pieces = || {
            let both = [message("a"), message("b")].concat();
            let (one, two) = both.split_at(9);
            let data = |bytes: &[u8]| Frame::data(Bytes::copy_from_slice(bytes));
            vec![data(one), data(two), ending("0")]
        };
        let (text, _) = written(Words::Events, pieces()).await;
        assert_eq!(text, "data: {\"id\":\"a\"}\n\ndata: {\"id\":\"b\"}\n\nevent: end\ndata: {}\n\n");
        let (text, _) = written(Words::Lines, pieces()).await;
        assert_eq!(text, "{\"id\":\"a\"}\n{\"id\":\"b\"}\n");
        assert_eq!(written(Words::Lines, vec![ending("0")]).await.0, "");
    }

    #[tokio::test]
    async fn whatever_breaks_is_told_last() {
        let first = || Frame::data(message("a"));
        let half = Frame::data(message("b").slice(..6));
        let large = Frame::data(message(&"x".repeat(200)));
        let wrong = Frame::data(Bytes::from_static(&[0, 0, 0, 0, 1, 0xff]));
        let cases = [
            (vec![first(), ending("7")], "permission_denied"),
            (vec![first()], "internal"),
            (vec![first(), half, ending("0")], "internal"),
            (vec![first(), large, ending("0")], "internal"),
            (vec![first(), wrong, ending("0")], "internal"),
        ];
        for (pieces, code) in cases {
            let (text, exchange) = written(Words::Lines, pieces).await;
            let last: serde_json::Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
            assert_eq!((&last["code"], text.lines().count()), (&code.into(), 2), "{text}");
            assert_eq!(exchange.end(), End::UpstreamBroke);
        }
        let (text, _) = written(Words::Events, vec![ending("5")]).await;
        assert!(text.starts_with("event: error\ndata: {\"error\":") && text.ends_with("}\n\n"), "{text}");
    }
}
