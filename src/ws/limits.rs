//! Limits of a WebSocket.

use crate::diag::{Code, Diagnostic, Diagnostics, Span};
use crate::manifest::Spanned;
use crate::manifest::model::WebSocketLimits;
use crate::units::{Dur, Size};
use std::time::Duration;

/// Limits of a WebSocket, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketLimits {
    /// Silence of the caller's after which the gateway pings.
    pub ping: Duration,
    /// Silence of the caller's (a pong breaks it) after which it counts as gone.
    pub idle: Duration,
    /// Largest message either way, in bytes of payload on the wire.
    pub max_message: u64,
    /// Frames a second that a caller may send.
    pub max_rate: Option<u64>,
    /// Bytes a second that a caller may send.
    pub max_bytes_rate: Option<u64>,
    /// Connections a caller may have on the route.
    pub per_user: Option<u32>,
    /// Whether a new connection closes the old one.
    pub takeover: bool,
}

impl SocketLimits {
    /// Defaults filled in; contradictions are faults. A default gives way to what is written.
    pub fn check(limits: Option<&Spanned<WebSocketLimits>>, out: &mut Diagnostics) -> SocketLimits {
        let none = WebSocketLimits::default();
        let limits = limits.map_or(&none, |limits| &limits.value);
        let idle = limits.idle.as_ref().map_or(Duration::from_secs(60), |idle| idle.0);
        let ping = match &limits.ping {
            None => Duration::from_secs(30).min(idle / 2),
            Some(ping) => {
                if ping.0 >= idle {
                    out.push(never_pinged(ping, idle, limits.idle.as_ref().map(|idle| idle.span)));
                }
                ping.0
            }
        };
        let max_message = limits.max_message.as_ref().map_or(1 << 20, |size| size.0);
        positive(limits.max_message.as_ref().map(|size| (size.span, size.0)), "max_message", out);
        positive(limits.max_bytes_rate.as_ref().map(|size| (size.span, size.0)), "max_bytes_rate", out);
        positive(limits.max_rate.as_ref().map(|rate| (rate.span, rate.value)), "max_rate", out);
        let per_user = limits.per_user.as_ref().map(|count| (count.span, u64::from(count.value)));
        positive(per_user, "per_user", out);
        if let Some(rate) = limits.max_bytes_rate.as_ref().filter(|rate| (1..max_message).contains(&rate.0)) {
            out.push(too_slow(rate, max_message, limits.max_message.as_ref().map(|size| size.span)));
        }
        if let Some(takeover) = limits.takeover.as_ref().filter(|takeover| takeover.value)
            && limits.per_user.as_ref().is_none_or(|count| count.value != 1)
        {
            let message = "`takeover` closes the one connection that a caller has, so it needs `per_user: 1`";
            let mut fault = Diagnostic::error(Code::MISPLACED, takeover.span, message)
                .help("write `per_user: 1` beside it, or remove it");
            if let Some(count) = &limits.per_user {
                fault = fault.note(count.span, "`per_user` is set here");
            }
            out.push(fault);
        }
        SocketLimits {
            ping,
            idle,
            max_message,
            max_rate: limits.max_rate.as_ref().map(|rate| rate.value),
            max_bytes_rate: limits.max_bytes_rate.as_ref().map(|size| size.0),
            per_user: limits.per_user.as_ref().map(|count| count.value),
            takeover: limits.takeover.as_ref().is_some_and(|takeover| takeover.value),
        }
    }
}

fn never_pinged(ping: &Spanned<Dur>, idle: Duration, at: Option<Span>) -> Diagnostic {
    let message = format!("`idle` ({}) is not longer than `ping` ({})", Dur(idle), ping.value);
    let fault = Diagnostic::error(Code::DEADLINES, ping.span, message)
        .help("a silent caller would be closed before it is asked whether it lives: make `ping` shorter");
    match at {
        Some(at) => fault.note(at, "`idle` is set here"),
        None => fault,
    }
}

fn too_slow(rate: &Spanned<Size>, max_message: u64, at: Option<Span>) -> Diagnostic {
    let message = format!(
        "`max_bytes_rate` ({} a second) always ends the socket before `max_message` ({})",
        rate.value,
        Size(max_message)
    );
    let fault = Diagnostic::error(Code::DEADLINES, rate.span, message)
        .help("make `max_message` no larger than what may come in a second");
    match at {
        Some(at) => fault.note(at, "`max_message` is set here"),
        None => fault,
    }
}

/// A fault for a limit of nothing.
fn positive(given: Option<(Span, u64)>, key: &str, out: &mut Diagnostics) {
    if let Some((span, 0)) = given {
        out.push(
            Diagnostic::error(Code::BAD_VALUE, span, format!("a `{key}` of 0 lets nothing pass"))
                .help("write at least 1, or remove it"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::{FileId, SourceFile};
    use crate::manifest::decode::decode;
    use crate::manifest::node;

    fn checked(yaml: &str) -> (SocketLimits, Vec<Code>) {
        let mut out = Diagnostics::new();
        let node = node::parse(FileId(0), &SourceFile::new("m.yaml", yaml), &mut out).unwrap();
        let limits: Spanned<WebSocketLimits> = decode(&node, &mut out).unwrap_or_else(|| panic!("{out:?}"));
        let limits = SocketLimits::check(Some(&limits), &mut out);
        (limits, out.iter().map(|fault| fault.code).collect())
    }

    #[test]
    fn defaults_give_way_to_what_is_written() {
        let none = SocketLimits::check(None, &mut Diagnostics::new());
        let (ping, idle) = (Duration::from_secs(30), Duration::from_secs(60));
        assert_eq!((none.ping, none.idle, none.max_message), (ping, idle, 1 << 20));
        assert_eq!(
            (none.max_rate, none.max_bytes_rate, none.per_user, none.takeover),
            (None, None, None, false)
        );
        let (short, faults) = checked("{ idle: 10s }");
        assert_eq!((short.ping, faults), (Duration::from_secs(5), vec![]));
        let (full, faults) = checked("{ per_user: 1, takeover: true, max_rate: 5, max_bytes_rate: 1MiB }");
        assert_eq!((full.per_user, full.takeover, full.max_rate), (Some(1), true, Some(5)));
        assert!(faults.is_empty());
    }

    #[test]
    fn contradictions_are_faults() {
        assert_eq!(checked("{ ping: 60s }").1, [Code::DEADLINES]);
        assert_eq!(checked("{ max_bytes_rate: 1KiB }").1, [Code::DEADLINES]);
        assert_eq!(checked("{ takeover: true, per_user: 2 }").1, [Code::MISPLACED]);
        assert_eq!(checked("{ takeover: false }").1, []);
        let zeros = "{ max_message: 0B, max_bytes_rate: 0B, max_rate: 0, per_user: 0 }";
        assert_eq!(checked(zeros).1, [Code::BAD_VALUE; 4]);
    }
}
