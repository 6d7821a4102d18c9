//! `auth`: asks for a valid token and learns who is calling.
//!
//! The token stands where `auth.token_from` says: `Authorization: Bearer`, `?token=`, or the cookies `access_token` and
//! `token`. The first place that has one counts; a bad token there is not made up for by another. No token, a bad one,
//! one whose time is over and one that was taken back are 401, each with its own code. A token with less than
//! `renew_within` left brings `X-New-Token` with the answer, unless it was revoked meanwhile.
//!
//! A browser can't set headers on a WebSocket. On routes that open one, and on no others, a token may also stand in
//! `Sec-WebSocket-Protocol` (`voicegate.v1, bearer.<token>`, which counts as the header), and `?ticket=` comes before all
//! tokens: it is taken from shared state, once ([`tickets`](crate::tokens::Ticket)); 401 where it was used, 503 where
//! nobody can say. Cookies come with a browser's every WebSocket, also of a page that is none of ours: that the target
//! checks `Origin` is what makes them safe there. Such routes renew nothing: scripts cannot read the head of a 101, the
//! connection ends with the token that opened it, and a ticket must not become a token. `auth.ticket` renews.
//!
//! Verifying takes no lock and no trip. A request may wait where the manifest names other issuers and a token names a
//! key that is not known yet, and for a ticket. A caller whom an earlier stage knows already (by an API key) passes.
//!
//! Off by leaving it out, and `public: true`. How long connections end with their token is the targets' business:
//! [`Tokens::ended`](crate::tokens::Tokens::ended) is what they wait for.

use super::{
    Body, BuildCx, Hook, Layer, Mark, Next, Probe, Stage, StageCx, StageDecl, Stop, Verdict, sealed,
};
use crate::diag::Diagnostics;
use crate::error::{GatewayError, Kind};
use crate::exchange::Exchange;
use crate::identity::Identity;
use crate::manifest::model::TokenSource;
use crate::openapi::{Alternative, On, OperationDoc};
use crate::tokens::policy::AuthPolicy;
use crate::tokens::{TicketError, TokenError, Tokens};
use crate::ws::Offer;
use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue};
use poem::{Endpoint, Request, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;
use std::borrow::Cow;
use std::hash::Hash;
use std::sync::Arc;

/// Asks for a valid token and learns who is calling; what a token is stands under `auth:`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "AuthStage")]
pub struct Auth {}

static X_NEW_TOKEN: HeaderName = HeaderName::from_static("x-new-token");
const TOKEN: &str = "token";
const TICKET: &str = "ticket";
const COOKIES: [&str; 2] = ["access_token", "token"];

impl StageDecl for Auth {
    const NAME: &'static str = "auth";
    const ABOUT: &'static str = "Asks for a valid token and learns who is calling";
    const BODY: Body = Body::Optional;

    fn check(self, cx: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        // The section's own faults are told by its own check.
        let policy = AuthPolicy::check(cx.manifest.auth.as_ref(), &mut Diagnostics::new());
        policy.fingerprint().hash(&mut cx.references);
        Some(Arc::new(Checked { policy: Arc::new(policy) }))
    }
}

struct Checked {
    policy: Arc<AuthPolicy>,
}

impl Stage for Checked {
    fn name(&self) -> &'static str {
        Auth::NAME
    }

    fn layer(&self, cx: &BuildCx<'_>) -> Layer {
        let (policy, tokens) = (self.policy.clone(), cx.shared.tokens.clone());
        let gate = Gate { policy, tokens, websocket: cx.websocket };
        match gate.policy.providers.is_empty() && !gate.websocket {
            true => Layer::Hook(Box::new(gate)),
            false => Layer::Around(Box::new(move |next| sealed(Patient { gate, next }))),
        }
    }

    fn document(&self, op: &mut OperationDoc) {
        let key = |within: &str, name: &str, about: &str| json!({ "type": "apiKey", "in": within, "name": name, "description": about });
        let mut ways = Vec::new();
        let mut way = |name: &'static str, scheme| {
            ways.push(Alternative { name: name.into(), scheme: Some(scheme) });
        };
        if op.websocket {
            way("ticket", key("query", TICKET, "A ticket from `auth.ticket`; opens one WebSocket."));
        }
        for source in self.policy.token_from.iter() {
            match source {
                TokenSource::Header => {
                    way("bearer", json!({ "type": "http", "scheme": "bearer", "bearerFormat": "JWT" }));
                    if op.websocket {
                        let about = "`voicegate.v1, bearer.<token>`: a browser can set no other header.";
                        way("subprotocol", key("header", "Sec-WebSocket-Protocol", about));
                    }
                }
                TokenSource::Query => {
                    way("query_token", key("query", TOKEN, "The same token, where no header can be set."))
                }
                TokenSource::Cookie => way(
                    "cookie_token",
                    key("cookie", COOKIES[0], "The same token in a cookie, also called `token`."),
                ),
            }
        }
        op.requires_unless_known(ways);
        op.refuses(&[Kind::NoToken, Kind::InvalidToken, Kind::TokenExpired, Kind::TokenRevoked], "");
        if op.websocket {
            op.refuses(&[Kind::InvalidTicket, Kind::StoreUnavailable], "");
        } else {
            let about = "Another access token, where the one that was sent ends soon.";
            op.header(On::Success, "X-New-Token", about, json!({ "type": "string" }));
        }
    }

    fn explain(&self, probe: &Probe<'_>) -> Verdict {
        match (probe.role, find(&self.policy.token_from, probe.headers, None, false)) {
            (Some(role), _) => Verdict::Passes(format!("as somebody whose role is {role}")),
            (None, Some(_)) => Verdict::Passes("if the token is good".to_owned()),
            (None, None) => Verdict::Refuses(
                401,
                "no token (a role imagines one: `--as ROLE`, `as: ROLE` in a test)".to_owned(),
            ),
        }
    }
}

