//! W3C Trace Context, level 1 (<https://www.w3.org/TR/trace-context-1/>): where a request stands in a trace.
//!
//! A caller's `traceparent` is continued if it is well formed, else a new trace begins. Either way the upstream gets
//! the gateway's own span as its parent. `tracestate` belongs to the caller's `traceparent`: it is passed on only
//! when that was continued.

use crate::exchange::Traced;
use http::{HeaderMap, HeaderValue};
use std::num::{NonZeroU64, NonZeroU128};

/// The header's name.
pub const TRACEPARENT: &str = "traceparent";
/// The header that goes with it.
pub const TRACESTATE: &str = "tracestate";

/// Flag: the caller may have recorded its span.
const SAMPLED: u8 = 1;

/// Length of `00-` trace id `-` span id `-` flags.
const LENGTH: usize = 55;

/// A place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: NonZeroU128,
    /// The span: the caller's when parsed, the gateway's own when sent.
    pub span_id: NonZeroU64,
    /// Whether the span may be recorded.
    pub sampled: bool,
}

impl TraceContext {
    /// The caller's place, if it sent exactly one well-formed `traceparent`.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => Self::parse(value.as_bytes()),
            _ => None,
        }
    }

    /// Reads `version-trace_id-span_id-flags`. Of versions to come it takes what version 00 has, as the
    /// recommendation asks.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (known, rest) = value.split_at_checked(LENGTH)?;
        let version = hex(&known[..2])?;
        let well_delimited = known[2] == b'-' && known[35] == b'-' && known[52] == b'-';
        let well_ended = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest[0] == b'-',
        };
        if !well_delimited || !well_ended {
            return None;
        }
        Some(TraceContext {
            trace_id: NonZeroU128::new(hex(&known[3..35])?)?,
            span_id: NonZeroU64::new(hex(&known[36..52])? as u64)?,
            sampled: hex(&known[53..])? as u8 & SAMPLED != 0,
        })
    }

    /// A new trace. It says "sampled", so that services behind the gateway record it, whether or not the gateway
    /// itself does: said "not sampled", they would record nothing.
    pub fn begin() -> Self {
        TraceContext { trace_id: rand::random(), span_id: rand::random(), sampled: true }
    }

    /// A new span in the same trace.
    pub fn child(self) -> Self {
        TraceContext { span_id: rand::random(), ..self }
    }
}

impl Traced for TraceContext {
    fn traceparent(&self) -> HeaderValue {
        let mut value = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write_hex(&mut value[3..35], self.trace_id.get());
        write_hex(&mut value[36..52], self.span_id.get().into());
        value[LENGTH - 1] |= u8::from(self.sampled);
        HeaderValue::from_bytes(&value).expect("hex digits and dashes are a header value")
    }

    fn trace_id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }
}

/// Lower-case hex digits as a number; at most 32 of them.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number: u128, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

fn write_hex(into: &mut [u8], mut number: u128) {
    for digit in into.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn parse(value: &str) -> Option<TraceContext> {
        TraceContext::parse(value.as_bytes())
    }

    #[test]
    fn the_example_of_the_recommendation() {
        let context = parse(SPEC).unwrap();
        assert_eq!(context.trace_id.get(), 0x4bf92f3577b34da6a3ce929d0e0e4736);
        assert_eq!(context.span_id.get(), 0x00f067aa0ba902b7);
        assert!(context.sampled);
        assert_eq!(context.traceparent(), SPEC);
        assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
    }

    #[test]
    fn malformed_ones_are_refused() {
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-extra",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473600f067aa0ba902b7--01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "0x-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.what",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn versions_to_come_are_read_as_far_as_they_are_known() {
        for good in [
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-holds",
        ] {
            assert_eq!(parse(good), parse(SPEC), "{good}");
        }
        let flags = parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-fe").unwrap();
        assert!(!flags.sampled);
        assert!(flags.traceparent().to_str().unwrap().ends_with("-00"), "unknown flags are not passed on");
    }

    #[test]
    fn two_headers_are_as_bad_as_none() {
        let mut headers = HeaderMap::new();
        assert_eq!(TraceContext::of(&headers), None);
        headers.append(TRACEPARENT, HeaderValue::from_static(SPEC));
        assert_eq!(TraceContext::of(&headers), parse(SPEC));
        headers.append(TRACEPARENT, HeaderValue::from_static(SPEC));
        assert_eq!(TraceContext::of(&headers), None);
    }

    #[test]
    fn a_child_stays_in_the_trace() {
        let parent = parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00").unwrap();
        let child = parent.child();
        assert_eq!(child.trace_id, parent.trace_id);
        assert_ne!(child.span_id, parent.span_id);
        assert!(!child.sampled);
        assert_eq!(TraceContext::parse(child.traceparent().as_bytes()), Some(child));
        assert_ne!(TraceContext::begin().trace_id, TraceContext::begin().trace_id);
    }
}
