//! Files of the documentation page, embedded: our own as they are, the user interfaces of others compressed beforehand
//! (`scripts/vendor-docs` fetches them). All of them are served under one name made of their contents, so that browsers
//! keep them for good and never mix two versions.

use async_compression::tokio::bufread::BrotliDecoder;
use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, VARY};
use http::{HeaderMap, HeaderValue};
use poem::{Body, Response};
use sha2::{Digest, Sha256};
use std::sync::LazyLock;
use tokio_util::io::ReaderStream;

/// A file.
struct Asset {
    name: &'static str,
    kind: &'static str,
    content: Content,
}

enum Content {
    /// Small: as it is.
    Plain(&'static str),
    /// Compressed with brotli, and with gzip for those who do not read that (browsers over plain HTTP).
    Packed { brotli: &'static [u8], gzip: &'static [u8] },
}

const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

macro_rules! own {
    ($name:literal, $kind:expr) => {
        Asset {
            name: $name,
            kind: $kind,
            content: Content::Plain(include_str!(concat!("../../../assets/docs/", $name))),
        }
    };
}

macro_rules! packed {
    ($name:literal, $kind:expr) => {
        Asset {
            name: $name,
            kind: $kind,
            content: Content::Packed {
                brotli: include_bytes!(concat!("../../../assets/docs/vendor/", $name, ".br")),
                gzip: include_bytes!(concat!("../../../assets/docs/vendor/", $name, ".gz")),
            },
        }
    };
}

const ALL: &[Asset] = &[
    own!("page.css", STYLE),
    own!("page.js", SCRIPT),
    own!("gateway.js", SCRIPT),
    own!("document.js", SCRIPT),
    own!("elements.js", SCRIPT),
    own!("stream.js", SCRIPT),
    own!("socket.js", SCRIPT),
    own!("microphone.js", SCRIPT),
    own!("second.js", SCRIPT),
    own!("icon.svg", "image/svg+xml"),
    packed!("scalar.js", SCRIPT),
    packed!("swagger.js", SCRIPT),
    packed!("swagger.css", STYLE),
];

/// What the files of others are, by their sums.
const SUMS: &str = include_str!("../../../assets/docs/vendor/SHA256SUMS");

/// Name of this set of files: changes with any of them.
pub(super) static REVISION: LazyLock<String> = LazyLock::new(|| {
    let mut hash = Sha256::new();
    hash.update(SUMS);
    for asset in ALL {
        if let Content::Plain(text) = asset.content {
            hash.update(asset.name);
            hash.update(text);
        }
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
});

/// A file, for `REVISION/name`; `None` where there is no such file in this set.
pub(super) fn serve(path: &str, headers: &HeaderMap) -> Option<Response> {
    let (revision, name) = path.split_once('/')?;
    let asset = ALL.iter().find(|asset| asset.name == name && revision == *REVISION)?;
    let (body, encoding) = match asset.content {
        Content::Plain(text) => (Body::from_bytes(Bytes::from_static(text.as_bytes())), None),
        Content::Packed { brotli, .. } if accepts(headers, "br") => (Body::from(brotli), Some("br")),
        Content::Packed { gzip, .. } if accepts(headers, "gzip") => (Body::from(gzip), Some("gzip")),
        Content::Packed { brotli, .. } => {
            (Body::from_bytes_stream(ReaderStream::new(BrotliDecoder::new(brotli))), None)
        }
    };
    let mut response = Response::builder().content_type(asset.kind).body(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(asset.kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable"));
    let etag = format!("\"{}{}\"", *REVISION, encoding.map(|name| format!("-{name}")).unwrap_or_default());
    headers.extend(HeaderValue::try_from(etag).ok().map(|etag| (ETAG, etag)));
    if matches!(asset.content, Content::Packed { .. }) {
        headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    }
    headers.extend(encoding.map(|name| (CONTENT_ENCODING, HeaderValue::from_static(name))));
    Some(response)
}

/// Whether the caller reads a coding (RFC 9110, section 12.5.3); only where they name it, and not with `q=0`.
fn accepts(headers: &HeaderMap, coding: &str) -> bool {
    let listed = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    listed.flat_map(|list| list.split(',')).any(|item| {
        let (name, weight) = item.split_once(';').unwrap_or((item, ""));
        let refused = weight.trim().strip_prefix("q=").and_then(|q| q.trim().parse().ok()) == Some(0.0f32);
        name.trim().eq_ignore_ascii_case(coding) && !refused
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_compression::tokio::bufread::GzipDecoder;
    use tokio::io::AsyncReadExt;

    #[test]
    fn what_is_embedded_is_what_was_fetched() {
        let mut seen = 0;
        for asset in ALL {
            let Content::Packed { brotli, gzip } = asset.content else { continue };
            for (bytes, ending) in [(brotli, "br"), (gzip, "gz")] {
                let sum: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
                assert!(SUMS.contains(&format!("{sum}  {}.{ending}\n", asset.name)), "{}", asset.name);
                seen += 1;
            }
        }
        assert_eq!(seen, SUMS.lines().filter(|line| !line.starts_with('#')).count());
    }

    #[tokio::test]
    async fn every_coding_holds_the_same_file() {
        let path = format!("{}/swagger.css", *REVISION);
        let get = async |accept: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(accept));
            let response = serve(&path, &headers).unwrap();
            let coding = response.header("content-encoding").map(str::to_owned);
            (coding, response.into_body().into_vec().await.unwrap())
        };
        let (none, plain) = get("identity").await;
        assert_eq!(none, None);
        assert!(plain.starts_with(b".swagger-ui"));
        let (coding, packed) = get("deflate, gzip;q=1.0, br;q=0").await;
        assert_eq!(coding.as_deref(), Some("gzip"));
        let mut unpacked = Vec::new();
        GzipDecoder::new(&packed[..]).read_to_end(&mut unpacked).await.unwrap();
        assert!(unpacked == plain);
        assert_eq!(get("gzip, br").await.0.as_deref(), Some("br"));
    }

    #[test]
    fn there_is_nothing_else() {
        for path in ["page.css", "0000/page.css", "", "/", "../Cargo.toml"] {
            assert!(serve(path, &HeaderMap::new()).is_none(), "{path}");
        }
    }
}
