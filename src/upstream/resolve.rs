//! Names of targets become addresses, again and again.
//!
//! Every address of a name is a server of its own: it has its connections, its health and its part of the target's
//! share. A name with one address of either family is one server that is reached over both, as `localhost` is;
//! otherwise IPv4 goes before IPv6. An answer without an address, or none at all, changes nothing. Until a name was
//! resolved for the first time, whoever opens a connection to it looks it up.

use futures_util::future::BoxFuture;
use std::io;
use std::net::IpAddr;

/// Most servers that one name stands for.
const MOST: usize = 256;

/// Knows the addresses of names.
pub(super) trait Resolve: Send + Sync {
    /// The addresses of a host now, in the order in which they are to be tried.
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
}

/// The operating system's resolver: `/etc/hosts`, DNS, and whatever it is told to ask.
pub(super) struct System;

impl Resolve for System {
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            Ok(tokio::net::lookup_host((host, 0)).await?.map(|address| address.ip()).collect())
        })
    }
}

/// The servers that a name stands for, each with the addresses that lead to it, always in the same order.
pub(super) fn servers(found: Vec<IpAddr>) -> Vec<Vec<IpAddr>> {
    let mut once = Vec::with_capacity(found.len());
    for ip in found {
        if !once.contains(&ip) {
            once.push(ip);
        }
    }
    let (mut v4, mut v6): (Vec<IpAddr>, Vec<IpAddr>) = once.iter().copied().partition(IpAddr::is_ipv4);
    if let ([_], [_]) = (&*v4, &*v6) {
        return vec![once];
    }
    let family = if v4.is_empty() { &mut v6 } else { &mut v4 };
    family.sort_unstable();
    family.iter().take(MOST).map(|ip| vec![*ip]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(found: &[&str]) -> Vec<Vec<String>> {
        let found = found.iter().map(|ip| ip.parse().unwrap()).collect();
        servers(found).into_iter().map(|ips| ips.iter().map(ToString::to_string).collect()).collect()
    }

    #[test]
    fn every_address_is_a_server() {
        assert_eq!(of(&["10.0.0.2", "10.0.0.1", "10.0.0.2"]), [["10.0.0.1"], ["10.0.0.2"]]);
        assert_eq!(of(&["fd00::2", "fd00::1"]), [["fd00::1"], ["fd00::2"]]);
        assert_eq!(of(&["fd00::1", "10.0.0.2", "10.0.0.1"]), [["10.0.0.1"], ["10.0.0.2"]]);
        assert!(of(&[]).is_empty());
    }

    #[test]
    fn a_host_of_both_families_is_one_server() {
        assert_eq!(of(&["::1", "127.0.0.1", "::1"]), [["::1", "127.0.0.1"]]);
    }
}
