//! `grpc-timeout`: how long a caller waits, as gRPC writes it (`PROTOCOL-HTTP2.md`, Requests).

use http::{HeaderName, HeaderValue};
use std::time::Duration;

/// The header.
pub(super) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Eight digits at most.
const MOST: u64 = 99_999_999;

/// The time a header names; `None` where it is malformed.
pub(super) fn read(value: &HeaderValue) -> Option<Duration> {
    let (unit, digits) = value.as_bytes().split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = digits.iter().fold(0u64, |count, digit| count * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(count * 3600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

/// A time as the header has it: in the finest unit that holds it, rounded down, but never nothing.
pub(super) fn written(time: Duration) -> HeaderValue {
    let (count, unit) = match (time.as_micros(), time.as_millis()) {
        (micros, _) if micros <= u128::from(MOST) => (micros as u64, 'u'),
        (_, millis) if millis <= u128::from(MOST) => (millis as u64, 'm'),
        _ => (time.as_secs().min(MOST), 'S'),
    };
    HeaderValue::from_str(&format!("{}{unit}", count.max(1))).unwrap_or(HeaderValue::from_static("1u"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let read = |text: &'static str| read(&HeaderValue::from_static(text));
        assert_eq!(read("2S"), Some(Duration::from_secs(2)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(read("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(read("7n"), Some(Duration::from_nanos(7)));
        for bad in ["", "S", "1", "1s", "123456789S", "-1S", "1.5S", " 1S"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        for (time, wanted) in [
            (Duration::from_nanos(3), "1u"),
            (Duration::from_millis(1500), "1500000u"),
            (Duration::from_secs(3600), "3600000m"),
            (Duration::from_secs(999_999), "999999S"),
        ] {
            assert_eq!(written(time), wanted);
        }
    }
}
