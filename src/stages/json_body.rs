//! A body read whole, under a cap, for stages that must see what it says.
//!
//! A request's body comes at its caller's pace: how long it may take is the door's business, whose deadlines end it
//! with 408. Here is bounded what it costs: its bytes ([`Bounds::max_size`], counted, not taken from the header), how
//! deep it nests ([`Bounds::max_depth`]), and how many values it holds (one for each [`BYTES_PER_VALUE`] of
//! `max_size`), since a tree takes many times the memory of its text. Depth and number are counted before a tree is made.
//!
//! A body that was read is put back as it came, but for trailers, which end here.

use crate::error::{BodyTooLarge, FieldFault, GatewayError, Kind};
use crate::units::Size;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Version};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use http_body_util::combinators::BoxBody;
use poem::Request;
use serde_json::Value;
use std::io;

/// What a body read whole may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Bytes it may have.
    pub(super) max_size: Size,
    /// Lists and objects that may stand within each other; [`DEEPEST`] at most.
    pub(super) max_depth: u32,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds { max_size: Size(1 << 20), max_depth: 32 }
    }
}

/// Beyond this the parser itself gives up.
pub(super) const DEEPEST: u32 = 120;
/// Bytes of the largest body that one value of a body stands for.
const BYTES_PER_VALUE: u64 = 8;
/// Values that a body may have however small it must be.
const FEW_VALUES: u64 = 4096;

/// Why a body was not read whole.
#[derive(Debug)]
pub(super) enum Unread {
    /// It has more bytes than it may.
    TooLarge,
    /// It broke off.
    Broke(io::Error),
}

/// Reads a body whole, up to `max` bytes.
pub(super) async fn whole(mut body: BoxBody<Bytes, io::Error>, max: Size) -> Result<Bytes, Unread> {
    if body.size_hint().lower() > max.0 {
        return Err(Unread::TooLarge);
    }
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(Unread::Broke)?.into_data() else { continue };
        if (first.len() + all.len() + data.len()) as u64 > max.0 {
            return Err(Unread::TooLarge);
        }
        match (first.is_empty(), all.is_empty()) {
            // A body in one piece is not copied.
            (true, true) => first = data,
            _ => {
                all.extend_from_slice(&std::mem::take(&mut first));
                all.extend_from_slice(&data);
            }
        }
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

/// Reads a request's body whole and puts it back; later readers find it in one piece.
///
/// # Errors
/// 413 where it is larger than `max`, 408 where the door's deadline ended it, 415 where it is compressed, 400 where it
/// broke off.
pub(super) async fn read(request: &mut Request, max: Size) -> Result<Bytes, GatewayError> {
    if is_coded(request.headers()) {
        return Err(GatewayError::new(
            Kind::UnsupportedMediaType,
            "Compressed bodies are not read here: send it without Content-Encoding",
        ));
    }
    match whole(request.take_body().into(), max).await {
        Ok(bytes) => {
            request.set_body(bytes.clone());
            Ok(bytes)
        }
        Err(Unread::TooLarge) => Err(GatewayError {
            // What is left of it is not read, so nothing can follow it. HTTP/2 has streams for that.
            close: request.version() <= Version::HTTP_11,
            ..GatewayError::from(&BodyTooLarge { limit: max.0 })
        }),
        Err(Unread::Broke(error)) => Err(GatewayError::from_body_error(&error).unwrap_or_else(|| {
            GatewayError { close: true, ..GatewayError::new(Kind::BadRequest, "The request body broke off") }
        })),
    }
}

/// Reads a request's body as JSON and puts it back; `None` if it is empty. What its `Content-Type` says is for the
/// caller to judge ([`is_json`]).
///
/// # Errors
/// Those of [`read`]; 400 `validation_failed` where it is no JSON, nests too deep, or holds too many values.
pub(super) async fn read_json(request: &mut Request, bounds: &Bounds) -> Result<Option<Value>, GatewayError> {
    let bytes = read(request, bounds.max_size).await?;
    if bytes.is_empty() {
        return Ok(None);
    }
    parse(&bytes, bounds).map(Some).map_err(|not| GatewayError::invalid(vec![not.fault()]))
}

/// Why a text is not read as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotRead {
    /// It is none; where that shows.
    Malformed {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// It nests deeper than this.
    TooDeep(u32),
    /// It holds more values than this.
    TooMany(u64),
}

impl NotRead {
    /// As a fault of the whole body. Tells nothing of what stands in it.
    pub(super) fn fault(self) -> FieldFault {
        match self {
            NotRead::Malformed { line, column } => FieldFault::new(
                "",
                "json",
                format!("the body is not JSON: see line {line}, column {column}"),
                format!("请求体不是有效的 JSON（第 {line} 行第 {column} 列）"),
            ),
            NotRead::TooDeep(most) => FieldFault::new(
                "",
                "depth",
                format!("the body nests deeper than {most} levels"),
                format!("请求体嵌套超过 {most} 层"),
            ),
            NotRead::TooMany(most) => FieldFault::new(
                "",
                "values",
                format!("the body holds more than {most} values"),
                format!("请求体包含的值超过 {most} 个"),
            ),
        }
    }
}

impl std::fmt::Display for NotRead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.fault().en)
    }
}

