//! Several tries at one request.
//!
//! What may go out twice: a request that provably never left, whatever its method; and one of an idempotent method, or
//! with an `Idempotency-Key`, whose body is small enough to be kept. Never more than the manifest's `attempts`, and never
//! more than the budget allows, so that an upstream that fails is not kept down by its callers. Each try goes to a
//! server that was not tried before, where there is one. What came of a try is thrown away only when another is sure to
//! be made: else callers get what the last one said.

use super::circuits::Chosen;
use super::kept::{Kept, Outgoing};
use super::pool::Server;
use super::send::{Deadlines, SendOptions, Unanswered, callers_fault};
use super::spec::RetrySpec;
use super::{Upstream, UpstreamBody};
use crate::error::{BodyTimeout, GatewayError, Kind};
use crate::exchange::Exchange;
use bytes::Bytes;
use futures_util::future::{Either, select};
use http::header::{HeaderName, RETRY_AFTER, TRAILER};
use http::{HeaderMap, Method, Response};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout, timeout_at};

static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// How much of an answer that nobody wants is read so that its connection can go on, and how long that may take.
const DRAINED: usize = 64 << 10;
const DRAIN: Duration = Duration::from_millis(500);

type Answer = Result<Response<UpstreamBody>, Unanswered>;

/// Where a try goes, and when it ends.
pub(super) struct Try<'a> {
    pub(super) exchange: &'a Arc<Exchange>,
    pub(super) options: &'a SendOptions,
    pub(super) deadlines: Deadlines,
    /// Until a connection stands.
    pub(super) patience: Duration,
    /// When the answer's body has to be over.
    pub(super) until: Option<Instant>,
}

/// Why another try is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reason {
    Connect,
    Reset,
    Status(u16),
}

impl Reason {
    fn word(self) -> String {
        match self {
            Reason::Connect => "connect".to_owned(),
            Reason::Reset => "reset".to_owned(),
            Reason::Status(status) => status.to_string(),
        }
    }
}

impl RetrySpec {
    /// Why the answer is worth another try, if it is.
    fn reason(&self, answer: &Answer) -> Option<Reason> {
        let status = |status: u16| self.statuses.contains(&status).then_some(Reason::Status(status));
        match answer {
            Ok(response) => status(response.status().as_u16()),
            Err(Unanswered { error, .. }) => match error.kind {
                Kind::UpstreamUnreachable => self.connect.then_some(Reason::Connect),
                Kind::UpstreamReset => self.reset.then_some(Reason::Reset),
                Kind::UpstreamBadResponse => status(502),
                Kind::UpstreamSaturated => status(503),
                Kind::UpstreamTimeout => status(504),
                _ => None,
            },
        }
    }

    /// How long to rest before try `number` + 1; none where the answer asks for more than that. `dice` is below 1.
    fn rest(&self, number: u32, answer: &Answer, dice: f64) -> Option<Duration> {
        let asked = answer.as_ref().ok().and_then(|response| response.headers().get(RETRY_AFTER));
        if let Some(asked) = asked {
            let seconds: u64 = asked.to_str().ok()?.trim().parse().ok()?;
            let asked = Duration::from_secs(seconds);
            return (asked <= self.backoff_max).then_some(asked);
        }
        let bound = self.backoff_base.saturating_mul(1 << (number - 1).min(16)).min(self.backoff_max);
        Some(bound.mul_f64(dice))
    }

    /// Whether the request may be said twice, if its body is kept.
    fn repeats(&self, method: &Method, headers: &HeaderMap) -> bool {
        // `Trailer` tells of what would not be kept.
        (self.methods.contains(method) || headers.contains_key(&IDEMPOTENCY_KEY))
            && !headers.contains_key(TRAILER)
    }
}

