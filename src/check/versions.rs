//! Versions: prefix, and the headers that say a version is on its way out.

use super::pattern::{self, Segment};
use crate::diag::{Code, Diagnostic, Diagnostics, did_you_mean};
use crate::manifest::model::{Deprecated, Version};
use crate::manifest::{Manifest, Spanned};
use http::{HeaderName, HeaderValue, header};
use jiff::civil::Date;
use std::sync::Arc;

/// The path before every route of a version, without a slash at its end.
pub(super) fn prefix(version: &Version, out: &mut Diagnostics) -> Option<String> {
    let text = version.prefix.value.trim_end_matches('/');
    if text.is_empty() {
        return Some(String::new());
    }
    let parsed = pattern::pattern(text, version.prefix.span, out)?;
    if parsed.segments.iter().any(|segment| !matches!(segment, Segment::Static(_))) {
        out.push(
            Diagnostic::error(Code::BAD_PATTERN, version.prefix.span, "a prefix has no parameters")
                .help("put them into the routes"),
        );
        return None;
    }
    Some(parsed.template())
}

/// `Deprecation` (RFC 9745), `Sunset` (RFC 8594) and `Link` headers of a version.
pub(super) fn deprecation(
    declared: &Spanned<Deprecated>,
    manifest: &Manifest,
    out: &mut Diagnostics,
) -> Option<Arc<[(HeaderName, HeaderValue)]>> {
    let since = date(&declared.since, out);
    let sunset = declared.sunset.as_ref().map(|text| (text, date(text, out)));
    let mut headers = Vec::new();
    let seconds = since?;
    headers.push((HeaderName::from_static("deprecation"), value(format!("@{seconds}"))?));
    if let Some((text, date)) = sunset {
        let sunset = date?;
        if sunset <= seconds {
            out.push(
                Diagnostic::error(Code::DEADLINES, text.span, "the sunset is not after the deprecation")
                    .help("callers need time to move"),
            );
        }
        let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(u64::try_from(sunset).ok()?);
        headers.push((HeaderName::from_static("sunset"), value(httpdate::fmt_http_date(at))?));
    }
    if let Some(name) = &declared.successor {
        let successor = manifest.versions.iter().find(|version| version.name.value == name.value);
        let Some(successor) = successor else {
            let known = manifest.versions.iter().map(|version| version.name.value.as_str());
            out.push(
                Diagnostic::error(
                    Code::UNKNOWN_POLICY,
                    name.span,
                    format!("version `{}` is not defined", name.value),
                )
                .maybe_help(did_you_mean(&name.value, known)),
            );
            return None;
        };
        let link = format!("<{}>; rel=\"successor-version\"", successor.prefix.value);
        headers.push((header::LINK, value(link)?));
    }
    Some(headers.into())
}

/// Midnight UTC of a day from 1970 on, in seconds since then.
fn date(text: &Spanned<String>, out: &mut Diagnostics) -> Option<i64> {
    let zoned = text.value.parse::<Date>().ok().and_then(|date| date.to_zoned(jiff::tz::TimeZone::UTC).ok());
    let Some(zoned) = zoned else {
        out.push(
            Diagnostic::error(Code::BAD_VALUE, text.span, "this is not a day")
                .help("write it as `2026-06-01`"),
        );
        return None;
    };
    let seconds = zoned.timestamp().as_second();
    if seconds < 0 {
        out.push(
            Diagnostic::error(Code::BAD_VALUE, text.span, "this day is before 1970")
                .help("dates in headers begin there"),
        );
        return None;
    }
    Some(seconds)
}

fn value(text: String) -> Option<HeaderValue> {
    HeaderValue::try_from(text).ok()
}
