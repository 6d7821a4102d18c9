//! Conditional requests (RFC 9110, section 13) on a copy, and the request that asks whether a copy is still good.

use crate::copies::Copy;
use http::header::{
    ETAG, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// Headers that make a request conditional: a copy is fetched whole.
pub(super) const CONDITIONS: [HeaderName; 5] =
    [IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE];

/// Whether the caller has what the copy says already: then it gets 304.
pub(super) fn has_it(request: &HeaderMap, copy: &Copy) -> bool {
    if copy.status != StatusCode::OK {
        return false;
    }
    if request.contains_key(IF_NONE_MATCH) {
        // `If-Modified-Since` does not count beside it (section 13.1.3).
        let tag = copy.headers.get(ETAG);
        return request.get_all(IF_NONE_MATCH).iter().any(|value| names(value.as_bytes(), tag));
    }
    let date = |value: Option<&HeaderValue>| httpdate::parse_http_date(value?.to_str().ok()?).ok();
    match (date(request.get(IF_MODIFIED_SINCE)), date(copy.headers.get(LAST_MODIFIED))) {
        (Some(since), Some(modified)) => modified <= since,
        _ => false,
    }
}

/// Whether a list of entity tags names this one, compared weakly.
fn names(mut list: &[u8], tag: Option<&HeaderValue>) -> bool {
    if list.trim_ascii() == b"*" {
        return true;
    }
    let Some(tag) = tag.map(|tag| opaque(tag.as_bytes().trim_ascii())) else { return false };
    // `"a", W/"b"`: commas may stand within a tag.
    while let Some(begin) = list.iter().position(|byte| *byte == b'"') {
        let Some(length) = list[begin + 1..].iter().position(|byte| *byte == b'"') else { return false };
        let end = begin + 1 + length;
        if &list[begin..=end] == tag {
            return true;
        }
        list = &list[end + 1..];
    }
    false
}

/// A tag without the mark that it is weak.
fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Makes a request unconditional; or, where there is a copy with a validator, one that asks if that is still good.
pub(super) fn ask(headers: &mut HeaderMap, copy: Option<&Copy>) {
    CONDITIONS.iter().for_each(|name| drop(headers.remove(name)));
    for (validator, condition) in [(ETAG, IF_NONE_MATCH), (LAST_MODIFIED, IF_MODIFIED_SINCE)] {
        if let Some(value) = copy.and_then(|copy| copy.headers.get(&validator)) {
            headers.insert(condition, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::time::{Duration, Instant};

    fn copy(headers: &[(&'static str, &'static str)]) -> Copy {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        Copy {
            status: StatusCode::OK,
            headers: headers.collect(),
            body: Bytes::new(),
            vary: [].into(),
            path: "/".into(),
            route: "".into(),
            at: Instant::now(),
            age: Duration::ZERO,
            fresh: Duration::ZERO,
            stale: Duration::ZERO,
        }
    }

    #[test]
    fn rfc_9110_section_13_on_copies() {
        const OLD: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
        const NEW: &str = "Mon, 07 Nov 1994 08:49:37 GMT";
        // Section, what the caller says, what the copy has, whether it gets 304.
        #[expect(clippy::type_complexity, reason = "a table")]
        let cases: &[(
            &str,
            &[(&'static str, &'static str)],
            &[(&'static str, &'static str)],
            bool,
        )] = &[
            ("13.1.2", &[("if-none-match", "\"a\"")], &[("etag", "\"a\"")], true),
            ("13.1.2", &[("if-none-match", "\"b\"")], &[("etag", "\"a\"")], false),
            ("13.1.2, a list", &[("if-none-match", "\"b\", W/\"a\"")], &[("etag", "\"a\"")], true),
            ("8.8.3.2, weakly", &[("if-none-match", "\"a\"")], &[("etag", "W/\"a\"")], true),
            ("8.8.3, a comma within", &[("if-none-match", "\"x,y\"")], &[("etag", "\"x,y\"")], true),
            ("13.1.2, any", &[("if-none-match", "*")], &[], true),
            ("13.1.2, no tag here", &[("if-none-match", "\"a\"")], &[], false),
            ("13.1.2, torn", &[("if-none-match", "\"a")], &[("etag", "\"a\"")], false),
            ("13.1.3", &[("if-modified-since", NEW)], &[("last-modified", OLD)], true),
            ("13.1.3, same", &[("if-modified-since", OLD)], &[("last-modified", OLD)], true),
            ("13.1.3, changed", &[("if-modified-since", OLD)], &[("last-modified", NEW)], false),
            ("13.1.3, no date", &[("if-modified-since", "soon")], &[("last-modified", OLD)], false),
            (
                "13.2.2, the tag goes first",
                &[("if-none-match", "\"b\""), ("if-modified-since", NEW)],
                &[("etag", "\"a\""), ("last-modified", OLD)],
                false,
            ),
            ("13.1.1 is for methods that change", &[("if-match", "\"b\"")], &[("etag", "\"a\"")], false),
        ];
        for (section, request, kept, expected) in cases {
            let request = copy(request).headers;
            assert_eq!(has_it(&request, &copy(kept)), *expected, "{section}: {request:?}");
        }
        let gone = Copy { status: StatusCode::GONE, ..copy(&[("etag", "\"a\"")]) };
        assert!(!has_it(&copy(&[("if-none-match", "\"a\"")]).headers, &gone), "13.2.1, not a success");
    }

    #[test]
    fn a_request_becomes_unconditional_or_asks_for_what_is_new() {
        let mut headers =
            copy(&[("if-none-match", "\"x\""), ("if-range", "\"y\""), ("accept", "a/b")]).headers;
        ask(&mut headers, None);
        assert_eq!(headers.len(), 1);
        ask(&mut headers, Some(&copy(&[("etag", "\"a\""), ("last-modified", "yesterday")])));
        assert_eq!(
            (&headers["if-none-match"], &headers["if-modified-since"]),
            (&HeaderValue::from_static("\"a\""), &HeaderValue::from_static("yesterday"))
        );
    }
}
