//! The checked form of an upstream: everything resolved, parsed and given its default.
//!
//! Whatever the manifest says that this version cannot do is a fault here, never ignored. Values are not
//! repeated in messages: they may come from a variable, and the excerpt shows them as written.

mod source;

use super::tls::client_config;
use crate::diag::milestone::UPSTREAMS;
use crate::diag::{Code, Diagnostic, Diagnostics, Span};
use crate::manifest::model::{self, Balance, Health, UpstreamProtocol};
use crate::manifest::node::Key;
use crate::manifest::{Manifest, Spanned};
use crate::units::Dur;
use http::HeaderValue;
use http::uri::PathAndQuery;
use rustls_pki_types::ServerName;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls::ClientConfig;
use url::{Host, Url};

/// Methods that may be repeated (RFC 9110, section 9.2.2).
const IDEMPOTENT: [&str; 6] = ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"];

/// An upstream that can be run.
pub struct UpstreamSpec {
    name: Arc<str>,
    servers: Vec<ServerSpec>,
    balance: Choice,
    connect_timeout: Duration,
    max_connections: u32,
    timeouts: Timeouts,
    health: Option<HealthSpec>,
    tls: Option<Arc<ClientConfig>>,
    multiplexes: bool,
    reflection: bool,
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
    /// Name that its certificate must carry; set where the URL is `https`.
    pub tls: Option<ServerName<'static>>,
    /// Value of `Host` (without the scheme's default port).
    pub authority: HeaderValue,
    /// Its share beside the others.
    pub weight: u32,
}

/// How a server is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Choice {
    /// In turn, by weight.
    RoundRobin,
    /// The less busy of two drawn by weight.
    LeastRequest,
    /// By lot, by weight.
    Random,
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

/// Active health checks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HealthSpec {
    /// Path asked with GET.
    pub path: PathAndQuery,
    /// Between two checks.
    pub interval: Duration,
    /// Until a check counts as failed.
    pub timeout: Duration,
    /// Failures in a row that make a server unhealthy.
    pub unhealthy_after: u32,
    /// Successes in a row that make it healthy again.
    pub healthy_after: u32,
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
        refuse_what_waits(decl, out);
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
        let balance = balance(decl.balance.as_ref(), out);
        let max_connections = match &decl.max_connections {
            Some(max) if max.value == 0 => {
                out.push(bad(max.span, "with no connection no request could be sent"));
                0
            }
            Some(max) => max.value,
            None => 1000,
        };
        let health = decl.health.as_ref().and_then(|health| health_spec(health, out));
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
            balance,
            connect_timeout,
            max_connections,
            timeouts,
            &health,
        )
            .hash(&mut state);
        for server in &servers {
            (&server.address, server.tls.is_some(), server.weight).hash(&mut state);
            server.tls.as_ref().map(ServerName::to_str).hash(&mut state);
        }
        Some(UpstreamSpec {
            name: name.text.as_str().into(),
            servers,
            balance: balance?,
            connect_timeout,
            max_connections,
            timeouts,
            health,
            tls,
            multiplexes,
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
    pub fn balance(&self) -> Choice {
        self.balance
    }

    /// Until a connection stands, TLS included.
    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// Connections open to each server at a time; calls, where it speaks HTTP/2.
    pub fn max_connections(&self) -> u32 {
        self.max_connections
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

/// Faults for keys whose time has not come.
fn refuse_what_waits(decl: &model::Upstream, out: &mut Diagnostics) {
    let mut waits = |what: &str, span: Option<Span>, milestone: &str| {
        if let Some(span) = span {
            out.push(Diagnostic::not_available(span, what, milestone));
        }
    };
    waits("`breaker`", decl.breaker.as_ref().map(|it| it.span), UPSTREAMS);
    waits("`retry`", decl.retry.as_ref().map(|it| it.span), UPSTREAMS);
    let grpc = decl.protocol.as_ref().is_some_and(|protocol| protocol.value == UpstreamProtocol::Grpc);
    // What speaks gRPC has a health protocol of its own.
    waits(
        "`health` of a gRPC upstream",
        decl.health.as_ref().filter(|_| grpc).map(|it| it.path.span),
        UPSTREAMS,
    );
    let unsafe_methods =
        decl.retry.iter().flat_map(|retry| &retry.methods.0).filter(|method| {
            !IDEMPOTENT.iter().any(|idempotent| idempotent.eq_ignore_ascii_case(&method.value))
        });
    for method in unsafe_methods {
        let message = format!("`retry` would repeat {}, which is not safe to repeat", method.value);
        out.push(
            Diagnostic::error(Code::UNSAFE_RETRY, method.span, message)
                .help("name idempotent methods only: GET, HEAD, OPTIONS, PUT, DELETE"),
        );
    }
}

fn balance(decl: Option<&Spanned<Balance>>, out: &mut Diagnostics) -> Option<Choice> {
    Some(match decl.map(|balance| (&balance.value, balance.span)) {
        None | Some((Balance::RoundRobin, _)) => Choice::RoundRobin,
        Some((Balance::LeastRequest, _)) => Choice::LeastRequest,
        Some((Balance::Random, _)) => Choice::Random,
        Some((Balance::Hash(_), span)) => {
            out.push(
                Diagnostic::not_available(span, "`balance: hash`", UPSTREAMS)
                    .help("use round_robin, least_request or random until then"),
            );
            return None;
        }
    })
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
        tls: name,
        authority,
        weight: target.weight.as_ref().map_or(1, |weight| weight.value),
    })
}

fn health_spec(health: &Health, out: &mut Diagnostics) -> Option<HealthSpec> {
    let interval = health.interval.map_or(Duration::from_secs(30), |interval| interval.0);
    let timeout = match &health.timeout {
        Some(timeout) if timeout.0 >= interval => {
            out.push(
                Diagnostic::error(
                    Code::DEADLINES,
                    timeout.span,
                    "a check may take as long as the time between two checks",
                )
                .help("make `timeout` shorter than `interval`"),
            );
            timeout.0
        }
        Some(timeout) => timeout.0,
        None => Duration::from_secs(2).min(interval / 2),
    };
    let path = match PathAndQuery::try_from(health.path.value.as_str()) {
        Ok(path) if path.as_str().starts_with('/') => path,
        _ => {
            out.push(bad(health.path.span, "expected a path, such as `/health`"));
            return None;
        }
    };
    let after = |given: Option<u32>, default: u32| given.unwrap_or(default).max(1);
    Some(HealthSpec {
        path,
        interval,
        timeout,
        unhealthy_after: after(health.unhealthy_after, 3),
        healthy_after: after(health.healthy_after, 1),
    })
}

#[cfg(test)]
pub(super) mod tests;
