//! What tests (and the curious) may ask of the demo services by query string. Every call but `/echo` listens to them;
//! names it doesn't know are left alone, a value it can't read is a 400 that says which.
//!
//! | switch | does |
//! |---|---|
//! | `delay=10ms` | the pace per token instead of the human one; `0ms` is as fast as the reader takes them |
//! | `first=2s` | waits before the first event (the headers are out by then); other calls wait before they answer |
//! | `tokens=300` | the number of tokens |
//! | `fail_after=5` | the connection dies after so many tokens, without a clean end |
//! | `error_after=5` | the stream ends with an error event after so many tokens |
//! | `stall_after=5` | goes silent after so many tokens, but stays open |
//! | `status=503` | answers that status, as JSON |
//! | `hang=1` | takes the request and never answers |
//! | `split=1` | writes each event in small pieces that cut through lines and characters |

use std::time::Duration;

use http::StatusCode;
use url::form_urlencoded;

/// The longest wait and the most tokens a switch may ask for: a typing error must not hold a test for a day.
const MAX_WAIT: Duration = Duration::from_secs(600);
const MAX_TOKENS: usize = 1_000_000;

/// The switches of one request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Switches {
    pub(super) delay: Option<Duration>,
    pub(super) first: Duration,
    pub(super) tokens: Option<usize>,
    pub(super) fail_after: Option<usize>,
    pub(super) error_after: Option<usize>,
    pub(super) stall_after: Option<usize>,
    pub(super) status: Option<StatusCode>,
    pub(super) hang: bool,
    pub(super) split: bool,
}

impl Switches {
    /// Reads a query string; the error is a sentence for the caller.
    pub(super) fn parse(query: Option<&str>) -> Result<Self, String> {
        let mut switches = Self::default();
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            let value = value.as_ref();
            let read = match name.as_ref() {
                "delay" => wait(value).map(|wait| switches.delay = Some(wait)),
                "first" => wait(value).map(|wait| switches.first = wait),
                "tokens" => count(value).map(|count| switches.tokens = Some(count)),
                "fail_after" => count(value).map(|count| switches.fail_after = Some(count)),
                "error_after" => count(value).map(|count| switches.error_after = Some(count)),
                "stall_after" => count(value).map(|count| switches.stall_after = Some(count)),
                "status" => status(value).map(|status| switches.status = Some(status)),
                "hang" => flag(value).map(|on| switches.hang = on),
                "split" => flag(value).map(|on| switches.split = on),
                _ => Ok(()),
            };
            read.map_err(|wanted| format!("switch `{name}`: `{value}` is not {wanted}"))?;
        }
        Ok(switches)
    }
}

fn wait(text: &str) -> Result<Duration, &'static str> {
    let unit = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit);
    let wait = number.parse().ok().and_then(|number| match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        _ => None,
    });
    wait.filter(|wait| *wait <= MAX_WAIT).ok_or("a duration such as 10ms or 2s, at most 600s")
}

fn count(text: &str) -> Result<usize, &'static str> {
    text.parse().ok().filter(|count| *count <= MAX_TOKENS).ok_or("a whole number of tokens, at most 1000000")
}

fn status(text: &str) -> Result<StatusCode, &'static str> {
    let status = text.parse().ok().filter(|status: &StatusCode| (200..600).contains(&status.as_u16()));
    status.ok_or("an HTTP status from 200 to 599")
}

fn flag(text: &str) -> Result<bool, &'static str> {
    match text {
        "1" | "true" | "" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err("1 or 0"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_switch_is_read_and_strangers_are_left_alone() {
        let query = "q=1&delay=0ms&first=2s&tokens=300&fail_after=5&error_after=6&stall_after=7&status=503&hang=1&split";
        let expected = Switches {
            delay: Some(Duration::ZERO),
            first: Duration::from_secs(2),
            tokens: Some(300),
            fail_after: Some(5),
            error_after: Some(6),
            stall_after: Some(7),
            status: Some(StatusCode::SERVICE_UNAVAILABLE),
            hang: true,
            split: true,
        };
        assert_eq!(Switches::parse(Some(query)), Ok(expected));
        assert_eq!(Switches::parse(None), Ok(Switches::default()));
    }

    #[test]
    fn an_unreadable_value_names_its_switch() {
        for query in [
            "delay=10",
            "delay=-1ms",
            "first=1h",
            "first=601s",
            "tokens=x",
            "tokens=1000001",
            "status=99",
            "hang=si",
        ] {
            let name = query.split('=').next().unwrap();
            let error = Switches::parse(Some(query)).unwrap_err();
            assert!(error.contains(&format!("`{name}`")), "{query}: {error}");
        }
    }
}
