//! `compress`: responses are encoded as the caller accepts (RFC 9110, section 12.5.3).
//!
//! The coding with the highest `q` wins; among equals the order of `algorithms` decides. A response is left as it is
//! when it is short, of a type that gains nothing, already encoded, partial (206 or `Content-Range`), bodiless
//! (HEAD, 1xx, 204, 304), marked `no-transform`, digested (`Content-Digest` and its elders cover the encoded bytes),
//! or has trailers. Event streams and routes that stream are never compressed, and the checks refuse it there.
//!
//! Bodies are encoded as they stream: what the target has sent so far is flushed whenever it pauses. A compressed
//! response loses `Content-Length`, its strong `ETag` becomes a weak one, and whatever could have been compressed
//! varies by `Accept-Encoding`. An upstream that breaks off still breaks off. Off by leaving it out; pages that mix
//! secrets with what a caller sent should do so (BREACH).

use super::{
    Body as Form, BuildCx, Facts, Hook, Layer, Mark, Probe, Stage, StageCx, StageDecl, Stop, Verdict,
};
use super::{is_event_stream, vary};
use crate::diag::{Code, Diagnostic};
use crate::exchange::Exchange;
use crate::manifest::List;
use crate::units::Size;
use async_compression::Level as Quality;
use async_compression::brotli::EncoderParams;
use async_compression::tokio::bufread::{BrotliEncoder, GzipEncoder, ZstdEncoder};
use async_compression::zstd::CParameter;
use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, ETAG, TRAILER,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body::Body as _;
use http_body_util::combinators::BoxBody;
use poem::{Body, Request, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use std::io;
use std::sync::Arc;
use tokio::io::AsyncRead;
use tokio_util::io::{ReaderStream, StreamReader};

/// Compresses responses as callers accept.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Compress {
    /// Codings offered, the preferred first (default `[zstd, br, gzip]`).
    #[serde(default)]
    pub algorithms: List<Algorithm>,
    /// Responses known to be smaller are left as they are (default `1KiB`).
    pub min_size: Option<Size>,
    /// Types that are compressed: `type/subtype`, `type/*`, or `+suffix` (default texts, JSON, XML, scripts, SVG, wasm).
    #[serde(default)]
    pub types: List<String>,
    /// Time spent for size (default `balanced`).
    pub level: Option<Level>,
}

/// A coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// RFC 8878; quick and small.
    Zstd,
    /// RFC 7932; smallest texts.
    Br,
    /// RFC 1952; every caller knows it.
    Gzip,
}

/// Time spent for size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Least time.
    Fastest,
    /// As suits answers made on the fly.
    #[default]
    Balanced,
    /// Smallest that is still bearable on the fly.
    Best,
}

const ALGORITHMS: [Algorithm; 3] = [Algorithm::Zstd, Algorithm::Br, Algorithm::Gzip];
const MIN_SIZE: Size = Size(1 << 10);
const TYPES: [&str; 9] = [
    "text/*",
    "application/json",
    "application/javascript",
    "application/xml",
    "application/wasm",
    "application/yaml",
    "image/svg+xml",
    "+json",
    "+xml",
];
/// Bytes read and handed on at a time.
const CHUNK: usize = 16 << 10;
/// Windows of 512 KiB bound what one response takes; both codings default to several MiB.
const WINDOW_LOG: u32 = 19;

/// Digests of the bytes as encoded (RFC 9530, RFC 3230, RFC 1864).
pub(super) const DIGESTS: [HeaderName; 3] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

impl StageDecl for Compress {
    const NAME: &'static str = "compress";
    const ABOUT: &'static str = "Compresses responses with zstd, brotli or gzip as callers accept";
    const BODY: Form = Form::Optional;

    fn check(self, cx: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        let mut algorithms: Vec<Algorithm> = Vec::new();
        for algorithm in &self.algorithms.0 {
            if algorithms.contains(&algorithm.value) {
                cx.out.push(Diagnostic::error(Code::BAD_VALUE, algorithm.span, "this coding stands twice"));
            }
            algorithms.push(algorithm.value);
        }
        if algorithms.is_empty() {
            algorithms.extend(ALGORITHMS);
        }
        let mut types = Vec::new();
        for written in &self.types.0 {
            match TypePattern::parse(written) {
                Ok(pattern) => types.push(pattern),
                Err(help) => cx.out.push(
                    Diagnostic::error(Code::BAD_VALUE, written.span, "this type cannot be compressed")
                        .help(help),
                ),
            }
        }
        if self.types.0.is_empty() {
            types.extend(TYPES.iter().filter_map(|written| TypePattern::parse(written).ok()));
        }
        Some(Arc::new(Compiled(Arc::new(Options {
            algorithms,
            min_size: self.min_size.unwrap_or(MIN_SIZE).0,
            types,
            level: self.level.unwrap_or_default(),
        }))))
    }
}

