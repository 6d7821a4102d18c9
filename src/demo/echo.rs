//! `ANY /echo`, `ANY /echo/*`: answers what arrived, so that a test can read which headers, path and body the gateway
//! really sent. It takes bodies of any length (they are counted, only the start is kept) and no switches.

use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::reply::{Body, Refusal, json_response};

/// How much of the body is sent back, in bytes.
const KEPT: usize = 64 * 1024;

/// `{method, path, query, authority, version, headers: [[name, value]…], body_length, body, trailers}`. Bytes that are
/// not UTF-8 come back as U+FFFD; `authority` is that of the request target (HTTP/2's `:authority`), else null.
pub(super) async fn answer(request: Request<Incoming>) -> Response<Body> {
    let (parts, mut body) = request.into_parts();
    let mut kept = Vec::new();
    let mut length = 0u64;
    let mut trailers = HeaderMap::new();
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                return Refusal::bad_request(format!("the body broke off: {error}")).into_response();
            }
        };
        match frame.into_data() {
            Ok(data) => {
                length += data.len() as u64;
                let room = data.len().min(KEPT - kept.len());
                kept.extend_from_slice(&data[..room]);
            }
            Err(frame) => trailers.extend(frame.into_trailers().unwrap_or_default()),
        }
    }
    let answer = json!({
        "method": parts.method.as_str(),
        "path": parts.uri.path(),
        "query": parts.uri.query(),
        "authority": parts.uri.authority().map(|authority| authority.as_str()),
        "version": format!("{:?}", parts.version),
        "headers": pairs(&parts.headers),
        "body_length": length,
        "body": String::from_utf8_lossy(&kept),
        "trailers": pairs(&trailers),
    });
    json_response(StatusCode::OK, &answer)
}

/// The headers in their order, repeated ones repeated.
fn pairs(headers: &HeaderMap) -> Vec<Value> {
    headers
        .iter()
        .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]))
        .collect()
}
