//! A request's JSON values as a stream of gRPC messages, each sent as it comes.

use crate::error::{BodyTooLarge, FieldFault, GatewayError, Kind};
use crate::grpc::split::{SplitError, Splitter};
use crate::grpc::{Address, Call};
use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::combinators::BoxBody;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

pin_project_lite::pin_project! {
    /// The body of a call whose method takes a stream. What is wrong with a value ends it with the caller's error.
    pub(super) struct Sending {
        #[pin]
        body: BoxBody<Bytes, io::Error>,
        splitter: Splitter,
        call: Arc<Call>,
        address: Address,
        // Values so far: their place in the caller's list.
        count: usize,
        over: bool,
    }
}

impl Sending {
    pub(super) fn new(
        body: BoxBody<Bytes, io::Error>,
        call: Arc<Call>,
        address: Address,
        limit: u64,
    ) -> Self {
        Sending { body, splitter: Splitter::new(limit), call, address, count: 0, over: false }
    }
}

impl Body for Sending {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut this = self.project();
        loop {
            if *this.over {
                return Poll::Ready(None);
            }
            let mut value = this.splitter.pull();
            if matches!(value, Ok(None)) {
                match ready!(this.body.as_mut().poll_frame(cx)) {
                    Some(Ok(frame)) => {
                        if let Some(data) = frame.data_ref() {
                            this.splitter.push(data);
                        }
                        continue;
                    }
                    Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                    None => {
                        *this.over = true;
                        value = this.splitter.finish();
                    }
                }
            }
            let frame = match value {
                Ok(None) => return Poll::Ready(None),
                Ok(Some(value)) => this.call.frame(this.address, &value).map_err(|faults| {
                    GatewayError::invalid(faults.into_iter().map(|fault| at(*this.count, fault)).collect())
                }),
                Err(SplitError::TooLarge(limit)) => Err((&BodyTooLarge { limit }).into()),
                Err(error) => Err(GatewayError::new(Kind::BadRequest, error.to_string())),
            };
            *this.count += 1;
            *this.over |= frame.is_err();
            return Poll::Ready(Some(frame.map(Frame::data).map_err(io::Error::other)));
        }
    }
}

/// A fault in one of many values.
fn at(count: usize, fault: FieldFault) -> FieldFault {
    FieldFault { pointer: format!("/{count}{}", fault.pointer).into(), ..fault }
}
