//! The checked form of an upstream: everything resolved, parsed and given its default.
//!
//! Whatever the manifest says that this version cannot do is a fault here, never ignored. Values are not
//! repeated in messages: they may come from a variable, and the excerpt shows them as written.

mod balance;
mod breaker;
mod health;
mod load;
mod retry;
mod source;

pub use balance::{Choice, HashBy, OutlierSpec};
pub use breaker::BreakerSpec;
pub use health::{HealthSpec, Probe};
pub use retry::RetrySpec;

use super::tls::client_config;
use crate::diag::{Code, Diagnostic, Diagnostics, Span};
use crate::manifest::model::{self, UpstreamProtocol};
use crate::manifest::node::Key;
use crate::manifest::{Manifest, Spanned};
use crate::shed::Caps;
use crate::units::Dur;
use http::HeaderValue;
use rustls_pki_types::ServerName;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls::ClientConfig;
use url::{Host, Url};

/// An upstream that can be run.
pub struct UpstreamSpec {
    name: Arc<str>,
    servers: Vec<ServerSpec>,
    balance: Choice,
    connect_timeout: Duration,
    max_connections: u32,
    caps: Caps,
    timeouts: Timeouts,
    health: Option<HealthSpec>,
    outlier: Option<OutlierSpec>,
    panic_threshold: f64,
    slow_start: Duration,
    resolve_every: Duration,
    tls: Option<Arc<ClientConfig>>,
    multiplexes: bool,
    reflection: bool,
    breaker: Option<BreakerSpec>,
    retry: Option<RetrySpec>,
    call_idle: Option<Duration>,
    call_total: Option<Duration>,
    fingerprint: u64,
}

/// One server of it.
#[derive(Debug, Clone)]
pub struct ServerSpec {
    /// `host:port`, as logs and metrics show it.
    pub address: Arc<str>,
    /// Host without brackets, for name resolution.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The address itself, where the URL names one.
    pub literal: Option<SocketAddr>,
    /// The addresses that lead to it, where its host is a name that was resolved; tried in this order.
    pub resolved: Vec<SocketAddr>,
    /// Name that its certificate must carry; set where the URL is `https`.
    pub tls: Option<ServerName<'static>>,
    /// Value of `Host` (without the scheme's default port).
    pub authority: HeaderValue,
    /// Its share beside the others.
    pub weight: u32,
}

/// Deadlines of a request once connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Timeouts {
    /// From the request's last byte to the response's head.
    pub first_byte: Duration,
    /// Between two pieces of a body, either way.
    pub idle: Duration,
    /// For the whole exchange.
    pub total: Duration,
}

