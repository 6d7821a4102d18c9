//! gRPC-Web (`PROTOCOL-WEB.md`): gRPC for browsers, which see no trailers and may have no bytes.
//!
//! Messages are the same; the trailers are a last frame of the body. The text form is base64, each piece of it padded
//! by itself wherever its writer flushed.

use crate::error::grpc::{Flavour, web_frame, web_text};
use crate::error::{GatewayError, Kind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use poem::Request;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

const X_GRPC_WEB: HeaderName = HeaderName::from_static("x-grpc-web");

/// Makes a gRPC request of one of gRPC-Web's.
pub(super) fn unwrap(request: &mut Request, flavour: Flavour) {
    let headers = request.headers_mut();
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let suffix = kind.find('+').map_or("", |plus| &kind[plus..]);
    let kind = HeaderValue::from_str(&format!("application/grpc{suffix}"));
    headers.insert(CONTENT_TYPE, kind.unwrap_or(HeaderValue::from_static("application/grpc")));
    for name in [ACCEPT, CONTENT_LENGTH, X_GRPC_WEB] {
        headers.remove(&name);
    }
    if flavour == Flavour::WebText {
        let body: BoxBody<Bytes, io::Error> = request.take_body().into();
        request.set_body(BoxBody::new(Decoded { body, rest: Vec::new(), ended: false }));
    }
}

/// A piece of an answer's messages.
pub(super) fn piece(data: Bytes, flavour: Flavour) -> Bytes {
    match flavour {
        Flavour::WebText => web_text(&data),
        _ => data,
    }
}

/// Trailers as the last piece of an answer.
pub(super) fn last_piece(trailers: &HeaderMap, flavour: Flavour) -> Bytes {
    piece(web_frame(trailers), flavour)
}

/// An answer that is nothing but its trailers.
pub(super) fn last_frame(
    trailers: &HeaderMap,
    flavour: Flavour,
) -> impl Body<Data = Bytes, Error = io::Error> + Send + Sync + 'static {
    Full::new(last_piece(trailers, flavour)).map_err(|never| match never {})
}

/// A body of base64, as the bytes it stands for.
struct Decoded {
    body: BoxBody<Bytes, io::Error>,
    /// What is not yet four characters.
    rest: Vec<u8>,
    ended: bool,
}

impl Body for Decoded {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        while !this.ended {
            let bytes = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        this.rest.extend_from_slice(&data);
                        let whole = this.rest.len() / 4 * 4;
                        let bytes = decode(&this.rest[..whole]);
                        this.rest.drain(..whole);
                        bytes
                    }
                    Err(_trailers) => continue,
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    this.ended = true;
                    STANDARD_NO_PAD.decode(std::mem::take(&mut this.rest)).ok()
                }
            };
            match bytes {
                Some(bytes) if bytes.is_empty() => {}
                Some(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes.into())))),
                None => {
                    this.ended = true;
                    let error = GatewayError::new(Kind::BadRequest, "the body is not base64");
                    return Poll::Ready(Some(Err(io::Error::other(error))));
                }
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.rest.is_empty() && self.body.is_end_stream()
    }
}

/// Groups of four characters, of which any may be padded; `None` where they are not base64.
fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let mut from = 0;
    for (index, group) in text.chunks(4).enumerate() {
        let end = (index + 1) * 4;
        if group.ends_with(b"=") || end == text.len() {
            STANDARD.decode_vec(&text[from..end], &mut bytes).ok()?;
            from = end;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use http_body_util::StreamBody;

    async fn decoded(pieces: Vec<&'static str>) -> Result<Vec<u8>, io::Error> {
        let frames = pieces.into_iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes()))));
        let body = BoxBody::new(StreamBody::new(stream::iter(frames)));
        Ok(Decoded { body, rest: Vec::new(), ended: false }.collect().await?.to_bytes().to_vec())
    }

    #[tokio::test]
    async fn base64_is_read_however_it_is_cut_and_padded() {
        for pieces in [
            vec!["AAECAwQF"],
            vec!["A", "AE", "CAwQ", "", "F"],
            vec!["AA==", "AQIDBAU="],
            vec!["AA==AQ=", "=AgMEBQ=="],
            vec!["AAECAwQ=BQ"],
        ] {
            assert_eq!(decoded(pieces.clone()).await.unwrap(), [0, 1, 2, 3, 4, 5], "{pieces:?}");
        }
        for bad in ["A", "A***", "AA=A", "====", "AAEC "] {
            let error = decoded(vec![bad]).await.unwrap_err();
            assert_eq!(GatewayError::from_body_error(&error).unwrap().kind, Kind::BadRequest, "{bad}");
        }
    }
}
