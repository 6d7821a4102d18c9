//! `protocol: grpc`: calls passed on as they are, from HTTP/2 to HTTP/2.

use crate::diag::{Code, Diagnostic, Diagnostics};
use crate::manifest::model::{Protocol, Route, Upstream, UpstreamProtocol};

/// Faults where a route and its upstream differ on whether they speak gRPC.
pub(super) fn same_protocol(route: &Route, upstream: &Upstream, out: &mut Diagnostics) {
    let Some(name) = &route.upstream else { return };
    let speaks = upstream.protocol.as_ref().filter(|protocol| protocol.value == UpstreamProtocol::Grpc);
    let asks = route.protocol.as_ref().filter(|protocol| protocol.value == Protocol::Grpc);
    let asks = asks.map(|it| it.span).or(route.grpc.as_ref().map(|it| it.span));
    match (speaks, asks) {
        (Some(speaks), None) => out.push(
            Diagnostic::error(
                Code::PROTOCOL_MISMATCH,
                name.span,
                format!("upstream `{}` speaks gRPC, this route does not", name.value),
            )
            .help("add `protocol: grpc` to pass calls on, or name an upstream that speaks HTTP")
            .note(speaks.span, "the upstream says so here"),
        ),
        (None, Some(asks)) => out.push(
            Diagnostic::error(
                Code::PROTOCOL_MISMATCH,
                asks,
                format!("this route speaks gRPC, upstream `{}` does not", name.value),
            )
            .help(format!("add `protocol: grpc` to upstream `{}`", name.value))
            .note(name.span, "the upstream is named here"),
        ),
        _ => {}
    }
}