impl UpstreamSpec {
    /// Is it sound? Reports every fault; reads the file that `tls.ca` names. `name` is its key under
    /// `upstreams:`. `None` if there was any error.
    pub fn check(
        name: &Key,
        decl: &model::Upstream,
        manifest: &Manifest,
        out: &mut Diagnostics,
    ) -> Option<UpstreamSpec> {
        let before = out.counts().0;
        source::check(decl, out);
        let server_name = decl.tls.as_ref().and_then(|tls| tls.server_name.as_ref());
        let certified = server_name.and_then(|wanted| {
            let parsed = ServerName::try_from(wanted.value.clone());
            parsed
                .map_err(|_| out.push(bad(wanted.span, "expected a host name, as certificates carry it")))
                .ok()
        });
        let servers: Vec<ServerSpec> =
            decl.targets.0.iter().filter_map(|target| server(target, certified.as_ref(), out)).collect();
        if decl.targets.0.is_empty() {
            let message = format!("upstream `{}` has no target", name.text);
            out.push(
                Diagnostic::error(Code::MISSING_KEY, name.span, message)
                    .help("name at least one: `targets: [{ url: \"http://host:port\" }]`"),
            );
        } else if servers.len() == decl.targets.0.len() && servers.iter().all(|s| s.weight == 0) {
            let span = decl.targets.0[0].weight.as_ref().map_or(name.span, |weight| weight.span);
            out.push(
                bad(span, format!("every target of `{}` has weight 0", name.text))
                    .help("give at least one target a weight above 0"),
            );
        }
        let any_tls = servers.iter().any(|server| server.tls.is_some());
        if let (Some(tls), false, false) = (&decl.tls, any_tls, servers.is_empty())
            && let Some(span) =
                tls.ca.as_ref().map(|ca| ca.span).or(tls.server_name.as_ref().map(|name| name.span))
        {
            out.push(
                Diagnostic::error(Code::MISPLACED, span, "`tls` is for targets whose URL is `https`")
                    .help("write the targets as https://…, or remove `tls`"),
            );
        }
        let mut state = DefaultHasher::new();
        let multiplexes =
            decl.protocol.as_ref().is_some_and(|protocol| protocol.value == UpstreamProtocol::Grpc);
        let tls = match any_tls {
            true => client_config(decl.tls.as_ref(), manifest, multiplexes, &mut state, out),
            false => None,
        };
        let balance = balance::check(decl.balance.as_ref(), out);
        let outlier = balance::outlier(decl.outlier.as_ref(), balance.as_ref(), out);
        let max_connections = match &decl.max_connections {
            Some(max) if max.value == 0 => {
                out.push(bad(max.span, "with no connection no request could be sent"));
                0
            }
            Some(max) => max.value,
            None => 1000,
        };
        let caps = load::check(decl, out);
        let health = decl.health.as_ref().and_then(|health| health::check(health, multiplexes, out));
        let breaker = decl.breaker.as_ref().map(|breaker| BreakerSpec::check(breaker, out));
        let retry = decl.retry.as_ref().map(|retry| RetrySpec::check(retry, out));
        let or = |given: Option<Dur>, default: u64| given.map_or(Duration::from_secs(default), |dur| dur.0);
        let times = decl.timeouts.clone().unwrap_or_default();
        let timeouts = Timeouts {
            first_byte: or(times.first_byte, 30),
            idle: or(times.idle, 60),
            total: or(times.total, 300),
        };
        let connect_timeout = or(decl.connect_timeout, 1);
        if out.counts().0 > before {
            return None;
        }
        source::hash(multiplexes, &name.text, decl, manifest, &mut state);
        (
            times.idle.is_some(),
            times.total.is_some(),
            multiplexes,
            &name.text,
            &balance,
            connect_timeout,
            max_connections,
            caps,
            timeouts,
            &health,
            &breaker,
            &retry,
        )
            .hash(&mut state);
        let panic_threshold = decl.panic_threshold.map_or(0.5, |share| share.0);
        let slow_start = decl.slow_start.map_or(Duration::ZERO, |time| time.0);
        let every = decl.resolve.as_ref().and_then(|resolve| resolve.every.as_ref());
        let resolve_every = every.map_or(Duration::from_secs(30), |every| every.value.0);
        (&outlier, panic_threshold.to_bits(), slow_start, resolve_every).hash(&mut state);
        for server in &servers {
            (&server.address, server.tls.is_some(), server.weight).hash(&mut state);
            server.tls.as_ref().map(ServerName::to_str).hash(&mut state);
        }
        Some(UpstreamSpec {
            name: name.text.as_str().into(),
            balance: balance?,
            connect_timeout,
            max_connections,
            caps,
            timeouts,
            health,
            outlier: outlier.filter(|_| servers.len() > 1 || servers.iter().any(|s| s.literal.is_none())),
            servers,
            panic_threshold,
            slow_start,
            resolve_every,
            tls,
            multiplexes,
            breaker,
            retry,
            reflection: decl.reflection.as_ref().is_some_and(|reflection| reflection.value),
            call_idle: times.idle.map(|idle| idle.0),
            call_total: times.total.map(|total| total.0),
            fingerprint: state.finish(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its servers, in order.
    pub fn servers(&self) -> &[ServerSpec] {
        &self.servers
    }

    /// How a server is chosen.
    pub fn balance(&self) -> &Choice {
        &self.balance
    }

    /// When servers are ejected for their traffic; none where there is only one, or it is switched off.
    pub fn outlier(&self) -> Option<&OutlierSpec> {
        self.outlier.as_ref()
    }

    /// When fewer than this share of the servers are up, health checks are disregarded.
    pub fn panic_threshold(&self) -> f64 {
        self.panic_threshold
    }

    /// Until a server that came up has its whole share; zero for at once.
    pub fn slow_start(&self) -> Duration {
        self.slow_start
    }

    /// Between two look-ups of its servers' names.
    pub fn resolve_every(&self) -> Duration {
        self.resolve_every
    }

    /// Until a connection stands, TLS included.
    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// Connections open to each server at a time; calls, where it speaks HTTP/2.
    pub fn max_connections(&self) -> u32 {
        self.max_connections
    }

    /// How much it is given at a time.
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// Deadlines of a request once connected.
    pub fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// Whether its servers are spoken to in HTTP/2: `protocol: grpc`.
    pub fn multiplexes(&self) -> bool {
        self.multiplexes
    }

    /// Whether its servers are asked for their methods.
    pub fn reflection(&self) -> bool {
        self.reflection
    }

    /// When its breakers open, if it has any.
    pub fn breaker(&self) -> Option<&BreakerSpec> {
        self.breaker.as_ref()
    }

    /// What is tried again, if anything is.
    pub fn retry(&self) -> Option<&RetrySpec> {
        self.retry.as_ref()
    }

    /// How long an answer to a gRPC call may rest, where the manifest says so: calls have no default.
    pub fn call_idle(&self) -> Option<Duration> {
        self.call_idle
    }

    /// How long a gRPC call may last, where the manifest says so: calls have no default.
    pub fn call_total(&self) -> Option<Duration> {
        self.call_total
    }

    /// Active health checks, if any.
    pub fn health(&self) -> Option<&HealthSpec> {
        self.health.as_ref()
    }

    /// How TLS is spoken with its `https` servers; `None` where it has none.
    pub fn tls(&self) -> Option<&Arc<ClientConfig>> {
        self.tls.as_ref()
    }

    /// Equal content, equal number: a reload keeps the runtime of an upstream whose number stays.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

impl fmt::Debug for UpstreamSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamSpec").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ServerSpec {
    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// URL of a path on it, as `explain` shows it.
    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme(), self.address)
    }
}

fn bad(span: Span, message: impl Into<String>) -> Diagnostic {
    Diagnostic::error(Code::BAD_VALUE, span, message)
}

fn server(
    target: &Spanned<model::Target>,
    certified: Option<&ServerName<'static>>,
    out: &mut Diagnostics,
) -> Option<ServerSpec> {
    let span = target.url.span;
    let mut fault = |message: &str| {
        out.push(bad(span, message).help("write it as `http://host:port` or `https://host`"));
        None
    };
    let url = match Url::parse(&target.url.value) {
        Ok(url) => url,
        Err(error) => return fault(&format!("this is not a URL: {error}")),
    };
    if !matches!(url.scheme(), "http" | "https") {
        return fault("a target's URL begins with `http://` or `https://`");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return fault("a target's URL has no user or password");
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return fault("a target's URL has no path and no query");
    }
    let port = url.port_or_known_default().filter(|port| *port != 0);
    let (Some(host), Some(port)) = (url.host(), port) else {
        return fault("a target's URL has a host, and no port 0");
    };
    let ip = match host {
        Host::Ipv4(ip) => Some(IpAddr::from(ip)),
        Host::Ipv6(ip) => Some(IpAddr::from(ip)),
        Host::Domain(_) => None,
    };
    let plain = ip.map_or_else(|| host.to_string(), |ip| ip.to_string());
    let authority = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_string(),
    };
    let name = match (url.scheme(), certified) {
        ("http", _) => None,
        (_, Some(name)) => Some(name.clone()),
        (_, None) => match ServerName::try_from(plain.clone()) {
            Ok(name) => Some(name),
            Err(_) => return fault("no certificate can carry this host's name"),
        },
    };
    let Ok(authority) = HeaderValue::from_str(&authority) else {
        return fault("this host cannot stand in a `Host` header");
    };
    Some(ServerSpec {
        address: format!("{host}:{port}").into(),
        host: plain,
        port,
        literal: ip.map(|ip| (ip, port).into()),
        resolved: Vec::new(),
        tls: name,
        authority,
        weight: target.weight.as_ref().map_or(1, |weight| weight.value),
    })
}

#[cfg(test)]
pub(super) mod tests;