/// Reads a text as JSON. Its size is the caller's to bound.
pub(super) fn parse(text: &[u8], bounds: &Bounds) -> Result<Value, NotRead> {
    let most = (bounds.max_size.0 / BYTES_PER_VALUE).max(FEW_VALUES);
    let deepest = bounds.max_depth.min(DEEPEST);
    survey(text, deepest, most)?;
    serde_json::from_slice(text)
        .map_err(|error| NotRead::Malformed { line: error.line(), column: error.column() })
}

/// Counts levels and values without making any. What is no JSON may pass: the parser finds out.
fn survey(text: &[u8], deepest: u32, most: u64) -> Result<(), NotRead> {
    let (mut depth, mut values) = (0u32, 1u64);
    let (mut quoted, mut escaped) = (false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'[' | b'{' => {
                (depth, values) = (depth + 1, values + 1);
                if depth > deepest {
                    return Err(NotRead::TooDeep(deepest));
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' => values += 1,
            _ => {}
        }
        if values > most {
            return Err(NotRead::TooMany(most));
        }
    }
    Ok(())
}

/// Whether a message says that its body is JSON: `application/json`, or any type that ends in `+json` (RFC 6839).
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let essence = essence(headers);
    let suffix = essence.len().checked_sub(5).map(|at| &essence[at..]);
    essence.eq_ignore_ascii_case(b"application/json")
        || suffix.is_some_and(|suffix| suffix.eq_ignore_ascii_case(b"+json"))
}

/// The `Content-Type` without its parameters; empty where there is none.
pub(super) fn essence(headers: &HeaderMap) -> &[u8] {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii()
}

