//! `retry:`, checked.

use super::bad;
use crate::diag::{Code, Diagnostic, Diagnostics};
use crate::manifest::Spanned;
use crate::manifest::model::{self, RetryCause, RetryOn};
use http::Method;
use std::hash::{Hash, Hasher};
use std::time::Duration;

/// Methods that may be repeated (RFC 9110, section 9.2.2). TRACE is never sent.
const IDEMPOTENT: [Method; 5] = [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE];

/// What is tried again, how often, and when.
#[derive(Debug, Clone, PartialEq)]
pub struct RetrySpec {
    /// Tries at most, the first included.
    pub attempts: u32,
    /// Whether a connection that cannot be had is.
    pub connect: bool,
    /// Whether one that broke before an answer is.
    pub reset: bool,
    /// The statuses that are.
    pub statuses: Vec<u16>,
    /// Retries at most, as a share of the requests.
    pub budget: f64,
    /// Retries a second that are always allowed.
    pub min_retries: u32,
    /// Methods that may be tried again without a key.
    pub methods: Vec<Method>,
    /// Until a try without an answer has failed.
    pub per_try: Option<Duration>,
    /// Bound of the rest before the second try.
    pub backoff_base: Duration,
    /// Bound of the rest before any try.
    pub backoff_max: Duration,
    /// Largest body that is kept, in bytes.
    pub max_body: u64,
    /// After how long a second try begins beside the first.
    pub hedge: Option<Duration>,
}

impl RetrySpec {
    /// Is it sound? Reports every fault.
    pub(super) fn check(decl: &model::Retry, out: &mut Diagnostics) -> RetrySpec {
        let attempts = decl.attempts.as_ref().map_or(2, |attempts| {
            if !(1..=10).contains(&attempts.value) {
                out.push(
                    bad(attempts.span, "expected 1 to 10 tries, the first included")
                        .help("every try is load for what is failing already"),
                );
            }
            attempts.value
        });
        let statuses = decl.on.0.iter().filter_map(|on| match on.value {
            RetryOn::Status(status) => {
                if !(500..=599).contains(&status) {
                    out.push(bad(on.span, "only answers of 500 to 599 are tried again").help(
                        "what the caller did wrong stays wrong; 429 asks for fewer requests, not more",
                    ));
                }
                Some(status)
            }
            RetryOn::Cause(_) => None,
        });
        let statuses: Vec<u16> = statuses.collect();
        let default = decl.on.0.is_empty();
        let cause = |cause| default || decl.on.0.iter().any(|on| on.value == RetryOn::Cause(cause));
        if let (Some(hedge), Some(per_try)) = (&decl.hedge, decl.per_try)
            && hedge.after.value >= per_try
        {
            out.push(
                Diagnostic::error(Code::DEADLINES, hedge.after.span, "the first try has ended by then")
                    .help("make `hedge.after` shorter than `per_try`"),
            );
        }
        let backoff = decl.backoff.as_ref();
        let base = backoff.and_then(|backoff| backoff.base).map_or(Duration::from_millis(25), |base| base.0);
        let max = backoff.and_then(|backoff| backoff.max).map_or(Duration::from_millis(250), |max| max.0);
        RetrySpec {
            attempts,
            connect: cause(RetryCause::Connect),
            reset: cause(RetryCause::Reset),
            statuses: if default { vec![502, 503, 504] } else { statuses },
            budget: decl.budget.map_or(0.2, |budget| budget.0),
            min_retries: decl.min_retries.unwrap_or(1),
            methods: methods(&decl.methods.0, out),
            per_try: decl.per_try.map(|per_try| per_try.0),
            backoff_base: base,
            backoff_max: max.max(base),
            max_body: decl.max_body.map_or(64 << 10, |max| max.0),
            hedge: decl.hedge.as_ref().map(|hedge| hedge.after.value.0),
        }
    }
}

fn methods(named: &[Spanned<String>], out: &mut Diagnostics) -> Vec<Method> {
    if named.is_empty() {
        return IDEMPOTENT.to_vec();
    }
    let known = |name: &str| IDEMPOTENT.into_iter().find(|method| method.as_str().eq_ignore_ascii_case(name));
    let methods = named.iter().filter_map(|method| {
        let found = known(&method.value);
        if found.is_none() {
            let message = format!("`retry` would repeat {}, which is not safe to repeat", method.value);
            out.push(
                Diagnostic::error(Code::UNSAFE_RETRY, method.span, message)
                    .help("name idempotent methods only: GET, HEAD, OPTIONS, PUT, DELETE"),
            );
        }
        found
    });
    methods.collect()
}

impl Hash for RetrySpec {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.attempts, self.connect, self.reset, &self.statuses, self.min_retries, &self.methods)
            .hash(state);
        (self.per_try, self.backoff_base, self.backoff_max, self.max_body, self.hedge).hash(state);
        self.budget.to_bits().hash(state);
    }
}
