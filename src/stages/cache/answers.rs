//! Answers made of copies, and what `Cache-Status` (RFC 9211) says of them.

use super::conditions;
use crate::copies::{Copy, age_value};
use bytes::Bytes;
use http::header::{
    AGE, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_LOCATION, DATE, ETAG, EXPIRES, LAST_MODIFIED, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use http_body_util::combinators::BoxBody;
use poem::{Body, Response};
use std::collections::VecDeque;
use std::io;
use std::time::Instant;

/// How this cache is called in `Cache-Status`.
const NAME: &str = "voicegate";
const STATUS: HeaderName = HeaderName::from_static("cache-status");

/// What a 304 says again (RFC 9110, section 15.4.5), and what of a copy stays with it.
const ON_NOT_MODIFIED: [HeaderName; 7] =
    [CACHE_CONTROL, CONTENT_LOCATION, DATE, ETAG, EXPIRES, LAST_MODIFIED, VARY];

/// A copy as the answer to a request: whole, its head only, or that the caller has it.
pub(super) fn of_copy(copy: &Copy, method: &Method, request: &HeaderMap, now: Instant) -> Response {
    let mut response = Response::builder().finish();
    if conditions::has_it(request, copy) {
        response.set_status(StatusCode::NOT_MODIFIED);
        for name in &ON_NOT_MODIFIED {
            for value in copy.headers.get_all(name) {
                response.headers_mut().append(name.clone(), value.clone());
            }
        }
    } else {
        response.set_status(copy.status);
        *response.headers_mut() = copy.headers.clone();
        if *method != Method::HEAD {
            response.set_body(copy.body.clone());
        } else if copy.status != StatusCode::NO_CONTENT {
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(copy.body.len()));
        }
    }
    response.headers_mut().insert(AGE, age_value(copy.age(now)));
    response
}

/// Says that it is a copy, fresh for so many seconds more.
pub(super) fn say_hit(response: &mut Response, left: i64) {
    say(response, format!("{NAME}; hit; ttl={left}"));
}

/// Says why and how it was sent on: `fwd=uri-miss; stored`.
pub(super) fn say_forwarded(response: &mut Response, how: &str) {
    say(response, format!("{NAME}; {how}"));
}

fn say(response: &mut Response, text: String) {
    if let Ok(value) = HeaderValue::try_from(text) {
        // Nearest to the caller last (section 2).
        response.headers_mut().append(STATUS, value);
    }
}

/// An answer that could be kept by its head, with its body read as far as that may go.
pub(super) enum Read {
    /// The whole body.
    Whole(Bytes),
    /// More than may be kept, or trailers: as it came, with what was read.
    Passed(Body),
}

/// Reads a body of at most `max` bytes.
///
/// # Errors
/// The body's own.
pub(super) async fn read(body: Body, max: usize) -> io::Result<Read> {
    let mut body: BoxBody<Bytes, io::Error> = body.into();
    if body.size_hint().lower() > max as u64 {
        return Ok(Read::Passed(body.into()));
    }
    let mut frames = VecDeque::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        length += frame.data_ref().map_or(0, Bytes::len);
        let keeps = length <= max && frame.is_data();
        frames.push_back(frame);
        if !keeps {
            return Ok(Read::Passed(super::super::caller::restored(frames, body).into()));
        }
    }
    let mut whole = Vec::with_capacity(length);
    frames.iter().filter_map(|frame| frame.data_ref()).for_each(|piece| whole.extend_from_slice(piece));
    Ok(Read::Whole(whole.into()))
}
