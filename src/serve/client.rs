//! Who is calling: the address that limits and logs go by (SECURITY rule 5).
//!
//! A proxy's word counts only if the proxy is trusted. Of `X-Forwarded-For` the rightmost address counts that is not
//! a trusted proxy itself: everything left of it could have been made up by the caller.

use crate::settings::Settings;
use http::HeaderMap;
use std::net::{IpAddr, SocketAddr};

/// The caller's address and whether the caller's connection is TLS, as far as trusted proxies vouch for it.
pub(super) fn caller(
    peer: SocketAddr,
    tls: bool,
    headers: &HeaderMap,
    settings: &Settings,
) -> (IpAddr, bool) {
    let address = peer.ip().to_canonical();
    if settings.trusted_proxies.is_empty() || !settings.trusts(address) {
        return (address, tls);
    }
    let secure = match headers.get("x-forwarded-proto").and_then(|value| value.to_str().ok()) {
        Some(proto) => proto.rsplit(',').next().is_some_and(|last| last.trim().eq_ignore_ascii_case("https")),
        None => tls,
    };
    (forwarded_for(address, headers, settings), secure)
}

fn forwarded_for(peer: IpAddr, headers: &HeaderMap, settings: &Settings) -> IpAddr {
    let mut nearest = peer;
    let values: Vec<_> = headers.get_all("x-forwarded-for").iter().collect();
    for value in values.into_iter().rev() {
        let Ok(list) = value.to_str() else { return nearest };
        for hop in list.rsplit(',') {
            // What is not an address was not written by a proxy of ours: the chain of trust ends before it.
            let Some(address) = address_of(hop.trim()) else { return nearest };
            nearest = address;
            if !settings.trusts(address) {
                return nearest;
            }
        }
    }
    nearest
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`.
fn address_of(text: &str) -> Option<IpAddr> {
    let address =
        text.parse::<IpAddr>().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()));
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    address.or_else(bracketed).map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        settings: Settings,
    }

    fn ask(trusted: &str, peer: &str, fields: &[(&'static str, &str)]) -> (String, bool) {
        let settings = match trusted {
            "" => Cli::parse_from(["x"]).settings,
            list => Cli::parse_from(["x", "--trusted-proxies", list]).settings,
        };
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        let (ip, secure) = caller(SocketAddr::new(peer.parse().unwrap(), 1), false, &headers, &settings);
        (ip.to_string(), secure)
    }

    #[test]
    fn nobody_is_believed_by_default() {
        let forged = [("x-forwarded-for", "9.9.9.9"), ("x-forwarded-proto", "https")];
        assert_eq!(ask("", "192.0.2.1", &forged), ("192.0.2.1".into(), false));
        assert_eq!(ask("10.0.0.0/8", "192.0.2.1", &forged), ("192.0.2.1".into(), false));
    }

    #[test]
    fn the_rightmost_stranger_counts() {
        let one = [("x-forwarded-for", "1.1.1.1, 2.2.2.2, 10.0.0.2")];
        assert_eq!(ask("10.0.0.0/8", "10.0.0.1", &one).0, "2.2.2.2");
        let two = [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "3.3.3.3:99,10.0.0.2")];
        assert_eq!(ask("10.0.0.0/8", "10.0.0.1", &two).0, "3.3.3.3");
        let junk = [("x-forwarded-for", "1.1.1.1, unknown, 10.0.0.2")];
        assert_eq!(ask("10.0.0.0/8", "10.0.0.1", &junk).0, "10.0.0.2");
        assert_eq!(ask("10.0.0.0/8", "::ffff:10.0.0.1", &[]).0, "10.0.0.1", "mapped addresses are IPv4");
    }

    #[test]
    fn the_nearest_proxy_says_whether_it_was_tls() {
        let fields = [("x-forwarded-proto", "http, https")];
        assert!(ask("10.0.0.0/8", "10.0.0.1", &fields).1);
    }
}
