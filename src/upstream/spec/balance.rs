//! How a server is chosen, and which are passed over for what their traffic shows.

use super::bad;
use crate::diag::{Code, Diagnostic, Diagnostics};
use crate::manifest::Spanned;
use crate::manifest::model::{Balance, Outlier};
use crate::units::Dur;
use http::HeaderName;
use std::hash::{Hash, Hasher};
use std::time::Duration;

/// How a server is chosen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Choice {
    /// In turn, by weight.
    RoundRobin,
    /// The less busy of two drawn by weight.
    LeastRequest,
    /// By lot, by weight.
    Random,
    /// The same server for the same key, by weight.
    Hash(HashBy),
}

/// What a request's key is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HashBy {
    /// The caller; the client's address where nobody is known.
    User,
    /// The conversation; the caller where there is none.
    Session,
    /// The client's address.
    Ip,
    /// A header; none without it.
    Header(HeaderName),
}

/// When a server is ejected, and for how long.
#[derive(Debug, Clone, PartialEq)]
pub struct OutlierSpec {
    /// Failures in a row.
    pub consecutive_failures: u32,
    /// How long what happened counts.
    pub interval: Duration,
    /// Requests within the interval below which no share counts.
    pub min_requests: u32,
    /// Share of failures, 0 to 1.
    pub failure_ratio: f64,
    /// From when on an answer is slow, if one can be.
    pub slow_call: Option<Duration>,
    /// Share of slow answers, 0 to 1.
    pub slow_ratio: f64,
    /// How many times as long as the others' its answers may take on average, if that is looked at.
    pub slow_factor: Option<f64>,
    /// How long the first ejection lasts.
    pub eject_for: Duration,
    /// How long one lasts at most.
    pub max_eject_for: Duration,
    /// Share of the servers that may be ejected at a time, 0 to 1.
    pub max_ejected: f64,
}

impl Hash for OutlierSpec {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.consecutive_failures, self.interval, self.min_requests, self.slow_call).hash(state);
        (self.eject_for, self.max_eject_for, self.slow_factor.map(f64::to_bits)).hash(state);
        [self.failure_ratio, self.slow_ratio, self.max_ejected].map(f64::to_bits).hash(state);
    }
}

pub(super) fn check(decl: Option<&Spanned<Balance>>, out: &mut Diagnostics) -> Option<Choice> {
    Some(match decl.map(|balance| &balance.value) {
        None | Some(Balance::RoundRobin) => Choice::RoundRobin,
        Some(Balance::LeastRequest) => Choice::LeastRequest,
        Some(Balance::Random) => Choice::Random,
        Some(Balance::Hash(by)) => Choice::Hash(match by.value.as_str() {
            "user" => HashBy::User,
            "session" => HashBy::Session,
            "ip" => HashBy::Ip,
            other => match other.strip_prefix("header.").map(HeaderName::try_from) {
                Some(Ok(name)) => HashBy::Header(name),
                Some(Err(_)) => {
                    out.push(Diagnostic::error(Code::HASH_KEY, by.span, "no header can be called so"));
                    return None;
                }
                None => {
                    let fault = Diagnostic::error(Code::HASH_KEY, by.span, "requests have no such key");
                    out.push(fault.help("write `user`, `session`, `ip`, or a header: `header.X-Device-ID`"));
                    return None;
                }
            },
        }),
    })
}

/// `None` where it is switched off.
pub(super) fn outlier(
    decl: Option<&Spanned<Outlier>>,
    choice: Option<&Choice>,
    out: &mut Diagnostics,
) -> Option<OutlierSpec> {
    let none = Outlier::default();
    let decl = decl.map_or(&none, |decl| &decl.value);
    let mut count = |given: &Option<Spanned<u32>>, default: u32| match given {
        Some(zero) if zero.value == 0 => {
            out.push(Diagnostic::error(Code::OUTLIER, zero.span, "expected at least 1"));
            default
        }
        given => given.as_ref().map_or(default, |count| count.value),
    };
    let consecutive_failures = count(&decl.consecutive_failures, 5);
    let min_requests = count(&decl.min_requests, 20);
    let mut share = |given: &Option<Spanned<f64>>| match given {
        Some(share) if !(share.value > 0.0 && share.value <= 1.0) => {
            let fault =
                Diagnostic::error(Code::OUTLIER, share.span, "expected a share above 0, and at most 1");
            out.push(fault.help("half of the requests is `0.5`"));
            0.5
        }
        given => given.as_ref().map_or(0.5, |share| share.value),
    };
    let failure_ratio = share(&decl.failure_ratio);
    let slow_ratio = share(&decl.slow_ratio);
    if let (Some(ratio), None) = (&decl.slow_ratio, &decl.slow_call) {
        let fault = Diagnostic::error(Code::OUTLIER, ratio.span, "without `slow_call` no answer is slow");
        out.push(fault.help("add `slow_call`, such as `slow_call: 1s`, or remove `slow_ratio`"));
    }
    let slow_factor = match &decl.slow_factor {
        // Their callers differ, and with them what is asked of each.
        None => (!matches!(choice, Some(Choice::Hash(_)))).then_some(5.0),
        Some(factor) if factor.value == 0.0 => None,
        Some(factor) if !(factor.value > 1.0 && factor.value.is_finite()) => {
            let fault =
                Diagnostic::error(Code::OUTLIER, factor.span, "expected a factor above 1, or 0 for never");
            out.push(fault.help("`slow_factor: 5` ejects servers that are five times as slow as the others"));
            None
        }
        Some(factor) => Some(factor.value),
    };
    let time = |given: &Option<Spanned<Dur>>, default: u64| {
        given.as_ref().map_or(Duration::from_secs(default), |time| time.value.0)
    };
    let eject_for = time(&decl.eject_for, 30);
    let max_eject_for = match &decl.max_eject_for {
        Some(max) if max.value.0 < eject_for => {
            let fault = Diagnostic::error(
                Code::DEADLINES,
                max.span,
                "an ejection may last less than the first one does",
            );
            out.push(fault.help("make `max_eject_for` at least as long as `eject_for`"));
            eject_for
        }
        Some(max) => max.value.0,
        None => Duration::from_secs(300).max(eject_for),
    };
    let interval = time(&decl.interval, 10);
    if let Some(short) = decl.interval.as_ref().filter(|_| interval < Duration::from_millis(100)) {
        out.push(bad(short.span, "an interval shorter than 100ms has nothing to count"));
    }
    decl.enabled.unwrap_or(true).then_some(OutlierSpec {
        consecutive_failures,
        interval,
        min_requests,
        failure_ratio,
        slow_call: decl.slow_call.map(|slow| slow.0),
        slow_ratio,
        slow_factor,
        eject_for,
        max_eject_for,
        max_ejected: decl.max_ejected.map_or(0.5, |share| share.0),
    })
}