struct Gate {
    policy: Arc<AuthPolicy>,
    tokens: Arc<Tokens>,
    /// Whether the route opens WebSockets.
    websocket: bool,
}

impl Gate {
    fn token<'r>(&self, request: &'r Request) -> Result<Cow<'r, str>, GatewayError> {
        let query = request.uri().query();
        let found = find(&self.policy.token_from, request.headers(), query, self.websocket);
        found.ok_or_else(|| match query.and_then(|query| in_query(query, TICKET)) {
            Some(_) => GatewayError::new(Kind::NoToken, "A ticket opens a WebSocket and nothing else"),
            None => Kind::NoToken.into(),
        })
    }

    /// Who is calling, where finding out may take a while.
    async fn ask(&self, exchange: &Exchange, request: &Request) -> Result<Arc<Identity>, GatewayError> {
        let ticket =
            request.uri().query().filter(|_| self.websocket).and_then(|query| in_query(query, TICKET));
        if let Some(ticket) = ticket {
            return self.tokens.redeem_ticket(&ticket, exchange.at).await.map_err(ticket_refusal);
        }
        let token = self.token(request)?;
        self.tokens.verify_patiently(&self.policy, &token, exchange.at).await.map_err(refusal)
    }

    /// On the way out: another token, where one is due.
    fn renew(&self, exchange: &Exchange, response: &mut Response) {
        if !self.websocket
            && let Some(identity) = exchange.identity()
            && let Some(renewed) =
                self.tokens.renew(identity, &self.policy, exchange.at + exchange.started.elapsed())
            && let Ok(mut token) = HeaderValue::from_str(&renewed.token)
        {
            token.set_sensitive(true);
            response.headers_mut().insert(&X_NEW_TOKEN, token);
        }
    }
}

impl Hook for Gate {
    fn enter(&self, exchange: &Arc<Exchange>, request: &mut Request) -> Result<Mark, Stop> {
        if exchange.identity().is_none() {
            let token = self.token(request)?;
            let known = self.tokens.verify_under(&self.policy, &token, exchange.at);
            exchange.identified(known.map_err(refusal)?);
        }
        Ok(0)
    }

