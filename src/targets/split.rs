//! `split:`, several upstreams by weight (canary).
//!
//! A caller always goes to the same one: the hash of the user's id (or of the address, where nobody knows the user)
//! falls into one of the shares. The hash is SHA-256, so that every replica and every version of the gateway says the
//! same; shares lie side by side in the order of the list, so that raising the last one's weight moves callers to it
//! and none away from it. A caller who may choose does so by the declared header or cookie, among the declared
//! upstreams only; any other name counts for nothing.

use super::{Misfit, Target, TargetCx};
use crate::diag::{Code, Diagnostic, Diagnostics};
use crate::endpoint::{Next, sealed};
use crate::exchange::{Exchange, RouteInfo};
use crate::manifest::Spanned;
use crate::manifest::model::{self, SplitBy};
use crate::openapi::OperationDoc;
use http::header::COOKIE;
use http::{HeaderMap, HeaderName};
use poem::{Endpoint, Request, Response};
use sha2::{Digest, Sha256};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

/// Makes the target of an upstream.
pub(super) type One<'a> = dyn Fn(&Spanned<String>, &mut Diagnostics) -> Option<Arc<dyn Target>> + 'a;

/// A checked `split:`.
pub(super) struct Split {
    legs: Vec<Leg>,
    rule: Arc<Rule>,
}

/// One upstream of it.
struct Leg {
    target: Arc<dyn Target>,
    weight: u32,
}

/// Who goes where.
#[derive(Debug)]
struct Rule {
    names: Vec<String>,
    /// Sums of the weights so far.
    ends: Vec<u64>,
    by: SplitBy,
    header: Option<HeaderName>,
    cookie: Option<String>,
}

/// Is it sound? Reports every fault.
pub(super) fn check(
    decl: &Spanned<model::Split>,
    one: &One<'_>,
    out: &mut Diagnostics,
) -> Option<Arc<dyn Target>> {
    let before = out.counts().0;
    let shares = &decl.to.0;
    if shares.len() < 2 {
        out.push(
            Diagnostic::error(Code::SPLIT, decl.span, "a split needs at least two upstreams")
                .help("name another one, or write `upstream:`"),
        );
    } else if shares.iter().all(|share| share.weight.value == 0) {
        out.push(
            Diagnostic::error(Code::SPLIT, shares[0].weight.span, "every share of this split is 0")
                .help("give at least one upstream a weight above 0"),
        );
    }
    for (at, share) in shares.iter().enumerate() {
        let name = &share.upstream;
        if let Some(first) = shares[..at].iter().find(|other| other.upstream.value == name.value) {
            out.push(
                Diagnostic::error(Code::SPLIT, name.span, format!("`{}` has two shares", name.value))
                    .help("add them up")
                    .note(first.upstream.span, "the first stands here"),
            );
        }
    }
    let header = decl.header.as_ref().and_then(|name| match HeaderName::try_from(name.value.as_str()) {
        Ok(header) => Some(header),
        Err(_) => {
            let message = format!("`{}` cannot be a header's name", name.value);
            out.push(Diagnostic::error(Code::BAD_VALUE, name.span, message));
            None
        }
    });
    if let Some(cookie) = &decl.cookie
        && HeaderName::try_from(cookie.value.as_str()).is_err()
    {
        let message = format!("`{}` cannot be a cookie's name", cookie.value);
        out.push(Diagnostic::error(Code::BAD_VALUE, cookie.span, message));
    }
    let targets: Vec<_> = shares.iter().map(|share| one(&share.upstream, out)).collect();
    if out.counts().0 > before {
        return None;
    }
    let mut sum = 0;
    let ends = shares.iter().map(|share| {
        sum += u64::from(share.weight.value);
        sum
    });
    let rule = Rule {
        ends: ends.collect(),
        names: shares.iter().map(|share| share.upstream.value.clone()).collect(),
        by: decl.by.as_ref().map_or_else(SplitBy::default, |by| by.value),
        header,
        cookie: decl.cookie.as_ref().map(|cookie| cookie.value.clone()),
    };
    let legs = targets
        .into_iter()
        .zip(shares)
        .map(|(target, share)| Some(Leg { target: target?, weight: share.weight.value }));
    Some(Arc::new(Split { legs: legs.collect::<Option<_>>()?, rule: Arc::new(rule) }))
}

impl Rule {
    /// Index of the upstream that a request goes to.
    fn choose(&self, exchange: &Exchange, headers: &HeaderMap) -> usize {
        self.chosen(headers).unwrap_or_else(|| self.share_of(exchange))
    }

    /// The one that the caller chose, if it is one of ours.
    fn chosen(&self, headers: &HeaderMap) -> Option<usize> {
        let index = |name: &[u8]| self.names.iter().position(|known| known.as_bytes() == name);
        let header = self.header.as_ref().and_then(|name| headers.get(name));
        header.and_then(|value| index(value.as_bytes().trim_ascii())).or_else(|| {
            let wanted = self.cookie.as_ref()?;
            let cookies =
                headers.get_all(COOKIE).iter().flat_map(|value| value.as_bytes().split(|b| *b == b';'));
            let mut values = cookies
                .filter_map(|cookie| cookie.trim_ascii().strip_prefix(wanted.as_bytes())?.strip_prefix(b"="));
            index(values.next()?.trim_ascii())
        })
    }

