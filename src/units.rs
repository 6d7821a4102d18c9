//! Quantities as manifests write them: always with their unit.

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// A duration such as `500ms`, `30s`, `1h30m`, `7d`; more than zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dur(pub Duration);

/// A duration such as [`Dur`]'s, or `0s`, where that switches something off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DurOrZero(pub Duration);

/// A size in bytes such as `512B`, `8KiB`, `1MiB`, `10MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

/// A share such as `20%`, from 0 % to 100 %, held as 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Percent(pub f64);

const DURATION_FORM: &str = "a duration with its unit, such as `500ms`, `30s`, `5m`, `24h` or `7d`";
const DURATION_OR_ZERO_FORM: &str =
    "a duration with its unit, such as `500ms`, `30s` or `5m`, or `0s` for none";
const SIZE_FORM: &str = "a size with its unit, such as `512B`, `8KiB` or `1MiB`";
const PERCENT_FORM: &str = "a share from `0%` to `100%`";

impl Dur {
    /// So many seconds.
    pub const fn secs(seconds: u64) -> Self {
        Dur(Duration::from_secs(seconds))
    }

    /// Reads the form above; `None` if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        sum(text).filter(|total| !total.is_zero()).map(Dur)
    }
}

impl DurOrZero {
    /// Reads the form above; `None` if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        sum(text).map(DurOrZero)
    }
}

/// Numbers with units of time, added up.
fn sum(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, unit, behind) = quantity(rest)?;
        let millis = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        total = total.checked_add(Duration::from_millis(number.checked_mul(millis)?))?;
        rest = behind;
    }
    Some(total)
}

impl fmt::Display for Dur {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut millis = self.0.as_millis();
        for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
            if millis >= size {
                write!(f, "{}{unit}", millis / size)?;
                millis %= size;
            }
        }
        Ok(())
    }
}

impl Size {
    /// Reads the form above; `None` if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let (number, unit, behind) = quantity(text.trim())?;
        let factor: u64 = match unit {
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "KB" | "kB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            _ => return None,
        };
        behind.is_empty().then_some(Size(number.checked_mul(factor)?))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shift, unit) = match self.0 {
            n if n != 0 && n % (1 << 30) == 0 => (30, "GiB"),
            n if n != 0 && n % (1 << 20) == 0 => (20, "MiB"),
            n if n != 0 && n % (1 << 10) == 0 => (10, "KiB"),
            _ => (0, "B"),
        };
        write!(f, "{}{unit}", self.0 >> shift)
    }
}

impl Percent {
    /// Reads the form above; `None` if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let number: f64 = text.trim().strip_suffix('%')?.trim().parse().ok()?;
        (0.0..=100.0).contains(&number).then_some(Percent(number / 100.0))
    }
}

/// A whole number, the letters behind it, and the rest.
fn quantity(text: &str) -> Option<(u64, &str, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(digits);
    let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(letters);
    Some((number.parse().ok()?, unit, rest))
}

macro_rules! from_text {
    ($type:ident, $form:expr, $name:literal, $pattern:literal) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct V;
                impl Visitor<'_> for V {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($form)
                    }
                    fn visit_str<E: Error>(self, text: &str) -> Result<$type, E> {
                        $type::parse(text).ok_or_else(|| E::custom(format_args!("expected {}", $form)))
                    }
                }
                deserializer.deserialize_str(V)
            }
        }

        impl schemars::JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "description": $form, "pattern": $pattern })
            }
        }
    };
}

from_text!(Dur, DURATION_FORM, "Duration", r"^(\d+(ms|s|m|h|d))+$|\$\{");
from_text!(DurOrZero, DURATION_OR_ZERO_FORM, "DurationOrZero", r"^(\d+(ms|s|m|h|d))+$|\$\{");
from_text!(Size, SIZE_FORM, "Size", r"^\d+(B|KiB|MiB|GiB|[kK]B|MB|GB)$|\$\{");
from_text!(Percent, PERCENT_FORM, "Percent", r"^\d+(\.\d+)?\s*%$|\$\{");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_units() {
        assert_eq!(Dur::parse("30s"), Some(Dur::secs(30)));
        assert_eq!(Dur::parse("1h30m"), Some(Dur::secs(5400)));
        assert_eq!(Dur::parse("7d"), Some(Dur::secs(604_800)));
        for bad in ["30", "s", "", "0s", "-1s", "1.5s", "30 parsecs", "99999999999999999999s"] {
            assert_eq!(Dur::parse(bad), None, "{bad}");
        }
        assert_eq!(DurOrZero::parse("0s"), Some(DurOrZero(Duration::ZERO)));
        assert_eq!(DurOrZero::parse("1m30s"), Some(DurOrZero(Duration::from_secs(90))));
        assert_eq!(DurOrZero::parse("0"), None);
        assert_eq!(Dur::secs(5400).to_string(), "1h30m");
        assert_eq!(Dur(Duration::from_millis(1500)).to_string(), "1s500ms");
    }

    #[test]
    fn sizes_need_units() {
        assert_eq!(Size::parse("8KiB"), Some(Size(8192)));
        assert_eq!(Size::parse("10MB"), Some(Size(10_000_000)));
        for bad in ["8", "8K", "KiB", "8 KiB", "8KiBx", "99999999999GiB"] {
            assert_eq!(Size::parse(bad), None, "{bad}");
        }
        assert_eq!(Size(1 << 20).to_string(), "1MiB");
    }

    #[test]
    fn percents_are_bounded() {
        assert_eq!(Percent::parse("20%"), Some(Percent(0.2)));
        assert_eq!(Percent::parse("101%"), None);
        assert_eq!(Percent::parse("20"), None);
        assert_eq!(Percent::parse("NaN%"), None);
    }
}