    fn leave(&self, exchange: &Arc<Exchange>, _: Mark, response: &mut Response) {
        self.renew(exchange, response);
    }
}

/// The gate where a key may have to be fetched first, or a ticket taken.
struct Patient {
    gate: Gate,
    next: Next,
}

impl Endpoint for Patient {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let exchange = Exchange::of(&request).clone();
        if exchange.identity().is_none() {
            exchange.identified(self.gate.ask(&exchange, &request).await?);
        }
        let mut response = self.next.call(request).await?;
        self.gate.renew(&exchange, &mut response);
        Ok(response)
    }
}

fn refusal(error: TokenError) -> GatewayError {
    match error {
        TokenError::Invalid => Kind::InvalidToken,
        TokenError::Expired => Kind::TokenExpired,
        TokenError::Revoked => Kind::TokenRevoked,
    }
    .into()
}

fn ticket_refusal(error: TicketError) -> GatewayError {
    match error {
        TicketError::Spent => Kind::InvalidTicket.into(),
        TicketError::Token(error) => refusal(error),
        TicketError::Shared(error) => {
            tracing::warn!(%error, "a ticket could not be looked up");
            Kind::StoreUnavailable.into()
        }
    }
}

/// The token in the first place that has one.
fn find<'r>(
    places: &[TokenSource],
    headers: &'r HeaderMap,
    query: Option<&'r str>,
    websocket: bool,
) -> Option<Cow<'r, str>> {
    let offered = || websocket.then(|| Offer::of(headers).token).flatten().filter(|token| !token.is_empty());
    places.iter().find_map(|place| match place {
        TokenSource::Header => bearer(headers).or_else(offered).map(Cow::Borrowed),
        TokenSource::Query => in_query(query?, TOKEN),
        TokenSource::Cookie => COOKIES.iter().find_map(|name| cookie(headers, name)).map(Cow::Borrowed),
    })
}

/// RFC 6750, section 2.1; the scheme's case does not matter.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get_all(AUTHORIZATION).iter().find_map(|value| {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        let token = token.trim();
        (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
    })
}

/// The first value of a parameter, which is not empty.
fn in_query<'r>(query: &'r str, name: &str) -> Option<Cow<'r, str>> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(known, _)| *known == name)?;
    // A token needs no escapes, but some clients escape dots all the same.
    let decoded = match value.contains('%') {
        false => Cow::Borrowed(value),
        true => {
            let (_, whole) =
                url::form_urlencoded::parse(query.as_bytes()).find(|(known, _)| known == name)?;
            Cow::Owned(whole.into_owned())
        }
    };
    (!decoded.is_empty()).then_some(decoded)
}