    /// The one whose share the caller is in.
    fn share_of(&self, exchange: &Exchange) -> usize {
        let user = match self.by {
            SplitBy::User => exchange.identity().map(|identity| &*identity.user_id),
            SplitBy::Ip => None,
        };
        let digest = match user.filter(|id| !id.is_empty()) {
            Some(user) => Sha256::new().chain_update(b"user:").chain_update(user),
            None => match exchange.client_ip.to_canonical() {
                std::net::IpAddr::V4(ip) => Sha256::new().chain_update(b"ip:").chain_update(ip.octets()),
                std::net::IpAddr::V6(ip) => Sha256::new().chain_update(b"ip:").chain_update(ip.octets()),
            },
        };
        let digest = digest.finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        let total = self.ends.last().copied().unwrap_or_default();
        // Its place on the line of all shares, without the bias of a remainder.
        let place = ((u128::from(u64::from_be_bytes(first)) * u128::from(total)) >> 64) as u64;
        self.ends.iter().position(|end| place < *end).unwrap_or_default()
    }
}

impl Target for Split {
    fn build(&self, cx: &TargetCx<'_>) -> Next {
        let legs = self.legs.iter().map(|leg| leg.target.build(cx)).collect();
        sealed(Running { legs, rule: self.rule.clone() })
    }

    fn document(&self, op: &mut OperationDoc) {
        self.legs.iter().for_each(|leg| leg.target.document(op));
    }

    fn streams(&self) -> bool {
        self.legs.iter().any(|leg| leg.target.streams())
    }

    fn passes_calls(&self) -> bool {
        self.legs.iter().any(|leg| leg.target.passes_calls())
    }

    fn misfit(&self, route: &RouteInfo) -> Option<Misfit> {
        self.legs.iter().find_map(|leg| leg.target.misfit(route))
    }

    fn longest_stream(&self) -> Option<Duration> {
        self.legs.iter().filter_map(|leg| leg.target.longest_stream()).max()
    }

    fn is_socket(&self) -> bool {
        self.legs.iter().any(|leg| leg.target.is_socket())
    }

    fn counts_callers(&self) -> bool {
        self.legs.iter().any(|leg| leg.target.counts_callers())
    }

    fn identify(&self, mut state: &mut dyn Hasher) {
        (&self.rule.names, &self.rule.ends).hash(&mut state);
        self.legs.iter().for_each(|leg| leg.target.identify(state));
    }

    fn describe(&self, path: &str, values: &[&str]) -> String {
        let total = self.rule.ends.last().copied().unwrap_or_default().max(1) as f64;
        let legs = self.legs.iter().zip(&self.rule.names).map(|(leg, name)| {
            let share = f64::from(leg.weight) * 100.0 / total;
            let share = format!("{share:.1}");
            let share = share.strip_suffix(".0").unwrap_or(&share);
            format!("{share}% {name}: {}", leg.target.describe(path, values))
        });
        format!("split {}", legs.collect::<Vec<_>>().join("; "))
    }
}

/// A `split:` that runs.
struct Running {
    legs: Vec<Next>,
    rule: Arc<Rule>,
}

impl Endpoint for Running {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let index = self.rule.choose(Exchange::of(&request), request.headers());
        self.legs[index].call(request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::tests::exchange;
    use crate::identity::{Identity, Proof};
    use http::Method;

    fn rule(weights: &[u64]) -> Rule {
        let ends = weights.iter().scan(0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        });
        Rule {
            names: ["a", "b", "c"].iter().map(|name| (*name).to_owned()).collect(),
            ends: ends.collect(),
            by: SplitBy::User,
            header: Some(HeaderName::from_static("x-canary")),
            cookie: Some("canary".to_owned()),
        }
    }

    fn of_user(id: &str) -> Arc<Exchange> {
        let one = exchange(Method::GET, "/a");
        one.identified(Arc::new(Identity {
            user_id: id.into(),
            tenant_id: "".into(),
            role: "user".into(),
            scopes: Vec::new(),
            channel: None,
            openid: None,
            token_id: None,
            issued_at: None,
            expires_at: None,
            proof: Proof::Token,
        }));
        one
    }

    #[test]
    fn shares_are_the_weights_and_stay() {
        let (ten, twenty) = (rule(&[90, 10, 0]), rule(&[80, 20, 0]));
        let (mut canaries, mut moved) = (0, 0);
        for n in 0..4000 {
            let user = of_user(&format!("user-{n}"));
            let (now, then) = (ten.share_of(&user), twenty.share_of(&user));
            canaries += now;
            moved += then - now;
            assert!(then >= now, "who was in the canary stays in it");
        }
        assert!((340..460).contains(&canaries), "{canaries} of 4000 is not 10 %");
        assert!((340..460).contains(&moved), "{moved} of 4000 is not another 10 %");
    }

    #[test]
    fn the_hash_is_the_same_everywhere() {
        // Changes only with a new format: replicas of two versions must agree.
        let places = (0..16).map(|n| rule(&[50, 50]).share_of(&of_user(&format!("user-{n}"))).to_string());
        assert_eq!(places.collect::<String>(), "0101000110011101");
    }

    #[test]
    fn who_may_choose_chooses_among_the_declared() {
        let rule = rule(&[1, 0, 0]);
        let user = of_user("somebody");
        let choose = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, http::HeaderValue::from_static(value));
            rule.choose(&user, &headers)
        };
        assert_eq!(choose("x-canary", "b"), 1);
        assert_eq!(choose("x-canary", "unknown"), 0);
        assert_eq!(choose("cookie", "x=1; canary=c"), 2);
        assert_eq!(choose("cookie", "canaryx=c; other=b"), 0);
        assert_eq!(choose("x-other", "b"), 0);
    }
}