impl Upstream {
    /// Sends a request up to `retry.attempts` times.
    pub(super) async fn send_again(
        self: &Arc<Self>,
        retry: &RetrySpec,
        key: Option<u64>,
        request: Outgoing,
        plan: Try<'_>,
    ) -> Result<Response<UpstreamBody>, GatewayError> {
        let Some(budget) = &self.budget else { return Err(Kind::Internal.into()) };
        budget.request(self.now());
        let (request, kept) = keep(retry, request, &plan).await?;
        let (mut next, mut tried, mut number) = (Some(request), Vec::<Arc<Server>>::new(), 0);
        let mut last: Option<Answer> = None;
        loop {
            let request = match (next.take(), &kept) {
                (Some(request), _) => request,
                (None, Some(kept)) => kept.request(),
                (None, None) => break,
            };
            let chosen = match self.pick(key, &tried) {
                Ok(chosen) => chosen,
                // What is known of the tries before says more.
                Err(error) => return last.map_or(Err(error), finished),
            };
            number += 1;
            let server = chosen.server.clone();
            let hedge = retry
                .hedge
                .filter(|_| number == 1 && matches!(*request.method(), Method::GET | Method::HEAD));
            let answer = match (hedge, &kept) {
                (Some(after), Some(kept)) => {
                    self.hedged(retry, key, chosen, request, kept, &plan, after, &mut tried).await
                }
                _ => self.try_once(retry, chosen, request, kept.as_ref(), &plan).await,
            };
            tried.push(server);
            let Some(reason) = retry.reason(&answer) else { return finished(answer) };
            let unsent = matches!(&answer, Err(unanswered) if unanswered.request.is_some());
            let rest = retry.rest(number, &answer, rand::random());
            let too_late = |rest| plan.until.is_some_and(|until| Instant::now() + rest >= until);
            let Some(rest) =
                rest.filter(|rest| number < retry.attempts && (unsent || kept.is_some()) && !too_late(*rest))
            else {
                return finished(answer);
            };
            if !budget.take(self.now()) {
                self.retries.exhausted();
                return finished(answer);
            }
            self.retries.again(reason.word());
            tracing::debug!(
                request_id = plan.exchange.request_id(),
                upstream = &**self.spec().name(),
                reason = reason.word(),
                number,
                "a request is tried again"
            );
            last = Some(match answer {
                Ok(response) => {
                    let status = response.status();
                    drain(response.into_body());
                    Err(Unanswered::from(kind_of(status.as_u16())))
                }
                Err(mut unanswered) => {
                    next = unanswered.request.take().map(|request| *request);
                    Err(unanswered)
                }
            });
            sleep(rest).await;
        }
        last.map_or(Err(Kind::Internal.into()), finished)
    }

    /// One try within `per_try`.
    async fn try_once(
        self: &Arc<Self>,
        retry: &RetrySpec,
        chosen: Chosen,
        request: Outgoing,
        kept: Option<&Kept>,
        plan: &Try<'_>,
    ) -> Answer {
        let mut one = Try { deadlines: plan.deadlines, ..*plan };
        // What cannot be said twice has all the time there is.
        if let Some(per_try) = retry.per_try.filter(|_| kept.is_some()) {
            let end = Instant::now() + per_try;
            one.deadlines.until = Some(one.deadlines.until.map_or(end, |until| until.min(end)));
            one.patience = one.patience.min(per_try);
        }
        self.attempt(chosen, request, &one).await
    }

    /// A try, and a second one beside it if the first takes too long. The first good answer counts, and the other try is
    /// given up.
    #[expect(clippy::too_many_arguments, reason = "what two tries are made of")]
    async fn hedged(
        self: &Arc<Self>,
        retry: &RetrySpec,
        key: Option<u64>,
        chosen: Chosen,
        request: Outgoing,
        kept: &Kept,
        plan: &Try<'_>,
        after: Duration,
        tried: &mut Vec<Arc<Server>>,
    ) -> Answer {
        let first_server = chosen.server.clone();
        let mut first = Box::pin(self.try_once(retry, chosen, request, Some(kept), plan));
        if let Ok(answer) = timeout(after, &mut first).await {
            return answer;
        }
        let other = match self.pick(key, std::slice::from_ref(&first_server)) {
            Ok(other) if !Arc::ptr_eq(&other.server, &first_server) => other,
            _ => return first.await,
        };
        if !self.budget.as_ref().is_some_and(|budget| budget.take(self.now())) {
            self.retries.exhausted();
            return first.await;
        }
        self.retries.again("hedge".to_owned());
        let note = first_server.note.clone();
        tried.push(other.server.clone());
        let second = pin!(self.try_once(retry, other, kept.request(), Some(kept), plan));
        // The second was noted as it began; where the first answers after all, it is that one again.
        match select(first, second).await {
            Either::Left((answer, second)) => match retry.reason(&answer) {
                None => {
                    plan.exchange.sent_to(note);
                    answer
                }
                Some(_) => second.await,
            },
            Either::Right((answer, first)) => match retry.reason(&answer) {
                None => answer,
                Some(_) => {
                    plan.exchange.sent_to(note);
                    first.await
                }
            },
        }
    }
}