/// RFC 6265, section 4.2.1.
fn cookie<'r>(headers: &'r HeaderMap, name: &str) -> Option<&'r str> {
    let crumbs = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = crumbs.flat_map(|crumb| crumb.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.find(|(known, value)| *known == name && !value.is_empty())?;
    Some(value.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{
        answering, build, check, code, exchange_of, fold_around, fold_around_websocket, request, send,
    };
    use super::*;
    use crate::state::tests::shared;
    use crate::tokens::testing::user;
    use http::Method;
    use std::time::{Duration, SystemTime};

    const NOW: fn() -> SystemTime = SystemTime::now;

    #[test]
    fn a_token_is_found_where_it_may_stand() {
        use TokenSource::{Cookie, Header, Query};
        let mut headers = HeaderMap::new();
        let all = [Header, Query, Cookie];
        assert_eq!(find(&all, &headers, Some("a=1"), false), None);
        headers.append(COOKIE, HeaderValue::from_static("a=1; token=second"));
        headers.append(COOKIE, HeaderValue::from_static("access_token=\"first\"; xtoken=no"));
        assert_eq!(find(&all, &headers, Some("a=1&token="), false).as_deref(), Some("first"));
        assert_eq!(find(&all, &headers, Some("xtoken=no&token=a%2Eb"), false).as_deref(), Some("a.b"));
        assert_eq!(find(&all, &headers, Some("token=q&token=r"), false).as_deref(), Some("q"));
        headers.append(AUTHORIZATION, HeaderValue::from_static("Basic eDp5"));
        assert_eq!(find(&all, &headers, Some("token=q"), false).as_deref(), Some("q"));
        headers.append(AUTHORIZATION, HeaderValue::from_static("bEARER  h "));
        assert_eq!(find(&all, &headers, Some("token=q"), false).as_deref(), Some("h"));
        assert_eq!(find(&[Cookie], &headers, Some("token=q"), false).as_deref(), Some("first"));
        assert_eq!(find(&[Query], &headers, None, false), None);
    }

    #[tokio::test]
    async fn callers_are_known_inside_and_refused_by_code() {
        let (shared, _close) = shared(&[]);
        let stage = check("auth", "").sound();
        let next = fold_around(&stage, &shared, answering(Response::default));
        let response = send(&next, request(Method::GET, &[])).await;
        assert_eq!(response.header("www-authenticate"), Some("Bearer"));
        assert_eq!((response.status().as_u16(), code(response).await), (401, "no_token".to_owned()));
        let response = send(&next, request(Method::GET, &[("authorization", "Bearer x")])).await;
        assert_eq!(response.header("www-authenticate"), Some("Bearer error=\"invalid_token\""));
        assert_eq!(code(response).await, "invalid_token");
        let issued = shared.tokens.issue(&user("u", "t", "user"), None, NOW());
        let bearer = format!("Bearer {}", issued.token);
        let good = request(Method::GET, &[("authorization", &bearer)]);
        let exchange = exchange_of(&good);
        let response = send(&next, good).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.header("x-new-token"), None);
        assert_eq!(&*exchange.identity().unwrap().user_id, "u");
        let old = shared.tokens.issue(&user("u", "t", "user"), None, NOW() - Duration::from_secs(90_000));
        let bearer = format!("Bearer {}", old.token);
        let response = send(&next, request(Method::GET, &[("authorization", &bearer)])).await;
        assert_eq!(code(response).await, "token_expired");
    }

    #[tokio::test]
    async fn a_token_near_its_end_is_renewed_unless_it_is_revoked() {
        let (shared, _close) = shared(&[]);
        let stage = check("auth", "").sound();
        let tokens = shared.tokens.clone();
        let issued = tokens.issue(&user("u", "t", "user"), None, NOW() - Duration::from_secs(23 * 3600 + 60));
        let bearer = format!("Bearer {}", issued.token);
        let next = fold_around(&stage, &shared, answering(Response::default));
        let response = send(&next, request(Method::GET, &[("authorization", &bearer)])).await;
        let renewed = response.header("x-new-token").unwrap().to_owned();
        let identity = tokens.verify(&renewed, NOW()).unwrap();
        assert!(identity.expires_at.unwrap() > NOW() + Duration::from_secs(23 * 3600));
        // Revoked while it is under way: logging out must not bring a new token.
        let inner = super::super::testing::target({
            let tokens = tokens.clone();
            move |request| {
                let tokens = tokens.clone();
                async move {
                    let identity = Exchange::of(&request).identity().unwrap().clone();
                    tokens.revoke_login(&identity, NOW()).await.unwrap();
                    Ok(Response::default())
                }
            }
        });
        let next = fold_around(&stage, &shared, inner);
        let response = send(&next, request(Method::GET, &[("authorization", &bearer)])).await;
        assert_eq!((response.status().as_u16(), response.header("x-new-token")), (200, None));
        let response = send(&next, request(Method::GET, &[("authorization", &bearer)])).await;
        assert_eq!(code(response).await, "token_revoked");
        let bearer = format!("Bearer {renewed}");
        let response = send(&next, request(Method::GET, &[("authorization", &bearer)])).await;
        assert_eq!(code(response).await, "token_revoked", "what was renewed ends with its login");
    }

    fn asking(query: &str, headers: &[(&str, &str)]) -> Request {
        let mut asking = request(Method::GET, headers);
        *asking.uri_mut() = format!("/t?{query}").parse().unwrap();
        asking
    }

    #[tokio::test]
    async fn a_websocket_takes_a_token_among_its_subprotocols_and_nothing_else_does() {
        let (shared, _close) = shared(&[]);
        let token = shared.tokens.issue(&user("u", "t", "user"), None, NOW()).token;
        let offered = format!("voicegate.v1, bearer.{token}");
        let stage = check("auth", "").sound();
        let socket = fold_around_websocket(&stage, &shared, answering(Response::default));
        let offers = || request(Method::GET, &[("sec-websocket-protocol", &offered)]);
        assert_eq!(send(&socket, offers()).await.status(), 200);
        let plain = fold_around(&stage, &shared, answering(Response::default));
        assert_eq!(code(send(&plain, offers()).await).await, "no_token");
        // It counts as the header: where the manifest takes none, it is none; a header comes first.
        let cookies = check("auth", "auth: { token_from: [cookie] }").sound();
        let strict = fold_around_websocket(&cookies, &shared, answering(Response::default));
        assert_eq!(code(send(&strict, offers()).await).await, "no_token");
        let both = [("sec-websocket-protocol", offered.as_str()), ("authorization", "Bearer bad")];
        assert_eq!(code(send(&socket, request(Method::GET, &both)).await).await, "invalid_token");
        let nothing = request(Method::GET, &[("sec-websocket-protocol", "bearer.")]);
        assert_eq!(code(send(&socket, nothing).await).await, "no_token");
    }

    #[tokio::test]
    async fn a_ticket_opens_one_websocket() {
        let (shared, _close) = shared(&[]);
        let stage = check("auth", "").sound();
        let socket = fold_around_websocket(&stage, &shared, answering(Response::default));
        let plain = fold_around(&stage, &shared, answering(Response::default));
        let old = NOW() - Duration::from_secs(23 * 3600 + 60);
        let issued = shared.tokens.issue(&user("u", "t", "user"), None, old);
        let caller = shared.tokens.verify(&issued.token, NOW()).unwrap();
        let ticket = shared.tokens.issue_ticket(&caller).await.unwrap().ticket;
        let query = format!("a=1&ticket={ticket}");
        let refused = send(&plain, asking(&query, &[])).await;
        assert_eq!(refused.status(), 401);
        assert_eq!(code(refused).await, "no_token", "elsewhere it is nothing, and stays good");
        let opening = asking(&query, &[("authorization", "Bearer bad")]);
        let exchange = exchange_of(&opening);
        let opened = send(&socket, opening).await;
        assert_eq!((opened.status().as_u16(), opened.header("x-new-token")), (200, None));
        assert_eq!(exchange.identity(), Some(&caller));
        let bearer = format!("Bearer {}", issued.token);
        let again = send(&socket, asking(&query, &[("authorization", &bearer)])).await;
        assert_eq!(again.header("www-authenticate"), Some("Bearer"));
        assert_eq!((again.status().as_u16(), code(again).await), (401, "invalid_ticket".to_owned()));
        // The token itself still opens one, and is not renewed there.
        let opened = send(&socket, asking("ticket=", &[("authorization", &bearer)])).await;
        assert_eq!((opened.status().as_u16(), opened.header("x-new-token")), (200, None));
        let ticket = shared.tokens.issue_ticket(&caller).await.unwrap().ticket;
        shared.tokens.revoke_login(&caller, NOW()).await.unwrap();
        let refused = send(&socket, asking(&format!("ticket={ticket}"), &[])).await;
        assert_eq!(code(refused).await, "token_revoked");
    }

    #[test]
    fn its_policy_is_part_of_the_route() {
        let plain = check("auth", "").digest;
        assert_ne!(plain, check("auth", "auth: { issuer: other }").digest);
        let providers = "auth: { providers: [{ issuer: a, jwks: 'https://a.example/jwks' }] }";
        assert!(matches!(build(&check("auth", providers).sound(), "GET", false), Layer::Around(_)));
        assert!(matches!(build(&check("auth", "").sound(), "GET", false), Layer::Hook(_)));
    }
}
