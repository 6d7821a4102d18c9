//! How servers are asked for their health, and what follows from their answers.

use super::bad;
use crate::diag::{Code, Diagnostic, Diagnostics};
use crate::manifest::Spanned;
use crate::manifest::model::Health;
use http::uri::PathAndQuery;
use std::time::Duration;

/// Active health checks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HealthSpec {
    /// How a server is asked.
    pub probe: Probe,
    /// Between two checks.
    pub interval: Duration,
    /// Until a check counts as failed.
    pub timeout: Duration,
    /// Failures in a row that make a server unhealthy.
    pub unhealthy_after: u32,
    /// Successes in a row that make it healthy again.
    pub healthy_after: u32,
}

/// How a server is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Probe {
    /// GET of a path; any 2xx is healthy.
    Http(PathAndQuery),
    /// `grpc.health.v1.Health/Check` of a service, or of the server as a whole by the empty name; SERVING is healthy.
    Grpc(String),
    /// A connection; that it is taken is healthy.
    Tcp,
}

pub(super) fn check(decl: &Spanned<Health>, grpc: bool, out: &mut Diagnostics) -> Option<HealthSpec> {
    let health = &decl.value;
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
    let after = |given: Option<u32>, default: u32| given.unwrap_or(default).max(1);
    Some(HealthSpec {
        probe: probe(decl, grpc, out)?,
        interval,
        timeout,
        unhealthy_after: after(health.unhealthy_after, 3),
        healthy_after: after(health.healthy_after, 1),
    })
}

fn probe(decl: &Spanned<Health>, grpc: bool, out: &mut Diagnostics) -> Option<Probe> {
    let Health { path, tcp, grpc: service, .. } = &decl.value;
    let tcp = tcp.as_ref().filter(|tcp| tcp.value);
    if let (Some(path), true) = (path, grpc) {
        out.push(
            Diagnostic::error(Code::MISPLACED, path.span, "a gRPC server is not asked by a path")
                .help("remove `path`: it is asked by `grpc.health.v1.Health/Check`; or write `tcp: true`"),
        );
        return None;
    }
    if let (Some(service), false) = (service, grpc) {
        out.push(
            Diagnostic::error(Code::MISPLACED, service.span, "`grpc` is for upstreams with `protocol: grpc`")
                .help("add `protocol: grpc`, or ask by `path` or `tcp: true`"),
        );
        return None;
    }
    let other = path.as_ref().map(|path| ("path", path.span));
    let other = other.or(service.as_ref().map(|service| ("grpc", service.span)));
    if let (Some(tcp), Some((other, at))) = (tcp, other) {
        out.push(
            Diagnostic::error(Code::HEALTH_CHECK, tcp.span, format!("`tcp` beside `{other}`"))
                .help("a server is asked in one way: keep one of them")
                .note(at, format!("`{other}` stands here")),
        );
        return None;
    }
    match (tcp, path) {
        (Some(_), _) => Some(Probe::Tcp),
        (None, None) if grpc => {
            Some(Probe::Grpc(service.as_ref().map(|service| service.value.clone()).unwrap_or_default()))
        }
        (None, None) => {
            out.push(
                Diagnostic::error(
                    Code::HEALTH_CHECK,
                    decl.span,
                    "`health` does not say how servers are asked",
                )
                .help("add `path`, such as `path: /health`, or `tcp: true`"),
            );
            None
        }
        (None, Some(path)) => match PathAndQuery::try_from(path.value.as_str()) {
            Ok(parsed) if parsed.as_str().starts_with('/') => Some(Probe::Http(parsed)),
            _ => {
                out.push(bad(path.span, "expected a path, such as `/health`"));
                None
            }
        },
    }
}