/// Whether a message's body cannot be read as it is.
pub(super) fn is_coded(headers: &HeaderMap) -> bool {
    headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .any(|coding| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{fed, request};
    use super::*;
    use http::Method;

    fn with_body(body: impl Into<poem::Body>) -> Request {
        let mut request = request(Method::POST, &[]);
        request.set_body(body.into());
        request
    }

    fn bounds(max_size: u64, max_depth: u32) -> Bounds {
        Bounds { max_size: Size(max_size), max_depth }
    }

    #[tokio::test]
    async fn a_body_is_read_whole_and_put_back() {
        let (feed, body) = fed();
        for piece in ["{\"a\":", " [1,", " 2]}"] {
            feed.send(Ok(piece.into())).unwrap();
        }
        drop(feed);
        let mut request = with_body(body);
        let value = read_json(&mut request, &bounds(15, 2)).await.unwrap().unwrap();
        assert_eq!(value, serde_json::json!({ "a": [1, 2] }));
        assert_eq!(request.into_body().into_string().await.unwrap(), "{\"a\": [1, 2]}");
        assert_eq!(read_json(&mut with_body(""), &Bounds::default()).await.unwrap(), None);
    }

    #[tokio::test]
    async fn bytes_are_counted_as_they_come() {
        let (feed, body) = fed();
        feed.send(Ok("12345678".into())).unwrap();
        feed.send(Ok("9".into())).unwrap();
        let refusal = read(&mut with_body(body), Size(8)).await.unwrap_err();
        assert_eq!((refusal.kind, refusal.close), (Kind::PayloadTooLarge, true));
        assert!(feed.is_closed(), "no more is read");
        let refusal = read(&mut with_body("123456789"), Size(8)).await.unwrap_err();
        assert_eq!(refusal.kind, Kind::PayloadTooLarge, "by what it is, too");
        assert_eq!(read(&mut with_body("12345678"), Size(8)).await.unwrap(), "12345678");
    }

    #[tokio::test]
    async fn what_broke_off_or_is_compressed_is_told() {
        let (feed, body) = fed();
        feed.send(Err(io::ErrorKind::ConnectionReset.into())).unwrap();
        assert_eq!(read(&mut with_body(body), Size(8)).await.unwrap_err().kind, Kind::BadRequest);
        let (feed, body) = fed();
        feed.send(Err(crate::error::BodyTimeout.into())).unwrap();
        assert_eq!(read(&mut with_body(body), Size(8)).await.unwrap_err().kind, Kind::RequestTimeout);
        let mut coded = request(Method::POST, &[("content-encoding", "gzip")]);
        assert_eq!(read(&mut coded, Size(8)).await.unwrap_err().kind, Kind::UnsupportedMediaType);
    }

    #[test]
    fn depth_and_number_of_values_are_bounded_before_a_tree_is_made() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(parse(nested(3).as_bytes(), &bounds(64, 3)).is_ok());
        assert_eq!(parse(nested(4).as_bytes(), &bounds(64, 3)), Err(NotRead::TooDeep(3)));
        assert_eq!(
            parse(nested(100_000).as_bytes(), &bounds(1 << 20, u32::MAX)),
            Err(NotRead::TooDeep(DEEPEST))
        );
        assert!(parse(nested(DEEPEST as usize).as_bytes(), &bounds(1 << 20, u32::MAX)).is_ok());
        let quoted = r#"{"[[[[": "\"[[[[\\"}"#;
        assert!(parse(quoted.as_bytes(), &bounds(64, 1)).is_ok(), "brackets in texts count nothing");
        let list = |items: usize| format!("[{}1]", "1,".repeat(items - 1));
        assert!(parse(list(4094).as_bytes(), &bounds(64, 1)).is_ok());
        assert_eq!(parse(list(4096).as_bytes(), &bounds(64, 1)), Err(NotRead::TooMany(4096)));
        assert!(parse(list(4096).as_bytes(), &bounds(1 << 20, 1)).is_ok());
    }

    #[test]
    fn faults_say_where_and_not_what() {
        let fault = parse(b"{\"password\":\n secret}", &Bounds::default()).unwrap_err();
        assert_eq!(fault, NotRead::Malformed { line: 2, column: 2 });
        assert_eq!(fault.to_string(), "the body is not JSON: see line 2, column 2");
    }

    #[test]
    fn json_is_known_by_its_type() {
        let is = |kind: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            is_json(&headers)
        };
        assert!(is("application/json") && is("Application/JSON ; charset=utf-8"));
        assert!(is("application/problem+json") && is("application/vnd.a+JSON;v=1"));
        assert!(!is("text/plain") && !is("application/json-seq") && !is("json"));
        assert!(!is_json(&HeaderMap::new()));
    }
}
