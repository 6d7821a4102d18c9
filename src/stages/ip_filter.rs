//! `ip_filter`: callers pass by their address, or get 403 `address_not_allowed`.
//!
//! `deny` counts before `allow`; without `allow`, everybody passes who is not denied. The address is the caller's as far
//! as `TRUSTED_PROXIES` vouch for it; mapped IPv4 (`::ffff:192.0.2.1`) counts as IPv4, in lists too. Off by
//! leaving it out.

use super::{Body, BuildCx, Hook, Layer, Probe, Stage, StageCx, StageDecl, Stop, Verdict};
use crate::diag::{Code, Diagnostic, Diagnostics};
use crate::error::Kind;
use crate::exchange::Exchange;
use crate::manifest::List;
use crate::openapi::OperationDoc;
use ipnet::{IpNet, Ipv4Net};
use poem::Request;
use schemars::JsonSchema;
use serde::Deserialize;
use std::net::IpAddr;
use std::sync::Arc;

/// Lets callers pass by address; `deny` counts before `allow`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IpFilter {
    /// Addresses or networks that may call (default all).
    #[serde(default)]
    pub allow: List<String>,
    /// Addresses or networks that may not (default none).
    #[serde(default)]
    pub deny: List<String>,
}

impl StageDecl for IpFilter {
    const NAME: &'static str = "ip_filter";
    const ABOUT: &'static str = "Lets callers pass by address";
    const BODY: Body = Body::Optional;

    fn check(self, cx: &mut StageCx<'_>) -> Option<Arc<dyn Stage>> {
        if self.allow.0.is_empty() && self.deny.0.is_empty() {
            cx.out.push(
                Diagnostic::error(Code::MISSING_KEY, cx.span, "stage `ip_filter` lets everybody pass")
                    .help("give it `allow` or `deny`, such as `allow: [10.0.0.0/8]`"),
            );
            return None;
        }
        let (allow, deny) = (networks(&self.allow, cx.out), networks(&self.deny, cx.out));
        Some(Arc::new(Filter(Arc::new(Lists { allow, deny }))))
    }
}

fn networks(list: &List<String>, out: &mut Diagnostics) -> Box<[IpNet]> {
    let mut networks = Vec::with_capacity(list.0.len());
    for text in &list.0 {
        match text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)) {
            Ok(network) => networks.push(unmapped(network)),
            Err(_) => out.push(
                Diagnostic::error(Code::BAD_VALUE, text.span, "this is not an address or a network")
                    .help("write `192.0.2.7`, `10.0.0.0/8` or `2001:db8::/32`"),
            ),
        }
    }
    networks.into()
}

/// A network of mapped IPv4 addresses as the IPv4 network it is.
fn unmapped(network: IpNet) -> IpNet {
    let IpNet::V6(mapped) = network else { return network };
    let inside = mapped.addr().to_ipv4_mapped().zip(mapped.prefix_len().checked_sub(96));
    match inside.and_then(|(address, length)| Ipv4Net::new(address, length).ok()) {
        Some(network) => network.into(),
        None => network,
    }
}

struct Lists {
    allow: Box<[IpNet]>,
    deny: Box<[IpNet]>,
}

impl Lists {
    fn pass(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let holds = |list: &[IpNet]| list.iter().any(|network| network.contains(&address));
        !holds(&self.deny) && (self.allow.is_empty() || holds(&self.allow))
    }
}

struct Filter(Arc<Lists>);

impl Stage for Filter {
    fn name(&self) -> &'static str {
        IpFilter::NAME
    }

    fn layer(&self, _: &BuildCx<'_>) -> Layer {
        Layer::Hook(Box::new(Filter(self.0.clone())))
    }

    fn is_common(&self) -> bool {
        true
    }

    fn document(&self, op: &mut OperationDoc) {
        op.refuses(&[Kind::AddressNotAllowed], "");
    }

    fn explain(&self, _: &Probe<'_>) -> Verdict {
        let (allow, deny) = (self.0.allow.len(), self.0.deny.len());
        Verdict::Passes(format!("depends on the address: {allow} networks allowed, {deny} denied"))
    }
}

impl Hook for Filter {
    fn request(&self, exchange: &Arc<Exchange>, _: &mut Request) -> Result<(), Stop> {
        match self.0.pass(exchange.client_ip) {
            true => Ok(()),
            false => Err(Stop::Error(Kind::AddressNotAllowed.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{answering, around, check, code, request, send};
    use super::*;
    use http::Method;
    use poem::Response;

    #[tokio::test]
    async fn a_caller_from_elsewhere_is_refused() {
        // Callers of these tests come from 127.0.0.1.
        for (stage, status) in [
            ("ip_filter: { allow: [127.0.0.0/8] }", 200),
            ("ip_filter: { allow: [10.0.0.0/8] }", 403),
            ("ip_filter: { deny: [127.0.0.1] }", 403),
            ("ip_filter: { deny: [10.0.0.0/8] }", 200),
            ("ip_filter: { allow: [127.0.0.0/8], deny: [127.0.0.1] }", 403),
            ("ip_filter: { deny: [\"::ffff:127.0.0.0/104\"] }", 403),
        ] {
            let response =
                send(&around(stage, answering(Response::default)), request(Method::GET, &[])).await;
            assert_eq!(response.status(), status, "{stage}");
            if status == 403 {
                assert_eq!(code(response).await, "address_not_allowed");
            }
        }
    }

    #[test]
    fn mapped_callers_are_what_they_map() {
        let lists = Lists { allow: ["192.0.2.0/24".parse().unwrap()].into(), deny: [].into() };
        assert!(lists.pass("::ffff:192.0.2.9".parse().unwrap()));
        assert!(!lists.pass("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn mistakes_show() {
        assert_eq!(check("ip_filter", "").faults.len(), 1);
        assert_eq!(
            check("ip_filter: { allow: [10.0.0.0/33, 10.0.0.1, x], deny: [\"::1\"] }", "").faults.len(),
            2
        );
    }
}