#[derive(Debug)]
struct Options {
    algorithms: Vec<Algorithm>,
    min_size: u64,
    types: Vec<TypePattern>,
    level: Level,
}

/// A media type or a group of them, lower case.
#[derive(Debug)]
enum TypePattern {
    Exact(String),
    /// `text/`.
    Prefix(String),
    /// `+json`.
    Suffix(String),
}

impl TypePattern {
    /// The help to give if it is none.
    fn parse(written: &str) -> Result<Self, &'static str> {
        const FORM: &str = "write `type/subtype`, `type/*` or `+suffix`";
        let text = written.trim().to_ascii_lowercase();
        let token = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b))
        };
        if let Some(suffix) = text.strip_prefix('+') {
            return if token(suffix) { Ok(TypePattern::Suffix(text)) } else { Err(FORM) };
        }
        match text.split_once('/') {
            Some(("text", "event-stream")) => Err("event streams pass as they come"),
            Some((kind, "*")) if token(kind) => Ok(TypePattern::Prefix(format!("{kind}/"))),
            Some((kind, subtype)) if token(kind) && token(subtype) => Ok(TypePattern::Exact(text)),
            _ => Err(FORM),
        }
    }

    fn matches(&self, essence: &[u8]) -> bool {
        match self {
            TypePattern::Exact(text) => essence.eq_ignore_ascii_case(text.as_bytes()),
            TypePattern::Prefix(text) => {
                essence.get(..text.len()).is_some_and(|start| start.eq_ignore_ascii_case(text.as_bytes()))
            }
            TypePattern::Suffix(text) => essence
                .len()
                .checked_sub(text.len())
                .is_some_and(|start| essence[start..].eq_ignore_ascii_case(text.as_bytes())),
        }
    }
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Algorithm::Zstd => "zstd",
            Algorithm::Br => "br",
            Algorithm::Gzip => "gzip",
        }
    }

    fn is(self, name: &str) -> bool {
        name.eq_ignore_ascii_case(self.name())
            || self == Algorithm::Gzip && name.eq_ignore_ascii_case("x-gzip")
    }
}

struct Compiled(Arc<Options>);

impl Stage for Compiled {
    fn name(&self) -> &'static str {
        Compress::NAME
    }

    fn layer(&self, cx: &BuildCx<'_>) -> Layer {
        Layer::Hook(Box::new(Encodes { options: self.0.clone(), streams: cx.streams }))
    }

    fn facts(&self) -> Facts {
        Facts { buffers_response: Some("it holds bytes back to compress them"), ..Facts::default() }
    }

    fn explain(&self, probe: &Probe<'_>) -> Verdict {
        Verdict::Passes(match self.0.negotiate(probe.headers) {
            Some(algorithm) => format!("compresses the answer with {} where it gains", algorithm.name()),
            None => "the caller accepts no coding".to_owned(),
        })
    }
}

impl Options {
    /// The coding to use for a caller (RFC 9110, section 12.5.3); none where the header is missing.
    fn negotiate(&self, headers: &HeaderMap) -> Option<Algorithm> {
        let mut best: Option<(u16, Algorithm)> = None;
        for algorithm in &self.algorithms {
            let weight = weight_of(headers, *algorithm);
            if weight > best.map_or(0, |(weight, _)| weight) {
                best = Some((weight, *algorithm));
            }
        }
        best.map(|(_, algorithm)| algorithm)
    }

    fn covers(&self, headers: &HeaderMap) -> bool {
        let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        let essence = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        !is_event_stream(headers) && self.types.iter().any(|pattern| pattern.matches(essence))
    }
}