fn finished(answer: Answer) -> Result<Response<UpstreamBody>, GatewayError> {
    answer.map_err(|unanswered| unanswered.error)
}

/// The error that stands for an answer of which nothing is left.
fn kind_of(status: u16) -> GatewayError {
    match status {
        503 => Kind::UpstreamSaturated.into(),
        504 => Kind::UpstreamTimeout.into(),
        _ => Kind::UpstreamBadResponse.into(),
    }
}

/// The request, and what is kept of it where it may be said twice.
async fn keep(
    retry: &RetrySpec,
    request: Outgoing,
    plan: &Try<'_>,
) -> Result<(Outgoing, Option<Kept>), GatewayError> {
    if (retry.attempts < 2 && retry.hedge.is_none()) || !retry.repeats(request.method(), request.headers()) {
        return Ok((request, None));
    }
    if let Some(kept) = Kept::bodyless(&request) {
        return Ok((request, Some(kept)));
    }
    let small = request.body().size_hint().exact().is_some_and(|size| size <= retry.max_body);
    if !small || plan.options.duplex {
        return Ok((request, None));
    }
    let (parts, body) = request.into_parts();
    let collected = match plan.until {
        Some(until) => {
            timeout_at(until, body.collect()).await.map_err(|_| GatewayError::from(BodyTimeout))?
        }
        None => body.collect().await,
    };
    let body = collected.map_err(|error| callers_fault(&error))?.to_bytes();
    let kept = Kept::of(&parts, body);
    Ok((kept.request(), Some(kept)))
}

/// Reads what nobody wants to its end, so that the connection can go on, if that is near.
fn drain(body: UpstreamBody) {
    if body.is_end_stream() {
        return;
    }
    tokio::spawn(async move {
        let mut body = pin!(body);
        let read = async {
            let mut size = 0;
            while let Some(Ok(frame)) = body.frame().await {
                size += frame.data_ref().map_or(0, Bytes::len);
                if size > DRAINED {
                    break;
                }
            }
        };
        let _ = timeout(DRAIN, read).await;
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    fn spec() -> RetrySpec {
        RetrySpec {
            attempts: 4,
            connect: true,
            reset: false,
            statuses: vec![502, 503],
            budget: 0.2,
            min_retries: 1,
            methods: vec![Method::GET],
            per_try: None,
            backoff_base: Duration::from_millis(20),
            backoff_max: Duration::from_millis(50),
            max_body: 10,
            hedge: None,
        }
    }

    #[test]
    fn only_what_is_named_is_tried_again() {
        let failed = |kind: Kind| Err(Unanswered::from(GatewayError::from(kind)));
        let reason = |kind| spec().reason(&failed(kind)).map(Reason::word);
        assert_eq!(reason(Kind::UpstreamUnreachable).as_deref(), Some("connect"));
        assert_eq!(reason(Kind::UpstreamReset), None);
        assert_eq!(reason(Kind::UpstreamBadResponse).as_deref(), Some("502"));
        assert_eq!(reason(Kind::UpstreamTimeout), None, "504 is not named");
        assert_eq!(reason(Kind::BadRequest), None);
        assert_eq!(reason(Kind::UpstreamUnavailable), None, "an open breaker is not asked again");
    }

    #[test]
    fn rests_grow_to_a_bound() {
        let failed: Answer = Err(Unanswered::from(GatewayError::from(Kind::UpstreamReset)));
        let rests = [1, 2, 3, 40].map(|number| spec().rest(number, &failed, 0.5).unwrap().as_millis());
        assert_eq!(rests, [10, 20, 25, 25]);
    }

    #[test]
    fn a_key_makes_a_post_repeatable_and_trailers_do_not() {
        let mut headers = HeaderMap::new();
        assert!(!spec().repeats(&Method::POST, &headers));
        headers.insert(&IDEMPOTENCY_KEY, "a".parse().unwrap());
        assert!(spec().repeats(&Method::POST, &headers));
        headers.insert(TRAILER, "checksum".parse().unwrap());
        assert!(!spec().repeats(&Method::POST, &headers) && !spec().repeats(&Method::GET, &headers));
        assert_eq!(kind_of(StatusCode::SERVICE_UNAVAILABLE.as_u16()).kind, Kind::UpstreamSaturated);
    }
}