/// Thousandths of `q` that `Accept-Encoding` gives a coding, by name or else by `*`.
fn weight_of(headers: &HeaderMap, algorithm: Algorithm) -> u16 {
    let mut any = 0;
    for range in headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok()) {
        for item in range.split(',') {
            let (name, parameters) = item.split_once(';').unwrap_or((item, ""));
            let weight = match parameters.trim().strip_prefix(['q', 'Q']).map(str::trim_start) {
                Some(q) => q.strip_prefix('=').and_then(|q| q.trim().parse::<f32>().ok()).unwrap_or(0.0),
                None => 1.0,
            };
            let weight = (weight.clamp(0.0, 1.0) * 1000.0) as u16;
            match name.trim() {
                name if algorithm.is(name) => return weight,
                "*" => any = weight,
                _ => {}
            }
        }
    }
    any
}

struct Encodes {
    options: Arc<Options>,
    streams: bool,
}

/// Mark: 0 for no coding, else the algorithm's place in [`ALGORITHMS`] from 1 on.
impl Hook for Encodes {
    fn enter(&self, _: &Arc<Exchange>, request: &mut Request) -> Result<Mark, Stop> {
        if self.streams || request.method() == Method::HEAD {
            return Ok(0);
        }
        let chosen = self.options.negotiate(request.headers());
        let place = chosen.and_then(|chosen| ALGORITHMS.iter().position(|algorithm| *algorithm == chosen));
        Ok(place.map_or(0, |place| place as Mark + 1))
    }

    fn leave(&self, _: &Arc<Exchange>, mark: Mark, response: &mut Response) {
        if self.streams || !may_encode(response) || !self.options.covers(response.headers()) {
            return;
        }
        vary(response.headers_mut(), "Accept-Encoding");
        let Some(algorithm) = (mark as usize).checked_sub(1).and_then(|place| ALGORITHMS.get(place)) else {
            return;
        };
        let body: BoxBody<Bytes, io::Error> = response.take_body().into();
        if body.size_hint().exact().is_some_and(|length| length < self.options.min_size) {
            response.set_body(body);
            return;
        }
        response.set_body(encoded(body.into(), *algorithm, self.options.level));
        let headers = response.headers_mut();
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(algorithm.name()));
        headers.remove(CONTENT_LENGTH);
        headers.remove(ACCEPT_RANGES);
        weaken(headers);
    }
}

/// Whether a response may be encoded at all, whatever its type.
fn may_encode(response: &Response) -> bool {
    let (status, headers) = (response.status(), response.headers());
    let bodiless = status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED | StatusCode::PARTIAL_CONTENT);
    let encoded = headers.get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
    let untouchable = headers.get_all(CACHE_CONTROL).iter().any(|value| {
        let mut directives = value.as_bytes().split(|byte| *byte == b',');
        directives.any(|directive| directive.trim_ascii().eq_ignore_ascii_case(b"no-transform"))
    });
    let other = headers.contains_key(CONTENT_RANGE) || headers.contains_key(TRAILER);
    !(bodiless || encoded || untouchable || other || DIGESTS.iter().any(|name| headers.contains_key(name)))
}

/// The encoded bytes are another representation: only a weak tag still holds (RFC 9110, section 8.8.1).
pub(super) fn weaken(headers: &mut HeaderMap) {
    if let Some(tag) = headers.get(ETAG).filter(|tag| tag.as_bytes().starts_with(b"\"")) {
        match HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat()) {
            Ok(weak) => headers.insert(ETAG, weak),
            Err(_) => headers.remove(ETAG),
        };
    }
}

/// The body through an encoder, which flushes whenever its source has nothing at hand.
fn encoded(body: Body, algorithm: Algorithm, level: Level) -> Body {
    let source = StreamReader::new(Box::pin(body.into_bytes_stream()));
    let quality = |fastest, balanced, best| {
        Quality::Precise(match level {
            Level::Fastest => fastest,
            Level::Balanced => balanced,
            Level::Best => best,
        })
    };
    match algorithm {
        Algorithm::Gzip => streamed(GzipEncoder::with_quality(source, quality(1, 5, 9))),
        Algorithm::Br => {
            let params = EncoderParams::default().quality(quality(1, 4, 9)).window_size(WINDOW_LOG as i32);
            streamed(BrotliEncoder::with_params(source, params))
        }
        Algorithm::Zstd => {
            let params = [CParameter::window_log(WINDOW_LOG)];
            streamed(ZstdEncoder::with_quality_and_params(source, quality(1, 3, 12), &params))
        }
    }
}

fn streamed(reader: impl AsyncRead + Send + 'static) -> Body {
    Body::from_bytes_stream(ReaderStream::with_capacity(reader, CHUNK))
}

#[cfg(test)]
mod tests;
